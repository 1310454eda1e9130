"""The site has every page of docs/, the README, and every public name."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import contnet_fast as cf

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "tools/docs_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_public_name(site):
    pages = site.reference_pages()
    modules = ("analysis", "analysis-depth", "analysis-koopman", "deploy", "models", "nn", "torchdiffeq")
    assert pages.keys() == {f"api/{name}.md" for name in ("contnet_fast", *modules)}
    shown = {
        name for page in pages.values() for name in re.findall(r"^::: contnet_fast[\w.]*\.(\w+)$", page, flags=re.M)
    }
    documented = (cf, cf.nn, cf.models, cf.deploy, cf.analysis, cf.analysis.depth, cf.analysis.koopman)
    names = {name for module in documented for name in module.__all__} - {"__version__", "depth", "koopman", *modules}
    assert names <= shown, names - shown


def test_links_of_the_readme_lead_to_pages_of_the_site(site):
    pages = {*site.ROOT_PAGES.values(), *(p.relative_to(ROOT / "docs").as_posix() for p in ROOT.glob("docs/**/*.*"))}
    for target in re.findall(r"\]\(([^)#]+)", site.root_page("README.md")):
        assert target in pages


def test_every_page_is_in_the_navigation(site):
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.M))
    written = {p.relative_to(ROOT / "docs").as_posix() for p in ROOT.glob("docs/**/*.md")}
    assert listed == {*written, *site.ROOT_PAGES.values(), *site.reference_pages()}
