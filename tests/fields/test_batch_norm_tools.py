"""Tools that look for torch.nn.BatchNorm2d do to a field what they do to the same net of plain modules."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from plain_nets import assert_same_statistics, batches, make_block, make_pair
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, update_bn

import contnet_fast as cf
from contnet_fast.nn import ContinuousBlock, ConvField
from contnet_fast.reference.ranks import Members, Ranks


def train(module, data):
    module.train()
    for x in data:
        module(x)
    return module


def norms(module):
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


# -- update_bn ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [
    {"scheme": "euler", "n_basis": 2, "n_steps": 2},
    {"scheme": "rk4_classic", "n_basis": 2, "n_steps": 4, "order": "post"},
    {"scheme": "midpoint", "n_basis": 1, "n_steps": 3, "momentum": None},
])  # fmt: skip
@pytest.mark.parametrize("stats", ["sequential", "projected"])
def test_update_bn_averages_over_the_loader(settings, stats):
    block, plain = make_pair(**settings)
    block.field.stats = stats
    train(block, batches(2, seed=5))
    plain.load(block.field)
    for module in (block, plain):
        update_bn(batches(), module.eval())
        assert not module.training
    assert_same_statistics(block, plain)
    assert block.field.momentum == settings.get("momentum", 0.1)
    x = batches(1, seed=8)[0]
    torch.testing.assert_close(block(x), plain(x), rtol=1e-4, atol=1e-4)


def test_update_bn_of_an_averaged_network():
    torch.manual_seed(0)
    net = cf.models.ContinuousNet(3, 5, width=4, n_basis=2, n_steps=2, scheme="euler")
    images = [torch.randn(4, 3, 8, 8) for _ in range(3)]
    average = AveragedModel(train(net, images))
    before = [b.clone() for b in average.buffers()]
    update_bn(images, average)
    fresh = copy.deepcopy(net)
    for norm in norms(fresh):
        norm.reset_running_stats()
        norm.momentum = None
    train(fresh, images)
    for ours, theirs in zip(average.module.buffers(), fresh.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not all(torch.equal(a, b) for a, b in zip(average.buffers(), before, strict=True))
    assert average.module.stages[1].field.num_batches_tracked.tolist() == [3, 3]


# -- modes -------------------------------------------------------------------------------------------------------------


def field_eval(module):
    for part in module.modules():
        if type(part).__name__ in ("ConvField", "Cell"):
            part.eval()


def norms_eval(module):
    for norm in norms(module):
        norm.eval()


def norms_frozen(module):
    norms_eval(module)
    for norm in norms(module):
        norm.weight.requires_grad_(False)
        norm.bias.requires_grad = False


def parameters_frozen(module):
    for norm in norms(module):
        norm.eval().requires_grad_(False)


def untracked(module):
    torch.func.replace_all_batch_norm_modules_(module)


def field_train_in_eval(module):
    module.eval()
    for part in module.modules():
        if type(part).__name__ in ("ConvField", "Cell"):
            part.train()


FREEZING = {
    "the field in eval": field_eval,
    "the norms in eval": norms_eval,
    "the norms frozen": norms_frozen,
    "parameters of the norms frozen": parameters_frozen,
    "only the outer module in eval": lambda m: setattr(m, "training", False),
    "the field in training, the rest in eval": field_train_in_eval,
    "momentum of each norm": lambda m: [setattr(n, "momentum", 0.5) for n in norms(m)],
    "eps of each norm": lambda m: [setattr(n, "eps", 0.1) for n in norms(m)],
    "weights set as initialisations do": lambda m: [nn.init.constant_(n.weight, 0.5) for n in norms(m)],
    "no gradients but of the norms": lambda m: [
        (m.requires_grad_(False), [n.weight.requires_grad_(True) for n in norms(m)])
    ],
    "reset": lambda m: [n.reset_parameters() for n in norms(m)],
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("freeze", FREEZING)
def test_a_mode_of_a_part_counts_as_in_plain_modules(freeze, backend):
    block, plain = make_pair(backend=backend)
    x = batches(1, seed=4)[0].requires_grad_()
    results = []
    for module in (block, plain):
        train(module, batches(2))
        FREEZING[freeze](module)
        y = module(x)
        y.square().sum().backward()
        grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        results.append((y, x.grad.clone(), {n.split(".")[-1 if module is block else -2] for n in grads}))
        x.grad = None
    (y, dx, ours), (expected, dx_expected, theirs) = results
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dx, dx_expected, rtol=1e-3, atol=1e-3)
    assert {n.split("_")[0] for n in ours} == theirs
    assert_same_statistics(block, plain, rtol=1e-4, atol=1e-5)


def test_statistics_that_are_not_tracked_are_those_of_the_batch():
    block, plain = make_pair(backend="reference")
    train(block, batches(2)), train(plain, batches(2))
    untracked(block), untracked(plain)
    before = [b.clone() for b in block.buffers()]
    x = batches(1, seed=4)[0]
    torch.testing.assert_close(block.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block.train()(x), plain.train()(x), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(block.buffers(), before, strict=True))


# -- what the modules are ----------------------------------------------------------------------------------------------


def test_names_of_parameters_and_of_the_state_dict_have_no_norm_twice():
    block = make_block()
    names = {n for n, _ in block.named_parameters()} | {n for n, _ in block.named_buffers()}
    assert names == block.state_dict().keys()
    assert not any("norm1." in name for name in names)
    block.load_state_dict(dict(block.state_dict()))  # without the versions of modules
    assert list(dict(make_block(norm="group").named_modules())) == ["", "field"]


def test_a_norm_shows_the_tensors_of_its_field():
    field = make_block().field
    assert field.norm1.weight is field.norm1_weight
    assert field.norm2.bias is field.norm2_bias
    assert field.norm1.running_mean is field.norm1_mean
    assert field.norm2.running_var is field.norm2_var
    assert field.norm1.num_features == 4
    assert field.norm1.eps == field.spec.norm_eps
    assert field.norm1.num_batches_tracked is field.num_batches_tracked
    assert [n for n, _ in field.norm1.named_parameters()] == ["weight", "bias"]
    assert list(field.norm1.buffers())[2] is field.num_batches_tracked
    assert not list(field.norm1.parameters(recurse=False))  # groups of parameters by module hold each once
    assert not field.norm1.state_dict()


def test_fusing_convolutions_with_norms_leaves_blocks_alone():
    torch.manual_seed(0)
    net = cf.models.ContinuousNet(3, 5, width=4, n_basis=2, n_steps=2)
    images = torch.randn(2, 3, 8, 8)
    train(net, [images]).eval()
    torch.testing.assert_close(fuse(net)(images), net(images), rtol=1e-4, atol=1e-4)


def parametrized(block):
    parametrize.register_parametrization(block.field, "norm1_weight", nn.Softplus())
    return copy.deepcopy(block)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b)), cf.refine, parametrized, copy.copy]
)
def test_a_copy_resets_its_own_statistics(copied):
    block = train(make_block(), batches(1))
    before = block.field.norm1_mean.clone()
    new = copied(block)
    if copied is copy.copy:  # which shares the field
        assert new.field.norm1.field is block.field
        return
    new.field.norm1.reset_running_stats()
    assert torch.equal(block.field.norm1_mean, before)
    assert new.field.norm1_mean.count_nonzero() == 0
    assert new.field.num_batches_tracked.count_nonzero() == 0
    train(new, batches(1))
    assert new.field.norm1_mean.count_nonzero() > 0


def test_a_field_is_freed_without_the_collector():
    gc.disable()
    try:
        field = make_block().field
        gone = weakref.ref(field)
        norm = field.norm1
        del field
        assert gone() is None
        with pytest.raises(RuntimeError, match="norm1: its field is gone"):
            norm.reset_running_stats()
    finally:
        gc.enable()


def test_a_reset_norm_of_polynomials_is_a_constant_of_depth():
    block = ContinuousBlock(ConvField(4, n_basis=3, basis="polynomial"), n_steps=2)
    train(block, batches(1))
    expected = ConvField(4, n_basis=3, basis="polynomial")
    for norm in norms(block):
        norm.reset_parameters()
    for name in ("norm1_weight", "norm1_bias", "norm1_mean", "norm1_var", "norm2_var"):
        assert torch.equal(getattr(block.field, name), getattr(expected, name)), name


def test_a_norm_cannot_be_called_or_replaced():
    block = make_block(backend="reference")
    with pytest.raises(TypeError, match=r"norm1: got a call, accepted: field\(t, x\)"):
        block.field.norm1(batches(1)[0])
    with pytest.raises(TypeError, match="norm2: got a device or dtype of its own"):
        block.field.norm2.half()
    block.double().float()
    block.field.norm1 = nn.Identity()
    with pytest.raises(TypeError, match="norm1: got Identity in place of the field's own norm"):
        block(batches(1)[0])


@pytest.mark.parametrize("frozen", [1, 2])
def test_norms_in_different_modes_are_evaluated_each_in_its_own(frozen):
    block, plain = make_pair()
    train(block, batches(2)), train(plain, batches(2))
    getattr(block.field, f"norm{frozen}").eval()
    for cell in plain.cells:
        getattr(cell, f"norm{frozen}").eval()
    x = batches(1, seed=4)[0]
    torch.testing.assert_close(block(x), plain(x), rtol=1e-4, atol=1e-4)
    field = block.field
    before, after = (getattr(field, f"norm{i}_mean") for i in (frozen, 3 - frozen))
    for k, cell in enumerate(plain.cells):
        torch.testing.assert_close(before[k], getattr(cell, f"norm{frozen}").running_mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after[k], getattr(cell, f"norm{3 - frozen}").running_mean, rtol=1e-4, atol=1e-4)
    assert "one norm of the field takes statistics of the batch" in str(cf.explain(block, x))


# -- across processes --------------------------------------------------------------------------------------------------


def test_convert_sync_batchnorm_synchronises_fields_and_leaves_their_names(monkeypatch):
    torch.manual_seed(0)
    net = cf.models.ContinuousNet(3, 5, width=4, n_basis=2, n_steps=2)
    names = list(net.state_dict())
    converted = copy.deepcopy(nn.SyncBatchNorm.convert_sync_batchnorm(net))
    assert list(converted.state_dict()) == names
    assert isinstance(converted.stem[1], nn.SyncBatchNorm)
    block = converted.stages[1]
    x = torch.randn(2, 4, 5, 5)
    block.train()(x)
    monkeypatch.setattr(Members, "now", lambda self: Ranks("some group", 2))
    make_block().train()(x)  # was not converted
    block.eval()(x)
    with pytest.raises(RuntimeError, match="some group"):  # to which it sends
        block.train()(x)
