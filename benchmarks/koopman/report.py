"""Tables, sentences and pictures of the studies in docs/koopman.md, from committed rows.

python -m benchmarks.koopman.report           # prints them
python -m benchmarks.koopman.report --write   # puts them into the page, and draws the pictures
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from benchmarks.common.rows import RESULTS, ROOT, read
from benchmarks.koopman import depth, epochs, others, outcomes, pruning
from benchmarks.koopman.tasks import DATA, Row
from contnet_fast.analysis.crossed import effect
from contnet_fast.analysis.koopman import judging

ROWS = RESULTS / "koopman.jsonl"
PAGE = ROOT / "docs" / "koopman.md"
IMAGES = ROOT / "docs" / "images"
BEGIN, END = "<!-- benchmarks.koopman.report: begin -->", "<!-- benchmarks.koopman.report: end -->"
NAMES = {"digits": "digits", "cifar10": "CIFAR-10"}
CHOSEN = {"rates": "oscillation", "starts": "forecast"}  # on other runs, before these were made
PARTS = {"rates": "learning rates", "starts": "first weights"}
LEVEL = 0.05


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return mean and standard deviation."""
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}" if len(values) > 1 else f"{values[0]:.{digits}f}"


def percent(share: judging.Estimate) -> str:
    """Return a share and its interval in %."""
    return f"{100 * share.value:.0f} % ({100 * share.low:.0f} to {100 * share.high:.0f})"


def table(head: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [list(head), ["---"] * len(head), *(list(map(str, line)) for line in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of(rows: Sequence[Row], part: str, data: str | None = None) -> list[Row]:
    """Return the rows of a part, without references."""
    return [r for r in rows if r.get("part") == part and data in (None, r["data"]) and r["run"] >= 0]


# ---- how trainings end


def ended(rows: Sequence[Row], part: str, data: str) -> tuple[list[Row], np.ndarray]:
    """Return the runs of a part, and which ended badly."""
    found = of(rows, part, data)
    references = [r for r in rows if r.get("part") == part and r["data"] == data and r["run"] < 0]
    return found, np.asarray(outcomes.labels(found, references))


def aurocs(found: Sequence[Row], bad: np.ndarray) -> dict[str, list[judging.Estimate]]:
    """Return the AUROC of each score at each time."""
    told = {}
    for score in (*outcomes.KOOPMAN, *outcomes.PLAIN):
        values = [np.asarray([r["scores"][i][score] for r in found]) for i in range(len(outcomes.TIMES))]
        told[score] = [judging.bootstrap(lambda k, v=v: judging.auroc(v[k], bad[k]), bad) for v in values]
    return told


def warnings(rows: Sequence[Row], part: str, data: str) -> str:
    """Return the tables of a part, and what they say."""
    found, bad = ended(rows, part, data)
    told = aurocs(found, bad)
    kinds = {**dict.fromkeys(outcomes.KOOPMAN, "Koopman"), **dict.fromkeys(outcomes.PLAIN, "plain")}
    body = []
    for score, estimates in told.items():
        judged = judging.judge(
            [[s[score] for s in r["scores"]] for r in found], bad.tolist(), times=outcomes.TIMES,
            end=[r["stopped"] for r in found], at=0,
        )  # fmt: skip
        lead = "-" if math.isnan(judged.lead.value) else f"{judged.lead.value:.0f}"
        share = (
            f"{100 * judged.detected.value:.0f} % ({100 * judged.detected.low:.0f} to {100 * judged.detected.high:.0f})"
        )
        false = judged.false_alarms
        false_share = f"{100 * false.value:.0f} % ({100 * false.low:.0f} to {100 * false.high:.0f})"
        body.append([f"{score} ({kinds[score]})", *map(str, estimates), share, false_share, lead])
    head = [
        "score",
        *(f"AUROC after {t} steps" for t in outcomes.TIMES),
        "bad runs warned of",
        "false alarms",
        "lead, steps",
    ]
    lines = [f"**{NAMES[data]}, drawn {PARTS[part]}**: {len(found)} trainings, of which {int(bad.sum())} ended badly."]
    lines += ["", table(head, body), ""]
    lines += [f"- {sentence}" for sentence in contests(found, bad, part, told)]
    lines += [f"- {rule(found, bad, verdict)}" for verdict in ("diverging", "bad start")]
    return "\n".join(lines)


def contests(
    found: Sequence[Row], bad: np.ndarray, part: str, told: dict[str, list[judging.Estimate]]
) -> list[str]:  # fmt: skip
    """Return for each time whether the Koopman score beats the best plain one, by paired resampling."""
    score, sentences = CHOSEN[part], []
    for i, time in enumerate(outcomes.TIMES):
        best = max(outcomes.PLAIN, key=lambda name: told[name][i].value)
        ours, theirs = (np.asarray([r["scores"][i][name] for r in found]) for name in (score, best))
        gain = judging.bootstrap(
            lambda k, a=ours, b=theirs: judging.auroc(a[k], bad[k]) - judging.auroc(b[k], bad[k]), bad
        )
        verdict = "better than" if gain.low > 0 else "worse than" if gain.high < 0 else "not told apart from"
        sentences.append(
            f"After {time} steps the {score} is {verdict} the best plain score, the {best}: difference of AUROC "
            f"{gain.value:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})."
        )
    return sentences


def rule(found: Sequence[Row], bad: np.ndarray, verdict: str) -> str:
    """Return how often the rule of an alarm, the same verdict at two times in a row, was right."""
    verdicts = [[s["verdict"] for s in row["scores"]] for row in found]
    marks = np.asarray([any(a == b == verdict for a, b in pairwise(told)) for told in verdicts])
    return (
        f'The rule of `Alarm` with "{verdict}" (twice in a row) warns of {int((marks & bad).sum())} of '
        f"{int(bad.sum())} bad trainings, and falsely of {int((marks & ~bad).sum())} of {int((~bad).sum())} good ones."
    )


def left(rows: Sequence[Row]) -> str:
    """Return how well the epochs left were predicted."""
    body, sentences = [], []
    for kind in epochs.KINDS:
        found = [r[kind] for r in of(rows, "epochs")]
        told = [r for r in found if r["left"] is not None]
        inside = sum(r["interval"][0] <= r["truth"] <= r["interval"][1] for r in told)
        errors = [abs(r["left"] - r["truth"]) / max(r["truth"], 1) for r in told]
        truth = f"{min(r['truth'] for r in found)} to {max(r['truth'] for r in found)}"
        body.append([kind, len(found), truth, len(told), f"{100 * mean(errors):.0f} %" if errors else "-", inside])
        sentences.append(
            f"- With {kind}, {len(told)} of {len(found)} trainings get a prediction; {inside} of the intervals hold "
            "the truth."
        )
    head = ["steps with", "trainings", "epochs needed", "predicted", "mean error", "interval holds"]
    return f"{table(head, body)}\n\n" + "\n".join(sentences)


# ---- pruning


def columns(found: Sequence[Row], *keys: str) -> list[tuple[float, ...]]:
    """Return the values of all runs at each sparsity."""
    lists: list[Sequence[float]] = []
    for row in found:
        inner = row
        for key in keys:
            inner = inner[key]
        lists.append(inner)  # type: ignore[arg-type]
    return list(zip(*lists, strict=True))


def gap(found: Sequence[Row], read_one: Callable[[Row, str], Sequence[float]], other: str) -> tuple[str, str]:
    """Return the difference Koopman less another ranking, averaged over sparsities and paired by seed, and in words."""
    gain = effect([100 * (mean(read_one(r, "koopman")) - mean(read_one(r, other))) for r in found])
    words = "better than" if gain.low > 0 else "worse than" if gain.high < 0 else "not told apart from"
    return str(gain), words


def pruned(rows: Sequence[Row], data: str) -> str:
    """Return the tables of pruning, and what they say."""
    found = of(rows, "pruning", data)
    lines: list[str] = []
    for when in ("early", "late"):
        whole = [100 * r["at once"][when]["unpruned"] for r in found]
        body = [
            [
                name,
                *(spread([100 * r["at once"][when][name][i] for r in found]) for i in range(len(pruning.SPARSITIES))),
            ]
            for name in pruning.RANKINGS
        ]
        step = found[0]["early"] if when == "early" else found[0]["steps"]
        lines += [f"**{NAMES[data]}, {when}** (after {step} steps; unpruned {spread(whole)} %), pruned at once:", ""]
        lines += [table(["ranking", *(f"{100 * s:.0f} % zero" for s in pruning.SPARSITIES)], body), ""]
    body = [
        [name, *(spread([100 * value for value in values]) for values in columns(found, "trained on", name))]
        for name in pruning.RANKINGS
    ]
    lines += [f"**{NAMES[data]}, pruned early and trained on** to the end:", ""]
    lines += [table(["ranking", *(f"{100 * s:.0f} % zero" for s in pruning.TRAINED_ON)], body), ""]
    settings: dict[str, Callable[[Row, str], Sequence[float]]] = {
        "early, at once": lambda r, name: r["at once"]["early"][name],
        "early, trained on": lambda r, name: r["trained on"][name],
        "late, at once": lambda r, name: r["at once"]["late"][name],
    }
    for what, read_one in settings.items():
        told = [(*gap(found, read_one, other), other) for other in ("magnitude", "gradient", "random")]
        parts = [f"{words} {other} ({value} points)" for value, words, other in told]
        lines.append(f"- {what[0].upper()}{what[1:]}: the Koopman ranking is {', '.join(parts)}.")
    return "\n".join(lines)


# ---- depth


def depths(rows: Sequence[Row]) -> str:
    """Return the table of depth, and what it says."""
    body, sentences = [], []
    for data in DATA:
        found = of(rows, "depth", data)
        for cell in depth.CELLS:
            some = [r for r in found if (r["scheme"], r["schedule"]) == cell]
            if not some:
                continue
            proposed = ", ".join("none" if r["proposed"][0] is None else str(r["proposed"][0]) for r in some)
            body.append([
                f"{NAMES[data]}, {cell[0]}, {cell[1]}", spread([100 * r["accuracy"] for r in some]), proposed,
                ", ".join(str(r["needed"][0]) for r in some), ", ".join(str(r["proposed"][1]) for r in some),
                ", ".join(str(r["needed"][1]) for r in some),
            ])  # fmt: skip
        if found:
            sentences += [
                f"- {NAMES[data]}: {text}" for text in (holding(found, "steps", "N"), holding(found, "basis", "K"))
            ]
    head = ["networks", "accuracy, %", "N proposed", "N needed", "K proposed", "K needed"]
    return f"{table(head, body)}\n\n" + "\n".join(sentences)


def holding(found: Sequence[Row], part: str, name: str) -> str:
    """Return how many proposals hold, how many are less than 8, and how often the blind rule of a half holds."""
    place = 0 if part == "steps" else 1
    made = [r for r in found if r["proposed"][place] is not None]
    held = [r for r in made if r["accuracies"][part] >= r["accuracy"] - depth.ALLOWED]
    smaller = [r for r in made if r["proposed"][place] < 8]
    useful = [r for r in smaller if r in held]
    exact = sum(r["proposed"][place] == r["needed"][place] for r in made)
    blind = sum(r["control"][part] >= r["accuracy"] - depth.ALLOWED for r in found)
    return (
        f"{name} is proposed for {len(made)} of {len(found)} networks and keeps the accuracy in {len(held)}; {exact} "
        f"are what is needed. {len(smaller)} are below 8, and {len(useful)} of these hold. Half of {name}, blindly, "
        f"holds in {blind} of {len(found)}."
    )


# ---- the smaller studies


def jumps(rows: Sequence[Row]) -> str:
    """Return the table of jumps, and what it says."""
    body, sentences = [], []
    for kind in others.KINDS:
        found = [r[kind] for r in of(rows, "jumps")]
        tried, kept = sum(r["tried"] for r in found), sum(r["kept"] for r in found)
        saved, net = [r["saved"] for r in found], [r["net"] for r in found]
        body.append([kind, tried, kept, *(spread(v, 0) for v in (saved, [r["cost"] for r in found], net))])
        gain = effect(net)
        words = (
            "saves steps" if gain.low > 0 else "costs more than it saves" if gain.high < 0 else "is not shown to pay"
        )
        sentences.append(
            f"- With {kind}, {kept} of {tried} jumps are kept; net of cost, extrapolated training {words} "
            f"({gain.mean:+.0f} steps of {others.JUMP_STEPS}, {gain.low:+.0f} to {gain.high:+.0f})."
        )
    head = ["steps with", "jumps tried", "kept", "steps saved", "cost in steps", "net"]
    return f"{table(head, body)}\n\n" + "\n".join(sentences)


def signals(rows: Sequence[Row]) -> str:
    """Return the table of losses with Sobolev norms, and what it says."""
    found = of(rows, "signals")
    body, sentences = [], []
    for noise in others.NOISES:
        for what in ("last", "best"):
            cells = [spread([r[f"{noise:g}/{s:g}"][what] for r in found], 2) for s in others.ORDERS]
            body.append([f"{noise:g}", "at the end" if what == "last" else "at the best time", *cells])
            gains = {
                s: effect([r[f"{noise:g}/0"][what] - r[f"{noise:g}/{s:g}"][what] for r in found])
                for s in others.ORDERS[1:]
            }
            best = max(gains, key=lambda s: gains[s].mean)
            gain = gains[best]
            words = "lowers" if gain.low > 0 else "does not lower"
            sentences.append(
                f"- Noise {noise:g}, {body[-1][1]}: order {best:g} {words} the error of order 0 by {gain.mean:.2f} "
                f"({gain.low:+.2f} to {gain.high:+.2f})."
            )
    head = ["noise", "error", *(f"order {s:g}" + (" (mean squares)" if s == 0 else "") for s in others.ORDERS)]
    return f"{table(head, body)}\n\n" + "\n".join(sentences)


def comparisons(rows: Sequence[Row]) -> str:
    """Return the table of equivalent dynamics, and what it says."""
    found = of(rows, "comparisons")
    body = []
    for name in others.SETS:
        p = [r[name]["p"] for r in found]
        told = sum(value <= LEVEL for value in p)
        apart = f"{mean(r[name]['between'] for r in found):.2f} / {mean(r[name]['within'] for r in found):.2f}"
        body.append([name, apart, ", ".join(f"{value:.3f}" for value in sorted(p)), f"{told} of {len(p)}"])
    return table(["second set", "distance between / within", "p-values", f"p up to {LEVEL}"], body)


def sections(rows: Sequence[Row]) -> str:
    """Return everything that stands between the marks."""
    heads = [r["header"] for r in rows if "header" in r]
    commits, dates = (", ".join(sorted({h[k][:n] for h in heads})) for k, n in (("commit", 8), ("date", 10)))
    minutes = sum(r["seconds"] for r in rows if "part" in r) / 60
    parts = [
        f"Intel Xeon with AMX, 2 cores, of which one is used; torch {heads[-1]['torch']}; commit {commits}; {dates}; "
        f"{minutes:.0f} minutes in all.",
        "### Stable and unstable rates, good and bad starts",
    ]
    parts += [warnings(rows, part, data) for part in PARTS for data in DATA if of(rows, part, data)]
    parts += ["![AUROC by number of steps seen](images/koopman-warnings.png)", "### Epochs left", left(rows)]
    parts += ["### Pruning", *(pruned(rows, data) for data in DATA if of(rows, "pruning", data))]
    parts += ["![accuracy by sparsity](images/koopman-pruning.png)", "### Depth", depths(rows)]
    parts += ["### Jumps", jumps(rows), "### Losses with negative Sobolev norms", signals(rows)]
    parts += ["### Equivalent dynamics", comparisons(rows)]
    return "\n\n".join(parts) + "\n"


def page(given: str, rows: Sequence[Row]) -> str:
    """Return the page with what stands between the marks made anew."""
    before, rest = given.split(BEGIN)
    return f"{before}{BEGIN}\n{sections(rows)}{END}{rest.split(END)[1]}"


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Draw the pictures of the page."""
    from benchmarks.koopman.pictures import draw_pruning, draw_warnings

    told = {(part, data): aurocs(*ended(rows, part, data)) for part in PARTS for data in DATA if of(rows, part, data)}
    draw_warnings(folder / "koopman-warnings.png", told)
    draw_pruning(folder / "koopman-pruning.png", {data: of(rows, "pruning", data) for data in DATA})


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), read(ROWS)), encoding="utf-8")
        draw(read(ROWS), IMAGES)
    elif sys.argv[1:]:
        sys.exit(f"got {' '.join(sys.argv[1:])}, accepted: --write or nothing")
    else:
        print(sections(read(ROWS)), end="")
