"""Selection is visible, complete in its reasons, and never falls back."""

from __future__ import annotations

import warnings

import problems
import pytest
import torch

import contnet_fast as cf
from contnet_fast.backends import REGISTRY, Backend, registry, select
from contnet_fast.nn import ContinuousBlock, ConvField


@pytest.fixture
def block():
    torch.manual_seed(0)
    return ContinuousBlock(ConvField(4, n_basis=2, norm="none"), scheme="rk4", n_steps=2)


@pytest.fixture
def x():
    return torch.randn(2, 4, 5, 5)


class Picky(Backend):
    """A backend that serves float64 only, and says why not otherwise."""

    name = "picky"
    levels = ("solve", "stage")

    def check(self, problem, level):
        reasons = []
        if problem.dtype != torch.float64:
            reasons.append(f"dtype {problem.dtype} is not float64")
        if level == "solve":
            reasons.append("solve is not built")
        return tuple(reasons)

    def why(self, problem, level):
        return "the pickiest"


@pytest.fixture
def alone(monkeypatch):
    """No backend but the reference."""
    monkeypatch.setattr(registry, "REGISTRY", {"reference": REGISTRY["reference"]})


@pytest.fixture
def picky(monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", {"picky": Picky(), "reference": REGISTRY["reference"]})


def problem(**change):
    return problems.problem(**{"op": "conv_solve", "shape": (1, 4, 5, 5), "stages": 4, **change})


def test_the_reference_is_always_there():
    assert cf.available_backends()[-1] == "reference"
    assert cf.info().backends["reference"] == "available"


def test_auto_takes_the_first_that_serves_and_keeps_every_refusal(picky):
    plan = select(problem(dtype=torch.float64))
    assert (plan.backend, plan.level) == ("picky", "stage")
    plan = select(problem())
    assert (plan.backend, plan.level) == ("reference", "none")
    assert [(r.backend, r.level, len(r.reasons)) for r in plan.refused] == [
        ("picky", "solve", 2),
        ("picky", "stage", 1),
    ]


def test_an_explicit_backend_that_cannot_serve_raises_with_every_reason(picky):
    with pytest.raises(cf.BackendUnavailable) as caught:
        select(problem(), "picky")
    text = str(caught.value)
    assert "picky (solve): dtype torch.float32 is not float64; solve is not built" in text
    assert "picky (stage): dtype torch.float32 is not float64" in text
    with pytest.raises(cf.BackendUnavailable, match="solve is not built"):
        select(problem(dtype=torch.float64), "picky:solve")


def test_strict_refuses_the_reference_under_auto_only(alone, block, x):
    with cf.strict():
        with pytest.raises(cf.BackendUnavailable, match="strict: auto would run conv_solve on the reference"):
            block(x)
        with cf.use_backend("reference"):
            block(x)
    block(x)


def test_a_failing_implementation_is_not_replaced(block, x, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("kernel failed")

    monkeypatch.setattr(cf.fields.reference, "field_solve", broken)
    monkeypatch.setattr(cf.functional.fields, "fused_solve", broken)
    with pytest.raises(RuntimeError, match="kernel failed"):
        block(x)


def test_both_levels_of_the_reference_agree_and_record_what_ran(alone, block, x):
    with cf.record_runs() as log:
        plain = block(x)
    assert [(run.op, run.level) for run in log] == [("conv_solve", "none")]
    with cf.record_runs() as log, cf.use_backend("reference:accumulate"):
        fused = block(x)
    assert {(run.op, run.backend, run.level) for run in log} == {("rk_combine", "reference", "accumulate")}
    assert len(log) == 2 * 4  # three stage inputs and one update for each step
    torch.testing.assert_close(plain, fused, rtol=1e-6, atol=1e-6)


def test_use_backend_ends_with_its_block_even_after_an_error(alone, block, x):
    with pytest.raises(ZeroDivisionError), cf.use_backend("reference:accumulate"):
        raise ZeroDivisionError
    with cf.record_runs() as log:
        block(x)
    assert log[0].level == "none"


@pytest.mark.parametrize("bad", ["refrence", "reference:solve", "auto:none", "", None, 3])
def test_unknown_backends_are_refused_where_they_are_named(bad):
    with pytest.raises(ValueError, match="backend: got"):
        ContinuousBlock(ConvField(4), backend=bad)
    with pytest.raises(ValueError, match=r"accepted: auto, .*reference"), cf.use_backend(bad):
        pass


def test_a_combination_has_one_level():
    with pytest.raises(cf.BackendUnavailable, match="its level is accumulate"):
        cf.rk_combine(torch.zeros(2), [torch.zeros(2)], [1.0], backend="reference:none")


def test_explain_names_each_block_and_computes_nothing(alone, x):
    net = cf.models.ContinuousNet(width=4, n_basis=2, n_steps=3, scheme="midpoint").train()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with cf.record_runs() as log:
        plan = cf.explain(net, torch.randn(2, 3, 16, 16))
    assert log == [] or all(run.level == "none" for run in log)
    assert [name for name, _ in plan.units] == ["stem", *(f"stages.{i}" for i in range(6))]
    shapes = [(2, 4, 16, 16), (2, 8, 8, 8), (2, 16, 4, 4)]
    of_stages = [shape for shape in shapes for _ in ("stitch", "block")]
    assert [unit.problem.shape for _, unit in plan.units] == [(2, 3, 16, 16), *of_stages]
    text = str(plan)
    assert "midpoint x 3" in text
    assert "reference" in text
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_explain_shows_autocast_and_refusals(picky, block, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plan = cf.explain(block, x)
    text = str(plan)
    assert "float32, field bfloat16" in text
    assert "not picky (solve): dtype torch.float32 is not float64; solve is not built" in text
    with pytest.raises(cf.BackendUnavailable, match="picky"), cf.use_backend("picky"):
        cf.explain(block, x)


def test_explain_of_a_function():
    y = torch.zeros(3)
    plan = cf.explain(lambda y: cf.rk_combine(y, [y], [1.0]), y)
    assert [(unit.problem.op, unit.level) for _, unit in plan.units] == [("rk_combine", "accumulate")]
    assert str(cf.explain(lambda y: y + 1, y)) == "no unit of contnet_fast runs in this call"


def test_the_reference_on_a_gpu_warns_once_with_the_reasons(picky, monkeypatch):
    monkeypatch.setattr(registry._state, "warned", set())
    with pytest.warns(UserWarning, match="conv_solve on cuda runs on the plain PyTorch reference:\n  picky"):
        select(problem(device="cuda"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select(problem(device="cuda"))
