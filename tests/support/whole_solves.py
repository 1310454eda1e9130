"""Whole solves by the CUDA kernels on the emulator, forward and backward: plans, results, the error rule."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import cuda_emulator as emulator
import torch
from conv_cases import SMALL, Case, allowed, away_from_kinks, draw, judge, wanted
from cuda_emulator import buffers, call
from preparation import operands, slots
from structs import ConvSolve, ConvSolveBackward, SolveBackwardPlan, SolvePlan

from contnet_fast.costmodel import cuda_plans

NORMS = ("none", "batch", "group", "layer")


def described(case: Case, **settings: Any) -> ConvSolve:
    return emulator.problem(case, ConvSolve, **settings)


def plan(p: ConvSolve) -> SolvePlan:
    found = SolvePlan()
    emulator.library().emulated_plan_solve(ctypes.byref(p), ctypes.byref(found))
    return found


def solve(
    case: Case, *, state: torch.dtype | None = None, fault: int | None = None, **settings: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """All states [n_steps + 1, B, C, H, W], and the moments."""
    p = described(case, state=state, **settings)
    x, nodes, _ = draw(case)
    start = x.to(case.dtype).to(state or case.dtype).permute(0, 2, 3, 1).contiguous()
    packed, parameters, moments, slot_of = operands(case, nodes)
    states = torch.empty(case.n_steps - 1, *start.shape, dtype=start.dtype)
    y, scratch = torch.empty_like(start), torch.empty(plan(p).scratch // 4)
    inputs = {"x": start, "packed": packed, "parameters": parameters, "slot_of": slot_of}
    outputs = {"y": y, "states": states}
    (outputs if p.norm == 2 else inputs)["moments"] = moments
    for name, tensor in (inputs | outputs).items():
        setattr(p, name, tensor.data_ptr() if tensor.numel() else None)
    entry = ("emulated_conv_solve", p) if fault is None else ("planted_conv_solve", ctypes.c_int(fault), p)
    with buffers(outputs, **inputs):
        if scratch.numel():
            p.rates = scratch.data_ptr()
            emulator.library().emulated_register(
                b"rates", ctypes.c_void_p(p.rates), ctypes.c_int64(4 * scratch.numel()), False, True
            )
        call(*entry)
    return torch.cat([start[None], states, y[None]]).permute(0, 1, 4, 2, 3), moments


def check(case: Case, *, factor: float = SMALL, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Hold every state to the error rule; the states and the moments."""
    got, moments = solve(case, **settings)
    judge(replace(case, return_steps=True), {"y": got.to(case.dtype)}, factor=factor)
    return got, moments


def assert_planned(found: SolvePlan, case: Case, limit: int, clusters: int) -> None:
    """Every number of the plan is the one counted."""
    sample = case.norm in ("group", "layer")
    count = cuda_plans.solve_block(
        case.channels, *case.size, size=case.dtype.itemsize, sample=sample, limit=limit, clusters=clusters
    )
    assert (found.channels, found.wide, found.cluster, found.rows) == (
        count.channels,
        count.wide,
        count.cluster,
        count.rows,
    )
    assert (found.threads, found.values, found.tiles) == (32 * count.warps, count.values, count.tiles)
    assert (found.shared, found.chunks) == (count.shared, count.pieces)


# ---- backward


def described_backward(case: Case, **settings: Any) -> ConvSolveBackward:
    p = emulator.problem(case, ConvSolveBackward, **settings)
    p.basis, p.skip, p.return_steps = case.n_basis, case.skip, case.return_steps
    return p


def plan_backward(p: ConvSolveBackward) -> SolveBackwardPlan:
    found = SolveBackwardPlan()
    emulator.library().emulated_plan_solve_backward(ctypes.byref(p), ctypes.byref(found))
    return found


def gradients(
    case: Case, *, fault: int | None = None, processors: int = 2, state: torch.dtype | None = None, **settings: Any
) -> dict[str, torch.Tensor]:
    """By name, from the states of the emulated forward pass."""
    p = described_backward(case, processors=processors, state=state, **settings)
    path, moments = solve(case, state=state, **settings)
    maps = path.permute(0, 1, 3, 4, 2).contiguous()
    _, nodes, dy = draw(case)
    packed, parameters, _, slot_of = operands(case, nodes)
    grad = dy.to(state or case.dtype)
    grad = grad.permute(*range(grad.dim() - 3), -2, -1, -3).contiguous()
    states = maps[1:-1].contiguous()
    inputs = {"x": maps[0].contiguous(), "states": states, "packed": packed, "parameters": parameters,
              "moments": moments, "slot_of": slot_of, "mix": slots(case)[0], "grad": grad}  # fmt: skip
    grads = {name: torch.empty(getattr(nodes, name).shape) for name in wanted(case, nodes) if name != "x"}
    p.grads[:] = [grads[name].data_ptr() if name in grads else None for name in nodes._fields]
    outputs = {"grad_x": torch.empty_like(maps[0])}
    for name, tensor in (inputs | outputs).items():
        setattr(p, name, tensor.data_ptr() if tensor.numel() else None)
    p.slot_list = p.slot_of
    workspace = torch.empty(plan_backward(p).workspace, dtype=torch.uint8)
    p.workspace = workspace.data_ptr()
    entry = ("emulated_conv_solve_backward", p)
    if fault is not None:
        entry = ("planted_conv_solve_backward", ctypes.c_int(fault), p)
    with buffers(outputs | grads, **inputs):
        emulator.library().emulated_register(
            b"workspace", ctypes.c_void_p(p.workspace), ctypes.c_int64(workspace.numel()), False, True
        )
        call(*entry)
    return {"d x": outputs["grad_x"].permute(0, 3, 1, 2)} | {f"d {name}": grad for name, grad in grads.items()}


def check_gradients(case: Case, **settings: Any) -> dict[str, torch.Tensor]:
    """Hold every gradient to the error rule; the gradients."""
    case = replace(case, grads="all")
    if case.dtype == torch.float32:
        case = away_from_kinks(case)
    got = gradients(case, **settings)
    judge(case, {name: value.to(case.dtype) for name, value in got.items()}, factor=allowed)
    return got
