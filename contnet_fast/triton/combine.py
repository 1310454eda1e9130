"""Stage combinations y + sum_j c_j k_j of all leaves of a state in one launch, with the error norm or what rounding
lost in the same pass.

Bound by memory: every operand is read once and the result written once. A program takes ``BLOCK`` consecutive elements,
1024 with 4 warps: one 16-byte load of 16-bit floats a thread and operand, two of float32, all of them independent.
Coefficients are compile-time constants; terms of weight zero are left out on the host, so they cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ..reference.rk import accumulation_dtype
from .launch import allocate, launch

BLOCK = 1024
MOST_LEAVES = 8  # of one launch: pointers are arguments, and a launch takes 4 KB of those


@triton.jit
def lost(a, b, total):
    """a + b - total, where total is a + b rounded."""
    rounded = total - a
    return (a - (total - rounded)) + (b - rounded)


@triton.jit
def combine_leaf(
    y, ks, out, partials, before, after, block, size,
    RTOL: tl.constexpr, ATOL: tl.constexpr,
    COEFFICIENTS: tl.constexpr, ERRORS: tl.constexpr, NORM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one leaf; with NORM its sum of squared scaled errors goes to ``partials``.

    after: where what rounding lost goes, or None; the sum is then one type wider than the state, and begins with what
    ``before`` holds of the step before.
    """
    EXACT: tl.constexpr = y.dtype.element_ty == tl.float64
    sums = tl.float64 if EXACT or (after is not None and y.dtype.element_ty == tl.float32) else tl.float32
    if WIDE:
        offsets = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
    else:
        offsets = block * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < size
    start = tl.load(y + offsets, mask=mask, other=0.0).to(sums)
    increment = tl.zeros([BLOCK], sums)
    error = tl.zeros([BLOCK], sums)
    for j in tl.static_range(len(COEFFICIENTS)):
        k = tl.load(ks[j] + offsets, mask=mask, other=0.0).to(sums)
        if COEFFICIENTS[j] != 0.0:
            increment += k * COEFFICIENTS[j]
        if NORM:
            error += k * ERRORS[j]
    more = increment
    if before is not None:
        c = tl.load(before + offsets, mask=mask, other=0.0).to(sums)
        more += c
    total = start + more
    rounded = total.to(out.dtype.element_ty)
    tl.store(out + offsets, rounded, mask=mask)
    if after is not None:
        rest = lost(start, more, total) if EXACT else total - rounded.to(sums)
        if EXACT and before is not None:
            rest += lost(increment, c, more)
        rest = tl.where(rest - rest == 0.0, rest, 0.0)  # nothing of a sum that is not finite
        tl.store(after + offsets, rest.to(after.dtype.element_ty), mask=mask)
    if NORM:
        scale = ATOL + RTOL * tl.maximum(tl.abs(start), tl.abs(rounded.to(sums)))
        ratio = tl.where(mask, error / scale, 0.0)
        tl.store(partials, tl.sum(ratio * ratio, 0).to(partials.dtype.element_ty))


@triton.jit
def rk_combine(
    ys, ks, outs, sizes, partials, befores, afters,
    RTOL: tl.constexpr, ATOL: tl.constexpr,
    COEFFICIENTS: tl.constexpr, ERRORS: tl.constexpr, NORM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Combine every leaf: programs go through the leaves one after another.

    ys, outs: tuples of pointers, sizes: of elements. ks: for each leaf a tuple of one pointer a coefficient. befores,
    afters: tuples of pointers, or None.
    """
    block = tl.program_id(0)
    row = partials + block
    for leaf in tl.static_range(len(ys)):
        blocks = (sizes[leaf] + BLOCK - 1) // BLOCK
        if (block >= 0) & (block < blocks):
            before = None if befores is None else befores[leaf]
            after = None if afters is None else afters[leaf]
            combine_leaf(
                ys[leaf], ks[leaf], outs[leaf], row, before, after, block, sizes[leaf], RTOL, ATOL,
                COEFFICIENTS, ERRORS, NORM, WIDE, BLOCK,
            )  # fmt: skip
        block -= tl.cast(blocks, tl.int32)


@triton.jit(do_not_specialize=["rows", "elements"])
def error_norm(partials, out, rows, elements, BLOCK: tl.constexpr):
    """sqrt(sum / elements), summed in one fixed order."""
    total = tl.zeros([BLOCK], partials.dtype.element_ty)
    for first in range(0, rows, BLOCK):
        r = first + tl.arange(0, BLOCK)
        total += tl.load(partials + r, mask=r < rows, other=0.0)
    mean = tl.sum(total, 0) / elements.to(total.dtype)
    tl.store(out, tl.sqrt_rn(mean) if total.dtype == tl.float32 else tl.sqrt(mean))


def needs_wide_offsets(elements: int) -> bool:
    """Whether 32 bits do not hold the offsets of a leaf, the hanging end of its last block included."""
    return elements + BLOCK >= 2**31


def combine(
    ys: Sequence[torch.Tensor], ks: Sequence[torch.Tensor], coefficients: Sequence[float],
    errors: Sequence[float] = (), *, rtol: float = 0.0, atol: float = 0.0, norm_dtype: torch.dtype | None = None,
    wide: bool | None = None, befores: Sequence[torch.Tensor] = (), afters: Sequence[torch.Tensor] = (),
) -> tuple[list[torch.Tensor], torch.Tensor | None]:  # fmt: skip
    """The combinations of all leaves and, with ``norm_dtype``, the error norm; ``wide`` forces the width of offsets.

    What rounding lost of each leaf is written to ``afters`` where there are some, which have the strides of the results.
    """
    used = [j for j, c in enumerate(coefficients) if c != 0.0 or (errors and errors[j] != 0.0)]
    outs = [_result(y) for y in ys]
    n = len(ys)
    dense = [_as_dense(y, out) for y, out in zip(ys, outs, strict=True)]
    rates = [tuple(_as_dense(ks[j * n + i], outs[i]) for j in used) for i in range(n)]
    live = [i for i in range(n) if ys[i].numel()]
    blocks = sum(-(-ys[i].numel() // BLOCK) for i in live)
    device = ys[0].device
    partials = allocate((blocks if norm_dtype else 0,), norm_dtype or torch.float32, device)
    place = 0
    for first in range(0, len(live), MOST_LEAVES):
        group = live[first : first + MOST_LEAVES]
        sizes = tuple(ys[i].numel() for i in group)
        programs = sum(-(-size // BLOCK) for size in sizes)
        launch(
            rk_combine, (programs,), num_warps=4,
            ys=tuple(dense[i] for i in group), ks=tuple(rates[i] for i in group), outs=tuple(outs[i] for i in group),
            sizes=sizes, partials=partials[place:] if norm_dtype else partials,
            befores=tuple(_as_dense(befores[i], outs[i]) for i in group) if befores else None,
            afters=tuple(afters[i] for i in group) if afters else None, RTOL=rtol, ATOL=atol,
            COEFFICIENTS=tuple(coefficients[j] for j in used), ERRORS=tuple(errors[j] for j in used) if errors else (),
            NORM=norm_dtype is not None, WIDE=max(map(needs_wide_offsets, sizes)) if wide is None else wide, BLOCK=BLOCK,
        )  # fmt: skip
        place += programs
    if norm_dtype is None:
        return outs, None
    norm = allocate((), norm_dtype, device)
    elements = max(sum(y.numel() for y in ys), 1)
    launch(error_norm, (1,), partials=partials, out=norm, rows=blocks, elements=elements, BLOCK=BLOCK)
    return outs, norm


def combine_compensated(
    ys: Sequence[torch.Tensor], cs: Sequence[torch.Tensor], ks: Sequence[torch.Tensor], coefficients: Sequence[float]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The combinations of all leaves and what their rounding lost, beginning with what the step before lost (``cs``)."""
    afters = [_result(y, accumulation_dtype(y.dtype)) for y in ys]
    return combine(ys, ks, coefficients, befores=cs, afters=afters)[0], afters


def _result(y: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    like = torch.empty_like(y, dtype=dtype)
    if y.device.type == "meta":
        return like
    return allocate(like.shape, like.dtype, like.device) if like.is_contiguous() else like


def _as_dense(value: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``value`` with the strides of ``out``: itself or a copy."""
    value = value.resolve_neg().resolve_conj()
    return value if value.stride() == out.stride() else torch.empty_like(out, dtype=value.dtype).copy_(value)
