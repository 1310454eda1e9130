"""States that are pytrees of tensors: leaf by leaf the same as tensors, in one op, with one error norm."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from thread_counts import by_threads
from torch.utils._pytree import tree_leaves, tree_map, tree_structure, tree_unflatten

import contnet_fast as cf
from contnet_fast import reference
from contnet_fast.ops import lookup

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.skipif("'cpu' not in cf.available_backends()"))]
CHECKPOINTS = ["none", "step", "block"]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


class Particle(NamedTuple):
    x: torch.Tensor
    v: torch.Tensor


def mixed() -> dict:
    """Shapes, dtypes and memory formats of every kind."""
    return {
        "image": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "pair": (torch.randn(2049, dtype=torch.float64), [torch.randn((), dtype=torch.complex64)]),
        "low": Particle(torch.randn(7).to(torch.bfloat16), torch.randn(0, 3).to(torch.float16)),
    }


def doubles() -> dict:
    return {
        "x": torch.randn(3, dtype=torch.float64),
        "rest": (torch.randn(2, 2, dtype=torch.float64), torch.randn((), dtype=torch.complex128)),
    }


def like(state):
    return tree_map(torch.randn_like, state)


def grow(t, state):
    """A field that couples the leaves of ``doubles``."""
    x, (a, z) = state["x"], state["rest"]
    total = a.sum() + z.abs()
    return {"x": torch.cos(x) + 0.1 * total, "rest": (torch.sin(a) * t + x[:2], z * 1j)}


def pack(state) -> torch.Tensor:
    leaves = tree_leaves(state)
    return torch.cat([part.reshape(-1) for x in leaves for part in ((x.real, x.imag) if x.is_complex() else (x,))])


def unpack(u: torch.Tensor) -> dict:
    """The inverse of ``pack`` for ``doubles``."""
    return {"x": u[:3], "rest": (u[3:7].reshape(2, 2), torch.complex(u[7], u[8]))}


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


@each_backend
def test_combinations_are_those_of_the_leaves_and_keep_dtypes_and_formats(backend):
    y = mixed()
    ks, c = [like(y) for _ in range(3)], [0.5, 0.0, -2.0]
    got = cf.rk_combine(y, ks, c, h=0.5, backend=backend)
    assert isinstance(got["low"], Particle)
    assert isinstance(got["pair"][1], list)
    for leaf, out, *rates in zip(tree_leaves(y), tree_leaves(got), *map(tree_leaves, ks), strict=True):
        assert (out.dtype, out.stride()) == (leaf.dtype, leaf.stride())
        assert torch.equal(out, cf.rk_combine(leaf, rates, c, h=0.5, backend=backend))


@each_backend
def test_one_op_for_the_whole_pytree(backend):
    y = mixed()
    with cf.record_runs() as log:
        cf.rk_combine(y, [y, y], [1.0, 1.0], backend=backend)
        cf.rk_combine_error(y, [y], [1.0], [1.0], rtol=0.1, atol=0.1, backend=backend)
    assert [run.op for run in log] == ["rk_combine", "rk_combine_error"]


@each_backend
def test_the_error_norm_is_that_of_the_concatenated_vector(backend):
    y = {"a": torch.randn(5, 3, dtype=torch.float64), "b": [torch.randn(4000, dtype=torch.float64)]}
    ks, c, e = [like(y), like(y)], [0.5, 0.5], [0.3, -0.2]
    options = {"h": 0.7, "rtol": 0.1, "atol": 0.01, "backend": backend}
    y1, norm = cf.rk_combine_error(y, ks, c, e, **options)
    together, expected = cf.rk_combine_error(pack(y), [pack(k) for k in ks], c, e, **options)
    torch.testing.assert_close(norm, expected, rtol=1e-13, atol=0.0)
    assert torch.equal(pack(y1), together)


@each_backend
def test_the_error_norm_of_mixed_leaves_weighs_elements_not_leaves(backend):
    y = mixed()
    ks, e = [like(y), like(y)], [0.3, -0.2]
    y1, norm = cf.rk_combine_error(y, ks, [0.5, 0.5], e, rtol=0.1, atol=0.01, backend=backend)
    squares, elements = 0.0, 0
    for leaf, out, *rates in zip(tree_leaves(y), tree_leaves(y1), *map(tree_leaves, ks), strict=True):
        squares += leaf.numel() * reference.rk_error_norm(leaf, out, rates, e, rtol=0.1, atol=0.01).item() ** 2
        elements += leaf.numel()
    assert norm.dtype == torch.float64
    assert norm.item() == pytest.approx((squares / elements) ** 0.5, rel=1e-5)
    low = {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.bfloat16)}
    assert cf.rk_combine_error(low, [low], [1.0], [1.0], rtol=0.1, atol=0.1, backend=backend)[1].dtype == torch.float32
    empty = (torch.zeros(0), torch.zeros(0, 2))
    assert cf.rk_combine_error(empty, [empty], [1.0], [1.0], rtol=0.0, atol=1.0, backend=backend)[1].item() == 0.0


@each_backend
def test_opcheck(backend):
    ys = tree_leaves(mixed())
    ks = [torch.randn_like(y) for _ in range(2) for y in ys]
    torch.library.opcheck(lookup("rk_combine", backend), (ys, ks, [0.5, 0.0]))
    torch.library.opcheck(lookup("rk_combine_error", backend), (ys, ks, [0.5, 0.25], [0.1, -0.1], 1e-3, 1e-6))


@each_backend
def test_gradients_once_and_twice(backend):
    leaves = [x.requires_grad_() for x in tree_leaves([doubles() for _ in range(3)])]
    structure = tree_structure(doubles())

    def combine(*leaves):
        y, a, b = (tree_unflatten([x * x for x in leaves[i : i + 3]], structure) for i in (0, 3, 6))
        y, norm = cf.rk_combine_error(y, [a, b], [0.2, 0.0], [0.1, 0.2], rtol=0.1, atol=0.1, backend=backend)
        assert not norm.requires_grad
        return tuple(tree_leaves(cf.rk_combine(y, [a, b], [0.0, -1.5], h=0.7, backend=backend)))

    assert torch.autograd.gradcheck(combine, leaves)
    assert torch.autograd.gradgradcheck(combine, leaves)


@each_backend
def test_a_leaf_without_influence_has_no_gradient_and_no_nan(backend):
    y = {"a": torch.ones(2, requires_grad=True), "b": torch.ones(2)}
    k = {"a": torch.ones(2), "b": torch.ones(2, requires_grad=True)}
    out = cf.rk_combine(y, [k], [0.5], backend=backend)
    out["b"].sum().backward()
    assert k["b"].grad.tolist() == [0.5, 0.5]
    assert y["a"].grad is None or y["a"].grad.tolist() == [0.0, 0.0]


@pytest.mark.skipif("'cpu' not in cf.available_backends()")
def test_results_have_the_same_bits_for_any_number_of_threads():
    y = [torch.randn(100_001), torch.randn(3), torch.randn(50_000, dtype=torch.float64), *torch.randn(40, 2)]
    ks = [like(y) for _ in range(3)]
    results = by_threads(lambda: cf.rk_combine_error(y, ks, [0.1] * 3, [0.2] * 3, rtol=1e-3, atol=1e-3, backend="cpu"))
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])


def solved(y0, backend, checkpoint, solve=cf.rk_solve):
    y0 = tree_map(lambda x: x.clone().requires_grad_(), y0)
    out = solve(grow, y0, scheme="bosh3", n_steps=3, checkpoint=checkpoint, backend=backend)
    grads = torch.autograd.grad(pack(out).square().sum(), tree_leaves(y0))
    return out, grads


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("backend", ["reference:none", *BACKENDS])
def test_solves_equal_those_of_the_concatenated_vector(backend, checkpoint):
    y0 = doubles()
    y, grads = solved(y0, backend, checkpoint)

    u0 = pack(y0).requires_grad_()
    u = cf.rk_solve(lambda t, u: pack(grow(t, unpack(u))), u0, scheme="bosh3", n_steps=3, backend="reference:none")
    torch.testing.assert_close(pack(y), u, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pack(grads), torch.autograd.grad(u.square().sum(), u0)[0])


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_the_reference_alone_takes_pytrees(checkpoint):
    y0 = tree_map(lambda x: x.requires_grad_(), doubles())

    def stage(i, s, y):
        return grow(0.5 * i, y), (y["x"],)

    options = {"stage_rows": [[], [0.25]], "update": [0.0, 0.5], "n_steps": 2, "checkpoint": checkpoint}
    y, auxes = reference.rk_solve(stage, y0, **options)
    u = y0
    for i in range(2):
        middle = tree_map(lambda a, b: a + 0.25 * b, u, grow(0.5 * i, u))
        u = tree_map(lambda a, b: a + 0.5 * b, u, grow(0.5 * i, middle))
    torch.testing.assert_close(y, u)
    assert len(auxes) == 4
    grads = [torch.autograd.grad(pack(out).square().sum(), tree_leaves(y0)) for out in (y, u)]
    torch.testing.assert_close(*grads)


@each_backend
def test_all_steps_are_a_pytree_of_stacked_leaves(backend):
    y0 = mixed()
    with torch.no_grad():
        states = cf.rk_solve(lambda t, y: y, y0, scheme="rk4", n_steps=2, return_steps=True, backend=backend)
        end = cf.rk_solve(lambda t, y: y, y0, scheme="rk4", n_steps=2, backend=backend)
    assert states["image"].shape == (3, 2, 3, 4, 5)
    assert equal(tree_map(lambda x: x[0], states), y0)
    assert equal(tree_map(lambda x: x[2], states), end)
    assert states["low"].x.dtype == torch.bfloat16


def test_a_pytree_of_one_leaf_is_no_tensor():
    (y,) = cf.rk_solve(lambda t, y: (y[0],), (torch.ones(2),), scheme="euler", n_steps=1)
    assert y.tolist() == [2.0, 2.0]
    assert list(cf.rk_combine({"a": y}, [{"a": y}], [1.0])) == ["a"]


class Coupled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 3)

    def forward(self, t, state):
        x, v = state
        return v, torch.tanh(self.net(x)) * (1 + t)


class Turning(cf.nn.BasisModule):
    def __init__(self):
        super().__init__(cf.Basis("hat", 3))
        self.nodal_parameter("speed", torch.tensor([0.5, 1.0, 2.0]))

    def rate(self, weights, state):
        w = sum(phi * self.speed[k] for k, phi in weights)
        return {"x": -w * state["y"], "y": w * state["x"]}


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_block_around_a_field_of_pytrees(checkpoint):
    block = cf.nn.ContinuousBlock(Coupled(), scheme="rk4", n_steps=2, checkpoint=checkpoint)
    state = (torch.randn(4, 3), torch.randn(4, 3))
    x, v = block(state)
    (x.sum() + v.sum()).backward()
    assert block.field.net.weight.grad.abs().sum() > 0
    steps = block.trajectory(state)
    assert [s.shape for s in steps] == [(3, 4, 3)] * 2
    assert torch.equal(steps[0][-1], x)
    turn = cf.nn.ContinuousBlock(Turning(), scheme="rk4", n_steps=8, checkpoint=checkpoint)
    end = turn({"x": torch.ones(2), "y": torch.zeros(2)})
    torch.testing.assert_close(end["x"].square() + end["y"].square(), torch.ones(2), rtol=1e-4, atol=0.0)


def compiled(call):
    torch.compiler.reset()
    return torch.compile(call, fullgraph=True, backend="aot_eager")


@each_backend
def test_combinations_compile(backend):
    y, k = doubles(), doubles()

    def call(y, k):
        out, norm = cf.rk_combine_error(y, [k, y], [0.5, 0.25], [0.5, -0.5], rtol=0.1, atol=0.1, backend=backend)
        return pack(cf.rk_combine(out, [k], [0.5], backend=backend)).sum() + norm

    results = []
    for run in (call, compiled(call)):
        leaves = [x.detach().clone().requires_grad_() for x in tree_leaves((y, k))]
        state = [tree_unflatten(part, tree_structure(y)) for part in (leaves[:3], leaves[3:])]
        total = run(*state)
        results.append([total.detach(), *torch.autograd.grad(total, leaves)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
@pytest.mark.parametrize("backend", ["reference:none", *BACKENDS])
def test_solves_compile(backend, checkpoint):
    y0 = doubles()
    eager = solved(y0, backend, checkpoint)
    torch.testing.assert_close(solved(y0, backend, checkpoint, solve=compiled(cf.rk_solve)), eager)


@each_backend
def test_a_rate_that_is_a_part_of_the_state_compiles(backend):
    def solve(x, v):
        return cf.rk_solve(lambda t, s: (s[1], -s[0]), (x, v), scheme="midpoint", n_steps=2, backend=backend)

    x, v = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    results = [
        (out, torch.autograd.grad(pack(out).square().sum(), (x, v))) for out in (solve(x, v), compiled(solve)(x, v))
    ]
    torch.testing.assert_close(*results)
    y = torch.randn(3, requires_grad=True)
    out = compiled(lambda y: cf.rk_combine(y, [y, y], [0.5, 0.25], backend=backend))(y)
    assert torch.equal(torch.autograd.grad(out.sum(), y)[0], torch.full((3,), 1.75))


def test_the_order_of_keys_in_a_rate_does_not_matter():
    y = {"a": torch.zeros(2), "b": torch.zeros(2)}
    k = {"b": torch.full((2,), 2.0), "a": torch.ones(2)}
    for out in (cf.rk_combine(y, [k], [1.0]), cf.rk_solve(lambda t, y: k, y, scheme="euler", n_steps=1)):
        assert list(out) == ["a", "b"]
        assert (out["a"].tolist(), out["b"].tolist()) == ([1.0, 1.0], [2.0, 2.0])


def test_the_plan_of_a_pytree_says_its_dtypes_and_size():
    y = {"a": torch.zeros(3), "b": torch.zeros(2, 2, dtype=torch.float64)}
    ((_, plan),) = cf.explain(lambda y: cf.rk_combine(y, [y], [1.0]), y).units
    assert plan.problem.leaf_dtypes == (torch.float32, torch.float64)
    assert plan.problem.shape == (7,)
    assert "float32+float64" in str(cf.explain(lambda y: cf.rk_combine(y, [y], [1.0]), y))


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_the_cpu_backend_refuses_a_leaf_that_it_cannot_serve():
    y = (torch.zeros(2), torch.zeros(2, dtype=torch.complex32))
    with pytest.raises(cf.BackendUnavailable, match=r"dtype torch\.complex32"):
        cf.rk_combine(y, [y], [1.0], backend="cpu")


ONE, TWO = torch.zeros(1), torch.zeros(2)
PAIR = {"x": ONE, "v": (TWO,)}


@pytest.mark.parametrize(
    ("y", "k", "error", "words"),
    [
        (
            PAIR,
            {"x": ONE, "v": [TWO]},
            ValueError,
            r"ks\[0\]: got {'x': Tensor, 'v': \[Tensor\]}, accepted: .* of y, {'x'",
        ),
        (PAIR, {"x": ONE}, ValueError, r"ks\[0\]: got {'x': Tensor}, accepted: .*{'x': Tensor, 'v': \(Tensor,\)}"),
        (PAIR, ONE, ValueError, r"ks\[0\]: got Tensor, accepted: the structure of y"),
        (ONE, PAIR, TypeError, r"ks\[0\]: got dict, accepted: a torch.Tensor"),
        (PAIR, {"x": ONE, "v": (2.0,)}, TypeError, r"ks\[0\]\['v'\]\[0\]: got float, accepted: a torch.Tensor"),
        (
            PAIR,
            {"x": ONE, "v": (ONE,)},
            ValueError,
            r"ks\[0\]\['v'\]\[0\]: got torch.float32 \(1,\) on cpu, accepted: as y",
        ),
        (PAIR, {"x": ONE, "v": (TWO.to(torch.complex64),)}, ValueError, r"ks\[0\]\['v'\]\[0\]: got torch.complex64"),
        (PAIR, {"x": ONE, "v": (TWO.long(),)}, TypeError, r"ks\[0\]\['v'\]\[0\]: got dtype torch.int64"),
        ({"x": ONE, "v": 1.0}, PAIR, TypeError, r"y\['v'\]: got float, accepted: a torch.Tensor"),
        ({"x": ONE, "v": None}, PAIR, TypeError, r"y\['v'\]: got NoneType, accepted: a torch.Tensor"),
        ((ONE, TWO.long()), PAIR, TypeError, r"y\[1\]: got dtype torch.int64, accepted: a floating-point"),
        (({}, []), PAIR, ValueError, r"y: got \({}, \[\]\) without a tensor, accepted: at least one"),
        (
            (ONE, TWO.to("meta")),
            PAIR,
            ValueError,
            r"y\[1\]: got a leaf on meta, accepted: the device of the first leaf, cpu",
        ),
    ],
)
def test_bad_pytrees_name_the_argument_and_the_leaf(y, k, error, words):
    with pytest.raises(error, match=words):
        cf.rk_combine(y, [k], [1.0])
    if words.startswith("y"):
        with pytest.raises(error, match=words.replace("y", "y0", 1)):
            cf.rk_solve(lambda t, y: k, y, n_steps=1)
    elif error is ValueError or "a torch.Tensor" in words:
        with pytest.raises(error, match=words.replace(r"ks\[0\]", "field", 1)):
            cf.rk_solve(lambda t, y: k, y, n_steps=1)
