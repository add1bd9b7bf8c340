"""What does not fit together: each finding with its level, its evidence and what mends it."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from hf_gelu_patch.activations import Activation, Resolved, max_difference
from hf_gelu_patch.auditing.checkpoint import Stored
from hf_gelu_patch.auditing.claims import Claim, Part, is_main, spelled_activation, spelled_in
from hf_gelu_patch.configs import built_with
from hf_gelu_patch.sites import Place

__all__ = ["LEVELS", "Audited", "Finding", "findings_at", "findings_of_part"]

LEVELS = {
    "contradiction": "the model does not compute what its config, its checkpoint or the trained model says",
    "misnomer": "a name means another function than the model computes, and the model is right by its family",
    "departure": "the model computes what its config says; its family was published with another function",
}
"""The levels of findings with what they mean, the gravest first."""


_SAYING = {"checkpoint": "config.json", "config": "the config"}


@dataclass(frozen=True)
class Audited:
    """A site and all that is said of it.

    Attributes:
        path: its path.
        place: the site in the model.
        claims: what the sources say.
    """

    path: str
    place: Place
    claims: tuple[Claim, ...]

    @property
    def activation(self) -> Activation | None:
        """What it computes; None where that is not known."""
        current = self.place.current
        return current.activation if isinstance(current, Resolved) else None

    @property
    def kind(self) -> str:
        """Which of its owner's sites it is: ``GPT2MLP.act``."""
        return f"{type(self.place.owner).__name__}.{self.path.rpartition('.')[2]}"

    @property
    def against(self) -> tuple[Claim, ...]:
        """The claims that do not agree with what it computes."""
        own = self.activation
        return () if own is None else tuple(one for one in self.claims if not one.agrees(own))

    @property
    def as_published(self) -> bool:
        """Whether it computes what its family was published with."""
        own = self.activation
        return own is not None and any(one.source == "family" and one.agrees(own) for one in self.claims)

    @property
    def as_trained(self) -> bool:
        """Whether it computes what the trained model does."""
        own = self.activation
        return own is not None and any(one.source == "trained" and one.agrees(own) for one in self.claims)

    @property
    def misread(self) -> Claim | None:
        """What names another function in a word by which configs of its family mean their own, as Gemma 1's do."""
        aliases = {name for one in self.claims if one.source == "family" for name in one.aliases}
        return next((one for one in self.claims if one.source in _SAYING and one.spelled in aliases), None)

    @property
    def level(self) -> str | None:
        """How grave it is what the claims say; None where all agree."""
        if not self.against:
            return None
        if all(one.source == "family" for one in self.against):
            return "contradiction" if self.misread else "departure"
        named = all(one.setting is not None and one.read_as == self.activation for one in self.against)
        return "misnomer" if named and self.as_published else "contradiction"


@dataclass(frozen=True)
class Finding:
    """One thing that does not fit.

    Attributes:
        level: a key of ``LEVELS``.
        sentence: what it is.
        evidence: what each source says, a sentence each.
        sites: the paths of the sites.
        computes: what they compute; "" where that is not the point.
        meant: what they are meant to compute, likewise.
        mend: the call, or the assignment, that mends it.
        otherwise: what to do where the other side is right; "" where there is nothing.
        evaluate: the command that measures what mending is worth; "" where the answers stay as they are.
    """

    level: str
    sentence: str
    evidence: tuple[str, ...]
    sites: tuple[str, ...]
    computes: str
    meant: str
    mend: str
    otherwise: str = ""
    evaluate: str = ""


_PRIORITY = ("trained", "rebuilt", "gguf", "checkpoint", "config", "family")


def findings_at(sites: Sequence[Audited], parts: Sequence[Part], name: str) -> Iterator[Finding]:
    """What does not fit at the sites of a model, like sites together.

    Args:
        sites: all that the model has.
        parts: the models of transformers in it.
        name: what the model is called in commands.
    """
    groups: dict[Any, list[Audited]] = {}
    for site in sites:
        if site.level is not None:
            groups.setdefault((site.level, site.activation, site.against), []).append(site)
    for group in groups.values():
        yield _finding(group, sites, parts, name)


def _finding(group: list[Audited], sites: Sequence[Audited], parts: Sequence[Part], name: str) -> Finding:
    first, level = group[0], group[0].level
    claim = min(first.against, key=lambda one: _PRIORITY.index(one.source))
    own, said = first.activation, claim.says[0]
    assert own is not None
    assert level is not None
    call, command = patching(claim.spelled, said, group, sites, name)
    if own.learned:
        call, command = f"build the model anew: a patch leaves {own.label} alone, whose parameters were learned", ""
    change = _config_change(own, first, parts)
    if level == "misnomer":
        mend, otherwise, command = change or "nothing here: its class knows this function by that name alone", "", ""
    elif first.as_trained:
        mend, otherwise = change or "nothing here: the trained model computes the same", call
    elif level == "departure":
        mend, otherwise = call, ""
    elif first.as_published and claim.source in ("config", "rebuilt") and change:
        mend, otherwise = change, call
    else:
        mend, otherwise = call, change
    return Finding(
        level,
        _sentence(level, _where(group), own, claim, first),
        _evidence(first, own, said),
        tuple(one.path for one in group),
        own.label,
        own.label if mend != call else said.label,
        mend,
        otherwise,
        command,
    )


def _sentence(level: str, where: str, own: Activation, claim: Claim, site: Audited) -> str:
    computes, said = f"{where} {own.label}", claim.says[0].label
    if level == "misnomer":
        return (
            f"{_SAYING[claim.source]} says {claim.shown}, and {computes}, which is right: software that takes the name "
            f"at its word computes {said}."
        )
    if level == "departure":
        config = [one.shown for one in site.claims if one.source == "config"]
        as_said = f"the config says ({config[0]})" if config else "its class has it"
        return f"{computes}, as {as_said}; the family was published with {claim.shown}."
    return {
        "trained": f"{computes}; the trained model computes {said} there.",
        "rebuilt": f"{computes}; built anew from its config, as a reload does, the model computes {said} there.",
        "gguf": f"{computes}; the GGUF file is of a model with {claim.spelled}.",
        "family": f"{computes}, as the name says that the config has; in this family it means {claim.shown}.",
    }.get(claim.source) or f"{computes}; {_SAYING.get(claim.source)} says {claim.shown}."


def _evidence(site: Audited, own: Activation, said: Activation) -> tuple[str, ...]:
    edge = site.place.edge
    how = "a call in the code" if edge is None else f"a {type(edge.owner._modules[edge.key]).__name__}"
    told = [one.text for one in site.claims if one.source != "rebuilt" or not one.agrees(own)]
    return (f"{site.path} is {how}, which computes {own.label}", *dict.fromkeys(told), _apart(own, said))


def _where(group: Sequence[Audited]) -> str:
    kinds = Counter(one.kind for one in group)
    shown = ", ".join(list(kinds)[:3]) + (", …" if len(kinds) > 3 else "")
    sites, verb = ("site", "computes") if len(group) == 1 else ("sites", "compute")
    return f"{len(group)} {sites} ({shown}) {verb}"


def _apart(a: Activation, b: Activation) -> str:
    most = max_difference(a, b)
    told = "grow apart without bound" if math.isinf(most) else f"are at most {most:.3g} apart"
    return f"{a.label} and {b.label} {told}"


def _config_change(own: Activation, site: Audited, parts: Sequence[Part]) -> str:
    """How the config, or the file, comes to say what a site computes, where its class takes that and every site that
    the entry sets computes it; "" for no change."""
    claim = next((one for one in site.against if one.setting is not None and one.source in _SAYING), None)
    part = next((one for one in parts if site.path.startswith(one.prefix)), None)
    if claim is None or claim.setting is None or part is None:
        return ""
    name = spelled_in(claim.setting, own)
    built = {} if name is None else built_with(part.model, claim.setting, name)
    now = (part.places[path].current for path in claim.setting.sets if path in part.places)
    if any(not isinstance(one, Resolved) or one.activation != own for one in now):
        return ""
    if any(built.get(path) != own for path in claim.setting.sets):
        return ""
    if claim.source == "checkpoint":
        return f'in config.json: "{claim.setting.label}": "{name}"'
    return f'{_config_of(part)}.{claim.setting.label} = "{name}"'


def _config_of(part: Part) -> str:
    return ".".join(filter(None, ("model", part.prefix.rstrip("."), "config")))


# --------------------------------------------------------------------------------------------------- what mends it


def patching(
    spelled: str, target: Activation, group: Sequence[Audited], sites: Sequence[Audited], name: str
) -> tuple[str, str]:
    """The call of ``patch`` that puts a function at some sites and at no others, and the command that evaluates it."""
    patterns = _patterns({one.path for one in group}, target, sites)
    given = f", include={patterns[0]!r}" if len(patterns) == 1 else f", include={patterns!r}" if patterns else ""
    words = ["hf-gelu-patch", "evaluate", "--model_name_or_path", shlex.quote(name), "--validation_file", "DATA"]
    words += ["--activation", spelled, *(word for one in patterns for word in ("--include", shlex.quote(one)))]
    return f'patch(model, activation="{spelled}"{given})', " ".join(words)


def _patterns(wanted: set[str], target: Activation, sites: Sequence[Audited]) -> list[str]:
    """What ``include`` has to say so that just these sites are swapped; nothing where all are that would be."""
    others = [one for one in sites if one.activation is not None and one.activation != target]
    if {one.path for one in others if one.activation is not None and one.activation.hidden} == wanted:
        return []
    mine = [one for one in others if one.path in wanted]
    owners = sorted({type(one.place.owner).__name__ for one in mine})
    ends = [sorted({f"*{'.'.join(one.path.split('.')[-steps:])}" for one in mine}) for steps in (1, 2)]
    for patterns in (owners, *ends):
        if len(patterns) <= 4 and {one.path for one in others if _matches(one, patterns)} == wanted:
            return patterns
    return sorted(one.place.name for one in mine)


def _matches(site: Audited, patterns: Iterable[str]) -> bool:
    names = (site.place.name, type(site.place.owner).__name__)
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


# ------------------------------------------------------------------------------- what is said of no site that there is


def findings_of_part(part: Part, sites: Sequence[Audited], stored: Sequence[Stored], name: str) -> Iterator[Finding]:
    """What a config or a file says that no site does.

    Args:
        part: a model of transformers.
        sites: all sites of the whole model.
        stored: the files of its checkpoint.
        name: what the model is called in commands.
    """
    main = {part.prefix + path for path in part.main}
    inside = [one for one in sites if one.path in main and one.activation is not None]
    if inside and all(isinstance(one.current, Resolved) for one in part.places.values()):
        yield from _ignored(part, inside, sites, name)
    for file in stored:
        if file.gguf is not None and getattr(part.model.config, "is_gated_act", file.gguf.gated) != file.gguf.gated:
            yield _gates(file, part)


def _ignored(part: Part, inside: list[Audited], sites: Sequence[Audited], name: str) -> Iterator[Finding]:
    """Entries that somebody has set and that the class does not read."""
    from transformers import PreTrainedModel

    types = {module.config.model_type for module in part.model.modules() if isinstance(module, PreTrainedModel)}
    computed = {one.activation for one in sites}
    for setting in part.settings:
        said = spelled_activation(setting.value)
        if setting.sets or not is_main(setting.key) or said is None or said in computed:
            continue
        if setting.owner.model_type not in types or _usual(setting.owner).get(setting.key) == setting.value:
            continue
        own, usual = inside[0].activation, _usual(setting.owner)
        assert own is not None
        call, command = patching(setting.value, said, inside, sites, name)
        entry = f"{_config_of(part)}.{setting.label}"
        change = f"{entry} = {usual[setting.key]!r}" if setting.key in usual else f"del {entry}"
        mends = (change, call) if inside[0].as_published else (call, change)
        cls = type(part.model).__name__
        yield Finding(
            "contradiction",
            f"{setting.label}: {setting.value!r} in the config changes nothing in {cls}: {_where(inside)} {own.label}.",
            (
                f"{cls}, built with another {setting.label}, computes the same at every site",
                *_evidence(inside[0], own, said),
            ),
            tuple(one.path for one in inside),
            own.label,
            said.label,
            *mends,
            command,
        )


def _usual(config: Any) -> dict[str, Any]:
    """What a config has where nobody says otherwise."""
    try:
        return dict(vars(type(config)()))
    except Exception:  # each class has its own; one without defaults has been set throughout
        return {}


def _gates(file: Stored, part: Part) -> Finding:
    assert file.gguf is not None
    own, other = ("with", "without") if not file.gguf.gated else ("without", "with")
    cls = type(part.model).__name__
    return Finding(
        "contradiction",
        f"{cls} has layers {own} gates, and {file.path.name} holds the weights of layers {other}: what it lacks is "
        "drawn at random.",
        (
            f"the config says is_gated_act: {part.model.config.is_gated_act}",
            f"{file.path.name} comes {other} matrices of gates (ffn_gate)",
        ),
        tuple(part.prefix + path for path in sorted(part.main)),
        "",
        "",
        f"{cls}.from_pretrained({str(file.path.parent)!r}, gguf_file={file.path.name!r}, "
        f"is_gated_act={file.gguf.gated})",
    )
