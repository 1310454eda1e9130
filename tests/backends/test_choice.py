"""Where `auto` takes the cpu backend, it was measured faster; the measurements are committed."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from dataclasses import replace
from pathlib import Path

import problems
import pytest
import torch

import contnet_fast as cf
from contnet_fast import chips
from contnet_fast.backends import REGISTRY, check_backend, cpu, cuda, select, triton
from contnet_fast.costmodel import choice
from contnet_fast.fields.conv import cpu as conv_cpu
from contnet_fast.inspect.explain import Plan as ExplainedPlan

DOCS = Path(__file__).resolve().parents[2] / "docs"
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"


def measured(name):
    """(instruction set, row) in order; a header stands before the rows of a run."""
    isa = ""
    for line in (RESULTS / name).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "header" in row:
            isa = row["header"]["options"]["isa"]
        else:
            yield isa, row


def rows():
    """Those of both files: the second one's have states in float32, and products in bfloat16 by autocast."""
    yield from measured("choice-cpu.jsonl")
    for _, row in measured("bfloat16-amd-epyc.jsonl"):
        channels, side = map(int, row["shape"].split("@"))
        size = {"channels": channels, "side": side, "batch": row["batch"], "training": row["training"]}
        ratios = {"nchw": row["ratio"], "channels_last": row["ratio"]}
        yield "avx512", {**size, **ratios, "dtype": "float32", "compute": "bfloat16"}


def problem(row):
    return problems.problem(
        op="conv_solve",
        dtype=getattr(torch, row["dtype"]),
        compute_dtype=getattr(torch, row.get("compute", row["dtype"])),
        shape=(row["batch"], row["channels"], row["side"], row["side"]),
        stages=1,
        n_steps=2,
        coupled=row["training"],
        needs_grad=row["training"],
    )


@pytest.fixture(scope="module")
def sorted_rows():
    """The least ratio over PyTorch's two formats, of the rows that auto takes and of those it leaves."""
    taken, left = [], []
    with pytest.MonkeyPatch.context() as patch:
        for isa, row in rows():
            patch.setattr(conv_cpu, "AVX512", isa == "avx512")
            patch.setattr(conv_cpu, "AVX2", isa == "avx2")
            patch.setattr(conv_cpu, "NATIVE_BFLOAT16", isa == "avx512")  # so it was where that was measured
            patch.setattr(conv_cpu, "BFLOAT16_PRODUCTS", False)
            ratio = min(row["nchw"], row["channels_last"])
            (left if cpu.CpuBackend().reason_to_skip(problem(row), "stage") else taken).append((ratio, isa, row))
    return taken, left


def test_auto_takes_what_is_faster(sorted_rows):
    taken, _ = sorted_rows
    assert len(taken) > 400
    slower = [item for item in taken if item[0] < 1.0]
    assert len(slower) < 0.05 * len(taken)
    assert min(ratio for ratio, *_ in taken) > 0.8, min(taken, key=lambda item: item[0])
    assert statistics.median(ratio for ratio, *_ in taken) > 1.8


def test_auto_leaves_what_is_not(sorted_rows):
    _, left = sorted_rows
    assert 30 < len(left) < 250
    assert statistics.median(ratio for ratio, *_ in left) < 0.9


@pytest.mark.skipif("cpu" not in cf.available_backends(), reason="needs the C++ extension to be built")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels": 512, "side": 2}, "512 channels on maps of 2x2, reading the weights"),
        ({"channels": 256, "side": 8, "batch": 1, "training": True}, "256 channels and 1 maps of 8x8, transforming"),
        ({"channels": 128, "side": 4, "dtype": "bfloat16"}, "128 channels in bfloat16"),
        ({"channels": 128, "side": 16, "dtype": "bfloat16"}, None),
        ({}, None),
        ({"channels": 128, "dtype": "float16"}, None),
    ],
)
def test_the_choice_is_explained(monkeypatch, change, words):
    monkeypatch.setattr(conv_cpu, "AVX512", True)
    monkeypatch.setattr(conv_cpu, "NATIVE_BFLOAT16", True)
    monkeypatch.setattr(conv_cpu, "BFLOAT16_PRODUCTS", False)
    row = {"channels": 16, "side": 32, "batch": 32, "dtype": "float32", "training": False, **change}
    plan = select(problem(row))
    if words is None:
        assert plan.backend == "cpu"
        assert "measured faster" in plan.why
    else:
        assert plan.backend == "reference"
        assert any(words in str(refusal) and "auto leaves it" in str(refusal) for refusal in plan.refused)
    assert select(problem(row), "cpu").backend == "cpu"  # asked for, it serves


@pytest.mark.parametrize("channels", [16, 128, 192, 256, 384, 512])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ranks_with_batches_of_different_sizes_choose_the_same(monkeypatch, channels, dtype):
    monkeypatch.setattr(conv_cpu, "NATIVE_BFLOAT16", True)
    monkeypatch.setattr(conv_cpu, "BFLOAT16_PRODUCTS", False)
    for widest, side in itertools.product(("AVX512", "AVX2", ""), (2, 4, 8, 16)):
        for name in ("AVX512", "AVX2"):
            monkeypatch.setattr(conv_cpu, name, name == widest)
        chosen = set()
        for batch in (1, 2, 7, 8, 9, 64):
            one = problem({"channels": channels, "side": side, "batch": batch, "dtype": dtype, "training": True})
            shared = replace(one, facts=one.facts._replace(couples_ranks=True))
            chosen.add(conv_cpu.CpuConv().discourage(shared, "stage") is None)
        assert len(chosen) == 1


def test_halves_of_units_are_taken_where_they_are_faster(monkeypatch):
    taken, left = [], []
    for isa, row in measured("units-cpu.jsonl"):
        monkeypatch.setattr(conv_cpu, "AVX512", isa == "avx512")
        shape = (row["batch"], row["channels"], row["side"], row["side"])
        monkeypatch.setattr(conv_cpu, "NATIVE_BFLOAT16", isa == "avx512")  # so it was where that was measured
        monkeypatch.setattr(conv_cpu, "BFLOAT16_PRODUCTS", False)
        compute = getattr(torch, row.get("compute", "float32"))
        unit = problems.problem(
            op="conv_unit", shape=shape, needs_grad=row["training"], stages=0, compute_dtype=compute
        )
        ratio = min(row["nchw"], row["channels_last"])
        (left if cpu.CpuBackend().reason_to_skip(unit, "stage") else taken).append((ratio, isa, row))
    assert len(taken) > 200
    assert len([item for item in taken if item[0] < 1.0]) < 0.05 * len(taken)
    assert min(ratio for ratio, *_ in taken) > 0.75, min(taken, key=lambda item: item[0])
    assert statistics.median(ratio for ratio, *_ in taken) > 1.5
    assert 20 < len(left) < 110
    assert statistics.median(ratio for ratio, *_ in left) < 0.9


def test_stems_are_taken_where_they_are_faster(monkeypatch):
    taken, left = [], []
    for isa, row in measured("stems-cpu.jsonl"):
        monkeypatch.setattr(conv_cpu, "NATIVE_BFLOAT16", isa != "avx2")  # so it was where that was measured
        stem = problems.problem(
            op="conv_stem", shape=(row["batch"], row["images"], row["side"], row["side"]), stages=0,
            needs_grad=row["training"], compute_dtype=getattr(torch, row.get("compute", "float32")),
        )  # fmt: skip
        stem = replace(stem, facts=stem.facts._replace(width=row["channels"]))
        side = left if cpu.CpuBackend().reason_to_skip(stem, "stage") else taken
        side.append((row["nchw"], min(row["nchw"], row["channels_last"]), isa, row))
    assert len(taken) > 400
    assert len([item for item in taken if item[0] < 1.0]) < 0.05 * len(taken)  # of images as they come from a loader
    assert min(ratio for ratio, *_ in taken) > 0.75, min(taken, key=lambda item: item[0])
    assert statistics.median(ratio for _, ratio, *_ in taken) > 1.5
    assert 50 < len(left) < 160
    assert statistics.median(ratio for _, ratio, *_ in left) < 0.9


def case(shape, *, training=False, **change):
    bfloat16 = {"dtype": torch.bfloat16, "compute_dtype": torch.bfloat16}
    settings = {"stages": 4, "n_steps": 8, "scheme": "rk4_classic", "needs_grad": training, "checkpoint": "step"}
    return problems.problem(
        **{"op": "conv_solve", "device": "cuda", "coupled": training, **bfloat16, "shape": shape, **settings, **change}
    )


@pytest.fixture
def gpu(monkeypatch):
    """Both GPU backends on a device of capability 9.0; returns what puts rows into the table of measured times."""
    monkeypatch.setattr(triton, "INSTALLED", True)
    monkeypatch.setattr(triton, "INTERPRETED", False)
    monkeypatch.setattr(cuda, "_reason", None)
    monkeypatch.setattr(chips, "CHIPS", ("9.0a",))
    monkeypatch.setattr(chips, "capability", lambda device=None: (9, 0))
    choice._ranked.cache_clear()

    def measure(problem, ms, arch="sm_90"):
        batch, _, height, width = problem.shape
        row = {**choice.describe(problem), "batch": batch, "height": height, "width": width, "ms": ms}
        monkeypatch.setattr(choice, "measured", lambda: {arch: {"source": "some GPU", "rows": [row]}})
        choice._ranked.cache_clear()

    yield measure
    choice._ranked.cache_clear()


IMAGE = (128, 16, 32, 32)


class TestGpu:
    """On a GPU auto sorts backends and levels by time: by prediction until there are measurements."""

    @pytest.mark.parametrize(
        ("problem", "chosen"),
        [
            (case(IMAGE), "cuda:solve"),
            (case((128, 64, 8, 8)), "triton:solve"),
            (case((1, 256, 8, 8)), "triton:stage"),  # few images: stages spread one over more programs
            (case(IMAGE, needs_grad=True), "cuda:solve"),
            (case((128, 64, 8, 8), needs_grad=True), "cuda:solve"),
            (case((128, 64, 8, 8), needs_grad=True, basis="piecewise_linear"), "triton:solve"),  # more sums
            (case(IMAGE, training=True), "triton:stage"),
            (case((128, 12, 32, 32)), "triton:solve"),  # whose channels cuda refuses
        ],
        ids=lambda v: v if isinstance(v, str) else f"{v.shape} {v.needs_grad} {v.facts.couples_batch}",
    )
    def test_the_fastest_by_prediction_is_taken(self, gpu, problem, chosen):
        plan = select(problem)
        assert f"{plan.backend}:{plan.level}" == chosen
        seconds = {
            request: choice.predicted(problem, request, "sm_90")
            for request in choice.FUSED
            if not REGISTRY[request.split(":")[0]].check(problem, request.split(":")[1])
        }
        assert min(seconds, key=lambda request: seconds[request]) == chosen

    def test_explain_says_the_order_and_why(self, gpu):
        plan = select(case(IMAGE))
        shown = str(ExplainedPlan((("block", plan),)))
        assert plan.why in shown
        assert plan.why in (DOCS / "kernels.md").read_text(encoding="utf-8")
        assert all(f"not {refusal}" in shown for refusal in plan.refused)
        assert re.fullmatch(
            r"predicted for H100: cuda:solve 0\.1\d* ms, triton:solve 0\.2\d* ms, triton:stage 0\.3\d* ms, "
            r"cuda:stage 0\.3\d* ms, PyTorch's kernels [\d.]+ ms",
            plan.why,
        )
        slower = [str(refusal) for refusal in plan.refused if "auto leaves it" in str(refusal)]
        assert re.fullmatch(
            r"triton \(solve\): auto leaves it: predicted for H100: 0\.2\d* ms, cuda:solve 0\.1\d* ms", slower[0]
        )
        assert len(slower) == 3

    def test_a_measurement_wins_over_predictions(self, gpu):
        problem = case(IMAGE)
        gpu(
            case((96, *IMAGE[1:])), {"cuda:solve": 2.0, "triton:solve": 3.0, "triton:stage": 1.0, "reference:none": 9.0}
        )
        plan = select(problem)
        assert (plan.backend, plan.level) == ("triton", "stage")
        assert plan.why == (
            "measured on some GPU: triton:stage 1 ms, cuda:solve 2 ms, triton:solve 3 ms, PyTorch's kernels 9 ms; "
            "not measured: cuda:stage"
        )
        refused = list(map(str, plan.refused))
        assert "cuda (solve): auto leaves it: measured on some GPU: 2 ms, triton:stage 1 ms" in refused
        assert "cuda (stage): auto leaves it: not measured on some GPU, as triton:stage is" in refused

    @pytest.mark.parametrize(
        "other",
        [
            case((16, *IMAGE[1:])),
            case((128, 32, 32, 32)),
            case(IMAGE, training=True),
            case(IMAGE, needs_grad=True),
            case(IMAGE, compute_dtype=torch.float16, dtype=torch.float16),
            case(IMAGE, order="post"),
            case(IMAGE, norm="none"),
        ],
        ids=range(7),
    )
    def test_a_measurement_speaks_for_its_own_case_alone(self, gpu, other):
        gpu(case(IMAGE), {"triton:stage": 1.0, "cuda:solve": 2.0, "reference:none": 3.0})
        assert select(other).why.startswith("predicted for H100: ")

    def test_a_measurement_speaks_for_its_own_chips_alone(self, gpu):
        gpu(case(IMAGE), {"triton:stage": 1.0, "cuda:solve": 2.0, "reference:none": 3.0}, arch="sm_80")
        assert select(case(IMAGE)).why.startswith("predicted for H100: ")

    def test_pytorch_where_it_is_fastest(self, gpu, monkeypatch):
        gpu(case(IMAGE), {"cuda:solve": 3.0, "triton:solve": 2.0, "reference:none": 1.0})
        plan = select(case(IMAGE))
        assert (plan.backend, plan.level) == (
            "triton",
            "accumulate",
        )  # PyTorch's convolutions, combinations in one pass
        assert plan.why.startswith("measured on some GPU: PyTorch's kernels 1 ms, triton:solve 2 ms, cuda:solve 3 ms")
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert select(case(IMAGE)).backend == "reference"

    def test_a_level_may_be_asked_for(self, gpu):
        gpu(case(IMAGE), {"cuda:solve": 3.0, "triton:solve": 2.0, "reference:none": 1.0})
        for request in choice.FUSED:
            plan = select(case(IMAGE), request)
            assert f"{plan.backend}:{plan.level}" == request
            assert plan.why == f"asked for '{request}'"

    def test_refusals_keep_their_words(self, gpu):
        plan = select(case((128, 12, 32, 32), training=True))
        refused = {f"{r.backend}:{r.level}": str(r) for r in plan.refused}
        assert "batch statistics couple the images of a batch: level stage serves that" in refused["triton:solve"]
        assert "12 channels: level stage takes a multiple of 8 up to 256" in refused["cuda:stage"]
        with pytest.raises(cf.BackendUnavailable, match="12 channels: a whole solve takes a multiple of 8 up to 256"):
            select(case((128, 12, 32, 32)), "cuda:solve")

    def test_nothing_is_chosen_after_an_exception(self, gpu, monkeypatch):
        def broken(*_, **__):
            raise RuntimeError("no such count")

        monkeypatch.setattr(choice, "predicted", broken)
        with pytest.raises(RuntimeError, match="no such count"):
            select(case(IMAGE))

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_a_choice_is_made_while_a_graph_is_traced(self, gpu, dynamic):
        def solve(x):
            plan = select(case((len(x), *IMAGE[1:])))
            return x * 2.0 if f"{plan.backend}:{plan.level}" == "cuda:solve" else x

        compiled = torch.compile(solve, backend="eager", fullgraph=True, dynamic=dynamic)
        assert compiled(torch.ones(128)).sum() == 256.0

    def test_float32_is_predicted_as_torch_s_switch_for_convolutions_has_it(self, gpu):
        problem = case(IMAGE, dtype=torch.float32, compute_dtype=torch.float32)
        switch, found = torch.backends.cudnn.conv, []
        before = switch.fp32_precision
        try:
            for switch.fp32_precision in ("ieee", "tf32"):  # so set, reading cudnn.allow_tf32 raises
                found.append(select(problem).why)
        finally:
            switch.fp32_precision = before
        assert found[0] != found[1]

    def test_empty_batches_are_predicted(self, gpu):
        assert select(case((0, 16, 32, 32))).why.startswith("predicted")


REQUEST = (
    r"choice-gpu.json: request: got 'cuda:solv', accepted: triton:solve, triton:stage, cuda:solve, cuda:stage, "
    r"reference:none \(did you mean 'cuda:solve'\?"
)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"sm_90": {"source": "x", "rows": [{"ms": {"cuda:solv": 1.0}}]}}, REQUEST),
        ({"sm_91": {"source": "x", "rows": []}}, r"arch: got 'sm_91', accepted: sm_80, sm_90, sm_100"),
    ],
    ids=["request", "arch"],
)
def test_unknown_names_in_the_table_are_errors(tmp_path, table, words):
    path = tmp_path / "choice-gpu.json"
    path.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=words):
        choice.measured.__wrapped__(path)


@pytest.mark.parametrize("request_", ["cuda:solv", "cud:solve", "auto:solve", "triton:none"])
def test_unknown_requests_are_errors(request_):
    with pytest.raises(ValueError, match=rf"backend: got '{request_}', accepted: auto, "):
        check_backend(request_)
