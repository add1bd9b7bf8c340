"""Liger-Kernel's function for a model's type, called on a model made for that in a process that then ends.

The process runs this file by its path. So the file imports nothing of this package. It gets a question as JSON on
stdin, and writes the answer as JSON to stdout.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from types import FunctionType, MethodType
from typing import Any

__all__ = ["answer"]

_PACKAGE = "liger_kernel"


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """What the function changes in a new model of a class, and in the process.

    Args:
        question: ``kind``, the model type; ``model_class`` and ``config_class``, each a module and the name in it; and
            ``config``, as plain data.

    Returns:
        ``changes``, each the path of a module, its class and what takes the place of what; ``process``, what holds for
        all models of the process; ``notes``, why something is not known.
    """
    said: dict[str, Any] = {"changes": [], "process": [], "notes": []}
    try:
        functions = importlib.import_module(f"{_PACKAGE}.transformers.monkey_patch").MODEL_TYPE_TO_APPLY_LIGER_FN
    except Exception as error:
        return {**said, "notes": [f"it cannot be imported: {_told(error)}"]}
    kind = question["kind"]
    if kind not in functions:
        return {**said, "notes": [f"it has nothing for the model type {kind} (it knows {len(functions)})"]}
    try:
        model = _made(question)
    except Exception as error:
        name = question["model_class"][1]
        return {**said, "notes": [f"no {name} can be made of its config in a process of its own: {_told(error)}"]}
    before = {path: (type(one), vars(one).get("forward")) for path, one in model.named_modules()}
    try:
        functions[kind](model=model)
    except Exception as error:
        said["notes"].append(f"{functions[kind].__name__} fails on this model: {_told(error)}")
    for path, module in model.named_modules():
        if path not in before:  # part of what stands there now
            continue
        (cls, own), forward = before[path], vars(module).get("forward")
        if type(module) is not cls:
            said["changes"].append((path, cls.__name__, f"{type(module).__name__} replaces {cls.__name__}"))
        elif forward is not own:
            refused = _refused(forward, getattr(module, "config", model.config))
            said["changes"].append((path, cls.__name__, f"{_name(forward)} replaces {cls.__name__}.forward{refused}"))
    said["process"] = [f"{where} → {what}" for where, what in _standing().items()]
    return said


def _told(error: Exception) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"


def _made(question: dict[str, Any]) -> Any:
    """A model of the class and config in question, without memory for its weights."""
    import torch

    model_class, config_class = (_imported(*question[key]) for key in ("model_class", "config_class"))
    with torch.device("meta"):
        return model_class(config_class.from_dict(question["config"]))


def _imported(module: str, name: str) -> Any:
    """What a module has under a name, which may have dots."""
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def _is(value: object, *classes: type) -> bool:
    """As isinstance, without asking the object, which may be a stand-in that imports something or warns."""
    return issubclass(type(value), classes)


def _own(value: Any) -> bool:
    """Whether it is a function or class of Liger-Kernel."""
    value = value.func if _is(value, functools.partial) else value
    known = _is(value, type, FunctionType, MethodType)
    return known and str(getattr(value, "__module__", "")).partition(".")[0] == _PACKAGE


def _name(value: Any) -> str:
    value = value.func if _is(value, functools.partial) else value
    called = str(getattr(value, "__qualname__", type(value).__name__))
    return called.rpartition("<locals>.")[2].removesuffix(".forward")


def _standing() -> dict[str, str]:
    """What of Liger-Kernel stands in the modules and classes of torch and transformers, by where it stands."""
    found: dict[str, str] = {}
    for place, module in list(sys.modules.items()):
        if place.partition(".")[0] not in ("torch", "transformers"):
            continue
        for name, value in list(vars(module).items()):
            if _own(value):
                found[f"{place.rpartition('.')[2]}.{name}"] = _name(value)
            elif _is(value, type):
                within = {key: one for key, one in vars(value).items() if _own(one)}
                found.update((f"{value.__name__}.{key}", _name(one)) for key, one in within.items())
    return found


def _refused(forward: Any, config: Any) -> str:
    """What the class whose forward is bound would say to a config, were it built. A model that exists is not asked."""
    import torch

    function = getattr(forward, "__func__", forward)
    cls: Any = getattr(sys.modules.get(getattr(function, "__module__", "")), _name(function), None)
    if not _is(cls, type) or not _own(cls):
        return ""
    try:
        with torch.device("meta"):
            cls(config)
    except ValueError as error:
        return f"; built anew it would refuse this config ({_told(error)}), which is not asked of a model that exists"
    except Exception:  # it takes other arguments
        return ""
    return ""


def _main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what others print
    question = json.loads(sys.stdin.read())
    sys.path[:] = question["path"]
    json.dump(answer(question), answers)
    answers.close()


if __name__ == "__main__":
    _main()
