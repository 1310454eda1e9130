"""Functions of the depth-separation papers as networks with exact weights, at sizes that are known.

Sources: Vardi, Reichman, Pitassi, Shamir, arXiv 2102.00314 (DISJ, inner product, the lift to benign functions);
Malach, Yehudai, Shalev-Shwartz, Shamir, arXiv 2102.00434 (parities, products of ORs, the sign of the sawtooth);
Telgarsky 2016 (the sawtooth); Daniely 2017 (the radial target).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from ...errors import check_bool, check_count
from .layered import Layer, LayeredNet

BENIGN = "Vardi et al. 2102.00314"
MALACH = "Malach et al. 2102.00434"
TELGARSKY = "Telgarsky 2016"


def disjointness(d: int) -> LayeredNet:
    """Whether two sets are disjoint: 1 where no x_i = y_i = 1, of bits x, y in {0, 1}^d given as [batch, 2 d].

    [1 - sum_i [x_i + y_i - 1]+]+ with d + 1 hidden units in two hidden layers.
    """
    check_count("d", d)
    layers = [_both_ones(d), _row([-1.0] * d, 1.0), _row([1.0])]

    def target(v: torch.Tensor, scale: int) -> torch.Tensor:
        return 1 - (v[:, :d] & v[:, d:]).amax(1)

    source = f"{BENIGN}, Theorem 16"
    return LayeredNet(f"DISJ_{d}", layers, source=source, target=target, domain="bits", lipschitz=math.sqrt(2 * d))


def inner_product(d: int, folded: bool = False) -> LayeredNet:
    """The inner product mod 2 of bits x, y in {0, 1}^d, given as [batch, 2 d].

    With S = sum_i [x_i + y_i - 1]+ it is the parity of S: as S - 2 [S - 1]+ + 2 [S - 2]+ - ... in a second hidden layer
    of d units (2 d in all); or ``folded`` by r = ceil(log2(d + 1)) tents z <- [z]+ - 2 [z - m]+, m = 2^(r-1), ..., 1,
    each of which keeps the parity: d + 2 r units in 1 + r hidden layers.
    """
    check_count("d", d)
    if check_bool("folded", folded):
        folds = math.ceil(math.log2(d + 1))
        layers = [_both_ones(d)]
        incoming = [1.0] * d
        for fold in reversed(range(folds)):
            rows = torch.tensor([incoming, incoming], dtype=torch.float64)
            layers.append((rows, torch.tensor([0.0, -(2.0**fold)], dtype=torch.float64)))
            incoming = [1.0, -2.0]
        layers.append(_row(incoming))
    else:
        layers = [_both_ones(d), _steps([1.0] * d, 0.0, d), _row(_alternating(d))]

    def target(v: torch.Tensor, scale: int) -> torch.Tensor:
        return (v[:, :d] & v[:, d:]).sum(1) % 2

    name = f"IP_{d}, folded" if folded else f"IP_{d}"
    source = f"{BENIGN}, Theorem 16"
    return LayeredNet(name, layers, source=source, target=target, domain="bits", lipschitz=math.sqrt(2 * d))


def _places(name: str, given: Sequence[int] | None, n: int) -> list[int]:
    places = list(range(n)) if given is None else sorted(given)
    if not places or len(set(places)) < len(places) or not set(places) <= set(range(n)):
        raise ValueError(f"{name}: got {given!r}, accepted: different places from 0 to {n - 1}, one at least")
    return places


def parity(n: int, *, subset: Sequence[int] | None = None, signs: bool = False) -> LayeredNet:
    """The parity of n bits, given as [batch, n], in one hidden layer of n units (of as many as ``subset`` has).

    Args:
        n: the number of bits.
        subset: the places of the bits that count, from 0; ``None`` stands for all.
        signs: inputs and output are signs: the product of inputs in {-1, 1}, instead of the sum mod 2 of {0, 1}.

    Raises:
        TypeError, ValueError: ``n`` is no count, or ``subset`` is empty, repeats a place or leaves the range.
    """
    check_count("n", n)
    places = _places("subset", subset, n)
    size = len(places)
    chosen = [float(i in places) for i in range(n)]
    if check_bool("signs", signs):  # twice the number of -1 is size - sum
        layers = [_steps([-c for c in chosen], float(size), size, 2.0), _row([-c for c in _alternating(size)], 1.0)]
    else:
        layers = [_steps(chosen, 0.0, size), _row(_alternating(size))]

    def target(v: torch.Tensor, scale: int) -> torch.Tensor:
        return v[:, places].prod(1) if signs else v[:, places].sum(1) % 2

    name = f"parity of {size} {'signs' if signs else 'bits'}"
    domain, source = "signs" if signs else "bits", f"{MALACH}, Theorem 19"
    return LayeredNet(name, layers, source=source, target=target, domain=domain, lipschitz=math.sqrt(size))


def or_product(n: int, selected: Sequence[int] | None = None) -> LayeredNet:
    """F_z'(x, z), the product over the i with z'_i = 1 of x_i OR z_i, of signs (-1 is false).

    It is -1 to the number of selected i with x_i = z_i = -1: an inner product mod 2 in signs.

    Args:
        n: the number of signs in x.
        selected: the places of z' that are 1, from 0: the inputs are x, z [batch, 2 n], and there are two units for
            each place. ``None``: z' is an input too, [batch, 3 n], and there are 2 n units.

    Raises:
        TypeError, ValueError: ``n`` is no count, or ``selected`` is empty, repeats a place or leaves the range.
    """
    check_count("n", n)
    places = _places("selected", selected, n)
    size, blocks = len(places), 3 if selected is None else 2
    first = torch.zeros(size, blocks * n, dtype=torch.float64)
    for row, place in enumerate(places):  # 2 where both are -1 (and z' is 1), else 0
        first[row, [place, n + place]] = -1.0
        first[row, 2 * n + place :: n] = 1.0
    bias = torch.full((size,), -1.0 if selected is None else 0.0, dtype=torch.float64)
    second = _steps([1.0] * size, 0.0, size, 2.0)
    layers = [(first, bias), second, _row([-c for c in _alternating(size)], 1.0)]

    def target(v: torch.Tensor, scale: int) -> torch.Tensor:
        either = torch.maximum(v[:, places], v[:, [n + place for place in places]])
        if selected is None:
            either = torch.where(v[:, 2 * n :] == 1, either, 1)
        return either.prod(1)

    what = "F(x, z, z')" if selected is None else "F_z'(x, z)"
    return LayeredNet(
        f"{what}, n = {n}, {size} factors",
        layers,
        source=f"{MALACH}, Theorems 20 and 21",
        target=target,
        domain="signs",
        lipschitz=math.sqrt(blocks * size),
    )


def sawtooth(k: int) -> LayeredNet:
    """Telgarsky's phi_k, the tent g(z) = [2 z]+ - [4 z - 2]+ composed k times, on [0, 1], given as [batch, 1].

    2 k hidden units in k layers make 2^k pieces of slope +-2^k and 2^(k-1) peaks of height 1.
    """
    check_count("k", k)

    def target(v: torch.Tensor, scale: int) -> torch.Tensor:
        cell, rest = _cell(k, v, scale)
        return torch.where(cell % 2 == 0, rest * 2**k, scale - rest * 2**k)

    return LayeredNet(
        f"phi_{k}",
        [*_folds(k), _row([1.0, -1.0])],
        source=f"{TELGARSKY}; {BENIGN}",
        target=target,
        domain="line",
        lipschitz=2.0**k,
    )


def sign_sawtooth(n: int) -> LayeredNet:
    """f_n(x) = 1 where x is in [2 t / 2^n, (2 t + 1) / 2^n] for an integer t, else -1, on [0, 1), given as [batch, 1].

    phi_n(x + 2^-(n+1)) >= 1/2: n folds and one threshold. From n = 24 float32 inputs do not tell its 2^n cells apart.
    """
    check_count("n", n)

    def target(v: torch.Tensor, scale: int) -> torch.Tensor:
        cell, rest = _cell(n, v, scale)
        return torch.where((cell % 2 == 0) | (rest == 0), 1, -1)

    first, bias = _folds(n)[0]
    shifted = (first, bias + first[:, 0] * 2.0 ** -(n + 1))
    return LayeredNet(
        f"sign f_{n}",
        [shifted, *_folds(n)[1:], _row([1.0, -1.0], -0.5)],
        source=f"{MALACH}, Theorem 18",
        target=target,
        domain="line",
        lipschitz=2.0**n,
        threshold=True,
    )


def lifted(net: LayeredNet) -> LayeredNet:
    """The network of a function of bits behind rounding, two more units an input: [2 x_i - 1/2]+ - [2 x_i - 3/2]+.

    It equals the benign function :class:`Benign` wherever every coordinate is in [0, 1/4] or [3/4, 1].

    Raises:
        ValueError: ``net`` is not of bits.
    """
    if net.domain != "bits":
        raise ValueError(f"net: got {net.name} on {net.domain}, accepted: a network of bits")

    def target(v: torch.Tensor, scale: int) -> torch.Tensor:
        return scale * net.target((2 * v >= scale).long(), 1)

    n = net.inputs
    (weight, bias), *rest = net.layers
    twice = 2.0 * torch.eye(n, dtype=torch.float64)
    bends = torch.tensor([-0.5, -1.5], dtype=torch.float64).repeat_interleave(n)
    layers = [(torch.cat([twice, twice]), bends), (torch.cat([weight, -weight], 1), bias), *rest]
    return LayeredNet(
        f"{net.name}, lifted",
        layers,
        source=f"{BENIGN}, Corollary 18",
        target=target,
        domain="corners",
        lipschitz=2.0 * net.lipschitz,
    )


class Benign(nn.Module):
    """f(x) = g(z) max(0, 1 - 4 dist(x, A_z)), z the nearest vertex of x and A_z the cube around it, half-width 1/4.

    4-Lipschitz on [0, 1]^n for every g with values in [0, 1]. ``forward`` takes and returns what ``net`` does.

    Args:
        net: g, a network of bits.
    """

    lipschitz = 4.0

    def __init__(self, net: LayeredNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the values [batch] of inputs [batch, n] in [0, 1]."""
        vertex = (inputs >= 0.5).to(inputs.dtype)
        distance = ((inputs - vertex).abs() - 0.25).clamp(min=0).norm(dim=1)
        return self.net(vertex) * (1.0 - 4.0 * distance).clamp(min=0)


class Radial(nn.Module):
    """Daniely's target sin(pi d^3 |x| / 2), of inputs [batch, d]: the target alone, no network has it exactly.

    Attributes:
        lipschitz: its Lipschitz constant, pi d^3 / 2.
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.d = check_count("d", d)
        self.lipschitz = 0.5 * math.pi * d**3

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the values [batch]."""
        return torch.sin(0.5 * math.pi * self.d**3 * inputs.norm(dim=1))


def _both_ones(d: int) -> Layer:
    """[x_i + y_i - 1]+, which is 1 where both bits are."""
    eye = torch.eye(d, dtype=torch.float64)
    return torch.cat([eye, eye], 1), torch.full((d,), -1.0, dtype=torch.float64)


def _steps(weights: Sequence[float], bias: float, count: int, spacing: float = 1.0) -> Layer:
    """[s - spacing k]+ of one sum s = weights x + bias, for k = 0, ..., count - 1."""
    rows = torch.tensor([list(weights)], dtype=torch.float64).expand(count, -1).clone()
    return rows, bias - spacing * torch.arange(count, dtype=torch.float64)


def _alternating(count: int) -> list[float]:
    """1, -2, 2, -2, ...: of these, [s]+, [s - 1]+, ... make the parity of an integer s."""
    return [1.0, *(2.0 * (-1) ** k for k in range(1, count))]


def _folds(k: int) -> list[Layer]:
    """The hidden layers of phi_k."""
    bias = torch.tensor([0.0, -2.0], dtype=torch.float64)
    first = torch.tensor([[2.0], [4.0]], dtype=torch.float64)
    return [(first if i == 0 else first * torch.tensor([1.0, -1.0], dtype=torch.float64), bias) for i in range(k)]


def _row(weights: Sequence[float], bias: float = 0.0) -> Layer:
    return torch.tensor([list(weights)], dtype=torch.float64), torch.tensor([bias], dtype=torch.float64)


def _cell(n: int, numerators: torch.Tensor, scale: int) -> tuple[torch.Tensor, torch.Tensor]:
    """In which of the 2^n cells of [0, 1] the fractions lie, and the numerators of what is left."""
    if scale % 2**n:
        raise ValueError(f"scale: got {scale}, accepted: a multiple of 2^{n}")
    width = scale // 2**n
    return numerators[:, 0] // width, numerators[:, 0] % width
