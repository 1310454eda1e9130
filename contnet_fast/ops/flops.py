"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for our ops: what it counts for the reference.

It counts convolutions and matrix products alone. So a stage combination counts nothing, and a solve what its
convolutions count. The backward pass depends on which gradients are wanted and on what is recomputed: the reference
is run on the meta device, where nothing is computed, and counted.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from ..fields.conv import reference
from ..fields.conv.spec import ConvNodes, ConvSpec
from .schemas import lookup

_MODULE = "torch.utils.flop_counter"


def register_flop_formulas(ops: Sequence[tuple[str, str]]) -> None:
    """Give every (op, backend) its formula, as soon as something imports FlopCounterMode (0.2 s, so not here)."""

    def register() -> None:
        from torch.utils.flop_counter import register_flop_formula

        for op, backend in ops:
            register_flop_formula(lookup(op, backend), get_raw=True)(FORMULAS[op])

    if _MODULE in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _AfterImport(_MODULE, register))


class _AfterImport:
    """A finder of modules that finds one, once, as the others would, and calls back when it was imported."""

    def __init__(self, name: str, callback: Callable[[], None]) -> None:
        self.name, self.callback = name, callback

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The module's own spec, with a loader that calls back."""
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.callback()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def combine_flop(*args: Any, **kwargs: Any) -> int:
    """Of a stage combination: sums are not counted."""
    return 0


def conv_solve_flop(x: torch.Tensor, nodes: Sequence[torch.Tensor | None], *rest: Any, **kwargs: Any) -> int:
    """Of a solve: two 3x3 convolutions an evaluation, two operations a product."""
    evaluations = len(rest[6])  # counts of the time grid, one for each
    return evaluations * 2 * 2 * 9 * x.shape[1] * x.numel()


def conv_solve_backward_flop(
    grad: torch.Tensor,
    x: torch.Tensor,
    nodes: Sequence[torch.Tensor | None],
    order: str,
    norm: str,
    groups: int,
    eps: float,
    norm_eps: float,
    training: bool,
    counts: Sequence[int],
    cells: Sequence[int],
    weights: Sequence[float],
    rows: Sequence[float],
    update: Sequence[float],
    n_steps: int,
    keep: str,
    level: str,
    moments: torch.Tensor,
    kept: torch.Tensor,
    wanted: Sequence[int],
    **kwargs: Any,
) -> int:
    """Of the gradient of a solve, with the recomputation that ``keep`` asks for."""
    names = ConvNodes._fields
    present = tuple(
        name for name, node in zip(names, nodes, strict=True) if node is not None or name.endswith(("mean", "var"))
    )
    # in a thread of its own, since a dispatch mode, which counts, is beneath automatic differentiation
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(
            _counted,
            tuple(x.shape),
            ConvSpec(x.shape[1], order, norm, "conv1_bias" in present, "skip" in present, eps, norm_eps, groups),
            tuple(name for name in present if norm == "batch" or not name.endswith(("mean", "var"))),
            tuple(names[i] for i in wanted),
            x.requires_grad,
            training,
            tuple(rows),
            tuple(update),
            n_steps,
            keep,
        ).result()


@lru_cache(maxsize=256)
def _counted(
    shape: tuple[int, ...],
    spec: ConvSpec,
    present: tuple[str, ...],
    wanted: tuple[str, ...],
    x_wanted: bool,
    training: bool,
    rows: tuple[float, ...],
    update: tuple[float, ...],
    n_steps: int,
    keep: str,
) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    stages, channels = len(update), spec.channels
    sizes = {"conv1_weight": (channels, channels, 3, 3), "conv2_weight": (channels, channels, 3, 3), "skip": ()}

    def node(name: str) -> torch.Tensor | None:
        if name not in present:
            return None
        return torch.empty(1, *sizes.get(name, (channels,)), device="meta", requires_grad=name in wanted)

    # one cell for all: which cell a stage reads, or how many it combines, changes no convolution
    grid: Any = SimpleNamespace(
        weights=((((0, 1.0),),) * stages,) * n_steps,
        stage_rows=tuple(rows[s * stages : s * stages + s] for s in range(stages)),
        update=update,
        n_steps=n_steps,
    )
    x = torch.empty(shape, device="meta", requires_grad=x_wanted)
    nodes = ConvNodes._make(map(node, ConvNodes._fields))
    y, _ = reference.conv_solve(x, nodes, spec=spec, grid=grid, training=training, checkpoint=keep)
    with FlopCounterMode(display=False) as counter:
        y.backward(torch.empty_like(y))
    return counter.get_total_flops()


FORMULAS: dict[str, Callable[..., int]] = {
    "rk_combine": combine_flop,
    "rk_combine_error": combine_flop,
    "rk_combine_compensated": combine_flop,
    "conv_solve": conv_solve_flop,
    "conv_solve_backward": conv_solve_backward_flop,
}
