"""The CUDA preparation of a solve on the emulator, what it should make, and the same made by PyTorch."""

from __future__ import annotations

import ctypes

import cuda_emulator as emulator
import torch
from conv_cases import Case, draw
from cuda_emulator import buffers, call
from structs import ROWS, ConvPrepare

from contnet_fast.fields.conv.spec import ConvNodes

IN_ROWS = ("conv1_bias", "conv2_bias", "norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias", "skip")


def slots(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Different values of the parameters are slots: their weights of the nodes [slot, node], slots of evaluations."""
    weights = [w for step in case.grid.weights for w in step]
    different = list(dict.fromkeys(weights))
    mix = torch.zeros(len(different), case.n_basis)
    for s, at in enumerate(different):
        for k, share in at:
            mix[s, k] += share
    return mix, torch.tensor([different.index(at) for at in weights], dtype=torch.int32)


def prepare(
    case: Case, *, state: torch.dtype | None = None, vectors: torch.dtype | None = None, processors: int = 2
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """Packed weights, parameters, moments and partial statistics, by name; what they should be; the state."""
    p = emulator.problem(case, ConvPrepare, state=state, vectors=vectors, processors=processors)
    x, nodes, _ = draw(case)
    c, (mix, slot_of) = case.channels, slots(case)
    given = {name: t for name, t in nodes._asdict().items() if t is not None}
    inputs = {
        name: t.to(case.dtype if name in ("conv1_weight", "conv2_weight") else vectors or case.dtype).contiguous()
        for name, t in given.items()
    }
    for i, name in enumerate(nodes._fields):
        p.nodes[i] = inputs[name].data_ptr() if name in inputs else None
    start = x.to(state or case.dtype).permute(0, 2, 3, 1).contiguous()
    rows = emulator.library().emulated_input_rows(ctypes.byref(p)) if case.batch_statistics else 0
    outputs = {
        "packed": torch.empty(2, len(mix), 9, c, c, dtype=case.dtype),
        "parameters": torch.empty(len(mix), ROWS, c),
        "moments": torch.empty(len(slot_of) if p.norm == 1 else 0, 2, 2, c),
        "partials": torch.empty(rows, 2 * c + 4),
    }
    p.basis = case.n_basis
    pointers = {"mix": mix, "slot_of": slot_of, "x": start, **outputs}
    for name, tensor in pointers.items():
        setattr(p, name, tensor.data_ptr() if tensor.numel() else None)
    with buffers(outputs, mix=mix, slot_of=slot_of, x=start, **inputs):
        call("emulated_conv_prepare", p)

    def mixed(name: str, shape: tuple[int, ...], absent: float) -> torch.Tensor:
        value = getattr(nodes, name)
        if value is None:
            return torch.full((len(mix), *shape), absent, dtype=torch.float64)
        return torch.einsum("sk,k...->s...", mix.double(), value).reshape(len(mix), -1).expand(-1, shape[0]) \
            if value.dim() < 3 else torch.einsum("sk,k...->s...", mix.double(), value)  # fmt: skip

    convs = [mixed(f"conv{i}_weight", (), 0.0).permute(0, 3, 4, 2, 1).reshape(-1, 9, c, c) for i in (1, 2)]
    running = [mixed(f"norm{i}_{m}", (c,), 0.0)[slot_of.long()] for i in (1, 2) for m in ("mean", "var")]
    wanted = {
        "packed": torch.stack(convs),
        "parameters": torch.stack([mixed(name, (c,), float(name == "skip")) for name in IN_ROWS], 1),
        "moments": torch.stack(running, 1).reshape(-1, 2, 2, c)[: len(outputs["moments"])],
    }
    return outputs, wanted, start.double().reshape(-1, c)


def operands(case: Case, nodes: ConvNodes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the preparation makes, by PyTorch: packed weights, parameters, moments, slots of evaluations."""
    weights = [w for step in case.grid.weights for w in step]
    different = list(dict.fromkeys(weights))

    def mixed(name, at):
        value = getattr(nodes, name)
        return None if value is None else sum(value[k].to(case.dtype).float() * w for k, w in at)

    c = case.channels
    packed = torch.stack([
        torch.stack([mixed(f"conv{i}_weight", at).permute(2, 3, 1, 0).reshape(9, c, c) for at in different])
        for i in (1, 2)
    ])  # fmt: skip
    parameters = torch.full((len(different), ROWS, c), float("nan"))  # rows that are not read
    for i, at in enumerate(different):
        for row, name in enumerate(IN_ROWS):
            value = mixed(name, at)
            if value is not None:
                parameters[i, row] = value
            elif name in ("conv1_bias", "conv2_bias", "skip"):
                parameters[i, row] = float(name == "skip")
    moments = torch.empty(len(weights), 2, 2, case.batch if case.norm in ("group", "layer") else 1, c)
    if case.norm == "batch":
        for e, at in enumerate(weights):
            for i in (1, 2):
                moments[e, i - 1, 0], moments[e, i - 1, 1] = mixed(f"norm{i}_mean", at), mixed(f"norm{i}_var", at)
    return packed.to(case.dtype).contiguous(), parameters, moments, slots(case)[1]
