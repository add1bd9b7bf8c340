"""What each site of a model computes, held against what is said of it: by the model's config, by its checkpoint's own
files, by the published definition of its family, and by the model that was trained.

families (the published definitions) and checkpoint (what files say) → claims (what each says of each site) → findings
(what does not fit) → audit. table shows the result.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hf_gelu_patch.activations import Activation, Unresolved
from hf_gelu_patch.auditing.checkpoint import read_checkpoint
from hf_gelu_patch.auditing.claims import Claim, Part, claims_of
from hf_gelu_patch.auditing.families import FAMILIES, Family
from hf_gelu_patch.auditing.findings import LEVELS, Audited, Finding, findings_at, findings_of_part
from hf_gelu_patch.configs import pretrained_models, settings, unwrapped
from hf_gelu_patch.errors import AlreadyPatchedError, PatchError
from hf_gelu_patch.sites import Place, check_module, places

__all__ = ["FAMILIES", "LEVELS", "Audit", "Audited", "Claim", "Family", "Finding", "audit"]


@dataclass(frozen=True)
class Audit:
    """What an audit found. ``print`` it for a table; ``findings``, ``sites`` and ``to_dict`` are the data.

    Attributes:
        model: its class name.
        sites: with what is said of each, in the order of the model's modules.
        findings: the gravest first.
        notes: what could not be looked at, and why.
    """

    model: str
    sites: tuple[Audited, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    def of_level(self, level: str) -> tuple[Finding, ...]:
        """The findings of one level: a key of ``LEVELS``."""
        return tuple(one for one in self.findings if one.level == level)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            "model": self.model,
            "sites": [_plain(one) for one in self.sites],
            "findings": [asdict(one) for one in self.findings],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        from hf_gelu_patch.auditing.table import table

        return table(self)


def _plain(site: Audited) -> dict[str, Any]:
    own = site.activation
    claims = [
        {
            "source": one.source,
            "says": [activation.label for activation in one.says],
            "text": one.text,
            "agrees": None if own is None else one.agrees(own),
        }
        for one in site.claims
    ]
    return {
        "path": site.path,
        "site": site.kind,
        "computes": None if own is None else own.label,
        "spelled": site.place.current.spelling,
        "claims": claims,
        "level": site.level,
    }


_Place = str | os.PathLike[str]


def audit(
    model: nn.Module,
    *,
    checkpoint: _Place | Iterable[_Place] | None = None,
    trained: nn.Module | None = None,
    name: str | None = None,
) -> Audit:
    """Hold what each activation site of a model computes against what is said of it.

    What a site computes is told as for ``patch``: by its module or code, never by a name. Which entry of the config
    sets which sites is found by experiment: the class is built from the config, without memory, with another value of
    each entry. Weights are not looked at, and nothing is changed.

    Args:
        model: any module, unpatched; on the meta device too. What is no model of transformers has no config, and is
            held against ``trained`` alone.
        checkpoint: the folder with config.json, or the GGUF file, that it was loaded from; several where more than
            one has something to say. None: the folder that the model's config names, if it is one here.
        trained: the model as it was trained, where another is served: compared at each path that both have.
        name: what the commands in the findings call the model. None: the GGUF file, or what its config does.

    Returns:
        The sites with all claims, and the findings.

    Raises:
        PatchError: ``model`` is no module; or a file is not there, or cannot be read.
        AlreadyPatchedError: the model is patched: ``unpatch`` it first, or audit it before.
    """
    check_module(model)
    found = _places(model)
    stored = tuple(map(read_checkpoint, _files(model, checkpoint)))
    claims: dict[str, list[Claim]] = {path: [] for path in found}
    parts, notes = _parts(model, found)
    for part in parts:
        for path, claim in claims_of(part, stored):
            if part.prefix + path in claims:
                claims[part.prefix + path].append(claim)
    if trained is not None:
        notes += _compare(model, trained, claims)
    sites = tuple(Audited(path, place, tuple(claims[path])) for path, place in found.items())
    files = (str(one.path) for one in stored if one.gguf is not None)
    called = name or next(files, "") or _named(model) or "MODEL"
    findings = [*findings_at(sites, parts, called)]
    for part in parts:
        findings += findings_of_part(part, sites, stored, called)
    notes += _not_judged(sites)
    order = list(LEVELS)
    findings.sort(key=lambda one: order.index(one.level))
    return Audit(type(model).__name__, sites, tuple(findings), tuple(notes))


def _places(model: nn.Module) -> dict[str, Place]:
    try:
        return {unwrapped(model, place.name): place for place in places(model)}
    except AlreadyPatchedError as error:
        raise AlreadyPatchedError(
            "an audit looks at the model's own activations, and this one is patched: unpatch(model) first, or audit it "
            "before it is patched."
        ) from error


def _files(model: nn.Module, checkpoint: _Place | Iterable[_Place] | None) -> list[_Place]:
    if checkpoint is None:
        named = _named(model)
        return [named] if named and (Path(named) / "config.json").is_file() else []
    return [checkpoint] if isinstance(checkpoint, (str, os.PathLike)) else list(checkpoint)


def _named(model: nn.Module) -> str:
    """The folder, or the id on the hub, that the outermost model of transformers in it was loaded from."""
    return next((str(one.config.name_or_path) for _, one in pretrained_models(model)), "")


def _parts(model: nn.Module, found: dict[str, Place]) -> tuple[list[Part], list[str]]:
    """The outermost models of transformers that can be built from their configs, and why others cannot."""
    parts: list[Part] = []
    notes: list[str] = []
    for path, one in pretrained_models(model):
        prefix = unwrapped(model, path)
        if any(prefix.startswith(part.prefix) for part in parts):
            continue
        known = settings(one)
        if known is None:
            notes.append(f"{type(one).__name__} cannot be built from its config: what the config says is not known")
            continue
        inside = {path.removeprefix(prefix): place for path, place in found.items() if path.startswith(prefix)}
        parts.append(Part(prefix, one, inside, *known))
    if not parts and not notes:
        notes.append("there is no model of transformers in it, and so no config to hold it against")
    return parts, notes


def _compare(model: nn.Module, trained: nn.Module, claims: dict[str, list[Claim]]) -> list[str]:
    """Add what the trained model computes at the paths that both have."""
    own, other = _prefix(model), _prefix(trained)
    there = {path.removeprefix(other): place.current for path, place in _places(trained).items()}
    if not there.keys() & {path.removeprefix(own) for path in claims}:
        raise PatchError(
            f"{type(model).__name__} and the trained {type(trained).__name__} have no site in common: they are models "
            "of different classes."
        )
    missing = 0
    for path, said in claims.items():
        current = there.get(path.removeprefix(own))
        if current is None or isinstance(current, Unresolved):
            missing += 1
            continue
        activation: Activation = current.activation
        text = f"the trained {type(trained).__name__} computes {activation.label} there"
        said.append(Claim("trained", (activation,), activation.name, activation.label, text))
    return [f"{missing} sites are not in the trained model, or are not known there"] if missing else []


def _prefix(model: nn.Module) -> str:
    """What the paths of a model with a head begin with, and those of the model without it do not."""
    prefix = getattr(model, "base_model_prefix", "")
    return f"{prefix}." if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""


def _not_judged(sites: tuple[Audited, ...]) -> Iterator[str]:
    unknown = [one for one in sites if one.activation is None]
    if unknown:
        kinds = ", ".join(sorted({one.kind for one in unknown})[:5])
        yield f"{len(unknown)} of {len(sites)} sites, of which it is not known what they compute: {kinds}"
