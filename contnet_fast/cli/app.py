"""The command line ``contnet-fast``: a file for each command, with ``HELP``, ``add_arguments`` and ``run``.

Bad input ends with one line on standard error and exit status 2, a run that diverges with status 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from .._version import __version__
from ..errors import BackendUnavailable, choice_error, nearest
from . import analyze, choose, demo, evaluate, explain, export, info, recipes, train, tune, validate
from .arguments import fail

COMMANDS: dict[str, Any] = {  # a file for each
    "train": train,
    "eval": evaluate,
    "choose": choose,
    "export": export,
    "explain": explain,
    "validate": validate,
    "analyze": analyze,
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
    parser = _Parser(prog="contnet-fast", description="Fast continuous-depth networks.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parsers = _add_commands(parser, COMMANDS)
    words = sys.argv[1:] if argv is None else list(argv)
    _check_command(parser, "COMMAND", words[:1], COMMANDS)
    if words and (subjects := getattr(COMMANDS.get(words[0]), "SUBJECTS", None)):
        _check_command(parsers[words[0]], "SUBJECT", words[1:2], subjects)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        parsers[arguments.command].unknown(unknown)
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
        known = "contnet-fast[" in str(error)  # a sentence of ours, which names the extra
        sentence = f"needs the extra 'train': pip install 'contnet-fast[train]' ({error})"
        return fail(arguments.command, error if known else sentence, 2)
    except OSError as error:
        return fail(arguments.command, f"{error.strerror or error}: {error.filename or ''}", 2)
    except RuntimeError as error:
        if arguments.traceback or type(error).__name__ != "TrainingError":
            raise
        return fail(arguments.command, error, 1)
    except KeyboardInterrupt:
        return fail(arguments.command, "interrupted", 130)


def _check_command(parser: _Parser, name: str, words: Sequence[str], accepted: Mapping[str, Any]) -> None:
    """Refuse a command that is none, with the nearest one."""
    if words and not words[0].startswith("-") and words[0] not in accepted:
        parser.error(str(choice_error(name, words[0], accepted)))


def _add_commands(parser: _Parser, commands: Mapping[str, Any], parents: tuple[str, ...] = ()) -> dict[str, _Parser]:
    """Add a parser for each command, and for each subject of a command that has some; returns them by their words."""
    group = parser.add_subparsers(dest="command", required=True, metavar="SUBJECT" if parents else "COMMAND")
    parsers: dict[str, _Parser] = {}
    for name, command in commands.items():
        own = group.add_parser(name, help=command.HELP, description=command.HELP, allow_abbrev=False)
        words = " ".join((*parents, name))
        parsers[words] = own
        if hasattr(command, "SUBJECTS"):
            parsers |= _add_commands(own, command.SUBJECTS, (*parents, name))
            continue
        own.set_defaults(run=command.run, command=words)
        own.add_argument("--traceback", action="store_true", help="show where an error comes from")
        command.add_arguments(own)
    return parsers
