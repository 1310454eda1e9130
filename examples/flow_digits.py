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


def draw(net: torch.nn.Module, noise: torch.Tensor, counts: Sequence[int], exact: int, file: str) -> None:
    """Write a sheet of samples: those of the ODE itself, and of methods, with their distances from the ODE's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def sample(method: str, n: int) -> torch.Tensor:
        with torch.no_grad():
            return cf.odeint(net, noise[:12], TIMES, method=method, options={"nfe": n})[-1]

    def strip(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, 8, 8).permute(1, 0, 2).reshape(8, -1)

    truth = sample("rk4", exact)
    rows = [(method, n) for n in counts for method in ("euler", "ab2", "dpmpp_2m")]
    figure, axes = plt.subplots(len(rows) + 1, 2, figsize=(13, 0.62 * (len(rows) + 1)), layout="constrained")
    axes[0][0].imshow(strip(truth), cmap="gray", vmin=-1, vmax=1)
    axes[0][0].set_ylabel(f"the ODE itself\nNFE {exact}", rotation=0, ha="right", va="center", fontsize=9)
    axes[0][0].set_title("samples from the same noise", fontsize=10)
    axes[0][1].set_title("their distance from the ODE's (white: 0.5 of the pixels' 2)", fontsize=10)
    axes[0][1].axis("off")
    for (left, right), (method, n) in zip(axes[1:], rows, strict=True):
        x = sample(method, n)
        left.imshow(strip(x), cmap="gray", vmin=-1, vmax=1)
        right.imshow(strip((x - truth).abs()), cmap="gray", vmin=0, vmax=0.5)
        left.set_ylabel(f"{method}\nNFE {n}", rotation=0, ha="right", va="center", fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(file, dpi=100)


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
        draw(net, noise, (4, 8), exact, options.picture)
    return rows


if __name__ == "__main__":
    main()
