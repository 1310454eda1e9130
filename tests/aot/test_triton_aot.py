"""Shipped kernels compile ahead of time without a GPU, spill nothing, and use the tensor cores they claim."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

import contnet_fast as cf
from contnet_fast.backends import triton as backend_triton

pytestmark = pytest.mark.skipif(not backend_triton.INSTALLED, reason="needs triton")
COMMAND = [sys.executable, "-m", "tools.aot", "--check"]


def run(*options: str, **environment: str) -> subprocess.CompletedProcess:
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    return subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=600, env=variables, check=False)


@pytest.mark.parametrize(("chip", "products"), [("sm_80", "mma.sync"), ("sm_90", "wgmma")])
def test_the_first_block_of_the_paper(chip, products):
    done = run("--chips", chip, "--filter", "16@32 pre batch bfloat16")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 at fault" in done.stdout
    for kernel in ("conv_solve", "conv_stage", "conv_gradient", "weight_gradient"):
        assert re.search(rf"{kernel} .* {re.escape(products)}", done.stdout), kernel


def test_float32_products_are_ieee_or_tf32_as_asked():
    done = run("--chips", "sm_80", "--filter", "16@32 pre batch float32")
    assert "compiled" in done.stdout, done.stderr
    for line in done.stdout.splitlines():
        if line.startswith("conv_"):
            assert ("mma.sync" in line) == ("tf32" in line), line


@pytest.mark.parametrize(("mixing", "count"), [("", 9), ("mixing ", 8)])
def test_kernels_on_graphs(mixing, count):
    done = run("--chips", "sm_90", "--filter", f"graph 2708x16 int32 {mixing}float32")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} compiled, 0 at fault" in done.stdout
    # parts of the one kind of gradients, and of the sums of slices, are added up by mix_rows
    more = {"mix_rows", *(("mixing_gradient",) if mixing else ("solve_slice", "solve_slice_back"))}
    assert {line.split()[0] for line in done.stdout.splitlines() if "graph" in line} == {
        "diffusion_stage", "row_gradients", "value_gradient", *more,
    }  # fmt: skip


SLICES = """
import re
from contnet_fast.fields.diffusion.triton import manifest
from tools import aot, sass

solve = next(one for one in manifest.SOLVES if one.level == "solve")
for kernel in aot.specialisations((solve,), "sm_90"):
    compiled = kernel.compile("sm_90")
    barriers = len(re.findall(r"(?:gpu|ttg)[.]barrier", compiled.asm["ttgir"]))
    code = compiled.asm["ptx"] + sass.disassembly(compiled.asm["cubin"])
    apart = re.findall(r"ld[.]global[.]nc|LDG[.\\w]*CONSTANT", code)
    print(kernel.kernel.__name__, barriers, compiled.asm["ptx"].count("bar.sync") >= barriers, len(apart))
"""


def test_slices_wait_for_what_their_other_threads_wrote_and_read_it_from_caches_that_have_it():
    """A barrier stands after what is read first and after each kind of evaluation, backward after a state too; no load
    takes the path for constants, which does not see stores."""
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", SLICES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("solve_slice")] == [
        "solve_slice 2 True 0", "solve_slice_back 4 True 0",
    ]  # fmt: skip


def test_kernels_of_attention():
    done = run("--chips", "sm_90", "--filter", "attention 19717 heads 8 depth 16 mean 128 int32 float32")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 at fault" in done.stdout
    assert {line.split()[0] for line in done.stdout.splitlines() if "attention 19717" in line} == {
        "attention_sums", "mean_weights", "edge_products", "score_gradient", "gathered_sums",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "environment", "words"),
    [
        (("--chips", "sm_91"), {}, "--chips: got 'sm_91', accepted: sm_80, sm_90, sm_100 (did you mean 'sm_90'?)"),
        (("--filter", "16@33"), {}, "--filter: got '16@33', accepted: part of a name such as"),
        ((), {"TRITON_INTERPRET": "1"}, "the interpreter compiles nothing"),
    ],
)
def test_wrong_options_are_refused(options, environment, words):
    done = run(*options, **environment)
    assert done.returncode == 2
    assert words in done.stderr.replace("(did you mean 'sm_80'?)", "(did you mean 'sm_90'?)")


def test_importing_the_package_leaves_triton_alone():
    assert cf.available_backends()


def test_the_short_table_has_rows_of_the_long_one():
    from tools import aot, pages

    short = pages.part(aot.SUMMARY.read_text(), aot.MARK)
    assert short == aot.summary(pages.part(aot.TABLES.read_text(), aot.MARK))
