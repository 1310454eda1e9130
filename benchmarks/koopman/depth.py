"""Study 3: do the N and K that the spectrum of a block's trajectory proposes keep the accuracy when they are tried?

Small ContinuousNets with N = K = 8 are trained inside Euler and inside RK4, with eight cells from the start (fixed) or
refined from one cell (refined). The control is a rule that looks at nothing: half of N and of K. "Needed" is found by
evaluating smaller N and K.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.koopman.tasks import Row, images
from contnet_fast.analysis import evaluate
from contnet_fast.analysis.koopman import check_depth, propose_depth
from contnet_fast.nn import project, set_discretization
from contnet_fast.training import make_config, train
from contnet_fast.training.data import load_data
from contnet_fast.training.progress import Silent

SEEDS = {"digits": 4, "cifar10": 2}
CELLS = tuple((scheme, schedule) for scheme in ("euler", "rk4_classic") for schedule in ("fixed", "refined"))
SETTINGS = {
    "digits": {"data": "digits", "width": 8, "epochs": 8},
    "cifar10": {"data": "cifar10", "width": 4, "epochs": 4, "limit": 1000, "batch_size": 64, "lr": 0.1},
}
COMMON = {
    "eps": 4.0,
    "stitch_eps": 1.0,
    "order": "pre",
    "warmup_epochs": 1.0,
    "lr_schedule": "cosine",
    "lr_decay_epochs": (),
}
DEPTHS = {"digits": (1, 3, 5), "cifar10": (1, 2, 3)}  # epochs before which a refined net is refined
TESTED = 300  # test images
ALLOWED = 0.01
TOLERANCE = 0.05
LOOKED_AT = 128  # training images whose trajectories are decomposed


def training(name: str, cell: tuple[str, str], seed: int, path: Path | None) -> Row:
    """Train one network, and check what its trajectories propose."""
    place = {} if path is None or name == "digits" else {"data_path": str(path)}
    scheme, schedule = cell
    first = 1 if schedule == "refined" else 8
    depth = {"n_basis": first, "n_steps": first, "refine_epochs": DEPTHS[name] if schedule == "refined" else ()}
    config = make_config(overrides={**SETTINGS[name], **COMMON, **place, **depth, "scheme": scheme, "seed": seed})
    data = load_data(name, path if name == "cifar10" else None, limit=config.limit)
    with tempfile.TemporaryDirectory() as folder:
        net = train(config, data, Path(folder), reporter=Silent()).net
    taken = images(name, path)

    def score(of: torch.nn.Module) -> object:
        return evaluate(of, taken.test_x[:TESTED], taken.test_y[:TESTED], prepare=lambda x: x)

    spectra = propose_depth(net, taken.x[:LOOKED_AT], tolerance=TOLERANCE)
    found = check_depth(net, score, spectra, allowed=ALLOWED)  # type: ignore[arg-type]
    half = project(net, n_basis=4)
    control = {
        "steps": found.by_steps[4], "basis": found.by_basis[4],
        "both": score(set_discretization(half, n_steps=4)).accuracy,  # type: ignore[attr-defined]
    }  # fmt: skip
    return {
        "scheme": scheme, "schedule": schedule, "accuracy": found.accuracy,
        "proposed": found.proposed, "needed": found.needed,
        "by_block": [(s.n_steps, s.n_basis, round(s.explained, 3)) for s in spectra],
        "accuracies": {"steps": found.accuracy_steps, "basis": found.accuracy_basis, "both": found.accuracy_both},
        "control": control, "by_steps": found.by_steps, "by_basis": found.by_basis,
    }  # fmt: skip
