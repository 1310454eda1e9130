"""The build decides in one line what it builds, and a failure leaves a working package unless it was asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def source(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "contnet_fast").mkdir()
    for name in ("__init__.py", "_version.py"):
        shutil.copy(ROOT / "contnet_fast" / name, tmp_path / "contnet_fast" / name)
    return tmp_path


@pytest.mark.parametrize(
    ("env", "status", "words"),
    [
        ({"CONTNET_FAST_BUILD": "none"}, 0, "no C++ extension (CONTNET_FAST_BUILD=none)"),
        ({"CXX": "nope"}, 0, "no C++ extension: no C++ compiler (nope)"),
        ({"CXX": "false"}, 0, "no C++ extension: the build failed"),
        ({"CXX": "nope", "CONTNET_FAST_BUILD": "cpu"}, 1, "CONTNET_FAST_BUILD=cpu: no C++ compiler (nope)"),
        ({"CXX": "false", "CONTNET_FAST_BUILD": "cpu"}, 1, "'false'"),
        ({"CONTNET_FAST_BUILD": "gpu"}, 1, "CONTNET_FAST_BUILD: got 'gpu', accepted: auto, cpu, none"),
    ],
)
def test_what_cannot_be_built_is_said(source, env, status, words):
    if env.get("CXX") == "false" and shutil.which("false") is None:
        pytest.skip("needs the command false")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CONTNET_FAST")}
    done = subprocess.run(
        command, cwd=source, env={**clean, **env}, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    assert not list((source / "contnet_fast").glob("*.so"))
