"""Particles coupled by springs along the edges of a graph: trajectories of second order, known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import check_count, check_number
from ..graph import Graph
from .node_data import undirected


@dataclass(frozen=True)
class Trajectories:
    """Positions and velocities of particles, the nodes of a graph.

    Attributes:
        graph: the springs, not normalised. times: float32 [T].
        positions, velocities: float32 [S, T, n, D].
        energies: float64 [S, T], kinetic and of the springs.
    """

    graph: Graph
    times: torch.Tensor
    positions: torch.Tensor
    velocities: torch.Tensor
    energies: torch.Tensor


def coupled_particles(
    *, particles: int = 10, samples: int = 20, dimensions: int = 2, steps: int = 50, t_end: float = 10.0,
    stiffness: float = 1.0, anchor: float = 0.1, damping: float = 0.0, springs: int = 15, seed: int = 0,
) -> Trajectories:  # fmt: skip
    """Solve x_i'' = -stiffness sum_j (x_i - x_j) - anchor x_i - damping x_i' at ``steps`` equal times in [0, t_end].

    j are the neighbours of i on a path with further random springs. Positions and velocities at 0 are normal. The
    solution is that of the modes of the springs, in float64; without damping the energy does not change.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what is accepted.
    """
    for name, count, least in (
        ("particles", particles, 2), ("samples", samples, 1), ("dimensions", dimensions, 1), ("steps", steps, 2),
        ("springs", springs, 0), ("seed", seed, 0),
    ):  # fmt: skip
        check_count(name, count, minimum=least)
    check_number("t_end", t_end, positive=True)
    check_number("stiffness", stiffness, positive=True)
    check_number("anchor", anchor, positive=True)
    if check_number("damping", damping) < 0 or damping >= 2 * anchor**0.5:
        raise ValueError(
            f"damping: got {damping}, accepted: at least 0 and less than {2 * anchor**0.5:g}, which oscillates"
        )
    generator = torch.Generator().manual_seed(seed)
    path = torch.arange(particles - 1)
    more = torch.randint(0, particles, (2, springs), generator=generator)
    graph = undirected(torch.cat([torch.stack([path, path + 1]), more], 1), particles)
    adjacency = graph.to(torch.float64).to_dense()
    forces = stiffness * (torch.diag(adjacency.sum(1)) - adjacency) + anchor * torch.eye(particles, dtype=torch.float64)
    squares, vectors = torch.linalg.eigh(forces)
    shape = (samples, 1, particles, dimensions)
    x, v = (vectors.T @ torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    times = torch.linspace(0.0, t_end, steps, dtype=torch.float64)
    t, half = times.view(1, -1, 1, 1), damping / 2
    omega = (squares - half**2).sqrt().view(1, 1, -1, 1)
    fade, cosine, sine = torch.exp(-half * t), torch.cos(omega * t), torch.sin(omega * t)
    swing = (v + half * x) / omega
    positions = fade * (x * cosine + swing * sine)
    velocities = -half * positions + fade * omega * (swing * cosine - x * sine)
    kinetic = velocities.square().sum((2, 3)) / 2
    potential = (squares.view(1, 1, -1, 1) * positions.square()).sum((2, 3)) / 2
    x, v = ((vectors @ modes).float() for modes in (positions, velocities))
    return Trajectories(graph, times.float(), x, v, kinetic + potential)
