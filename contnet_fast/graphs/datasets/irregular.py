"""Series that arrive at irregular times, of a linear flow on a graph that is known exactly."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ...errors import check_count, check_number
from ..graph import Graph
from .node_data import undirected


@dataclass(frozen=True)
class SeriesData:
    """Samples, each with arrival times of its own, of signals on the nodes of one graph.

    Attributes:
        graph: not normalised.
        times: float32 [S, T], increasing; after the last arrival of a sample its last time is repeated.
        values: float32 [S, T, n, F], what was observed: with noise, and 0 where ``mask`` is ``False``.
        mask: bool [S, T, n], what was observed; ``False`` for all nodes after the last arrival.
        lengths: int64 [S], arrivals of each sample.
        truth: float32 [S, T, n, F], the states without noise and without gaps.
        train, valid, test: int64, disjoint samples.
        noise: deviation of the noise: the error at the arrivals of whoever knows the flow and the truth is 0 to the
            truth and this to the observations.
    """

    name: str
    graph: Graph
    times: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor
    lengths: torch.Tensor
    truth: torch.Tensor
    train: torch.Tensor
    valid: torch.Tensor
    test: torch.Tensor
    noise: float

    @property
    def num_nodes(self) -> int:
        """n."""
        return self.graph.num_nodes

    @property
    def num_features(self) -> int:
        """F."""
        return self.values.shape[3]

    def to(self, device: Any) -> SeriesData:
        """It on another device."""
        names = [f.name for f in fields(self) if isinstance(getattr(self, f.name), (torch.Tensor, Graph))]
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in names}
        return replace(self, **moved)


def irregular_series(
    *, nodes: int = 20, samples: int = 200, arrivals: tuple[int, int] = (6, 12), t_end: float = 4.0,
    diffusion: float = 0.5, frequency: float = 1.5, noise: float = 0.02, observed: float = 0.7, seed: int = 0,
) -> SeriesData:  # fmt: skip
    """Draw states Z [n, 2] of dZ/dt = diffusion (A - I) Z + frequency Z R.

    A is the symmetric normalisation of a ring with chords and loops, R a quarter turn, Z(0) normal. Each sample has as
    many arrivals as it draws, at times uniform in [0, ``t_end``], the first at 0. 70 % of the samples train, 10 %
    validate.

    Args:
        arrivals: least and largest number of arrivals of a sample.
        observed: probability that a node is observed at an arrival; at least one is.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """
    low, high = arrivals
    for name, count, least in (
        ("nodes", nodes, 4), ("samples", samples, 10), ("arrivals", low, 2), ("arrivals", high, low)
    ):  # fmt: skip
        check_count(name, count, minimum=least)
    check_number("t_end", t_end, positive=True)
    if not 0 < check_number("observed", observed) <= 1 or check_number("noise", noise) < 0:
        name, got = ("observed", observed) if not 0 < observed <= 1 else ("noise", noise)
        raise ValueError(f"{name}: got {got}, accepted: observed in (0, 1], noise >= 0")
    generator = torch.Generator().manual_seed(check_count("seed", seed, minimum=0))
    ring = torch.arange(nodes)
    chords = torch.randint(0, nodes, (2, nodes // 2), generator=generator)
    graph = undirected(torch.cat([torch.stack([ring, (ring + 1) % nodes]), chords], 1), nodes)
    lengths = torch.randint(low, high + 1, (samples,), generator=generator)
    drawn = torch.rand(samples, high, generator=generator, dtype=torch.float64) * t_end
    drawn[:, 0] = 0.0
    valid_step = torch.arange(high) < lengths.unsqueeze(1)
    times = torch.where(valid_step, drawn, torch.inf).sort(1).values
    last = times.gather(1, (lengths - 1).unsqueeze(1))
    times = torch.where(valid_step, times, last).float()
    start = torch.randn(samples, nodes, 2, generator=generator, dtype=torch.float64)
    truth = flow(start, graph, times.double(), diffusion=diffusion, frequency=frequency)
    mask = torch.rand(samples, high, nodes, generator=generator) < observed
    mask[:, :, 0] |= ~mask.any(2)
    mask &= valid_step.unsqueeze(2)
    noisy = truth + noise * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    values = torch.where(mask.unsqueeze(3), noisy, 0.0)
    order = torch.randperm(samples, generator=generator)
    train, valid = round(0.7 * samples), round(0.1 * samples)
    parts = [part.sort().values for part in order.split([train, valid, samples - train - valid])]
    return SeriesData(
        "irregular", graph, times, values.float(), mask, lengths, truth.float(), parts[0], parts[1], parts[2], noise
    )


def flow(
    z: torch.Tensor, graph: Graph, times: torch.Tensor, *, diffusion: float = 0.5, frequency: float = 1.5
) -> torch.Tensor:
    """The states [S, T, n, 2] at ``times`` [S, T] of :func:`irregular_series` that are ``z`` [S, n, 2] at time 0.

    Exact: both parts of the flow commute. Of the dtype of ``z``.
    """
    matrix = graph.to(torch.float64).normalized().to_dense()
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    vectors = vectors.to(z.dtype)
    rates = (diffusion * (values - 1.0)).to(z.dtype)
    decay = torch.exp(times.unsqueeze(2) * rates)  # [S, T, n]
    modes = (vectors.T @ z).unsqueeze(1) * decay.unsqueeze(3)
    angle = frequency * times[..., None]
    sine, cosine = angle.sin(), angle.cos()
    first, second = modes[..., 0], modes[..., 1]
    turned = torch.stack([cosine * first - sine * second, sine * first + cosine * second], -1)
    return vectors @ turned
