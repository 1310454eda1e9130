"""Write and read files of results: a header for each run, and then its rows."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import contnet_fast as cf
from benchmarks.common.timing import KEEP_MEMORY
from contnet_fast.costmodel.costs import DEVICES, Device, measured_cpu

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"


def header(options: dict[str, Any], *, device: str = "cpu", rates: Device | None = None) -> dict[str, Any]:
    """Return the header of a run: where and with what the rows below it are measured.

    ``rates`` are those of the device, by which the rows' floors are computed.
    """
    status = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    known = (
        {} if rates is None else {"rates": {"of": rates.name, "flops": dict(rates.flops), "bandwidth": rates.bandwidth}}
    )
    return {
        "header": {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "device": device_name(device),
            "commit": _git("rev-parse", "HEAD"),
            "dirty": status != "" if status is not None else None,
            "of_this_checkout": {name: _is_here(name) for name in ("contnet_fast", "contnet_fast._C")},
            "cpu": cpu_model(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "options": options,
            "malloc": {name: os.environ.get(name) for name in KEEP_MEMORY},
            "info": cf.info().as_dict(),
            **(_gpu() if device == "cuda" else {}),
            **known,
        }
    }


def device_name(device: str) -> str:
    """Return the vendor's name of this machine's CPU or GPU."""
    return torch.cuda.get_device_name() if device == "cuda" else cpu_model()


def results_file(device: str, stem: str = "suite") -> Path:
    """Return the path of this device's file of results."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return RESULTS / f"{stem}-{slug}.jsonl"


def device_rates(device: str) -> Device | None:
    """Return the measured rates of this CPU, or the datasheet's of this GPU; ``None`` for a GPU that is not listed."""
    if device == "cpu":
        return measured_cpu()
    return next((d for name, d in DEVICES.items() if name in device_name(device)), None)


def _gpu() -> dict[str, Any]:
    """Return capability, size, driver, clocks and power limit of the GPU."""
    properties = torch.cuda.get_device_properties(0)
    query = [
        "nvidia-smi",
        "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit",
        "--format=csv,noheader",
    ]
    try:
        smi = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        smi = "unknown"
    return {
        "capability": list(torch.cuda.get_device_capability()),
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "driver, clocks, power": smi,
    }


def append(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _is_here(name: str) -> bool | None:
    """Tell whether a module was imported from this checkout, the one that ``commit`` names; ``None``: not imported."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return None if file is None else Path(file).resolve().is_relative_to(ROOT)


def _git(*arguments: str) -> str | None:
    """Return git's output, or ``None`` without git or a repository."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
