"""The package imports lean, its arrows point one way, and its first page is true."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import contnet_fast as cf

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "contnet_fast"


def run(code: str, **env: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_needs_torch_alone_and_touches_no_device():
    extras = ["triton", "rich", "matplotlib", "safetensors", "sklearn", "PIL", "torchdiffeq", "scipy"]
    code = f"""
import sys
hidden = {extras!r}
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name in hidden or name.split('.')[0] in hidden:
            raise ModuleNotFoundError(name, name=name)
before = set(sys.modules)
import torch
torch_modules = set(sys.modules)
sys.meta_path.insert(0, Hide())
import contnet_fast, contnet_fast.cli, contnet_fast.training.config
new = {{m.split('.')[0] for m in set(sys.modules) - torch_modules}}
assert not new & set(hidden), new & set(hidden)
assert not any(m.startswith("torch._dynamo") for m in set(sys.modules) - torch_modules)
assert not torch.cuda.is_initialized()
contnet_fast.info()
assert not torch.cuda.is_initialized()
print("ok")
"""
    assert run(code).strip() == "ok"


LAYERS = [  # each may import itself and what stands before it
    {"_C", "errors", "_version", "files", "limits", "testing", "transforms", "problem", "extension"},
    {"chips"},
    {"carried", "schemes", "graphs"},
    {"reference"},
    {"triton"},
    {"costmodel"},
    {"fields"},
    {"backends"},
    {"ops"},
    {"functional"},
    {"ode"},
    {"torchdiffeq"},
    {"nn"},
    {"models"},
    {"inspect"},
    {"analysis"},
    {"deploy"},
    {"training", "validation"},
    {"study"},
    {"cli"},
    {"__main__"},
]


def imports(path: Path) -> set[str]:
    """First parts below the package of every import in a file, at the top or inside functions."""
    depth = len(path.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("contnet_fast"):
            found.add(node.module.partition(".")[2].split(".")[0])
    return found


def test_arrows_point_one_way():
    place = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        assert own in place, f"{own} has no place in the layers"
        for name in imports(path):
            assert name == own or place[name] < place[own], f"{path.name} in {own} imports {name}"


def test_the_page_of_rooms_names_what_there_is():
    named = set(
        re.findall(r"`((?:contnet_fast|csrc|tests|benchmarks|tools)/[\w/.]*)`", (ROOT / "docs/layout.md").read_text())
    )
    assert len(named) > 30
    assert not [path for path in named if not (ROOT / path).exists()]


def test_files_stay_readable():
    sources = (path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    for path in [*PACKAGE.rglob("*.py"), *sources]:
        assert len(path.read_text().splitlines()) <= 400, path


def test_test_files_have_names_of_their_own():
    """pytest imports them by name: the second of two is an error, which a run of its folder alone does not show."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


def test_names_of_the_design_are_public():
    for name in [
        "refine",
        "project",
        "interpolate",
        "set_discretization",
        "use_backend",
        "explain",
        "record_runs",
        "info",
        "warmup",
    ]:
        assert callable(getattr(cf, name))
    assert isinstance(cf.available_backends(), tuple)
    assert json.dumps(cf.info().as_dict())
    assert "torch" in str(cf.info())


def test_building_asks_for_no_torch():
    text = (ROOT / "pyproject.toml").read_text()
    requires = re.search(r"requires = (\[.*\])", text)
    assert requires
    assert "torch" not in requires[1]


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def test_the_readme_snippets_run_and_are_equal():
    scope: dict = {}
    for code in blocks("README.md", "python"):
        exec(compile(code, "README.md", "exec"), scope)
    torch.testing.assert_close(scope["y"], scope["plain"])


def test_the_guide_runs():
    scope: dict = {}
    for code in blocks("docs/guide.md", "python"):
        exec(compile(code, "docs/guide.md", "exec"), scope)


@pytest.mark.parametrize(
    "name", sorted(p.relative_to(ROOT).as_posix() for p in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
)
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text()
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        if target.startswith("http"):
            continue
        place = (ROOT / name).parent / target if target else ROOT / name
        assert place.exists(), target
        assert not anchor or anchor in anchors(place.read_text()), f"{target}#{anchor}"


def anchors(text: str) -> set[str]:
    """Of the headings of a page, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
