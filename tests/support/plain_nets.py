"""The truth of tests about tools: a block on piecewise constants written as a loop over plain torch.nn modules."""

from __future__ import annotations

import torch
from torch import nn

from contnet_fast.nn import ContinuousBlock, ConvField
from contnet_fast.schemes.tableaus import get_tableau


class Cell(nn.Module):
    """Two convolutions and two norms in the order of a field."""

    def __init__(self, channels: int, order: str, momentum: float | None) -> None:
        super().__init__()
        self.order = order
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norm1, self.norm2 = (nn.BatchNorm2d(channels, momentum=momentum) for _ in range(2))

    def forward(self, x):
        if self.order == "pre":
            return self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())
        return self.norm2(self.conv2(self.norm1(self.conv1(x).relu())).relu())


class PlainBlock(nn.Module):
    """The solve of :func:`make_block` with a :class:`Cell` for each piece of depth."""

    def __init__(self, channels, *, n_basis, n_steps, scheme="euler", order="pre", eps=1.0, momentum=0.1):
        super().__init__()
        self.scheme, self.n_steps, self.eps = scheme, n_steps, eps
        self.cells = nn.ModuleList(Cell(channels, order, momentum) for _ in range(n_basis))

    def evaluations(self):
        """The cell of each evaluation, in turn."""
        c = get_tableau(self.scheme).c
        for i in range(self.n_steps):
            for node in c:
                t = (i + node) / self.n_steps * len(self.cells)
                edge = node == 1 and t.denominator == 1
                yield min(int(t) - (1 if edge else 0), len(self.cells) - 1)

    def forward(self, x):
        tableau, cells = get_tableau(self.scheme), self.evaluations()
        for _ in range(self.n_steps):
            ks = []
            for row in tableau.a:
                y = x
                for a, k in zip(row, ks, strict=False):
                    y = y + float(a) / self.n_steps * k
                ks.append(self.eps * self.cells[next(cells)](y))
            for b, k in zip(tableau.b, ks, strict=True):
                x = x + float(b) / self.n_steps * k
        return x

    @torch.no_grad()
    def load(self, field: ConvField) -> PlainBlock:
        """Take the tensors of a field."""
        for k, cell in enumerate(self.cells):
            for i in (1, 2):
                conv, norm = getattr(cell, f"conv{i}"), getattr(cell, f"norm{i}")
                conv.weight.copy_(getattr(field, f"conv{i}_weight")[k])
                conv.bias.copy_(getattr(field, f"conv{i}_bias")[k])
                norm.weight.copy_(getattr(field, f"norm{i}_weight")[k])
                norm.bias.copy_(getattr(field, f"norm{i}_bias")[k])
                norm.running_mean.copy_(getattr(field, f"norm{i}_mean")[k])
                norm.running_var.copy_(getattr(field, f"norm{i}_var")[k])
                norm.num_batches_tracked.copy_(field.num_batches_tracked[k])
        return self


SETTINGS = {"channels": 4, "n_basis": 2, "n_steps": 2, "scheme": "midpoint", "order": "pre", "momentum": 0.1}


def make_block(
    *, seed: int = 0, stats: str = "sequential", norm: str = "batch", backend="auto", checkpoint="step", **s
):
    """A block around a field whose norms are not the identity."""
    s = {**SETTINGS, **s}
    torch.manual_seed(seed)
    field = ConvField(
        s["channels"], n_basis=s["n_basis"], order=s["order"], momentum=s["momentum"], stats=stats, norm=norm,
        eps=s.get("eps", 1.0),
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in field.named_parameters():
            if name.startswith("norm") or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return ContinuousBlock(field, scheme=s["scheme"], n_steps=s["n_steps"], backend=backend, checkpoint=checkpoint)


def make_pair(**settings):
    """A block and the same as plain modules."""
    block = make_block(**settings)
    kept = {name: settings[name] for name in (*SETTINGS, "eps") if name in settings}
    return block, PlainBlock(**{**SETTINGS, **kept}).load(block.field)


def batches(n: int = 3, *, seed: int = 1, channels: int = 4, size: int = 3) -> list[torch.Tensor]:
    """Images of no mean zero and no variance one."""
    generator = torch.Generator().manual_seed(seed)
    return [(i + 1) * torch.randn(size, channels, 6, 5, generator=generator) + 0.5 * i for i in range(n)]


def assert_same_statistics(
    block: ContinuousBlock, plain: PlainBlock, *, rtol: float = 1e-5, atol: float = 1e-6
) -> None:
    """Running statistics of every cell and norm, and their counts."""
    field = block.field
    for k, cell in enumerate(plain.cells):
        for i in (1, 2):
            norm = getattr(cell, f"norm{i}")
            for ours, theirs in ((f"norm{i}_mean", norm.running_mean), (f"norm{i}_var", norm.running_var)):
                torch.testing.assert_close(
                    getattr(field, ours)[k], theirs, rtol=rtol, atol=atol, msg=lambda m, at=(k, ours): f"{at}: {m}"
                )
            assert field.num_batches_tracked[k] == norm.num_batches_tracked


def step(module, x):
    """Output and gradients of a training step: of the input, and of the norms' and convolutions' parameters."""
    x = x.clone().requires_grad_()
    y = module.train()(x)
    y.square().mean().backward()
    return y.detach(), x.grad


def assert_same_step(block, plain, x):
    for ours, theirs in zip(step(block, x), step(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert_same_statistics(block, plain, rtol=1e-4, atol=1e-5)
    for name, parameter in block.field.named_parameters():
        part, _, leaf = name.partition("_")
        grads = [dict(getattr(cell, part).named_parameters())[leaf].grad for cell in plain.cells]
        torch.testing.assert_close(
            parameter.grad, torch.stack(grads).view_as(parameter.grad), rtol=1e-3, atol=1e-4, msg=name
        )
    block.zero_grad()
    plain.zero_grad()
