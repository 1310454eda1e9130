"""The network of a run in a file that serves it, as ``contnet-fast export`` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..deploy.files import save_model
from .build import pick_device
from .run import Run, load_net


def export_run(run: Run, out: Path, *, format: str, ops: str, checkpoint: str, device: str) -> dict[str, Any]:
    """Write the network of ``run`` into ``out`` and return the metadata of the file.

    They say how images become inputs, the names of the classes, and the accuracy that the record of the run has.

    Raises:
        ValueError: as :func:`contnet_fast.deploy.save_model`; a run whose network takes no images.
    """
    if not run.image_shape:
        raise ValueError(f"run: got a {run.config.model} on {run.config.data}, accepted: a network of images")
    if run.config.amp != "none":
        raise ValueError(
            f"run: got one with amp {run.config.amp!r}, accepted: none (contnet-fast choose with --dtypes float32)"
        )
    net, record = load_net(run, device=pick_device(device), name=checkpoint)
    accuracy = {part: record[f"{part}_accuracy"] for part in ("valid", "test") if f"{part}_accuracy" in record}
    facts = {
        "data": run.config.data,
        "normalisation": {"scale": 1 / 255, "mean": list(run.mean), "std": list(run.std)},
        "classes": list(run.classes) or [str(i) for i in range(run.num_classes)],
        "accuracy": accuracy,
    }
    return save_model(net, out, format=format, input_shape=run.image_shape, ops=ops, facts=facts)
