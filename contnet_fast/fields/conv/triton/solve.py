"""The whole solve of an image in one launch: every step and stage, one program an image.

Nothing couples images here: norms have known statistics (running ones, or saved ones when a step is recomputed for
backward) or are taken within the image. State, rates and both operands of the convolutions live in buffers of which
each program reads and writes its own image alone, a few hundred kilobytes that stay in L2 and mostly in L1; a
barrier of the program stands between writing a map and reading its neighbours.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ....triton.stages import combination
from .maps import (
    BIAS1,
    NORM,
    NORM_RELU,
    PARAMETERS,
    PLAIN,
    RELU,
    SKIP,
    apply,
    convolve,
    merge_moments,
    moments_at,
    over_group,
    scale_and_shift,
    tile_moments,
    vector,
)

# where the statistics of a norm come from
ABSENT = tl.constexpr(0)
KNOWN = tl.constexpr(1)
SAMPLE = tl.constexpr(2)

RUNTIME = [
    *("first", "evaluations", "stages", "slots", "images", "height", "width", "eps", "norm_eps"),
    *("state_step", "tape_step", "tape_kind", "tape_plane", "plane"),
]


@triton.jit
def image_moments(raw, moments, evaluation, norm: tl.constexpr, image, images, pixels, channels,
                  C: tl.constexpr, GROUP: tl.constexpr, BLOCK_P: tl.constexpr):  # fmt: skip
    """Mean and biased variance of a map over each channel's group, also written to ``moments``."""
    count = tl.zeros_like(channels).to(tl.float32)
    mean, squares = tl.zeros_like(count), tl.zeros_like(count)
    for start in range(0, pixels, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < pixels)[:, None] & (channels < C)[None, :]
        value = tl.load(raw + p[:, None] * C + channels[None, :], mask=mask, other=0.0).to(tl.float32)
        n, m, s = tile_moments(value, p < pixels)
        count, mean, squares = merge_moments(count, mean, squares, n, m, s)
    centre = over_group(tl.where(channels < C, mean, 0.0), channels, GROUP) / GROUP
    spread = tl.where(channels < C, mean - centre, 0.0)
    within = tl.where(channels < C, squares, 0.0) / tl.maximum(count, 1.0) + spread * spread
    variance = over_group(within, channels, GROUP) / GROUP
    base = moments + (tl.cast((evaluation * 2 + norm) * 2, tl.int64) * images + image) * C + channels
    tl.store(base, centre, mask=channels < C)
    tl.store(base + tl.cast(images, tl.int64) * C, variance, mask=channels < C)
    return centre, variance


@triton.jit
def rewrite(raw, operand, scale, shift, pixels, channels, C: tl.constexpr, MODE: tl.constexpr, BLOCK_P: tl.constexpr):
    """operand <- prologue(raw) for a whole image."""
    for start in range(0, pixels, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        mask = (p < pixels)[:, None] & (channels < C)[None, :]
        offsets = p[:, None] * C + channels[None, :]
        value = apply(tl.load(raw + offsets, mask=mask, other=0.0).to(tl.float32), scale, shift, MODE)
        tl.store(operand + offsets, value.to(operand.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=RUNTIME)
def conv_solve(
    x, y, states, packed, parameters, moments, left, right, tape, rates, slot_of, table, keep_table,
    first, evaluations, stages, slots, images, height, width,
    state_step, tape_step, tape_kind, tape_plane, plane, eps, norm_eps,
    C: tl.constexpr, POST: tl.constexpr, STATS: tl.constexpr, GROUP: tl.constexpr, TAPE: tl.constexpr,
    RECOMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Integrate each image of ``x`` from evaluation ``first`` on, to ``y`` (or, RECOMPUTE, only to the tape).

    states: the state after each step but the last, ``state_step`` elements apart (0 if they are not kept).
    left, right: operands of the two convolutions. rates: what later stages read, ``plane`` elements a stage.
    tape [step, kind, stage, image, pixel, C], kinds: input of the stage, result of the first convolution (after relu
    in order post), and in order post that of the second. It is written if TAPE, and is scratch with strides of zero
    for norms of a SAMPLE.
    """
    # multiples of C, which the compiler may see
    plane, state_step = tl.cast(plane, tl.int64) * C, tl.cast(state_step, tl.int64) * C
    tape_step, tape_kind = tl.cast(tape_step, tl.int64) * C, tl.cast(tape_kind, tl.int64) * C
    tape_plane = tl.cast(tape_plane, tl.int64) * C
    image = tl.program_id(0)
    pixels = height * width
    here = tl.cast(image, tl.int64) * pixels * C
    k = tl.arange(0, BLOCK_K)
    nothing = tl.zeros([BLOCK_K], tl.float32)
    RAW: tl.constexpr = TAPE or STATS == SAMPLE
    NORMED: tl.constexpr = STATS != ABSENT
    LEFT: tl.constexpr = PLAIN if POST else (NORM_RELU if NORMED else RELU)  # before the first convolution
    RIGHT: tl.constexpr = (NORM if NORMED else PLAIN) if POST else LEFT
    INNER: tl.constexpr = 0 if POST else 1  # the norm between the two convolutions
    conv2 = tl.cast(slots, tl.int64) * (9 * C * C)
    left += here
    right += here

    slot = tl.load(slot_of + first)
    scale, shift = nothing, nothing
    if NORMED and not POST:
        if STATS == SAMPLE:
            mean, variance = image_moments(x + here, moments, first, 0, image, images, pixels, k, C, GROUP, BLOCK_P)
        else:
            mean, variance = moments_at(moments, first, 0, 0, 1, k, C)
        scale, shift = scale_and_shift(parameters, slot, 0, mean, variance, norm_eps, k, C)
    rewrite(x + here, left, scale, shift, pixels, k, C, LEFT, BLOCK_P)
    if TAPE:
        rewrite(x + here, tape + here, nothing, nothing, pixels, k, C, PLAIN, BLOCK_P)
    tl.debug_barrier()

    state = x + here
    for evaluation in range(first, first + evaluations):
        step, stage = (evaluation - first) // stages, (evaluation - first) % stages
        slot = tl.load(slot_of + evaluation)
        weight = packed + tl.cast(slot, tl.int64) * (9 * C * C)
        raw = tape + tl.cast(step, tl.int64) * tape_step + tl.cast(stage, tl.int64) * tape_plane + here
        middle, after = raw + tape_kind, raw + 2 * tl.cast(tape_kind, tl.int64)

        for start in range(0, pixels, BLOCK_P):
            p = start + tl.arange(0, BLOCK_P)
            for n0 in tl.static_range(0, C, BLOCK_N):
                n = n0 + tl.arange(0, BLOCK_N)
                value = convolve(
                    left, left, weight, p, n, nothing, nothing, height, width,
                    C, PLAIN, False, PRECISION, BLOCK_P, BLOCK_K, BLOCK_N, STAGES,
                )  # fmt: skip
                value += vector(parameters + (slot * PARAMETERS + BIAS1) * C, n, C)[None, :]
                if POST:
                    value = tl.maximum(value, 0.0)
                mask = (p < pixels)[:, None] & (n < C)[None, :]
                offsets = p[:, None] * C + n[None, :]
                rounded = value.to(tape.dtype.element_ty)
                if RAW:
                    tl.store(middle + offsets, rounded, mask=mask)
                if STATS != SAMPLE:
                    scale_n, shift_n = nothing, nothing
                    if NORMED:
                        mean_n, variance_n = moments_at(moments, evaluation, INNER, 0, 1, n, C)
                        scale_n, shift_n = scale_and_shift(parameters, slot, INNER, mean_n, variance_n, norm_eps, n, C)
                    value = apply(rounded.to(tl.float32), scale_n, shift_n, RIGHT)
                    tl.store(right + offsets, value.to(right.dtype.element_ty), mask=mask)
        tl.debug_barrier()
        if STATS == SAMPLE:
            mean, variance = image_moments(
                middle, moments, evaluation, INNER, image, images, pixels, k, C, GROUP, BLOCK_P
            )
            scale, shift = scale_and_shift(parameters, slot, INNER, mean, variance, norm_eps, k, C)
            rewrite(middle, right, scale, shift, pixels, k, C, RIGHT, BLOCK_P)
            tl.debug_barrier()

        if RECOMPUTE:
            proceed = stage < stages - 1  # nothing after the last map of the tape is wanted
        else:
            proceed = stage < stages
        if POST or proceed:
            next_slot = tl.load(slot_of + tl.minimum(evaluation + 1, first + evaluations - 1))
            last = stage == stages - 1
            own_weight, keep = tl.load(table.own + stage), tl.load(keep_table + stage)
            if last:
                if evaluation == first + evaluations - 1:
                    target = y + here
                else:
                    target = states + tl.cast(step, tl.int64) * state_step + here
            else:
                target = raw + tape_plane
            for start in range(0, pixels, BLOCK_P):
                p = start + tl.arange(0, BLOCK_P)
                for n0 in tl.static_range(0, C, BLOCK_N):
                    n = n0 + tl.arange(0, BLOCK_N)
                    value = convolve(
                        right, right, weight + conv2, p, n, nothing, nothing, height, width,
                        C, PLAIN, False, PRECISION, BLOCK_P, BLOCK_K, BLOCK_N, STAGES,
                    )  # fmt: skip
                    value += vector(parameters + (slot * PARAMETERS + BIAS1 + 1) * C, n, C)[None, :]
                    if POST:
                        value = tl.maximum(value, 0.0).to(tape.dtype.element_ty)
                        if RAW:
                            mask = (p < pixels)[:, None] & (n < C)[None, :]
                            tl.store(after + p[:, None] * C + n[None, :], value, mask=mask)
                    if proceed and not (POST and STATS == SAMPLE):
                        advance(
                            value, p, n, k, pixels, state, target, left, rates + here, tape, parameters, moments, table,
                            evaluation, stage, slot, next_slot, step, last, own_weight, keep, plane, tape_step, here,
                            tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32), eps, norm_eps,
                            C, POST, STATS, TAPE, RECOMPUTE, LEFT, first + evaluations - 1,
                        )  # fmt: skip
            if POST and STATS == SAMPLE:
                tl.debug_barrier()
                # of the last map too: backward wants its statistics
                mean, variance = image_moments(
                    after, moments, evaluation, 1, image, images, pixels, k, C, GROUP, BLOCK_P
                )
                scale, shift = scale_and_shift(parameters, slot, 1, mean, variance, norm_eps, k, C)
                for start in range(0, pixels, BLOCK_P):
                    p = start + tl.arange(0, BLOCK_P)
                    mask = (p < pixels)[:, None] & (k < C)[None, :]
                    value = tl.load(after + p[:, None] * C + k[None, :], mask=mask, other=0.0)
                    advance(
                        value, p, k, k, pixels, state, target, left, rates + here, tape, parameters, moments, table,
                        evaluation, stage, slot, next_slot, step, last, own_weight, keep, plane, tape_step, here,
                        scale, shift, eps, norm_eps,
                        C, POST, STATS, TAPE, RECOMPUTE, LEFT, first + evaluations - 1,
                    )  # fmt: skip
            tl.debug_barrier()
            if STATS == SAMPLE and not POST:
                if evaluation < first + evaluations - 1:
                    mean, variance = image_moments(
                        target, moments, evaluation + 1, 0, image, images, pixels, k, C, GROUP, BLOCK_P
                    )
                    scale, shift = scale_and_shift(parameters, next_slot, 0, mean, variance, norm_eps, k, C)
                    rewrite(target, left, scale, shift, pixels, k, C, LEFT, BLOCK_P)
                    tl.debug_barrier()
            if last:
                state = target


@triton.jit
def advance(
    value, p, n, k, pixels, state, target, left, rates, tape, parameters, moments, table,
    evaluation, stage, slot, next_slot, step, last, own_weight, keep, plane, tape_step, here,
    scale, shift, eps, norm_eps,
    C: tl.constexpr, POST: tl.constexpr, STATS: tl.constexpr, TAPE: tl.constexpr, RECOMPUTE: tl.constexpr,
    LEFT: tl.constexpr, final,
):  # fmt: skip
    """Turn the second convolution's result into the rate, the next stage's input (or state) and the next operand."""
    mask = (p < pixels)[:, None] & (n < C)[None, :]
    offsets = p[:, None] * C + n[None, :]
    rate = value.to(tl.float32)
    if POST and STATS != ABSENT:
        if STATS == KNOWN:
            mean, variance = moments_at(moments, evaluation, 1, 0, 1, n, C)
            scale, shift = scale_and_shift(parameters, slot, 1, mean, variance, norm_eps, n, C)
        rate = rate * scale[None, :] + shift[None, :]
    rate *= (vector(parameters + (slot * PARAMETERS + SKIP) * C, n, C) * eps)[None, :]
    if keep != 0:
        tl.store(rates + tl.cast(stage, tl.int64) * plane + offsets, rate.to(rates.dtype.element_ty), mask=mask)
    before = tl.load(state + offsets, mask=mask, other=0.0).to(tl.float32)
    following = combination(own_weight * rate, before, rates, offsets, mask, table, stage, plane).to(
        tape.dtype.element_ty
    )
    if last or TAPE or (STATS == SAMPLE):
        tl.store(target + offsets, following, mask=mask)
    if TAPE and not RECOMPUTE:
        if last and evaluation < final:
            tl.store(tape + tl.cast(step + 1, tl.int64) * tape_step + here + offsets, following, mask=mask)
    if STATS != SAMPLE or POST:
        operand = following.to(tl.float32)
        if LEFT == NORM_RELU:
            mean, variance = moments_at(moments, tl.minimum(evaluation + 1, final), 0, 0, 1, n, C)
            scale_n, shift_n = scale_and_shift(parameters, next_slot, 0, mean, variance, norm_eps, n, C)
            operand = operand * scale_n[None, :] + shift_n[None, :]
        if LEFT == NORM_RELU or LEFT == RELU:
            operand = tl.maximum(operand, 0.0)
        tl.store(left + offsets, operand.to(left.dtype.element_ty), mask=mask)
