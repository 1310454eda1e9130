"""Calls whose intermediate results backward makes again instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from ..transforms import outside_of_torch_func


def recomputed(function: Callable[..., Any], *arguments: Any, preserve_rng_state: bool) -> Any:
    """``function(*arguments)``, of which backward keeps the arguments and calls it again."""
    before = True

    def call(*arguments: Any) -> Any:
        nonlocal before
        if torch.compiler.is_compiling():  # a traced graph changes nothing outside of the call
            return function(*arguments)
        if before:
            before = False
            return function(*arguments)
        with outside_of_torch_func():
            return function(*arguments)

    return checkpoint(call, *arguments, use_reentrant=False, preserve_rng_state=preserve_rng_state)
