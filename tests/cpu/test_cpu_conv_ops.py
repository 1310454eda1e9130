"""The ops of whole solves keep PyTorch's contract, and packed weights are never older than the weights."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import torch

import contnet_fast as cf
from contnet_fast import extension
from contnet_fast.backends import cpu
from contnet_fast.fields import CONV, Call
from contnet_fast.fields.conv.cpu import kept_maps, padded_channels
from contnet_fast.fields.conv.spec import ConvNodes, ConvSpec
from contnet_fast.fields.conv.triton.plan import host_grid
from contnet_fast.fields.family import NoOperands
from contnet_fast.nn import ContinuousBlock, ConvField
from contnet_fast.ops import lookup
from contnet_fast.schemes.timegrid import FlatGrid, time_grid

pytestmark = pytest.mark.skipif("cpu" not in cf.available_backends(), reason="needs the C++ extension to be built")

ROOT = Path(__file__).resolve().parents[2]
CHANNELS = 5
DIFFERENTIABLE = [i for i in range(len(ConvNodes._fields)) if i not in CONV.running_places]
CASES = [
    ("pre", "batch", True, "step", "stage"),
    ("post", "batch", True, "none", "stage"),
    ("pre", "batch", False, "none", "solve"),
    ("post", "group", True, "block", "solve"),
    ("pre", "none", False, "", "solve"),
]


def arguments(order, norm, training, keep, level, dtype=torch.float32):
    torch.manual_seed(0)
    field = ConvField(CHANNELS, n_basis=2, order=order, norm=norm, skip_init=True).to(dtype)
    with torch.no_grad():
        field.skip.fill_(0.7)
    grid = time_grid("midpoint", 2, field.basis)
    nodes = ConvNodes._make(None if t is None else t.detach() for t in field.nodes())
    call = Call(CONV, image(), nodes, NoOperands(), field.spec, training, grid.flat, keep, level)
    return call.arguments[1:]


def image(layout="contiguous", dtype=torch.float32):
    x = torch.randn(2, CHANNELS, 4, 6, dtype=dtype)
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "slice":
        return torch.randn(2, CHANNELS, 8, 7, dtype=dtype)[:, :, ::2, 1:]
    return x[:0] if layout == "empty" else x


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice", "empty"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_opcheck(case, layout):
    rest = arguments(*case)
    for return_steps in (False, True):
        torch.library.opcheck(lookup("conv_solve", "cpu"), (image(layout), *rest, return_steps))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES[:4], ids=lambda case: "-".join(map(str, case)))
def test_opcheck_of_the_backward_pass(case, layout, dtype):
    rest = arguments(*case, dtype=dtype)
    x = image(layout, dtype)
    y, _, saved = lookup("conv_solve", "cpu")(x, *rest, False)
    wanted = [i for i in DIFFERENTIABLE if rest[0][i] is not None]
    grad = torch.randn(y.shape, dtype=dtype)
    torch.library.opcheck(lookup("conv_solve_backward", "cpu"), (grad, x, *rest, saved, wanted))


WORDS = {"order": "Pre", "norm": "Batch", "keep": "steps", "level": "Solve", "products": "float32"}


@pytest.mark.parametrize("argument", WORDS)
def test_words_that_no_backend_knows_are_refused(argument):
    rest = arguments(*CASES[1])
    x = image()
    y, _, saved = lookup("conv_solve", "cpu")(x, *rest, False)
    given = dict(zip(("order", "norm"), rest[2], strict=True)) | dict(
        zip(("keep", "level", "products"), rest[-3:], strict=True)
    )
    order, norm, *last = (given | {argument: WORDS[argument]}).values()
    wrong = (*rest[:2], [order, norm], *rest[3:-3], *last)
    message = rf"conv_solve_cpu: {argument}: got '{WORDS[argument]}', accepted: '.*'"
    with pytest.raises(ValueError, match=message):
        lookup("conv_solve", "cpu")(x, *wrong, False)
    with pytest.raises(ValueError, match=message.replace("solve_cpu", "solve_backward_cpu")):
        lookup("conv_solve_backward", "cpu")(y, x, *wrong, saved, [0])


GRIDS = {
    "shared": ([1, 2, 1], [0, 0, 1, 0], [1.0, 0.5, 0.5, 1.0]),
    "equal in float32 alone": ([1, 1], [0, 0], [1.0, 1.0 + 2.0**-40]),
    "zeros": ([2, 1, 2], [0, 2, 0, 1, 0], [1.0, 0.0, 1.0, -0.0, 1.0]),
    "twice the same": ([2, 1], [1, 1, 1], [0.25, 0.75, 1.0]),
    "another order": ([2, 2], [0, 2, 2, 0], [0.1, 0.9, 0.9, 0.1]),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_evaluations_share_slots_as_in_python(grid):
    counts, cells, weights = GRIDS[grid]
    slot_of, slots = extension.module.slots_of(counts, cells, weights, 3)
    flat = FlatGrid(tuple(counts), tuple(cells), tuple(weights), (0.0,), (1.0,), len(counts))
    expected = host_grid(flat, 3)
    assert tuple(slot_of) == expected.slot_of
    dense = [[dict(slot).get(k, 0.0) for k in range(3)] for slot in slots]
    assert dense == [list(mix) for mix in expected.mix]


@pytest.mark.parametrize("wrong", [([1], [3], [1.0]), ([2], [0], [1.0]), ([1], [0, 1], [1.0, 1.0]), ([1], [-1], [1.0])])
def test_a_time_grid_that_does_not_fit_the_nodes_is_refused(wrong):
    with pytest.raises(IndexError, match=r"outside the nodes|of other sizes"):
        extension.module.slots_of(*wrong, 3)


def test_what_is_saved_for_backward_is_read_only_to_the_kernels():
    """The C++ compiler holds it, unless somebody casts const away."""
    sources = [path for end in ("h", "cpp") for path in (ROOT / "csrc").rglob(f"*.{end}")]
    assert sources
    assert not [path.name for path in sources if "const_cast" in path.read_text()]


@pytest.mark.parametrize("channels", [1, 4, 5, 8, 9, 16, 17, 33, 64])
@pytest.mark.parametrize(("order", "keep"), [("pre", "step"), ("post", "none"), ("pre", "none"), ("post", "block")])
def test_python_knows_the_maps_that_are_kept(channels, order, keep):
    field = ConvField(channels, n_basis=1, order=order, norm="none")
    grid = time_grid("rk4", 3, field.basis)
    nodes = ConvNodes._make(None if t is None else t.detach() for t in field.nodes())
    x = torch.zeros(1, channels, 2, 3)
    call = Call(CONV, x, nodes, NoOperands(), field.spec, False, grid.flat, keep, "solve")
    _, kept = lookup("conv_solve", "cpu")(*call.arguments, False)[2]
    assert kept.shape == (kept_maps(order, keep, 3, 4), 1, 2, 3, padded_channels(channels))


def block(channels=6, **options):
    torch.manual_seed(1)
    return ContinuousBlock(ConvField(channels, n_basis=2, norm="none"), **{"scheme": "euler", "n_steps": 2, **options})


def same_as_reference(net, x):
    with torch.no_grad():
        with cf.use_backend("cpu"):
            y = net(x)
        with cf.use_backend("reference"):
            torch.testing.assert_close(y, net(x), rtol=1e-4, atol=1e-5)
    return y


WRITES = {
    "in place": lambda w: w.mul_(1.5),
    "through data": lambda w: w.data.mul_(1.5),
    "a copy through data": lambda w: w.data.copy_(w.data * 0.5),
    "one cell through data": lambda w: w.data[1].add_(0.1),
    "new storage": lambda w: setattr(w, "data", w.data * 1.5),
    "detached": lambda w: w.detach().zero_(),
    "one kernel": lambda w: w[1, 2, 3].add_(0.5),
    "one value through data": lambda w: w.data[0, 2, 1, 0, 0].add_(0.5),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("channels", [4, 20, 64])
def test_changed_weights_are_packed_anew(write, channels):
    if write == "one value through data" and channels == 64:
        pytest.skip("needs weights of at most 65,536 values: larger ones are compared by samples")
    net, x = block(channels), torch.randn(2, channels, 5, 5)
    before = same_as_reference(net, x)
    for _ in range(2):
        with torch.no_grad():
            WRITES[write](net.field.conv2_weight)
        assert not torch.equal(same_as_reference(net, x), before)


def test_weights_made_for_each_call_are_told_apart():
    net, x = block(64), torch.randn(1, 64, 4, 4)
    grid, weight = net.grid, net.field.conv2_weight.detach()
    outs = []
    for i in range(6):
        masked = weight.clone()  # likely where the one before was
        masked[0, 1, i] = 0.0
        nodes = net.field.nodes()._replace(conv2_weight=masked)
        with torch.no_grad():
            outs.append(cf.functional.conv_solve(x, nodes, spec=net.field.spec, grid=grid, backend="cpu")[0])
            y = cf.functional.conv_solve(x, nodes, spec=net.field.spec, grid=grid, backend="reference")[0]
        torch.testing.assert_close(outs[-1], y, rtol=1e-4, atol=1e-5)
        del masked, nodes
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(outs))


def test_training_and_evaluation_take_turns():
    net, x = block(), torch.randn(2, 6, 5, 5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(3):
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        same_as_reference(net, x)


def test_packed_weights_are_told_apart(isa):
    x = torch.randn(2, 6, 5, 5)
    nets = [block(), block(scheme="rk4"), block(n_steps=1), block().double(), block(20)]
    with torch.no_grad():
        nets[0].field.conv1_weight.add_(0.1)
    for _ in range(2):
        for net in nets:
            channels = net.field.spec.channels
            same_as_reference(net, x.to(net.field.conv1_weight.dtype) if channels == 6 else torch.randn(1, 20, 3, 3))


def test_many_blocks_and_weights_that_come_and_go():
    for i in range(100):
        net = block()
        with torch.no_grad():
            net.field.conv1_weight.add_(0.001 * i)
        same_as_reference(net, torch.randn(1, 6, 3, 3))


def test_inference_tensors_are_served():
    with torch.inference_mode():
        net = block()
        same_as_reference(net, torch.randn(1, 6, 3, 3))


def test_weights_beyond_the_memory_for_all_slots_at_once():
    torch.manual_seed(0)
    field = ConvField(144, n_basis=3, basis="hat", norm="group", skip_init=True)
    with torch.no_grad():
        field.skip.fill_(0.5)
    results = []
    for backend in ("reference", "cpu"):  # 31 different theta(t) of 5.3 MB and more
        net = ContinuousBlock(field, scheme="euler", n_steps=31, backend=backend)
        x = torch.randn(1, 144, 2, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
        y = net(x)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad.clone() for p in net.parameters())])
        net.zero_grad()
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_a_profiler_sees_the_maps_that_wait_for_backward():
    net, x = block(16, checkpoint="none"), torch.randn(8, 16, 16, 16, requires_grad=True)
    with cf.use_backend("cpu"), torch.profiler.profile(profile_memory=True) as profile:
        y = net(x)
    events = profile.profiler.kineto_results.events()
    held = sum(e.nbytes() for e in events if e.name() == "[memory]") - y.nbytes
    own = {t.data_ptr() for t in (x, *net.parameters())}
    kept = sum(t.nbytes for t in y.grad_fn.saved_tensors if t is not None and t.data_ptr() not in own)
    assert held == pytest.approx(kept, rel=0.05)
    assert kept >= 3 * x.nbytes


@pytest.mark.skipif("ASAN_OPTIONS" in os.environ, reason="needs a build without the address sanitizer")
def test_working_memory_is_held_for_the_next_call_and_can_be_released():
    net, x = block(32, scheme="rk4"), torch.randn(8, 32, 16, 16, requires_grad=True)
    with cf.use_backend("cpu"):
        net(x).sum().backward()
    assert 0 < cpu._extension.pooled_bytes() <= 256 << 20
    cpu._extension.release_pool()
    assert cpu._extension.pooled_bytes() == 0


def test_norms_that_a_field_without_norm_is_given_are_left_unread_as_by_the_reference():
    field = ConvField(CHANNELS, n_basis=2, norm="group")
    leaves = [None if t is None else t.detach().requires_grad_() for t in field.nodes()]
    nodes = ConvNodes._make(leaves)
    spec = ConvSpec(CHANNELS, "post", "none")
    grid, x = time_grid("midpoint", 2, field.basis), image()
    found = {}
    for backend in ("cpu:solve", "reference:none"):
        y, _ = cf.functional.conv_solve(x, nodes, spec=spec, grid=grid, backend=backend)
        given = [t for t in leaves if t is not None]
        found[backend] = torch.autograd.grad(y.square().sum(), given, allow_unused=True)
    assert [t is None for t in found["cpu:solve"]] == [t is None for t in found["reference:none"]]
    for got, wanted in zip(*found.values(), strict=True):
        if wanted is not None:
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
