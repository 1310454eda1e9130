"""``contnet-fast info``: versions and backends of this installation."""

from __future__ import annotations

import argparse
import json

HELP = "versions and backends of this installation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from ..inspect.info import info

    print(json.dumps(info().as_dict(), indent=1) if arguments.json else info())
    return 0
