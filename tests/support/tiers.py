"""What ``pytest --quick`` leaves out; what is another when several processes share the suite: order and threads."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
FILES = sorted(TESTS.glob("*/**/test_*.py"))
SLOW_FOLDERS = ("analysis", "aot", "cli", "compiler", "deploy", "emulated", "gpu", "interpreted", "tools", "training")
SLOW_FILES = (  # of the other folders
    "attention", "build", "carry", "convergence", "cpu_attention", "cpu_bfloat16", "cpu_conv", "cpu_conv_blocks",
    "cpu_conv_gradients", "cpu_conv_ops", "cpu_conv_stem", "cpu_conv_unit", "cpu_diffusion", "cycles", "datasets",
    "first_use", "flops", "graph_fields", "graph_models", "hybrid", "odeint_cycles", "odeint_device",
    "odeint_parity", "pytrees", "recomputation", "rounding", "sharded_fields", "sparse_features",
    "statistics_constants", "sync_statistics", "tune", "wheel", "wrapped",
)  # fmt: skip
# files that take minutes; with several processes they come first, so that none is left with one of them at the end
LONG = [
    "cuda_compile", "triton_conv", "triton_diffusion", "triton_slices", "cuda_solve", "wheel", "gpu_script",
    "odeint_parity", "report", "training", "struck_processes", "two_hosts", "many_processes", "statistics_constants",
    "triton_aot", "gpu_run",
    "wrapped", "benchmarks", "distributed", "train_cifar", "cuda_conv_binding", "cpu_conv_gradients", "cuda_cluster",
    "compile_numbers", "pytrees", "cpu_conv_ops", "cpu_conv", "sync_statistics", "compile", "compile_graphs", "export",
]  # fmt: skip
SEVERAL_THREADS = ("cpu", "functional")  # folders whose tests have two threads even where a process has one core


def folder(path: Path) -> str:
    """The folder of tests/ that a file or a folder is in."""
    return path.relative_to(TESTS).parts[0]


FOLDERS = sorted({folder(path) for path in FILES})


def is_slow(path: Path) -> bool:
    """Whether ``--quick`` leaves a folder of tests or a test file out."""
    return (path != TESTS and folder(path) in SLOW_FOLDERS) or path.stem.removeprefix("test_") in SLOW_FILES


def place(path: Path) -> int:
    """Where a file stands among those that come first."""
    name = path.stem.removeprefix("test_")
    return LONG.index(name) if name in LONG else len(LONG)
