"""The CUDA C++ kernels compiled without torch and without a GPU: emulated by a C++ compiler, or by nvcc for each chip.

``python -m tools.cuda_build`` compiles every ``csrc/cuda/**/*.cu`` for every chip and prints what it takes:
registers, spills, shared memory, stack; it exits 1 if a kernel spills. ``--write`` (``make aot-cuda``) puts the table into
docs/generated/cuda-kernels.md, and some rows of it into docs/cuda.md.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contnet_fast.errors import check_choice
from contnet_fast.files import write_atomically
from tools import pages
from tools.nvcc import nvcc, release

ROOT = pages.ROOT
SOURCES = ROOT / "csrc"  # which includes are relative to
BUILD = ROOT / "build" / "cuda"
CHIPS = ("sm_80", "sm_90a", "sm_100a")
MARK = "make aot-cuda"
TABLES, SUMMARY = pages.GENERATED / "cuda-kernels.md", pages.DOCS / "cuda.md"
SHOWN = [
    *(f"solve_image<bf16, true, {channels}, false>" for channels in (16, 32, 64)),
    *(f"solve_image_back<bf16, true, {channels}>" for channels in (16, 32, 64)),
    *(f"solve_wide<bf16, true, {channels}, false>" for channels in (64, 128, 256)),
    "conv_stage<bf16, true, 2, 4>",
    "conv_gradient<bf16, true, 2, 4>",
    "weight_products<bf16, true, 32, 32>",
    *(f"diffusion_stage<bf16, int, 8, {back}, false>" for back in ("false", "true")),
    "solve_slice<bf16, int, 4>",
    "solve_slice_back<bf16, int, 4, true>",
    *(f"{kernel}<bf16, int, 8>" for kernel in ("attention_rows", "attention_edges", "head_sums")),
]

# without -U_FORTIFY_SOURCE some distributions refuse jumps between the stacks of fibers
EMULATE = [
    "-std=c++17",
    "-O1",
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
    return sorted(SOURCES.glob("cuda/**/*.cu"), key=lambda path: path.name)


def digest() -> str:
    """Digest of all that kernels are compiled from: sources, headers, flags."""
    files = sorted([*kernels(), *SOURCES.glob("cuda/**/*.h"), *SOURCES.glob("runtime/*.h")])
    named = (part for p in files for part in (str(p.relative_to(SOURCES)).encode(), p.read_bytes()))
    return _digest(" ".join(COMPILE).encode(), *named)


def host_compiler() -> str | None:
    """The C++ compiler, if there is one."""
    return shutil.which(os.environ.get("CXX", "g++"))


# ---- emulated


def emulated(extra: Sequence[Path] = ()) -> Path:
    """A library of all kernels, and ``extra`` sources, on the emulator; compiled once for each content.

    Raises:
        RuntimeError: no compiler, or the compiler's words.
    """
    compiler = host_compiler()
    if compiler is None:
        raise RuntimeError("the emulator needs a C++ compiler (CXX, or g++)")
    sources = [*kernels(), *sorted([*SOURCES.glob("cuda/**/*.cpp"), *SOURCES.glob("emulate/*.cpp")]), *extra]
    objects = [_object(compiler, source) for source in sources]
    library = BUILD / f"emulated-{_digest(*(path.name.encode() for path in objects))}.so"
    if not library.exists():
        write_atomically(library, lambda path: _run([compiler, "-shared", "-o", str(path), *map(str, objects)]))
    return library


def _object(compiler: str, source: Path) -> Path:
    listed = _run([compiler, *EMULATE, f"-I{SOURCES}", "-MM", "-x", "c++", str(source)])
    read = sorted(set(shlex.split(listed.replace("\\\n", " ").split(":", 1)[1])))
    key = _digest(compiler.encode(), " ".join(EMULATE).encode(), *(Path(path).read_bytes() for path in read))
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


def resources(source: Path, chip: str, cubin: Path | None = None, options: Sequence[str] = ()) -> list[Resources]:
    """Compile ``source`` for ``chip`` with warnings as errors and read what ptxas says; ``cubin`` keeps the code.

    Raises:
        RuntimeError: no nvcc, or its words.
    """
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("compiling for a GPU needs nvcc (CUDA_HOME, or on the path)")
    with tempfile.TemporaryDirectory() as folder:
        target = cubin or Path(folder, "code.cubin")
        command = [compiler, *COMPILE, *options, f"-arch={chip}", f"-I{SOURCES}", "-cubin", "-o", str(target)]
        words = _run([*command, str(source)])
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


def table(rows: dict[str, list[Resources]]) -> str:
    """Resources of every kernel of every source, one row a kernel, chips side by side."""
    compiler = nvcc()
    assert compiler is not None
    lines = [
        f"Compiled by nvcc {release(compiler)} from sources {digest()}. Values for {', '.join(CHIPS)}, or one where they "
        "are equal; bytes:",
        "",
    ]
    lines += ["| source | kernel | registers | spills | stack | static shared |", "|---|---|---|---|---|---|"]
    for source, found in rows.items():
        for kernel in dict.fromkeys(r.kernel for r in found):
            by_chip = {r.chip: r for r in found if r.kernel == kernel}
            cells = [
                [getattr(by_chip[chip], name) for chip in CHIPS] for name in ("registers", "spills", "stack", "shared")
            ]
            texts = [str(cell[0]) if len(set(cell)) == 1 else ", ".join(map(str, cell)) for cell in cells]
            lines.append(f"| {source} | `{kernel}` | {' | '.join(texts)} |")
    return "\n".join(lines)


def summary(text: str) -> str:
    """Some rows of the table, for the page that explains them."""
    return pages.chosen(text, SHOWN, column=1)


def write(rows: dict[str, list[Resources]]) -> None:
    """Replace the generated parts of both pages."""
    text = table(rows)
    pages.write(TABLES, MARK, text)
    pages.write(SUMMARY, MARK, summary(text))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="tools.cuda_build", description=__doc__)
    parser.add_argument("--chips", nargs="+", default=list(CHIPS), metavar="CHIP", help=f"of {', '.join(CHIPS)}")
    parser.add_argument("--write", action="store_true", help="put the table into docs/")
    options = parser.parse_args(arguments)
    try:
        chips = [check_choice("--chips", chip, CHIPS) for chip in options.chips]
    except ValueError as error:
        parser.error(str(error))
    if options.write and set(chips) != set(CHIPS):
        parser.error("--write: needs every chip")
    found: dict[str, list[Resources]] = {}
    for source in kernels():
        for chip in chips:
            start = time.perf_counter()
            try:
                rows = resources(source, chip)
            except RuntimeError as error:
                parser.exit(1, f"{error}\n")
            found.setdefault(source.name, []).extend(rows)
            print(f"{source.name} for {chip}: {len(rows)} kernels in {time.perf_counter() - start:.1f} s")
            for r in rows:
                print(
                    f"  {r.kernel:56} {r.registers:4} registers {r.spills:5} spilled {r.stack:5} stack {r.shared:6} shared"
                )
    spilled = sum(r.spills > 0 for rows in found.values() for r in rows)
    print(f"{spilled} kernels spill")
    if options.write:
        write(found)
        print(f"wrote {TABLES} and {SUMMARY}")
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
