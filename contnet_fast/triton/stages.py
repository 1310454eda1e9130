"""The combination of Runge-Kutta stages inside a kernel of a field."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def combination(own_weight, last, terms, offsets, mask, table_start, table_index, table_weight, target, distance):
    """own + the terms that row ``target`` of a table lists, each ``distance`` elements after the one before, + ``last``."""
    total = own_weight
    for entry in range(tl.load(table_start + target), tl.load(table_start + target + 1)):
        term = terms + tl.cast(tl.load(table_index + entry), tl.int64) * distance
        total += tl.load(table_weight + entry) * tl.load(term + offsets, mask=mask, other=0.0).to(total.dtype)
    return last + total
