"""The page of the report on depth: under each figure what it shows, what it does not, and what stands behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..html import Page
from . import figures
from .bounds import best_agreement, hinge_loss_bound, most_pieces, units_needed
from .constructions import Radial, inner_product
from .experiments import Row, smallest, summaries
from .layered import LayeredNet
from .measurements import SIZE, Explained, Loss, Plane
from .sections_of_flows import flows, planes
from .verify import Verified

Norms = dict[str, list[tuple[int, float]]]
KINDS = {
    "Construction": "a network with given weights, equal to its target on every input that was compared, in integers.",
    "Proved": "a finite bound that holds for every network it speaks of, trained or not.",
    "Best found in this budget": "what training reached. That nothing better was found proves nothing: another "
    "optimiser, more steps or more seeds may find it.",
}
DOMAINS = {"bits": "vertices", "signs": "vertices", "line": "points of a grid", "corners": "points around vertices"}


@dataclass(frozen=True)
class Findings:
    """Everything that the page is made from."""

    rows: list[Row]
    verified: list[tuple[LayeredNet, Verified]]
    faults: list[Verified]
    losses: list[Loss]
    norms: Norms
    parity_norms: Norms
    explained: list[Explained]
    planes: list[Plane]
    random_pieces: list[tuple[int, float]]
    shear_exact: bool


def page_of(findings: Findings, size: str) -> Page:
    """Return the whole page."""
    page = Page("What depth buys")
    page.text(
        "Networks that compute functions of depth-separation theory exactly, bounds that are proved and finite, and "
        f"small networks that were trained ({size} run). Every figure says which of three things it is:"
    )
    page.notes(KINDS)
    page.text(
        "Beyond any figure are the conditional theorems of Vardi et al. (arXiv 2102.00314), 1, 7 and 9: a proof that "
        "some benign function has no approximation by networks of constant depth and polynomial size would separate "
        "EXP from threshold circuits, which is open, and from some depth on meets the natural-proofs barrier. No "
        "number of networks bears on them. Their bounds for DISJ and the inner product (Theorems 11 to 15) are "
        "asymptotic: here are only the networks that match them from above."
    )
    page.text("Depth is the number of layers of weights, so that a network with one hidden layer has depth 2.")
    constructions(page, findings)
    size_and_depth(page)
    sawtooth_sizes(page)
    theorem_18(page, findings.losses)
    accuracies(page, findings.rows)
    gradients(page, findings)
    features(page, findings.explained)
    flows(page, findings.random_pieces, findings.shear_exact)
    planes(page, findings.planes, findings.rows)
    return page


def constructions(page: Page, findings: Findings) -> None:
    """The table of networks with exact weights, and what a wrong weight does."""
    page.section("Exact constructions")
    page.table(
        ["network", "source", "hidden units", "depth", "compared", "wrong", "Lipschitz", "steepest seen"],
        [
            [net.name, net.source, net.hidden_units, net.depth,
             f"{'all' if v.every else 'random'} {v.checked:,} {DOMAINS[net.domain]}", v.wrong, v.lipschitz, v.steepest]
            for net, v in findings.verified
        ],
        caption="Lipschitz constants are in the Euclidean norm; of f_n it is that of the net below its threshold",
    )  # fmt: skip
    exact = sum(v.exact for _, v in findings.verified)
    planted = "; ".join(f"{v.name}: {v.wrong:,} of {v.checked:,} wrong" for v in findings.faults)
    radial = Radial(3)
    reached = sum(v.steepest >= v.lipschitz * (1 - 1e-9) for _, v in findings.verified)
    page.notes(
        {
            "What it shows": f"{exact} of {len(findings.verified)} networks equal their target on every input that "
            f"was compared. With 1 added to the last weight the comparison says: {planted}.",
            "What it does not show": "Random vertices are not all vertices. A size that works is not the least one. "
            "The steepest gradient at 8,192 random points is a lower bound of the Lipschitz constant; it reaches the "
            f"stated one in {reached} of {len(findings.verified)} rows. That no point is steeper is by argument. "
            f"Daniely's target sin(pi d^3 |x| / 2) has no row: it is a target ({radial.lipschitz:.0f}-Lipschitz at d "
            "= 3), which no ReLU network equals.",
            "What stands behind it": "Construction. Compared in exact integers: every partial sum is bounded below "
            "2^24 in float32 or 2^53 in float64. From n = 24 float32 inputs do not tell the cells of f_n apart, and "
            "inputs are drawn as integers.",
        }
    )


def size_and_depth(page: Page) -> None:
    """Units of the two networks for the inner product."""
    page.section("The inner product: size against depth")
    sizes = list(range(1, 65))
    nets = [(d, inner_product(d), inner_product(d, folded=True)) for d in sizes]
    least = next(d for d, flat, folded in nets if folded.hidden_units < flat.hidden_units)
    figure = figures.lines(
        {
            "depth 3: 2 d units": [(d, flat.hidden_units) for d, flat, _ in nets],
            "folded: d + 2 ceil(log2(d + 1)) units": [(d, folded.hidden_units) for d, _, folded in nets],
            "depth of the folded network": [(d, folded.depth) for d, _, folded in nets],
        },
        x="pairs of bits d", y="hidden units; depth", marked=False,
    )  # fmt: skip
    page.figure(figure, alt="hidden units and depth of two networks for the inner product by the number of pairs")
    _, flat, folded = nets[-1]
    page.notes(
        {
            "What it shows": f"Two networks for the same function. The folded one has fewer units from d = {least}; "
            f"at d = 64 it has {folded.hidden_units} at depth {folded.depth}, the other {flat.hidden_units} at depth "
            "3.",
            "What it does not show": "That either is smallest at its depth. Both are linear in d, and Corollary 15 "
            "says that no exact network is of a lower order; depth changes the constant here, not the order.",
            "What stands behind it": "Construction (Vardi et al., Theorem 16, and the folding of a sum by tents).",
        }
    )


def sawtooth_sizes(page: Page) -> None:
    """Units that phi_k has, and units that shallower networks need at least."""
    page.section("The sawtooth: what a shallow network must pay")
    folds = list(range(1, 21))
    bounds = {
        f"at least, depth {layers + 1}": [(k, _least_units(2**k, layers)) for k in folds if k >= layers]
        for layers in (1, 2, 4)
    }
    figure = figures.lines(
        {"phi_k at depth k + 1: 2 k units": [(k, 2 * k) for k in folds], **bounds},
        x="k", y="hidden units", log_y=True, dashed=tuple(bounds),
    )  # fmt: skip
    page.figure(figure, alt="units of the sawtooth network by k, and lower bounds for three fixed depths")
    page.notes(
        {
            "What it shows": f"phi_20 has {2**20:,} linear pieces with 40 units at depth 21. At depth 2 every network "
            f"that equals it has at least {units_needed(2**20):,} units; at depth 3 at least "
            f"{_least_units(2**20, 2):,}, at depth 5 at least {_least_units(2**20, 4):,}.",
            "What it does not show": "Anything about approximation in the mean, or about functions of a bounded "
            "Lipschitz constant: phi_k is 2^k-Lipschitz.",
            "What stands behind it": "Solid: construction (Telgarsky). Dashed: proved, by counting pieces: widths "
            "p_i make at most the product of p_i + 1, so that with equal widths p >= 2^(k / H) - 1 for H hidden "
            "layers. Unequal widths of the same total make no more.",
        }
    )


def _least_units(pieces: int, layers: int) -> int:
    """The least total of widths whose product of p_i + 1 reaches the pieces."""
    low = max(layers, math.floor(layers * (pieces ** (1 / layers) - 1)) - layers)
    while most_pieces([low // layers + (i < low % layers) for i in range(layers)]) < pieces:
        low += 1
    return low


def theorem_18(page: Page, losses: Sequence[Loss]) -> None:
    """The bound on the hinge loss, and trained networks."""
    page.section("Theorem 18: a hinge loss that no such network beats")
    numbers = range(4, 49)
    bounds = {
        f"at least, width {p}": [(n, hinge_loss_bound(n, p)) for n in numbers if hinge_loss_bound(n, p) > 0]
        for p in (8, 16, 32)
    }
    trained = {"trained, width 8 (lowest of the seeds)": [(found.n, min(found.losses)) for found in losses]}
    figure = figures.lines({**bounds, **trained}, x="n", y="mean hinge loss on f_n", dashed=tuple(bounds))
    page.figure(figure, alt="lower bounds of the hinge loss by n for three widths, and losses of trained networks")
    first = next(n for n in numbers if hinge_loss_bound(n, 8) > 0)
    spread = "; ".join(
        f"n = {found.n}, depth {found.depth}: {min(found.losses):.3f} to {max(found.losses):.3f}, each ± at most "
        f"{max(found.errors):.3f}" + (f" (at least {found.bound:.3f} is proved)" if found.bound > 0 else "")
        for found in losses
    )
    least = min(losses, key=lambda found: min(found.losses))
    broken = [str(found.n) for found in losses if not found.kept]
    kept = f"Estimates for n = {', '.join(broken)} are" if broken else "No estimate is"
    page.notes(
        {
            "What it shows": f"Below n = {first} the bound for width 8 is not above 0 and says nothing. At n = 25 it "
            f"is {hinge_loss_bound(25, 8):.2f}, at n = 36 and width 16 {hinge_loss_bound(36, 16):.2f}. Trained "
            f"networks over {len(losses[0].losses)} seeds: {spread}. {kept} more than four standard errors below the "
            "proved bound.",
            "What it does not show": f"The lowest trained loss is {min(least.losses):.3f}, where always answering 0 "
            "has 1. Where training stays at 1, the gap to the bound may be the optimiser's: the bound says only that "
            "no choice of weights goes below it. Losses are estimates from 65,536 points, with a scale chosen on "
            "others, so that the lowest of several seeds may lie a little below a bound that all of them keep.",
            "What stands behind it": "Dashed: proved, Malach et al. (arXiv 2102.00434), Theorem 18, for depth up to "
            "sqrt(n). Points: best found in this budget.",
        }
    )


def accuracies(page: Page, rows: Sequence[Row]) -> None:
    """Accuracy by size of trained networks, with proved ceilings and the sizes of constructions."""
    page.section("Trained networks: accuracy by size")
    found = summaries(rows)
    panels = {target: [s for s in found if s.target == target] for target in dict.fromkeys(s.target for s in found)}
    ceilings = {target: ceilings_of(target, s) for target, s in panels.items() if target.startswith("sign f_")}
    figure = figures.accuracy_by_size(panels, ceilings=ceilings, exact={t: _exact(t) for t in panels})
    page.figure(
        figure,
        alt="accuracy by the number of units for six architectures, a panel for each target",
        caption="Line: median over seeds at the better learning rate. Band: lowest to highest seed. Dashed: proved "
        "ceiling. Star: a construction with the exact function at this size.",
    )
    page.table(
        ["target", *dict.fromkeys(s.architecture for s in found)],
        [[target, *(_least(rows, target, name) for name in dict.fromkeys(s.architecture for s in found))]
         for target in panels],
        caption="fewest units with which some network was right on every test point: best found in this budget",
    )  # fmt: skip
    below = [row for row in rows if row["target"].startswith("sign f_") and ceiling(row) < 1]
    kept = sum(row["accuracy"] <= ceiling(row) for row in below)
    kept_flows = ", ".join(
        f"{sum(share <= most for share, most in pairs)} of {len(pairs)} with N = {n}"
        for n, pairs in _flows_on_a_line(rows).items()
    )
    seeds, rates = len({row["seed"] for row in rows}), ", ".join(map(str, sorted({row["rate"] for row in rows})))
    page.notes(
        {
            "What it shows": f"What {rows[0]['steps']:,} steps of Adam on the whole population reached, from {seeds} "
            f"seeds at the best of the learning rates {rates}. The sizes of an ODE count the units of its field once, "
            f"though it is evaluated in every step. Of {len(below)} layered networks of the sign of the sawtooth that "
            f"have a ceiling below 1, {kept} are at or below it. Of the ODEs on a line, at or below the ceiling of "
            f"their flow are {kept_flows}.",
            "What it does not show": "That an architecture cannot do better: a line below 1 may be the optimiser's. "
            "Parities of bits are no obstruction for ODEs of dimension 2 or more (next sections), so that what an "
            "ODE lacks there is optimisation or width. A bend between sizes is no asymptotic.",
            "What stands behind it": "Lines: best found in this budget. Dashed ceilings: proved, by counting sign "
            "changes (pieces of depth 2; one threshold for the flow on a line, to which an ODE in coarse steps need "
            "not keep). Stars: constructions.",
        }
    )


def ceiling(row: Row) -> float:
    """The proved ceiling of the accuracy of a trained network on f_n, 1 where there is none."""
    n = int(row["target"].removeprefix("sign f_"))
    layers = {"depth 2": 1, "depth 3": 2, "depth 5": 4}.get(row["architecture"])
    return best_agreement(n, most_pieces([row["units"] // layers] * layers)) if layers else 1.0


def _flows_on_a_line(rows: Sequence[Row]) -> dict[int, list[tuple[float, float]]]:
    """(accuracy, ceiling of the flow) of every ODE on a line, by the number of steps of the solve."""
    found: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        if row["architecture"] == "ODE" and row["target"].startswith("sign f_"):
            most = best_agreement(int(row["target"].removeprefix("sign f_")), 1)
            for n, accuracy in row["by_steps"].items():
                found.setdefault(int(n), []).append((accuracy, most))
    return found


def ceilings_of(target: str, found: Sequence) -> figures.Series:
    """The ceilings that are drawn: of depth 2, and of the flow on a line."""
    n = int(target.removeprefix("sign f_"))
    units = sorted({s.units for s in found})
    return {
        "depth 2": [(m, best_agreement(n, m + 1)) for m in range(units[0], units[-1] + 1)],
        "ODE": [(units[0], best_agreement(n, 1)), (units[-1], best_agreement(n, 1))],
    }


def _exact(target: str) -> list[tuple[str, int]]:
    kind, _, rest = target.partition("_")
    if kind == "sign f":
        return [("exact, deep", 2 * int(rest))]
    if kind == "IP":
        return [("exact, depth 3", inner_product(int(rest)).hidden_units)]
    return [("exact, depth 2", int(target.split()[2]))] if target.startswith("parity") else []


def _least(rows: Sequence[Row], target: str, architecture: str) -> str:
    units = smallest([r for r in rows if r["target"] == target and r["architecture"] == architecture])
    return "none" if units is None else str(units)


def gradients(page: Page, findings: Findings) -> None:
    """The population gradient at initialisation by n."""
    page.section("What a network at initialisation sees of the target")
    figure = figures.lines(findings.norms, x="n", y="norm of the gradient, f_n", log_y=True)
    page.figure(figure, alt="norm of the population gradient by n for three depths, and of a sampled gradient")
    exact = {name: points for name, points in findings.norms.items() if "samples" not in name}
    sampled = next(points for name, points in findings.norms.items() if "samples" in name)
    slopes = ", ".join(f"{slope(points, 8):.2f} ({name})" for name, points in exact.items())
    page.notes(
        {
            "What it shows": f"The exact norm of the gradient of E[f_n(x) N(x)] at initialisation ({SIZE} units, "
            f"median over seeds). From n = 8 its logarithm to base 2 changes by {slopes} for each n. The gradient of "
            f"the mean over 10,000 drawn points is {sampled[-1][1]:.1e} at n = {sampled[-1][0]}, where the exact one "
            f"is {exact['depth 2'][-1][1]:.1e}: what is left there is noise of sampling.",
            "What it does not show": "That training fails: it is the first step, of exact gradient descent, and not "
            "of Adam, which divides a gradient by its own size.",
            "What stands behind it": "Computed exactly but for rounding: between the bends of the network its "
            "derivatives are linear in x and are integrated in closed form. That this starting point is hopeless for "
            "gradient descent follows, for targets that shallow networks do not weakly approximate, from Malach et "
            "al., Theorem 7 and Corollaries 9 and 11; no slope here proves their hypotheses.",
        }
    )
    figure = figures.lines(findings.parity_norms, x="bits n", y="norm of the gradient, parity", log_y=True, height=3.2)
    page.figure(figure, alt="norm of the population gradient for the parity of n bits, by n")
    slopes = ", ".join(f"{slope(points, 4):.2f} ({name})" for name, points in findings.parity_norms.items())
    page.text(
        "The same for the parity of n signs, over all 2^n vertices: from n = 4 the logarithm to base 2 changes by "
        f"{slopes} for each n."
    )


def slope(points: Sequence[tuple[int, float]], start: int) -> float:
    """The slope of the logarithm to base 2 by least squares, from ``start``."""
    x, y = zip(*((n, math.log2(value)) for n, value in points if n >= start), strict=True)
    return float(np.polyfit(x, y, 1)[0])


def features(page: Page, found: Sequence[Explained]) -> None:
    """Fixed features against parities."""
    page.section("Fixed features and parities")
    series = {}
    names = list(dict.fromkeys(e.features for e in found))
    for name in names:
        series[f"{name}: parity of all n"] = [(e.n, e.full) for e in found if e.features == name]
        series[f"{name}: mean of all parities"] = [(e.n, e.mean) for e in found if e.features == name]
    dashed = [name for name in series if name.endswith("parities")]
    figure = figures.lines(series, x="bits n", y="explained variance", log_y=True, dashed=dashed)
    page.figure(figure, alt="explained variance of the parity by n for random features and neural tangents")
    last = [e for e in found if e.n == found[-1].n]
    page.notes(
        {
            "What it shows": f"With n = {last[0].n}: "
            + "; ".join(
                f"{e.features} explain {100 * e.full:.1f} % of the parity of all n, and {100 * e.mean:.1f} % of the "
                "2^n parities in the mean"
                for e in last
            )
            + ". A network of depth 2 with n trained units has the parity exactly.",
            "What it does not show": "How a network does that moves its features. A kernel that is built for one "
            "parity explains that one. Medians over seeds.",
            "What stands behind it": "Dashed: proved, for every set of fixed features: explained variances of an "
            "orthonormal basis add up to the dimension of the span, so that the mean is that dimension over 2^n. "
            "Points: computed by projection on all vertices. The asymptotic statement is Malach et al., Theorem 19.",
        }
    )
