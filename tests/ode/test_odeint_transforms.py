"""odeint and the ops under torch.func and forward-mode AD, whatever backend serves a plain call."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import contnet_fast as cf

D = torch.float64
TIMES = torch.tensor([0.0, 0.4, 1.1], dtype=D)
FORCED = {"first_step": 0.25, "min_step": 0.25, "max_step": 0.25}
METHODS = [("euler", {"step_size": 0.25}), ("rk4", {"step_size": 0.25, "interp": "cubic"}), ("dopri5", FORCED)]
Y0 = torch.tensor([[0.7, 1.3], [0.2, -0.4]], dtype=D)
V = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=D)
W = torch.tensor(0.6, dtype=D)
with torch.inference_mode():
    KEEPS_TANGENTS = bool(jvp(torch.sin, (Y0,), (V,))[1].any())
IN_INFERENCE = pytest.mark.skipif(not KEEPS_TANGENTS, reason="needs a torch whose jvp keeps tangents in inference mode")
MODES = [torch.enable_grad, torch.no_grad, pytest.param(torch.inference_mode, marks=IN_INFERENCE)]


def solve(y, w=W, t=TIMES, *, method="rk4", options=METHODS[1][1], **more):
    def field(s, z):
        return torch.sin(w * z + s) + z.roll(1, -1)

    return cf.odeint(field, y, t, method=method, options=options, rtol=1e-2, atol=1e-2, **more)


def directional(f, x, v):
    """Central differences."""
    return (f(x + 1e-6 * v) - f(x - 1e-6 * v)) / 2e-6


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("method", "options"), METHODS)
def test_tangents_of_the_state_parameters_and_times(method, options, mode):
    of_y, of_w, of_t = (
        lambda y: solve(y, method=method, options=options),
        lambda w: solve(Y0, w, method=method, options=options),
        lambda t: solve(Y0, t=t, method=method, options=options),
    )
    for f, x, v in ((of_y, Y0, V), (of_w, W, W + 1), (of_t, TIMES, TIMES + 0.1)):
        want = directional(f, x, v)
        with mode():
            close(jvp(f, (x,), (v,))[1], want)
            if mode is not torch.inference_mode:  # PyTorch itself drops tangents there
                with forward_ad.dual_level():
                    close(forward_ad.unpack_dual(f(forward_ad.make_dual(x, v))).tangent, want)


@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize("gradient", ["discrete", "checkpoint"])
def test_tangents_of_pytrees_bursts_and_rows(mode, gradient):
    def burst(y):
        return solve(y, method="dopri5", options={**FORCED, "steps_per_read": 3}, gradient=gradient, params=())

    def pair(y):
        out = cf.odeint(lambda t, s: (s[1] * t, -s[0].sin()), (y[0], y[1]), TIMES, options=FORCED, rtol=1.0)
        return torch.cat(out, 1)

    def rows(y):
        return cf.odeint(lambda t, y: torch.sin(y + t[:, None]), y, TIMES, options=FORCED, rtol=1.0, batched=True)

    for f in (burst, pair, rows) if gradient == "discrete" or mode is not torch.enable_grad else (pair, rows):
        want = directional(f, Y0, V)
        with mode(), forward_ad.dual_level():
            close(forward_ad.unpack_dual(f(forward_ad.make_dual(Y0, V))).tangent, want)


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_gradients_jacobians_and_hessians(method, options):
    def loss(y):
        return solve(y, method=method, options=options)[-1].square().sum()

    y = Y0.clone().requires_grad_()
    close(grad(loss)(Y0), torch.autograd.grad(loss(y), y)[0])
    want = torch.autograd.functional.hessian(loss, Y0)
    close(hessian(loss)(Y0), want)
    close(jacfwd(jacrev(loss))(Y0), want)
    close(jacrev(grad(loss))(Y0), want)


@pytest.mark.parametrize("method", ["euler", "rk4", "explicit_adams"])
def test_vmap_and_gradients_of_samples(method):
    options = {"step_size": 0.1}
    close(
        vmap(lambda y: solve(y, method=method, options=options), out_dims=1)(Y0),
        solve(Y0, method=method, options=options),
    )
    net = torch.nn.Linear(2, 2, dtype=D)
    weights = {k: p.detach() for k, p in net.named_parameters()}

    def loss(weights, y):
        out = cf.odeint(lambda t, y: functional_call(net, weights, (y,)), y, TIMES, method=method, options=options)
        return out[-1].square().sum()

    got = vmap(grad(loss), (None, 0))(weights, Y0)
    for i, y in enumerate(Y0):
        for name, g in grad(loss)(weights, y).items():
            close(got[name][i], g)


@pytest.mark.parametrize("mode", MODES)
def test_the_ops_and_a_block(mode):
    def combined(y):
        return cf.rk_combine((y, y[0]), [(y.sin(), y[1])], [0.3], h=2.0)[0]

    def norm(y):
        return cf.rk_combine_error(y, [y.sin(), y], [0.3, 1.0], [0.1, 0.0], rtol=1e-3, atol=1e-3)[0]

    block = cf.nn.ContinuousBlock(lambda t, y: torch.sin(y + t), scheme="rk4", n_steps=3)
    for f in (combined, norm, block):
        want = directional(f, Y0, V)
        with mode():
            close(jvp(f, (Y0,), (V,))[1], want)


@pytest.mark.parametrize("checkpoint", ["step", "block"])
@pytest.mark.parametrize("norm", ["group", None])
def test_gradients_of_samples_through_a_block_that_recomputes(norm, checkpoint):
    class Rate(torch.nn.Linear):
        def forward(self, t, y):
            return super().forward(y + t).tanh()

    torch.manual_seed(3)
    field = cf.nn.ConvField(4, n_basis=2, norm=norm, groups=2) if norm else Rate(4, 4)
    x = torch.randn(3, 1, 4, *((5, 5) if norm else ()), dtype=D)
    block = cf.nn.ContinuousBlock(field, n_steps=2, checkpoint=checkpoint).double()
    weights = {name: p.detach() for name, p in block.named_parameters()}

    def loss(weights, y):
        return functional_call(block, weights, (y,)).square().sum()

    got = vmap(grad(loss), (None, 0))(weights, x)
    for i, y in enumerate(x):
        block.zero_grad()
        block(y).square().sum().backward()
        for name, p in block.named_parameters():
            close(got[name][i], p.grad)


def test_what_torch_func_is_refused():
    w = torch.tensor(1.0, dtype=D)
    more = {"event_fn": lambda t, y: y[0] - 0.5}
    for run in (
        lambda y: cf.odeint(lambda t, y: -y * w, y, TIMES, gradient="checkpoint", params=()).sum(),
        lambda y: cf.odeint_adjoint(lambda t, y: -y * w, y, TIMES, adjoint_params=()).sum(),
        lambda y: cf.odeint_event(lambda t, y: -y * w, y, TIMES[0], **more)[0],
    ):
        with pytest.raises(RuntimeError, match=r"inside of torch\.func, accepted there: odeint"):
            grad(run)(torch.ones(2, dtype=D))


def test_fused_levels_refuse_transforms_by_name():
    block = cf.nn.ContinuousBlock(cf.nn.ConvField(4, n_basis=2, norm="group", groups=2), n_steps=2).double()
    x = torch.randn(2, 4, 5, 5, dtype=D)
    with cf.record_runs() as log:
        got = vmap(block)(x[:, None])[:, 0]
        cf.functional.rk_combine(Y0, [V], [0.5])
    close(got, block(x))
    assert {f"{run.backend}:{run.level}" for run in log[:1]} == {"reference:none"}
    with pytest.raises(cf.BackendUnavailable, match=r"torch\.func and tangents need PyTorch's own operations"):
        vmap(lambda y: cf.functional.rk_combine(y, [V[0]], [0.5], backend="reference:accumulate"))(Y0)
