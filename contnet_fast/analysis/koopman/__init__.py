"""Koopman analysis of training: recorded weights, and the spectrum of the map that training applies to them."""

from .callbacks import lightning_callback, transformers_callback
from .decomposition import TOLERANCE, Decomposition, decompose
from .phases import Window, windows
from .recorder import Recorder
from .recording import Recording, open_recording
from .sketch import count_sketch
from .streaming import StreamingDecomposition

__all__ = [
    "TOLERANCE",
    "Decomposition",
    "Recorder",
    "Recording",
    "StreamingDecomposition",
    "Window",
    "count_sketch",
    "decompose",
    "lightning_callback",
    "open_recording",
    "transformers_callback",
    "windows",
]
