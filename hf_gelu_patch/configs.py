"""Which entry of a model's config sets which of its sites, found by experiment, so that a swap survives save → reload.

No list of models or attribute names: the config is changed, written out and read back, the model is built from it on
the meta device, and its activations are compared with those of the model built from the unchanged config.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_gelu_patch.activations import Activation, Resolved, get_activation
from hf_gelu_patch.errors import UnknownNameError
from hf_gelu_patch.planning import Plan
from hf_gelu_patch.sites import places

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["ConfigChange", "Setting", "built_with", "config_changes", "pretrained_models", "settings", "unwrapped"]


@dataclass(frozen=True)
class ConfigChange:
    """One entry of a model's config that follows a swap: ``owner`` is the config object itself."""

    label: str
    owner: Any = field(repr=False)
    key: str
    old: object
    new: object


@dataclass(frozen=True)
class Setting:
    """One entry of a model's config that spells an activation, and what it sets.

    Attributes:
        way: the names of the (sub)configs that lead to its owner.
        owner: the (sub)config that holds it.
        key, value: the entry.
        sets: the paths, in the model, of the sites that another value would change.
    """

    way: tuple[str, ...]
    owner: Any = field(repr=False, compare=False)
    key: str
    value: str
    sets: frozenset[str]

    @property
    def label(self) -> str:
        return ".".join((*self.way, self.key))


_Entry = tuple[tuple[str, ...], str]  # the way to the (sub)config, the key in it


def config_changes(model: nn.Module, plans: Iterable[Plan], target: Activation) -> tuple[list[ConfigChange], list[str]]:
    """The config entries to change so that a reloaded model has ``target`` at the swapped sites.

    An entry is changed only if every site it sets is swapped.

    Args:
        model: the model, not yet patched.
        plans: the swapped sites.
        target: what they will compute.

    Returns:
        The changes, not yet made, and a line for the report on each, and on each site that no entry can follow.
    """
    swapped = {unwrapped(model, plan.site.path) for plan in plans}
    changes: list[ConfigChange] = []
    notes: list[str] = []
    followed: set[str] = set()
    outermost: tuple[str, ...] = ()
    seen: list[PretrainedConfig] = []
    for path, part in pretrained_models(model):
        prefix = unwrapped(model, path)
        mine = {path.removeprefix(prefix) for path in swapped if path.startswith(prefix)}
        if not mine or any(part.config is config for config in seen):
            continue
        seen.append(part.config)
        outer = not prefix.startswith(outermost)
        if outer:
            outermost += (prefix,)
        for entry_changes, sites, note in _follow(part, mine, target):
            changes += entry_changes
            if outer:  # the copies of the config that models inside it hold follow silently
                notes.append(note)
                followed |= {prefix + path for path in sites}
    if not seen:
        notes.append("the swapped sites are in a model without a transformers config: a checkpoint does not record it")
    elif lost := sorted(swapped - followed):
        some = ", ".join(lost[:3]) + (", …" if len(lost) > 3 else "")
        notes.append(
            f"not followed at {len(lost)} of {len(swapped)} sites: a reload computes the old function at {some}"
        )
    return changes, notes


_WRAPPED = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def settings(part: PreTrainedModel) -> tuple[dict[str, object], tuple[Setting, ...]] | None:
    """What a model computes when it is built from its config, and which entry sets which of its sites.

    Args:
        part: the model. Nothing about it is changed.

    Returns:
        By the path of each site its activation, or, where that is looked up when it is called, what its module holds;
        and each entry that spells an activation. None where the class cannot be built from the config.
    """
    config = part.config
    before = _built_activations(part, config)
    if before is None:
        return None
    found = []
    for way, key in _activation_entries(config):
        value = getattr(_at(config, way), key)
        if (after := _with_another(part, way, key)) is not None:
            sets = frozenset(path for path in before if before[path] != after.get(path))
            found.append(Setting(way, _at(config, way), key, value, sets))
    return before, tuple(found)


_OTHERS = ("silu", "relu", "gelu")


def _with_another(part: PreTrainedModel, way: tuple[str, ...], key: str) -> dict[str, object] | None:
    """What the model computes when an entry has another value; None where no other value can be built."""
    own = get_activation(getattr(_at(part.config, way), key))
    others = (other for other in _OTHERS if get_activation(other) != own)
    return next((after for other in others if (after := _with_value(part, way, key, other)) is not None), None)


def _with_value(part: PreTrainedModel, way: tuple[str, ...], key: str, value: str) -> dict[str, object] | None:
    changed = copy.deepcopy(part.config)
    setattr(_at(changed, way), key, value)
    return _built_activations(part, changed)


def built_with(part: PreTrainedModel, setting: Setting, value: str) -> dict[str, object]:
    """What the model computes, by the path of each site, when an entry has this value and it is built from its config;
    nothing where it cannot be built so."""
    return _with_value(part, setting.way, setting.key, value) or {}


def unwrapped(model: nn.Module, path: str) -> str:
    """A path without the steps that torch's wrappers of compiled, checkpointed and parallel modules add to it."""
    steps: list[str] = []
    holder: object = model
    for step in path.split("."):
        if step not in _WRAPPED and not (step == "module" and isinstance(holder, _WRAPPERS)):
            steps.append(step)
        holder = getattr(holder, step, None)
    return ".".join(steps)


def pretrained_models(model: nn.Module) -> Iterator[tuple[str, PreTrainedModel]]:
    """Outer ones first."""
    from transformers import PreTrainedModel

    for path, module in model.named_modules():
        if isinstance(module, PreTrainedModel):
            yield (f"{path}." if path else ""), module


def _follow(
    part: PreTrainedModel, swapped: set[str], target: Activation
) -> Iterator[tuple[list[ConfigChange], set[str], str]]:
    """For each config entry that sets any swapped site: its changes (none if it sets others too), the sites it
    sets, a line for the report."""
    if target.config_name is None:
        yield [], set(), f"no config spelling means {target.name}"
        return
    config = part.config
    before = _built_activations(part, config)
    if before is None:
        yield (
            [],
            set(),
            f"{type(part).__name__} cannot be built from its config to find the entry that sets its sites",
        )
        return
    entries = list(_activation_entries(config))
    for way, key in entries:
        changed = copy.deepcopy(config)
        old = getattr(_at(changed, way), key)
        setattr(_at(changed, way), key, target.config_name)
        after = _built_activations(part, changed)
        if after is None:
            continue
        sets = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
        if not sets & swapped or any(after.get(path) != target for path in sets & swapped):
            continue
        label = ".".join((*way, key))
        if others := sorted(sets - swapped):
            yield (
                [],
                set(),
                f"{label} stays {old!r}: it also sets sites that were not swapped, such as {others[0]}",
            )
            continue
        reread = _reread(changed)
        changes = [
            ConfigChange(".".join((*w, k)), _at(config, w), k, value, new)
            for w, k in entries
            if (value := getattr(_at(config, w), k)) != (new := getattr(_at(reread, w), k))
        ]
        yield changes, sets, ", ".join(f"{c.label}: {c.old!r} → {c.new!r}" for c in changes)


def _activation_entries(config: PretrainedConfig, way: tuple[str, ...] = ()) -> Iterator[_Entry]:
    """Every entry, sub-configs included, whose value spells an activation."""
    from transformers import PretrainedConfig

    for key, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            yield from _activation_entries(value, (*way, key))
        elif isinstance(value, str) and not key.startswith("_"):
            try:
                get_activation(value)
            except UnknownNameError:
                continue
            yield way, key


def _at(config: PretrainedConfig, way: tuple[str, ...]) -> Any:
    for key in way:
        config = getattr(config, key)
    return config


def _reread(config: PretrainedConfig) -> PretrainedConfig:
    return type(config).from_dict(config.to_dict())


def _built_activations(part: PreTrainedModel, config: PretrainedConfig) -> dict[str, object] | None:
    """path → activation, of the same class built, without memory, from the config as it would be reloaded. Of one that
    is looked up when it is called: the strings that its module holds, one of which names it."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            built = type(part)(_reread(config))
    except Exception:  # a model's own constructor: whatever it raises, its config cannot be followed
        return None
    return {
        place.name: place.current.activation
        if isinstance(place.current, Resolved)
        else sorted(value for value in vars(place.owner).values() if isinstance(value, str))
        for place in places(built)
    }
