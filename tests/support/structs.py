"""The structures of the CUDA launchers that tests fill in: the same names in the same order as C++ declares them.

:func:`check_sizes` compares their sizes with those of C++ when the emulator is loaded, and
tests/emulated/test_structs.py compares the names with the headers.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p

from contnet_fast import limits

STAGES, NODES = limits.MOST_STAGES, 13  # the most of a scheme; of a field: kMostStages, kNodes
LEAVES, TERMS = 8, limits.MOST_STAGES  # the most of one combination: kMostLeaves, kMostTerms
ROWS = limits.PARAMETER_ROWS  # of a slot, kParameterRows: two biases; weight and bias of two norms; skip


def each(kind: type, names: str) -> tuple[tuple[str, type], ...]:
    """Fields of one type."""
    return tuple((name, kind) for name in names.split())


class Combine(Structure):
    _fields_ = (
        *each(c_int32, "state rate leaves terms"),
        ("y", c_void_p * LEAVES), ("k", c_void_p * TERMS * LEAVES),
        *each(c_void_p * LEAVES, "out before after"), ("size", c_int64 * LEAVES),
        *each(c_double * TERMS, "coefficient error"), *each(c_double, "rtol atol"), *each(c_void_p, "partials stream"),
    )  # fmt: skip


class ConvProblem(Structure):
    """What derives from it appends its own fields."""

    _fields_ = (
        *each(c_int32, "state operand vectors tf32 post norm images height width channels group stages steps slots"),
        *each(c_int32, "processors cluster_limit"), *each(c_float, "eps norm_eps"),
        ("rows", c_float * STAGES * STAGES), ("update", c_float * STAGES), ("shared_limit", c_int64),
        *each(c_void_p, "slot_of slot_list stream"),
    )  # fmt: skip


class ConvPrepare(ConvProblem):
    _fields_ = (
        ("nodes", c_void_p * NODES), ("mix", c_void_p), ("basis", c_int64),
        *each(c_void_p, "x packed parameters moments partials"),
    )  # fmt: skip


class ConvSolve(ConvProblem):
    _fields_ = each(c_void_p, "x y states packed parameters moments rates")


class SolvePlan(Structure):
    _fields_ = (
        ("refusal", c_char_p), *each(c_int32, "channels threads values tiles chunks wide cluster rows"),
        *each(c_int64, "shared scratch"),
    )  # fmt: skip


class ConvSolveBackward(ConvProblem):
    _fields_ = (
        *each(c_int32, "skip return_steps"), ("mix", c_void_p), ("basis", c_int64),
        *each(c_void_p, "x states packed parameters moments grad grad_x"),
        ("grads", c_void_p * NODES), ("workspace", c_void_p),
    )  # fmt: skip


class SolveBackwardPlan(Structure):
    _fields_ = (
        ("refusal", c_char_p), *each(c_int32, "channels threads blocks"), *each(c_int64, "shared workspace"),
    )  # fmt: skip


class ConvSteps(ConvProblem):
    _fields_ = (
        *each(c_int64, "first count"),
        *each(c_void_p, "x packed parameters moments statistics partials y states tape workspace"),
    )  # fmt: skip


class StepsPlan(Structure):
    _fields_ = (("refusal", c_char_p), ("workspace", c_int64))


class ConvStages(ConvProblem):
    _fields_ = (
        ("nodes", c_void_p * NODES), ("mix", c_void_p), ("basis", c_int64),
        *each(c_void_p, "x moments statistics y states tape workspace"),
    )  # fmt: skip


class ConvStagesBackward(ConvProblem):
    _fields_ = (
        ("nodes", c_void_p * NODES), ("mix", c_void_p), ("basis", c_int64),
        *each(c_void_p, "x moments states tape grad"), ("by_step", c_int32), ("grad_x", c_void_p),
        ("grads", c_void_p * NODES), ("workspace", c_void_p),
    )  # fmt: skip


class Pass(ConvProblem):
    _fields_ = (*each(c_int32, "skip nodes"), *each(c_void_p, "parameters moments mix"))


class MapOf(Structure):
    _fields_ = (("data", c_void_p), ("type", c_int32))


class NormSums(Structure):
    _fields_ = (*each(c_int32, "norm evaluation slot rows"), ("sums", c_void_p))


class NormGradient(NormSums):
    _fields_ = (*each(c_int32, "mask scaled"), *each(MapOf, "grad value"), ("target", c_void_p))


class StageGradient(NormSums):
    _fields_ = (
        ("stage", c_int32), *each(c_float, "own costate_weight"), ("terms", c_float * STAGES),
        *each(c_void_p, "grad value costate upstream inputs target"), ("target_type", c_int32),
    )  # fmt: skip


class RateGradient(Structure):
    _fields_ = (
        *each(c_int32, "norm evaluation"), ("factor", c_float), ("grad", MapOf), *each(c_void_p, "value target sums"),
    )  # fmt: skip


class DataGradient(Structure):
    _fields_ = (
        *each(c_int32, "conv norm evaluation"), *each(c_void_p, "packed grad value target"),
        ("target_type", c_int32), ("sums", c_void_p),
    )  # fmt: skip


class WeightGradient(Structure):
    _fields_ = (*each(c_int32, "first splits"), *each(c_void_p, "tape grads weight_sums bias_sums"))


class AddUp(Structure):
    _fields_ = (
        ("count", c_int32), ("slots", c_void_p), *each(c_int32, "splits fresh"),
        ("weight_sums", c_void_p), ("weight_grads", c_void_p * 2),
    )  # fmt: skip


class Fold(Structure):
    _fields_ = (*each(c_void_p, "rows sums"), *each(c_int32, "groups count columns"))


class NodeGradients(Structure):
    _fields_ = (
        ("folds", Fold * 3), ("biases", c_void_p), ("sums", c_void_p * 2), *each(c_int32, "bias_distance distance"),
        ("grads", c_void_p * ROWS),
    )  # fmt: skip


class SlicePlan(Structure):
    _fields_ = (*each(c_int32, "columns slots threads"), *each(c_int64, "slices shared"))


MIRRORED = (
    Combine, ConvProblem, ConvPrepare, ConvSolve, SolvePlan, ConvSolveBackward, SolveBackwardPlan, ConvSteps, StepsPlan,
    ConvStages, ConvStagesBackward, Pass, MapOf, NormSums, NormGradient, StageGradient, RateGradient, DataGradient,
    WeightGradient, AddUp, Fold, NodeGradients, SlicePlan,
)  # fmt: skip


class NamedSize(Structure):
    _fields_ = (("name", c_char_p), ("bytes", c_int64))


def check_sizes(library: ctypes.CDLL) -> None:
    """Compare the sizes of all structures with those that C++ has.

    Raises:
        TypeError: the structures that differ, or that are in one list alone, with both sizes.
    """
    library.emulated_sizes.restype = ctypes.POINTER(NamedSize)
    sizes, there = library.emulated_sizes(), {}
    while sizes[len(there)].name is not None:
        entry = sizes[len(there)]
        there[entry.name.decode()] = entry.bytes
    here = {kind.__name__: ctypes.sizeof(kind) for kind in MIRRORED}
    pairs = {name: (here.get(name), there.get(name)) for name in here | there}
    if different := {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}:
        raise TypeError(f"structures of other sizes here and in C++, in bytes: {different}")
