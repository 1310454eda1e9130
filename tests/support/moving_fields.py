"""Fields that carry something from one evaluation to the next, each in another place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from contnet_fast.nn import ContinuousBlock

D = torch.float64


class Field(nn.Module):
    """tanh of a linear map."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 3, dtype=D)

    def forward(self, t, y):
        return torch.tanh(self.linear(y) * self.scale())

    def scale(self):
        return 1.0


class SpectralNorm(Field):
    def __init__(self):
        super().__init__()
        nn.utils.parametrizations.spectral_norm(self.linear)
        norm = self.linear.parametrizations.weight[0]
        with torch.no_grad():  # far from where power iteration ends, so that it moves
            norm._u.copy_(torch.tensor([1.0, 0.0, 0.0]))
            norm._v.copy_(torch.tensor([0.0, 0.0, 1.0]))


class OldSpectralNorm(Field):
    def __init__(self):
        super().__init__()
        nn.utils.spectral_norm(self.linear)


class InPlace(Field):
    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.ones(3, dtype=D))

    def scale(self):
        self.factor.mul_(1.1)
        return self.factor.clone()


class Replaced(InPlace):
    def scale(self):
        self.factor = self.factor * 1.1
        return self.factor


class Registered(Field):
    """The first call registers the buffer."""

    def scale(self):
        if not hasattr(self, "factor"):
            self.register_buffer("factor", torch.ones(3, dtype=D))
        self.factor = self.factor * 1.1
        return self.factor


class Counter(Field):
    def __init__(self):
        super().__init__()
        self.n = 0

    def scale(self):
        self.n += 1
        return 1 + self.n / 10


class PlainTensor(Field):
    def __init__(self):
        super().__init__()
        self.factor = torch.ones(3, dtype=D)

    def scale(self):
        self.factor = self.factor * 1.1
        return self.factor


class PlainTensorInPlace(PlainTensor):
    def scale(self):
        self.factor *= 1.1
        return self.factor.clone()


class Tuple(Field):
    def __init__(self):
        super().__init__()
        self.hidden = (1, {"h": torch.ones(3, dtype=D)})

    def scale(self):
        n, parts = self.hidden
        self.hidden = (n + 1, {"h": parts["h"] * (1 + n / 10)})
        return self.hidden[1]["h"]


class Views(Field):
    """Two buffers in one piece of memory: one is read, the other written."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factors", torch.ones(2, 3, dtype=D))
        self.register_buffer("second", self.factors[1])

    def scale(self):
        self.second.mul_(1.1)
        return self.factors.sum(0)


class Shared(Field):
    """One buffer under two names."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.ones(3, dtype=D))
        self.other = nn.Module()
        self.other.register_buffer("same", self.factor)

    def scale(self):
        self.other.same.mul_(1.1)
        return self.factor.clone()


class FrozenParameter(Field):
    """What old implementations of spectral norm do: parameters without gradients, written through ``.data =``."""

    def __init__(self):
        super().__init__()
        self.u = nn.Parameter(torch.ones(3, dtype=D), requires_grad=False)

    def scale(self):
        self.u.data = F.normalize(self.linear.weight.data @ self.u.data, dim=0)
        return 1 / (self.u @ self.linear.weight @ self.u.clone())


class InGraph(Field):
    """A derivative flows from one evaluation to the next."""

    def __init__(self):
        super().__init__()
        self.last = None

    def forward(self, t, y):
        self.last = torch.tanh(self.linear(y)) + (0 if self.last is None else 0.5 * self.last * self.last)
        return self.last


class GraphTuple(Field):
    def __init__(self):
        super().__init__()
        self.last = ()

    def forward(self, t, y):
        k = torch.tanh(self.linear(y)) + sum(0.3 * z * z for z in self.last)
        self.last = (k, 2 * k)
        return k


class Generator(Field):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def scale(self):
        return 1 + torch.rand(3, dtype=D, generator=self.generator)


class Moments:
    """Running statistics outside of modules."""

    def __init__(self):
        self.mean, self.count = torch.zeros(3, dtype=D), 0

    def update(self, y):
        self.count += 1
        self.mean = self.mean + (y.detach().mean(0) - self.mean) / self.count


class Normaliser(Field):
    def __init__(self):
        super().__init__()
        self.moments = Moments()

    def forward(self, t, y):
        self.moments.update(y)
        return super().forward(t, y - self.moments.mean)


class BatchNorm(Field):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3, dtype=D)

    def forward(self, t, y):
        return torch.tanh(self.linear(self.norm(y)))


class Average(BatchNorm):
    """Batch norm whose step depends on its counter."""

    def __init__(self):
        super().__init__()
        self.norm.momentum = None


class InstanceNorm(Field):
    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm1d(3, track_running_stats=True, dtype=D)

    def forward(self, t, y):
        z = torch.stack([y, y * y, y.sin()], -1)
        return torch.tanh(self.linear(self.norm(z).sum(-1)))


class FunctionalBatchNorm(Field):
    """Buffers that PyTorch writes to without counting it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, dtype=D))
        self.register_buffer("var", torch.ones(3, dtype=D))

    def forward(self, t, y):
        return torch.tanh(self.linear(F.batch_norm(y, self.mean, self.var, training=True)))


class Dropout(InPlace):
    def forward(self, t, y):
        return F.dropout(super().forward(t, y), 0.5, training=True)


class WithHook(Counter):
    def __init__(self):
        super().__init__()
        self.linear.register_forward_pre_hook(self.move)

    def move(self, *_):
        self.n += 1


class Holder:
    """An object that is no module and has one."""

    def __init__(self, module):
        self.module, self.calls = module, 0

    def __call__(self, t, y):
        self.calls += 1
        return self.module(t, y) / self.calls

    def method(self, t, y):
        return self(t, y)


def closure(module):
    n, factor = 0, torch.ones(3, dtype=D)

    def field(t, y):
        nonlocal n
        n += 1
        factor.mul_(1.1)
        return module(t, y) * factor.clone() / n

    def state():
        return [n, factor]

    return field, state


COUNT, FACTOR = 0, torch.ones(3, dtype=D)
KEPT: list[nn.Module] = []


def by_globals(t, y):
    global COUNT
    COUNT += 1
    FACTOR.mul_(1.1)
    return helper(t, y) * FACTOR.clone() / COUNT


def helper(t, y):
    return (lambda: MODULE(t, y))()


MODULE: nn.Module = BatchNorm()


def of_globals() -> tuple[Callable, nn.Module, Callable]:
    global COUNT, MODULE
    COUNT, MODULE = 0, SpectralNorm()
    FACTOR.fill_(1.0)
    return by_globals, MODULE, lambda: [COUNT, FACTOR]


def nothing():
    return []


MODULES = [
    SpectralNorm, OldSpectralNorm, InPlace, Replaced, Registered, Counter, PlainTensor, PlainTensorInPlace, Tuple,
    Views, Shared, FrozenParameter, InGraph, GraphTuple, Generator, Normaliser, BatchNorm, Average, InstanceNorm,
    FunctionalBatchNorm, Dropout, WithHook,
]  # fmt: skip


def of_holder(method: bool):
    module = SpectralNorm()
    holder = Holder(module)
    return (holder.method if method else holder), module, lambda: [holder.calls]


def wrapped(make: type[nn.Module], wrap: Callable[[nn.Module], Callable]):
    module = make()
    return wrap(module), module, nothing


def _closure():
    module = SpectralNorm()
    field, state = closure(module)
    return field, module, state


# name -> a function that makes (field, the module with its parameters, what it carries outside of that module)
KINDS: dict[str, Callable[[], tuple[Callable, nn.Module, Callable[[], list[Any]]]]] = {
    **{make.__name__: partial(wrapped, make, lambda m: m) for make in MODULES},
    "batch norm in a lambda": partial(wrapped, BatchNorm, lambda m: lambda t, y: m(t, y)),
    "batch norm in a bound method": partial(wrapped, BatchNorm, lambda m: m.forward),
    "spectral norm in a partial": partial(wrapped, SpectralNorm, lambda m: partial(m)),
    "an object": partial(of_holder, False),
    "a method of an object": partial(of_holder, True),
    "a closure": _closure,
    "globals": of_globals,
}


def carried(module: nn.Module, others: Callable[[], list[Any]]) -> list[Any]:
    """Copies of all that the module and its surroundings hold."""
    found: list[Any] = list(others())
    for part in module.modules():
        found += [*part.buffers(recurse=False), *part.parameters(recurse=False), part.training]
        found += [vars(part).get(name) for name in ("n", "factor", "hidden", "last", "weight")]
        for name, value in vars(part).items():
            if isinstance(value, Moments):
                found += [value.mean, value.count]
            if isinstance(value, torch.Generator):
                found.append((name, value.get_state()))
    return [_copy(x) for x in found]


def _copy(x: Any) -> Any:
    if isinstance(x, torch.Tensor):
        return x.detach().clone()
    if isinstance(x, tuple):
        return tuple(map(_copy, x))
    return {k: _copy(v) for k, v in x.items()} if isinstance(x, dict) else x


def same(got, want):
    """Equal, tensors to 1e-11."""
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
        elif isinstance(a, (tuple, list)):
            same(a, b)
        elif isinstance(a, dict):
            same(list(a.values()), list(b.values()))
        else:
            assert a == b


class Reader(Field):
    """Reads a buffer, a parameter without a gradient and a flag, and moves nothing."""

    def __init__(self, size=3):
        super().__init__()
        self.register_buffer("factor", torch.ones(size, dtype=D))
        self.frozen = nn.Parameter(torch.full((3,), 0.5, dtype=D), requires_grad=False)

    def scale(self):
        return self.factor[:3] * self.frozen * (1.0 if self.training else 2.0)


POLICIES = ["step", "block"]
everywhere = pytest.mark.parametrize("checkpoint", POLICIES)


def start():
    return torch.linspace(-1, 1, 12, dtype=D).view(4, 3).requires_grad_()


def solve(field, x, checkpoint, *, scheme="midpoint", n_steps=3):
    """By a block or by ``rk_solve``, which a block calls with what it holds."""
    return ContinuousBlock(field, scheme=scheme, n_steps=n_steps, checkpoint=checkpoint)(x)
