"""Explicit Runge-Kutta schemes as frozen data in exact rationals, checked when they are made.

Sources of the coefficients: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I (euler, midpoint, heun,
both RK4s, fehlberg2, dopri5 in the embedded form of Shampine, dopri8 as RK8(7)13M); Ralston 1962 (ralston2); Bogacki
and Shampine 1989 (bosh3); Tsitouras 2011 (tsit5). A new scheme is one entry in ``SCHEMES``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement
from math import prod
from types import MappingProxyType

from ..errors import choice_error

Row = tuple[Fraction, ...]
Tree = tuple["Tree", ...]  # a rooted tree is the sorted tuple of its subtrees; the leaf is ()

_ROUNDING = Fraction(1, 10**12)  # what published decimals may be off by


@dataclass(frozen=True)
class ButcherTableau:
    """y_s = y + h sum_{j<s} a_sj k_j,  k_s = f(t + c_s h, y_s),  y1 = y + h sum_j b_j k_j.

    Attributes:
        name: the scheme's name. order: p, the order of y1.
        c: [S] nodes. a: row s holds a_s0 ... a_s,s-1. b: [S] weights.
        b_error: [S] weights of the embedded error h sum_j b_error_j k_j, or ``None``; they sum to zero.
        error_order: the order of the embedded solution b - b_error.
        exact: the coefficients are exact; otherwise published decimals or near rationals, good to 1e-12.

    Raises:
        ValueError: wrong lengths, a row that does not sum to c, b not to 1, or b_error not to 0.
    """

    name: str
    order: int
    c: Row
    a: tuple[Row, ...]
    b: Row
    b_error: Row | None = None
    error_order: int | None = None
    exact: bool = True

    def __post_init__(self) -> None:
        for name in ("c", "b"):
            object.__setattr__(self, name, _row(getattr(self, name)))
        object.__setattr__(self, "a", tuple(_row(row) for row in self.a))
        if self.b_error is not None:
            object.__setattr__(self, "b_error", _row(self.b_error))
        n = len(self.b)
        if len(self.c) != n or [len(row) for row in self.a] != list(range(n)):
            raise self._error("lengths", "c and b of S entries and row s of a with s entries (explicit)")
        if self.b_error is not None and len(self.b_error) != n:
            raise self._error("b_error", f"{n} entries, as b")
        for s, row in enumerate(self.a):
            if self._wrong(sum(row, Fraction(0)) - self.c[s]):
                raise self._error(f"a[{s}]", f"a row that sums to c[{s}] = {self.c[s]}")
        if self._wrong(sum(self.b, Fraction(0)) - 1):
            raise self._error("b", "weights that sum to 1")
        if self.b_error is not None and self._wrong(sum(self.b_error, Fraction(0))):
            raise self._error("b_error", "weights that sum to 0")

    @property
    def n_stages(self) -> int:
        """S, the number of stages."""
        return len(self.b)

    @property
    def n_solution_stages(self) -> int:
        """Stages that y1 needs: those after the last non-zero b_j serve the error estimate alone."""
        return max(j for j, weight in enumerate(self.b) if weight) + 1

    @property
    def is_fsal(self) -> bool:
        """First same as last: the last stage is the first of the next step."""
        return self.n_stages > 1 and self.c[-1] == 1 and self.a[-1] == self.b[:-1] and self.b[-1] == 0

    def check_order(self) -> None:
        """Check every order condition of y1, and of the embedded solution, by rooted trees.

        Raises:
            ValueError: naming the scheme, the order and the number of conditions that fail.
        """
        weights = [("b", self.b, self.order)]
        if self.b_error is not None and self.error_order is not None:
            embedded = tuple(x - e for x, e in zip(self.b, self.b_error, strict=True))
            weights.append(("b - b_error", embedded, self.error_order))
        for name, row, order in weights:
            failed = [r for r in order_residuals(self, order, weights=row) if self._wrong(r)]
            if failed:
                raise self._error(name, f"weights of order {order}; {len(failed)} order conditions fail")

    def _wrong(self, residual: Fraction) -> bool:
        return abs(residual) > (0 if self.exact else _ROUNDING)

    def _error(self, part: str, accepted: str) -> ValueError:
        return ValueError(f"tableau {self.name!r}, {part}: accepted: {accepted}")


def order_residuals(tableau: ButcherTableau, order: int, *, weights: Row | None = None) -> Iterator[Fraction]:
    """sum_i b_i Phi_i(tree) - 1/gamma(tree) for every rooted tree of up to ``order`` vertices.

    A scheme has order p iff these vanish for all trees up to p (Hairer, Norsett, Wanner I, theorem II.2.13).
    """
    b = tableau.b if weights is None else weights
    values: dict[Tree, Row] = {}
    for size in range(1, order + 1):
        for tree in rooted_trees(size):
            phi = _elementary_weights(tableau, tree, values)
            yield sum((w * p for w, p in zip(b, phi, strict=True)), Fraction(0)) - Fraction(1, density(tree))


@cache
def rooted_trees(size: int) -> tuple[Tree, ...]:
    """All rooted trees with ``size`` vertices: 1, 1, 2, 4, 9, 20, 48, 115, ... of them."""
    if size == 1:
        return ((),)
    found: set[Tree] = set()
    for sizes in _partitions(size - 1, size - 1):
        forests: list[Tree] = [()]
        for part in sorted(set(sizes)):
            choices = list(combinations_with_replacement(rooted_trees(part), sizes.count(part)))
            forests = [forest + choice for forest in forests for choice in choices]
        found.update(tuple(sorted(forest)) for forest in forests)
    return tuple(sorted(found))


def _partitions(total: int, largest: int) -> Iterator[tuple[int, ...]]:
    if total == 0:
        yield ()
    for part in range(min(total, largest), 0, -1):
        for rest in _partitions(total - part, part):
            yield (part, *rest)


def _size(tree: Tree) -> int:
    return 1 + sum(map(_size, tree))


def density(tree: Tree) -> int:
    """gamma(tree): the product of the sizes of its subtrees, itself included."""
    return _size(tree) * prod(map(density, tree))


def _elementary_weights(tableau: ButcherTableau, tree: Tree, values: dict[Tree, Row]) -> Row:
    """Phi_i of a tree: the product over its subtrees u of sum_j a_ij Phi_j(u)."""
    if tree not in values:
        phi = [Fraction(1)] * tableau.n_stages
        for child in tree:
            inner = _elementary_weights(tableau, child, values)
            for i, row in enumerate(tableau.a):
                phi[i] *= sum((x * inner[j] for j, x in enumerate(row) if x), Fraction(0))
        values[tree] = tuple(phi)
    return values[tree]


def get_tableau(scheme: str | ButcherTableau) -> ButcherTableau:
    """The tableau of a scheme name or alias; a :class:`ButcherTableau` is returned as it is.

    Raises:
        ValueError: an unknown name, with the known ones.
    """
    if isinstance(scheme, ButcherTableau):
        return scheme
    name = ALIASES.get(scheme, scheme) if isinstance(scheme, str) else scheme
    if not isinstance(name, str) or name not in SCHEMES:
        raise choice_error("scheme", scheme, (*SCHEMES, *ALIASES))
    return SCHEMES[name]


def _row(values: Sequence[object]) -> Row:
    return tuple(value if isinstance(value, Fraction) else Fraction(str(value)) for value in values)


def _fractions(text: str) -> list[Fraction]:
    return [Fraction(word) for word in text.split()]


def _tableau(
    name: str,
    order: int,
    *,
    a: str,
    b: str,
    c: str | None = None,
    error: str | None = None,
    lower: str | None = None,
    error_order: int | None = None,
    exact: bool = True,
) -> ButcherTableau:
    """One scheme: ``a`` row by row with ';' between, its rows sum to c unless ``c`` is given.

    The embedded error is ``error`` itself, or b minus the ``lower`` order weights.
    """
    rows = tuple(tuple(_fractions(row)) for row in ("", *a.split(";"))) if a else ((),)
    weights = _fractions(b)
    b_error = _fractions(error) if error else None
    if lower:
        b_error = [x - y for x, y in zip(weights, _fractions(lower), strict=True)]
    return ButcherTableau(
        name,
        order,
        tuple(_fractions(c)) if c else tuple(sum(row, Fraction(0)) for row in rows),
        rows,
        tuple(weights),
        None if b_error is None else tuple(b_error),
        error_order,
        exact,
    )


_DOPRI8_B = (
    "14005451/335480064 0 0 0 0 -59238493/1068277825 181606767/758867731 561292985/797845732 "
    "-1041891430/1371343529 760417239/1151165299 118820643/751138087 -528747749/2220607170 1/4"
)

_TABLEAUS = (
    _tableau("euler", 1, a="", b="1"),
    _tableau("midpoint", 2, a="1/2", b="0 1"),
    _tableau("heun2", 2, a="1", b="1/2 1/2"),
    _tableau("ralston2", 2, a="2/3", b="1/4 3/4"),
    _tableau("heun3", 3, a="1/3; 0 2/3", b="1/4 0 3/4"),
    _tableau("bosh3", 3, a="1/2; 0 3/4; 2/9 1/3 4/9", b="2/9 1/3 4/9 0", lower="7/24 1/4 1/3 1/8", error_order=2),
    _tableau("rk4", 4, a="1/3; -1/3 1; 1 -1 1", b="1/8 3/8 3/8 1/8"),
    _tableau("rk4_classic", 4, a="1/2; 0 1/2; 0 0 1", b="1/6 1/3 1/3 1/6"),
    _tableau("fehlberg2", 2, a="1/2; 1/256 255/256", b="1/512 255/256 1/512", error="-1/512 0 1/512", error_order=1),
    _tableau(
        "dopri5",
        5,
        a="1/5; 3/40 9/40; 44/45 -56/15 32/9; 19372/6561 -25360/2187 64448/6561 -212/729;"
        "9017/3168 -355/33 46732/5247 49/176 -5103/18656; 35/384 0 500/1113 125/192 -2187/6784 11/84",
        b="35/384 0 500/1113 125/192 -2187/6784 11/84 0",
        lower="1951/21600 0 22642/50085 451/720 -12231/42400 649/6300 1/60",
        error_order=4,
    ),
    _tableau(
        "tsit5",
        5,
        c="0 0.161 0.327 0.9 0.9800255409045097 1 1",
        a="0.161; -0.008480655492356989 0.335480655492357;"
        "2.8971530571054935 -6.359448489975075 4.3622954328695815;"
        "5.325864828439257 -11.748883564062828 7.4955393428898365 -0.09249506636175525;"
        "5.86145544294642 -12.92096931784711 8.159367898576159 -0.071584973281401 -0.028269050394068383;"
        "0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 2.324710524099774",
        b="0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 2.324710524099774 0",
        error="-0.00178001105222577714 -0.0008164344596567469 0.007880878010261995 -0.1447110071732629 "
        "0.5823571654525552 -0.45808210592918697 0.015151515151515152",
        error_order=4,
        exact=False,
    ),
    _tableau(
        "dopri8",
        8,
        c="0 1/18 1/12 1/8 5/16 3/8 59/400 93/200 5490023248/9719169821 13/20 1201146811/1299019798 1 1 1",
        a="1/18; 1/48 1/16; 1/32 0 3/32; 5/16 0 -75/64 75/64; 3/80 0 0 3/16 3/20;"
        "29443841/614563906 0 0 77736538/692538347 -28693883/1125000000 23124283/1800000000;"
        "16016141/946692911 0 0 61564180/158732637 22789713/633445777 545815736/2771057229 "
        "-180193667/1043307555;"
        "39632708/573591083 0 0 -433636366/683701615 -421739975/2616292301 100302831/723423059 "
        "790204164/839813087 800635310/3783071287;"
        "246121993/1340847787 0 0 -37695042795/15268766246 -309121744/1061227803 -12992083/490766935 "
        "6005943493/2108947869 393006217/1396673457 123872331/1001029789;"
        "-1028468189/846180014 0 0 8478235783/508512852 1311729495/1432422823 -10304129995/1701304382 "
        "-48777925059/3047939560 15336726248/1032824649 -45442868181/3398467696 3065993473/597172653;"
        "185892177/718116043 0 0 -3185094517/667107341 -477755414/1098053517 -703635378/230739211 "
        "5731566787/1027545527 5232866602/850066563 -4093664535/808688257 3962137247/1805957418 "
        "65686358/487910083;"
        "403863854/491063109 0 0 -5068492393/434740067 -411421997/543043805 652783627/914296604 "
        "11173962825/925320556 -13158990841/6184727034 3936647629/1978049680 -160528059/685178525 "
        "248638103/1413531060 0;" + _DOPRI8_B,
        b=_DOPRI8_B + " 0",
        lower="13451932/455176623 0 0 0 0 -808719846/976000145 1757004468/5645159321 656045339/265891186 "
        "-3867574721/1518517206 465885868/322736535 53011238/667516719 2/45 0 0",
        error_order=7,
        exact=False,
    ),
    _tableau("adaptive_heun", 2, a="1", b="1/2 1/2", error="1/2 -1/2", error_order=1),
)

SCHEMES: Mapping[str, ButcherTableau] = MappingProxyType({tableau.name: tableau for tableau in _TABLEAUS})
ALIASES: Mapping[str, str] = MappingProxyType({"rk4_38": "rk4"})
