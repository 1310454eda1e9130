"""What a public host reads: workflows, hooks, templates and the citation name things that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import contnet_fast as cf

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands(workflow: dict) -> list[str]:
    """Of all steps, without expressions of the workflow."""
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    return [re.sub(r"\$\{\{.*?\}\}", "", step["run"]) for step in steps if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_targets_of_the_makefile(path):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    workflow = read(path)
    called = {word for line in commands(workflow) for word in line.removeprefix("make ").split() if "=" not in word}
    assert all(line.startswith("make ") for line in commands(workflow))
    assert called
    assert called <= targets, called - targets
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        assert {"uses": "actions/checkout@v4"} in job["steps"]


def test_the_workflow_runs_every_python_that_the_package_names_and_the_oldest_torch():
    pairs = read(ROOT / ".github/workflows/tests.yml")["jobs"]["quick"]["strategy"]["matrix"]["include"]
    project = (ROOT / "pyproject.toml").read_text()
    assert {pair["python"] for pair in pairs} == set(re.findall(r'Python :: (3\.\d+)"', project))
    oldest = re.search(r'"torch>=([\d.]+)"', project)
    assert oldest
    assert any(pair["torch"].startswith(f"{oldest[1]}.") for pair in pairs)
    tested = (ROOT / "tests/matrix.py").read_text()
    assert all(f'"{pair["torch"]}"' in tested for pair in pairs)


def test_hooks_name_what_lint_runs():
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.M)
    assert lint
    entries = [hook["entry"] for repo in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    for tool in ("ruff check", "ruff format", "mypy"):
        assert f"-m {tool}" in lint[1]
        assert any(f"-m {tool}" in entry for entry in entries)


def test_templates_ask_for_what_the_package_can_say():
    names = {path.name for path in TEMPLATES}
    assert {"bug.yml", "slow.yml"} <= names
    for path in TEMPLATES:
        if path.name != "config.yml":
            labels = " ".join(part["attributes"]["label"] for part in read(path)["body"])
            assert "contnet-fast info" in labels
            assert "contnet-fast explain" in labels


def test_the_citation_is_of_this_version_and_of_the_papers_of_the_readme():
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == cf.__version__
    cited = {part["value"] for paper in citation["references"] for part in paper["identifiers"]}
    readme = (ROOT / "README.md").read_text()
    assert {f"arXiv:{number}" for number in re.findall(r"arXiv (\d{4}\.\d{5})", readme)} == cited
