"""odeint with batched=True: rows are solved as if each were alone, and leave when they are done."""

from __future__ import annotations

import pytest
import torch

import contnet_fast as cf
from contnet_fast.ode.methods import ADAPTIVE

D = torch.float64
RATES = torch.tensor([[0.5, 1.0], [4.0, 2.0], [12.0, 9.0], [0.1, 0.2]], dtype=D)
Y0 = torch.cat([torch.tensor([[1.0, 0.3], [0.2, -1.0], [2.0, 1.0], [0.4, 0.4]], dtype=D), RATES], 1)


def field(t, y):
    """A field of its own speed in each row; ``t`` is [b] or, alone, 0-d."""
    x, w = y[..., :2], y[..., 2:]
    return torch.cat([w * torch.cos(x.flip(-1) * 2 + t[..., None]), torch.zeros_like(w)], -1)


@pytest.mark.parametrize("options", [{}, {"land_on_end": True, "safety": 0.8}, {"first_step": 0.3, "max_step": 0.4}])
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_rows_equal_their_own_solves(method, direction, options):
    t = direction * torch.tensor([0.0, 0.1, 0.15, 0.9, 2.0], dtype=D)
    options = {"ifactor": 3.0, **options}  # a larger one follows errors that are rounding alone
    tolerances = {"rtol": 1e-3, "atol": 1e-5, "method": method, "options": options, "return_stats": True}
    got, stats = cf.odeint(field, Y0, t, batched=True, **tolerances)
    for i, row in enumerate(Y0):
        want, alone = cf.odeint(field, row, t, **tolerances)
        torch.testing.assert_close(got[:, i], want, rtol=1e-9, atol=1e-12)
        assert (stats.accepted[i], stats.rejected[i]) == (alone.accepted, alone.rejected)
        assert stats.nfe[i] == alone.nfe
    assert stats.completed.all()


@pytest.mark.parametrize("graph", [False, True])
def test_finished_rows_are_no_longer_evaluated(graph):
    asked = []

    def watched(t, y):
        assert t.shape == (len(y),)
        asked.append(len(y))
        return field(t, y)

    y0 = Y0.clone().requires_grad_(graph)
    _, stats = cf.odeint(watched, y0, torch.tensor([0.0, 2.0], dtype=D), batched=True, return_stats=True)
    assert asked == sorted(asked, reverse=True)
    assert (asked[0], asked[-1]) == (4, 1)
    assert sum(asked) == stats.nfe.sum()
    assert len(asked) == stats.calls == stats.nfe.max()


def test_tolerances_of_rows_memory_formats_and_dtypes():
    t = torch.tensor([0.0, 0.4, 1.0])
    y0 = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    rtol = torch.tensor([1e-2, 1e-6, 1e-4])[:, None, None, None]

    def wave(t, y):
        assert y.is_contiguous(memory_format=torch.channels_last)
        return torch.sin(5 * y) * t.reshape(-1, 1, 1, 1)

    got, stats = cf.odeint(wave, y0, t, rtol=rtol, atol=1e-7, batched=True, return_stats=True)
    assert got.dtype == torch.float32
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in got)
    for i, r in enumerate(rtol.flatten().tolist()):
        want, alone = cf.odeint(wave, y0[i : i + 1], t, rtol=r, atol=1e-7, return_stats=True)
        torch.testing.assert_close(got[:, i], want[:, 0], rtol=2e-4, atol=1e-5)
        assert stats.accepted[i] == alone.accepted
    assert len(set(stats.accepted.tolist())) == 3
    for y0, close in (
        (torch.linspace(0.1, 2, 5, dtype=torch.complex128), 1e-6),
        (torch.linspace(0.1, 2, 5, dtype=torch.bfloat16), 1e-1),
    ):
        got = cf.odeint(lambda t, y: -y, y0, t, rtol=1e-3 if close > 1e-3 else 1e-7, atol=1e-3, batched=True)
        torch.testing.assert_close(got[-1], y0 * torch.exp(-t[-1]).to(y0.dtype), rtol=close, atol=1e-3)


def test_first_and_second_derivatives():
    options = {"first_step": 0.3, "min_step": 0.3, "max_step": 0.3}
    y0 = torch.tensor([[0.7, 1.3], [0.2, -0.4]], dtype=D, requires_grad=True)
    w = torch.tensor([0.4, -0.2], dtype=D, requires_grad=True)

    t = torch.tensor([0.0, 0.4, 1.1], dtype=D)

    def run(y0, w):
        arguments = {"method": "dopri5", "options": options, "rtol": 1e-2, "atol": 1e-2, "batched": True}
        return cf.odeint(lambda t, y: torch.sin(w * y + t[:, None]) + y.roll(1, -1) * w, y0, t, **arguments)

    assert torch.autograd.gradcheck(run, (y0, w))
    assert torch.autograd.gradgradcheck(run, (y0, w))


def test_gradients_are_those_of_the_rows_alone():
    """Of accepted steps only: the first attempt of the last row leaves the domain of the root."""
    y0 = torch.tensor([[4.0, 0.01], [25.0, 0.4], [4.0, 5.0]], dtype=D, requires_grad=True)
    t = torch.tensor([0.0, 0.25, 0.5], dtype=D)
    w = torch.tensor(1.0, dtype=D, requires_grad=True)
    arguments = {"method": "bosh3", "rtol": 1e-5, "options": {"first_step": 1.0, "min_step": 1e-9}}

    def root(t, y):
        x, speed = y.unbind(-1)
        return torch.stack([-speed * w * torch.sqrt(x), torch.zeros_like(x)], -1)

    got, stats = cf.odeint(root, y0, t, batched=True, return_stats=True, **arguments)
    gradients = torch.autograd.grad(got.cos().sum(), (y0, w))
    alone = torch.stack([cf.odeint(root, row, t, **arguments) for row in y0], 1)
    torch.testing.assert_close(got, alone, rtol=1e-9, atol=1e-12)
    for mine, want in zip(gradients, torch.autograd.grad(alone.cos().sum(), (y0, w)), strict=True):
        torch.testing.assert_close(mine, want, rtol=1e-9, atol=1e-12)
    assert stats.rejected[2] > stats.rejected[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "rk4"}, "batched: got True with method 'rk4', accepted: an adaptive method"),
        ({"y0": torch.tensor(1.0)}, r"batched: got True with y0 of shape \(\), accepted: \[B, ...\]"),
        ({"y0": torch.ones(2, 0)}, r"batched: got True with y0 of shape \(2, 0\)"),
        ({"y0": (torch.ones(2), torch.ones(2))}, "batched: got True with a pytree y0, accepted: one tensor"),
        ({"event_fn": lambda t, y: y}, "event_fn: got .* with batched=True, accepted: None"),
        ({"gradient": "checkpoint"}, "gradient: got 'checkpoint' with batched=True, accepted: 'discrete'"),
        ({"t": torch.tensor([0.0, 1.0], requires_grad=True)}, "t that requires grad"),
        ({"options": {"step_t": [0.5]}}, r"options\['step_t'\]: got one with batched=True, accepted: none"),
        ({"options": {"norm": torch.linalg.norm}}, r"options\['norm'\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:rk4 takes one step")
def test_bad_input_is_named(arguments, message):
    given = {"func": lambda t, y: y, "y0": torch.ones(2, 3), "t": torch.tensor([0.0, 1.0]), **arguments}
    with pytest.raises(ValueError, match=message):
        cf.odeint(**given, batched=True)


def test_a_constant_of_the_whole_batch_is_refused():
    speed = torch.tensor([[0.1], [40.0]])
    with pytest.raises((ValueError, RuntimeError), match=r"rows still going\): got torch.float32 \(2, 1\)"):
        cf.odeint(
            lambda t, y: torch.cos(speed * t[:, None]) + 0 * y, torch.ones(2, 1), torch.tensor([0.0, 1.0]), batched=True
        )


def test_failures_name_their_row():
    t = torch.tensor([0.0, 1.0, 2.0], dtype=D)

    def breaks(t, y):
        return torch.where((t > 1.2)[:, None] & (y > 1e3), float("nan"), y)

    with pytest.raises(cf.OdeintError, match=r"row 2 of func\[1\] of stage \d; in row 2 at t = ") as caught:
        cf.odeint(breaks, torch.tensor([[1.0, 1.0], [2.0, 2.0], [1.0, 1e3]], dtype=D), t, batched=True)
    assert caught.value.component == "row 2 of func[1]"
    assert caught.value.y.shape == (2,)
    assert 0 < caught.value.t <= 1.2
    with pytest.raises(cf.OdeintError, match=r"func.t.0., y0..1, 0. is not finite; in row 1"):
        cf.odeint(lambda t, y: y.sqrt(), torch.tensor([[1.0], [-1.0]]), t, batched=True)
    with pytest.raises(cf.OdeintError, match=r"max_num_steps: 6 steps did not reach t\[1\] = 1.*in row 2"):
        cf.odeint(field, Y0, t, batched=True, rtol=1e-3, options={"max_num_steps": 6})
    got, stats = cf.odeint(
        *(field, Y0, t),
        **{"batched": True, "rtol": 1e-3, "options": {"max_num_steps": 6}},
        **{"on_max_steps": "return", "return_stats": True},
    )
    assert stats.completed.tolist() == [True, False, False, True]
    assert got[1:, 2].isnan().all()
    assert got[:, [0, 3]].isfinite().all()
    assert got[:, 1, 0].isnan().tolist() == [False, False, True]
