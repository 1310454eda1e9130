"""The schemes are what their names say, by exact arithmetic and beside torchdiffeq."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
import torch

from contnet_fast import ButcherTableau, get_tableau
from contnet_fast.schemes.tableaus import ALIASES, SCHEMES, order_residuals, rooted_trees

NAMES = (
    *("euler", "midpoint", "heun2", "ralston2", "heun3", "bosh3", "rk4", "rk4_classic"),
    *("fehlberg2", "dopri5", "tsit5", "dopri8", "adaptive_heun"),
)
ORDERS = dict(zip(NAMES, (1, 2, 2, 2, 3, 3, 4, 4, 2, 5, 5, 8, 2), strict=True))


def test_the_fixed_names_are_there_with_their_orders():
    assert {name: tableau.order for name, tableau in SCHEMES.items()} == ORDERS
    assert get_tableau("rk4_38") is get_tableau("rk4")
    assert set(ALIASES.values()) <= set(SCHEMES)


def test_rooted_trees_are_counted_right():
    assert [len(rooted_trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


@pytest.mark.parametrize("name", NAMES)
def test_every_order_condition_holds_and_the_next_order_fails(name):
    tableau = get_tableau(name)
    tableau.check_order()
    tolerance = 0 if tableau.exact else Fraction(1, 10**12)
    assert all(abs(r) <= tolerance for r in order_residuals(tableau, tableau.order))
    beyond = list(order_residuals(tableau, tableau.order + 1))
    assert any(abs(r) > Fraction(1, 10**8) for r in beyond)


@pytest.mark.parametrize("name", [name for name in NAMES if SCHEMES[name].b_error])
def test_the_embedded_solution_has_exactly_its_order(name):
    tableau = get_tableau(name)
    assert tableau.b_error is not None
    assert tableau.error_order is not None
    embedded = tuple(b - e for b, e in zip(tableau.b, tableau.b_error, strict=True))
    # dopri8's pair differs least: some of its order 8 conditions are off by 1e-8 only
    assert any(abs(r) > 1e-9 for r in order_residuals(tableau, tableau.error_order + 1, weights=embedded))


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_coefficient_is_caught(name):
    tableau = get_tableau(name)
    off = Fraction(1, 1000)
    with pytest.raises(ValueError, match=f"tableau '{name}', b"):
        dataclasses.replace(tableau, b=(tableau.b[0] + off, *tableau.b[1:]))
    with pytest.raises(ValueError, match="sums to c"):
        dataclasses.replace(tableau, c=(*tableau.c[:-1], tableau.c[-1] + off))
    with pytest.raises(ValueError, match=f"{tableau.order + 1}; .* order conditions fail"):
        dataclasses.replace(tableau, order=tableau.order + 1).check_order()
    if tableau.order > 2:  # keep every sum and break a coupling condition
        row = tableau.a[2]
        broken = (*tableau.a[:2], (row[0] + off, row[1] - off), *tableau.a[3:])
        with pytest.raises(ValueError, match="order conditions fail"):
            dataclasses.replace(tableau, a=broken).check_order()


def test_tableaus_are_frozen_and_refuse_bad_shapes():
    tableau = get_tableau("rk4")
    with pytest.raises(dataclasses.FrozenInstanceError):
        tableau.order = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        SCHEMES["mine"] = tableau  # type: ignore[index]
    with pytest.raises(ValueError, match="explicit"):
        dataclasses.replace(tableau, a=((), (Fraction(1, 3),)))
    with pytest.raises(ValueError, match="4 entries"):
        dataclasses.replace(tableau, b_error=(Fraction(0),))
    with pytest.raises(ValueError, match="sum to 0"):
        dataclasses.replace(tableau, b_error=(Fraction(1), Fraction(0), Fraction(0), Fraction(0)))


@pytest.mark.parametrize(
    ("bad", "hint"), [("rk5", "accepted: euler"), ("mid_point", "did you mean 'midpoint'"), (4, "got 4")]
)
def test_an_unknown_scheme_names_the_known_ones(bad, hint):
    with pytest.raises(ValueError, match=hint):
        get_tableau(bad)


def test_trailing_error_stages_and_fsal_are_known():
    assert {n: t.n_solution_stages for n, t in SCHEMES.items() if t.n_solution_stages != t.n_stages} == {
        "bosh3": 3,
        "dopri5": 6,
        "tsit5": 6,
        "dopri8": 13,
    }
    assert [n for n, t in SCHEMES.items() if t.is_fsal] == ["bosh3", "dopri5", "tsit5", "dopri8"]


@pytest.mark.parametrize("name", ["fehlberg2", "adaptive_heun", "bosh3", "dopri5", "dopri8"])
def test_coefficients_equal_torchdiffeq(name):
    solvers = pytest.importorskip("torchdiffeq._impl.odeint", reason="needs torchdiffeq").SOLVERS
    theirs = solvers[name].tableau
    ours: ButcherTableau = get_tableau(name)
    assert ours.b_error is not None
    torch.testing.assert_close(torch.tensor([float(x) for x in ours.c[1:]], dtype=torch.float64), theirs.alpha)
    torch.testing.assert_close(torch.tensor([float(x) for x in ours.b], dtype=torch.float64), theirs.c_sol)
    torch.testing.assert_close(
        torch.tensor([float(x) for x in ours.b_error], dtype=torch.float64), theirs.c_error, rtol=1e-12, atol=1e-15
    )
    for row, beta in zip(ours.a[1:], theirs.beta, strict=True):
        torch.testing.assert_close(torch.tensor([float(x) for x in row], dtype=torch.float64), beta)
