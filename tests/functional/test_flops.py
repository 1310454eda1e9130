"""FlopCounterMode counts for our ops what it counts for the reference, forward and backward."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import contnet_fast as cf
from contnet_fast.fields import CONV
from contnet_fast.models import ContinuousNet
from contnet_fast.nn import ContinuousBlock, ConvField
from contnet_fast.ops import fused_solve

X = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(1))


def counts(call, x, backend):
    """Operations of the forward and of the backward pass."""
    with cf.use_backend(backend):
        with FlopCounterMode(display=False) as forward:
            y = call(x)
        with FlopCounterMode(display=False) as backward:
            y.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def block(**options):
    names = ("scheme", "n_steps", "checkpoint")
    solve = {"n_steps": 2, "scheme": "midpoint", **{name: options.pop(name) for name in names if name in options}}
    return ContinuousBlock(ConvField(4, n_basis=2, **options), **solve)


def level(norm, training):
    return "cpu:stage" if norm == "batch" and training else "cpu:solve"


@pytest.mark.parametrize("checkpoint", ["none", "step", "block"])
@pytest.mark.parametrize(("norm", "training"), [("batch", True), ("batch", False), ("group", True), ("none", True)])
@pytest.mark.parametrize("order", ["pre", "post"])
def test_a_solve_counts_as_the_reference(order, norm, training, checkpoint):
    for skip, bias in ((False, True), (True, False)):
        net = block(order=order, norm=norm, checkpoint=checkpoint, skip_init=skip, bias=bias).train(training)
        for x in (X, X.clone().requires_grad_()):
            expected = counts(net, x, "reference:none")
            assert min(expected) > 0
            assert counts(net, x, level(norm, training)) == expected


@pytest.mark.parametrize("checkpoint", ["none", "step"])
@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize(
    "wanted", [(), ("conv1_weight",), ("conv2_weight",), ("conv2_bias",), ("norm2_bias",), ("skip", "norm1_weight")]
)
def test_each_wanted_gradient_counts_as_in_the_reference(wanted, order, checkpoint):
    net = block(order=order, norm="batch", checkpoint=checkpoint, skip_init=True)
    for name, p in net.field.named_parameters():
        p.requires_grad_(any(name.endswith(part) for part in wanted))
    for x in (X, X.clone().requires_grad_()):
        if wanted or x.requires_grad:
            assert counts(net, x, "cpu:stage") == counts(net, x, "reference:none")


@pytest.mark.parametrize("scheme", ["euler", "heun3", "rk4_classic", "dopri5"])
def test_every_scheme_counts_its_stages(scheme):
    for steps, basis in ((1, "piecewise_constant"), (2, "hat")):
        net = block(scheme=scheme, n_steps=steps, norm="group", basis=basis)
        assert counts(net, X, "cpu:solve") == counts(net, X, "reference:none")
        assert counts(net.trajectory, X, "cpu:solve") == counts(net.trajectory, X, "reference:none")


def test_an_empty_batch_counts_nothing():
    net = block(norm="group").eval()
    assert counts(net, X[:0], "cpu:solve") == counts(net, X[:0], "reference:none") == (0, 0)


@pytest.mark.parametrize("backend", ["cpu", "triton", "cuda"])
@pytest.mark.parametrize(("order", "norm", "level"), [("pre", "batch", "stage"), ("post", "group", "solve")])
def test_the_op_of_every_backend_counts_as_the_reference(order, norm, level, backend):
    if f"contnet_fast::conv_solve_{backend}" not in torch._C._dispatch_get_all_op_names():
        pytest.skip(f"needs the ops of {backend}")
    net = block(order=order, norm=norm, checkpoint="step")
    expected = counts(net, X, "reference:none")
    net.to("meta")

    def solve(x):
        settings = {"spec": net.field.spec, "grid": net.grid, "training": True, "checkpoint": "step"}
        fixed = {"backend": backend, "level": level, "return_steps": False, "compute_dtype": x.dtype}
        return fused_solve(CONV, x, net.field.nodes(), **settings, **fixed)[0]  # on the meta device nothing runs

    assert counts(solve, X.to("meta"), "auto") == expected


def test_a_network_counts_as_the_reference_and_by_module():
    net = ContinuousNet(width=4, n_basis=2, n_steps=2)
    x = torch.randn(2, 3, 8, 8)
    assert counts(net, x, "auto") == counts(net, x, "reference")
    with FlopCounterMode(display=False) as counter:
        net(x)
    by_module = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    assert by_module["ContinuousNet.stages.1"] == 2 * 4 * 2 * (2 * 9 * 4 * 4 * 2 * 8 * 8)


def test_other_fields_count_what_they_do():
    mlp = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    net = ContinuousBlock(lambda t, u: mlp(u) * t, scheme="rk4", n_steps=3, checkpoint="none")
    x = torch.randn(5, 3)
    assert counts(net, x, "auto") == counts(net, x, "reference:none")
    times = torch.linspace(0, 1, 3)

    def solve(y):
        return cf.odeint(lambda t, u: mlp(u), y, times, rtol=1e-2, atol=1e-3)

    assert counts(solve, x, "auto") == counts(solve, x, "reference:none")


def test_every_registered_op_has_a_formula():
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("contnet_fast::")]
    assert len(names) > 4
    for name in names:
        assert getattr(torch.ops.contnet_fast, name.partition("::")[2]) in flop_registry, name


@pytest.mark.parametrize("first", ["contnet_fast", "torch.utils.flop_counter"])
def test_formulas_are_there_whichever_is_imported_first(first):
    code = f"""
import sys, importlib
import {first}
early = "torch.utils.flop_counter" in sys.modules
import contnet_fast, torch.utils.flop_counter
finders = [type(f).__module__ for f in sys.meta_path if type(f).__module__.startswith("contnet_fast")]
print(early, torch.ops.contnet_fast.rk_combine_reference in torch.utils.flop_counter.flop_registry, finders)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == [str(first != "contnet_fast"), "True", "[]"]
