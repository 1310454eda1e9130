"""Everything that a GPU can show, in one resumable run: ``make gpu``.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --phases blocks --out /tmp/results --minutes 5

Writes ``gpu-<device>.jsonl`` and ``gpu-<device>.log`` into a folder. A phase or case that the file has for this commit
and device is not run again (``--again`` does), and one that fails does not stop the others: the exit status is 1 then.
Nothing is fetched: packages that are missing are said so. ``--dry-run`` goes through every phase on a CPU with Triton's
interpreter and tiny shapes; its times tell nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from options import Parser

ROOT = Path(__file__).resolve().parent.parent
PHASES = ("environment", "build", "tests", "combine", "levels", "blocks", "training", "sanitizer", "choice")
TRITON_TESTS = ("tests/test_triton_conv.py", "tests/test_triton_combine.py")
DRY_TESTS = ("tests/test_triton_combine.py",)
SANITIZED = ("tests/test_triton_gpu.py", "tests/test_cuda_gpu.py", "tests/test_cuda_conv_gpu.py")
PACKAGES = ("torch", "triton", "numpy", "pytest", "pytest-benchmark", "ninja", "scikit-learn", "rich", "torchdiffeq")


class Run:
    """One run: options, time left, and the file that rows go to."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.start = options, time.monotonic()
        self.dry = options.dry_run
        self.device = "cpu" if self.dry else "cuda"
        self.name = "dry-run" if self.dry else torch.cuda.get_device_name()
        slug = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        self.rows_file, self.log_file = (options.out / f"gpu-{slug}.{end}" for end in ("jsonl", "log"))
        self.commit = _output(["git", "rev-parse", "HEAD"])
        self.failed: list[str] = []

    @property
    def left(self) -> float:
        """Seconds."""
        return 60 * self.options.minutes - (time.monotonic() - self.start)

    def rows(self) -> list[dict[str, Any]]:
        """Rows of this commit and device; a line that was cut short by an interruption is no row."""
        found = []
        for line in self.rows_file.read_text(encoding="utf-8").splitlines() if self.rows_file.exists() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row.get("commit") == self.commit and row.get("device") == self.name:
                found.append(row)
        return found

    def has(self, phase: str, case: str) -> bool:
        """Whether it need not run again: only what succeeded is kept."""
        if self.options.again:
            return False
        return any(r["phase"] == phase and r["case"] == case and "error" not in r for r in self.rows())

    def write(self, phase: str, case: str, row: dict[str, Any]) -> None:
        """Append a row, on a line of its own even after one that was cut short."""
        whole = {"phase": phase, "case": case, "device": self.name, "commit": self.commit, **row}
        torn = self.rows_file.exists() and self.rows_file.read_bytes()[-1:] not in (b"\n", b"")
        with self.rows_file.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + json.dumps(whole) + "\n")

    def log(self, text: str) -> None:
        """To the terminal and the log."""
        print(text, flush=True)
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def attempt(self, phase: str, case: str, work: Callable[[], dict[str, Any]]) -> None:
        """Run and write one row; an error becomes a row with its words."""
        if self.has(phase, case):
            self.log(f"{phase}: {case}: done before")
            return
        if self.left <= 0:
            self.log(f"{phase}: {case}: no time left; the same command goes on from here")
            self.failed.append(f"{phase} {case} (no time left)")
            return
        begin = time.monotonic()
        try:
            row = work()
        except Exception as error:  # one phase must not take the others with it
            row = {"error": f"{type(error).__name__}: {error}"}
        row["seconds"] = round(time.monotonic() - begin, 1)
        self.write(phase, case, row)
        if "error" in row:
            self.failed.append(f"{phase} {case}")
        summary = row.get("error") or json.dumps(row.get("ratios", row.get("summary", "done")))
        self.log(f"{phase}: {case}: {summary} ({row['seconds']:.0f} s)")

    def command(self, words: Sequence[str], *, limit: float, environment: dict[str, str] | None = None) -> str:
        """Run a program and log its output; raises with its last lines if it fails or takes too long."""
        done = subprocess.run(
            words, cwd=ROOT, capture_output=True, text=True, timeout=max(limit, 1.0), check=False,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(f"$ {' '.join(words)}\n{done.stdout}{done.stderr}\n")
        if done.returncode:
            raise RuntimeError(f"{words[-1]}: exit {done.returncode}: " + " / ".join(_tail(done.stdout + done.stderr)))
        return done.stdout


def environment(run: Run) -> None:
    """Versions, device, driver."""

    def work() -> dict[str, Any]:
        versions = {}
        for name in PACKAGES:
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                versions[name] = "not installed"
        row: dict[str, Any] = {"summary": versions, "python": sys.version.split()[0], "cuda": torch.version.cuda}
        if not run.dry:
            properties = torch.cuda.get_device_properties(0)
            query = "driver_version,clocks.max.sm,clocks.max.mem,power.limit"
            row |= {
                "capability": list(torch.cuda.get_device_capability()),
                "multiprocessors": properties.multi_processor_count,
                "memory": properties.total_memory,
                "nvidia-smi": _output(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]),
            }
        return row

    run.attempt("environment", "report", work)


def build(run: Run) -> None:
    """The C++ extension."""

    def work() -> dict[str, Any]:
        if run.dry:
            return {"summary": "left out of a dry run"}
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        chip = ".".join(map(str, torch.cuda.get_device_capability()))
        settings = {"CONTNET_FAST_BUILD": "auto", "TORCH_CUDA_ARCH_LIST": chip}
        out = run.command(command, limit=min(run.left, 300), environment=settings)
        asked = [sys.executable, "-c", "import contnet_fast as cf; print(cf.info().extension)"]
        return {"summary": run.command(asked, limit=60).strip(), "output": _tail(out)}

    run.attempt("build", "extension", work)


def tests(run: Run) -> None:
    """GPU tests, then the kernels' tests compiled, in several processes."""
    files = DRY_TESTS if run.dry else ("-m gpu tests", *TRITON_TESTS)
    for file in files:
        run.attempt("tests", file, lambda file=file: _tests(run, file))  # type: ignore[misc]


def _tests(run: Run, file: str) -> dict[str, Any]:
    base = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
    listed = run.command([*base, "--collect-only", *file.split()], limit=120)
    ids = [line for line in listed.splitlines() if "::" in line]
    share = min(len(ids), 1 if run.dry else min(8, os.cpu_count() or 1)) or 1
    limit = min(run.left, 300)
    with ThreadPoolExecutor(share) as pool:
        outs = list(pool.map(lambda i: run.command([*base, *ids[i::share]], limit=limit), range(share)))
    counts: dict[str, int] = {}
    for out in outs:
        for number, word in re.findall(r"(\d+) (passed|skipped|failed|error)", out):
            counts[word] = counts.get(word, 0) + int(number)
    return {"summary": counts}


def combine(run: Run) -> None:
    """Bandwidth of stage combinations."""
    _suite(run, "combine", lambda case: case.part == "op")


def blocks(run: Run) -> None:
    """Blocks and networks beside the baselines."""
    _suite(run, "blocks", lambda case: case.part != "op")


def _suite(run: Run, phase: str, wanted: Callable[[Any], bool]) -> None:
    from cases import gpu_suite
    from parts import measure

    for case in filter(wanted, gpu_suite(tiny=run.dry)):
        run.attempt(phase, case.name, lambda case=case: measure(case, _context(run)))  # type: ignore[misc]


def levels(run: Run) -> None:
    """Levels of ``triton`` and ``cuda`` beside one another, in turn."""
    from cases import level_suite
    from gpu_levels import measure_levels
    from timing import TINY, Effort

    effort = TINY if run.dry else Effort(rounds=30, seconds=0.0, cold_rounds=0)
    seeds = (1,) if run.dry else (1, 2, 3)
    for case in level_suite(tiny=run.dry):
        run.attempt("levels", case.name, lambda case=case: measure_levels(  # type: ignore[misc]
            case, run.device, effort, seeds=seeds, log=run.log))  # fmt: skip


def training(run: Run) -> None:
    """The paper's 8-8-8 in short, by eager PyTorch and by ours: losses, accuracies, seconds (``train_cifar.py``)."""
    run.attempt("training", "8-8-8/rk4_classic", lambda: _training(run))


def _training(run: Run) -> dict[str, Any]:
    from training_race import Race
    from training_rows import ROWS, Images, TrainingRow, entrants, gratings, load_images

    if run.dry:
        images, line = Images(gratings(4, 4), "drawn gratings", (0.5,)), TrainingRow(1, "euler")
        config = line.config(epochs=1, data="synthetic", batch_size=2, width=4)
    else:
        images = load_images("cifar10" if run.options.data else "gratings", run.options.data, 4096)
        line = ROWS["8-8-8/rk4_classic"]
        config = line.config(epochs=6, data="synthetic", amp="bfloat16", device=run.device)
    torch.backends.cudnn.benchmark = True
    images = Images(images.data.to(run.device), images.note, images.thresholds)
    race = Race(line, config, images, images.thresholds, log=run.log, seconds=min(60.0, run.left / 3))
    with tempfile.TemporaryDirectory() as folder:
        row = race.run(entrants(_who_trains()), Path(folder))
    del row["case"]  # a row of this file has its own
    ours = {name: found for name, found in row["ratios"].items() if not name.startswith("reference")}
    row["ratios"] = {f"{what} / {name}": value for name, found in ours.items() for what, value in found.items()}
    return row


def _who_trains() -> tuple[str, ...]:
    """Eager PyTorch, and what of ours can run here."""
    from contnet_fast.backends import available_backends

    ours = [name for name in ("triton", "cuda") if name in available_backends()]
    return tuple(f"{name}:channels_last" for name in ("reference", *ours))


def sanitizer(run: Run) -> None:
    """compute-sanitizer on a small set of kernels of each backend."""
    for tool in ("memcheck", "racecheck"):
        for file in SANITIZED:
            case = f"{tool} {Path(file).stem}"
            run.attempt("sanitizer", case, lambda tool=tool, file=file: _sanitize(run, tool, file))  # type: ignore[misc]


def _sanitize(run: Run, tool: str, file: str) -> dict[str, Any]:
    if run.dry:
        return {"summary": "left out of a dry run"}
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return {"summary": "compute-sanitizer is not on this machine"}
    words = [
        program,
        f"--tool={tool}",
        "--error-exitcode=9",
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-k",
        "test_small_set",
    ]
    out = run.command([*words, file], limit=min(run.left, 180), environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    return {"summary": re.findall(r"={3,} (\w+ SUMMARY: .*)", out), "tests": _tail(out.partition("SUMMARY")[0])}


def choice(run: Run) -> None:
    """Times that ``auto`` chooses by; the table is written once all of them are there."""
    from gpu_choice import choice_cases, measure_choice, write_choice
    from timing import TINY, Effort

    effort = TINY if run.dry else Effort(rounds=30, seconds=0.0, cold_rounds=0)
    cases = list(choice_cases(tiny=run.dry))
    for case in cases:
        run.attempt("choice", case.name, lambda case=case: measure_choice(case, run.device, effort, tiny=run.dry))  # type: ignore[misc]
    done = [row for row in run.rows() if row["phase"] == "choice" and "choice" in row]
    if len({row["case"] for row in done}) == len(cases):
        major = 9 if run.dry else torch.cuda.get_device_capability()[0]
        family = {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")
        path = run.options.out / "choice-gpu.json"
        count = write_choice(done, family, f"{run.name}, commit {run.commit[:8]}", path)
        run.log(f"choice: {count} rows in {path}; copied to contnet_fast/backends/ auto goes by it")


def _context(run: Run) -> Any:
    from parts import Context
    from rows import device_rates
    from timing import TINY, Effort

    if run.dry:
        return Context(TINY, "triton", 60.0, run.log, without=("compile", "torchdiffeq", "published loop"), seeds=(1,))
    torch.backends.cudnn.benchmark = True
    budget = min(run.options.compile_budget, run.left)
    return Context(Effort(rounds=30, seconds=0.0), "triton", budget, run.log, device="cuda", rates=device_rates("cuda"))


def summary(run: Run) -> None:
    """The last table: every ratio of this commit and device."""
    lines = ["", f"{run.name}, commit {run.commit[:8]}", "", "| case | what | ratio |", "|---|---|---|"]
    latest = {(row["phase"], row["case"]): row for row in run.rows()}
    for (_, case), row in latest.items():
        for name, value in row.get("ratios", {}).items():
            pairs = {f"{kind} / {name}": v for kind, v in value.items()} if isinstance(value, dict) else {name: value}
            lines += [f"| {case} | {what} | {ratio:.2f} |" for what, ratio in pairs.items()]
    for (_, case), row in latest.items():
        for what, aim in row.get("aims", {}).items():
            lines.append(f"{case}: {what}: {'reaches' if aim['reached'] else 'MISSES'} the aim of {aim['least']}")
        lines += [f"left out: {case}: {name}" for name in row.get("left_out", ())]
    run.log("\n".join([*lines, *(f"FAILED {f}" for f in run.failed)]))
    run.log(f"rows in {run.rows_file}, log in {run.log_file}")


def _tail(text: str, lines: int = 3) -> list[str]:
    return [line for line in text.strip().splitlines() if line.strip()][-lines:]


def _output(words: Sequence[str]) -> str:
    try:
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; the exit status."""
    p = Parser("gpu.py", __doc__)
    p.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", metavar="DIR", help="folder of results")
    p.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES), metavar="PHASE", help=", ".join(PHASES))
    p.add_argument("--minutes", type=float, default=9.0, help="no case is begun after these; default 9")
    p.add_argument("--compile-budget", type=float, default=100.0, metavar="S", help="for one baseline; default 100")
    p.add_argument("--data", type=Path, metavar="PATH", help="CIFAR-10 to train on; default: drawn images")
    p.add_argument("--again", action="store_true", help="run what the file has too")
    p.add_argument("--dry-run", action="store_true", help="tiny shapes in Triton's interpreter, without a GPU")
    options = p.parse_args(argv)
    if options.minutes <= 0 or options.compile_budget <= 0:
        p.error("--minutes and --compile-budget: accepted: numbers above 0")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if options.dry_run and not interpreted:
        p.error("--dry-run: needs TRITON_INTERPRET=1 in the environment")
    if not options.dry_run and (interpreted or not torch.cuda.is_available()):
        p.error(f"torch {torch.__version__} sees no CUDA device (--dry-run needs none)" if not interpreted
                else "TRITON_INTERPRET is set: unset it, or give --dry-run")  # fmt: skip
    from contnet_fast.files import writable_folder

    try:
        writable_folder("--out", options.out)
    except ValueError as error:
        p.error(str(error))
    run = Run(options)
    for phase in PHASES:
        if phase in options.phases:
            globals()[phase](run)
    summary(run)
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
