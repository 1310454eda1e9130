"""Flow matching on points of the plane: how good are samples for how many evaluations of the network?

``python examples/flow_2d.py`` trains a small network on two interleaved spirals (half a minute on one core), samples by
several methods at the same numbers of evaluations, and prints, for each,

- "error": how far samples are from those of the ODE itself (rk4 with 400 evaluations) from the same noise, and
- "energy": the energy distance of samples to points that training never saw (0: the same distribution).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

import contnet_fast as cf
from contnet_fast.files import write_text

METHODS = ("euler", "midpoint", "heun2", "rk4", "ab2", "ab3", "dpmpp_2m")
TIMES = torch.tensor([0.0, 1.0])


class Velocity(nn.Module):
    """An MLP of (t, x)."""

    def __init__(self, dimension: int, width: int) -> None:
        super().__init__()
        sizes = [dimension + 1, width, width, width, dimension]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.SiLU()]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return dx/dt at one time, or at a time for each row."""
        return self.net(torch.cat([x, t.reshape(-1, 1).expand(len(x), 1)], 1))


def spirals(n: int, generator: torch.Generator) -> torch.Tensor:
    """Return [n, 2] points of two interleaved spirals."""
    turn = torch.rand(n, generator=generator).sqrt() * 3 * math.pi
    side = torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1
    curve = torch.stack([turn.cos(), turn.sin()], 1) * (side * turn)[:, None]
    return (curve + 0.3 * torch.randn(n, 2, generator=generator)) / 5


def train(
    data: torch.Tensor, generator: torch.Generator, *, steps: int, width: int, batch: int = 256, rate: float = 2e-3
) -> Velocity:
    """Return a network trained by conditional flow matching: its target is data - noise on the line between both."""
    net = Velocity(data.shape[1], width)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    for _ in range(steps):
        x1 = data[torch.randint(0, len(data), (batch,), generator=generator)]
        x0 = torch.randn(x1.shape, generator=generator)
        t = torch.rand(batch, 1, generator=generator)
        loss = (net(t, torch.lerp(x0, x1, t)) - (x1 - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


def energy(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the energy distance 2 E|a - b| - E|a - a'| - E|b - b'| of two samples."""
    n, m = len(a), len(b)
    within = torch.cdist(a, a).sum() / (n * (n - 1)) + torch.cdist(b, b).sum() / (m * (m - 1))
    return (2 * torch.cdist(a, b).mean() - within).item()


@torch.no_grad()
def compare(net: Velocity, noise: torch.Tensor, fresh: torch.Tensor, counts: Sequence[int], exact: int) -> list[dict]:
    """Return a row for each method and number of evaluations."""
    truth = cf.odeint(net, noise, TIMES, method="rk4", options={"nfe": exact})[-1]
    rows = [{"method": "rk4", "asked": exact, "evaluations": exact, "error": 0.0, "energy": energy(truth, fresh)}]
    for method in METHODS:
        for n in counts:
            if method == "rk4" and n % 4:
                continue
            path, stats = cf.odeint(net, noise, TIMES, method=method, options={"nfe": n}, return_stats=True)
            error = (path[-1] - truth).square().mean().sqrt().item()
            rows.append({"method": method, "asked": n, "evaluations": stats.nfe, "error": error})
            rows[-1]["energy"] = energy(path[-1], fresh)
    return rows


def show(rows: list[dict], counts: Sequence[int]) -> None:
    """Print two tables, methods by numbers of evaluations."""
    by = {(row["method"], row["asked"]): row for row in rows}
    for what in ("error", "energy"):
        print(f"{what:10}" + "".join(f"{f'NFE {n}':>11}" for n in counts))
        for method in METHODS:
            cells = [by.get((method, n)) for n in counts]
            print(f"{method:10}" + "".join(f"{'-' if c is None else format(c[what], '.2e'):>11}" for c in cells))
        print(f"  of the ODE itself: {rows[0][what]:.2e}\n")


def save(rows: list[dict], file: str | None, data: str, seed: int) -> None:
    """Write the rows, if a file is given."""
    if file:
        lines = [json.dumps({"data": data, "seed": seed, **row}) + "\n" for row in rows]
        write_text(Path(file), "".join(lines))


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Train, sample and print; return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", help="file for the rows, a line of JSON each")
    options = parser.parse_args(argv)
    generator = torch.Generator().manual_seed(options.seed)
    torch.manual_seed(options.seed)
    steps, width, n, exact = (20, 16, 50, 40) if options.tiny else (4000, 96, 2000, 400)
    net = train(spirals(20_000, generator), generator, steps=steps, width=width)
    counts = (4, 8) if options.tiny else (4, 6, 8, 12, 24)
    noise = torch.randn(n, 2, generator=generator)
    rows = compare(net, noise, spirals(n, generator), counts, exact)
    show(rows, counts)
    save(rows, options.rows, "spirals", options.seed)
    states, change = cf.odeint_log_density(
        net, spirals(n, generator), TIMES.flip(0), method="rk4", options={"nfe": 4 if options.tiny else 80}
    )
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(states[-1]).sum(1)
    print(f"log-density of fresh points under the flow: {(normal - change[-1]).mean().item():.2f} nats, exact trace")
    return rows


if __name__ == "__main__":
    main()
