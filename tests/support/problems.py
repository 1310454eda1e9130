"""Problems as a block states them, by the words of its field."""

from __future__ import annotations

from typing import Any

import torch

from contnet_fast.backends import Problem
from contnet_fast.problem import Facts


def problem(
    *, order: str = "pre", norm: str = "batch", coupled: bool = False, device: str = "cpu", **change: Any
) -> Problem:
    """A problem; of a ``conv_solve`` with the facts of its field.

    Args:
        coupled: batch norm takes the statistics of the batch.
    """
    given: dict[str, Any] = {
        "dtype": torch.float32,
        "compute_dtype": torch.float32,
        "shape": (3,),
        "stages": 6,
        **change,
    }
    if given["op"] == "conv_solve":
        given["family"] = "conv"
        given["facts"] = Facts((order, norm), given["shape"][1], coupled, norm in ("group", "layer"))
    return Problem(device=torch.device(device), **given)
