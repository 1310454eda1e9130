"""``contnet-fast tune --cpu`` keeps times in the user's cache, and ``auto`` chooses by them."""

from __future__ import annotations

import json

import problems
import pytest
import torch

import contnet_fast as cf
from contnet_fast.backends import select
from contnet_fast.cli.tuning_cpu import tune_cpu
from contnet_fast.fields.conv import cpu, cpu_times
from contnet_fast.fields.conv.cpu_times import Row

pytestmark = pytest.mark.skipif("cpu" not in cf.available_backends(), reason="needs the C++ extension to be built")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "contnet_fast" / "cpu.json"


def row(channels, bfloat16, float32, reference, training=False):
    return Row(channels, 8, training, {"bfloat16": bfloat16, "float32": float32, "reference": reference})


def plan(channels, training=False, side=8):
    return select(
        problems.problem(
            op="conv_solve", compute_dtype=torch.bfloat16, shape=(4, channels, side, side), stages=2, n_steps=2,
            needs_grad=training, coupled=training,
        )
    )  # fmt: skip


def test_it_measures_every_contender_and_what_it_keeps_is_read_again(cache, capsys):
    before = cpu.BFLOAT16_PRODUCTS
    tune_cpu(seconds=0.0, batch=1, shapes=((4, 4), (16, 3)))
    rows = cpu_times.read()
    assert [(r.channels, r.side, r.training) for r in rows] == [
        (c, s, t) for c, s in ((4, 4), (16, 3)) for t in (False, True)
    ]
    assert all(r.ms.keys() == set(cpu_times.CONTENDERS) and min(r.ms.values()) > 0 for r in rows)
    assert str(cache) in capsys.readouterr().out
    assert before == cpu.BFLOAT16_PRODUCTS


def test_times_of_another_machine_do_not_hold(cache):
    cpu_times.write([row(16, 1.0, 2.0, 3.0)])
    content = json.loads(cache.read_text())
    content["machine"]["instruction_set"] = "other"
    cache.write_text(json.dumps(content))
    assert cpu_times.read() == ()


@pytest.mark.parametrize("text", ["{", "[]", '{"machine": {}, "rows": [{"channels": 1}]}'])
def test_a_file_that_is_none_of_ours_is_named_and_not_used(cache, text):
    cache.parent.mkdir()
    cache.write_text(text)
    with pytest.warns(UserWarning, match=r"cpu\.json is not used .*; contnet-fast tune --cpu writes it anew"):
        assert cpu_times.read() == ()


def test_auto_takes_what_was_faster_here_and_says_so(monkeypatch):
    rows = (row(16, 1.0, 2.0, 3.0), row(256, 5.0, 9.0, 4.0), row(256, 5.0, 9.0, 6.0, training=True))
    assert cpu_times.bfloat16_pays(rows)
    assert not cpu_times.bfloat16_pays((row(16, 3.0, 2.0, 4.0),))
    monkeypatch.setattr(cpu, "TIMES", rows)
    monkeypatch.setattr(cpu, "BFLOAT16_PRODUCTS", True)
    taken, left, trained = plan(20), plan(200), plan(200, training=True)
    assert taken.backend == trained.backend == "cpu"
    assert taken.why == "products in bfloat16: measured on this CPU with 16 channels: 1 ms, PyTorch 3 ms"
    assert left.backend == "reference"
    assert "auto leaves it: measured on this CPU with 256 channels: 5 ms, PyTorch 4 ms" in str(left.refused[0])
    monkeypatch.setattr(cpu, "BFLOAT16_PRODUCTS", False)
    assert plan(20).why == "products in float32: measured on this CPU with 16 channels: 2 ms, PyTorch 3 ms"


def test_a_machine_that_was_not_measured_is_predicted_and_told_so(monkeypatch):
    monkeypatch.setattr(cpu, "TIMES", ())
    monkeypatch.setattr(cpu, "BFLOAT16_PRODUCTS", False)
    monkeypatch.setattr(cpu, "INSTRUCTIONS", "avx512_bf16")
    assert "predicted faster than PyTorch's in bfloat16 and not measured on such a CPU" in plan(16, side=4).why
    assert plan(16).why.startswith("products in float32, measured faster than PyTorch's in bfloat16")
    monkeypatch.setattr(cpu, "BFLOAT16_PRODUCTS", True)
    monkeypatch.setattr(cpu, "INSTRUCTIONS", "amx")
    assert plan(16).why.startswith("products in bfloat16 by amx, measured faster than PyTorch")


def test_a_compiled_block_is_chosen_by_them_in_one_graph(monkeypatch):
    monkeypatch.setattr(cpu, "TIMES", (row(16, 1.0, 2.0, 3.0),))
    monkeypatch.setattr(cpu, "BFLOAT16_PRODUCTS", True)
    block = cf.nn.ContinuousBlock(cf.nn.ConvField(4, n_basis=1), scheme="euler", n_steps=1).eval()
    x = torch.randn(1, 4, 3, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), cf.record_runs() as runs:
        expected = block(x)
        got = torch.compile(block, backend="eager", fullgraph=True)(x)
    assert torch.equal(got, expected)
    assert [run.backend for run in runs] == ["cpu", "cpu"]
