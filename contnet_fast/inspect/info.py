"""What is installed and what can run here. Nothing is imported or initialised to find out."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib import metadata

import torch

from .._version import __version__
from ..backends import describe
from ..extension import instruction_sets, summary


@dataclass(frozen=True)
class Info:
    """Versions, and every backend with ``"available"`` or why not. ``print`` shows a table.

    ``extension``: what the C++ extension was built with and for which GPUs, or why it has no CUDA, or is not there.
    ``instruction_sets``: those that its kernels can use on this CPU, and of the others why not;
    ``CONTNET_FAST_ISA`` in the environment names the last one that they may use.
    """

    contnet_fast: str
    python: str
    platform: str
    torch: str
    torch_cuda: str
    triton: str
    threads: int
    cpu_capability: str
    extension: str
    instruction_sets: str
    backends: dict[str, str]

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            (name.replace("_", " ") if name != "contnet_fast" else name, value)
            for name, value in self.as_dict().items()
            if name != "backends"
        ]
        rows += [(f"backend {name}", state) for name, state in self.backends.items()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def info() -> Info:
    """The versions and backends of this installation; no CUDA context is made."""
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "not installed"
    return Info(
        contnet_fast=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        torch=torch.__version__,
        torch_cuda=torch.version.cuda or "none (CPU build)",
        triton=triton,
        threads=torch.get_num_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        extension=summary(),
        instruction_sets=instruction_sets(),
        backends=describe(),
    )
