"""``python -m contnet_fast``: the same as ``contnet-fast``."""

import sys

from .cli import main

sys.exit(main())
