"""checkpoint="reversible" of rk_solve and blocks: exact gradients at the memory of one step, or words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import contnet_fast as cf
from contnet_fast.functional import rk_solve, solves
from contnet_fast.reference.reversible import COUPLING, Coupling
from contnet_fast.schemes.timegrid import backward_nodes

D = torch.float64


@pytest.fixture
def plainly(monkeypatch):
    """Replaces the gradient of reversible steps by that of autograd through the same steps."""

    def plain(scheme, ys, func):
        coupling, rows = Coupling(ys, COUPLING), []
        pair = coupling.start(ys)
        for i in range(scheme.n_steps):
            pair, outs = coupling.advance(scheme, i, pair)
            rows += outs
        return rows[-1] if not scheme.returns_all else [torch.stack(x) for x in zip(ys, *rows, strict=True)]

    return lambda: monkeypatch.setattr(solves, "reversible_solve", plain)


def field_of(kind):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).to(D)
    if kind == "tensor":
        return (lambda t, y: net(y) * (1 + t)), torch.randn(4, 3, dtype=D), list(net.parameters())
    shifts = {"v": [torch.ones(3, dtype=D, requires_grad=True)]}

    def pair(t, y):
        return {"a": net(y["a"]) + shifts["v"][0], "b": -t * y["b"] * y["a"].mean()}

    return pair, {"a": torch.randn(4, 3, dtype=D), "b": torch.ones(2, dtype=D)}, [*net.parameters(), *shifts["v"]]


def run(kind, scheme, **how):
    field, y0, params = field_of(kind)
    leaves = list(y0.values()) if kind == "dict" else [y0]
    for y in leaves:
        y.requires_grad_()
    out = rk_solve(field, y0, scheme=scheme, n_steps=6, checkpoint="reversible", **how)
    ends = list(out.values()) if kind == "dict" else [out]
    return ends, torch.autograd.grad(sum(y.square().sum() for y in ends), [*leaves, *params])


@pytest.mark.parametrize("kind", ["tensor", "dict"])
@pytest.mark.parametrize(("scheme", "how"), [("rk4", {}), ("dopri5", {"t0": 1.0, "t1": 0.0, "return_steps": True})])
def test_the_gradient_is_that_of_the_steps(kind, scheme, how, plainly):
    found, gradients = run(kind, scheme, **how)
    plainly()
    expected, truth = run(kind, scheme, **how)
    assert all(map(torch.equal, found, expected))
    torch.testing.assert_close(gradients, truth, rtol=1e-10, atol=1e-13)


def test_memory_does_not_know_the_number_of_steps():
    field, y0, _ = field_of("tensor")
    sizes = []
    for n in (4, 32):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.numel()) or x, lambda x: x):
            rk_solve(field, y0.requires_grad_(), n_steps=n, checkpoint="reversible")
        sizes.append(sum(saved))
    assert sizes[0] == sizes[1]


def block(norm="group", checkpoint="reversible", **how):
    torch.manual_seed(0)
    field = cf.nn.ConvField(4, n_basis=3, norm=norm).to(D)
    return cf.nn.ContinuousBlock(field, scheme="rk4", n_steps=9, checkpoint=checkpoint, **how)


@pytest.mark.parametrize("norm", ["group", "none", "batch"])
def test_a_block_has_the_gradient_of_its_steps(norm, plainly):
    x, found = torch.randn(2, 4, 5, 5, dtype=D, requires_grad=True), []
    net = block(norm).train(norm != "batch")
    for change in (lambda: None, plainly):
        change()
        y = net(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, *net.parameters()])))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-11)
    exact = block(norm, "none").train(norm != "batch")
    exact.set_discretization(n_steps=36)
    torch.testing.assert_close(found[0][0], exact(x), rtol=0, atol=1e-3)


class Smooth(cf.nn.BasisModule):
    """dx/dt = theta(t) sin x, theta piecewise constant."""

    def __init__(self, basis):
        super().__init__(basis)
        self.nodal_parameter("scale", torch.tensor([1.0, -2.0, 3.0], dtype=D))

    def rate(self, weights, x):
        return sum(w * self.scale[k] for k, w in weights) * torch.sin(x)


def test_a_block_keeps_its_order_where_theta_jumps():
    x, ends = torch.randn(8, dtype=D), []
    field = Smooth(cf.nn.ConvField(2, n_basis=3).basis)
    for n, checkpoint in ((6, "reversible"), (12, "reversible"), (96, "none")):
        net = cf.nn.ContinuousBlock(field, scheme="rk4", n_steps=n, checkpoint=checkpoint)
        ends.append(net(x).detach())
    errors = [(y - ends[-1]).norm() for y in ends[:-1]]
    assert errors[0] / errors[1] > 12  # a stage on the wrong side of a jump leaves 2


def test_nodes_backwards_read_the_cell_of_their_step():
    grid = cf.time_grid("rk4_classic", 4, cf.nn.ConvField(2, n_basis=4).basis)
    times, weights = backward_nodes(grid)
    assert times[1] == (0.5, 0.375, 0.375, 0.25)
    assert all(slot == ((i, 1.0),) for i, step in enumerate(weights) for slot in step)


@pytest.mark.parametrize("wide", [{}, {"edge": "reference_fp32"}])
def test_blocks_are_refused_in_words(wide):
    x = torch.randn(2, 4, 5, 5, dtype=D)
    if wide:
        with pytest.raises(ValueError, match="edge: got 'reference_fp32' for steps that are undone"):
            block("none", **wide)(x)
        return
    with pytest.raises(ValueError, match="checkpoint: got 'reversible' with a ConvField that takes statistics of the"):
        block("batch")(x)
    dropout = cf.nn.ContinuousBlock(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), n_steps=2, checkpoint="reversible")
    with pytest.raises(ValueError, match=r"field: got a field that draws random numbers in Sequential.1, a Dropout"):
        dropout(torch.ones(2, 4))


def test_solves_are_refused_in_words():
    field, y0, _ = field_of("tensor")
    y0.requires_grad_()
    norm = nn.BatchNorm1d(3, dtype=D)
    with pytest.raises(ValueError, match="field: got a field that moves the running statistics of BatchNorm1d"):
        rk_solve(lambda t, y: norm(y), y0, n_steps=2, checkpoint="reversible")
    with pytest.raises(ValueError, match="compensated: got True with checkpoint='reversible'"):
        rk_solve(field, y0, n_steps=2, checkpoint="reversible", compensated=True)
    with pytest.raises(ValueError, match=r"checkpoint: got 'reversible' under torch.func"):
        torch.func.grad(lambda y: rk_solve(field, y, n_steps=2, checkpoint="reversible").sum())(y0)
    out = rk_solve(field, y0, n_steps=2, checkpoint="reversible")
    with pytest.raises(RuntimeError, match="field: a reversible gradient cannot be differentiated twice"):
        torch.autograd.grad(out.sum(), y0, create_graph=True)


def test_a_tensor_that_is_not_found_is_told():
    class Holder:
        __slots__ = ("w",)

    holder = Holder()
    holder.w = torch.ones(3, dtype=D, requires_grad=True)
    out = rk_solve(lambda t, y: y * holder.w, torch.ones(3, dtype=D), n_steps=2, checkpoint="reversible")
    assert not out.requires_grad


def test_values_are_those_without_a_gradient():
    field, y0, _ = field_of("tensor")
    with torch.no_grad():
        expected = rk_solve(field, y0, n_steps=3, checkpoint="reversible")
    torch.testing.assert_close(rk_solve(field, y0, n_steps=3, checkpoint="reversible"), expected)
