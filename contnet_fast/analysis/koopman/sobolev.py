"""Losses with negative Sobolev norms, and noisy signals of several scales to try them on.

The squared norm of a signal f in H^-s is the sum over k of (1 + |k|^2)^-s |f_k|^2, with f_k the coefficients of the
discrete Fourier transform. For s > 0 it counts fine scales less than coarse ones, and so the noise of single points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...errors import check_count, check_number


def sobolev_weights(shape: Sequence[int], s: float, *, device: torch.device | None = None) -> torch.Tensor:
    """Return the weights (1 + |k|^2)^-s of the Fourier coefficients of a signal, float64.

    Args:
        shape: the lengths of the signal's axes; k is the vector of whole frequencies, from -n/2 to n/2 along an axis.
        s: the order; 0 gives ones.
    """
    squares = torch.zeros([1] * len(shape), dtype=torch.float64, device=device)
    for axis, n in enumerate(shape):
        k = torch.fft.fftfreq(n, d=1.0 / n, dtype=torch.float64, device=device)
        squares = squares + k.square().reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return (1.0 + squares) ** -s


def sobolev_loss(output: torch.Tensor, target: torch.Tensor, *, s: float = 1.0, dims: int = 1) -> torch.Tensor:
    """Return the mean over a batch of the squared H^-s norm of ``output - target``, divided by the number of points.

    With s = 0 it is the mean squared error, by Parseval's theorem.

    Args:
        output, target: real [..., n_1, ..., n_dims], values on an equidistant periodic grid.
        s: the order of the norm, >= 0.
        dims: how many of the last axes are those of the grid.

    Raises:
        ValueError, TypeError: shapes that differ, fewer axes than ``dims``, or an ``s`` below 0.
    """
    if output.shape != target.shape:
        raise ValueError(f"target: got shape {tuple(target.shape)}, accepted: {tuple(output.shape)}, as output has")
    check_count("dims", dims)
    if output.dim() < dims:
        raise ValueError(f"output: got shape {tuple(output.shape)}, accepted: at least {dims} axes")
    if check_number("s", s) < 0:
        raise ValueError(f"s: got {s}, accepted: a finite number >= 0")
    axes = tuple(range(-dims, 0))
    coefficients = torch.fft.fftn(output - target, dim=axes, norm="ortho")
    weights = sobolev_weights(output.shape[-dims:], s, device=output.device).to(output.dtype)
    return (weights * (coefficients.real.square() + coefficients.imag.square())).mean()


@dataclass(frozen=True)
class Signal:
    """A signal of several scales on [0, 1), and what noise leaves of it.

    Attributes:
        x: [n] places.
        clean, noisy: [n] values, float32.
        frequencies: the whole frequencies of the clean signal, coarse to fine; amplitudes fall as 1 / frequency^0.5.
    """

    x: torch.Tensor
    clean: torch.Tensor
    noisy: torch.Tensor
    frequencies: tuple[int, ...]


def multiscale_signal(
    n: int = 512, *, frequencies: Sequence[int] = (1, 3, 8), noise: float = 2.0, seed: int = 0
) -> Signal:
    """Return a sum of sines with drawn phases, of standard deviation 1, and the same with white Gaussian noise.

    Args:
        n: points.
        noise: standard deviation of the noise in each point, in units of that of the signal.
        seed: of phases and noise.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    check_count("n", n, minimum=4)
    check_number("noise", noise)
    if not frequencies or not all(0 < f < n / 2 for f in frequencies):
        raise ValueError(f"frequencies: got {tuple(frequencies)}, accepted: whole numbers from 1 to below {n / 2:g}")
    generator = torch.Generator().manual_seed(seed)
    x = torch.arange(n, dtype=torch.float64) / n
    phases = torch.rand(len(frequencies), generator=generator, dtype=torch.float64) * (2 * math.pi)
    clean = sum(
        (torch.sin(2 * math.pi * f * x + phase) / math.sqrt(f) for f, phase in zip(frequencies, phases, strict=True)),
        torch.zeros(n, dtype=torch.float64),
    )
    clean = clean / clean.std(correction=0)
    noisy = clean + noise * torch.randn(n, generator=generator, dtype=torch.float64)
    return Signal(x.float(), clean.float(), noisy.float(), tuple(frequencies))
