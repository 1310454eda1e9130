"""Optimisers and schedulers that follow their parameters into another basis."""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils._pytree import tree_leaves

from ..errors import check_choice, warn
from ..schemes.bases import Matrix, apply_matrix, projection_matrix
from .basis_module import BasisModule
from .wrapped import unwrapped

_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "row_var", "col_var")
_SIZES = ("exp_inf",)


def carry_optimizer(
    optimizer: torch.optim.Optimizer,
    old_net: nn.Module,
    new_net: nn.Module,
    *,
    state: str = "carry",
    schedulers: Iterable[Any] | None = None,
) -> torch.optim.Optimizer:
    """The optimiser of ``old_net`` for ``new_net``, which came from it by :func:`refine` or :func:`project`.

    Hyperparameters and parameter groups are kept; the old optimiser is left alone.

    Args:
        state: with ``"carry"`` momentum buffers and the like follow their parameters into the new basis, by the exact
            L2 projection; second moments by the absolute values of its weights, so that they stay positive and no
            step of Adam is longer than those before. With ``"reset"`` all state is dropped, as the code published
            with arXiv 2008.02389 does.
        schedulers: learning rate schedulers that drive ``optimizer``, of torch or of others, chained or nested: from
            now on they drive the new one. Without them a warning says so if torch's schedulers drive the old one;
            ``()`` says that this is meant. A GradScaler needs nothing.

    Raises:
        ValueError: an optimised parameter that ``old_net`` or ``new_net`` does not have; state that belongs to no
            node (LBFGS, 8-bit optimisers), which ``state="reset"`` drops; a scheduler of another optimiser. Nothing is
            changed then.
    """
    check_choice("state", state, ("carry", "reset"))
    old_net, new_net = unwrapped(old_net), unwrapped(new_net)
    names = {id(parameter): name for name, parameter in old_net.named_parameters()}
    targets = dict(new_net.named_parameters())
    places = _places(optimizer, schedulers)
    new = _same_settings(optimizer, names, targets)
    if state == "carry":
        matrices = _matrices(old_net, new_net)
        for parameter, values in optimizer.state.items():
            name = names.get(id(parameter))
            if name is None:
                continue  # of a parameter that was taken out of the groups
            carry = _Carry(type(optimizer).__name__, name, parameter, targets[name], matrices.get(name))
            new.state[targets[name]] = carry.all(values, alone=not matrices)
    if _count_steps_alike(optimizer, new) and schedulers is None:
        warn(
            "optimizer: a learning rate scheduler drives the old optimiser, so the new one keeps its rate; pass "
            "schedulers=[...] to carry_optimizer, or () if that is meant"
        )
    for holder, key in places:
        holder[key] = new
    return new


def _count_steps_alike(optimizer: torch.optim.Optimizer, new: torch.optim.Optimizer) -> bool:
    """Whether a scheduler of torch was made for ``optimizer``; then ``new`` is what such a scheduler expects.

    They wrap ``step`` of their optimiser, to warn where a scheduler steps before it; making a scheduler does that.
    """
    if not hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        return False
    ExponentialLR(new, gamma=1.0)
    new._opt_called = getattr(optimizer, "_opt_called", False)  # type: ignore[attr-defined]
    return True


def _same_settings(
    optimizer: torch.optim.Optimizer, names: dict[int, str], targets: dict[str, nn.Parameter]
) -> torch.optim.Optimizer:
    groups = []
    for group in optimizer.param_groups:
        missing = [i for i, p in enumerate(group["params"]) if names.get(id(p)) not in targets]
        if missing:
            raise ValueError(
                f"optimizer: got {len(missing)} parameters that old_net or new_net lacks, accepted: parameters of both"
            )
        settings = {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
        groups.append({**settings, "params": [targets[names[id(p)]] for p in group["params"]]})
    kind = type(optimizer)
    accepted = inspect.signature(kind.__init__).parameters
    try:
        return kind(groups, **{k: v for k, v in optimizer.defaults.items() if k in accepted})
    except TypeError as error:
        raise ValueError(
            f"optimizer: got {kind.__name__}, accepted: one that its parameter groups and defaults make again; "
            f"make it for new_net yourself ({error})"
        ) from None


def _places(optimizer: torch.optim.Optimizer, schedulers: Iterable[Any] | None) -> list[tuple[Any, Any]]:
    """(container, key) of every reference to ``optimizer`` in the schedulers."""
    found = []
    for i, scheduler in enumerate(schedulers or ()):
        places = list(_references(scheduler, optimizer, set()))
        if not places:
            raise ValueError(
                f"schedulers[{i}]: got {type(scheduler).__name__} that does not drive optimizer, "
                "accepted: a scheduler of optimizer"
            )
        found += places
    return found


def _references(holder: Any, wanted: object, seen: set[int]) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every reference to ``wanted`` in an object and what it holds."""
    others = (torch.Tensor, nn.Module, torch.optim.Optimizer, type, types.ModuleType)
    container = holder if isinstance(holder, (list, dict)) else getattr(holder, "__dict__", None)
    if container is None or id(container) in seen or isinstance(holder, others) or inspect.isroutine(holder):
        return
    seen.add(id(container))
    for key, value in list(container.items() if isinstance(container, dict) else enumerate(container)):
        if value is wanted:
            yield container, key
        elif isinstance(value, tuple):
            for item in value:
                yield from _references(item, wanted, seen)
        else:
            yield from _references(value, wanted, seen)


def _matrices(old_net: nn.Module, new_net: nn.Module) -> dict[str, Matrix]:
    """Parameter name -> the exact map of its nodes, for parameters whose basis changed."""
    new_modules = dict(new_net.named_modules())
    matrices = {}
    for path, module in old_net.named_modules():
        other = new_modules.get(path)
        if isinstance(module, BasisModule) and isinstance(other, BasisModule) and other.basis != module.basis:
            for name in module.nodal_names("parameter"):
                matrices[f"{path}.{name}" if path else name] = projection_matrix(module.basis, other.basis)
    return matrices


def _for_state(key: str, matrix: Matrix) -> Matrix:
    """The map of a state: that of the parameters, but for squares and sizes of gradients one without negative weights.

    By the inequality of Cauchy and Schwarz, m_i = sum_k w_ik m_k and v_i = sum_k |w_ik| * sum_k |w_ik| v_k give
    m_i^2 / v_i <= max_k m_k^2 / v_k. Rows without negative weights sum to one, and stay as they are.
    """
    if key not in (*_SQUARES, *_SIZES):
        return matrix
    positive = [[abs(w) for w in row] for row in matrix]
    return tuple(tuple(w * (sum(row) if key in _SQUARES else 1) for w in row) for row in positive)


@dataclass(frozen=True)
class _Carry:
    """Turn the state of one parameter into that of its successor; ``matrix`` maps the nodes where the basis changed."""

    optimizer: str
    name: str
    old: torch.Tensor
    new: torch.Tensor
    matrix: Matrix | None

    def all(self, state: dict[str, Any], *, alone: bool) -> dict[str, Any]:
        """The state of the new parameter; ``alone``: no parameter of the optimiser changes its basis."""
        if self.matrix is not None or self.old.shape != self.new.shape:
            return {key: self._mapped(key, value) for key, value in state.items()}
        for key, value in () if alone else state.items():
            for leaf in tree_leaves(value):
                if isinstance(leaf, torch.Tensor) and leaf.numel() > self.old.numel():  # of all parameters together
                    raise self._refusal(key, f"{leaf.numel()} values")
        return copy.deepcopy(state)

    def _mapped(self, key: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            if value is None or isinstance(value, (bool, int, float, str)):
                return value
            raise self._refusal(key, type(value).__name__)
        shape = self.old.shape
        # the parameter's shape, or a factor of it: dimensions that were averaged over have size 1
        fits = value.dim() == len(shape) and all(n in (1, m) for n, m in zip(value.shape, shape, strict=True))
        over_nodes = key == "col_var" and len(shape) == 2  # Adafactor averages over the last dimension but one
        by_node = fits and value.shape[0] == shape[0] and not over_nodes
        if by_node and self.matrix is not None and value.is_floating_point():
            return apply_matrix(_for_state(key, self.matrix), value)
        if value.numel() == 1 or (fits and value.shape[0] == 1):
            return value.clone()
        raise self._refusal(key, f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}")

    def _refusal(self, key: str, got: str) -> ValueError:
        return ValueError(
            f"optimizer: got {self.optimizer} with state {key!r} ({got}) of {self.name}, accepted where a basis "
            f"changes: floats of the parameter's shape {tuple(self.old.shape)}; state='reset' drops it"
        )
