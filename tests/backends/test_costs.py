"""Counts of operations and bytes agree with one another and with what is launched."""

from __future__ import annotations

import pytest
import torch

from contnet_fast.backends import triton as backend_triton
from contnet_fast.costmodel.costs import DEVICES, Cost, conv_solve_cost, measured_cpu

SHAPE = (128, 16, 32, 32)
TWO_BYTES = {"dtype": torch.bfloat16, "compute_dtype": torch.bfloat16}


def solve(**options) -> Cost:
    return conv_solve_cost(SHAPE, stages=4, n_steps=8, n_basis=8, **TWO_BYTES, **options)


def test_operations_of_the_paper_s_first_block():
    assert solve().flops == 2 * 9 * 16 * 16 * 1024 * 128 * 2 * 32  # multiply-adds count two; two convolutions, 32 times
    assert solve(training=True).flops == 3 * solve().flops
    assert solve(training=True, checkpoint="step").flops == 4 * solve().flops
    assert solve(training=True, checkpoint="step").saved == 8 * 128 * 16 * 1024 * 2


def test_pytorch_moves_more():
    ours, theirs = (solve(level=level) for level in ("solve", "none"))
    assert (ours.launches, theirs.launches) == (1, 256)
    assert ours.bytes < theirs.bytes


def test_floors_and_predictions():
    h100 = DEVICES["H100"]
    cost = Cost(flops=989e12, bytes=3.35e12 / 2, launches=1)
    assert cost.floor(h100, torch.bfloat16) == pytest.approx(1.0)
    assert cost.floor(h100, torch.float32) == pytest.approx(989 / 67)
    assert cost.floor(h100, torch.float32, precision="tf32") == pytest.approx(989 / 495)
    assert Cost(bytes=3.35e12).predicted(h100, torch.float32) == (pytest.approx(1.0), "memory")
    assert Cost(bytes=9e12).predicted(h100, torch.float32, working_set=1e6) == (pytest.approx(1.0), "L2")
    assert Cost(flops=989e12).predicted(h100, torch.float16, share=0.5) == (pytest.approx(2.0), "products")
    assert Cost(launches=10).predicted(h100, torch.float16) == (pytest.approx(2e-5), "launches")


def test_this_cpu_has_rates_of_its_own():
    cpu = measured_cpu(0.01)
    assert all(1e8 < cpu.rate(dtype) < 1e14 for dtype in (torch.float64, torch.float32))
    assert 1e8 < cpu.bandwidth < 1e13
    assert solve().floor(cpu, torch.float32) == pytest.approx(solve().flops / cpu.rate(torch.float32))


@pytest.mark.skipif(not backend_triton.INSTALLED, reason="needs triton")
class TestLaunches:
    def sums(self, text: str) -> tuple[Cost, list]:
        from contnet_fast.fields.conv.triton import manifest
        from tools import aot

        block = next(block for block in manifest.BLOCKS if str(block) == text)
        launches = manifest.launches(block, "sm_90")
        return sum((aot.counted(launch).cost for launch in launches), Cost()), launches

    def test_every_launch_of_the_manifest_is_counted(self):
        from tools import aot

        for block in aot.BLOCKS:
            for launch in aot.launches(block, "sm_80"):
                count = aot.counted(launch)
                assert count.cost.bytes > 0
                assert count.cost.launches == 1
                assert count.resident > 0

    def test_the_solve_needs_the_operations_of_the_floor(self):
        whole, _ = self.sums("16@32 pre batch bfloat16 evaluation")
        assert whole.flops == solve().flops
        assert whole.bytes > solve().bytes

    def test_training_needs_those_and_one_recomputation_without_its_last_convolutions(self):
        whole, launches = self.sums("16@32 pre batch bfloat16 training")
        last = solve().flops / 64 * 8
        assert whole.flops == solve(training=True, checkpoint="step").flops - last
        assert whole.launches == len(launches)

    def test_an_evaluation_on_a_graph_multiplies_and_adds_once_an_edge_and_feature(self):
        from contnet_fast.fields.diffusion.triton import manifest
        from tools import aot

        solve = manifest.GraphSolve(100, 700, 16, n_steps=1)
        launches = manifest.launches(solve)
        first, last = aot.counted(launches[0]).cost, aot.counted(launches[-1]).cost
        assert (first.flops, first.inner) == (2 * 700 * 16, 4 * 700 * 16)
        assert first.bytes == 5 * 4 * 100 * 16 + 2 * 4 * 700  # state, source, input, rate and target; sources, weights
        assert launches[-1].kernel.__name__ == "value_gradient"
        assert last.flops == 4 * 2 * 700 * 16

    def test_a_combination_reads_each_operand_once_and_writes_once(self):
        whole, _ = self.sums("combination of 4 float32")
        assert whole.bytes == 6 * 2**26
