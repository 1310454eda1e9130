"""The report of ``contnet-fast analyze depth``: one HTML page."""

from __future__ import annotations

from pathlib import Path

from ...errors import check_choice
from ...files import writable_folder
from ..html import Page

SIZES = ("quick", "full")


def report(out: Path, *, size: str = "quick") -> Path:
    """Write the page of what depth buys; returns its path.

    Args:
        out: the folder of the page.
        size: "quick" or "full".

    Raises:
        ValueError: an argument is not accepted; before anything is computed or written.
    """
    check_choice("size", size, SIZES)
    page = Page("What depth buys")
    rows = [[k, 2 * k, 2**k, 2**k - 1] for k in (1, 2, 4, 8, 16)]
    page.table(
        ["k", "units of k folds", "linear pieces", "units that one hidden layer needs"], rows,
        caption="Telgarsky's sawtooth: m units in one hidden layer make at most m + 1 pieces on a line",
    )  # fmt: skip
    path = writable_folder("out", out) / "depth.html"
    page.write(path)
    print(f"report in {path}")
    return path
