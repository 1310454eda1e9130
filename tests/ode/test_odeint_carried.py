"""odeint(gradient="checkpoint") runs steps again with what the field carried, and what the caller set since is kept."""

from __future__ import annotations

import pytest
import torch
from checkpoint_cases import solve, solvers
from moving_fields import KINDS, D, Replaced, carried, same

IN_GRAPHS = ("InGraph", "GraphTuple")  # a derivative through what is carried is followed by gradient="discrete" alone


def start():
    return torch.linspace(-1, 1, 12, dtype=D).view(4, 3).requires_grad_()


@solvers
@pytest.mark.parametrize(("training", "create_graph"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in IN_GRAPHS])
def test_gradients_are_those_of_the_discrete_solve_and_state_moves_once(kind, training, create_graph, method, options):
    found = []
    for gradient in ("discrete", "checkpoint"):
        field, module, others = KINDS[kind]()
        module.train(training)
        inputs = [start(), *(p for p in module.parameters() if p.requires_grad)]
        how = {"method": method, "options": options, "params": inputs[1:], "rtol": 1e-4, "atol": 1e-4}
        torch.manual_seed(1)
        out = solve(field, inputs[0], gradient, **how)
        moved = carried(module, others)
        grads = torch.autograd.grad(out.square().sum(), inputs, create_graph=create_graph, allow_unused=True)
        same(carried(module, others), moved)
        found.append([out, *grads, *moved])
    same(*found)


@solvers
@pytest.mark.parametrize("way", ["filled", "replaced", "eval"])
def test_what_the_caller_sets_between_forward_and_backward_is_not_seen(way, method, options):
    """Or, where a graph has saved it, the error of plain autograd; a second pass runs those steps again."""
    found = []
    for gradient in ("discrete", "checkpoint"):
        module = Replaced()
        module.register_buffer("still", torch.full((3,), 0.5, dtype=D))

        def field(t, y, m=module):
            return m(t, y) * m.still * (1.0 if m.training else 3.0)

        inputs = [start(), *module.parameters()]
        out = solve(field, inputs[0], gradient, method=method, options=options, params=inputs[1:])
        if gradient == "discrete":
            found.append(torch.autograd.grad(out.square().sum(), inputs))
        if way == "filled":
            module.factor.fill_(9.0)
            module.still.fill_(9.0)
        elif way == "replaced":
            module.factor, module.still = torch.zeros(3, dtype=D), torch.zeros(3, dtype=D)
        else:
            module.eval()
        set_to = carried(module, list)
        if gradient == "checkpoint" and (way, method) == ("filled", "rk4"):  # its last steps have kept their graph
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                torch.autograd.grad(out.square().sum(), inputs, retain_graph=True)
        if gradient == "checkpoint":
            found.append(torch.autograd.grad(out.square().sum(), inputs))
        same(carried(module, list), set_to)
    same(*found)
