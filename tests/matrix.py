"""The suite beside other releases of torch, Triton, numpy and setuptools: ``make matrix``.

    python tests/matrix.py                                  # every cell, every part; goes on where it stopped
    python tests/matrix.py 2.11-newest --parts core compiler ode/test_odeint.py
    python tests/matrix.py --table

Each release of torch has a virtual environment and a copy of this checkout with its own extension in
``build/matrix``, 5 to 8 GB on Linux x86_64, where PyPI's torch has CUDA; ``--once`` removes each after its last cell.
A row of ``build/matrix/rows.jsonl`` is the outcome of one test file in one cell, of these sources: what has a row is
not run again (``--again`` does). A cell whose packages cannot be installed is said so and left out. Exit status 1: a
test failed, or the package cannot be built in a cell.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
sys.path.insert(0, str(ROOT))
from benchmarks.common.options import Parser, checked  # noqa: E402

FOLDER = ROOT / "build" / "matrix"
LIMIT = 3600  # seconds of a test file, and of each step of an installation
TOOLS = (
    "hypothesis pytest pytest-benchmark torchdiffeq matplotlib pillow rich safetensors scikit-learn tomli build wheel "
    "pyyaml"
)


@dataclass(frozen=True)
class Cell:
    """Releases that are tested together. torch asks for a Triton of its own; others go with it all the same."""

    python: str
    torch: str
    triton: str
    numpy: str
    setuptools: str

    def __str__(self) -> str:
        return (
            f"Python {self.python}, torch {self.torch}, triton {self.triton}, numpy {self.numpy}, "
            f"setuptools {self.setuptools}"
        )


CELLS = {  # oldest, newest: the numpy and setuptools that this Python and this torch accept
    "2.10-oldest": Cell("3.10", "2.10.0", "3.6.0", "1.23.5", "64.0.3"),
    "2.10-newest": Cell("3.10", "2.10.0", "3.6.0", "2.2.6", "84.2.1"),
    "2.11-oldest": Cell("3.12", "2.11.0", "3.6.0", "1.26.0", "66.1.1"),
    "2.11-newest": Cell("3.12", "2.11.0", "3.6.0", "2.3.5", "81.0.0"),
    "2.13-oldest": Cell("3.11", "2.13.0", "3.6.0", "1.23.5", "77.0.3"),
    "2.13-newest": Cell("3.11", "2.13.0", "3.7.1", "2.4.6", "84.2.1"),
    "2.14-oldest": Cell("3.11", "2.14.1", "3.8.0", "1.23.5", "77.0.3"),
    "2.14-newest": Cell("3.11", "2.14.1", "3.9.0", "2.4.6", "84.2.1"),
}


class Impossible(Exception):
    """Why a cell cannot be installed here."""


class Broken(Exception):
    """Why this package cannot be built in a cell: a fault as one that a test finds."""


def one_of(kind: str, known: Iterable[str]) -> Callable[[str], str]:
    """A check of names.

    Raises (the check):
        ValueError: what was got, what is accepted and what is nearest.
    """
    names = list(known)

    def check(name: str) -> str:
        if name in names:
            return name
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{kind}: got {name!r}, accepted: {', '.join(names)}{hint}")

    return check


PARTS = sorted({path.relative_to(TESTS).parts[0] for path in TESTS.glob("*/**/test_*.py")})  # folders of tests/


def files(part: str) -> list[str]:
    """The test files of a folder, or the one file that is named, below ``tests/``."""
    if part.endswith(".py"):
        return [part]
    return sorted(path.relative_to(TESTS).as_posix() for path in TESTS.glob(f"{part}/**/test_*.py"))


def part_or_file(name: str) -> str:
    """A check of ``--parts``.

    Raises:
        ValueError: it is neither a folder of tests nor a test file.
    """
    found = TESTS.glob("*/**/test_*.py") if name.endswith(".py") else []
    return one_of("part", [*PARTS, *(path.relative_to(TESTS).as_posix() for path in found)])(name)


def say(text: str) -> None:
    print(text, flush=True)


# ---- a cell's environment


def interpreter(version: str) -> str:
    """A Python of this release: this one, one on the path, or one of pyenv's."""
    if sys.version.startswith(f"{version}."):
        return sys.executable
    places = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    for place in filter(None, places):
        asked = [str(place), "-c", "import sys, venv; print(sys.version)"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.startswith(f"{version}."):
            return str(place)
    raise Impossible(f"no Python {version}")


def run(words: Sequence[str], cwd: Path = ROOT, fault: type[Exception] = Impossible, **env: str) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("CONTNET_FAST", "PYTHONPATH", "TRITON"))}
    try:
        done = subprocess.run(
            words, cwd=cwd, env={**clean, **env}, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        raise fault(f"{' '.join(words[1:6])} ...: stopped after {LIMIT} s") from None
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line or "rror:" in line]
        raise fault(f"{' '.join(words[1:6])} ...: {' / '.join(lines[-3:]) or f'exit {done.returncode}'}")


def home(cell: Cell) -> Path:
    """The folder of its torch."""
    return FOLDER / f"torch-{cell.torch}-py{cell.python}"


def prepare(cell: Cell) -> Path:
    """The folder of the cell's torch, with exactly the cell's packages and this checkout installed there.

    Raises:
        Impossible: the cell's packages cannot be installed.
        Broken: they can, and this package cannot be built with them.
    """
    folder = home(cell)
    python = str(folder / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pins = [f"numpy=={cell.numpy}", f"setuptools=={cell.setuptools}"]
    if not (folder / "venv" / "torch").exists():
        say(f"installing torch {cell.torch} into {folder.relative_to(ROOT)}")
        run([interpreter(cell.python), "-m", "venv", str(folder / "venv")])
        run([*pip, f"torch=={cell.torch}", "ninja"])
        (folder / "venv" / "torch").touch()
    installed = folder / "venv" / "cell"
    if not installed.exists() or installed.read_text() != str(cell):
        installed.unlink(missing_ok=True)
        run([*pip, *TOOLS.split(), pins[0], f"torch=={cell.torch}"])
        run([*pip, "--no-deps", pins[1], f"triton=={cell.triton}"])
        installed.write_text(str(cell))
    source = folder / "source"
    copy_sources(source)
    for made in (source / "contnet_fast").glob("*.so"):
        made.unlink()
    # objects of what did not change stay in the copy's build folder, which an editable install would not use
    run([python, "setup.py", "--quiet", "build_ext", "--inplace"], source, Broken, CONTNET_FAST_BUILD="cpu")
    editable = [*pip, "--no-build-isolation", "--no-deps", "--editable", str(source)]
    run(editable, fault=Broken, CONTNET_FAST_BUILD="none")
    return folder


@cache
def sources() -> tuple[str, ...]:
    """Files of the checkout, those that are not yet in git too."""
    git = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return tuple(sorted(name for name in listed if (ROOT / name).is_file()))


def copy_sources(to: Path) -> None:
    """Those that differ, so that only they are compiled again."""
    for name in sources():
        old, new = to / name, ROOT / name
        if not old.exists() or old.read_bytes() != new.read_bytes():
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(new, old)
    for path in [p for top in ("contnet_fast", "csrc", "tests", "benchmarks") for p in (to / top).rglob("*.*")]:
        name = path.relative_to(to).as_posix()
        if path.is_file() and name not in sources() and path.suffix not in (".so", ".pyc"):
            path.unlink()


def code() -> str:
    """A digest of what the outcome may depend on."""
    digest = hashlib.sha256()
    for name in sources():
        if name.startswith(("contnet_fast/", "csrc/", "tests/", "setup.py", "pyproject.toml")):
            digest.update(name.encode() + (ROOT / name).read_bytes())
    return digest.hexdigest()[:12]


def commit() -> str:
    git = ["git", "-c", "safe.directory=*"]
    ask = [[*git, "rev-parse", "--short=8", "HEAD"], [*git, "status", "--porcelain"]]
    head, changed = (subprocess.run(q, cwd=ROOT, capture_output=True, text=True, check=False).stdout for q in ask)
    return head.strip() + ("-dirty" if changed.strip() else "")


# ---- a test file in a cell

COUNT = re.compile(r"(\d+) (passed|failed|skipped|error)")


def attempt(folder: Path, name: str, file: str, limit: float) -> dict[str, Any]:
    """Its counts, and what failed by name; a file that does not end is ``late``, which is no failure."""
    words = [str(folder / "venv" / "bin" / "python"), "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("CONTNET_FAST", "PYTHONPATH"))}
    start = time.monotonic()
    log = FOLDER / f"{name}-{Path(file).stem}.log"
    with log.open("w") as out:
        try:
            status = subprocess.run(
                [*words, f"tests/{file}"], cwd=folder / "source", env=env, stdout=out, stderr=subprocess.STDOUT,
                timeout=limit, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            status = None
    text = log.read_text(errors="replace")
    counts = {word: int(n) for n, word in COUNT.findall(text[-500:])}
    bad = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, flags=re.M)
    row = {"counts": counts, "bad": bad, "seconds": round(time.monotonic() - start), "log": log.name}
    if status is None:
        return {**row, "late": True}
    if status and not bad:
        row["bad"] = [f"tests/{file}: pytest exits with {status}"]
    return row


def outcome(rows: Sequence[dict[str, Any]]) -> str:
    """What the files of some rows came to."""
    counts = {word: sum(row["counts"].get(word, 0) for row in rows) for word in ("passed", "skipped")}
    failed = sum(len(row["bad"]) for row in rows)
    late = [f"{row['file']} stopped after {row['seconds']} s" for row in rows if row.get("late")]
    words = [f"{counts['passed']} passed", *([f"{failed} failed"] if failed else [])]
    return ", ".join([*words, *([f"{counts['skipped']} skipped"] if counts["skipped"] else []), *late])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The latest outcome of each part in each cell, in Markdown."""
    latest = {(row["cell"], row["file"]): row for row in rows}
    lines: list[str] = []
    for name, cell in CELLS.items():
        lines += ["", f"**{name}**: {cell}", "", "| part | outcome | commit | date |", "|---|---|---|---|"]
        for part in PARTS:
            wanted = files(part)
            found = [latest[name, file] for file in wanted if (name, file) in latest]
            if not found:
                continue
            some = "" if len(found) == len(wanted) else f" ({len(found)} of {len(wanted)} files)"
            of = [", ".join(sorted({row[key] for row in found})) for key in ("commit", "date")]
            lines.append(f"| {part}{some} | {outcome(found)} | {' | '.join(of)} |")
            lines += [f"| | {bad} | | |" for row in found for bad in row["bad"]]
        if lines[-1].startswith("|--"):
            del lines[-5:]
    return "\n".join(lines[1:])


# ---- the command


class Ledger:
    """The rows of earlier runs and of this one, and what they are of."""

    def __init__(self) -> None:
        self.path = FOLDER / "rows.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.code, self.commit = code(), commit()
        self.broken: list[str] = []  # cells in which the package cannot be built

    def done(self, name: str, file: str) -> dict[str, Any] | None:
        """The latest row of these sources; one that was stopped is not done."""
        of = (name, file, self.code, str(CELLS[name]))
        found = [row for row in self.rows if (row["cell"], row["file"], row["code"], row["releases"]) == of]
        return found[-1] if found and not found[-1].get("late") else None

    def write(self, name: str, file: str, row: dict[str, Any]) -> None:
        """Add a row, and say what is in it."""
        date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
        of = {"cell": name, "file": file, "code": self.code, "commit": self.commit, "date": date}
        self.rows.append({**of, "releases": str(CELLS[name]), **row})
        with self.path.open("a") as out:
            out.write(json.dumps(self.rows[-1]) + "\n")
        say(f"{name} {file}: {outcome(self.rows[-1:])} ({row['seconds']} s)")
        for bad in row["bad"]:
            say(f"  FAILED {bad}  (build/matrix/{row['log']})")


def run_cell(name: str, wanted: Sequence[str], options: argparse.Namespace, ledger: Ledger) -> bool:
    """Run the files that have no row; whether the cell is there."""
    wanted = [file for file in wanted if options.again or options.install or ledger.done(name, file) is None]
    if not wanted:
        say(f"{name}: done before")
        return True
    try:
        folder = prepare(CELLS[name])
    except Impossible as error:
        say(f"{name} left out: {error}")
        return False
    except Broken as error:
        say(f"{name} FAILED: {error}")
        ledger.broken.append(name)
        return True
    if options.install:
        say(f"{name}: installed")
        return True
    one = partial(attempt, folder, name, limit=options.limit)
    with ThreadPoolExecutor(options.processes) as pool:
        for file, row in zip(wanted, pool.map(one, wanted), strict=True):
            ledger.write(name, file, row)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """The command; the exit status."""
    p = Parser("matrix.py", __doc__)
    cell, part = checked(one_of("cell", CELLS)), checked(part_or_file)
    add = p.add_argument
    add("cells", nargs="*", type=cell, metavar="CELL", help=f"of {', '.join(CELLS)}")
    add("--parts", nargs="+", type=part, default=PARTS, metavar="PART", help=f"{', '.join(PARTS)}, or a test file")
    add("--install", action="store_true", help="install the cells, run nothing; 1 where packages are missing")
    add("--again", action="store_true", help="run what has a row too")
    add("--once", action="store_true", help="remove an environment after its last cell")
    add("--processes", type=int, choices=range(1, 17), default=1, metavar="N", help="test files at a time; default 1")
    add("--limit", type=float, default=LIMIT, metavar="S", help=f"seconds of a test file; default {LIMIT}")
    add("--table", action="store_true", help="print what there is and run nothing")
    options = p.parse_args(argv)
    FOLDER.mkdir(parents=True, exist_ok=True)
    ledger = Ledger()
    if options.table:
        say(table(ledger.rows))
        return 0
    cells = options.cells or list(CELLS)
    wanted = list(dict.fromkeys(file for part in options.parts for file in files(part)))
    there = []
    for i, name in enumerate(cells):
        there.append(run_cell(name, wanted, options, ledger))
        if options.once and home(CELLS[name]) not in [home(CELLS[later]) for later in cells[i + 1 :]]:
            shutil.rmtree(home(CELLS[name]), ignore_errors=True)
    if options.install:
        return 0 if all(there) else 1
    rows = list(filter(None, (ledger.done(name, file) for name in cells for file in wanted)))
    say("\n" + table(rows))
    return 1 if ledger.broken or any(row["bad"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
