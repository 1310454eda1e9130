"""An evaluation of the diffusion field with the combination after it, forward, and its gradient: of some rows, and as a
launch of its own.

``evaluate`` goes through the edges of its rows ``BLOCK_E`` at a time, as often as the longest of them needs, gathers the
neighbours' values and adds them in one order. Offsets are 64-bit. Level solve calls it for slices of columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ....triton.graphs import edges_of
from ....triton.stages import combination


@triton.jit
def evaluate(
    u, indptr, indices, values, places, scale, diagonal, mixing, source, product, total, base, upstream, terms, target,
    input_table, base_table, table,
    slot, stage, n, keep, rows, columns,
    FEATURES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """target <- base + own * r + sum of other terms, r being a rate, or with ``places`` a gradient by a stage's input.

    A rate is scale * (A u) + diagonal * u + source for u [n, FEATURES], A u being kept in ``product`` if there is one.
    With ``places`` (A's transpose as rows, whose values are ``values[places]``) r = input_table[stage] * (A^T (scale * u) +
    diagonal * u), and input_table[stage] * u is added to ``total`` if there is one. base_table[stage] multiplies base,
    if there is one, and ``upstream`` is added, if there is one. r itself goes to ``terms[stage]`` if ``keep`` is not 0,
    where the rows of the tables find it later. Without a ``target`` the product alone is wanted.
    rows [BLOCK_R], of which those from n on are left out; columns [BLOCK_F]. scale and diagonal: [slot, n]. ``mixing``
    [FEATURES], if there is one, is added to the diagonal: columns have coefficients of their own. values: [E]. total: in
    the dtype of sums, as the tables are.
    """
    SUMS: tl.constexpr = tl.float64 if u.dtype.element_ty == tl.float64 else tl.float32
    begin, end = edges_of(indptr, rows, n)
    coefficients = tl.cast(slot, tl.int64) * n
    sums = tl.zeros([BLOCK_R, BLOCK_E, BLOCK_F], SUMS)  # added up once: within the loop nothing crosses threads
    for first in range(0, tl.max(end - begin, 0), BLOCK_E):
        edge = begin[:, None] + first + tl.arange(0, BLOCK_E)[None, :]
        live = edge < end[:, None]
        neighbour = tl.load(indices + edge, mask=live, other=0).to(tl.int64)
        if places is None:
            weight = tl.load(values + edge, mask=live, other=0.0).to(SUMS)
        else:
            place = tl.load(places + edge, mask=live, other=0)
            weight = tl.load(values + place, mask=live, other=0.0).to(SUMS)
            weight *= tl.load(scale + coefficients + neighbour, mask=live, other=0.0).to(SUMS)
        offsets = (neighbour * FEATURES)[:, :, None] + columns[None, None, :]
        mask = live[:, :, None] & (columns < FEATURES)[None, None, :]
        value = tl.load(u + offsets, mask=mask, other=0.0).to(SUMS)
        sums += weight[:, :, None] * value
    gathered = tl.sum(sums, 1)
    mask = (rows < n)[:, None] & (columns < FEATURES)[None, :]
    offsets = (rows.to(tl.int64) * FEATURES)[:, None] + columns[None, :]
    if product is not None:
        tl.store(product + offsets, gathered.to(product.dtype.element_ty), mask=mask)
    if target is not None:
        own = tl.load(u + offsets, mask=mask, other=0.0).to(SUMS)
        multiple = tl.load(diagonal + coefficients + rows, mask=rows < n, other=0.0).to(SUMS)[:, None]
        if mixing is not None:
            multiple += tl.load(mixing + columns, mask=columns < FEATURES, other=0.0).to(SUMS)[None, :]
        result = multiple * own
        if places is None:
            result += tl.load(scale + coefficients + rows, mask=rows < n, other=0.0).to(SUMS)[:, None] * gathered
        else:
            result = tl.load(input_table + stage) * (result + gathered)
        if source is not None:
            result += tl.load(source + offsets, mask=mask, other=0.0).to(SUMS)
        if total is not None:
            sum = tl.load(total + offsets, mask=mask, other=0.0) + tl.load(input_table + stage) * own
            tl.store(total + offsets, sum, mask=mask)
        distance = tl.cast(n, tl.int64) * FEATURES
        if keep != 0:
            kept = terms + tl.cast(stage, tl.int64) * distance + offsets
            tl.store(kept, result.to(terms.dtype.element_ty), mask=mask)
        before = tl.load(base + offsets, mask=mask, other=0.0).to(SUMS)
        if base_table is not None:
            before *= tl.load(base_table + stage)
        if upstream is not None:
            before += tl.load(upstream + offsets, mask=mask, other=0.0).to(SUMS)
        following = combination(
            tl.load(table.own + stage) * result, before, terms, offsets, mask, table, stage, distance,
        )  # fmt: skip
        tl.store(target + offsets, following.to(target.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["slot", "stage", "n", "keep"])
def diffusion_stage(
    u, indptr, indices, values, places, scale, diagonal, mixing, source, product, total, base, upstream, terms, target,
    input_table, base_table, table,
    slot, stage, n, keep,
    FEATURES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """:func:`evaluate` on all rows and columns, of which a program takes ``BLOCK_R`` and ``BLOCK_F``."""
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    evaluate(
        u, indptr, indices, values, places, scale, diagonal, mixing, source, product, total, base, upstream, terms,
        target, input_table, base_table, table, slot, stage, n, keep, rows, columns, FEATURES, BLOCK_R, BLOCK_E, BLOCK_F,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n"])
def mix_rows(
    first, second, first_target, second_target, table, n, BLOCK: tl.constexpr
):  # fmt: skip
    """Two targets [row, n] <- sums of rows of two sources [., n] by sparse rows of weights; one source may be absent."""
    row = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    target = tl.cast(row, tl.int64) * n + i
    one, two = tl.zeros([BLOCK], table.weight.dtype.element_ty), tl.zeros([BLOCK], table.weight.dtype.element_ty)
    for entry in range(tl.load(table.start + row), tl.load(table.start + row + 1)):
        place = tl.cast(tl.load(table.term + entry), tl.int64) * n + i
        weight = tl.load(table.weight + entry)
        if first is not None:
            one += weight * tl.load(first + place, mask=i < n, other=0.0).to(one.dtype)
        if second is not None:
            two += weight * tl.load(second + place, mask=i < n, other=0.0).to(two.dtype)
    if first is not None:
        tl.store(first_target + target, one, mask=i < n)
    if second is not None:
        tl.store(second_target + target, two, mask=i < n)
