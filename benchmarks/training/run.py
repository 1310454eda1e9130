"""Time to accuracy: eager and compiled reference and the fast backends train from one seed, in one order of images.

    python -m benchmarks.training.run --quick
    python -m benchmarks.training.run --data-path CIFAR --networks 2-2-2/euler --subset 5000 --epochs 8
    python -m benchmarks.training.run --data-path CIFAR --full

All contenders train networks of the paper's table (arXiv 2008.02389, CIFAR-10), a few batches each in turn. Without
``--full`` the schedule is shrunk to ``--epochs`` and the images to ``--subset``. Results are appended as JSON lines
below a header that says where they were measured; a network whose contenders do not equal the reference has no row,
and the exit status is 1. After an interruption the same command goes on from the last epoch of each contender.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.common.gate import GateError, WrongBackendError
from benchmarks.common.options import Parser, checked
from benchmarks.common.rows import ROOT, append, device_name, header, read, results_file
from benchmarks.training.cases import (
    CAVEATS,
    DATASETS,
    NETWORKS,
    QUICK,
    Entrant,
    Images,
    default_entrants,
    entrants,
    load_images,
)
from benchmarks.training.race import Race
from benchmarks.training.report import tables
from contnet_fast.backends import describe
from contnet_fast.errors import BackendUnavailable, check_choice, check_count, check_number
from contnet_fast.files import writable_folder
from contnet_fast.training.build import pick_device
from contnet_fast.training.config import Config
from contnet_fast.training.loop import TrainingError
from contnet_fast.training.progress import Silent


def parser() -> argparse.ArgumentParser:
    p = Parser("python -m benchmarks.training.run", __doc__)
    count = checked(lambda text: check_count("count", int(text)))
    whole = checked(lambda text: check_count("count", int(text), minimum=0))
    p.add_argument("--networks", nargs="+", default=["2-2-2/euler"], metavar="NAME", help=", ".join(NETWORKS))
    p.add_argument("--contenders", nargs="+", metavar="WHO", help="reference, compiled, cpu, triton, cuda, or one "
                   "layout of one, e.g. cpu:channels_last; default: what the device has")  # fmt: skip
    p.add_argument("--data", choices=DATASETS, help="default: cifar10 with --data-path, else gratings")
    p.add_argument("--data-path", type=Path, metavar="PATH", help="folder or .npz of CIFAR-10")
    p.add_argument("--subset", type=whole, metavar="N", help="training images, 0 for all; default 5000 of cifar10")
    p.add_argument("--epochs", type=count, help="that the paper's 120 are shrunk to; default 8")
    p.add_argument("--seeds", type=whole, nargs="+", help="default 1; with --full 1 2 3")
    p.add_argument("--thresholds", type=checked(_share), nargs="+", help="validation accuracies, e.g. 0.5 0.9")
    p.add_argument("--full", action="store_true", help="all networks, images and epochs, on a GPU")
    p.add_argument("--quick", action="store_true", help="a small net on drawn images, to see that it works")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    p.add_argument("--amp", choices=("none", "bfloat16"), help="autocast; default bfloat16 on a GPU, else none")
    p.add_argument("--threads", type=count, help="default: as torch has them")
    p.add_argument("--compile-budget", type=checked(_seconds), metavar="S",
                   help="for one contender; default 900, with --quick 25")  # fmt: skip
    p.add_argument("--out", type=Path, metavar="FILE", help="default benchmarks/results/train-cifar-<device>.jsonl")
    p.add_argument("--again", action="store_true", help="run rows that the file has too")
    return p


@dataclass(frozen=True)
class Command:
    """What a command runs, once its options are checked."""

    configs: list[tuple[str, Config]]
    contenders: list[Entrant]
    images: Images
    thresholds: tuple[float, ...]
    kind: str
    device: str
    out: Path
    options: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit status."""
    p = parser()
    args = p.parse_args(argv)
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads or before)
    try:
        command = _command(args)
        writable_folder("--out", command.out.parent)
        return _run(command, args)
    except ValueError as error:
        p.error(str(error))
    finally:
        torch.set_num_threads(before)


def _command(args: argparse.Namespace) -> Command:
    """Check the options, before anything is written.

    Raises:
        ValueError: options that do not go together, or data that is not there.
    """
    device = pick_device(args.device)
    if args.full and args.quick:
        raise ValueError("--full: got it with --quick, accepted: one of them")
    if args.full and (device.type == "cpu" or args.data_path is None or args.epochs or args.subset):
        raise ValueError("--full: accepted on a GPU, with --data-path, without --epochs and --subset")
    if args.quick and (args.data or args.data_path or args.subset or args.epochs):
        raise ValueError("--quick: accepted without --data, --data-path, --subset and --epochs")
    data = args.data or ("synthetic" if args.quick else "cifar10" if args.data_path else "gratings")
    if args.data_path is not None and data != "cifar10":
        raise ValueError(f"--data-path: got it with --data {data}, accepted with cifar10")
    kind = "full" if args.full else "quick" if args.quick else "short"
    names = list(NETWORKS) if args.full else [check_choice("--networks", name, NETWORKS) for name in args.networks]
    epochs = QUICK["epochs"] if args.quick else 120 if args.full else args.epochs or 8
    contenders = _contenders(args, device)
    amp = args.amp or ("none" if device.type == "cpu" else "bfloat16")
    settings = {"data": "cifar10" if data == "cifar10" else "synthetic", "amp": amp, "device": str(device)}
    if args.quick:
        settings |= {"batch_size": QUICK["batch_size"], "width": QUICK["width"]}
    seeds = args.seeds or ([1, 2, 3] if args.full else [1])
    configs = [(name, NETWORKS[name].config(epochs=epochs, seed=seed, **settings)) for name in names for seed in seeds]
    subset = QUICK["subset"] if args.quick else args.subset
    if subset is None:
        subset = 5000 if data == "cifar10" and not args.full else 0
    images = load_images(data, args.data_path, subset)
    batch, count = configs[0][1].batch_size, len(images.data.train)
    if count < batch:
        raise ValueError(f"--subset: got {count} images, accepted: at least a batch, {batch}")
    torch.backends.cudnn.benchmark = True  # for all contenders
    machine, path = device_name(device.type), results_file(device.type, "train-cifar")
    return Command(
        configs, contenders, Images(images.data.to(device), images.note, images.thresholds),
        tuple(sorted(args.thresholds or images.thresholds)), kind, machine,
        args.out or (ROOT / "runs" / path.name if args.quick else path),
        {name: value for name, value in vars(args).items() if name not in ("out", "data_path", "again")},
    )  # fmt: skip


def _contenders(args: argparse.Namespace, device: torch.device) -> list[Entrant]:
    asked = args.contenders or (QUICK["contenders"] if args.quick else default_entrants(device))
    found, known = [], describe()
    for one in entrants(tuple(asked)):
        if known.get(one.who, "available") == "available":
            found.append(one)
        elif args.contenders:
            raise ValueError(f"--contenders: got {one.name}, which cannot run here: {known[one.who]}")
        else:
            print(f"left out: {one.name}: {known[one.who]}", file=sys.stderr)
    return found


def _run(command: Command, args: argparse.Namespace) -> int:
    done = (
        {} if args.again or not command.out.exists() else {row["key"]: row for row in read(command.out) if "key" in row}
    )
    top = header(command.options)
    budget = args.compile_budget or (25.0 if args.quick else 900.0)
    fresh, written, failed = True, [], 0
    messages = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%"))
    clock = (TextColumn("{task.fields[status]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    options: dict[str, Any] = {"console": messages, "transient": True, "refresh_per_second": 2}
    with Progress(*columns, *clock, disable=not messages.is_terminal, **options) as progress:

        def log(line: str) -> None:
            messages.print(line, markup=False, highlight=False, soft_wrap=True)

        for name, config in command.configs:
            key = _key(command, name, config, top["header"])
            if key in done:
                log(f"{name}, seed {config.seed}: done before (--again runs it again)")
                written.append(done[key])
                continue
            bar = Bar(progress, progress.add_task(f"{name}, seed {config.seed}", total=None, status=""))
            race = Race(NETWORKS[name], config, command.images, command.thresholds, bar, budget, log=log)
            folder = command.out.with_suffix(".partial") / f"{name.replace('/', '-')}-seed{config.seed}-{key}"
            try:
                row = race.run(command.contenders, folder)
            except (GateError, WrongBackendError, BackendUnavailable, TrainingError) as error:
                log(f"no row: {name}, seed {config.seed}: {error}")
                failed += 1
                continue
            except KeyboardInterrupt:
                log("interrupted: finished rows are kept, and the same command goes on from the last epochs")
                return 130
            finally:
                progress.remove_task(bar.task)
            if fresh:
                append(command.out, top)
                fresh = False
            row |= {"key": key, "kind": command.kind, "device": command.device}
            if command.kind == "full":
                accuracy, minutes = NETWORKS[name].published
                row["published"] = {"test_accuracy": accuracy, "minutes": minutes, "caveats": CAVEATS}
            append(command.out, row)
            shutil.rmtree(folder)
            if not any(folder.parent.iterdir()):
                folder.parent.rmdir()
            written.append(row)
    if written:
        print(f"{tables(written)}\n\nrows in {command.out}")
    return 1 if failed else 0


class Bar(Silent):
    """The progress of one network over all its contenders."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task

    def start(self, config: Config, parameters: int, work: int, done: int) -> None:
        self.progress.update(self.task, total=work, completed=done)

    def batch(self, work: int, status: dict[str, float]) -> None:
        words = {"status": f"loss {status['loss']:.3f}"} if status else {}
        self.progress.update(self.task, advance=work, **words)


def _key(command: Command, name: str, config: Config, top: dict[str, Any]) -> str:
    """Return a digest of all that a row depends on: rows and checkpoints of another digest are not used again."""
    data = command.images.data
    what = [name, config.as_dict(), [one.name for one in command.contenders], command.images.note, len(data.train),
            command.thresholds, command.device, torch.get_num_threads(), torch.__version__, top["commit"]]  # fmt: skip
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]


def _share(text: str) -> float:
    value = check_number("threshold", float(text), positive=True)
    if value >= 1.0:
        raise ValueError(f"threshold: got {text}, accepted: a number between 0 and 1")
    return value


def _seconds(text: str) -> float:
    return check_number("seconds", float(text), positive=True)


if __name__ == "__main__":
    sys.exit(main())
