"""A watch on a training that can stop or restart it by rule; by default it only watches."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ...errors import check_choice, check_count
from .diagnosis import FEWEST, VERDICTS, Diagnosis, diagnose

ACTIONS = ("off", "stop", "restart")


class Alarm:
    """Diagnoses the latest weights of a training again and again, and says "go on", "stop" or "restart".

    ``update`` is called at equal distances, for example after each epoch. Weights or a loss that are not finite count
    as diverging at once. Else a verdict must come in ``persist`` diagnoses one after another, for an eigenvalue above 1
    may be the healthy growth of the first steps. After an action the watch begins anew.

    Args:
        action: ``"off"`` (it only watches: ``update`` always says "go on"), ``"stop"`` or ``"restart"``.
        verdicts: those that it acts on. "bad start" is often wrong in the first steps (docs/koopman.md).
        window: how many of the latest snapshots are diagnosed; so many are kept.
        every: updates between two diagnoses.
        persist: diagnoses in a row that have to agree.
        restarts: after so many restarts it says "stop".
        options: for :func:`diagnose`.

    Attributes:
        diagnoses: (number of the update, diagnosis), all of them.
        actions: (number of the update, what was said), without "go on".

    Raises:
        TypeError, ValueError: naming the argument.
    """

    def __init__(
        self,
        *,
        action: str = "off",
        verdicts: Sequence[str] = ("diverging",),
        window: int = 20,
        every: int = 5,
        persist: int = 2,
        restarts: int = 3,
        **options: Any,
    ) -> None:
        self._action = check_choice("action", action, ACTIONS)
        self._verdicts = tuple(check_choice("verdicts", verdict, VERDICTS) for verdict in verdicts)
        self._window = check_count("window", window, minimum=FEWEST)
        self._every, self._persist = check_count("every", every), check_count("persist", persist)
        self._restarts = check_count("restarts", restarts, minimum=0)
        self._options = options
        self._weights: deque[torch.Tensor] = deque(maxlen=window)
        self._losses: deque[float] = deque(maxlen=window)
        self._updates, self._in_row = 0, 0
        self.diagnoses: list[tuple[int, Diagnosis]] = []
        self.actions: list[tuple[int, str]] = []

    def update(self, weights: torch.Tensor | nn.Module, loss: float | None = None) -> str:
        """Take the present weights, and say "go on", "stop" or "restart".

        Args:
            weights: [p], or a module whose parameters are taken.
            loss: the present loss; without losses nothing is known of bad starts.
        """
        if isinstance(weights, nn.Module):
            weights = torch.cat([p.detach().reshape(-1) for p in weights.parameters()])
        self._updates += 1
        if not weights.isfinite().all() or (loss is not None and not math.isfinite(loss)):
            found = Diagnosis("diverging", "the weights or the loss are not finite", radius=math.inf)
            self.diagnoses.append((self._updates, found))
            return self._act(found.verdict, at_once=True)
        self._weights.append(weights.detach().to("cpu", copy=True))
        if loss is not None:
            self._losses.append(float(loss))
        if len(self._weights) < self._window or self._updates % self._every:
            return "go on"
        losses = list(self._losses) if len(self._losses) == len(self._weights) else None
        try:
            found = diagnose(torch.stack(list(self._weights)), losses, **self._options)
        except ValueError as error:  # weights that do not change
            found = Diagnosis("cannot tell", str(error))
        self.diagnoses.append((self._updates, found))
        return self._act(found.verdict)

    def _act(self, verdict: str, *, at_once: bool = False) -> str:
        """Return what to do after a diagnosis."""
        if verdict not in self._verdicts:
            self._in_row = 0
            return "go on"
        same = len(self.diagnoses) > 1 and self.diagnoses[-2][1].verdict == verdict and self._in_row > 0
        self._in_row = self._in_row + 1 if same else 1
        if self._action == "off" or not (at_once or self._in_row >= self._persist):
            return "go on"
        done = sum(action == "restart" for _, action in self.actions)
        said = "restart" if self._action == "restart" and done < self._restarts else "stop"
        self.actions.append((self._updates, said))
        self._weights.clear()
        self._losses.clear()
        self._in_row = 0
        return said
