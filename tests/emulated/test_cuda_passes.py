"""Predictions of the cuda backend are made of the launches that its launchers make, as the emulator notes them."""

from __future__ import annotations

import ctypes
from collections import Counter
from dataclasses import replace

import cuda_emulator as emulator
import pytest
import torch
from conv_cases import Case
from cuda_emulator import call
from preparation import prepare
from staged_solves import backward
from structs import ConvPrepare, ConvSolve, ConvSolveBackward, ConvStages, ConvStagesBackward
from whole_solves import gradients, plan

from contnet_fast.costmodel import cuda_pass
from contnet_fast.costmodel.costs import BY_ARCH
from contnet_fast.costmodel.cuda_plans import refusals
from contnet_fast.costmodel.passes import ConvPass

pytestmark = pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)
SOMEWHERE = 1 << 42  # a pointer that nobody follows, and the distance to the next
NORMS = {"none": ("none", False), "known": ("batch", False), "sample": ("layer", False), "batch": ("batch", True)}
SCHEMES = {1: "euler", 2: "midpoint", 4: "rk4_classic"}


def problem(p: ConvPass, kind: type, arch: str, *, without: tuple[str, ...] = ()):
    """The structure of a pass, with pointers to nowhere but for those ``without``."""
    norm, training = NORMS[p.norm]
    case = Case(p.channels, (p.height, p.width), p.batch, "post" if p.post else "pre", norm, training,
                n_basis=p.slots, scheme=SCHEMES[p.stages], n_steps=p.n_steps, dtype=p.compute)  # fmt: skip
    found = emulator.problem(
        case, kind, state=p.dtype, limit=cuda_pass.SHARED[arch], clusters=cuda_pass.CLUSTERS[arch],
        processors=BY_ARCH[arch].multiprocessors,
    )  # fmt: skip
    for place, (name, of) in enumerate(kind._fields_, 1):
        if of is ctypes.c_void_p and name not in without:
            setattr(found, name, place * SOMEWHERE)
        elif name in ("nodes", "grads"):
            for i in range(12):  # no skip scalar, and no gradients by known statistics
                statistics = i in (6, 7, 10, 11)
                absent = p.norm != "known" if name == "nodes" else True
                getattr(found, name)[i] = None if statistics and absent else SOMEWHERE
    found.slots_of = (ctypes.c_int32 * p.evaluations)(*(e * p.slots // p.evaluations for e in range(p.evaluations)))
    found.slot_of, found.slot_list, found.stream = SOMEWHERE, ctypes.addressof(found.slots_of), None
    if hasattr(found, "basis"):
        found.basis = p.slots
    return found


def noted(p: ConvPass, level: str, arch: str) -> Counter:
    """(name, blocks, threads, shared) of every launch of the launchers."""
    statistics = () if p.coupled and not p.post else ("partials",)
    prepare = problem(p, ConvPrepare, arch, without=statistics)
    again = problem(p, ConvPrepare, arch, without=("partials", "moments"))
    calls = []
    unkept = (() if p.backward and p.keep == "none" else ("tape",)) + (() if p.keep == "step" else ("states",))
    if level == "solve":
        solve, wide = problem(p, ConvSolve, arch), ("tape",) + (("states",) if p.keep == "block" else ())
        calls = [("prepare", prepare), ("solve", solve)]
        if p.backward and plan(solve).wide:
            calls.append(("stages_backward", problem(p, ConvStagesBackward, arch, without=wide)))
        elif p.backward:
            calls += calls if p.keep == "block" and p.n_steps > 1 else []
            calls += [("prepare", again), ("solve_backward", problem(p, ConvSolveBackward, arch))]
    else:
        calls = [("stages", problem(p, ConvStages, arch, without=unkept))]
        if p.backward:
            calls.append(("stages_backward", problem(p, ConvStagesBackward, arch, without=unkept)))
    library = emulator.library()
    library.emulated_noted_launches.restype = ctypes.c_char_p
    library.emulated_note_launches()
    try:
        for name, described in calls:
            call(f"emulated_conv_{name}", described)
    finally:
        lines = library.emulated_noted_launches().decode().splitlines()
    found: Counter = Counter()
    for line in lines:
        blocks, rows, threads, shared, name = line.split()
        found[name, int(blocks) * int(rows), int(threads), int(shared)] += 1
    return found


def counted(p: ConvPass, level: str, arch: str) -> Counter:
    found: Counter = Counter()
    for one in cuda_pass.launches(p, level, arch, BY_ARCH[arch]):
        found[one.kernel, one.blocks, one.threads, one.shared] += one.times
    return +found


CAPABILITY = {"sm_80": (8, 0), "sm_90": (9, 0), "sm_100": (10, 0)}


def levels(p: ConvPass, arch: str) -> list[str]:
    """That serve."""
    against = refusals(
        p.channels, p.height, p.width, size=p.operand, sample=p.norm == "sample", capability=CAPABILITY[arch],
        clusters=cuda_pass.CLUSTERS[arch], backward=p.stages if p.backward else 0,
    )  # fmt: skip
    solve = ["solve"] if not against and p.norm != "batch" else []
    return [*solve, *(["stage"] if p.norm != "sample" else [])]


SIZES = ((128, 16, 32, 32), (128, 32, 16, 16), (1, 64, 8, 8), (512, 64, 8, 8), (128, 64, 32, 32), (128, 128, 16, 16),
         (128, 256, 8, 8), (3, 24, 7, 5), (2, 8, 1, 9), (5, 48, 11, 12), (2, 72, 40, 70))  # fmt: skip


@pytest.mark.parametrize("arch", BY_ARCH)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_launches_are_those_of_the_launchers(shape, arch):
    for norm in NORMS:
        for post in (False, True):
            for stages, n_steps, keep in ((4, 8, "step"), (2, 1, "none"), (1, 3, "block")):
                for compute in (torch.bfloat16, torch.float32):
                    for again in (False, True):
                        p = ConvPass(
                            *shape, stages, n_steps, post, norm, torch.float32, compute, "ieee", again, keep, 2
                        )  # fmt: skip
                        for level in levels(p, arch):
                            assert counted(p, level, arch) == noted(p, level, arch), (p, level)


def moved(make) -> int:
    """Bytes that emulated kernels read and write, in shared memory and outside."""
    library = emulator.library()
    library.emulated_moved.restype = ctypes.c_int64
    library.emulated_moved()
    make()
    return library.emulated_moved()


@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize(("channels", "side", "batch"), [(16, 32, 1), (32, 16, 2), (64, 8, 3)])
def test_bytes_are_those_that_the_kernels_move(channels, side, batch, post):
    """By the emulator, which counts what lanes share once a lane; not counted are sums over a block's threads."""
    case = Case(channels, (side, side), batch, "post" if post else "pre", "batch", scheme="midpoint", n_steps=1,
                n_basis=1, dtype=torch.bfloat16, grads="all")  # fmt: skip
    training = replace(case, training=True)
    device = replace(BY_ARCH["sm_90"], multiprocessors=1)
    kernels = [
        ("solve", "known", lambda: gradients(case, processors=1)),
        ("stage", "batch", lambda: backward(training, processors=1)),
    ]
    for level, norm, make in kernels:
        p = ConvPass(batch, channels, side, side, 2, 1, post, norm, backward=True, slots=1)
        works = [w for w in cuda_pass.launches(p, level, "sm_90", device) if w.kernel != "conv_prepare"]
        counted = sum(
            w.times * (w.cost.inner + w.cost.reread + (w.cost.bytes if not w.cost.inner else 0)) for w in works
        )
        prepared = 0 if level == "solve" else 2 * moved(lambda: prepare(training, processors=1))
        found = moved(make) - prepared
        assert counted < found < 1.25 * counted, (level, found, counted)
