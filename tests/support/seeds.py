"""Seeds of PyTorch's generators, shifted by what ``--seed`` says, in processes that tests start too."""

from __future__ import annotations

import os

import torch

SHIFT = "CONTNET_FAST_TEST_SEED"  # in the environment, which such processes have from the one that runs the tests


def shift_seeds() -> None:
    """Add the number in the environment, if there is one, to every seed that is set from now on."""
    by = int(os.environ.get(SHIFT, "0"))
    if not by:
        return
    seed_all = torch.manual_seed

    class Generator(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(seed + by)

    torch.manual_seed = lambda seed: seed_all(seed + by)
    torch.Generator = Generator
