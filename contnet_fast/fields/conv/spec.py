"""What a convolutional vector field is, as data: shared by the reference, the ops and every backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ...errors import check_choice, check_count, check_number
from ...reference.ranks import ALONE, Ranks
from ..family import Settings

ORDERS = ("pre", "post")
NORMS = ("batch", "group", "layer", "none")


@dataclass(frozen=True)
class ConvSpec:
    """R(x, theta) of dx/dt = eps * R: two 3x3 convolutions, stride 1, zero padding 1.

    ``order="pre"``: norm, relu, conv, norm, relu, conv. ``order="post"``: conv, relu, norm, conv, relu, norm
    (the two orders of arXiv 2008.02389). Padding zeros enter after normalisation. ``skip_init`` multiplies the
    result by a learnt scalar per basis function.

    Attributes:
        channels: C, the same in and out.
        norm: ``"batch"`` (statistics per basis function), ``"group"``, ``"layer"`` (one group), ``"none"``.
        groups: groups of the group norm; it divides ``channels``.
        norm_eps: added to the variance.
        ranks: whose batches together give the statistics of batch norm in training.
    """

    channels: int
    order: str = "pre"
    norm: str = "batch"
    bias: bool = True
    skip_init: bool = False
    eps: float = 1.0
    norm_eps: float = 1e-5
    groups: int = 1
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        check_count("channels", self.channels)
        check_choice("order", self.order, ORDERS)
        check_choice("norm", self.norm, NORMS)
        check_number("eps", self.eps)
        check_number("norm_eps", self.norm_eps, positive=True)
        check_count("groups", self.groups)
        if self.channels % self.groups:
            raise ValueError(f"groups: got {self.groups}, accepted: a divisor of channels={self.channels}")

    def pack(self) -> Settings:
        """Words (order, norm), integers (channels, groups, bias, skip_init) and numbers (eps, norm_eps).

        Across ranks the name of their group is another word, and their number another integer.
        """
        words: tuple[str, ...] = (self.order, self.norm)
        integers: tuple[int, ...] = (self.channels, self.groups, int(self.bias), int(self.skip_init))
        if self.ranks != ALONE:
            words, integers = (*words, self.ranks.group), (*integers, self.ranks.size)
        return Settings(words, integers, (self.eps, self.norm_eps))

    @classmethod
    def unpack(cls, settings: Settings) -> ConvSpec:
        """The inverse of :meth:`pack`.

        Raises:
            TypeError, ValueError: naming what is not accepted.
        """
        (order, norm, *group), (channels, groups, bias, skip, *size), (eps, norm_eps) = settings
        ranks = Ranks(group[0], size[0]) if group else ALONE
        return cls(channels, order, norm, bool(bias), bool(skip), eps, norm_eps, groups, ranks)


class ConvNodes(NamedTuple):
    """Nodal values of theta(t); dimension 0 is the basis function k < K. Absent parts are ``None``.

    Shapes: conv weights [K, C, C, 3, 3], conv biases and everything of the norms [K, C], skip [K]. ``*_mean`` and
    ``*_var`` are the running statistics of batch norm and carry no gradient.
    """

    conv1_weight: torch.Tensor
    conv1_bias: torch.Tensor | None
    conv2_weight: torch.Tensor
    conv2_bias: torch.Tensor | None
    norm1_weight: torch.Tensor | None = None
    norm1_bias: torch.Tensor | None = None
    norm1_mean: torch.Tensor | None = None
    norm1_var: torch.Tensor | None = None
    norm2_weight: torch.Tensor | None = None
    norm2_bias: torch.Tensor | None = None
    norm2_mean: torch.Tensor | None = None
    norm2_var: torch.Tensor | None = None
    skip: torch.Tensor | None = None


class BatchStatistics(NamedTuple):
    """Batch statistics of every field evaluation of a solve, in order: [evaluations, C] each, no gradient.

    ``var`` is the unbiased variance, as torch.nn.BatchNorm2d feeds it to its running average.
    """

    norm1_mean: torch.Tensor
    norm1_var: torch.Tensor
    norm2_mean: torch.Tensor
    norm2_var: torch.Tensor
