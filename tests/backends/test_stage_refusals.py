"""Level stage of the CUDA kernels: Python, which a compiler may ask with symbolic sizes, refuses what C++ refuses."""

from __future__ import annotations

from itertools import product

import problems
import pytest

from contnet_fast import extension
from contnet_fast.fields.conv.cuda import CudaConv

pytestmark = pytest.mark.skipif(extension.module is None, reason="the C++ extension is not built")
CHANNELS = (0, 1, 4, 7, 8, 12, 16, 64, 250, 256, 264, 512)
MAPS = ((1, 1, 1), (128, 32, 32), (2**21, 32, 32), (2**21 - 1, 32, 32), (2**15, 2**8, 2**8), (2**31 - 1, 1, 1))


@pytest.mark.parametrize("sample", [False, True])
def test_both_languages_refuse_the_same_maps(sample):
    check, different = CudaConv().check, []
    for channels, (batch, height, width) in product(CHANNELS, MAPS):
        norm = "group" if sample else "batch"
        asked = problems.problem(op="conv_solve", norm=norm, coupled=not sample, shape=(batch, channels, height, width))
        said = extension.module.stage_refusal(batch=batch, channels=channels, height=height, width=width, sample=sample)
        if bool(check(asked, "stage")) != (said is not None):
            different.append((batch, channels, height, width, said))
    assert not different
