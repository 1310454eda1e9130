"""``contnet-fast analyze``: laboratories that write a page of figures, tables and what they do and do not show."""

from __future__ import annotations

from typing import Any

from . import depth

HELP = "laboratories that write a page: depth (what depth buys)"

SUBJECTS: dict[str, Any] = {  # a file for each, with what a command has
    "depth": depth,
}
