"""A run that many processes share is the run of one: losses, weights, scores, refinement, and after it was cut."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import shared_runs
import torch
from shared_runs import CASES, SMALL, environment, shared_run

from contnet_fast.training.checkpoints import load_checkpoint
from contnet_fast.training.processes import Processes, counted, share

SHARED = ["plain", "uneven", "accumulated", "single", "sharded", "synchronised"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Each case on one process: losses, result, folder."""
    folder = tmp_path_factory.mktemp("alone")
    found = {}

    def run(name):
        if name not in found:
            found[name] = (*shared_run(name, folder / name, Processes()), folder / name)
        return found[name]

    return run


@pytest.fixture(scope="module", params=[2, 4])
def several(request, tmp_path_factory):
    """What each of so many processes found in all cases, and their folder."""
    folder = tmp_path_factory.mktemp(f"on-{request.param}")
    shared_run("begun", folder / "begun", Processes(), stop=2)
    command = [
        sys.executable,
        Path(shared_runs.__file__),
        folder,
        request.param,
        *SHARED,
        "statistics",
        "resumed",
        "begun",
    ]
    done = subprocess.run(
        [str(word) for word in command], env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(request.param)], folder


def assert_close(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-10, atol=1e-12, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("name", SHARED)
def test_losses_and_weights_are_those_of_one_process(name, several, alone):
    """Uneven and empty shares, accumulation, refinement, clipping, averages of the weights, shards."""
    found, folder = several
    losses, result, single = alone(name)
    for mine in found:
        assert mine[name]["losses"] == pytest.approx(losses, rel=1e-10)
        assert_close(mine[name]["weights"], result.net.state_dict())
        assert mine[name]["test"] == pytest.approx((result.test.accuracy, result.test.loss, 21), rel=1e-10)
        for record, wanted in zip(mine[name]["history"], result.history, strict=True):
            assert record.keys() == wanted.keys()
            same = [key for key in record if key not in ("seconds", "images_per_second", "event")]
            assert {key: record[key] for key in same} == pytest.approx({key: wanted[key] for key in same}, rel=1e-10)
    assert_close(load_checkpoint(folder / name, "last")[0], load_checkpoint(single, "last")[0])
    assert_close(load_checkpoint(folder / name, "best")[0], load_checkpoint(single, "best")[0])
    lines = [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
    assert len(lines) == len(result.history)  # one process writes


def test_statistics_of_batches_are_averaged_by_the_rows_that_each_process_saw(several):
    """Ranks without rows have statistics that are not numbers, which must not reach the others."""
    found, _ = several
    for mine in found:
        for name, tensor in mine["statistics"]["weights"].items():
            assert tensor.isfinite().all(), name
            assert torch.equal(tensor, found[0]["statistics"]["weights"][name])
    assert found[0]["statistics"]["history"][0]["train_loss"] > 0


def test_a_run_of_many_goes_on_in_one_and_a_run_of_one_in_many(several, alone, tmp_path):
    found, folder = several
    shutil.copytree(folder / "resumed", tmp_path / "one")
    losses, result = shared_run("resumed", tmp_path / "one", Processes(), resume=True, keep_checkpoints=1)
    whole, wanted, place = alone("resumed")
    assert found[0]["resumed"]["losses"] + losses == pytest.approx(whole, rel=1e-10)
    assert_close(result.net.state_dict(), wanted.net.state_dict())
    assert_close(load_checkpoint(tmp_path / "one", "last")[0], load_checkpoint(place, "last")[0])
    assert not [path for path in (tmp_path / "one").glob("last-*") if path.is_dir()]
    assert_close(found[0]["begun"]["weights"], alone("begun")[1].net.state_dict())


def test_the_last_checkpoints_are_kept_and_can_be_put_in_place(several, tmp_path):
    _, folder = several
    run = folder / "resumed"
    kept = sorted(run.glob("last-*.json"))
    assert [path.name for path in kept] == ["last-1-0.json", "last-1-2.json"]
    assert len([path for path in run.glob("last-*") if path.is_dir()]) == 2
    assert not list(run.glob(".last-*"))
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "last-1-0.json").replace(tmp_path / "run" / "last.json")
    assert load_checkpoint(tmp_path / "run", "last")[1]["batch"] == 0


def test_a_damaged_file_of_many_is_refused_by_name(several, tmp_path):
    shutil.copytree(several[1] / "resumed", tmp_path / "run")
    state = json.loads((tmp_path / "run" / "last.json").read_text())
    target = tmp_path / "run" / state["folder"] / ".metadata"
    target.write_bytes(target.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"checkpoint: got .*\.metadata, which is damaged"):
        load_checkpoint(tmp_path / "run", "last")


def test_a_pickle_that_would_run_something_is_not_loaded(several, tmp_path):
    import pickle
    from hashlib import sha256

    class Runs:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    shutil.copytree(several[1] / "resumed", tmp_path / "run")
    pointer = tmp_path / "run" / "last.json"
    state = json.loads(pointer.read_text())
    target = tmp_path / "run" / state["folder"] / ".metadata"
    target.write_bytes(pickle.dumps(Runs()))
    state["files"][".metadata"] = sha256(target.read_bytes()).hexdigest()
    pointer.write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"checkpoint: got .*last\.json, which is damaged"):
        load_checkpoint(tmp_path / "run", "last")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_parts_of_a_batch_cover_it_once_and_are_as_many_in_each_process(count, size, most):
    found = []
    for rank in range(size):
        processes = Processes()
        processes.rank, processes.size = rank, size
        parts = processes.parts(count, most)
        assert all(counted(part) <= (most or count) for part in parts)
        assert range(*processes.own(count).indices(count)) == range(parts[0].start, parts[-1].stop)
        found.append(parts)
    assert len({len(parts) for parts in found}) == 1
    assert [i for parts in found for part in parts for i in range(part.start, part.stop)] == list(range(count))
    assert share(count, among=size, index=0) == slice(0, -(-count // size))


def test_cases_have_what_they_promise():
    assert SMALL["limit"] % SMALL["batch_size"] == SMALL["limit"] % CASES["statistics"]["batch_size"] == 1
    assert not CASES["uneven"]["drop_last"]
