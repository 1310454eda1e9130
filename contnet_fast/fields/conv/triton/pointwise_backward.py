"""The pointwise parts of the backward pass: through norms, and through the Runge-Kutta combinations."""

from __future__ import annotations

import triton
import triton.language as tl

from ....triton.stages import combination
from .maps import (
    NORM_WEIGHT,
    PARAMETERS,
    SKIP,
    moments_at,
    over_group,
    reciprocal_deviation,
    row_sums,
    vector,
)

# how the statistics of a norm depend on its input
CONSTANT = tl.constexpr(0)  # not at all, or there is no norm
BATCH = tl.constexpr(1)
SAMPLE = tl.constexpr(2)

UNITS = [
    "evaluation",
    "slot",
    "units",
    "units_per_program",
    "tiles",
    "sum_tiles",
    "rows",
    "images",
    "pixels",
    "count",
    "norm_eps",
]


@triton.jit
def norm_terms(
    sums, parameters, moments, evaluation, slot, image, sum_tiles, rows, count, images, norm_eps, channels,
    NORM_INDEX: tl.constexpr, COUPLING: tl.constexpr, C: tl.constexpr, GROUP: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Per channel: weight, mean, 1/deviation, and the means of g and of g * normalised, g = weight * gradient.

    ``sums`` holds the sums of the gradient by the norm's result and of that times the normalised input: over the
    batch in ``rows`` rows, or for a SAMPLE in ``sum_tiles`` rows an image.
    """
    weight = vector(parameters + (slot * PARAMETERS + NORM_WEIGHT + 2 * NORM_INDEX) * C, channels, C)
    plain, with_value = tl.zeros_like(weight), tl.zeros_like(weight)
    if COUPLING == SAMPLE:
        mean, variance = moments_at(moments, evaluation, NORM_INDEX, image, images, channels, C)
        plain = weight * row_sums(sums, image * sum_tiles, (image + 1) * sum_tiles, 0, channels, C, BLOCK_R)
        with_value = weight * row_sums(sums, image * sum_tiles, (image + 1) * sum_tiles, 1, channels, C, BLOCK_R)
        plain, with_value = over_group(plain, channels, GROUP), over_group(with_value, channels, GROUP)
    else:
        mean, variance = moments_at(moments, evaluation, NORM_INDEX, 0, 1, channels, C)
        if COUPLING == BATCH:
            plain = weight * row_sums(sums, 0, rows, 0, channels, C, BLOCK_R)
            with_value = weight * row_sums(sums, 0, rows, 1, channels, C, BLOCK_R)
    return weight, mean, reciprocal_deviation(variance, norm_eps), plain / count, with_value / count


@triton.jit
def through_norm(grad, value, weight, mean, rstd, plain, with_value):
    """The gradient by a norm's input: rstd * (g - mean(g) - normalised * mean(g * normalised))."""
    normalised = (value - mean[None, :]) * rstd[None, :]
    return rstd[None, :] * (weight[None, :] * grad - plain[None, :] - normalised * with_value[None, :])


@triton.jit(do_not_specialize=UNITS)
def norm_gradient(
    grad_in, value_in, sums, parameters, moments, target,
    evaluation, slot, units, units_per_program, tiles, sum_tiles, rows, images, pixels, count, norm_eps,
    C: tl.constexpr, NORM_INDEX: tl.constexpr, COUPLING: tl.constexpr, GROUP: tl.constexpr, MASK: tl.constexpr,
    SCALED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """target <- the gradient by a norm's input (MASK: by that of the relu before it), given that by its result.

    SCALED multiplies by the skip scalar. NORM_INDEX < 0: no norm.
    """
    pid = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    if NORM_INDEX >= 0 and COUPLING != SAMPLE:
        weight, mean, rstd, plain, with_value = norm_terms(
            sums, parameters, moments, evaluation, slot, 0, sum_tiles, rows, count, images, norm_eps, c,
            NORM_INDEX, COUPLING, C, GROUP, BLOCK_R,
        )  # fmt: skip
    for unit in range(pid * units_per_program, tl.minimum(units, (pid + 1) * units_per_program)):
        p = (unit % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
        offsets = tl.cast(unit // tiles, tl.int64) * pixels * C + p[:, None] * C + c[None, :]
        mask = (p < pixels)[:, None] & (c < C)[None, :]
        grad = tl.load(grad_in + offsets, mask=mask, other=0.0).to(tl.float32)
        value = tl.load(value_in + offsets, mask=mask, other=0.0).to(tl.float32)
        if NORM_INDEX >= 0:
            if COUPLING == SAMPLE:
                weight, mean, rstd, plain, with_value = norm_terms(
                    sums, parameters, moments, evaluation, slot, unit // tiles, sum_tiles, rows, count, images, norm_eps, c,
                    NORM_INDEX, COUPLING, C, GROUP, BLOCK_R,
                )  # fmt: skip
            grad = through_norm(grad, value, weight, mean, rstd, plain, with_value)
        if SCALED:
            grad *= vector(parameters + (slot * PARAMETERS + SKIP) * C, c, C)[None, :]
        if MASK:
            grad = tl.where(value > 0.0, grad, 0.0)
        tl.store(target + offsets, grad.to(target.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=[*UNITS, "stage", "plane"])
def stage_gradient(
    costate, upstream, grad_in, value_in, sums, parameters, moments, inputs, target,
    table, costate_table,
    evaluation, slot, stage, units, units_per_program, tiles, sum_tiles, rows, images, pixels, count, plane, norm_eps,
    C: tl.constexpr, COUPLING: tl.constexpr, GROUP: tl.constexpr, ADD: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Turn the gradient by a stage's input into that by the rate before it, or at stage 0 to the costate of the step.

    grad_in is the gradient by the stage's input, or with COUPLING by its norm's result; kept in ``inputs[stage]``.
    target = costate_table[stage] * costate + table.own[stage] * it + gradients of later stages from ``inputs``, by the
    columns of the tableau; at stage 0 the sum of all, to which ADD adds the gradient given for the state there.
    """
    plane = tl.cast(plane, tl.int64) * C  # a multiple of C, which the compiler may see
    pid = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    if COUPLING == BATCH:
        weight, mean, rstd, plain, with_value = norm_terms(
            sums, parameters, moments, evaluation, slot, 0, sum_tiles, rows, count, images, norm_eps, c,
            0, COUPLING, C, GROUP, BLOCK_R,
        )  # fmt: skip
    for unit in range(pid * units_per_program, tl.minimum(units, (pid + 1) * units_per_program)):
        p = (unit % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
        offsets = tl.cast(unit // tiles, tl.int64) * pixels * C + p[:, None] * C + c[None, :]
        mask = (p < pixels)[:, None] & (c < C)[None, :]
        grad = tl.load(grad_in + offsets, mask=mask, other=0.0).to(tl.float32)
        if COUPLING != CONSTANT:
            value = tl.load(value_in + offsets, mask=mask, other=0.0).to(tl.float32)
            if COUPLING == SAMPLE:
                weight, mean, rstd, plain, with_value = norm_terms(
                    sums, parameters, moments, evaluation, slot, unit // tiles, sum_tiles, rows, count, images, norm_eps, c,
                    0, COUPLING, C, GROUP, BLOCK_R,
                )  # fmt: skip
            grad = through_norm(grad, value, weight, mean, rstd, plain, with_value)
        if stage > 0:
            kept = inputs + tl.cast(stage, tl.int64) * plane + offsets
            tl.store(kept, grad.to(inputs.dtype.element_ty), mask=mask)
        before = tl.load(costate + offsets, mask=mask, other=0.0).to(tl.float32)
        total = tl.load(costate_table + stage) * before
        if ADD:
            total += tl.load(upstream + offsets, mask=mask, other=0.0).to(tl.float32)
        total = combination(
            tl.load(table.own + stage) * grad, total, inputs, offsets, mask, table, stage, plane,
        )  # fmt: skip
        tl.store(target + offsets, total.to(target.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=["evaluation", "units", "units_per_program", "tiles", "images", "pixels", "factor", "norm_eps"]
)
def rate_gradient(
    grad_in, value_in, moments, target, sums,
    evaluation, units, units_per_program, tiles, images, pixels, factor, norm_eps,
    C: tl.constexpr, SUMS: tl.constexpr, NORMED: tl.constexpr, SAMPLES: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """target <- factor * grad_in; with SUMS, of order "post", whose field ends with the norm of ``value_in``, also
    a row a program of [3, C]: the sum of the target, and of the target times the normalised value.
    """
    pid = tl.program_id(0)
    c = tl.arange(0, BLOCK_C)
    plain, with_value = tl.zeros([BLOCK_C], tl.float32), tl.zeros([BLOCK_C], tl.float32)
    for unit in range(pid * units_per_program, tl.minimum(units, (pid + 1) * units_per_program)):
        p = (unit % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
        offsets = tl.cast(unit // tiles, tl.int64) * pixels * C + p[:, None] * C + c[None, :]
        mask = (p < pixels)[:, None] & (c < C)[None, :]
        grad = factor * tl.load(grad_in + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(target + offsets, grad.to(target.dtype.element_ty), mask=mask)
        if SUMS:
            value = tl.load(value_in + offsets, mask=mask, other=0.0).to(tl.float32)
            if NORMED:
                if SAMPLES:
                    mean, variance = moments_at(moments, evaluation, 1, unit // tiles, images, c, C)
                else:
                    mean, variance = moments_at(moments, evaluation, 1, 0, 1, c, C)
                value = (value - mean[None, :]) * reciprocal_deviation(variance, norm_eps)[None, :]
            plain += tl.sum(grad, 0)
            with_value += tl.sum(tl.where(mask, grad * value, 0.0), 0)
    if SUMS:
        base = sums + pid * 3 * C + c
        tl.store(base, plain, mask=c < C)
        tl.store(base + C, with_value, mask=c < C)
        tl.store(base + 2 * C, with_value, mask=c < C)
