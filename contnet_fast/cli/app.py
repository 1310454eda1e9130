"""``contnet-fast train | eval | explain | validate | tune | recipes | info | demo``.

Bad input ends with one line on standard error and exit status 2, a run that diverges with status 1.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .._version import __version__
from ..errors import BackendUnavailable, choice_error, nearest

if TYPE_CHECKING:
    from ..training import Run

RESUMABLE = ("device", "data_path", "save_every", "tensorboard")  # settings that do not change the result


class _Parser(argparse.ArgumentParser):
    """Errors in one line, with the nearest option for a misspelt one."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def unknown(self, words: Sequence[str]) -> NoReturn:
        from ..training.config import RECIPES

        word, options = next((w for w in words if w.startswith("-")), words[0]), self._option_string_actions
        near = nearest(word.partition("=")[0], options) if word.startswith("-") else None
        if word in RECIPES and "--recipe" in options:
            near = f"--recipe {word}"
        self.error(f"unknown argument {word}" + (f", did you mean {near}?" if near else ""))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser, commands = _parser()
    words = sys.argv[1:] if argv is None else list(argv)
    if words and not words[0].startswith("-") and words[0] not in commands:
        parser.error(str(choice_error("COMMAND", words[0], commands)))
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        commands[arguments.command].unknown(unknown)
    command: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return command(arguments)
    except (ValueError, TypeError, BackendUnavailable) as error:
        if arguments.traceback:
            raise
        return _fail(arguments.command, error, 2)
    except ModuleNotFoundError as error:
        if arguments.traceback or (error.name or "").startswith("contnet_fast"):
            raise
        return _fail(arguments.command, f"needs the extra 'train': pip install 'contnet-fast[train]' ({error})", 2)
    except OSError as error:
        return _fail(arguments.command, f"{error.strerror or error}: {error.filename or ''}", 2)
    except RuntimeError as error:
        if arguments.traceback or type(error).__name__ != "TrainingError":
            raise
        return _fail(arguments.command, error, 1)
    except KeyboardInterrupt:
        return _fail(arguments.command, "interrupted", 130)


def _fail(command: str, error: object, status: int) -> int:
    print(f"contnet-fast {command}: error: {error}", file=sys.stderr)
    return status


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(prog="contnet-fast", description="Fast continuous-depth networks.", allow_abbrev=False)
    group = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands: dict[str, _Parser] = {}

    def add(name: str, text: str, run: Callable[[argparse.Namespace], int]) -> _Parser:
        command = group.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.set_defaults(run=run)
        command.add_argument("--traceback", action="store_true", help="show where an error comes from")
        commands[name] = command
        return command

    train = add("train", "train a network", _train)
    train.add_argument("--recipe", help="preset to start from; see contnet-fast recipes")
    train.add_argument("--config", metavar="FILE", type=_path, help="TOML file with settings")
    train.add_argument("--out", metavar="DIR", type=_path, help="folder of the run (default: runs/<name>)")
    train.add_argument("--resume", metavar="RUN", type=_path, help="go on with a run that was interrupted")
    train.add_argument("--download", action="store_true", help="fetch the data set by torchvision")
    _add_settings(train)

    evaluate = add("eval", "accuracy of a run's network on other graphs, and after compression", _eval)
    evaluate.add_argument("run_folder", metavar="RUN", type=_path, help="folder of a run")
    evaluate.add_argument("--schemes", nargs="+", default=["euler", "midpoint", "rk4", "rk4_classic"])
    evaluate.add_argument("--steps", nargs="+", help="numbers of steps (default: around that of the run)")
    evaluate.add_argument("--split", default="test", help="test, valid or train")
    evaluate.add_argument("--checkpoint", default="best", help="best or last")
    evaluate.add_argument("--project", metavar="K", help="compress to K basis functions first, without retraining")
    evaluate.add_argument("--basis", help="project to this basis (default: that of the run)")
    evaluate.add_argument("--batch-size", default="512")
    evaluate.add_argument("--data-path", help="where the data set is, if not where the run had it")
    evaluate.add_argument("--device", default="auto")
    evaluate.add_argument("--out", metavar="DIR", type=_path, help="folder for table and picture (default: RUN/eval)")

    explain = add("explain", "which backend runs each block of a run's network, and why", _explain)
    explain.add_argument("run_folder", metavar="RUN", type=_path, help="folder of a run")
    explain.add_argument("--batch-size", default="128")
    explain.add_argument("--device", default="auto")
    explain.add_argument("--training", action="store_true", help="as in training, not in evaluation")
    explain.add_argument("--measure", action="store_true", help="time the forward pass of each block, over its floor")
    explain.add_argument("--rates", metavar="DEVICE", help="floors by the rates of A100, H100, H200, B200 or cpu")

    validate = add("validate", "every op on every backend of this machine against the float64 reference", _validate)
    effort = validate.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_true", help="under a minute on two cores")
    effort.add_argument("--full", action="store_true", help="more shapes, schemes and seeds")
    validate.add_argument("--filter", default="", metavar="TEXT", help="only checks with this in 'op backend case'")
    validate.add_argument("--out", metavar="DIR", type=_path, help="folder for validation.json and validation.md")
    validate.add_argument("--inject", default="", help=argparse.SUPPRESS)

    tune = add("tune", "time tiles of the Triton kernels on this GPU and write the best to a file", _tune)
    tune.add_argument("--out", metavar="FILE", type=_path, default=Path("tiles.json"), help="(default: tiles.json)")
    tune.add_argument(
        "--kernels",
        nargs="+",
        metavar="KERNEL",
        help="solve, stage, gradient, weights, pointwise, combine_on_load (all)",
    )
    tune.add_argument("--operands", nargs="+", metavar="WIDTH", help="16-bit, 32-bit (both)")
    tune.add_argument("--channels", nargs="+", metavar="C", help="16, 32, 64, 128, 256 (all)")
    tune.add_argument("--batch-size", default="128")
    tune.add_argument("--trials", default="24", help="most tiles tried for each entry")
    tune.add_argument("--dry-run", action="store_true", help="tiny blocks in Triton's interpreter, without a GPU")

    recipes = add("recipes", "list the presets, or show one as TOML", _recipes)
    recipes.add_argument("recipe", nargs="?", help="preset to show")

    info = add("info", "versions and backends of this installation", _info)
    info.add_argument("--json", action="store_true", help="as JSON")

    demo = add("demo", "a crossed study on handwritten digits: schemes and schedules, evaluated and compressed", _demo)
    demo.add_argument("--out", metavar="DIR", type=_path, help="folder for runs and pictures (default: runs/demo)")
    demo.add_argument("--epochs", default="12", help="epochs of each of the eight trainings")
    demo.add_argument("--seed", default="1", help="the first of two")
    return parser, commands


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


def _path(text: str) -> Path:
    """An empty text, as an unset variable of the shell leaves it, is not the folder we are in."""
    if not text:
        raise argparse.ArgumentTypeError("got '', accepted: a path")
    return Path(text)


def _listed(texts: Sequence[str]) -> list[str]:
    """Values of an option, set apart by spaces or commas."""
    return [word for text in texts for word in text.replace(",", " ").split() or [text]]


def _count(name: str, text: str, minimum: int = 1) -> int:
    try:
        value = int(text)
    except ValueError:
        value = minimum - 1
    if value < minimum:
        raise ValueError(f"{name}: got {text!r}, accepted: an int >= {minimum}")
    return value


def _train(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from ..training import load_for, make_config, run_data, train
    from ..training.progress import ConsoleReporter

    given = {k.removeprefix("set_"): v for k, v in vars(arguments).items() if k.startswith("set_") and v is not None}
    settings = {name: ",".join(value) if isinstance(value, list) else value for name, value in given.items()}
    if arguments.resume is not None:
        run, out = _resumed(arguments, settings), arguments.resume
        config, data = run.config, run_data(run, resumes=True, tell=print)
    else:
        config = make_config(arguments.recipe, toml=arguments.config, overrides=settings, tell=print)
        out = arguments.out or _free_folder(Path("runs") / (arguments.recipe or config.data))
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
        return _fail("train", f"interrupted; go on with contnet-fast train --resume {shlex.quote(str(out))}", 130)
    console.print(
        f"test accuracy {100 * result.test.accuracy:.2f} % of {result.test.n_images} images (weights of epoch "
        f"{result.best['epoch']}, chosen by validation {100 * result.best['valid_accuracy']:.2f} %); "
        f"last weights {100 * result.last_test.accuracy:.2f} %"
    )
    console.print(f"run in {out}" + (f"; other graphs: contnet-fast eval {out}" if config.is_continuous else ""))
    return 0


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


def _free_folder(wanted: Path) -> Path:
    """``wanted``, or the first of ``wanted-2``, ``wanted-3``, ... that does not exist."""
    folder, n = wanted, 2
    while folder.exists():
        folder, n = wanted.with_name(f"{wanted.name}-{n}"), n + 1
    return folder


def _eval(arguments: argparse.Namespace) -> int:
    from ..errors import check_choice
    from ..schemes.bases import ALIASES, BASES
    from ..training import open_run
    from ..training.report import EvalRequest, evaluate_run

    run = open_run(arguments.run_folder)
    if not run.config.is_continuous:
        raise ValueError(f"run: got a {run.config.model}, accepted: a network with ODE blocks")
    request = EvalRequest(
        schemes=tuple(_listed(arguments.schemes)),
        steps=tuple(_count("steps", n) for n in _listed(arguments.steps or ())),
        split=check_choice("split", arguments.split, ("test", "valid", "train")),
        checkpoint=check_choice("checkpoint", arguments.checkpoint, ("best", "last")),
        project=None if arguments.project is None else _count("project", arguments.project),
        basis=None if arguments.basis is None else check_choice("basis", arguments.basis, (*BASES, *ALIASES)),
        batch_size=_count("batch_size", arguments.batch_size),
        data_path=arguments.data_path,
        device=arguments.device,
    )
    evaluate_run(run, request, arguments.out or arguments.run_folder / "eval")
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    import torch

    from ..costmodel.costs import DEVICES
    from ..errors import check_choice
    from ..inspect.explain import explain
    from ..training import load_net, open_run
    from ..training.build import pick_device

    run = open_run(arguments.run_folder)
    device = pick_device(arguments.device)
    batch = _count("batch_size", arguments.batch_size)
    rates = None if arguments.rates is None else check_choice("rates", arguments.rates, (*DEVICES, "cpu"))
    net, record = load_net(run, device=device)
    print(f"{_title(run)}, weights of epoch {record['epoch']}, on {device.type}")
    images = torch.zeros(batch, *run.image_shape, device=device)
    with torch.set_grad_enabled(arguments.training):
        print(explain(net.train(arguments.training), images, device=rates, measure=arguments.measure))
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from ..validation.report import validate

    size = "quick" if arguments.quick else "full" if arguments.full else "normal"
    results = validate(size=size, filter=arguments.filter, out=arguments.out, fault=arguments.inject)
    return 1 if any(result.fault for result in results) else 0


def _tune(arguments: argparse.Namespace) -> int:
    from .tune import tune_tiles

    tune_tiles(
        arguments.out,
        kernels=_listed(arguments.kernels or ()),
        operands=_listed(arguments.operands or ()),
        channels=[_count("channels", c) for c in _listed(arguments.channels or ())],
        batch=_count("batch_size", arguments.batch_size),
        trials=_count("trials", arguments.trials),
        dry_run=arguments.dry_run,
    )
    return 0


def _title(run: Run) -> str:
    return f"{run.folder}: {run.config.model} on {run.config.data}"


def _recipes(arguments: argparse.Namespace) -> int:
    from ..errors import check_choice
    from ..training.config import RECIPES

    names = list(RECIPES) if arguments.recipe is None else [check_choice("recipe", arguments.recipe, RECIPES)]
    if arguments.recipe is None:
        width = max(map(len, names))
        for name in names:
            settings = "  ".join(f"{key}={_toml(value)}" for key, value in RECIPES[name].items())
            print(f"{name.ljust(width)}  {settings}")
        return 0
    for key, value in RECIPES[names[0]].items():
        print(f"{key} = {_toml(value)}")
    return 0


def _toml(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _info(arguments: argparse.Namespace) -> int:
    from ..inspect.info import info

    print(json.dumps(info().as_dict(), indent=1) if arguments.json else info())
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import run_demo

    run_demo(
        arguments.out or _free_folder(Path("runs") / "demo"),
        epochs=_count("epochs", arguments.epochs, 4),
        seed=_count("seed", arguments.seed, 0),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
