"""What ``torch.utils.flop_counter.FlopCounterMode`` counts for our ops: what it counts for the reference.

It counts convolutions and matrix products alone. So a stage combination counts nothing. For a solve the reference is
run on the meta device, where nothing is computed, and counted: the backward pass depends on which gradients are wanted
and on what is recomputed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from ..fields import Call, Family
from ..fields.family import ARGUMENTS
from ..fields.reference import field_solve
from .schemas import lookup

_MODULE = "torch.utils.flop_counter"


def register_flop_formulas(formulas: Mapping[tuple[str, str], Callable[..., int]]) -> None:
    """Give every (op, backend) its formula, as soon as something imports FlopCounterMode (0.2 s, so not here).

    Args:
        formulas: called with what the op is called with.
    """

    def register() -> None:
        from torch.utils.flop_counter import register_flop_formula

        for (op, backend), formula in formulas.items():
            register_flop_formula(lookup(op, backend), get_raw=True)(formula)

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
    """Count a stage combination as zero: sums are not counted."""
    return 0


def solve_flop(family: Family, *arguments: Any, **kwargs: Any) -> int:
    """Count the convolutions and matrix products of a solve."""
    return _count(Call.of_arguments(family, *arguments[:ARGUMENTS]), None)


def solve_backward_flop(family: Family, grad: torch.Tensor, *arguments: Any, **kwargs: Any) -> int:
    """Count those of its gradient, with the recomputation that ``keep`` asks for."""
    return _count(Call.of_arguments(family, *arguments[:ARGUMENTS]), tuple(arguments[-1]))


def _count(call: Call, wanted: tuple[int, ...] | None) -> int:
    def description(tensor: torch.Tensor | None) -> tuple[tuple[int, ...], torch.dtype] | None:
        return None if tensor is None else (tuple(tensor.shape), tensor.dtype)

    nodes = [description(node) for node in call.nodes]
    for i in call.family.running_places:  # that the backward pass is not given
        if nodes[i] is None and call.facts.couples_batch:
            nodes[i] = ((0, call.facts.width), call.x.dtype)
    settings = (call.spec.pack(), call.training, call.grid, call.keep or "none")
    # in a thread of its own, since a dispatch mode, which counts, is beneath automatic differentiation
    with ThreadPoolExecutor(1) as thread:
        shapes = description(call.x), tuple(nodes), tuple(map(description, call.operands))
        return thread.submit(_counted, call.family, shapes, settings, wanted, call.x.requires_grad).result()


@lru_cache(maxsize=256)
def _counted(
    family: Family, shapes: tuple[Any, ...], settings: tuple[Any, ...], wanted: tuple[int, ...] | None, x_wanted: bool
) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    packed, training, flat, keep = settings
    stages = len(flat.update)

    def tensor(described: Any, place: int, *, nodal: bool) -> torch.Tensor | None:
        if described is None:
            return None
        shape, dtype = described
        needs = wanted is not None and place in wanted
        return torch.empty((1, *shape[1:]) if nodal else shape, dtype=dtype, device="meta", requires_grad=needs)

    # one node for all: which nodes a stage reads, or how many it combines, changes no product
    grid: Any = SimpleNamespace(
        weights=((((0, 1.0),),) * stages,) * flat.n_steps,
        stage_rows=tuple(flat.rows[s * stages : s * stages + s] for s in range(stages)),
        update=flat.update,
        n_steps=flat.n_steps,
    )
    x_described, nodes_described, operands_described = shapes
    x = torch.empty(x_described[0], dtype=x_described[1], device="meta", requires_grad=wanted is not None and x_wanted)
    nodes = family.nodes._make(tensor(d, i, nodal=True) for i, d in enumerate(nodes_described))
    operands = [tensor(d, len(nodes) + i, nodal=False) for i, d in enumerate(operands_described)]
    spec = family.spec.unpack(packed)
    with FlopCounterMode(display=False) as forward, torch.set_grad_enabled(wanted is not None):
        y, _ = field_solve(
            family, x, nodes, operands=operands, spec=spec, grid=grid, training=training, checkpoint=keep
        )
    if wanted is None:
        return forward.get_total_flops()
    with FlopCounterMode(display=False) as backward:
        y.backward(torch.empty_like(y))
    return backward.get_total_flops()
