"""Models inside wrappers are changed as the model itself would be, or refused with words that say what to change."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import contnet_fast as cf
from contnet_fast.models import ContinuousNet

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
REBASE = {
    "refine": cf.refine,
    "project": lambda net: cf.project(net, n_basis=1),
    "interpolate": lambda net: cf.interpolate(net, n_basis=3, basis="hat"),
}


def network():
    torch.manual_seed(0)
    net = ContinuousNet(1, 3, width=4, n_basis=2, n_steps=2)
    net(X)
    return net


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A process group of one."""
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def compiled(net):
    return torch.compile(net, backend="eager")


def compiled_in_place(net):
    net.compile(backend="eager")
    return net


def with_a_compiled_child(net):
    net.stages[3] = compiled(net.stages[3])
    return net


TRANSPARENT = {
    "torch.compile": compiled,
    "net.compile": compiled_in_place,
    "a compiled child": with_a_compiled_child,
    "DataParallel": torch.nn.DataParallel,
    "AveragedModel": AveragedModel,
    "Sequential": torch.nn.Sequential,
}


@pytest.mark.parametrize("wrapper", TRANSPARENT)
def test_wrappers_that_hold_no_parameters_of_their_own_go_along(wrapper):
    torch.compiler.reset()
    wrapped = TRANSPARENT[wrapper](network()).eval()
    before = wrapped(X)
    for change, rebase in REBASE.items():
        new = rebase(wrapped)
        expected = cf.set_discretization(rebase(network()), scheme="midpoint", n_steps=3).eval()
        assert type(new) is type(wrapped), change
        assert torch.equal(cf.set_discretization(new, scheme="midpoint", n_steps=3)(X), expected(X)), change
        assert torch.equal(wrapped(X), before), change


@pytest.mark.parametrize("wrapper", TRANSPARENT)
def test_another_graph_inside_a_wrapper_is_that_of_the_model(wrapper):
    torch.compiler.reset()
    wrapped = TRANSPARENT[wrapper](network()).eval()
    wrapped(X)
    expected = cf.set_discretization(network(), scheme="midpoint", n_steps=3).eval()(X)
    assert torch.equal(cf.set_discretization(wrapped, scheme="midpoint", n_steps=3)(X), expected)


def test_the_average_of_refined_weights_is_the_refined_average():
    net = network()
    averages = [AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9)) for _ in range(2)]
    later = copy.deepcopy(net)
    with torch.no_grad():
        for p in later.parameters():
            p.add_(torch.randn_like(p))
    averages[0].update_parameters(net)
    averages[1].update_parameters(net)
    finer = cf.refine(averages[0])
    finer.update_parameters(cf.refine(later))
    averages[1].update_parameters(later)
    assert finer.n_averaged == averages[1].n_averaged == 2
    for a, b in zip(finer.parameters(), cf.refine(averages[1]).parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("change", REBASE)
def test_a_reducer_is_refused_with_the_model_to_take(change, group):
    with pytest.raises(ValueError, match=r"^net: got DistributedDataParallel, .*accepted: .*\(net\.module\)"):
        REBASE[change](DistributedDataParallel(network()))
    net = torch.nn.Sequential(DistributedDataParallel(network()))
    with pytest.raises(ValueError, match=r"^net\.0: got DistributedDataParallel, .*accepted: .*\(net\.0\.module\)"):
        REBASE[change](net)
    with pytest.raises(ValueError, match="DistributedDataParallel"):
        REBASE[change](compiled(DistributedDataParallel(network())))


@pytest.mark.parametrize("change", REBASE)
def test_sharded_parameters_are_refused(change, group):
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    whole, child = network(), network()
    fully_shard(whole)
    fully_shard(child.stages[1])
    old = FullyShardedDataParallel(network(), use_orig_params=True, device_id=torch.device("cpu"))
    for net, words in [
        (whole, "net: got fully_shard,"),
        (child, r"net\.stages\.1: got fully_shard,"),
        (old, "net: got FullyShardedDataParallel,"),
    ]:
        with pytest.raises(ValueError, match=f"^{words} .*accepted: a plain model .*get_model_state_dict"):
            REBASE[change](net)


def test_a_part_of_a_parameter_is_refused(group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    net = network()
    with torch.no_grad():
        net.stages[1].field.conv1_bias = torch.nn.Parameter(net.stages[1].field.conv1_bias[:1])
    with pytest.raises(ValueError, match=r"net.stages.1.field.conv1_bias: got Parameter of shape \(1, 4\), accepted"):
        cf.refine(net)
    weight = distribute_tensor(net.stages[1].field.conv1_weight, init_device_mesh("cpu", (1,)), [Shard(0)])
    net.stages[1].field.conv1_weight = torch.nn.Parameter(weight)
    with pytest.raises(ValueError, match=r"net.stages.1.field.conv1_weight: got .*, accepted: a whole tensor"):
        cf.refine(net)
