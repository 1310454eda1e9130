"""What messages between ranks are predicted to take, and what ``explain`` says of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import contnet_fast as cf
from contnet_fast.costmodel.messages import LINKS, Bucket, Link, TrainingStep, Way


def ring(**settings) -> Link:
    way = Way(**{"start": 1.0, "near": 0.1, "far": 10.0, "bandwidth": 100.0, **settings})
    return Link("a link", (way,), (way,), node=4, source="a test")


def small(**options) -> cf.models.ContinuousNet:
    return cf.models.ContinuousNet(1, 3, width=4, n_basis=2, n_steps=1, **options)


def test_a_ring_takes_a_hop_for_each_rank_and_far_ones_between_nodes():
    assert ring().gathers(200.0, 1) == 0.0
    assert ring().gathers(200.0, 3) == pytest.approx(1.0 + 2 * 0.1 + 2 * 200 / 100)
    assert ring().gathers(200.0, 8) == pytest.approx(1.0 + 6 * 0.1 + 1 * 10.0 + 7 * 200 / 100)
    assert ring().reduces(200.0, 8) == pytest.approx(1.0 + 12 * 0.1 + 2 * 10.0 + 2 * 7 / 8 * 200 / 100)


def test_a_tree_takes_the_logarithm_of_the_nodes():
    assert ring(tree=True).reduces(200.0, 32) == pytest.approx(1.0 + 2 * (3 * 0.1 + 3 * 10.0) + 2 * 200 / 100)


def test_the_fastest_way_is_taken():
    slow, fast = ring(start=9.0), ring()
    both = Link("two", slow.gather + fast.gather, slow.reduce + fast.reduce, node=4, source="a test")
    assert both.gathers(1.0, 4) == fast.gathers(1.0, 4)


def test_gradients_hide_behind_what_is_left_of_backward_one_bucket_after_another():
    link = ring(start=3.0, near=0.0, bandwidth=math.inf)  # 3 seconds a bucket

    def exposed(*left: float) -> float:
        return TrainingStep(20.0, (), 0, tuple(Bucket(1.0, each) for each in left)).exposed(link, 2)

    assert exposed(8.0, 4.0) == 0.0
    assert exposed(0.0) == 3.0
    assert exposed(8.0, 1.0) == 2.0
    assert exposed(2.0, 1.0) == 4.0  # the second waits for the first


def test_the_share_counts_messages_of_norms_and_what_is_exposed():
    link = ring(start=3.0, near=0.0, bandwidth=math.inf)
    step = TrainingStep(20.0, (4, 4), 8, (Bucket(1.0, 0.0),))
    assert step.share(link, 2, "") == pytest.approx(3 / 23)
    assert step.share(link, 2, "local") == pytest.approx(6 / 26)
    assert step.share(link, 2, "evaluation") == pytest.approx(9 / 29)
    assert step.share(link, 1, "evaluation") == 0.0


def test_explain_predicts_the_messages_of_the_network_of_the_paper():
    net = cf.models.ContinuousNet(3, 10)
    plan = cf.explain(net, torch.zeros(2, 3, 32, 32), device="H100", world_size=8, link="nccl")
    step, link = plan.ranks.step, LINKS["nccl"]
    assert len(step.statistics) == 2 * (1 + 3 + 3 * 2 * 4 * 8)  # about 400
    assert max(step.statistics) == 516
    assert sum(bucket.size for bucket in step.buckets) == 4 * sum(p.numel() for p in net.parameters())
    assert plan.ranks.share == step.share(link, 8, "")
    assert step.messages(link, 8, "evaluation") == pytest.approx(sum(link.gathers(s, 8) for s in step.statistics))
    shares = [step.share(link, ranks, "evaluation") for ranks in (1, 8, 64, 512)]
    assert shares == sorted(shares)
    text = str(plan)
    assert "predicted, not measured: a step on 8 ranks" in text
    assert f"{100 * step.share(link, 8, 'evaluation'):.3g} %" in text
    assert "of each rank (set)" in text


@pytest.mark.parametrize("sync", ["local", "evaluation"])
def test_the_share_is_that_of_what_the_model_was_converted_to(sync):
    net = cf.nn.convert_sync_statistics(small(), sync=sync)
    ranks = cf.explain(net, torch.zeros(2, 1, 8, 8), device="H100", world_size=8).ranks
    assert ranks.share == ranks.step.share(LINKS["gloo"], 8, sync)
    assert f"'{sync}' (set)" in str(ranks)


def test_a_quarter_of_the_evaluations_is_a_quarter_of_their_messages():
    net = cf.set_discretization(cf.models.ContinuousNet(3, 10), scheme="euler")
    plan = cf.explain(net, torch.zeros(2, 3, 32, 32), device="H100", world_size=2)
    assert len(plan.ranks.step.statistics) == 2 * (1 + 3 + 3 * 2 * 8)


def test_measured_times_are_taken_for_the_forward_passes():
    net = small(norm="group")
    plan = cf.explain(net, torch.zeros(2, 1, 8, 8), measure=True, device="H100", world_size=2)
    forward = sum(dict(plan.seconds)[name] for name, unit in plan.units if not unit.problem.is_part)
    assert plan.ranks.step.compute == pytest.approx(4 * forward)  # backward has twice its products and recomputes it
    assert not plan.ranks.step.statistics
    assert "as measured, backward counted" in str(plan)


def test_what_cannot_be_predicted_is_refused_in_words():
    net, x = small(), torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match="link: got 'tcp', accepted: gloo, nccl"):
        cf.explain(net, x, device="H100", world_size=2, link="tcp")
    with pytest.raises(ValueError, match="link: got 'nccl' without world_size"):
        cf.explain(net, x, link="nccl")
    with pytest.raises(ValueError, match="world_size: got 0"):
        cf.explain(net, x, device="H100", world_size=0)
    with pytest.raises(TypeError, match="call: got function with world_size, accepted there: a module"):
        cf.explain(lambda x: net(x), x, world_size=2)
    assert cf.explain(nn.Identity(), x, device="H100", world_size=2).ranks.step.compute == 0.0
