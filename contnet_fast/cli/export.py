"""``contnet-fast export``: a run's network, or a model that ``choose`` wrote, in a file that serves it."""

from __future__ import annotations

import argparse

from .arguments import path

HELP = "write a run's network, or a model that choose wrote, into a file that serves it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run_folder", metavar="RUN_OR_MODEL", type=path, help="folder of a run, or of a model")
    parser.add_argument(
        "--format", required=True, help="pt2 (torch.export), aoti (AOTInductor), onnx, or state (safetensors)"
    )
    parser.add_argument(
        "--ops", help="fused: needs the library of our ops where it is loaded; portable: PyTorch's own (onnx: always)"
    )
    parser.add_argument("--checkpoint", default="best", help="best or last")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", metavar="FILE", type=path, help="default: RUN_OR_MODEL/model.<suffix of the format>")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from ..deploy.files import FORMATS, SUFFIXES
    from ..errors import check_choice
    from ..training import open_run
    from ..training.export import export_run

    format = check_choice("format", arguments.format, FORMATS)
    if format in ("onnx", "state") and arguments.ops == "fused":
        raise ValueError(f"ops: got 'fused' with format {format!r}, accepted: portable")
    ops = arguments.ops or ("portable" if format in ("onnx", "state") else "fused")
    checkpoint = check_choice("checkpoint", arguments.checkpoint, ("best", "last"))
    run = open_run(arguments.run_folder)
    out = arguments.out or arguments.run_folder / f"model{SUFFIXES[format]}"
    metadata = export_run(run, out, format=format, ops=ops, checkpoint=checkpoint, device=arguments.device)
    used = metadata.get("ops_of_contnet_fast")
    words = f"; loads where {', '.join(used)} {'are' if len(used) > 1 else 'is'} registered" if used else ""
    checked = metadata.get("check")
    judged = "" if checked is None else f", outputs within {checked['error_over_budget']:.2f} of what rounding may do"
    print(f"{out}: {format}{judged}{words}")
    return 0
