"""``contnet-fast recipes``: list the presets, or show one as TOML."""

from __future__ import annotations

import argparse
import json

HELP = "list the presets, or show one as TOML"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("recipe", nargs="?", help="preset to show")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
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
