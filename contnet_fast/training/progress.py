"""Progress of a run on a terminal, or one line for each epoch elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .config import Config
from .task import IMAGES, kind_of

LINES = 20  # of brief epochs


class ConsoleReporter:
    """A bar with loss, accuracy, images/s and time left on a terminal; lines everywhere. Use it in ``with``.

    Args:
        lines: print a line for the run and for each of its epochs and refinements.
    """

    def __init__(self, console: Console, *, lines: bool = True) -> None:
        self.console = console
        self._lines = lines
        self._task: TaskID | None = None
        self._status: dict[str, float] = {}
        self._kind, self._every, self._epochs = IMAGES, 1, 1
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> ConsoleReporter:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start(self, config: Config, parameters: int, work: int, done: int) -> None:
        """Print what is trained and show the bar; of many brief epochs, about twenty get a line."""
        self._kind, self._epochs = kind_of(config), config.epochs
        self._every = max(1, -(-config.epochs // LINES)) if self._kind.brief else 1
        discretization = (
            f", {config.scheme}, K = {config.n_basis}, N = {config.n_steps}" if config.is_continuous else ""
        )
        epochs = f"{config.epochs} epoch{'s' * (config.epochs > 1)}"
        text = f"{config.model} on {config.data}{discretization}: {parameters:,} parameters, {epochs}"
        if self._lines:
            self.console.print(text)
        self._task = self._progress.add_task("training", total=work, completed=done, status="")

    def batch(self, work: int, status: dict[str, float]) -> None:
        """Advance the bar."""
        self._status = status or self._status
        if self._task is not None:
            text = (
                f"loss {self._status.get('loss', float('nan')):.3f}  "
                f"{self._kind.measure} {100 * self._status.get('accuracy', float('nan')):.1f} %  "
                f"{self._status.get(f'{self._kind.unit}_per_second', 0):,.0f} {self._kind.unit}/s"
            )
            self._progress.update(self._task, advance=work, status=text)

    def record(self, record: dict[str, Any]) -> None:
        """Print a finished epoch or refinement."""
        if not self._lines:
            return
        if record["event"] == "refine":
            self.console.print(
                f"  refined to K = {record['n_basis']}, N = {record['n_steps']}: validation accuracy "
                f"{100 * record['valid_accuracy_before']:.2f} % before, "
                f"{100 * record['valid_accuracy_same_steps']:.2f} % with the same steps, "
                f"{100 * record['valid_accuracy_double_steps']:.2f} % with twice the steps"
            )
            return
        if (record["epoch"] + 1) % self._every and record["epoch"] + 1 != self._epochs:
            return
        test = f"test {100 * record['test_accuracy']:.2f} %  " if "test_accuracy" in record else ""
        unit = self._kind.unit
        depth = f"  N {record['n_steps']}" if "n_steps" in record else ""
        self.console.print(
            f"  epoch {record['epoch']:>3}{depth}  loss {record['train_loss']:.4f}  "
            f"train {100 * record['train_accuracy']:.2f} %  valid {100 * record['valid_accuracy']:.2f} %  {test}"
            f"{record[f'{unit}_per_second']:,.0f} {unit}/s  lr {record['lr']:.4f}"
        )


class Silent:
    """A reporter that does nothing."""

    def start(self, config: Config, parameters: int, work: int, done: int) -> None:
        """Do nothing."""

    def batch(self, work: int, status: dict[str, float]) -> None:
        """Do nothing."""

    def record(self, record: dict[str, Any]) -> None:
        """Do nothing."""
