"""The class that a patched module gets: a subclass of its own, with the rewritten methods, under the same names.

torch's parametrizations and FSDP2 do the same. A method is looked up on whoever is called, so copies and replicas of a
module compute with the weights that they hold; nothing refers back to the module; undoing sets a class back.
"""

from __future__ import annotations

import copyreg
import functools
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from hf_gelu_patch.errors import PatchError, first_line
from hf_gelu_patch.forwards.names import MISSING
from hf_gelu_patch.forwards.replacements import recorded
from hf_gelu_patch.forwards.rewriting import Rewriting
from hf_gelu_patch.implementations.registry import Fused
from hf_gelu_patch.others import tool_of
from hf_gelu_patch.recomputing import recomputes
from hf_gelu_patch.sources import (
    class_attribute,
    compiled,
    is_model_code,
    passed_on,
    show_as_written,
    stands_for,
    undecorated,
)

__all__ = [
    "Kept",
    "StandIn",
    "bind",
    "check_nothing_over",
    "class_without",
    "hand_back",
    "is_overridden",
    "is_patched",
    "kept",
    "original_of",
    "rewritings",
    "stand_in",
    "unbind",
    "written_attribute",
]

_CHANGE = "_hf_gelu_patch"  # of a class made here: what it changes
_ORIGINAL = "_hf_gelu_patch_original"  # of a class made here, or rebuilt around one: the class whose place it takes
_TOKEN = "_hf_gelu_patch_token"  # of a class with rewritten methods: by which those know it
_KEPT = "_hf_gelu_patch_kept"  # of a module: what undoing needs beside the class


@dataclass(frozen=True)
class StandIn:
    """What a module computes that stands where an activation was.

    Attributes:
        fused: what computes it.
        label: that in words.
        as_class: whether the class's own forward computes the same. It is then what a trace, an export or
            torch.jit.script is shown.
    """

    fused: Fused
    label: str
    as_class: bool = False


@dataclass(frozen=True)
class Kept:
    """What a module of a patched model keeps for the undo.

    Attributes:
        config_changes: the config entries that follow this patch; the same list at all modules of one patch.
        original: of a module that stands where an activation was: that activation.
        attributes: the names of that module's own attributes when it was put there.
    """

    config_changes: list[Any]
    original: nn.Module | None = None
    attributes: frozenset[str] = frozenset()


def is_patched(module: nn.Module) -> bool:
    """Whether a module has a class made here."""
    return hasattr(type(module), _CHANGE)


def rewritings(module: nn.Module) -> tuple[Rewriting, ...]:
    """The methods of a module that were rewritten; none where it is not patched or stands in for an activation."""
    change = getattr(type(module), _CHANGE, ())
    return change if isinstance(change, tuple) else ()


def is_overridden(module: nn.Module, method: str) -> bool:
    """Whether the class whose place a module's has taken was given another method since, which then runs."""
    own: Any = next(vars(base)[_ORIGINAL] for base in type(module).__mro__ if _ORIGINAL in vars(base))
    return not stands_for(getattr(type(module), method), getattr(own, method, None), method)


def written_attribute(cls: type, name: str) -> Any:
    """What a class has under a name in the model's own code, as if it had never been patched; ``MISSING`` where it has
    nothing, or torch's."""
    for base in cls.__mro__:
        if name in vars(base) and _CHANGE not in vars(base) and not (_made_by_torch(base) and name in _wrapped(base)):
            return vars(base)[name] if is_model_code(base.__module__) else MISSING
    return MISSING


def kept(module: nn.Module) -> Kept | None:
    """What a module keeps for the undo, or None."""
    found: Kept | None = vars(module).get(_KEPT)
    return found


# ---- Classes


class _Patched(type):
    """The type of the classes made here: pickle makes such a class anew from what it was made of."""


def _reduced(cls: type) -> str | tuple[Any, ...]:
    change = vars(cls).get(_CHANGE)
    if change is None:  # another tool's class around one made here, which that tool has to answer for
        return cls.__qualname__
    if isinstance(change, StandIn):
        return _stand_in_class, (vars(cls)[_ORIGINAL], change)
    return _rewritten_class, (vars(cls)[_ORIGINAL], change)


copyreg.pickle(_Patched, _reduced)


@functools.lru_cache(maxsize=64)
def _metaclass(of: Any) -> Any:
    if of is type:
        return _Patched
    made = type(f"Patched{of.__name__}", (_Patched, of), {})
    copyreg.pickle(made, _reduced)
    return made


def _subclass(cls: Any, change: object, members: dict[str, Any]) -> type[nn.Module]:
    """A subclass under the class's own names."""
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    metaclass: Any = type(cls)
    members = {**names, _CHANGE: change, _ORIGINAL: cls, **members}
    make = functools.partial(_metaclass(metaclass), cls.__name__)
    with _named_where_refused(cls):
        made: type[nn.Module] = make((nn.Module,), dict(members))
        try:
            made.__bases__ = (cls,)  # afterwards: the class's __init_subclass__ may keep a register of its subclasses
        except TypeError:  # not laid out as nn.Module is: another base stands before it, or there are slots
            made = make((cls,), members)
    return made


@contextmanager
def _named_where_refused(cls: type) -> Iterator[None]:
    """Whatever a class's metaclass or base raises while a class is derived from it, as an error that names the class.

    Raises:
        PatchError: something was raised.
    """
    try:
        yield
    except Exception as error:
        raise PatchError(
            f"no class can be derived from {cls.__module__}.{cls.__qualname__} ({first_line(error)}): "
            f"exclude={cls.__name__!r} leaves it out."
        ) from error


def _rewritten_class(cls: Any, change: tuple[Rewriting, ...]) -> type[nn.Module]:
    """The same class for the same change, as long as the methods are what they were: torch.compile asks for that."""
    return _cached_class(cls, change, tuple(_code(cls, one.method) for one in change))


def _code(cls: type[nn.Module], method: str) -> object:
    function: Any = class_attribute(cls, method)
    return function, undecorated(function, method)[0].__code__


@functools.lru_cache(maxsize=4096)
def _cached_class(cls: Any, change: tuple[Rewriting, ...], _: tuple[object, ...]) -> type[nn.Module]:
    token = uuid.uuid4().hex  # torch.compile compares strings, and not the objects themselves

    def moved(module: nn.Module) -> bool:
        return getattr(type(module), _TOKEN, None) != token

    methods = {one.method: _compiled(cls, one, moved) for one in change}

    def scripted(module: nn.Module) -> nn.Module:
        if recomputes(module):
            raise _not_scriptable(module, "computes results again in backward")
        for one in change:
            if one.swaps:
                raise _not_scriptable(module, f"computes another function in {one.method}")
            show_as_written(methods[one.method], one.method)
        return module if below is None else below(module)

    below = getattr(cls, _SCRIPTED, None)
    return _subclass(cls, change, {**methods, _TOKEN: token, _SCRIPTED: scripted})


def _compiled(cls: Any, one: Rewriting, moved: Callable[[nn.Module], bool]) -> FunctionType:
    made = compiled(cls, one.method, one.text, one.helpers, moved)
    if one.around is None:
        return made
    helpers = ((_AROUND, one.around), (_WHOLE, made))
    return compiled(cls, one.method, passed_on(one.text, _AROUND, _WHOLE), helpers, moved)


_AROUND, _WHOLE = "__hf_gelu_patch_around__", "__hf_gelu_patch_whole__"  # names that no model's code has


@functools.lru_cache(maxsize=4096)
def _stand_in_class(cls: Any, change: StandIn) -> type[nn.Module]:
    own, as_class, fused, traced = cls.forward, change.as_class, change.fused, recorded

    def forward(module: nn.Module, *given: Tensor, **named: Tensor) -> Tensor:
        if as_class and traced():
            result: Tensor = own(module, *given, **named)
            return result
        (x,) = (*given, *named.values())  # the original's parameter may have any name
        return fused(x)

    def extra_repr(_: nn.Module) -> str:
        return change.label

    def scripted(module: nn.Module) -> nn.Module:
        if not as_class:
            raise _not_scriptable(module, "writes another function over its input")
        return module

    if as_class and isinstance(own, FunctionType):  # torch.jit.script reads its source, and looks names up in globals
        forward = FunctionType(forward.__code__, own.__globals__, "forward", None, forward.__closure__)
        forward.__dict__["__wrapped__"] = own
    return _subclass(cls, change, {"forward": forward, "extra_repr": extra_repr, _SCRIPTED: scripted})


_SCRIPTED = "__prepare_scriptable__"  # what torch.jit.script calls of each module first


def _not_scriptable(module: nn.Module, because: str) -> PatchError:
    return PatchError(
        f"a patched {type(module).__name__} {because}, which torch.jit.script cannot read: unpatch(model) first, or "
        "take torch.export or torch.jit.trace, which show what the patched model computes."
    )


# ---- A module's class set, and set back


def bind(module: nn.Module, change: tuple[Rewriting, ...], config_changes: list[Any]) -> None:
    """Give a module the class with the rewritten methods.

    Raises:
        PatchError: Python does not let its class be changed, or its metaclass lets no class be derived.
    """
    own = type(module)
    target = next(cls for cls in own.__mro__ if issubclass(cls, nn.Module) and not _made_by_torch(cls))
    rewritten_class = _rewritten_class(target, change)
    with _named_where_refused(own):
        made = _rebuilt(own, {target: rewritten_class}, _ORIGINAL)
    _set_class(module, made)
    if config_changes:
        vars(module)[_KEPT] = Kept(config_changes)


def _made_by_torch(cls: type) -> bool:
    """Whether torch has made this class for a module (a parametrization, FSDP2) and will set the one below it back."""
    module = cls.__module__
    return module.startswith("torch.") and getattr(sys.modules.get(module), cls.__qualname__, None) is not cls


def _rebuilt(cls: type, replaced: dict[type, type], original: str | None = None) -> type:
    """A class in whose bases, however deep, others take the place of some; itself where it has none of them."""
    if cls in replaced:
        return replaced[cls]
    bases = tuple(_rebuilt(base, replaced, original) for base in cls.__bases__)
    if bases == cls.__bases__:
        return cls
    members = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    wrapped = {name: members.pop(name) for name in _wrapped(cls)}
    made = type(cls)(cls.__name__, bases, {**members, **({original: cls} if original else {})})
    for name, value in wrapped.items():
        if name not in vars(made):
            setattr(made, name, value)
    return made


def _wrapped(cls: type) -> list[str]:
    """The methods of a class that are nothing but its base's in a wrapper. Where an ``__init_subclass__`` has put that
    there, as transformers' layers do for gradient checkpointing, it does so again for a class that is made anew."""
    found = []
    for name, value in vars(cls).items():
        below = getattr(value, "__wrapped__", None)
        if below is not None and any(vars(base).get(name) is below for base in cls.__mro__[1:]):
            found.append(name)
    return found


def class_without(module: nn.Module) -> type:
    """The class of a module as if it had never been patched: under those that other tools have put on top since.

    Raises:
        PatchError: such a class cannot be made again without the patched one below it.
    """
    cls = type(module)
    if _ORIGINAL in vars(cls):
        found: type = vars(cls)[_ORIGINAL]
        return found
    made = {base: vars(base)[_ORIGINAL] for base in cls.__mro__ if _ORIGINAL in vars(base)}
    try:
        return _rebuilt(cls, made)
    except Exception as error:  # another tool's metaclass: whatever it raises
        raise PatchError(
            f"{cls.__module__}.{cls.__qualname__} was put over a patched {next(iter(made)).__name__} and is in the way "
            f"of unpatch: take it off first ({first_line(error)})."
        ) from error


def unbind(module: nn.Module, cls: type) -> None:
    """Set a module's class back, to ``class_without`` the patch."""
    _set_class(module, cls)
    vars(module).pop(_KEPT, None)


def _set_class(module: nn.Module, cls: type) -> None:
    """Change a module's class, and with it what accelerate's hooks and others have bound of its methods."""
    before = type(module)
    try:
        object.__setattr__(module, "__class__", cls)
    except TypeError as error:
        raise PatchError(
            f"the class of a {before.__name__} cannot be changed ({error}): exclude={before.__name__!r} leaves it out."
        ) from error
    state = vars(module)
    for name, value in list(state.items()):
        if type(value) is not MethodType or value.__self__ is not module:
            continue
        key = value.__func__.__name__
        method: Any = getattr(cls, key, None)
        if value.__func__ is not method and stands_for(value.__func__, getattr(before, key, None), key):
            state[name] = MethodType(method, module)


# ---- Modules in an activation's stead


def stand_in(original: nn.Module, template: nn.Module, change: StandIn, config_changes: list[Any]) -> nn.Module:
    """A module to stand where an activation was: of the template's class and with its attributes, computing ``fused``.

    Hooks live in the original's own dictionaries, so that handles taken before and after patching go on working.

    Args:
        original: the activation.
        template: what it is to look like: the original itself, or the field's own module of another function.
        change: what it computes.
        config_changes: see ``Kept``.
    """
    cls: Any = type(template)
    made = object.__new__(_stand_in_class(cls, change))
    state = {name: value for name, value in vars(template).items() if name not in _ACCELERATE}
    state |= {name: vars(original)[name] for name in _HOOK_ATTRIBUTES & vars(original).keys()}
    vars(made).update({**state, "training": original.training})
    _carry_accelerate_hook(original, made)
    vars(made)[_KEPT] = Kept(config_changes, original, frozenset({*vars(made), _KEPT}))
    return made


def check_nothing_over(module: nn.Module) -> None:
    """Refuse to take a module away that stands in for an activation, where another tool has put a forward on it.

    Raises:
        PatchError: which one.
    """
    over = vars(module).get("forward")
    if over is None or getattr(over, "__func__", None) is type(module).forward:  # accelerate's hooks leave that behind
        return
    if "_hf_hook" in vars(module):  # accelerate's, which goes along
        return
    named = over if isinstance(over, (FunctionType, MethodType)) else type(over)
    tool = tool_of(over)
    whose = "" if tool is None else f", by {tool.name}"
    raise PatchError(
        f"{named.__module__}.{named.__qualname__} was put over the forward of a {type(module).__name__} that stands "
        f"where an activation was{whose}, and is in the way of unpatch: take it off first"
        f"{'.' if tool is None else f' (del module.forward), or {tool.remedy}.'}"
    )


def original_of(module: nn.Module) -> nn.Module | None:
    """The activation that a module stands in for; None for any other module."""
    found = kept(module)
    return None if found is None else found.original


def hand_back(module: nn.Module, original: nn.Module) -> None:
    """Tell an activation what happened meanwhile to the module that stood in for it: its training mode, its hooks, and
    attributes that other tools have put on it."""
    found = kept(module)
    assert found is not None
    if original.training != module.training:
        original.training = module.training
    if original._is_full_backward_hook != module._is_full_backward_hook:
        original._is_full_backward_hook = module._is_full_backward_hook
    _carry_accelerate_hook(module, original)
    since = vars(module).keys() - found.attributes - _ACCELERATE
    vars(original).update({name: vars(module)[name] for name in since})


# Every dictionary of hooks that nn.Module keeps on an instance, and the flag beside them.
_HOOK_ATTRIBUTES = {name for name in vars(nn.Module()) if "_hook" in name}
_ACCELERATE = {"_hf_hook", "_old_forward", "forward"}


def _carry_accelerate_hook(source: nn.Module, target: nn.Module) -> None:
    """accelerate's dispatch hook on an activation itself (device maps that name one do that)."""
    wanted, present = vars(source).get("_hf_hook"), vars(target).get("_hf_hook")
    if wanted is present:
        return
    from accelerate.hooks import add_hook_to_module, remove_hook_from_module

    if present is not None:
        remove_hook_from_module(target)
    if wanted is not None:
        add_hook_to_module(target, wanted)
