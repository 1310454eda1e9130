"""The first launch of every solve: theta(t) of each slot in the layout of the products, and statistics of the input."""

from __future__ import annotations

import triton
import triton.language as tl

from .maps import BIAS1, NORM_WEIGHT, PARAMETERS, SKIP, merge_moments, store_moments, tile_moments

RUNTIME = ["size", "weight_programs", "slots", "evaluations", "units", "units_per_program", "tiles", "pixels_per_image"]


@triton.jit
def mixed(nodes, mix, slot, size, stride, offsets, mask):
    """sum_k mix[slot, k] nodes[k] at ``offsets``, in float32; basis functions of weight zero are not read."""
    total = tl.zeros_like(offsets).to(tl.float32)
    for k in range(size):
        share = tl.load(mix + slot * size + k)
        if share != 0.0:
            total += share * tl.load(nodes + k * stride + offsets, mask=mask, other=0.0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=RUNTIME)
def prepare(
    packed, parameters, moments, partials,
    conv1_weight, conv1_bias, conv2_weight, conv2_bias,
    norm1_weight, norm1_bias, norm1_mean, norm1_var, norm2_weight, norm2_bias, norm2_mean, norm2_var, skip,
    x, mix, slot_of,
    size, weight_programs, slots, evaluations, units, units_per_program, tiles, pixels_per_image,
    C: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_SKIP: tl.constexpr,
    KNOWN: tl.constexpr, STATISTICS: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Programs in turn pack weights, write parameters of slots, moments of evaluations, and statistics of ``x``.

    packed [conv, slot, tap, input, output]; parameters [slot, PARAMETERS, C]; moments [evaluation, 2, 2, 1, C] if
    the statistics are KNOWN (running ones); partials [program, 3, C] if STATISTICS of x [image, pixel, C] are asked for.
    """
    pid = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    inside = c < C
    if pid < weight_programs:
        per_conv = weight_programs // 2
        blocks = per_conv // slots
        slot = (pid % per_conv) // blocks
        e = (pid % blocks) * BLOCK_E + tl.arange(0, BLOCK_E)
        valid = e < 9 * C * C
        tap, i, o = e // (C * C), (e // C) % C, e % C
        offsets = o * (9 * C) + i * 9 + tap
        if pid < per_conv:
            value = mixed(conv1_weight, mix, slot, size, 9 * C * C, offsets, valid)
        else:
            value = mixed(conv2_weight, mix, slot, size, 9 * C * C, offsets, valid)
        place = tl.cast((pid // per_conv) * slots + slot, tl.int64) * (9 * C * C) + e
        tl.store(packed + place, value.to(packed.dtype.element_ty), mask=valid)
        return
    pid -= weight_programs
    if pid < slots:
        row = parameters + pid * PARAMETERS * C + c
        if HAS_BIAS:
            tl.store(row + BIAS1 * C, mixed(conv1_bias, mix, pid, size, C, c, inside), mask=inside)
            tl.store(row + (BIAS1 + 1) * C, mixed(conv2_bias, mix, pid, size, C, c, inside), mask=inside)
        else:
            tl.store(row + BIAS1 * C, tl.zeros([BLOCK_C], tl.float32), mask=inside)
            tl.store(row + (BIAS1 + 1) * C, tl.zeros([BLOCK_C], tl.float32), mask=inside)
        if HAS_NORM:
            tl.store(row + NORM_WEIGHT * C, mixed(norm1_weight, mix, pid, size, C, c, inside), mask=inside)
            tl.store(row + (NORM_WEIGHT + 1) * C, mixed(norm1_bias, mix, pid, size, C, c, inside), mask=inside)
            tl.store(row + (NORM_WEIGHT + 2) * C, mixed(norm2_weight, mix, pid, size, C, c, inside), mask=inside)
            tl.store(row + (NORM_WEIGHT + 3) * C, mixed(norm2_bias, mix, pid, size, C, c, inside), mask=inside)
        if HAS_SKIP:
            tl.store(row + SKIP * C, mixed(skip, mix, pid, size, 1, c * 0, inside), mask=inside)
        else:
            tl.store(row + SKIP * C, tl.full([BLOCK_C], 1.0, tl.float32), mask=inside)
        return
    pid -= slots
    if KNOWN:
        if pid < evaluations:
            slot = tl.load(slot_of + pid)
            row = moments + pid * 4 * C + c
            tl.store(row, mixed(norm1_mean, mix, slot, size, C, c, inside), mask=inside)
            tl.store(row + C, mixed(norm1_var, mix, slot, size, C, c, inside), mask=inside)
            tl.store(row + 2 * C, mixed(norm2_mean, mix, slot, size, C, c, inside), mask=inside)
            tl.store(row + 3 * C, mixed(norm2_var, mix, slot, size, C, c, inside), mask=inside)
            return
        pid -= evaluations
    if STATISTICS:
        count, mean = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
        squares = tl.zeros([BLOCK_C], tl.float32)
        for unit in range(pid * units_per_program, tl.minimum(units, (pid + 1) * units_per_program)):
            p = (unit % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
            image = x + tl.cast(unit // tiles, tl.int64) * pixels_per_image * C
            valid = p < pixels_per_image
            value = tl.load(image + p[:, None] * C + c[None, :], mask=valid[:, None] & inside[None, :], other=0.0)
            n, m, s = tile_moments(value.to(tl.float32), valid)
            count, mean, squares = merge_moments(count, mean, squares, n, m, s)
        store_moments(partials, pid, count, mean, squares, c, C)
