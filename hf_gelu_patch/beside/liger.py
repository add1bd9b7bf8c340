"""What Liger-Kernel would change in a model: its own functions carried out on paper, from the installed files."""

from __future__ import annotations

import importlib.util
import inspect
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import nn

from hf_gelu_patch.beside.records import Beside, Change
from hf_gelu_patch.beside.rehearsing import (
    FailsError,
    Foreign,
    Function,
    RaisedError,
    Rehearsal,
    UnreadableError,
    Write,
)

__all__ = ["NAME", "scan"]

NAME = "liger"
_PACKAGE = "liger_kernel"
_MODULE = f"{_PACKAGE}.transformers.monkey_patch"
_TABLE = "MODEL_TYPE_TO_APPLY_LIGER_FN"
"""Where Liger-Kernel says which of its functions is for which model type."""


def scan(model: nn.Module) -> Beside:
    """What ``apply_liger_kernel_to_…(model=model)``, with nothing else said, would change: as the Trainer does with
    ``use_liger_kernel=True``."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return Beside(NAME, "Liger-Kernel", notes=("it is not installed: pip install liger-kernel",))
    folder = Path(next(iter(spec.submodule_search_locations)))
    title = f"Liger-Kernel {_version()}".rstrip()
    try:
        rehearsal = Rehearsal.of(_MODULE, folder)
        functions = rehearsal.scope[_TABLE]
    except (OSError, KeyError, SyntaxError, ImportError, UnreadableError) as error:
        return Beside(NAME, title, notes=(f"what it would change cannot be read: {error}",))
    path, subject = _subject(model)
    if subject is None:
        return Beside(NAME, title, notes=(f"it has nothing for a {type(model).__name__} without a transformers model",))
    kind = subject.config.model_type
    if kind not in functions:
        return Beside(NAME, title, notes=(f"it has nothing for the model type {kind} (it knows {len(functions)})",))
    function: Function = functions[kind]
    notes = []
    try:
        function(model=subject)
    except (ImportError, FailsError) as error:
        notes.append(f"{function.__name__} fails on this model: {error}")
    except UnreadableError as error:
        notes.append(f"{function.__name__} cannot be followed to its end here: {error}")
    prefix = f"{path}." if path else ""
    names = {id(one): (prefix + name).rstrip(".") for name, one in subject.named_modules()}
    changes = [found for one in rehearsal.writes if (found := _change(one, names, folder, subject)) is not None]
    return Beside(NAME, title, tuple(changes), tuple(_for_all(rehearsal)), tuple(notes))


def _version() -> str:
    try:
        return version("liger-kernel")
    except PackageNotFoundError:  # of another name: a nightly build
        return ""


def _subject(model: nn.Module) -> tuple[str, Any]:
    """The outermost transformers model in a model, with its name; None where there is none."""
    from transformers import PreTrainedModel

    found = ((path, module) for path, module in model.named_modules() if isinstance(module, PreTrainedModel))
    return next(found, ("", None))


def _change(write: Write, names: dict[int, str], folder: Path, model: nn.Module) -> Change | None:
    """What is written on a module of the model, where that computes something else then."""
    path = names.get(id(write.owner))
    value = _meant(write.value)
    if path is None or value is None:
        return None
    owner, key = write.owner, str(write.key)
    if key == "forward":
        text = f"{_name(value)} replaces {type(owner).__name__}.forward"
        return Change(path, type(owner).__name__, text + _refused(value, owner, model, folder))
    own = getattr(owner, key, None)
    if isinstance(own, nn.Module):
        own_name = type(own).__name__
        return Change(f"{path}.{key}".lstrip("."), own_name, f"{_name(value)} replaces {own_name}")
    return None


def _meant(value: object) -> Foreign | Function | None:
    """What is put somewhere, out of what binds it to a module."""
    if isinstance(value, Function):
        return value
    if not isinstance(value, Foreign):
        return None
    inner = next((one for one in value.given if isinstance(one, (Foreign, Function))), None)
    return _meant(inner) if value.called and inner is not None else value


def _name(value: Foreign | Function) -> str:
    if isinstance(value, Function):
        return value.__name__
    return value.text.removesuffix(".__get__").removesuffix(".forward")


def _refused(value: Foreign | Function, owner: object, model: Any, folder: Path) -> str:
    """What the class whose forward is bound would say to the config of the module that it is bound on, were it built
    there. It is not asked where a model exists already."""
    if isinstance(value, Function) or not value.origin.startswith(f"{_PACKAGE}."):
        return ""
    config = getattr(owner, "config", None) or getattr(model, "config", None)
    try:
        constructor = Rehearsal.of(value.origin, folder).constructor(value.root)
        if constructor is not None and config is not None:
            constructor(owner, config)
    except RaisedError as error:
        return f"; built anew it would refuse this config ({error}), which is not asked of a model that exists"
    except (OSError, SyntaxError, ImportError, TypeError, UnreadableError):  # it is not known, or takes more
        return ""
    return ""


def _for_all(rehearsal: Rehearsal) -> list[str]:
    """What is written on Python modules, classes and registries: it holds for the whole process."""
    found = []
    for write in rehearsal.writes:
        value = _meant(write.value)
        if isinstance(write.owner, nn.Module) or value is None:
            continue
        if inspect.ismodule(write.owner) or inspect.isclass(write.owner):
            where = f"{write.owner.__name__.rpartition('.')[2]}.{write.key}"
        else:
            where = f"{type(write.owner).__name__}[{write.key!r}]"
        found.append(f"{where} → {_name(value)}")
    return list(dict.fromkeys([*found, *(f"{call} is called" for call in rehearsal.calls)]))
