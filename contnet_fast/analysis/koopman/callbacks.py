"""Recorders as callbacks of other training loops, which need not be installed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from .recorder import Recorder


class _Follower:
    """Begins a recorder with the training, and calls it for each step of the optimiser."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._settings = settings
        self._done = 0
        self._optimizer: torch.optim.Optimizer | None = None
        self._rate: float | None = None
        self.recorder: Recorder | None = None

    def _start(self, model: nn.Module, optimizer: torch.optim.Optimizer | None, done: int) -> None:
        settings = self._settings
        if settings.get("resume"):
            settings = {"last_step": done - 1, **settings}
        self.recorder, self._done = Recorder(model, optimizer=optimizer, **settings), done
        self._optimizer = optimizer

    def _note_rate(self) -> None:
        """Note the learning rate before the step, after which schedules have changed it."""
        if self._optimizer is not None:
            self._rate = float(self._optimizer.param_groups[0]["lr"])

    def _step(self, done: int, loss: Any = None) -> None:
        if self.recorder is not None and done > self._done:
            self.recorder.record(done - 1, loss=loss, rate=self._rate)
            self._done = done

    def _stop(self) -> None:
        if self.recorder is not None and self.recorder.path is not None:
            self.recorder.close()


class _LightningHooks(_Follower):
    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Begin, in the first process."""
        if trainer.is_global_zero:
            self._start(module, trainer.optimizers[0] if trainer.optimizers else None, trainer.global_step)

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        """Note the learning rate."""
        self._note_rate()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any, **__: Any) -> None:
        """Record if the optimiser made a step."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self._step(trainer.global_step, loss)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Close the file."""
        self._stop()


class _TransformersHooks(_Follower):
    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin, in the first process."""
        if state.is_world_process_zero:
            self._start(given["model"], given.get("optimizer"), state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the learning rate."""
        self._note_rate()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Record the step."""
        self._step(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the file."""
        self._stop()


def lightning_callback(**settings: Any) -> Any:
    """Return a callback for Lightning's ``Trainer`` that records; ``recorder`` is its :class:`Recorder`.

    Args:
        settings: of the recorder, but for the model and the optimiser, which the trainer gives. With ``resume``, the
            snapshots after the step from which the trainer goes on are removed.

    Raises:
        ValueError: Lightning is not installed.
    """
    return _derived(_LightningHooks, "Callback", ("lightning.pytorch", "pytorch_lightning"), settings)


def transformers_callback(**settings: Any) -> Any:
    """Return the same for the ``Trainer`` of Hugging Face's transformers, which does not tell the loss.

    Raises:
        ValueError: transformers is not installed.
    """
    return _derived(_TransformersHooks, "TrainerCallback", ("transformers",), settings)


def _derived(hooks: type, base: str, modules: tuple[str, ...], settings: dict[str, Any]) -> Any:
    for name in modules:
        try:
            parent = getattr(import_module(name), base)
        except ImportError:
            continue
        return type(f"Koopman{base}", (hooks, parent), {})(**settings)
    raise ValueError(f"callback: got no {modules[0]}, accepted: where it is installed")
