"""``contnet-fast demo``: a crossed study on handwritten digits: schemes and schedules, evaluated and compressed."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import count, free_folder, path

HELP = "a crossed study on handwritten digits: schemes and schedules, evaluated and compressed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--out", metavar="DIR", type=path, help="folder for runs and pictures (default: runs/demo)")
    parser.add_argument("--epochs", default="12", help="epochs of each of the eight trainings")
    parser.add_argument("--seed", default="1", help="the first of two")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from .digits import run_demo

    run_demo(
        arguments.out or free_folder(Path("runs") / "demo"),
        epochs=count("epochs", arguments.epochs, 4),
        seed=count("seed", arguments.seed, 0),
    )
    return 0
