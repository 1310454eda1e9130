"""Weights of the PyTorch code published with arXiv 2008.02389, read into our models.

That code stores a network as ``net.<i>. ...`` (a Sequential): stem convolution and norm, then three times a stitch
and an ODE block, then the head. Under the module of a block or stitch the names are these; T is the number of cells
(``time_d``), and what comes between ``net.<i>.`` and these names does not matter:

============================================ =========================== ===================================
published                                    shape                       here
============================================ =========================== ===================================
block ``L1.weight``, ``L1.bias``             (T, C, C, 3, 3), (T, C)     ``field.conv1_weight``, ``_bias``
block ``L2.weight``, ``L2.bias``             (T, C, C, 3, 3), (T, C)     ``field.conv2_weight``, ``_bias``
block ``bn1.bns.<k>.weight``, ``.bias``      (C,) for each cell k < T    ``field.norm1_weight[k]``, ``_bias[k]``
block ``bn1.bns.<k>.running_mean``, ``_var`` (C,)                        ``field.norm1_mean[k]``, ``_var[k]``
block ``bn2.bns.<k>. ...``                   the same                    ``field.norm2_...[k]``
block ``skip_init.weight``                   (T,)                        ``field.skip``
stitch ``L1``, ``L2``                        (C, C', 3, 3)               ``conv1``, ``conv2``
stitch ``bn1``, and ``bn2`` in order "pre"   (C',)                       ``norm1``, ``norm2``
stitch ``downsample.weight``                 (C, C', 1, 1)               ``shortcut.weight``
stitch ``skip_init``, in order "post"        (1,)                        ``skip``
first and second module of ``net``           (a, in, 3, 3), (a,)         ``stem.0``, ``stem.1``
head batch norm (order "pre")                (4a,)                       ``head_norm``
last matrix                                  (classes, 4a)               ``classifier``
============================================ =========================== ===================================

Every tensor is either in this table or dead: the published code stores it and computes nothing from it. Dead are
``bn2`` of a post-activation stitch, ``skip_init`` of a pre-activation stitch, and ``num_batches_tracked`` of a block's
``bn2``, which counts what that of ``bn1`` does. Any other tensor is an error.

In its pre-activation blocks the norms are applied before the convolutions; the names are the same. ``edge`` is
``"reference_fp32"`` unless told otherwise, because published weights were trained with that cell rule.

The code had another layout when the paper appeared: a 7x7 stem with padding 1, no stitch before the first block, a
head norm with a ReLU behind it, post-activation stitches that apply ``bn2``, and optionally one batch norm for all t.
Its state dicts do not say in which order its blocks compute, so they are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..errors import check_count, check_number
from .continuousnet import ContinuousNet

_PREFIXES = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name
_STATISTICS = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def load_reference_checkpoint(
    state_dict: Mapping[str, torch.Tensor],
    *,
    initial_cells: int | None = None,
    eps: float | None = None,
    steps_per_cell: int = 1,
    **options: Any,
) -> ContinuousNet:
    """A :class:`ContinuousNet` with the weights of a published state dict.

    Widths, number of cells, classes, order and norms are read from the shapes. Three settings of the run that trained
    the weights are not in a state dict; their defaults are those of a run with default settings and no refinement.

    Args:
        state_dict: names to tensors, as described in this module.
        initial_cells: the published ``time_d`` before any refinement; default: the number of cells in the state dict.
        eps: the published ``time_epsilon``; default, as there, ``initial_cells``. The stitches' branches are scaled
            by eps / (initial_cells * steps_per_cell), which refinement leaves as it is.
        steps_per_cell: the published ``n_time_steps_per``.
        options: further arguments of :class:`ContinuousNet`: ``scheme``, ``n_steps`` (default: the number of cells
            times ``steps_per_cell``), ``edge``, ``checkpoint``, ``backend``.

    Raises:
        TypeError: not a mapping to tensors. ValueError: naming a tensor that is missing, that nothing reads or that
            has another shape, or the layout of the paper's own time.
    """
    weights = _Weights(state_dict)
    fields, stitches = weights.prefixes(5), weights.prefixes(4)
    norms = weights.plain_norms((*fields, *stitches))
    _refuse_the_papers_time(weights, fields, stitches, norms)
    if len(fields) != 3 or len(stitches) != 3:
        raise ValueError(
            f"state_dict: got {len(fields)} blocks (net.<i>...L1.weight with 5 dimensions) and {len(stitches)} "
            "stitches (with 4), accepted: 3 and 3"
        )
    head = [n for n, t in weights.tensors.items() if t.dim() == 2 and not n.startswith(tuple(fields))]
    if len(head) != 1:
        raise ValueError(f"state_dict: got {len(head)} matrices, accepted: 1, the classifier's weight")
    first, stem = weights.take(fields[0] + "L1.weight"), weights.take("net.0.weight")
    batch = fields[0] + "bn1.bns.0.weight" in weights.tensors
    order = _order(weights, stitches[1]) if batch else "post"
    n_basis = int(first.shape[0])
    cells = n_basis if initial_cells is None else check_count("initial_cells", initial_cells)
    check_count("steps_per_cell", steps_per_cell)
    scale = float(cells) if eps is None else check_number("eps", eps)
    net = ContinuousNet(
        int(stem.shape[1]),
        int(weights.tensors[head[0]].shape[0]),
        width=int(first.shape[1]),
        stem_width=int(stem.shape[0]),
        n_basis=n_basis,
        order=order,
        norm="batch" if batch else "none",
        skip_init=fields[0] + "skip_init.weight" in weights.tensors,
        eps=scale,
        stitch_eps=scale / (cells * steps_per_cell),
        **{"n_steps": n_basis * steps_per_cell, "edge": "reference_fp32", **options},
    )
    mapped = {"stem.0.weight": stem}
    for ours, prefix in zip((0, 2, 4), stitches, strict=True):
        mapped |= _stitch(f"stages.{ours}.", weights, prefix, order=order)
    for ours, prefix in zip((1, 3, 5), fields, strict=True):
        mapped |= _field(f"stages.{ours}.field.", weights, prefix, n_basis=n_basis, batch=batch)
    for name, theirs in zip(("stem.1.", "head_norm."), norms if batch else (), strict=False):
        mapped |= weights.module(name, theirs)
    mapped |= weights.module("classifier.", head[0].removesuffix("weight"))
    weights.check_all_taken()
    try:
        net.load_state_dict(mapped)
    except RuntimeError as error:
        raise ValueError(
            f"state_dict: got shapes that do not fit together, accepted: a whole network ({error})"
        ) from None
    return net


class _Weights:
    """A published state dict that knows which of its tensors were taken."""

    def __init__(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict: got {type(state_dict).__name__}, accepted: a mapping of names to tensors")
        for name, tensor in state_dict.items():
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"state_dict: got {name!r} of type {type(tensor).__name__}, accepted: tensors")
        self.tensors = {_plain(name): tensor for name, tensor in state_dict.items()}
        self.taken: set[str] = set()

    def take(self, name: str) -> torch.Tensor:
        """The tensor of this name, which must be there."""
        if name not in self.tensors:
            raise ValueError(f"state_dict: got no {name!r}, accepted: the names of the published code")
        self.taken.add(name)
        return self.tensors[name]

    def module(self, ours: str, theirs: str) -> dict[str, torch.Tensor]:
        """All tensors of a module, under our name for it."""
        names = [name for name in self.tensors if name.startswith(theirs)]
        return {ours + name.removeprefix(theirs): self.take(name) for name in names}

    def prefixes(self, dim: int) -> list[str]:
        """What stands before ``L1.weight``, in the order of the Sequential."""
        found = []
        for name, tensor in self.tensors.items():
            match = re.fullmatch(r"(net\.(\d+)\.(?:.*\.)?)L1\.weight", name)
            if match and tensor.dim() == dim:
                found.append((int(match[2]), match[1]))
        return [prefix for _, prefix in sorted(found)]

    def plain_norms(self, taken: Iterable[str]) -> list[str]:
        """Prefixes of the batch norms outside blocks and stitches: the stem's, then the head's."""
        names = [n.removesuffix("running_mean") for n in self.tensors if n.endswith(".running_mean")]
        return [n for n in names if not n.startswith(tuple(taken))]

    def check_all_taken(self) -> None:
        """Raise for tensors that nothing took."""
        left = [name for name in self.tensors if name not in self.taken]
        if left:
            shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
            raise ValueError(
                f"state_dict: got {shown}, which nothing here reads, "
                "accepted: the names in the table of contnet_fast.models.published"
            )


def _plain(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def _refuse_the_papers_time(weights: _Weights, fields: list[str], stitches: list[str], norms: list[str]) -> None:
    signs = []
    stem = weights.tensors.get("net.0.weight")
    if stem is not None and stem.dim() == 4 and tuple(stem.shape[2:]) == (7, 7):
        signs.append(f"net.0.weight of shape {tuple(stem.shape)}")
    if len(fields) == 3 and len(stitches) == 2:
        signs.append("2 stitches, none before the first block")
    if len(norms) == 2 and len(stitches) > 1 and _order(weights, stitches[1]) == "post":
        signs.append(f"{norms[1]}weight, a norm after the last block of a post-activation network")
    signs += [f"{f}bn1.weight, a norm shared over t" for f in fields[:1] if f + "bn1.weight" in weights.tensors]
    if signs:
        raise ValueError(
            f"state_dict: got the layout of the code at the time of arXiv 2008.02389 ({'; '.join(signs)}), "
            "accepted: that of the code published later, with a 3x3 stem, three stitches and a batch norm for each cell"
        )


def _order(weights: _Weights, stitch: str) -> str:
    """Pre-activation stitches normalise their input, so their first norm is narrower than the output."""
    norm, conv = (weights.tensors.get(stitch + name) for name in ("bn1.weight", "L1.weight"))
    return "pre" if norm is not None and conv is not None and norm.shape[0] < conv.shape[0] else "post"


def _stitch(ours: str, weights: _Weights, theirs: str, *, order: str) -> dict[str, torch.Tensor]:
    pairs = [("conv1.", "L1."), ("conv2.", "L2."), ("shortcut.", "downsample."), ("norm1.", "bn1."), ("norm2.", "bn2.")]
    mapped: dict[str, torch.Tensor] = {}
    for mine, other in pairs:
        mapped |= weights.module(ours + mine, theirs + other)
    for name in ("skip_init", "skip_init.weight"):
        if theirs + name in weights.tensors:
            mapped[ours + "skip"] = weights.take(theirs + name)
    dead = "norm2." if order == "post" else "skip"
    return {name: tensor for name, tensor in mapped.items() if not name.startswith(ours + dead)}


def _field(ours: str, weights: _Weights, theirs: str, *, n_basis: int, batch: bool) -> dict[str, torch.Tensor]:
    mapped: dict[str, torch.Tensor] = {}

    def cells(norm: str, part: str) -> torch.Tensor:
        return torch.stack([weights.take(f"{theirs}{norm}.bns.{k}.{part}") for k in range(n_basis)])

    for i in (1, 2):
        for part in ("weight", "bias"):
            mapped[f"{ours}conv{i}_{part}"] = weights.take(f"{theirs}L{i}.{part}")
        for part, mine in _STATISTICS.items() if batch else ():
            mapped[f"{ours}norm{i}_{mine}"] = cells(f"bn{i}", part)
    if batch and f"{theirs}bn1.bns.0.num_batches_tracked" in weights.tensors:
        # the two norms of a field are called equally often, so one count is kept
        counts = [cells(f"bn{i}", "num_batches_tracked") for i in (1, 2)]
        mapped[f"{ours}num_batches_tracked"] = counts[0]
    elif batch:
        mapped[f"{ours}num_batches_tracked"] = torch.zeros(n_basis, dtype=torch.long)
    if theirs + "skip_init.weight" in weights.tensors:
        mapped[f"{ours}skip"] = weights.take(f"{theirs}skip_init.weight")
    return mapped
