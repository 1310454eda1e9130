"""Bases, refinement, projection and interpolation are exact."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch

from contnet_fast.schemes.bases import (
    BASES,
    Basis,
    apply_matrix,
    interpolation_matrix,
    projection_matrix,
    refinement_matrix,
)

SIZES = {
    "piecewise_constant": (1, 2, 3, 8),
    "hat": (1, 2, 3, 8),
    "piecewise_linear": (2, 4, 8),
    "polynomial": (1, 2, 4),
}
ALL = [Basis(name, size) for name in BASES for size in SIZES[name]]
TIMES = [(Fraction(i, 48), left) for i in range(49) for left in (False, True)]


def value(basis: Basis, coefficients: list[Fraction], t: Fraction, *, left: bool = False) -> Fraction:
    return sum((w * coefficients[k] for k, w in basis.weights(t, left=left)), Fraction(0))


def mapped(matrix, coefficients):
    return [sum((w * c for w, c in zip(row, coefficients, strict=True)), Fraction(0)) for row in matrix]


def some_coefficients(size: int) -> list[Fraction]:
    return [Fraction((7 * k * k + 3 * k + 1) % 11 - 5, 3) for k in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 49, 98, 128])
def test_piecewise_constant_cell_is_floor_and_the_left_limit_is_the_cell_before(size):
    basis = Basis("piecewise_constant", size)
    for n in (1, 3, 10, size):
        for i in range(n + 1):
            t = Fraction(i, n)
            cell = min((t * size).numerator // (t * size).denominator, size - 1)
            assert basis.weights(t) == ((cell, 1),)
            on_edge = (t * size).denominator == 1 and t > 0
            assert basis.weights(t, left=True) == ((int(t * size) - 1 if on_edge else cell, 1),)


def test_hat_and_linear_values():
    assert Basis("hat", 3).weights(Fraction(1, 4)) == ((0, Fraction(1, 2)), (1, Fraction(1, 2)))
    assert Basis("hat", 3).weights(Fraction(1, 2)) == ((1, 1),)
    assert Basis("fem_linear", 3) == Basis("hat", 3)
    assert Basis("piecewise_linear", 4).weights(Fraction(1, 2)) == ((2, 1),)
    assert Basis("piecewise_linear", 4).weights(Fraction(1, 2), left=True) == ((1, 1),)
    assert Basis("polynomial", 3).weights(Fraction(1, 2)) == ((0, 1), (1, Fraction(1, 2)), (2, Fraction(1, 4)))


@pytest.mark.parametrize("basis", [b for b in ALL if b.name != "polynomial"], ids=str)
def test_partition_of_unity(basis):
    for t, left in TIMES:
        assert sum(w for _, w in basis.weights(t, left=left)) == 1


@pytest.mark.parametrize("basis", ALL, ids=str)
def test_refinement_keeps_the_function_exactly(basis):
    coefficients = some_coefficients(basis.size)
    fine = mapped(refinement_matrix(basis), coefficients)
    for t, left in TIMES:
        assert value(basis.refined(), fine, t, left=left) == value(basis, coefficients, t, left=left)


def test_refined_sizes():
    assert Basis("piecewise_constant", 4).refined().size == 8
    assert Basis("hat", 4).refined().size == 7
    assert Basis("hat", 1).refined().size == 2
    assert Basis("piecewise_linear", 4).refined().size == 8


def test_projection_of_constants_is_the_pair_mean():
    matrix = projection_matrix(Basis("piecewise_constant", 16), Basis("piecewise_constant", 8))
    half = Fraction(1, 2)
    for j, row in enumerate(matrix):
        assert [(k, w) for k, w in enumerate(row) if w] == [(2 * j, half), (2 * j + 1, half)]


@pytest.mark.parametrize("target", ALL, ids=str)
def test_projection_reproduces_the_target_space(target):
    matrix = projection_matrix(target, target)
    assert mapped(matrix, some_coefficients(target.size)) == some_coefficients(target.size)
    fine = target.refined()
    back = projection_matrix(fine, target)
    assert mapped(back, mapped(refinement_matrix(target), some_coefficients(target.size))) == some_coefficients(
        target.size
    )


@pytest.mark.parametrize("target", ALL, ids=str)
@pytest.mark.parametrize("source", [Basis("piecewise_constant", 6), Basis("hat", 5)], ids=str)
def test_projection_residual_is_orthogonal_to_the_target(source, target):
    coefficients = some_coefficients(source.size)
    projected = mapped(projection_matrix(source, target), coefficients)
    cuts = sorted({Fraction(i, n) for n in (source.n_pieces, target.n_pieces) for i in range(n + 1)})
    # the seven-point Newton-Cotes rule is exact to degree 7, the products here have degree at most 6
    weights = (41, 216, 27, 272, 27, 216, 41)
    for k in range(target.size):
        unit = [Fraction(int(j == k)) for j in range(target.size)]
        total = Fraction(0)
        for a, b in itertools.pairwise(cuts):
            for node, w in enumerate(weights):
                t, left = a + (b - a) * node / 6, node == 6
                residual = value(source, coefficients, t, left=left) - value(target, projected, t, left=left)
                total += w * (b - a) / 840 * residual * value(target, unit, t, left=left)
        assert total == 0


def test_interpolation_takes_the_values_at_the_nodes():
    source, target = Basis("hat", 5), Basis("piecewise_constant", 4)
    coefficients = some_coefficients(5)
    nodes = [value(source, coefficients, Fraction(2 * k + 1, 8)) for k in range(4)]
    assert mapped(interpolation_matrix(source, target), coefficients) == nodes


def test_interpolation_into_polynomials_passes_through_their_nodes():
    source, target = Basis("hat", 5), Basis("polynomial", 3)
    coefficients = some_coefficients(5)
    new = mapped(interpolation_matrix(source, target), coefficients)
    for t in (Fraction(0), Fraction(1, 2), Fraction(1)):
        assert value(target, new, t) == value(source, coefficients, t)


def test_apply_matrix_copies_unit_rows_bit_for_bit_and_sums_in_float64():
    nodal = torch.tensor([[0.1, -0.0], [0.2, 3e38]], dtype=torch.float32)
    copied = apply_matrix(refinement_matrix(Basis("piecewise_constant", 2)), nodal)
    assert torch.equal(copied.view(torch.int32), nodal.repeat_interleave(2, 0).view(torch.int32))
    halved = apply_matrix(projection_matrix(Basis("piecewise_constant", 2), Basis("piecewise_constant", 1)), nodal)
    assert torch.equal(halved[0], nodal.double().mean(0).float())


@pytest.mark.parametrize(
    ("name", "size", "error", "words"),
    [
        ("hatt", 3, ValueError, ["basis", "'hatt'", "piecewise_constant", "did you mean 'hat'"]),
        ("hat", 0, ValueError, ["n_basis", "0"]),
        ("hat", -2, ValueError, ["n_basis", "-2"]),
        ("hat", 2.0, TypeError, ["n_basis", "2.0"]),
        ("hat", True, TypeError, ["n_basis", "True"]),
        ("piecewise_linear", 3, ValueError, ["n_basis", "3", "even"]),
        (None, 3, ValueError, ["basis", "None"]),
    ],
)
def test_bad_basis(name, size, error, words):
    with pytest.raises(error) as caught:
        Basis(name, size)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)
