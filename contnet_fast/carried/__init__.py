"""What a callable carries from one call to the next, so that a call can be made again as it was."""

from .kept import changed, version
from .moments import Carried, Moment, Unchanged
from .places import modules_within, shards_within, tensors_within

__all__ = ["Carried", "Moment", "Unchanged", "changed", "modules_within", "shards_within", "tensors_within", "version"]
