"""``contnet-fast tune``: its options checked, before anything is compiled or written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import chips
from ..backends import triton as backend
from ..errors import check_choice
from ..files import writable_folder


def tune_tiles(
    out: Path, *, kernels: Sequence[str] | None = None, operands: Sequence[str] | None = None,
    channels: Sequence[int] | None = None, batch: int = 128, trials: int = 24, dry_run: bool = False,
) -> None:  # fmt: skip
    """Time tiles on this GPU and write ``out``, a file for ``CONTNET_FAST_TILES``, after each entry found.

    Args:
        kernels, operands, channels: what is tuned, by default everything; the rest keeps the tiles in use.
        batch: images of the blocks that are timed. trials: most tiles tried for each entry.
        dry_run: go through tiny blocks in Triton's interpreter instead; its times tell nothing about a GPU.

    Raises:
        ValueError: an argument is not accepted, or there is no GPU.
    """
    if not backend.INSTALLED:
        raise ValueError("tune: the package triton is not installed")
    if dry_run and not backend.INTERPRETED:
        raise ValueError("dry_run: got True, accepted: only with TRITON_INTERPRET=1 in the environment")
    if not dry_run and (backend.INTERPRETED or not torch.cuda.is_available()):
        reason = "TRITON_INTERPRET is set" if backend.INTERPRETED else f"torch {torch.__version__} sees no CUDA device"
        raise ValueError(f"tune: needs an NVIDIA GPU, but {reason}")
    from ..fields.conv.triton import tune as search
    from ..triton import tiles

    def chosen(name: str, given: Sequence[Any] | None, known: Sequence[Any]) -> list[Any]:
        return [check_choice(name, v, known) for v in given] if given else list(known)

    wanted_kernels = chosen("kernels", kernels, (*tiles.KERNELS, search.LOAD))
    wanted_operands = chosen("operands", operands, tiles.OPERANDS)
    for c in channels or ():
        if c not in tiles.WIDTHS:
            raise ValueError(f"channels: got {c}, accepted: {', '.join(map(str, tiles.WIDTHS))}")
    writable_folder("out", out.parent)
    device = torch.device("cpu" if dry_run else "cuda")
    arch = chips.arch(device)
    wanted = list(search.keys(arch, wanted_kernels, wanted_operands, list(channels or tiles.WIDTHS)))
    name = "Triton's interpreter (no GPU)" if dry_run else torch.cuda.get_device_name(device)

    def say(trial: search.Trial) -> None:
        what = " ".join(map(str, trial.key[1:]))
        t = trial.tile
        result = f"{1e3 * trial.seconds:9.3f} ms" if trial.seconds is not None else f"left out: {trial.reason}"
        shape = f"{t.pixels} x {t.channels}, {t.warps} warps, {t.stages} stages"
        print(f"{what:22} {shape:36} {result}", flush=True)

    search.tune(
        out, wanted, search.wall_time if dry_run else search.graph_time, batch=batch, device=device,
        source=f"timed on {name}", done=say, tiny=dry_run, most=trials,
    )  # fmt: skip
    print(f"wrote {out}; CONTNET_FAST_TILES={out} uses it")
