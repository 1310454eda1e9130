"""Triton's interpreter without what it makes for the compiler alone, which is most of its time.

Every tensor of a kernel has a type with a shape, and every shape a type of its own that only the compiler reads. Here a
type is made once for each element and shape, and the type of a shape when it is asked for. Values are none the wiser.
"""

from __future__ import annotations

from types import ModuleType

import pytest

NAMES = ("block_type", "constexpr", "tensor", "tuple")


def lean_types(interpreter: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the short ways in place; a Triton that is made another way keeps its own."""
    core = interpreter.tl.core
    if all(hasattr(core, name) for name in NAMES):
        _types_of_tuples_when_asked_for(core, monkeypatch)
        _one_type_for_each_shape(core, monkeypatch)
        _one_shape_for_each_type(core, monkeypatch)
    if hasattr(interpreter, "_get_np_dtype"):
        _numpy_types_by_name(interpreter, monkeypatch)


def _types_of_tuples_when_asked_for(core: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    make = core.tuple.__init__

    def init(self, args, type=None):
        if type is None:
            self.values = list(args)
        else:
            make(self, args, type)

    def get(self):
        if "_type" not in self.__dict__:
            make(self, self.values)
        return self.__dict__["_type"]

    def put(self, value):
        self.__dict__["_type"] = value

    monkeypatch.setattr(core.tuple, "__init__", init)
    monkeypatch.setattr(core.tuple, "type", property(get, put), raising=False)


def _one_type_for_each_shape(core: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    make, known = core.block_type.__init__, {}

    def init(self, element_ty, shape):
        sizes = tuple(size.value if isinstance(size, core.constexpr) else size for size in shape)
        key = (element_ty.__class__, element_ty.name, getattr(element_ty, "address_space", None), sizes)
        if key not in known:
            make(self, element_ty, shape)
            known[key] = self.__dict__
        self.__dict__.update(known[key])

    monkeypatch.setattr(core.block_type, "__init__", init)


def _one_shape_for_each_type(core: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    make = core.tensor.__init__

    def init(self, handle, type):
        self.handle = handle
        if "of_tensors" not in type.__dict__:
            make(self, handle, type)
            type.of_tensors = {name: value for name, value in self.__dict__.items() if name != "handle"}
        self.__dict__.update(type.of_tensors)

    monkeypatch.setattr(core.tensor, "__init__", init)


def _numpy_types_by_name(interpreter: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    find, known = interpreter._get_np_dtype, {}
    blocks = interpreter.tl.block_type

    def found(kind):
        element = kind.element_ty if isinstance(kind, blocks) else kind
        key = (element.__class__, element.name)
        if key not in known:
            known[key] = find(element)
        return known[key]

    monkeypatch.setattr(interpreter, "_get_np_dtype", found)
