"""What is asked of the backends: every fact about a call that the choice of one may use."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch


class Facts(NamedTuple):
    """What backends may ask about the field of a solve.

    Attributes:
        words: the settings by which a table of measured times tells fields apart, such as its norm.
        width: channels, or features, of a site.
        couples_batch: an evaluation needs statistics of the whole batch.
        couples_sites: an evaluation needs statistics of all sites of a sample.
        couples_ranks: an evaluation needs statistics of the batches of other processes too.
    """

    words: tuple[str, ...] = ()
    width: int = 0
    couples_batch: bool = False
    couples_sites: bool = False
    couples_ranks: bool = False


NO_FACTS = Facts()
PARTS = ("graph_attention", "conv_unit", "conv_stem")  # ops that are parts of a field or of a module, which calls them
PLAIN = (
    "conv_unit",
    "conv_stem",
)  # those of them that PyTorch's own modules compute where no backend is faster, without a word


@dataclass(frozen=True)
class Problem:
    """Every fact that the choice of a backend may use.

    Attributes:
        op: ``"rk_solve"``, ``"odeint"``, ``"rk_combine"``, ``"rk_combine_error"``, the solve of a field family, such
            as ``"conv_solve"``, or one of ``PARTS``.
        device: with its index, so that a machine with different GPUs is asked about the right one.
        dtype: of the state. compute_dtype: of the field's products, another one under autocast.
        shape: of the state. leaf_dtypes: of a pytree of several tensors, whose ``dtype`` is that of the first and whose
            ``shape`` is the number of all elements. stages, n_steps: of the solve; 0 steps for a single combination.
        family: name of the field family, empty for any other callable. facts: about the field.
        needs_grad: a backward pass may follow.
        compensated: the solve hands on what the rounding of its steps loses.
        called: why the field must be called at every evaluation, which no fused level does; empty if it need not be.
    """

    op: str
    device: torch.device
    dtype: torch.dtype
    compute_dtype: torch.dtype
    shape: tuple[int, ...]
    stages: int
    n_steps: int = 0
    scheme: str = ""
    basis: str = ""
    family: str = ""
    facts: Facts = NO_FACTS
    needs_grad: bool = False
    checkpoint: str = "none"
    leaf_dtypes: tuple[torch.dtype, ...] = ()
    compensated: bool = False
    called: str = ""

    @property
    def is_part(self) -> bool:
        """Whether this is a part of a field or of a module, served at level stage or by PyTorch."""
        return self.op in PARTS

    def values(self) -> tuple[Any, ...]:
        """The fields in order, which ``Problem(*values)`` takes: what a compiler can hold as a constant."""
        return tuple(getattr(self, f.name) for f in fields(self))
