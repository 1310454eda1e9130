"""The names of number formats and memory layouts in cases and rows."""

from __future__ import annotations

import torch

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
