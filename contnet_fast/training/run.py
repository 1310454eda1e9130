"""The folder of a run: what it was, and the networks in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import write_text
from .build import build_on
from .checkpoints import load_checkpoint
from .config import Config
from .data import Data
from .session import deepened, load_part


@dataclass(frozen=True)
class Run:
    """A folder, its settings, and the images and classes it was trained on."""

    folder: Path
    config: Config
    image_shape: tuple[int, int, int]
    num_classes: int


def write_run(folder: Path, config: Config, data: Data) -> None:
    """Write ``config.json``, which makes ``folder`` a run."""
    content = {
        "config": config.as_dict(),
        "image_shape": list(data.train.images.shape[1:]),
        "num_classes": data.num_classes,
    }
    write_text(folder / "config.json", json.dumps(content, indent=1))


def open_run(folder: Path) -> Run:
    """Read ``config.json``.

    Raises:
        ValueError: not the folder of a run, or a damaged one.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"run: got {folder}, accepted: the folder of a run (with config.json)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        channels, height, width = content["image_shape"]
        return Run(folder, Config(**content["config"]), (channels, height, width), int(content["num_classes"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"run: got {path}, which is damaged ({error})") from None


def load_net(run: Run, *, device: torch.device, name: str = "best") -> tuple[nn.Module, dict[str, Any]]:
    """The network that validation chose (``best``) or the last one, in eval mode, and the record of its epoch.

    Raises:
        ValueError: a missing, damaged or foreign checkpoint.
    """
    tensors, state = load_checkpoint(run.folder, name)
    net = build_on(run.config, run.image_shape[0], run.num_classes, device)
    try:
        for _ in range(state["refinements"]):
            net = deepened(net)
        load_part(net, "ema" if name == "last" and run.config.ema else "net", tensors)
        record = state["record"] if name == "best" else {"epoch": state["epoch"] - 1}
    except (KeyError, TypeError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"checkpoint: got {run.folder}, which does not fit its config.json ({text})") from None
    return net.eval(), record
