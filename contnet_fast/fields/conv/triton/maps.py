"""Pieces that the convolutional kernels share: 3x3 convolutions of image tiles, norms, and ordered reductions.

Maps are channels-last and dense, [image, pixel, channel]. A *unit* is a tile of ``BLOCK_P`` consecutive pixels of one
image; a tile never spans two images, so per-image and per-batch norms read the same code. Offsets of an image are
64-bit scalars, offsets inside it 32-bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

# what happens to an operand as it is loaded
PLAIN = tl.constexpr(0)
NORM = tl.constexpr(1)
NORM_RELU = tl.constexpr(2)
RELU = tl.constexpr(3)
COMBINED = tl.constexpr(4)  # the state plus the scaled and shifted source, rounded as the state is

# rows of the parameter table of a slot, [slot, row, channel] in float32 (written by prepare.py)
BIAS1 = tl.constexpr(0)
BIAS2 = tl.constexpr(1)
NORM_WEIGHT = tl.constexpr(2)  # of norm 0; of norm 1 two rows on
NORM_BIAS = tl.constexpr(3)
SKIP = tl.constexpr(6)
PARAMETERS = tl.constexpr(7)


@triton.jit
def vector(pointer, channels, C: tl.constexpr):
    """A row of per-channel values in float32; channels beyond C read zero."""
    return tl.load(pointer + channels, mask=channels < C, other=0.0).to(tl.float32)


@triton.jit
def moments_at(moments, evaluation, norm, row, rows, channels, C: tl.constexpr):
    """Mean and biased variance of one norm from [evaluation, norm, (mean, variance), row, C]."""
    base = moments + tl.cast((evaluation * 2 + norm) * 2 * rows + row, tl.int64) * C
    return vector(base, channels, C), vector(base + rows * C, channels, C)


@triton.jit
def reciprocal_deviation(variance, norm_eps):
    """1 / sqrt(variance + eps); a variance interpolated in depth may dip below zero."""
    return 1.0 / tl.sqrt_rn(tl.maximum(variance, 0.0) + norm_eps)


@triton.jit
def scale_and_shift(parameters, slot, norm, mean, variance, norm_eps, channels, C: tl.constexpr):
    """The norm as one multiplication and one addition a channel."""
    row = parameters + (slot * PARAMETERS + NORM_WEIGHT + 2 * norm) * C
    scale = vector(row, channels, C) * reciprocal_deviation(variance, norm_eps)
    return scale, vector(row + C, channels, C) - mean * scale


@triton.jit
def apply(value, scale, shift, MODE: tl.constexpr):
    """A prologue mode on float32 values [pixel, channel]."""
    if MODE == NORM or MODE == NORM_RELU:
        value = value * scale[None, :] + shift[None, :]
    if MODE == NORM_RELU or MODE == RELU:
        value = tl.maximum(value, 0.0)
    return value


@triton.jit
def tap_mask(row, col, dy, dx, height, width):
    """Which pixels have a neighbour (dy, dx) inside the image; rows at or beyond ``height`` never do."""
    y, x = row + dy, col + dx
    return (row < height) & (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit
def convolve(
    source, state, weight, pixels, n, scale, shift, height, width,
    C: tl.constexpr, MODE: tl.constexpr, FLIP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The 3x3 convolution of one image at ``pixels`` and output channels ``n``, [BLOCK_P, BLOCK_N] in float32.

    Args:
        source: the image, [pixel, C]. state: that of the state, for MODE COMBINED. weight: [tap, input, output] in the
            dtype of the products.
        MODE: prologue; the zeros of the padding come after it.
        FLIP: the transposed convolution instead (the gradient by its input): taps backwards, input and output swapped.
    """
    k = tl.arange(0, BLOCK_K)
    row, col = pixels // width, pixels % width
    total = tl.zeros([BLOCK_P, BLOCK_N], dtype=tl.float32)
    for tap in tl.range(0, 9, num_stages=STAGES):
        dy, dx = tap // 3 - 1, tap % 3 - 1
        mask = tap_mask(row, col, dy, dx, height, width)[:, None] & (k < C)[None, :]
        place = ((pixels + dy * width + dx) * C)[:, None] + k[None, :]
        a = tl.load(source + place, mask=mask, other=0.0)
        if MODE == COMBINED:
            y = tl.load(state + place, mask=mask, other=0.0)
            sum = y.to(tl.float32) + (a.to(tl.float32) * scale[None, :] + shift[None, :])
            a = tl.where(mask, sum.to(y.dtype), 0.0)
        elif MODE != PLAIN:
            a = tl.where(mask, apply(a.to(tl.float32), scale, shift, MODE), 0.0)
        inside = (k < C)[:, None] & (n < C)[None, :]
        if FLIP:
            back = tl.load(weight + (8 - tap) * C * C + n[:, None] * C + k[None, :], mask=tl.trans(inside), other=0.0)
            w = tl.trans(back)
        else:
            w = tl.load(weight + tap * C * C + k[:, None] * C + n[None, :], mask=inside, other=0.0)
        total = tl.dot(a.to(w.dtype), w, total, input_precision=PRECISION)
    return total


@triton.jit
def merge_moments(count, mean, squares, other_count, other_mean, other_squares):
    """Count, mean and centred sum of squares of two sets together (Chan, Golub, LeVeque 1983)."""
    both = count + other_count
    share = other_count / tl.maximum(both, 1.0)
    delta = other_mean - mean
    return both, mean + delta * share, squares + other_squares + delta * delta * count * share


@triton.jit
def tile_moments(value, valid):
    """Mean and centred sum of squares over the valid pixels of a tile, one for each channel, and their count."""
    count = tl.sum(valid.to(tl.float32), 0)
    mean = tl.sum(tl.where(valid[:, None], value, 0.0), 0) / tl.maximum(count, 1.0)
    rest = tl.where(valid[:, None], value - mean[None, :], 0.0)
    return count, mean, tl.sum(rest * rest, 0)


@triton.jit
def store_moments(partials, row, count, mean, squares, channels, C: tl.constexpr):
    """Write one row of partial statistics, [row, (count, mean, squares), C]."""
    base = partials + row * 3 * C + channels
    inside = channels < C
    tl.store(base, mean * 0.0 + count, mask=inside)
    tl.store(base + C, mean, mask=inside)
    tl.store(base + 2 * C, squares, mask=inside)


@triton.jit
def merged_moments(partials, rows, channels, C: tl.constexpr, BLOCK_R: tl.constexpr):
    """Mean and biased variance over all rows of partial statistics, merged in one fixed order."""
    count = tl.zeros_like(channels).to(tl.float32)
    mean = tl.zeros_like(count)
    squares = tl.zeros_like(count)
    for first in range(0, rows, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        base = partials + r[:, None] * 3 * C + channels[None, :]
        mask = (r < rows)[:, None] & (channels < C)[None, :]
        counts = tl.load(base, mask=mask, other=0.0)
        means = tl.load(base + C, mask=mask, other=0.0)
        part = tl.sum(counts, 0)
        centre = tl.sum(counts * means, 0) / tl.maximum(part, 1.0)
        spread = tl.where(mask, means - centre[None, :], 0.0)
        within = tl.sum(tl.load(base + 2 * C, mask=mask, other=0.0) + counts * spread * spread, 0)
        count, mean, squares = merge_moments(count, mean, squares, part, centre, within)
    return mean, squares / tl.maximum(count, 1.0), count


@triton.jit
def row_sums(partials, first, last, which: tl.constexpr, channels, C: tl.constexpr, BLOCK_R: tl.constexpr):
    """The sum over rows first to last - 1 of [row, (three sums), C], in one fixed order."""
    total = tl.zeros_like(channels).to(tl.float32)
    for begin in range(first, last, BLOCK_R):
        r = begin + tl.arange(0, BLOCK_R)
        mask = (r < last)[:, None] & (channels < C)[None, :]
        total += tl.sum(tl.load(partials + (r[:, None] * 3 + which) * C + channels[None, :], mask=mask, other=0.0), 0)
    return total


@triton.jit
def over_group(value, channels, GROUP: tl.constexpr):
    """For every channel the sum over the channels of its group."""
    same = (channels[:, None] // GROUP) == (channels[None, :] // GROUP)
    return tl.sum(tl.where(same, value[None, :], 0.0), 1)
