"""One 3x3 convolution of the field in one launch, with what comes before and after it: forward, and its gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from ....triton.stages import combination
from .maps import (
    BIAS1,
    COMBINED,
    PARAMETERS,
    PLAIN,
    SKIP,
    convolve,
    merge_moments,
    merged_moments,
    moments_at,
    reciprocal_deviation,
    scale_and_shift,
    store_moments,
    tile_moments,
    vector,
)

FORWARD_RUNTIME = [
    *(
        "evaluation",
        "slot",
        "slot_before",
        "stage",
        "rows_in",
        "units",
        "units_per_program",
        "tiles",
        "height",
        "width",
        "plane",
    ),
    *("eps", "norm_eps", "unbiased"),
]
BACKWARD_RUNTIME = [
    *("evaluation", "slot", "rows", "units", "units_per_program", "tiles", "height", "width", "norm_eps"),
]


@triton.jit
def norm_moments(
    partials, rows, moments, statistics, evaluation, norm: tl.constexpr, unbiased, first, channels,
    C: tl.constexpr, MERGE: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Mean and biased variance of a norm over the batch, from ``moments`` or, with MERGE, from partial statistics.

    In the latter case the ``first`` program writes them to ``moments`` and, unbiased, to ``statistics``.
    """
    if MERGE:
        mean, variance, _ = merged_moments(partials, rows, channels, C, BLOCK_R)
        if first:
            base = (evaluation * 2 + norm) * 2 * C + channels
            tl.store(moments + base, mean, mask=channels < C)
            tl.store(moments + base + C, variance, mask=channels < C)
            tl.store(statistics + base, mean.to(statistics.dtype.element_ty), mask=channels < C)
            whole = (variance * unbiased).to(statistics.dtype.element_ty)
            tl.store(statistics + base + C, whole, mask=channels < C)
    else:
        mean, variance = moments_at(moments, evaluation, norm, 0, 1, channels, C)
    return mean, variance


@triton.jit(do_not_specialize=FORWARD_RUNTIME)
def conv_stage(
    source, packed, parameters, moments, partials_in, statistics, target, partials_out,
    state, rates, inputs, table, keep_table,
    evaluation, slot, slot_before, stage, rows_in, units, units_per_program, tiles, height, width, plane,
    eps, norm_eps, unbiased,
    C: tl.constexpr, CONV: tl.constexpr, MODE: tl.constexpr, NORM_INDEX: tl.constexpr, MERGE: tl.constexpr,
    RELU_AFTER: tl.constexpr, COMBINE: tl.constexpr, WRITE: tl.constexpr, STATISTICS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """target <- conv(prologue(source)) + bias [relu], or with COMBINE the next stage's input (at the last the state).

    MODE is the prologue with norm NORM_INDEX, whose statistics come from ``moments`` or, with MERGE, from the partial
    statistics of the launch before; then the first program also writes them to ``moments`` and ``statistics``.
    COMBINE: target = state + own * k + sum of earlier rates, k = eps * skip * conv; k is kept in ``rates`` if a later
    row of the tableau reads it. STATISTICS of the target go to ``partials_out``, a row a program.

    MODE COMBINED (order "post", where a stage's input is the state plus one weight times the rate before it): source is
    the second convolution's result of the evaluation before, whose norm and combination happen as it is loaded. That
    rate is kept as above, and with WRITE the combined input goes to ``inputs``.
    """
    plane = tl.cast(plane, tl.int64) * C  # a multiple of C, which the compiler may see
    pid, n = tl.program_id(0), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    scale, shift = tl.zeros([BLOCK_K], tl.float32), tl.zeros([BLOCK_K], tl.float32)
    earlier = evaluation - 1 if MODE == COMBINED else evaluation
    slot_of_norm = slot_before if MODE == COMBINED else slot
    if NORM_INDEX >= 0:
        first = (pid == 0) & (tl.program_id(1) == 0)
        mean, variance = norm_moments(
            partials_in, rows_in, moments, statistics, earlier, NORM_INDEX, unbiased, first, k, C, MERGE, BLOCK_R
        )
        scale, shift = scale_and_shift(parameters, slot_of_norm, NORM_INDEX, mean, variance, norm_eps, k, C)
    scale_n, shift_n = tl.full([BLOCK_N], 1.0, tl.float32), tl.zeros([BLOCK_N], tl.float32)
    if MODE == COMBINED:
        if NORM_INDEX >= 0:
            mean_n, variance_n = norm_moments(
                partials_in, rows_in, moments, statistics, earlier, NORM_INDEX, unbiased, False, n, C, MERGE, BLOCK_R
            )
            scale_n, shift_n = scale_and_shift(parameters, slot_before, NORM_INDEX, mean_n, variance_n, norm_eps, n, C)
        else:
            scale = tl.full([BLOCK_K], 1.0, tl.float32)
        skip = parameters + (slot_before * PARAMETERS + SKIP) * C
        step = tl.load(table.own + stage)
        keep = tl.load(keep_table + stage)
        scale, shift = scale * vector(skip, k, C) * eps * step, shift * vector(skip, k, C) * eps * step
        scale_n, shift_n = scale_n * vector(skip, n, C) * eps, shift_n * vector(skip, n, C) * eps

    bias = vector(parameters + (slot * PARAMETERS + BIAS1 + CONV) * C, n, C)
    factor = vector(parameters + (slot * PARAMETERS + SKIP) * C, n, C) * eps
    weight = packed + tl.cast(slot, tl.int64) * (9 * C * C)
    count, mean, squares = (
        tl.zeros([BLOCK_N], tl.float32),
        tl.zeros([BLOCK_N], tl.float32),
        tl.zeros([BLOCK_N], tl.float32),
    )
    if COMBINE:
        own_weight, keep = tl.load(table.own + stage), tl.load(keep_table + stage)
    for unit in range(pid * units_per_program, tl.minimum(units, (pid + 1) * units_per_program)):
        image = tl.cast(unit // tiles, tl.int64) * height * width * C
        p = (unit % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
        value = convolve(
            source + image, state + image, weight, p, n, scale, shift, height, width,
            C, MODE, False, PRECISION, BLOCK_P, BLOCK_K, BLOCK_N, STAGES,
        )  # fmt: skip
        value += bias[None, :]
        valid = p < height * width
        mask = valid[:, None] & (n < C)[None, :]
        offsets = image + p[:, None] * C + n[None, :]
        if RELU_AFTER:
            value = tl.maximum(value, 0.0)
        if COMBINE:
            rate = value * factor[None, :]
            if keep != 0:
                kept = rates + tl.cast(stage, tl.int64) * plane + offsets
                tl.store(kept, rate.to(rates.dtype.element_ty), mask=mask)
            before = tl.load(state + offsets, mask=mask, other=0.0).to(tl.float32)
            value = combination(own_weight * rate, before, rates, offsets, mask, table, stage, plane)
        if MODE == COMBINED:
            if WRITE or keep != 0:
                rate = (
                    tl.load(source + offsets, mask=mask, other=0.0).to(tl.float32) * scale_n[None, :] + shift_n[None, :]
                )
                if keep != 0:
                    kept = rates + tl.cast(stage, tl.int64) * plane + offsets
                    tl.store(kept, rate.to(rates.dtype.element_ty), mask=mask)
                if WRITE:
                    before = tl.load(state + offsets, mask=mask, other=0.0).to(tl.float32)
                    tl.store(inputs + offsets, (before + step * rate).to(inputs.dtype.element_ty), mask=mask)
        rounded = value.to(target.dtype.element_ty)
        tl.store(target + offsets, rounded, mask=mask)
        if STATISTICS:
            added, centre, spread = tile_moments(rounded.to(tl.float32), valid)
            count, mean, squares = merge_moments(count, mean, squares, added, centre, spread)
    if STATISTICS:
        store_moments(partials_out, pid, count, mean, squares, n, C)


@triton.jit(do_not_specialize=[*FORWARD_RUNTIME[:8], "pixels", *FORWARD_RUNTIME[10:]])
def post_combine(
    after, parameters, moments, partials_in, statistics, target, state, rates,
    table, keep_table,
    evaluation, slot, stage, rows_in, units, units_per_program, tiles, pixels, plane, eps, norm_eps, unbiased,
    C: tl.constexpr, NORMED: tl.constexpr, MERGE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Order "post": the last norm of the field and the stage combination, as :func:`conv_stage` has them."""
    plane = tl.cast(plane, tl.int64) * C  # a multiple of C, which the compiler may see
    pid = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    scale, shift = tl.full([BLOCK_C], 1.0, tl.float32), tl.zeros([BLOCK_C], tl.float32)
    if NORMED:
        mean, variance = norm_moments(
            partials_in, rows_in, moments, statistics, evaluation, 1, unbiased, pid == 0, c, C, MERGE, BLOCK_R
        )
        scale, shift = scale_and_shift(parameters, slot, 1, mean, variance, norm_eps, c, C)
    factor = vector(parameters + (slot * PARAMETERS + SKIP) * C, c, C) * eps
    own_weight, keep = tl.load(table.own + stage), tl.load(keep_table + stage)
    for unit in range(pid * units_per_program, tl.minimum(units, (pid + 1) * units_per_program)):
        p = (unit % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
        offsets = tl.cast(unit // tiles, tl.int64) * pixels * C + p[:, None] * C + c[None, :]
        mask = (p < pixels)[:, None] & (c < C)[None, :]
        rate = tl.load(after + offsets, mask=mask, other=0.0).to(tl.float32)
        rate = (rate * scale[None, :] + shift[None, :]) * factor[None, :]
        if keep != 0:
            tl.store(rates + tl.cast(stage, tl.int64) * plane + offsets, rate.to(rates.dtype.element_ty), mask=mask)
        before = tl.load(state + offsets, mask=mask, other=0.0).to(tl.float32)
        value = combination(own_weight * rate, before, rates, offsets, mask, table, stage, plane)
        tl.store(target + offsets, value.to(target.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=BACKWARD_RUNTIME)
def conv_gradient(
    source, packed, parameters, moments, value_in, target, sums,
    evaluation, slot, rows, units, units_per_program, tiles, height, width, norm_eps,
    C: tl.constexpr, NORM_INDEX: tl.constexpr, MASK: tl.constexpr, SCALED: tl.constexpr, FOLD: tl.constexpr,
    SUMS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """target <- the gradient by the input of a convolution, given that by its result, ``source``.

    ``value_in`` is what the forward pass fed to norm NORM_INDEX (and relu) before that convolution. MASK applies that
    relu. SCALED multiplies by the skip scalar. SUMS writes a row a program of [3, C]: the sum of the gradient by the
    norm's result, that times the normalised value, and the unscaled gradient times the convolution's operand, from
    which the gradients of the norm's bias, of its weight and of the skip scalar follow. FOLD stores the gradient by
    ``value_in`` for statistics that are constants.
    """
    pid, n = tl.program_id(0), tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    none = tl.zeros([BLOCK_K], tl.float32)
    weight = packed + tl.cast(slot, tl.int64) * (9 * C * C)
    factor = vector(parameters + (slot * PARAMETERS + SKIP) * C, n, C)
    plain, with_value, with_operand = (
        tl.zeros([BLOCK_N], tl.float32),
        tl.zeros([BLOCK_N], tl.float32),
        tl.zeros([BLOCK_N], tl.float32),
    )
    for unit in range(pid * units_per_program, tl.minimum(units, (pid + 1) * units_per_program)):
        image = tl.cast(unit // tiles, tl.int64) * height * width * C
        p = (unit % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
        grad = convolve(
            source + image, source + image, weight, p, n, none, none, height, width,
            C, PLAIN, True, PRECISION, BLOCK_P, BLOCK_K, BLOCK_N, STAGES,
        )  # fmt: skip
        mask = (p < height * width)[:, None] & (n < C)[None, :]
        offsets = image + p[:, None] * C + n[None, :]
        scale = tl.full([BLOCK_N], 1.0, tl.float32)
        if MASK or SUMS:
            value = tl.load(value_in + offsets, mask=mask, other=0.0).to(tl.float32)
            if NORM_INDEX >= 0:
                row = tl.where(rows > 1, unit // tiles, 0)
                mean, variance = moments_at(moments, evaluation, NORM_INDEX, row, rows, n, C)
                scale, shift = scale_and_shift(parameters, slot, NORM_INDEX, mean, variance, norm_eps, n, C)
                normalised = (value - mean[None, :]) * reciprocal_deviation(variance, norm_eps)[None, :]
                operand = value * scale[None, :] + shift[None, :]
            else:
                normalised, operand = value, value
            if MASK:
                alive = operand > 0.0
                grad = tl.where(alive, grad, 0.0)
                operand = tl.where(alive, operand, 0.0)
            if SUMS:
                grad = tl.where(mask, grad, 0.0)
                if SCALED:
                    with_operand += tl.sum(grad * operand, 0)
        if SCALED:
            grad *= factor[None, :]
        if SUMS:
            plain += tl.sum(grad, 0)
            if NORM_INDEX >= 0:
                with_value += tl.sum(grad * normalised, 0)
        if FOLD:
            grad *= scale[None, :]
        tl.store(target + offsets, grad.to(target.dtype.element_ty), mask=mask)
    if SUMS:
        base = sums + pid * 3 * C + n
        tl.store(base, plain, mask=n < C)
        tl.store(base + C, with_value, mask=n < C)
        tl.store(base + 2 * C, with_operand, mask=n < C)
