"""Running statistics move as those of nn.BatchNorm2d, whatever was done to the module before."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from plain_nets import SETTINGS, PlainBlock, assert_same_statistics, batches, make_block, make_pair
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import fully_shard

from contnet_fast.fields.conv import statistics
from contnet_fast.nn import ContinuousBlock
from contnet_fast.schemes.bases import Basis
from contnet_fast.schemes.timegrid import time_grid


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Every compiled block adds to the code that is kept of one method, up to a limit."""
    torch._dynamo.reset()


def train(module, data):
    module.train()
    for x in data:
        module(x)
    return module


def set_momentum(plain, value):
    for norm in plain.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = value


def on_meta(module, **options):
    """Built without memory, then filled from a state dict."""
    with torch.device("meta"):
        new = make_block() if isinstance(module, ContinuousBlock) else PlainBlock(**SETTINGS)
    if not options:
        new.to_empty(device="cpu")
        for buffer in new.buffers():  # what to_empty leaves is anything
            buffer.fill_(3)
    new.load_state_dict(module.state_dict(), **options)
    return new


def load_by_assign(module):
    module.load_state_dict(copy.deepcopy(module.state_dict()), assign=True)
    return module


def after_inference_mode(module):
    """First used where tensors that are made cannot be used in training."""
    statistics._kept.cache_clear()
    with torch.inference_mode():
        return train(module, batches(1, seed=7))


def after_fake_tensors(module):
    """First used where tensors that are made have no values."""
    if not isinstance(module, ContinuousBlock):  # a cumulative nn.BatchNorm2d reads its count
        return module
    statistics._kept.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        state = {n: mode.from_tensor(t) for n, t in (*module.named_parameters(), *module.named_buffers())}
        torch.func.functional_call(module.train(), state, mode.from_tensor(batches(1)[0]))
    return module


TREATMENTS = {
    "nothing": lambda m: m,
    "bfloat16 and back": lambda m: m.bfloat16().float(),
    "half and back": lambda m: m.half().float(),
    "double and back": lambda m: m.double().float(),
    "meta, to_empty, load": on_meta,
    "meta, load by assign": lambda m: on_meta(m, assign=True),
    "load by assign": lambda m: (m.load_state_dict(copy.deepcopy(m.state_dict()), assign=True), m)[1],
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "inference mode": after_inference_mode,
    "fake tensors": after_fake_tensors,
    "trained in bfloat16": lambda m: train(m.bfloat16(), [batches(1)[0].bfloat16()]).float(),
}


@pytest.mark.parametrize("treatment", TREATMENTS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_treatment_leaves_statistics_those_of_batch_norm(treatment, momentum):
    block, plain = (TREATMENTS[treatment](train(m, batches(2, seed=5))) for m in make_pair(momentum=momentum))
    if "meta" in treatment:  # which builds new ones
        block.field.momentum = momentum
        set_momentum(plain, momentum)
    loose = {"rtol": 0.05, "atol": 0.05} if treatment == "trained in bfloat16" else {}
    assert_same_statistics(train(block, batches()), train(plain, batches()), **loose)


@pytest.mark.parametrize("compiled", [False, True])
def test_momentum_may_change_between_batches(compiled):
    block, plain = make_pair(backend="reference")
    call = torch.compile(block.train(), fullgraph=True, backend="aot_eager") if compiled else block.train()
    for x, momentum in zip(batches(4), (0.1, 0.01, None, 0.7), strict=True):
        block.field.momentum = momentum
        set_momentum(plain, momentum)
        call(x)
        plain.train()(x)
        assert_same_statistics(block, plain)


def test_the_rule_may_change_between_batches():
    first, other = make_block(), make_block(stats="projected")
    train(first, batches(2))
    other.load_state_dict(first.state_dict())
    before = first.field.norm1_mean.clone()
    first.field.stats = "projected"
    x = batches(1, seed=9)[0]
    train(first, [x]), train(other, [x])
    assert torch.equal(first.field.norm1_mean, other.field.norm1_mean)
    assert not torch.allclose(first.field.norm1_mean, before)


@pytest.mark.parametrize("momentum", [1.5, -0.1, float("nan"), "0.1", True])
def test_a_momentum_that_is_none_is_refused_and_changes_nothing(momentum):
    block = make_block()
    with pytest.raises((TypeError, ValueError), match="momentum: got"):
        block.field.momentum = momentum
    assert block.field.momentum == 0.1


@pytest.mark.parametrize("stats", ["sequential", "projected"])
def test_the_first_cumulative_batch_replaces_what_was_there(stats):
    """A variance of 1e-9 survives: it is not what is left of one minus almost one."""
    block = make_block(n_basis=2, n_steps=2, scheme="euler", momentum=None, stats=stats)
    x = batches(1)[0] * 1e-5
    train(block, [x])
    torch.testing.assert_close(block.field.norm1_var[0], x.var((0, 2, 3)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("basis", ["hat", "piecewise_linear", "polynomial"])
@pytest.mark.parametrize("stats", ["sequential", "projected"])
def test_a_cumulative_average_in_any_basis_is_the_mean_of_the_fits(basis, stats):
    grid = time_grid("rk4", 4, Basis(basis, 4))
    matrix = torch.from_numpy(statistics.statistics_map(grid, stats, None))
    counts = torch.tensor([grid.evaluations(k) for k in range(4)])
    nodal, tracked = torch.randn(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    seen = [torch.randn(16, 3, dtype=torch.float64) for _ in range(5)]
    for batch in seen:
        share = statistics.cumulative_share(tracked, counts, torch.float64)
        nodal = statistics.update_statistics(nodal, batch, matrix, share)
        tracked += counts
    phi = torch.zeros(16, 4, dtype=torch.float64)
    for j, slot in enumerate(slot for step in grid.weights for slot in step):
        for k, w in slot:
            phi[j, k] = w
    torch.testing.assert_close(nodal, torch.linalg.lstsq(phi, sum(seen) / 5).solution)


def test_a_compiled_block_moves_the_statistics_of_an_eager_one():
    eager, other = make_block(backend="reference"), make_block(backend="reference")
    compiled = torch.compile(other.train(), fullgraph=True)
    for x in batches():
        eager.train()(x)
        compiled(x)
    for ours, theirs in zip(other.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_threads_that_come_first_together_get_the_same():
    statistics._kept.cache_clear()
    blocks = [make_block().train() for _ in range(4)]
    threads = [threading.Thread(target=train, args=(block, batches())) for block in blocks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for block in blocks:
        assert torch.equal(block.field.norm1_mean, blocks[0].field.norm1_mean)
        assert block.field.num_batches_tracked.tolist() == [6, 6]


def test_every_buffer_is_in_the_state_dict():
    """Nothing that to_empty would empty and load_state_dict would not fill."""
    block = make_block()
    assert {name for name, _ in block.named_buffers()} <= block.state_dict().keys()


def test_a_first_use_while_a_graph_is_captured_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    flat = time_grid("euler", 1).flat
    with pytest.raises(RuntimeError, match="run the same call once before the capture"):
        statistics.statistics_tensors(
            flat.counts, flat.cells, flat.weights, 1, "sequential", "0.1", torch.float32, torch.device("cuda")
        )


def test_a_published_grid_can_be_made_for_a_block_on_meta():
    time_grid.__globals__["_cached_grid"].cache_clear()
    with torch.device("meta"):
        block = make_block()
        block.set_discretization(edge="reference_fp32", n_steps=3)
    assert block.grid.edge == "reference_fp32"


def test_a_sharded_block_that_was_built_on_meta(one_process):
    block, plain = make_pair()
    with torch.device("meta"):
        sharded = make_block()
    fully_shard(sharded, mesh=one_process)
    sharded.to_empty(device="cpu")
    set_model_state_dict(sharded, block.state_dict(), options=StateDictOptions(full_state_dict=True))
    for x in batches():
        sharded.train()(x).sum().backward()
        plain.train()(x)
    assert_same_statistics(sharded, plain)
