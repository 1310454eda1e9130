"""Koopman analysis of training: recorded weights, the spectrum of the map that training applies to them, its uses."""

from .alarm import Alarm
from .callbacks import lightning_callback, transformers_callback
from .comparison import Comparison, compare, spectral_distance
from .decomposition import TOLERANCE, Decomposition, decompose
from .depth import check_depth, propose_depth
from .diagnosis import Diagnosis, diagnose, forecast_losses
from .extrapolation import Jump, jump
from .phases import Window, windows
from .pruning import importance, prune, pruning_curves
from .recorder import Recorder
from .recording import Recording, open_recording
from .sketch import count_sketch
from .sobolev import multiscale_signal, sobolev_loss
from .streaming import StreamingDecomposition

__all__ = [
    "TOLERANCE",
    "Alarm",
    "Comparison",
    "Decomposition",
    "Diagnosis",
    "Jump",
    "Recorder",
    "Recording",
    "StreamingDecomposition",
    "Window",
    "check_depth",
    "compare",
    "count_sketch",
    "decompose",
    "diagnose",
    "forecast_losses",
    "importance",
    "jump",
    "lightning_callback",
    "multiscale_signal",
    "open_recording",
    "propose_depth",
    "prune",
    "pruning_curves",
    "sobolev_loss",
    "spectral_distance",
    "transformers_callback",
    "windows",
]
