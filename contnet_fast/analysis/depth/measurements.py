"""What the report on depth measures beside the trained cells: every number that its sentences are made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from statistics import median

import torch

from . import gradients
from .bounds import hinge_loss_bound
from .constructions import (
    disjointness,
    inner_product,
    lifted,
    or_product,
    parity,
    sawtooth,
    sign_sawtooth,
)
from .experiments import Population
from .fit import outputs, train
from .flows import ShearParity, winding_number
from .layered import LayeredNet
from .lines import count_pieces, trace_steps
from .nets import ARCHITECTURES, Architecture, stack
from .verify import Verified, verify, vertices

GRADIENT_NETS = ("depth 2", "depth 3", "depth 5")
SIZE = 64  # units of the networks whose gradients at initialisation are measured


def shown(largest: int) -> list[LayeredNet]:
    """Return the constructions of the report, up to ``largest`` pairs of bits where all vertices are compared."""
    return [
        *(disjointness(d) for d in (largest, 64)),
        *(inner_product(d) for d in (largest, 64)),
        *(inner_product(d, folded=True) for d in (largest, 64)),
        parity(12), parity(12, signs=True), or_product(4), or_product(8, range(8)),
        sawtooth(10), sawtooth(30), sign_sawtooth(10), sign_sawtooth(30),
        lifted(disjointness(8)), lifted(inner_product(8)),
    ]  # fmt: skip


def planted_fault(net: LayeredNet) -> Verified:
    """Verify a network with 1 added to its last weight, which is put back."""
    weight = net.layers[-1][0]
    weight[0, -1] += 1.0
    try:
        return verify(net)
    finally:
        weight[0, -1] -= 1.0


@dataclass(frozen=True)
class Loss:
    """Estimates of the mean hinge loss of trained networks on f_n, with standard errors, and Theorem 18's bound."""

    n: int
    depth: int
    width: int
    bound: float
    losses: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def kept(self) -> bool:
        """Whether no estimate is more than four standard errors below the bound."""
        return all(loss + 4 * error >= self.bound for loss, error in zip(self.losses, self.errors, strict=True))


def trained_losses(
    numbers: Sequence[int], *, width: int, seeds: Sequence[int], steps: int, progress: Callable[[int], None]
) -> list[Loss]:
    """Train networks of depth sqrt(n) on f_n, and measure their hinge loss on other points.

    Inputs are drawn as integers and are float64, as is the training, on 1,024 points. The output is multiplied by one
    of 0, 1/16, ..., 16, which the bound holds for too; 0 gives a loss of 1. The scale is the best one on 8,192 other
    points, and the loss is that on 65,536 further ones: on the points that chose it, it would be too low.
    """
    found = []
    for n in numbers:
        depth = isqrt(n)
        architecture = Architecture(f"depth {depth}", "layered", depth - 1)
        size = width * architecture.layers
        start = stack([architecture.start(1, size, seed, dtype=torch.float64) for seed in seeds])
        (x, y), (others, signs), (further, labels) = (
            _drawn(n, count, seed) for seed, count in enumerate((1024, 8192, 65_536))
        )
        rates = torch.full((len(seeds),), 0.01, dtype=torch.float64)
        weights = train(architecture, start, x, y, rates=rates, steps=steps, progress=progress)
        scales = torch.tensor([0.0, *(2.0**e for e in range(-4, 5))], dtype=torch.float64)
        margins = signs * outputs(architecture, weights, others)
        best = scales[(1 - scales[:, None, None] * margins).clamp(min=0).mean(2).argmin(0)]
        each = (1 - best[:, None] * labels * outputs(architecture, weights, further)).clamp(min=0)
        errors = each.std(1) / each.shape[1] ** 0.5
        found.append(
            Loss(n, depth, width, hinge_loss_bound(n, width), tuple(each.mean(1).tolist()), tuple(errors.tolist()))
        )
    return found


def gradient_norms(numbers: Sequence[int], *, seeds: Sequence[int], samples: int) -> dict[str, list[tuple[int, float]]]:
    """Return the medians over seeds of exact and of sampled gradient norms at initialisation, by architecture."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name in GRADIENT_NETS:
        net = ARCHITECTURES[name]
        found[name] = [
            (n, median(gradients.sawtooth_gradient(net, SIZE, n, seed=seed) for seed in seeds)) for n in numbers
        ]
    net = ARCHITECTURES["depth 2"]
    found[f"depth 2, {samples:,} samples"] = [
        (n, median(gradients.sampled_sawtooth_gradient(net, SIZE, n, seed=s, samples=samples, draw=s) for s in seeds))
        for n in numbers
    ]
    return found


def parity_norms(numbers: Sequence[int], *, seeds: Sequence[int]) -> dict[str, list[tuple[int, float]]]:
    """Return the medians over seeds of the gradient norms for the parity of n signs, by architecture."""
    return {
        name: [
            (n, median(gradients.parity_gradient(ARCHITECTURES[name], SIZE, n, seed=seed) for seed in seeds))
            for n in numbers
        ]
        for name in GRADIENT_NETS
    }


@dataclass(frozen=True)
class Explained:
    """The share of the full parity of n signs that fixed features explain, and the mean over all parities."""

    features: str
    n: int
    full: float
    mean: float


def explained(numbers: Sequence[int], *, features: int, size: int, seeds: Sequence[int]) -> list[Explained]:
    """Measure random features and neural tangents, the median over seeds."""
    net = ARCHITECTURES["depth 2"]
    found = []
    for n in numbers:
        random = [gradients.explained_by_random_features(n, features, seed=seed) for seed in seeds]
        tangents = [gradients.explained_by_tangents(net, size, n, seed=seed) for seed in seeds]
        for name, values in ((f"{features} random features", random), (f"tangents of {size} units", tangents)):
            found.append(Explained(name, n, median(v[0] for v in values), median(v[1] for v in values)))
    return found


def pieces_of_random_fields(steps: Sequence[int], *, units: int, seeds: Sequence[int]) -> list[tuple[int, float]]:
    """Return medians of the pieces of a component of the state in the plane, after Euler steps of random ReLU fields.

    Weights, biases and outputs of the field are normal, the outputs divided by the root of their number and multiplied
    by 4, which makes them large enough to fold in few steps.
    """
    found = []
    for n_steps in steps:
        counts = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            w, b = torch.randn(units, 2, generator=generator).double(), torch.randn(units, generator=generator).double()
            out = 4 * torch.randn(2, units, generator=generator).double() / units**0.5
            ends = torch.tensor([[-1.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
            counts.append(count_pieces(trace_steps(ends[0], ends[1], (w, b), out, n_steps=n_steps)))
        found.append((n_steps, median(counts)))
    return found


@dataclass(frozen=True)
class Plane:
    """What a trained planar flow makes of the disc in the annulus.

    Attributes:
        n_steps: of the solve.
        points, labels: [points, 2] images, [points].
        windings: how often the image of the circle of radius 3/4 goes around the images of 25 points of the disc.
        accuracy: of the network on other points.
    """

    n_steps: int
    points: torch.Tensor
    labels: torch.Tensor
    windings: tuple[int, ...]
    accuracy: float


def planar_flows(*, units: int, steps: int, n_steps: Sequence[int], progress: Callable[[int], None]) -> list[Plane]:
    """Train one planar ODE on the disc in the annulus, and solve it with several numbers of steps."""
    architecture = ARCHITECTURES["ODE"]
    x, y = Population("annulus").data()
    start = stack([architecture.start(2, units, 0)])
    weights = train(architecture, start, x, y, rates=torch.tensor([0.03]), steps=steps, progress=progress)
    net = {name: value[0].double() for name, value in weights.items()}
    angle = torch.linspace(0, 2 * torch.pi, 4001, dtype=torch.float64)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    inside = torch.cat([radius * circle[::500] for radius in (0.15, 0.3, 0.45)])
    inside = torch.cat([torch.zeros(1, 2, dtype=torch.float64), inside])
    others, labels = Population("annulus").data(test=True)
    found = []
    for n in n_steps:
        image = architecture.flow(net, others.double(), n_steps=n)
        curve, centres = (architecture.flow(net, points, n_steps=n) for points in (0.75 * circle, inside))
        right = ((image @ net["read"].T + net["bias"])[:, 0] >= 0) == (labels > 0)
        windings = tuple(winding_number(curve, centre) for centre in centres)
        found.append(Plane(n, image, labels, windings, float(right.double().mean())))
    return found


def shear_is_exact(numbers: Sequence[int]) -> bool:
    """Whether :class:`ShearParity` is right on every vertex, with one Euler step and with three of RK4."""
    for n in numbers:
        bits = vertices(n)
        flow = ShearParity(n)
        for scheme, n_steps in (("euler", 1), ("rk4_classic", 3)):
            flow.block.set_discretization(scheme=scheme, n_steps=n_steps)
            if not torch.equal(flow(bits.double()), (bits.sum(1) % 2).double()):
                return False
    return True


def _drawn(n: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [count, 1] in [-1, 1] and labels [count]; none is on the border of a cell, which would count as +1."""
    scale = 2 ** (n + 4)
    numerators = 2 * torch.randint(scale // 2, (count, 1), generator=torch.Generator().manual_seed(seed)) + 1
    labels = sign_sawtooth(n).target(numerators, scale)
    return 2 * numerators.double() / scale - 1, labels.double()
