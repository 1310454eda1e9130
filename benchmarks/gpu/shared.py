"""What the phases of ``make gpu`` share: the file of rows, the time that is left, and programs that can be stopped.

Nothing here imports torch or the package, so that a phase imports the extension that was built before it.
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
MADE_HERE = "contnet_fast/costmodel/choice-gpu.json"  # made from the rows, so it does not make them stale
LOST, LATE = 75, 76  # exit statuses of a phase: the device does not answer; time ran out
LOG_LEAST = 400_000  # characters of one program's output that the log keeps
# a process group, which can be killed as one, in the caller's session, whose end ends it too
GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}


class Failed(Exception):
    """A program failed, or was stopped, which leaves ``status`` ``None``; ``row`` has further entries of the row."""

    def __init__(self, words: str, *, output: str = "", status: int | None = None, row: dict[str, Any] | None = None):
        super().__init__(words)
        self.output, self.status, self.row = output, status, row or {}


class DeviceLost(Exception):
    """The device does not answer: no later case of this process can succeed."""


class GpuRun:
    """One run of ``make gpu``: its options, its time, and the file that its rows go to.

    Args:
        options: the command line; ``run`` names the run in all its processes, ``cuda`` says that the backend is there.
        name: the name of the device.
        check_device: called after a case that failed; it may raise ``DeviceLost``.
    """

    def __init__(
        self, options: argparse.Namespace, name: str, *, check_device: Callable[[], None] = lambda: None
    ) -> None:
        self.options, self.name, self.check_device = options, name, check_device
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
    def seconds_left(self) -> float:
        """Seconds until no further case begins."""
        return 60 * self.options.minutes - (time.monotonic() - self.start)

    # ---- rows

    def sources_of(self, phase: str) -> str:
        """Return the digest of the sources that rows of a phase depend on."""
        if phase in ("environment", "build"):
            return self.code
        sources = self.with_tests if phase in ("tests", "sanitizer") else self.code
        return f"{sources}+cuda" if self.options.cuda else sources

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of these sources and this device; lines that an interruption cut short are skipped."""
        found = []
        for line in self.rows_file.read_text(encoding="utf-8").splitlines() if self.rows_file.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row.get("code") == self.sources_of(row.get("phase")) and row.get("device") == self.name:
                found.append(row)
        return found

    def is_done(self, phase: str, case: str) -> bool:
        """Tell whether a case succeeded before, or was tried in this run."""
        return any(
            row["run"] == self.options.run or not ({"error", "refused"} & row.keys() or self.options.again)
            for row in self.rows()
            if row["phase"] == phase and row["case"] == case
        )

    def errors(self) -> list[str]:
        """Return phase and case of what failed in this run."""
        return [f"{r['phase']} {r['case']}" for r in self.rows() if r["run"] == self.options.run and "error" in r]

    def write(self, phase: str, case: str, row: dict[str, Any]) -> None:
        """Append a row on a new line, even after a line that was cut short."""
        stamp = {
            "phase": phase, "case": case, "device": self.name, "code": self.sources_of(phase), "commit": self.commit,
            "run": self.options.run,
        }  # fmt: skip
        whole = stamp | row | stamp
        torn = self.rows_file.exists() and self.rows_file.read_bytes()[-1:] not in (b"\n", b"")
        with self.rows_file.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + json.dumps(whole, default=str) + "\n")

    def log(self, text: str) -> None:
        """Write to the terminal and the log."""
        print(text, flush=True)
        self.note(text)

    def note(self, text: str) -> None:
        """Write to the log alone."""
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def attempt(self, phase: str, case: str, work: Callable[[], dict[str, Any]], *, always: bool = False) -> None:
        """Run a case and write its row; an error becomes a row with its message. ``always``: even if it is done.

        Raises:
            DeviceLost: ``check_device`` raised it, once the row was written.
        """
        if not always and self.is_done(phase, case):
            self.kept += 1
            return
        if self.seconds_left <= 0:
            self.late.append(f"{phase} {case}")
            return
        self.running.write_text(json.dumps([phase, case]), encoding="utf-8")
        begin = time.monotonic()
        try:
            row = work()
        except Failed as error:
            row = {"error": str(error), **error.row}
        except Exception as error:  # a failure of one case must not end the others
            row = {"error": f"{type(error).__name__}: {error}"[:4000]}
            self.note(traceback.format_exc())
        row["seconds"] = round(time.monotonic() - begin, 1)
        self.write(phase, case, row)
        self.running.unlink(missing_ok=True)
        summary = row.get("error") or row.get("refused") or json.dumps(row.get("ratios", row.get("summary", "done")))
        self.log(f"{phase}: {case}: {summary} ({row['seconds']:.0f} s)")
        if "error" in row:
            self.check_device()

    def begun(self) -> tuple[str, float] | None:
        """Return the case that is running and its seconds, or ``None``."""
        try:
            return json.loads(self.running.read_text(encoding="utf-8"))[1], time.time() - self.running.stat().st_mtime
        except (OSError, ValueError):
            return None

    def close(self, phase: str) -> None:
        """Log how many cases were done before, and how many had no time."""
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
        """Run a program and log its output, even if it is stopped; all that it started ends with it.

        Args:
            limit: seconds after which it is stopped.
            show: its standard output goes to the terminal, and only its errors are logged.
            stalled: called repeatedly; a text that it returns is the reason to stop the program.

        Raises:
            Failed: the program failed or was stopped; the message has its last lines.
        """
        with tempfile.TemporaryFile() as file:  # a pipe would wait for child processes that hold it
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
        """End every program that is running."""
        for process in list(self.live):
            kill(process)


def _wait(process: subprocess.Popen[bytes], limit: float, stalled: Callable[[], str | None]) -> str | None:
    """Wait for the end, and return ``None``, or the reason to stop the program."""
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
    """End a program and its group; one that still runs first prints where it is (faulthandler)."""
    if process.poll() is None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            process.send_signal(signal.SIGABRT)
            process.wait(2)
    kill(process)
    with contextlib.suppress(subprocess.TimeoutExpired):  # the process may hang in the device's driver
        process.wait(5)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a program and its group at once."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def tail(text: str, lines: int = 3) -> list[str]:
    """Return the last lines that are not empty."""
    return [line for line in text.strip().splitlines() if line.strip()][-lines:]


def program_output(words: Sequence[str]) -> str:
    """Return what a program prints, or "unknown: " and the reason."""
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: {error}"
    return done.stdout.strip() if done.returncode == 0 else f"unknown: {' / '.join(tail(done.stdout + done.stderr))}"


# ---- the sources


def commit() -> str:
    """Return the commit of the checkout, with ``-dirty``, or why it is unknown, even in another user's folder."""
    git = ["git", "-c", "safe.directory=*"]
    found = program_output([*git, "rev-parse", "HEAD"])
    if found.startswith("unknown"):
        return found
    return (
        f"{found}-dirty"
        if program_output([*git, "status", "--porcelain", "--", ".", ":!benchmarks/results"])
        else found
    )


def code_hash(patterns: Sequence[str]) -> str:
    """Return a digest of the names and contents of files."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}):
        name = path.relative_to(ROOT).as_posix()
        if name != MADE_HERE:
            content = path.read_bytes()
            digest.update(f"{name}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that the whole run and its phases share."""
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "benchmarks/results", metavar="DIR", help="folder of results")
    add("--minutes", type=float, default=9.0, help="no case is begun after these; default 9")
    add("--compile-budget", type=float, default=100.0, metavar="S", help="for one baseline; default 100")
    add("--data", type=Path, metavar="PATH", help="CIFAR-10 to train on; default: drawn images")
    add("--again", action="store_true", help="run what the file has too")
    add("--dry-run", action="store_true", help="tiny shapes in Triton's interpreter, without a GPU")


def phase_options(options: argparse.Namespace, minutes: float) -> list[str]:
    """Return these options for a phase that has ``minutes``."""
    words = ["--out", str(options.out), "--minutes", f"{minutes:.3f}", "--compile-budget", str(options.compile_budget)]
    words += ["--run", options.run, *(["--data", str(options.data)] if options.data else [])]
    return [*words, *(f"--{name}" for name in ("again", "cuda", "dry-run") if getattr(options, name.replace("-", "_")))]
