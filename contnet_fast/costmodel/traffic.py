"""Operations and bytes of each launch, counted from its arguments: what the tables of docs/kernels.md predict from.

``inner`` bytes pass through first-level caches and shared memory: every tap of a convolution loads its pixels there
once, and products read both operands from shared memory once more. What every program reads for itself, weights and the
rows of partial sums over the batch, comes from L2 once a program (``reread``). Other tables of a few kilobytes are left out.

Nothing here needs triton: ``count`` takes a kernel's name and, of its arguments, those that its count reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .costs import Cost
from .passes import Work

Arguments = Mapping[str, Any]
COMBINED, NORMED = 4, (1, 2, 4)  # modes of maps.py
BATCH = 1  # a coupling of adjoint.py


def count(kernel: str, arguments: Arguments) -> Cost:
    """The count of one launch."""
    return _COUNTS[kernel](arguments)


def work(kernel: str, blocks: int, a: Arguments, times: int = 1) -> Work:
    """Launches of ``blocks`` programs, which share units of pixels where the kernel has them."""
    units, per_block = None, 1
    if "units_per_program" in a and kernel != "prepare":
        units, per_block = blocks // _programs(a) * a["units"], a["units_per_program"]
    return Work(kernel, times, blocks, count(kernel, a), working_set(kernel, a), units, per_block)


def working_set(kernel: str, a: Arguments) -> float:
    """Bytes that stay in use around a launch: of a solve its state, rates and operands, about eight maps."""
    if kernel in ("conv_solve", "weight_gradient"):
        elements = a["images"] * a["height"] * a["width"] * a["C"]
    elif "target" in a and "C" in a:
        elements = _images(a) * a.get("pixels", a.get("height", 0) * a.get("width", 0)) * a["C"]
    else:
        return count(kernel, a).bytes
    return 8.0 * elements * (2 if _is_half(a) else 4)


def _is_half(a: Arguments) -> bool:
    return any(name in a and a[name].element_size() == 2 for name in ("packed", "tape", "target"))


def _programs(a: Arguments) -> int:
    """Along the axis of pixels."""
    return -(-a["units"] // a["units_per_program"])


def _images(a: Arguments) -> int:
    return a["units"] // a["tiles"]


def _conv(a: Arguments, images: int, pixels: int, operand: int, count: int = 1) -> tuple[float, float]:
    """Operations and inner bytes of ``count`` 3x3 convolutions of ``images``."""
    c, width = a["C"], a["BLOCK_N"]
    blocks = -(-c // width)
    tiles = -(-pixels // a["BLOCK_P"])
    taps = 9.0 * images * pixels * c * operand * blocks  # each block of output channels loads all input channels
    weights = 9.0 * c * width * operand * images * tiles * blocks
    return count * 2.0 * 9 * c * c * images * pixels, count * 2 * (taps + weights)


def _maps(a: Arguments, *names: str) -> int:
    """Bytes of an element of each named buffer together."""
    return sum(a[name].element_size() for name in names)


def _conv_stage(a: Arguments) -> Cost:
    images, pixels = _images(a), a["height"] * a["width"]
    flops, inner = _conv(a, images, pixels, a["packed"].element_size())
    combined = a["MODE"] == COMBINED
    names = ["source", "target", *(("state", "rates") if a["COMBINE"] or combined else ())]
    names += ["inputs"] if a["WRITE"] else []
    if combined:  # each tap loads the state too
        inner += 9.0 * images * pixels * a["C"] * a["state"].element_size() * -(-a["C"] // a["BLOCK_N"])
    elements = images * pixels * a["C"]
    rows = a["rows_in"] if a["MERGE"] and a["MODE"] in NORMED else 0
    return Cost(flops, elements * _maps(a, *names) + _weights(a), 1, inner=inner, reread=_reread(a, 3 * rows))


def _weights(a: Arguments) -> int:
    return 9 * a["C"] ** 2 * a["packed"].element_size()


def _reread(a: Arguments, rows: int = 0) -> float:
    """What every program of a convolution reads: its weights, and ``rows`` of the channels' partial sums."""
    per_block = 9.0 * a["C"] * a["BLOCK_N"] * a["packed"].element_size() + 4.0 * rows * a["C"]
    return _programs(a) * -(-a["C"] // a["BLOCK_N"]) * per_block


def _conv_gradient(a: Arguments) -> Cost:
    images, pixels = _images(a), a["height"] * a["width"]
    flops, inner = _conv(a, images, pixels, a["packed"].element_size())
    read = ("value_in",) if a["MASK"] or a["SUMS"] else ()
    elements = images * pixels * a["C"]
    return Cost(flops, elements * _maps(a, "source", "target", *read) + _weights(a), 1, inner=inner, reread=_reread(a))


def _conv_solve(a: Arguments) -> Cost:
    images, pixels, n = a["images"], a["height"] * a["width"], a["evaluations"]
    operand, state = a["packed"].element_size(), a["x"].element_size()
    convolutions = 2 * n - (1 if a["RECOMPUTE"] and not a["POST"] else 0)
    flops, inner = _conv(a, images, pixels, operand, count=convolutions)
    elements = images * pixels * a["C"]
    kinds = 3 if a["POST"] else 2
    tape = kinds * n * state if a["TAPE"] else 0
    # both operands are written once an evaluation; the state is read and a rate written or read
    through = n * (2 * operand + 2 * state)
    once = 2 * state + 2 * a["slots"] * 9 * a["C"] ** 2 * operand / elements
    reread = float(images * convolutions * _weights(a))
    return Cost(flops, elements * (once + tape + through), 1, inner=inner + elements * through, reread=reread)


def _weight_gradient(a: Arguments) -> Cost:
    elements = a["images"] * a["height"] * a["width"] * a["C"]
    convs = 2 * a["stages"]
    size = _maps(a, "tape", "grads")
    flops = convs * 2.0 * 9 * elements * a["C"]
    blocks = -(-a["C"] // a["BLOCK_N"])
    inner = convs * elements * 2 * (9 * blocks * a["tape"].element_size() + 3 * a["grads"].element_size())
    sums = a["weight_sums"].numel() * a["weight_sums"].element_size()
    return Cost(flops, convs * elements * size + sums, 1, inner=inner)


def _add_up(a: Arguments) -> Cost:
    nodes = 2 * a["weight_grads"].numel() * 4  # read and written
    return Cost(0.0, a["weight_sums"].numel() * 4 + nodes, 1)


def _pointwise(*names: str) -> Callable[[Arguments], Cost]:
    """A pass that reads or writes each named map once."""

    def count(a: Arguments) -> Cost:
        elements = _images(a) * a["pixels"] * a["C"]
        named = [n for n in names if n in a and not (n == "upstream" and not a.get("ADD"))]
        rows = 2 * a["rows"] if a.get("COUPLING") == BATCH else 3 * a["rows_in"] if a.get("MERGE") else 0
        return Cost(0.0, elements * _maps(a, *named), 1, reread=4.0 * rows * a["C"] * _programs(a))

    return count


def _prepare(a: Arguments) -> Cost:
    packed = a["packed"].numel() * a["packed"].element_size()
    nodes = 2 * a["conv1_weight"].numel() * a["conv1_weight"].element_size()
    statistics = a["x"].numel() * a["x"].element_size() if a["partials"].shape[0] else 0
    return Cost(0.0, packed + nodes + statistics, 1)


def _rk_combine(a: Arguments) -> Cost:
    elements = sum(a["sizes"])
    size = a["ys"][0].element_size() * (2 + len(a["COEFFICIENTS"]))
    size += sum(kept[0].element_size() for kept in (a["befores"], a["afters"]) if kept)
    return Cost(0.0, elements * size, 1)


def _edges(a: Arguments, *names: str) -> float:
    """Bytes of the named tensors, which have an entry an edge."""
    return float(sum(a[name].numel() * a[name].element_size() for name in names))


def _diffusion_stage(a: Arguments) -> Cost:
    """Neighbours' values come from first-level caches; each block of columns reads the edges for itself."""
    elements, edges = a["u"].numel(), a["indices"].numel()
    written = ("base", "target", "source", "upstream", "total", "total") if a["target"] is not None else ()
    maps = _maps(a, *(name for name in ("u", "product", *written) if a[name] is not None))
    maps += a["terms"].element_size() if a["keep"] else 0
    read = _edges(a, "indices", "values", *(("places",) if a["places"] is not None else ()))
    inner = edges * a["FEATURES"] * a["u"].element_size()
    others = -(-a["FEATURES"] // a["BLOCK_F"]) - 1
    return Cost(2.0 * edges * a["FEATURES"], elements * maps + read, 1, inner=inner, reread=others * read)


def _solve_slice(a: Arguments) -> Cost:
    """Maps of slices stay in first-level caches, and every slice reads the edges for itself at every evaluation. Blocks of
    rows wait longer than that takes (triton_slices.py)."""
    maps = _size(a, "x", "y", "states", "source")
    return _slices(a, maps, _edges(a, "indices", "values"), 1)


def _solve_slice_back(a: Arguments) -> Cost:
    """Stages are made again for the sums by coefficients, which are the reason that states are there."""
    again = a["inputs"] is not None
    maps = _size(a, "grad", "grad_x", "grad_source", *(("x", "states", "source") if again else ()))
    forward, back = _edges(a, "indices", "values"), _edges(a, "back_indices", "values", "places")
    read = forward + back if again else back
    return _slices(a, maps + _size(a, "scale_sums", "diagonal_sums"), read, 2 if again else 1)


def _slices(a: Arguments, maps: float, edges: float, evaluations: int) -> Cost:
    """``evaluations`` for each stage, in which a slice reads ``edges`` bytes of them in all."""
    slices, _, nodes, columns = a["maps"].shape
    stages = a["steps"] * a["stages"]
    gathered = float(evaluations * stages * a["indices"].numel() * slices * columns)
    kept = 4.0 * evaluations * stages * slices * nodes * columns  # u, the state, the source and what follows
    inner = (gathered + kept) * a["maps"].element_size()
    return Cost(2 * gathered, maps + edges, 1, inner=inner, reread=(stages * slices - 1) * edges)


def _row_gradients(a: Arguments) -> Cost:
    elements, stages = a["costate"].numel(), a["stages"]
    names = (
        "rates",
        *(name for name, s in (("products", "scale_sums"), ("inputs", "diagonal_sums")) if a[s] is not None),
    )
    return Cost(2.0 * stages * elements * (len(names) - 1), stages * elements * _maps(a, *names), 1)


def _value_gradient(a: Arguments) -> Cost:
    elements, edges, stages = a["costate"].numel(), a["indices"].numel(), a["stages"]
    size = _maps(a, "rates", "inputs")
    gathered = float(stages * edges * a["FEATURES"])
    moved = stages * elements * size + _edges(a, "indices", "value_sums", "value_sums")
    return Cost(2.0 * gathered, moved, 1, inner=gathered * a["inputs"].element_size())


def _mixing_gradient(a: Arguments) -> Cost:
    """Tiles of the matrix side by side read the same maps again, the first time from memory."""
    elements, stages, features = a["costate"].numel(), a["stages"], a["FEATURES"]
    maps = float(stages * elements * _maps(a, "rates", "inputs"))
    tiles = -(-features // a["BLOCK_M"])
    flops = 2.0 * stages * elements * features
    sums = 2 * a["mixing_sums"].numel() * a["mixing_sums"].element_size()  # read and written
    return Cost(flops, maps + sums, 1, inner=2 * tiles * maps, reread=(tiles - 1) * maps)


def _mix_rows(a: Arguments) -> Cost:
    given = [a[name] for name in ("first", "second", "first_target", "second_target") if a[name] is not None]
    return Cost(0.0, float(sum(t.numel() * t.element_size() for t in given)), 1)


def _size(a: Arguments, *names: str) -> float:
    """Bytes of the named tensors that are there."""
    return float(sum(a[name].numel() * a[name].element_size() for name in names if a.get(name) is not None))


def _gathered(a: Arguments, *names: str) -> tuple[float, float]:
    """Values that the edges gather of the named maps, a row of each for each edge, and their bytes."""
    each = [(a[name].numel() / max(1, a["n"]), a[name]) for name in names if a.get(name) is not None]
    edges = a["indices"].numel()
    return sum(edges * width for width, _ in each), sum(edges * width * t.element_size() for width, t in each)


def _over_edges(*names: str, gathered: tuple[str, ...] = (), times: int = 2) -> Callable[[Arguments], Cost]:
    """A pass over the edges of all rows: each map moves once and is gathered from first-level caches, of which the
    program of every head reads the edges for itself; ``times`` operations a gathered value."""

    def counted(a: Arguments) -> Cost:
        values, inner = _gathered(a, *gathered)
        edges = _size(a, "indices", "places")
        moved = _size(a, "indptr", *names) + edges
        return Cost(times * values, moved, 1, inner=inner, reread=(a.get("HEADS", 1) - 1) * edges)

    return counted


def _error_norm(a: Arguments) -> Cost:
    return Cost(0.0, a["rows"] * a["partials"].element_size(), 1)


_COUNTS: dict[str, Callable[[Arguments], Cost]] = {
    "conv_stage": _conv_stage,
    "conv_gradient": _conv_gradient,
    "conv_solve": _conv_solve,
    "weight_gradient": _weight_gradient,
    "add_up": _add_up,
    "prepare": _prepare,
    "post_combine": _pointwise("after", "state", "target", "rates"),
    "norm_gradient": _pointwise("grad_in", "value_in", "target"),
    "stage_gradient": _pointwise("grad_in", "value_in", "costate", "target", "inputs", "upstream"),
    "rate_gradient": _pointwise("grad_in", "target"),
    "diffusion_stage": _diffusion_stage,
    "solve_slice": _solve_slice,
    "solve_slice_back": _solve_slice_back,
    "row_gradients": _row_gradients,
    "value_gradient": _value_gradient,
    "mixing_gradient": _mixing_gradient,
    "mix_rows": _mix_rows,
    "attention_sums": _over_edges(
        "targets", "sources", "states", "factors", "result", "largest", "sums", gathered=("sources", "states")
    ),
    "mean_weights": _over_edges("targets", "sources", "factors", "largest", "sums", "result", gathered=("sources",)),
    "edge_products": _over_edges("first", "second", "result", gathered=("second",)),
    "score_gradient": _over_edges(
        "targets",
        "sources",
        "states",
        "grad",
        "factors",
        "largest",
        "sums",
        "weights",
        "weights",
        "score_grads",
        "score_grads",
        "score_grads",
        gathered=("sources", "states"),
    ),
    "gathered_sums": _over_edges("numbers", "factors", "map", "result", gathered=("map",)),
    "rk_combine": _rk_combine,
    "error_norm": _error_norm,
}
