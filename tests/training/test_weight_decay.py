"""Weight decay leaves norms, biases and scalars alone where it is asked to: ours, timm's way and in training."""

from __future__ import annotations

import pytest
import torch

import contnet_fast as cf
from contnet_fast.models import ContinuousNet, PreActResNet, WideContinuousNet
from contnet_fast.training.build import build_model, build_optimizer
from contnet_fast.training.config import RECIPES, Config, make_config


def as_timm_groups(model):
    """The rule of timm's param_groups_weight_decay: one dimension, named bias, or on the model's list."""
    listed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return {n for n, p in named if not (p.ndim <= 1 or n.endswith(".bias") or n in listed)}


def decayed(groups, net):
    names = {id(p): n for n, p in net.named_parameters()}
    return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}


NETS = {
    "post": lambda: ContinuousNet(width=4, n_basis=2, n_steps=2, skip_init=True),
    "pre": lambda: ContinuousNet(width=4, n_basis=1, n_steps=1, order="pre", norm="group"),
    "wide": lambda: WideContinuousNet(width=2, n_basis=3, n_steps=3),
    "no norm": lambda: ContinuousNet(width=4, n_basis=2, n_steps=2, norm="none"),
}


@pytest.mark.parametrize("name", NETS)
def test_only_convolutions_and_the_classifier_decay(name):
    net = NETS[name]()
    weights = {
        n for n, _ in net.named_parameters() if "conv" in n or "shortcut" in n or n.startswith(("stem.0", "clas"))
    }
    weights = {n for n in weights if n.endswith("weight")}
    assert decayed(cf.parameter_groups(net, weight_decay=0.1), net) == weights
    assert as_timm_groups(net) == weights


def test_a_net_of_usual_layers_is_divided_as_ever():
    net = PreActResNet(depth=8, width=4)
    assert decayed(cf.parameter_groups(net, weight_decay=0.1), net) == as_timm_groups(net)


def test_a_model_of_ones_own_names_its_fields():
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = cf.nn.ContinuousBlock(cf.nn.ConvField(4, n_basis=2, skip_init=True), n_steps=2)
            self.head = torch.nn.Linear(4, 2)

        def no_weight_decay(self):
            return cf.no_weight_decay(self)

    assert as_timm_groups(Own()) == {"block.field.conv1_weight", "block.field.conv2_weight", "head.weight"}
    field = cf.nn.ConvField(4, n_basis=2)
    assert field.no_weight_decay() == {f"{n}{i}_{p}" for i in (1, 2) for n, p in _SMALL}


_SMALL = (("conv", "bias"), ("norm", "weight"), ("norm", "bias"))


def test_frozen_parameters_are_left_out_and_all_others_are_there_once():
    net = NETS["post"]()
    net.stem.requires_grad_(False)
    groups = cf.parameter_groups(net, weight_decay=0.1)
    found = [id(p) for group in groups for p in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in net.parameters() if p.requires_grad}


@pytest.mark.parametrize("value", [-1.0, "0.1", float("nan")])
def test_bad_input_names_the_argument(value):
    with pytest.raises((TypeError, ValueError), match="weight_decay: got"):
        cf.parameter_groups(NETS["pre"](), weight_decay=value)
    with pytest.raises(ValueError, match="weight_decay_on: got 'norms', accepted: all, weights"):
        Config(weight_decay_on="norms")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("on", ["all", "weights"])
def test_training_decays_what_the_settings_say(optimizer, on):
    config = Config(optimizer=optimizer, weight_decay_on=on, lr=0.5, weight_decay=0.1, width=4, n_basis=2)
    net = build_model(config, 1, 3)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    build_optimizer(config, net).step()
    for n, p in net.named_parameters():
        decays = on == "all" or n in decayed(cf.parameter_groups(net, weight_decay=1.0), net)
        torch.testing.assert_close(p, before[n] * (0.95 if decays else 1.0))


def test_recipes_decay_what_the_published_runs_decayed():
    assert all(make_config(recipe).weight_decay_on == "all" for recipe in RECIPES)
