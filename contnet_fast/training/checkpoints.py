"""Checkpoints: a safetensors file, or the folder that many processes wrote, named by one pointer.

The pointer ``<name>.json`` holds the file's name, its SHA-256 and all that is not a tensor. It is renamed into place
last, so a run killed at any moment leaves the old checkpoint or the new one. Of those that are kept beside the last one
the pointers are ``<name>-<epoch>-<batch>.json``.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors

from ..files import write_atomically, write_text


def save_checkpoint(
    folder: Path, name: str, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any], *, keep: int = 1
) -> None:
    """Write checkpoint ``name``: tensors first, then the pointer; tensors of all but the last ``keep`` are removed."""
    blob = dump_tensors({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
    digest = hashlib.sha256(blob).hexdigest()
    target = folder / f"{name}-{digest[:12]}.safetensors"
    write_atomically(target, lambda temporary: temporary.write_bytes(blob))
    point(folder, name, {"file": target.name, "sha256": digest, **state}, keep=keep)


def point(folder: Path, name: str, content: Mapping[str, Any], *, keep: int) -> None:
    """Put a checkpoint into place whose tensors are on disk, and remove those that are kept no longer."""
    text = json.dumps(content, indent=1)
    if keep > 1:
        write_text(folder / f"{name}-{content['epoch']}-{content['batch']}.json", text)
    write_text(folder / f"{name}.json", text)
    kept = sorted(folder.glob(f"{name}-*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    last = kept[-keep:] if keep > 1 else []
    for pointer in kept:
        if pointer not in last:
            pointer.unlink(missing_ok=True)
    named = {_target(content), *(_target(json.loads(pointer.read_text(encoding="utf-8"))) for pointer in last)}
    for old in folder.glob(f"{name}-*"):
        if old.name not in named and old.suffix == ".safetensors":
            old.unlink(missing_ok=True)
        elif old.name not in named and old.is_dir():
            shutil.rmtree(old, ignore_errors=True)


def _target(content: Mapping[str, Any]) -> str:
    """The name of the file or folder of a pointer."""
    return str(content["file"] if "file" in content else content["folder"])


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
        if "folder" in state:
            from .sharded_checkpoints import read_sharded

            return read_sharded(folder / state.pop("folder"), state.pop("files")), state
        target = folder / state.pop("file")
        blob = target.read_bytes()
        wanted = state.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        if str(error).startswith("checkpoint: "):
            raise
        raise ValueError(f"checkpoint: got {pointer}, which is damaged ({type(error).__name__}: {error})") from None
    if hashlib.sha256(blob).hexdigest() != wanted:
        raise damaged(target)
    try:
        return load_tensors(blob), state
    except SafetensorError as error:
        raise ValueError(f"checkpoint: got {target}, which is damaged ({error})") from None


def damaged(path: Path) -> ValueError:
    """The error of a file whose content is not what was written."""
    return ValueError(f"checkpoint: got {path}, which is damaged (its SHA-256 is not the one recorded)")
