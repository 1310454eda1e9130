"""``contnet-fast analyze koopman``: the spectrum of a training and what it tells."""

from __future__ import annotations

import argparse

from .arguments import count, number, path

HELP = "the spectrum of a training that was recorded, and what it tells of convergence, depth and prunable weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "run_folder", metavar="RUN", type=path, help="folder of a run with --koopman, or a file of a recorder"
    )
    parser.add_argument("--last", metavar="T", help="at most so many of the latest snapshots")
    parser.add_argument("--rank", metavar="R", help="at most so many singular vectors (default: all above rounding)")
    parser.add_argument("--delays", default="1", help="consecutive snapshots that make a state; momentum asks for 2")
    parser.add_argument("--tolerance", default="0.01", help="distance from the limit that counts as converged")
    parser.add_argument(
        "--spectrum-only", action="store_true", help="do not try depth and pruning, which need the images"
    )
    parser.add_argument("--split", default="valid", help="test, valid or train: images for depth and pruning")
    parser.add_argument("--data-path", help="where the data set is, if not where the run had it")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--out", metavar="DIR", type=path, help="folder of table, pictures and page (default: RUN/koopman)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from ..errors import check_choice, check_number
    from ..training.koopman_page import report
    from ..training.koopman_report import KoopmanRequest

    request = KoopmanRequest(
        last=None if arguments.last is None else count("last", arguments.last, 6),
        rank=None if arguments.rank is None else count("rank", arguments.rank),
        delays=count("delays", arguments.delays),
        tolerance=check_number("tolerance", number("tolerance", arguments.tolerance), positive=True),
        uses=not arguments.spectrum_only,
        split=check_choice("split", arguments.split, ("test", "valid", "train")),
        data_path=arguments.data_path,
        device=arguments.device,
    )
    report(arguments.run_folder, request, arguments.out)
    return 0
