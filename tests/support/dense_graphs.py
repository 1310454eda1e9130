"""Small graphs, and what networks on them compute with dense matrices."""

from __future__ import annotations

import torch

import contnet_fast as cf


def small_graph(n=7, edges=20, *, seed=0, normalised=True, isolated=True, dtype=torch.float64):
    """A directed, weighted graph without equal edges; its last node has no edges where ``isolated``."""
    generator = torch.Generator().manual_seed(seed)
    inner = n - 1 if isolated else n
    places = torch.randperm(inner * inner, generator=generator)[:edges]
    weight = torch.rand(len(places), generator=generator, dtype=torch.float64).to(dtype) + 0.1
    graph = cf.Graph(torch.stack([places % inner, places // inner]), weight, num_nodes=n)
    return graph.normalized(0.0 if isolated else 0.5) if normalised else graph


def permuted(graph, order):
    """The same graph with node ``order[i]`` called i; normalised as it was."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    new = cf.Graph(place[graph.edge_index], graph.values, num_nodes=graph.num_nodes)
    new.kind, new.symmetric = graph.kind, graph.symmetric
    return new


def reordered(graph, order):
    """The same graph whose inside has another order of the nodes."""
    new = permuted(graph, order)
    new.order = order
    return new


def rk4(rate, h, n_steps):
    """The classical scheme over t in [0, 1], written out."""
    dt, states = 1.0 / n_steps, [h]
    for i in range(n_steps):
        t = i * dt
        k1 = rate(t, h)
        k2 = rate(t + dt / 2, h + dt / 2 * k1)
        k3 = rate(t + dt / 2, h + dt / 2 * k2)
        k4 = rate(t + dt, h + dt * k3)
        h = h + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        states.append(h)
    return torch.stack(states)
