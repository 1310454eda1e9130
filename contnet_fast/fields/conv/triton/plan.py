"""One solve of the convolutional field as host data: sizes, tables of its time grid on the device, tiles."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch

from ....chips import arch
from ....costmodel.costs import BY_ARCH
from ....limits import PARAMETER_ROWS as PARAMETER_ROWS
from ....schemes.timegrid import FlatGrid
from ....triton.launch import INTERPRETED, allocate
from ....triton.tiles import Shared, Tile, Units, block_channels, tile, units, weight_units
from ...family import Call, TensorSpec


@dataclass(frozen=True)
class Grid:
    """A time grid on the host. Evaluations that read the same theta(t) share a *slot*.

    Attributes:
        mix: [slot][node] basis weights. slot_of: [evaluation]. rows: [stage][stage] h * a_sj; update: [stage] h * b_j.
    """

    mix: tuple[tuple[float, ...], ...]
    slot_of: tuple[int, ...]
    rows: tuple[tuple[float, ...], ...]
    update: tuple[float, ...]
    n_steps: int

    @property
    def stages(self) -> int:
        """Evaluations in a step."""
        return len(self.update)


@lru_cache(maxsize=256)
def host_grid(flat: FlatGrid, size: int) -> Grid:
    """The grid from the flat lists of an op."""
    counts, cells, weights, rows, update, n_steps = flat
    slots: dict[tuple[float, ...], int] = {}
    slot_of, place = [], 0
    for count in counts:
        mix = [0.0] * size
        for cell, weight in zip(cells[place : place + count], weights[place : place + count], strict=True):
            mix[cell] += weight
        place += count
        slot_of.append(slots.setdefault(tuple(mix), len(slots)))
    s = len(update)
    return Grid(tuple(slots), tuple(slot_of), tuple(rows[i * s : (i + 1) * s] for i in range(s)), update, n_steps)


@dataclass(frozen=True)
class Rows:
    """Rows of weights as a kernel reads them: for each target its own term, and the others as a sparse row."""

    own_weight: torch.Tensor
    start: torch.Tensor
    index: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True)
class Tables:
    """What kernels read of a grid, on one device.

    ``forward[s]``: what follows evaluation s of a step, the input of stage s + 1 or the new state, from the rates;
    keep[s]: whether a later target reads rate s too. ``backward[s]``: the gradient by rate s - 1 (times eps), or at
    s = 0 the costate of the step, from the gradients by the stages' inputs; costate[s]: weight of the old costate.
    """

    mix: torch.Tensor
    slot_of: torch.Tensor
    forward: Rows
    keep: torch.Tensor
    backward: Rows
    costate: torch.Tensor


def _rows(own_weight: Sequence[float], entries: Sequence[Sequence[tuple[int, float]]], device: torch.device) -> Rows:
    kept = [[(j, w) for j, w in row if w != 0.0] for row in entries]
    start = [sum(map(len, kept[:i])) for i in range(len(kept) + 1)]
    flat = [entry for row in kept for entry in row] or [(0, 0.0)]
    return Rows(
        torch.tensor(own_weight, dtype=torch.float32, device=device),
        torch.tensor(start, dtype=torch.int32, device=device),
        torch.tensor([j for j, _ in flat], dtype=torch.int32, device=device),
        torch.tensor([w for _, w in flat], dtype=torch.float32, device=device),
    )


@lru_cache(maxsize=256)
def tables(grid: Grid, eps: float, device: torch.device) -> Tables:
    """Copied to the device once for each grid and kept.

    On a thread of its own: the memory pool that this one may allocate from (torch.compile's CUDA graphs) is given back.
    """
    if device.type != "cuda":
        return _tables(grid, eps, device)
    with ThreadPoolExecutor(1) as aside:
        return aside.submit(_tables, grid, eps, device).result()


def _tables(grid: Grid, eps: float, device: torch.device) -> Tables:
    s = grid.stages
    after = [*grid.rows[1:], grid.update]  # after[t][j]: weight of rate j in what follows evaluation t
    backward_own = [1.0, *(eps * grid.rows[t][t - 1] for t in range(1, s))]
    backward = [
        [(r, 1.0) for r in range(1, s)],
        *([(r, eps * grid.rows[r][t - 1]) for r in range(t + 1, s)] for t in range(1, s)),
    ]
    return Tables(
        mix=torch.tensor(grid.mix, dtype=torch.float32, device=device),
        slot_of=torch.tensor(grid.slot_of, dtype=torch.int32, device=device),
        forward=_rows([after[t][t] for t in range(s)], [list(enumerate(after[t][:t])) for t in range(s)], device),
        keep=torch.tensor([int(any(after[t][j] for t in range(j + 1, s))) for j in range(s)], device=device).int(),
        backward=_rows(backward_own, backward, device),
        costate=torch.tensor(
            [1.0, *(eps * grid.update[t - 1] for t in range(1, s))], dtype=torch.float32, device=device
        ),
    )


@lru_cache(maxsize=16)
def processors(device: torch.device, arch: str) -> int:
    """Multiprocessors of a device; two in the interpreter, where each program costs a millisecond."""
    if device.type == "meta":
        return BY_ARCH[arch].multiprocessors
    return 2 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


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
        return tables(self.grid, self.eps, self.device)

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
        count = processors(self.device, self.arch)
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
