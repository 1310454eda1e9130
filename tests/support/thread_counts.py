"""Results by the number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def by_threads(run: Callable[[], Any], counts: Sequence[int] = (1, 2, 3)) -> list[Any]:
    """What ``run`` returns with each number of PyTorch's threads, which are those of before afterwards."""
    before, results = torch.get_num_threads(), []
    try:
        for count in counts:
            torch.set_num_threads(count)
            results.append(run())
    finally:
        torch.set_num_threads(before)
    return results
