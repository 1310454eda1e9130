"""``contnet-fast choose``: the discretization of a run's network that serves best within a budget of latency."""

from __future__ import annotations

import argparse

from .arguments import count, listed, number, path

HELP = "the scheme, steps and basis functions that serve a run's network best within a budget of latency"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run_folder", metavar="RUN", type=path, help="folder of a run")
    parser.add_argument("--budget-ms", required=True, metavar="MS", help="the most milliseconds of a call")
    parser.add_argument(
        "--max-loss", metavar="POINTS", help="of validation accuracy: the fastest that loses no more, not the best"
    )
    parser.add_argument("--batch", default="1", help="images in a call")
    parser.add_argument("--schemes", nargs="+", default=["euler", "midpoint", "heun3", "rk4_classic"])
    parser.add_argument("--steps", nargs="+", help="numbers of steps (default: 1, 2, 4, ... to that of the run)")
    parser.add_argument(
        "--project", nargs="+", metavar="K", help="smaller bases (default: halvings of that of the run; 0: none)"
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="float32, bfloat16, float16 (autocast)")
    parser.add_argument("--backends", nargs="+", default=["auto"], help="auto, a backend, or backend:level")
    parser.add_argument("--rounds", default="15", help="of timing, in which all take turns")
    parser.add_argument("--limit", default="0", help="score at most so many images of a split (0: all)")
    parser.add_argument("--checkpoint", default="best", help="best or last")
    parser.add_argument("--data-path", help="where the data set is, if not where the run had it")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--out", metavar="DIR", type=path, help="folder for table, picture and model (default: RUN/choice)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from ..errors import check_choice
    from ..training import open_run
    from ..training.choose import ChoiceRequest, choose_for_run

    run = open_run(arguments.run_folder)
    sizes = None
    if arguments.project is not None:
        sizes = tuple(n for n in (count("project", k, 0) for k in listed(arguments.project)) if n)
    request = ChoiceRequest(
        budget_ms=number("budget_ms", arguments.budget_ms),
        max_loss=None if arguments.max_loss is None else number("max_loss", arguments.max_loss),
        batch=count("batch", arguments.batch),
        schemes=tuple(listed(arguments.schemes)),
        steps=tuple(count("steps", n) for n in listed(arguments.steps or ())),
        project=sizes,
        dtypes=tuple(listed(arguments.dtypes)),
        backends=tuple(listed(arguments.backends)),
        rounds=count("rounds", arguments.rounds),
        limit=count("limit", arguments.limit, 0),
        checkpoint=check_choice("checkpoint", arguments.checkpoint, ("best", "last")),
        data_path=arguments.data_path,
        device=arguments.device,
    )
    choose_for_run(run, request, arguments.out or arguments.run_folder / "choice")
    return 0
