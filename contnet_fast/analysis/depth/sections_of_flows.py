"""The sections of the report on depth about continuous depth."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..html import Page
from . import figures
from .bounds import best_agreement, most_pieces_after_steps
from .experiments import Population, Row, best_rows
from .flows import direction_changes, folded_by_steps, trace_fold_steps
from .lines import count_pieces
from .measurements import Plane

FOLDS = 6


def flows(page: Page, random_pieces: Sequence[tuple[int, float]], shear_exact: bool) -> None:
    """Coarse steps fold, the flow does not."""
    page.section("Steps are layers, the flow is not")
    x = torch.linspace(0, 1, 1025, dtype=torch.float64)
    few = {f"N = {n}": folded_by_steps(3, x[:, None], n_steps=n)[:, 0] for n in (3, 6, 9, 48)}
    steps = [FOLDS * i for i in (1, 2, 3, 4, 8)]
    traces = {n: trace_fold_steps(FOLDS, n) for n in steps}
    bounds = {f"at most, {p} units": [(n, most_pieces_after_steps(p, n)) for n in (1, 2, 3)] for p in (2, 16)}
    pieces = {
        "the field of the sawtooth, 2 units": [(n, count_pieces(line)) for n, line in traces.items()],
        "random fields in the plane, 16 units": random_pieces,
        **bounds,
    }
    page.figure(
        figures.folds(x, few, pieces, dashed=tuple(bounds)),
        alt="states after Euler steps by x, and linear pieces by the number of steps",
        caption="Left: dx/dt = g(x) - x over 3 units of time, g the tent. Right: the same field over 6 units of time.",
    )
    changes = {n: direction_changes(line.state[:, 0]) for n, line in traces.items()}
    page.notes(
        {
            "What it shows": f"In {FOLDS} Euler steps of length 1 the field of two units makes phi_{FOLDS}: "
            f"{count_pieces(traces[FOLDS])} pieces, {changes[FOLDS]} changes of direction. In {2 * FOLDS} steps there "
            f"are {changes[2 * FOLDS]} changes of direction, in {3 * FOLDS} and more "
            f"{max(changes[n] for n in steps if n >= 3 * FOLDS)}. A flow on a line is increasing, and so are steps of "
            "this field of length up to 1/3. Random fields in the plane, over one unit of time: the median number of "
            f"pieces goes from {random_pieces[0][1]:g} at N = {random_pieces[0][0]} to {random_pieces[-1][1]:g} at N "
            f"= {random_pieces[-1][0]}.",
            "What it does not show": "What training does with steps: the weights are given or drawn here. Pieces are "
            "counted from below where bends are smaller than rounding. The bound allows 17^N pieces to the random "
            "fields.",
            "What stands behind it": "Construction (Euler steps with the tent as their map). Dashed: proved, N steps "
            "with p units make at most (p + 1)^N pieces. That flows on a line keep their order: solutions of one "
            "equation with a Lipschitz field never meet. One more dimension takes this away: da/dt = f(x) from a = 0 "
            "has every f that the field has.",
        }
    )
    page.text(
        "Parities of vertices are no obstruction for flows in dimension 2 or more: a shear along e_1 - e_2 at a "
        "speed of the parity, with n units in the field and a linear readout, "
        + ("was right on every vertex for n = 2, 3, 6 and 10" if shear_exact else "was WRONG on some vertex")
        + ", with one Euler step as with RK4. A trained ODE that misses a parity shows a limit of optimisation or of "
        "width."
    )


def planes(page: Page, found: Sequence[Plane], rows: Sequence[Row]) -> None:
    """The disc in the annulus."""
    page.section("A disc in an annulus: what a flow in the plane cannot do")
    inputs, labels = Population("annulus").data(test=True)
    images = {"inputs": (inputs, labels)}
    images |= {f"N = {plane.n_steps}: accuracy {plane.accuracy:.3f}": (plane.points, plane.labels) for plane in found}
    page.figure(
        figures.planes(images), alt="a disc and an annulus, and their images under a trained planar ODE",
        caption="Inputs, and states at the end of the solve, cut to the surroundings of the disc.",
    )  # fmt: skip
    around = "; ".join(
        f"N = {plane.n_steps}: around {sum(w == 1 for w in plane.windings)} of {len(plane.windings)} points once"
        for plane in found
    )
    notes = {
        "What it shows": "One planar ODE, trained in coarse steps and then solved in finer ones. The image of the "
        f"circle between disc and annulus goes around the images of points of the disc: {around}. Where it does so, "
        "no line separates the two images, since the circle is further out in every direction.",
        "What it does not show": "How other seeds do; those are below. Accuracy stays high where only few points are "
        "on the wrong side: the obstruction says that not all are right, not that many are wrong.",
        "What stands behind it": "Proved for the flow: it is a homeomorphism of the plane, which keeps winding "
        "numbers. Steps that are long beside the field need not be one. Images and accuracies: best found in this "
        "budget.",
    }
    page.notes(notes)
    for target in dict.fromkeys(row["target"] for row in rows if "by_steps" in row):
        if target != "disc in annulus" and not target.startswith("sign f_"):
            continue
        _by_steps(page, target, [row for row in rows if row["target"] == target and "by_steps" in row])


def _by_steps(page: Page, target: str, rows: Sequence[Row]) -> None:
    """Accuracy of the trained ODEs of one target in more steps than they were trained with."""
    series: dict[str, list[tuple[float, float]]] = {}
    said = []
    for name in dict.fromkeys(row["architecture"] for row in rows):
        own = [row for row in rows if row["architecture"] == name]
        largest = best_rows([row for row in own if row["size"] == max(row["size"] for row in own)])
        steps = [int(n) for n in largest[0]["by_steps"]]
        for label, pick in (("lowest", min), ("highest", max)):
            series[f"{name}, {label} seed"] = [(n, pick(row["by_steps"][str(n)] for row in largest)) for n in steps]
        highest = series[f"{name}, highest seed"]
        said.append(
            f"{name}: highest of {len(largest)} seeds {highest[0][1]:.3f} at N = {steps[0]}, {highest[-1][1]:.3f} at "
            f"N = {steps[-1]}"
        )
    figure = figures.lines(series, x="steps N of the solve", y=f"accuracy, {target}", log_x=True, height=3.2)
    page.figure(figure, alt=f"accuracy of trained ODEs on {target} by the number of steps of the solve")
    limit = ""
    if target.startswith("sign f_"):
        at_most = best_agreement(int(target.removeprefix("sign f_")), 1)
        limit = f" The flow on a line with one threshold has at most {at_most:.4f}, which is proved."
    page.text(
        f"Trained ODEs of the largest size on {target}, solved in more steps than in training, which is the first N: "
        f"{'; '.join(said)}. What an ODE loses in finer steps it owed to its discretization and not to its "
        f"flow.{limit}"
    )
