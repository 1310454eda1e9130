"""What of a model is recorded: its trainable parameters, its outputs, or what a function returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers of ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``."""
    while True:
        if isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters that need gradients, each once, by names without those of wrappers.

    Raises:
        ValueError: there is none, or one whose values are not here: on the meta device, lazy, sharded or sparse.
    """
    found: dict[str, torch.Tensor] = {
        n.replace("_orig_mod.", ""): p for n, p in unwrapped(model).named_parameters() if p.requires_grad
    }
    if not found:
        raise ValueError("model: got one without parameters that need gradients, accepted: one that is trained")
    for name, parameter in found.items():
        _check(name, parameter)
    return found


def _check(name: str, parameter: torch.Tensor) -> None:
    state = None
    if nn.parameter.is_lazy(parameter):
        state = "uninitialised"
    elif parameter.is_meta:
        state = "on the meta device"
    elif hasattr(parameter, "full_tensor"):
        state = "sharded"
    elif parameter.layout != torch.strided:
        state = f"of layout {parameter.layout}"
    if state is not None:
        raise ValueError(f"model: got parameter {name}, which is {state}, accepted: parameters with their values here")


class Weights:
    """All trainable parameters of a model as one vector, and what the optimiser keeps for them.

    Args:
        optimizer: its tensors that have the shape of a parameter follow the parameters; ``None`` for none. It must
            have made a step, without which it has no state.

    Raises:
        ValueError: see :func:`trainable`; the optimiser has no state.
    """

    def __init__(self, model: nn.Module, *, optimizer: torch.optim.Optimizer | None = None) -> None:
        self._model, self._optimizer = model, optimizer
        self._names = list(trainable(model))
        self._kept: dict[str, list[str]] = {}
        if optimizer is not None:
            self._kept = {name: _state_names(optimizer, p) for name, p in trainable(model).items()}
            if not any(self._kept.values()):
                raise ValueError(
                    "optimizer: got one without state for the model's parameters, accepted: one that keeps some, after "
                    "its first step"
                )
        self.names = [[name, list(part.shape)] for name, part in self.parts()]
        self.size = sum(_flat(part).numel() for _, part in self.parts())
        self._buffer: torch.Tensor | None = None

    def parts(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield names and tensors, as they are now, in the order of the vector.

        Raises:
            ValueError: a parameter is gone, or its state.
        """
        present = {n.replace("_orig_mod.", ""): p for n, p in unwrapped(self._model).named_parameters()}
        for name in self._names:
            if name not in present:
                raise ValueError(
                    f"model: got one that lost parameter {name}, accepted: the one the recorder began with"
                )
            yield name, present[name].detach()
        for name, keys in self._kept.items():
            state = self._optimizer.state.get(present[name], {}) if self._optimizer is not None else {}
            for key in keys:
                if key not in state:
                    raise ValueError(f"optimizer: got one without {key} of {name}, accepted: the one at the start")
                yield f"{name}/{key}", state[key].detach()

    def __call__(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the vector [p], which the next call overwrites.

        Raises:
            ValueError: a tensor changed its shape, or has no values here.
        """
        start = 0
        for (name, part), (_, shape) in zip(self.parts(), self.names, strict=True):
            if list(part.shape) != shape:
                raise ValueError(f"model: got {name} of shape {list(part.shape)}, accepted: {shape}, as at the start")
            _check(name, part)
            if self._buffer is None or self._buffer.dtype != dtype:
                self._buffer = torch.empty(self.size, dtype=dtype, device=part.device)
            flat = _flat(part)
            self._buffer[start : start + flat.numel()].copy_(flat)
            start += flat.numel()
        assert self._buffer is not None
        return self._buffer


def _flat(part: torch.Tensor) -> torch.Tensor:
    return (torch.view_as_real(part) if part.is_complex() else part).reshape(-1)


def _state_names(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> list[str]:
    state = optimizer.state.get(parameter, {})
    return [k for k, v in state.items() if isinstance(v, torch.Tensor) and v.shape == parameter.shape and v.dim()]


class Outputs:
    """The outputs of a model for fixed inputs, in eval mode and without gradients; the model is left as it was."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self._model, self._inputs = model, inputs
        self.names: list[list[Any]] = []

    @torch.no_grad()
    def __call__(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the outputs as one vector [p]."""
        model = unwrapped(self._model)
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            inputs = self._inputs
            if isinstance(inputs, Mapping):
                found = model(**inputs)
            else:
                found = model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)
        finally:
            for module, training in modes.items():
                module.training = training
        return vector("observables 'output'", getattr(found, "logits", found), dtype)


class Values:
    """What a function of the model returns."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module], torch.Tensor]) -> None:
        self._model, self._function = model, function
        self.names: list[list[Any]] = []

    @torch.no_grad()
    def __call__(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the values as one vector [p]."""
        return vector("observables", self._function(self._model), dtype)


def vector(argument: str, found: Any, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of any shape as one vector.

    Raises:
        TypeError: ``found`` is no tensor.
    """
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"{argument}: got {type(found).__name__}, accepted: one tensor")
    return _flat(found.detach()).to(dtype)
