"""One short training of a network with each backend, from the same seed and the same images."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from parts import Context

import contnet_fast as cf


def compare(context: Context, *, tiny: bool, seconds: float, path: Path | None = None) -> dict[str, Any]:
    """Train with the reference and with Triton for as many steps as the slower one does in ``seconds``.

    ``path`` is where CIFAR-10 is; without it the images are drawn. Accuracy is of the last training batches.
    """
    data = drawn(8, 4) if tiny else drawn(4096, 32) if path is None else cifar(path)
    steps, batch = (2, 2) if tiny else (200, 128)
    rows: dict[str, Any] = {}
    for backend in ("reference", "triton"):
        rows[backend] = _train(context, backend, steps=steps, batch=batch, data=data, tiny=tiny, seconds=seconds)
        steps = min(steps, rows[backend]["steps"])
    first, second = rows["reference"]["losses"], rows["triton"]["losses"]
    n = min(len(first), len(second))
    data_name = "drawn gratings" if path is None or tiny else "CIFAR-10"
    difference = max(abs(a - b) for a, b in zip(first[:n], second[:n], strict=True)) if n else float("nan")
    ratio = rows["reference"]["ms_per_step"] / rows["triton"]["ms_per_step"]
    return {
        "data": data_name,
        "ratios": {"eager / ours, a training step": round(ratio, 3)},
        "runs": rows,
        "largest_loss_gap": difference,
    }


def drawn(count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy coloured gratings, one direction for each of ten classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (count,), generator=generator)
    angle = (labels * (math.pi / 10)).view(-1, 1, 1, 1)
    phase = torch.rand(count, 3, 1, 1, generator=generator) * (2 * math.pi)
    x = torch.arange(float(side))
    wave = torch.sin(0.8 * (x * angle.cos() + x.unsqueeze(1) * angle.sin()) + phase)
    return wave + 0.5 * torch.randn(wave.shape, generator=generator), labels


def cifar(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised training images of CIFAR-10."""
    from contnet_fast.training.data import load_data

    data = load_data("cifar10", str(path))
    images = data.train.images.float().div(255)
    return (images - data.mean.view(-1, 1, 1)) / data.std.view(-1, 1, 1), data.train.labels


def _train(
    context: Context, backend: str, *, data: tuple[torch.Tensor, torch.Tensor], steps: int, batch: int, tiny: bool,
    seconds: float,
) -> dict[str, Any]:  # fmt: skip
    torch.manual_seed(0)
    images, labels = data
    graph: dict[str, Any] = {"n_basis": 1, "n_steps": 1} if tiny else {"n_basis": 8, "n_steps": 8}
    net = cf.models.ContinuousNet(
        images.shape[1], 10, width=4 if tiny else 16, scheme="rk4_classic", order="pre", backend="auto", **graph
    ).to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    images, labels = images.to(context.device), labels.to(context.device)
    generator = torch.Generator().manual_seed(1)
    losses, right, seen, taken, begin = [], 0, 0, 0.0, time.perf_counter()
    with cf.use_backend(backend), cf.record_runs() as log:
        for step in range(steps):
            pick = torch.randint(len(images), (batch,), generator=generator).to(context.device)
            start = time.perf_counter()
            with torch.autocast(context.device, torch.bfloat16, enabled=context.device == "cuda"):
                logits = net(images[pick])
            loss = F.cross_entropy(logits.float(), labels[pick])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))  # waits for the device
            if step >= min(10, steps // 2):
                taken += time.perf_counter() - start
            if step >= steps - 20:
                right, seen = right + int((logits.argmax(1) == labels[pick]).sum()), seen + batch
            if time.perf_counter() - begin > seconds:
                break
    timed = max(len(losses) - min(10, steps // 2), 1)
    if not all(torch.isfinite(torch.tensor(losses))):
        raise RuntimeError(f"training with {backend} diverged: {losses[-3:]}")
    return {"steps": len(losses), "ms_per_step": round(1e3 * taken / timed, 3), "losses": [round(v, 5) for v in losses],
            "accuracy_of_last_batches": round(right / max(seen, 1), 4),
            "ran": sorted({f"{run.op} {run.backend}:{run.level}" for run in log})}  # fmt: skip
