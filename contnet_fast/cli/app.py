"""The command line ``contnet-fast``: a file for each command, with ``HELP``, ``add_arguments`` and ``run``.

Bad input ends with one line on standard error and exit status 2, a run that diverges with status 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .._version import __version__
from ..errors import BackendUnavailable, choice_error, nearest
from . import demo, evaluate, explain, info, recipes, train, tune, validate
from .arguments import fail

COMMANDS: dict[str, Any] = {  # a file for each
    "train": train,
    "eval": evaluate,
    "explain": explain,
    "validate": validate,
    "tune": tune,
    "recipes": recipes,
    "info": info,
    "demo": demo,
}


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
        return fail(arguments.command, error, 2)
    except ModuleNotFoundError as error:
        if arguments.traceback or (error.name or "").startswith("contnet_fast"):
            raise
        return fail(arguments.command, f"needs the extra 'train': pip install 'contnet-fast[train]' ({error})", 2)
    except OSError as error:
        return fail(arguments.command, f"{error.strerror or error}: {error.filename or ''}", 2)
    except RuntimeError as error:
        if arguments.traceback or type(error).__name__ != "TrainingError":
            raise
        return fail(arguments.command, error, 1)
    except KeyboardInterrupt:
        return fail(arguments.command, "interrupted", 130)


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(prog="contnet-fast", description="Fast continuous-depth networks.", allow_abbrev=False)
    group = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parsers: dict[str, _Parser] = {}
    for name, command in COMMANDS.items():
        parsers[name] = group.add_parser(name, help=command.HELP, description=command.HELP, allow_abbrev=False)
        parsers[name].set_defaults(run=command.run)
        parsers[name].add_argument("--traceback", action="store_true", help="show where an error comes from")
        command.add_arguments(parsers[name])
    return parser, parsers
