"""Fixtures of several folders."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

# PyTorch's compiler does not ask in its cache for which instructions a kernel was compiled
if capability := os.environ.get("ATEN_CPU_CAPABILITY"):
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), f"torchinductor-{capability}")))

# threads that wait give their core to the tests beside them; read when PyTorch is imported, inherited by workers
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if not torch.cuda.is_available():  # Triton kernels then run in its interpreter, which it asks for when imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

import tiers
from interpreted_types import lean_types
from seeds import SHIFT, shift_seeds

from contnet_fast.backends import cpu
from contnet_fast.fields.conv import cpu as conv_cpu


def pytest_addoption(parser):
    group = parser.getgroup("this machine as another one")
    group.addoption("--seed", type=int, default=0, help="added to every seed that a test sets (default: 0)")
    group.addoption("--torch-threads", type=int, help="threads of PyTorch (default: its own choice)")
    group.addoption("--widest", choices=instruction_sets(), help="widest instruction set of the C++ extension")
    parser.addoption("--quick", action="store_true", help="leave out the folders and files that take long")


def pytest_configure(config):
    shift, threads, widest = (config.getoption(name) for name in ("seed", "torch_threads", "widest"))
    os.environ[SHIFT] = str(shift)
    shift_seeds()
    if threads:
        torch.set_num_threads(threads)
    conv_cpu.TIMES = ()  # whatever was tuned here
    conv_cpu.BFLOAT16_PRODUCTS = conv_cpu.INSTRUCTIONS == "amx"
    if widest and cpu._extension:
        cpu._extension.use_instruction_set(widest)
    for folder in tiers.FOLDERS:
        config.addinivalue_line("markers", f"{folder}: the tests of tests/{folder}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Before fixtures of any scope: several processes share the cores, and where they have one each, PyTorch with two
    threads takes many times as long for small tensors; code of ours for several threads is still tested."""
    workers = os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if workers and item.config.getoption("torch_threads") is None:
        least = 2 if tiers.folder(item.path) in tiers.SEVERAL_THREADS else 1
        torch.set_num_threads(max(least, (os.cpu_count() or 1) // int(workers)))


def pytest_ignore_collect(collection_path, config):
    """With ``--quick`` slow files are not even imported; ``None`` leaves the decision to pytest."""
    return True if config.getoption("quick") and tiers.is_slow(collection_path) else None


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(tiers.folder(item.path))
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: tiers.place(item.path))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("quick"):
        left = Counter(tiers.folder(path) for path in tiers.FILES if tiers.is_slow(path))
        files = ", ".join(f"{folder} {count}" for folder, count in sorted(left.items()))
        terminalreporter.write_line(f"--quick left out {left.total()} test files, which `make test` runs: {files}")


def pytest_report_header(config):
    sets = cpu._extension.instruction_set() if cpu._extension else "none"
    options = f"seeds +{config.getoption('seed')}, {torch.get_num_threads()} threads"
    return f"{options}, PyTorch's kernels {torch.backends.cpu.get_cpu_capability()}, C++ extension {sets}"


@pytest.fixture(autouse=True)
def _seeded():
    """Data that a test draws without a seed is the same in every run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _integer_checks(request, monkeypatch):
    """Half of the time of Triton's interpreter goes into checks of integers, which stay on where they are asked for."""
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if interpreter is not None and not request.node.get_closest_marker("integer_checks"):
        builder = interpreter.interpreter_builder
        monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))


@pytest.fixture(autouse=True)
def _one_interpreted_language(monkeypatch):
    """Triton's interpreter puts its own functions into ``triton.language`` for a kernel; the helpers that the kernel
    calls do so again, at every call."""
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None or not hasattr(interpreter, "_LangPatchScope"):
        return
    put, languages, there, wants = interpreter._patch_lang, (interpreter.tl, interpreter.tl.core), set(), {}

    def put_once(function):
        key = function, len(function.__globals__)
        if key not in wants:
            values = function.__globals__.values()
            wants[key] = {id(value) for value in values if any(value is one for one in languages)}
        wanted = wants[key]
        if wanted <= there:
            return interpreter._LangPatchScope()
        scope = put(function)
        there.update(wanted)
        restore = scope.restore
        scope.restore = lambda: (there.clear(), restore())
        return scope

    monkeypatch.setattr(interpreter, "_patch_lang", put_once)


@pytest.fixture(autouse=True)
def _lean_interpreter(monkeypatch):
    """Without types that only a compiler reads."""
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if interpreter is not None and os.environ.get("TRITON_INTERPRET") == "1":
        lean_types(interpreter, monkeypatch)


def instruction_sets() -> list[str]:
    return cpu._extension.instruction_sets() if cpu._extension else ["portable"]


@pytest.fixture(params=instruction_sets())
def isa(request):
    """Every instruction set of the C++ extension that this machine has, in turn."""
    before = cpu._extension.instruction_set()
    cpu._extension.use_instruction_set(request.param)
    yield request.param
    cpu._extension.use_instruction_set(before)


@pytest.fixture
def one_process():
    """A process group of this process alone: its mesh on the CPU."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def reads(monkeypatch):
    """Values that Python reads from tensors."""
    found = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy"):
        own = getattr(torch.Tensor, name)

        def counted(self, *args, _own=own, _name=name):
            found.append(_name)
            return _own(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    return found


class Scalars(TorchDispatchMode):
    """Ops that wait for what a tensor holds, whoever calls them: for its value, or to know the shape of a result."""

    waiting = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.waiting:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def scalars():
    """:class:`Scalars` while the test runs."""
    with Scalars() as mode:
        yield mode


@pytest.fixture(scope="module")
def no_collector():
    """The garbage collector is off, and looks at nothing that is there now when it is asked."""
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()
