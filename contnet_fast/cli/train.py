"""``contnet-fast train``: train a network."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import fail, free_folder, path

if TYPE_CHECKING:
    from ..training import Run

RESUMABLE = ("device", "data_path", "save_every", "tensorboard")  # settings that do not change the result

HELP = "train a network"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--recipe", help="preset to start from; see contnet-fast recipes")
    parser.add_argument("--config", metavar="FILE", type=path, help="TOML file with settings")
    parser.add_argument("--out", metavar="DIR", type=path, help="folder of the run (default: runs/<name>)")
    parser.add_argument("--resume", metavar="RUN", type=path, help="go on with a run that was interrupted")
    parser.add_argument("--download", action="store_true", help="fetch the data set by torchvision")
    _add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from rich.console import Console

    from ..training import load_for, make_config, run_data, train
    from ..training.progress import ConsoleReporter
    from ..training.task import kind_of

    given = {k.removeprefix("set_"): v for k, v in vars(arguments).items() if k.startswith("set_") and v is not None}
    settings = {name: ",".join(value) if isinstance(value, list) else value for name, value in given.items()}
    if arguments.resume is not None:
        run, out = _resumed(arguments, settings), arguments.resume
        config, data = run.config, run_data(run, resumes=True, tell=print)
    else:
        config = make_config(arguments.recipe, toml=arguments.config, overrides=settings, tell=print)
        out = arguments.out or free_folder(Path("runs") / (arguments.recipe or config.data))
        if (out / "config.json").exists():
            raise ValueError(f"out: got {out}, which holds a run, accepted: a new folder, or --resume {out}")
        data = load_for(config, download=arguments.download, tell=print)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    try:
        with ConsoleReporter(console) as reporter:
            result = train(config, data, out, reporter=reporter, resume=arguments.resume is not None)
    except KeyboardInterrupt:
        if not (out / "config.json").exists():
            raise
        return fail("train", f"interrupted; go on with contnet-fast train --resume {shlex.quote(str(out))}", 130)
    kind = kind_of(config)
    console.print(
        f"test {kind.measure} {100 * result.test.accuracy:.2f} % of {result.test.n_images} {kind.unit} "
        "(weights of epoch "
        f"{result.best['epoch']}, chosen by validation {100 * result.best['valid_accuracy']:.2f} %); "
        f"last weights {100 * result.last_test.accuracy:.2f} %"
    )
    others = f"; other schemes and steps: contnet-fast eval {out}" if config.is_continuous else ""
    console.print(f"run in {out}{others}")
    return 0


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

    for name in ("recipe", "config", "out", "download"):
        if getattr(arguments, name):
            raise ValueError(f"{name}: got {getattr(arguments, name)} with --resume, accepted: none")
    run = open_run(arguments.resume)
    values = {name: parse(name, v) if isinstance(v, str) else v for name, v in settings.items()}
    for name, value in values.items():
        began = getattr(run.config, name)
        if name not in RESUMABLE and value != began:
            raise ValueError(f"{name}: got {value} with --resume, accepted: {began}, as the run began")
    return replace(run, config=replace(run.config, **values))
