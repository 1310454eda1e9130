"""``contnet-fast eval``: accuracy of a run's network with other schemes and steps, and after compression."""

from __future__ import annotations

import argparse

from .arguments import count, listed, number, path

HELP = "accuracy of a run's network with other schemes and steps, and after compression"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run_folder", metavar="RUN", type=path, help="folder of a run")
    parser.add_argument("--schemes", nargs="+", default=["euler", "midpoint", "rk4", "rk4_classic"])
    parser.add_argument("--steps", nargs="+", help="numbers of steps (default: around that of the run)")
    parser.add_argument(
        "--t-end", nargs="+", help="lengths of a graph network's solve (default: around that of the run)"
    )
    parser.add_argument("--split", default="test", help="test, valid or train")
    parser.add_argument("--checkpoint", default="best", help="best or last")
    parser.add_argument("--project", metavar="K", help="compress to K basis functions first, without retraining")
    parser.add_argument("--basis", help="project to this basis (default: that of the run)")
    parser.add_argument("--batch-size", default="512")
    parser.add_argument("--data-path", help="where the data set is, if not where the run had it")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", metavar="DIR", type=path, help="folder for table and picture (default: RUN/eval)")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from ..errors import check_choice
    from ..schemes.bases import ALIASES, BASES
    from ..training import open_run
    from ..training.report import EvalRequest, evaluate_run

    run = open_run(arguments.run_folder)
    if not run.config.is_continuous:
        raise ValueError(f"run: got a {run.config.model}, accepted: a network with ODE blocks")
    request = EvalRequest(
        schemes=tuple(listed(arguments.schemes)),
        steps=tuple(count("steps", n) for n in listed(arguments.steps or ())),
        t_ends=tuple(number("t_end", t) for t in listed(arguments.t_end or ())),
        split=check_choice("split", arguments.split, ("test", "valid", "train")),
        checkpoint=check_choice("checkpoint", arguments.checkpoint, ("best", "last")),
        project=None if arguments.project is None else count("project", arguments.project),
        basis=None if arguments.basis is None else check_choice("basis", arguments.basis, (*BASES, *ALIASES)),
        batch_size=count("batch_size", arguments.batch_size),
        data_path=arguments.data_path,
        device=arguments.device,
    )
    evaluate_run(run, request, arguments.out or arguments.run_folder / "eval")
    return 0
