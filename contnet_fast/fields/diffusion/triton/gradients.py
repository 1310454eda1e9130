"""Gradients of the diffusion field by its coefficients and by the weights of the edges, a step at a time.

Of a step there are u_s, the inputs of its stages (the state, then ``inputs``), and g_s, the gradients by its rates
(``rates``, then input_table[stages - 1] times the costate after the step). Every sum has one order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ....triton.graphs import edges_of


@triton.jit
def maps_of(stage, stages, state, inputs, rates, costate, distance):
    """Where the input u of a stage is and the gradient g by its rate."""
    u, g = inputs + (stage - 1) * distance, rates + stage * distance
    if stage == 0:
        u = state
    if stage == stages - 1:
        g = costate
    return u, g


@triton.jit(do_not_specialize=["first", "stages", "n"])
def row_gradients(
    state, inputs, products, rates, costate, input_table, slot_of, scale_sums, diagonal_sums, first, stages, n,
    FEATURES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Add what a step gives to scale_sums [slot, n] += sum over features of g_s * (A u_s), diagonal_sums: g_s * u_s.

    products: [stage, n, FEATURES] are A u_s. One of both sums may be absent, with what it needs.
    """
    SUMS: tl.constexpr = tl.float64 if costate.dtype.element_ty == tl.float64 else tl.float32
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    distance = tl.cast(n, tl.int64) * FEATURES
    for stage in range(stages):
        factor = tl.load(input_table + stage)
        u, g = maps_of(stage, stages, state, inputs, rates, costate, distance)
        by_scale, by_diagonal = tl.zeros([BLOCK_R], SUMS), tl.zeros([BLOCK_R], SUMS)
        for start in range(0, FEATURES, BLOCK_F):
            columns = start + tl.arange(0, BLOCK_F)
            mask = (rows < n)[:, None] & (columns < FEATURES)[None, :]
            offsets = (rows.to(tl.int64) * FEATURES)[:, None] + columns[None, :]
            grad = factor * tl.load(g + offsets, mask=mask, other=0.0).to(SUMS)
            if scale_sums is not None:
                product = tl.load(products + stage * distance + offsets, mask=mask, other=0.0).to(SUMS)
                by_scale += tl.sum(grad * product, 1)
            if diagonal_sums is not None:
                by_diagonal += tl.sum(grad * tl.load(u + offsets, mask=mask, other=0.0).to(SUMS), 1)
        place = tl.cast(tl.load(slot_of + first + stage), tl.int64) * n + rows
        if scale_sums is not None:
            by_scale += tl.load(scale_sums + place, mask=rows < n, other=0.0)
            tl.store(scale_sums + place, by_scale, mask=rows < n)
        if diagonal_sums is not None:
            by_diagonal += tl.load(diagonal_sums + place, mask=rows < n, other=0.0)
            tl.store(diagonal_sums + place, by_diagonal, mask=rows < n)
        tl.debug_barrier()  # the next stage may add to the same slot


@triton.jit(do_not_specialize=["first", "stages", "n"])
def value_gradient(
    state, inputs, rates, costate, indptr, indices, scale, input_table, slot_of, value_sums, first, stages, n,
    FEATURES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Add what a step gives to value_sums [E] += scale_i * sum over features of g_s[i] * u_s[j], of the edge j to i."""
    SUMS: tl.constexpr = tl.float64 if costate.dtype.element_ty == tl.float64 else tl.float32
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    distance = tl.cast(n, tl.int64) * FEATURES
    begin, end = edges_of(indptr, rows, n)
    for first_edge in range(0, tl.max(end - begin, 0), BLOCK_E):
        edge = begin[:, None] + first_edge + tl.arange(0, BLOCK_E)[None, :]
        live = edge < end[:, None]
        neighbour = tl.load(indices + edge, mask=live, other=0).to(tl.int64)
        sum = tl.load(value_sums + edge, mask=live, other=0.0)
        for stage in range(stages):
            factor = tl.load(input_table + stage)
            u, g = maps_of(stage, stages, state, inputs, rates, costate, distance)
            products = tl.zeros([BLOCK_R, BLOCK_E, BLOCK_F], SUMS)
            for start in range(0, FEATURES, BLOCK_F):
                columns = start + tl.arange(0, BLOCK_F)
                inside = (columns < FEATURES)[None, :]
                offsets = (rows.to(tl.int64) * FEATURES)[:, None] + columns[None, :]
                grad = tl.load(g + offsets, mask=(rows < n)[:, None] & inside, other=0.0).to(SUMS)
                offsets = (neighbour * FEATURES)[:, :, None] + columns[None, None, :]
                value = tl.load(u + offsets, mask=live[:, :, None] & inside[None, :, :], other=0.0).to(SUMS)
                products += grad[:, None, :] * value
            place = tl.cast(tl.load(slot_of + first + stage), tl.int64) * n + rows
            weight = factor * tl.load(scale + place, mask=rows < n, other=0.0).to(SUMS)
            sum += weight[:, None] * tl.sum(products, 2)
        tl.store(value_sums + edge, sum, mask=live)


@triton.jit(do_not_specialize=["stages", "n"])
def mixing_gradient(
    state, inputs, rates, costate, input_table, mixing_sums, stages, n,
    FEATURES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Add what a step gives to mixing_sums [part, i, j] += sum over a part of the nodes of u_s[:, i] * g_s[:, j].

    A part has every num_programs(0)-th block of ``BLOCK_N`` nodes.
    """
    SUMS: tl.constexpr = tl.float64 if costate.dtype.element_ty == tl.float64 else tl.float32
    part, parts = tl.program_id(0), tl.num_programs(0)
    i = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    distance = tl.cast(n, tl.int64) * FEATURES
    place = tl.cast(part, tl.int64) * FEATURES * FEATURES + (i * FEATURES)[:, None] + j[None, :]
    mask = (i < FEATURES)[:, None] & (j < FEATURES)[None, :]
    sums = tl.load(mixing_sums + place, mask=mask, other=0.0)
    for stage in range(stages):
        u, g = maps_of(stage, stages, state, inputs, rates, costate, distance)
        products = tl.zeros([BLOCK_M, BLOCK_M], SUMS)
        for first in range(part * BLOCK_N, n, parts * BLOCK_N):
            rows = first + tl.arange(0, BLOCK_N)
            row = rows.to(tl.int64) * FEATURES
            value = tl.load(
                u + row[None, :] + i[:, None], mask=(i < FEATURES)[:, None] & (rows < n)[None, :], other=0.0
            )  # fmt: skip
            grad = tl.load(
                g + row[:, None] + j[None, :], mask=(rows < n)[:, None] & (j < FEATURES)[None, :], other=0.0
            )  # fmt: skip
            products = tl.dot(value, grad, products, input_precision="ieee", out_dtype=SUMS)
        sums += tl.load(input_table + stage) * products
    tl.store(mixing_sums + place, sums, mask=mask)
