"""The methods of ``odeint`` as data: tableaus in floats, and what is particular to torchdiffeq.

Stage times, perturbations, carried rates and mid-point weights are those of torchdiffeq 0.2.5, so that a field is
evaluated at the same times. A new Runge-Kutta method is a tableau in ``contnet_fast.schemes.tableaus`` and, if it is
adaptive, a row of mid-point weights here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from typing import Any

from ..errors import choice_error
from ..schemes.implicit import IMPLICIT_SCHEMES, RODAS5P
from ..schemes.tableaus import ALIASES, SCHEMES
from ..transforms import constant_when_traced

Terms = tuple[tuple[int, float], ...]  # (stage, weight) of the weights that are not zero

# y at the middle of the step is y0 + h sum_j mid_j k_j. dopri5: Shampine 1986; dopri8: the interpolant of Dormand and
# Prince at 1/2; tsit5: that of Tsitouras 2011 at 1/2; the others: torchdiffeq's choice (of order 2)
MID = {
    "adaptive_heun": (0.5, 0.0),
    "fehlberg2": (0.0, 0.5, 0.0),
    "bosh3": (0.0, 0.5, 0.0, 0.0),
    "dopri5": (
        *(0.10013431883002395, 0.0, 0.3918321794184259, -0.02982460176594817),
        *(0.05893268337240795, -0.04497888809104361, 0.023904308236133973),
    ),
    "tsit5": (
        *(0.10741235230096871, 0.01135625, 0.39560903056045305, -0.34475214352593553),
        *(1.3161853649581645, -1.0170608542936508, 0.03125),
    ),
    "dopri8": (
        *(0.04103130360739393, 0.0, 0.0, 0.0, 0.0, 0.05100562801991382, 0.2388930677412202, 0.3096870143996103),
        *(-0.2172325471755352, 0.07833405679331928, -0.0018614369715579948, 0.007072844202678841),
        *(0.00690847373200576, -0.013838404349047373),
    ),
}
ADAPTIVE = tuple(MID)
FIXED = ("euler", "midpoint", "heun2", "heun3", "ralston2", "rk4", "rk4_classic")
ADAMS = "explicit_adams"
FIXED_EXPLICIT = (*FIXED, ADAMS)
EXPLICIT = (*FIXED_EXPLICIT, *ADAPTIVE)
ONE_STEP = (*FIXED, *ADAPTIVE)  # explicit, without a memory of earlier steps
ROSENBROCK = RODAS5P.name
STIFF = (ROSENBROCK, "kvaerno5", "adaptive_trbdf2")  # implicit, with chosen steps
IMPLICIT = tuple(name for name in IMPLICIT_SCHEMES if name not in STIFF)  # on a fixed grid
SAMPLERS = ("ab2", "ab3", "dpmpp_2m")  # multistep, one evaluation a step; for sampling at a fixed cost
CORRECTED = ("implicit_adams", "fixed_adams")  # two names of Adams-Bashforth-Moulton
SCIPY = "scipy_solver"
METHODS = (*EXPLICIT, *CORRECTED, *IMPLICIT, *SAMPLERS, *STIFF, SCIPY)
CHOSEN_STEPS = (*ADAPTIVE, *STIFF)

# what the first steps of multistep methods are, and the orders of other methods come from
STARTS = (
    dict.fromkeys((ADAMS, *CORRECTED, SCIPY), "rk4") | dict.fromkeys(("ab2", "dpmpp_2m"), "euler") | {"ab3": "midpoint"}
)

# torchdiffeq gives the last stage of rk4 the end of the step, and that of heun2 the start plus the step size
END_ITSELF = ("rk4", "rk4_classic")
ADAMS_START = 3  # explicit_adams takes rk4 steps until so many rates are known
ADAMS_MAX_ORDER = 12


@dataclass(frozen=True)
class Method:
    """A Runge-Kutta method in floats.

    Attributes:
        order: the order in the step-size rule of an adaptive method.
        c: the nodes.
        rows: a_sj of each stage, without zeros.
        update: b_j without zeros.
        b: all b_j, zeros included.
        error, mid: weights of the error and of the middle of the step; empty for methods on a grid.
        last_row_is_update: whether y1 is the argument of the last stage.
        blocks: stages that are solved together, of an implicit method.
        dense: rows of weights beside those of y1, of a method with an interpolant of its own (``RosenbrockTableau``).
        end_itself: whether the last stage is given t1 rather than t0 + h.
    """

    name: str
    order: int
    c: tuple[float, ...]
    rows: tuple[Terms, ...]
    update: Terms
    b: tuple[float, ...]
    error: Terms = ()
    mid: tuple[float, ...] = ()
    last_row_is_update: bool = False
    end_itself: bool = False
    blocks: tuple[tuple[int, ...], ...] = ()
    dense: tuple[tuple[float, ...], ...] = ()

    @property
    def adaptive(self) -> bool:
        """Whether the method chooses its step sizes."""
        return bool(self.mid)

    @cached_property
    def both(self) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
        """The stages that update and error read, and the weights of both, zeros included."""
        update, error = dict(self.update), dict(self.error)
        used = tuple(sorted(update.keys() | error.keys()))
        return used, tuple(update.get(j, 0.0) for j in used), tuple(error.get(j, 0.0) for j in used)


def _terms(weights: Iterable[Fraction]) -> Terms:
    return tuple((j, float(w)) for j, w in enumerate(weights) if w)


@constant_when_traced
def get_method(name: str) -> Method:
    """Return the method of a name or alias; for Adams methods that is the one that starts them.

    Raises:
        ValueError: an unknown name, for which the message suggests the nearest.
    """
    return _method(name)


@cache
def _method(name: str) -> Method:
    scheme = ALIASES.get(name, name) if isinstance(name, str) else name
    if scheme not in METHODS:
        raise choice_error("method", name, (*METHODS, *ALIASES))
    if scheme in IMPLICIT_SCHEMES:
        return _implicit(scheme)
    if scheme == RODAS5P.name:
        return _rosenbrock()
    tableau = SCHEMES[STARTS.get(scheme, scheme)]
    adaptive = scheme in ADAPTIVE
    return Method(
        name=scheme,
        order=tableau.order,
        c=tuple(map(float, tableau.c)),
        rows=tuple(map(_terms, tableau.a)),
        update=_terms(tableau.b),
        b=tuple(map(float, tableau.b)),
        error=_terms(tableau.b_error) if adaptive and tableau.b_error else (),
        mid=MID[scheme] if adaptive else (),
        last_row_is_update=tableau.is_fsal,
        end_itself=tableau.name in END_ITSELF,
    )


def _implicit(scheme: str) -> Method:
    """Return an implicit method; unless its first stage is explicit, a stage at the start comes before the others."""
    tableau = IMPLICIT_SCHEMES[scheme]
    a, b, blocks = tableau.a, tableau.b, tableau.blocks
    if any(a[0]):
        a, b = ((0.0,) * (len(b) + 1), *((0.0, *row) for row in a)), (0.0, *b)
        blocks = tuple(tuple(i + 1 for i in block) for block in blocks)
    # the cubic by y0, y1, f0, f1, at 1/2
    mid = tuple(x / 2 + ((i == 0) - (i == len(b) - 1)) / 8 for i, x in enumerate(b)) if scheme in STIFF else ()
    return Method(
        name=scheme,
        order=tableau.order,
        c=tableau.c if len(b) == len(tableau.b) else (0.0, *tableau.c),
        rows=tuple(_floats(row) for row in a),
        update=_floats(b),
        b=tuple(b),
        error=_floats(tableau.error),
        mid=mid,
        last_row_is_update=a[-1] == tuple(b),
        blocks=blocks,
    )


def _rosenbrock() -> Method:
    """Return rodas5p with the rate at the end as a stage more; rates are u / h."""
    t, n = RODAS5P, len(RODAS5P.m)
    return Method(
        name=t.name,
        order=t.order,
        c=(*t.c, 1.0),
        rows=(*map(_floats, t.a), _floats(t.m)),
        update=_floats(t.m),
        b=(*t.m, 0.0),
        error=_floats(t.error),
        mid=(*(m / 2 + (p + (q + r / 2) / 2) / 4 for m, p, q, r in zip(t.m, *t.dense, strict=True)), 0.0),
        last_row_is_update=True,
        blocks=tuple((i,) for i in range(n)),
        dense=tuple((*row, 0.0) for row in t.dense),
    )


def _floats(weights: Iterable[float]) -> Terms:
    return tuple((j, w) for j, w in enumerate(weights) if w)


@constant_when_traced
def adams_weights(points: int) -> Terms:
    """Return the Adams-Bashforth weights of ``points`` rates, the newest first (Hairer, Norsett, Wanner I, III.1).

    w_j is the integral over [0, 1] of the Lagrange polynomial of node -j among the nodes 0, -1, ..., 1 - points.
    """
    return _adams_weights(points)


@constant_when_traced
def moulton_weights(points: int) -> Terms:
    """Return the Adams-Moulton weights of ``points`` rates, the first at the end of the step, then the newest first."""
    return _adams_weights(points, -1)


@cache
def _adams_weights(points: int, first: int = 0) -> Terms:
    """Return the integrals over [0, 1] of the Lagrange polynomials of the nodes -first, -first - 1, ..."""
    weights = []
    nodes = range(first, first + points)
    for j in nodes:
        polynomial = [Fraction(1)]  # coefficients by ascending power
        for m in nodes:
            if m != j:
                scale = Fraction(1, m - j)
                shifted = [Fraction(0), *polynomial]
                padded = [*polynomial, Fraction(0)]
                polynomial = [scale * (x + m * y) for x, y in zip(shifted, padded, strict=True)]
        weights.append(sum((x / (power + 1) for power, x in enumerate(polynomial)), Fraction(0)))
    return _terms(weights)


def interpolation_weights(x: float, method: Method) -> Terms:
    """Return B_j(x) of y(t0 + x h) = y0 + h sum_j B_j(x) k_j, torchdiffeq's quartic by y0, y1, the middle, f0, f1
    unless the method has an interpolant of its own."""
    if method.dense:
        columns = zip(method.b, *method.dense, strict=True)
        return tuple((j, x * b + x * (1 - x) * (p + x * (q + x * r))) for j, (b, p, q, r) in enumerate(columns))
    x2, x3, x4 = x * x, x * x * x, x * x * x * x
    end, middle = -5 * x2 + 14 * x3 - 8 * x4, 16 * x2 - 32 * x3 + 16 * x4
    weights = [end * b + middle * m for b, m in zip(method.b, method.mid, strict=True)]
    weights[0] += x - 4 * x2 + 5 * x3 - 2 * x4
    weights[-1] += x2 - 3 * x3 + 2 * x4
    return tuple(enumerate(weights))


def quartic(x: Any, y0: Any, y1: Any, mid: Any, f0: Any, f1: Any, h: Any) -> Any:
    """Return the polynomial of :func:`interpolation_weights` at a place x that is a tensor.

    Args:
        y0, y1, mid: states at the ends of the step and in its middle. f0, f1: rates at its ends. h: its size.
    """
    x2 = x * x
    x3, x4 = x2 * x, x2 * x2
    ends = (y1 - y0) * (-5 * x2 + 14 * x3 - 8 * x4) + (mid - y0) * (16 * x2 - 32 * x3 + 16 * x4)
    slopes = f0 * (h * (x - 4 * x2 + 5 * x3 - 2 * x4)) + f1 * (h * (x2 - 3 * x3 + 2 * x4))
    return y0 + (ends + slopes)
