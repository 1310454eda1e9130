"""The matrix of releases: its parts are files, its cells what the package claims, and it goes on where it stopped."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import matrix
import pytest
import tiers

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_file_is_in_a_part():
    named = {matrix.TESTS / file for part in matrix.PARTS for file in matrix.files(part)}
    assert named == set(matrix.TESTS.rglob("test_*.py"))
    assert all(matrix.part_or_file(path.relative_to(matrix.TESTS).as_posix()) for path in named)
    assert matrix.files("ode/test_odeint.py") == ["ode/test_odeint.py"]


def test_what_is_called_slow_or_long_is_there():
    names = {path.stem.removeprefix("test_") for path in tiers.FILES}
    assert set(tiers.SLOW_FOLDERS) < set(tiers.FOLDERS)
    assert {*tiers.SLOW_FILES, *tiers.LONG} < names
    assert not any(tiers.is_slow(tiers.TESTS / f"{folder}/test_x.py") for folder in ("core", "functional", "nn", "ode"))


def test_the_readme_of_the_tests_has_every_folder():
    rows = [line for line in (tiers.TESTS / "README.md").read_text().splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])} == set(tiers.FOLDERS)


def test_every_test_has_its_folder_for_a_marker(request):
    assert request.node.get_closest_marker("tools")


def test_what_the_package_claims_is_in_the_matrix():
    project = (ROOT / "pyproject.toml").read_text()
    cells = matrix.CELLS.values()

    def numbers(text):
        return tuple(map(int, text.split(".")))

    def least(name):
        return numbers(re.search(rf'"{name}>=([\d.]+)', project)[1])

    for name in ("torch", "triton", "numpy"):
        oldest = min(numbers(getattr(cell, name)) for cell in cells)
        assert oldest[: len(least(name))] == least(name), name
    assert min(numbers(cell.setuptools) for cell in cells)[:1] == least("setuptools")
    pythons = {cell.python for cell in cells}
    assert {f"Programming Language :: Python :: {version}" for version in pythons} <= set(
        re.findall(r'"(Programming Language [^"]*)"', project)
    )
    assert f"torch >= {'.'.join(map(str, least('torch')))}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("program", "words", "message"),
    [
        ("matrix", ["2.11-newst"], "got '2.11-newst', accepted: 2.10-oldest, .* \\(did you mean 2.11-newest\\?\\)"),
        ("matrix", ["--parts", "compilr"], "got 'compilr', accepted: analysis, .* \\(did you mean compiler\\?\\)"),
        ("matrix", ["--processes", "0"], "--processes: invalid choice: 0 \\(choose from 1, 2,"),
        ("matrix", ["--agian"], "unrecognized arguments: --agian \\(did you mean --again\\?\\)"),
        ("matrix", ["--parts", "ode/test_odint.py"], "got 'ode/test_odint.py', .*did you mean ode/test_odeint.py"),
    ],
)
def test_a_typo_is_named(program, words, message):
    done = subprocess.run(
        [sys.executable, f"tests/{program}.py", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert re.search(message, done.stderr)


@pytest.fixture
def outcomes(monkeypatch, tmp_path):
    """What each file comes to in cells that need no installation; those that were run are listed in ``run``."""
    found = {"run": []}

    def attempt(folder, name, file, limit):
        found["run"].append(file)
        return {"counts": {"passed": 3}, "bad": [], "seconds": 1, "log": "x", **found.get(file, {})}

    def prepare(cell):
        if "fault" in found:
            raise found["fault"]
        return tmp_path

    for name, value in {"FOLDER": tmp_path, "attempt": attempt, "prepare": prepare}.items():
        monkeypatch.setattr(matrix, name, value)
    monkeypatch.setattr(matrix, "files", lambda part: FILES if part == "compiler" else [])
    return found


ARGS = ["2.11-newest", "--parts", "compiler"]
FILES = ["compiler/test_compile.py", "compiler/test_odeint_compile.py"]


def test_what_is_done_is_not_run_again_unless_the_sources_change(outcomes, monkeypatch, capsys):
    assert matrix.main(ARGS) == matrix.main(ARGS) == 0
    assert outcomes["run"] == FILES
    assert matrix.main([*ARGS, "--again"]) == 0
    assert len(outcomes["run"]) == 4
    monkeypatch.setattr(matrix, "code", lambda: "other")
    assert matrix.main(ARGS) == 0
    assert len(outcomes["run"]) == 6
    assert "| compiler | 6 passed |" in capsys.readouterr().out


def test_files_run_at_the_same_time_where_that_is_asked_for(outcomes, monkeypatch):
    both, attempt = threading.Barrier(2, timeout=60), matrix.attempt

    def together(*words, **options):
        both.wait()
        return attempt(*words, **options)

    monkeypatch.setattr(matrix, "attempt", together)
    assert matrix.main([*ARGS, "--processes", "2"]) == 0
    lines = (matrix.FOLDER / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == FILES


def test_a_failure_is_named_and_remembered(outcomes, capsys):
    outcomes[FILES[0]] = {"bad": ["tests/compiler/test_compile.py::test_y"], "counts": {"passed": 2, "skipped": 1}}
    assert matrix.main(ARGS) == matrix.main(ARGS) == 1
    out = capsys.readouterr().out
    assert "| compiler | 5 passed, 1 failed, 1 skipped |" in out
    assert "| | tests/compiler/test_compile.py::test_y |" in out


def test_a_file_that_does_not_end_is_no_failure_and_is_run_again(outcomes, capsys):
    outcomes[FILES[0]] = {"late": True, "counts": {}}
    assert matrix.main(ARGS) == matrix.main(ARGS) == 0
    assert outcomes["run"] == [*FILES, FILES[0]]
    out = capsys.readouterr().out
    assert "compiler/test_compile.py stopped after 1 s" in out
    assert "| compiler (1 of 2 files) | 3 passed |" in out


def test_a_cell_that_cannot_be_installed_is_said_so_and_left_out(outcomes, capsys):
    outcomes["fault"] = matrix.Impossible("no Python 3.12")
    assert matrix.main(ARGS) == 0
    assert outcomes["run"] == []
    assert "2.11-newest left out: no Python 3.12\n" in capsys.readouterr().out
    assert matrix.main([*ARGS, "--install"]) == 1


def test_a_cell_in_which_the_package_cannot_be_built_has_failed(outcomes, capsys):
    outcomes["fault"] = matrix.Broken("setup.py: error")
    assert matrix.main([*ARGS, "--install"]) == 0  # its packages are there
    assert matrix.main(ARGS) == 1
    assert outcomes["run"] == []
    assert "2.11-newest FAILED: setup.py: error\n" in capsys.readouterr().out


def test_installing_runs_nothing(outcomes):
    assert matrix.main([*ARGS, "--install"]) == 0
    assert outcomes["run"] == []


def test_counts_and_names_are_read_from_what_pytest_says(tmp_path, monkeypatch):
    monkeypatch.setattr(matrix, "FOLDER", tmp_path)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "source" / "tests").mkdir(parents=True)
    text = "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\n@pytest.mark.skip\ndef test_c(): pass\n"
    (tmp_path / "source" / "tests" / "test_x.py").write_text(text)
    row = matrix.attempt(tmp_path, "2.11-newest", "test_x.py", 900)
    assert row["counts"] == {"failed": 1, "passed": 1, "skipped": 1}
    assert row["bad"] == ["tests/test_x.py::test_b"]
    assert matrix.attempt(tmp_path, "2.11-newest", "test_y.py", 900)["bad"] == ["tests/test_y.py: pytest exits with 4"]
    late = matrix.attempt(tmp_path, "2.11-newest", "test_x.py", 0.01)
    assert late["late"]
    assert json.dumps(late)
