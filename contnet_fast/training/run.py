"""The folder of a run: its settings, its data and its networks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..files import write_text
from .checkpoints import load_checkpoint
from .config import IMAGES, Config
from .data import Data, load_for
from .folder import Tell, silent
from .session import built, load_part
from .task import Task


@dataclass(frozen=True)
class Run:
    """A folder, its settings, and what it was trained on.

    Attributes:
        image_shape: of images; empty for nodes and series.
        sizes: what a network has to know of the data.
        mean, std: constants by which images are normalised.
        classes, digest: those of :class:`Data`.
    """

    folder: Path
    config: Config
    image_shape: tuple[int, ...]
    num_classes: int
    sizes: Mapping[str, int]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    digest: str = ""


def write_run(folder: Path, config: Config, data: Task) -> None:
    """Write ``config.json``, which makes ``folder`` a run."""
    content = {"config": config.as_dict(), **data.facts()}
    write_text(folder / "config.json", json.dumps(content, indent=1))


def open_run(folder: Path) -> Run:
    """Read ``config.json``.

    Raises:
        ValueError: the folder is not that of a run, or it is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"run: got {folder}, accepted: the folder of a run (with config.json)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        constants = {name: tuple(content.get(name, ())) for name in ("mean", "std", "classes")}
        config, classes = Config(**content["config"]), int(content["num_classes"])
        shape: tuple[int, ...] = ()
        if config.data in IMAGES:
            channels, height, width = content["image_shape"]
            shape, sizes = (channels, height, width), {"in_channels": channels, "num_classes": classes}
        else:
            sizes = {name: int(content[name]) for name in ("in_channels", "num_classes", "num_nodes")}
        return Run(folder, config, shape, classes, sizes, digest=content.get("digest", ""), **constants)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"run: got {path}, which is damaged ({error})") from None


def run_data(run: Run, path: str | Path | None = None, *, resumes: bool = False, tell: Tell = silent) -> Task:
    """Return the data set of a run, from its place in the run or from ``path``, normalised as in training.

    Args:
        resumes: whether the run goes on, which requires the pictures that it began with.
        tell: called with lines about what was read, and if pictures are not those of training.

    Raises:
        ValueError: other classes or images of another shape than those of training, and what :func:`load_data` raises.
    """
    data = load_for(run.config, path, tell=tell)
    if not isinstance(data, Data):
        return _same(run, data, path)
    if data.in_channels != run.image_shape[0] and data.name == "folder":  # all grey and coloured, or the reverse
        mode = "gray" if run.image_shape[0] == 1 else "rgb"
        config = dataclasses.replace(run.config, image_mode=mode)
        data = cast(Data, load_for(config, path, tell=tell))
    place = run.config.data_path if path is None else path
    if run.classes and data.classes != run.classes:
        raise ValueError(
            f"data_path: got {place} with the classes {', '.join(data.classes)}, accepted: {', '.join(run.classes)}, "
            "as the run began"
        )
    shape = tuple(data.train.images.shape[1:])
    if shape != run.image_shape:
        raise ValueError(f"data_path: got {place} with images {shape}, accepted: {run.image_shape}, as the run began")
    if run.digest and data.digest != run.digest:
        if resumes:
            raise ValueError(
                f"data_path: got {place}, whose pictures are not those that the run began with, accepted: those"
            )
        tell(f"{place}: the pictures are not those of the training; where a split is cut, it may hold some of them")
    if not run.mean:
        return data
    return dataclasses.replace(data, mean=torch.tensor(run.mean), std=torch.tensor(run.std))


def _same(run: Run, data: Task, path: str | Path | None) -> Task:
    """Nodes or series, which have to be those of training."""
    place = run.config.data_path if path is None else path
    if data.facts()["digest"] != run.digest:
        got = run.config.data if place is None else place
        raise ValueError(f"data_path: got {got}, whose graph is not that of the run's training, accepted: that one")
    return data


def load_net(run: Run, *, device: torch.device, name: str = "best") -> tuple[nn.Module, dict[str, Any]]:
    """Return the network that validation chose (``best``) or the last one, in eval mode, and the record of its epoch.

    Raises:
        ValueError: the checkpoint is missing, damaged or foreign.
    """
    tensors, state = load_checkpoint(run.folder, name)
    try:
        net = built(run.config, run.sizes, device, state["refinements"])
        load_part(net, "ema" if name == "last" and run.config.ema else "net", tensors)
        record = state["record"] if name == "best" else {"epoch": state["epoch"] - 1}
    except (KeyError, TypeError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"checkpoint: got {run.folder}, which does not fit its config.json ({text})") from None
    return net.eval(), record
