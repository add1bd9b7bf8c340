"""Which classes of models transformers has for a configuration."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from typing import Any

import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


def modeling_module(config_class: type[PretrainedConfig]) -> Any:
    """The module of the type's own models; None where it has none, and its configuration is for another type's."""
    name = config_class.__module__.replace("configuration_", "modeling_")
    return None if importlib.util.find_spec(name) is None else importlib.import_module(name)


def _registered(model_type: str) -> list[str]:
    """Names of the classes registered for the type, AutoModel's first."""
    tables = [name for name in vars(modeling_auto) if name.startswith("MODEL_") and name.endswith("_MAPPING_NAMES")]
    names: list[str] = []
    for table in sorted(tables, key=lambda name: name != "MODEL_MAPPING_NAMES"):
        entry = getattr(modeling_auto, table).get(model_type, ())
        names.extend([entry] if isinstance(entry, str) else entry)
    return names


def model_classes(config_class: type[PretrainedConfig]) -> list[type[PreTrainedModel]]:
    """The model classes of a configuration: the registered ones, then the others that declare it."""
    module = modeling_module(config_class)
    declared = [
        value
        for value in ({} if module is None else vars(module)).values()
        if inspect.isclass(value)
        and issubclass(value, PreTrainedModel)
        and value.__module__ == module.__name__
        and value.config_class is config_class
        and value.forward is not PreTrainedModel.forward
    ]
    there = transformers if module is None else module
    registered = [getattr(there, name, None) for name in _registered(config_class.model_type)]
    return list(dict.fromkeys(cls for cls in [*registered, *declared] if cls is not None))


def has_model(model_type: str) -> bool:
    try:
        return bool(_registered(model_type) or model_classes(CONFIG_MAPPING[model_type]))
    except ImportError:
        return False


def configurations(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """The configuration and all those inside it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from configurations(value)
