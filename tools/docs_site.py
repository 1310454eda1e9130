"""What `make docs` adds to the pages in docs/: the README as the first page, and the reference of the public names.

A hook of mkdocs (`hooks` in mkdocs.yml). Nothing is written to docs/. As a program it prints what building the site
needs, the requirements of the extra `docs`, one a line.
"""

from __future__ import annotations

import importlib
import inspect
import re
from importlib.metadata import requires
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
              "SECURITY.md": "security.md"}  # fmt: skip
KINDS = ("Functions", "Classes", "Constants")


def root_page(name: str) -> str:
    """The text of a page of the repository's top folder, with links as they are on the site."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    for source, target in ROOT_PAGES.items():
        text = text.replace(f"]({source}", f"]({target}")
    return text


def first_line(thing: object) -> str:
    """The first paragraph of a docstring in one line."""
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def kind(thing: object) -> str | None:
    """One of ``KINDS``, or None for a module."""
    if inspect.ismodule(thing):
        return None
    return "Classes" if inspect.isclass(thing) else "Functions" if callable(thing) else "Constants"


def public(module: ModuleType) -> dict[str, Any]:
    """The public names of a module and what they are, but for its version."""
    names = getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]
    return {name: getattr(module, name) for name in names if name != "__version__"}


def reference(name: str, skip: frozenset[int] = frozenset()) -> str:
    """A page of the reference: a table of the names in a module, then each of them.

    Args:
        name: of the module.
        skip: ids of what another page has already.
    """
    module = importlib.import_module(name)
    entries = {key: thing for key, thing in public(module).items() if id(thing) not in skip}
    lines = [f"# {name}", "", first_line(module), ""]
    for which in KINDS:
        chosen = {key: thing for key, thing in entries.items() if kind(thing) == which}
        if chosen:
            lines += [f"| {which} | |", "|---|---|"]
            lines += [
                f"| [`{key}`][{name}.{key}] | {first_line(thing) if which != 'Constants' else ''} |"
                for key, thing in sorted(chosen.items())
            ]
            lines.append("")
    for key, thing in sorted(entries.items()):
        if kind(thing) is not None:
            lines += [f"::: {name}.{key}", ""]
    return "\n".join(lines)


def reference_pages() -> dict[str, str]:
    """Every page of the reference by its path on the site: the package, then each of its public modules."""
    package = importlib.import_module("contnet_fast")
    own = frozenset(id(thing) for thing in public(package).values())
    pages = {"api/contnet_fast.md": reference("contnet_fast")}
    for thing in public_modules(package):
        name = thing.__name__.removeprefix("contnet_fast.").replace(".", "-")
        pages[f"api/{name}.md"] = reference(thing.__name__, own)
    return pages


def public_modules(module: ModuleType) -> list[ModuleType]:
    """The public modules of a module, each followed by its own."""
    found = [thing for thing in public(module).values() if inspect.ismodule(thing)]
    return [inner for thing in found for inner in (thing, *public_modules(thing))]


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs with the files of the site."""
    from mkdocs.structure.files import File

    pages = {target: root_page(source) for source, target in ROOT_PAGES.items()}
    for path, text in {**pages, **reference_pages()}.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Without the marks of generated tables, and with links to pages of the top folder as they are on the site."""
    for source, target in ROOT_PAGES.items():
        markdown = markdown.replace(f"](../{source}", f"]({target}")
    return re.sub(r"^<!--.*-->\n", "\n", markdown, flags=re.M)


def on_page_content(html: str, **_: Any) -> str:
    """Roles of Sphinx in docstrings, which Markdown does not know, go; the name that they stand before stays."""
    return re.sub(r":(?:class|func|meth|mod|attr):(?=<code>)", "", html)


if __name__ == "__main__":
    for requirement in requires("contnet-fast") or []:
        if re.search(r"extra == .docs.", requirement):
            print(requirement.partition(";")[0].strip())
