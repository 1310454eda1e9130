"""Flow matching on handwritten digits of 8x8 pixels (scikit-learn's): quality of samples by evaluations.

``python examples/flow_digits.py`` does for digits what ``flow_2d.py`` does for points of the plane, with the same
network, and writes samples into ``--picture FILE`` if asked to (matplotlib).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import contnet_fast as cf

sys.path.insert(0, str(Path(__file__).parent))
from flow_2d import TIMES, compare, save, show, train


def digits(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [N, 64] digits in [-1, 1] to train on, and others that training never sees, with a little noise."""
    from sklearn.datasets import load_digits

    x = torch.from_numpy(load_digits().data).float() / 8 - 1
    x = x + 0.03 * torch.randn(x.shape, generator=generator)
    x = x[torch.randperm(len(x), generator=generator)]
    return x[:1400], x[1400:]


def draw(net: torch.nn.Module, noise: torch.Tensor, counts: Sequence[int], file: str) -> None:
    """Write a sheet of samples, a row for each method and number of evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [(method, n) for method in ("euler", "ab2", "dpmpp_2m") for n in counts]
    figure, axes = plt.subplots(len(rows), 1, figsize=(8, 0.6 * len(rows)))
    for axis, (method, n) in zip(axes, rows, strict=True):
        with torch.no_grad():
            x = cf.odeint(net, noise[:16], TIMES, method=method, options={"nfe": n})[-1]
        axis.imshow(x.reshape(-1, 8, 8).permute(1, 0, 2).reshape(8, -1), cmap="gray", vmin=-1, vmax=1)
        axis.set_ylabel(f"{method}\nNFE {n}", rotation=0, ha="right", va="center", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(file, dpi=110, bbox_inches="tight")


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Train, sample and print; return the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", help="file for the rows, a line of JSON each")
    parser.add_argument("--picture", help="file for a sheet of samples")
    options = parser.parse_args(argv)
    generator = torch.Generator().manual_seed(options.seed)
    torch.manual_seed(options.seed)
    data, fresh = digits(generator)
    steps, width, n, exact = (10, 16, 20, 40) if options.tiny else (4000, 256, len(fresh), 400)
    net = train(data, generator, steps=steps, width=width, rate=1e-3)
    counts = (4, 8) if options.tiny else (4, 6, 8, 12, 24)
    noise = torch.randn(n, data.shape[1], generator=generator)
    rows = compare(net, noise, fresh[:n], counts, exact)
    show(rows, counts)
    save(rows, options.rows, "digits", options.seed)
    _, change = cf.odeint_log_density(
        net, fresh[:n], TIMES.flip(0), trace="hutchinson", method="ab2", options={"nfe": 4 if options.tiny else 48}
    )
    print(f"change of the log-density from digits to noise: {change[-1].mean().item():.1f} nats, Hutchinson's trace")
    if options.picture:
        draw(net, noise, (4, 12), options.picture)
    return rows


if __name__ == "__main__":
    main()
