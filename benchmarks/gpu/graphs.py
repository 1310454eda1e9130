"""Time diffusion and attention on graphs by our GPU backends beside PyTorch, its compiler and PyTorch Geometric.

Each row has a floor: the bytes that have to move if nothing stays in a cache from one pass over the rows to the next,
over the bandwidth of copies in the same rounds. A baseline that cannot run, or that computes something else, is left
out with its reason.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import combinations
from typing import Any

import torch

import contnet_fast as cf
from benchmarks.common.contender import Contender
from benchmarks.common.gate import GateError
from benchmarks.common.timing import Effort, OutOfTime, interleave, time_budget
from benchmarks.graphs.cases import edges_of
from benchmarks.graphs.solves import ALPHA, MOST_DIFFERENCE, STAGES, T_END
from contnet_fast.backends import available_backends
from contnet_fast.errors import BackendUnavailable
from contnet_fast.functional import graph_attention

OURS = ("triton", "cuda")
SOLVES = ("diffusion", "mixing")
GRAPHS = {"tiny": "tiny", "cora": "a graph of Cora's size", "random": "100,000 nodes and 1.1 M edges"}
COPIED = 2**26  # bytes of the map that is copied, more than second-level caches hold
Call = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class GraphCase:
    """What is timed on a graph: "diffusion" (CGNN), "mixing" (WCGNN, with the gradient of W), "gat" (8 heads) or
    "grand" (4 heads of depth 16, states without heads)."""

    what: str
    graph: str
    features: int
    backward: bool
    n_steps: int = 16

    @property
    def name(self) -> str:
        """Shown."""
        return f"{self.what}/{self.graph}/F={self.features}/{'forward+backward' if self.backward else 'forward'}"


def graph_cases(tiny: bool) -> list[GraphCase]:
    """All cases, the small graph first."""
    if tiny:
        return [GraphCase(what, "tiny", 8, b, 1) for what in (*SOLVES, "gat", "grand") for b in (False, True)]
    solves = [GraphCase("diffusion", g, f, b) for g, f in (("cora", 16), ("cora", 64), ("random", 64))
              for b in (False, True)]  # fmt: skip
    solves += [GraphCase("mixing", g, f, b) for g, f in (("cora", 16), ("random", 64)) for b in (False, True)]
    return [*solves, *(GraphCase(what, g, 64, b) for what in ("gat", "grand") for g in ("cora", "random")
                       for b in (False, True))]  # fmt: skip


@dataclass
class Task:
    """Calls by name, those with a gradient returning it; one that judges them; the least bytes that move."""

    calls: dict[str, Call]
    judge: Call
    floor_bytes: int
    left_out: list[str]


def measure_graph(
    case: GraphCase, device: str, effort: Effort, *, compile_budget: float, tiny: bool = False
) -> dict[str, Any]:
    """Return a row: milliseconds, ratios to ours, the floor, what was left out; or why none of ours serves it.

    Raises:
        GateError: one of our backends computes something else than the baseline.
    """
    torch.compiler.reset()
    task = (_diffusion if case.what in SOLVES else _attention)(case, device, tiny)
    expected = task.judge()
    gate = {}
    for name, call in list(task.calls.items()):
        try:
            with time_budget(compile_budget), cf.record_runs() as runs:
                difference = float((call() - expected).norm() / expected.norm())
            backend = name.partition(":")[0]
            if backend in OURS and {run.backend for run in runs} != {backend}:
                raise BackendUnavailable(f"{name}: it has no kernels of this")
            if not difference <= MOST_DIFFERENCE:
                raise GateError(f"{case.name}: {name} differs by {difference:.2g}, accepted: {MOST_DIFFERENCE}")
            gate[name] = difference
        except (Exception, OutOfTime) as error:
            unserved = isinstance(error, BackendUnavailable)
            if name.partition(":")[0] in OURS and not unserved:
                raise
            task.left_out.append(f"{name} ({_last_words(error) if unserved else _first_words(error)})")
            del task.calls[name]
    ours = [name for name in task.calls if name.partition(":")[0] in OURS]
    if not ours:
        return {"case": case.name, "refused": f"no backend of ours serves it: {', '.join(task.left_out)}"}
    source = torch.zeros(COPIED // (256 if tiny else 1), dtype=torch.uint8, device=device)
    copied = torch.empty_like(source)
    everyone = [Contender("copy", "copy", lambda: copied.copy_(source), 0.0)]
    everyone += [Contender(name, "graph", call, 0.0) for name, call in task.calls.items()]
    ms = {name: round(1e3 * t.median, 5) for name, t in interleave(everyone, effort, device=device).items()}
    rate = 2 * source.numel() / ms.pop("copy")  # bytes a millisecond
    floor = {"bytes": task.floor_bytes, "copy_gb_per_s": round(1e-6 * rate, 2), "ms": task.floor_bytes / rate}
    floor |= {"times": {name: round(ms[name] / floor["ms"], 3) for name in ours}}
    baselines = [name for name in ms if name not in ours]
    ratios = {f"{other} / {name}": round(ms[other] / ms[name], 3) for name in ours for other in baselines}
    ratios |= {f"{one} / {other}": round(ms[one] / ms[other], 3) for one, other in combinations(ours, 2)}
    return {"case": case.name, "gate": gate, "ms": ms, "ratios": ratios, "floor": floor,
            **({"left_out": task.left_out} if task.left_out else {})}  # fmt: skip


def _first_words(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no words'}"[:200]


def _last_words(error: BaseException) -> str:
    return str(error).splitlines()[-1].strip().partition(": ")[2][:200]


def _with_gradient(call: Call, inputs: Sequence[torch.Tensor], upstream: torch.Tensor) -> Call:
    return lambda: torch.cat([g.flatten() for g in torch.autograd.grad(call(), inputs, upstream)])


def _finished(case: GraphCase, calls: dict[str, Call], inputs: Sequence[torch.Tensor]) -> dict[str, Call]:
    """The calls, with the gradient by ``inputs`` where the case takes it; the result has the shape of the states."""
    if not case.backward:
        return calls
    upstream = torch.randn_like(inputs[0 if case.what in SOLVES else -1]).detach()
    return {name: _with_gradient(call, inputs, upstream) for name, call in calls.items()}


def _bytes(*tensors: torch.Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


# ---- solves with the settings of CGNN on Cora, and of WCGNN's field with the same


def _weighted_field(n: int, features: int) -> cf.nn.WeightedDiffusionField:
    field = cf.nn.WeightedDiffusionField(n, features, t_end=T_END)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        field.eigenvectors.copy_(torch.linalg.qr(torch.randn(features, features, generator=generator))[0])
        field.eigenvalues.copy_(torch.linspace(0.1, 0.9, features))
    return field


def _diffusion(case: GraphCase, device: str, tiny: bool) -> Task:
    index, n = edges_of(case.graph, None)
    graph = cf.Graph(index, num_nodes=n).symmetrized().normalized(0.555).to(device)
    generator = torch.Generator().manual_seed(1)
    h, source = (torch.randn(n, case.features, generator=generator).to(device) for _ in range(2))
    alpha = torch.full((n,), ALPHA, device=device)
    inputs = [t.requires_grad_(case.backward) for t in (h, source, alpha)]
    field = None
    if case.what == "mixing":
        field = _weighted_field(n, case.features).to(device).requires_grad_(case.backward)
        inputs = [h, source, *field.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls sparse rows a beta
        matrix = torch.sparse_csr_tensor(graph.indptr.long(), graph.indices.long(), graph.values, (n, n))

    def loop(product: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        y, dt = h, T_END / case.n_steps
        half = (0.5 * (alpha if field is None else field.alpha[0].sigmoid())).unsqueeze(1)
        mixing = None if field is None else field.mixing_rate(((0, 1.0),))

        def rate(u: torch.Tensor) -> torch.Tensor:
            return half * (product(u) - u) + (source if mixing is None else torch.addmm(source, u, mixing))

        for _ in range(case.n_steps):
            k1 = rate(y)
            u = y + dt / 2 * k1
            k2 = rate(u)
            u = y + dt / 2 * k2
            k3 = rate(u)
            u = y + dt * k3
            k4 = rate(u)
            y = y + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return y

    calls: dict[str, Call] = {"torch.sparse loop": lambda: loop(lambda u: matrix @ u)}
    left_out = []
    if tiny:
        left_out.append("torch.compile (left out of a dry run)")
    else:
        compiled = torch.compile(lambda: loop(lambda u: matrix @ u))
        calls["torch.compile of it"] = compiled
    if find_spec("torch_geometric"):
        from torch_geometric import EdgeIndex

        rows = torch.stack([graph.targets, graph.indices.long()])
        edges = EdgeIndex(rows, sparse_size=(n, n), sort_order="row").fill_cache_()
        calls["PyG EdgeIndex"] = lambda: loop(lambda u: edges.matmul(u, graph.values))
    else:
        left_out.append("PyG EdgeIndex (not installed)")
    own = partial(cf.graph_solve, h, graph, alpha=alpha, source=source, t_end=T_END, n_steps=case.n_steps)
    if field is not None:

        def own(*, backend: str) -> torch.Tensor:  # type: ignore[misc]
            block = cf.nn.GraphBlock(field, n_steps=case.n_steps, backend=backend)
            return block(h, graph, source=source)

    calls["judge"] = partial(own, backend="reference:none")
    for name in OURS:
        if name in available_backends():
            calls |= {f"{name}:{level}": partial(own, backend=f"{name}:{level}") for level in ("stage", "solve")}
        else:
            left_out.append(f"{name} (not available)")
    one_pass = _bytes(graph.indptr, graph.indices, graph.values, h, h)
    passes = STAGES * case.n_steps * (3 if case.backward else 1)  # evaluations, and again with their gradient
    calls = _finished(case, calls, inputs)
    return Task(calls, calls.pop("judge"), passes * one_pass, left_out)


# ---- attention: the op, with scores and states that are there


def _attention(case: GraphCase, device: str, tiny: bool) -> Task:
    index, n = edges_of(case.graph, None)
    graph = cf.Graph(index, num_nodes=n).symmetrized().normalized().to(device)
    generator = torch.Generator().manual_seed(1)
    heads, f = (8, case.features) if case.what == "gat" else (4, case.features)
    scores = (n, heads) if case.what == "gat" else (n, heads, 16)
    shapes = (scores, scores, (n, heads, f // heads) if case.what == "gat" else (n, f))
    targets, sources, states = inputs = [
        torch.randn(shape, generator=generator).to(device).requires_grad_(case.backward) for shape in shapes
    ]

    def plain() -> torch.Tensor:
        with cf.use_backend("reference"):
            return graph_attention(targets, sources, graph, states)

    calls: dict[str, Call] = {"plain PyTorch": plain}
    left_out = []
    if tiny:
        left_out.append("torch.compile (left out of a dry run)")
    else:
        calls["torch.compile of it"] = torch.compile(plain)
    if case.what == "gat" and find_spec("torch_geometric"):
        from torch_geometric.utils import scatter, softmax

        j, i = graph.edge_index

        def geometric() -> torch.Tensor:
            along = torch.nn.functional.leaky_relu(targets[i] + sources[j], 0.2)
            return scatter(softmax(along, i, num_nodes=n).unsqueeze(-1) * states[j], i, 0, n)

        calls["PyG softmax and scatter"] = geometric
    elif case.what == "gat":
        left_out.append("PyG softmax and scatter (not installed)")

    def own(name: str) -> torch.Tensor:
        with cf.use_backend(name):
            return graph_attention(targets, sources, graph, states)

    for name in OURS:
        if name in available_backends():
            calls[f"{name}:stage"] = partial(own, name)
        else:
            left_out.append(f"{name} (not available)")
    moved = _bytes(graph.indptr, graph.indices, targets, sources, states, states)
    if case.backward:  # everything again, the gradients, and two numbers an edge and head, written and read
        moved += 2 * moved + 4 * 4 * graph.num_edges * heads
    calls = _finished(case, calls, inputs)
    return Task(calls, calls["plain PyTorch"], moved, left_out)
