"""The gate of training rows lets a relu that rounds across zero pass, and no wrong gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def judge(monkeypatch):
    """``judge(wrong)``: what the gate says of a gradient that is off by a tenth in the draws ``wrong``.

    Eager PyTorch's logits are off by ``eager``, and its loss is right by chance.
    """
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent))
    from benchmarks.training import cases, gate

    def judged(wrong, *, name="weight", by=1.1, eager=0.0):
        class Made(gate.Gate):
            def _results(self, one, depth, *, draw=0, plain=False, **_):
                torch.manual_seed(draw)
                values = {what: torch.randn(8).double() for what in ("y", "loss", "weight", "bias")}
                if one.who == "cuda" and draw in wrong:
                    values[name] = values[name] * by
                if plain:
                    values["y"] += eager
                return values

        config = cases.PaperNetwork(1, "euler").config(epochs=1, data="synthetic", batch_size=2, width=4)
        return Made(config, None, None)._judge_draws(cases.Entrant("cuda", "nchw"), 0)

    judged.error = gate.GateError
    judged.draws = gate.DRAWS
    return judged


def test_a_right_gradient_is_looked_at_once(judge):
    assert judge(())["draws"] == 1


def test_a_gradient_that_is_off_in_one_draw_passes_by_another(judge):
    assert judge((0, 1))["draws"] == 3


@pytest.mark.parametrize("by", [1.1, float("nan")])
def test_a_gradient_that_is_off_in_every_draw_is_wrong(judge, by):
    with pytest.raises(judge.error, match="weight: error"):
        judge(range(judge.draws), by=by)


@pytest.mark.parametrize("name", ["y", "loss"])
def test_an_output_that_is_off_once_is_wrong(judge, name):
    with pytest.raises(judge.error, match=f"{name}: error"):
        judge((0,), name=name)


def test_a_loss_may_be_off_by_what_its_logits_may(judge):
    assert judge((0,), name="loss", by=1 + 5e-7, eager=1e-6)["draws"] == 1
    with pytest.raises(judge.error, match="loss: error"):
        judge((0,), name="loss", by=1 + 5e-6, eager=1e-6)
