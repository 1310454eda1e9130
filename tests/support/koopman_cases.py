"""Trajectories whose spectrum PyDMD is asked for; the table of its answers is made by

    python tests/support/koopman_cases.py > tests/analysis/pydmd.json

with PyDMD installed.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

# rank 0: no truncation. Where the snapshots have fewer dimensions than that, both are told how many
CASES: dict[str, dict[str, Any]] = {
    "linear": {"size": 12, "count": 25, "rates": (1.0, 0.97, 0.8, -0.5), "noise": 0.0, "rank": 4, "delays": 1},
    "noisy": {"size": 12, "count": 10, "rates": (1.0, 0.97, 0.8), "noise": 1e-2, "rank": 0, "delays": 1},
    "growing": {"size": 12, "count": 10, "rates": (1.1, 0.9), "noise": 1e-3, "rank": 0, "delays": 1},
    "delays": {"size": 2, "count": 30, "rates": (0.99, 0.9, 0.7, 0.2), "noise": 0.0, "rank": 4, "delays": 3},
    "noisy delays": {"size": 12, "count": 14, "rates": (1.0, 0.9), "noise": 1e-2, "rank": 0, "delays": 3},
}


def snapshots(size: int, count: int, rates: tuple[float, ...], noise: float, **_: Any) -> np.ndarray:
    """A sum of modes, float64 [count, size]; the same in every release of NumPy."""
    draw = np.random.RandomState(7)
    modes = draw.standard_normal((len(rates), size))
    powers = np.asarray(rates) ** np.arange(count)[:, None]
    return powers @ modes + noise * draw.standard_normal((count, size))


def asked(rank: int, delays: int, data: np.ndarray) -> dict[str, Any]:
    """PyDMD's eigenvalues [r] and, without delays, its modes [p, r], each number as a pair.

    Its amplitudes are no oracle: those of ``opt=True`` miss snapshots of an exactly linear map by a tenth.
    """
    from pydmd import DMD, HankelDMD

    found = DMD(svd_rank=rank or -1) if delays == 1 else HankelDMD(svd_rank=rank or -1, d=delays)
    found.fit(data.T)
    answer = {"eigenvalues": found.eigs}
    if delays == 1:
        answer["modes"] = found.modes
    return {name: np.stack([values.real, values.imag], -1).tolist() for name, values in answer.items()}


if __name__ == "__main__":
    table = {name: asked(case["rank"], case["delays"], snapshots(**case)) for name, case in CASES.items()}
    json.dump(table, sys.stdout, separators=(",\n", ": "))
    print()
