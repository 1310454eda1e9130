"""Implicit Runge-Kutta steps by the definition: Newton's method on all slopes of a step at once, in the graph."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

R2, R3, R6, R15 = map(math.sqrt, (2, 3, 6, 15))
G = 1 - R2 / 2
SCHEMES = {  # c, a, b, written down once more
    "implicit_euler": ([1], [[1]], [1]),
    "implicit_midpoint": ([1 / 2], [[1 / 2]], [1]),
    "trapezoid": ([0, 1], [[0, 0], [1 / 2, 1 / 2]], [1 / 2, 1 / 2]),
    "radauIIA3": ([1 / 3, 1], [[5 / 12, -1 / 12], [3 / 4, 1 / 4]], [3 / 4, 1 / 4]),
    "gl4": ([1 / 2 - R3 / 6, 1 / 2 + R3 / 6], [[1 / 4, 1 / 4 - R3 / 6], [1 / 4 + R3 / 6, 1 / 4]], [1 / 2, 1 / 2]),
    "radauIIA5": (
        [2 / 5 - R6 / 10, 2 / 5 + R6 / 10, 1],
        [
            [11 / 45 - 7 * R6 / 360, 37 / 225 - 169 * R6 / 1800, -2 / 225 + R6 / 75],
            [37 / 225 + 169 * R6 / 1800, 11 / 45 + 7 * R6 / 360, -2 / 225 - R6 / 75],
            [4 / 9 - R6 / 36, 4 / 9 + R6 / 36, 1 / 9],
        ],
        [4 / 9 - R6 / 36, 4 / 9 + R6 / 36, 1 / 9],
    ),
    "gl6": (
        [1 / 2 - R15 / 10, 1 / 2, 1 / 2 + R15 / 10],
        [
            [5 / 36, 2 / 9 - R15 / 15, 5 / 36 - R15 / 30],
            [5 / 36 + R15 / 24, 2 / 9, 5 / 36 - R15 / 24],
            [5 / 36 + R15 / 30, 2 / 9 + R15 / 15, 5 / 36],
        ],
        [5 / 18, 4 / 9, 5 / 18],
    ),
    "sdirk2": ([G, 1], [[G, 0], [1 - G, G]], [1 - G, G]),
    "trbdf2": ([0, 2 * G, 1], [[0, 0, 0], [G, G, 0], [R2 / 4, R2 / 4, G]], [R2 / 4, R2 / 4, G]),
}


def odeint(func, y0, t, *, method, options, interp="linear"):
    """Return the states [T, ...] of one real tensor in float64; ``options`` are step_size and interp."""
    c, a, b = SCHEMES[method]
    a, b = torch.tensor(a, dtype=y0.dtype), torch.tensor(b, dtype=y0.dtype)
    h, interp = options.get("step_size"), options.get("interp", "linear")
    sign = 1.0 if t[-1] > t[0] else -1.0
    grid = t
    if h is not None:
        count = math.ceil(abs(t[-1] - t[0]).item() / h)
        grid = torch.cat([t[0] + sign * h * torch.arange(count, dtype=t.dtype), t[-1:]])
    outs, y, j = [y0], y0, 1
    for t0, t1 in pairwise(grid):
        f0, dt = func(t0, y), t1 - t0
        times = [t0 if x == 0 else t1 if x == 1 else t0 + x * dt for x in c]

        def residual(k, y=y, dt=dt, times=times):
            k = k.reshape(len(b), -1)
            ys = y.reshape(-1) + dt * a @ k
            slopes = [func(s, z.reshape(y.shape)).reshape(-1) for s, z in zip(times, ys, strict=True)]
            return (k - torch.stack(slopes)).reshape(-1)

        k = f0.reshape(-1).repeat(len(b))
        for _ in range(5):
            jacobian = torch.autograd.functional.jacobian(residual, k, create_graph=True)
            k = k - torch.linalg.solve(jacobian, residual(k))
        y1 = y + dt * (b @ k.reshape(len(b), -1)).reshape(y.shape)
        while j < len(t) and sign * (t1 - t[j]) >= 0:
            x = (t[j] - t0) / dt
            if interp == "linear":
                outs.append(y + x * (y1 - y))
            else:
                f1 = func(t1, y1)
                low, high = (1 + 2 * x) * (1 - x) ** 2 * y + x * (1 - x) ** 2 * dt * f0, x * x * (3 - 2 * x) * y1
                outs.append(low + high + x * x * (x - 1) * dt * f1)
            j += 1
        y = y1
    return torch.stack(outs)
