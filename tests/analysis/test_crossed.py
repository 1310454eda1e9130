"""Effects of a crossed study are those that were planted, and its sentences say what the intervals say."""

from __future__ import annotations

import random
import re
from itertools import product

import pytest

from contnet_fast.analysis.crossed import crossed, effect, findings, outcomes, student, study_effects

SCHEMES, SCHEDULES = ("euler", "rk4_classic"), ("fixed", "refined")


def planted(scheme=0.0, schedule=0.0, interaction=0.0, *, noise=0.1, seeds=range(1, 6), base=-50.0):
    """Values of an outcome with these effects, seeds that differ by tens of points, and a little noise."""
    draw = random.Random(0)
    of_seed = {seed: draw.uniform(-20, 20) for seed in seeds}
    values = {}
    for (i, a), (j, b), seed in product(enumerate(SCHEMES), enumerate(SCHEDULES), seeds):
        both = interaction * (i - 0.5) * (j - 0.5)
        values[a, b, seed] = base + of_seed[seed] + i * scheme + j * schedule + both + draw.gauss(0, noise)
    return values


def effects(**outcomes):
    return {name: crossed(values, schemes=SCHEMES, schedules=SCHEDULES) for name, values in outcomes.items()}


def test_the_quantiles_are_students():
    stats = pytest.importorskip("scipy.stats", reason="needs scipy")
    for freedom in (*range(1, 31), 100):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-4)


def test_an_effect_has_mean_deviation_and_interval():
    found = effect([1.0, 2.0, 3.0])
    assert (found.mean, found.sd, found.n) == (2.0, 1.0, 3)
    assert found.high - found.mean == pytest.approx(4.303 / 3**0.5)
    assert found.mean - found.low == pytest.approx(4.303 / 3**0.5)
    assert str(found) == "+2.0 (-0.5 to +4.5)"
    with pytest.raises(ValueError, match="differences: got 1, accepted: those of two seeds or more"):
        effect([1.0])


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([5.0, 5.5, 6.0], "up"),
        ([-5.0, -5.5, -6.0], "down"),
        ([0.1, -0.1, 0.0], "none"),
        ([0.3, 0.3, 0.3], "none"),  # not zero, and less than a point
        ([10.0, -10.0, 3.0], "open"),
        ([0.5, 1.0, 0.9, 0.8], "open"),  # above zero, but perhaps below a point
        ([5.0, 40.0], "open"),  # two seeds say little
    ],
)
def test_verdicts(differences, verdict):
    assert effect(differences).verdict == verdict


def test_planted_effects_are_found_though_seeds_differ_by_more():
    found = crossed(planted(2.0, 30.0, 8.0), schemes=SCHEMES, schedules=SCHEDULES)
    assert found.scheme.mean == pytest.approx(2.0, abs=0.2)
    assert found.schedule.mean == pytest.approx(30.0, abs=0.2)
    assert found.interaction.mean == pytest.approx(8.0, abs=0.4)
    assert found.scheme_under["fixed"].mean == pytest.approx(2.0 - 4.0, abs=0.3)
    assert found.scheme_under["refined"].mean == pytest.approx(2.0 + 4.0, abs=0.3)
    assert found.schedule_under["euler"].mean == pytest.approx(30.0 - 4.0, abs=0.3)
    assert found.schedule_under["rk4_classic"].mean == pytest.approx(30.0 + 4.0, abs=0.3)
    for part in (found.scheme, found.schedule, *found.scheme_under.values()):
        assert part.low < part.mean < part.high
        assert part.n == 5


def test_exact_values_have_exact_effects():
    values = {("euler", "fixed"): 1.0, ("euler", "refined"): 5.0, ("rk4_classic", "fixed"): 2.0}
    values["rk4_classic", "refined"] = 16.0
    found = crossed(
        {(*key, s): v + 100 * s for key, v in values.items() for s in (1, 2)}, schemes=SCHEMES, schedules=SCHEDULES
    )
    assert (found.scheme.mean, found.schedule.mean, found.interaction.mean) == (6.0, 9.0, 10.0)
    assert found.scheme.sd == 0.0


def test_a_seed_without_all_four_cells_does_not_count():
    values = planted(seeds=range(4))
    del values["euler", "fixed", 2]
    assert crossed(values, schemes=SCHEMES, schedules=SCHEDULES).scheme.n == 3


def test_if_the_schedule_matters_the_sentence_says_so():
    (text,) = findings(effects(finer=planted(schedule=20.0), coarser=planted(schedule=40.0)))
    assert text == "On finer N and on coarser N, refinement, not the integrator, keeps accuracy."


def test_if_the_scheme_matters_the_sentence_says_so():
    (text,) = findings(effects(finer=planted(scheme=20.0)))
    assert text == "On finer N, RK4, not refinement, keeps accuracy."


def test_if_both_matter_the_sentence_says_so():
    (text,) = findings(effects(coarser=planted(10.0, 20.0)))
    assert text == "On coarser N, both refinement and RK4 keep accuracy."


def test_if_neither_matters_the_sentence_says_so():
    (text,) = findings(effects(**{"K = 2": planted(), "K = 1": planted()}))
    assert text == (
        "After projection to K = 2 and after projection to K = 1, neither refinement nor the integrator changes "
        "accuracy by 1 point."
    )


def test_losses_are_called_losses():
    (text,) = findings(effects(schemes=planted(-10.0, -20.0)))
    assert text == "With another scheme, refinement costs accuracy, and RK4 costs accuracy."


def test_what_the_seeds_do_not_settle_is_not_claimed():
    (text,) = findings(effects(finer=planted(schedule=60.0, noise=8.0)), scheme="the midpoint rule")
    assert text == ("On finer N, refinement keeps accuracy, and what the midpoint rule does is not settled by 5 seeds.")
    (text,) = findings(effects(finer=planted(schedule=9.0, noise=3.0, seeds=[1, 2])))
    assert text == "On finer N, 2 seeds settle neither what refinement does nor what RK4 does."


def test_factors_that_depend_on_each_other_are_reported_apart():
    (text,) = findings(effects(finer=planted(schedule=20.0, interaction=10.0)))
    assert re.fullmatch(
        r"On finer N, refinement keeps accuracy, and RK4 brings -[45]\.\d \(.*\) points under 'fixed' "
        r"and \+[45]\.\d \(.*\) points under 'refined'\.",
        text,
    )
    (text,) = findings(effects(finer=planted(5.0, 5.0, 10.0)))  # only together: 10 points
    assert re.match(r"On finer N, refinement brings [+-]0\.\d \(.*\) points under 'euler' and \+(9|10)\.", text)
    assert re.search(r", and RK4 brings [+-]0\.\d \(.*\) points under 'fixed' and \+(9|10)\.", text)
    (text,) = findings(effects(finer=planted(schedule=60.0, scheme=20.0, interaction=10.0)))
    assert text == "On finer N, both refinement and RK4 keep accuracy."  # more or less, but everywhere


def test_outcomes_that_differ_get_sentences_of_their_own():
    found = effects(own=planted(scheme=50.0), finer=planted(schedule=20.0), coarser=planted(scheme=20.0))
    assert findings(found, schedule="random discretization") == [
        "On finer N, random discretization, not the integrator, keeps accuracy.",
        "On coarser N, RK4, not random discretization, keeps accuracy.",
    ]


def record(scheme="euler", schedule="fixed", seed=1, *, shift=0.0):
    return {
        **{"scheme": scheme, "schedule": schedule, "seed": seed, "n_steps": 4, "n_basis": 4},
        "accuracy": {
            "euler": {"1": 0.2, "2": 0.5, "4": 0.9 + shift, "6": 0.85, "8": 0.88},
            "rk4_classic": {"1": 0.1, "2": 0.3, "4": 0.7, "6": 0.6, "8": 0.65},
        },
        "projected": {"2": {"2": 0.5, "4": 0.4}, "1": {"1": 0.1, "4": 0.15}},
    }


def test_outcomes_are_the_lowest_accuracies_less_the_own():
    assert outcomes(record()) == pytest.approx(
        {"own": 90.0, "finer": -5.0, "coarser": -70.0, "schemes": -20.0, "K = 2": -50.0, "K = 1": -75.0}
    )
    other = outcomes(record("rk4_classic"))
    assert other == pytest.approx(
        {"own": 70.0, "finer": -10.0, "coarser": -60.0, "schemes": 20.0, "K = 2": -30.0, "K = 1": -55.0}
    )


def test_a_study_gives_effects_for_every_outcome():
    records = [
        record(a, b, seed, shift=0.01 * (b == "refined")) for a, b, seed in product(SCHEMES, SCHEDULES, (1, 2, 3))
    ]
    found = study_effects(records, schemes=SCHEMES, schedules=SCHEDULES)
    assert list(found) == ["own", "finer", "coarser", "schemes", "K = 2", "K = 1"]
    assert found["own"].scheme.mean == pytest.approx(-20.5)
    assert found["own"].schedule_under["euler"].mean == pytest.approx(1.0)
    assert found["own"].schedule_under["rk4_classic"].mean == pytest.approx(0.0)
