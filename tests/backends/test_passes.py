"""Predicted times of whole passes are made of the launches that the host code makes, on both GPU backends alike."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from contnet_fast.backends import triton as backend_triton
from contnet_fast.costmodel import cuda_pass, triton_pass
from contnet_fast.costmodel.costs import BY_ARCH, DEVICES
from contnet_fast.costmodel.passes import ConvPass, seconds
from tools import predictions

STAGES = {"euler": 1, "midpoint": 2, "rk4_classic": 4}


def test_multiprocessors_get_whole_blocks():
    a100 = DEVICES["A100"]
    assert a100.share(108) == 1.0
    assert a100.share(27) == 0.25
    assert a100.share(128) == 128 / 216  # two turns
    assert a100.share(108, units=128, per_block=2) == 128 / 216  # blocks that take the images in turn
    assert DEVICES["H100"].share(17 * 8, cluster=8) == 136 / 264  # 16 clusters of 8 have room
    assert a100.share(200, units=1600, per_block=8) == 1600 / 1728


def of_block(block, state: str = "") -> ConvPass:
    """A block of the manifest, its state of another dtype if asked for."""
    norm = {"batch": "batch" if block.level == "stage" else "known", "group": "sample", "none": "none"}[block.norm]
    dtype = getattr(torch, block.dtype)
    return ConvPass(
        block.batch, block.channels, block.size, block.size, STAGES[block.scheme], block.n_steps, block.order == "post",
        norm, getattr(torch, state or block.dtype), dtype, block.precision, block.backward, "step", block.n_steps,
    )  # fmt: skip


@pytest.mark.skipif(not backend_triton.INSTALLED, reason="needs triton")
@pytest.mark.parametrize("chip", BY_ARCH)
@pytest.mark.parametrize("state", ["", "float32"])
def test_launches_of_triton_are_those_of_its_host_code(chip, state):
    from contnet_fast.fields.conv.triton import manifest
    from contnet_fast.triton.launch import collect_launches
    from tools import aot

    others = [
        manifest.Block(channels, size, level, order, norm, "bfloat16", scheme, steps, batch, backward)
        for channels, size, batch in ((24, 7, 3), (8, 33, 500))
        for scheme, steps in (("euler", 3), ("midpoint", 1))
        for order in ("pre", "post")
        for level, norm in (("solve", "group"), ("solve", "batch"), ("solve", "none"), ("stage", "batch"))
        for backward in (False, True)
        if not (backward and norm == "none")
    ]
    blocks = [*(block for block in manifest.BLOCKS if isinstance(block, manifest.Block)), *others]
    for block in blocks:
        one, p, device = manifest.Pass(block, chip, torch.device("meta")), of_block(block, state), BY_ARCH[chip]
        one.x = one.x.to(p.dtype)
        with collect_launches() as made:
            one.run()
        found: Counter = Counter()
        for work in triton_pass.launches(p, block.level, chip, device):
            found[work.kernel, work.blocks, work.cost, work.resident, work.units, work.per_block] += work.times
        wanted = Counter((w.kernel, w.blocks, w.cost, w.resident, w.units, w.per_block) for w in map(aot.counted, made))
        assert +found == wanted, block
        if block.precision == "ieee":  # the interpreter has no other
            by_launch = sum(aot.predicted(launch, chip)[0] for launch in made)
            works = triton_pass.launches(p, block.level, chip, device)
            assert seconds(works, device, p) == pytest.approx(by_launch), block


def test_the_page_has_the_predictions():
    for path, text in predictions.written().items():
        assert path.read_text(encoding="utf-8") == text, "python -m tools.predictions --write"


@pytest.mark.parametrize(("channels", "side"), predictions.SIZES)
def test_both_count_at_least_what_a_pass_needs(channels, side):
    """Operations of the floor, forward and of two gradients and maps made again; a map in and out."""
    p = ConvPass(128, channels, side, side)
    for backward, products in ((False, 1), (True, 4)):
        p = replace(p, backward=backward)
        floor = products * 2.0 * 2 * 9 * p.elements * channels * p.evaluations
        floor -= p.n_steps * 2.0 * 9 * p.elements * channels if backward else 0.0  # a step's last convolution
        for module in (triton_pass, cuda_pass):
            for level in ("solve", "stage"):
                if module is cuda_pass and level == "solve" and channels * side > 512:
                    continue
                works = [w for w in module.launches(p, level, "sm_90", DEVICES["H100"]) if w.times]
                whole = sum((w.times * w.cost.flops for w in works), 0.0)
                assert floor <= whole <= 1.4 * floor
                assert sum(w.times * w.cost.bytes for w in works) >= 2 * p.elements * p.state
                assert all(w.cost.launches == 1 and w.cost.bytes > 0 for w in works)
