"""Programs in files: what they compute, where they load, what they say of themselves, and what is refused."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import contnet_fast as cf
from contnet_fast.deploy import files, read_metadata, save_model
from contnet_fast.deploy.program import ops_of_ours

needs_extension = pytest.mark.skipif("cpu" not in cf.available_backends(), reason="needs the C++ extension")
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
SHAPE = (1, 6, 6)
# ops of a network
FUSED = [f"contnet_fast.conv_{part}_cpu.default" for part in ("solve", "stem", "unit")]


def network(**options):
    """Statistics that are those of no batch, and outputs of the size of one, as a trained network has them."""
    net = cf.models.ContinuousNet(1, 3, width=4, **{"n_basis": 2, "n_steps": 2, "scheme": "midpoint", **options})
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    for block in cf.blocks(net):
        if block.field.norms:
            block.field.norm1_mean.normal_(0, 0.1)
            block.field.norm2_mean.normal_(0, 0.1)
    return net.eval()


def images(n):
    return torch.randn(n, *SHAPE)


def without_us(code, *arguments):
    """Run code in a process in which ``import contnet_fast`` fails."""
    head = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "contnet_fast":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Forbid())
import torch
"""
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- programs


@needs_extension
@pytest.mark.parametrize("training", [False, True])
def test_a_fused_program_has_an_op_for_each_block_and_leaves_the_network_alone(training):
    net = network().train(training)
    net.stem.eval()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    program = cf.export_program(net, images(1))
    ops = [str(n.target) for n in program.graph.nodes if "contnet_fast" in str(n.target)]
    assert sorted(set(ops)) == FUSED
    assert ops.count(FUSED[0]) == 3
    assert net.training is training
    assert not net.stem.training
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    for n in (1, 2, 5):
        x = images(n)
        torch.testing.assert_close(program.module()(x), net.eval()(x))


def test_a_portable_program_has_none_of_ours():
    net = network(norm="group", order="pre", basis="hat", n_steps=1)
    program = cf.export_program(net, images(3), ops="portable")
    assert ops_of_ours(program) == []
    for n in (1, 4):
        x = images(n)
        torch.testing.assert_close(program.module()(x), net(x), atol=1e-5, rtol=1e-4)


def test_a_batch_that_is_fixed_is_the_example_s():
    program = cf.export_program(network(n_steps=1), images(3), ops="portable", dynamic_batch=False).module()
    assert program(images(3)).shape == (3, 3)
    with pytest.raises(AssertionError):
        program(images(2))


@pytest.mark.parametrize(
    ("inputs", "options", "error", "words"),
    [
        ((), {}, TypeError, "inputs: got none, accepted: example tensors"),
        (((1, 6, 6),), {}, TypeError, r"inputs\[0\]: got tuple, accepted: a torch.Tensor"),
        ((torch.zeros(()),), {}, ValueError, r"inputs\[0\]: got shape \(\), accepted: \[B, ...\]"),
        ((torch.zeros(1, *SHAPE),), {"ops": "fast"}, ValueError, "ops: got 'fast', accepted: fused, portable"),
    ],
)
def test_programs_of_other_arguments_are_refused(inputs, options, error, words):
    with pytest.raises(error, match=words):
        cf.export_program(network(), *inputs, **options)


def test_a_block_that_no_fused_op_serves_is_refused_with_the_reasons():
    net = torch.nn.Sequential(cf.nn.ContinuousBlock(torch.nn.Tanh(), n_steps=2), torch.nn.Flatten())
    net[0].field.forward = lambda t, x: torch.sin(x)
    with pytest.raises(cf.BackendUnavailable, match="1 of 1 blocks run in PyTorch alone, accepted here: portable"):
        cf.export_program(net, images(2))
    with pytest.raises(cf.BackendUnavailable, match=r"no block runs in a fused op, .*it has no ODE block"):
        cf.export_program(torch.nn.Linear(2, 2), torch.zeros(1, 2))


# ---- files


@needs_extension
def test_programs_in_files_load_in_a_process_without_us(tmp_path):
    """A portable one anywhere; a fused one where the library of the ops is, without our Python code."""
    net, x = network(scheme="euler", n_basis=1), images(2)
    paths = {ops: tmp_path / f"{ops}.pt2" for ops in ("portable", "fused")}
    for ops, path in paths.items():
        save_model(net, path, format="pt2", input_shape=SHAPE, ops=ops, facts={"classes": ["a", "b", "c"]})
    torch.save({"x": x, "y": net(x).detach()}, tmp_path / "sample.pt")
    text = without_us(
        """
portable, fused, sample, library = sys.argv[1:]
sample = torch.load(sample)
for model in (portable, fused):
    if model == fused:  # what came before did without
        try:
            torch.export.load(model)
        except Exception:
            torch.ops.load_library(library)
    extra = {"contnet_fast.json": ""}
    run = torch.export.load(model, extra_files=extra).module()
    assert torch.allclose(run(sample["x"]), sample["y"], atol=1e-5, rtol=1e-4)
    assert run(torch.zeros(7, 1, 6, 6)).shape == (7, 3)
    print(extra["contnet_fast.json"])
assert library in torch.ops.loaded_libraries
assert not any(name.split(".")[0] == "contnet_fast" for name in sys.modules)
""",
        *paths.values(), tmp_path / "sample.pt", files.__file__.replace("deploy/files.py", "libcontnet_fast.so"),
    )  # fmt: skip
    for (ops, path), said in zip(paths.items(), map(json.loads, text.splitlines()), strict=True):
        assert said == read_metadata(path)
        assert said["discretization"] == {"scheme": "euler", "n_steps": 2, "n_basis": 1, "basis": "piecewise_constant"}
        assert (said["format"], said["ops"], said["classes"]) == ("pt2", ops, ["a", "b", "c"])
        assert sorted(said["ops_of_contnet_fast"]) == (FUSED if ops == "fused" else [])


def test_a_state_dictionary_has_the_metadata_of_the_network(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    net, path = network(), tmp_path / "model.safetensors"
    save_model(net, path, format="state", input_shape=SHAPE)
    other = network()
    other.load_state_dict(safetensors.load_file(path))
    x = images(2)
    assert torch.equal(other(x), net(x))
    assert read_metadata(path)["input"] == ["batch", *SHAPE]
    with pytest.raises(ValueError, match=r"path: got .*, accepted: a file of contnet-fast export"):
        read_metadata(tmp_path / "none.pt2")


def test_onnx_computes_what_the_network_does(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net, path = network(n_steps=1, scheme="euler"), tmp_path / "model.onnx"
    said = save_model(net, path, format="onnx", input_shape=SHAPE)
    assert said["ops"] == "portable"
    assert said["check"]["error_over_budget"] < 1
    session = runtime.InferenceSession(path.read_bytes())
    for n in (1, 5):
        x = images(n)
        y = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(y), net(x), atol=1e-5, rtol=1e-4)
    assert read_metadata(path)["discretization"]["scheme"] == "euler"
    # and torch's own exporter, called on a network under auto
    torch.onnx.export(net, (images(2),), tmp_path / "direct.onnx", dynamo=True, verbose=False)
    y = runtime.InferenceSession(tmp_path / "direct.onnx")
    assert y.run(None, {y.get_inputs()[0].name: images(2).numpy()})[0].shape == (2, 3)


def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if "onnx" in name else find(name, *a))
    words = r"format 'onnx' needs the package onnx: pip install 'contnet-fast\[export\]'"
    with pytest.raises(ModuleNotFoundError, match=words):
        save_model(network(), tmp_path / "model.onnx", format="onnx", input_shape=SHAPE)
    assert not list(tmp_path.iterdir())


def test_a_file_whose_outputs_are_off_is_not_kept(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_text("older")
    write = files._WRITERS["pt2"]

    def wrong(*arguments):
        run = write(*arguments)
        return lambda x: run(x) * (1 + 1e-3)

    monkeypatch.setattr(files, "_WRITERS", {"pt2": wrong})
    with pytest.raises(ValueError, match=r"got other outputs in batches of 1 than the network, .*budget"):
        save_model(network(n_steps=1, scheme="euler"), path, format="pt2", input_shape=SHAPE, ops="portable")
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]
    assert path.read_text() == "older"


def test_an_error_of_the_size_of_rounding_is_permitted_in_every_image():
    """PyTorch's own error in one image may be a tenth of what it is in others."""
    torch.manual_seed(0)
    net = network()
    exact = copy.deepcopy(net).double()
    with torch.no_grad(), cf.use_backend("reference"):
        x = files._samples(net, SHAPE, max(files.BATCHES))
        largest = (net(x) - exact(x.double())).abs().max()

    def off(times):
        return lambda x: (exact(x.double()) + times * largest).float()

    assert files.check_outputs(net, off(1.5), SHAPE, name="file")["error_over_budget"] < 1
    with pytest.raises(ValueError, match="file: got other outputs in batches of 1 than the network"):
        files.check_outputs(net, off(20), SHAPE, name="file")
    with pytest.raises(ValueError, match=r"file: got other outputs in batches of 16 than the network, .*at \(16, 1\)"):
        files.check_outputs(net, lambda x: off(0)(x) + (torch.arange(3 * len(x)) == 46).view(-1, 3), SHAPE, name="file")
    with pytest.raises(ValueError, match=r"batches of 1 than the network, shape \(1, 2\), expected \(1, 3\)"):
        files.check_outputs(net, lambda x: net(x)[:, :2], SHAPE, name="file")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "tflite"}, "format: got 'tflite', accepted: pt2, aoti, onnx, state"),
        ({"path": "model.onnx"}, "out: got .*model.onnx, accepted: a name that ends in .pt2"),
        ({"path": "none/model.pt2"}, "out: got .*, accepted: a file in a folder that exists and can be written"),
        ({"input_shape": (2, 6, 6)}, r"input_shape: got \(2, 6, 6\), accepted: that of one sample"),
        ({"input_shape": (1, 0, 6)}, r"input_shape: got \(1, 0, 6\), accepted: that of one sample"),
    ],
)
def test_files_of_other_arguments_are_refused(tmp_path, options, words):
    given = {"format": "pt2", "input_shape": SHAPE, "path": "model.pt2", **options}
    with pytest.raises(ValueError, match=words):
        save_model(network(), tmp_path / given.pop("path"), **given)
    assert not list(tmp_path.iterdir())


# ---- AOTInductor, and C++


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    net, path = network(n_steps=1, scheme="euler"), tmp_path_factory.mktemp("aoti") / "model.pt2"
    quick = {"aot_inductor.compile_wrapper_opt_level": "O0", "cpp_cache_precompile_headers": False}
    with torch._inductor.config.patch(quick):
        save_model(net, path, format="aoti", input_shape=SHAPE)
    return net, path


@needs_extension
@needs_compiler
def test_a_model_of_aotinductor_says_what_it_is(compiled):
    net, path = compiled
    run = torch._inductor.aoti_load_package(str(path))
    for n in (1, 4):
        x = images(n)
        torch.testing.assert_close(run(x), net(x), atol=1e-5, rtol=1e-4)
    assert json.loads(run.get_metadata()["contnet_fast"])["format"] == "aoti"
    assert sorted(read_metadata(path)["ops_of_contnet_fast"]) == FUSED


@needs_extension
@needs_compiler
def test_the_example_in_c_serves_it_without_python(compiled, tmp_path):
    net, path = compiled
    torch_folder, root = Path(torch.__file__).parent, Path(__file__).resolve().parents[2]
    program = tmp_path / "serve"
    build = [
        "c++", "-std=c++20", str(root / "docs/examples/serve.cpp"), f"-I{torch_folder}/include",
        f"-I{torch_folder}/include/torch/csrc/api/include", f"-L{torch_folder}/lib", "-Wl,--no-as-needed",
        "-ltorch", "-ltorch_cpu", "-lc10", "-ldl", f"-Wl,-rpath,{torch_folder}/lib", "-o", str(program),
    ]  # fmt: skip
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    x = images(3)
    command = [program, path, root / "contnet_fast/libcontnet_fast.so", *map(str, x.shape)]
    served = subprocess.run(command, input=x.numpy().tobytes(), capture_output=True, check=False)
    assert served.returncode == 0, served.stderr
    y = torch.frombuffer(bytearray(served.stdout), dtype=torch.float32).view(3, 3)
    torch.testing.assert_close(y, net(x), atol=1e-5, rtol=1e-4)
    command[2] = "none"
    bare = subprocess.run(command, input=x.numpy().tobytes(), capture_output=True, check=False)
    assert bare.returncode == 1
    assert b"contnet_fast" in bare.stderr
