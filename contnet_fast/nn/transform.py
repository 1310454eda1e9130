"""Another basis or discretization for every block of a model: refine, project, interpolate, set_discretization."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from ..errors import check_number
from ..schemes.bases import Basis, Matrix, interpolation_matrix, projection_matrix, refinement_matrix
from .basis_module import BasisModule
from .block import ContinuousBlock
from .wrapped import check_rebasable, check_whole

Net = TypeVar("Net", bound=nn.Module)


def blocks(net: nn.Module) -> list[ContinuousBlock]:
    """The ODE blocks of a model, in order of registration."""
    return [module for module in net.modules() if isinstance(module, ContinuousBlock)]


def refine(net: Net, *, variance: float = 0.0) -> Net:
    """A new model with the next finer basis everywhere: K -> 2K, for ``hat`` 2K - 1; theta(t) is unchanged.

    At the same ``n_steps`` the function is the same (bit for bit with piecewise constants). Double ``n_steps`` with
    :func:`set_discretization` to refine in depth as arXiv 2008.02389 does. Running statistics go along.

    Args:
        variance: v > 0 multiplies nodal weights and biases (not norms or skips) by 1 + v * randn, as the published
            experiments did.
    """
    if check_number("variance", variance) < 0:
        raise ValueError(f"variance: got {variance}, accepted: a finite number >= 0")
    new = _rebase(net, Basis.refined, lambda old, _: refinement_matrix(old))
    if variance:
        with torch.no_grad():
            for module in _basis_modules(new):
                for name in module.nodal_names("parameter"):
                    if name.startswith("conv"):
                        value = getattr(module, name)
                        value.mul_(1.0 + variance * torch.randn_like(value))
    return new


def project(net: Net, *, n_basis: int, basis: str | None = None) -> Net:
    """A new model whose functions of depth are the L2 projections onto another basis (arXiv 2106.10820).

    With fewer functions this is compression without retraining; running statistics are projected along.
    ``basis=None`` keeps the kind of basis.
    """
    return _rebase(net, lambda old: Basis(old.name if basis is None else basis, n_basis), projection_matrix)


def interpolate(net: Net, *, n_basis: int, basis: str | None = None) -> Net:
    """Return what :func:`project` does, by interpolation at the nodes of the new basis."""
    return _rebase(net, lambda old: Basis(old.name if basis is None else basis, n_basis), interpolation_matrix)


def set_discretization(
    net: Net, *, scheme: str | None = None, n_steps: int | None = None, edge: str | None = None
) -> Net:
    """Give every block another scheme, step count or edge rule, in place; parameters are untouched.

    Returns:
        ``net`` itself. Nothing changes if an argument is refused.
    """
    found = blocks(net)
    if not found:
        raise ValueError(f"net: got {type(net).__name__} without a ContinuousBlock, accepted: a model with blocks")
    before = [(block.scheme, block.n_steps, block.edge) for block in found]
    try:
        for block in found:
            block.set_discretization(scheme=scheme, n_steps=n_steps, edge=edge)
    except (TypeError, ValueError):
        for block, (old_scheme, old_steps, old_edge) in zip(found, before, strict=True):
            block.set_discretization(scheme=old_scheme, n_steps=old_steps, edge=old_edge)
        raise
    return net


def _basis_modules(net: nn.Module) -> list[BasisModule]:
    found = [module for module in net.modules() if isinstance(module, BasisModule)]
    if not found:
        raise ValueError(f"net: got {type(net).__name__} without a function of depth, accepted: a model with blocks")
    return found


def _rebase(net: Net, target: Callable[[Basis], Basis], matrix: Callable[[Basis, Basis], Matrix]) -> Net:
    plans = [(module.basis, target(module.basis)) for module in _basis_modules(net)]
    check_rebasable(net)
    for path, module in net.named_modules():
        if isinstance(module, BasisModule):
            module.check_nodal()
            for name in module.nodal_names():
                check_whole(f"net.{path}.{name}".replace("..", "."), getattr(module, name), module.basis.size)
    new = copy.deepcopy(net)
    shared: dict[nn.Parameter, nn.Parameter] = {}
    for module, (old, wanted) in zip(_basis_modules(new), plans, strict=True):
        before = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        module.change_basis(wanted, matrix(old, wanted))
        for name, parameter in before.items():  # what fields share stays shared
            setattr(module, name, shared.setdefault(parameter, getattr(module, name)))
    for block in blocks(new):
        block.refresh()
    return new


set_manifestation = set_discretization  # the word of arXiv 2008.02389
