"""``make gpu`` survives what fails: builds, tests and tools that crash, hang, leave processes or are not there."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch

from contnet_fast.backends import triton as backend_triton

ROOT = Path(__file__).resolve().parents[2]
H100 = {"name": "Fake H100", "capability": [9, 0]}


@pytest.fixture
def gpu(monkeypatch):
    """The modules of ``benchmarks`` by name."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def project(gpu, monkeypatch, tmp_path):
    """``write(name, text)`` into a project that stands for this one."""
    root = tmp_path / "project"

    def write(name, text):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    write("benchmarks/x.py", "")
    monkeypatch.setattr(gpu("gpu.shared"), "ROOT", root)
    return write


@pytest.fixture
def run(gpu, project, tmp_path):
    """``make(name)``: one on a GPU, by the name of the run."""

    def make(name="one", cuda=True):
        options = argparse.Namespace(
            out=tmp_path, minutes=1.0, compile_budget=1.0, data=None, again=False, dry_run=False, run=name, cuda=cuda
        )
        return gpu("gpu.shared").GpuRun(options, "Fake H100")

    return make


def alive(pid) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---- rows


@pytest.mark.parametrize(
    ("name", "phases_again"),
    [
        ("csrc/cuda/a.cu", ["blocks", "tests"]),
        ("contnet_fast/a.py", ["blocks", "tests"]),
        ("benchmarks/x.py", ["blocks", "tests"]),
        ("setup.py", ["blocks", "tests"]),
        ("tests/test_a.py", ["tests"]),
        ("contnet_fast/costmodel/choice-gpu.json", []),
        ("docs/a.md", []),
    ],
)
def test_rows_of_other_sources_are_run_again(run, project, name, phases_again):
    for phase in ("blocks", "tests"):
        run().attempt(phase, "a", dict)
    later = run("another")
    assert all(later.is_done(phase, "a") for phase in ("blocks", "tests"))
    project(name, "changed")
    later = run("another")
    assert [phase for phase in ("blocks", "tests") if not later.is_done(phase, "a")] == phases_again


def test_rows_without_the_cuda_backend_are_run_again_once_it_is_there(run):
    run(cuda=False).attempt("levels", "a", dict)
    assert run("another", cuda=False).is_done("levels", "a")
    assert not run("another").is_done("levels", "a")


def test_without_git_the_commit_says_why_and_the_row_names_its_sources(run, tmp_path):
    run().attempt("blocks", "a", dict)
    (row,) = run().rows()
    assert row["commit"].startswith("unknown")
    assert re.fullmatch(r"[0-9a-f]{16}\+cuda", row["code"])


# ---- programs


def test_a_program_that_is_stopped_leaves_its_words_and_no_process(run, project, gpu, tmp_path):
    words = """import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
print("the child is", child.pid, flush=True)
def somewhere(): time.sleep(100)
somewhere()
"""
    start = time.monotonic()
    with pytest.raises(gpu("gpu.shared").Failed, match="stopped after 1 s") as stopped:
        run().command([sys.executable, str(project("hang.py", words))], limit=1)
    assert time.monotonic() - start < 10
    assert stopped.value.status is None
    log = (tmp_path / "gpu-fake-h100.log").read_text()
    assert "in somewhere" in log  # where it stood
    child = int(re.search(r"the child is (\d+)", log)[1])
    end = time.monotonic() + 3
    while alive(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(child)


def test_what_a_program_leaves_behind_ends_with_it(run, project):
    words = "sleep 100 & echo $!"
    child = int(run().command(["sh", "-c", words], limit=20))
    time.sleep(0.1)
    assert not alive(child)


# ---- the build


@pytest.fixture
def toolkit(project, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(project("cuda/bin/nvcc", "#!/bin/sh\n").parents[1]))


def package(project, backends):
    """One that says what it has."""
    project(
        "contnet_fast/__init__.py",
        f"""class info:
    def as_dict(self): return {{"extension": "C++ without CUDA", "backends": {{"cuda": "no kernels"}}}}
def available_backends(): return {backends!r}
""",
    )


def test_a_build_that_fails_is_an_error_with_nvcc_s_words_and_leaves_no_old_extension(run, project, gpu, toolkit):
    project(
        "setup.py",
        """import os, sys
sys.exit(os.environ["CONTNET_FAST_BUILD"] + "\\n" + "\\n".join(f"error {i}: no wgmma" for i in range(30)))
""",
    )
    package(project, ("cuda",))
    old = project(f"contnet_fast/_C{sysconfig.get_config_var('EXT_SUFFIX')}", "")
    first = run()
    gpu("gpu.run").build(first, H100)
    (row,) = first.rows()
    assert row["error"].startswith("no extension: setup.py: exit 1")
    assert row["output"] == [f"error {i}: no wgmma" for i in range(10, 30)]
    assert "\ncuda\nerror 0: no wgmma" in first.log_file.read_text()
    assert not old.exists()
    assert first.errors() == ["build extension"]


@pytest.mark.parametrize(("backends", "error"), [(("reference", "cuda"), None), (("reference",), "no kernels")])
def test_a_build_is_what_the_package_says_of_it_in_a_new_process(run, project, gpu, toolkit, backends, error):
    project("setup.py", "import os; print(os.environ['CONTNET_FAST_BUILD'], os.environ['TORCH_CUDA_ARCH_LIST'])")
    package(project, backends)
    for name in ("one", "two"):  # each run builds
        gpu("gpu.run").build(run(name), H100)
    for row in run().rows():
        assert row["output"] == ["cuda 9.0a"]
        assert ("error" in row) == bool(error)
        assert error is None or error in row["error"]
    assert len(run().rows()) == 2


def test_a_machine_without_nvcc_is_an_error(run, project, gpu, monkeypatch):
    monkeypatch.setattr(gpu("gpu.run"), "toolkit", lambda: None)
    project("setup.py", "import os; print(os.environ['CONTNET_FAST_BUILD'])")
    package(project, ("reference",))
    gpu("gpu.run").build(run(), H100)
    (row,) = run().rows()
    assert row["output"] == ["auto"]
    assert row["error"].endswith("no nvcc found")


# ---- phases in processes of their own


def test_a_phase_that_crashes_hangs_or_loses_the_device_goes_on_in_another_process(
    run, project, gpu, tmp_path, monkeypatch
):
    """Each case of this phase ends its process in another way."""
    script = project(
        "phases.py",
        f"""import argparse, os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from benchmarks.gpu import shared
p = argparse.ArgumentParser()
p.add_argument("phase"); p.add_argument("--run"); p.add_argument("--cuda", action="store_true")
shared.add_options(p)
shared.ROOT = shared.Path({str(tmp_path / "project")!r})
def lost(): raise shared.DeviceLost
run = shared.GpuRun(p.parse_args(), "Fake H100", check_device=lost)
def failing(): raise RuntimeError("CUDA error: misaligned address")
cases = {{"aborts": os.abort, "hangs": lambda: time.sleep(100), "fails": failing, "works": dict}}
try:
    for name, work in cases.items():
        run.attempt("blocks", name, work)
except shared.DeviceLost:
    sys.exit(shared.LOST)
sys.exit(1)
""",
    )
    driver, whole = gpu("gpu.run"), run()
    monkeypatch.setattr(driver, "PROGRAM", (sys.executable, str(script)))
    monkeypatch.setitem(driver.LIMITS, "blocks", 1.0)
    driver.measured(whole, "blocks", 30)
    found = {row["case"]: row.get("error", "") for row in whole.rows()}
    assert list(found) == ["aborts", "hangs", "fails", "works"]
    assert "exit -6" in found["aborts"]
    assert "hangs for" in found["hangs"]
    assert "misaligned" in found["fails"]
    assert not found["works"]
    assert len(whole.errors()) == 3
    assert not whole.late


@pytest.mark.parametrize(
    ("words", "error"),
    [("import nowhere", "No module named 'nowhere'"), ("import time; time.sleep(100)", "begins nothing for 1 s")],
)
def test_a_phase_that_cannot_begin_is_one_error(run, project, gpu, monkeypatch, words, error):
    driver, whole = gpu("gpu.run"), run()
    monkeypatch.setattr(driver, "IDLE", 1.0)
    monkeypatch.setattr(driver, "PROGRAM", (sys.executable, str(project("phases.py", words))))
    driver.measured(whole, "blocks", 30)
    (row,) = whole.rows()
    assert row["case"] == "process"
    assert error in row["error"]


# ---- tests and the sanitizer


TESTS = """import os, pathlib, time, pytest
lost = pathlib.Path(os.environ["LOST"] + str(os.getpid()))

def test_passes(): assert os.environ["OMP_NUM_THREADS"] == "2"
@pytest.mark.skip(reason="needs: two GPUs")
def test_skips(): ...
def test_{name}():
    {body}
@pytest.mark.parametrize("n", ["a b", "c::d"])
def test_later(n):
    assert not lost.exists(), "CUDA error: misaligned address"
"""
BODIES = {
    "crashes": "os.abort()",
    "loses": "lost.touch(); assert 0, 'CUDA error: an illegal memory access was encountered'",
    "hangs": "time.sleep(100)",
}


@pytest.mark.parametrize(
    ("name", "verdict", "later"), [("crashes", "crashed", 3), ("loses", "failed", 3), ("hangs", "unfinished", 1)]
)
def test_one_bad_test_is_named_and_the_others_run(run, project, gpu, monkeypatch, tmp_path, name, verdict, later):
    module, whole = gpu("gpu.tests"), run()
    monkeypatch.setenv("LOST", str(tmp_path / "lost"))
    monkeypatch.setattr(module, "PROCESSES", 1)
    monkeypatch.setattr(module, "FILE_LIMIT", 20 if name == "hangs" else 60)
    project("tests/test_a.py", TESTS.format(name=name, body=BODIES[name]))
    module.tests(whole, ["tests/test_a.py"])
    (row,) = whole.rows()
    assert row["bad"][f"test_{name}"] == verdict
    assert f"test_{name}" in row["error"]
    assert row["summary"]["passed"] == later
    assert row["summary"]["skipped"] == 1
    if name == "hangs":
        assert "stopped after" in " ".join(row["words"])
        assert f"in test_{name}" in whole.log_file.read_text()


def test_a_file_whose_tests_are_all_skipped_is_an_error(run, project, gpu):
    project("tests/test_a.py", "import pytest\n@pytest.mark.skip\ndef test_a(): ...\n")
    whole = run()
    gpu("gpu.tests").tests(whole, ["tests/test_a.py"])
    assert whole.rows()[0]["error"] == "no test ran: {'skipped': 1}"


def test_every_file_of_gpu_tests_is_run(gpu):
    module = gpu("gpu.tests")
    files = ROOT.glob("tests/*/test_*.py")
    marked = {path.relative_to(ROOT).as_posix() for path in files if "pytest.mark.gpu" in path.read_text()}
    assert marked - {"tests/tools/test_gpu_run.py"} == set(module.GPU_TESTS)
    assert set(module.SMOKE) < set(module.GPU_TESTS)
    for _, file, selection in module.SANITIZED:
        assert any(word in (ROOT / file).read_text() for word in selection.split(" or "))


@pytest.mark.parametrize(
    ("says", "status", "row"),
    [
        ("1 passed in 2 s\n===== RACECHECK SUMMARY: 0 hazards", 0, {"summary": ["RACECHECK SUMMARY: 0 hazards"]}),
        ("1 skipped in 2 s\n===== ERROR SUMMARY: 0 errors", 0, {"error": "no test ran"}),
        ("===== Invalid __global__ read\n===== ERROR SUMMARY: 1 error", 9, {"summary": ["ERROR SUMMARY: 1 error"]}),
        ("===== Error: Device not supported", 1, {"refused": "===== Error: Device not supported"}),
    ],
)
def test_what_compute_sanitizer_says_is_a_row_of_each_file(run, project, gpu, monkeypatch, says, status, row):
    program = project("cuda/bin/compute-sanitizer", f"#!/bin/sh\necho '{says}'\nexit {status}")
    monkeypatch.setenv("CUDA_HOME", str(program.parents[1]))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    module, whole = gpu("gpu.tests"), run()
    monkeypatch.setattr(module, "SANITIZED", module.SANITIZED[3:5])
    module.sanitizer(whole)
    found = whole.rows()
    assert [one["case"] for one in found] == ["memcheck test_triton_gpu", "racecheck test_cuda_gpu"]
    for one in found:
        assert all(value in one[name] if name == "error" else one[name] == value for name, value in row.items())
        assert ("error" in one) == (status == 9 or "skipped" in says)
        assert run("another").is_done("sanitizer", one["case"]) == ("passed" in says)
    log = whole.log_file.read_text()
    assert "refused" in row or "--tool=racecheck --error-exitcode=9 --report-api-errors=no" in log


# ---- the whole


@pytest.mark.skipif(not backend_triton.INTERPRETED, reason="needs triton's interpreter")
def test_a_dry_run_ends_with_a_table(gpu, tmp_path, capfd):
    options = ["--dry-run", "--out", str(tmp_path), "--phases", "environment", "build", "combine", "sanitizer"]
    assert gpu("gpu.run").main(options) == 0
    found = [json.loads(line) for line in (tmp_path / "gpu-dry-run.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in found[:3]] == ["environment", "build", "combine"]
    assert found[0]["info"]["torch"] == found[0]["torch"] == torch.__version__
    assert "| op/rk_combine/4 terms/1024/float32 | best eager / ours |" in capfd.readouterr().out


def test_the_driver_imports_neither_torch_nor_the_package():
    words = "import sys, benchmarks.gpu.run; print({'torch', 'contnet_fast'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_phases_come_in_the_order_of_what_is_scarce(gpu):
    driver, phases = gpu("gpu.run"), gpu("gpu.phases")
    assert driver.PHASES[:6] == ("environment", "build", "smoke", "first", "blocks", "choice")
    assert set(driver.LIMITS) == set(phases.PHASES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dry-runn"], "did you mean --dry-run?"),
        (["--phases", "blok"], "invalid choice: 'blok'"),
        (["--dry-run", "--minutes", "0"], "accepted: numbers above 0"),
        (["--dry-run", "--minutes", "x"], "invalid float value: 'x'"),
        (["--dry-run", "--out", "/proc/nowhere"], "--out: got /proc/nowhere, accepted: a writable folder"),
        ([], "sees no CUDA device"),
    ],
)
def test_wrong_options_are_refused(gpu, options, words, capsys, monkeypatch, tmp_path):
    driver = gpu("gpu.run")
    monkeypatch.setattr(driver, "ask", lambda program: {"torch": "2.99", "name": None})
    with pytest.raises(SystemExit) as exit_:
        driver.main(options if "--out" in options else [*options, "--out", str(tmp_path)])
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err
