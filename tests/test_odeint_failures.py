"""odeint where something is wrong: errors that can be kept, budgets in every gradient, norms of 16-bit states."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

import contnet_fast as cf

D = torch.float64


class Wave(torch.nn.Module):
    def __init__(self, pair=False):
        super().__init__()
        self.a, self.pair = torch.nn.Parameter(torch.tensor(5.0, dtype=D)), pair

    def forward(self, t, y):
        if self.pair:
            return {"x": self.a * y["v"], "v": -y["x"]}
        return torch.sin(50 * t)[..., None] * self.a * y


def test_an_error_is_copied_and_pickled_with_its_attributes():
    with pytest.raises(cf.OdeintError) as caught:
        cf.odeint(lambda t, y: y * y, torch.tensor([2.0], dtype=D), torch.tensor([0.0, 1.0], dtype=D))
    for other in (copy.copy(caught.value), copy.deepcopy(caught.value), pickle.loads(pickle.dumps(caught.value))):
        assert str(other) == str(caught.value)
        assert vars(other) == vars(caught.value)


GRADIENTS = {
    "discrete": {},
    "checkpoint": {"gradient": "checkpoint"},
    "sqrt": {"gradient": "checkpoint", "keep": "sqrt"},
    "adjoint": {},
    "rows": {"batched": True},
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_of_what_the_step_budget_reached(kind):
    found = []
    for times, limit in (([0.0, 0.05, 3.0, 4.0], 40), ([0.0, 0.05], 1000)):
        field, y0 = Wave(), torch.ones(2, 1, dtype=D, requires_grad=True)
        t = torch.tensor(times, dtype=D, requires_grad=kind != "rows")
        interface = cf.odeint_adjoint if kind == "adjoint" else cf.odeint
        options, more = {"max_num_steps": limit}, GRADIENTS[kind]
        out = interface(field, y0, t, method="dopri5", options=options, on_max_steps="return", **more)
        assert out[2:].isnan().all()
        grads = torch.autograd.grad(out[1].sum(), [y0, field.a, *([t] if kind != "rows" else [])])
        assert not grads[-1][2:].any() if kind != "rows" else True
        found.append([g[:2] if g.dim() else g for g in grads])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("bad", "message", "component"),
    [
        ("x", r"func of y\['x'\] of stage|func\(t\[0\], y0\) is not finite: func of y\['x'\]", "func of y['x']"),
        ("gradient", r"y0 is not finite: dL/dy\['v'\]\[0\]", "dL/dy['v'][0]"),
        ("parameter", r"not finite: func of dL/dparams\[0\]", "func of dL/dparams[0]"),
    ],
)
def test_errors_of_the_adjoint_name_it_and_the_part(bad, message, component):
    class Broken(Wave):
        backwards = False

        def forward(self, t, y):
            out = super().forward(t, y)
            if self.backwards and bad == "x":
                out["x"] = out["x"] * float("nan")
            if self.backwards and bad == "parameter" and torch.is_grad_enabled():
                out["x"] = out["x"] + 0 * (self.a - 5.0).sqrt()
            return out

    field = Broken(pair=True)
    y0 = {"x": torch.ones(2, dtype=D, requires_grad=True), "v": torch.ones(2, dtype=D, requires_grad=True)}
    out = cf.odeint_adjoint(field, y0, torch.tensor([0.0, 1.0], dtype=D))
    field.backwards = True
    loss = out["v"].sum() * (float("nan") if bad == "gradient" else 1.0)
    with pytest.raises(cf.OdeintError, match=f"backward solve of odeint_adjoint: .*{message}") as caught:
        loss.backward()
    assert caught.value.component.startswith(component)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"rtol": torch.full((4, 1), 1e-3)}, "adjoint_rtol"),
        ({"atol": torch.full((4, 3), 1e-3), "adjoint_rtol": 1e-3}, "adjoint_atol"),
        ({"adjoint_rtol": (1e-3, 1e-3)}, "adjoint_rtol"),
    ],
)
def test_tolerances_that_the_adjoint_cannot_take_are_refused_at_the_call(arguments, name):
    y0, t = torch.ones(4, 3, requires_grad=True), torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match=rf"{name}: got \d values.*\(dL/dt, \*y, \*dL/dy, \*dL/dparams\)"):
        cf.odeint_adjoint(lambda t, y: -y, y0, t, adjoint_params=(), **arguments)
    for value in (1e-3, (1e-3,) * 3, (1e-3, torch.full((4, 3), 1e-3), 1e-3)):
        more = {"rtol": arguments.get("rtol", 1e-3), "atol": arguments.get("atol", 1e-3)}
        out = cf.odeint_adjoint(
            *(lambda t, y: -y, y0, t),
            **{**more, "adjoint_rtol": value, "adjoint_atol": value, "adjoint_params": ()},
        )
        out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_16_bit_states_do_not_overflow(dtype):
    t = torch.linspace(0, 1, 4, dtype=D)
    for scale in (0.1, 1.0, 3.0):
        y0 = torch.full((4, 3), scale, dtype=dtype, requires_grad=True)
        out = cf.odeint_adjoint(lambda t, y: -y * t, y0, t, rtol=1e-2, atol=1e-2, adjoint_params=())
        (grad,) = torch.autograd.grad(out.float().square().sum(), y0)
        want = 2 * scale * torch.exp(-t * t).sum().float()
        torch.testing.assert_close(grad.float(), want.expand(4, 3), rtol=5e-2, atol=1e-2)


def test_a_start_whose_norm_overflows_is_told():
    with pytest.raises(cf.OdeintError, match="the norm of y0 or func") as caught:
        cf.odeint(lambda t, y: torch.full_like(y, 1e30), torch.zeros(2), torch.tensor([0.0, 1.0]))
    assert caught.value.reason == "nonfinite"


# -- dense output -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_dense_output_in_the_graph_of_times(direction):
    y0 = torch.tensor([0.7, 1.3], dtype=D, requires_grad=True)
    t0 = torch.tensor(0.1, dtype=D, requires_grad=True)
    at = direction * torch.tensor([0.2, 0.8], dtype=D) + 0.1

    def run(y0, t0, at):
        options = dict.fromkeys(("first_step", "min_step", "max_step"), 0.3)
        end = 0.1 + direction
        return cf.odeint_dense(lambda t, y: torch.sin(y * t), y0, t0, end, rtol=1e-2, atol=1e-2, options=options)(at)

    assert torch.autograd.gradcheck(run, (y0, t0, at.requires_grad_()))
    assert torch.autograd.gradgradcheck(run, (y0, t0, at))
    te = torch.tensor(0.5, dtype=D, requires_grad=True)
    (rate,) = torch.autograd.grad(cf.odeint_dense(lambda t, y: -y, y0.detach(), 0.0, 1.0)(te).sum(), te)
    assert rate.item() == pytest.approx(-2 * math.exp(-0.5), rel=1e-4)


def test_dense_output_keeps_to_the_budget_and_refuses_bad_times():
    y0 = torch.ones(2, dtype=D)
    with pytest.raises(cf.OdeintError, match="max_num_steps: 2 steps did not reach t1 = 3"):
        cf.odeint_dense(lambda t, y: -y * t, y0, 0.0, 3.0, options={"max_num_steps": 2})
    solution = cf.odeint_dense(lambda t, y: -y * t, y0, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"t: got shape \(1, 2\), accepted: a number, 0-d or \[T\]"):
        solution(torch.tensor([[0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"t1: got shape \(2,\), accepted: a number, or a tensor with one time"):
        cf.odeint_dense(lambda t, y: -y * t, y0, 0.0, torch.ones(2))
