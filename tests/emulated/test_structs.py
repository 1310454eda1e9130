"""The structures that tests hand to the launchers are those of the headers, field by field."""

from __future__ import annotations

import re

import cuda_emulator as emulator
import pytest
import structs

HEADERS = "\n".join(path.read_text() for path in sorted(emulator.SOURCES.rglob("*.h")))


def declared(name: str) -> tuple[str, list[str]]:
    """The structure from which the headers derive this one, and its fields in order."""
    found = re.search(rf"\bstruct {name}(?: : (\w+))? {{(.*?)\n}};", HEADERS, flags=re.S)
    assert found, name
    text = re.sub(r"//[^\n]*", "", found[2])
    text = re.sub(r"\w[\w ]*\(\) const {[^}]*}", "", text)  # functions
    names = []
    for line in filter(None, map(str.strip, text.split(";"))):
        names += [re.search(r"(\w+)\s*(?:\[\w+\]\s*)*$", part)[1] for part in line.split(",")]
    return found[1] or "Structure", names


@pytest.mark.parametrize("kind", structs.MIRRORED, ids=lambda kind: kind.__name__)
def test_fields_are_those_of_the_header_in_its_order(kind):
    base, names = declared(kind.__name__)
    assert kind.__bases__[0].__name__ == base
    assert [field[0] for field in kind._fields_] == names


def test_a_structure_that_tests_fill_in_is_in_the_list():
    derived = {kind for kind in vars(structs).values() if isinstance(kind, type(structs.Combine))}
    assert set(structs.MIRRORED) == derived - {structs.Structure, structs.NamedSize}


@pytest.mark.skipif(bool(emulator.MISSING), reason=emulator.MISSING)
def test_a_size_that_differs_is_named(monkeypatch):
    class AddUp(structs.Structure):
        _fields_ = structs.AddUp._fields_[:-1]

    library = emulator.library()
    others = tuple(kind for kind in structs.MIRRORED if kind is not structs.AddUp)
    monkeypatch.setattr(structs, "MIRRORED", (*others, AddUp))
    with pytest.raises(TypeError, match=r"{'AddUp': \(32, 48\)}"):
        structs.check_sizes(library)
    monkeypatch.setattr(structs, "MIRRORED", others)
    with pytest.raises(TypeError, match=r"{'AddUp': \(None, 48\)}"):
        structs.check_sizes(library)
