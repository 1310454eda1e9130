"""Run the tests of ``make gpu``: on the GPU in several processes, and under compute-sanitizer."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.gpu.shared import Failed, GpuRun, tail

SMOKE = ("tests/gpu/test_cuda_gpu.py", "tests/gpu/test_gpu_kernels.py")  # before anything is timed
GPU_TESTS = (*SMOKE, "tests/gpu/test_cuda_conv_gpu.py", "tests/gpu/test_cuda_graph_gpu.py",
             "tests/gpu/test_triton_gpu.py", "tests/ode/test_odeint_device.py", "tests/ode/test_odeint_checkpoint.py",
             "tests/gpu/test_reference_gpu.py")  # fmt: skip
DRY_TESTS = ("tests/interpreted/test_triton_combine.py",)
TRITON_TESTS = (  # the kernels are compiled where a GPU is
    *(f"tests/interpreted/test_triton_{name}.py" for name in ("conv", "diffusion", "mixing", "slices")), *DRY_TESTS,
)  # fmt: skip
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-o", "faulthandler_timeout=100")
PROCESSES, FILE_LIMIT = 8, 240
VERDICTS = {"PASSED": "passed", "SKIPPED": "skipped", "XFAIL": "passed", "FAILED": "failed", "ERROR": "failed"}
# errors after which every call of a process fails
STICKY = re.compile(
    r"misaligned address|illegal memory access|illegal instruction|unspecified launch failure|device-side assert"
    r"|launch timed out|CUDA_ERROR_(?:ILLEGAL|MISALIGNED|LAUNCH_FAILED|ASSERT)"
)
SANITIZED = (  # tool, file, selection of tests
    *(
        (tool, f"tests/gpu/{file}.py", "small_set")
        for tool in ("memcheck", "racecheck", "synccheck")
        for file in ("test_cuda_gpu", "test_cuda_conv_gpu", "test_cuda_graph_gpu", "test_triton_gpu")
    ),
    ("memcheck", "tests/gpu/test_gpu_kernels.py", "another_stream or one_order"),
)
REFUSED = re.compile(
    r"Device not supported|LibraryNotLoaded|not supported on this|Unable to (?:attach|initialize)|No attachable process"
    r"|terminated before first instrumented API call|insufficient permission",
    re.IGNORECASE,
)


# ---- tests in several processes


def tests(run: GpuRun, files: Sequence[str]) -> None:
    """Write a row for each file."""
    for file in files:
        run.attempt("tests", file, lambda file=file: run_tests(run, file))  # type: ignore[misc]


def run_tests(run: GpuRun, file: str) -> dict[str, Any]:
    """Return counts by verdict; tests after a crash or a lost device run in another process.

    Raises:
        Failed: tests failed, crashed or did not end, which the message names, or none ran.
    """
    end = time.monotonic() + min(run.seconds_left, FILE_LIMIT)
    selection = ["-m", "gpu"] if file in GPU_TESTS else []
    listed = run.command([*PYTEST, "-q", "--collect-only", *selection, file], limit=end - time.monotonic())
    names = [line for line in listed.splitlines() if line.startswith(file) and "::" in line]
    share = min(len(names), 1 if run.dry else min(PROCESSES, os.cpu_count() or 1)) or 1
    with ThreadPoolExecutor(share) as pool:
        found = list(pool.map(lambda i: _share(run, names[i::share], end), range(share)))
    verdicts = {name: word for part, _ in found for name, word in part.items()}
    words = [line for _, lines in found for line in lines]
    counts = dict(Counter(verdicts.values()))
    bad = {name.partition("::")[2]: word for name, word in verdicts.items() if word not in ("passed", "skipped")}
    row = {"summary": counts, **({"bad": bad, "words": words[:40]} if bad else {})}
    if bad:
        raise Failed(f"{counts}: {', '.join(list(bad)[:8])}: {' / '.join(words[:3])}", row=row)
    if not counts.get("passed"):
        raise Failed(f"no test ran: {counts}", row=row)
    return row


def _share(run: GpuRun, names: list[str], end: float) -> tuple[dict[str, str], list[str]]:
    """Run tests in one process at a time, and return their verdicts and lines about failures."""
    verdicts: dict[str, str] = {}
    words: list[str] = []
    while names and (remaining := end - time.monotonic()) > 0:
        try:
            environment = {"OMP_NUM_THREADS": "2"}
            output, error = run.command([*PYTEST, "-v", "-rfE", *names], limit=remaining, environment=environment), None
        except Failed as failure:
            output, error = failure.output, failure
        found = read_verdicts(output, names)
        words += [line for line in output.splitlines() if line.startswith("E  ") or "Fatal Python error" in line]
        if error and error.status != 1:  # pytest did not finish
            culprit = next((name for name in names if name in found and found[name] == ""), None)
            found = {
                name: word or ("unfinished" if error.status is None else "crashed") for name, word in found.items()
            }
            words.append(str(error))
            if culprit is None:  # no test had begun
                return verdicts | dict.fromkeys(names, "not run") | found, words
        elif error and STICKY.search(output):  # later tests failed because of the first
            first = next((name for name in names if found.get(name) == "failed"), None)
            found = {name: word for name, word in found.items() if word != "failed" or name == first}
        verdicts |= {name: found[name] for name in names if name in found}
        names = [name for name in names if name not in found]
        if error is None or not found:
            break
    return verdicts | dict.fromkeys(names, "not run"), words


def read_verdicts(output: str, names: Sequence[str]) -> dict[str, str]:
    """Return the verdicts by test in the output of ``pytest -v``; ``""`` for a test that began and did not end."""
    found: dict[str, str] = {}
    for line in output.splitlines():
        candidates = [name for name in names if f"{line} ".startswith(f"{name} ")]
        if candidates:
            name = max(candidates, key=len)
            found[name] = VERDICTS.get(line[len(name) :].strip().partition(" ")[0], "")
    return found


# ---- compute-sanitizer


def sanitizer(run: GpuRun) -> None:
    """Run memcheck, racecheck and synccheck on a few kernels of each backend."""
    refused: list[str] = []
    for tool, file, selection in SANITIZED:
        case = f"{tool} {Path(file).stem}"
        run.attempt("sanitizer", case, lambda arguments=(tool, file, selection): sanitize(run, *arguments, refused))  # type: ignore[misc]


def sanitize(run: GpuRun, tool: str, file: str, selection: str, refused: list[str]) -> dict[str, Any]:
    """Return what the tool reports; ``refused`` receives the reason where the tool cannot work here.

    Raises:
        Failed: the tool found something, or no test passed under it.
    """
    if run.dry:
        return {"summary": "left out of a dry run"}
    program = sanitizer_program()
    if program is None:
        refused.append("compute-sanitizer is not on this machine")
    if refused:
        return {"refused": refused[0]}
    assert program is not None
    words = [program, f"--tool={tool}", "--error-exitcode=9", "--report-api-errors=no", "--print-limit=20", *PYTEST,
             "-q", "-k", selection, file]  # fmt: skip
    try:
        output = run.command(
            words, limit=min(run.seconds_left, FILE_LIMIT), environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        )
    except Failed as error:
        if found := REFUSED.search(error.output):
            refused.append(next(line for line in error.output.splitlines() if found[0] in line))
            return {"refused": refused[0]}
        found_lines = [line for line in error.output.splitlines() if line.startswith("=====")]
        error.row = {"summary": _sums(error.output), "words": found_lines[:60]}
        raise
    row = {"summary": _sums(output), "tests": tail(output.partition("SUMMARY")[0])}
    if not re.search(r"\b[1-9]\d* passed", output):
        raise Failed(f"no test ran: {' / '.join(tail(output))}", row=row)
    return row


def _sums(output: str) -> list[str]:
    return re.findall(r"={3,} ((?:\w+ )?SUMMARY: .*)", output)


def sanitizer_program() -> str | None:
    """Return compute-sanitizer on the path or in a CUDA toolkit, or ``None``."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [shutil.which("compute-sanitizer"), *(f"{home}/bin/compute-sanitizer" for home in homes if home),
              *(f"{home}/compute-sanitizer/compute-sanitizer" for home in homes if home)]  # fmt: skip
    return next((place for place in places if place and os.access(place, os.X_OK)), None)
