"""What each source says that a model computes at its sites: config, checkpoint, family, and the model as built anew."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.activations import Activation, Resolved, get_activation
from hf_gelu_patch.auditing.checkpoint import Stored
from hf_gelu_patch.auditing.families import Family, of_gguf, of_model_type
from hf_gelu_patch.configs import Setting, built_with
from hf_gelu_patch.errors import UnknownNameError
from hf_gelu_patch.sites import Place

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Claim", "Part", "claims_of", "is_main", "spelled_activation", "spelled_in"]

_MAIN = re.compile(r"((hidden|dense|ff|ffn|mlp)_)?act(ivation)?(_fn|_function)?|afn")


def is_main(key: str) -> bool:
    """Whether an entry is called as one that says what the feed-forward layers compute."""
    return _MAIN.fullmatch(key) is not None


def spelled_activation(value: object) -> Activation | None:
    """The activation that a value of a config names; None where it names none. ``gated-gelu`` is the tanh form: so
    T5's config reads it."""
    if not isinstance(value, str):
        return None
    name = "gelu_new" if value == f"{_GATED}gelu" else value.removeprefix(_GATED)
    try:
        return get_activation(name)
    except UnknownNameError:
        return None


def spelled_in(setting: Setting, activation: Activation) -> str | None:
    """What an entry has to say for an activation; None where nothing means it."""
    if setting.key != _PROJECTION or activation.config_name is None:
        return activation.config_name
    if not getattr(setting.owner, "is_gated_act", False):
        return activation.config_name
    return f"{_GATED}{'gelu' if activation.name == 'gelu_tanh' else activation.config_name}"


_PROJECTION, _GATED = "feed_forward_proj", "gated-"


@dataclass(frozen=True)
class Claim:
    """What one source says of a site.

    Attributes:
        source: ``config``, ``checkpoint`` (config.json), ``gguf``, ``family``, ``rebuilt`` or ``trained``.
        says: the activations that it allows, the one that it means first.
        spelled: how that one is spelled.
        shown: in a few words: ``hidden_act: gelu``.
        text: in a sentence.
        setting: the entry of the config; None where there is none.
        read_as: what the model's class computes at the site for what the entry says.
        aliases: names of other functions that mean this one in configs of the family.
    """

    source: str
    says: tuple[Activation, ...]
    spelled: str
    shown: str
    text: str
    setting: Setting | None = None
    read_as: object = None
    aliases: tuple[str, ...] = ()

    def agrees(self, activation: Activation) -> bool:
        return activation in self.says


@dataclass(frozen=True)
class Part:
    """A model of transformers within what is audited, with what was found out about it.

    Attributes:
        prefix: where it is, with a full stop at its end; "" for the whole.
        model: the model.
        places: its sites by their path in it.
        rebuilt: what the model computes at each path when it is built anew from its config.
        settings: the entries of its config that spell an activation.
    """

    prefix: str
    model: PreTrainedModel
    places: Mapping[str, Place]
    rebuilt: Mapping[str, object]
    settings: tuple[Setting, ...]

    @property
    def main(self) -> frozenset[str]:
        """The sites of its feed-forward layers: those that such an entry sets; where none does, those that compute a
        function of hidden layers and are set by no entry."""
        found = frozenset().union(*(one.sets for one in self.settings if is_main(one.key)))
        return found or self.in_code

    @property
    def in_code(self) -> frozenset[str]:
        """The sites that compute a function of hidden layers, and that no entry sets."""
        by_entry = frozenset().union(*(one.sets for one in self.settings))
        hidden = {
            path
            for path, place in self.places.items()
            if isinstance(place.current, Resolved) and place.current.activation.hidden
        }
        return frozenset(hidden - by_entry)


def claims_of(part: Part, stored: Sequence[Stored]) -> Iterator[tuple[str, Claim]]:
    """Each claim with the path, within the part, of the site that it is about."""
    for path, built in part.rebuilt.items():
        if path in part.places and isinstance(built, Activation):
            text = f"built anew from its config, {type(part.model).__name__} computes {built.label} there"
            yield path, Claim("rebuilt", (built,), built.name, built.label, text)
    for one in part.settings:
        for claim in (_of_config(one), _of_t5(one)):
            yield from _read(one.sets, claim, part.rebuilt)
    for file in stored:
        yield from _of_file(part, file)
    for setting, families, paths in _families(part, stored):
        yield from _at(paths, _of_families(families, setting))


def _at(paths: frozenset[str], claim: Claim) -> Iterator[tuple[str, Claim]]:
    for path in paths:
        yield path, claim


def _read(paths: frozenset[str], claim: Claim | None, built: Mapping[str, object]) -> Iterator[tuple[str, Claim]]:
    """A claim at each path, with what the class computes there for it."""
    if claim is not None:
        for path in paths:
            yield path, replace(claim, read_as=built.get(path))


def _of_config(setting: Setting) -> Claim:
    said = get_activation(setting.value)
    shown = f"{setting.label}: {setting.value}"
    text = f"the config says {setting.label}: {setting.value!r}, which names {said.label}"
    return Claim("config", (said,), setting.value, shown, text, setting)


def _of_t5(setting: Setting) -> Claim | None:
    """What T5's other entry says, which names a function and a kind of layer in one: ``gated-gelu``."""
    value = getattr(setting.owner, _PROJECTION, None)
    said = spelled_activation(value)
    if setting.key != "dense_act_fn" or said is None:
        return None
    label = ".".join((*setting.way, _PROJECTION))
    text = f"the config says {label}: {value!r}, which names {said.label}"
    gated = getattr(setting.owner, "is_gated_act", None)
    if gated is not None and gated != str(value).startswith(_GATED):
        text += f" in layers {'without' if gated else 'with'} gates; it says is_gated_act: {gated} beside that"
    entry = replace(setting, key=_PROJECTION, value=str(value))
    return Claim("config", (said,), said.name, f"{label}: {value}", text, entry)


def _of_file(part: Part, stored: Stored) -> Iterator[tuple[str, Claim]]:
    name, said_of = stored.path.name, _section(stored.config, part.model.config.model_type)
    for setting in part.settings:
        owner: Any = said_of
        for key in setting.way:
            owner = owner.get(key) if isinstance(owner, Mapping) else None
        value = str(owner.get(setting.key)) if isinstance(owner, Mapping) else ""
        said = spelled_activation(value)
        if said is None or spelled_activation(owner.get(_BEFORE.get(setting.key))) not in (None, said):
            continue
        shown = f"{setting.label}: {value}"
        text = f"{name} says {setting.label}: {value!r}, which names {said.label}"
        same = said == get_activation(setting.value)
        built = part.rebuilt if same else built_with(part.model, setting, value)
        yield from _read(setting.sets, Claim("checkpoint", (said,), value, shown, text, setting), built)
    if stored.gguf is None:
        return
    families = of_gguf(stored.gguf.architecture, stored.gguf.gated)
    if families:
        gates = "with" if stored.gguf.gated else "without"
        shown = f"{stored.gguf.architecture}, {gates} gates: {families[0].activation}"
        text = (
            f"{name} says general.architecture: {stored.gguf.architecture!r} and comes {gates} matrices of gates: "
            f"{_named(families)}"
        )
        yield from _at(part.main, Claim("gguf", _activations(families), families[0].activation, shown, text))
    for key, value in stored.gguf.texts.items():
        said = spelled_activation(value)
        if said is not None and is_main(key.rpartition(".")[2]):
            text = f"{name} says {key}: {value!r}, which names {said.label}"
            yield from _at(part.main, Claim("gguf", (said,), value, f"{key}: {value}", text))


def _section(config: Mapping[str, Any], model_type: str) -> Mapping[str, Any]:
    """The part of a file that is about models of a type: all of it, or what is inside it for the part that is loaded;
    nothing where the file is about other models."""
    if config.get("model_type", model_type) == model_type:
        return config
    inside = (one for one in config.values() if isinstance(one, Mapping) and "model_type" in one)
    return next((found for one in inside if (found := _section(one, model_type))), {})


_BEFORE = {"hidden_act": "hidden_activation"}
"""Entries that others of the same config count before: those of Gemma."""


def _families(
    part: Part, stored: Sequence[Stored]
) -> Iterator[tuple[Setting | None, tuple[Family, ...], frozenset[str]]]:
    """The definitions of the families that a model is made of, and the sites that they are about."""
    gates = next((one.gguf.gated for one in stored if one.gguf is not None), None)
    for setting in part.settings:
        families = _of_config_type(setting.owner, gates)
        if found := tuple(one for one in families if one.entry == setting.key):
            yield setting, found, setting.sets
    from transformers import PreTrainedModel

    inner = [
        (f"{path}." if path else "", module)
        for path, module in part.model.named_modules()
        if isinstance(module, PreTrainedModel)
    ]
    by_owner: dict[str, set[str]] = {}
    for path in part.in_code:
        nearest = max((prefix for prefix, _ in inner if path.startswith(prefix)), key=len)
        by_owner.setdefault(nearest, set()).add(path)
    for prefix, module in inner:
        families = tuple(one for one in _of_config_type(module.config, gates) if one.entry is None)
        if families and prefix in by_owner:
            yield None, families, frozenset(by_owner[prefix])


def _of_config_type(config: Any, gates: bool | None) -> tuple[Family, ...]:
    """The family that a config names, with the kind of layers that the file holds, or else the config says."""
    gated = getattr(config, "is_gated_act", None) if gates is None else gates
    return of_model_type(getattr(config, "model_type", ""), gated)


def _of_families(families: tuple[Family, ...], setting: Setting | None) -> Claim:
    shown = " or ".join(dict.fromkeys(one.activation for one in families))
    aliases = tuple(one.spelled for one in families if one.spelled is not None)
    said, text = _activations(families), _named(families)
    return Claim("family", said, families[0].activation, shown, text, setting, aliases=aliases)


def _named(families: tuple[Family, ...]) -> str:
    return "; ".join(f"{one.models}: published with {one.activation} ({one.source})" for one in families)


def _activations(families: tuple[Family, ...]) -> tuple[Activation, ...]:
    return tuple(dict.fromkeys(get_activation(one.activation) for one in families))
