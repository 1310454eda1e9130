"""A solve of the diffusion field in one launch: columns do not mix, so a program takes a slice of them through all steps.

Triton gathers from no shared memory, so the maps of a slice, [n, COLUMNS], lie in global memory one after another, near
enough to stay in the first or second cache, in the dtype of sums. Three of them take turns: the state, the input of a
stage, and what follows it. After each evaluation a barrier of the program stands between its stores and the loads of
other threads. No program reads what another one wrote.

Rows of many edges would keep the block of rows that they are in waiting: a program first sorts them to the end of its
list of rows, and takes them with more edges at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ....triton.graphs import edges_of
from .stage import evaluate


@triton.jit
def split_rows(order, indptr, n, MOST: tl.constexpr, BLOCK: tl.constexpr):
    """order [n] <- the rows of at most ``MOST`` edges, and from its end backwards the others; how many the former are."""
    short, long = 0, 0
    for first in range(0, n, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        begin, end = edges_of(indptr, rows, n)
        few = ((rows < n) & (end - begin <= MOST)).to(tl.int32)
        many = (rows < n).to(tl.int32) - few
        place = tl.where(few != 0, short + tl.cumsum(few, 0) - 1, n - long - tl.cumsum(many, 0))
        tl.store(order + place, rows, mask=rows < n)
        short += tl.sum(few, 0)
        long += tl.sum(many, 0)
    return short


@triton.jit
def offsets_of(first, n, FEATURES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Of rows from ``first`` on: offsets in a map of this slice and in a map [n, FEATURES], and which of each there are."""
    rows, columns = first + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    column = tl.program_id(0) * COLUMNS + columns
    inside = (rows < n)[:, None] & (columns < COLUMNS)[None, :]
    own = (rows.to(tl.int64) * COLUMNS)[:, None] + columns[None, :]
    whole = (rows.to(tl.int64) * FEATURES)[:, None] + column[None, :]
    return own, whole, inside, inside & (column < FEATURES)[None, :]


@triton.jit
def read_slice(map, given, n, ADD: tl.constexpr, FEATURES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """map <- the slice of ``given`` [n, FEATURES], zeros for columns that there are not; or ``ADD`` it to the map."""
    for first in range(0, n, ROWS):
        own, whole, inside, there = offsets_of(first, n, FEATURES, COLUMNS, ROWS)
        value = tl.load(given + whole, mask=there, other=0.0).to(map.dtype.element_ty)
        if ADD:
            value += tl.load(map + own, mask=inside, other=0.0)
        tl.store(map + own, value, mask=inside)


@triton.jit
def write_slice(given, map, n, FEATURES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """The slice of ``given`` [n, FEATURES] <- map."""
    for first in range(0, n, ROWS):
        own, whole, inside, there = offsets_of(first, n, FEATURES, COLUMNS, ROWS)
        value = tl.load(map + own, mask=inside, other=0.0)
        tl.store(given + whole, value.to(given.dtype.element_ty), mask=there)


@triton.jit
def evaluate_slice(
    order, short,
    u, indptr, indices, values, places, scale, diagonal, mixing, source, product, total, base, terms, target,
    input_table, base_table, table, slot, stage, n, keep,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, EDGES: tl.constexpr, LONG_ROWS: tl.constexpr, LONG_EDGES: tl.constexpr,
):  # fmt: skip
    """:func:`evaluate` on all rows of a slice, then a barrier: ``short`` rows with ``EDGES`` at once, then the long ones."""
    columns = tl.arange(0, COLUMNS)
    for first in range(0, short, ROWS):
        place = first + tl.arange(0, ROWS)
        rows = tl.load(order + place, mask=place < short, other=n)
        evaluate(
            u, indptr, indices, values, places, scale, diagonal, mixing, source, product, total, base, None, terms,
            target, input_table, base_table, table, slot, stage, n, keep, rows, columns, COLUMNS, ROWS, EDGES, COLUMNS,
        )  # fmt: skip
    for first in range(short, n, LONG_ROWS):
        place = first + tl.arange(0, LONG_ROWS)
        rows = tl.load(order + place, mask=place < n, other=n)
        evaluate(
            u, indptr, indices, values, places, scale, diagonal, mixing, source, product, total, base, None, terms,
            target, input_table, base_table, table, slot, stage, n, keep, rows, columns, COLUMNS, LONG_ROWS, LONG_EDGES,
            COLUMNS,
        )  # fmt: skip
    tl.debug_barrier()


@triton.jit
def free_map(state, u):
    """Of three maps one that is neither."""
    return tl.where(state == u, (state + 1) % 3, 3 - state - u)


@triton.jit(do_not_specialize=["n", "steps", "stages"])
def solve_slice(
    x, y, states, maps, source_map, terms, order, indptr, indices, values, scale, diagonal, mixing, source, slot_of, keep,
    table, n, steps, stages,
    FEATURES: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, EDGES: tl.constexpr, LONG_ROWS: tl.constexpr,
    LONG_EDGES: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """y [n, FEATURES] <- the state after ``steps`` steps from x; states [steps - 1, n, FEATURES], those before, or None.

    Working memory of each program: maps [3, n, COLUMNS], source_map [n, COLUMNS] where there is a source, terms
    [stages, n, COLUMNS], order [n]. slot_of: [evaluation]. keep: [stage], whether a rate goes to the terms. mixing: a
    coefficient for each column of all slices, or None.
    """
    slice = tl.program_id(0).to(tl.int64)
    distance, plane = tl.cast(n, tl.int64) * COLUMNS, tl.cast(n, tl.int64) * FEATURES
    maps += slice * 3 * distance
    terms += slice * stages * distance
    order += slice * n
    if source is not None:
        source_map += slice * distance
        read_slice(source_map, source, n, False, FEATURES, COLUMNS, ROWS)
    if mixing is not None:
        mixing += slice * COLUMNS
    short = split_rows(order, indptr, n, MOST, ROWS)
    read_slice(maps, x, n, False, FEATURES, COLUMNS, ROWS)
    tl.debug_barrier()
    state = 0
    for step in range(steps):
        u = state
        for stage in range(stages):
            target = free_map(state, u)
            evaluate_slice(
                order, short, maps + u * distance, indptr, indices, values, None, scale, diagonal, mixing, source_map,
                None, None, maps + state * distance, terms, maps + target * distance, None, None, table,
                tl.load(slot_of + step * stages + stage), stage, n, tl.load(keep + stage),
                COLUMNS, ROWS, EDGES, LONG_ROWS, LONG_EDGES,
            )  # fmt: skip
            u = target
        state = u
        if states is not None:
            if step + 1 < steps:
                write_slice(states + step * plane, maps + state * distance, n, FEATURES, COLUMNS, ROWS)
    write_slice(y, maps + state * distance, n, FEATURES, COLUMNS, ROWS)
