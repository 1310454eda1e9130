"""Weights of the PyTorch code published with arXiv 2008.02389, read into our models.

That code stores a network as ``net.<i>. ...`` (a Sequential): stem convolution and norm, then three times a stitch
and an ODE block, then the head. Under the module of a block or stitch the names are these; T is the number of cells
(``time_d``), and what comes between ``net.<i>.`` and these names does not matter:

=========================================== =========================== ===================================
published                                   shape                       here
=========================================== =========================== ===================================
block ``L1.weight``, ``L1.bias``            (T, C, C, 3, 3), (T, C)     ``field.conv1_weight``, ``_bias``
block ``L2.weight``, ``L2.bias``            (T, C, C, 3, 3), (T, C)     ``field.conv2_weight``, ``_bias``
block ``bn1.bns.<k>.weight``, ``.bias``     (C,) for each cell k < T    ``field.norm1_weight[k]``, ``_bias[k]``
block ``bn1.bns.<k>.running_mean``, ``_var`` (C,)                       ``field.norm1_mean[k]``, ``_var[k]``
block ``bn2.bns.<k>. ...``                  the same                    ``field.norm2_...[k]``
block ``skip_init.weight``                  (T,)                        ``field.skip``
stitch ``L1``, ``L2``                       (C, C', 3, 3)               ``conv1``, ``conv2``
stitch ``bn1``, and ``bn2`` in order "pre"  (C',)                       ``norm1``, ``norm2``
stitch ``downsample.weight``                (C, C', 1, 1)               ``shortcut.weight``
first and second module of ``net``          (a, in, 3, 3), (a,)         ``stem.0``, ``stem.1``
head batch norm (order "pre")               (4a,)                       ``head_norm``
last matrix                                 (classes, 4a)               ``classifier``
=========================================== =========================== ===================================

Dead tensors of the published code (the second norm of a post-activation stitch, a pre-activation stitch's skip
scalar) are dropped. In its pre-activation blocks the norms are applied before the convolutions; the names are the
same. ``time_epsilon`` is not in a state dict: pass it as ``eps``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from .continuousnet import ContinuousNet

_STATISTICS = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def load_reference_checkpoint(
    state_dict: Mapping[str, torch.Tensor], *, eps: float | None = None, **options: Any
) -> ContinuousNet:
    """A :class:`ContinuousNet` with the weights of a published state dict.

    Widths, number of cells, classes, order and norms are read from the shapes. Blocks use ``edge="reference_fp32"``
    unless told otherwise, because published weights were trained with that cell rule.

    Args:
        state_dict: names to tensors, as described in this module.
        eps: the published ``time_epsilon``; default, as there, the number of cells.
        options: further arguments of :class:`ContinuousNet`: ``scheme``, ``n_steps`` (default: the number of cells),
            ``edge``, ``checkpoint``, ``backend``.

    Raises:
        TypeError: not a mapping. ValueError: naming what is missing.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict: got {type(state_dict).__name__}, accepted: a mapping of names to tensors")
    weights = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    weights = {name: tensor for name, tensor in weights.items() if name.startswith("net.")}
    fields = _prefixes(weights, 5)
    stitches = _prefixes(weights, 4)
    if len(fields) != 3 or len(stitches) != 3:
        raise ValueError(
            f"state_dict: got {len(fields)} blocks (net.<i>...L1.weight with 5 dimensions) and {len(stitches)} "
            "stitches (with 4), accepted: 3 and 3"
        )
    first = _get(weights, fields[0] + "L1.weight")
    head = [n for n in weights if weights[n].dim() == 2 and not n.startswith(tuple(fields))]
    if len(head) != 1:
        raise ValueError(f"state_dict: got {len(head)} matrices, accepted: 1, the classifier's weight")
    stem = _get(weights, "net.0.weight")
    batch = fields[0] + "bn1.bns.0.weight" in weights
    norms = _plain_norms(weights, {f"{p}" for p in (*fields, *stitches)})
    order = _order(weights, stitches[1], norms, batch=batch)
    n_basis = int(first.shape[0])
    net = ContinuousNet(
        int(stem.shape[1]),
        int(weights[head[0]].shape[0]),
        width=int(first.shape[1]),
        stem_width=int(stem.shape[0]),
        n_basis=n_basis,
        order=order,
        norm="batch" if batch else "none",
        skip_init=fields[0] + "skip_init.weight" in weights,
        eps=float(n_basis) if eps is None else eps,
        **{"n_steps": n_basis, "edge": "reference_fp32", **options},
    )
    mapped = {"stem.0.weight": stem}
    for ours, prefix in zip((0, 2, 4), stitches, strict=True):
        _map_stitch(mapped, f"stages.{ours}.", weights, prefix, order=order, batch=batch)
    for ours, prefix in zip((1, 3, 5), fields, strict=True):
        _map_field(mapped, f"stages.{ours}.field.", weights, prefix, n_basis=n_basis, batch=batch)
    for name, theirs in zip(("stem.1.", "head_norm."), norms, strict=False):
        _copy_module(mapped, name, weights, theirs)
    _copy_module(mapped, "classifier.", weights, head[0].removesuffix("weight"))
    net.load_state_dict(mapped)
    return net


def _prefixes(weights: Mapping[str, torch.Tensor], dim: int) -> list[str]:
    """What stands before ``L1.weight``, in the order of the Sequential."""
    found = []
    for name, tensor in weights.items():
        match = re.fullmatch(r"(net\.(\d+)\.(?:.*\.)?)L1\.weight", name)
        if match and tensor.dim() == dim:
            found.append((int(match[2]), match[1]))
    return [prefix for _, prefix in sorted(found)]


def _plain_norms(weights: Mapping[str, torch.Tensor], taken: set[str]) -> list[str]:
    """Prefixes of the batch norms outside blocks and stitches: the stem's, then the head's."""
    names = [n.removesuffix("running_mean") for n in weights if n.endswith(".running_mean")]
    return [n for n in names if not any(n.startswith(prefix) for prefix in taken)]


def _order(weights: Mapping[str, torch.Tensor], stitch: str, norms: list[str], *, batch: bool) -> str:
    """Pre-activation stitches normalise their input, so their first norm is narrower than the output."""
    if not batch:
        return "pre" if norms else "post"
    narrow = _get(weights, stitch + "bn1.weight").shape[0] < _get(weights, stitch + "L1.weight").shape[0]
    return "pre" if narrow else "post"


def _get(weights: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    if name not in weights:
        raise ValueError(f"state_dict: got no {name!r}, accepted: the names of the published code")
    return weights[name]


def _copy_module(mapped: dict[str, torch.Tensor], ours: str, weights: Mapping[str, torch.Tensor], theirs: str) -> None:
    for name, tensor in weights.items():
        if name.startswith(theirs):
            mapped[ours + name.removeprefix(theirs)] = tensor


def _map_stitch(
    mapped: dict[str, torch.Tensor],
    ours: str,
    weights: Mapping[str, torch.Tensor],
    theirs: str,
    *,
    order: str,
    batch: bool,
) -> None:
    pairs = [("conv1.", "L1."), ("conv2.", "L2."), ("shortcut.", "downsample.")]
    if batch:
        pairs += [("norm1.", "bn1."), ("norm2.", "bn2.")] if order == "pre" else [("norm1.", "bn1.")]
    for mine, other in pairs:
        _copy_module(mapped, ours + mine, weights, theirs + other)


def _map_field(
    mapped: dict[str, torch.Tensor],
    ours: str,
    weights: Mapping[str, torch.Tensor],
    theirs: str,
    *,
    n_basis: int,
    batch: bool,
) -> None:
    for i in (1, 2):
        for part in ("weight", "bias"):
            mapped[f"{ours}conv{i}_{part}"] = _get(weights, f"{theirs}L{i}.{part}")
        if batch:
            for part, mine in _STATISTICS.items():
                cells = [_get(weights, f"{theirs}bn{i}.bns.{k}.{part}") for k in range(n_basis)]
                mapped[f"{ours}norm{i}_{mine}"] = torch.stack(cells)
    if batch:
        counts = [weights.get(f"{theirs}bn1.bns.{k}.num_batches_tracked", torch.tensor(0)) for k in range(n_basis)]
        mapped[f"{ours}num_batches_tracked"] = torch.stack(counts)
    if theirs + "skip_init.weight" in weights:
        mapped[ours + "skip"] = weights[theirs + "skip_init.weight"]
