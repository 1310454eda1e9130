"""What serves a trained network: programs in files, and a discretization for a budget of latency."""

from .choice import Candidate, Choice, Measured, choose_discretization
from .files import FORMATS, read_metadata, save_model
from .program import OPS, export_program

__all__ = [
    "FORMATS",
    "OPS",
    "Candidate",
    "Choice",
    "Measured",
    "choose_discretization",
    "export_program",
    "read_metadata",
    "save_model",
]
