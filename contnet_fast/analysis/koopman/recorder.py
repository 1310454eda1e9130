"""Records a training for its Koopman analysis."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ...errors import choice_error
from .observables import Outputs, Values, Weights, trainable
from .recording import Recording, RecordingWriter
from .sketch import count_sketch

OBSERVABLES = ("weights", "projection", "output")
WIDTH = 256


class Recorder:
    """Writes observables of a model to a file while it is trained; one snapshot is in memory.

    Call :meth:`record` after each step of the optimiser. The file is readable at any moment, whatever happens to the
    process (:func:`open_recording`), and an interrupted recording can be resumed.

    Args:
        model: any module; wrappers of ``torch.compile`` and ``DistributedDataParallel`` are looked through. With
            several processes, one records.
        every: the number of steps between two snapshots.
        observables: ``"weights"``, all parameters that need gradients now, each once; ``"projection"``, a count sketch
            of these (:func:`count_sketch`); ``"output"``, the outputs in eval mode for ``inputs``; or a function of
            the model that returns a tensor.
        width: numbers that remain of a snapshot after projection: 256 unless told for ``"projection"``; of
            ``"output"`` and functions all remain unless told.
        path: the file; ``None`` for a temporary one.
        seed: of the projection.
        optimizer: whose learning rate is noted with each snapshot.
        optimizer_state: whether snapshots of weights also hold what the optimiser keeps for each, as momentum. The
            first :meth:`record` must then follow a step.
        inputs: of ``"output"``: a tensor, or a tuple or dictionary of arguments.
        average: whether a snapshot is the mean of the observables over the ``every`` steps that end with it, which
            removes noise of batches, and not their last value.
        resume: whether ``path`` may hold a recording with the same settings, which goes on.
        last_step: with ``resume``, snapshots of later steps are removed.

    Raises:
        ValueError: an impossible setting; a model or a parameter that cannot be recorded; a file that exists.
        TypeError: the observables are neither a name nor a function.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 1,
        observables: str | Callable[[nn.Module], torch.Tensor] = "weights",
        width: int | None = None,
        path: str | Path | None = None,
        seed: int = 0,
        optimizer: torch.optim.Optimizer | None = None,
        optimizer_state: bool = False,
        inputs: Any = None,
        average: bool = False,
        resume: bool = False,
        last_step: int | None = None,
    ) -> None:
        _check_settings(every, observables, width, inputs, resume, last_step, optimizer, optimizer_state)
        self.every, self.average = every, average
        self.path = None if path is None else Path(path)
        self.width = WIDTH if width is None and observables == "projection" else width
        self.seed = seed
        self.dtype = torch.float64 if any(_is_wide(p) for p in model.parameters()) else torch.float32
        self._model, self._optimizer = model, optimizer
        self._observables, self._inputs = observables, inputs
        self._state_of = optimizer if optimizer_state else None
        self._resume, self._last_step = resume, last_step
        self._observe: Weights | Outputs | Values | None = None
        self._writer: RecordingWriter | None = None
        self._closed = False
        self._sum: torch.Tensor | None = None
        self._summed = self._next = 0
        if observables in ("weights", "projection"):
            trainable(model)
        if not optimizer_state:
            self._begin()

    def record(self, step: int | None = None, *, loss: Any = None, rate: float | None = None) -> bool:
        """Count one step and write a snapshot if its turn has come; return whether one was written.

        Args:
            step: the number of the step, from 0; one more than that of the last call unless told. Snapshots are those
                of multiples of ``every``, or with ``average`` those before multiples.
            loss: of the step, a number or a tensor with one.
            rate: the learning rate; that of the optimiser's first group unless told.

        Raises:
            ValueError: the step is not after that of the last snapshot; the model is no longer the same; the recorder
                is closed.
        """
        if self._closed:
            raise ValueError("record: got a closed recorder, accepted: an open one")
        if self._writer is None:
            self._begin()
        assert self._writer is not None
        step = self._next if step is None else step
        last = self._writer.last_step
        if last is not None and step <= last:
            raise ValueError(f"step: got {step}, accepted: a step after {last}, that of the last snapshot")
        self._next = step + 1
        due = (step + self.average) % self.every == 0
        if not (due or self.average):
            return False
        values = self._snapshot()
        if self.average:
            self._sum = values.to(torch.float64, copy=True) if self._sum is None else self._sum.add_(values)
            self._summed += 1
            if not due:
                return False
            values, self._sum, self._summed = self._sum / self._summed, None, 0
        if isinstance(loss, torch.Tensor):
            loss = loss.detach()
        self._writer.append(
            values.to("cpu", self.dtype).numpy(),
            step=step,
            rate=self._rate() if rate is None else rate,
            loss=math.nan if loss is None else float(loss),
            gradient_norm=self._gradient_norm(),
        )
        return True

    def snapshots(self) -> torch.Tensor:
        """Return the snapshots so far, [T, p]: a private memory map of the file, apart from the model."""
        return torch.from_numpy(self._read("c").values)

    def recording(self) -> Recording:
        """Return the snapshots so far with their steps, rates, losses and norms of gradients.

        Raises:
            ValueError: nothing was recorded and the recorder waits for the optimiser's first step; it is closed.
        """
        return self._read("r")

    def close(self) -> None:
        """Store the file and close it."""
        self._closed = True
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, mode: Literal["r", "c"]) -> Recording:
        if self._writer is None or (self._closed and self.path is None):
            state = "without a snapshot" if self._writer is None else "closed, whose file was temporary"
            raise ValueError(f"recorder: got one {state}, accepted: one with snapshots")
        return self._writer.read(mode)

    def _begin(self) -> None:
        """Open the file for snapshots of the size that the model has now."""
        self._observe = self._observer()
        size = self._observe.size if isinstance(self._observe, Weights) else len(self._observe(self.dtype))
        named = self._observables if isinstance(self._observables, str) else "function"
        description = {
            "observables": named,
            "size": size if self.width is None else self.width,
            "observed": size,
            "dtype": str(self.dtype).removeprefix("torch."),
            "every": self.every,
            "average": self.average,
            "seed": None if self.width is None else self.seed,
            "names": self._observe.names,
        }
        self._writer = RecordingWriter(self.path, description, resume=self._resume, last_step=self._last_step)
        if self._writer.last_step is not None:
            self._next = self._writer.last_step + 1

    def _observer(self) -> Weights | Outputs | Values:
        if self._observables == "output":
            return Outputs(self._model, self._inputs)
        if isinstance(self._observables, str):
            return Weights(self._model, optimizer=self._state_of)
        return Values(self._model, self._observables)

    @torch.no_grad()
    def _snapshot(self) -> torch.Tensor:
        """Return the observables now, of which the next call may overwrite the tensor."""
        assert self._observe is not None
        found = self._observe(self.dtype)
        return found if self.width is None else count_sketch(found, width=self.width, seed=self.seed)

    def _rate(self) -> float:
        return math.nan if self._optimizer is None else float(self._optimizer.param_groups[0]["lr"])

    def _gradient_norm(self) -> float:
        """Return the 2-norm of the gradients that the parameters hold, NaN without any."""
        found = [p.grad for p in self._model.parameters() if p.grad is not None and p.grad.layout == torch.strided]
        return float(nn.utils.get_total_norm(found)) if found else math.nan


def _is_wide(parameter: torch.Tensor) -> bool:
    return parameter.dtype in (torch.float64, torch.complex128)


def _check_settings(
    every: int,
    observables: object,
    width: int | None,
    inputs: object,
    resume: bool,
    last_step: int | None,
    optimizer: torch.optim.Optimizer | None,
    optimizer_state: bool,
) -> None:
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"every: got {every}, accepted: a positive number of steps")
    if isinstance(observables, str):
        if observables not in OBSERVABLES:
            raise choice_error("observables", observables, OBSERVABLES)
    elif not callable(observables):
        raise TypeError(f"observables: got {type(observables).__name__}, accepted: a name or a function of the model")
    if width is not None and (not isinstance(width, int) or width < 1):
        raise ValueError(f"width: got {width}, accepted: a positive number, or None")
    if width is not None and observables == "weights":
        raise ValueError(f"width: got {width} with observables 'weights', accepted: with 'projection'")
    if (inputs is None) == (observables == "output"):
        given = "none" if inputs is None else type(inputs).__name__
        raise ValueError(
            f"inputs: got {given} with observables {observables!r}, accepted: with 'output', and only there"
        )
    if last_step is not None and not resume:
        raise ValueError(f"last_step: got {last_step} without resume, accepted: with resume=True")
    if optimizer_state and (optimizer is None or observables not in ("weights", "projection")):
        raise ValueError("optimizer_state: got True, accepted: with an optimizer, and with 'weights' or 'projection'")
