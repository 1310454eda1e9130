"""Measure one training row: contenders train the same network from the same seed, a few batches each in turn.

Seconds are those of the training loop (batches, augmentation, forward, backward, optimiser, reading the loss), without
evaluation, checkpoints, compilation and warm-up. Each contender is a run in a folder of its own, with a checkpoint
after every epoch.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common.compiled import in_steps
from benchmarks.common.formats import FORMATS
from benchmarks.common.timing import OutOfTime, time_budget, wait_until_idle
from benchmarks.training.cases import WHOLE_GRAPH, Entrant, Images, PaperNetwork
from benchmarks.training.gate import Forward, Gate, what_ran
from contnet_fast.files import write_text
from contnet_fast.models import ContinuousNet
from contnet_fast.nn import blocks
from contnet_fast.schemes.tableaus import get_tableau
from contnet_fast.training.build import amp_dtype
from contnet_fast.training.config import Config
from contnet_fast.training.loop import Reporter, begin, deepen, finish_epoch, train_epoch, work
from contnet_fast.training.progress import Silent
from contnet_fast.training.session import Session

TURN = {"cpu": 2, "cuda": 20}  # batches; few, so that a disturbance of the machine affects all contenders
WARM_UP = 3  # steps; CUDA graphs are recorded in the second and third


@dataclass
class Racer:
    """A contender in training."""

    entrant: Entrant
    session: Session
    folder: Path
    forward: Forward
    ran: list[str] = field(default_factory=list)
    note: str = ""
    warm_up_s: float = 0.0
    peak_bytes: int | None = None
    resumed_at: int = 0
    typical: dict[int, float] = field(default_factory=dict)  # seconds of an epoch, by the median of its batches

    def recall(self) -> None:
        """Load what an interrupted run had measured before its last checkpoint."""
        path = self.folder / "race.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"typical": {}}
        self.typical = {int(epoch): seconds for epoch, seconds in kept.pop("typical").items()}
        for name, value in kept.items():
            setattr(self, name, value)


@dataclass
class Race:
    """The run of one row.

    Attributes:
        network: what is trained.
        reporter: hears of every batch.
        budget: seconds that one contender may take to compile.
        seconds: no epoch begins after these.
        log: prints a line.
    """

    network: PaperNetwork
    config: Config
    images: Images
    thresholds: Sequence[float]
    reporter: Reporter = field(default_factory=Silent)
    budget: float = 900.0
    seconds: float = float("inf")
    log: Callable[[str], None] = print

    def run(self, contenders: Sequence[Entrant], folder: Path) -> dict[str, Any]:
        """Check and train the contenders, and return the row.

        Raises:
            GateError: a contender computes something else.
            WrongBackendError: another backend ran.
            TrainingError: a loss is not finite.
        """
        torch.compiler.reset()
        left_out: dict[str, str] = {}
        with torch._dynamo.config.patch(recompile_limit=64):  # all contenders share the code of one network
            racers = self._ready(contenders, folder, left_out)
            ready = {r.entrant.name: (r.session.net, r.forward) for r in racers if not r.session.refinements}
            gate = Gate(self.config, self.images.data, lambda one, net: compiled(one, net)[0], ready)
            checked = gate.check([racer.entrant for racer in racers])
            self._train(racers)
        return self._row(racers, checked, left_out)

    def _ready(self, contenders: Sequence[Entrant], folder: Path, left_out: dict[str, str]) -> list[Racer]:
        racers = []
        for one in contenders:
            config = replace(self.config, **one.settings())
            place = folder / one.name.replace(":", "-")
            session = begin(config, self.images.data, place, resume=True)
            racer = Racer(one, session, place, session.net, resumed_at=session.epoch)
            if session.epoch:
                self.log(f"{self.network.name}: {one.name} goes on after epoch {session.epoch}")
                racer.recall()
            try:
                with time_budget(self.budget) if one.who == "compiled" else nullcontext():
                    self._warm_up(racer)
            except OutOfTime:
                left_out[one.name] = f"not compiled in {self.budget:.0f} s"
                self.log(f"{self.network.name}: {one.name} left out, {left_out[one.name]}")
                torch.compiler.reset()
                wait_until_idle(limit=30.0)
                continue
            racers.append(racer)
        return racers

    def _train(self, racers: list[Racer]) -> None:
        """Train epoch by epoch; after an interruption contenders that are ahead wait for the others."""
        data, start = self.images.data, time.perf_counter()
        done = sum(work(self.config, data, racer.session.epoch) for racer in racers)
        self.reporter.start(self.config, 0, len(racers) * work(self.config, data, self.config.epochs), done)
        for epoch in range(self.config.epochs):
            if epoch and time.perf_counter() - start > self.seconds:
                return
            self._epoch([racer for racer in racers if racer.session.epoch == epoch])

    def _epoch(self, racers: list[Racer]) -> None:
        """Train an epoch in turns of a few batches, in an order that rotates by one from turn to turn."""
        data = self.images.data
        for racer in racers:
            net = racer.session.net
            deepen(racer.session, data, racer.folder, self.reporter)
            if racer.session.net is not net:
                self._warm_up(racer)
        size, count = TURN[data.train.images.device.type], len(data.train) // self.config.batch_size
        times: list[list[float]] = [[] for _ in racers]
        for turn, begun in enumerate(range(0, count, size)):
            for i in range(len(racers)):
                who = (turn + i) % len(racers)
                times[who].append(self._turn(racers[who], min(begun + size, count)))
        for racer, taken in zip(racers, times, strict=True):
            racer.typical[racer.session.epoch] = round(count * statistics.median(taken), 4)
            finish_epoch(racer.session, data, racer.folder, self.reporter)
            kept = {name: getattr(racer, name) for name in ("typical", "warm_up_s", "peak_bytes")}
            write_text(racer.folder / "race.json", json.dumps(kept))

    def _turn(self, racer: Racer, until: int) -> float:
        """Train to batch ``until``, and return the seconds of a batch."""
        session, device = racer.session, self.images.data.train.images.device
        before, begun, held = session.totals.get("seconds", 0.0), session.batch, 0
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            held = torch.cuda.memory_allocated(device)
        train_epoch(session, self.images.data, racer.folder, self.reporter, forward=racer.forward, until=until)
        if device.type == "cuda":
            racer.peak_bytes = max(torch.cuda.max_memory_allocated(device) - held, racer.peak_bytes or 0)
        return (session.totals["seconds"] - before) / (session.batch - begun)

    def _warm_up(self, racer: Racer) -> None:
        """Compile, and let libraries choose algorithms, by a few steps that leave weights and buffers as they are."""
        net, config, data = racer.session.net.train(), racer.session.config, self.images.data
        start = time.perf_counter()
        racer.forward, racer.note = compiled(racer.entrant, net)
        buffers = [(buffer, buffer.clone()) for buffer in net.buffers()]
        images, labels = data.train.images[: config.batch_size], data.train.labels[: config.batch_size]
        dtype = amp_dtype(config)

        def step() -> None:
            pixels = data.normalise(images).contiguous(memory_format=FORMATS[racer.entrant.layout])
            with torch.autocast(images.device.type, dtype=dtype) if dtype else nullcontext():
                logits = racer.forward(pixels)
            F.cross_entropy(logits.float(), labels).backward()
            net.zero_grad(set_to_none=True)

        for _ in range(WARM_UP):
            step()
        racer.warm_up_s += time.perf_counter() - start
        racer.ran = sorted({*racer.ran, *what_ran(racer.entrant, step)})
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)

    def _row(self, racers: list[Racer], checked: dict[str, Any], left_out: dict[str, str]) -> dict[str, Any]:
        config, data = self.config, self.images.data
        entries = {racer.entrant.name: self._entry(racer) for racer in racers}
        return {
            "case": f"train/{self.network.name}",
            "seed": config.seed,
            "data": self.images.note,
            "n_train": len(data.train),
            "n_valid": len(data.valid),
            "n_test": len(data.test),
            "epochs": min(racer.session.epoch for racer in racers),
            "settings": {name: getattr(config, name) for name in (
                "width", "scheme", "n_basis", "n_steps", "refine_epochs", "batch_size", "lr", "lr_decay_epochs",
                "weight_decay", "augment", "amp")},
            "threads": torch.get_num_threads(),
            "thresholds": list(self.thresholds),
            "gate": checked,
            "contenders": entries,
            "ratios": ratios(entries),
            **({"left_out": left_out} if left_out else {}),
        }  # fmt: skip

    def _entry(self, racer: Racer) -> dict[str, Any]:
        session, data = racer.session, self.images.data
        epochs = [record for record in session.history if record["event"] == "epoch"]
        seconds = [record["seconds"] for record in epochs]
        curve = [
            [round(sum(seconds[: i + 1]), 3), round(record["train_loss"], 5), round(record["valid_accuracy"], 5)]
            for i, record in enumerate(epochs)
        ]
        middle = statistics.fmean if self.config.refine_epochs else statistics.median  # deeper epochs take longer
        typical = middle([racer.typical.get(record["epoch"], record["seconds"]) for record in epochs])
        images = len(data.train) // self.config.batch_size * self.config.batch_size
        peak = {} if racer.peak_bytes is None else {"peak_mib": round(racer.peak_bytes / 2**20, 1)}
        return {
            "ran": racer.ran,
            **({"note": racer.note} if racer.note else {}),
            **({"resumed_at": racer.resumed_at} if racer.resumed_at else {}),
            "warm_up_s": round(racer.warm_up_s, 2),
            "seconds": round(sum(seconds), 3),
            "s_per_epoch": round(typical, 4),
            "images_per_s": round(images / typical, 1),
            "to_accuracy": {f"{t:g}": next((s for s, _, a in curve if a >= t), None) for t in self.thresholds},
            "valid_accuracy": epochs[-1]["valid_accuracy"],
            "test_accuracy": data.score(session.net, "test", session.config).accuracy,
            **peak,
            "curve": curve,
        }


def compiled(one: Entrant, net: nn.Module) -> tuple[Forward, str]:
    """Return how a contender runs its network in training, and a note for the row."""
    if one.who != "compiled":
        return net, ""
    assert isinstance(net, ContinuousNet)
    block = blocks(net)[0]
    if block.n_steps * get_tableau(block.scheme).n_stages <= WHOLE_GRAPH:
        return torch.compile(net, fullgraph=True, dynamic=False), "one graph of the whole network"
    return in_steps(net), "stem, stitches and one step of each block compiled, the step called N times"


def ratios(entries: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return, by contender, the seconds of the best reference, and of the best compiled one, over those of its own."""
    found: dict[str, dict[str, float]] = {name: {} for name in entries}
    for who in ("reference", "compiled"):
        rivals = [entry for name, entry in entries.items() if name.startswith(who)]
        if not rivals:
            continue
        best = min(entry["s_per_epoch"] for entry in rivals)
        for name, entry in entries.items():
            found[name][f"best {who}, an epoch"] = round(best / entry["s_per_epoch"], 3)
            for threshold, seconds in entry["to_accuracy"].items():
                others = [rival["to_accuracy"][threshold] for rival in rivals]
                reached = [value for value in others if value is not None]
                if seconds is not None and reached:
                    found[name][f"best {who}, to {threshold}"] = round(min(reached) / seconds, 3)
    return found
