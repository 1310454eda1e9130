"""How work is shared out: several threads on one unit, several images in one pass over the weights. No bit changes."""

from __future__ import annotations

import pytest
import torch
from conv_cases import SOLVE, STAGE, Case, built, draw, solve
from thread_counts import by_threads

from contnet_fast.functional import conv_solve
from contnet_fast.reference.rk import CHECKPOINTS

pytestmark = built

THREADS = (1, 2, 3, 5, 8)  # 96 channels are at most three slices, and 80 are two that differ


def check(case: Case, backend: str) -> None:
    first, *others = by_threads(lambda: solve(case, backend), THREADS)
    for other in others:
        for name, value in first.items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_norms_and_orders(order, norm, training):
    check(Case(channels=80, size=(4, 5), batch=1, order=order, norm=norm, training=training, grads="all"), STAGE)


@pytest.mark.parametrize("policy", CHECKPOINTS)
@pytest.mark.parametrize("scheme", ["euler", "rk4", "dopri5"])
def test_policies_and_schemes_that_combine_many_rates(policy, scheme):
    check(Case(channels=96, size=(4, 4), batch=2, scheme=scheme, checkpoint=policy, grads="all", n_steps=2), STAGE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [33, 48, 64, 100])
def test_dtypes_and_channels_that_are_no_multiple(dtype, channels):
    check(Case(channels=channels, size=(3, 4), batch=1, dtype=dtype), SOLVE)


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize(("norm", "training"), [("batch", True), ("batch", False), ("group", True), ("none", False)])
@pytest.mark.parametrize("policy", CHECKPOINTS)
def test_images_that_are_convolved_together(order, norm, training, policy):
    """One thread takes eight images and one, nine threads share them and their channels out in another way."""
    case = Case(
        channels=72, size=(4, 3), batch=9, order=order, norm=norm, training=training, checkpoint=policy, grads="all"
    )
    one, nine = by_threads(lambda: solve(case, STAGE), (1, 9))
    for name, value in one.items():
        assert torch.equal(value, nine[name]), name


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (7, 7)], ids=str)
def test_a_batch_has_the_bits_of_its_images(size):
    case = Case(channels=72, size=size, batch=11, norm="group")
    x, nodes, _ = draw(case)
    x, nodes = x.float(), nodes._make(None if t is None else t.float() for t in nodes)

    def run(x: torch.Tensor) -> torch.Tensor:
        return conv_solve(x, nodes, spec=case.spec, grid=case.grid, backend=SOLVE)[0]

    assert torch.equal(run(x), torch.cat([run(image) for image in x.split(1)]))
