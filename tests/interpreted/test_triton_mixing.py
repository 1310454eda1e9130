"""Solves of WCGNN's field, whose columns have coefficients of their own, by Triton kernels equal the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dense_graphs import small_graph
from diffusion_cases import DTYPES, PLACES, Case, call_of, check, solve, truth
from guarded_memory import guarded_memory

import contnet_fast as cf
from contnet_fast.backends import triton as backend_triton
from contnet_fast.nn import GraphBlock, WeightedDiffusionField
from contnet_fast.ops import lookup
from contnet_fast.testing import assert_within_budget

pytestmark = pytest.mark.skipif(
    "triton" not in cf.available_backends(), reason="needs triton, and a GPU or its interpreter"
)
DEVICE = "cuda" if torch.cuda.is_available() and not backend_triton.INTERPRETED else "cpu"
SERVED = [dtype for dtype in DTYPES if DEVICE == "cuda" or dtype != torch.bfloat16]  # the interpreter truncates to it
BACKEND = "triton:stage"
MIXED = Case(mixing=True)


def judged(*cases):
    return pytest.mark.parametrize("case", dict.fromkeys(cases), ids=str)


@judged(*(
    replace(MIXED, features=features, dtype=dtype, scheme="midpoint") for features in (1, 5, 33) for dtype in SERVED
), replace(MIXED, features=70, scheme="euler"))  # fmt: skip
def test_every_width_and_dtype(case):
    check(case, DEVICE, BACKEND)


@judged(*(
    replace(MIXED, dtype=torch.float64, checkpoint=checkpoint, return_steps=steps, source=steps)
    for checkpoint in ("none", "step", "block") for steps in (False, True)
))  # fmt: skip
def test_every_policy_of_what_backward_keeps(case):
    check(case, DEVICE, BACKEND)


@judged(
    replace(MIXED, basis="hat", n_basis=3, scheme="heun2", index=torch.int64),
    replace(MIXED, edges=0, scheme="dopri5", dtype=torch.float64),
    replace(MIXED, hub=40, scheme="euler", dtype=torch.float64),
)
def test_bases_and_graphs(case):
    check(case, DEVICE, BACKEND)


@pytest.mark.parametrize(("nodes", "programs", "parts"), [(16, 256, 3), (16, 9, 1), (16, 18, 2), (64, 256, 1)])
def test_parts_of_the_nodes_and_tiles_of_the_matrix_are_added_up_once(nodes, programs, parts, monkeypatch):
    from contnet_fast.fields.diffusion.triton import backward, plan

    case = replace(MIXED, features=37, nodes=45, dtype=torch.float64, scheme="euler")
    for module, name, value in (
        (plan, "MOST", 16), (plan, "NODES", nodes), (backward, "NODES", nodes), (plan, "PROGRAMS", programs),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    assert plan.describe(call_of(case, "step")).mixing_grid == (parts, 3, 3)
    check(case, DEVICE, BACKEND)


@pytest.mark.integer_checks
def test_memory_that_was_not_asked_for_is_left_alone_and_all_that_was_is_written():
    """Outputs and working memory start as NaN, between bands that must keep their value."""
    from contnet_fast.fields.diffusion.triton import backward, coefficients, plan

    with guarded_memory(plan, backward, coefficients):
        check(replace(MIXED, features=17, nodes=70, scheme="midpoint"), DEVICE, BACKEND)


def collected(case, wanted):
    """Names of the kernels of a backward pass, none of them run."""
    from contnet_fast.fields.diffusion.triton import backward, forward, plan
    from contnet_fast.triton.launch import collect_launches

    call = call_of(case, case.checkpoint, device="meta")
    s, given = plan.describe(call), (call.x, call.nodes, call.operands)
    with collect_launches():
        y, maps = forward.diffusion_forward(s, *given, keep=call.keep, level="stage", return_steps=False)
    with collect_launches() as launches:
        backward.diffusion_backward(s, y, *given, keep=call.keep, level="stage", maps=maps, wanted=wanted)
    return [one.kernel.__name__ for one in launches]


def test_a_launch_a_step_gives_the_gradient_of_the_matrix():
    case = replace(MIXED, n_steps=3, checkpoint="none")
    stages, evaluations = len(case.grid.update), case.grid.n_evaluations
    assert collected(case, [8]) == ["diffusion_stage"] * evaluations
    assert collected(case, [9]) == 3 * [*["diffusion_stage"] * stages, "mixing_gradient"]
    assert collected(replace(case, nodes=65), [9])[-2:] == ["mixing_gradient", "mix_rows"]  # two parts


@pytest.mark.parametrize("wanted", [[], [9], [0, 9], [4, 8]])
@pytest.mark.parametrize("checkpoint", ["none", "block"])
def test_only_some_inputs_ask_for_a_gradient(wanted, checkpoint):
    case = replace(MIXED, scheme="midpoint", dtype=torch.float64, checkpoint=checkpoint)
    call = call_of(case, checkpoint, device=DEVICE)
    y, _, saved = lookup("diffusion_solve", "triton")(*call.arguments, False)
    upstream = torch.linspace(-1, 1, y.numel(), device=DEVICE, dtype=torch.float64).view(y.shape)
    found = lookup("diffusion_solve_backward", "triton")(upstream, *call.arguments, saved, wanted)
    names = ["x", *(name for name, place in PLACES.items() if place in wanted)]
    for name, value in zip(names, found, strict=True):
        expected = truth(replace(case, checkpoint="none"))[0][name]
        torch.testing.assert_close(value.cpu(), expected, rtol=1e-12, atol=1e-14)


def test_opcheck():
    call, tests = call_of(replace(MIXED, scheme="midpoint"), "step", device=DEVICE), ("test_schema", "test_faketensor")
    torch.library.opcheck(lookup("diffusion_solve", "triton"), (*call.arguments, False), test_utils=tests)
    y, _, saved = lookup("diffusion_solve", "triton")(*call.arguments, False)
    arguments = (torch.randn_like(y), *call.arguments, saved, [0, 1, 4, 8, 9])
    torch.library.opcheck(lookup("diffusion_solve_backward", "triton"), arguments, test_utils=tests)


def test_same_bits_in_every_run():
    case = replace(MIXED, features=17, nodes=130, scheme="euler")
    first, second = (solve(case, case.dtype, BACKEND, DEVICE) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in case.results)


@pytest.mark.parametrize("form", ["repository", "paper"])
def test_blocks_of_both_forms_and_every_gradient_of_their_parameters(form):
    def block_of(dtype, backend, called=False):
        torch.manual_seed(0)
        field = WeightedDiffusionField(7, 5, form=form, t_end=2.5)
        with torch.no_grad():
            field.alpha.normal_()
            field.eigenvalues.copy_(torch.linspace(0.1, 0.9, 5))
            field.eigenvectors.add_(torch.randn_like(field.eigenvectors), alpha=0.1)
        if called:
            field.register_forward_hook(lambda *_: None)
        return GraphBlock(field, scheme="heun3", n_steps=2, backend=backend).to(DEVICE, dtype)

    def run(block, dtype):
        generator = torch.Generator().manual_seed(1)
        h, s, weight = torch.randn(3, 7, 5, generator=generator).to(DEVICE, dtype).unbind()
        leaves = [h.requires_grad_(), s.requires_grad_(), *block.parameters()]
        with cf.record_runs() as runs:
            y = block(h, small_graph(7, 20).to(DEVICE).to(dtype=dtype), source=s)
            grads = torch.autograd.grad((y * weight).sum(), leaves)
        return {(one.backend, one.level) for one in runs if one.op.startswith("diffusion")}, [y.detach(), *grads]

    _, exact = run(block_of(torch.float64, "auto", called=True), torch.float64)
    _, plain = run(block_of(torch.float32, "auto", called=True), torch.float32)
    for dtype, same in ((torch.float64, None), (torch.float32, plain)):
        ran, found = run(block_of(dtype, BACKEND), dtype)
        assert ran == {("triton", "stage")}
        for place, (value, true) in enumerate(zip(found, exact, strict=True)):
            other, scale = () if same is None else same[place], max(1.0, true.abs().max().item())
            assert_within_budget(value, true, other, name=str(place), factor=8.0, scale=scale, evaluations=64)
