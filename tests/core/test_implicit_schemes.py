"""Implicit Runge-Kutta and Rosenbrock schemes: order conditions, stability and interpolants."""

from __future__ import annotations

import cmath
import itertools

import numpy as np
import pytest

from contnet_fast.schemes.implicit import IMPLICIT_SCHEMES, RODAS5P

ALL = {**IMPLICIT_SCHEMES, "rodas5p": RODAS5P}
AT_INFINITY = {"implicit_midpoint": 1, "trapezoid": 1, "gl4": 1, "gl6": 1}  # the others damp: 0


@pytest.mark.parametrize("name", ALL)
def test_every_order_condition_holds_and_the_next_order_fails(name):
    scheme = ALL[name]
    assert max(map(abs, scheme.residuals(scheme.order))) < 1e-12
    assert max(map(abs, scheme.residuals(scheme.order + 1))) > 1e-4


@pytest.mark.parametrize("name", [name for name, scheme in ALL.items() if scheme.error])
def test_the_embedded_solution_has_exactly_its_order(name):
    scheme = ALL[name]
    weights = [x - e for x, e in zip(scheme.m if name == "rodas5p" else scheme.b, scheme.error, strict=True)]
    assert max(map(abs, scheme.residuals(scheme.error_order, weights=weights))) < 1e-12
    assert max(map(abs, scheme.residuals(scheme.error_order + 1, weights=weights))) > 1e-4


@pytest.mark.parametrize("name", ALL)
def test_they_are_a_stable_near_exp_and_damp_what_is_stiff(name):
    scheme = ALL[name]
    grid = itertools.product(np.geomspace(1e-3, 1e5, 25), np.linspace(np.pi / 2, np.pi, 9))
    assert all(abs(scheme.amplification(r * cmath.exp(1j * angle))) <= 1 + 1e-12 for r, angle in grid)
    assert abs(abs(scheme.amplification(-1e9)) - AT_INFINITY.get(name, 0)) < 1e-6
    z = 0.05 * cmath.exp(2j)
    assert abs(scheme.amplification(z) - cmath.exp(z)) < abs(z) ** (scheme.order + 1)


def test_the_nodes_of_rodas5p_are_its_row_sums():
    alpha, beta, _ = RODAS5P.classic
    np.testing.assert_allclose(alpha.sum(1), RODAS5P.c, atol=1e-13)
    np.testing.assert_allclose((beta - alpha).sum(1), RODAS5P.d, atol=1e-13)


def test_the_interpolant_of_rodas5p_has_order_4_within_a_step():
    """Its conditions at x are those of a step of size x: the residuals times x^-n of a tree with n vertices."""
    m, dense = np.array(RODAS5P.m), np.array(RODAS5P.dense)
    alpha, beta, _ = RODAS5P.classic
    for x in (0.2, 0.5, 0.9):
        weights = x * m + x * (1 - x) * (dense[0] + x * (dense[1] + x * dense[2]))
        b = weights @ (beta - alpha)
        ones = np.ones(len(m))
        powers = {1: b @ ones, 2: b @ beta @ ones, 3: b @ beta @ beta @ ones, 4: b @ beta @ beta @ beta @ ones}
        for n, factor in ((1, 1), (2, 2), (3, 6), (4, 24)):
            assert abs(powers[n] * factor - x**n) < 1e-9
        assert abs(b @ (alpha @ ones) ** 2 - x**3 / 3) < 1e-9
