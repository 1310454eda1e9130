"""Where a callable keeps what it carries from one call to the next: attributes, buffers, closures, globals."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from functools import lru_cache, partial
from operator import is_
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

FOREIGN = ("torch", "numpy", "contnet_fast", "builtins")  # whose plain objects hold no state of a field
CALLABLES = (FunctionType, MethodType, partial)
TREES = (tuple, list, dict)
ATOMS = {bool, int, float, str, tuple, list, dict, type(None)}
OF_MODULE = frozenset(vars(nn.Module())) - {"training"}  # its own dictionaries, which stay the same objects
NO_STATE = (*CALLABLES, BuiltinFunctionType, nn.Module, ModuleType, type)


class Place(Protocol):
    """Values by name, which a call may read and change. ``owner`` is what messages call it."""

    owner: str

    def holds(self, objects: dict[str, Any]) -> bool:
        """Whether these objects are there and nothing else."""

    def read(self) -> dict[str, Any]:
        """A copy of what is there now."""

    def put(self, name: str, value: Any) -> None:
        """Set one."""

    def drop(self, name: str) -> None:
        """Remove one."""


class Entries:
    """All entries of a dictionary but the ``hidden`` ones, which are always there."""

    def __init__(self, owner: str, values: dict[str, Any], hidden: frozenset[str] = frozenset()) -> None:
        self.owner, self._values, self._hidden = owner, values, hidden

    def holds(self, objects: dict[str, Any]) -> bool:
        """Asked before every step: the loop is in C."""
        values = self._values
        return len(values) == len(objects) + len(self._hidden) and all(
            map(is_, map(values.get, objects), objects.values())
        )

    def read(self) -> dict[str, Any]:
        """What is there now."""
        return {name: value for name, value in self._values.items() if name not in self._hidden}

    def put(self, name: str, value: Any) -> None:
        """Set one."""
        self._values[name] = value

    def drop(self, name: str) -> None:
        """Remove one."""
        del self._values[name]


class Names:
    """Some entries of a dictionary."""

    def __init__(self, owner: str, values: dict[str, Any], names: tuple[str, ...]) -> None:
        self.owner, self._values, self._names = owner, values, names

    def holds(self, objects: dict[str, Any]) -> bool:
        """Whether these objects are there and nothing else."""
        return _same(self.read(), objects)

    def read(self) -> dict[str, Any]:
        """What is there now."""
        return {name: self._values[name] for name in self._names if name in self._values}

    def put(self, name: str, value: Any) -> None:
        """Set one."""
        self._values[name] = value

    def drop(self, name: str) -> None:
        """Remove one."""
        del self._values[name]


class Cell:
    """A variable of an enclosing function."""

    def __init__(self, owner: str, name: str, cell: CellType) -> None:
        self.owner, self._name, self._cell = owner, name, cell

    def holds(self, objects: dict[str, Any]) -> bool:
        """Whether these objects are there and nothing else."""
        return _same(self.read(), objects)

    def read(self) -> dict[str, Any]:
        """Its value, unless it is not bound yet."""
        return {self._name: self._cell.cell_contents} if _filled(self._cell) else {}

    def put(self, name: str, value: Any) -> None:
        """Set it."""
        self._cell.cell_contents = value

    def drop(self, name: str) -> None:
        """Unbind it."""
        del self._cell.cell_contents


class ScriptBuffers:
    """The buffers of a module of TorchScript, which keeps them in C++."""

    def __init__(self, owner: str, module: nn.Module) -> None:
        self.owner, self._module = owner, module

    def holds(self, objects: dict[str, Any]) -> bool:
        """Whether these objects are there and nothing else."""
        return _same(self.read(), objects)

    def read(self) -> dict[str, Any]:
        """What is there now."""
        return dict(self._module.named_buffers(recurse=False))

    def put(self, name: str, value: Any) -> None:
        """Set one."""
        setattr(self._module, name, value)

    def drop(self, name: str) -> None:
        """Nothing: they are fixed."""


def modules_within(func: Any) -> list[nn.Module]:
    """The modules that a callable is, is bound to, closes over, has as defaults or attributes, or names as globals.

    Functions that it closes over, binds or wraps are searched too; lists and dicts are not.
    """
    return [x for x in _reached(func) if isinstance(x, nn.Module)]


def tensors_within(func: Any) -> list[torch.Tensor]:
    """The tensors that want a gradient in these places, and in tuples, lists and dicts there, each once."""
    found: dict[int, torch.Tensor] = {}
    for place in places_within(func):
        for value in place.read().values():
            leaves = tree_leaves(value) if type(value) in TREES else [value]
            found.update((id(x), x) for x in leaves if isinstance(x, torch.Tensor) and x.requires_grad)
    return list(found.values())


def shards_within(func: Any) -> bool:
    """Whether a call of ``func`` gathers parameters that fully_shard has spread over processes."""
    return any(_sharded(module) for root in modules_within(func) for module in root.modules())


def places_within(func: Any) -> list[Place]:
    """Every place in which a call of ``func`` may find or leave something, as far as it can be seen.

    Those are: buffers, parameters, parts and attributes of modules; attributes of objects that a callable is, is bound
    to or closes over, or that those hold; variables of enclosing functions; tensors and assigned names among globals.
    """
    places: list[Place] = []
    seen: set[int] = set()
    for x in _reached(func):
        if isinstance(x, nn.Module):
            sharded = {inner for module in x.modules() if _sharded(module) for inner in module.modules()}
            for path, module in x.named_modules():
                if id(module) not in seen:
                    seen.add(id(module))
                    owner = ".".join(filter(None, (type(x).__name__, path)))
                    places += _of_module(owner, module, parameters=module not in sharded)
        elif isinstance(x, FunctionType):
            places += _of_function(x)
        elif not isinstance(x, (MethodType, partial)):
            places.append(Entries(type(x).__name__, vars(x)))
    return places


def _of_module(owner: str, module: nn.Module, *, parameters: bool) -> Iterator[Place]:
    if isinstance(module, torch.jit.ScriptModule):
        yield ScriptBuffers(owner, module)
        return
    parts = vars(module)
    yield Entries(owner, parts, OF_MODULE)
    yield Entries(owner, parts["_buffers"])  # an empty one too: a call may register the first
    for values in (parts["_parameters"] if parameters else {}, parts["_modules"]):
        if values:
            yield Entries(owner, values)


def _sharded(module: nn.Module) -> bool:
    """Whether fully_shard was applied to it, whose hooks put whole parameters or parts of them in place."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # a program that shards has imported it
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def _of_function(function: FunctionType) -> Iterator[Place]:
    owner, code = function.__qualname__, function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        if not _filled(cell) or not isinstance(cell.cell_contents, NO_STATE):
            yield Cell(owner, name, cell)
    used, assigned = _global_names(code)
    known = function.__globals__
    names = {name for name in used if isinstance(known.get(name), (torch.Tensor, torch.Generator))} | assigned
    if names:
        yield Names(owner, known, tuple(sorted(names)))


def _reached(func: Any) -> Iterator[Any]:
    """What a call of ``func`` may use: modules, functions, methods, and objects with attributes.

    Of what an object holds, other objects are followed once: one that a field keeps its statistics in is found, all
    that a program consists of is not.
    """
    seen: dict[int, Any] = {}
    left: list[tuple[Any, bool]] = [(func, True)]
    while left:
        x, follow = left.pop()
        if id(x) in seen:
            continue
        seen[id(x)] = x
        if isinstance(x, nn.Module):
            yield x
            for module in x.modules():
                parts = vars(module)
                left += _worth([parts[name] for name in parts.keys() - OF_MODULE], objects=follow)
        elif isinstance(x, partial):
            left += [(part, follow) for part in (x.func, *x.args, *x.keywords.values())]
        elif isinstance(x, MethodType):
            left += [(x.__self__, follow), (x.__func__, follow)]
        elif isinstance(x, FunctionType):
            yield x
            left += [(cell.cell_contents, follow) for cell in x.__closure__ or () if _filled(cell)]
            left += [(value, follow) for value in (*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values())]
            left += [(value, follow) for value in _named(x)]
        elif _has_attributes(x):
            yield x
            left += _worth(vars(x).values(), objects=follow)


def _worth(values: Any, *, objects: bool) -> list[tuple[Any, bool]]:
    """The attributes that may carry something themselves."""
    found = []
    for value in values:
        if type(value) in ATOMS:
            continue
        if isinstance(value, (nn.Module, *CALLABLES)):
            found.append((value, True))
        elif objects and _has_attributes(value):
            found.append((value, False))
    return found


def _has_attributes(x: Any) -> bool:
    if not hasattr(x, "__dict__") or isinstance(x, (*NO_STATE, torch.Tensor, dict)):
        return False
    return type(x).__module__.partition(".")[0] not in FOREIGN


def _named(function: FunctionType) -> list[Any]:
    """The modules among the globals that a function names, and the functions that stand in the same file."""
    known = function.__globals__
    values = [known.get(name) for name in _global_names(function.__code__)[0]]
    same = [x for x in values if isinstance(x, FunctionType) and x.__globals__ is known]
    return [*same, *(x for x in values if isinstance(x, nn.Module))]


@lru_cache(maxsize=1024)
def _global_names(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The names that may be globals in a piece of code and those in it, and which of them are assigned."""
    used = set(code.co_names)
    assigned = {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_GLOBAL"}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            more = _global_names(inner)
            used |= more[0]
            assigned |= more[1]
    return frozenset(used), frozenset(assigned)


def _same(values: dict[str, Any], objects: dict[str, Any]) -> bool:
    return len(values) == len(objects) and all(map(is_, map(values.get, objects), objects.values()))


def _filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  # it raises where the name is not bound yet
    except ValueError:
        return False
    return True
