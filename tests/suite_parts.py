"""Parts of the suite by name: ``make test-quick``, and what ``make matrix`` runs. Each file is in one, or in the rest.

python tests/suite_parts.py quick
python tests/suite_parts.py compile op -x     # what follows the names goes to pytest
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PARTS = {  # files without test_ and .py
    "quick": "tableaus timegrid bases testing reference backends ops block transform models odeint cpu_smoke",
    "compile": "compile compile_numbers odeint_compile tracing",
    "op": "pytrees cpu_conv_ops func_transforms compensated",
    "block": (
        "cpu_conv_blocks published published_times convergence statistics_constants batch_norm_tools carry wrapped "
        "recomputation recomputation_changes field_hooks field_classes sharded_fields"
    ),
    "cpp": "cpu_backend cpu_conv cpu_conv_gradients rounding",
    "odeint": (
        "odeint_parity odeint_transforms odeint_errors odeint_event odeint_failures odeint_checkpoint "
        "odeint_last_steps odeint_memory odeint_packed odeint_batched odeint_device odeint_cycles "
        "odeint_carried fields_in_odeint"
    ),
    "triton": "triton_combine triton_conv tune triton_aot",
    "training": "training_gate gpu_script train_cifar distributed training",
    "build": "build wheel package",
}
REST = "rest"  # what is in no other part


def one_of(kind: str, known: Iterable[str]) -> Callable[[str], str]:
    """A check of names.

    Raises (the check):
        ValueError: what was got, what is accepted and what is nearest.
    """
    names = list(known)

    def check(name: str) -> str:
        if name in names:
            return name
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{kind}: got {name!r}, accepted: {', '.join(names)}{hint}")

    return check


def files(part: str) -> list[str]:
    """The test files of a part."""
    if part == REST:
        named = {file for other in PARTS for file in files(other)}
        return sorted(path.name for path in TESTS.glob("test_*.py") if path.name not in named)
    return [f"test_{name}.py" for name in PARTS[part].split()]


def main(words: list[str]) -> None:
    """Run pytest in place of this process."""
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    names, options = words[:first], words[first:]
    try:
        chosen = [
            str(TESTS / file) for name in map(one_of("part", [*PARTS, REST]), names or [""]) for file in files(name)
        ]
    except ValueError as error:
        sys.exit(str(error))
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *chosen, *options])


if __name__ == "__main__":
    main(sys.argv[1:])
