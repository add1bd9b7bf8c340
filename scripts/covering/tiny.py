"""A tiny random model of almost every type that transformers knows, from its configuration alone, with inputs for it.

    from scripts.covering.tiny import model_types, tiny_model

    tiny = tiny_model("llava")
    tiny.run().last_hidden_state

The default configuration is shrunk by the names and values of its entries; the activations it names stay as they are.
The inputs follow from the signature of the model's ``forward``. Nothing is read from the hub. What neither rule
covers stands in two tables: ``overrides`` for configurations, ``FEEDS`` of ``feeding`` for inputs.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import itertools
import logging
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_gelu_patch.errors import first_line
from scripts.covering.classes import configurations, has_model, model_classes
from scripts.covering.feeding import TinyModelError, copied, working_inputs
from scripts.covering.shrinking import Shrinker

__all__ = ["TinyModel", "TinyModelError", "isolated", "model_types", "tiny_model", "with_weights"]


@dataclass(frozen=True)
class TinyModel:
    """A tiny random model and the keyword arguments of one forward.

    Attributes:
        model_type: what was asked for. Where the whole cannot be run, the model is one of its parts, such as its
            text model; ``model.config.model_type`` is another then.
        model: transformers' or another library's; float32, on the CPU, in evaluation mode.
        inputs: what ``model(**inputs)`` takes.
    """

    model_type: str
    model: nn.Module
    inputs: dict[str, Any]

    def run(self, model: nn.Module | None = None) -> Any:
        """The output of ``model`` (by default the own one); two runs of the same model are identical to the bit."""
        with isolated(0), torch.no_grad():
            return (self.model if model is None else model)(**copied(self.inputs))


@functools.lru_cache(maxsize=1)
def model_types() -> tuple[str, ...]:
    """Every type of configuration that transformers has a model class for, sorted; imports all of them."""
    with isolated(0):
        return tuple(sorted(name for name in CONFIG_MAPPING if has_model(name)))


def tiny_model(model_type: str, *, seed: int = 0) -> TinyModel:
    """A tiny model of ``model_type``; the same seed gives the same weights.

    Raises:
        TinyModelError: there is no such type, or none of its classes could be built and run.
    """
    if model_type not in CONFIG_MAPPING:
        raise TinyModelError(f"unknown model type {model_type!r}; see model_types()")
    errors: list[Exception] = []
    with isolated(seed):
        for config in _default_configs(model_type, errors):
            try:
                Shrinker().shrink(config)
            except Exception as error:
                errors.append(error)
                continue
            for part in configurations(config):  # the whole, or else one of the models that it is made of
                found = _first_that_runs(part, errors)
                if found is not None:
                    return TinyModel(model_type, *found)
    if not errors:
        raise TinyModelError(f"{model_type}: no model class")
    raise TinyModelError(f"{model_type}: {first_line(errors[0])}") from errors[0]


def _default_configs(model_type: str, errors: list[Exception]) -> Iterator[PretrainedConfig]:
    """The default, then what stands for it in the default of a larger model, which may be more complete."""
    config_class = CONFIG_MAPPING[model_type]
    try:
        yield config_class()
    except Exception as error:
        errors.append(error)
    for larger in vars(importlib.import_module(config_class.__module__)).values():
        if inspect.isclass(larger) and config_class in getattr(larger, "sub_configs", {}).values():
            with contextlib.suppress(Exception):
                whole: Any = larger()
                yield from (part for part in configurations(whole) if type(part) is config_class)


def _first_that_runs(
    config: PretrainedConfig, errors: list[Exception]
) -> tuple[PreTrainedModel, dict[str, Any]] | None:
    """A model of the configuration and its inputs; what failed before is added to ``errors``."""
    models: dict[type[PreTrainedModel], PreTrainedModel] = {}
    try:
        classes = model_classes(type(config))
    except Exception as error:
        errors.append(error)
        return None
    for text_only, cls in itertools.product((False, True), classes):
        try:
            if cls not in models:
                models[cls] = _build(cls, config)
            return models[cls], working_inputs(models[cls], text_only=text_only)
        except Exception as error:
            errors.append(error)
    return None


# Weights


def _build(cls: Callable[[PretrainedConfig], Any], config: PretrainedConfig) -> PreTrainedModel:
    """The model, with weights such that what reaches the activations is of the order of one."""
    return with_weights(lambda: cls(config))


def with_weights(make: Callable[[], Any]) -> Any:
    """What ``make`` builds, in float32 and evaluation mode; weights that it leaves unset are set, and too small ones
    are made larger."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns with NaN
    try:
        model = make().float().eval()
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    with torch.no_grad():
        for buffer in model.buffers():
            buffer[buffer.isnan()] = 0
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if parameter.dim() > 1 and parameter.numel():
                    _rescale(parameter, fan_in=1 if isinstance(module, nn.Embedding) else parameter[0].numel())
                elif not parameter.isfinite().all():
                    parameter.fill_(1.0)
    return model


def _rescale(parameter: Tensor, fan_in: int) -> None:
    """Not smaller than what keeps the size of its input: at their own initial values 64 features would vanish."""
    if not parameter.isfinite().all() or not parameter.any():
        parameter.normal_(std=0.02)
    rms = parameter.square().mean().sqrt()
    parameter.mul_((fan_in**-0.5 / rms).clamp(min=1.0))


# Surroundings


@contextlib.contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Random state seeded, libraries silent; both put back."""
    verbosity = transformers.logging.get_verbosity()
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity(logging.CRITICAL)
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            transformers.logging.set_verbosity(verbosity)
            random.setstate(python)
            np.random.set_state(numpy)
