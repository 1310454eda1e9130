"""The command ``contnet-fast``."""

from .app import main

__all__ = ["main"]
