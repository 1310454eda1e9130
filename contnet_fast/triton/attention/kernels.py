"""Attention along edges: scores, softmax by row with a running maximum, weighted sums; forward and backward.

A program takes ``BLOCK_R`` rows of the graph and goes through their edges ``BLOCK_E`` at a time, as often as its longest
row needs. Maps of nodes are [n, HEADS, width], numbers of edges and heads [E, HEADS] by rows. Sums are taken in the dtype
of ``largest`` or of what is written, each in one order, and nothing is added in memory. Offsets are 64-bit.

Scores are ``FACTOR`` times products of ``targets`` and ``sources`` of ``DEPTH`` columns, or for DEPTH = 0 the leaky
rectifier of ``SLOPE`` of their sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..graphs import edges_of


@triton.jit
def edges_from(first, begin, end, indices, BLOCK_E: tl.constexpr):
    """The edges of each row from its ``first`` on, whether each is there, and the node at its other end: [row, edge]."""
    edge = (begin[:, None] + first + tl.arange(0, BLOCK_E)[None, :]).to(tl.int64)
    live = edge < end[:, None]
    return edge, live, tl.load(indices + edge, mask=live, other=0).to(tl.int64)


@triton.jit
def number_of(map, nodes, mask, head, HEADS: tl.constexpr, SUMS: tl.constexpr):
    """map[node, head], zero where masked."""
    return tl.load(map + nodes * HEADS + head, mask=mask, other=0.0).to(SUMS)


@triton.jit
def products_of(
    first, second, rows, n, neighbour, live, head, HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    SUMS: tl.constexpr,
):  # fmt: skip
    """first[row, head] . second[neighbour, head], [row, edge]."""
    result = tl.zeros(neighbour.shape, SUMS)
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < WIDTH
        offsets = ((rows * HEADS + head) * WIDTH)[:, None] + columns[None, :]
        own = tl.load(first + offsets, mask=(rows < n)[:, None] & inside[None, :], other=0.0).to(SUMS)
        offsets = ((neighbour * HEADS + head) * WIDTH)[:, :, None] + columns[None, None, :]
        other = tl.load(second + offsets, mask=live[:, :, None] & inside[None, None, :], other=0.0).to(SUMS)
        result += tl.sum(own[:, None, :] * other, 2)
    return result


@triton.jit
def scores_of(
    targets, sources, rows, n, neighbour, live, head, HEADS: tl.constexpr, DEPTH: tl.constexpr, SLOPE: tl.constexpr,
    FACTOR: tl.constexpr, BLOCK_D: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """The scores [row, edge] of one head, minus infinity where no edge is."""
    if DEPTH == 0:
        score = number_of(targets, rows, rows < n, head, HEADS, SUMS)[:, None]
        score += number_of(sources, neighbour, live, head, HEADS, SUMS)
        score = tl.where(score > 0, score, tl.full([1, 1], SLOPE, tl.float64).to(SUMS) * score)
    else:
        score = products_of(targets, sources, rows, n, neighbour, live, head, HEADS, DEPTH, BLOCK_D, SUMS)
        score *= tl.full([1, 1], FACTOR, tl.float64).to(SUMS)
    return tl.where(live, score, float("-inf"))


@triton.jit
def finite(largest):
    """Zero for a row without a score above minus infinity, whose weights are all zero."""
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit(do_not_specialize=["n"])
def attention_sums(
    targets, sources, states, factors, indptr, indices, result, largest, sums, n,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, FEATURES: tl.constexpr, SLOPE: tl.constexpr, FACTOR: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """The sums of ``states`` that one head weighs, in one pass over the edges, and what the weights are made of.

    Each of the BLOCK_E places of a row has a running maximum of its own, and what it has added up is scaled when that
    grows; they are put together once, after the last edge. Without ``states`` there are only ``largest`` and ``sums``.
    """
    SUMS: tl.constexpr = largest.dtype.element_ty
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    head = tl.program_id(1)
    columns = tl.program_id(2) * BLOCK_F + tl.arange(0, BLOCK_F)
    begin, end = edges_of(indptr, rows, n)
    most = tl.full([BLOCK_R, BLOCK_E], float("-inf"), SUMS)
    total = tl.zeros([BLOCK_R, BLOCK_E], SUMS)
    weighted = tl.zeros([BLOCK_R, BLOCK_E, BLOCK_F], SUMS)
    for first in range(0, tl.max(end - begin, 0), BLOCK_E):
        edge, live, neighbour = edges_from(first, begin, end, indices, BLOCK_E)
        score = scores_of(targets, sources, rows, n, neighbour, live, head, HEADS, DEPTH, SLOPE, FACTOR, BLOCK_D, SUMS)
        before = most
        most = tl.maximum(most, score)
        shrink, power = tl.exp(before - finite(most)), tl.exp(score - finite(most))
        total = total * shrink + power
        if states is not None:
            if factors is not None:
                power *= number_of(factors, edge, live, head, HEADS, SUMS)
            offsets = ((neighbour * HEADS + head) * FEATURES)[:, :, None] + columns[None, None, :]
            mask = live[:, :, None] & (columns < FEATURES)[None, None, :]
            value = tl.load(states + offsets, mask=mask, other=0.0).to(SUMS)
            weighted = weighted * shrink[:, :, None] + power[:, :, None] * value
    largest_of_row = finite(tl.max(most, 1))
    shrink = tl.exp(most - largest_of_row[:, None])
    sum_of_row = tl.sum(total * shrink, 1)
    sum_of_row = tl.where(sum_of_row > 0, sum_of_row, 1.0)
    if states is not None:
        found = tl.sum(weighted * shrink[:, :, None], 1) / sum_of_row[:, None]
        offsets = ((rows * HEADS + head) * FEATURES)[:, None] + columns[None, :]
        mask = (rows < n)[:, None] & (columns < FEATURES)[None, :]
        tl.store(result + offsets, found.to(result.dtype.element_ty), mask=mask)
    mask = (rows < n) & (tl.program_id(2) == 0)
    tl.store(largest + rows * HEADS + head, largest_of_row, mask=mask)
    tl.store(sums + rows * HEADS + head, sum_of_row, mask=mask)


@triton.jit
def weights_of(
    targets, sources, largest, sums, rows, n, neighbour, live, head, HEADS: tl.constexpr, DEPTH: tl.constexpr,
    SLOPE: tl.constexpr, FACTOR: tl.constexpr, BLOCK_D: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """The weights [row, edge] of one head, made again."""
    score = scores_of(targets, sources, rows, n, neighbour, live, head, HEADS, DEPTH, SLOPE, FACTOR, BLOCK_D, SUMS)
    most = number_of(largest, rows, rows < n, head, HEADS, SUMS)
    total = tl.load(sums + rows * HEADS + head, mask=rows < n, other=1.0)
    return tl.exp(score - most[:, None]) / total[:, None]


@triton.jit(do_not_specialize=["n"])
def mean_weights(
    targets, sources, factors, indptr, indices, largest, sums, result, n,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, SLOPE: tl.constexpr, FACTOR: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """result [E] <- the mean over heads of the weights, each times its factor."""
    SUMS: tl.constexpr = largest.dtype.element_ty
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    begin, end = edges_of(indptr, rows, n)
    for first in range(0, tl.max(end - begin, 0), BLOCK_E):
        edge, live, neighbour = edges_from(first, begin, end, indices, BLOCK_E)
        sum = tl.zeros([BLOCK_R, BLOCK_E], SUMS)
        for head in range(HEADS):
            weight = weights_of(
                targets, sources, largest, sums, rows, n, neighbour, live, head, HEADS, DEPTH, SLOPE, FACTOR, BLOCK_D,
                SUMS,
            )  # fmt: skip
            if factors is not None:
                weight *= number_of(factors, edge, live, head, HEADS, SUMS)
            sum += weight
        tl.store(result + edge, (sum / HEADS).to(result.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["n"])
def edge_products(
    first, second, indptr, indices, result, n,
    FEATURES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """result [E] <- first[target] . second[source] of maps [n, FEATURES]."""
    SUMS: tl.constexpr = result.dtype.element_ty
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    begin, end = edges_of(indptr, rows, n)
    for start in range(0, tl.max(end - begin, 0), BLOCK_E):
        edge, live, neighbour = edges_from(start, begin, end, indices, BLOCK_E)
        product = products_of(first, second, rows, n, neighbour, live, 0, 1, FEATURES, BLOCK_F, SUMS)
        tl.store(result + edge, product, mask=live)


@triton.jit(do_not_specialize=["n"])
def score_gradient(
    targets, sources, states, grad, factors, indptr, indices, largest, sums, weights, score_grads, n,
    HEADS: tl.constexpr, DEPTH: tl.constexpr, FEATURES: tl.constexpr, SLOPE: tl.constexpr, FACTOR: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """score_grads [E, HEADS] <- gradients by scores, for DEPTH = 0 by what the rectifier gets; weights <- the weights.

    ``grad`` is by the sums of ``states``, or without them by the mean weight of each edge, [E]. A first visit of the edges
    writes weights and their gradients and adds up the mean gradient of each row, a second subtracts it.
    """
    SUMS: tl.constexpr = largest.dtype.element_ty
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    head = tl.program_id(1)
    begin, end = edges_of(indptr, rows, n)
    means = tl.zeros([BLOCK_R, BLOCK_E], SUMS)
    for first in range(0, tl.max(end - begin, 0), BLOCK_E):
        edge, live, neighbour = edges_from(first, begin, end, indices, BLOCK_E)
        weight = weights_of(
            targets, sources, largest, sums, rows, n, neighbour, live, head, HEADS, DEPTH, SLOPE, FACTOR, BLOCK_D, SUMS
        )
        if states is not None:
            by_weight = products_of(grad, states, rows, n, neighbour, live, head, HEADS, FEATURES, BLOCK_F, SUMS)
        else:
            by_weight = tl.load(grad + edge, mask=live, other=0.0).to(SUMS) / HEADS
        if factors is not None:
            by_weight *= number_of(factors, edge, live, head, HEADS, SUMS)
        means += weight * by_weight
        tl.store(weights + edge * HEADS + head, weight, mask=live)
        tl.store(score_grads + edge * HEADS + head, by_weight, mask=live)
    mean = tl.sum(means, 1)
    tl.debug_barrier()  # other threads may read what these wrote
    for first in range(0, tl.max(end - begin, 0), BLOCK_E):
        edge, live, neighbour = edges_from(first, begin, end, indices, BLOCK_E)
        weight = number_of(weights, edge, live, head, HEADS, SUMS)
        by_score = weight * (number_of(score_grads, edge, live, head, HEADS, SUMS) - mean[:, None])
        if DEPTH == 0:
            score = number_of(targets, rows, rows < n, head, HEADS, SUMS)[:, None]
            score += number_of(sources, neighbour, live, head, HEADS, SUMS)
            by_score *= tl.where(score > 0, 1.0, tl.full([1, 1], SLOPE, tl.float64).to(SUMS))
        tl.store(score_grads + edge * HEADS + head, by_score, mask=live)


@triton.jit(do_not_specialize=["n"])
def gathered_sums(
    numbers, factors, map, indptr, indices, places, result, n,
    HEADS: tl.constexpr, FEATURES: tl.constexpr, FACTOR: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """result[row, head] <- FACTOR * sum over edges of numbers * factors * map[neighbour, head]; without a map of one.

    numbers, factors: [E, HEADS], those of an edge at its place in ``places``, if there are any.
    """
    SUMS: tl.constexpr = numbers.dtype.element_ty
    rows = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    head = tl.program_id(1)
    columns = tl.program_id(2) * BLOCK_F + tl.arange(0, BLOCK_F)
    begin, end = edges_of(indptr, rows, n)
    sums = tl.zeros([BLOCK_R, BLOCK_E, BLOCK_F], SUMS)
    for first in range(0, tl.max(end - begin, 0), BLOCK_E):
        place, live, neighbour = edges_from(first, begin, end, indices, BLOCK_E)
        if places is not None:
            place = tl.load(places + place, mask=live, other=0).to(tl.int64)
        number = number_of(numbers, place, live, head, HEADS, SUMS)
        if factors is not None:
            number *= number_of(factors, place, live, head, HEADS, SUMS)
        if map is not None:
            offsets = ((neighbour * HEADS + head) * FEATURES)[:, :, None] + columns[None, None, :]
            mask = live[:, :, None] & (columns < FEATURES)[None, None, :]
            sums += number[:, :, None] * tl.load(map + offsets, mask=mask, other=0.0).to(SUMS)
        else:
            sums += number[:, :, None]
    found = tl.full([1, 1], FACTOR, tl.float64).to(SUMS) * tl.sum(sums, 1)
    offsets = ((rows * HEADS + head) * FEATURES)[:, None] + columns[None, :]
    mask = (rows < n)[:, None] & (columns < FEATURES)[None, :]
    tl.store(result + offsets, found.to(result.dtype.element_ty), mask=mask)
