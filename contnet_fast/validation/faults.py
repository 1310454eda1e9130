"""Known faults, for showing that a wrong kernel would be caught: ``contnet-fast validate --inject NAME``."""

from __future__ import annotations

from collections.abc import Sequence

import torch

FAULTS = ("dropped_tap", "flipped_sign", "swapped_statistics", "one_ulp")  # the last is rounding, and none to report

Tensors = dict[str, torch.Tensor]


def before_solve(fault: str, inputs: Tensors) -> Tensors:
    """The operands a faulty kernel would compute with."""
    changed = dict(inputs)
    if fault == "dropped_tap":
        weight = changed["conv1_weight"].clone()
        weight[..., 0, 2] = 0.0
        changed["conv1_weight"] = weight
    if fault == "flipped_sign" and "conv2_bias" in changed:
        changed["conv2_bias"] = -changed["conv2_bias"]
    elif fault == "flipped_sign":
        changed["conv2_weight"] = -changed["conv2_weight"]
    if fault == "swapped_statistics" and "norm1_mean" in changed:
        for what in ("mean", "var"):
            first, second = f"norm1_{what}", f"norm2_{what}"
            changed[first], changed[second] = changed[second], changed[first]
    return changed


def after_solve(fault: str, results: Tensors) -> Tensors:
    """What a faulty kernel would return."""
    if fault == "one_ulp":
        return {name: noisy(value) for name, value in results.items()}
    if fault == "swapped_statistics" and "norm1_mean" in results:
        swapped = dict(results)
        swapped["norm1_mean"], swapped["norm2_mean"] = results["norm2_mean"], results["norm1_mean"]
        return swapped
    return results


def faulty_coefficients(fault: str, coefficients: Sequence[float]) -> list[float]:
    """A stage combination with its last term dropped, or with the wrong sign."""
    *rest, last = coefficients
    return [*rest, {"dropped_tap": 0.0, "flipped_sign": -last}.get(fault, last)]


def noisy(value: torch.Tensor) -> torch.Tensor:
    """Every second number moved to its neighbour."""
    flat = value.detach().reshape(-1).clone()
    if not flat.is_floating_point():
        return value
    wide = flat.double()
    info = torch.finfo(value.dtype)
    step = torch.exp2(torch.floor(torch.log2(wide.abs().clamp(min=info.smallest_normal)))) * info.eps
    sign = torch.where(torch.arange(flat.numel()) % 4 < 2, 1.0, -1.0)
    moved = torch.where(torch.arange(flat.numel()) % 2 == 0, wide + sign * step, wide)
    return moved.to(value.dtype).view(value.shape)
