"""Implicit methods with chosen steps: orders, stiff problems, gradients, rows, interpolants, what is refused."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

import contnet_fast as cf
from benchmarks.odeint.stiff_problems import PROBLEMS, by_scipy
from contnet_fast.ode.methods import STIFF
from contnet_fast.schemes.implicit import IMPLICIT_SCHEMES, RODAS5P

D = torch.float64
TWO = torch.tensor([0.0, 1.0], dtype=D)
ORDERS = {name: IMPLICIT_SCHEMES[name].order if name != "rodas5p" else RODAS5P.order for name in STIFF}
ENDS = {  # the first values, by SciPy's Radau at rtol 1e-11, atol 1e-13; the first four are also in the literature
    "Robertson": [0.10730043, 4.800167e-07, 0.89269909],
    "van der Pol": [1.7061677, -0.0008928097],
    "Oregonator": [1.0008149, 1228.1785, 132.05549],
    "HIRES": [
        0.00073713126,
        0.00014424857,
        5.8887297e-05,
        0.0011756513,
        0.0023863562,
        0.0062389683,
        0.0028499984,
        0.0028500016,
    ],
    "Brusselator": [
        0.92172,
        0.84631393,
        0.77608846,
        0.71262458,
        0.65676462,
        0.60871036,
        0.56818134,
        0.53458551,
    ],
}


@cache
def end_of(name):
    """The first values at the end; those of weights that are drawn, by SciPy itself."""
    found = ENDS.get(name) or by_scipy(PROBLEMS[name], "Radau", 1e-11, 1e-13).y[:, -1].tolist()
    return torch.tensor(found, dtype=D)


TOLERANCES = {"rodas5p": 1e-6, "kvaerno5": 1e-5, "adaptive_trbdf2": 1e-4}


class Oscillator(torch.nn.Module):
    """The forced oscillator of van der Pol."""

    def __init__(self, mu=20.0):
        super().__init__()
        self.mu = torch.nn.Parameter(torch.tensor(mu, dtype=D))

    def forward(self, t, y):
        a, b = y.unbind(-1)
        return torch.stack([b, self.mu * (1 - a * a) * b - a + torch.sin(t)], -1)


def forced(n, **more):
    return {"first_step": 1 / n, "min_step": 1 / n, "max_step": 1 / n, "land_on_end": True, **more}


@pytest.mark.parametrize("method", STIFF)
def test_orders_of_convergence_with_steps_forced(method):
    def field(t, y):
        return y * torch.cos(3 * t) - 0.3 * y * y

    y0, errors = torch.tensor([0.7, 1.3], dtype=D), []
    truth = cf.odeint(field, y0, TWO, method="dopri8", rtol=1e-13, atol=1e-14, options={"land_on_end": True})[-1]
    n = {2: 16, 5: 8}[ORDERS[method]]
    for count in (n, 2 * n):
        tolerance = 1e-11  # what Newton's method goes by, where steps are forced
        got = cf.odeint(field, y0, TWO, method=method, rtol=tolerance, atol=tolerance, options=forced(count))
        errors.append((got[-1] - truth).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > ORDERS[method] - 0.4


@pytest.mark.parametrize(
    ("method", "name"),
    [
        *(("rodas5p", n) for n in PROBLEMS),
        *(("kvaerno5", n) for n in ("Robertson", "van der Pol", "HIRES", "neural ODE")),
        ("adaptive_trbdf2", "HIRES"),
    ],
)
def test_stiff_problems_end_where_radau_does(method, name):
    problem, tolerance = PROBLEMS[name], 1e-4
    y0, t = torch.tensor(problem.start, dtype=D), torch.tensor([0.0, problem.end], dtype=D)
    end = end_of(name)
    with torch.no_grad():
        got, stats = cf.odeint(
            problem.rate(torch), y0, t, method=method, rtol=tolerance, atol=tolerance * 1e-5, return_stats=True
        )
    assert ((got[-1, : len(end)] - end).abs() / end.abs().clamp_min(1e-4)).max() < 100 * tolerance
    assert stats.accepted < 300
    if method != "rodas5p":
        attempts, stages = stats.accepted + stats.rejected, len(IMPLICIT_SCHEMES[method].b) - 1
        assert stats.jacobians < attempts
        assert stats.nfe < 4 * stages * attempts  # iterations of a stage


def loss(out):
    return (out[1:] * torch.tensor([[1.0, 0.3], [0.5, 0.2]], dtype=D)).sum()


@pytest.mark.parametrize("method", STIFF)
def test_every_gradient_is_that_of_differences(method):
    t, y0, tolerance = torch.tensor([0.0, 0.3, 0.6], dtype=D), torch.tensor([2.0, 0.0], dtype=D), TOLERANCES[method]
    more = {"method": method, "rtol": tolerance, "atol": tolerance, "options": {"land_on_end": True}}

    def value(mu, y, times):
        with torch.no_grad():
            fine = {**more, "method": "dopri8", "rtol": 1e-10, "atol": 1e-10}
            return loss(cf.odeint(Oscillator(mu), y, times, **fine)).item()

    e, expected = 1e-4, []
    expected.append((value(20 + e, y0, t) - value(20 - e, y0, t)) / (2 * e))
    for i in range(2):
        d = e * torch.eye(2, dtype=D)[i]
        expected.append((value(20.0, y0 + d, t) - value(20.0, y0 - d, t)) / (2 * e))
    for i in range(3):
        d = e * torch.eye(3, dtype=D)[i]
        expected.append((value(20.0, y0, t + d) - value(20.0, y0, t - d)) / (2 * e))
    for interface, kind in ((cf.odeint, {}), (cf.odeint, {"gradient": "checkpoint"}), (cf.odeint_adjoint, {})):
        field, y, times = Oscillator(), y0.clone().requires_grad_(), t.clone().requires_grad_()
        found = torch.autograd.grad(loss(interface(field, y, times, **more, **kind)), [field.mu, y, times])
        got = torch.cat([g.reshape(-1) for g in found])
        torch.testing.assert_close(got, torch.tensor(expected, dtype=D), rtol=500 * tolerance, atol=500 * tolerance)


@pytest.mark.parametrize(("method", "gradient"), [("rodas5p", "checkpoint"), ("kvaerno5", "discrete")])
def test_gradients_of_the_steps_themselves(method, gradient):
    y0 = torch.tensor([0.7, 1.3], dtype=D, requires_grad=True)
    w = torch.tensor(0.4, dtype=D, requires_grad=True)
    t = torch.tensor([0.0, 0.2, 0.5], dtype=D)

    def run(y0, w):
        return cf.odeint(
            lambda s, y: torch.sin(w * y + s) - 5 * y.roll(1) * w * y,
            *(y0, t),
            **{
                "method": method,
                "options": forced(2),
                "gradient": gradient,
                "params": (w,),
                "rtol": 1e-9,
                "atol": 1e-9,
            },
        )

    assert torch.autograd.gradcheck(run, (y0, w))


@pytest.mark.parametrize("method", STIFF)
def test_rows_are_solves_of_their_own(method):
    y = torch.tensor([[2.0, 0.0], [1.0, 0.5], [0.3, -1.0]], dtype=D, requires_grad=True)
    t, field = torch.tensor([0.0, 0.2, 0.4], dtype=D), Oscillator(5.0)
    more = {"method": method, "rtol": 1e-3, "atol": 1e-3}
    rows, stats = cf.odeint(field, y, t, **more, batched=True, return_stats=True)
    alone = [cf.odeint(field, y[i], t, **more, return_stats=True) for i in range(3)]
    assert stats.accepted.tolist() == [a.accepted for _, a in alone]
    assert len(set(stats.accepted.tolist())) > 1
    single = torch.stack([out for out, _ in alone], 1)
    torch.testing.assert_close(rows, single, rtol=1e-3, atol=1e-4)
    got, expected = (torch.autograd.grad(x.sum(), (y, field.mu)) for x in (rows, single))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", STIFF)
def test_interpolants(method):
    y0 = torch.tensor([2.0, 0.0], dtype=D)
    with torch.no_grad():
        solution = cf.odeint_dense(Oscillator(5.0), y0, 0.0, 1.0, method=method, rtol=1e-5, atol=1e-5)
        times = torch.linspace(0, 1, 11, dtype=D)
        truth = cf.odeint(Oscillator(5.0), y0, times, method="dopri8", rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(solution(times), truth, rtol=1e-3, atol=1e-3)
    in_graph = solution(times.clone().requires_grad_())
    torch.testing.assert_close(in_graph.detach(), solution(times), rtol=1e-12, atol=1e-12)


def test_a_given_jacobian_is_asked_and_factors_are_kept():
    a, calls = torch.tensor([[-1000.0, 1.0], [0.0, -1.0]], dtype=D), []

    def jacobian(t, y):
        calls.append(y.shape)
        return a.expand(*y.shape[:-1], 2, 2) if y.dim() > 1 else a

    y0 = torch.tensor([1.0, 1.0], dtype=D)
    for state, batched in ((y0, False), (y0.repeat(3, 1), True)):
        more = {"method": "kvaerno5", "options": {"jacobian": jacobian}, "rtol": 1e-6, "atol": 1e-8, "batched": batched}
        out, stats = cf.odeint(lambda t, y: y @ a.T, state, TWO, **more, return_stats=True)
        torch.testing.assert_close(out[-1], state @ torch.linalg.matrix_exp(a).T, rtol=1e-4, atol=1e-6)
        if not batched:
            assert len(calls) == stats.jacobians == 1
            assert stats.factorizations < stats.accepted + stats.rejected + 1
    assert calls[-1] == (3, 2)


def test_a_step_that_newton_cannot_take_is_made_smaller():
    stats = cf.odeint(
        lambda t, y: -1e4 * (y**3 - torch.cos(t)),
        *(torch.tensor([30.0], dtype=D), TWO),
        **{"method": "kvaerno5", "options": {"first_step": 0.5}, "rtol": 1e-4, "atol": 1e-4, "return_stats": True},
    )[1]
    assert stats.rejected >= 2
    assert stats.accepted > 3


def test_states_of_many_leaves_and_complex_ones():
    def field(t, s):
        return {"z": -200 * (s["z"] - torch.exp(1j * t)) + 1j * torch.exp(1j * t), "x": -s["x"]}

    state = {"z": torch.ones(2, dtype=torch.complex128), "x": torch.ones(2, 2, dtype=D)}
    for method in STIFF:
        got = cf.odeint(field, state, TWO, method=method, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(got["z"][-1], torch.exp(1j * TWO[1:]).expand(2), rtol=1e-3, atol=0)
        torch.testing.assert_close(got["x"][-1], torch.full((2, 2), math.exp(-1), dtype=D), rtol=1e-3, atol=0)


def test_what_is_refused():
    y0 = torch.ones(2, dtype=D)
    for options, message in (({"jacobian": 3}, "'jacobian'.*got 3"), ({"max_iters": 0}, "max_iters")):
        with pytest.raises(ValueError, match=message):
            cf.odeint(lambda t, y: -y, y0, TWO, method="kvaerno5", options=options)
    with pytest.raises(TypeError, match=r"y0: got leaves of torch.float32 and torch.float64"):
        cf.odeint(lambda t, s: s, (y0, y0.float()), TWO, method="rodas5p")
    with pytest.raises(cf.OdeintError, match="underflow"):
        cf.odeint(lambda t, y: torch.where(t > 0.5, y / 0, -y), y0, TWO, method="rodas5p", rtol=1e-3, atol=1e-3)


def test_the_adjoint_solves_backwards_only_what_is_stable_so():
    """y' = -1000 (y - cos t) + v: y itself, solved backwards, would grow by exp(1000)."""
    for method, norm in (("rodas5p", {}), ("kvaerno5", {"adjoint_options": {"norm": "seminorm"}})):
        v, y0 = torch.zeros((), dtype=D, requires_grad=True), torch.tensor([1.5], dtype=D, requires_grad=True)
        out = cf.odeint_adjoint(
            lambda t, y, v=v: -1000 * (y - torch.cos(t)) + v,
            *(y0, TWO),
            **{"method": method, "rtol": 1e-4, "atol": 1e-7, "adjoint_params": (v,), **norm},
        )
        gradients = torch.autograd.grad(out[-1].sum(), (v, y0))
        assert gradients[0].item() == pytest.approx(1e-3, rel=1e-2)
        assert abs(gradients[1].item()) < 1e-5
