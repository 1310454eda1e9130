"""Training: settings and recipes, data sets, and a loop with exact resume. Needs the extra ``train``.

Names are imported when they are used, so that the settings alone need no extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import RECIPES, Config, make_config
    from .data import Data, Split, load_data, load_for
    from .loop import Result, TrainingError, train
    from .run import Run, load_net, open_run, run_data

_HOMES = {
    "config": ("RECIPES", "Config", "make_config"),
    "data": ("Data", "Split", "load_data", "load_for"),
    "loop": ("Result", "TrainingError", "train"),
    "run": ("Run", "load_net", "open_run", "run_data"),
}

__all__ = [
    "RECIPES",
    "Config",
    "Data",
    "Result",
    "Run",
    "Split",
    "TrainingError",
    "load_data",
    "load_for",
    "load_net",
    "make_config",
    "open_run",
    "run_data",
    "train",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{home}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
