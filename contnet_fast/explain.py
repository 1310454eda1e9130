"""What would run, and why: the plans of a call, found without computing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from .backends import Plan as BlockPlan
from .backends import record_plans


@dataclass(frozen=True)
class Plan:
    """The plans of a call, in order: one (name, plan) for each unit that a backend serves. ``print`` shows a table."""

    units: tuple[tuple[str, BlockPlan], ...]

    def __str__(self) -> str:
        if not self.units:
            return "no unit of contnet_fast runs in this call"
        rows = [("unit", "op", "state", "dtype", "scheme", "backend", "level", "why")]
        for name, plan in self.units:
            p = plan.problem
            dtype = "+".join(str(d).removeprefix("torch.") for d in p.leaf_dtypes or (p.dtype,))
            compute = str(p.compute_dtype).removeprefix("torch.")
            rows.append(
                (
                    name or "(call)",
                    p.op,
                    "x".join(map(str, p.shape)),
                    dtype if p.dtype == p.compute_dtype else f"{dtype}, field {compute}",
                    f"{p.scheme} x {p.n_steps}" if p.n_steps else f"{p.stages} terms",
                    plan.backend,
                    plan.level,
                    plan.why,
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        refusals = {str(refusal): None for _, plan in self.units for refusal in plan.refused}
        return "\n".join([*lines, *(f"not {refusal}" for refusal in refusals)])


def explain(call: Callable[..., Any], *inputs: Any) -> Plan:
    """The backend, level and reasons for every unit that ``call(*inputs)`` would run.

    Nothing is computed and nothing changes: a module runs on fake tensors of its parameters and of the inputs.

    Args:
        call: a module or a function of this package applied to tensors.
        inputs: its arguments; tensors may be nested in tuples, lists and dicts.

    Raises:
        BackendUnavailable: as the call itself would.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    named: list[tuple[str, BlockPlan]] = []
    path: list[str] = [""]
    with mode, record_plans() as plans:
        fake_inputs = tree_map_only(torch.Tensor, mode.from_tensor, inputs)
        if not isinstance(call, nn.Module):
            call(*fake_inputs)
            return Plan(tuple(("", plan) for plan in plans))
        state: dict[str, torch.Tensor] = {
            name: mode.from_tensor(t) for name, t in (*call.named_parameters(), *call.named_buffers())
        }
        with _names(call, path, plans, named):
            torch.func.functional_call(call, state, fake_inputs)
    return Plan(tuple(named))


@contextmanager
def _names(
    net: nn.Module, path: list[str], plans: list[BlockPlan], named: list[tuple[str, BlockPlan]]
) -> Iterator[None]:
    """Give every plan made inside a module the name of that module."""

    def leave(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            named.extend((name, plan) for plan in plans)
            plans.clear()

        return hook

    handles = [module.register_forward_hook(leave(name)) for name, module in net.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
