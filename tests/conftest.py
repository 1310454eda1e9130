"""Fixtures of several files."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

if not torch.cuda.is_available():  # Triton kernels then run in its interpreter, which it asks for when imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

from contnet_fast.backends import cpu


def instruction_sets() -> list[str]:
    return cpu._extension.instruction_sets() if cpu._extension else ["portable"]


@pytest.fixture(params=instruction_sets())
def isa(request):
    """Every instruction set of the C++ extension that this machine has, in turn."""
    before = cpu._extension.instruction_set()
    cpu._extension.use_instruction_set(request.param)
    yield request.param
    cpu._extension.use_instruction_set(before)


@pytest.fixture
def reads(monkeypatch):
    """Values that Python reads from tensors."""
    found = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy"):
        own = getattr(torch.Tensor, name)

        def counted(self, *args, _own=own, _name=name):
            found.append(_name)
            return _own(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    return found


class Scalars(TorchDispatchMode):
    """Ops that wait for what a tensor holds, whoever calls them: for its value, or to know the shape of a result."""

    waiting = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.waiting:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def scalars():
    """:class:`Scalars` while the test runs."""
    with Scalars() as mode:
        yield mode
