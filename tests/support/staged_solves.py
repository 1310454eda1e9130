"""Solves at level stage by the CUDA kernels on the emulator, forward and backward: plans, results, the error rule."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import cuda_emulator as emulator
import torch
from conv_cases import SMALL, Case, allowed, away_from_kinks, draw, judge, truth, wanted
from cuda_emulator import buffers, call
from preparation import slots
from structs import ConvProblem, ConvStages, ConvStagesBackward, StepsPlan

FORWARD, BACKWARD = "emulated_conv_stages", "emulated_conv_stages_backward"


def plan(p: ConvProblem, entry: str = FORWARD) -> StepsPlan:
    found = StepsPlan()
    getattr(emulator.library(), entry.replace("conv", "plan"))(ctypes.byref(p), ctypes.byref(found))
    return found


def run(
    p: ConvProblem,
    entry: str,
    inputs: dict[str, torch.Tensor],
    outputs: dict[str, torch.Tensor],
    *,
    fault: int | None = None,
    **more: torch.Tensor,
) -> None:
    for name, tensor in (inputs | outputs).items():
        setattr(p, name, tensor.data_ptr() if tensor.numel() else None)
    p.slot_list = p.slot_of
    workspace = torch.empty(plan(p, entry).workspace, dtype=torch.uint8)
    if workspace.numel():
        p.workspace = workspace.data_ptr()
    with buffers(outputs, **inputs, **more):
        emulator.library().emulated_register(
            b"workspace", ctypes.c_void_p(workspace.data_ptr()), ctypes.c_int64(workspace.numel()), False, True
        )
        call(entry, p) if fault is None else call(entry.replace("emulated", "planted"), ctypes.c_int(fault), p)


def solve(
    case: Case, *, tape: bool = False, states: bool = True, fault: int | None = None, **settings: Any
) -> dict[str, torch.Tensor]:
    """The tensors that a pass has or makes, by name; the states as [step, B, H, W, C]."""
    p = emulator.problem(case, ConvStages, **settings)
    x, nodes, _ = draw(case)
    mix, slot_of = slots(case)
    given = {name: t.to(case.dtype).contiguous() for name, t in nodes._asdict().items() if t is not None}
    for i, name in enumerate(nodes._fields):
        p.nodes[i] = given[name].data_ptr() if name in given else None
    p.basis = case.n_basis
    start = x.to(case.dtype).to(settings.get("state") or case.dtype).permute(0, 2, 3, 1).contiguous()
    kinds, evaluations, normed = 3 if p.post else 2, len(slot_of), case.norm != "none"
    inputs = {"x": start, "mix": mix, "slot_of": slot_of}
    outputs = {
        "y": torch.empty_like(start),
        "states": start.new_empty(case.n_steps - 1 if states else 0, *start.shape),
        "tape": start.new_empty((case.n_steps if tape else 0, kinds, p.stages, *start.shape)),
        "moments": torch.empty(evaluations if normed else 0, 2, 2, case.channels),
        "statistics": torch.empty(evaluations if case.batch_statistics else 0, 4, case.channels, dtype=case.dtype),
    }
    run(p, FORWARD, inputs, outputs, fault=fault, **given)
    return {**inputs, **outputs, **given}


def check(case: Case, *, factor: float = SMALL, **settings: Any) -> dict[str, torch.Tensor]:
    """Hold every state and the statistics of the batch to the error rule; the tensors of the pass."""
    case = replace(case, return_steps=True)
    got, (exact, _) = solve(case, **settings), truth(case)
    y = torch.cat([got["x"][None], got["states"], got["y"][None]]).permute(0, 1, 4, 2, 3).to(case.dtype)
    names = ("norm1_mean", "norm1_var", "norm2_mean", "norm2_var") if case.batch_statistics else ()
    scales = {}
    for name in names:
        spread = exact[name.replace("mean", "var")].max().item()
        scales[name] = exact[name].abs().max().item() + (spread if name.endswith("var") else 3 * spread**0.5)
    statistics = {name: got["statistics"][:, i] for i, name in enumerate(names)}
    judge(case, {"y": y, **statistics}, factor=factor, scales=scales)
    return got


def backward(case: Case, *, keep: str = "step", **settings: Any) -> dict[str, torch.Tensor]:
    """Gradients by name, of x as [B, C, H, W]; ``keep`` as the checkpoint modes of a solve have it."""
    made = solve(case, tape=keep == "none", states=keep == "step", **settings)
    p = emulator.problem(case, ConvStagesBackward, **settings)
    _, nodes, upstream = draw(case)
    p.basis, p.by_step = case.n_basis, case.return_steps
    given = {name: made[name] for name in nodes._fields if name in made}
    names = [name for name in wanted(case, nodes) if name != "x"]
    grads = {name: torch.empty(given[name].shape) for name in names}
    for i, name in enumerate(nodes._fields):
        p.nodes[i] = given[name].data_ptr() if name in given else None
        p.grads[i] = grads[name].data_ptr() if name in grads else None
    inputs = {name: made[name] for name in ("x", "mix", "slot_of", "moments", "states", "tape")}
    inputs["grad"] = upstream.movedim(-3, -1).to(case.dtype).to(made["x"].dtype).contiguous()
    outputs = {"grad_x": torch.empty_like(made["x"])}
    run(p, BACKWARD, inputs, outputs | grads, **given)
    return {"d x": outputs["grad_x"].movedim(-1, 1)} | {f"d {name}": grad for name, grad in grads.items()}


def check_gradients(case: Case, *, keep: str = "step", **settings: Any) -> dict[str, torch.Tensor]:
    """Hold every gradient to the error rule; the gradients."""
    case = away_from_kinks(replace(case, grads="all"))
    got, (exact, _) = backward(case, keep=keep, **settings), truth(case)
    assert got.keys() == {name for name in exact if name.startswith("d ")}
    results = {name: value.to(case.dtype).reshape(exact[name].shape) for name, value in got.items()}
    judge(case, results, factor=allowed)
    return got
