"""What calls leave behind while the garbage collector is off; for tests that use the fixture ``no_collector``."""

from __future__ import annotations

import gc
from collections import Counter

import pytest
import torch
from torch.utils._pytree import tree_leaves

CALLS, FEW = 100, 3


def held():
    """Tensors and nodes of graphs that Python knows."""
    kinds = torch.Tensor, torch.autograd.function.BackwardCFunction
    return [x for x in gc.get_objects() if issubclass(type(x), kinds)]


def left(call, calls=CALLS):
    """What outlives calls, by type."""
    for _ in range(2):  # what is kept from the first calls on
        call()
    gc.collect()
    before = held()
    for _ in range(calls):
        call()
    known = {id(x) for x in before}
    return Counter(type(x).__name__ for x in held() if id(x) not in known)


def backward(out):
    """Of all results that have a gradient."""
    sum(x.sum() for x in tree_leaves(out) if isinstance(x, torch.Tensor) and x.requires_grad).backward()


def drop(out):
    """Results that are never asked for a gradient."""


def fails(run, error):
    """A call that ends in an error, which is caught."""

    def call():
        with pytest.raises(error):
            run()

    return call
