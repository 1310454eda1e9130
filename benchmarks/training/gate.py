"""Check each contender's first step against float64, and its first losses, before a training row is written.

Logits, loss and gradients are those of the first images at the initial weights; ours are checked at each depth that
refinement reaches. Their errors may be twice those of eager PyTorch in the same memory layout. In addition, logits may
be off by 1 ulp of the largest one (under autocast 2^-8 of it), gradients by ``CHANCE`` for relus near zero, and the
loss by what such logits change in it. PyTorch's batch statistics in channels_last are good to 1e-3 only, and stem and
stitches compute them: there, and for baselines, logits may be off by 1e-3 more. A gradient that is off is computed
again with other initial weights: a relu near zero is off for one draw of them, a wrong formula for all. The cpu
backend is checked in float64 too, which leaves no room for chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import contnet_fast as cf
from benchmarks.common.contender import gradients
from benchmarks.common.formats import FORMATS
from benchmarks.common.gate import (
    BASELINE_TOLERANCE,
    CHANCE,
    FLOAT64_TOLERANCE,
    SMALL_BATCH,
    GateError,
    Results,
    WrongBackendError,
    errors,
)
from benchmarks.training.cases import LAYOUTS, Entrant
from contnet_fast.training.build import amp_dtype, build_optimizer
from contnet_fast.training.config import Config
from contnet_fast.training.data import Data
from contnet_fast.training.loop import train_epoch
from contnet_fast.training.progress import Silent
from contnet_fast.training.session import Session, deepened

STEPS = 3  # number of steps whose losses are compared
DRAWS = 4  # draws of the initial weights, one of which must have the right gradient
LOSS_TOLERANCE = {None: 3e-2, torch.bfloat16: 5e-2, torch.float16: 5e-2}  # relative, in addition to twice eager's error
GRADIENT = {None: CHANCE, torch.bfloat16: 2e-2, torch.float16: 2e-2}
OUTPUT = {None: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}  # relative to the largest logit
EAGER = {layout: Entrant("reference", layout) for layout in LAYOUTS}

Forward = Callable[[torch.Tensor], torch.Tensor]
Prepare = Callable[[Entrant, nn.Module], Forward]


@dataclass(frozen=True)
class Gate:
    """The check of one row.

    Attributes:
        config: the configuration of eager PyTorch.
        data: the images, on the device.
        prepare: returns how a contender runs a network.
        ready: networks that are prepared already, so that none is compiled twice; their state is restored.
    """

    config: Config
    data: Data
    prepare: Prepare
    ready: Mapping[str, tuple[nn.Module, Forward]] = field(default_factory=dict)
    _exact: dict[tuple[int, int, int], Results] = field(default_factory=dict)
    _eager: dict[tuple[str, int, int], dict[str, float]] = field(default_factory=dict)

    def check(self, contenders: list[Entrant]) -> dict[str, Any]:
        """Check all contenders and return the report for the row.

        Raises:
            GateError: a contender computes something else.
            WrongBackendError: another backend ran.
        """
        exact = self._losses(EAGER["nchw"], double=True)
        eager = {layout: self._losses(EAGER[layout], plain=True) for layout in {one.layout for one in contenders}}
        report: dict[str, Any] = {"first_losses": {"float64": exact}}
        for one in contenders:
            report[one.name] = self._first_step(one)
            losses = self._losses(one)
            report["first_losses"][one.name] = losses
            self._judge_losses(one, losses, exact, eager[one.layout])
        return report

    def _first_step(self, one: Entrant) -> dict[str, Any]:
        report: dict[str, Any] = {}
        for depth in range(len(self.config.refine_epochs) + 1 if one.is_ours else 1):
            report[f"depth {depth}"] = self._judge_draws(one, depth)
            if one.who == "cpu":  # the only backend of ours that computes whole networks in float64
                self._in_float64(one, depth)
        return report

    def _judge_draws(self, one: Entrant, depth: int) -> dict[str, Any]:
        """Return what came nearest to its limit; of a gradient the best of ``DRAWS`` draws of the weights counts."""
        best: dict[str, tuple[float, float]] = {}
        for draw in range(DRAWS):
            exact = self._in_exact(depth, self.config.batch_size, draw)
            found = errors(self._results(one, depth, draw=draw), exact)
            allowed = self._allowed(one, self._eager_errors(one.layout, depth, draw), exact)
            outputs = {name: limit for name, limit in allowed.items() if name in ("y", "loss")}
            self._judge(one, found, outputs)
            for name, limit in allowed.items():
                now = (found[name], limit)
                best[name] = min(best.get(name, now), now, key=lambda pair: _excess(*pair))
            if all(error <= limit for error, limit in best.values()):
                break
        self._judge(one, {n: error for n, (error, _) in best.items()}, {n: limit for n, (_, limit) in best.items()})
        nearest = max(best, key=lambda name: _excess(*best[name]))
        return {
            "what": nearest,
            "error": _short(best[nearest][0]),
            "allowed": _short(best[nearest][1]),
            "draws": draw + 1,
        }

    def _allowed(self, one: Entrant, eager: dict[str, float], exact: Results) -> dict[str, float]:
        dtype = amp_dtype(self.config)
        exact_layout = one.is_ours and one.layout == "nchw"
        output = OUTPUT[dtype] if exact_layout else max(BASELINE_TOLERANCE[torch.float32], OUTPUT[dtype])
        allowed = {name: 2.0 * error + GRADIENT[dtype] for name, error in eager.items()}
        y = 2.0 * eager["y"] + output * float(exact["y"].abs().max())
        # relative to the right loss; eager's errors may cancel in its loss by chance
        loss = 2.0 * y / float(exact["loss"].norm())
        return allowed | {"y": y, "loss": loss + output}

    def _in_float64(self, one: Entrant, depth: int) -> None:
        """Check two images in float64."""
        exact = self._in_exact(depth, SMALL_BATCH)
        found = errors(self._results(one, depth, double=True, images=SMALL_BATCH), exact)
        self._judge(one, found, dict.fromkeys(found, FLOAT64_TOLERANCE), " in float64")

    def _in_exact(self, depth: int, images: int, draw: int = 0) -> Results:
        key = depth, images, draw
        if key not in self._exact:
            self._exact[key] = self._results(EAGER["nchw"], depth, double=True, images=images, draw=draw)
        return self._exact[key]

    def _eager_errors(self, layout: str, depth: int, draw: int) -> dict[str, float]:
        """Return eager PyTorch's errors, the larger of two runs, of which the second sums images in reversed order."""
        key = layout, depth, draw
        if key not in self._eager:
            exact = self._in_exact(depth, self.config.batch_size, draw)
            runs = [self._results(EAGER[layout], depth, plain=True, reverse=back, draw=draw) for back in (False, True)]
            found = [errors(run, exact) for run in runs]
            self._eager[key] = {name: max(run[name] for run in found) for name in exact}
        return self._eager[key]

    def _judge(self, one: Entrant, found: dict[str, float], allowed: dict[str, float], how: str = "") -> None:
        wrong = [f"{name}: error {found[name]:.2e}, allowed {limit:.2e}" for name, limit in allowed.items()
                 if not found[name] <= limit]  # fmt: skip
        if wrong:
            raise GateError(f"{one.name}{how}: the first step is not the reference's: " + "; ".join(wrong[:4]))

    def _judge_losses(self, one: Entrant, losses: list[float], exact: list[float], eager: list[float]) -> None:
        tolerance = LOSS_TOLERANCE[amp_dtype(self.config)]
        for step, (mine, right, other) in enumerate(zip(losses, exact, eager, strict=True)):
            allowed = 2.0 * abs(other - right) + tolerance * abs(right)
            if not abs(mine - right) <= allowed:
                words = f"is {mine:.5f}, in float64 {right:.5f}, allowed +-{allowed:.5f}"
                raise GateError(f"{one.name}: the loss of step {step} {words}")

    @contextmanager
    def _session(
        self, one: Entrant, depth: int = 0, *, double: bool = False, plain: bool = False, draw: int = 0
    ) -> Iterator[tuple[Session, Forward]]:
        """Yield a fresh session, and how its network is run: uncompiled if ``plain`` or ``double``."""
        seed = self.config.seed + draw
        config = replace(self.config, seed=seed, **one.settings(), **({"amp": "none"} if double else {}))
        session = Session.start(config, self.data, self.data.train.images.device)
        for _ in range(depth):
            session.net = deepened(session.net)
        if double or plain:
            net = session.net.double() if double else session.net
            yield session, (lambda x: net(x.double())) if double else net
        elif depth or one.name not in self.ready:
            yield session, self.prepare(one, session.net)
        else:
            net, forward = self.ready[one.name]
            kept = {name: value.clone() for name, value in net.state_dict().items()}
            net.load_state_dict(session.net.state_dict())
            session.net, session.optimizer = net, build_optimizer(config, net)
            yield session, forward
            net.load_state_dict(kept)
            net.zero_grad(set_to_none=True)

    def _results(
        self,
        one: Entrant,
        depth: int,
        *,
        double: bool = False,
        plain: bool = False,
        images: int | None = None,
        reverse: bool = False,
        draw: int = 0,
    ) -> Results:
        """Return logits, loss and gradients of the first ``images`` (default: a batch); ``plain``: uncompiled."""
        dtype = None if double else amp_dtype(self.config)
        count = self.config.batch_size if images is None else images
        pixels, labels = self.data.normalise(self.data.train.images[:count]), self.data.train.labels[:count]
        if reverse:
            pixels, labels = pixels.flip(0), labels.flip(0)
        pixels = pixels.contiguous(memory_format=FORMATS[one.layout])
        with self._session(one, depth, double=double, plain=plain, draw=draw) as (session, run):
            session.net.train()
            with torch.autocast(pixels.device.type, dtype=dtype) if dtype else nullcontext():
                logits = run(pixels)
            logits = logits if double else logits.float()
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            y = logits.detach()
            return {"y": y.flip(0) if reverse else y, "loss": loss.detach(), **gradients(session.net)}

    def _losses(self, one: Entrant, *, double: bool = False, plain: bool = False) -> list[float]:
        """Return the losses of the first steps of the training loop."""
        total, losses = 0.0, []
        with self._session(one, double=double, plain=plain) as (session, forward):
            for step in range(min(STEPS, len(self.data.train) // self.config.batch_size)):
                train_epoch(session, self.data, Path(), Silent(), forward=forward, until=step + 1)
                now = session.totals["loss"]
                losses.append((now - total) / self.config.batch_size)
                total = now
        return [round(value, 6) for value in losses]


def what_ran(one: Entrant, run: Callable[[], object]) -> list[str]:
    """Call once and return what ran.

    Raises:
        WrongBackendError: another backend ran than the one of the contender.
    """
    with cf.record_runs() as log:
        run()
    ran = sorted({f"{entry.op} {entry.backend}:{entry.level}" for entry in log})
    wanted = {"reference": {"reference"}, "compiled": set()}.get(one.who, {one.who})
    if {entry.backend for entry in log} != wanted:
        raise WrongBackendError(f"{one.name}: {', '.join(ran) or 'nothing of this package'} ran")
    return ran or ["a graph of torch.compile"]


def _excess(error: float, limit: float) -> float:
    """Return an error over its limit; infinity for one that is not a number."""
    return error / limit if error == error else float("inf")


def _short(value: float) -> float:
    return float(f"{value:.3g}")
