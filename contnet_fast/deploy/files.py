"""A network in a file that serves it, checked before the file is kept."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._version import __version__
from ..backends import use_backend
from ..errors import check_choice
from ..files import write_atomically
from ..nn import blocks
from ..testing import judge
from .program import OPS, evaluating, export_program, ops_of_ours

FORMATS = ("pt2", "aoti", "onnx", "state")
SUFFIXES = {"pt2": ".pt2", "aoti": ".pt2", "onnx": ".onnx", "state": ".safetensors"}
KEY = "contnet_fast"  # of the metadata, a JSON text, in every format
EXTRA = "contnet_fast.json"  # the same as a file of a program of torch.export
BATCHES = (1, 16)  # that a file is checked with; errors of few outputs are luck

Runner = Callable[[torch.Tensor], torch.Tensor]


def save_model(
    net: nn.Module,
    path: str | Path,
    *,
    format: str,
    input_shape: tuple[int, ...],
    ops: str = "fused",
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``net``, in eval mode, into a file that serves batches of any size; a file in its place is replaced.

    The file is run, on batches of 1 and 3 random samples, and kept only if its outputs are as close to the float64
    reference as those of plain PyTorch (:func:`contnet_fast.testing.judge`). A file is whole or absent.

    Args:
        path: of the file; its folder exists.
        format: ``"pt2"``: a program of torch.export. ``"aoti"``: compiled by AOTInductor for this kind of machine.
            ``"onnx"``: ONNX, by PyTorch's own operations. ``"state"``: tensors in safetensors, for ``load_state_dict``.
        input_shape: of one sample, without the batch; samples are float32.
        ops: see :func:`export_program`. ONNX is always portable; ``"state"`` has no operations.
        facts: what the metadata say beside format, ops, discretization and shapes, such as classes and accuracy.

    Returns:
        The metadata, which the file has as JSON under ``"contnet_fast"`` (pt2: its file ``contnet_fast.json``).

    Raises:
        TypeError, ValueError: naming the argument, or outputs that are too far off. ModuleNotFoundError: of a package
            that a format needs. BackendUnavailable: as :func:`export_program`.
    """
    check_choice("format", format, FORMATS)
    check_choice("ops", ops, OPS)
    target = _target(Path(path), SUFFIXES[format])
    _check_shape(net, input_shape)
    _check_packages(format)
    ops = "portable" if format == "onnx" else ops
    metadata = _metadata(net, format, ops, input_shape, facts or {})
    with evaluating(net), torch.no_grad():
        if format == "state":
            write_atomically(target, lambda temporary: _write_state(net, temporary, metadata))
            return metadata
        program = export_program(net, _samples(net, input_shape, 2), ops=ops)
        metadata["ops_of_contnet_fast"] = ops_of_ours(program)

        def write(temporary: Path) -> None:
            runner = _WRITERS[format](net, program, temporary, json.dumps(metadata))
            metadata["check"] = check_outputs(net, runner, input_shape, name=str(path))

        write_atomically(target, write)
    return metadata


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return the metadata of a file that :func:`save_model` wrote, without running it.

    Raises:
        ValueError: it has none.
    """
    import zipfile

    name = Path(path)
    try:
        if name.suffix == ".onnx":
            import onnx

            properties = {p.key: p.value for p in onnx.load(name, load_external_data=False).metadata_props}
            return json.loads(properties[KEY])
        if name.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(name, "pt") as file:
                return json.loads((file.metadata() or {})[KEY])
        with zipfile.ZipFile(name) as archive:
            for entry in archive.namelist():
                if entry.endswith(EXTRA):
                    return json.loads(archive.read(entry))
                if entry.endswith("wrapper_metadata.json") and KEY in (held := json.loads(archive.read(entry))):
                    return json.loads(held[KEY])
        raise KeyError(KEY)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"path: got {name}, accepted: a file of contnet-fast export ({error})") from None


def load_runner(path: str | Path, format: str) -> Runner:
    """Return what runs a file of format pt2, aoti or onnx: a function from a batch to outputs."""
    if format == "pt2":
        return torch.export.load(path).module()
    if format == "aoti":
        from torch._inductor import aoti_load_package

        return aoti_load_package(str(path))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(Path(path).read_bytes(), options, providers=["CPUExecutionProvider"])
    (name,) = (entry.name for entry in session.get_inputs())
    return lambda x: torch.from_numpy(session.run(None, {name: x.cpu().numpy()})[0])


def check_outputs(
    net: nn.Module, runner: Runner, input_shape: tuple[int, ...], *, name: str
) -> dict[str, float | list[int]]:
    """Judge the outputs of ``runner`` by the error rule, beside plain PyTorch and the float64 reference.

    By how much they may be off is found from all batches together: the largest error of the few outputs of one image
    is small or large by luck.

    Returns:
        The batch sizes, and the largest share of the permitted error.

    Raises:
        ValueError: an output is too far off.
    """
    exact_net = copy.deepcopy(net).double()
    found: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    runs: list[list[torch.Tensor]] = []
    with evaluating(net), torch.no_grad(), use_backend("reference"):
        exact_net.eval()
        for n in BATCHES:
            x = _samples(net, input_shape, n)
            exact = exact_net(x.double())
            runs.append([net(x), net(x.contiguous(memory_format=torch.channels_last))] if x.dim() == 4 else [net(x)])
            found.append((n, runner(x), exact))
            if (shape := found[-1][1].shape) != exact.shape:
                words = f"shape {tuple(shape)}, expected {tuple(exact.shape)}"
                raise ValueError(f"{name}: got other outputs in batches of {n} than the network, {words}")
    same = [torch.cat(parts) for parts in zip(*runs, strict=True)]
    verdict = judge(
        torch.cat([y for _, y, _ in found]), torch.cat([exact for *_, exact in found]), same, name="outputs"
    )
    if verdict.fault:
        off = (n for n, y, exact in found if not (y.double() - exact).abs().max().item() <= verdict.budget)
        n = next(off, BATCHES[0])
        raise ValueError(f"{name}: got other outputs in batches of {n} than the network, {verdict.fault}")
    return {"batches": list(BATCHES), "error_over_budget": verdict.ratio}


def _metadata(
    net: nn.Module, format: str, ops: str, shape: tuple[int, ...], facts: Mapping[str, Any]
) -> dict[str, Any]:
    found = blocks(net)
    discretization = [
        {
            "scheme": block.scheme,
            "n_steps": block.n_steps,
            **({"n_basis": block.field.basis.size, "basis": block.field.basis.name} if block.grid else {}),
        }
        for block in found
    ]
    return {
        "format": format,
        **({} if format == "state" else {"ops": ops}),
        "contnet_fast": __version__,
        "torch": torch.__version__,
        "input": ["batch", *shape],
        "dtype": str(_like(net).dtype).removeprefix("torch."),
        "device": _like(net).device.type,
        "discretization": discretization[0] if all(d == discretization[0] for d in discretization) else discretization,
        **facts,
    }


def _like(net: nn.Module) -> torch.Tensor:
    return next(net.parameters())


def _samples(net: nn.Module, shape: tuple[int, ...], n: int) -> torch.Tensor:
    like = _like(net)
    values = torch.randn((n, *shape), generator=torch.Generator().manual_seed(n))
    return values.to(device=like.device, dtype=like.dtype)


def _check_shape(net: nn.Module, shape: tuple[int, ...]) -> None:
    accepted = "that of one sample of the network, such as (3, 32, 32)"
    if not all(isinstance(n, int) and n >= 1 for n in shape):
        raise ValueError(f"input_shape: got {tuple(shape)}, accepted: {accepted}")
    try:
        with evaluating(net), torch.no_grad():
            net(_samples(net, shape, 1))
    except (RuntimeError, ValueError, TypeError) as error:
        words = " ".join(str(error).split())[:160]
        raise ValueError(f"input_shape: got {tuple(shape)}, accepted: {accepted} ({words})") from None


def _target(path: Path, suffix: str) -> Path:
    if path.suffix != suffix:
        raise ValueError(f"out: got {path}, accepted: a name that ends in {suffix}")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"out: got {path}, accepted: a file in a folder that exists and can be written")
    return path


def _check_packages(format: str) -> None:
    needed = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "state": ("safetensors",)}.get(format, ())
    extra = "export" if format == "onnx" else "train"
    for name in needed:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"format {format!r} needs the package {name}: pip install 'contnet-fast[{extra}]'", name=name
            )


# ---- writers: each fills a file and returns what runs it


def _write_state(net: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    save_file(tensors, path, metadata={KEY: json.dumps(metadata)})


def _write_pt2(net: nn.Module, program: torch.export.ExportedProgram, path: Path, metadata: str) -> Runner:
    torch.export.save(program, path, extra_files={EXTRA: metadata})
    return load_runner(path, "pt2")


def _write_aoti(net: nn.Module, program: torch.export.ExportedProgram, path: Path, metadata: str) -> Runner:
    from torch._inductor import aoti_compile_and_package

    with tempfile.TemporaryDirectory() as folder, _quiet():
        made = Path(folder, path.name)
        aoti_compile_and_package(
            program, package_path=str(made), inductor_configs={"aot_inductor.metadata": {KEY: metadata}}
        )
        path.write_bytes(made.read_bytes())
        return load_runner(path, "aoti")


def _write_onnx(net: nn.Module, program: torch.export.ExportedProgram, path: Path, metadata: str) -> Runner:
    with _quiet():
        made = torch.onnx.export(
            program, (), dynamo=True, input_names=["input"], output_names=["output"], verbose=False
        )
    assert made is not None
    made.model.metadata_props[KEY] = metadata
    made.save(path, external_data=False)
    return load_runner(path, "onnx")


_WRITERS: Mapping[str, Callable[[nn.Module, torch.export.ExportedProgram, Path, str], Runner]] = {
    "pt2": _write_pt2,
    "aoti": _write_aoti,
    "onnx": _write_onnx,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters tell of packages that are not there and of their own deprecations."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
