"""What a field family is: one kind of vector field R(x, theta(t)) that backends can fuse into a whole solve.

A family has a folder of its own: its spec and nodal tensors, its rate in plain PyTorch, and an
:class:`Implementation` for each backend that has kernels for it. Everything else is written once for all families: the
schema of the ops (``contnet_fast/ops/schemas.py``), their derivative (``ops/solve.py``), the choice of a backend, the
solve of the stateless API (``functional/fields.py``) and the block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from ..problem import Facts, Problem
from ..schemes.timegrid import FlatGrid

Tensors = Sequence[torch.Tensor | None]

# a reason against, for implementations that send no messages between their passes
ACROSS_RANKS = (
    "batch statistics across ranks need a message between the passes of an evaluation, which these kernels do not send"
)


class Settings(NamedTuple):
    """A spec as arguments of an op."""

    words: tuple[str, ...] = ()
    integers: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()


class Spec(Protocol):
    """A frozen dataclass that says what a field is; it checks its values when it is made."""

    def pack(self) -> Settings:
        """All of it, in the order that :meth:`unpack` reads."""

    @classmethod
    def unpack(cls, settings: Settings) -> Any:
        """The inverse of :meth:`pack`. ValueError: a word or a number is not accepted."""


class TensorSpec(NamedTuple):
    """Shape and dtype of a tensor that a forward pass keeps for backward."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class NoOperands(NamedTuple):
    """The operands of a field whose tensors are all nodal values: none."""


class Example(NamedTuple):
    """A seeded field and state: what tests, ``validate`` and tools run a family on."""

    x: torch.Tensor
    nodes: Any
    operands: Any
    spec: Any


@dataclass(frozen=True)
class Call:
    """The arguments that the forward and the backward op of a solve share.

    Attributes:
        x: the state at t = 0. nodes: nodal values of theta(t), a NamedTuple of the family, dimension 0 being the basis
            function. operands: tensors that are no functions of depth, such as the edges of a graph.
        keep: what outlives the forward pass: ``"none"`` (everything is kept), ``"step"`` (the state of each step),
            ``"block"`` (nothing, x is enough) or ``""`` (there is no backward pass).
        level: ``"solve"`` or ``"stage"``. products: what the operands of products are rounded to: a dtype's name;
            ``"coarse"`` (to none, but products may be off, by far less than if operands were in 16 bits) or ``""``.
    """

    family: Family
    x: torch.Tensor
    nodes: Any
    operands: Any
    spec: Any
    training: bool
    grid: FlatGrid
    keep: str
    level: str
    products: str = ""

    @property
    def facts(self) -> Facts:
        """About the field of this call."""
        return self.family.facts(self.spec, training=self.training)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments in the order of the schema, from x on."""
        # AOTInductor cannot pass an empty list of tensors: no operands are one that is absent
        tensors = (self.x, list(self.nodes), list(self.operands) or [None])
        # torch.compile of torch 2.11 unpacks no NamedTuple that a constant call returned
        grid = [getattr(self.grid, name) for name in FlatGrid._fields]
        return (*tensors, *self.spec.pack(), self.training, *grid, self.keep, self.level, self.products)

    @classmethod
    def of_arguments(
        cls, family: Family, x: torch.Tensor, nodes: Tensors, operands: Tensors, words: Sequence[str],
        integers: Sequence[int], numbers: Sequence[float], training: bool, *rest: Any,
    ) -> Call:  # fmt: skip
        """The inverse of :attr:`arguments`."""
        *grid, keep, level, products = rest
        grid = [tuple(part) if isinstance(part, (list, tuple)) else part for part in grid]
        settings = Settings(tuple(words), tuple(integers), tuple(numbers))
        named = family.operands._make(operands if family.operands._fields else ())
        tensors = (x, family.nodes._make(nodes), named)
        return cls(
            family, *tensors, family.spec.unpack(settings), training, FlatGrid._make(grid), keep, level, products
        )


# of a call: x, nodes, operands, the spec, training, the grid, keep, level, products
ARGUMENTS = 3 + len(Settings._fields) + 1 + len(FlatGrid._fields) + 3


class Implementation(ABC):
    """The kernels that a backend has for a family. A backend checks devices and dtypes, this what is of the field.

    Forward and backward are registered by an extension; :class:`PythonImplementation` has them in Python.

    Attributes:
        levels: those it serves, most preferred first. casts_products: under autocast the nodes that
            :attr:`Family.products` names come in the compute dtype.
    """

    levels: tuple[str, ...] = ()
    casts_products = False

    def check(self, problem: Problem, level: str) -> tuple[str, ...]:
        """Every reason why ``problem`` cannot be served at ``level``; empty if it can."""
        return ()

    def discourage(self, problem: Problem, level: str) -> str | None:
        """Why ``auto`` leaves this although it serves; it is asked about level accumulate too."""
        return None

    def products(self, dtype: torch.dtype, compute_dtype: torch.dtype) -> str:
        """How precise the kernels' products are (:attr:`Call.products`), for a state of ``dtype``."""
        return ""

    def why(self, problem: Problem, level: str) -> str:
        """What speaks for it where ``auto`` takes it."""
        return f"the backend has kernels for the field {problem.family}"

    @abstractmethod
    def saved(self, call: Call) -> tuple[TensorSpec, ...]:
        """What the forward pass of ``call`` keeps for backward: for the op without data, and for passes in Python."""


class PythonImplementation(Implementation):
    """An implementation whose passes Python launches."""

    @abstractmethod
    def forward(self, call: Call, *, return_steps: bool) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """State or trajectory, statistics (:attr:`Family.statistics`), and what :meth:`saved` describes."""

    @abstractmethod
    def backward(
        self, call: Call, grad: torch.Tensor, saved: list[torch.Tensor], wanted: Sequence[int]
    ) -> list[torch.Tensor]:
        """The gradient of x, then those of the ``wanted`` places in nodes and operands."""


@dataclass(frozen=True, eq=False)
class Family:
    """One kind of vector field.

    Attributes:
        name: its ops are ``contnet_fast::<name>_solve_<backend>`` and ``<name>_solve_backward_<backend>``.
        spec: what a field is, as data. nodes: NamedTuple of the nodal tensors, ``None`` for absent ones. operands:
            NamedTuple of the other tensors.
        rate: ``rate(u, theta, operands, spec=, training=) -> (dx/dt, statistics)`` in plain PyTorch: the definition.
        check: ``check(x, nodes, operands, spec=, grid=, training=)`` refuses arguments by name.
        facts: ``facts(spec, training=)``: what backends may ask.
        present: ``present(nodes, spec) -> nodes`` without those that the spec leaves unread.
        running: names of the nodes that are running statistics: no gradient, and they move between passes.
        products: names of the nodes that autocast casts, where the implementation wants it.
        statistics: NamedTuple of the statistics of every evaluation, [evaluations, width] each; ``None`` if there are
            none.
        implementations: by backend.
        cost: the floor of a solve, for ``explain``; ``None``: it shows none.
        rank: what serves a solve on a GPU by time, fastest first; ``None``: the order of registration.
        draw: ``draw(seed, dtype=) -> Example``.
    """

    name: str
    spec: type[Spec]
    nodes: Any
    rate: Callable[..., tuple[torch.Tensor, tuple[torch.Tensor, ...]]]
    check: Callable[..., None]
    facts: Callable[..., Facts]
    draw: Callable[..., Example]
    operands: Any = NoOperands
    present: Callable[[Any, Any], Any] = lambda nodes, spec: nodes
    running: tuple[str, ...] = ()
    products: tuple[str, ...] = ()
    statistics: Any = None
    implementations: Mapping[str, Implementation] = field(default_factory=dict)
    cost: Callable[[Problem], Any] | None = None
    rank: Callable[[Problem, tuple[str, ...]], tuple[str, tuple[tuple[str, str], ...]]] | None = None

    @property
    def op(self) -> str:
        """The op of a solve, without its backend."""
        return f"{self.name}_solve"

    @property
    def running_places(self) -> tuple[int, ...]:
        """Places of the running statistics among the nodes."""
        return tuple(self.nodes._fields.index(name) for name in self.running)
