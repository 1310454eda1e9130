"""Study 2: does the Koopman ranking of weights prune better than magnitude, gradient or chance, early and late?

Early is after a tenth of the training, late at its end. Networks are pruned at once, without training on, to several
sparsities; and early masks are also kept for the rest of the training, which is what they would be good for.
"""

from __future__ import annotations

import torch

from benchmarks.koopman.outcomes import BATCH, RATE
from benchmarks.koopman.tasks import Images, Row, course, loss_on, scores, seeded, vector
from contnet_fast.analysis.koopman.pruning import RANKINGS, importance, prune

SEEDS = 6
STEPS = {"digits": 400, "cifar10": 500}
EARLY = 0.1
SNAPSHOTS = 20  # the last so many before pruning, a step apart early and a hundredth of the training late
SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
TRAINED_ON = (0.8, 0.9, 0.95)


def training(data: Images, seed: int) -> Row:
    """Train and prune one network."""
    net = seeded(data.name, seed, width=2 if data.name == "digits" else 1)
    steps = STEPS[data.name]
    early = int(EARLY * steps)
    settings = {"lr": RATE[data.name], "batch": BATCH[data.name], "momentum": 0.5}
    row: Row = {"steps": steps, "early": early, "at once": {}, "trained on": {}}
    for when, until, every in (("early", early, 1), ("late", steps - early, steps // 100)):
        seen = [vector(net)]

        def look(step: int, net: torch.nn.Module, every: int = every, seen: list[torch.Tensor] = seen) -> None:
            if step % every == 0:
                seen.append(vector(net))

        course(net, data, steps=until, seed=seed + (when == "late") * 7919, after=look, **settings)
        snapshots = torch.stack(seen[-SNAPSHOTS:])
        orders = {name: importance(name, net, snapshots=snapshots, loss=loss_on(data), seed=seed) for name in RANKINGS}
        whole = scores(net, data.test_x, data.test_y)[1]
        row["at once"][when] = {"unpruned": whole} | {
            name: [scores(prune(net, order, sparsity=s), data.test_x, data.test_y)[1] for s in SPARSITIES]
            for name, order in orders.items()
        }
        if when == "early":
            for name, order in orders.items():
                row["trained on"][name] = [rest(net, data, order, s, steps - early, seed, settings) for s in TRAINED_ON]
    return row


def rest(net: torch.nn.Module, data: Images, order: torch.Tensor, sparsity: float, steps: int, seed: int, settings: Row
) -> float:  # fmt: skip
    """Return the accuracy of a pruned network that is trained on, its lost weights held at zero."""
    pruned = prune(net, order, sparsity=sparsity)
    mask = [(p != 0).to(p.dtype) if p.dim() > 1 else torch.ones_like(p) for p in pruned.parameters()]
    course(pruned, data, steps=steps, seed=seed + 7919, mask=mask, **settings)
    return scores(pruned, data.test_x, data.test_y)[1]
