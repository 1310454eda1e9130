"""One wording for every refusal: the argument, what it got, what is accepted."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable

import torch

_OURS = ("contnet_fast", "torch", "contextlib")  # the last one calls generators that are our context managers


def warn(message: str) -> None:
    """A ``UserWarning`` that points at the line that called the package."""
    if torch.compiler.is_compiling():
        return
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def check_bool(argument: str, value: object) -> bool:
    """``value`` if it is a bool.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{argument}: got {value!r}, accepted: True or False")
    return value


class BackendUnavailable(RuntimeError):
    """The requested backend cannot serve this call; the message lists every reason."""


# what else our names are called, by other libraries and in papers; the first of ours that is accepted is suggested
_ALSO_CALLED = {
    # settings and options
    "lr": "learning_rate lr_rate lrate base_lr initial_lr eta",
    "lr_schedule": "scheduler schedule lr_scheduler learning_rate_schedule",
    "lr_decay": "gamma decay_factor",
    "lr_decay_epochs": "milestones lr_milestones decay_epochs",
    "warmup_epochs": "warmup warm_up",
    "weight_decay": "wd l2 decay",
    "batch_size": "batch bs batchsize train_batch_size per_device_batch_size",
    "epochs": "num_epochs n_epochs max_epochs nb_epochs",
    "n_steps": "steps num_steps n",
    "n_basis": "num_basis basis_functions k",
    "eps": "epsilon",
    "scheme": "method solver integrator",
    "schemes": "scheme method methods solver integrator",
    "steps": "n_steps num_steps",
    "model": "arch architecture network net backbone",
    "optimizer": "optim opt optimiser",
    "amp": "dtype precision mixed_precision fp16 bf16 half autocast",
    "device": "gpu gpus cuda accelerator",
    "grad_clip": "clip clip_grad max_norm gradient_clipping max_grad_norm",
    "label_smoothing": "smoothing",
    "augment": "augmentation aug data_augmentation",
    "flip": "hflip mirror horizontal_flip",
    "image_size": "img_size size resolution input_size resize",
    "image_mode": "in_channels input_channels grayscale greyscale gray grey rgb color colour image_channels",
    "gray": "grey l grayscale greyscale",
    "rgb": "color colour",
    "data": "dataset data_set",
    "data_path": "data_dir data_root dataset_path root path folder",
    "valid_fraction": "val_fraction val_split validation_split valid_split val_size",
    "limit": "subset max_images num_images",
    "depth": "layers num_layers n_layers",
    "width": "channels hidden planes",
    "widen_factor": "widen width_factor",
    "seed": "random_seed manual_seed",
    "t_end": "t1 end_time time integration_time length",
    "self_loops": "self_loop_weight loops add_self_loops",
    "input_dropout": "in_dropout feature_dropout",
    "largest_component": "lcc use_lcc",
    "neighbours": "neighbors knn n_neighbors",
    "out": "output output_dir out_dir save_dir log_dir run_dir outdir logdir",
    "resume": "continue resume_from",
    "recipe": "preset",
    "save_every": "checkpoint_every save_interval save_steps",
    "refine_epochs": "refine refinements",
    "split": "part subset",
    "project": "compress",
    "trials": "iterations tries",
    "checkpoint": "ckpt weights",
    "measure": "time timing benchmark",
    "rates": "peak roofline",
    # data sets and recipes
    "cifar10": "cifar cifar_10",
    "cifar100": "cifar_100",
    "mnist": "handwritten",
    "fashion_mnist": "fashion fmnist fashionmnist mnist_fashion",
    "folder": "imagefolder image_folder images pictures custom own",
    "valid": "val validation dev",
    # schemes
    "euler": "forward_euler explicit_euler rk1",
    "midpoint": "rk2 explicit_midpoint",
    "heun2": "heun trapezoid trapezoidal",
    "rk4_classic": "classic classical runge_kutta rungekutta runge_kutta4 kutta4 classic_rk4 classical_rk4",
    "bosh3": "bogacki_shampine rk23 rk3 bs3 ode23",
    "dopri5": "dopri dormand_prince rk45 rk5 ode45 dp5",
    "dopri8": "dop853 rk78",
    "tsit5": "tsitouras tsit tsitouras5",
    # bases, models, orders
    "piecewise_constant": "constant p0",
    "hat": "linear p1 fem",
    "wide_resnet": "wrn wideresnet",
    "continuousnet": "continuous continuous_net odenet neural_ode",
    "wide_continuousnet": "wide_continuous widecontinuousnet",
    "pre": "preactivation pre_activation",
    "post": "postactivation post_activation",
    "reference": "torch pytorch eager",
    # commands
    "train": "fit run",
    "eval": "evaluate test score predict",
    "info": "version env doctor",
    "validate": "check verify selftest",
    "recipes": "presets configs list",
    "demo": "example quickstart",
}
_MEANS: dict[str, list[str]] = {}
for _name, _words in _ALSO_CALLED.items():
    for _word in _words.split():
        _MEANS.setdefault(_word, []).append(_name)


def nearest(got: object, accepted: Iterable[str]) -> str | None:
    """The accepted name that ``got`` most likely means: another word for it, or one of both that is spelt nearly so."""

    def plain(word: str) -> str:
        return word.strip("-").lower().replace("-", "_")

    names, word = {plain(name): name for name in accepted}, plain(str(got))
    parts = [
        name
        for name in names
        if (len(word) > 2 or word.isdigit()) and (name.startswith(word) or word in name.split("_"))
    ]
    spelt = difflib.get_close_matches(word, names, n=1, cutoff=0.7 if len(word) > 4 else 0.6)
    others = [other for near in difflib.get_close_matches(word, _MEANS, n=1, cutoff=0.85) for other in _MEANS[near]]
    return next((names[name] for name in (word, *_MEANS.get(word, ()), *parts, *spelt, *others) if name in names), None)


def choice_error(argument: str, got: object, accepted: Iterable[str]) -> ValueError:
    """A ``ValueError`` that names the accepted values and, for a near miss, the nearest one."""
    names = list(accepted)
    near = nearest(got, names)
    hint = f" (did you mean {near!r}?)" if near else ""
    return ValueError(f"{argument}: got {got!r}, accepted: {', '.join(names)}{hint}")


def check_choice(argument: str, got: str, accepted: Iterable[str]) -> str:
    """Return ``got`` if it is one of ``accepted``, else raise :func:`choice_error`."""
    names = tuple(accepted)
    if not isinstance(got, str) or got not in names:
        raise choice_error(argument, got, names)
    return got


def check_count(argument: str, got: int, *, minimum: int = 1) -> int:
    """Return ``got`` if it is an integer (not a bool or a float) of at least ``minimum``."""
    if isinstance(got, bool) or not isinstance(got, int):
        raise TypeError(f"{argument}: got {got!r} ({type(got).__name__}), accepted: an int >= {minimum}")
    if got < minimum:
        raise ValueError(f"{argument}: got {got}, accepted: an int >= {minimum}")
    return got


def check_number(argument: str, got: float, *, positive: bool = False) -> float:
    """Return ``got`` as a finite float; with ``positive`` also greater than zero."""
    if isinstance(got, bool) or not isinstance(got, (int, float)):
        raise TypeError(f"{argument}: got {got!r} ({type(got).__name__}), accepted: a finite number")
    value = float(got)
    if value != value or value in (float("inf"), float("-inf")) or (positive and value <= 0.0):
        accepted = "a finite number > 0" if positive else "a finite number"
        raise ValueError(f"{argument}: got {got!r}, accepted: {accepted}")
    return value


def check_share(argument: str, value: float) -> float:
    """``value`` as a float if it is a number from 0 to below 1, as shares that are dropped are.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    if not 0 <= check_number(argument, value) < 1:
        raise ValueError(f"{argument}: got {value}, accepted: a number from 0 to below 1")
    return float(value)
