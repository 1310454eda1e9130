"""Command lines that name the nearest option for one they do not know."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """``ArgumentParser`` without abbreviations, which would let a typo through."""

    def __init__(self, prog: str, doc: str | None) -> None:
        super().__init__(prog=prog, description=(doc or " ").splitlines()[0], allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"unrecognized arguments: (--?\w\S*)", message):
            near = difflib.get_close_matches(found[1], self._option_string_actions, n=1)
            message += f" (did you mean {near[0]}?)" if near else ""
        super().error(message)


def checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """``check`` as a type of an option with its words kept: argparse shows those of an ArgumentTypeError only."""

    def convert(text: str) -> Any:
        try:
            return check(text)
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert
