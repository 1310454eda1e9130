"""Every field family, the package's own and a second one made of new files, goes the same way from block to kernel."""

from __future__ import annotations

import pickle

import pytest
import torch
from pointwise_family import PointwiseField

import contnet_fast as cf
from contnet_fast.fields import FAMILIES
from contnet_fast.fields.family import Call
from contnet_fast.functional import field_solve
from contnet_fast.nn import ContinuousBlock
from contnet_fast.ops import lookup
from contnet_fast.schemes.bases import Basis

BUILT = "cpu" in cf.available_backends()
LEVELS = {"conv": ["cpu:solve", "cpu:stage"], "pointwise": ["cpu:solve"]}
built = pytest.mark.skipif(not BUILT, reason="needs the C++ extension to be built")


def solved(name, backend, *, checkpoint="step", return_steps=False, basis="piecewise_constant"):
    family = FAMILIES[name]
    x, nodes, operands, spec = family.draw(0, dtype=torch.float64)
    leaves = [x, *(t for t in (*nodes, *operands) if t is not None and t.is_floating_point())]
    for leaf in leaves:
        leaf.requires_grad_()
    grid = cf.time_grid("rk4_classic", 3, Basis(basis, 4))
    y, statistics = field_solve(
        family, x, nodes, operands=operands, spec=spec, grid=grid, checkpoint=checkpoint, return_steps=return_steps,
        backend=backend,
    )  # fmt: skip
    assert statistics is None
    upstream = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


@built
@pytest.mark.parametrize("return_steps", [False, True])
@pytest.mark.parametrize("basis", ["piecewise_constant", "hat"])
@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, level) for name, levels in LEVELS.items() for level in (*levels, "cpu:accumulate", "reference:accumulate")],
)
def test_values_and_gradients_are_those_of_the_reference(name, backend, basis, return_steps):
    for checkpoint in ("none", "step", "block") if name == "conv" else ("step",):
        settings = {"checkpoint": checkpoint, "return_steps": return_steps, "basis": basis}
        expected = solved(name, "reference:none", **settings)
        for got, wanted in zip(solved(name, backend, **settings), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["conv", "pointwise"])
def test_a_spec_survives_the_way_through_an_op(name):
    family = FAMILIES[name]
    spec = family.draw(0).spec
    assert family.spec.unpack(spec.pack()) == spec
    wrong = spec.pack()._replace(words=tuple(f"{word}?" for word in spec.pack().words))
    with pytest.raises(ValueError, match=r"got '.*\?', accepted: "):
        family.spec.unpack(wrong)


@built
def test_what_runs_is_recorded_and_explained_by_the_family_s_name():
    block = ContinuousBlock(PointwiseField(5), n_steps=2).double()
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert "pointwise_solve" in str(cf.explain(block, x))
    with cf.record_runs() as runs:
        block(x).sum().backward()
    assert [(run.op, run.backend, run.level) for run in runs] == [
        ("pointwise_solve", "cpu", "solve"),
        ("pointwise_solve_backward", "cpu", "solve"),
    ]


@built
def test_a_block_takes_it_as_it_takes_its_own():
    block = ContinuousBlock(PointwiseField(5), scheme="midpoint", n_steps=4).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    with cf.use_backend("reference"):
        expected = block(x)
    torch.testing.assert_close(block(x), expected)
    torch.testing.assert_close(torch.compile(block, backend="aot_eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(block))(x), expected)
    calls = []
    block.field.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(block(x), expected)
    assert len(calls) == 8
    refined = ContinuousBlock(PointwiseField(5), n_steps=4).double()
    cf.refine(refined)
    assert refined(x).shape == x.shape
    cf.odeint(block.field, x, torch.tensor([0.0, 1.0], dtype=torch.float64))


@built
@pytest.mark.parametrize(
    ("request_", "dtype", "words"),
    [
        ("cpu:solve", torch.float32, "dtype torch.float32 is not float64"),
        ("cpu:stage", torch.float64, "level stage serves conv_solve, diffusion_solve, not pointwise_solve"),
        ("triton:solve", torch.float64, "level solve serves conv_solve, diffusion_solve, not pointwise_solve"),
    ],
)
def test_reasons_are_the_implementation_s(request_, dtype, words):
    block = ContinuousBlock(PointwiseField(5), n_steps=2).to(dtype)
    with pytest.raises(cf.BackendUnavailable, match=words), cf.use_backend(request_):
        block(torch.randn(3, 5, dtype=dtype))


def test_arguments_are_refused_by_the_family():
    with pytest.raises(ValueError, match=r"x: got shape \(3,\), accepted: \[samples, features\]"):
        ContinuousBlock(PointwiseField(5), n_steps=2)(torch.randn(3))


@built
@pytest.mark.parametrize("name", ["conv", "pointwise"])
def test_opcheck(name):
    family = FAMILIES[name]
    x, nodes, operands, spec = family.draw(0, dtype=torch.float64)
    grid = cf.time_grid("midpoint", 2, Basis("hat", 4))
    call = Call(family, x, nodes, operands, spec, True, grid.flat, "step", "solve")
    torch.library.opcheck(lookup(family.op, "cpu"), (*call.arguments, False))
    y, _, saved = lookup(family.op, "cpu")(*call.arguments, False)
    assert [(tuple(t.shape), t.dtype) for t in saved] == [*family.implementations["cpu"].saved(call)]
    wanted = [0, len(nodes)] if operands else [0]
    torch.library.opcheck(lookup(f"{family.op}_backward", "cpu"), (torch.randn_like(y), *call.arguments, saved, wanted))


def test_a_gpu_is_asked_about_by_its_index(monkeypatch):
    from contnet_fast import chips
    from contnet_fast.backends import cuda
    from contnet_fast.problem import Problem

    asked = []
    monkeypatch.setattr(cuda, "_reason", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: asked.append(device) or (9, 0))
    monkeypatch.setattr(chips, "CHIPS", ("9.0a",))
    place = torch.device("cuda", 1)
    problem = Problem("rk_combine", place, torch.float32, torch.float32, (3,), 4)
    assert cuda.CudaBackend().check(problem, "accumulate") == ()
    assert chips.arch(place) == "sm_90"
    assert set(asked) == {place}
