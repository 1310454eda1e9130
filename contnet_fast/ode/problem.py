"""An initial value problem, checked: the field on leaves, the direction of time, callbacks and counts."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from ..errors import warn
from ..functional.pytrees import flatten, flatten_as, is_rate, leaf_name, rate_error, unflatten
from ..transforms import constant_when_traced
from .memory import Watch, watches
from .tolerances import Tolerance

Leaves = list[torch.Tensor]

CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


class OdeintError(RuntimeError, AssertionError):
    """A solve cannot go on. It is an ``AssertionError`` too, which torchdiffeq raises.

    Attributes:
        reason: ``"nonfinite"``, ``"underflow"``, ``"max_num_steps"``, or ``"overflow"`` of time in search of an event.
        t, y: time and state at the end of the last accepted step.
        step_size: size of the step that failed.
        n_steps: number of accepted steps.
        component: the first component that is not finite, for example ``"y['v'][3]"``, or ``None``.
    """

    def __init__(
        self, message: str, *, reason: str, t: float, y: Any, step_size: float, n_steps: int, component: str | None
    ) -> None:
        super().__init__(message)
        self.reason, self.t, self.y = reason, t, y
        self.step_size, self.n_steps, self.component = step_size, n_steps, component

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy it with its attributes."""
        names = ("reason", "t", "y", "step_size", "n_steps", "component")
        return partial(type(self), **{name: getattr(self, name) for name in names}), self.args


@dataclass
class Stats:
    """What a solve did, as ``return_stats=True`` returns it.

    Attributes:
        nfe: number of evaluations of the field.
        accepted, rejected: numbers of steps.
        wasted: number of attempts in a burst (``steps_per_read``) that came after its end and changed nothing; their
            evaluations are in nfe.
        completed: whether every output time was reached.
        times: start times of the accepted steps, in the caller's direction of time.
        step_sizes: their sizes, >= 0.
        jacobians, factorizations: numbers of Jacobians and of LU factorizations, of implicit methods. The evaluations
            within a Jacobian are not in nfe.
    """

    nfe: int = 0
    accepted: int = 0
    rejected: int = 0
    wasted: int = 0
    completed: bool = True
    times: list[float] = field(default_factory=list)
    step_sizes: list[float] = field(default_factory=list)
    jacobians: int = 0
    factorizations: int = 0


class InitialValueProblem:
    """dy/dt = func(t, y) from y0 at t[0], as the solvers see it.

    Solvers run in s = sign * t, which increases, and step by sign * h; the field is evaluated at t, without a sign.

    Attributes:
        leaves, structure: leaves and structure of y0.
        s: the output times [T] as a tensor, in the graph of ``t`` where that has one.
        times: the output times as floats.
        constant: whether a compiler traces the solve, which makes the times constants.
        reached: number of output times that have a state.
        dtype: dtype of the times that the field is given: that of \\|y\\|, as in torchdiffeq.
        read: number of leaves that the field reads, the first ones; the others are integrals.
        name: name of the field in errors.
        watch: inspects what the field does with memory, until that is known.
    """

    def __init__(
        self,
        func: Callable,
        y0: Any,
        t: torch.Tensor,
        *,
        callbacks: Sequence[str] = CALLBACKS,
        constant: bool = False,
        read: int | None = None,
    ) -> None:
        self.read = read
        if not callable(func):
            raise TypeError(f"func: got {type(func).__name__}, accepted: a callable func(t, y)")
        self.func = func
        self.leaves, self.structure = flatten("y0", y0)
        for i, y in enumerate(self.leaves):
            if y.layout != torch.strided:
                raise TypeError(f"{leaf_name('y0', self.structure, i)}: got layout {y.layout}, accepted: torch.strided")
        self.t = _check_times(t)
        self.constant = constant and torch.compiler.is_compiling() and not t.requires_grad
        values = list(_constant_values(t)) if self.constant else t.detach().tolist()
        if self.constant:
            same = (t == torch.tensor(values, dtype=t.dtype, device=t.device)).all()
            torch._assert_async(same, "t: got other times than torch.compile traced, accepted: the same")
        _check_order(values)
        self.sign = -1.0 if len(values) > 1 and values[1] < values[0] else 1.0
        self.times = values if self.sign > 0 else [-v for v in values]
        self.s = t if self.sign > 0 else -t
        self.device = self.leaves[0].device
        self.dtype = _real_dtype(self.leaves)
        self.stats = Stats()
        self.reached = len(values)
        self.name = "func"
        self.watch: Watch | None = None
        self._flat_tuple = self.structure is not None and isinstance(y0, tuple) and len(y0) == len(self.leaves)
        self._plain_tuple = self._flat_tuple and type(y0) is tuple
        self._callbacks = {
            name: getattr(func, attribute)
            for name, attribute in zip(CALLBACKS, callbacks, strict=True)
            if hasattr(func, attribute)
        }

    def __call__(self, t: torch.Tensor, ys: Leaves, *, summed: bool = True) -> Leaves:
        """Evaluate the field at the caller's time, and return leaves in the dtypes of the state.

        Unless ``summed``, the rates of integrals are not read.
        """
        nfe = self.stats.nfe = self.stats.nfe + 1
        if nfe == 1 and watches(ys):
            self.watch = Watch()
        if self.watch is not None:
            self.watch.before(ys)
        if self.structure is None:
            k, y = self.func(t, ys[0]), ys[0]
            fits = nfe > 1 and k is not None and k.shape == y.shape and k.dtype == y.dtype
            ks = [k]
        else:
            found = self.func(t, self._structured(ys))
            if self._flat_tuple and isinstance(found, (tuple, list)) and len(found) == len(ys):
                ks = list(found)
            else:
                ks = flatten_as(self.name, found, self.structure)
            fits = nfe > 1 and all(map(_fits, ks, ys))
        if not fits:
            ks = self._rates(ks, ys)
        if self.watch is not None:
            ks = self._watched(ys, ks)
        return ks

    def rates_of(self, t: torch.Tensor, ys: Leaves) -> Leaves:
        """Evaluate the field under a transform of torch.func, which is not counted."""
        nfe = self.stats.nfe
        found = self(t, ys)
        self.stats.nfe = nfe
        return found

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Within the block what the field does with memory is not inspected."""
        watch, self.watch = self.watch, None
        yield
        self.watch = watch

    def _rates(self, ks: Sequence[Any], ys: Leaves) -> Leaves:
        """Check the rates, and return them in the dtypes of the state."""
        for i, (k, y) in enumerate(zip(ks, ys, strict=True)):
            if not is_rate(k, y):
                raise rate_error(leaf_name(self.name, self.structure, i), k, y)
        return [k.to(y.dtype) for k, y in zip(ks, ys, strict=True)]

    def _watched(self, ys: Leaves, ks: Leaves) -> Leaves:
        assert self.watch is not None
        ks = self.watch.after(ys, ks, self.name)
        if self.watch.done:
            self.watch = None
        return ks

    def state(self, ys: Leaves) -> Any:
        """Return leaves in the caller's structure."""
        return self._structured(ys)

    def _structured(self, ys: Leaves) -> Any:
        return tuple(ys) if self._plain_tuple else unflatten(ys, self.structure)

    def solution(self, tables: Leaves) -> Any:
        """Return tables of outputs, [T, *y.shape] for each leaf, in the caller's structure."""
        return self.state(tables)

    def tolerance(self, rtol: Any, atol: Any, norm: Callable | None) -> Tolerance:
        """Return the tolerance that the error of a step is divided by."""
        return Tolerance(rtol, atol, norm, self.leaves, self.structure)

    def scalar(self, value: float, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return a 0-d tensor on the device of the state; a kernel writes it, so that nothing waits for the device."""
        return torch.full((), value, dtype=dtype or self.dtype, device=self.device)

    def scalars(self, values: Sequence[float]) -> Sequence[torch.Tensor]:
        """Return many scalars in the dtype of times."""
        if self.device.type != "cpu":
            return [self.scalar(v) for v in values]
        return torch.tensor(values, dtype=self.dtype, device="cpu").unbind()

    @property
    def has_callbacks(self) -> bool:
        """Whether ``func`` has callbacks for steps."""
        return bool(self._callbacks)

    def call_back(self, name: str, s: float, ys: Leaves, h: float, dtype: torch.dtype) -> None:
        """Call a callback of ``func`` with a step, in the caller's direction of time."""
        if self._callbacks and name in self._callbacks:
            self._callbacks[name](self.scalar(self.sign * s, dtype), self.state(ys), self.scalar(h, dtype))

    def check_callbacks(self, method: str, served: Sequence[str]) -> None:
        """Warn of callbacks that a method never calls, and drop them."""
        unknown = sorted(set(self._callbacks) - set(served))
        if unknown:
            warn(f"method {method!r} does not call {', '.join(unknown)}")
            self._callbacks = {name: call for name, call in self._callbacks.items() if name in served}

    def accept(self, s: float, h: float) -> None:
        """Count an accepted step."""
        self.stats.accepted += 1
        self.stats.times.append(self.sign * float(s))
        self.stats.step_sizes.append(float(h))

    def failure(
        self, reason: str, what: str, s: float, ys: Leaves, h: float, component: str | None = None
    ) -> OdeintError:
        """Return the error that ends a solve, with the last good state."""
        t, n = self.sign * float(s), self.stats.accepted
        state = self.state([y.detach() for y in ys])
        return OdeintError(
            f"{what}; at t = {t:.9g} after {n} accepted steps, step size {float(h):.3g}; the exception's y is the "
            "last good state",
            **{"reason": reason, "t": t, "y": state, "step_size": float(h), "n_steps": n, "component": component},
        )

    def leaf_name(self, name: str, i: int) -> str:
        """Return the name of leaf ``i``."""
        return leaf_name(name, self.structure, i)

    def nonfinite(self, name: str, ys: Leaves) -> str | None:
        """Return the name of the first component that is not finite, or ``None``."""
        for i, y in enumerate(y.detach() for y in ys):
            if not y.numel() or cmath.isfinite(y.sum().item()):  # a sum is not finite where a term is not
                continue
            bad = (~torch.isfinite(y)).nonzero()
            if len(bad):
                index = bad[0].tolist()
                return self.leaf_name(name, i) + (str(index) if index else "")
        return None


def _fits(k: Any, y: torch.Tensor) -> bool:
    return k is not None and k.shape == y.shape and k.dtype == y.dtype


def own_module(func: Any) -> torch.nn.Module | None:
    """Return the module that a callable is, is bound to, or is a partial of, or ``None``."""
    while isinstance(func, partial):
        func = func.func
    owner = getattr(func, "__self__", func)
    return owner if isinstance(owner, torch.nn.Module) else None


def _real_dtype(leaves: Leaves) -> torch.dtype:
    dtype = leaves[0].dtype
    for y in leaves[1:]:
        dtype = torch.promote_types(dtype, y.dtype)
    return torch.empty((), dtype=dtype, device="meta").abs().dtype if dtype.is_complex else dtype


def _check_times(t: Any) -> torch.Tensor:
    if not isinstance(t, torch.Tensor):
        raise TypeError(f"t: got {type(t).__name__}, accepted: a 1-d floating-point torch.Tensor")
    if not t.is_floating_point():
        raise TypeError(f"t: got dtype {t.dtype}, accepted: a floating-point dtype")
    if t.dim() != 1 or len(t) == 0:
        raise ValueError(f"t: got shape {tuple(t.shape)}, accepted: [T] with at least one time")
    if t.device.type == "meta":
        raise ValueError("t: got times on device meta, accepted: a device that holds them")
    return t


@constant_when_traced
def _constant_values(t: torch.Tensor) -> tuple[float, ...]:
    """Return the times on the host, read once when a call is traced."""
    return tuple(t.detach().tolist())


def _check_order(values: list[float]) -> None:
    if not all(map(math.isfinite, values)):
        raise ValueError(f"t: got {next(v for v in values if not math.isfinite(v))}, accepted: finite times")
    steps = [b - a for a, b in pairwise(values)]
    if not (all(d > 0 for d in steps) or all(d < 0 for d in steps)):
        i = next(i for i, d in enumerate(steps) if d == 0 or (d > 0) != (steps[0] > 0) or steps[0] == 0)
        repeated = " again" if steps[i] == 0 else ""
        raise ValueError(
            f"t: got t[{i}] = {values[i]:.9g} before t[{i + 1}] = {values[i + 1]:.9g}{repeated}, accepted: times that "
            "strictly increase or strictly decrease"
        )
