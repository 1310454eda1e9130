"""``contnet-fast train``: train a network."""

from __future__ import annotations

import argparse
import shlex
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import fail, free_folder, number, path

if TYPE_CHECKING:
    from ..training import Config, Run
    from ..training.processes import Processes
    from ..training.task import Task

# settings that do not change the result
RESUMABLE = ("device", "data_path", "save_every", "keep_checkpoints", "tensorboard")

HELP = "train a network"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--recipe", help="preset to start from; see contnet-fast recipes")
    parser.add_argument("--config", metavar="FILE", type=path, help="TOML file with settings")
    parser.add_argument("--out", metavar="DIR", type=path, help="folder of the run (default: runs/<name>)")
    parser.add_argument("--resume", metavar="RUN", type=path, help="go on with a run that was interrupted")
    parser.add_argument("--auto-resume", action="store_true", help="go on with the run in --out, if there is one")
    parser.add_argument("--download", action="store_true", help="fetch the data set by torchvision")
    group = parser.add_argument_group("processes", "of torchrun --nproc-per-node K -m contnet_fast train ...")
    group.add_argument("--strategy", default="ddp", metavar="NAME", help="ddp: replicas; fsdp: sharded blocks [ddp]")
    group.add_argument("--dist-backend", default="auto", metavar="NAME", help="auto, gloo or nccl [auto]")
    group.add_argument("--dist-timeout", default="600", metavar="SECONDS", help="wait so long for the others [600]")
    _add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from ..training.processes import REQUEUE, Stopped, start_processes

    given = {k.removeprefix("set_"): v for k, v in vars(arguments).items() if k.startswith("set_") and v is not None}
    settings = {name: ",".join(value) if isinstance(value, list) else value for name, value in given.items()}
    timeout = number("dist_timeout", arguments.dist_timeout)
    processes = start_processes(
        strategy=arguments.strategy, dist_backend=arguments.dist_backend, timeout=timeout,
        device=settings.get("device", "auto"),
    )  # fmt: skip
    places: list[Path] = []
    try:
        with ends_at(signal.SIGTERM, processes):
            _train(arguments, settings, processes, places)
            processes.end()
        return 0
    except BaseException as error:
        out = places[0] if places else None
        told, speaks = processes.failed(error, out)
        begun = out is not None and (out / "config.json").exists()
        again = f"; go on with contnet-fast train --resume {shlex.quote(str(out))}" if begun else ""
        mark = f"[rank {processes.rank}] " if processes.size > 1 else ""
        if isinstance(error, Stopped):
            return fail("train", f"{error}{again}", REQUEUE) if speaks else REQUEUE
        if isinstance(error, KeyboardInterrupt) and begun:
            return fail("train", f"interrupted{again}", 130)
        if not speaks:
            return 2 if isinstance(error, (ValueError, TypeError)) else 1
        if told is not error:
            return fail("train", f"{mark}{told}{again}", 1)
        if processes.size > 1 and isinstance(error, RuntimeError):
            traceback.print_exc()
            return fail("train", f"{mark}{error}{again}", 1)
        raise


@contextmanager
def ends_at(number: signal.Signals, processes: Processes) -> Iterator[None]:
    """Let a signal end the run after the batch in progress."""

    def stop(*_: object) -> None:
        processes.stop = True

    before = signal.signal(number, stop) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(number, before)


def _train(arguments: argparse.Namespace, settings: dict[str, Any], processes: Processes, places: list[Path]) -> None:
    """Train, and print what came out; ``places`` gets the folder of the run."""
    from rich.console import Console

    from ..training import train
    from ..training.folder import silent
    from ..training.progress import ConsoleReporter
    from ..training.task import kind_of

    tell = print if processes.first else silent
    with processes.together():
        config, out, run = _settings(arguments, settings, tell)
    out = processes.agree(out)
    places.append(out)
    data = processes.in_turn(lambda: _data(arguments, config, run, tell))
    console = Console(highlight=False, soft_wrap=True, markup=False, quiet=not processes.first)
    with ConsoleReporter(console) as reporter:
        result = train(config, data, out, reporter=reporter, resume=run is not None, processes=processes)
    kind = kind_of(config)
    console.print(
        f"test {kind.measure} {100 * result.test.accuracy:.2f} % of {result.test.n_images} {kind.unit} "
        "(weights of epoch "
        f"{result.best['epoch']}, chosen by validation {100 * result.best['valid_accuracy']:.2f} %); "
        f"last weights {100 * result.last_test.accuracy:.2f} %"
    )
    others = f"; other schemes and steps: contnet-fast eval {out}" if config.is_continuous else ""
    console.print(f"run in {out}{others}")


def _settings(
    arguments: argparse.Namespace, settings: dict[str, Any], tell: Callable[[str], object]
) -> tuple[Config, Path, Run | None]:
    """The settings of the run, its folder, and the run that goes on, if one does."""
    from ..training import make_config, open_run

    if arguments.resume is not None:
        resumed = _resumed(arguments, settings)
        return resumed.config, arguments.resume, resumed
    config = make_config(arguments.recipe, toml=arguments.config, overrides=settings, tell=tell)
    if arguments.auto_resume and arguments.out is None:
        raise ValueError("out: got none with --auto-resume, accepted: the folder of the run")
    out = arguments.out or free_folder(Path("runs") / (arguments.recipe or config.data))
    if not (out / "config.json").exists():
        return config, out, None
    if not arguments.auto_resume:
        raise ValueError(f"out: got {out}, which holds a run, accepted: a new folder, or --resume {out}")
    run = open_run(out)
    for name, value in config.as_dict().items():
        began = run.config.as_dict()[name]
        if name not in RESUMABLE and value != began:
            raise ValueError(f"{name}: got {value} with --auto-resume, accepted: {began}, as the run in {out} began")
    return config, out, replace(run, config=config)


def _data(arguments: argparse.Namespace, config: Config, run: Run | None, tell: Callable[[str], object]) -> Task:
    from ..training import load_for, run_data

    if run is not None:
        return run_data(run, resumes=True, tell=tell)
    return load_for(config, download=arguments.download, tell=tell)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """One option for each field of the settings. They need no extra, so that --help always works."""
    from ..training.config import FIELDS

    group = parser.add_argument_group("settings", "each overrides the recipe and the TOML file")
    for name, field in FIELDS.items():
        option, text, choices = f"--{name.replace('_', '-')}", field.metadata["help"], field.metadata["choices"]
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        shown = f"{text} ({', '.join(choices)})" if choices else text
        shown = f"{shown} [{default}]" if default not in (None, "") else shown
        if "bool" in str(field.type):
            action = argparse.BooleanOptionalAction
            parser_kwargs: dict[str, Any] = {"action": action, "default": None}
        else:
            several = {"nargs": "*"} if isinstance(field.default, tuple) else {}
            parser_kwargs = {"default": None, "metavar": "VALUE", **several}
        group.add_argument(option, dest=f"set_{name}", help=shown.replace("%", "%%"), **parser_kwargs)


def _resumed(arguments: argparse.Namespace, settings: dict[str, Any]) -> Run:
    """An interrupted run; only settings that cannot change its result may be given anew."""
    from ..training import open_run
    from ..training.config import parse

    for name in ("recipe", "config", "out", "download", "auto_resume"):
        if getattr(arguments, name):
            raise ValueError(f"{name}: got {getattr(arguments, name)} with --resume, accepted: none")
    run = open_run(arguments.resume)
    values = {name: parse(name, v) if isinstance(v, str) else v for name, v in settings.items()}
    for name, value in values.items():
        began = getattr(run.config, name)
        if name not in RESUMABLE and value != began:
            raise ValueError(f"{name}: got {value} with --resume, accepted: {began}, as the run began")
    return replace(run, config=replace(run.config, **values))
