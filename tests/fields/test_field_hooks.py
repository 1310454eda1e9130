"""A block does to its field what a call of the module does at every evaluation: hooks, pruning, own methods."""

from __future__ import annotations

import copy
import io
from functools import partial

import pytest
import torch
from plain_nets import assert_same_step, batches, make_block, make_pair, step
from torch.nn.modules import module as torch_modules
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

import contnet_fast as cf
from contnet_fast.nn import ContinuousBlock, ConvField

old_weight_norm = torch.nn.utils.weight_norm
old_spectral_norm = torch.nn.utils.spectral_norm


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Every compiled block adds to the code that is kept of one method, up to a limit."""
    torch._dynamo.reset()


def parts(module):
    """The field, or the cells that stand for it."""
    return [module.field] if isinstance(module, ContinuousBlock) else list(module.cells)


# -- hooks that compute a tensor ---------------------------------------------------------------------------------------


def pruned(module, seed=3, share=0.5):
    masks = torch.rand(2, 4, 4, 3, 3, generator=torch.Generator().manual_seed(seed)).gt(share).float()
    if isinstance(module, ContinuousBlock):
        prune.custom_from_mask(module.field, "conv1_weight", masks)
    else:
        for cell, mask in zip(module.cells, masks, strict=True):
            prune.custom_from_mask(cell.conv1, "weight", mask)


def pruned_twice(module):
    pruned(module)
    pruned(module, seed=4, share=0.3)


def weight_normed(module):
    if isinstance(module, ContinuousBlock):
        old_weight_norm(module.field, "conv1_weight", dim=0)
    else:
        for cell in module.cells:
            old_weight_norm(cell.conv1, "weight", dim=None)


COMPUTED = {"prune": pruned, "prune twice": pruned_twice, "weight_norm": weight_normed}


@pytest.mark.parametrize("backend", ["auto", "reference", "cpu:stage"])
@pytest.mark.parametrize("kind", COMPUTED)
def test_a_tensor_that_a_hook_computes_is_computed_for_every_solve(kind, backend):
    block, plain = make_pair(backend=backend)
    for module in (block, plain):
        COMPUTED[kind](module)
    for x in batches():
        assert_same_step(block, plain, x)
        with torch.no_grad():
            for module in (block, plain):
                for name, parameter in module.named_parameters():
                    if "_orig" in name or "_g" in name:
                        parameter.mul_(0.9)
    x = batches(1, seed=9)[0]
    torch.testing.assert_close(block.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", COMPUTED)
def test_a_field_with_a_computed_tensor_stays_fused(kind):
    block = make_block()
    expected = [plan.level for _, plan in cf.explain(block, batches(1)[0]).units]
    COMPUTED[kind](block)
    before = block.field.conv1_weight
    assert [plan.level for _, plan in cf.explain(block, batches(1)[0]).units] == expected
    assert block.field.conv1_weight is before


def test_a_state_dict_of_a_pruned_field_counts():
    block, other = make_block(), make_block(seed=1)
    pruned(block), pruned(other)
    block.train()(batches(1)[0])
    other.load_state_dict(block.state_dict())
    x = batches(1, seed=9)[0]
    assert torch.equal(other.eval()(x), block.eval()(x))
    prune.remove(other.field, "conv1_weight")
    torch.testing.assert_close(other(x), block(x))


@pytest.mark.parametrize("kind", COMPUTED)
def test_a_computed_tensor_in_a_graph_is_copied_and_saved(kind):
    block = make_block()
    COMPUTED[kind](block)
    x = batches(1)[0]
    block.train()(x).sum().backward()
    buffer = io.BytesIO()
    torch.save(block, buffer)
    for other in (copy.deepcopy(block), torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)):
        assert not other.field.conv1_weight.requires_grad
        assert torch.equal(other.eval()(x), block.eval()(x))
        other.train()(x).sum().backward()


SMALL = {"backend": "reference", "scheme": "euler", "n_basis": 2, "n_steps": 2}


@pytest.mark.parametrize("kind", ["prune", "weight_norm"])
def test_a_compiled_block_computes_the_tensor_too(kind):
    blocks = [make_block(**SMALL) for _ in range(2)]
    for block in blocks:
        COMPUTED[kind](block)
    compiled = torch.compile(blocks[1].train(), fullgraph=True, backend="aot_eager")
    for x in batches():
        y, z = blocks[0].train()(x), compiled(x)
        torch.testing.assert_close(y, z)
        y.sum().backward(), z.sum().backward()
        with torch.no_grad():
            for block in blocks:
                for p in block.parameters():
                    p.sub_(0.01 * p.grad)
                block.zero_grad()


# -- hooks that run at every evaluation --------------------------------------------------------------------------------


def doubled(values):
    return tuple(2 * v if isinstance(v, torch.Tensor) else v for v in values)


def each(register):
    """The hook on the field, or on every cell."""
    return lambda module: [register(part) for part in parts(module)]


def on_norm(name, register):
    return lambda module: [register(getattr(part, name)) for part in parts(module)]


HOOKS = {
    "after": each(lambda m: m.register_forward_hook(lambda m, args, out: 0.5 * out)),
    "after, in place of nothing": each(lambda m: m.register_forward_hook(lambda m, args, out: None)),
    "after, always": each(lambda m: m.register_forward_hook(lambda m, args, out: 0.5 * out, always_call=True)),
    "after, with kwargs": each(
        lambda m: m.register_forward_hook(lambda m, args, kwargs, out: 0.5 * out + args[-1], with_kwargs=True)
    ),
    "before": each(lambda m: m.register_forward_pre_hook(lambda m, args: doubled(args))),
    "before, with kwargs": each(
        lambda m: m.register_forward_pre_hook(lambda m, args, kwargs: (doubled(args), kwargs), with_kwargs=True)
    ),
    "gradients": each(lambda m: m.register_full_backward_hook(lambda m, dx, dy: doubled(dx))),
    "gradients, before": each(lambda m: m.register_full_backward_pre_hook(lambda m, dy: doubled(dy))),
    "of a norm, after": on_norm("norm2", lambda m: m.register_forward_hook(lambda m, args, out: out + 0.1 * args[0])),
    "of a norm, gradients": on_norm("norm1", lambda m: m.register_full_backward_hook(lambda m, dx, dy: doubled(dx))),
    "before, and pruned": lambda m: (
        pruned(m),
        each(lambda p: p.register_forward_pre_hook(lambda m, a: doubled(a)))(m),
    ),
    "another forward": each(
        lambda m: setattr(m, "forward", lambda *args, old=m.forward, **kwargs: 0.5 * old(*args, **kwargs))
    ),
}


def another_rate(module):
    for part in parts(module):
        name = "rate" if isinstance(part, ConvField) else "forward"
        old = getattr(part, name)
        setattr(part, name, partial(lambda old, *args: 0.5 * old(*args), old))


HOOKS["another rate"] = another_rate


@pytest.mark.parametrize("checkpoint", ["none", "step", "block"])
@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_runs_at_every_evaluation(kind, checkpoint):
    block, plain = make_pair(checkpoint=checkpoint)
    for module in (block, plain):
        HOOKS[kind](module)
    for x in batches(2):
        assert_same_step(block, plain, x)
    x = batches(1, seed=9)[0]
    torch.testing.assert_close(block.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("scheme", ["euler", "rk4_classic"])
def test_a_hook_that_changes_nothing_changes_nothing(scheme, order):
    block, other = (make_block(scheme=scheme, order=order) for _ in range(2))
    other.field.register_forward_hook(lambda m, args, out: None)
    for x in batches(2):
        for ours, theirs in zip(step(other, x), step(block, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(other.buffers(), block.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_hooks_get_the_time_the_state_and_the_weights(norm):
    block = make_block(n_steps=2, scheme="rk4_classic", norm=norm)
    seen = []
    block.field.register_forward_pre_hook(lambda m, args, kwargs: seen.append((*args, kwargs)), with_kwargs=True)
    x = batches(1)[0]
    with torch.no_grad():
        block(x)
    assert [t for t, _, _ in seen] == [0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0]
    assert all(isinstance(t, float) for t, _, _ in seen)
    assert seen[0][1] is x
    assert [kwargs["weights"] for _, _, kwargs in seen] == [((0, 1.0),)] * 4 + [((1, 1.0),)] * 4
    assert block.trajectory(x).shape == (3, *x.shape)
    assert len(seen) == 16


def test_an_always_called_hook_runs_when_the_field_fails():
    block, seen = make_block(), []
    block.field.register_forward_hook(lambda m, args, out: seen.append(out), always_call=True)
    block.field.rate = lambda weights, x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        block(batches(1)[0])
    assert seen == [None]


def test_a_hook_that_returns_another_shape_is_an_error():
    block = make_block()
    block.field.register_forward_hook(lambda m, args, out: out[:1])
    with pytest.raises(ValueError, match="field"):
        block(batches(1)[0])


def test_a_compiled_block_runs_hooks():
    older = torch.__version__ < (2, 12)  # which do not trace it within a checkpoint (docs/guide.md)

    def hooked():
        block = make_block(**SMALL, **({"checkpoint": "none"} if older else {})).train()
        block.field.register_forward_hook(lambda m, args, out: 0.5 * out)
        return block

    eager, other = hooked(), hooked()
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for x in batches(2):
        torch.testing.assert_close(compiled(x), eager(x))
    torch.testing.assert_close(other.field.norm2_var, eager.field.norm2_var)


@pytest.mark.parametrize("checkpoint", ["none", "step", "block"])
def test_spectral_norm_iterates_at_every_evaluation_in_training_and_is_fused_in_evaluation(checkpoint):
    block, plain = make_pair(n_basis=1, checkpoint=checkpoint)
    torch.manual_seed(0)
    old_spectral_norm(block.field, "conv1_weight", dim=1)
    old_spectral_norm(plain.cells[0].conv1)
    for name in ("u", "v"):
        plain.cells[0].conv1.register_buffer(f"weight_{name}", getattr(block.field, f"conv1_weight_{name}").clone())
    for x in batches(2):
        assert_same_step(block, plain, x)
        torch.testing.assert_close(block.field.conv1_weight_u, plain.cells[0].conv1.weight_u)
    assert "SpectralNorm" in str(cf.explain(block, x))
    torch.testing.assert_close(block.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-4)
    assert "SpectralNorm" not in str(cf.explain(block, x))


# -- what is said about it ---------------------------------------------------------------------------------------------


def test_every_fused_level_says_why_it_does_not_run():
    def my_hook(module, args, out):
        return None

    block = make_block(backend="cpu:stage")
    block.field.register_forward_hook(my_hook)
    with pytest.raises(cf.BackendUnavailable, match=r"a hook that runs at every evaluation: .*my_hook"):
        block(batches(1)[0])
    block.backend = "auto"
    ((_, plan),) = cf.explain(block, batches(1)[0]).units
    refused = {f"{r.backend}:{r.level}": "; ".join(r.reasons) for r in plan.refused}
    for level in ("cpu:solve", "cpu:stage", "triton:solve", "triton:stage", "cuda:solve", "cuda:stage"):
        assert "my_hook" in refused[level]
    with cf.record_runs() as log:
        block(batches(1)[0])
    assert {run.level for run in log} <= {"none", "accumulate"}


def test_explaining_a_network_is_no_hook_of_its_fields():
    net = cf.models.ContinuousNet(3, 5, width=4, n_basis=2, n_steps=2, norm="group").eval()
    plan = cf.explain(net, torch.randn(2, 3, 8, 8))
    assert [name for name, _ in plan.units] == ["stem", *(f"stages.{i}" for i in range(6))]
    assert "hook" not in str(plan)


# -- hooks of all modules ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_a_hook_of_all_modules_runs_at_every_evaluation_of_the_field(kind):
    def of_fields(change):
        return lambda m, *args: change(*args) if type(m).__name__ in ("ConvField", "Cell") else None

    changes = {
        "forward": of_fields(lambda args, out: 0.5 * out),
        "forward_pre": of_fields(lambda args: doubled(args)),
        "full_backward": of_fields(lambda dx, dy: doubled(dx)),
        "full_backward_pre": of_fields(lambda dy: doubled(dy)),
    }
    block, plain = make_pair(checkpoint="none")
    handle = getattr(torch_modules, f"register_module_{kind}_hook")(changes[kind])
    try:
        assert_same_step(block, plain, batches(1)[0])
        assert "a hook of all modules" in str(cf.explain(block, batches(1)[0]))
    finally:
        handle.remove()
    assert "hook" not in str(cf.explain(block, batches(1)[0]))


def test_counters_of_torch_leave_the_solve_fused():
    block = make_block()
    levels = []
    for mode in (torch.no_grad(), FlopCounterMode(display=False)):
        with mode, torch.no_grad():
            levels.append([plan.level for _, plan in cf.explain(block.eval(), batches(1)[0]).units])
    assert levels[0] == levels[1]


# -- another basis -----------------------------------------------------------------------------------------------------


def parametrized(block):
    parametrizations.weight_norm(block.field, "conv1_weight")


REMOVED = {
    "prune": (pruned, lambda f: prune.remove(f, "conv1_weight"), "CustomFromMask.*prune.remove"),
    "weight_norm": (
        weight_normed,
        lambda f: torch.nn.utils.remove_weight_norm(f, "conv1_weight"),
        "WeightNorm.*remove_w",
    ),
    "spectral_norm": (
        lambda b: old_spectral_norm(b.field, "conv1_weight"),
        lambda f: torch.nn.utils.remove_spectral_norm(f, "conv1_weight"),
        "SpectralNorm.*remove_spectral_norm",
    ),
    "parametrization": (
        parametrized,
        lambda f: parametrize.remove_parametrizations(f, "conv1_weight"),
        "the parametrization _WeightNorm.*remove_parametrizations",
    ),
}


@pytest.mark.parametrize("transform", [cf.refine, lambda net: cf.project(net, n_basis=1)])
@pytest.mark.parametrize("kind", REMOVED)
def test_a_computed_tensor_is_refused_in_another_basis_with_the_cure(kind, transform):
    compute, remove, words = REMOVED[kind]
    block = make_block()
    compute(block)
    x = batches(1)[0]
    block.train()(x)
    with pytest.raises(ValueError, match=f"conv1_weight: got .*{words}"):
        transform(block)
    expected = block.eval()(x)
    remove(block.field)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)
    transform(block).train()(x).sum().backward()


def test_a_parametrized_field_is_read_once_a_solve_and_differentiated():
    block, plain = make_pair(checkpoint="none")
    parametrizations.weight_norm(block.field, "conv1_weight", dim=0)
    for cell in plain.cells:
        parametrizations.weight_norm(cell.conv1, "weight", dim=None)
    y, dx = step(block, batches(1)[0])
    expected, dx_expected = step(plain, batches(1)[0])
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dx, dx_expected, rtol=1e-3, atol=1e-4)
    ours = dict(block.field.named_parameters())["parametrizations.conv1_weight.original1"].grad
    theirs = [dict(c.named_parameters())["conv1.parametrizations.weight.original1"].grad for c in plain.cells]
    torch.testing.assert_close(ours, torch.stack(theirs), rtol=1e-3, atol=1e-4)
    x = batches(1)[0]
    assert torch.equal(copy.deepcopy(block).eval()(x), block.eval()(x))
