"""``contnet-fast tune``: times of Triton's tiles on this GPU, or of the kernels of this CPU."""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import count, listed, path

HELP = "time tiles of the Triton kernels on this GPU, or with --cpu the kernels of this CPU, and keep the best"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--cpu",
        action="store_true",
        help="blocks under autocast to bfloat16 on this CPU, for a minute; auto reads the times",
    )
    parser.add_argument("--out", metavar="FILE", type=path, default=Path("tiles.json"), help="(default: tiles.json)")
    parser.add_argument(
        "--kernels",
        nargs="+",
        metavar="KERNEL",
        help="solve, stage, gradient, weights, pointwise, combine_on_load (all)",
    )
    parser.add_argument("--operands", nargs="+", metavar="WIDTH", help="16-bit, 32-bit (both)")
    parser.add_argument("--channels", nargs="+", metavar="C", help="16, 32, 64, 128, 256 (all)")
    parser.add_argument("--batch-size", default="128")
    parser.add_argument("--trials", default="24", help="most tiles tried for each entry")
    parser.add_argument("--dry-run", action="store_true", help="tiny blocks in Triton's interpreter, without a GPU")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    if arguments.cpu:
        from .tuning_cpu import tune_cpu

        tune_cpu()
        return 0
    from .tuning import tune_tiles

    tune_tiles(
        arguments.out,
        kernels=listed(arguments.kernels or ()),
        operands=listed(arguments.operands or ()),
        channels=[count("channels", c) for c in listed(arguments.channels or ())],
        batch=count("batch_size", arguments.batch_size),
        trials=count("trials", arguments.trials),
        dry_run=arguments.dry_run,
    )
    return 0
