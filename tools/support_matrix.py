"""Which backend serves which block: the answers of ``check()`` as tables, in docs/generated/support.md.

    python -m tools.support_matrix            # writes the page
    python -m tools.support_matrix --check    # exit status 1 if the page is not what would be written

The tables do not depend on this machine: every backend is asked as if it were built and a GPU of the named chip were
there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import contnet_fast as cf
from contnet_fast import chips
from contnet_fast.backends import cpu, cuda, triton
from contnet_fast.backends.registry import REGISTRY

PAGE = Path(__file__).resolve().parents[1] / "docs" / "generated" / "support.md"
NORMS = ("none", "batch", "group", "layer")
PASSES = {"inference": (False, False), "gradients, norm in eval()": (False, True), "training": (True, True)}
STATES = {
    "float64": (torch.float64, torch.float64),
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "float32, autocast to bfloat16": (torch.float32, torch.bfloat16),
}
CHIPS = {"sm_80 (A100)": (8, 0), "sm_90 (H100, H200)": (9, 0), "sm_100 (B200)": (10, 0)}
SIZES = ((16, 32), (32, 16), (64, 8), (64, 32), (128, 16), (256, 8), (512, 8), (12, 32))
DEVICE = {"reference": "cpu", "cpu": "cpu", "triton": "cuda", "cuda": "cuda"}
SHAPE = (32, 16, 32, 32)


@contextmanager
def everything_built(chip: tuple[int, int] = (9, 0)) -> Iterator[None]:
    """Backends answer as where the extension and triton are built, beside a GPU of this compute capability."""
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(cpu, _reason=None))
        stack.enter_context(patch.multiple(triton, INSTALLED=True, INTERPRETED=False))
        stack.enter_context(patch.multiple(cuda, _reason=None))
        built: dict[str, Any] = {"CHIPS": ("8.0", "9.0a", "10.0a", "10.0+PTX")}
        stack.enter_context(patch.multiple(chips, capability=lambda *_: chip, **built))
        yield


def problem(
    scheme: str = "rk4_classic", norm: str = "group", *, training: bool = False, gradients: bool = False
) -> Any:
    """The facts of a block with 16 channels in float32, as the block itself states them."""
    field = cf.nn.ConvField(SHAPE[1], n_basis=4, order="pre", norm=norm)
    block = cf.nn.ContinuousBlock(field, scheme=scheme, n_steps=4).train(training)
    with torch.set_grad_enabled(gradients), cf.use_backend("reference"):
        plan = cf.explain(block, torch.empty(SHAPE))
    return plan.units[0][1].problem


class Reasons:
    """Numbers for sentences, in the order in which they come."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def mark(self, reasons: Iterable[str]) -> str:
        """What stands in a table for these reasons."""
        return ", ".join(str(self.numbers.setdefault(reason, len(self.numbers) + 1)) for reason in reasons)

    def lines(self) -> list[str]:
        return [f"{number}. {reason}" for reason, number in self.numbers.items()]


def general(reasons: tuple[str, ...], asked: Any) -> list[str]:
    """Reasons without the numbers of one case, so that those of several are one sentence."""
    dtypes = {str(asked.dtype), str(asked.compute_dtype)}
    found = []
    for reason in reasons:
        for dtype in sorted(dtypes, key=len, reverse=True):
            reason = reason.replace(dtype, "this dtype") if reason.startswith(("dtype", "products")) else reason
        found.append(reason.replace("dtype this dtype", "this dtype"))
    return found


def cell(backend: str, level: str, problems: dict[str, Any], reasons: Reasons) -> str:
    """ "yes", or the numbers of the reasons against all schemes; if there are none, the schemes that are refused."""
    against: dict[str, list[str]] = {}
    for scheme, asked in problems.items():
        here = replace(asked, device=torch.device(DEVICE[backend]))
        against[scheme] = general(REGISTRY[backend].check(here, level), here)
    shared = [reason for reason in next(iter(against.values())) if all(reason in found for found in against.values())]
    if shared:
        return f"no ({reasons.mark(shared)})"
    refused = [f"not {scheme} ({reasons.mark(found)})" for scheme, found in against.items() if found]
    return ", ".join(["yes", *refused])


def table(head: Iterable[str], body: Iterable[Iterable[str]]) -> list[str]:
    rows = [list(head), *map(list, body)]
    rows.insert(1, ["---"] * len(rows[0]))
    return [f"| {' | '.join(row)} |" for row in rows]


def combinations(reasons: Reasons) -> list[str]:
    """Scheme x norm x level x backend x dtype of one block."""
    served = [(backend, level) for backend in REGISTRY for level in REGISTRY[backend].levels]
    served.sort(key=lambda pair: (list(DEVICE).index(pair[0]), REGISTRY[pair[0]].levels.index(pair[1])))
    lines: list[str] = []
    for title, (training, gradients) in PASSES.items():
        body = []
        for norm in NORMS:
            if title.startswith("gradients") and norm != "batch":
                continue  # without statistics of the batch nothing differs from training
            described = {s: problem(s, norm, training=training, gradients=gradients) for s in cf.SCHEMES}
            for words, (dtype, compute) in STATES.items():
                asked = {s: replace(p, dtype=dtype, compute_dtype=compute) for s, p in described.items()}
                body.append([norm, words, *(cell(*pair, asked, reasons) for pair in served)])
        heads = ("norm", "state", *(f"`{backend}:{level}`" for backend, level in served))
        lines += [f"### {title[0].upper()}{title[1:]}", "", *table(heads, body), ""]
    return lines


def sizes(reasons: Reasons) -> list[str]:
    """Levels of the GPU backends by channels and side, chip and pass."""
    lines: list[str] = []
    described = {
        ("stage", "training"): problem(norm="batch", training=True, gradients=True),
        ("solve", "inference"): problem(),
        ("solve", "training"): problem(training=True, gradients=True),
    }
    for chip, capability in CHIPS.items():
        body = []
        with everything_built(capability):
            for channels, side in SIZES:
                row = [f"{channels} channels, {side}x{side}"]
                for backend in ("triton", "cuda"):
                    for (level, _), asked in described.items():
                        facts = asked.facts._replace(width=channels)
                        shaped = replace(asked, shape=(SHAPE[0], channels, side, side), facts=facts)
                        by_dtype = []
                        for words in ("bfloat16", "float32"):
                            dtype, compute = STATES[words]
                            one = {"rk4_classic": replace(shaped, dtype=dtype, compute_dtype=compute)}
                            by_dtype.append((words, cell(backend, level, one, reasons)))
                        answers = {answer for _, answer in by_dtype}
                        row.append(answers.pop() if len(answers) == 1 else "; ".join(f"{w} {a}" for w, a in by_dtype))
                body.append(row)
        heads = [f"`{b}:{level}`, {what}" for b in ("triton", "cuda") for level, what in described]
        lines += [f"### {chip}", "", *table(("block", *heads), body), ""]
    return lines


def page() -> str:
    """The whole page."""
    reasons = Reasons()
    with everything_built():
        first = combinations(reasons)
    second = sizes(reasons)
    lines = [
        "# Which backend serves which block",
        "",
        "Written by `python -m tools.support_matrix` from the answers of each backend's `check()`; a test holds it to",
        "them. Every backend is asked as if it were built, beside a GPU of the named chip. What ran where is",
        "another question: [status](../status.md). For your network and your machine ask `cf.explain(net, x)`.",
        "",
        f'"yes" holds for every basis and all {len(cf.SCHEMES)} schemes: {", ".join(cf.SCHEMES)}.',
        "Numbers are the [reasons](#reasons) against.",
        "",
        "## By norm and dtype",
        "",
        f"{SHAPE[1]} channels on {SHAPE[0]} maps of {SHAPE[2]}x{SHAPE[3]}, N = 4 steps; the GPU backends on sm_90.",
        "",
        *first,
        "## By size",
        "",
        f"Batch {SHAPE[0]}, `rk4_classic`, in bfloat16 and float32.",
        "Level `stage` has batch norm, level `solve` group norm.",
        "",
        *second,
        "## Reasons",
        "",
        *reasons.lines(),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if the page is out of date")
    asked = parser.parse_args()
    text = page()
    fresh = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
    if not asked.check and not fresh:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
    print(f"{PAGE.name}: {'as it should be' if fresh else 'out of date' if asked.check else 'written'}")
    return 1 if asked.check and not fresh else 0


if __name__ == "__main__":
    sys.exit(main())
