"""Modules whose tensors are nodal values of functions of depth."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..errors import check_number
from ..fields import Family
from ..functional.pytrees import is_rate, rate_error
from ..schemes.bases import Basis, Matrix, apply_matrix
from ..schemes.timegrid import FloatWeights, TimeGrid
from ..transforms import followed
from .calls import why_called

_REMOVE = {
    "WeightNorm": "torch.nn.utils.remove_weight_norm",
    "SpectralNorm": "torch.nn.utils.remove_spectral_norm",
}


class BasisModule(nn.Module):
    """A module with tensors theta_k, k < K, along dimension 0: theta(t) = sum_k phi_k(t) theta_k.

    Register them with :meth:`nodal_parameter`, :meth:`nodal_buffer` and :meth:`nodal_count`; refinement, projection
    and interpolation then carry all of them to another basis. A field inside a :class:`ContinuousBlock` also defines
    :meth:`rate`; the block calls the module, ``field(t, x, weights=weights)``, at every evaluation. Keywords after
    ``x`` in the signature of its ``rate`` (a graph, a source) are given to the block, which hands them on.
    """

    family: Family | None = None  # whose solves backends may fuse; such a class also has a ``spec``
    spec: Any

    def __init__(self, basis: Basis) -> None:
        super().__init__()
        self.basis = basis
        self._nodal: dict[str, str] = {}

    def rate(self, weights: FloatWeights, x: torch.Tensor) -> torch.Tensor:
        """dx/dt for basis weights ((k, phi_k(t)), ...), which the time grid resolved for this stage."""
        raise TypeError(f"field: got {type(self).__name__}, accepted in a block: one that defines rate(weights, x)")

    @property
    def spec_now(self) -> Any:
        """The spec of a solve that begins now."""
        return self.spec

    def prepare(self, x: torch.Tensor, **context: Any) -> dict[str, Any]:
        """The keywords of all evaluations of a solve from ``x``, made of those that the block got: here the same.

        A field that computes something once a solve, such as attention at x(0) or a mask of dropout, overrides it.
        """
        return context

    def nodes(self, **context: Any) -> Any:
        """The nodal tensors of a field of a family, [K, ...] each, as its NamedTuple."""
        assert self.family is not None
        return self.family.nodes._make([self.node(name) for name in self.family.nodes._fields])

    def node(self, name: str) -> torch.Tensor | None:
        """A tensor of the module, found quickly where it is plainly one; else computed (pruned, parametrized)."""
        if name in self._parameters:
            return self._parameters[name]
        if name in self._buffers:
            return self._buffers[name]
        return getattr(self, name) if name in self._nodal else None

    def operands(self, **context: Any) -> Any:
        """The tensors of a field of a family that are no functions of depth, as its NamedTuple.

        Args:
            context: the keywords that the block got, such as a graph.
        """
        return () if self.family is None else self.family.operands()

    def why_called(self) -> str:
        """Why a block must call this module at every evaluation; empty if it may read its tensors once a solve."""
        base = next(c for c in type(self).__mro__ if "family" in c.__dict__)
        return why_called(self, base)

    def evaluate(
        self, t: float, x: torch.Tensor, weights: FloatWeights, **context: Any
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Call the module at a stage: the rate, and the statistics of this evaluation if it takes any.

        Raises:
            TypeError, ValueError: the rate is not as ``x`` is.
        """
        rate = self(t, x, weights=weights, **context)
        if not is_rate(rate, x):
            raise rate_error("field", rate, x)
        return rate, ()

    @property
    def statistics_of_batch(self) -> bool:
        """Whether an evaluation takes statistics of the batch."""
        return False

    def update_statistics(self, batch: Any, grid: TimeGrid) -> None:
        """Fold the statistics of every evaluation of a solve on ``grid`` into the running ones."""

    def forward(
        self, t: float | Fraction | torch.Tensor, x: Any, *, weights: FloatWeights | None = None, **context: Any
    ) -> Any:
        """The rate at depth ``t`` in [0, 1]. Hooks of the module get ``(t, x)``, with t a Python float in a block.

        Args:
            t: a number, or a 0-d tensor as ODE solvers give it, which is read once. Beyond [0, 1], where chosen steps
                may go, a tensor finds theta as at the end.
            weights: ((k, phi_k(t)), ...) of a time grid, which a block gives and which then decide; by default those of
                ``t``, of the right cell at a jump.
            context: what :meth:`rate` takes by keyword.
        """
        if weights is None:
            weights = self._weights_of_tensor(t) if isinstance(t, torch.Tensor) else self._weights(Fraction(t))
        return self.rate(weights, x, **context)

    def _weights(self, t: Fraction) -> FloatWeights:
        return tuple((k, float(w)) for k, w in self.basis.weights(t))

    def _weights_of_tensor(self, t: torch.Tensor) -> Any:
        """Weights at ``t``; where a derivative by it is asked for, those that depend on it are 0-d tensors."""
        if t.dim():
            raise TypeError(f"t: got a tensor of shape {tuple(t.shape)}, accepted: a number or a 0-d tensor")
        inside_t = min(max(Fraction(t.item()), Fraction(0)), Fraction(1))
        found = self.basis.on_piece(self.basis.piece(inside_t))
        if not followed(t) or all(len(polynomial) == 1 for _, polynomial in found):
            return self._weights(inside_t)
        inside = t.clamp(0, 1)
        return tuple((k, sum(float(c) * inside**i for i, c in enumerate(polynomial))) for k, polynomial in found)

    def nodal_parameter(self, name: str, value: torch.Tensor | None) -> None:
        """A learnt tensor [K, ...], or ``None`` for an absent one."""
        self.register_parameter(name, None if value is None else nn.Parameter(value))
        if value is not None:
            self._nodal[name] = "parameter"

    def nodal_buffer(self, name: str, value: torch.Tensor | None, *, nonnegative: bool = False) -> None:
        """A state tensor [K, ...]; ``nonnegative`` ones (variances) are clamped at zero after a projection.

        Coefficients of a polynomial are no values and stay as they are.
        """
        self.register_buffer(name, value)
        if value is not None:
            self._nodal[name] = "nonnegative" if nonnegative else "buffer"

    def nodal_count(self, name: str, value: torch.Tensor) -> None:
        """An integer counter [K]; a new node takes the largest count of the nodes it is made from."""
        self.register_buffer(name, value)
        self._nodal[name] = "count"

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name != "_compiled_call_impl"}
        for name in self._nodal:  # one that a hook computes (pruning, weight norm) is an attribute in a graph
            value = state.get(name)
            if isinstance(value, torch.Tensor):
                state[name] = value.detach()
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> BasisModule:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(BasisModule.__getstate__(self), memo))
        return new

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> BasisModule:
        """What ``to``, ``cuda``, ``double`` and the like go through.

        Convolution weights [K, C, C, 3, 3] take a memory format node by node: ``channels_last`` is for rank 4.
        """

        def node_by_node(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.dim() != 5:
                return fn(tensor)
            return fn(tensor.flatten(0, 1)).unflatten(0, tensor.shape[:2])

        return super()._apply(node_by_node, recurse)

    def nodal_names(self, kind: str | None = None) -> tuple[str, ...]:
        """Names of the nodal tensors, of one kind or of all."""
        return tuple(name for name, k in self._nodal.items() if kind in (None, k))

    def no_weight_decay(self) -> set[str]:
        """:func:`contnet_fast.no_weight_decay` of this module."""
        return no_weight_decay(self)

    def check_nodal(self) -> None:
        """Refuse nodal tensors that are computed from others, which no other basis can be given.

        Raises:
            ValueError: naming the tensor, what computes it and how to make it a tensor again.
        """
        for name in self._nodal:
            if name in self._parameters or name in self._buffers:
                continue
            what, cure = "a tensor that another computes", "a parameter"
            if parametrize.is_parametrized(self, name):
                what = f"the parametrization {type(self.parametrizations[name][0]).__name__}"  # type: ignore[index]
                cure = f"torch.nn.utils.parametrize.remove_parametrizations(field, {name!r}) first"
            for hook in self._forward_pre_hooks.values():
                if name == getattr(hook, "_tensor_name", getattr(hook, "name", None)):
                    what = type(hook).__name__
                    remove = _REMOVE.get(what, "torch.nn.utils.prune.remove")
                    cure = f"{remove}(field, {name!r}) first"
            raise ValueError(f"{name}: got {what}, accepted with another basis: {cure}")

    @torch.no_grad()
    def change_basis(self, basis: Basis, matrix: Matrix) -> None:
        """Replace every nodal tensor by ``matrix`` times it, in place of this module.

        Raises:
            ValueError: as :meth:`check_nodal`.
        """
        self.check_nodal()
        self.basis = basis
        for name, kind in self._nodal.items():
            value = getattr(self, name)
            new: torch.Tensor
            if kind == "parameter":
                new = nn.Parameter(apply_matrix(matrix, value), requires_grad=value.requires_grad)
            elif kind == "count":
                sources = [[k for k, w in enumerate(row) if w] for row in matrix]
                new = torch.stack([value[k].amax() if k else torch.zeros_like(value[0]) for k in sources])
            else:
                new = apply_matrix(matrix, value)
                if kind == "nonnegative" and basis.has_nodal_values:
                    new = new.clamp_min(0.0)
            setattr(self, name, new)


def no_weight_decay(net: nn.Module) -> set[str]:
    """Names of the nodal parameters of ``net`` whose nodes are vectors or scalars: norms, biases and skip scalars.

    They are [K, C] or [K], so that the usual rule, no decay for parameters of one dimension, misses them. A model
    whose method of this name returns these names has them left out by timm's ``param_groups_weight_decay`` and
    ``create_optimizer_v2``; our networks and fields have it.
    """
    return {
        f"{path}.{name}" if path else name
        for path, module in net.named_modules()
        if isinstance(module, BasisModule)
        for name in module.nodal_names("parameter")
        if getattr(module, name).dim() <= 2
    }


def parameter_groups(net: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimiser: weights with ``weight_decay``, and norms, biases and scalars without.

    Weights are the parameters of two dimensions or more, a nodal parameter's counted node by node. Parameters that
    need no gradient are left out.

    Raises:
        TypeError, ValueError: ``weight_decay`` is no number >= 0.
    """
    if check_number("weight_decay", weight_decay) < 0:
        raise ValueError(f"weight_decay: got {weight_decay}, accepted: a finite number >= 0")
    without = no_weight_decay(net)
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            groups[parameter.dim() > 1 and name not in without].append(parameter)
    settings = {True: weight_decay, False: 0.0}
    return [{"params": found, "weight_decay": settings[decays]} for decays, found in groups.items() if found]
