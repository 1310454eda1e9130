"""Tables of tiles are data that can be replaced; tuning finds the fastest; warm-up leaves everything as it was."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import astuple

import pytest
import torch

import contnet_fast as cf
from contnet_fast.backends import triton as backend_triton
from contnet_fast.cli import main

needs_interpreter = pytest.mark.skipif(not backend_triton.INTERPRETED, reason="needs triton's interpreter")
needs_triton = pytest.mark.skipif(not backend_triton.INSTALLED, reason="needs triton")


@needs_triton
class TestTables:
    def test_the_shipped_table_is_its_own_copy(self):
        from contnet_fast.triton import tiles

        table = tiles.current()
        assert tiles.parse(tiles.as_data(table), "copy") == table
        assert len(table.tiles) == len(tiles.FAMILIES) * len(tiles.KERNELS) * len(tiles.OPERANDS) * len(tiles.WIDTHS)

    @pytest.mark.parametrize(
        "tile",
        [
            [64, 16, 4, 1],
            [48, 16, 4, 1, 128],
            [64, 32, 4, 1, 128],
            [64, 16, 64, 1, 128],
            "64",
            [64, 8, 4, 1, 128],
            [64, 16, 4, 1, 256],
        ],
    )
    def test_what_is_no_tile_is_refused_with_its_place(self, tile):
        from contnet_fast.triton import tiles

        data = tiles.as_data(tiles.current())
        data["sm_90"]["solve"]["16-bit"]["16"] = tile
        with pytest.raises(
            ValueError, match=r"sm_90.*solve.*16-bit.*accepted: \[pixels, channels, warps, stages, registers\]"
        ):
            tiles.parse(data, "file")
        del data["sm_90"]["solve"]
        with pytest.raises(ValueError, match="file: sm_90/solve is missing"):
            tiles.parse(data, "file")

    @pytest.mark.parametrize("content", ["{", None])
    def test_the_environment_names_a_file(self, tmp_path, content):
        path = tmp_path / "tiles.json"
        if content is not None:
            path.write_text(content)
        done = subprocess.run(
            [sys.executable, "-c", "from contnet_fast.triton import tiles"],
            check=False, capture_output=True, text=True, env={**os.environ, "CONTNET_FAST_TILES": str(path)},
        )  # fmt: skip
        assert done.returncode == 1
        assert f"tiles: {path} cannot be read" in done.stderr


@needs_triton
class TestSearch:
    KEY = ("sm_90", "solve", "32-bit", 16)

    def search(self, seconds, **options):
        """The tile found and the trials, with a clock that tells ``seconds(tile)``."""
        from contnet_fast.fields.conv.triton import tune
        from contnet_fast.triton import tiles

        trials = []

        def timer(run):
            return seconds(tiles.current().tiles[self.KEY])

        block = tune.block_of(self.KEY, 1, tiny=True)
        found = tune.tune_key(
            self.KEY, tiles.current(), timer, block=block, device=torch.device("cpu"), done=trials.append, **options
        )
        return found, trials

    @needs_interpreter
    def test_the_fastest_is_found_by_moving(self):
        found, trials = self.search(lambda t: abs(t.pixels - 32) + abs(t.warps - 2) + abs(t.stages - 3) + 1, most=40)
        assert (found.pixels, found.warps, found.stages) == (32, 2, 3)
        assert len({t.tile for t in trials}) == len(trials) <= 40

    @needs_interpreter
    def test_a_tile_within_the_noise_does_not_replace_the_one_in_use(self):
        from contnet_fast.triton import tiles

        found, _ = self.search(lambda t: 1.0 - 1e-4 * t.stages)
        assert found == tiles.current().tiles[self.KEY]

    @needs_interpreter
    def test_wrong_results_are_left_out(self, monkeypatch):
        from contnet_fast.fields.conv.triton import tune
        from contnet_fast.triton import tiles

        start = tiles.current().tiles[self.KEY]
        true = tune.Pass.run

        def wrong(self):
            tile = tiles.current().tiles[TestSearch.KEY]
            return [r * (1.0 if tile == start else 1.5) for r in true(self)]

        monkeypatch.setattr(tune.Pass, "run", wrong)
        found, trials = self.search(lambda t: 1.0 if t == start else 0.1)
        assert found == start
        assert {t.reason for t in trials} == {"", "its results differ"}

    def test_every_neighbour_is_a_tile(self):
        from contnet_fast.fields.conv.triton import tune
        from contnet_fast.triton import tiles

        data = tiles.as_data(tiles.current())
        for (family, kernel, operands, width), tile in tiles.current().tiles.items():
            for other in tune.neighbours(tile, width):
                data[family][kernel][operands][str(width)] = list(astuple(other))
                tiles.parse(data, "neighbour")


@needs_interpreter
@pytest.mark.parametrize("faster", [False, True])
def test_the_faster_way_of_order_post_is_taken(faster):
    from contnet_fast.fields.conv.triton import tune
    from contnet_fast.triton import tiles

    key = ("sm_90", tune.LOAD, "32-bit", 16)

    def timer(run):
        return 1.0 if tiles.current().loads["sm_90", "32-bit", 16] == faster else 2.0

    trials = []
    options = {"device": torch.device("cpu"), "batch": 1, "tiny": True, "done": trials.append}
    assert tune.tune_load(key, tiles.current(), timer, **options) is faster
    assert [trial.seconds for trial in trials] == ([1.0, 2.0] if not faster else [2.0, 1.0])


@needs_interpreter
def test_the_command_writes_a_table_that_can_be_used(tmp_path, capsys):
    from contnet_fast.triton import tiles

    out = tmp_path / "tiles.json"
    options = ["--kernels", "solve", "combine_on_load", "--operands", "32-bit", "--channels", "16", "--trials", "2"]
    assert main(["tune", "--dry-run", "--out", str(out), *options]) == 0
    assert "solve 32-bit 16" in capsys.readouterr().out
    assert (
        tiles.read(out)
        .sources["sm_90"]
        .startswith("timed on Triton's interpreter (no GPU): solve 32-bit 16, combine_on_load 32-bit 16; the rest")
    )
    json.loads(out.read_text())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "tune: needs an NVIDIA GPU"),
        (("--dry-run", "--kernels", "solv"), "did you mean 'solve'?"),
        (("--dry-run", "--operands", "8-bit"), "accepted: 16-bit, 32-bit"),
        (("--dry-run", "--channels", "17"), "channels: got 17, accepted: 16, 32, 64, 128, 256"),
        (("--dry-run", "--trials", "0"), "trials: got '0'"),
        (("--dry-run", "--out", "/proc/x/tiles.json"), "out: got /proc/x"),
        (("--dry-rum",), "did you mean --dry-run?"),
    ],
)
@needs_interpreter
def test_wrong_options_are_refused(options, words, capsys):
    with pytest.raises(SystemExit) if "--dry-rum" in options else nullcontext():
        assert main(["tune", *options]) == 2
    assert words in capsys.readouterr().err


class TestWarmup:
    def net(self):
        torch.manual_seed(0)
        return cf.models.ContinuousNet(width=4, n_basis=2, n_steps=2, scheme="midpoint")

    def test_it_leaves_everything_as_it_was(self):
        net, x = self.net().train(), torch.randn(2, 3, 8, 8, requires_grad=True)
        before, random = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
        with cf.record_runs() as log:
            plan = cf.warmup(net, x)
        assert log
        assert "conv_solve" in str(plan)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert all(p.grad is None for p in (*net.parameters(), x))
        assert torch.equal(random, torch.random.get_rng_state())

    def test_the_backward_pass_runs_unless_told_not_to(self):
        net, x = self.net(), torch.randn(2, 3, 8, 8)
        runs = {}
        for backward in (None, True, False):
            with cf.use_backend("cpu") if "cpu" in cf.available_backends() else nullcontext(), cf.record_runs() as log:
                cf.warmup(net, x, backward=backward)
            runs[backward] = {run.op for run in log}
        assert runs[None] == runs[True]
        if "cpu" in cf.available_backends():
            assert "conv_solve_backward" in runs[True] - runs[False]

    def test_a_backward_pass_that_cannot_be_is_refused(self):
        with torch.no_grad(), pytest.raises(ValueError, match="no result requires grad"):
            cf.warmup(self.net(), torch.randn(2, 3, 8, 8), backward=True)
