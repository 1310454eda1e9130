"""Command lines that suggest the nearest option for a misspelt one."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that takes no abbreviations, which would accept typos."""

    def __init__(self, prog: str, doc: str | None) -> None:
        super().__init__(prog=prog, description=(doc or " ").splitlines()[0], allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"unrecognized arguments: (--?\w\S*)", message):
            matches = difflib.get_close_matches(found[1], self._option_string_actions, n=1)
            message += f" (did you mean {matches[0]}?)" if matches else ""
        super().error(message)


def checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """Turn a check into the type of an option; argparse shows the message of an ArgumentTypeError alone."""

    def convert(text: str) -> Any:
        try:
            return check(text)
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert
