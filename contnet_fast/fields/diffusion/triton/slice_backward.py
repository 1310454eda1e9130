"""The backward pass of a solve in one launch: a program takes a slice of columns from the end to the beginning, on the
rows of the transpose.

The field is linear: gradients by the first state and by the source need no states. For those by the coefficients of nodes
a program makes the stages of each step again from its state, and adds up products of its own columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .slices import evaluate_slice, free_map, read_slice, split_rows, write_slice


@triton.jit
def add_products(
    given, input, product, factor, scale_sums, diagonal_sums, n, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Add sums over columns of g * product and g * input to scale_sums and diagonal_sums [n], g being factor * given."""
    columns = tl.arange(0, COLUMNS)
    for first in range(0, n, ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < n)[:, None] & (columns < COLUMNS)[None, :]
        offsets = (rows.to(tl.int64) * COLUMNS)[:, None] + columns[None, :]
        grad = factor * tl.load(given + offsets, mask=mask, other=0.0)
        if scale_sums is not None:
            sum = tl.load(scale_sums + rows, mask=rows < n, other=0.0)
            sum += tl.sum(grad * tl.load(product + offsets, mask=mask, other=0.0), 1)
            tl.store(scale_sums + rows, sum, mask=rows < n)
        if diagonal_sums is not None:
            sum = tl.load(diagonal_sums + rows, mask=rows < n, other=0.0)
            sum += tl.sum(grad * tl.load(input + offsets, mask=mask, other=0.0), 1)
            tl.store(diagonal_sums + rows, sum, mask=rows < n)


@triton.jit
def make_again(
    x, states, step, inputs, products, terms, source_map, order, short, indptr, indices, values, scale, diagonal, mixing,
    slot_of, keep, table, n, stages,
    FEATURES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, EDGES: tl.constexpr, LONG_ROWS: tl.constexpr,
    LONG_EDGES: tl.constexpr,
):  # fmt: skip
    """inputs [stages + 1, n, COLUMNS] <- those of the stages of a step, and what follows it; products <- A times each."""
    distance = tl.cast(n, tl.int64) * COLUMNS
    state = x
    if step > 0:
        state = states + (step - 1) * tl.cast(n, tl.int64) * FEATURES
    read_slice(inputs, state, n, False, FEATURES, COLUMNS, ROWS)
    tl.debug_barrier()
    for stage in range(stages):
        evaluate_slice(
            order, short, inputs + stage * distance, indptr, indices, values, None, scale, diagonal, mixing, source_map,
            products + stage * distance, None, inputs, terms, inputs + (stage + 1) * distance, None, None, table,
            tl.load(slot_of + step * stages + stage), stage, n, tl.load(keep + stage),
            COLUMNS, ROWS, EDGES, LONG_ROWS, LONG_EDGES,
        )  # fmt: skip


@triton.jit(do_not_specialize=["n", "steps", "stages", "slots"])
def solve_slice_back(
    x, states, grad, grad_x, grad_source, scale_sums, diagonal_sums, maps, source_map, total, terms, inputs, products,
    order, back_order, indptr, indices, back_indptr, back_indices, values, places, scale, diagonal, mixing, source,
    slot_of, keep, input_table, base_table, table, back_table, n, steps, stages, slots,
    BY_STEP: tl.constexpr, FEATURES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, EDGES: tl.constexpr,
    LONG_ROWS: tl.constexpr, LONG_EDGES: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """grad_x, grad_source [n, FEATURES] and sums [slice, slot, n] of this slice, from ``grad``: of the last state, or
    with ``BY_STEP`` of x and all states. What is not wanted is None.

    Working memory of each program, beside that of :func:`solve_slice`: total [n, COLUMNS], zeros, for grad_source;
    back_order [n]; where there are sums, which start as zeros: inputs [stages + 1, n, COLUMNS] and products [stages, n,
    COLUMNS]. states: those after all steps but the last.
    """
    slice = tl.program_id(0).to(tl.int64)
    distance, plane = tl.cast(n, tl.int64) * COLUMNS, tl.cast(n, tl.int64) * FEATURES
    maps += slice * 3 * distance
    terms += slice * stages * distance
    back_order += slice * n
    if mixing is not None:
        mixing += slice * COLUMNS
    if total is not None:
        total += slice * distance
    if scale_sums is not None:
        scale_sums += slice * slots * n
    if diagonal_sums is not None:
        diagonal_sums += slice * slots * n
    if inputs is not None:
        inputs += slice * (stages + 1) * distance
        products += slice * stages * distance
        order += slice * n
        short = split_rows(order, indptr, n, MOST, ROWS)
        if source is not None:
            source_map += slice * distance
            read_slice(source_map, source, n, False, FEATURES, COLUMNS, ROWS)
    back_short = split_rows(back_order, back_indptr, n, MOST, ROWS)
    read_slice(maps, grad + steps * plane if BY_STEP else grad, n, False, FEATURES, COLUMNS, ROWS)
    tl.debug_barrier()
    costate = 0
    for later in range(steps):
        step = steps - 1 - later
        if inputs is not None:
            make_again(
                x, states, step, inputs, products, terms, source_map, order, short, indptr, indices, values, scale,
                diagonal, mixing, slot_of, keep, table, n, stages,
                FEATURES, COLUMNS, ROWS, EDGES, LONG_ROWS, LONG_EDGES,
            )  # fmt: skip
        u = costate
        for earlier in range(stages):
            stage = stages - 1 - earlier
            slot = tl.load(slot_of + step * stages + stage).to(tl.int64)
            if inputs is not None:
                add_products(
                    maps + u * distance, inputs + stage * distance, products + stage * distance,
                    tl.load(input_table + stage), None if scale_sums is None else scale_sums + slot * n,
                    None if diagonal_sums is None else diagonal_sums + slot * n, n, COLUMNS, ROWS,
                )  # fmt: skip
            target = free_map(costate, u)
            evaluate_slice(
                back_order, back_short, maps + u * distance, back_indptr, back_indices, values, places, scale, diagonal,
                mixing, None, None, total, maps + costate * distance, terms, maps + target * distance, input_table,
                base_table, back_table, slot, stage, n, stage,
                COLUMNS, ROWS, EDGES, LONG_ROWS, LONG_EDGES,
            )  # fmt: skip
            u = target
        costate = u
        if BY_STEP:
            read_slice(maps + costate * distance, grad + step * plane, n, True, FEATURES, COLUMNS, ROWS)
            tl.debug_barrier()
    write_slice(grad_x, maps + costate * distance, n, FEATURES, COLUMNS, ROWS)
    if total is not None:
        write_slice(grad_source, total, n, FEATURES, COLUMNS, ROWS)
