"""The cuda backend says why it cannot serve, whatever the reason, and where it stands."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import problems
import pytest
import torch

import contnet_fast as cf
from contnet_fast import chips
from contnet_fast.backends import cuda, select
from contnet_fast.chips import has_code
from contnet_fast.extension import INTERFACE
from tools.nvcc import architectures, flags


def facts(**change):
    return problems.problem(**{"op": "rk_combine", "device": "cuda", **change})


@pytest.fixture
def there(monkeypatch):
    """An extension with CUDA code, and a device of capability 9.0."""
    monkeypatch.setattr(cuda, "_reason", None)
    monkeypatch.setattr(chips, "CHIPS", ("8.0", "9.0a", "10.0a", "10.0+PTX"))
    monkeypatch.setattr(chips, "capability", lambda device=None: (9, 0))


def reasons(**change):
    with pytest.raises(cf.BackendUnavailable) as caught:
        select(facts(**change), "cuda:accumulate")
    return str(caught.value)


def test_it_serves_what_its_kernels_can(there):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for op in ("rk_combine", "rk_combine_error", "rk_solve", "conv_solve"):
            plan = select(facts(op=op, dtype=dtype, shape=(1, 4, 5, 5)), "cuda")
            assert (plan.backend, plan.level) == ("cuda", "accumulate")


def conv(**change):
    base = {"op": "conv_solve", "dtype": torch.bfloat16, "compute_dtype": torch.bfloat16, "shape": (8, 16, 32, 32)}
    return {**base, "n_steps": 8, **change}


@pytest.mark.parametrize("shape", [(128, 16, 32, 32), (1, 32, 16, 16), (3, 64, 8, 8), (2, 24, 7, 5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_serves_whole_solves_of_narrow_maps(there, shape, dtype):
    plan = select(facts(**conv(shape=shape, dtype=dtype, compute_dtype=dtype)), "cuda")
    assert (plan.backend, plan.level) == ("cuda", "solve")
    assert select(facts(**conv(shape=shape, dtype=torch.float32)), "cuda:solve").level == "solve"


def test_a_backward_pass_holds_more_of_an_image(there, monkeypatch):
    problem = conv(dtype=torch.float32, compute_dtype=torch.float32)
    assert select(facts(**problem), "cuda").level == "solve"
    assert select(facts(**problem, needs_grad=True), "cuda").level == "solve"
    monkeypatch.setattr(chips, "capability", lambda device=None: (8, 0))
    with pytest.raises(cf.BackendUnavailable, match="operand and gradient of the backward pass take"):
        select(facts(**problem, needs_grad=True), "cuda:solve")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_it_serves_graphs_stage_by_stage(there, dtype):
    solve = {"op": "diffusion_solve", "family": "diffusion", "shape": (9, 5), "n_steps": 8}
    plan = select(facts(**solve, dtype=dtype, compute_dtype=dtype), "cuda")
    assert (plan.backend, plan.level) == ("cuda", "stage")
    assert select(facts(**solve, dtype=dtype, compute_dtype=dtype), "cuda:solve").level == "solve"
    extra = facts(**solve)
    mixing, other = (replace(extra, facts=extra.facts._replace(words=(word,))) for word in ("mixing", "advection"))
    for level in ("stage", "solve"):
        assert select(mixing, f"cuda:{level}").level == level
        with pytest.raises(cf.BackendUnavailable, match="advection: its kernels have no such term"):
            select(other, f"cuda:{level}")
    plan = select(facts(op="graph_attention", shape=(9, 2, 5), dtype=dtype, compute_dtype=dtype), "cuda")
    assert (plan.backend, plan.level) == ("cuda", "stage")


@pytest.mark.parametrize(
    ("capability", "dtype", "most"),
    [
        ((8, 0), torch.float32, 20864), ((9, 0), torch.float32, 29056), ((10, 0), torch.bfloat16, 58112),
        ((9, 0), torch.float64, 14528), ((8, 6), torch.float32, 12672),
    ],
)  # fmt: skip
def test_a_block_holds_the_columns_of_so_many_nodes(there, monkeypatch, capability, dtype, most):
    monkeypatch.setattr(chips, "CHIPS", ("8.0", "9.0a", "10.0a"))
    monkeypatch.setattr(chips, "capability", lambda device=None: capability)
    solve = {"op": "diffusion_solve", "family": "diffusion", "n_steps": 8, "dtype": dtype, "compute_dtype": dtype}
    for needs_grad in (False, True):
        assert select(facts(**solve, shape=(most, 64), needs_grad=needs_grad), "cuda:solve").level == "solve"
    bytes_taken, limit = 2 * (most + 1) * dtype.itemsize, 2 * most * dtype.itemsize
    words = (
        f"level solve: {most + 1} nodes: two maps of one column take {bytes_taken} bytes of shared memory, and a block"
    )
    with pytest.raises(cf.BackendUnavailable, match=f"{words} has {limit}"):
        select(facts(**solve, shape=(most + 1, 64)), "cuda:solve")
    assert select(facts(**solve, shape=(most + 1, 64)), "cuda").level == "stage"


@pytest.mark.parametrize("shape", [(128, 64, 32, 32), (1, 128, 16, 16), (3, 256, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_serves_whole_solves_of_wide_maps(there, shape, dtype):
    problem = conv(shape=shape, dtype=dtype, compute_dtype=dtype)
    assert select(facts(**problem), "cuda").level == "solve"
    assert select(facts(**problem, needs_grad=True), "cuda").level == "solve"
    problem |= {"order": "post", "norm": "group"}
    assert select(facts(**problem), "cuda").level == "solve"
    with pytest.raises(cf.BackendUnavailable, match="no backward pass of wide maps has norms within an image"):
        select(facts(**problem, needs_grad=True), "cuda:solve")


def test_wide_maps_take_clusters_of_blocks(there, monkeypatch):
    for built, of, limit in ((("9.0a",), (9, 0), 8), (("8.0+PTX",), (9, 0), 1), (("8.0", "10.0+PTX"), (12, 0), 8)):
        monkeypatch.setattr(chips, "CHIPS", built)
        monkeypatch.setattr(chips, "capability", lambda device=None, of=of: of)
        assert chips.clusters(None, 8) == limit
    monkeypatch.setattr(chips, "CHIPS", ("8.0",))
    monkeypatch.setattr(chips, "capability", lambda device=None: (8, 0))
    assert select(facts(**conv(shape=(8, 256, 8, 8))), "cuda").level == "solve"
    with pytest.raises(cf.BackendUnavailable, match="256 pixels of 64 channels; clusters of blocks take compute cap"):
        select(facts(**conv(shape=(8, 64, 32, 32))), "cuda:solve")


@pytest.mark.parametrize(
    "change", [{"shape": (8, 64, 64, 64)}, {"shape": (2, 256, 16, 40)}, {"coupled": True, "needs_grad": True}]
)
def test_it_serves_wider_maps_and_training_statistics_stage_by_stage(there, change):
    plan = select(facts(**conv(**change)), "cuda")
    assert (plan.backend, plan.level) == ("cuda", "stage")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm": "group"}, "statistics are taken within an image: level solve serves that"),
        ({"shape": (8, 264, 4, 4)}, "264 channels: level stage takes a multiple of 8 up to 256"),
    ],
)
def test_stages_it_refuses(there, change, words):
    with pytest.raises(cf.BackendUnavailable) as caught:
        select(facts(**conv(**change)), "cuda:stage")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"needs_grad": True, "dtype": torch.float32, "compute_dtype": torch.float32},
            "maps of 32x32: an operand takes",
        ),
        ({"coupled": True}, "batch statistics couple the images of a batch: level stage serves that"),
        ({"shape": (8, 12, 4, 4)}, "12 channels: a whole solve takes a multiple of 8 up to 256"),
        ({"shape": (8, 264, 4, 4)}, "264 channels: a whole solve takes a multiple of 8 up to 256"),
        ({"shape": (8, 64, 32, 32)}, "maps of 32x32: registers of a block hold 256 pixels of 64 channels; clusters"),
        ({"shape": (8, 16, 33, 33)}, "maps of 33x33: registers of a block hold 1024 pixels of 16 channels"),
        (
            {"shape": (8, 64, 12, 12), "needs_grad": True, "norm": "group"},
            "maps of 12x12: no backward pass of wide maps has norms within an image",
        ),
        ({"shape": (8, 8, 1, 900), "dtype": torch.float32, "compute_dtype": torch.float32}, "KiB of shared memory of"),
        ({"dtype": torch.float64, "compute_dtype": torch.float64}, "products in torch.float64 are not served"),
        ({"dtype": torch.float16}, "a state of torch.float16 beside products in torch.bfloat16 is not served"),
        ({"op": "rk_solve"}, "level solve serves conv_solve, diffusion_solve, not rk_solve"),
    ],
    ids=str,
)
def test_solves_it_refuses(there, monkeypatch, change, words):
    monkeypatch.setattr(chips, "capability", lambda device=None: (8, 6))
    monkeypatch.setattr(chips, "CHIPS", ("8.0",))
    with pytest.raises(cf.BackendUnavailable, match="cuda:solve") as caught:
        select(facts(**conv(**change)), "cuda:solve")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "cpu"}, "the tensors are on cpu"),
        ({"dtype": torch.complex64}, "dtype torch.complex64 is not one of float16, bfloat16, float32, float64"),
        ({"leaf_dtypes": (torch.float32, torch.complex128)}, "dtype torch.complex128 is not one of"),
        ({"stages": 14}, "14 stages: kernels combine at most 13"),
    ],
)
def test_problems_it_refuses(there, change, words):
    assert words in reasons(**change)


@pytest.mark.parametrize(
    ("of", "words"),
    [
        ((7, 5), "compute capability 7.5: kernels need 8.0"),
        ((9, 1), "compute capability 9.1: the extension has code for 9.0a; TORCH_CUDA_ARCH_LIST chooses"),
        (None, f"torch {torch.__version__} sees no CUDA device"),
    ],
)
def test_devices_it_refuses(there, monkeypatch, of, words):
    monkeypatch.setattr(chips, "capability", lambda device=None: of)
    monkeypatch.setattr(chips, "CHIPS", ("9.0a",))
    assert words in reasons()


def test_every_reason_is_said_at_once(there):
    text = reasons(device="cpu", dtype=torch.complex64, stages=20)
    assert text.count(";") == 2


def of_extension(module: str) -> str:
    """Import with another extension, on a torch that sees no CUDA device."""
    code = f"""
import sys, types, torch
torch.cuda.is_available = lambda: False
sys.modules["contnet_fast._C"] = {module}
import contnet_fast as cf
from contnet_fast.backends import cuda
info = cf.info()
assert "cuda" not in cf.available_backends()
"""
    return code


WITHOUT = f"""types.SimpleNamespace(
    interface=lambda: {INTERFACE}, built_for_torch=lambda: torch.__version__, cuda_chips=lambda: [],
    cuda_release=lambda: "",
    without_cuda=lambda: "no nvcc on the path", instruction_set=lambda: "portable", compiler=lambda: "c++",
    instruction_sets=lambda: ["portable"], instruction_set_reasons=lambda: [("portable", ""), ("avx2", "absent")],
    record=lambda on: None, take_runs=lambda: [])"""


@pytest.mark.parametrize(
    ("module", "checks"),
    [
        (
            "None",
            """
assert "the C++ extension was not built" in info.backends["cuda"], info
assert "CONTNET_FAST_BUILD=cuda pip install" in info.backends["cuda"]
assert info.extension.startswith("none: ")""",
        ),
        (
            WITHOUT,
            """
assert "has no CUDA in it (no nvcc on the path)" in info.backends["cuda"], info
assert "CONTNET_FAST_BUILD=cuda pip install" in info.backends["cuda"]
assert info.extension == "c++, portable; without CUDA: no nvcc on the path"
assert info.instruction_sets == "portable (avx2: absent)"
y = torch.ones(2)
with cf.use_backend("cuda"):
    try:
        cf.rk_combine(y, [y], [1.0])
    except cf.BackendUnavailable as error:
        assert "no nvcc on the path" in str(error) and "the tensors are on cpu" in str(error)
    else:
        raise AssertionError""",
        ),
        (
            WITHOUT.replace("cuda_chips=lambda: []", 'cuda_chips=lambda: ["9.0a"]'),
            """
assert info.backends["cuda"] == "torch " + torch.__version__ + " sees no CUDA device"
assert info.extension == "c++, portable; CUDA  for 9.0a"
torch.ops.contnet_fast.rk_combine_cuda
assert not torch.cuda.is_initialized()""",
        ),
    ],
)
def test_what_an_installation_has(module, checks):
    subprocess.run([sys.executable, "-c", of_extension(module) + checks], check=True, timeout=120)


def test_levels_that_it_does_not_have_are_refused_where_they_are_named():
    with (
        pytest.raises(ValueError, match=r"accepted: .*cuda:solve.*cuda:stage.*cuda:accumulate"),
        cf.use_backend("cuda:none"),
    ):
        pass


def test_auto_prefers_triton_for_combinations_and_the_compilers_own_fusion(there, monkeypatch):
    from contnet_fast.backends import triton

    monkeypatch.setattr(triton, "INSTALLED", False)
    plan = select(facts())
    assert plan.backend == "cuda"
    assert "not yet measured" in plan.why
    assert "triton is not installed" in str(plan.refused)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert select(facts()).backend == "cuda"
    assert select(facts(op="rk_solve")).backend == "reference"


# ---- chips

KNOWN = {"75", "80", "86", "89", "90", "100", "120"}


@pytest.mark.parametrize(
    ("wanted", "chips"),
    [
        ("8.0;9.0a;10.0a+PTX", ["8.0", "9.0a", "10.0a", "10.0+PTX"]),
        (" 8.0, 9.0+PTX ", ["8.0", "9.0", "9.0+PTX"]),
        ("8.0+PTX 9.0a 8.0", ["8.0", "8.0+PTX", "9.0a"]),
        ("7.5+PTX;8.6", ["8.6"]),
        ("12.0f;13.0+PTX", ["12.0f", "12.0+PTX"]),
    ],
)
def test_chips_that_are_built_for(wanted, chips):
    assert architectures(wanted, KNOWN)[0] == chips


@pytest.mark.parametrize("wanted", ["Hopper", "sm_90", "9", "", "8.0;x"])
def test_chips_that_cannot_be_read(wanted):
    with pytest.raises(ValueError, match=r"TORCH_CUDA_ARCH_LIST: got .*accepted: capabilities such as"):
        architectures(wanted, KNOWN)


def test_flags():
    assert flags(["9.0a", "10.0+PTX"]) == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100,code=compute_100",
    ]


@pytest.mark.parametrize(
    ("chips", "served", "refused"),
    [
        (("8.0",), [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0)]),
        (("8.6",), [(8, 6), (8, 9)], [(8, 0)]),
        (("9.0a",), [(9, 0)], [(8, 9), (10, 0)]),
        (("10.0f",), [(10, 0), (10, 3)], [(12, 0)]),
        (("9.0+PTX",), [(9, 0), (10, 0), (12, 1)], [(8, 9)]),
        (("8.0", "9.0a"), [(8, 6), (9, 0)], [(10, 0)]),
    ],
)
def test_devices_that_code_runs_on(chips, served, refused):
    assert all(has_code(chips, of) for of in served)
    assert not any(has_code(chips, of) for of in refused)
