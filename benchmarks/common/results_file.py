"""Read a file of results: the latest row of each case, with the header that it stands below."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.rows import RESULTS, read

Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """The rows of one device by the name of their case, and the header of the latest run."""

    path: Path
    header: Row
    rows: dict[str, Row]

    @property
    def device(self) -> str:
        return str(self.header.get("device", "unknown"))

    @property
    def slug(self) -> str:
        return self.path.stem.removeprefix("suite-")

    def in_parts(self, *parts: str) -> list[Row]:
        """Return the rows of some parts of the benchmark."""
        return [row for row in self.rows.values() if row.get("part") in parts]

    def sweep(self, name: str) -> list[Row]:
        return [row for row in self.in_parts("scaling") if row["sweep"] == name]

    def provenance(self) -> str:
        """Return device, versions, commits and dates in words."""
        commits = sorted({str(row["header"]["commit"])[:8] for row in self.rows.values()})
        dates = sorted({row["header"]["date"][:10] for row in self.rows.values()})
        info = self.header["info"]
        what = f"{self.device}, {self.header['threads']} threads, {info['cpu_capability']}"
        if "capability" in self.header:
            what = self.device
        return f"{what}; torch {info['torch']}; commit {', '.join(commits)}; {', '.join(dates)}"


def load(path: Path) -> Results:
    """Read a file.

    Raises:
        ValueError: the file cannot be read, or holds no rows.
    """
    header: Row = {}
    rows: dict[str, Row] = {}
    try:
        lines = read(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    for line in lines:
        if "header" in line:
            header = line["header"]
        elif "case" in line:
            rows.pop(line["case"], None)
            rows[line["case"]] = line | {"header": header}
    if not rows or not header:
        raise ValueError(f"{path}: holds no rows below a header")
    return Results(path, header, rows)


def committed() -> list[Path]:
    """Return the committed files of the suite and of the odeint benchmark, stiff problems in files of their own."""
    return [path for stem in ("suite", "odeint", "stiff") for path in sorted(RESULTS.glob(f"{stem}-*.jsonl"))]
