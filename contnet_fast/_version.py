"""The version, read by the build and by ``info()``."""

__version__ = "0.1.0"
