"""Schemas and fakes of the registered ops, ``contnet_fast::<op>_<backend>``: one table for every backend and family.

Their texts are in a file that the C++ sources include too (``schemas.h``).

Each backend has an op name of its own, so profiler traces and captured graphs show what ran.

``ys`` are the leaves of the state (one for a tensor), ``ks`` all leaves of the first term, then of the second:
``ks[j * len(ys) + i]`` belongs to ``coefficients[j]`` and ``ys[i]``. ``cs`` are what the step before lost of each of
``ys``, or none at all, which is zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..backends import Backend
from ..fields import Call, Family, Implementation, PythonImplementation
from ..reference.rk import accumulation_dtype, norm_dtype
from .batching import older_one_by_one, one_by_one

LIBRARY = torch.library.Library("contnet_fast", "DEF")

_TEXT = (Path(__file__).parents[1] / "schemas.h").read_text()
SCHEMAS = {
    name: "".join(re.findall(r'"([^"]*)"', parts))
    for name, parts in re.findall(r'^SCHEMA\((\w+),((?:\s*"[^"]*")+)\)', _TEXT, re.MULTILINE)
}
# of every field family: contnet_fast::<family>_solve_<backend>
SOLVE, SOLVE_BACKWARD = SCHEMAS["SOLVE"], SCHEMAS["SOLVE_BACKWARD"]


def fake_rk_combine(
    ys: Sequence[torch.Tensor], ks: Sequence[torch.Tensor], coefficients: Sequence[float]
) -> list[torch.Tensor]:
    """Each result has the shape, dtype, device and memory format of its ``y``."""
    return [torch.empty_like(y) for y in ys]


def fake_rk_combine_error(
    ys: Sequence[torch.Tensor],
    ks: Sequence[torch.Tensor],
    coefficients: Sequence[float],
    error_coefficients: Sequence[float],
    rtol: float,
    atol: float,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The states as ``ys``, and a real 0-d error norm."""
    return [torch.empty_like(y) for y in ys], ys[0].new_empty((), dtype=norm_dtype(ys))


def fake_rk_combine_compensated(
    ys: Sequence[torch.Tensor], cs: Sequence[torch.Tensor], ks: Sequence[torch.Tensor], coefficients: Sequence[float]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The states as ``ys``, and what they lack in the dtype of sums."""
    return [torch.empty_like(y) for y in ys], [torch.empty_like(y, dtype=accumulation_dtype(y.dtype)) for y in ys]


def fake_solve(
    family: Family, implementation: Implementation, *arguments: Any
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """State or trajectory, statistics of the evaluations, and what the implementation saves."""
    *given, return_steps = arguments
    call = Call.of_arguments(family, *given)
    x, evaluations = call.x, len(call.grid.counts)
    return (
        x.new_empty((call.grid.n_steps + 1, *x.shape)) if return_steps else torch.empty_like(x),
        empty_statistics(call, evaluations),
        [x.new_empty(shape, dtype=dtype) for shape, dtype in implementation.saved(call)],
    )


def empty_statistics(call: Call, evaluations: int) -> torch.Tensor:
    """[evaluations, statistics, width] in the dtype of the running ones; no evaluations where none are taken."""
    family, facts = call.family, call.facts
    running = next((call.nodes[i] for i in family.running_places if call.nodes[i] is not None), call.x)
    columns = 0 if family.statistics is None else len(family.statistics._fields)
    return running.new_empty((evaluations if facts.couples_batch else 0, columns, facts.width))


def fake_solve_backward(family: Family, grad: torch.Tensor, *arguments: Any) -> list[torch.Tensor]:
    """The gradient of x, and those of the wanted nodes and operands."""
    x, nodes, operands = arguments[:3]
    tensors = [*nodes, *operands]
    return [torch.empty_like(x), *(tensors[i].new_empty(tensors[i].shape) for i in arguments[-1])]


FAKES: dict[str, Callable] = {
    "rk_combine": fake_rk_combine,
    "rk_combine_error": fake_rk_combine_error,
    "rk_combine_compensated": fake_rk_combine_compensated,
}


def define_op(name: str, schema: str, fake: Callable) -> None:
    """Define ``contnet_fast::<name>`` with its fake. What is written in C++ is defined there, to run without Python."""
    if not hasattr(torch.ops.contnet_fast, name):
        LIBRARY.define(name + schema)
    torch.library.register_fake(f"contnet_fast::{name}", fake, lib=LIBRARY)


def define(op: str, backend: str, function: Callable | None, key: str = "CompositeExplicitAutograd") -> None:
    """Define ``contnet_fast::<op>_<backend>``, a combination, with its fake.

    Args:
        function: what runs under the dispatch key; ``None`` where an extension registers it.
    """
    name = f"{op}_{backend}"
    define_op(name, SCHEMAS[op], FAKES[op])
    if function is not None:
        LIBRARY.impl(name, function, key)


def define_part(op: str, backend: Backend, key: str, fake: Callable, fake_backward: Callable) -> None:
    """Define the forward and the backward op of a part on a backend, with fakes and batching.

    Args:
        key: the dispatch key of its functions, unless an extension registers them.
    """
    for one, described in ((op, fake), (f"{op}_backward", fake_backward)):
        name, function = f"{one}_{backend.name}", backend.part(one)
        define_op(name, SCHEMAS[one], described)
        if function is not None:
            LIBRARY.impl(name, function, key)
    _batch_backward(f"{op}_backward_{backend.name}")


def _batch_backward(name: str) -> None:
    """Batching rules of a backward op. The forward op never sees a batch: under transforms PyTorch serves."""
    call = getattr(torch.ops.contnet_fast, name)
    torch.library.register_vmap(f"contnet_fast::{name}", one_by_one(call), lib=LIBRARY)
    LIBRARY.impl(name, older_one_by_one(call), "Batched")


def define_solve(family: Family, backend: Backend, key: str) -> None:
    """Define the forward and the backward op of a family's solve on a backend, with fakes and batching rules."""
    implementation = family.implementations[backend.name]
    forward, backward = f"{family.op}_{backend.name}", f"{family.op}_backward_{backend.name}"
    define_op(forward, SOLVE, partial(fake_solve, family, implementation))
    define_op(backward, SOLVE_BACKWARD, partial(fake_solve_backward, family))
    _batch_backward(backward)
    if not isinstance(implementation, PythonImplementation):
        return

    def run(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        *given, return_steps = arguments
        solve = Call.of_arguments(family, *given)
        with backend.running(family.op, solve, return_steps):
            return implementation.forward(solve, return_steps=return_steps)

    def run_backward(grad: torch.Tensor, *arguments: Any) -> list[torch.Tensor]:
        *given, saved, wanted = arguments
        solve = Call.of_arguments(family, *given)
        with backend.running(f"{family.op}_backward", solve, *wanted):
            return implementation.backward(solve, grad, saved, wanted)

    LIBRARY.impl(forward, run, key)
    LIBRARY.impl(backward, run_backward, key)


def lookup(op: str, backend: str) -> Callable:
    """The callable op of a backend."""
    return getattr(torch.ops.contnet_fast, f"{op}_{backend}")
