"""Algebraically reversible Runge-Kutta steps in plain PyTorch, and their exact gradient at constant memory.

With Psi_h(t, x) the increment of any explicit scheme, a step from (y, z) of size h is (McCallum and Foster, arXiv
2410.11648, with coupling c, 0 < c <= 1)

    y1 = c y + (1 - c) z + Psi_h(t, z),        z1 = z - Psi_-h(t + h, y1),

and the increments that it is undone by are the same ones:

    z = z1 + Psi_-h(t + h, y1),                y = (y1 - (1 - c) z - Psi_h(t, z)) / c.

A solve starts from y = z = y0, and y has the order of the scheme. Undoing a step multiplies what rounding did to y - z
by 1/c, so n steps lose n log2(1/c) bits: the pair is held in :func:`compensated_dtype`, increments in the dtype of the
state. Of a linear problem dy/dt = a y the product of both eigenvalues of a step is c: a decay is followed without
growth of y - z only for |h a| up to about 1 - c; beyond that y - z grows as exp(|a| t) c^n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from ..carried import modules_within
from .replay import Replay
from .rk import compensated_dtype
from .vjps import Cotangents, GradientSums, vjp

Leaves = list[torch.Tensor]
COUPLING = 0.999


class Pair(NamedTuple):
    """The two states of a reversible solve, in the wider dtype."""

    ys: Leaves
    zs: Leaves


class Scheme(Protocol):
    """The increments of steps, and the outputs in them; states are leaves in their own dtypes."""

    def places(self, step: Any) -> Sequence[float | None]:
        """Where the outputs of a step are: from 0 to 1 between its start and its end, ``None``: ``ahead`` makes it."""

    def ahead(self, step: Any, zs: Leaves) -> tuple[Leaves, list[Leaves]]:
        """The increments from the start of the step to its end, and the outputs without a place."""

    def back(self, step: Any, ys: Leaves) -> Leaves:
        """The increments from its end to its start."""


class Coupling:
    """The sums of a step.

    Args:
        ys: the state, whose dtypes increments and outputs have. value: the coupling c.
    """

    def __init__(self, ys: Sequence[torch.Tensor], value: float) -> None:
        self._dtypes, self.value = [y.dtype for y in ys], value

    def start(self, ys: Leaves) -> Pair:
        """The pair at the start of a solve."""
        wide = [y.to(compensated_dtype(y.dtype)) for y in ys]
        return Pair(wide, wide)

    def narrow(self, xs: Leaves) -> Leaves:
        """One state of a pair in the dtypes of the field."""
        return [x.to(dtype) for x, dtype in zip(xs, self._dtypes, strict=True)]

    def join(self, pair: Pair, increments: Leaves) -> Leaves:
        """y1 of a step."""
        return [torch.lerp(z, y, self.value) + k for y, z, k in zip(*pair, increments, strict=True)]

    def part(self, y1s: Leaves, zs: Leaves, increments: Leaves) -> Leaves:
        """The y that :meth:`join` made y1 of."""
        return [torch.lerp(z, y1 - k, 1 / self.value) for y1, z, k in zip(y1s, zs, increments, strict=True)]

    def advance(
        self, scheme: Scheme, step: Any, pair: Pair, ahead: tuple[Leaves, list[Leaves]] | None = None
    ) -> tuple[Pair, list[Leaves]]:
        """The pair at the end of a step and its outputs; ``ahead`` is what the scheme returns, where it is known."""
        increments, made = scheme.ahead(step, self.narrow(pair.zs)) if ahead is None else ahead
        y1s = self.join(pair, increments)
        ends, rest = self.narrow(y1s), iter(made)
        z1s = [z - k for z, k in zip(pair.zs, scheme.back(step, ends), strict=True)]
        outs = [next(rest) if w is None else self._between(pair.ys, ends, w) for w in scheme.places(step)]
        return Pair(y1s, z1s), outs

    def _between(self, ys: Leaves, ends: Leaves, w: float) -> Leaves:
        if w == 1.0:
            return ends
        return [torch.lerp(y, y1, w) for y, y1 in zip(self.narrow(ys), ends, strict=True)]


@dataclass
class Trajectory:
    """A solve without a graph: its steps, the pair at its end, and its outputs, row by row."""

    scheme: Scheme
    coupling: Coupling
    steps: Sequence[Any]
    pair: Pair
    rows: list[Leaves]


class Reversible(torch.autograd.Function):
    """The outputs of a solve, whose backward undoes its steps, the last one first, and holds one at a time."""

    @staticmethod
    def forward(
        ctx: Any, solve: Callable[[], Trajectory], func: Callable, name: str, n: int, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Solve; ``tensors`` are the ``n`` leaves of y0 and all that the field ``func`` depends on beside them.

        Raises:
            ValueError: the field, ``name`` in messages, draws random numbers or changes what it carries.
        """
        refuse_state(func, name)
        ctx.replay = Replay(func, tensors[0].device)
        ctx.moment = ctx.replay.now()
        found = solve()
        ctx.replay.settle()
        if why := ctx.replay.moved(ctx.moment):
            raise _refusal(name, why)
        ctx.scheme, ctx.coupling, ctx.steps, ctx.name, ctx.n = found.scheme, found.coupling, found.steps, name, n
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*found.pair.ys, *found.pair.zs, *tensors)
        return tuple(y for row in found.rows for y in row)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of the discrete solve.

        Raises:
            RuntimeError: they are to be differentiated again, or rounding has lost the start.
        """
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{ctx.name}: a reversible gradient cannot be differentiated twice, which create_graph=True asks for; "
                "accepted: gradient='discrete' or 'checkpoint' of odeint, another checkpoint of a block"
            )
        n, saved = ctx.n, ctx.saved_tensors
        pair = Pair(list(saved[:n]), list(saved[n : 2 * n]))
        y0s, others = saved[2 * n : 3 * n], saved[3 * n :]
        asked = [x.requires_grad for x in others]
        reverse = _Reverse(ctx.scheme, ctx.coupling, [x for x, need in zip(others, asked, strict=True) if need])
        rows = [list(grads[i : i + n]) for i in range(0, len(grads), n)]
        with ctx.replay.keep_random(), ctx.replay.surroundings(ctx.moment):
            for step in reversed(ctx.steps):
                pair = reverse.undo(step, pair, rows)
        _check_start(ctx, pair, y0s)
        sums = iter(reverse.sums.totals)
        found = [_plus(a, b) for a, b in zip(reverse.of_y, reverse.of_z, strict=True)]
        return None, None, None, None, *found, *(next(sums) if need else None for need in asked)


class _Reverse:
    """The backward pass: the cotangents of the pair, and the sums of those of ``params``."""

    def __init__(self, scheme: Scheme, coupling: Coupling, params: Leaves) -> None:
        self._scheme, self._coupling, self._params = scheme, coupling, params
        self.sums = GradientSums(len(params))
        self.of_y: Cotangents = []
        self.of_z: Cotangents = []

    def undo(self, step: Any, pair: Pair, rows: list[Cotangents]) -> Pair:
        """Return the pair at the start of a step, move the cotangents there, and take those of its outputs off."""
        scheme, coupling, n, c = self._scheme, self._coupling, len(pair.ys), self._coupling.value
        of_y, of_z = self.of_y or [None] * n, self.of_z or [None] * n
        of_start: Cotangents = [None] * n
        made: Cotangents = []
        places = scheme.places(step)
        for w, row in zip(places, rows[len(rows) - len(places) :], strict=True):
            if w is None:
                made += row
                continue
            of_y = [_plus(a, g, w) for a, g in zip(of_y, row, strict=True)]
            if w != 1.0:
                of_start = [_plus(a, g, 1.0 - w) for a, g in zip(of_start, row, strict=True)]
        del rows[len(rows) - len(places) :]

        ends = [y.detach().requires_grad_() for y in coupling.narrow(pair.ys)]
        with torch.enable_grad():
            increments = scheme.back(step, ends)
        zs = [z + k.detach() for z, k in zip(pair.zs, increments, strict=True)]
        found = vjp(increments, [None if g is None else -g for g in of_z], [*ends, *self._params])
        of_y = [_plus(a, b) for a, b in zip(of_y, found, strict=False)]
        self.sums.add(found[n:])

        starts = [z.detach().requires_grad_() for z in coupling.narrow(zs)]
        with torch.enable_grad():
            increments, outs = scheme.ahead(step, starts)
        ys = coupling.part(pair.ys, zs, [k.detach() for k in increments])
        results = [*increments, *(y for out in outs for y in out)]
        found = vjp(results, [*of_y, *made], [*starts, *self._params])
        self.sums.add(found[n:])
        of_z = [_plus(a, b) for a, b in zip(of_z, found, strict=False)]
        self.of_z = [_plus(a, g, 1.0 - c) for a, g in zip(of_z, of_y, strict=True)]
        self.of_y = [_plus(a, g, c) for a, g in zip(of_start, of_y, strict=True)]
        return Pair(ys, zs)


def refuse_state(func: Callable, name: str) -> None:
    """Refuse fields of which it is known before they run that they move buffers or draw random numbers.

    Raises:
        ValueError: naming the module.
    """
    for root in modules_within(func):
        for path, module in root.named_modules():
            what = f"{type(root).__name__}{'.' if path else ''}{path}"
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats:
                raise _refusal(name, f"moves the running statistics of {what}, a {type(module).__name__} in training")
            if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
                raise _refusal(name, f"draws random numbers in {what}, a {type(module).__name__} in training")


def _refusal(name: str, why: str) -> ValueError:
    return ValueError(
        f"{name}: got a field that {why}, accepted where steps are undone: one whose rate depends on t, the state and "
        "tensors that do not change (eval(), or gradient='checkpoint' of odeint, checkpoint='step' of a block)"
    )


def _check_start(ctx: Any, pair: Pair, y0s: Sequence[torch.Tensor]) -> None:
    """Compare what the undone steps have come to with y0; one number is read.

    Raises:
        RuntimeError: they have lost it, and the gradient with it.
    """
    if not ctx.steps:
        return
    misses = []
    for y, z, y0 in zip(*pair, y0s, strict=True):
        accepted = torch.finfo(y0.dtype).eps ** 0.5
        size = torch.linalg.vector_norm(y0.detach()).clamp_min(torch.finfo(y0.dtype).tiny)
        for x in (y, z):
            misses.append((torch.linalg.vector_norm(x - y0) / size / accepted).double())
    worst = float(torch.stack(misses).max()) if misses else 0.0
    if worst > 1.0:
        accepted = torch.finfo(y0s[0].dtype).eps ** 0.5
        raise RuntimeError(
            f"{ctx.name}: the steps undone in backward have come to a y0 that is off by {worst * accepted:.1e} of its "
            f"norm, accepted: {accepted:.1e}; each of {len(ctx.steps)} steps multiplies rounding by 1/coupling = "
            f"{1 / ctx.coupling.value:.6g} and by what the field decays in it. A coupling nearer to 1, fewer steps, a "
            "wider dtype or gradient='checkpoint' (of a block checkpoint='step') keep it"
        )


def _plus(a: torch.Tensor | None, b: torch.Tensor | None, weight: float = 1.0) -> torch.Tensor | None:
    """a + weight * b, where ``None`` is 0."""
    if b is None:
        return a
    if a is None:
        return b if weight == 1.0 else b * weight
    return torch.add(a, b, alpha=weight)
