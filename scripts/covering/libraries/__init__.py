"""Small random models of libraries other than transformers, by a library's name and a model's: ``timm/test_vit``.

Each library has a module here, ``from_timm``, which is imported when its models are asked for. It has two functions:

    names() -> Sequence[str]                           the models to try, a small one of each kind
    build(name) -> Iterator[tuple[make, inputs]]       ways to make one, the smallest first: ``make()`` is the model,
                                                       ``model(**inputs(model))`` a forward

The first way is taken that gives a model which runs. The weights are set as those of transformers' tiny models.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from hf_gelu_patch.errors import first_line
from scripts.covering.feeding import copied
from scripts.covering.tiny import TinyModel, TinyModelError, isolated, model_types, tiny_model, with_weights

__all__ = ["LIBRARIES", "Ways", "installed", "library_of", "model_of", "names_of", "version_of"]

LIBRARIES = {
    "transformers": "transformers",
    "timm": "timm",
    "torchvision": "torchvision",
    "diffusers": "diffusers",
    "open_clip": "open_clip_torch",
    "sentence_transformers": "sentence-transformers",
    "x_transformers": "x-transformers",
}
"""What a library is imported as, and what its package is called."""

Inputs = Callable[[nn.Module], dict[str, Any]]
Ways = Iterator[tuple[Callable[[], nn.Module], Inputs]]


def library_of(model_type: str) -> str:
    """``timm`` of ``timm/test_vit``; a name without a library is a type of transformers."""
    library, slash, _ = model_type.partition("/")
    return library if slash else "transformers"


def installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def version_of(library: str) -> str:
    return importlib.metadata.version(LIBRARIES[library])


def names_of(library: str) -> tuple[str, ...]:
    """The models of a library that are tried when all are: transformers' types, or ``timm/…``."""
    if library == "transformers":
        return model_types()
    with isolated(0):
        return tuple(f"{library}/{name}" for name in sorted(_module(library).names()))


def model_of(model_type: str) -> TinyModel:
    """A model of a library; the same weights each time.

    Raises:
        TinyModelError: there is no such library or model here, or it cannot be built and run.
    """
    library, _, name = model_type.partition("/")
    if not name:
        return tiny_model(model_type)
    if library not in LIBRARIES or not installed(library):
        raise TinyModelError(f"{library} is not installed here")
    errors: list[Exception] = []
    with isolated(0):
        try:
            for make, inputs in _module(library).build(name):
                found = _made(make, inputs, errors)
                if found is not None:
                    return TinyModel(model_type, *found)
        except Exception as error:  # whatever the library raises of a name that it does not know
            errors.append(error)
    if not errors:
        raise TinyModelError(f"{model_type}: no way to make it")
    raise TinyModelError(f"{model_type}: {first_line(errors[0])}") from errors[0]


def _module(library: str) -> Any:
    return importlib.import_module(f"scripts.covering.libraries.from_{library}")


def _made(
    make: Callable[[], nn.Module], inputs: Inputs, errors: list[Exception]
) -> tuple[nn.Module, dict[str, Any]] | None:
    """The model and its inputs, where it runs on them; else nothing, and the reason among ``errors``."""
    torch.default_generator.manual_seed(0)
    try:
        model: nn.Module = with_weights(make)
        _wake(model)
        given = inputs(model)
        with torch.no_grad():
            model(**copied(given))
    except Exception as error:
        errors.append(error)
        return None
    return model, given


def _wake(model: nn.Module) -> None:
    """Scales that are near zero before training, such as those of a residual branch, let nothing through that could
    drift: they become one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            constant = parameter.dim() < 2 and parameter.numel() and bool((parameter == parameter.flatten()[0]).all())
            if constant and not name.endswith("bias") and parameter.abs().max() < 0.1:
                parameter.fill_(1.0)
