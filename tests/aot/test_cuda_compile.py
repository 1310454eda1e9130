"""nvcc compiles every kernel for every chip without a warning and without a spill."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import cuda_emulator as emulator
import pytest

from contnet_fast.files import write_atomically
from tools import cuda_build, pages
from tools.nvcc import release, toolkit

pytestmark = pytest.mark.skipif(cuda_build.nvcc() is None, reason="needs nvcc (CUDA_HOME, or on the path)")


# the page says of which sources it is, so that one chip is enough every time; -m full compiles for all
CHIPS = [*(pytest.param(c, marks=pytest.mark.full) for c in cuda_build.CHIPS if c != "sm_90a"), "sm_90a"]
HOST = (
    "attention",
    "stages_backward",
)  # code of the host alone


def files_read(source: Path) -> list[Path]:
    """A source, and what it includes of this project."""
    found: set[Path] = set()
    left = [source]
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            names = re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), flags=re.M)
            left += [
                place for name in names for place in (path.parent / name, cuda_build.SOURCES / name) if place.exists()
            ]
    return sorted(found)


@cache
def place(source: Path, chip: str, options: tuple[str, ...] = ()) -> Path:
    """Where the code of a source for a chip is kept, by all that it depends on; beside it what it takes."""
    compiler = subprocess.run([cuda_build.nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    flags = [
        compiler,
        *cuda_build.COMPILE,
        *options,
        *(os.environ.get(f"NVCC_{at}PEND_FLAGS", "") for at in ("AP", "PRE")),
        chip,
    ]
    key = hashlib.sha256("\n".join(flags).encode())
    for path in files_read(source):
        key.update(path.name.encode() + path.read_bytes())
    return cuda_build.BUILD / f"{source.stem}-{chip}-{key.hexdigest()[:16]}.cubin"


@cache
def compiled(source: Path, chip: str, options: tuple[str, ...] = ()) -> list[cuda_build.Resources]:
    """Compile a source for a chip unless the same was compiled before."""
    cubin = place(source, chip, options)
    rows = cubin.with_suffix(".json")
    if not rows.exists():
        cuda_build.BUILD.mkdir(parents=True, exist_ok=True)
        found: list[cuda_build.Resources] = []
        write_atomically(cubin, lambda path: found.extend(cuda_build.resources(source, chip, path, options)))
        write_atomically(rows, lambda path: path.write_text(json.dumps([vars(row) for row in found])))
    return [cuda_build.Resources(**row) for row in json.loads(rows.read_text())]


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("source", cuda_build.kernels(), ids=lambda path: path.stem)
def test_kernels_compile_and_spill_nothing(source, chip):
    rows = compiled(source, chip)
    assert rows or source.stem in HOST
    for row in rows:
        assert row.registers > 0
        assert (row.kernel, row.spills, row.stack) == (row.kernel, 0, 0)


@pytest.mark.skipif(find_spec("triton") is None, reason="needs the disassembler of triton")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        *(
            (name, "HMMA LDSM LDGSTS")
            for name in (
                "conv_solve",
                "conv_solve_wide_bf16",
                "conv_solve_backward",
                "conv_stage_half",
                "conv_gradient",
            )
        ),
        ("weight_gradient", "HMMA LDSM"),
    ],
    ids=lambda v: v.split()[0],
)
def test_hot_loops_are_on_tensor_cores_and_touch_no_local_memory(name, words):
    from tools import sass

    source = next(path for path in cuda_build.kernels() if path.stem == name)
    rows = compiled(source, "sm_90a")
    text = sass.disassembly(place(source, "sm_90a").read_bytes())
    kernels = re.split(r"\.section\s+\.text\.", text)[1:]
    assert len(kernels) == len(rows)
    for kernel in kernels:
        loop = " ".join(sass.hot_loop(kernel))
        assert all(word in (kernel if word == "LDGSTS" else loop) for word in words.split())
        assert not re.search(r"\b(LDL|STL)\b", kernel)


def page_rows():
    part = pages.part(cuda_build.TABLES.read_text(), cuda_build.MARK)
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in part.splitlines() if line.startswith("| ")]
    return {(source, kernel.strip("`")): values for source, kernel, *values in cells[1:]}


def test_the_page_is_of_these_sources_and_no_kernel_spills():
    assert f"from sources {cuda_build.digest()}." in cuda_build.TABLES.read_text(), "make aot-cuda writes the page anew"
    assert {values[1] for values in page_rows().values()} == {"0"}


def test_the_short_table_has_rows_of_the_long_one():
    short = pages.part(cuda_build.SUMMARY.read_text(), cuda_build.MARK)
    assert short == cuda_build.summary(pages.part(cuda_build.TABLES.read_text(), cuda_build.MARK))


def test_the_page_says_what_the_compiler_says_of_one_chip():
    place, page = cuda_build.CHIPS.index("sm_90a"), page_rows()
    found = {(path.name, row.kernel): row for path in cuda_build.kernels() for row in compiled(path, "sm_90a")}
    assert page.keys() == found.keys()
    if f"nvcc {release(cuda_build.nvcc())} from" in cuda_build.TABLES.read_text():  # another one takes other registers
        for name, row in found.items():
            said = [values.split(", ")[place] if ", " in values else values for values in page[name]]
            assert (name, said) == (name, [str(n) for n in (row.registers, row.spills, row.stack, row.shared)])


@pytest.mark.full
def test_the_page_says_what_the_compiler_says():
    rows = {path.name: [r for chip in cuda_build.CHIPS for r in compiled(path, chip)] for path in cuda_build.kernels()}
    page = cuda_build.TABLES.read_text()
    said, here = (
        [line for line in text.splitlines() if line.startswith("|")]
        for text in (pages.part(page, cuda_build.MARK), cuda_build.table(rows))
    )
    other = f"nvcc {release(cuda_build.nvcc())} from" not in page
    names = re.compile(r"\| (\S+ \| `.*?`)")  # another release takes other registers
    assert [names.findall(line) if other else line for line in said] == [
        names.findall(line) if other else line for line in here
    ], "make aot-cuda writes the page anew"


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", ["instructions", "faults"])
def test_every_primitive_compiles(name, chip):
    """The other sources of the tests are whole kernels with faults in them, which only the emulator runs."""
    source = next(path for path in emulator.EXTRA if path.stem == name)
    assert compiled(source, chip, ("-Xcicc", "-O0", "-Xptxas", "-O0"))  # what optimisation takes is no matter here


def test_what_a_kernel_includes_is_read_and_a_change_of_it_compiles_anew(tmp_path, monkeypatch):
    source = next(path for path in cuda_build.kernels() if path.stem == "conv_solve")
    read = files_read(source)
    assert {"conv_solve.h", "primitives.h", "types.h"} <= {path.name for path in read}
    listed = subprocess.run(
        [cuda_build.nvcc(), f"-I{cuda_build.SOURCES}", "-std=c++17", "-MM", str(source)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    asked = {Path(word).resolve() for word in listed.replace("\\\n", " ").split()[1:]}
    assert {path for path in asked if path.is_relative_to(cuda_build.SOURCES)} <= {path.resolve() for path in read}
    before = place(source, "sm_90a")
    for path in read:
        to = tmp_path / path.relative_to(cuda_build.SOURCES)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(path.read_bytes())
    monkeypatch.setattr(cuda_build, "SOURCES", tmp_path)
    moved = tmp_path / source.relative_to(cuda_build.ROOT / "csrc")
    assert place(moved, "sm_90a") == before
    for path in tmp_path.rglob("types.h"):
        path.write_text(path.read_text() + "\n")
    place.cache_clear()
    assert place(moved, "sm_90a") != before


def test_the_toolkit_is_found_behind_a_wrapper(tmp_path):
    wrapper = tmp_path / "nvcc"
    wrapper.write_text(f'#!/bin/sh\nexec {cuda_build.nvcc()} "$@"\n')
    wrapper.chmod(0o755)
    assert (toolkit(str(wrapper)) / "include" / "cuda_runtime.h").exists()


def test_spills_are_read():
    words = (
        "ptxas info    : Compiling entry function '_Z1kv' for 'sm_80'\nptxas info    : Function properties for _Z1kv\n"
        "    32 bytes stack frame, 24 bytes spill stores, 28 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers, 32 bytes cumulative stack size, 512 bytes smem\n"
    )
    (row,) = cuda_build._read(words, "sm_80")
    assert (row.registers, row.spills, row.stack, row.shared) == (255, 52, 32, 512)
