"""Imports an extension that was built with CUDA, on a machine that need not have a GPU, and says what it has.

``make cuda-extension`` runs it. It fails if an op is not registered for CUDA, or if anything but a missing device keeps
the backend from serving, such as an extension without CUDA.
"""

import torch

import contnet_fast as cf

OPS = (
    "rk_combine_cuda",
    "rk_combine_error_cuda",
    "rk_combine_compensated_cuda",
    "conv_solve_cuda",
    "conv_solve_backward_cuda",
    "diffusion_solve_cuda",
    "diffusion_solve_backward_cuda",
    "graph_attention_cuda",
    "graph_attention_backward_cuda",
)

info = cf.info()
print(info)
for op in OPS:
    for key in ("CUDA", "Meta"):
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"contnet_fast::{op}", key):
            raise SystemExit(f"contnet_fast::{op} is not registered under {key}")
    print(f"op {op:<30} registered under CUDA and Meta")
if not torch.cuda.is_available() and "sees no CUDA device" not in info.backends["cuda"]:
    raise SystemExit(f"the backend has another reason than the missing device: {info.backends['cuda']}")
