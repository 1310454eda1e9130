"""One convolutional solve as data: drawn, run on any backend, and run in float64 to judge it by.

The tests and ``contnet-fast validate`` share these cases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..fields.conv.spec import ConvNodes, ConvSpec
from ..functional import conv_solve
from ..schemes.bases import Basis
from ..schemes.timegrid import TimeGrid, time_grid
from .faults import after_solve, before_solve

ORDERS = ("", "c", "s", "cs")  # of summation, for several samples of what rounding does
FAR_FROM_KINKS = 2e-5  # no relu may see less: rounding would flip its derivative, which no budget allows


def _inside(x: torch.Tensor) -> torch.Tensor:
    """The same values as every second row, from the second column on, of a larger tensor."""
    b, c, h, w = x.shape
    large = x.new_full((b, c, 2 * h, w + 1), 7.0)
    view = large[:, :, ::2, 1:]
    view.copy_(x)
    return view


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "slice": _inside,
    "permuted": lambda x: x.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),
    "expanded": lambda x: x[:1].expand_as(x),
    "expanded rows": lambda x: x[:, :1, :1].expand_as(x),
    "ones": lambda x: x.new_ones(()).expand_as(x),  # what y.sum() sends back
    "two states": lambda x: (
        x * torch.eye(len(x), dtype=x.dtype, device=x.device)[[1, -1]].sum(0).view(-1, *[1] * (x.dim() - 1))
    ),
}


@dataclass(frozen=True)
class Case:
    """Everything that a solve depends on; the seed fixes the values."""

    channels: int = 4
    size: tuple[int, int] = (5, 7)
    batch: int = 2
    order: str = "pre"
    norm: str = "group"
    training: bool = False
    bias: bool = True
    skip: bool = False
    eps: float = 1.0
    basis: str = "piecewise_constant"
    n_basis: int = 2
    scheme: str = "midpoint"
    n_steps: int = 2
    edge: str = "left"
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    checkpoint: str = "step"
    return_steps: bool = False
    grads: str = ""  # "" is forward only, then "all", "x", "parameters" or the name of a parameter
    upstream: str = "contiguous"
    offset: float = 0.0  # of the bias before a relu: upwards in two channels of three, downwards in the third
    seed: int = 0

    def __str__(self) -> str:
        changed = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        words = [f"{name}={str(value).replace('torch.', '').replace(' ', '')}" for name, value in changed]
        return ",".join(words) or "default"

    @property
    def spec(self) -> ConvSpec:
        """The field."""
        groups = next(g for g in (4, 3, 2, 1) if self.channels % g == 0) if self.norm == "group" else 1
        return ConvSpec(
            self.channels, self.order, self.norm, self.bias, self.skip, self.eps, norm_eps=1e-5, groups=groups
        )

    @property
    def grid(self) -> TimeGrid:
        """The resolved time grid."""
        return time_grid(self.scheme, self.n_steps, Basis(self.basis, self.n_basis), edge=self.edge)

    @property
    def batch_statistics(self) -> bool:
        """Whether the images of the batch are coupled."""
        return self.training and self.norm == "batch"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the state."""
        return (self.batch, self.channels, *self.size)


def draw(case: Case) -> tuple[torch.Tensor, ConvNodes, torch.Tensor]:
    """x, nodes and upstream gradient: float64 tensors whose values exist in the dtype of the case."""
    generator = torch.Generator().manual_seed(case.seed)
    k, c = case.n_basis, case.channels

    def normal(*shape: int, scale: float = 0.3, shift: float | torch.Tensor = 0.0) -> torch.Tensor:
        value = torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift
        return value.to(case.dtype).double()

    parts: dict[str, torch.Tensor] = {}
    offset = torch.where(torch.arange(c) % 3 == 1, -case.offset, case.offset)
    after_conv, after_norm = (offset, 0.0) if case.order == "post" else (0.0, offset)
    for i in (1, 2):
        parts[f"conv{i}_weight"] = normal(k, c, c, 3, 3, scale=(2 / (9 * c)) ** 0.5)
        parts[f"conv{i}_bias"] = normal(k, c, shift=0.2 + after_conv)  # few dead channels, whose variance would be tiny
        parts[f"norm{i}_weight"], parts[f"norm{i}_bias"] = normal(k, c, shift=1.0), normal(k, c, shift=after_norm)
        parts[f"norm{i}_mean"], parts[f"norm{i}_var"] = normal(k, c), normal(k, c, shift=1.5).abs()
    parts["skip"] = normal(k, shift=1.0)
    absent = [name for name in parts if name.endswith("_bias") and name[:4] == "conv" and not case.bias]
    absent += [name for name in parts if name[:4] == "norm" and case.norm == "none"]
    absent += [name for name in parts if name.endswith(("_mean", "_var")) and case.norm != "batch"]
    absent += [] if case.skip else ["skip"]
    nodes = ConvNodes(**{name: None if name in absent else value for name, value in parts.items()})  # type: ignore[arg-type]
    steps = (case.n_steps + 1,) if case.return_steps else ()
    return normal(*case.shape, scale=1.0), nodes, normal(*steps, *case.shape, scale=1.0)


def wanted(case: Case, nodes: ConvNodes) -> list[str]:
    """Names of the inputs whose gradients the case asks for."""
    present = [name for name, tensor in zip(nodes._fields, nodes, strict=True) if tensor is not None]
    parameters = [name for name in present if not name.endswith(("_mean", "_var"))]
    return {"": [], "x": ["x"], "all": ["x", *parameters], "parameters": parameters}.get(case.grads, [case.grads])


def rearrange(name: str, value: torch.Tensor, axes: str) -> torch.Tensor:
    """The same problem with channels ("c"), rows and columns ("s") backwards: its sums run in another order."""
    if name == "skip":
        return value
    if name[:4] in ("conv", "norm"):
        filters = name.endswith("weight") and name[:4] == "conv"
        channels, space = ((1, 2), (3, 4)) if filters else ((-1,), ())
    else:
        channels, space = (-3,), (-2, -1)
    return value.flip([*(channels if "c" in axes else ()), *(space if "s" in axes else ())])


def solve(
    case: Case,
    backend: str,
    dtype: torch.dtype | None = None,
    *,
    axes: str = "",
    device: str = "cpu",
    fault: str = "",
) -> dict[str, torch.Tensor]:
    """The result "y", batch statistics, and gradients as "d x", "d conv1_weight", ..., by name, on the CPU.

    ``fault`` makes the result wrong in a known way (:mod:`contnet_fast.validation.faults`).
    """
    x, nodes, dy = draw(case)
    names = wanted(case, nodes)
    inputs = {"x": x, **{n: t for n, t in zip(nodes._fields, nodes, strict=True) if t is not None}}
    inputs["x"] = LAYOUTS[case.layout](x)
    inputs = {name: rearrange(name, t, axes).to(device, dtype or case.dtype) for name, t in inputs.items()}
    if backend.startswith("reference") and names and "x" not in names:
        # torch.group_norm crashes in backward on a channels_last input that asks for no gradient
        inputs["x"] = inputs["x"].contiguous()
    elif not axes:
        inputs["x"] = LAYOUTS[case.layout](inputs["x"])  # casts and flips gave it strides of their own
    inputs = before_solve(fault, inputs)
    leaves = [inputs[name].requires_grad_() for name in names]
    with torch.set_grad_enabled(bool(names)):
        y, statistics = conv_solve(
            inputs["x"],
            nodes._replace(**{name: t for name, t in inputs.items() if name != "x"}),
            spec=case.spec,
            grid=case.grid,
            training=case.training,
            checkpoint=case.checkpoint,
            return_steps=case.return_steps,
            backend=backend,
        )
    assert (statistics is not None) == case.batch_statistics
    results = {"y": y.detach(), **(statistics._asdict() if statistics else {})}
    results = {name: rearrange(name, value, axes) for name, value in results.items()}
    if names:
        upstream = LAYOUTS[case.upstream](dy.to(device, y.dtype))
        upstream = rearrange("dy", upstream, axes) if axes else upstream
        grads = torch.autograd.grad(y, leaves, upstream, materialize_grads=True)
        for name, grad in zip(names, grads, strict=True):
            results[f"d {name}"] = rearrange(name, grad, axes)
    return after_solve(fault, {name: value.cpu() for name, value in results.items()})


class _Kinks(TorchDispatchMode):
    """Notes how close any relu came to its kink."""

    def __init__(self) -> None:
        super().__init__()
        self.distance = float("inf")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.relu.default and args[0].numel():
            self.distance = min(self.distance, args[0].abs().min().item())
        return func(*args, **(kwargs or {}))


@lru_cache(maxsize=512)
def away_from_kinks(case: Case, distance: float = FAR_FROM_KINKS) -> Case:
    """The case with the first seed at which no relu of the exact solve comes near its kink."""
    for seed in range(case.seed, case.seed + 200):
        moved = replace(case, seed=seed)
        with _Kinks() as kinks:
            solve(replace(moved, grads="", checkpoint="none"), "reference:none", torch.float64)
        if kinks.distance >= distance:
            return moved
    raise AssertionError(f"{case}: every seed comes near a kink")


def truth(case: Case) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """The exact results, and those of PyTorch in the dtype of the case, summed in several orders."""
    return _truth(replace(case, checkpoint="none"))  # recomputation takes time and changes no result


@lru_cache(maxsize=64)
def _truth(case: Case) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    exact = solve(case, "reference:none", torch.float64)
    if case.dtype == torch.float64:
        return exact, []
    return exact, [solve(case, "reference:none", axes=axes) for axes in ORDERS]


def scale(case: Case, name: str, exact: list[dict[str, torch.Tensor]]) -> float | None:
    """A bias that the next norm takes away has a gradient of zero: a sum of terms as large as a weight's gradient."""
    cancels = case.batch_statistics or (case.norm == "group" and case.spec.groups == case.channels)
    if name != "d conv1_bias" or case.order != "pre" or not cancels or "d conv1_weight" not in exact[0]:
        return None
    return max(results["d conv1_weight"].abs().max().item() for results in exact)
