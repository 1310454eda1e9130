"""The build decides in one line what it builds, and a failure leaves a working package unless it was asked for."""

from __future__ import annotations

import ensurepip
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / "contnet_fast").mkdir()
    for name in (ROOT / "contnet_fast").glob("*.h"):
        shutil.copy(name, tmp_path / "contnet_fast")
    (tmp_path / "tools").mkdir()
    for name in ("contnet_fast/__init__.py", "contnet_fast/_version.py", "tools/nvcc.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def setup(source, *command, **env):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("CONTNET_FAST", "CUDA", "TORCH_CUDA"))}
    return subprocess.run(
        [sys.executable, "setup.py", *command], cwd=source, env={**clean, **env}, capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("env", "status", "words"),
    [
        ({"CONTNET_FAST_BUILD": "none"}, 0, "no C++ extension (CONTNET_FAST_BUILD=none)"),
        ({"CXX": "nope"}, 0, "no C++ extension: no C++ compiler (nope)"),
        ({"CXX": "false"}, 0, "no C++ extension: the build failed"),
        ({"CXX": "nope", "CONTNET_FAST_BUILD": "cpu"}, 1, "CONTNET_FAST_BUILD=cpu: no C++ compiler (nope)"),
        ({"CXX": "false", "CONTNET_FAST_BUILD": "cpu"}, 1, "'false'"),
        ({"CONTNET_FAST_BUILD": "gpu"}, 1, "CONTNET_FAST_BUILD: got 'gpu', accepted: auto, cpu, cuda, none"),
    ],
)
def test_what_cannot_be_built_is_said(source, env, status, words):
    if env.get("CXX") == "false" and shutil.which("false") is None:
        pytest.skip("needs the command false")
    # without nvcc: a CUDA build of torch would compile every kernel first, which is for `make cuda-extension`
    done = setup(source, "-q", "build_ext", "--inplace", CUDA_HOME="/none", **env)
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    assert not list((source / "contnet_fast").glob("*.so"))


# ---- CUDA, with a torch, an nvcc and a C++ compiler that only say what they are asked for

CHIPS = "sm_75 sm_80 sm_86 sm_90 sm_100"
OUTPUT = """while [ $# -gt 1 ]; do [ "$1" = -o ] && : > "$2"; shift; done"""


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def stubs(tmp_path):
    """``make(cuda, known)``: the environment that finds them; the log of commands is ``log``."""
    root = tmp_path / "stubs"

    def make(cuda, known=CHIPS, release="13.0", nvcc=OUTPUT):
        files = {
            "torch/__init__.py": f"__version__ = '2.99'\nclass version:\n    cuda = {cuda!r}\n",  # no torch.cuda
            "torch/utils/__init__.py": "",
            "torch/utils/cpp_extension.py": (
                "from setuptools import Extension\n"
                "from setuptools.command.build_ext import build_ext as BuildExtension\n"
                "def CppExtension(name, sources, **more):\n"
                "    return Extension(name, sources, language='c++', **more)\n"
            ),
            "nvidia/cu13/include/cublas_v2.h": "",
            "toolkit/lib64/libcudart.so": "",
        }
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        real = script(
            root / "toolkit" / "bin" / "nvcc",
            f"""echo nvcc "$@" >> {root}/log
case "$1" in
--version) echo 'Cuda compilation tools, release {release}, V{release}.1' ;;
--dryrun) echo '#$ TOP={root}/toolkit/bin/..' >&2 ;;
--list-gpu-code) echo {known} ;;
*) {nvcc} ;;
esac""",
        )
        script(root / "bin" / "nvcc", f'exec {real} "$@"')
        compiler = script(root / "bin" / "c++", f'echo c++ "$@" >> {root}/log\n{OUTPUT}')
        path = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {"PYTHONPATH": str(root), "PATH": path, "CC": str(compiler), "CXX": str(compiler), "MAX_JOBS": "1"}

    make.root, make.log = root, root / "log"
    return make


@pytest.mark.parametrize(
    ("stub", "env", "status", "words"),
    [
        ({"cuda": None}, {}, 0, "without CUDA: torch 2.99 is built without CUDA\n"),
        ({"cuda": None}, {"CONTNET_FAST_BUILD": "cuda"}, 1, "CUDA; install a CUDA build of torch"),
        ({"cuda": "13.0"}, {"CONTNET_FAST_BUILD": "cpu"}, 0, "without CUDA: CONTNET_FAST_BUILD=cpu\n"),
        ({"cuda": "13.0"}, {}, 0, "with CUDA: nvcc 13.0 of {root}/toolkit for 8.0 9.0a 10.0a 10.0+PTX\n"),
        ({"cuda": "13.0"}, {"CUDA_HOME": "/none"}, 0, "without CUDA: no nvcc in /none/bin\n"),
        (
            {"cuda": "13.1"},
            {"CUDA_HOME": "/none", "CONTNET_FAST_BUILD": "cuda"},
            1,
            "CONTNET_FAST_BUILD=cuda: no nvcc in /none/bin; install the CUDA toolkit 13.1 and set CUDA_HOME to it",
        ),
        ({"cuda": "12.8"}, {}, 0, "without CUDA: nvcc is of CUDA 13.0 ({root}/toolkit) and torch of 12.8\n"),
        ({"cuda": "13.0", "release": "?"}, {"CONTNET_FAST_BUILD": "cuda"}, 1, "--version does not name its release"),
        (
            {"cuda": "12.6", "known": "sm_80 sm_90", "release": "12.6"},
            {},
            0,
            "for 8.0 9.0a 9.0+PTX, without 10.0a+PTX (this nvcc does not know it)\n",
        ),
        (
            {"cuda": "13.0"},
            {"TORCH_CUDA_ARCH_LIST": "7.5 8.6 9.0+PTX 13.0"},
            0,
            "for 8.6 9.0 9.0+PTX, without 7.5 (older than 8.0), 13.0 (this nvcc does not know it)\n",
        ),
        (
            {"cuda": "13.0"},
            {"TORCH_CUDA_ARCH_LIST": "Hopper", "CONTNET_FAST_BUILD": "cuda"},
            1,
            "TORCH_CUDA_ARCH_LIST: got 'Hopper', accepted: capabilities such as 8.0;9.0a;10.0a+PTX",
        ),
        ({"cuda": "13.0"}, {"TORCH_CUDA_ARCH_LIST": "7.0"}, 0, "of which nothing can be built: 7.0 (older than 8.0)\n"),
    ],
)
def test_the_decision_about_cuda_is_one_line(source, stubs, stub, env, status, words):
    done = setup(source, "--version", **stubs(**stub), **env)
    assert done.returncode == status, done.stderr
    assert words.format(root=stubs.root) in done.stderr
    assert done.stderr.count("contnet_fast:") == 1 - status


def compiled(lines):
    return [line for line in lines if line.startswith("nvcc") and " -c csrc/cuda/" in line]


def test_cuda_is_built_by_nvcc_alone_and_linked_into_the_extension(source, stubs):
    env = {**stubs("13.0"), "CONTNET_FAST_BUILD": "cuda"}
    done = setup(source, "-q", "build_ext", "--inplace", **env)
    assert done.returncode == 0, done.stderr
    lines = stubs.log.read_text().splitlines()
    kernels = compiled(lines)
    assert len(kernels) == len(list((ROOT / "csrc" / "cuda").rglob("*.cu")))
    codes = "-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a "
    codes += "-gencode=arch=compute_100a,code=sm_100a -gencode=arch=compute_100,code=compute_100 "
    assert all(codes in line and "torch" not in line and str(stubs.root) not in line for line in kernels)
    (binding,) = [line for line in lines if line.startswith("c++") and " -c csrc/bind/cuda_combine.cpp" in line]
    for folder in ("toolkit/include", "nvidia/cu13/include"):
        assert f"-I{stubs.root / folder}" in binding
    link, python = [line for line in lines if line.startswith("c++") and " -shared " in line]
    assert "-Wl,-soname,libcontnet_fast.so" in link
    assert "csrc/bind/module.o" in python
    assert "contnet_fast/libcontnet_fast.so " in python
    assert "-Wl,-rpath,$ORIGIN" in python
    assert "cudart" not in python
    assert "cuda/rk_combine.o" in link
    assert f"-L{stubs.root}/toolkit/lib64" in link
    assert "-lc10_cuda -lcudart" in link
    about = (source / "build/temp/contnet_fast_build.h").read_text()
    assert '#define CONTNET_FAST_CHIPS {"8.0", "9.0a", "10.0a", "10.0+PTX"}\n#define CONTNET_FAST_NVCC "13.0"' in about
    setup(source, "-q", "build_ext", "--inplace", **env)
    again = stubs.log.read_text().splitlines()[len(lines) :]
    assert not compiled(again)  # nothing changed
    setup(source, "-q", "build_ext", "--inplace", **env, TORCH_CUDA_ARCH_LIST="9.0a")
    again = stubs.log.read_text().splitlines()[len(lines) :]
    assert len(compiled(again)) == len(kernels)


def test_where_nvcc_fails_the_rest_is_built_unless_cuda_was_asked_for(source, stubs):
    env = stubs("13.0", nvcc="printf 'unsupported compiler\\nin line 7\\n' >&2; exit 1")
    done = setup(source, "-q", "build_ext", "--inplace", **env, CONTNET_FAST_BUILD="cuda")
    assert done.returncode == 1
    assert "unsupported compiler" in done.stderr
    done = setup(source, "-q", "build_ext", "--inplace", **env)
    assert done.returncode == 0, done.stderr
    assert "the compiler's last words:\nunsupported compiler\nin line 7\n" in done.stderr
    assert "building the C++ extension without CUDA: the build failed (unsupported compiler)" in done.stderr
    links = [line for line in stubs.log.read_text().splitlines() if " -shared " in line]
    assert len(links) == 2
    for link in links:
        link = link.replace("csrc/cuda/conv/plan/", "")  # host code
        assert "cuda" not in link.replace(str(source), "")
    about = (source / "build/temp/contnet_fast_build.h").read_text()
    assert '#define CONTNET_FAST_WITHOUT_CUDA "the build failed (unsupported compiler)"' in about


# ---- setuptools: of a release that Python brings, older than licenses as expressions, and the installed one


def metadata(source, **env):
    """Lines of what a build says of the package, and its requirements."""
    done = setup(source, "-q", "egg_info", CONTNET_FAST_BUILD="none", **env)
    assert done.returncode == 0, done.stderr
    folder = source / "contnet_fast.egg-info"
    lines = (folder / "PKG-INFO").read_text().partition("\n\n")[0].splitlines()
    return lines, (folder / "requires.txt").read_text()


@pytest.fixture
def old_setuptools(tmp_path):
    """A folder with the setuptools that ``python -m venv`` installs before Python 3.12."""
    wheels = sorted((Path(ensurepip.__file__).parent / "_bundled").glob("setuptools-*.whl"))
    if not wheels:
        pytest.skip("needs a Python that brings setuptools (before 3.12)")
    shutil.unpack_archive(wheels[-1], tmp_path / "old", "zip")
    return tmp_path / "old"


def test_an_old_setuptools_reads_the_metadata_and_builds(source, stubs, old_setuptools):
    (new, requires), (old, as_before) = metadata(source), metadata(source, PYTHONPATH=str(old_setuptools))
    key = "License-Expression" if int(version("setuptools").split(".")[0]) >= 77 else "License"
    assert f"{key}: Apache-2.0" in new
    assert "License: Apache-2.0" in old
    assert "License-File: LICENSE" in old
    assert requires == as_before
    for line in new:
        assert line in old or line.startswith(("License", "Metadata-Version", "Dynamic", "Requires-Dist")), line
    env = stubs(None)
    env["PYTHONPATH"] = f"{old_setuptools}{os.pathsep}{env['PYTHONPATH']}"
    done = setup(source, "-q", "build_ext", "--inplace", **env, CONTNET_FAST_BUILD="cpu")
    assert done.returncode == 0, done.stderr
    assert " -shared " in stubs.log.read_text()
