"""Checkpoints: a safetensors file named by one pointer.

The pointer ``<name>.json`` holds the file's name, its SHA-256 and all that is not a tensor. It is renamed into place
last, so a run killed at any moment leaves the old checkpoint or the new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors

from ..files import write_atomically, write_text


def save_checkpoint(folder: Path, name: str, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Write checkpoint ``name``: tensors first, then the pointer; the tensors of the previous one are removed."""
    blob = dump_tensors({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
    digest = hashlib.sha256(blob).hexdigest()
    pointer = folder / f"{name}.json"
    target = folder / f"{name}-{digest[:12]}.safetensors"
    write_atomically(target, lambda temporary: temporary.write_bytes(blob))
    write_text(pointer, json.dumps({"file": target.name, "sha256": digest, **state}, indent=1))
    for old in folder.glob(f"{name}-*.safetensors"):
        if old != target:
            old.unlink(missing_ok=True)


def load_checkpoint(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return tensors, on the CPU, and state of checkpoint ``name``.

    Raises:
        ValueError: there is no such checkpoint, or its content is not what was written.
    """
    pointer = folder / f"{name}.json"
    if not pointer.is_file():
        raise ValueError(f"checkpoint: got {pointer}, which does not exist, accepted: the folder of a run")
    try:
        state = json.loads(pointer.read_text(encoding="utf-8"))
        target = folder / state.pop("file")
        blob = target.read_bytes()
        wanted = state.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint: got {pointer}, which is damaged ({type(error).__name__}: {error})") from None
    if hashlib.sha256(blob).hexdigest() != wanted:
        raise ValueError(f"checkpoint: got {target}, which is damaged (its SHA-256 is not the one recorded)")
    try:
        return load_tensors(blob), state
    except SafetensorError as error:
        raise ValueError(f"checkpoint: got {target}, which is damaged ({error})") from None
