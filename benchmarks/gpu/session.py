"""What the phases of ``make gpu`` share: the file of rows, the time left, and programs stopped with all they started.

Nothing here imports torch or the package: a phase sees the extension that was built before it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("csrc/**/*", "contnet_fast/**/*.py", "contnet_fast/**/*.json", "benchmarks/**/*.py", "setup.py")
TESTS = ("tests/**/*.py",)
MADE_HERE = "contnet_fast/costmodel/choice-gpu.json"  # of these rows, which it leaves true
LOST, LATE = 75, 76  # exit statuses of a phase: the device answers no more; time ran out
LOG_LEAST = 400_000  # characters of one program's output that the log keeps
# a group of its own, killed as one, but in the session of the caller, whose end then ends it too
GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}


class Failed(Exception):
    """A program failed or was stopped; ``status`` is ``None`` then. ``row``: what the row keeps besides."""

    def __init__(self, words: str, *, output: str = "", status: int | None = None, row: dict[str, Any] | None = None):
        super().__init__(words)
        self.output, self.status, self.row = output, status, row or {}


class DeviceLost(Exception):
    """No later case of this process can succeed."""


class Run:
    """One run: options, time left, and the file that rows go to.

    Args:
        options: of the command line; ``run`` names this run, in every process of it; ``cuda``: that backend is there.
        name: of the device.
        after_error: called after a case that failed; it may raise ``DeviceLost``.
    """

    def __init__(
        self, options: argparse.Namespace, name: str, *, after_error: Callable[[], None] = lambda: None
    ) -> None:
        self.options, self.name, self.after_error = options, name, after_error
        self.dry, self.device = options.dry_run, "cpu" if options.dry_run else "cuda"
        self.start = time.monotonic()
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        self.rows_file, self.log_file, self.running = (
            options.out / f"gpu-{slug}.{end}" for end in ("jsonl", "log", "running")
        )
        self.commit, self.code, self.with_tests = commit(), code_hash(SOURCES), code_hash((*SOURCES, *TESTS))
        self.late: list[str] = []
        self.kept = 0
        self.live: set[subprocess.Popen[bytes]] = set()

    @property
    def left(self) -> float:
        """Seconds."""
        return 60 * self.options.minutes - (time.monotonic() - self.start)

    # ---- rows

    def code_of(self, phase: str) -> str:
        """What a row of this phase was made by."""
        if phase in ("environment", "build"):
            return self.code
        sources = self.with_tests if phase in ("tests", "sanitizer") else self.code
        return f"{sources}+cuda" if self.options.cuda else sources

    def rows(self) -> list[dict[str, Any]]:
        """Rows of this code and device; a line that was cut short by an interruption is no row."""
        found = []
        for line in self.rows_file.read_text(encoding="utf-8").splitlines() if self.rows_file.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row.get("code") == self.code_of(row.get("phase")) and row.get("device") == self.name:
                found.append(row)
        return found

    def has(self, phase: str, case: str) -> bool:
        """Whether it need not run again: it succeeded, or was tried in this run."""
        return any(
            row["run"] == self.options.run or not ({"error", "refused"} & row.keys() or self.options.again)
            for row in self.rows()
            if row["phase"] == phase and row["case"] == case
        )

    def errors(self) -> list[str]:
        """Phase and case of what failed in this run."""
        return [f"{r['phase']} {r['case']}" for r in self.rows() if r["run"] == self.options.run and "error" in r]

    def write(self, phase: str, case: str, row: dict[str, Any]) -> None:
        """Append a row, on a line of its own even after one that was cut short."""
        own = {
            "phase": phase, "case": case, "device": self.name, "code": self.code_of(phase), "commit": self.commit,
            "run": self.options.run,
        }  # fmt: skip
        whole = own | row | own
        torn = self.rows_file.exists() and self.rows_file.read_bytes()[-1:] not in (b"\n", b"")
        with self.rows_file.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + json.dumps(whole, default=str) + "\n")

    def log(self, text: str) -> None:
        """To the terminal and the log."""
        print(text, flush=True)
        self.note(text)

    def note(self, text: str) -> None:
        """To the log alone."""
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def attempt(self, phase: str, case: str, work: Callable[[], dict[str, Any]], *, always: bool = False) -> None:
        """Run and write one row; an error becomes a row with its words. ``always``: though the file has it.

        Raises:
            DeviceLost: from ``after_error``, with the row written.
        """
        if not always and self.has(phase, case):
            self.kept += 1
            return
        if self.left <= 0:
            self.late.append(f"{phase} {case}")
            return
        self.running.write_text(json.dumps([phase, case]), encoding="utf-8")
        begin = time.monotonic()
        try:
            row = work()
        except Failed as error:
            row = {"error": str(error), **error.row}
        except Exception as error:  # one case must not take the others with it
            row = {"error": f"{type(error).__name__}: {error}"[:4000]}
            self.note(traceback.format_exc())
        row["seconds"] = round(time.monotonic() - begin, 1)
        self.write(phase, case, row)
        self.running.unlink(missing_ok=True)
        summary = row.get("error") or row.get("refused") or json.dumps(row.get("ratios", row.get("summary", "done")))
        self.log(f"{phase}: {case}: {summary} ({row['seconds']:.0f} s)")
        if "error" in row:
            self.after_error()

    def begun(self) -> tuple[str, float] | None:
        """The case that has begun and has no row yet, and for how many seconds."""
        try:
            return json.loads(self.running.read_text(encoding="utf-8"))[1], time.time() - self.running.stat().st_mtime
        except (OSError, ValueError):
            return None

    def close(self, phase: str) -> None:
        """Say what was there before and what was not begun."""
        if self.kept:
            self.log(f"{phase}: {self.kept} done before")
        if late := sum(name.startswith(f"{phase} ") for name in self.late):
            self.log(f"{phase}: no time left for {late}; the same command goes on from here")
        self.kept = 0

    # ---- programs

    def command(
        self,
        words: Sequence[str],
        *,
        limit: float,
        environment: dict[str, str] | None = None,
        show: bool = False,
        stalled: Callable[[], str | None] = lambda: None,
    ) -> str:
        """Run a program and log its output, also of one that is stopped; all that it started ends with it.

        Args:
            limit: seconds. show: its standard output is the terminal's, and only the errors are logged.
            stalled: asked again and again; why to stop it before.

        Raises:
            Failed: with its last lines.
        """
        with tempfile.TemporaryFile() as file:  # a pipe would wait for whoever holds it
            process = subprocess.Popen(
                words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=None if show else file, stderr=file,
                env={**os.environ, "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1", **(environment or {})}, **GROUP,
            )  # fmt: skip
            self.live.add(process)
            try:
                why = _wait(process, max(limit, 1.0), stalled)
            finally:
                stop(process)
                self.live.discard(process)
            file.seek(0)
            output = file.read().decode(errors="replace")
        self.note(f"$ {shlex.join(words)}\n{output[-LOG_LEAST:]}")
        if why or process.returncode:
            what = why or f"exit {process.returncode}"
            status = None if why else process.returncode
            program = Path(next((word for word in words[1:] if not word.startswith("-")), words[0])).name
            raise Failed(f"{program}: {what}: {' / '.join(tail(output))}"[:4000], output=output, status=status)
        return output

    def stop_all(self) -> None:
        """End every program that runs; those who wait for them go on."""
        for process in list(self.live):
            kill(process)


def _wait(process: subprocess.Popen[bytes], limit: float, stalled: Callable[[], str | None]) -> str | None:
    """``None`` once it has ended, or why it should be stopped."""
    end = time.monotonic() + limit
    while True:
        try:
            process.wait(0.2)
            return None
        except subprocess.TimeoutExpired:
            if time.monotonic() > end:
                return f"stopped after {limit:.0f} s"
            if why := stalled():
                return why


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it and its group; one that still runs says first where (faulthandler)."""
    if process.poll() is None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            process.send_signal(signal.SIGABRT)
            process.wait(2)
    kill(process)
    with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the driver of the device
        process.wait(5)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End it and its group at once."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def tail(text: str, lines: int = 3) -> list[str]:
    """The last lines with something on them."""
    return [line for line in text.strip().splitlines() if line.strip()][-lines:]


def said(words: Sequence[str]) -> str:
    """What a program prints, or why it does not."""
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: {error}"
    return done.stdout.strip() if done.returncode == 0 else f"unknown: {' / '.join(tail(done.stdout + done.stderr))}"


# ---- what the rows are of


def commit() -> str:
    """Of the checkout, with ``-dirty``, or why it is unknown; also where the folder is another user's."""
    git = ["git", "-c", "safe.directory=*"]
    found = said([*git, "rev-parse", "HEAD"])
    if found.startswith("unknown"):
        return found
    return f"{found}-dirty" if said([*git, "status", "--porcelain", "--", ".", ":!benchmarks/results"]) else found


def code_hash(patterns: Sequence[str]) -> str:
    """Of the files' names and contents."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}):
        name = path.relative_to(ROOT).as_posix()
        if name != MADE_HERE:
            content = path.read_bytes()
            digest.update(f"{name}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of the whole run and of every phase in a process of its own."""
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "benchmarks/results", metavar="DIR", help="folder of results")
    add("--minutes", type=float, default=9.0, help="no case is begun after these; default 9")
    add("--compile-budget", type=float, default=100.0, metavar="S", help="for one baseline; default 100")
    add("--data", type=Path, metavar="PATH", help="CIFAR-10 to train on; default: drawn images")
    add("--again", action="store_true", help="run what the file has too")
    add("--dry-run", action="store_true", help="tiny shapes in Triton's interpreter, without a GPU")


def phase_options(options: argparse.Namespace, minutes: float) -> list[str]:
    """The same for a phase that has ``minutes``."""
    words = ["--out", str(options.out), "--minutes", f"{minutes:.3f}", "--compile-budget", str(options.compile_budget)]
    words += ["--run", options.run, *(["--data", str(options.data)] if options.data else [])]
    return [*words, *(f"--{name}" for name in ("again", "cuda", "dry-run") if getattr(options, name.replace("-", "_")))]
