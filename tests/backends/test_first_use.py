"""Without the C++ extension the first CPU solve that it would have served says so once, with reason and cure."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

import contnet_fast as cf
from contnet_fast import extension
from contnet_fast.backends import cpu, registry
from contnet_fast.nn import ContinuousBlock, ConvField

ROOT = Path(__file__).resolve().parents[2]
REASON = "the C++ extension was not built with this package"
WORDS = re.escape(f"on the CPU runs in plain PyTorch, without the backend cpu: {REASON}")


@pytest.fixture
def unbuilt(monkeypatch):
    """As in a process that has just imported a package without the extension."""
    monkeypatch.setattr(extension, "module", None)
    monkeypatch.setattr(extension, "_absent", "was not built with this package, as happens without a compiler")
    monkeypatch.setattr(extension, "_hidden", None)
    monkeypatch.setattr(cpu, "_extension", None)
    monkeypatch.setattr(cpu, "_reason", extension.missing("cpu"))
    monkeypatch.setattr(registry._state, "warned", set())


def block():
    torch.manual_seed(0)
    return ContinuousBlock(ConvField(4, n_basis=2, norm="none"), scheme="rk4", n_steps=2)


X = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
SOLVES = {
    "a block": lambda: block()(X),
    "a block inside a network": lambda: torch.nn.Sequential(torch.nn.Identity(), block())(X),
    "a network in training": lambda: cf.models.ContinuousNet(3, 10, width=4)(torch.zeros(2, 3, 8, 8)),
    "rk_solve": lambda: torch.no_grad()(cf.rk_solve)(lambda t, y: -y, torch.ones(3), scheme="rk4", n_steps=2),
    "odeint": lambda: cf.odeint(lambda t, y: -y, torch.ones(3), torch.tensor([0.0, 1.0])),
    "a combination": lambda: cf.rk_combine(torch.ones(3), [torch.ones(3)], [1.0]),
}


@pytest.mark.parametrize("name", SOLVES)
def test_the_first_solve_warns_at_the_line_of_the_user(unbuilt, name):
    with pytest.warns(UserWarning, match=WORDS) as caught:
        SOLVES[name]()
    (warning,) = caught
    assert warning.filename == __file__
    assert "CONTNET_FAST_BUILD=cpu pip install --no-build-isolation . in the folder of the sources" in str(
        warning.message
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for solve in SOLVES.values():  # once in a process, whatever comes next
            solve()


def test_nothing_is_said_where_the_extension_makes_no_difference(unbuilt):
    def decay(t, y):
        return -y

    y = torch.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with cf.use_backend("reference"):
            for solve in SOLVES.values():
                solve()
        named = block()
        named.backend = "reference"
        named(X)
        cf.rk_combine(y, [y], [1.0], backend="reference")
        cf.explain(block(), X)
        cf.rk_solve(decay, y, scheme="euler", n_steps=2)  # auto leaves the extension for few stages and for gradients
        cf.rk_solve(decay, y, scheme="rk4", n_steps=2)
        block().to("meta")(X.to("meta"))
        torch.compile(block(), backend="eager", fullgraph=True)(X)
    with pytest.warns(UserWarning, match="runs in plain PyTorch"):  # none of these was the one warning
        block()(X)


def test_strict_and_a_named_backend_raise_as_before(unbuilt):
    with pytest.raises(cf.BackendUnavailable, match=re.escape(REASON)), cf.use_backend("cpu"):
        block()(X)
    with pytest.raises(cf.BackendUnavailable, match=re.escape(REASON)), cf.strict():
        block()(X)


def run(code: str, *path: Path, cwd: Path) -> str:
    """Output of a Python that sees the package in these folders only."""
    head = f"""
import sys
sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in repr(finder)]
sys.path[:0] = {[str(p) for p in path]!r}
"""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", head + code], cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A checkout in which nothing was built."""
    folder = tmp_path_factory.mktemp("checkout")
    leave = shutil.ignore_patterns("__pycache__", *(f"_C*{suffix}" for suffix in EXTENSION_SUFFIXES))
    shutil.copytree(ROOT / "contnet_fast", folder / "contnet_fast", ignore=leave)
    return folder


def test_a_package_without_the_extension_says_why(bare, tmp_path):
    text = run("import contnet_fast; print(contnet_fast.info())", bare, cwd=tmp_path)
    assert f"extension          none: {REASON}" in text
    assert f"backend cpu        {REASON}" in text
    assert "pip install --no-build-isolation ." in text


def test_a_checkout_that_hides_an_installed_package_with_the_extension_is_named(bare, tmp_path):
    site = tmp_path / "site" / "contnet_fast"
    site.mkdir(parents=True)
    (site / f"_C{EXTENSION_SUFFIXES[0]}").touch()
    text = run("import contnet_fast; print(contnet_fast.info())", bare, site.parent, cwd=tmp_path)
    place = bare / "contnet_fast"
    why = f"the C++ extension is not in {place}, from where Python takes the package; {site}, which has one, "
    why += "is passed over"
    assert f"extension          none: {why}\n" in text
    assert f"backend cpu        {why}; start Python in another folder, or build it there too: " in text
    assert f"CONTNET_FAST_BUILD=cpu pip install --no-build-isolation --editable {bare}\n" in text


def test_the_first_line_of_the_installation_builds_the_extension():
    install = (ROOT / "README.md").read_text().partition("\n## Install\n")[2]
    first = re.search(r"^pip install .*$", install, flags=re.M)
    assert first
    assert "--no-build-isolation" in first[0]
