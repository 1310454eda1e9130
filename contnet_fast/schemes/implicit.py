"""Implicit Runge-Kutta and Rosenbrock schemes as frozen data.

Sources of the coefficients: Hairer, Wanner, Solving Ordinary Differential Equations II, IV.5 (Gauss, Radau IIA), IV.6
(SDIRK2, of Alexander 1977); Hosea and Shampine 1996 (TR-BDF2 with its error estimate); Kvaerno 2004 (kvaerno5);
Steinebach 2023, BIT 63:27 (rodas5p, in the form without products by the Jacobian of Hairer and Wanner II, IV.7).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod, sqrt
from types import MappingProxyType

import numpy as np

from .tableaus import Tree, density, rooted_trees

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ImplicitTableau:
    """k_i = f(t + c_i h, y + h sum_j a_ij k_j) over all j, y1 = y + h sum_j b_j k_j.

    Attributes:
        a: [S][S]; b: [S]. error: [S] weights of the embedded error or empty; error_order: the order of b - error.
        filtered: whether the error is multiplied by the inverse of I - h gamma J, without which it is large where the
            problem is stiff.
    """

    name: str
    order: int
    a: Matrix
    b: tuple[float, ...]
    error: tuple[float, ...] = ()
    error_order: int = 0
    filtered: bool = False

    @cached_property
    def c(self) -> tuple[float, ...]:
        """The nodes, sums of the rows."""
        return tuple(1.0 if abs(sum(row) - 1) < 1e-14 else sum(row) for row in self.a)

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """The stages that are solved together, in order; an explicit first stage is in none."""
        stages = tuple(i for i, row in enumerate(self.a) if any(row))
        if any(row[j] for i, row in enumerate(self.a) for j in range(i + 1, len(row))):
            return (stages,)
        return tuple((i,) for i in stages)

    def residuals(self, order: int, *, weights: Sequence[float] | None = None) -> Iterator[float]:
        """Return what is left of each order condition, which vanish up to ``order`` for a scheme of it."""
        return condition_residuals(self.a, self.a, self.b if weights is None else weights, order)

    def amplification(self, z: complex) -> complex:
        """Return R(z), the factor by which a step multiplies the solution of y' = z y / h."""
        return amplification(self.a, self.b, z)


@dataclass(frozen=True)
class RosenbrockTableau:
    """(I / (h gamma) - J) u_i = f(t + c_i h, y + sum_j a_ij u_j) + sum_j e_ij u_j / h + h d_i f_t; y1 = y + sum m u.

    Attributes:
        a, e: [S][i] rows before the diagonal. d: [S]. m: [S] weights of y1. error: [S] those of the embedded error.
        dense: [D][S] rows w_0, w_1, ...: y + x (sum m_j u_j) + x (1 - x) (w_0 + x (w_1 + ...)) u is the solution at
            t + x h.
    """

    name: str
    order: int
    gamma: float
    a: Matrix
    e: Matrix
    c: tuple[float, ...]
    d: tuple[float, ...]
    m: tuple[float, ...]
    error: tuple[float, ...]
    error_order: int
    dense: Matrix

    @cached_property
    def classic(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The matrices alpha and beta and the weights b of the form with products by J (Hairer, Wanner II, IV.7)."""
        n = len(self.m)
        e, a = (np.array([[*row, *[0.0] * (n - len(row))] for row in rows]) for rows in (self.e, self.a))
        gammas = np.linalg.inv(np.eye(n) / self.gamma - e)
        return a @ gammas, (a + np.eye(n)) @ gammas, np.array(self.m) @ gammas

    def residuals(self, order: int, *, weights: Sequence[float] | None = None) -> Iterator[float]:
        """Return what is left of each order condition, for y1 or other ``weights`` of the u_i."""
        alpha, beta, b = self.classic
        if weights is not None:
            b = np.array(weights) @ (beta - alpha)
        return condition_residuals(alpha.tolist(), beta.tolist(), b.tolist(), order)

    def amplification(self, z: complex) -> complex:
        """Return R(z), the factor by which a step multiplies the solution of y' = z y / h."""
        _, beta, b = self.classic
        return amplification(beta.tolist(), b.tolist(), z)


def condition_residuals(
    forks: Sequence[Sequence[float]], chains: Sequence[Sequence[float]], b: Sequence[float], order: int
) -> Iterator[float]:
    """Return sum_i b_i Phi_i(tree) - 1/gamma(tree) for every rooted tree of up to ``order`` vertices.

    A vertex with one subtree multiplies by ``chains``, one with several by ``forks``: alpha + Gamma and alpha of a
    Rosenbrock scheme (Hairer, Wanner II, theorem IV.7.3), and the same matrix of a Runge-Kutta scheme.
    """

    def values(tree: Tree) -> list[float]:
        rows = chains if len(tree) == 1 else forks
        factors = [[sum(x * v for x, v in zip(row, values(child), strict=False)) for row in rows] for child in tree]
        return [prod(f[i] for f in factors) for i in range(len(b))]

    for size in range(1, order + 1):
        for tree in rooted_trees(size):
            yield sum(w * v for w, v in zip(b, values(tree), strict=True)) - 1 / density(tree)


def amplification(a: Sequence[Sequence[float]], b: Sequence[float], z: complex) -> complex:
    """Return R(z) = 1 + z b (I - z a)^-1 1."""
    n = len(b)
    return complex(1 + z * np.array(b) @ np.linalg.solve(np.eye(n) - z * np.array(a), np.ones(n)))


def _radau5() -> Matrix:
    r = sqrt(6.0)
    return (
        ((88 - 7 * r) / 360, (296 - 169 * r) / 1800, (-2 + 3 * r) / 225),
        ((296 + 169 * r) / 1800, (88 + 7 * r) / 360, (-2 - 3 * r) / 225),
        ((16 - r) / 36, (16 + r) / 36, 1 / 9),
    )


def _gauss3() -> Matrix:
    r = sqrt(15.0)
    return (
        (5 / 36, 2 / 9 - r / 15, 5 / 36 - r / 30),
        (5 / 36 + r / 24, 2 / 9, 5 / 36 - r / 24),
        (5 / 36 + r / 30, 2 / 9 + r / 15, 5 / 36),
    )


def _kvaerno5() -> ImplicitTableau:
    g = 0.26
    lower = (
        (),
        (g,),
        (0.13, 0.84033320996790809),
        (0.22371961478320505, 0.47675532319799699, -0.06470895363112615),
        (0.16648564323248321, 0.10450018841591720, 0.03631482272098715, -0.13090704451073998),
        (0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676),
        (
            0.13659751177640291,
            0.0,
            -0.05496908796538376,
            -0.04118626728321046,
            0.62993304899016403,
            0.06962479448202728,
        ),
    )
    a = tuple((*row, g if i else 0.0, *[0.0] * (6 - i)) for i, row in enumerate(lower))
    error = tuple(x - y for x, y in zip(a[6], a[5], strict=True))
    return ImplicitTableau("kvaerno5", 5, a, a[6], error, 4)


def _trbdf2() -> dict[str, ImplicitTableau]:
    g, w = 1 - sqrt(2.0) / 2, sqrt(2.0) / 4
    a = ((0.0, 0.0, 0.0), (g, g, 0.0), (w, w, g))
    third = ((1 - w) / 3, (3 * w + 1) / 3, g / 3)  # of order 3
    error = tuple(x - y for x, y in zip(a[2], third, strict=True))
    return {
        "trbdf2": ImplicitTableau("trbdf2", 2, a, a[2]),
        "adaptive_trbdf2": ImplicitTableau("adaptive_trbdf2", 2, a, a[2], error, 3, filtered=True),
    }


_R3, _G = sqrt(3.0), 1 - sqrt(2.0) / 2

IMPLICIT_SCHEMES: Mapping[str, ImplicitTableau] = MappingProxyType(
    {
        tableau.name: tableau
        for tableau in (
            ImplicitTableau("implicit_euler", 1, ((1.0,),), (1.0,)),
            ImplicitTableau("implicit_midpoint", 2, ((0.5,),), (1.0,)),
            ImplicitTableau("trapezoid", 2, ((0.0, 0.0), (0.5, 0.5)), (0.5, 0.5)),
            ImplicitTableau("radauIIA3", 3, ((5 / 12, -1 / 12), (3 / 4, 1 / 4)), (3 / 4, 1 / 4)),
            ImplicitTableau("gl4", 4, ((1 / 4, 1 / 4 - _R3 / 6), (1 / 4 + _R3 / 6, 1 / 4)), (1 / 2, 1 / 2)),
            ImplicitTableau("radauIIA5", 5, _radau5(), _radau5()[2]),
            ImplicitTableau("gl6", 6, _gauss3(), (5 / 18, 4 / 9, 5 / 18)),
            ImplicitTableau("sdirk2", 2, ((_G, 0.0), (1 - _G, _G)), (1 - _G, _G)),
            *_trbdf2().values(),
            _kvaerno5(),
        )
    }
)

_RODAS_A = (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256, 0.030198172008377946)

RODAS5P = RosenbrockTableau(
    name="rodas5p",
    order=5,
    gamma=0.21193756319429014,
    a=(
        (),
        (3.0,),
        (2.849394379747939, 0.45842242204463923),
        (-6.954028509809101, 2.489845061869568, -10.358996098473584),
        (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
        _RODAS_A,
        (*_RODAS_A, 1.0),
        (*_RODAS_A, 1.0, 1.0),
    ),
    e=(
        (),
        (-14.155112264123755,),
        (-17.97296035885952, -2.859693295451294),
        (147.12150275711716, -1.41221402718213, 71.68940251302358),
        (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
        (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125, -0.6610691825249471),
        (
            *(30.91273214028599, -3.1208243349937974, 77.79954646070892, 34.28646028294783),
            *(-19.097331116725623, -28.087943162872662),
        ),
        (
            *(37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047),
            *(-40.06618937091002, -54.66780262877968, -9.48861652309627),
        ),
    ),
    c=(0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664, 1.0, 1.0, 1.0),
    d=(
        *(0.21193756319429014, -0.42387512638858027, -0.3384627126235924, 1.8046452872882734, 2.325825639765069),
        *(0.0, 0.0, 0.0),
    ),
    m=(*_RODAS_A, 1.0, 1.0, 1.0),
    error=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    error_order=4,
    dense=(
        (
            *(25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204),
            *(0.524948541321073, 1.1241088310450404, 0.4272876194431874, -0.17202221070155493),
        ),
        (
            *(-9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796),
            *(20.176138334709044, 15.98066361424651, -6.789040303419874, -6.710236069923372),
        ),
        (
            *(11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643),
            *(-52.072871366152654, -59.78993625266729, -0.15582684282751913, 4.883087185713722),
        ),
    ),
)
