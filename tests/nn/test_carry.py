"""Optimisers and their schedulers follow the parameters into another basis: the next step is the right one."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch.optim import lr_scheduler as rates

import contnet_fast as cf
from contnet_fast.models import ContinuousNet

X = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def network(**options):
    torch.manual_seed(0)
    return ContinuousNet(1, 3, **{"width": 4, "n_basis": 2, "n_steps": 2, "checkpoint": "none", **options})


def loss(net):
    return torch.nn.functional.cross_entropy(net(X.to(net.classifier.weight.dtype)), LABELS)


def train(net, optimizer, steps=1):
    sparse = isinstance(optimizer, torch.optim.SparseAdam)

    def closure():
        optimizer.zero_grad()
        value = loss(net)
        value.backward()
        for p in net.parameters():
            p.grad = p.grad.to_sparse() if sparse else p.grad
        return value

    for _ in range(steps):
        optimizer.step(closure)


OPTIMIZERS = {
    "SGD": ("SGD", {"lr": 0.02, "momentum": 0.9}),
    "SGD nesterov": ("SGD", {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}),
    "Adam": ("Adam", {"lr": 1e-3}),
    "Adam amsgrad": ("Adam", {"lr": 1e-3, "amsgrad": True, "weight_decay": 1e-4}),
    "AdamW": ("AdamW", {"lr": 1e-3}),
    "Adadelta": ("Adadelta", {}),
    "Adagrad": ("Adagrad", {"lr": 1e-3, "initial_accumulator_value": 0.1}),
    "Adamax": ("Adamax", {"lr": 1e-3}),
    "ASGD": ("ASGD", {"lr": 1e-3, "t0": 1}),
    "Adafactor": ("Adafactor", {"lr": 1e-3}),
    "Muon": ("Muon", {"lr": 1e-3}),
    "NAdam": ("NAdam", {"lr": 1e-3}),
    "RAdam": ("RAdam", {"lr": 1e-3}),
    "RMSprop": ("RMSprop", {"lr": 1e-3}),
    "RMSprop centered": ("RMSprop", {"lr": 1e-3, "centered": True, "momentum": 0.5}),
    "Rprop": ("Rprop", {"lr": 1e-3}),
    "SparseAdam": ("SparseAdam", {"lr": 1e-3}),
}
CHANGES = {
    "refined": ({"n_basis": 2}, cf.refine),
    "refined from one cell": ({"n_basis": 1}, cf.refine),
    "refined hats": ({"n_basis": 3, "basis": "hat"}, cf.refine),
    "compressed": ({"n_basis": 4}, lambda net: cf.project(net, n_basis=2)),
    "made continuous": ({"n_basis": 4}, lambda net: cf.project(net, n_basis=4, basis="hat")),
    "to polynomials": ({"n_basis": 4}, lambda net: cf.project(net, n_basis=3, basis="polynomial")),
}


def make(name, parameters):
    kind, options = OPTIMIZERS[name]
    if not hasattr(torch.optim, kind):
        pytest.skip(f"this torch has no {kind}")
    two = [p for p in parameters if p.dim() == 2] if kind == "Muon" else list(parameters)
    return getattr(torch.optim, kind)(two, **options)


def test_every_optimizer_of_torch_is_tried():
    kinds = {n for n in dir(torch.optim) if isinstance(getattr(torch.optim, n), type)} - {"Optimizer", "LBFGS"}
    assert kinds <= {kind for kind, _ in OPTIMIZERS.values()}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on(name, change):
    options, rebase = CHANGES[change]
    net = network(**options)
    optimizer = make(name, net.parameters())
    train(net, optimizer, steps=3)
    new = rebase(net)
    carried = cf.carry_optimizer(optimizer, net, new)
    fresh = make(name, copy.deepcopy(new).parameters())
    before = [p.detach().clone() for p in new.parameters()]
    train(new, carried)
    train_a_copy(fresh, carried)
    optimized = {id(p) for group in carried.param_groups for p in group["params"]}
    for old, p in zip(before, new.parameters(), strict=True):
        assert torch.isfinite(p).all()
        # one step of these rates is no leap
        assert id(p) not in optimized or (p - old).abs().max() < 0.2
    for a, b in zip(carried.state.values(), fresh.state.values(), strict=True):
        assert {k: shape(v) for k, v in a.items()} == {k: shape(v) for k, v in b.items()}
        assert all(torch.isfinite(v).all() for v in a.values() if isinstance(v, torch.Tensor))


def train_a_copy(fresh, carried):
    """A first step of a new optimiser of the same kind, whose state shows which shapes are expected."""
    for group, other in zip(fresh.param_groups, carried.param_groups, strict=True):
        for p, q in zip(group["params"], other["params"], strict=True):
            p.grad = q.grad
    fresh.step()


def shape(value):
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value)


def two_steps_by_hand(name, p, state, grad, lr):
    """One further step of a parameter, from the definition of the method."""
    if name == "SGD":
        buffer = 0.9 * state["momentum_buffer"] + grad
        return p - lr * buffer
    t = state["step"].item() + 1
    m = 0.9 * state["exp_avg"] + 0.1 * grad
    v = 0.999 * state["exp_avg_sq"] + 0.001 * grad**2
    decayed = p * (1 - lr * 0.01) if name == "AdamW" else p
    return decayed - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
@pytest.mark.parametrize("cells", [1, 2])
def test_the_next_step_of_a_refined_net_is_that_of_its_duplicated_state(name, cells):
    net = network(n_basis=cells)
    optimizer = make(name, net.parameters())
    train(net, optimizer, steps=2)
    finer = cf.refine(net)
    before = {n: p.detach().clone() for n, p in finer.named_parameters()}
    carried = cf.carry_optimizer(optimizer, net, finer)
    train(finer, carried)
    olds = dict(net.named_parameters())
    for n, p in finer.named_parameters():
        twice = ".field." in n
        state = {
            k: v.repeat_interleave(2, 0) if twice and v.dim() else v
            for k, v in optimizer.state[olds[n]].items()
            if v is not None
        }
        expected = two_steps_by_hand(name, before[n], state, p.grad, carried.param_groups[0]["lr"])
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_state_follows_its_parameters(kind):
    net = network(n_basis=4)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    if kind == "adamw":
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    train(net, optimizer)
    finer = cf.refine(net)
    carried = cf.carry_optimizer(optimizer, net, finer)
    key = "momentum_buffer" if kind == "sgd" else "exp_avg_sq"
    old, new = net.stages[1].field.conv1_weight, finer.stages[1].field.conv1_weight
    assert torch.equal(carried.state[new][key], optimizer.state[old][key].repeat_interleave(2, 0))
    assert torch.equal(carried.state[finer.classifier.weight][key], optimizer.state[net.classifier.weight][key])
    assert carried.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert not cf.carry_optimizer(optimizer, net, finer, state="reset").state
    half = cf.project(net, n_basis=2)
    pairs = optimizer.state[old][key]
    got = cf.carry_optimizer(optimizer, net, half).state[half.stages[1].field.conv1_weight][key]
    torch.testing.assert_close(got, (pairs[0::2] + pairs[1::2]) / 2)


@pytest.mark.parametrize("kind", ["Adam", "Adamax"])
@pytest.mark.parametrize("change", ["refined hats", "compressed", "made continuous", "to polynomials"])
def test_no_step_is_longer_than_those_of_the_nodes_it_is_made_from(change, kind):
    """Projections have negative weights: a linear map of second moments would give zeros under large momenta."""
    options, rebase = CHANGES[change]
    net = network(**options).double()  # in float32 the smallest squares vanish
    optimizer = make(kind, net.parameters())
    train(net, optimizer, steps=3)
    carried = cf.carry_optimizer(optimizer, net, rebase(net))

    def longest(optimizer):
        return [
            (s["exp_avg"].abs() / (s["exp_avg_sq"].sqrt() if kind == "Adam" else s["exp_inf"])).nan_to_num(0.0).amax(0)
            for p, s in optimizer.state.items()
            if p.dim() == 5
        ]

    for old, new in zip(longest(optimizer), longest(carried), strict=True):
        assert (new <= old * (1 + 1e-9)).all()


def test_groups_names_and_rates_in_tensors_are_kept():
    net = network()
    weights = [(n, p) for n, p in net.named_parameters() if p.dim() > 2]
    others = [(n, p) for n, p in net.named_parameters() if p.dim() <= 2]
    optimizer = torch.optim.AdamW(
        [{"params": weights, "lr": torch.tensor(0.1)}, {"params": others, "weight_decay": 0.0, "tag": "norms"}],
        lr=torch.tensor(0.2),
    )
    train(net, optimizer)
    finer = cf.refine(net)
    carried = cf.carry_optimizer(optimizer, net, finer)
    assert [g["param_names"] for g in carried.param_groups] == [[n for n, _ in weights], [n for n, _ in others]]
    targets = dict(finer.named_parameters())
    assert all(
        p is targets[n] for g in carried.param_groups for n, p in zip(g["param_names"], g["params"], strict=True)
    )
    assert [g["lr"].item() for g in carried.param_groups] == [pytest.approx(0.1), pytest.approx(0.2)]
    assert (carried.param_groups[1]["weight_decay"], carried.param_groups[1]["tag"]) == (0.0, "norms")
    carried.param_groups[0]["lr"].fill_(0.0)
    assert optimizer.param_groups[0]["lr"] > 0  # the old optimiser is left alone


def test_state_without_nodes_is_refused_and_can_be_dropped():
    net = network()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=2)
    train(net, optimizer)
    finer = cf.refine(net)
    with pytest.raises(ValueError, match=r"optimizer: got LBFGS with state .* accepted .*state='reset' drops it"):
        cf.carry_optimizer(optimizer, net, finer)
    train(finer, cf.carry_optimizer(optimizer, net, finer, state="reset"))
    assert all(torch.isfinite(p).all() for p in finer.parameters())
    same = copy.deepcopy(net)  # of one basis there is nothing to map
    carried = cf.carry_optimizer(optimizer, net, same)
    train(net, optimizer)
    train(same, carried)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), same.parameters(), strict=True))


@pytest.mark.parametrize(
    "foreign",
    [
        lambda p: torch.zeros(p.shape, dtype=torch.uint8),  # eight-bit moments
        lambda p: torch.zeros(p.shape[:-1]),  # a factor without its dimension
        lambda p: torch.zeros(256),
        lambda p: [torch.zeros(3)],
    ],
)
def test_state_of_a_shape_that_says_nothing_is_refused(foreign):
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    weight = net.stages[1].field.conv1_weight
    optimizer.state[weight]["mystery"] = foreign(weight)
    with pytest.raises(ValueError, match=r"got SGD with state 'mystery' .* of stages.1.field.conv1_weight, accepted"):
        cf.carry_optimizer(optimizer, net, cf.refine(net))


def test_carrying_refuses_strangers():
    net = network()
    stranger = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    with pytest.raises(ValueError, match="optimizer: got 1 parameters"):
        cf.carry_optimizer(stranger, net, cf.refine(net))
    with pytest.raises(ValueError, match="state: got 'keep', accepted: carry, reset"):
        cf.carry_optimizer(stranger, net, net, state="keep")

    class Odd(torch.optim.SGD):
        def __init__(self, groups, *, needed, **options):
            super().__init__(groups, **options)

    with pytest.raises(ValueError, match="optimizer: got Odd, accepted"):
        cf.carry_optimizer(Odd(net.parameters(), needed=1, lr=0.1), net, cf.refine(net))


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_wrappers_on_either_side_make_no_difference(wrap):
    net = network()
    optimizer = torch.optim.SGD(wrap(net).parameters(), lr=0.1, momentum=0.9)
    train(net, optimizer)
    finer = cf.refine(net)
    for old in (net, wrap(net)):
        for new in (finer, wrap(finer)):
            carried = cf.carry_optimizer(optimizer, old, new)
            weight = finer.stages[1].field.conv1_weight
            assert carried.state[weight]["momentum_buffer"].shape == weight.shape


class Warmup:
    """A scheduler of another make: it scales what a scheduler of torch says."""

    def __init__(self, optimizer, inner):
        self.optimizer, self.inner, self.count = optimizer, [inner], 0

    def step(self):
        self.inner[0].step()
        self.count += 1
        for group in self.optimizer.param_groups:
            group["lr"] *= min(1.0, self.count / 3)


SCHEDULERS = {
    "StepLR": lambda o: rates.StepLR(o, 2, 0.5),
    "LambdaLR": lambda o: rates.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "CosineAnnealingLR": lambda o: rates.CosineAnnealingLR(o, 6),
    "OneCycleLR": lambda o: rates.OneCycleLR(o, max_lr=0.5, total_steps=8),
    "CyclicLR": lambda o: rates.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "SequentialLR": lambda o: rates.SequentialLR(
        o, [rates.LinearLR(o, total_iters=2), rates.ExponentialLR(o, 0.7)], milestones=[2]
    ),
    "ChainedScheduler": lambda o: rates.ChainedScheduler([rates.ConstantLR(o, total_iters=4), rates.StepLR(o, 2)]),
    "ReduceLROnPlateau": lambda o: rates.ReduceLROnPlateau(o, patience=0),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.3, anneal_epochs=5),
    "another's": lambda o: Warmup(o, rates.StepLR(o, 2, 0.5)),
}


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_drive_the_new_optimizer_as_they_would_have_driven_the_old(name, after):
    def rates_of_a_run(refine_after):
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        scheduler = SCHEDULERS[name](optimizer)
        found = []
        for i in range(7):
            optimizer.step()
            if i == refine_after:
                finer = cf.refine(net)
                optimizer = cf.carry_optimizer(optimizer, net, finer, schedulers=[scheduler])
                net = finer
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
            found.append({k: v for k, v in optimizer.param_groups[0].items() if k != "params"})
        return found

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="The epoch parameter")
        assert rates_of_a_run(after) == rates_of_a_run(None)


def test_a_forgotten_scheduler_is_warned_of():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    finer = cf.refine(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cf.carry_optimizer(optimizer, net, finer)
        scheduler = rates.StepLR(optimizer, 2)
        cf.carry_optimizer(optimizer, net, finer, schedulers=())
        carried = cf.carry_optimizer(optimizer, net, finer, schedulers=[scheduler])
    with pytest.warns(UserWarning, match=r"a learning rate scheduler drives the old optimiser.*schedulers=\[\.\.\.\]"):
        cf.carry_optimizer(carried, finer, cf.refine(finer))
    with pytest.raises(ValueError, match=r"schedulers\[0\]: got StepLR that does not drive optimizer"):
        cf.carry_optimizer(optimizer, net, finer, schedulers=[scheduler])
    assert scheduler.optimizer is carried


def test_a_gradient_scaler_goes_on():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    twin = copy.deepcopy(net)
    plain = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for refine in (False, True):
        if refine:
            finer, finer_twin = cf.refine(net), cf.refine(twin)
            optimizer, plain = cf.carry_optimizer(optimizer, net, finer), cf.carry_optimizer(plain, twin, finer_twin)
            net, twin = finer, finer_twin
        optimizer.zero_grad()
        scaler.scale(loss(net)).backward()
        scaler.step(optimizer)
        scaler.update()
        train(twin, plain)
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
