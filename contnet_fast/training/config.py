"""The settings of a training run: a frozen dataclass, recipes as presets, TOML files and command-line overrides."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import choice_error, warn
from ..fields.conv.spec import NORMS, ORDERS
from ..fields.conv.statistics import STATS
from ..functional.chebyshev import CHEBYSHEV
from ..reference.rk import CHECKPOINTS
from ..schemes.bases import ALIASES as BASIS_ALIASES
from ..schemes.bases import BASES
from ..schemes.tableaus import ALIASES, SCHEMES
from ..schemes.timegrid import EDGES
from .recipes import RECIPES

IMAGE_MODELS = ("continuousnet", "wide-continuousnet", "resnet", "wide-resnet")
NODE_MODELS = ("cgnn", "wcgnn", "gde", "grand", "gcn")
SERIES_MODELS = ("gcde-gru", "gc-gru")
MODELS = (*IMAGE_MODELS, *NODE_MODELS, *SERIES_MODELS)
CONTINUOUS = tuple(model for model in MODELS if model not in ("resnet", "wide-resnet", "gcn", "gc-gru"))
IMAGES = ("digits", "cifar10", "cifar100", "mnist", "fashion-mnist", "synthetic", "folder")
PLANETOID = ("cora", "citeseer", "pubmed")
NODES = (*PLANETOID, "karate", "block-model", "digits-neighbours", "cifar10-neighbours", "neighbours")
SERIES = ("irregular",)
DATASETS = (*IMAGES, *NODES, *SERIES)


def _option(
    default: Any, text: str, *, choices: Sequence[str] = (), low: float | None = None, high: float | None = None
) -> Any:
    """Return a field with its help text and the values that it accepts; ``low`` and ``high`` are inclusive."""
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices, "low": low, "high": high})


_TINY = math.ulp(0.0)
OPTIMIZERS = ("sgd", "adamw", "adam", "adamax", "rmsprop")
FORMS = ("repository", "paper")


@dataclass(frozen=True)
class Config:
    """All settings of a run. Every field can be set in a TOML file and on the command line."""

    data: str = _option("digits", "data set; folder: pictures of your own, one folder a class", choices=DATASETS)
    data_path: str | None = _option(None, "folder or file of the data set (default: data/<name>)")
    valid_fraction: float = _option(0.1, "share of the training images kept for validation", low=0.01, high=0.5)
    limit: int = _option(0, "use at most this many training images (0: all)", low=0)
    image_size: int = _option(0, "side of the square that a folder's pictures are resized to (0: as they are)", low=0)
    image_mode: str = _option("auto", "colours of a folder's pictures", choices=("auto", "rgb", "gray"))
    flip: bool | None = _option(None, "augmentation mirrors images (default: as the data set says)")

    model: str = _option("continuousnet", "network", choices=MODELS)
    width: int = _option(16, "channels of the first stage; of a graph network, of its state", low=1)
    widen_factor: int = _option(4, "of the wide networks", low=1)
    depth: int = _option(20, "layers of a ResNet: 6n + 2 (wide: 6n + 4)", low=8)
    n_basis: int = _option(1, "basis functions of theta(t) at the start", low=1)
    n_steps: int = _option(1, "Runge-Kutta steps of a block at the start", low=1)
    scheme: str = _option(
        "rk4_classic", "Runge-Kutta scheme, or chebyshev for CGNN and WCGNN", choices=(*SCHEMES, *ALIASES, CHEBYSHEV)
    )
    basis: str = _option("piecewise_constant", "basis of theta(t)", choices=(*BASES, *BASIS_ALIASES))
    order: str | None = _option(
        None, "normalise before or after the convolution (default: post, wide: pre)", choices=ORDERS
    )
    norm: str = _option("batch", "normalisation", choices=NORMS)
    eps: float | None = _option(None, "scale of the vector field (default: n_basis)", low=_TINY)
    stitch_eps: float | None = _option(None, "scale of the stitches' branches (default: eps / n_steps)", low=_TINY)
    skip_init: bool = _option(False, "learnt scalar, zero at the start, on the vector field")
    edge: str = _option("left", "cell that a stage at the end of a step reads", choices=EDGES)
    stats: str = _option("sequential", "update of running statistics", choices=STATS)
    checkpoint: str = _option("none", "what backward keeps; the rest is recomputed", choices=CHECKPOINTS)
    backend: str = _option("auto", "auto, a backend, or backend:level")

    split: str = _option(
        "public", "of nodes: as published; drawn in the same sizes; drawn, where the rest of 1,500 nodes validates",
        choices=("public", "random", "development"),
    )  # fmt: skip
    split_seed: int = _option(0, "of a split that is drawn", low=0)
    raw_features: bool = _option(False, "Planetoid's as they are, rows not divided by their sums")
    largest_component: bool = _option(False, "only the nodes of the largest connected component")
    neighbours: int = _option(16, "nearest neighbours of a node, in graphs of neighbours", low=1)
    self_loops: float = _option(1.0, "weight of the loop that every node gets before degrees are normalised", low=0.0)
    t_end: float = _option(1.0, "length of a graph network's solve", low=_TINY)
    form: str = _option("repository", "form of CGNN's and WCGNN's field", choices=FORMS)
    field: str = _option("gcn", "field of GDE", choices=("gcn", "gat", "controlled", "controlled_gat"))
    alpha: float = _option(0.918, "CGNN's share of neighbours at the start, before its sigmoid")
    heads: int = _option(8, "of attention", low=1)
    attention: int = _option(128, "features of GRAND's attention", low=1)
    softmax: str = _option("targets", "whose edges GRAND's attention sums to one over", choices=("targets", "sources"))
    nonlinear: bool = _option(False, "GRAND computes its attention anew at every evaluation")
    input_dropout: float = _option(0.5, "of a graph network's features", low=0.0, high=0.99)
    dropout: float = _option(0.0, "before a graph network's decoder; inside GDE's field", low=0.0, high=0.99)
    layers: int = _option(2, "of a GCN", low=2)

    epochs: int = _option(30, "passes over the training images, nodes or series", low=1)
    batch_size: int = _option(128, "images or series in a batch; all nodes of a graph are one", low=2)
    micro_batch: int = _option(0, "rows of a batch that a process computes at once, by accumulation (0: all)", low=0)
    sync_statistics: str = _option(
        "evaluation", "batch norm over the rows of all processes, or of each (local)", choices=("evaluation", "local")
    )
    drop_last: bool = _option(True, "leave out the rows of an epoch that do not fill a batch")
    refine_epochs: tuple[int, ...] = _option((), "epochs (from 0) before which basis and steps double", low=1)
    refine_variance: float = _option(0.0, "noise on refined weights: w (1 + v randn)", low=0.0)
    refine_state: str = _option("carry", "optimiser state at refinement", choices=("carry", "reset"))
    random_discretization: tuple[str, ...] = _option(
        (), "SCHEME:N pairs, as euler:2 rk4_classic:4; every batch trains with one that is drawn from them"
    )
    optimizer: str = _option("sgd", "optimiser", choices=OPTIMIZERS)
    lr: float = _option(0.1, "peak learning rate", low=_TINY)
    momentum: float = _option(0.9, "of SGD", low=0.0, high=1.0)
    nesterov: bool = _option(False, "Nesterov momentum")
    weight_decay: float = _option(5e-4, "L2 penalty (SGD) or decoupled decay (AdamW)", low=0.0)
    weight_decay_on: str = _option(
        "all",
        "parameters that decay: all, as in the published runs, or weights alone (no norms, biases, scalars)",
        choices=("all", "weights"),
    )
    lr_schedule: str = _option("cosine", "of the learning rate", choices=("cosine", "step", "constant"))
    lr_decay_epochs: tuple[int, ...] = _option((), "epochs (from 0) at which a step schedule decays", low=1)
    lr_decay: float = _option(0.1, "factor of a step schedule", low=_TINY, high=1.0)
    warmup_epochs: float = _option(0.0, "epochs of linear warm-up", low=0.0)
    grad_clip: float = _option(0.0, "largest norm of the gradient (0: off)", low=0.0)
    label_smoothing: float = _option(0.0, "of the cross-entropy", low=0.0, high=0.999)
    augment: bool = _option(True, "random shifts, and flips where the data set has them")
    amp: str = _option("none", "autocast dtype of the field", choices=("none", "bfloat16", "float16"))
    ema: float = _option(0.0, "decay of an average of the weights, which is then evaluated (0: off)", low=0.0, high=1.0)
    channels_last: bool = _option(False, "memory format of images and weights")
    seed: int = _option(1, "of weights, batches and augmentation", low=0)
    device: str = _option("auto", "auto, cpu, cuda or cuda:<index>")
    deterministic: bool = _option(True, "reproducible cuDNN algorithms")
    save_every: int = _option(0, "also save a checkpoint every so many batches (0: at the end of an epoch)", low=0)
    keep_checkpoints: int = _option(1, "how many of the last checkpoints are kept", low=1)
    tensorboard: bool = _option(False, "also write TensorBoard events")
    koopman: bool = _option(False, "also record the weights, for contnet-fast analyze koopman")
    koopman_every: int = _option(10, "batches between two of their snapshots", low=1)
    koopman_width: int = _option(256, "numbers of a snapshot, by a random projection (0: all weights)", low=0)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        self._check_epochs()
        self._check_kind()
        for name in ("image_size", "image_mode"):
            got = getattr(self, name)
            if self.data != "folder" and got != FIELDS[name].default:
                raise ValueError(f"{name}: got {got!r} with data {self.data!r}, accepted: none, but for data folder")
        if not self.is_continuous and self.refine_epochs:
            raise ValueError(f"refine_epochs: got {self.refine_epochs} with model {self.model!r}, accepted: none")
        for name in ("koopman_every", "koopman_width"):
            if not self.koopman and getattr(self, name) != FIELDS[name].default:
                raise ValueError(f"{name}: got {getattr(self, name)} without koopman, accepted: with koopman")
        self._check_discretizations()
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov: got True with momentum 0, accepted: a momentum > 0")
        if self.ema == 1.0 or self.momentum == 1.0:
            name = "ema" if self.ema == 1.0 else "momentum"
            raise ValueError(f"{name}: got 1.0, accepted: a number below 1")

    @property
    def discretizations(self) -> tuple[tuple[str, int], ...]:
        """The pairs (scheme, N) of ``random_discretization``."""
        pairs = (text.partition(":") for text in self.random_discretization)
        return tuple((scheme, int(n)) for scheme, _, n in pairs)

    @property
    def is_continuous(self) -> bool:
        """Whether the model contains ODE blocks."""
        return self.model in CONTINUOUS

    def refinements(self, epoch: int) -> int:
        """Return the number of refinements up to the start of ``epoch``."""
        return sum(1 for e in self.refine_epochs if e <= epoch)

    def learning_rate(self, progress: float) -> float:
        """Return the learning rate after ``progress`` epochs, which may be a fraction."""
        if progress < self.warmup_epochs:
            return self.lr * max(progress, 0.02 * self.warmup_epochs) / self.warmup_epochs
        if self.lr_schedule == "cosine":
            span = max(self.epochs - self.warmup_epochs, _TINY)
            return self.lr * 0.5 * (1.0 + math.cos(math.pi * min((progress - self.warmup_epochs) / span, 1.0)))
        if self.lr_schedule == "step":
            return self.lr * self.lr_decay ** sum(1 for e in self.lr_decay_epochs if e <= progress)
        return self.lr

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON and TOML."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    def _check_discretizations(self) -> None:
        name = "random_discretization"
        for text in self.random_discretization:
            scheme, _, n = text.partition(":")
            if not (n.isdecimal() and int(n) >= 1):
                raise ValueError(f"{name}: got {text!r}, accepted: SCHEME:N with N >= 1, as rk4_classic:4")
            if scheme not in (*SCHEMES, *ALIASES):
                raise choice_error(name, scheme, (*SCHEMES, *ALIASES))
        if self.random_discretization and not self.is_continuous:
            raise ValueError(f"{name}: got {self.random_discretization} with model {self.model!r}, accepted: none")

    def _check_kind(self) -> None:
        """The model fits the kind of data."""
        for datasets, models in ((IMAGES, IMAGE_MODELS), (NODES, NODE_MODELS), (SERIES, SERIES_MODELS)):
            if self.data in datasets and self.model not in models:
                raise choice_error(f"model (with data {self.data})", self.model, models)
        if self.scheme == CHEBYSHEV and self.model not in ("cgnn", "wcgnn"):
            raise ValueError(f"scheme: got {CHEBYSHEV!r} with model {self.model!r}, accepted: with cgnn and wcgnn")
        if self.data in IMAGES:
            return
        if self.micro_batch and self.data in NODES:
            raise ValueError(f"micro_batch: got {self.micro_batch} with data {self.data!r}, accepted: 0, for one graph")
        if self.amp != "none":
            raise ValueError(f"amp: got {self.amp!r} with data {self.data!r}, accepted: none")
        if self.raw_features and self.data not in PLANETOID:
            raise ValueError(f"raw_features: got True with data {self.data!r}, accepted: with {', '.join(PLANETOID)}")
        if self.largest_component and self.data in SERIES:
            raise ValueError(f"largest_component: got True with data {self.data!r}, accepted: False")

    def _check_epochs(self) -> None:
        for name in ("refine_epochs", "lr_decay_epochs"):
            epochs = getattr(self, name)
            if list(epochs) != sorted(set(epochs)):
                raise ValueError(f"{name}: got {epochs}, accepted: increasing epochs")
            late = [e for e in epochs if e >= self.epochs]
            if late:
                raise ValueError(f"{name}: got {late[0]}, accepted: epochs before the end of the run, {self.epochs}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs: got {self.warmup_epochs}, accepted: less than epochs, {self.epochs}")


FIELDS: Mapping[str, dataclasses.Field] = types.MappingProxyType({f.name: f for f in dataclasses.fields(Config)})
_TYPES = typing.get_type_hints(Config)


def make_config(
    recipe: str | None = None,
    *,
    toml: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    tell: Callable[[str], object] = warn,
) -> Config:
    """Return a recipe (default: that of the data set, if any) with the settings of a TOML file and then ``overrides``.

    Overrides may be texts, as from a command line. Settings of the recipe for epochs after the end of a shorter run, or
    for another kind of model, are left out.

    Args:
        tell: called with one line if something of the recipe is left out; by default a warning.

    Raises:
        ValueError, TypeError: an unknown recipe or key, or an impossible value; the message names the choices.
    """
    settings: dict[str, Any] = {}
    if toml is not None:
        settings = _read_toml(Path(toml))
        named = settings.pop("recipe", None)
        if recipe is None and named is not None:
            recipe = named
    for name, value in (overrides or {}).items():
        settings[name] = parse(name, value) if isinstance(value, str) else value
    for name in settings:
        if name not in FIELDS:
            raise choice_error("setting", name, FIELDS)
    if recipe is None:
        data = settings.get("data", "digits")
        recipe = data if data in RECIPES else None
        if data in (*NODES, *SERIES) and recipe is None:
            recipe = next((name for name, preset in RECIPES.items() if preset["data"] == data), None)
    elif recipe not in RECIPES:
        raise choice_error("recipe", recipe, RECIPES)
    preset, left_out = _fitted(RECIPES[recipe] if recipe else {}, settings)
    config = Config(**{**preset, **settings})
    if left_out:
        tell(f"recipe {recipe}: left out {'; '.join(left_out)}")
    return config


def _fitted(preset: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a recipe without what does not fit the epochs and the model of ``settings``, and what was left out.

    What ``settings`` contain themselves is kept: :class:`Config` refuses it if it does not fit.
    """
    epochs, model = ({**preset, **settings}.get(name, FIELDS[name].default) for name in ("epochs", "model"))
    fitted, left_out = dict(preset), []
    for name in ("refine_epochs", "lr_decay_epochs", "warmup_epochs"):
        if name not in preset or name in settings or not isinstance(epochs, int):
            continue
        values = preset[name] if isinstance(preset[name], tuple) else (preset[name],)
        foreign = name == "refine_epochs" and model not in CONTINUOUS
        dropped = [value for value in values if foreign or value >= epochs]
        if dropped:
            fitted[name] = tuple(v for v in values if v not in dropped) if isinstance(preset[name], tuple) else 0.0
            why = f"not for model {model}" if foreign else f"the run has {epochs} epoch{'s' * (epochs != 1)}"
            left_out.append(f"{name} {', '.join(f'{value:g}' for value in dropped)} ({why})")
    return fitted, left_out


def parse(name: str, text: str) -> Any:
    """Return the value of field ``name`` for command-line ``text``; lists are comma-separated, ``none`` is ``None``."""
    if name not in FIELDS:
        raise choice_error("setting", name, FIELDS)
    kinds = _kinds(name)
    if type(None) in kinds and text.lower() == "none":
        return None
    try:
        if tuple in kinds:
            return tuple(_item(name)(part) for part in text.replace(",", " ").split())
        if bool in kinds:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        return next(kind for kind in (int, float, str) if kind in kinds)(text)
    except (ValueError, KeyError):
        raise ValueError(f"{name}: got {text!r}, accepted: {_accepted(FIELDS[name])}") from None


def _kinds(name: str) -> tuple[Any, ...]:
    hint = _TYPES[name]
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(typing.get_origin(member) or member for member in members)


def _item(name: str) -> type:
    """Return the type of the items of a field of tuples."""
    kind: type = typing.get_args(_TYPES[name])[0]
    return kind


def _accepted(field: dataclasses.Field) -> str:
    kinds = _kinds(field.name)
    low, high = field.metadata["low"], field.metadata["high"]
    if field.metadata["choices"]:
        return ", ".join(field.metadata["choices"])
    items = f"{_item(field.name).__name__}s" if tuple in kinds else ""
    words = {
        tuple: f"comma-separated {items.replace('strs', 'texts')}",
        bool: "true or false",
        int: "an int",
        float: "a finite number",
    }
    text = next((word for kind, word in words.items() if kind in kinds), "a text")
    if low is not None:
        text += " > 0" if low == _TINY else f" >= {low:g}"
    if high is not None:
        text += f", <= {high:g}"
    return text + (" or none" if type(None) in kinds else "")


def _checked(field: dataclasses.Field, value: Any) -> Any:
    """Check a value, and return it in the type of the field."""
    kinds = _kinds(field.name)
    if value is None and type(None) in kinds:
        return None
    if tuple in kinds and isinstance(value, (list, tuple)):
        value = tuple(value)
        right = all(type(v) is _item(field.name) for v in value)
    elif float in kinds and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = float(value)
        right = math.isfinite(value)
    else:
        right = type(value) in kinds and value != ""
    low, high = field.metadata["low"], field.metadata["high"]
    for number in value if isinstance(value, tuple) else (value,):
        right = right and (low is None or number >= low) and (high is None or number <= high)
    if field.metadata["choices"] and value not in field.metadata["choices"]:
        raise choice_error(field.name, value, field.metadata["choices"])
    if not right:
        raise ValueError(f"{field.name}: got {value!r}, accepted: {_accepted(field)}")
    return value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    try:
        return dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(f"config: got {path}, accepted: a readable TOML file ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"config: got {path}, accepted: a TOML file ({error})") from None
