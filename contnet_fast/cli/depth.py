"""``contnet-fast analyze depth``: exact constructions, proved bounds and experiments on what depth buys."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import path

HELP = "exact constructions, proved bounds and experiments on what depth buys"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_true", help="under three minutes on two cores (the default)")
    effort.add_argument("--full", action="store_true", help="more sizes, seeds and steps: under 40 minutes")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=path,
        default=Path("depth"),
        help="folder of the page and its data (default: depth)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from ..analysis.depth.report import report

    report(arguments.out, size="full" if arguments.full else "quick")
    return 0
