"""The cases of the odeint benchmark as data: problems, and what is timed on each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

Options = dict[str, Any]
STEPS = 4  # number of steps where their cost is measured
BIG = 2_000_000
LEAVES = (1, 4, 16, 64, 256)
SIZES = ((16, 32), (32, 16), (64, 8))  # channels and side of the maps of ``ContinuousNet``
BATCH = 32
FORCED = {"first_step": 1 / STEPS, "min_step": 1 / STEPS, "max_step": 1 / STEPS}
GRID = {"step_size": 1 / STEPS}
GROWING = "conv 16@8"  # whose number of reversible steps grows


class Growth(nn.Module):
    """dy/dt = y: it returns its argument, so that only the solver takes time."""

    def forward(self, t: torch.Tensor, y: Any) -> Any:
        return y


class Decay(nn.Module):
    """dy/dt = -y, leaf by leaf."""

    def forward(self, t: torch.Tensor, y: Any) -> Any:
        return -y if isinstance(y, torch.Tensor) else tuple(-x for x in y)


class Mlp(nn.Module):
    """An MLP of widths 4, 32 and 4 with tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 4))

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.net(y)


class Speeds(nn.Module):
    """dz/dt = w g(z) with an MLP g and a speed w for each sample of the batch; y is [z, w]."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3)
        )

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        w = y[:, 3:]
        return torch.cat([w * self.net(y[:, :3]), torch.zeros_like(w)], 1)


def conv_field(channels: int) -> nn.Module:
    """Return BN-ReLU-conv3x3-BN-ReLU-conv3x3 in plain PyTorch."""
    layers: list[nn.Module] = []
    for _ in range(2):
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
    return Autonomous(nn.Sequential(*layers))


class Autonomous(nn.Module):
    """A network that depends on the state alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.net(y)


@dataclass(frozen=True)
class TimedCase:
    """A solve from t = 0, and the contenders that are timed on it.

    Attributes:
        part: the table that it belongs to.
        problem: field and start in words: a key of ``PROBLEMS``, "leaves N of 16" or "conv CHANNELS@SIDE".
        gradient: how ours computes it: "" (forward alone), "discrete", "checkpoint", "reversible" or
            "adjoint".
        against: the other contenders, see ``benchmarks.odeint.contenders``; the aim is for the first.
        aim: the least ratio of the first baseline's time to that of ours.
        training: whether batch norm takes the statistics of the batch.
        peak: whether the row has the peak memory of a call.
        compensated: whether ours sums with compensation; the baseline "plain" does not.
    """

    part: str
    problem: str
    method: str
    options: Options = field(default_factory=dict)
    rtol: float = 1e-3
    atol: float = 1e-3
    t1: float = 1.0
    gradient: str = ""
    against: tuple[str, ...] = ("torchdiffeq",)
    aim: float | None = None
    threads: int = 1
    training: bool = False
    peak: bool = False
    compensated: bool = False

    @property
    def name(self) -> str:
        tail = f"/{self.gradient}" if self.gradient else "/compensated" if self.compensated else ""
        count = f"-{round(1 / self.options['step_size'])}" if self.options.get("step_size") else ""
        return f"{self.part.removeprefix('odeint ')}/{self.problem}/{self.method}{count}{tail}"


@dataclass
class InitialValueProblem:
    """A field and its start y0; gradients are those of y0 and ``params``."""

    field: nn.Module
    y0: Any

    @property
    def params(self) -> list[nn.Parameter]:
        return list(self.field.parameters())

    @property
    def leaves(self) -> tuple[torch.Tensor, ...]:
        return self.y0 if isinstance(self.y0, tuple) else (self.y0,)


def speeds() -> torch.Tensor:
    """Return 256 samples, most of them slow: speeds from 0.5 to 20, whose logarithms have cubic spacing."""
    w = 0.5 * 40.0 ** (torch.linspace(0, 1, 256) ** 3)
    return torch.cat([torch.randn(256, 3), w[:, None]], 1)


PROBLEMS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "dy/dt = y, 2 million": lambda: (Growth(), torch.rand(BIG)),
    "dy/dt = -y, 2 million": lambda: (Decay(), torch.rand(BIG)),
    "dy/dt = -y, 64": lambda: (Decay(), torch.rand(64)),
    "dy/dt = -y, 20 thousand": lambda: (Decay(), torch.rand(BIG // 100)),
    "MLP 4-32-4, batch 64": lambda: (Mlp(), torch.randn(64, 4)),
    "MLP of 256 speeds": lambda: (Speeds(), speeds()),
}


def make_problem(case: TimedCase, dtype: torch.dtype = torch.float32) -> InitialValueProblem:
    """Return the seeded problem of a case."""
    torch.manual_seed(0)
    if case.problem in PROBLEMS:
        module, y0 = PROBLEMS[case.problem]()
    elif case.problem.startswith("leaves"):
        module, y0 = Decay(), tuple(torch.rand(16) for _ in range(int(case.problem.split()[1])))
    else:
        channels, side = map(int, case.problem.removeprefix("conv ").split(", ")[0].split("@"))
        module, y0 = conv_field(channels), torch.randn(BATCH, channels, side, side)
    module.to(dtype).train(case.training)
    y0 = tuple(y.to(dtype) for y in y0) if isinstance(y0, tuple) else y0.to(dtype)
    return InitialValueProblem(module, y0)


def suite() -> list[TimedCase]:
    """Return every case that is timed."""
    big, decay = "dy/dt = y, 2 million", "dy/dt = -y, 2 million"
    cases = [
        TimedCase("odeint steps", big, "dopri5", FORCED, aim=10.0),
        TimedCase("odeint steps", decay, "dopri5", FORCED),
    ]
    cases += [TimedCase("odeint steps", big, method, FORCED) for method in ("bosh3", "dopri8")]
    cases += [
        TimedCase("odeint steps", big, "rk4", GRID, aim=2.0, against=("torchdiffeq", "loop")),
        TimedCase("odeint steps", decay, "rk4", GRID, against=("torchdiffeq", "loop")),
        TimedCase("odeint steps", big, "rk4_classic", GRID, against=("loop",)),
        TimedCase("odeint steps", big, "euler", GRID, against=("torchdiffeq", "loop")),
    ]
    exact = TimedCase("odeint compensated", big, "rk4", GRID, against=("plain",), aim=1 / 1.15, compensated=True)
    cases += [replace(exact, problem=p, method=m) for p in (big, decay) for m in ("rk4", "rk4_classic")]
    small = TimedCase("odeint steps", "dy/dt = -y, 64", "euler", against=("torchdiffeq", "loop"))
    cases += [
        replace(small, options={"step_size": 1 / n}) for n in (STEPS, 64)
    ]  # so few values that only Python takes time
    tiny = TimedCase("odeint mlp", "MLP 4-32-4, batch 64", "dopri5", {}, 1e-6, 1e-6, 5.0)
    others = ("torchdiffeq", "torchode", "torchode by rows", "field")
    cases += [
        replace(tiny, against=others, aim=4.0),
        replace(tiny, against=others, aim=3.0, gradient="discrete"),
        replace(tiny, against=("torchdiffeq",), method="rk4", options={"step_size": 0.25}, t1=1.0),
    ]
    for channels, side in SIZES:
        for method, gradient in ((m, g) for g in ("", "discrete") for m in ("euler", "rk4")):
            cases.append(
                TimedCase("odeint conv", f"conv {channels}@{side}", method, GRID, gradient=gradient,
                     against=("loop", "loop and table", "torchdiffeq"), aim=1 / 1.02, training=bool(gradient))
            )  # fmt: skip
        # in a longer solve the fixed cost of a call is a smaller share
        cases.append(replace(cases[-1], method="euler", options={"step_size": 1 / 16}, gradient="", training=False))
    kept = TimedCase("odeint checkpoint", "conv 16@32", "rk4", {"step_size": 1 / 16}, gradient="checkpoint",
                     training=True, against=("plain", "torchdiffeq"), aim=1 / 1.45, peak=True)  # fmt: skip
    cases += [
        kept,
        replace(tiny, part="odeint checkpoint", gradient="checkpoint", against=("plain", "torchdiffeq"), peak=True),
    ]
    undone = replace(kept, part="odeint reversible", gradient="reversible", training=False, aim=1 / 2.2,
                     against=("plain", "checkpoint", "autograd"))  # fmt: skip
    cases += [replace(undone, problem=GROWING, options={"step_size": 1 / n}) for n in (4, 8, 16, 32, 64)]
    cases += [
        replace(tiny, part="odeint reversible", gradient="reversible", against=undone.against, aim=1 / 2.2, peak=True),
    ]
    others = ("torchdiffeq", "plain", "field")
    back = replace(tiny, part="odeint adjoint", gradient="adjoint", against=others, aim=1.3)
    cases += [
        back,
        replace(back, problem="conv 16@8", t1=1.0, rtol=1e-3, atol=1e-3),
        replace(back, problem="conv 16@32", t1=1.0, method="rk4", options=GRID),
    ]
    cases += [
        TimedCase("odeint rows", "MLP of 256 speeds", "dopri5", {}, 1e-5, 1e-5, 2.0, gradient=gradient,
             against=("torchdiffeq", "one step for all", "torchode by rows"))
        for gradient in ("", "discrete")
    ]  # fmt: skip
    cases += [TimedCase("odeint leaves", f"leaves {n} of 16", "dopri5", FORCED) for n in LEAVES]
    return cases


def quick() -> list[TimedCase]:
    """Return a small case of each table."""
    kept = {"dy/dt = -y, 20 thousand", "MLP 4-32-4, batch 64", "conv 64@8", "leaves 16 of 16"}
    small = TimedCase("odeint steps", "dy/dt = -y, 20 thousand", "dopri5", FORCED)
    return [small, *(c for c in suite() if c.problem in kept and c.method != "euler")]
