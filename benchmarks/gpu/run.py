"""Everything that a GPU can show, in one resumable run: ``make gpu``.

    python -m benchmarks.gpu.run
    python -m benchmarks.gpu.run --phases blocks --out /tmp/results --minutes 5

Writes ``gpu-<device>.jsonl`` and ``gpu-<device>.log`` into a folder. Cases that the file has for
these sources and this device are not run again without ``--again``; the build is. A failure does not stop the rest, but
makes the exit status 1. Each phase that times kernels is a process of its own, which begins after the build, and again
after a crash, a hang or an error of the device; while others wait it has half of the time that is left. Nothing is
downloaded: missing packages are reported.
``--dry-run`` goes through every phase on a CPU with Triton's interpreter and tiny shapes; its times mean nothing.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.common.options import Parser
from benchmarks.gpu import shared
from benchmarks.gpu.shared import LATE, LOST, Failed, GpuRun, add_options, phase_options, program_output, tail
from benchmarks.gpu.tests import DRY_TESTS, GPU_TESTS, SMOKE, TRITON_TESTS, sanitizer, tests

# by phase, the seconds after which a case counts as hanging; it compiles, warms up and is timed
LIMITS = {"first": 300.0, "blocks": 360.0, "choice": 150.0, "levels": 200.0, "combine": 90.0, "graphs": 240.0,
          "training": 300.0}  # fmt: skip
PHASES = ("environment", "build", "smoke", *LIMITS, "tests", "sanitizer")
GRACE = 30.0  # seconds that a case may take after the time is up
IDLE = 120.0  # seconds within which a phase must begin a case
RESTARTS = 12  # most processes for a phase
PROGRAM = (sys.executable, "-m", "benchmarks.gpu.phases")
PACKAGES = ("torch", "triton", "numpy", "pytest", "pytest-benchmark", "ninja", "scikit-learn", "rich", "torchdiffeq")
ASK_TORCH = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "name": None}
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    found |= {"name": torch.cuda.get_device_name(), "capability": list(torch.cuda.get_device_capability()),
              "multiprocessors": p.multi_processor_count, "memory": p.total_memory}
print(json.dumps(found))
"""
ASK_PACKAGE = """
import json, contnet_fast as cf
print(json.dumps({**cf.info().as_dict(), "available": list(cf.available_backends())}))
"""


def environment(run: GpuRun, torch: dict[str, Any]) -> None:
    """Record versions, device, driver, clocks, nvcc, and the package before the build."""

    def work() -> dict[str, Any]:
        versions = {}
        for name in PACKAGES:
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                versions[name] = "not installed"
        row: dict[str, Any] = {"summary": versions, "python": sys.version.split()[0], **torch, "cpus": os.cpu_count()}
        row["info"] = ask(ASK_PACKAGE)
        if not run.dry:
            folder = toolkit()
            query = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit"
            row |= {
                "nvcc": tail(program_output([f"{folder}/bin/nvcc", "--version"]), 2) if folder else "not found",
                "nvidia-smi": program_output(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]),
            }
            run.note(program_output(["nvidia-smi", "-q"]))
        return row

    run.attempt("environment", "report", work, always=True)


def build(run: GpuRun, torch: dict[str, Any]) -> None:
    """Build the C++ extension with CUDA, in every run; what did not change is not compiled again."""
    run.attempt("build", "extension", lambda: _build(run, torch), always=True)


def _build(run: GpuRun, torch: dict[str, Any]) -> dict[str, Any]:
    if run.dry:
        return {"summary": "left out of a dry run"}
    folder, (major, minor) = toolkit(), torch["capability"]
    settings = {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}{'a' if major >= 9 else ''}"}
    settings |= {"CONTNET_FAST_BUILD": "cuda", "CUDA_HOME": str(folder)} if folder else {"CONTNET_FAST_BUILD": "auto"}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    try:
        output = run.command(command, limit=run.seconds_left, environment=settings)
    except Failed as error:
        stale = f"contnet_fast/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        (shared.ROOT / stale).unlink(missing_ok=True)  # otherwise the old extension would be timed
        words = tail(error.output, 20)
        run.log("\n".join(words))
        raise Failed(f"no extension: {error}", row={"output": words}) from None
    info = ask(ASK_PACKAGE)
    row = {"summary": info.get("extension"), "info": info, "settings": settings, "output": tail(output, 20)}
    if "cuda" not in info.get("available", ()):
        why = info.get("error") or f"{info.get('extension')}; {info.get('backends', {}).get('cuda')}"
        raise Failed(f"the cuda backend cannot run: {why}" + ("" if folder else "; no nvcc found"), row=row)
    return row


def toolkit() -> Path | None:
    """Return the folder of the CUDA toolkit, or ``None`` without nvcc."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    homes += [str(Path(found).parents[1])] if (found := shutil.which("nvcc")) else []
    return next((Path(h) for h in (*homes, "/usr/local/cuda") if h and os.access(f"{h}/bin/nvcc", os.X_OK)), None)


def ask(program: str) -> dict[str, Any]:
    """Return what a Python program prints as JSON, or ``{"error": its last lines}``."""
    words = [sys.executable, "-c", program]
    try:
        done = subprocess.run(words, cwd=shared.ROOT, capture_output=True, text=True, timeout=120, check=False)
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {"error": " / ".join(tail(done.stdout + done.stderr)) or f"exit {done.returncode}"}
    except (OSError, subprocess.SubprocessError) as error:
        return {"error": str(error)}
    return found


def measured(run: GpuRun, phase: str, seconds: float) -> None:
    """Run a phase of ``phases.py`` in its own process, and in another one after a crash, a hang or a lost device."""
    end, active = time.monotonic() + seconds, time.monotonic()

    def stalled() -> str | None:
        nonlocal active
        if begun := run.begun():
            active = time.monotonic()
            return f"hangs for {begun[1]:.0f} s" if begun[1] > LIMITS[phase] else None
        return f"begins nothing for {IDLE:.0f} s" if time.monotonic() - active > IDLE else None

    for _ in range(RESTARTS):
        remaining = end - time.monotonic()
        if remaining <= 0:
            break
        run.running.unlink(missing_ok=True)
        active = time.monotonic()
        words = [*PROGRAM, phase]
        path = f"{shared.ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
        try:
            words += phase_options(run.options, remaining / 60)
            environment = {"PYTHONPATH": path}
            run.command(words, limit=run.seconds_left + GRACE, show=True, stalled=stalled, environment=environment)
            return
        except Failed as error:
            if error.status == 1 and any(name.startswith(f"{phase} ") for name in run.errors()):
                return
            if error.status == LATE:
                run.late.append(phase)
                return
            if error.status != LOST:
                begun = run.begun()
                words = tail(error.output, 8)
                run.write(phase, begun[0] if begun else "process", {"error": str(error), "output": words})
                run.log(f"{phase}: {begun[0] if begun else 'process'}: {error}")
                if begun is None:
                    return
    run.late.append(phase)


def summary(run: GpuRun) -> None:
    """Log the last table: every ratio of these sources and this device."""
    lines = ["", f"{run.name}, code {run.code}, commit {run.commit}", "", "| case | what | ratio |", "|---|---|---|"]
    latest = {(row["phase"], row["case"]): row for row in run.rows()}
    for (_, case), row in latest.items():
        for name, value in row.get("ratios", {}).items():
            pairs = {f"{kind} / {name}": v for kind, v in value.items()} if isinstance(value, dict) else {name: value}
            lines += [f"| {case} | {what} | {ratio:.2f} |" for what, ratio in pairs.items()]
    for (_, case), row in latest.items():
        for what, aim in row.get("aims", {}).items():
            lines.append(f"{case}: {what}: {'reaches' if aim['reached'] else 'MISSES'} the aim of {aim['least']}")
        lines += [f"left out: {case}: {name}" for name in row.get("left_out", ())]
        lines += [f"refused: {case}: {row['refused']}"] if "refused" in row else []
    lines += [f"FAILED {name}" for name in dict.fromkeys(run.errors())]
    run.log("\n".join([*lines, *(f"NOT DONE {name} (no time left)" for name in run.late)]))
    run.log(f"rows in {run.rows_file}, log in {run.log_file}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    p = Parser("python -m benchmarks.gpu.run", __doc__)
    p.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES), metavar="PHASE", help=", ".join(PHASES))
    add_options(p)
    options = p.parse_args(argv)
    if options.minutes <= 0 or options.compile_budget <= 0:
        p.error("--minutes and --compile-budget: accepted: numbers above 0")
    try:
        options.out = options.out.resolve()
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / ".writable").touch()
        (options.out / ".writable").unlink()
    except OSError as error:
        p.error(f"--out: got {options.out}, accepted: a writable folder ({error.strerror})")
    os.environ.pop("TRITON_INTERPRET", None)
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    torch = ask(ASK_TORCH)
    if not options.dry_run and not torch.get("name"):
        p.error(torch.get("error") or f"torch {torch['torch']} sees no CUDA device (--dry-run needs none)")
    options.run, options.cuda = f"{time.time_ns():x}", False
    run = GpuRun(options, "dry-run" if options.dry_run else torch["name"])
    before = signal.signal(signal.SIGTERM, lambda *_: (run.stop_all(), sys.exit(143)))
    try:
        go(run, torch)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 1 if run.late or run.errors() else 0


def go(run: GpuRun, torch: dict[str, Any]) -> None:
    """Run the requested phases in order."""
    wanted = [phase for phase in PHASES if phase in run.options.phases]
    try:
        if "environment" in wanted:
            environment(run, torch)
        if "build" in wanted:
            build(run, torch)
        run.options.cuda = not run.dry and "cuda" in ask(ASK_PACKAGE).get("available", ())
        for phase in wanted:
            if phase in LIMITS:
                measured(run, phase, run.seconds_left if phase == wanted[-1] else run.seconds_left / 2)
            elif phase in ("smoke", "tests"):
                every = SMOKE if phase == "smoke" else (*GPU_TESTS, *TRITON_TESTS)
                tests(run, DRY_TESTS if run.dry else every)
            elif phase == "sanitizer":
                sanitizer(run)
            run.close(phase)
    finally:
        run.stop_all()
        run.running.unlink(missing_ok=True)
        summary(run)


if __name__ == "__main__":
    resource.setrlimit(
        resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1])
    )  # no core dumps of stopped processes
    sys.exit(main())
