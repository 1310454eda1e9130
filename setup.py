"""Native extensions. Everything else is in pyproject.toml.

``libcontnet_fast.so`` has the ops and needs no Python; ``_C`` is what Python asks of it.

``CONTNET_FAST_BUILD`` is ``auto`` (build what can be built), ``cpu`` (C++ alone, fail if it cannot), ``cuda`` (C++ and
CUDA, fail if it cannot) or ``none``. CUDA needs a CUDA build of torch and nvcc, no GPU; ``TORCH_CUDA_ARCH_LIST`` names
the chips.
``CONTNET_FAST_SANITIZE=1`` builds with the address and undefined-behaviour sanitizers (``make sanitize``).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from glob import glob
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import setuptools

CHOICES = ("auto", "cpu", "cuda", "none")
X86 = platform.machine().lower() in ("x86_64", "amd64")
CUDA_BINDING = sorted(glob("csrc/bind/cuda_*.cpp"))
HOST = [path for room in ("bind", "runtime", "cpu", "cuda") for path in glob(f"csrc/{room}/**/*.cpp", recursive=True)]
PYTHON_BINDING = [f"csrc/bind/{name}.cpp" for name in ("module", "plans", "step", "tile_products")]
SOURCES = sorted(set(HOST) - {*CUDA_BINDING, *PYTHON_BINDING})
KERNELS = sorted(glob("csrc/cuda/**/*.cu", recursive=True))  # of different names, which are those of their objects
HEADERS = [*sorted(glob("csrc/**/*.h", recursive=True)), *sorted(glob("contnet_fast/*.h"))]
OPS = "contnet_fast.libcontnet_fast"
ABOUT = Path("build", "temp", "contnet_fast_build.h")  # what the extension says of itself
RELATED = ["setup.py", *HEADERS, *KERNELS, str(ABOUT)]  # a change of these builds it anew


def say(text: str) -> None:
    """One line of the build log."""
    print(f"contnet_fast: {text}", file=sys.stderr)


# ---- what can be built


class Refused(Exception):
    """Why CUDA cannot be built, and what to do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


@dataclass
class Cuda:
    """How to build CUDA code: nvcc, its release and toolkit, the chips, and those left out."""

    compiler: str
    release: str
    toolkit: Path
    libraries: Path
    chips: list[str]
    left: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"nvcc {self.release} of {self.toolkit} for {' '.join(self.chips)}"
        return f"{text}, without {', '.join(self.left)}" if self.left else text


def find_cuda(torch: ModuleType) -> Cuda:
    """What CUDA code is built with. No GPU is asked for.

    Raises:
        Refused: with the reason and the remedy.
    """
    of_torch = torch.version.cuda
    if of_torch is None:
        raise Refused(f"torch {torch.__version__} is built without CUDA", "install a CUDA build of torch")
    nvcc = nvcc_module()
    compiler = nvcc.nvcc()
    if compiler is None:
        place = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        where = f"in {place}/bin" if place else "on the path"
        raise Refused(f"no nvcc {where}", f"install the CUDA toolkit {of_torch} and set CUDA_HOME to it")
    try:
        release, folder, known = nvcc.release(compiler), nvcc.toolkit(compiler), nvcc.known_chips(compiler)
    except RuntimeError as error:
        raise Refused(str(error), f"set CUDA_HOME to a toolkit {of_torch}") from None
    if release.split(".")[0] != of_torch.split(".")[0]:
        reason = f"nvcc is of CUDA {release} ({folder}) and torch of {of_torch}"
        raise Refused(reason, f"set CUDA_HOME to a toolkit {of_torch.split('.')[0]}.x, or install a torch of {release}")
    try:
        chips, left = nvcc.architectures(os.environ.get("TORCH_CUDA_ARCH_LIST") or nvcc.DEFAULT, known)
    except ValueError as error:
        raise Refused(str(error), "set TORCH_CUDA_ARCH_LIST, or leave it unset") from None
    folders = [folder / "lib64", folder / "lib", *sorted(folder.glob("targets/*/lib"))]
    libraries = next((place for place in folders if (place / "libcudart.so").exists()), None)
    if libraries is None:
        raise Refused(f"no libcudart.so in {folder}", "install the CUDA runtime of the toolkit")
    return Cuda(compiler, release, folder, libraries, chips, left, nvcc.flags(chips))


def nvcc_module() -> ModuleType:
    """``tools.nvcc`` without the package, which imports torch."""
    spec = spec_from_file_location("contnet_fast_nvcc", Path("tools", "nvcc.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torch_includes(torch: ModuleType, cuda: Cuda) -> list[str]:
    """Folders of the CUDA headers that torch's need: the toolkit, then the libraries that pip put beside torch."""
    beside = Path(torch.__file__).resolve().parents[1] / "nvidia"
    return [str(cuda.toolkit / "include"), *map(str, sorted(beside.glob("*/include")))]


# ---- building


def describe(compiler: str, cuda: Cuda | None, why: str) -> None:
    """Write what the extension says of itself, if it changed."""
    lines = [
        ("CONTNET_FAST_COMPILER", json.dumps(compiler)),
        ("CONTNET_FAST_CHIPS", "{" + ", ".join(map(json.dumps, cuda.chips if cuda else [])) + "}"),
        ("CONTNET_FAST_NVCC", json.dumps(cuda.release if cuda else "")),
        ("CONTNET_FAST_WITHOUT_CUDA", json.dumps("" if cuda else why)),
    ]
    text = "".join(f"#define {name} {value}\n" for name, value in lines)
    if not ABOUT.exists() or ABOUT.read_text() != text:
        ABOUT.parent.mkdir(parents=True, exist_ok=True)
        ABOUT.write_text(text)


def compile_kernels(cuda: Cuda, folder: Path) -> list[str]:
    """Objects of ``csrc/cuda/**/*.cu`` by nvcc alone, those that changed.

    Raises:
        RuntimeError: nvcc's words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-lineinfo", "-Icsrc"]
    options += ["--threads", "2"]

    def one(source: str) -> str:
        made = folder / f"{Path(source).stem}.o"
        command = [cuda.compiler, *options, *cuda.flags, "-c", source, "-o", str(made)]
        note, needs = made.with_suffix(".txt"), [source, *HEADERS]
        old = made.exists() and note.exists() and note.read_text() == " ".join(command)
        if old and max(map(os.path.getmtime, needs)) <= made.stat().st_mtime:
            return str(made)
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            words = (done.stderr or done.stdout).strip()
            raise RuntimeError(words or f"{' '.join(command)} exits with {done.returncode}")
        note.write_text(" ".join(command))
        say("\n".join([f"nvcc {source}: {time.perf_counter() - start:.0f} s", *done.stderr.strip().splitlines()]))
        return str(made)

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        return list(pool.map(one, KERNELS))


def extensions() -> dict[str, Any]:
    """The arguments of ``setup`` for the C++ extension, or none with one line that says why."""
    wanted = os.environ.get("CONTNET_FAST_BUILD", "auto")
    if wanted not in CHOICES:
        sys.exit(f"CONTNET_FAST_BUILD: got {wanted!r}, accepted: {', '.join(CHOICES)}")
    if wanted == "none":
        say("no C++ extension (CONTNET_FAST_BUILD=none)")
        return {}
    try:
        import torch
        from torch.utils.cpp_extension import CppExtension
    except ImportError as error:
        return refuse(wanted, f"torch is not importable in the build ({error}); install with --no-build-isolation")
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler.split()[0]) is None:
        return refuse(wanted, f"no C++ compiler ({compiler})")
    cuda, why = None, "CONTNET_FAST_BUILD=cpu"
    if wanted != "cpu":
        try:
            cuda = find_cuda(torch)
        except Refused as error:
            if wanted == "cuda":
                return refuse(wanted, f"{error}; {error.remedy}")
            why = str(error)
    say(f"building the C++ extension with CUDA: {cuda}" if cuda else f"building the C++ extension without CUDA: {why}")
    describe(compiler, cuda, why)
    compile_flags, link_flags = host_flags()

    def made_of(name: str, sources: list[str], links: list[str]) -> Any:
        return CppExtension(
            name, list(sources), extra_compile_args=list(compile_flags), extra_link_args=[*link_flags, *links],
            include_dirs=[str(ABOUT.parent.resolve()), str(Path("csrc").resolve())], depends=RELATED,
        )  # fmt: skip

    ops = made_of(OPS, SOURCES, [f"-Wl,-soname,{Path(library_file(OPS)).name}"])
    python = made_of("contnet_fast._C", PYTHON_BINDING, ["-Wl,-rpath,$ORIGIN"])
    if cuda is not None:
        ops.sources += CUDA_BINDING
        ops.include_dirs += torch_includes(torch, cuda)
        ops.library_dirs.append(str(cuda.libraries))
        ops.libraries += ["c10_cuda", "cudart"]
    # in this order: the second is linked with the first
    return {"ext_modules": [ops, python], "cmdclass": {"build_ext": build_command(wanted, compiler, cuda)}}


def library_file(name: str) -> str:
    """The path of the library of the ops in the package, which is one for C++ and so has no suffix of Python's."""
    return f"{name.replace('.', '/')}.so"


def host_flags() -> tuple[list[str], list[str]]:
    """Flags of the C++ compiler and of the linker."""
    # neither of the -fno flags changes a result; without them comparisons do not vectorise
    flags = ["-O3", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
    links = ["-fopenmp"]
    if os.environ.get("CONTNET_FAST_SANITIZE") == "1":
        flags += (checks := ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g"])
        links += checks
    else:
        flags.append("-g0")  # Python's own flags ask for debug information: 13 MB of it
    if X86:
        flags.append("-DCONTNET_FAST_X86")
    return flags, links


def build_command(wanted: str, compiler: str, cuda: Cuda | None) -> type:
    """``build_ext``: under ``auto`` a failed build leaves a working package, with what could be built."""
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):  # type: ignore[misc,valid-type]
        def run(self) -> None:
            plain, with_cuda = self.compiler, cuda is not None
            try:
                super().run()
                return
            except Exception as error:
                if wanted != "auto":
                    raise
                reason = failure(error)
            if with_cuda:
                say(f"building the C++ extension without CUDA: {reason}")
                self.leave_cuda_out(reason)
                self.compiler = plain
                try:
                    super().run()
                    return
                except Exception as error:
                    reason = failure(error)
            say(f"no C++ extension: {reason}")
            self.extensions = []

        def build_extensions(self) -> None:
            for extension in self.extensions:
                if set(CUDA_BINDING) <= set(extension.sources):
                    extension.extra_objects = compile_kernels(cuda, Path(self.build_temp, "cuda"))
                if extension.name != OPS:
                    extension.extra_objects = [self.get_ext_fullpath(OPS)]
            super().build_extensions()

        def get_ext_filename(self, name: str) -> str:
            return library_file(name) if name.split(".")[-1] == OPS.split(".")[-1] else super().get_ext_filename(name)

        def leave_cuda_out(self, reason: str) -> None:
            describe(compiler, None, reason)
            for extension in self.extensions:
                extension.sources = [name for name in extension.sources if name not in CUDA_BINDING]
                extension.libraries = [name for name in extension.libraries if name not in ("c10_cuda", "cudart")]
                extension.extra_objects = []

        def copy_extensions_to_source(self) -> None:
            if self.extensions:
                super().copy_extensions_to_source()

    return Build


def failure(error: Exception) -> str:
    """One line that says why a build failed; the log has the last of the compiler's words."""
    words = str(error).strip().splitlines() or [type(error).__name__]
    if len(words) > 1:
        say("the compiler's last words:\n" + "\n".join(words[-20:]))
    return f"the build failed ({words[0]})"


def refuse(wanted: str, reason: str) -> dict[str, Any]:
    """No extension: an error if it was asked for."""
    if wanted != "auto":
        sys.exit(f"CONTNET_FAST_BUILD={wanted}: {reason}")
    say(f"no C++ extension: {reason}")
    return {}


# setuptools before 77 refuses the license as an expression, in pyproject.toml too; LICENSE is found by its name
LICENSE = "license_expression" if int(setuptools.__version__.split(".")[0]) >= 77 else "license"
setuptools.setup(**{LICENSE: "Apache-2.0"}, **extensions())
