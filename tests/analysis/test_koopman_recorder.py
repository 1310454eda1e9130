"""What a recorder writes is what the model was, whatever happens to the model or the process."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import contnet_fast as cf

koopman = cf.analysis.koopman
Recorder = koopman.Recorder


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def train(model: nn.Module, recorder: Recorder, steps: int, optimizer=None) -> list[torch.Tensor]:
    """Train and record; returns the weights after each step."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 3)).square().mean()
        loss.backward()
        optimizer.step()
        recorder.record(loss=loss)
        seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]).clone())
    return seen


@pytest.mark.parametrize("on_disk", [False, True])
def test_snapshots_are_the_weights_as_they_were(tmp_path, on_disk):
    model = net()
    recorder = Recorder(model, every=2, path=tmp_path / "run.koopman" if on_disk else None)
    seen = train(model, recorder, 5)
    found = recorder.snapshots()
    kept = found.clone()
    train(model, recorder, 3)
    assert torch.equal(found, torch.stack(seen[::2]))
    assert torch.equal(found, kept)
    found.zero_()
    assert torch.equal(recorder.snapshots()[:3], kept)
    assert recorder.recording().steps.tolist() == [0, 2, 4, 6]
    assert np.isfinite(recorder.recording().losses).all()
    assert np.isfinite(recorder.recording().gradient_norms).all()


def test_rates_of_the_optimiser_are_noted():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.25)
    recorder = Recorder(model, optimizer=optimizer)
    recorder.record()
    optimizer.param_groups[0]["lr"] = 0.125
    recorder.record()
    recorder.record(rate=3.0)
    assert recorder.recording().rates.tolist() == [0.25, 0.125, 3.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_snapshots_are_float32_or_wider(dtype):
    model = nn.Linear(3, 2).to(dtype)
    recorder = Recorder(model, average=True, every=2)
    values = []
    for i in range(2):
        with torch.no_grad():
            model.weight.fill_(1 + i * torch.finfo(dtype).eps)
            model.bias.zero_()
        values.append(model.weight.detach().double().clone())
        recorder.record()
    found = recorder.snapshots()
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(found[0, :6].double(), (sum(values) / 2).flatten())  # a number that half precision cannot hold


def test_averages_cover_the_steps_that_end_with_them():
    model = net()
    recorder = Recorder(model, every=3, average=True)
    seen = train(model, recorder, 7)
    assert recorder.recording().steps.tolist() == [2, 5]
    wanted = torch.stack([torch.stack(seen[i : i + 3]).double().mean(0) for i in (0, 3)])
    assert torch.equal(recorder.snapshots(), wanted.float())


def test_tied_frozen_and_parametrised_parameters():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), parametrizations.weight_norm(nn.Linear(3, 2)))
    model[1].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    recorder = Recorder(model)
    names = [name for name, _ in Recorder.recording(recorder).description["names"]]
    assert names == [
        "0.weight", "1.bias", "2.bias", "2.parametrizations.weight.original0", "2.parametrizations.weight.original1"
    ]  # fmt: skip
    model[0].bias.requires_grad_(True)  # later changes of what is trained do not change a snapshot
    recorder.record()
    assert recorder.snapshots().shape == (1, 9 + 3 + 2 + 2 + 6)


def test_names_are_those_without_wrappers(tmp_path):
    model = net()
    plain = Recorder(model).recording().description
    assert Recorder(torch.compile(model)).recording().description == plain
    assert Recorder(nn.DataParallel(model)).recording().description == plain
    partly = nn.Sequential(torch.compile(model[0]), *model[1:])
    assert Recorder(partly).recording().description == plain
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        recorder = Recorder(wrapped)
        seen = train(wrapped, recorder, 2)
    finally:
        torch.distributed.destroy_process_group()
    assert recorder.recording().description == plain
    assert torch.equal(recorder.snapshots(), torch.stack(seen))


def test_models_that_cannot_be_recorded_are_refused_by_name():
    with pytest.raises(ValueError, match=r"parameter 0\.weight, which is on the meta device"):
        Recorder(net().to("meta"))
    with pytest.raises(ValueError, match="parameter weight, which is uninitialised"):
        Recorder(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="without parameters that need gradients"):
        Recorder(net().requires_grad_(False))


def test_a_model_that_changes_is_refused_by_name():
    model = net()
    recorder = Recorder(model)
    recorder.record()
    model.double()  # moved and cast parameters are followed
    assert recorder.record()
    model[3] = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"got 3\.weight of shape \[3, 4\], accepted: \[2, 4\]"):
        recorder.record()
    model[3] = nn.ReLU()
    with pytest.raises(ValueError, match=r"lost parameter 3\.weight"):
        recorder.record()
    assert len(recorder.snapshots()) == 2


def test_state_of_the_optimiser_follows_the_weights():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    recorder = Recorder(model, optimizer=optimizer, optimizer_state=True)
    with pytest.raises(ValueError, match="without state for the model's parameters"):
        recorder.record()
    train(model, recorder, 2, optimizer)
    count = sum(p.numel() for p in model.parameters())
    found = recorder.snapshots()
    assert found.shape == (2, 3 * count)
    assert torch.equal(found[1, count : count + 12], optimizer.state[model[0].weight]["exp_avg"].flatten())


def test_outputs_leave_the_model_as_it_was():
    model = net()
    model[1].eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    inputs = torch.randn(5, 3)
    recorder = Recorder(model, observables="output", inputs=inputs)
    recorder.record()
    assert [m.training for m in model] == [True, False, True, True]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(recorder.snapshots()[0], model.eval()(inputs).detach().flatten())


def test_a_function_is_recorded():
    model = net()
    recorder = Recorder(model, observables=lambda m: m[0].weight.sum(0))
    recorder.record()
    assert torch.equal(recorder.snapshots()[0], model[0].weight.detach().sum(0))
    with pytest.raises(TypeError, match="observables: got float, accepted: one tensor"):
        Recorder(model, observables=lambda m: 1.0)


def test_projections_are_seeded_linear_and_keep_norms():
    torch.manual_seed(0)
    x, y = torch.randn(2, 200_000, dtype=torch.float64)  # more than one chunk of the hash
    sketch = koopman.count_sketch
    one = sketch(x, width=100, seed=3)
    assert torch.equal(one, sketch(x, width=100, seed=3))
    assert not torch.equal(one, sketch(x, width=100, seed=4))
    assert torch.allclose(sketch(x + 2 * y, width=100, seed=3), one + 2 * sketch(y, width=100, seed=3))
    shares = [float(sketch(x, width=100, seed=s).norm() ** 2 / x.norm() ** 2) for s in range(30)]
    assert abs(np.mean(shares) - 1) < 0.1  # 4 standard errors
    inner = [float(sketch(x, width=100, seed=s) @ sketch(y, width=100, seed=s)) for s in range(30)]
    assert abs(np.mean(inner)) < 0.1 * 200_000
    assert sketch(torch.ones(200_000), width=100, seed=0).abs().max() < 5 * 2000**0.5  # signs cancel


def test_a_projection_has_the_spectrum_of_the_weights():
    torch.manual_seed(0)
    model = nn.Linear(40, 20, dtype=torch.float64)
    wide, narrow = Recorder(model), Recorder(model, observables="projection", width=16)
    start, factors = model.weight.detach().clone(), torch.tensor([0.99, 0.9, 0.5]).double().repeat(40)[:40]
    for t in range(20):
        with torch.no_grad():
            model.weight.copy_(start * factors**t)
        wide.record()
        narrow.record()
    assert narrow.snapshots().shape == (20, 16)
    wanted = koopman.decompose(wide.snapshots()).eigenvalues
    assert torch.allclose(koopman.decompose(narrow.snapshots()).eigenvalues, wanted, atol=1e-9)


def test_an_interrupted_recording_goes_on(tmp_path):
    path = tmp_path / "run.koopman"
    model = net()
    with Recorder(model, path=path) as recorder:
        train(model, recorder, 4)
        first = recorder.snapshots().clone()
    with pytest.raises(ValueError, match="which exists, accepted: a new file, or resume=True"):
        Recorder(model, path=path)
    with Recorder(model, path=path, resume=True, last_step=2) as recorder:
        assert torch.equal(recorder.snapshots(), first[:3])
        train(model, recorder, 2)
        assert recorder.recording().steps.tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(ValueError, match="step: got 4, accepted: a step after 4"):
            recorder.record(4)
        with pytest.raises(ValueError, match="another recorder writes"):
            Recorder(model, path=path, resume=True)
    with pytest.raises(ValueError, match="a recording with other every"):
        Recorder(model, path=path, resume=True, every=2)
    with pytest.raises(ValueError, match="got a closed recorder"):
        recorder.record()


def test_a_killed_process_leaves_all_rows_but_the_one_it_wrote(tmp_path):
    path = tmp_path / "run.koopman"
    code = f"""
import os, torch
from contnet_fast.analysis.koopman import Recorder
model = torch.nn.Linear(1000, 10)
recorder = Recorder(model, path={str(path)!r})
for step in range(5):
    torch.nn.init.constant_(model.weight, step)
    recorder.record()
recorder._writer._file.write(b"x" * 20_000)  # a row of which the end is missing
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    found = koopman.open_recording(path)
    assert found.values[:, 0].tolist() == [0, 1, 2, 3, 4]
    with Recorder(nn.Linear(1000, 10), path=path, resume=True) as recorder:
        recorder.record()
    assert koopman.open_recording(path).steps.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_file_cut_or_blank_at_its_end_is_readable(tmp_path, cut):
    path = tmp_path / "run.koopman"
    with Recorder(nn.Linear(2, 1), path=path) as recorder:
        for _ in range(3):
            recorder.record()
    content = path.read_bytes()
    complete = 3 - -(-cut // (8 + 4 * 8 + 3 * 4))
    path.write_bytes(content[:-cut])
    assert len(koopman.open_recording(path).values) == complete
    path.write_bytes(content[:-cut] + b"\0" * cut)  # the machine died before these were stored
    assert len(koopman.open_recording(path).values) == complete


def test_files_that_are_none_of_a_recorder_are_refused(tmp_path):
    (tmp_path / "other").write_bytes(os.urandom(5000))
    for name in ("other", "missing"):
        with pytest.raises(ValueError, match=f"recording: got .*{name}, accepted: the file of a recorder"):
            koopman.open_recording(tmp_path / name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every: got 0"),
        ({"observables": "weight"}, "observables: got 'weight', .*did you mean 'weights'"),
        ({"width": 5}, "width: got 5 with observables 'weights'"),
        ({"observables": "projection", "width": 0}, "width: got 0"),
        ({"observables": "output"}, "inputs: got none with observables 'output'"),
        ({"optimizer_state": True}, "optimizer_state: got True, accepted: with an optimizer"),
        ({"last_step": 3}, "last_step: got 3 without resume"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Recorder(net(), **settings)


def test_a_callback_of_lightning_records_steps_of_the_optimiser(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lightning", types.ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", types.SimpleNamespace(Callback=type("Callback", (), {})))
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    callback = koopman.lightning_callback(path=tmp_path / "run.koopman")
    trainer = types.SimpleNamespace(is_global_zero=True, optimizers=[optimizer], global_step=0)
    callback.on_train_start(trainer, model)
    for batch in range(6):  # two batches are gathered for a step
        callback.on_train_batch_start(trainer, model, None, batch)
        trainer.global_step = (batch + 1) // 2
        optimizer.param_groups[0]["lr"] = 0.5 / (1 + trainer.global_step)  # schedules step before the hook
        callback.on_train_batch_end(trainer, model, {"loss": torch.tensor(float(batch))}, None, batch)
    callback.on_train_end(trainer, model)
    found = koopman.open_recording(tmp_path / "run.koopman")
    assert (found.steps.tolist(), found.losses.tolist()) == ([0, 1, 2], [1, 3, 5])
    assert found.rates.tolist() == [0.5, 0.25, 0.5 / 3]
    again = koopman.lightning_callback(path=tmp_path / "run.koopman", resume=True)
    trainer.global_step = 2
    again.on_train_start(trainer, model)
    assert again.recorder.recording().steps.tolist() == [0, 1]


def test_a_callback_of_transformers_records_steps(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(TrainerCallback=type("C", (), {})))
    callback = koopman.transformers_callback(every=2)
    state, model = types.SimpleNamespace(is_world_process_zero=True, global_step=0), net()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    callback.on_train_begin(None, state, None, model=model, optimizer=optimizer)
    for state.global_step in range(1, 6):
        callback.on_step_begin(None, state, None, model=model)
        optimizer.param_groups[0]["lr"] /= 2
        callback.on_step_end(None, state, None, model=model)
    callback.on_train_end(None, state, None)
    assert callback.recorder.recording().steps.tolist() == [0, 2, 4]
    assert callback.recorder.recording().rates.tolist() == [1, 1 / 4, 1 / 16]


@pytest.mark.parametrize("make", [koopman.lightning_callback, koopman.transformers_callback])
def test_callbacks_name_what_is_not_installed(make, monkeypatch):
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="accepted: where it is installed"):
        make()


def test_the_example_of_the_page_finds_trusted_pairs(capsys):
    page = (Path(__file__).resolve().parents[2] / "docs/koopman.md").read_text()
    scope: dict = {}
    exec(compile(page.split("```python\n")[1].split("```")[0], "docs/koopman.md", "exec"), scope)
    assert len(capsys.readouterr().out.splitlines()) > 5
    assert scope["weights"].shape == (21,)
