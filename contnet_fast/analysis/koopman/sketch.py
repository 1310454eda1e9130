"""Count sketch of long vectors: a random projection whose signs and places come from a hash, so that none is stored."""

from __future__ import annotations

import torch

CHUNK = 2**15  # numbers that are hashed at once: caches hold them, and one thread is as fast as several


def count_sketch(vector: torch.Tensor, *, width: int, seed: int) -> torch.Tensor:
    """Return the sketch, float64 [width] on the device of ``vector`` [p].

    Number i is added with a random sign to a random entry, both from a hash of (``seed``, i): linear in ``vector``, and
    the squared norm is kept in the mean over seeds (Charikar, Chen, Farach-Colton, "Finding frequent items in data
    streams", 2002).
    """
    found = torch.zeros(width, dtype=torch.float64, device=vector.device)
    start = _hash(torch.tensor([seed])).item()
    for first in range(0, len(vector), CHUNK):
        part = vector[first : first + CHUNK]
        counters = torch.arange(first // 2, (first + len(part) + 1) // 2, device=vector.device) + start
        bits = _hash(counters).view(torch.int32)[: len(part)]  # each hash serves two numbers
        places = ((bits & 0x7FFFFFFF).long() * width) >> 31
        found.scatter_add_(0, places, part.double() * ((bits >> 31) | 1))
    return found


def _hash(counters: torch.Tensor) -> torch.Tensor:
    """Return 64 random bits for each int64 counter: SplitMix64 (Steele, Lea, Flood, 2014), whose products wrap."""
    z = counters * -0x61C8864680B583EB
    z = (z ^ ((z >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    z = (z ^ ((z >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return z ^ ((z >> 31) & (2**33 - 1))
