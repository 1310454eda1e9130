"""Whether a block must call its field as a module: hooks, methods of a subclass.

Reading the tensors of a field once a solve is what calling it at every evaluation would be, and lets a
backend fuse the solve, unless something else wants to see or to change each call. Hooks that only compute a tensor of
the field from others (pruning, weight norm) are run once a solve.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.fx import Proxy
from torch.nn.modules import module as torch_modules

METHODS = ("forward", "rate", "evaluate")
COUNTERS = ("torch.utils.module_tracker", "torch.distributed._tools", "torch.distributed.tensor.debug")


class Accepted(NamedTuple):
    """The keywords that the evaluations of a field take beside its state.

    Attributes:
        names: those it names. required: those of them without a default. others: it takes any others too.
    """

    names: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    others: bool = False

    def check(self, field: Any, given: Iterable[str]) -> None:
        """Refuse keywords that the field does not take, and the lack of one that it needs.

        Raises:
            TypeError: naming the keyword, what takes it and what is accepted.
        """
        kind = getattr(field, "__name__", type(field).__name__)
        accepted = ", ".join(self.names) or "none"
        for name in given:
            if name not in self.names and not self.others:
                raise TypeError(f"{name}: got a keyword that the field {kind} does not take, accepted: {accepted}")
        for name in self.required:
            if name not in given:
                raise TypeError(f"{name}: got nothing, accepted: block(x, {name}=...), which the field {kind} needs")


def accepted_keywords(function: Callable[..., Any], positional: int) -> Accepted:
    """What ``function`` takes by keyword after so many positional arguments; nothing if it cannot be asked."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return Accepted()
    named = [p for p in parameters[positional:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    named = [p for p in named if p.name != "weights"]
    return Accepted(
        tuple(p.name for p in named),
        tuple(p.name for p in named if p.default is p.empty),
        any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def why_called(field: nn.Module, base: type, parts: Sequence[nn.Module] = ()) -> str:
    """Why a block must call ``field`` at every evaluation; empty if it may read the field's tensors instead.

    Args:
        base: the class whose methods a backend fuses. parts: modules of the field that it calls.
    """
    for module in (field, *parts):
        if has_hooks(module):
            for hook, before in _hooks(module):
                if not (before and only_computes(hook, field)):
                    return f"the field has a hook that runs at every evaluation: {_name(hook)}"
        if "forward" in module.__dict__ or "rate" in module.__dict__:
            return "the field has another forward or rate than its class, called at every evaluation"
    name = _hook_of_all()
    if name:
        return f"a hook of all modules runs at every evaluation of the field: {name}"
    kind = type(field)
    if kind is not base:
        for name in METHODS:
            if getattr(kind, name) is not getattr(base, name):
                return f"{kind.__name__} has a method {name} of its own, called at every evaluation"
    return ""


def why_seen(modules: Iterable[nn.Module]) -> str:
    """Why these modules of PyTorch must be called, so that something sees it; empty if their tensors may be read."""
    for module in modules:
        if has_hooks(module):
            return f"a {type(module).__name__} has a hook: {_name(_hooks(module)[0][0])}"
        if "forward" in module.__dict__:
            return f"a {type(module).__name__} has another forward than its class"
    name = _hook_of_all()
    return f"a hook of all modules: {name}" if name else ""


def as_one_node(
    module: nn.Module, x: Proxy, named: Callable[[], dict[str, Any]] = dict, *arguments: Any, kind: str = "block"
) -> Proxy:
    """torch.fx.symbolic_trace keeps one of our modules whole, as it keeps the modules of torch.nn.

    Args:
        named: keywords of the call, which are Proxies of no value if the module itself is traced.
        kind: what the module is called.

    Raises:
        TypeError: the module itself is traced.
    """
    tracer: Any = x.tracer
    path = tracer.path_of_module(module)
    if not path:
        raise TypeError(
            f"x: got a torch.fx.Proxy, accepted: a tensor; torch.fx traces modules that contain the {kind}, "
            f"and torch.nn.Sequential({kind}) is one"
        )
    return tracer.create_proxy("call_module", path, (x, *arguments), named())


def compute_tensors(field: nn.Module) -> None:
    """Run the hooks that compute a tensor of the field, as a call of the field would."""
    if field._forward_pre_hooks:
        for hook in field._forward_pre_hooks.values():
            if only_computes(hook, field):
                hook(field, ())


def only_computes(hook: Callable[..., Any], field: nn.Module) -> bool:
    """Whether a hook before forward sets a tensor of the field from others of it, the same at every evaluation."""
    from torch.nn.utils.prune import BasePruningMethod
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    kinds: tuple[type, ...] = (BasePruningMethod, WeightNorm)
    if not field.training:  # in training it moves its vectors
        kinds = (*kinds, SpectralNorm)
    return any(isinstance(hook, kind) and type(hook).__call__ is kind.__call__ for kind in kinds)


def takes_weights(kind: type) -> bool:
    """Whether ``forward`` of a module with a basis can be called at a stage, ``field(t, x, weights=weights)``."""
    parameters = inspect.signature(kind.forward).parameters.values()  # type: ignore[attr-defined]
    return any(p.name == "weights" or p.kind is p.VAR_KEYWORD for p in parameters)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module does more than its forward."""
    for hooks in (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    ):
        if hooks:
            return True
    return False


def _hooks(module: nn.Module) -> list[tuple[Callable[..., Any], bool]]:
    """Every hook of a module, and whether it runs before forward."""
    after = (module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return [(h, True) for h in module._forward_pre_hooks.values()] + [(h, False) for d in after for h in d.values()]


def _hook_of_all() -> str:
    """The name of a hook of all modules that may see more than how often they are called; empty if there is none."""
    for hook in _global_hooks():
        if not type(getattr(hook, "__self__", None)).__module__.startswith(COUNTERS):
            return _name(hook)
    return ""


def _global_hooks() -> list[Callable[..., Any]]:
    m = torch_modules
    found: list[Callable[..., Any]] = []
    for hooks in (
        m._global_forward_pre_hooks,
        m._global_forward_hooks,
        m._global_backward_pre_hooks,
        m._global_backward_hooks,
    ):
        if hooks:
            found += hooks.values()
    return found


def _name(hook: Callable[..., Any]) -> str:
    return getattr(hook, "__qualname__", type(hook).__qualname__)
