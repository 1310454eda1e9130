"""The source distribution is complete, and a wheel built from it runs where no compiler is."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "wheel"  # objects stay here, so that another run compiles only what changed
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE")

needs_build = pytest.mark.skipif(importlib.util.find_spec("build") is None, reason="needs the package build")
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "c++").split()[0]) is None, reason="needs a C++ compiler"
)


def clean_environment(**change: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CONTNET_FAST") and k != "PYTHONPATH"}
    return {**kept, **change}


def run(*command: str, cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for name in FILES:
        shutil.copy2(ROOT / name, source)
    for name in ("contnet_fast", "csrc"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    env = clean_environment(CONTNET_FAST_BUILD="none")
    run("-m", "build", "--sdist", "--no-isolation", "--outdir", str(out), cwd=source, env=env)
    (archive,) = out.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    source = CACHE / sdist.name.removesuffix(".tar.gz")
    for path in source.glob("*"):
        if path.name != "build":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in source.glob("build/*"):
        if not path.name.startswith("temp"):
            shutil.rmtree(path)
    shutil.unpack_archive(sdist, CACHE)
    quick = CACHE / "quick-c++"  # that the kernels are fast is no matter here, and optimisation is most of the build
    quick.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O0\n')
    quick.chmod(0o755)
    env = clean_environment(CONTNET_FAST_BUILD="cpu", CXX=str(quick))
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), cwd=source, env=env)
    (archive,) = out.iterdir()
    return archive


@needs_build
def test_the_source_distribution_has_every_source(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = [p for folder in ("csrc", "contnet_fast") for p in (ROOT / folder).rglob("*") if p.is_file()]
    sources = {
        p.relative_to(ROOT).as_posix() for p in wanted if p.suffix in (".py", ".pyi", ".typed", ".cpp", ".h", ".cu")
    }
    assert "csrc/bind/module.cpp" in sources
    assert sources <= names


@needs_build
@needs_compiler
def test_the_wheel_runs_where_no_compiler_is(wheel, tmp_path):
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        folders = {name.partition("/")[0] for name in archive.namelist()}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"contnet_fast"}
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    run(*install, cwd=elsewhere, env=clean_environment())
    code = """
import torch
import contnet_fast as cf

y, k = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])
assert "cpu" in cf.available_backends(), cf.info().backends
assert cf.rk_combine(y, [k, y], [0.5, -1.0], h=0.5, backend="cpu").tolist() == [1.0, 2.0]
print(cf.__file__)
"""
    env = clean_environment(PYTHONPATH=str(site), PATH=str(elsewhere), CXX="nope")
    assert Path(run("-c", code, cwd=elsewhere, env=env).strip()).is_relative_to(site)
