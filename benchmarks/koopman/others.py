"""Smaller studies: jumps along modes, losses with negative Sobolev norms, and equivalent dynamics."""

from __future__ import annotations

import math
import time

import torch
from torch import nn

from benchmarks.koopman.tasks import Images, Row, course, loss_on, seeded, vector
from contnet_fast.analysis.koopman import Jump, compare, jump, multiscale_signal, sobolev_loss
from contnet_fast.analysis.koopman.extrapolation import steps_saved

# ---- jumps

JUMP_SEEDS, JUMP_STEPS, JUMP_EVERY = 6, 300, 30
WINDOW, AHEAD = 15, 15
KINDS = {"all images": 0, "batches of 128": 128}


class Jumper:
    """Sees a training after each step: keeps losses, and jumps now and then if it may."""

    def __init__(self, data: Images, *, jumps: bool) -> None:
        self.loss = loss_on(data, len(data.y))
        self.jumps = jumps
        self.losses: list[float] = []
        self.seen: list[torch.Tensor] = []
        self.tried: list[Jump] = []
        self.seconds = 0.0  # spent here

    def __call__(self, step: int, net: nn.Module) -> None:
        began = time.perf_counter()
        self.seen = [*self.seen[-WINDOW + 1 :], vector(net)]
        if self.jumps and step % JUMP_EVERY == 0:
            self.tried.append(jump(net, torch.stack(self.seen), self.loss, steps=AHEAD))
        with torch.no_grad():
            self.losses.append(float(self.loss(net)))
        self.seconds += time.perf_counter() - began


def jumps(data: Images, seed: int) -> Row:
    """Train with and without jumps from the same start, on the same batches; the cost of a jump is in steps."""
    row: Row = {}
    for kind, batch in KINDS.items():
        watchers = {}
        for with_jumps in (False, True):
            watcher = watchers[with_jumps] = Jumper(data, jumps=with_jumps)
            began = time.perf_counter()
            course(seeded(data.name, seed), data, steps=JUMP_STEPS, lr=0.1, seed=seed, batch=batch, after=watcher)
            if not with_jumps:
                step_seconds = (time.perf_counter() - began - watcher.seconds) / JUMP_STEPS
        plain, jumped, tried = watchers[False].losses, watchers[True].losses, watchers[True].tried
        cost = sum(j.seconds for j in tried) / step_seconds
        row[kind] = {
            "kept": sum(j.kept for j in tried), "tried": len(tried), "cost": cost,
            "saved": steps_saved(plain, jumped, cost=0), "net": steps_saved(plain, jumped, cost=cost),
            "plain": plain[-1], "jumped": jumped[-1],
        }  # fmt: skip
    return row


# ---- Sobolev norms

SIGNAL_SEEDS, SIGNAL_STEPS, POINTS = 10, 1500, 256
ORDERS = (0.0, 0.5, 1.0, 2.0)
NOISES = (0.5, 2.0)


def signals(seed: int) -> Row:
    """Fit a network to noisy samples of a signal of three scales by losses of several orders; errors against the truth.

    "last" is the root mean squared error at the end, "best" the least at any time, which nobody knows in practice.
    """
    row: Row = {}
    for noise in NOISES:
        signal = multiscale_signal(POINTS, noise=noise, seed=seed)
        for s in ORDERS:
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 1))
            turns = 2 * math.pi * signal.x[:, None] * torch.arange(1, 33)
            inputs = torch.cat([turns.sin(), turns.cos()], dim=1)
            optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
            errors = []
            for _ in range(SIGNAL_STEPS):
                out = net(inputs)[:, 0]
                optimizer.zero_grad()
                sobolev_loss(out, signal.noisy, s=s).backward()
                optimizer.step()
                errors.append(float((out.detach() - signal.clean).square().mean().sqrt()))
            row[f"{noise:g}/{s:g}"] = {"last": errors[-1], "best": min(errors)}
    return row


# ---- equivalent dynamics

COMPARISONS = 5  # each with other seeds
SETS = {  # of the second set of runs; the first has the settings of the reference
    "the same settings": {},
    "twice the learning rate": {"lr": 0.4},
    "four times the learning rate": {"lr": 0.8},
    "a width of 8 instead of 32": {"width": 0.25},
    "a width of 64 instead of 32": {"width": 2},
}
RUNS, EPOCH, MODES = 6, 40, 10


def comparisons(data: Images, trial: int) -> Row:
    """Compare sets of runs by the spectra of their last layers, seen in each step (as arXiv 2302.09160 does)."""

    def runs(first: int, lr: float = 0.2, width: float = 1) -> list[torch.Tensor]:
        found = []
        for seed in range(first, first + RUNS):
            torch.manual_seed(seed)
            wide = int(32 * width)
            net = nn.Sequential(nn.Flatten(), nn.Linear(64, wide), nn.ReLU(), nn.Linear(wide, 10))
            seen: list[torch.Tensor] = []
            course(
                net, data, steps=EPOCH, lr=lr, seed=seed,
                after=lambda _, net, seen=seen: seen.append(net[-1].weight.detach().reshape(-1).clone()),
            )  # fmt: skip
            found.append(torch.stack(seen))
        return found

    base = runs(1000 * trial)
    row: Row = {}
    for name, changes in SETS.items():
        told = compare(base, runs(1000 * trial + 500, **changes), delays=4, rank=MODES, n_modes=MODES)
        row[name] = {"p": told.p_value, "between": told.between, "within": told.within}
    return row
