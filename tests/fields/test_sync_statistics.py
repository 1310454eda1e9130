"""Batch statistics across ranks: several processes equal one process with the global batch.

Processes are forked once for each number of them; each runs every case and stores what it found.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_cases
import torch
from rank_cases import COMPILED, FUSED, IMAGES, KINDS, SIZES, after_steps, batch, network, part_of, prepared, states
from torch import nn

import contnet_fast as cf
from contnet_fast import extension
from contnet_fast.testing import assert_within_budget


@pytest.fixture(scope="module", params=SIZES)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """By rank, what every case found."""
    world, folder = request.param, tmp_path_factory.mktemp("ranks")
    command = [sys.executable, rank_cases.__file__, str(world), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(world)]


def assert_equals(parts: list[dict[str, Any]], truth: dict[str, Any]) -> None:
    """Outputs of the parts together, the sum of their gradients, and the buffers of each."""
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(torch.cat([part["outputs"] for part in parts], 1), truth["outputs"], **close)
    for name, expected in truth["gradients"].items():
        total = sum(part["gradients"][name] for part in parts)
        torch.testing.assert_close(total, expected, msg=lambda m, n=name: f"{n}: {m}", **close)
    for part in parts:
        for name, expected in truth["buffers"].items():
            torch.testing.assert_close(part["buffers"][name], expected, **close)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_equal_one_process_with_the_whole_batch(found, kind):
    assert_equals([of_rank[kind] for of_rank in found], after_steps(prepared(kind), slice(0, IMAGES)))


@pytest.mark.skipif(extension.module is None, reason="the C++ extension is not there")
@pytest.mark.parametrize(("kind", "backend"), FUSED)
def test_fused_solves_equal_one_process_too_also_beside_ranks_of_another_backend(found, kind, backend):
    assert_equals([of_rank[f"{kind}, {backend}"] for of_rank in found], after_steps(prepared(kind), slice(0, IMAGES)))


@pytest.mark.skipif(extension.module is None, reason="the C++ extension is not there")
@pytest.mark.parametrize("kind", ["post", "pre"])
def test_fused_solves_in_float32_round_no_more_than_pytorch(found, kind):
    parts = [of_rank[f"{kind}, float32"] for of_rank in found]
    exact = after_steps(prepared(kind), slice(0, IMAGES))
    single = [after_steps(prepared(kind).float(), order, torch.float32) for order in (slice(0, IMAGES),)]
    whole = torch.cat([part["outputs"] for part in parts], 1)
    assert_within_budget(whole, exact["outputs"], [run["outputs"] for run in single], name="outputs", factor=4.0)
    scale = max(gradient.abs().max().item() for gradient in exact["gradients"].values())
    for name, expected in exact["gradients"].items():
        total = sum(part["gradients"][name] for part in parts)
        runs = [run["gradients"][name] for run in single]
        assert_within_budget(total, expected, runs, name=name, factor=4.0, scale=scale)
    for name, expected in exact["buffers"].items():
        if expected.is_floating_point():
            runs = [run["buffers"][name] for run in single]
            assert_within_budget(parts[0]["buffers"][name], expected, runs, name=name, factor=4.0)


def test_running_statistics_stay_where_no_rank_has_an_image(found):
    before = [buffer for buffer in network().buffers() if buffer.is_floating_point()]
    for of_rank in found:
        for after in of_rank["nobody"].values():
            for got, expected in zip(after, before, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_a_recomputation_sends_nothing_and_messages_are_small(found):
    for of_rank in found:
        for checkpoint, (forward, backward, evaluation) in of_rank["counts"].items():
            norms = 1 + 3 + 3 * 2 * (2 * 4)  # stem, stitches, two norms of 8 evaluations in 3 blocks
            assert (len(forward), len(backward), len(evaluation)) == (norms, norms, 0), checkpoint
            assert max(forward) == 4 * (1 + 2 * 16)
            assert max(backward) == 4 * (1 + 2 * 16)
    net = network(torch.float32, backend="auto")
    predicted = cf.explain(net, batch(torch.float32)[0], device="H100", world_size=2).ranks
    forward, backward, _ = found[0]["counts"]["step"]
    assert sorted(predicted.step.statistics) == sorted(forward + backward)


def test_every_rank_has_the_same_bits(found):
    for of_rank in found[1:]:
        for first, other in zip(found[0]["bits"], of_rank["bits"], strict=True):
            assert torch.equal(first, other)


def test_local_statistics_are_averaged_over_ranks_after_a_forward_pass(found):
    world, x = len(found), batch()[0]
    nets = [network() for _ in found]
    for rank, net in enumerate(nets):
        part = x[part_of(rank, world)] if SIZES[world][rank] else x[:1]
        expected = net(part)
        net(part), net(part)
        expected.sum().backward()
        torch.testing.assert_close(found[rank]["local"]["outputs"], expected.detach(), rtol=1e-10, atol=1e-10)
        for name, parameter in net.named_parameters():  # that running statistics moved is nothing to backward
            torch.testing.assert_close(found[rank]["local"]["gradients"][name], parameter.grad, rtol=1e-10, atol=1e-10)
    for name in (name for name, buffer in network().named_buffers() if buffer.is_floating_point()):
        mean = sum(dict(net.named_buffers())[name] for net in nets) / world
        for of_rank in found:
            torch.testing.assert_close(of_rank["local"]["buffers"][name], mean, rtol=1e-10, atol=1e-10)
    assert all(of_rank["local"]["messages"] == 0 for of_rank in found)  # of evaluations
    assert all(of_rank["local"]["hooks"] == (1, 0) for of_rank in found)


@pytest.mark.parametrize("found", [2], indirect=True)
@pytest.mark.parametrize(("sync", "backend", "compiler"), COMPILED)
def test_one_graph_of_a_compiler_computes_the_same_and_moves_the_same_statistics(found, sync, backend, compiler):
    """Messages are in the graph: ranks of other sizes, which have other graphs, send as many in the same order."""
    for of_rank in found:
        plain, graph = of_rank["compiled"][sync, backend, compiler]
        assert plain.keys() == graph.keys()
        for name, expected in plain.items():
            torch.testing.assert_close(graph[name], expected, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    first, second = (of_rank["compiled"][sync, backend, compiler][1] for of_rank in found)
    assert torch.equal(first["1.running_mean"], second["1.running_mean"])


def test_distributed_data_parallel_averages_the_local_gradients_of_gains_and_biases(found):
    truth = after_steps(network(), slice(0, IMAGES))["gradients"]
    for of_rank in found:
        for name, expected in truth.items():
            torch.testing.assert_close(len(found) * of_rank["averaged"][name], expected, rtol=1e-10, atol=1e-10)


def test_torchs_converter_synchronises_fields(found):
    outputs = torch.cat([of_rank["of torch"]["outputs"] for of_rank in found])
    torch.testing.assert_close(outputs, network().stages[1](states()).detach(), rtol=1e-10, atol=1e-10)


def test_a_group_of_some_ranks(found):
    world = len(found)
    ends = [*range(IMAGES)[part_of(0, world)], *range(IMAGES)[part_of(world - 1, world)]]
    assert_equals([found[rank]["of two"] for rank in (0, world - 1)], after_steps(network(), ends))


def test_steps_that_each_rank_chooses_are_refused_in_words(found):
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    field = network().stages[1].field
    fixed = cf.odeint(field, states(), t, method="rk4", options={"step_size": 0.5})[-1].detach()
    whole = torch.cat([of_rank["in odeint"]["fixed"] for of_rank in found])
    torch.testing.assert_close(whole, fixed, rtol=1e-10, atol=1e-10)
    for of_rank in found:
        for name in ("adaptive", "closure", "rows", "dense", "event"):
            assert "accepted there: a method of fixed steps without events" in of_rank["in odeint"][name]


def test_what_does_not_see_messages_is_refused_in_words(found):
    for of_rank in found:
        told = of_rank["refusals"]
        assert "norm: got statistics across ranks under torch.func" in told["torch.func"]
        assert "batch statistics across ranks cannot be differentiated twice" in told["twice"]
        for backend in ("triton", "cuda"):
            assert "batch statistics across ranks need a message between the passes" in told[backend]


# ---- in one process


def test_one_process_is_left_as_it_is():
    net, plain = cf.nn.convert_sync_statistics(network()), network()
    assert list(net.state_dict()) == list(plain.state_dict())
    for kind in ("evaluation", "local"):
        cf.nn.convert_sync_statistics(net, sync=kind)
        torch.testing.assert_close(net(batch()[0]), plain(batch()[0]), rtol=0, atol=0)


def test_other_batch_norms_and_other_words_are_refused():
    with pytest.raises(TypeError, match=r"model: got BatchNorm1d at 1, accepted: batch norms of fields and"):
        cf.nn.convert_sync_statistics(nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm1d(3)))
    with pytest.raises(ValueError, match="sync: got 'step', accepted: evaluation, local"):
        cf.nn.convert_sync_statistics(network(), sync="step")
    with pytest.raises(TypeError, match=r"process_group: got str, accepted: a torch\.distributed\.ProcessGroup"):
        cf.nn.convert_sync_statistics(network(), "world")


def test_a_module_in_two_places_stays_one():
    norm = nn.BatchNorm2d(3)
    net = cf.nn.convert_sync_statistics(nn.Sequential(norm, nn.Sequential(norm)))
    assert net[0] is net[1][0]
    assert net[0].weight is norm.weight
