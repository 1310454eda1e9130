"""What a solve must cost: operations, bytes and launches, counted; and what devices can do, by their datasheets.

A count is a floor: no implementation of the same method needs fewer. Predictions add what a design costs beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """Peak rates of one device.

    Attributes:
        flops: multiply-adds count two, dense, per second, by dtype of the operands; "tf32" for float32 on tensor cores.
        bandwidth: of device memory, bytes/s. l2_bandwidth: of the cache all multiprocessors share, bytes/s.
        l2_bytes: its size. multiprocessors, clock: Hz. launch: seconds from one kernel of a graph to the next.
    """

    name: str
    flops: Mapping[str, float]
    bandwidth: float
    l2_bandwidth: float
    l2_bytes: float
    multiprocessors: int
    clock: float
    launch: float = 2e-6

    @property
    def l1_bandwidth(self) -> float:
        """Bytes a second from first-level caches and shared memory together: 128 a clock and multiprocessor."""
        return 128.0 * self.multiprocessors * self.clock

    def rate(self, dtype: torch.dtype, precision: str = "ieee") -> float:
        """FLOP/s of products with operands of ``dtype``."""
        return self.flops["tf32" if precision == "tf32" else str(dtype).removeprefix("torch.")]

    def share(self, blocks: int, units: int | None = None, per_block: int = 1, cluster: int = 1) -> float:
        """Fraction of the peak that ``blocks`` reach: work items (``units``) are whole, at most ``per_block`` for a block.

        Blocks of a ``cluster`` run together, each on a multiprocessor.
        """
        busiest = -(-(blocks // cluster) // (self.multiprocessors // cluster)) * per_block
        return (blocks if units is None else units) / (self.multiprocessors * busiest)


def _gpu(
    name: str, half: float, tf32: float, single: float, double: float, *, bandwidth: float, l2: float, l2_bytes: float,
    processors: int, clock: float,
) -> Device:  # fmt: skip
    tera = 1e12
    flops = {"bfloat16": half, "float16": half, "tf32": tf32, "float32": single, "float64": double}
    rates = {dtype: rate * tera for dtype, rate in flops.items()}
    return Device(name, rates, bandwidth * tera, l2 * tera, l2_bytes * 1e6, processors, clock * 1e9)


# NVIDIA's datasheets (SXM boards; rates without sparsity, boost clock). Their L2 bandwidths are not published: 5120
# bytes a clock for A100 (its white paper), the same number of bytes assumed for the later ones.
DEVICES = {
    d.name: d
    for d in (
        _gpu("A100", 312, 156, 19.5, 9.7, bandwidth=2.039, l2=7.2, l2_bytes=40, processors=108, clock=1.41),
        _gpu("H100", 989, 495, 67, 34, bandwidth=3.35, l2=9.0, l2_bytes=50, processors=132, clock=1.76),
        _gpu("H200", 989, 495, 67, 34, bandwidth=4.8, l2=9.0, l2_bytes=50, processors=132, clock=1.76),
        _gpu("B200", 2250, 1125, 75, 37, bandwidth=8.0, l2=9.4, l2_bytes=126, processors=148, clock=1.84),
    )
}

BY_ARCH = {"sm_80": DEVICES["A100"], "sm_90": DEVICES["H100"], "sm_100": DEVICES["B200"]}  # of chips


def measured_cpu(seconds: float = 0.2) -> Device:
    """This machine's CPU with the threads in use: the best of square float32 and float64 products, and of a large copy.

    16-bit operands count as float32. A copy counts the bytes read and those written.

    Args:
        seconds: spent on each measurement.
    """

    def best(run: Callable[[], object]) -> float:
        shortest, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end or shortest == float("inf"):
            start = time.perf_counter()
            run()
            shortest = min(shortest, time.perf_counter() - start)
        return shortest

    rates = {}
    for dtype in (torch.float32, torch.float64):
        products = []
        for n in (256, 512, 1024):
            a, out = torch.ones(n, n, dtype=dtype), torch.empty(n, n, dtype=dtype)
            products.append(2.0 * n**3 / best(lambda a=a, out=out: torch.mm(a, a, out=out)))  # type: ignore[misc]
        rates[str(dtype).removeprefix("torch.")] = max(products)
    rates |= dict.fromkeys(("bfloat16", "float16", "tf32"), rates["float32"])
    source, target = torch.ones(2**24), torch.empty(2**24)
    bandwidth = 2.0 * source.nbytes / best(lambda: target.copy_(source))
    threads = torch.get_num_threads()
    return Device(f"this CPU, {threads} threads", rates, bandwidth, bandwidth, 0.0, threads, 0.0, 0.0)


@dataclass(frozen=True)
class Cost:
    """Operations and least bytes of something, in one or several launches.

    Attributes:
        flops: of the convolutions; a multiply-add counts two. bytes: each operand read once, each result written once.
        launches: of kernels. saved: bytes kept for a backward pass. inner: bytes through first-level caches and shared
            memory. reread: bytes that every block reads for itself from L2: weights, partial sums of other blocks.
    """

    flops: float = 0.0
    bytes: float = 0.0
    launches: int = 0
    saved: float = 0.0
    inner: float = 0.0
    reread: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops, self.bytes + other.bytes, self.launches + other.launches,
            self.saved + other.saved, self.inner + other.inner, self.reread + other.reread,
        )  # fmt: skip

    def floor(self, device: Device, dtype: torch.dtype, *, precision: str = "ieee") -> float:
        """Seconds: operations at the peak rate or bytes at the bandwidth of memory, whichever takes longer."""
        return max(self.flops / device.rate(dtype, precision), self.bytes / device.bandwidth)

    def predicted(
        self, device: Device, dtype: torch.dtype, *,
        precision: str = "ieee", working_set: float = 0.0, share: float = 1.0,
    ) -> tuple[float, str]:  # fmt: skip
        """Seconds and what bounds them.

        Args:
            working_set: bytes that stay in use; if the L2 cache holds them, ``bytes`` move at its bandwidth.
            share: of the multiprocessors that have work.
        """
        resident = 0 < working_set <= device.l2_bytes
        parts = {
            "products": self.flops / (device.rate(dtype, precision) * share),
            "memory": 0.0 if resident else self.bytes / device.bandwidth,
            "L2": (self.reread + (self.bytes if resident else 0.0)) / device.l2_bandwidth,
            "L1": self.inner / (device.l1_bandwidth * share),
            "launches": self.launches * device.launch,
        }
        bound = max(parts, key=lambda name: parts[name])
        work = max(seconds for name, seconds in parts.items() if name != "launches")
        return work + parts["launches"], bound


# maps read and written, and launches, of one evaluation of the field and the combination after it, by level
_MAPS = {"solve": 0, "none": 19}
_LAUNCHES = {"solve": 0, "none": 8}


def conv_solve_cost(
    shape: tuple[int, ...], *, stages: int, n_steps: int, n_basis: int, dtype: torch.dtype, compute_dtype: torch.dtype,
    training: bool = False, checkpoint: str = "none", level: str = "solve",
) -> Cost:  # fmt: skip
    """The floor of one solve of the convolutional field: 2 * 9 C^2 H W B operations a convolution, two an evaluation.

    Args:
        shape: of the state, [B, C, H, W].
        training: with the backward pass, which needs twice the products of the forward pass, and with ``checkpoint``
            "step" or "block" the forward pass's once more.
        level: "solve": the state is read and written once, in one launch. "none": PyTorch's own kernels, for each half
            of the field a norm (3 maps), a relu (2) and a convolution (2); eps (2); the combination (3).
    """
    batch, channels, height, width = shape
    map_bytes = float(batch * channels * height * width * dtype.itemsize)
    evaluations = n_steps * stages
    forward = 2.0 * 2 * 9 * channels * channels * height * width * batch * evaluations
    weights = 2.0 * n_basis * 9 * channels * channels * compute_dtype.itemsize
    maps, launches = _MAPS[level] * evaluations, _LAUNCHES[level] * evaluations
    cost = Cost(forward, (2 + maps) * map_bytes + weights, max(1, launches))
    if not training:
        return cost
    kept = {"none": 2 * evaluations + 1, "step": n_steps, "block": 1}[checkpoint] * map_bytes
    reread = cost if checkpoint != "none" else Cost()
    return cost + reread + Cost(2 * forward, (3 + 2 * maps) * map_bytes + 2 * weights, max(1, 2 * launches), kept)


def combine_cost(numel: int, *, terms: int, dtype: torch.dtype, error: bool = False) -> Cost:
    """The floor of y + sum_j c_j k_j on ``numel`` values: y and every rate read once, the result written once.

    Args:
        error: with the norm of the embedded error from the same pass, which moves nothing more.
    """
    products = 2.0 * terms * numel * (2 if error else 1)
    return Cost(products, float((terms + 2) * numel * dtype.itemsize), 2 if error else 1)
