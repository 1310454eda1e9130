"""Gradients of convolution weights and biases: partial sums over pixels, added in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl

from .maps import moments_at, scale_and_shift, tap_mask


@triton.jit(
    do_not_specialize=[
        *("first", "stages", "stage", "conv", "units", "units_per_program", "splits", "tiles", "images", "height"),
        *("width", "kind_distance", "plane", "norm_eps"),
    ]
)
def weight_gradient(
    tape, grads, parameters, moments, slot_of, weight_sums, bias_sums,
    first, stages, units, units_per_program, splits, tiles, images, height, width, kind_distance, plane, norm_eps,
    C: tl.constexpr, POST: tl.constexpr, NORMED: tl.constexpr, SAMPLES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One step's gradients by both convolutions' weights, split over pixels.

    A program takes a run of units (axis 0), one row of the 3x3 kernel and a block of output channels (axis 1), and one
    convolution of one stage (axis 2). It forms the products of the three taps of that row at once, as one matrix of
    4 * BLOCK_K rows of which the last BLOCK_K are empty.
    tape [kind, stage, image, pixel, C] holds what comes before the norm and relu (POST: the norm, and nothing before the
    first) of the convolutions; grads [conv, stage, image, pixel, C] the gradients by their results.
    weight_sums [stage, conv, split, tap, C, C]; bias_sums [stage, conv, split, C].
    """
    kind_distance = tl.cast(kind_distance, tl.int64) * C
    plane = tl.cast(plane, tl.int64) * C  # a multiple of C, which the compiler may see
    split = tl.program_id(0)
    blocks: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    ky, n = tl.program_id(1) // blocks, (tl.program_id(1) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    stage, conv = tl.program_id(2) // 2, tl.program_id(2) % 2
    kx, k = tl.arange(0, 4), tl.arange(0, BLOCK_K)
    slot = tl.load(slot_of + first + stage)
    source = tape + conv * kind_distance + tl.cast(stage, tl.int64) * plane
    result = grads + tl.cast(conv * stages + stage, tl.int64) * plane
    norm = conv * 0 if POST else conv
    total = tl.zeros([4 * BLOCK_K, BLOCK_N], tl.float32)
    bias = tl.zeros([BLOCK_N], tl.float32)
    scale, shift = tl.full([BLOCK_K], 1.0, tl.float32), tl.zeros([BLOCK_K], tl.float32)
    if NORMED and not SAMPLES:
        mean, variance = moments_at(moments, first + stage, norm, 0, 1, k, C)
        scale, shift = scale_and_shift(parameters, slot, norm, mean, variance, norm_eps, k, C)
        if POST:
            scale, shift = tl.where(conv == 0, 1.0, scale), tl.where(conv == 0, 0.0, shift)
    for unit in range(split * units_per_program, tl.minimum(units, (split + 1) * units_per_program)):
        image = unit // tiles
        base = tl.cast(image, tl.int64) * height * width * C
        p = (unit % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
        row, col = p // width, p % width
        inside = tap_mask(row[:, None], col[:, None], ky - 1, (kx - 1)[None, :], height, width) & (kx < 3)[None, :]
        inside = inside[:, :, None] & (k < C)[None, None, :]
        pixel = p[:, None] + ((ky - 1) * width - 1) + kx[None, :]
        a = tl.load(source + base + (pixel * C)[:, :, None] + k[None, None, :], mask=inside, other=0.0)
        if NORMED or not POST:
            if SAMPLES:
                mean, variance = moments_at(moments, first + stage, norm, image, images, k, C)
                scale, shift = scale_and_shift(parameters, slot, norm, mean, variance, norm_eps, k, C)
                if POST:
                    scale, shift = tl.where(conv == 0, 1.0, scale), tl.where(conv == 0, 0.0, shift)
            value = a.to(tl.float32)
            if NORMED:
                value = value * scale[None, None, :] + shift[None, None, :]
            if not POST:
                value = tl.maximum(value, 0.0)
            a = tl.where(inside, value, 0.0)
        g = tl.load(
            result + base + p[:, None] * C + n[None, :], mask=(row < height)[:, None] & (n < C)[None, :], other=0.0
        )
        left = tl.reshape(a.to(g.dtype), [BLOCK_P, 4 * BLOCK_K])
        total = tl.dot(tl.trans(left), g, total, input_precision=PRECISION)
        bias += tl.sum(g.to(tl.float32), 0)
    place = tl.cast((stage * 2 + conv) * splits + split, tl.int64)
    m = tl.arange(0, 4 * BLOCK_K)
    tap, channel = ky * 3 + m // BLOCK_K, m % BLOCK_K
    target = weight_sums + place * (9 * C * C) + (tap * C * C + channel * C)[:, None] + n[None, :]
    tl.store(target, total, mask=((m // BLOCK_K < 3) & (channel < C))[:, None] & (n < C)[None, :])
    if ky == 0:
        tl.store(bias_sums + place * C + n, bias, mask=n < C)


@triton.jit(do_not_specialize=["first", "stages", "size", "splits"])
def add_up(
    weight_sums, bias_sums, mix, slot_of, parameters, weight_grads, bias_grads,
    first, stages, size, splits,
    C: tl.constexpr, SCALED: tl.constexpr, PARAMETERS: tl.constexpr, SKIP: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Add one step's partial sums to the gradients of the nodes, in a fixed order.

    weight_grads [conv, node, output, input, tap] in float32, of node k: sum over stages of mix[slot, k] * sums (SCALED:
    times the skip scalar for the second convolution, whose sums were taken without it). bias_grads [evaluation, conv, C]
    without that.
    """
    conv, node = tl.program_id(1) % 2, tl.program_id(1) // 2
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    tap, i, o = e // (C * C), (e // C) % C, e % C
    mask = e < 9 * C * C
    total = tl.zeros([BLOCK_E], tl.float32)
    touched = 0.0
    for stage in range(stages):
        slot = tl.load(slot_of + first + stage)
        share = tl.load(mix + slot * size + node)
        touched += tl.abs(share)
        if share != 0.0:
            if SCALED:
                if conv == 1:
                    share *= tl.load(parameters + (slot * PARAMETERS + SKIP) * C)
            split_sum = tl.zeros([BLOCK_E], tl.float32)
            base = weight_sums + tl.cast((stage * 2 + conv) * splits, tl.int64) * (9 * C * C)
            for split in range(splits):
                split_sum += tl.load(base + tl.cast(split, tl.int64) * (9 * C * C) + e, mask=mask, other=0.0)
            total += share * split_sum
    if touched != 0.0:
        place = weight_grads + tl.cast(conv * size + node, tl.int64) * (9 * C * C) + o * (9 * C) + i * 9 + tap
        tl.store(place, tl.load(place, mask=mask, other=0.0) + total, mask=mask)
    if (tl.program_id(0) == 0) & (node == 0):
        for stage in range(stages):
            for start in tl.static_range(0, C, BLOCK_E):
                c = start + tl.arange(0, BLOCK_E)
                split_sum = tl.zeros([BLOCK_E], tl.float32)
                for split in range(splits):
                    row = tl.cast((stage * 2 + conv) * splits + split, tl.int64) * C
                    split_sum += tl.load(bias_sums + row + c, mask=c < C, other=0.0)
                tl.store(bias_grads + ((first + stage) * 2 + conv) * C + c, split_sum, mask=c < C)
