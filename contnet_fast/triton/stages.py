"""The combination of Runge-Kutta stages inside a kernel of a field."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def combination(own, last, terms, offsets, mask, rows, target, distance):
    """own + the terms that row ``target`` of ``rows`` lists, each ``distance`` elements after the one before, + last.

    ``rows``: :class:`contnet_fast.triton.grids.Rows`. ``own``: the target's own term, weighted.
    """
    total = own
    for entry in range(tl.load(rows.start + target), tl.load(rows.start + target + 1)):
        term = terms + tl.cast(tl.load(rows.term + entry), tl.int64) * distance
        total += tl.load(rows.weight + entry) * tl.load(term + offsets, mask=mask, other=0.0).to(total.dtype)
    return last + total
