"""The CUDA C++ kernels compiled without torch and without a GPU: emulated by a C++ compiler, or by nvcc for each chip.

``python -m contnet_fast.kernels.cuda_build`` compiles every ``csrc/cuda/*.cu`` for every chip and prints what it takes:
registers, spills, shared memory, stack; it exits 1 if a kernel spills.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import check_choice
from ..files import write_atomically

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "csrc" / "cuda"
BUILD = ROOT / "build" / "cuda"
CHIPS = ("sm_80", "sm_90a", "sm_100a")

# without -U_FORTIFY_SOURCE some distributions refuse jumps between the stacks of fibers
EMULATE = [
    "-std=c++17",
    "-O2",
    "-g0",
    "-fPIC",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-U_FORTIFY_SOURCE",
]
COMPILE = ["-std=c++17", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v"]


def kernels() -> list[Path]:
    """The sources of kernels."""
    return sorted(SOURCES.glob("*.cu"))


def host_compiler() -> str | None:
    """The C++ compiler, if there is one."""
    return shutil.which(os.environ.get("CXX", "g++"))


def nvcc() -> str | None:
    """nvcc of ``CUDA_HOME``, or of the path, if there is one."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which(str(Path(home, "bin", "nvcc"))) if home else shutil.which("nvcc")


def toolkit(compiler: str) -> Path:
    """The folder of the toolkit that ``compiler`` belongs to, also where it is a wrapper script.

    Raises:
        RuntimeError: it does not say.
    """
    done = subprocess.run([compiler, "--dryrun", "-c", "x.cu"], capture_output=True, text=True, check=False)
    found = re.search(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{compiler} --dryrun does not name its toolkit: {done.stderr[-300:]}")
    return Path(found[1].strip()).resolve()


# ---- emulated


def emulated(extra: Sequence[Path] = ()) -> Path:
    """A library of all kernels, and ``extra`` sources, on the emulator; compiled once for each content.

    Raises:
        RuntimeError: no compiler, or the compiler's words.
    """
    compiler = host_compiler()
    if compiler is None:
        raise RuntimeError("the emulator needs a C++ compiler (CXX, or g++)")
    sources = [*kernels(), *sorted(SOURCES.glob("emulate/*.cpp")), *extra]
    objects = [_object(compiler, source) for source in sources]
    library = BUILD / f"emulated-{_digest(*(path.name.encode() for path in objects))}.so"
    if not library.exists():
        write_atomically(library, lambda path: _run([compiler, "-shared", "-o", str(path), *map(str, objects)]))
    return library


def _object(compiler: str, source: Path) -> Path:
    headers = [path.read_bytes() for path in sorted(SOURCES.rglob("*.h"))]
    key = _digest(compiler.encode(), " ".join(EMULATE).encode(), source.read_bytes(), *headers)
    made = BUILD / f"{source.stem}-{key}.o"
    if not made.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        command = [compiler, *EMULATE, f"-I{SOURCES}", "-c", "-x", "c++", str(source), "-o"]
        write_atomically(made, lambda path: _run([*command, str(path)]))
    return made


def _digest(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()[:16]


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


# ---- by nvcc


@dataclass(frozen=True)
class Resources:
    """What one kernel takes on one chip: registers a thread; bytes of spills, stack frame and static shared memory."""

    kernel: str
    chip: str
    registers: int
    spills: int
    stack: int
    shared: int


def resources(source: Path, chip: str, cubin: Path | None = None) -> list[Resources]:
    """Compile ``source`` for ``chip`` with warnings as errors and read what ptxas says; ``cubin`` keeps the code.

    Raises:
        RuntimeError: no nvcc, or its words.
    """
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("compiling for a GPU needs nvcc (CUDA_HOME, or on the path)")
    with tempfile.TemporaryDirectory() as folder:
        target = cubin or Path(folder, "code.cubin")
        words = _run([compiler, *COMPILE, f"-arch={chip}", f"-I{SOURCES}", "-cubin", "-o", str(target), str(source)])
    return _read(words, chip)


def _read(words: str, chip: str) -> list[Resources]:
    entries = re.findall(
        r"Compiling entry function '(\w+)' for.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
        words,
        re.DOTALL,
    )
    names = _plain([entry[0] for entry in entries])
    found = []
    for name, (_, stack, stores, loads, registers, rest) in zip(names, entries, strict=True):
        shared = re.search(r"(\d+) bytes smem", rest)
        spills = int(stores) + int(loads)
        found.append(Resources(name, chip, int(registers), spills, int(stack), int(shared[1]) if shared else 0))
    return sorted(found, key=lambda r: r.kernel)


def _plain(names: Sequence[str]) -> list[str]:
    """Demangled, without namespaces and arguments."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return list(names)
    text = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    text = text.replace("(anonymous namespace)::", "").replace("contnet_fast::cuda::", "")
    text = re.sub(r"\((?:int|bool|unsigned int)\)", "", text)
    return [re.sub(r"^void |\(.*\)$", "", line) for line in text.splitlines()]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="contnet_fast.kernels.cuda_build", description=__doc__)
    parser.add_argument("--chips", nargs="+", default=list(CHIPS), metavar="CHIP", help=f"of {', '.join(CHIPS)}")
    options = parser.parse_args(arguments)
    try:
        chips = [check_choice("--chips", chip, CHIPS) for chip in options.chips]
    except ValueError as error:
        parser.error(str(error))
    spilled = 0
    for source in kernels():
        for chip in chips:
            start = time.perf_counter()
            try:
                rows = resources(source, chip)
            except RuntimeError as error:
                parser.exit(1, f"{error}\n")
            print(f"{source.name} for {chip}: {len(rows)} kernels in {time.perf_counter() - start:.1f} s")
            for r in rows:
                print(
                    f"  {r.kernel:56} {r.registers:4} registers {r.spills:5} spilled {r.stack:5} stack {r.shared:6} shared"
                )
            spilled += sum(r.spills > 0 for r in rows)
    print(f"{spilled} kernels spill")
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
