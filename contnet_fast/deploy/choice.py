"""The discretization of a trained network that serves best within a budget of latency, by measurement."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..analysis.accuracy import Score
from ..analysis.discretizations import halvings, scheme_name
from ..backends import check_backend
from ..errors import BackendUnavailable, check_choice, check_count, check_number
from ..nn import blocks, project, set_discretization
from ..schemes.tableaus import get_tableau
from .program import evaluating

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
SCHEMES = ("euler", "midpoint", "heun3", "rk4_classic")
ROUNDS = 15
CALLS = 2  # timed in a round, after one that is not: another discretization has just run

Scorer = Callable[[nn.Module], Score]
Journal = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A way of running a network: its discretization, the autocast dtype of its fields, and the backend of its blocks.

    ``n_basis`` below that of the trained network is a projection without retraining (:func:`contnet_fast.project`).
    """

    scheme: str
    n_steps: int
    n_basis: int
    dtype: str = "float32"
    backend: str = "auto"

    @property
    def evaluations(self) -> int:
        """Calls of the field in a block."""
        return get_tableau(self.scheme).n_solution_stages * self.n_steps

    def __str__(self) -> str:
        words = f"{self.scheme} N={self.n_steps} K={self.n_basis}"
        return f"{words} {self.dtype if self.dtype != 'float32' else ''} {self.backend}".replace("  ", " ")


@dataclass(frozen=True)
class Measured:
    """A candidate, its score on the validation data, and the milliseconds of one call.

    Attributes:
        low, high: quartiles of the calls, of which ``ms`` is the median.
    """

    candidate: Candidate
    score: Score
    ms: float
    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """What was measured, and what was chosen.

    Attributes:
        rows: every candidate that runs here, the fastest first.
        front: those that no other is both faster and more accurate than.
        trained: the discretization that the network came with.
        chosen: within the budget, and within the loss if one was given.
        net: the chosen network, in eval mode.
        refused: candidates that cannot run here, with the reasons.
        batch_size, threads: of the calls that were timed.
    """

    rows: tuple[Measured, ...]
    trained: Measured
    chosen: Measured
    net: nn.Module
    budget_ms: float
    max_loss: float | None
    refused: tuple[tuple[Candidate, str], ...]
    batch_size: int
    threads: int

    @property
    def front(self) -> tuple[Measured, ...]:
        """The rows that no other row is both faster and at least as accurate than."""
        return front(self.rows)

    @property
    def loss(self) -> float:
        """Percentage points of validation accuracy that the choice gives up against the trained discretization."""
        return 100 * (self.trained.score.accuracy - self.chosen.score.accuracy)

    def running(self, row: Measured) -> Any:
        """The context that a row was measured in: autocast, if its dtype is not float32."""
        return autocast(row.candidate.dtype, next(self.net.parameters()).device)

    @property
    def speedup(self) -> float:
        """How many times as fast as the trained discretization it is, by the medians."""
        return self.trained.ms / self.chosen.ms


def front(rows: Iterable[Measured]) -> tuple[Measured, ...]:
    """The rows that no other row is both faster and at least as accurate than, the fastest first."""
    found: list[Measured] = []
    for row in sorted(rows, key=lambda r: (r.ms, -r.score.accuracy)):
        if not found or row.score.accuracy > found[-1].score.accuracy:
            found.append(row)
    return tuple(found)


def choose(rows: Sequence[Measured], trained: Measured, *, budget_ms: float, max_loss: float | None = None) -> Measured:
    """The most accurate row within the budget; with ``max_loss`` the fastest that loses no more than that.

    Equally accurate ones: the faster.

    Raises:
        ValueError: there is none; the message says what comes nearest.
    """
    within = [row for row in rows if row.ms <= budget_ms]
    fastest = min(rows, key=lambda row: row.ms)
    if not within:
        raise ValueError(f"budget_ms: got {budget_ms:g}, accepted here: {fastest.ms:.3g} or more ({fastest.candidate})")
    best = max(within, key=lambda row: (row.score.accuracy, -row.ms))
    if max_loss is None:
        return best
    least = trained.score.accuracy - max_loss / 100 - 1e-12
    kept = [row for row in within if row.score.accuracy >= least]
    if not kept:
        lost = 100 * (trained.score.accuracy - best.score.accuracy)
        raise ValueError(
            f"max_loss: got {max_loss:g} with a budget of {budget_ms:g} ms, accepted here: {lost:.3g} or more "
            f"({best.candidate}, {best.ms:.3g} ms)"
        )
    return min(kept, key=lambda row: row.ms)


def candidates(
    net: nn.Module,
    *,
    schemes: Sequence[str] = SCHEMES,
    steps: Sequence[int] = (),
    project: Sequence[int] | None = None,
    dtypes: Sequence[str] = ("float32",),
    backends: Sequence[str] = ("auto",),
) -> list[Candidate]:
    """Every combination, and the discretization that ``net`` has, first, with the first dtype and backend.

    Args:
        steps: none stands for 1, 2, 4, ... up to the N of ``net``. project: sizes of the basis beside that of ``net``;
            ``None`` stands for its halvings.

    Raises:
        TypeError, ValueError: naming the argument, before anything runs.
    """
    found = blocks(net)
    if not found or any(block.grid is None for block in found):
        raise ValueError("net: got a network without blocks of a basis, accepted: one with ContinuousBlocks of such")
    block = found[0]
    names = [scheme_name(scheme) for scheme in schemes]
    for name in names:
        get_tableau(name)
    counts = [check_count("steps", n) for n in steps] or powers(block.n_steps)
    basis = block.field.basis
    sizes = halvings(basis) if project is None else [check_count("project", k) for k in project]
    larger = [k for k in sizes if k > basis.size]
    if larger:
        raise ValueError(f"project: got {larger[0]}, accepted: up to the K = {basis.size} of the network")
    for dtype in dtypes:
        check_choice("dtypes", dtype, DTYPES)
    for backend in backends:
        check_backend(backend)
    first = Candidate(block.scheme, block.n_steps, basis.size, dtypes[0], backends[0])
    rest = itertools.product(names, counts, [basis.size, *sizes], dtypes, backends)
    return list(dict.fromkeys([first, *(Candidate(*words) for words in rest)]))


def powers(n: int) -> list[int]:
    """1, 2, 4, ... below n, and n."""
    return [*itertools.takewhile(lambda m: m < n, (2**i for i in range(n))), n]


class Discretized:
    """The networks of candidates: copies of the trained one, one for each size of the basis."""

    def __init__(self, net: nn.Module) -> None:
        self._nets: dict[int, nn.Module] = {}
        self._trained, self._size = net, blocks(net)[0].field.basis.size

    def __call__(self, candidate: Candidate) -> nn.Module:
        """The network set to a candidate."""
        size = candidate.n_basis
        if size not in self._nets:
            same = size == self._size
            self._nets[size] = (copy.deepcopy(self._trained) if same else project(self._trained, n_basis=size)).eval()
        net = set_discretization(self._nets[size], scheme=candidate.scheme, n_steps=candidate.n_steps)
        for block in blocks(net):
            block.backend = check_backend(candidate.backend)
        return net


def autocast(dtype: str, device: torch.device) -> Any:
    """The context in which fields compute in ``dtype``."""
    return nullcontext() if DTYPES[dtype] is None else torch.autocast(device.type, dtype=DTYPES[dtype])


@torch.no_grad()
def measure(
    net: nn.Module,
    wanted: Sequence[Candidate],
    score: Scorer,
    example: torch.Tensor,
    *,
    rounds: int = ROUNDS,
    journal: Journal | None = None,
    clock: Callable[[], float] = time.perf_counter,
    done: Callable[[float, str], object] = lambda _share, _words: None,
) -> tuple[list[Measured], list[tuple[Candidate, str]]]:
    """Score every candidate, then time them in turn, round after round.

    Args:
        score: of a network, on the validation data.
        example: one batch as it is served, on the device of the network.
        rounds: in each, every candidate is called once untimed and then timed twice.
        clock: in seconds.
        journal: what an interrupted measurement already knows, by ``str`` of the candidate; it is filled. ``done`` may
            save it.
        done: called after each part with the share of the work that is done, and words for it.
    """
    make = Discretized(net)
    known: Journal = {} if journal is None else journal
    scores, times, refused = (known.setdefault(name, {}) for name in ("scores", "times", "refused"))
    work = sum(c.evaluations for c in wanted) or 1
    behind = 0
    for candidate in wanted:
        key = str(candidate)
        if key not in scores and key not in refused:
            try:
                with autocast(candidate.dtype, example.device):
                    scores[key] = asdict(score(make(candidate)))
            except BackendUnavailable as error:
                refused[key] = " ".join(str(error).split())
        behind += candidate.evaluations
        done(0.5 * behind / work, key)
    serving = [candidate for candidate in wanted if str(candidate) in scores]
    for i in range(known.get("rounds", 0), rounds):
        for candidate in serving:
            net_of = make(candidate)
            with autocast(candidate.dtype, example.device):
                taken = [_seconds(net_of, example, clock) for _ in range(CALLS + 1)][1:]
            times.setdefault(str(candidate), []).extend(1e3 * t for t in taken)
        known["rounds"] = i + 1
        done(0.5 + 0.5 * (i + 1) / rounds, f"round {i + 1} of {rounds}")
    rows = [_row(candidate, Score(**scores[str(candidate)]), times[str(candidate)]) for candidate in serving]
    return rows, [(candidate, refused[str(candidate)]) for candidate in wanted if str(candidate) in refused]


def _seconds(net: nn.Module, x: torch.Tensor, clock: Callable[[], float]) -> float:
    start = clock()
    net(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return clock() - start


def _row(candidate: Candidate, score: Score, ms: Sequence[float]) -> Measured:
    low, _, high = quantiles(ms, n=4, method="inclusive") if len(ms) > 1 else (ms[0],) * 3
    return Measured(candidate, score, median(ms), low, high)


def choose_discretization(
    net: nn.Module,
    loader: Iterable[tuple[torch.Tensor, torch.Tensor]],
    *,
    budget_ms: float,
    max_loss: float | None = None,
    batch_size: int = 1,
    schemes: Sequence[str] = SCHEMES,
    steps: Sequence[int] = (),
    project: Sequence[int] | None = None,
    dtypes: Sequence[str] = ("float32",),
    backends: Sequence[str] = ("auto",),
    rounds: int = ROUNDS,
    done: Callable[[float, str], object] = lambda _share, _words: None,
) -> Choice:
    """Measure accuracy and latency of every discretization of a trained classifier, and choose one for a budget.

    Weights are used as they are, or projected onto fewer basis functions: nothing is trained. Latency is that of one
    call on this machine with the threads in use, the median of calls made in turn.

    Args:
        net: a classifier with ODE blocks; it is left as it was.
        loader: validation data, batches of inputs and int64 labels on the device of ``net``, which is read once for
            each candidate.
        budget_ms: the most milliseconds of a call.
        max_loss: percentage points of accuracy that may be lost against the discretization of ``net``: then the
            fastest within both limits is chosen, else the most accurate within the budget.
        batch_size: inputs in a call that is timed.
        schemes, steps, project, dtypes, backends: see :func:`candidates`. The dtypes are those of autocast.
        rounds: of timing.
        done: called with the share of the work that is done, and words for it.

    Raises:
        TypeError, ValueError: naming the argument; nothing fits, and what comes nearest.
    """
    check_number("budget_ms", budget_ms, positive=True)
    if max_loss is not None:
        check_number("max_loss", max_loss)
    check_count("batch_size", batch_size)
    check_count("rounds", rounds)
    wanted = candidates(net, schemes=schemes, steps=steps, project=project, dtypes=dtypes, backends=backends)
    example = _example(loader, batch_size)
    with evaluating(net):
        rows, refused = measure(net, wanted, lambda made: _score(made, loader), example, rounds=rounds, done=done)
    return decide(net, wanted[0], rows, refused, example, budget_ms=budget_ms, max_loss=max_loss)


def decide(
    net: nn.Module, first: Candidate, rows: Sequence[Measured], refused: Sequence[tuple[Candidate, str]],
    example: torch.Tensor, *, budget_ms: float, max_loss: float | None,
) -> Choice:  # fmt: skip
    """Make the choice among rows; ``first`` is the trained discretization.

    Raises:
        ValueError: nothing fits, or the trained discretization cannot run here.
    """
    trained = next((row for row in rows if row.candidate == first), None)
    if trained is None:
        reasons = dict(refused)[first]
        raise ValueError(f"backends: got {first.backend!r}, which cannot run the trained discretization: {reasons}")
    chosen = choose(rows, trained, budget_ms=budget_ms, max_loss=max_loss)
    return Choice(
        rows=tuple(sorted(rows, key=lambda row: row.ms)), trained=trained, chosen=chosen,
        net=Discretized(net)(chosen.candidate), budget_ms=budget_ms, max_loss=max_loss,
        refused=tuple(refused), batch_size=len(example), threads=torch.get_num_threads(),
    )  # fmt: skip


def _example(loader: Iterable[tuple[torch.Tensor, torch.Tensor]], size: int) -> torch.Tensor:
    found: list[torch.Tensor] = []
    for inputs, _ in loader:
        found.append(inputs)
        if sum(map(len, found)) >= size:
            break
    if sum(map(len, found)) < size:
        raise ValueError(f"batch_size: got {size}, accepted: up to the {sum(map(len, found))} inputs of loader")
    return torch.cat(found)[:size].clone()


def _score(net: nn.Module, loader: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Score:
    right, loss, n, start = 0, 0.0, 0, time.perf_counter()
    for inputs, labels in loader:
        logits = net(inputs).float()
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(1) == labels).sum())
        n += len(labels)
    return Score(right / n, loss / n, n, (time.perf_counter() - start) / n)
