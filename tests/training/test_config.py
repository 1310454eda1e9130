"""Settings: every field from a recipe, a TOML file or text; impossible values name what is accepted."""

from __future__ import annotations

import dataclasses
import re

import pytest

from contnet_fast.training import RECIPES, Config, make_config
from contnet_fast.training.config import FIELDS, IMAGES, parse


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_possible(name):
    config = make_config(name)
    assert all(getattr(config, key) == value for key, value in RECIPES[name].items())
    assert Config(**config.as_dict()) == config


def test_toml_overrides_the_recipe_and_options_override_both(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('recipe = "digits-euler"\nlr = 0.3\nepochs = 9\nlr_decay_epochs = [4, 6]\n')
    config = make_config(toml=path, overrides={"epochs": "12"})
    assert (config.scheme, config.lr, config.epochs, config.lr_decay_epochs) == ("euler", 0.3, 12, (4, 6))
    assert make_config("digits", toml=path, overrides={"refine_epochs": ()}).scheme == "rk4_classic"


def test_the_data_set_brings_its_recipe():
    assert make_config(overrides={"data": "cifar10"}).epochs == RECIPES["cifar10"]["epochs"]
    told: list[str] = []
    assert make_config(overrides={"data": "cifar10", "model": "resnet"}, tell=told.append).refine_epochs == ()
    assert told == ["recipe cifar10: left out refine_epochs 30, 50, 70 (not for model resnet)"]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("epochs", [1, "2", 40])
def test_a_recipe_is_shortened_by_epochs_alone(name, epochs):
    told: list[str] = []
    config, whole = make_config(name, overrides={"epochs": epochs}, tell=told.append), RECIPES[name]
    end = int(epochs)
    assert config.epochs == end
    for field in ("refine_epochs", "lr_decay_epochs"):
        assert getattr(config, field) == tuple(e for e in whole.get(field, ()) if e < end)
    assert config.warmup_epochs == (whole.get("warmup_epochs", 0.0) if end > 1 else 0.0)
    beyond = [v for f in ("refine_epochs", "lr_decay_epochs") for v in whole.get(f, ()) if v >= end]
    assert bool(told) == bool(beyond or (end == 1 and whole.get("warmup_epochs")))
    assert all(f"{v}" in told[0] for v in beyond)
    if whole["data"] in IMAGES:
        model = make_config(name, overrides={"model": "resnet", "depth": 20}, tell=told.append)
        assert model.refine_epochs == ()


def test_what_the_user_asked_for_is_refused_where_a_recipe_is_shortened(tmp_path):
    told: list[str] = []
    config = make_config("digits", overrides={"epochs": 1}, tell=told.append)
    assert told == [
        "recipe digits: left out refine_epochs 8, 16 (the run has 1 epoch); warmup_epochs 1 (the run has 1 epoch)"
    ]
    assert (config.epochs, config.refine_epochs, config.warmup_epochs) == (1, (), 0.0)
    path = tmp_path / "run.toml"
    path.write_text("refine_epochs = [8]\n")
    for words in ({"refine_epochs": "8"}, {"lr_decay_epochs": "3"}, {"warmup_epochs": "1"}):
        with pytest.raises(ValueError, match=f"{next(iter(words))}: got"):
            make_config("digits", overrides={"epochs": 1, **words}, tell=told.append)
    with pytest.raises(ValueError, match="refine_epochs: got 8, accepted: epochs before the end of the run, 1"):
        make_config("digits", toml=path, overrides={"epochs": 1}, tell=told.append)
    with pytest.warns(UserWarning, match="recipe digits: left out refine_epochs 16") as caught:
        assert make_config("digits", overrides={"epochs": 12}).refine_epochs == (8,)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "0.5", 0.5),
        ("lr", "1", 1.0),
        ("epochs", "7", 7),
        ("refine_epochs", "2,4", (2, 4)),
        ("refine_epochs", "", ()),
        ("random_discretization", "euler:2, rk4:4 euler:2", ("euler:2", "rk4:4", "euler:2")),
        ("eps", "none", None),
        ("eps", "8", 8.0),
        ("augment", "false", False),
        ("data_path", "a b", "a b"),
        ("data_path", "none", None),
    ],
)
def test_texts_become_values(name, text, value):
    assert parse(name, text) == value
    assert type(parse(name, text)) is type(value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"lr": "nan"}, "lr: got nan, accepted: a finite number > 0"),
        ({"lr": "-1"}, "lr: got -1.0"),
        ({"lr": "fast"}, "lr: got 'fast', accepted: a finite number"),
        ({"lr": 0}, "lr: got 0"),
        ({"epochs": "0"}, "epochs: got 0, accepted: an int >= 1"),
        ({"epochs": "2.5"}, "epochs: got '2.5', accepted: an int"),
        ({"epochs": 2.5}, "epochs: got 2.5"),
        ({"epochs": True}, "epochs: got True"),
        ({"n_steps": "-1"}, "n_steps: got -1, accepted: an int >= 1"),
        ({"scheme": "rk5"}, "scheme: got 'rk5', accepted: euler"),
        ({"scheme": "rk4_clasic"}, "did you mean 'rk4_classic'"),
        ({"basis": "spline"}, "basis: got 'spline', accepted: piecewise_constant"),
        ({"data": "cifar"}, "data: got 'cifar', accepted: digits"),
        ({"amp": "float8"}, "amp: got 'float8', accepted: none, bfloat16, float16"),
        ({"augment": "perhaps"}, "augment: got 'perhaps', accepted: true or false"),
        ({"refine_epochs": "99"}, "refine_epochs: got 99, accepted: epochs before the end of the run, 24"),
        ({"refine_epochs": "4,2"}, "accepted: increasing epochs"),
        ({"refine_epochs": "2,x"}, "accepted: comma-separated ints"),
        ({"refine_epochs": [1.5]}, "refine_epochs: got"),
        ({"refine_epochs": "0"}, "refine_epochs: got"),
        ({"random_discretization": "euler"}, "random_discretization: got 'euler', accepted: SCHEME:N with N >= 1"),
        ({"random_discretization": "euler:2,euler:0"}, "got 'euler:0', accepted: SCHEME:N with N >= 1"),
        ({"random_discretization": "eulr:2"}, "random_discretization: got 'eulr'...did you mean 'euler'"),
        ({"random_discretization": [2]}, "random_discretization: got (2,), accepted: comma-separated texts"),
        (
            {"model": "resnet", "refine_epochs": "", "random_discretization": "euler:2"},
            "random_discretization: got ('euler:2',) with model 'resnet', accepted: none",
        ),
        ({"momentum": "1.0"}, "momentum: got 1.0, accepted: a number below 1"),
        ({"ema": "1"}, "ema: got 1.0"),
        ({"warmup_epochs": "24"}, "warmup_epochs: got 24.0, accepted: less than epochs"),
        ({"model": "resnet", "refine_epochs": "2"}, "with model 'resnet', accepted: none"),
        ({"nesterov": "true", "momentum": "0"}, "nesterov: got True with momentum 0"),
        ({"batch_size": "1"}, "batch_size: got 1"),
        ({"learning_rate": "0.1"}, "setting: got 'learning_rate'...did you mean 'lr'"),
        ({"Weight-Decay": "0.1"}, "did you mean 'weight_decay'"),
        ({"scheme": "RK45"}, "did you mean 'dopri5'"),
        ({"scheme": "rk4-classic"}, "did you mean 'rk4_classic'"),
        ({"data": "CIFAR-10"}, "did you mean 'cifar10'"),
        ({"epoch": 3}, "did you mean 'epochs'"),
    ],
)
def test_impossible_values_name_the_field_and_what_is_accepted(overrides, words):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words.split("...")))):
        make_config("digits", overrides=overrides)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("lr = fast", "accepted: a TOML file"),
        ("lrr = 0.1", "did you mean 'lr'"),
        ('recipe = "digit"', "recipe: got 'digit', accepted: digits"),
        ("lr = '0.1x'", "lr: got '0.1x'"),
        (b"\xff\xfe", "accepted: a TOML file"),
    ],
)
def test_bad_toml_is_named(tmp_path, content, words):
    path = tmp_path / "run.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words):
        make_config(toml=path)
    with pytest.raises(ValueError, match=r"config: got .*readable TOML file"):
        make_config(toml=tmp_path / "absent.toml")


def test_learning_rate_schedules():
    cosine = make_config("digits", overrides={"epochs": 10, "warmup_epochs": 2.0, "refine_epochs": (), "lr": 1.0})
    assert cosine.learning_rate(1.0) == pytest.approx(0.5)
    assert cosine.learning_rate(2.0) == pytest.approx(1.0)
    assert cosine.learning_rate(6.0) == pytest.approx(0.5)
    assert cosine.learning_rate(10.0) == pytest.approx(0.0, abs=1e-12)
    assert cosine.learning_rate(0.0) > 0
    step = dataclasses.replace(cosine, lr_schedule="step", lr_decay_epochs=(4, 6), warmup_epochs=0.0)
    assert [step.learning_rate(e) for e in (3.9, 4.0, 6.0)] == pytest.approx([1.0, 0.1, 0.01])
    assert dataclasses.replace(cosine, lr_schedule="constant").learning_rate(9.9) == 1.0


def test_every_field_says_what_it_is():
    assert all(field.metadata["help"] for field in FIELDS.values())
