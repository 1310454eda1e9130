"""Every (step, stage) reads the right basis functions, by exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import pytest

from contnet_fast.schemes.bases import Basis
from contnet_fast.schemes.tableaus import SCHEMES, get_tableau
from contnet_fast.schemes.timegrid import TimeGrid, time_grid


def cells(scheme: str, n: int, k: int, edge: str = "left") -> list[list[int]]:
    grid = time_grid(scheme, n, Basis("piecewise_constant", k), edge=edge)
    return [[slot[0][0] for slot in step] for step in grid.slots]


def test_cells_are_exact_for_all_steps_and_cells_up_to_128():
    third, half, two_thirds = Fraction(1, 3), Fraction(1, 2), Fraction(2, 3)
    nodes = (Fraction(0), third, half, two_thirds, Fraction(1))  # those of euler, midpoint and both RK4s
    bases = [Basis("piecewise_constant", k) for k in range(1, 129)]
    for n in range(1, 129):
        for i in range(n):
            for c in nodes:
                t, sixths = (i + c) / n, 6 * i + int(6 * c)
                for basis in bases:
                    cell, rest = divmod(sixths * basis.size, 6 * n)
                    if c == 1 and rest == 0:
                        cell -= 1
                    assert basis.piece(t, left=c == 1) == cell, (n, basis.size, i, c)


def test_the_grid_reads_each_stage_at_its_node():
    for scheme in ("euler", "midpoint", "rk4", "rk4_classic"):
        tableau = get_tableau(scheme)
        for n, k in ((3, 3), (5, 8), (49, 49), (98, 14), (128, 128)):
            basis = Basis("piecewise_constant", k)
            for i, step in enumerate(TimeGrid(tableau, n, basis).slots):
                assert step == tuple(((basis.piece((i + c) / n, left=c == 1), 1),) for c in tableau.c)


@pytest.mark.parametrize("scheme", ["euler", "midpoint", "rk4", "rk4_classic"])
@pytest.mark.parametrize("n", range(1, 129))
def test_every_cell_is_used_when_steps_match_cells(scheme, n):
    assert cells(scheme, n, n) == [[i] * get_tableau(scheme).n_solution_stages for i in range(n)]


@pytest.mark.parametrize("scheme", ["rk4", "rk4_classic"])
def test_published_float32_rule_reads_the_next_cell(scheme):
    assert cells(scheme, 4, 4, "reference_fp32") == [[0, 0, 0, 1], [1, 1, 1, 2], [2, 2, 2, 3], [3, 3, 3, 3]]


def test_published_float32_rule_misses_cells_where_the_published_code_does():
    wrong = [n for n in range(1, 65) if [step[0] for step in cells("euler", n, n, "reference_fp32")] != list(range(n))]
    assert wrong[:5] == [3, 6, 7, 11, 12]
    assert len(wrong) == 46
    assert 2 not in {c for step in cells("euler", 3, 3, "reference_fp32") for c in step}


def test_only_a_stage_at_the_right_end_takes_the_left_limit():
    # K = 8, N = 4: the middle stage of classic RK4 lands on an edge and reads the right cell, the last one the left
    assert cells("rk4_classic", 4, 8) == [[0, 1, 1, 1], [2, 3, 3, 3], [4, 5, 5, 5], [6, 7, 7, 7]]


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_rows_and_update_are_the_tableau_times_h(scheme):
    grid, tableau = time_grid(scheme, 5), SCHEMES[scheme]
    assert grid.n_stages == tableau.n_solution_stages
    assert grid.update == tuple(float(b / 5) for b in tableau.b[: grid.n_stages])
    assert grid.stage_rows == tuple(tuple(float(a / 5) for a in row) for row in tableau.a[: grid.n_stages])
    assert grid.time(3, 0) == Fraction(3, 5)
    assert grid.n_evaluations == 5 * grid.n_stages


@pytest.mark.parametrize(("scheme", "updates"), [("euler", 1), ("midpoint", 2), ("rk4", 4), ("rk4_classic", 4)])
def test_evaluations_of_each_cell(scheme, updates):
    grid = time_grid(scheme, 4, Basis("piecewise_constant", 4))
    assert [grid.evaluations(k) for k in range(4)] == [updates] * 4


def test_evaluations_of_each_cell_by_the_published_rule():
    grid = time_grid("rk4_classic", 4, Basis("piecewise_constant", 4), edge="reference_fp32")
    assert [grid.evaluations(k) for k in range(4)] == [3, 4, 4, 5]


def test_interpolating_bases_get_exact_weights():
    grid = time_grid("rk4", 2, Basis("hat", 3))
    assert grid.slots[0][1] == ((0, Fraction(2, 3)), (1, Fraction(1, 3)))
    assert grid.weights[0][1] == ((0, 2 / 3), (1, 1 / 3))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: time_grid("rk5", 4), ValueError, ["rk5", "rk4"]),
        (lambda: time_grid("euler", 0), ValueError, ["n_steps", "0"]),
        (lambda: time_grid("euler", -3), ValueError, ["n_steps", "-3"]),
        (lambda: time_grid("euler", 2.0), TypeError, ["n_steps", "2.0"]),
        (lambda: time_grid("euler", 2, edge="right"), ValueError, ["edge", "right", "left"]),
        (lambda: time_grid("euler", 2, Basis("hat", 3), edge="reference_fp32"), ValueError, ["edge", "hat"]),
    ],
)
def test_bad_grid(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)
