"""Each level of the cpu backend once, forward and backward, beside the reference: the rest is in test_cpu_*.py."""

from __future__ import annotations

import copy

import pytest
import torch

import contnet_fast as cf

pytestmark = pytest.mark.skipif("cpu" not in cf.available_backends(), reason="needs the C++ extension")


@pytest.mark.parametrize(
    ("request_", "norm", "training"),
    [("cpu:solve", "group", True), ("cpu:solve", "batch", False), ("cpu:stage", "batch", True)],
)
def test_a_block_equals_the_reference(request_, norm, training):
    torch.manual_seed(0)
    field = cf.nn.ConvField(8, n_basis=2, norm=norm)
    ours = cf.nn.ContinuousBlock(field, scheme="midpoint", n_steps=2, backend=request_).double().train(training)
    plain = copy.deepcopy(ours)
    plain.backend = "reference"
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    with cf.record_runs() as log:
        got = ours(x)
    assert f"conv_solve {request_}" in [f"{run.op} {run.backend}:{run.level}" for run in log]
    want = plain(x)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    for y in (got, want):
        y.square().sum().backward()
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-8, msg=name)
    for (name, p), q in zip(ours.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10, msg=name)


def test_a_combination_equals_the_reference():
    y, *ks = torch.randn(4, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = [cf.rk_combine(y, ks, [0.5, -1.0, 0.25], h=0.1, backend=name) for name in ("cpu", "reference")]
    torch.testing.assert_close(*found, rtol=1e-14, atol=1e-14)
