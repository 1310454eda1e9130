"""Several threads on one unit of an image, each for some of its channels: results have the bits of one thread."""

from __future__ import annotations

import pytest
import torch
from conv_cases import SOLVE, STAGE, Case, built, solve
from thread_counts import by_threads

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
