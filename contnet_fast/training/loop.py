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
from .build import amp_dtype
from .checkpoints import load_checkpoint, save_checkpoint
from .config import Config
from .koopman import begin_recording, end_recording
from .processes import ALONE, Processes, Stopped, TrainingError, counted, kept_statistics
from .run import load_net, open_run, write_run
from .session import Session
from .task import Outcome, Task, batch_rows, kind_of

CHECK_EVERY = 20  # batches between two reads of the running loss from the device
SAVE_AFTER = 1.0  # seconds between two checkpoints of a run with brief epochs


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


def train(
    config: Config,
    data: Task,
    out: Path,
    *,
    reporter: Reporter,
    resume: bool = False,
    processes: Processes = ALONE,
) -> Result:
    """Run ``config`` in the folder ``out``, from its start or from the last checkpoint there.

    The images of an epoch that do not fill a batch are left out; they differ from epoch to epoch. Writes
    ``config.json``, ``log.jsonl`` (a line for each epoch), the checkpoints ``last`` and ``best``, and ``result.json``.

    Args:
        processes: those that share the batches; each calls this function.

    Raises:
        ValueError: impossible settings, before anything is written; a damaged or foreign checkpoint.
        TrainingError: the loss is not finite.
        Stopped: ``processes.stop`` was set; the checkpoint ``last`` is that of the last batch.
    """
    data = data.to(processes.device(config.device))
    event_writer = _event_writer(config) if processes.first else None
    session = begin(config, data, out, resume=resume, processes=processes)
    size = sum(p.numel() for p in session.net.parameters())
    reporter.start(config, size, work(config, data, config.epochs), work(config, data, session.epoch))
    writer = event_writer(str(out / "tensorboard")) if event_writer else None
    try:
        while session.epoch < config.epochs:
            deepen(session, data, out, reporter)
            if processes.first:
                begin_recording(session, out, step=_step_number(session, data))
            train_epoch(session, data, out, reporter)
            record = finish_epoch(session, data, out, reporter)
            if writer is not None:
                _write_events(writer, record)
    finally:
        end_recording(session)
    processes.finish_saving()
    return _report(session, data, out)


def begin(config: Config, data: Task, out: Path, *, resume: bool = False, processes: Processes = ALONE) -> Session:
    """Return the state of a run in the folder ``out``: its start, or the last checkpoint there.

    Args:
        data: the data set, on the device that trains.

    Raises:
        ValueError: impossible settings; a damaged or foreign checkpoint.
    """
    with processes.together():
        data.check(config)
        processes.check(config)
        torch.backends.cudnn.deterministic = config.deterministic
        session = Session.start(config, data, data.device, processes)
        writable_folder("out", out)
        if resume and (out / "last.json").is_file():
            session.restore(*load_checkpoint(out, "last"))
    with processes.together():
        if processes.first:
            write_run(out, config, data)
            write_text(out / "log.jsonl", "".join(json.dumps(record) + "\n" for record in session.history))
    with processes.together():
        if not (out / "config.json").is_file():
            raise ValueError(f"out: got {out}, accepted: a folder on a file system that all hosts share")
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
        before = data.score(session.net, "valid", config, processes=session.processes)
        doubled = session.depth()["n_steps"] * 2
        session.refine()
        after = data.score(session.net, "valid", config, processes=session.processes)
        same = set_discretization(session.net, n_steps=doubled // 2)
        kept = data.score(same, "valid", config, processes=session.processes)
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
        _log(session, out, reporter, record)


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
        Stopped: the run was asked to end.
    """
    config, device, processes = session.config, data.device, session.processes
    n_batches, per_second = data.batches(config), f"{kind_of(config).unit}_per_second"
    end = n_batches if until is None else until
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(_seed(config, session.epoch, -2)))
    generator = torch.Generator(device)
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    start = time.perf_counter()

    def settle() -> tuple[dict[str, float], bool]:
        """Read the sums from the device, check them, and return the status and whether a process is asked to end."""
        nonlocal start
        totals[3] = float(processes.stop)
        loss, right, seen, stop = processes.sum(totals).tolist()
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
        status = {
            "loss": session.totals["loss"] / seen,
            "accuracy": session.totals["right"] / seen,
            per_second: seen / seconds,
        }
        return status, stop > 0.0

    session.net.train()
    with processes.parallel(session, data.sizes) as run, kept_discretization(session.net):
        run = run if forward is None else forward
        while session.batch < end:
            seed = _seed(config, session.epoch, session.batch)
            torch.manual_seed(processes.seed(seed))
            if drawn := drawn_discretization(config, session.epoch, session.batch):
                set_discretization(session.net, scheme=drawn[0], n_steps=drawn[1])
            rate = config.learning_rate(session.epoch + session.batch / n_batches)
            for group in session.optimizer.param_groups:
                group["lr"] = rate
            done = _gradients(session, data, run, order=order, generator=generator)
            _step(session)
            if config.koopman:
                _record(session, data, done.loss)
            count = counted(batch_rows(data, config, session.batch))
            totals[:3] += torch.stack([done.loss.double() * count, done.right.double(), totals.new_tensor(done.seen)])
            session.batch += 1
            last = session.batch == end
            look = last or session.batch % CHECK_EVERY == 0 or device.type == "cpu"
            status, stop = settle() if look else ({}, False)
            reporter.batch(2**session.refinements, status)
            if last:  # of an epoch, whose end saves too
                break
            if stop or (config.save_every and session.batch % config.save_every == 0):
                settle()
                _save(session, out)
            if stop:
                processes.finish_saving()
                raise Stopped(
                    f"asked to end: saved in epoch {session.epoch} after {session.batch} of {n_batches} batches"
                )


def _gradients(
    session: Session, data: Task, run: Callable[..., Any], *, order: torch.Tensor, generator: torch.Generator
) -> Outcome:
    """Compute the gradient of the mean loss of a batch, and return what this process has of its outcome.

    Wrappers average gradients over processes, so each multiplies its share of the loss by their number.
    """
    config, processes, dtype = session.config, session.processes, amp_dtype(session.config)
    parts = processes.parts(counted(batch_rows(data, config, session.batch)), config.micro_batch)
    seed = _seed(config, session.epoch, session.batch)
    found = []
    session.optimizer.zero_grad(set_to_none=True)
    for i, rows in enumerate(parts):
        generator.manual_seed(seed)
        with processes.gathers(run, i == len(parts) - 1), kept_statistics(session.net, counted(rows) == 0):
            with torch.autocast(data.device.type, dtype=dtype) if dtype else nullcontext():
                one = data.outcome(run, config, order=order, batch=session.batch, generator=generator, rows=rows)
            loss = one.loss if counted(rows) else processes.of_no_rows(one.loss, session.net)
            session.scaler.scale(loss * processes.size).backward()
        found.append(Outcome(one.loss.detach(), one.right, one.seen))
    loss, right, seen = (sum(values) for values in zip(*found, strict=True))
    processes.merge_statistics(session.net, seen)
    return Outcome(loss, right, seen)


def _step(session: Session) -> None:
    config, scaler = session.config, session.scaler
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
    scores = data.scores(session.evaluated, config, processes=session.processes)
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
    if better and session.processes.first:
        chosen = {f"net/{name}": t for name, t in session.evaluated.state_dict().items()}
        save_checkpoint(out, "best", chosen, {"refinements": session.refinements, "record": record})
    now = time.monotonic()
    if not kind_of(config).brief or session.epoch == config.epochs or now - session.saved >= SAVE_AFTER:
        _save(session, out)
        session.saved = now
    _log(session, out, reporter, record)
    return record


def _save(session: Session, out: Path) -> None:
    keep = session.config.keep_checkpoints
    session.processes.save(out, "last", session.tensors(), session.state(), keep=keep)


def _write_events(writer: Any, record: dict[str, Any]) -> None:
    for name in record.keys() - {"event", "epoch", "n_basis", "n_steps", "seconds"}:
        writer.add_scalar(name, record[name], record["epoch"])
    writer.flush()


def _report(session: Session, data: Task, out: Path) -> Result:
    """Score the chosen and the last weights on the test split, which was not used before."""
    config = session.config
    processes = session.processes
    last_test = data.score(session.evaluated, "test", config, processes=processes)
    best_net, record = load_net(open_run(out), device=data.device)
    test = data.score(best_net, "test", config, processes=processes)
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
    if processes.first:
        write_text(out / "result.json", json.dumps(summary, indent=1))
    return Result(best_net, record, test, last_test, session.history)


def _log(session: Session, out: Path, reporter: Reporter, record: dict[str, Any]) -> None:
    if session.processes.first:
        with (out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")
    reporter.record(record)


def _record(session: Session, data: Task, loss: torch.Tensor) -> None:
    """Record the weights after a batch; the loss is that of all processes, of which one records."""
    loss = session.processes.sum(loss)
    if session.recorder is not None:
        session.recorder.record(_step_number(session, data), loss=loss)


def _event_writer(config: Config) -> Any:
    """Return TensorBoard's writer class, or ``None`` if the run writes no events."""
    if not config.tensorboard:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(f"tensorboard: got True, accepted where tensorboard is installed ({error})") from None
    return SummaryWriter
