"""Series on graphs at irregular times: each sample beside a loop over its own arrivals in dense matrices."""

from __future__ import annotations

import pickle

import pytest
import torch
from dense_graphs import permuted, reordered, rk4, small_graph

import contnet_fast as cf
from contnet_fast.models import GCDEGRU, GCGRU

CLOSE = {"rtol": 1e-11, "atol": 1e-11}
SAMPLES, ARRIVALS, NODES, FEATURES, HIDDEN = 3, 4, 6, 2, 5


def make(kind=GCDEGRU, **options):
    torch.manual_seed(0)
    net = kind(FEATURES, HIDDEN, 3, **options).double()
    for parameter in net.parameters():
        parameter.data.normal_().mul_(0.4)
    return net


def series():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(SAMPLES, ARRIVALS, NODES, FEATURES, generator=generator, dtype=torch.float64)
    times = torch.rand(SAMPLES, ARRIVALS, generator=generator, dtype=torch.float64).cumsum(1)
    mask = torch.rand(SAMPLES, ARRIVALS, NODES, generator=generator) < 0.6
    mask[0, 2:], times[0, 2:] = False, times[0, 1]  # this sample ends early
    mask[1, 1] = False  # asked for, not observed
    return values, times, mask, small_graph(NODES, 12)


def one_sample(net, values, times, mask, graph):
    """[T, n, out] of one sample."""
    a = graph.to_dense()

    def conv(layer, u):
        return torch.cat([u, a @ u], 1) @ layer.weight.T + layer.bias

    h, found = torch.zeros(NODES, HIDDEN, dtype=torch.float64), []
    for k in range(len(times)):
        span = times[k] - times[k - 1] if k else torch.zeros_like(times[0])
        ago = [span.expand(NODES, 1)] if type(net) is GCGRU else []
        if isinstance(net, GCDEGRU):
            field = net.block.field

            def rate(t, u, field=field, span=span):
                for i in (1, 2):
                    u = u.tanh() if i == 2 else u
                    u = torch.cat([u, a @ u], 1) @ getattr(field, f"weight{i}")[0] + getattr(field, f"bias{i}")[0]
                return span * u

            h = rk4(rate, h, net.block.n_steps)[-1]
        out = torch.cat([h, *ago], 1)
        out = (out @ net.readout[0].weight.T + net.readout[0].bias).tanh()
        found.append(out @ net.readout[2].weight.T + net.readout[2].bias)
        if not mask[k].any():
            continue
        seen = mask[k][:, None].double()
        x = torch.cat([torch.where(mask[k][:, None], values[k], 0.0), seen, *ago], 1)
        gates = conv(net.gates.linear, torch.cat([x, h], 1)).sigmoid()
        z, r = gates[:, :HIDDEN], gates[:, HIDDEN:]
        c = conv(net.candidate.linear, torch.cat([x, r * h], 1)).tanh()
        h = z * h + (1 - z) * c
    return torch.stack(found)


@pytest.mark.parametrize("kind", [GCDEGRU, GCGRU])
def test_a_batch_is_its_samples_one_by_one(kind):
    net, (values, times, mask, graph) = make(kind), series()
    y = net(values, times, mask, graph)
    assert y.shape == (SAMPLES, ARRIVALS, NODES, 3)
    each = [one_sample(net, *(part[i] for part in (values, times, mask)), graph) for i in range(SAMPLES)]
    torch.testing.assert_close(y, torch.stack(each), **CLOSE)
    found, wanted = (torch.autograd.grad(out.square().sum(), list(net.parameters())) for out in (y, torch.stack(each)))
    torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("kind", [GCDEGRU, GCGRU])
def test_predictions_do_not_see_what_they_predict_nor_what_is_masked(kind):
    net, (values, times, mask, graph) = make(kind), series()
    y = net(values, times, mask, graph)
    later = values.clone()
    later[:, 2:] = 7.0
    torch.testing.assert_close(net(later, times, mask, graph)[:, :3], y[:, :3], rtol=0, atol=0)
    hidden = torch.where(mask[..., None], values, torch.nan).requires_grad_()
    other = net(hidden, times, mask, graph)
    torch.testing.assert_close(other, y, rtol=0, atol=0)
    (by_values,) = torch.autograd.grad(other.sum(), hidden)
    assert by_values.isfinite().all()
    assert (by_values[~mask] == 0).all()
    assert (by_values[:, 0][mask[:, 0]] != 0).any()


def test_an_arrival_without_observations_only_asks():
    net, (values, times, mask, graph) = make(), series()
    cf.set_discretization(net, scheme="dopri5", n_steps=12)
    y = net(values, times, mask, graph)
    keep = [0, 2, 3]  # sample 1 observes nothing at arrival 1: leaving it out changes the solve by its error alone
    without = net(values[1:2, keep], times[1:2, keep], mask[1:2, keep], graph)
    torch.testing.assert_close(without, y[1:2, keep], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", [GCDEGRU, GCGRU])
def test_numbers_of_nodes_and_times_mean_nothing_by_themselves(kind):
    net, (values, times, mask, graph) = make(kind), series()
    y, order = net(values, times, mask, graph), torch.randperm(NODES)
    torch.testing.assert_close(net(values, times, mask, reordered(graph, order)), y, **CLOSE)
    renamed = net(values[:, :, order], times, mask[:, :, order], permuted(graph, order))
    torch.testing.assert_close(renamed, y[:, :, order], **CLOSE)
    torch.testing.assert_close(net(values, times + 100.0, mask, graph), y, rtol=1e-9, atol=1e-9)
    everything = torch.ones_like(mask)
    assert torch.equal(net(values, times, None, graph), net(values, times, everything, graph))


@pytest.mark.parametrize("checkpoint", ["none", "step"])
def test_gradients_by_values_and_times(checkpoint):
    net, (values, times, mask, graph) = make(n_steps=1, checkpoint=checkpoint), series()
    leaves = [values[1:, :3].clone().requires_grad_(), times[1:, :3].clone().requires_grad_()]
    assert torch.autograd.gradcheck(lambda v, t: net(v, t, mask[1:, :3], graph), leaves, fast_mode=True)


def test_the_flow_can_be_refined_discretised_anew_and_kept():
    net, inputs = make(n_basis=2, n_steps=2), series()
    y = net(*inputs)
    for other in (cf.refine(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other(*inputs), y, **CLOSE)
    cf.set_discretization(net, n_steps=16)
    finer = net(*inputs)
    cf.set_discretization(net, scheme="dopri5")
    torch.testing.assert_close(net(*inputs), finer, rtol=1e-5, atol=1e-5)


def test_refusals_name_the_argument():
    net, (values, times, mask, graph) = make(), series()
    raw = small_graph(NODES, 12, normalised=False)
    falling = times.flip(1)
    cases = [
        (TypeError, "graph: got Tensor", (values, times, mask, graph.edge_index)),
        (ValueError, "graph: got one that is not normalised", (values, times, mask, raw)),
        (TypeError, "times: got list", (values, times.tolist(), mask, graph)),
        (ValueError, r"values: got shape \(3, 4, 6, 1\)", (values[..., :1], times, mask, graph)),
        (TypeError, "graph: got dtype torch.float64", (values.float(), times, mask, graph)),
        (ValueError, "times: got torch.float64", (values, times[:, 1:], mask, graph)),
        (ValueError, "times: got some that fall in sample 0", (values, falling, mask, graph)),
        (ValueError, "times: got some that fall", (values, times * torch.nan, mask, graph)),
        (ValueError, "mask: got torch.float32", (values, times, mask.float(), graph)),
    ]
    for error, message, given in cases:
        with pytest.raises(error, match=message):
            net(*given)
    with pytest.raises(ValueError, match="hidden: got 0"):
        GCDEGRU(2, 0)
