"""Training with exact resume.

Every batch draws from generators seeded by (seed, epoch, batch), so the state between two batches is the tensors of
the session and three integers: a run that is killed and resumed repeats the same arithmetic.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..analysis.accuracy import Score
from ..analysis.discretizations import kept_discretization
from ..files import writable_folder, write_text
from ..nn import blocks, set_discretization
from .build import amp_dtype, pick_device
from .checkpoints import load_checkpoint, save_checkpoint
from .config import Config
from .koopman import begin_recording, end_recording
from .run import load_net, open_run, write_run
from .session import Session
from .task import Task, kind_of

CHECK_EVERY = 20  # batches between two reads of the running loss from the device
SAVE_AFTER = 1.0  # seconds between two checkpoints of a run with brief epochs


class TrainingError(RuntimeError):
    """The run cannot go on; its last checkpoint is kept."""


class Reporter(Protocol):
    """Observes the progress of a run; ``work`` counts batches, of which one at twice the steps counts twice."""

    def start(self, config: Config, parameters: int, work: int, done: int) -> None:
        """Observe that the run begins, or goes on after ``done`` of ``work``."""

    def batch(self, work: int, status: dict[str, float]) -> None:
        """Observe that a batch was trained; ``status`` may be empty."""

    def record(self, record: dict[str, Any]) -> None:
        """Observe the record of a finished epoch or refinement."""


@dataclass(frozen=True)
class Result:
    """The test scores of the weights that validation chose and of the last weights."""

    net: nn.Module
    best: dict[str, Any]
    test: Score
    last_test: Score
    history: list[dict[str, Any]]


def train(config: Config, data: Task, out: Path, *, reporter: Reporter, resume: bool = False) -> Result:
    """Run ``config`` in the folder ``out``, from its start or from the last checkpoint there.

    The images of an epoch that do not fill a batch are left out; they differ from epoch to epoch. Writes
    ``config.json``, ``log.jsonl`` (a line for each epoch), the checkpoints ``last`` and ``best``, and ``result.json``.

    Raises:
        ValueError: impossible settings, before anything is written; a damaged or foreign checkpoint.
        TrainingError: the loss is not finite.
    """
    data = data.to(pick_device(config.device))
    event_writer = _event_writer(config)
    session = begin(config, data, out, resume=resume)
    size = sum(p.numel() for p in session.net.parameters())
    reporter.start(config, size, work(config, data, config.epochs), work(config, data, session.epoch))
    writer = event_writer(str(out / "tensorboard")) if event_writer else None
    try:
        while session.epoch < config.epochs:
            deepen(session, data, out, reporter)
            begin_recording(session, out, step=_step_number(session, data))
            train_epoch(session, data, out, reporter)
            record = finish_epoch(session, data, out, reporter)
            if writer is not None:
                _write_events(writer, record)
    finally:
        end_recording(session)
    return _report(session, data, out)


def begin(config: Config, data: Task, out: Path, *, resume: bool = False) -> Session:
    """Return the state of a run in the folder ``out``: its start, or the last checkpoint there.

    Args:
        data: the data set, on the device that trains.

    Raises:
        ValueError: impossible settings; a damaged or foreign checkpoint.
    """
    data.check(config)
    torch.backends.cudnn.deterministic = config.deterministic
    session = Session.start(config, data, data.device)
    writable_folder("out", out)
    if resume and (out / "last.json").is_file():
        session.restore(*load_checkpoint(out, "last"))
    write_run(out, config, data)
    write_text(out / "log.jsonl", "".join(json.dumps(record) + "\n" for record in session.history))
    return session


def work(config: Config, data: Task, epochs: int) -> int:
    """Return the work of the first ``epochs``, as :class:`Reporter` counts it."""
    return sum(data.batches(config) * 2 ** config.refinements(epoch) for epoch in range(epochs))


def _step_number(session: Session, data: Task) -> int:
    return session.epoch * data.batches(session.config) + session.batch


def _seed(config: Config, epoch: int, batch: int) -> int:
    return ((config.seed * 1_000_003 + epoch) * 1_000_003 + batch) % 2**62


def drawn_discretization(config: Config, epoch: int, batch: int) -> tuple[str, int] | None:
    """Return scheme and N for a batch, a function of (seed, epoch, batch); ``None`` stands for those of the net."""
    choices = config.discretizations
    if not choices:
        return None
    generator = torch.Generator().manual_seed(_seed(config, epoch, -3 - batch))  # apart from that of the augmentation
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def deepen(session: Session, data: Task, out: Path, reporter: Reporter) -> None:
    """Make the refinements that are due before this epoch."""
    config = session.config
    while session.batch == 0 and session.refinements < config.refinements(session.epoch):
        torch.manual_seed(_seed(config, session.epoch, -1))
        before = data.score(session.net, "valid", config)
        doubled = session.depth()["n_steps"] * 2
        session.refine()
        after = data.score(session.net, "valid", config)
        same = set_discretization(session.net, n_steps=doubled // 2)
        kept = data.score(same, "valid", config)
        set_discretization(session.net, n_steps=doubled)
        record = {
            "event": "refine",
            "epoch": session.epoch,
            **session.depth(),
            "valid_accuracy_before": before.accuracy,
            "valid_accuracy_same_steps": kept.accuracy,
            "valid_accuracy_double_steps": after.accuracy,
            "parameters": sum(p.numel() for p in session.net.parameters()),
        }
        session.history.append(record)
        _log(out, reporter, record)


def train_epoch(
    session: Session,
    data: Task,
    out: Path,
    reporter: Reporter,
    *,
    forward: Callable[[torch.Tensor], torch.Tensor] | None = None,
    until: int | None = None,
) -> None:
    """Train the remaining batches of this epoch.

    Args:
        forward: called instead of ``session.net``, whose weights it must use, for example the compiled net.
        until: the batch to stop before.

    Raises:
        TrainingError: the loss is not finite.
    """
    config, device = session.config, data.device
    n_batches, per_second = data.batches(config), f"{kind_of(config).unit}_per_second"
    end = n_batches if until is None else until
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(_seed(config, session.epoch, -2)))
    generator = torch.Generator(device)
    dtype = amp_dtype(config)
    context = torch.autocast(device.type, dtype=dtype) if dtype else nullcontext()
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    start = time.perf_counter()

    def settle() -> dict[str, float]:
        """Read the sums from the device, check them, and return the status."""
        nonlocal start
        loss, right, seen = totals.tolist()
        totals.zero_()
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} in epoch {session.epoch}, by batch {session.batch}: try a smaller lr "
                f"(got {config.lr:g}), warmup_epochs or grad_clip"
            )
        now = time.perf_counter()
        for name, value in (("loss", loss), ("right", right), ("seen", seen), ("seconds", now - start)):
            session.totals[name] = session.totals.get(name, 0.0) + value
        start = now
        seen, seconds = max(session.totals["seen"], 1.0), max(session.totals["seconds"], 1e-9)
        return {
            "loss": session.totals["loss"] / seen,
            "accuracy": session.totals["right"] / seen,
            per_second: seen / seconds,
        }

    session.net.train()
    run = session.net if forward is None else forward
    with kept_discretization(session.net):
        while session.batch < end:
            seed = _seed(config, session.epoch, session.batch)
            torch.manual_seed(seed)
            if drawn := drawn_discretization(config, session.epoch, session.batch):
                set_discretization(session.net, scheme=drawn[0], n_steps=drawn[1])
            generator.manual_seed(seed)
            rate = config.learning_rate(session.epoch + session.batch / n_batches)
            for group in session.optimizer.param_groups:
                group["lr"] = rate
            with context:
                done = data.outcome(run, config, order=order, batch=session.batch, generator=generator)
            _step(session, done.loss)
            if session.recorder is not None:
                session.recorder.record(_step_number(session, data), loss=done.loss)
            with torch.no_grad():
                seen = totals.new_tensor(done.seen)
                totals += torch.stack([done.loss.double() * seen, done.right.double(), seen])
            session.batch += 1
            last = session.batch == end
            status = settle() if last or session.batch % CHECK_EVERY == 0 or device.type == "cpu" else {}
            reporter.batch(2**session.refinements, status)
            if config.save_every and session.batch % config.save_every == 0 and not last:
                settle()
                save_checkpoint(out, "last", session.tensors(), session.state())


def _step(session: Session, loss: torch.Tensor) -> None:
    config, scaler = session.config, session.scaler
    session.optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    if config.grad_clip:
        scaler.unscale_(session.optimizer)
        nn.utils.clip_grad_norm_(session.net.parameters(), config.grad_clip)
    scaler.step(session.optimizer)
    scaler.update()
    for block in blocks(session.net):
        if hasattr(block.field, "retract"):  # parameters with a constraint, as orthogonal matrices
            block.field.retract()
    session.average()


def finish_epoch(session: Session, data: Task, out: Path, reporter: Reporter) -> dict[str, Any]:
    """Score the validation split, write the record of the epoch and the checkpoints, and return the record."""
    config, totals = session.config, session.totals
    scores = data.scores(session.evaluated, config)
    valid = scores["valid"]
    record = {
        "event": "epoch",
        "epoch": session.epoch,
        **session.depth(),
        "lr": session.optimizer.param_groups[0]["lr"],
        "train_loss": totals["loss"] / totals["seen"],
        "train_accuracy": totals["right"] / totals["seen"],
        **{f"{part}_{name}": getattr(s, name) for part, s in scores.items() for name in ("loss", "accuracy")},
        "seconds": round(totals["seconds"], 3),
        f"{kind_of(config).unit}_per_second": round(totals["seen"] / max(totals["seconds"], 1e-9), 1),
    }
    session.epoch, session.batch, session.totals = session.epoch + 1, 0, {}
    before = None if session.best is None else session.best["valid_accuracy"]
    better = before is None or valid.accuracy > before or (valid.accuracy == before and not kind_of(config).first)
    session.history.append(record)
    if better:
        session.best = record
        chosen = {f"net/{name}": t for name, t in session.evaluated.state_dict().items()}
        save_checkpoint(out, "best", chosen, {"refinements": session.refinements, "record": record})
    now = time.monotonic()
    if not kind_of(config).brief or session.epoch == config.epochs or now - session.saved >= SAVE_AFTER:
        save_checkpoint(out, "last", session.tensors(), session.state())
        session.saved = now
    _log(out, reporter, record)
    return record


def _write_events(writer: Any, record: dict[str, Any]) -> None:
    for name in record.keys() - {"event", "epoch", "n_basis", "n_steps", "seconds"}:
        writer.add_scalar(name, record[name], record["epoch"])
    writer.flush()


def _report(session: Session, data: Task, out: Path) -> Result:
    """Score the chosen and the last weights on the test split, which was not used before."""
    config = session.config
    last_test = data.score(session.evaluated, "test", config)
    best_net, record = load_net(open_run(out), device=data.device)
    test = data.score(best_net, "test", config)
    summary = {
        "parameters": sum(p.numel() for p in best_net.parameters()),
        "best_epoch": record["epoch"],
        "valid_accuracy": record["valid_accuracy"],
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "last_test_accuracy": last_test.accuracy,
        "n_test": test.n_images,
        **session.depth(),
    }
    write_text(out / "result.json", json.dumps(summary, indent=1))
    return Result(best_net, record, test, last_test, session.history)


def _log(out: Path, reporter: Reporter, record: dict[str, Any]) -> None:
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")
    reporter.record(record)


def _event_writer(config: Config) -> Any:
    """Return TensorBoard's writer class, or ``None`` if the run writes no events."""
    if not config.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(f"tensorboard: got True, accepted where tensorboard is installed ({error})") from None
    return SummaryWriter
