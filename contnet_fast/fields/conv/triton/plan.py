"""One solve of the convolutional field as host data: sizes, tables of its time grid on the device, tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ....chips import arch
from ....costmodel.costs import BY_ARCH
from ....limits import PARAMETER_ROWS as PARAMETER_ROWS
from ....triton.grids import Grid, Tables, host_grid, tables
from ....triton.launch import INTERPRETED, allocate, processors
from ....triton.tiles import Shared, Tile, Units, block_channels, tile, units, weight_units
from ...family import Call, TensorSpec


@dataclass(frozen=True)
class Solve:
    """Everything about one solve that host code needs. ``x`` is [batch, height, width, channels], dense."""

    grid: Grid
    order: str
    norm: str
    groups: int
    eps: float
    norm_eps: float
    training: bool
    batch: int
    height: int
    width: int
    channels: int
    dtype: torch.dtype
    compute: torch.dtype
    precision: str
    device: torch.device
    bias: bool
    skip: bool
    arch: str

    @property
    def tables(self) -> Tables:
        """The tables of the time grid on the device."""
        return tables(self.grid, self.device, backward=self.eps)

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return self.height * self.width

    @property
    def plane(self) -> int:
        """Pixels of one map of the whole batch."""
        return self.batch * self.pixels

    @property
    def post(self) -> bool:
        """Whether norms come after convolutions."""
        return self.order == "post"

    @property
    def normed(self) -> bool:
        """Whether there are norms."""
        return self.norm != "none"

    @property
    def coupled(self) -> bool:
        """Whether statistics are those of the batch."""
        return self.norm == "batch" and self.training

    @property
    def sample(self) -> bool:
        """Whether statistics are taken within an image."""
        return self.norm in ("group", "layer")

    @property
    def group(self) -> int:
        """Channels of a group of the norm within an image."""
        return self.channels if self.norm == "layer" else self.channels // self.groups

    @property
    def moment_rows(self) -> int:
        """Sets of statistics for each norm of each evaluation."""
        return self.batch if self.sample else 1 if self.normed else 0

    @property
    def kinds(self) -> int:
        """Maps that an evaluation leaves for backward: its input, the first convolution's result, and post the second's."""
        return 3 if self.post else 2

    @property
    def block_channels(self) -> int:
        """Channels of an operand's block."""
        return block_channels(self.channels)

    @property
    def block_rows(self) -> int:
        """Rows of partial sums that a program reads at once: few registers, and no more than 32."""
        return max(4, min(32, 512 // self.block_channels))

    def maps(self, *leading: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Uninitialised maps of the batch."""
        shape = (*leading, self.batch, self.height, self.width, self.channels)
        return allocate(shape, dtype or self.dtype, self.device)

    def floats(self, *shape: int) -> torch.Tensor:
        """Uninitialised float32."""
        return allocate(shape, torch.float32, self.device)

    def tile(self, kernel: str) -> Tile:
        """The tile of one of ``tiles.KERNELS``."""
        return tile(kernel, self.channels, self.pixels, self.compute, self.arch)

    def units(self, kernel: str, *, by_image: bool = False) -> Units:
        """How ``kernel`` shares the batch; ``by_image``: one unit a program, for sums that are merged by image."""
        return units(kernel, self._shared, by_image=by_image)

    def weight_units(self) -> Units:
        """How the weight gradients of a step share it."""
        return weight_units(self._shared, self.grid.stages)

    @property
    def _shared(self) -> Shared:
        count = processors(self.device, BY_ARCH[self.arch].multiprocessors)
        return Shared(self.batch, self.channels, self.pixels, self.compute, self.arch, count)


def precision(compute: torch.dtype) -> str:
    """How products of float32 run: as torch's switch for its own convolutions says."""
    allowed = torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return "tf32" if compute == torch.float32 and allowed and not INTERPRETED else "ieee"


def saved(s: Solve, keep: str) -> tuple[TensorSpec, TensorSpec]:
    """Moments of the norms in float32, and maps in the dtype of the state: what a forward pass keeps for backward."""
    n, stages = s.grid.n_steps, s.grid.stages
    maps = n * s.kinds * stages if keep == "none" else n - 1 if keep == "step" else 0
    return (
        TensorSpec((n * stages, 2, 2, s.moment_rows, s.channels), torch.float32),
        TensorSpec((maps, s.batch, s.height, s.width, s.channels), s.dtype),
    )


def describe(call: Call) -> Solve:
    """The solve of an op's arguments. Products run in the dtype of the convolutions' weights."""
    x, nodes, spec = call.x, call.nodes, call.spec
    weight = nodes.conv1_weight
    batch, channels, height, width = x.shape
    return Solve(
        grid=host_grid(call.grid, weight.shape[0]), order=spec.order, norm=spec.norm, groups=spec.groups, eps=spec.eps,
        norm_eps=spec.norm_eps, training=call.training, batch=batch, height=height, width=width, channels=channels,
        dtype=x.dtype, compute=weight.dtype, precision=precision(weight.dtype), device=x.device,
        bias=nodes.conv1_bias is not None, skip=nodes.skip is not None, arch=arch(x.device),
    )  # fmt: skip
