"""``contnet-fast validate``: every op on every backend of this machine against the float64 reference."""

from __future__ import annotations

import argparse

from .arguments import path

HELP = "every op on every backend of this machine against the float64 reference"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_true", help="under a minute on two cores")
    effort.add_argument("--full", action="store_true", help="more shapes, schemes and seeds")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only checks with this in 'op backend case'")
    parser.add_argument("--out", metavar="DIR", type=path, help="folder for validation.json and validation.md")
    parser.add_argument("--inject", default="", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from ..validation.report import validate

    size = "quick" if arguments.quick else "full" if arguments.full else "normal"
    results = validate(size=size, filter=arguments.filter, out=arguments.out, fault=arguments.inject)
    return 1 if any(result.fault for result in results) else 0
