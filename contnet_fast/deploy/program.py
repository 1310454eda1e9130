"""A network as a program of torch.export, with the fused ops of a backend or with PyTorch's own operations alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from ..backends import use_backend
from ..errors import BackendUnavailable, check_bool, check_choice
from ..inspect.explain import explain

OPS = ("fused", "portable")
LARGEST_BATCH = 2**16  # torch 2.14 asks for a bound


def export_program(
    net: nn.Module, *inputs: torch.Tensor, ops: str = "fused", dynamic_batch: bool = True
) -> torch.export.ExportedProgram:
    """Record ``net(*inputs)`` in eval mode as a program that needs no Python code of the network.

    Args:
        net: any network with ODE blocks; it is left as it was. Its discretization is unrolled into the program.
        inputs: example tensors [B, ...] on the device of the network, by their shapes and dtypes.
        ops: ``"fused"`` keeps the registered op of each block, so that the program is of one kind of device and loads
            where the library of the ops is loaded (``import contnet_fast``, or ``libcontnet_fast.so`` in C++).
            ``"portable"`` has PyTorch's own operations alone and loads anywhere.
        dynamic_batch: B may be any number from 1 to 65,536; otherwise that of ``inputs``.

    Returns:
        The program: ``program.module()`` runs it, ``torch.export.save`` writes it.

    Raises:
        TypeError, ValueError: naming the argument.
        BackendUnavailable: ``ops="fused"`` and a block would run in PyTorch alone; with every reason.
    """
    check_choice("ops", ops, OPS)
    check_bool("dynamic_batch", dynamic_batch)
    _check_inputs(inputs)
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    shapes = tuple({0: batch} for _ in inputs) if dynamic_batch else None
    if dynamic_batch:  # an example of one or of equal sizes would make the batch a constant
        inputs = tuple(_of_two(t) for t in inputs)
    with evaluating(net), torch.no_grad():
        if ops == "fused":
            _check_fused(net, inputs)
        with use_backend("reference") if ops == "portable" else nullcontext():
            return torch.export.export(net, inputs, dynamic_shapes=shapes)


def _check_inputs(inputs: Sequence[torch.Tensor]) -> None:
    if not inputs:
        raise TypeError("inputs: got none, accepted: example tensors [B, ...]")
    for i, tensor in enumerate(inputs):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"inputs[{i}]: got {type(tensor).__name__}, accepted: a torch.Tensor")
        if tensor.dim() == 0:
            raise ValueError(f"inputs[{i}]: got shape (), accepted: [B, ...]")


def _of_two(x: torch.Tensor) -> torch.Tensor:
    """Two samples of zeros, in the memory format of ``x``."""
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    zeros = x.new_zeros((2, *x.shape[1:]))
    return zeros.contiguous(memory_format=torch.channels_last) if last else zeros


def _check_fused(net: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Refuse blocks that no op of ours serves."""
    solves = [plan for _, plan in explain(net, *inputs).units if not plan.problem.is_part]
    left = [plan for plan in solves if plan.level not in ("solve", "stage")]
    if left or not solves:
        against = [(r.backend, reason) for plan in left for r in plan.refused for reason in r.reasons]
        reasons = "; ".join(f"{name}: {reason}" for name, reason in dict.fromkeys(against)) or "it has no ODE block"
        got = f"{len(left)} of {len(solves)} blocks run in PyTorch alone" if solves else "no block runs in a fused op"
        raise BackendUnavailable(f"ops: got 'fused', but {got}, accepted here: portable ({reasons})")


def ops_of_ours(program: torch.export.ExportedProgram) -> list[str]:
    """The names of the registered ops in a program, in order, each once."""
    names = [
        str(node.target) for node in program.graph.nodes if getattr(node.target, "namespace", "") == "contnet_fast"
    ]
    return list(dict.fromkeys(names))


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Within the block the network is in eval mode; then every module is as it was."""
    before: list[tuple[Any, bool]] = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
