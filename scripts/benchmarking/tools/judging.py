"""One tool on one model: patched before the tool and after it, each held against the same steps without a patch.

The same steps are taken on a model that is never patched, on one that has the other function from the start, and on one
that is patched. What is seen of the third on the way must be what was seen of the first two: outputs, also once the
weights have changed; outputs and every ``__dict__`` once the patch is undone; which weights ``del`` sets free.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch import (
    AlreadyPatchedError,
    NotPatchedError,
    PatchError,
    Report,
    explain,
    find_sites,
    patch,
    unpatch,
)
from scripts.benchmarking.tools.subjects import Subject

GROWTH = 1.125
"""What all weights are multiplied by, to see whose weights an output comes from."""

BY = "aten"
"""The implementation: ``auto`` leaves alone what was not faster on the machine that this runs on."""


@dataclass
class Used:
    """What a tool made of a model.

    Attributes:
        made: what it gave back: the model itself, a wrapper, a copy, or anything else.
        run: its outputs; None where ``made`` is called as the model is.
        off: takes the tool off and gives back the model; None where it cannot be taken off.
        carries: what of a patch goes along where ``made`` is no module of the model's own: "patch", with all that
            unpatch needs; "function", as an export does; "config", as a checkpoint does.
        weights: whose parameters ``made`` computes with; None for its own, or the model's.
    """

    made: Any
    run: Callable[[], list[Tensor]] | None = None
    off: Callable[[], nn.Module] | None = None
    carries: str = "patch"
    weights: nn.Module | None = None

    def outputs(self, subject: Subject) -> list[Tensor]:
        return subject.outputs(self.made) if self.run is None else self.run()


@dataclass(frozen=True)
class Tool:
    """Anything that copies, wraps, hooks, saves, traces, quantizes, shards or attributes a model.

    Attributes:
        name: as its documentation calls it.
        does: one of those verbs.
        package: the distribution that has it.
        use: what it does to a model.
        subjects: the models it takes.
        tolerance: how far outputs may move where the patch declares rounding, relative to their scale.
        note: what a reader has to know of how it was tried.
    """

    name: str
    does: str
    package: str
    use: Callable[[nn.Module, Subject], Used]
    subjects: tuple[Subject, ...]
    tolerance: float = 2e-5
    note: str = ""


@dataclass(frozen=True)
class Steps:
    """One order of things: the patch before the tool or after it, undone before the tool is taken off or after."""

    patched_first: bool
    undone_first: bool

    def __str__(self) -> str:
        begun = ("patch", "tool") if self.patched_first else ("tool", "patch")
        ended = ("unpatch", "tool off") if self.undone_first else ("tool off", "unpatch")
        return ", ".join((*begun, *ended))


ORDERS = [Steps(first, undone) for first in (True, False) for undone in (True, False)]


@dataclass(frozen=True)
class Seen:
    """One observation: outputs, everything on the modules, a text, or the exception that came instead."""

    what: str
    when: str
    value: Any
    undone: bool

    @property
    def aspect(self) -> str:
        """The column of the table that it is for."""
        if self.what == "another model":
            return "others"
        return "undone" if self.undone else "weights" if self.when == "new weights" else "outputs"


class Story:
    """What is seen on the way through the steps of one order.

    Attributes:
        another: a model of the same class that is neither patched nor given to the tool.
        seen: the observations, in their order.
        report: of the patch; None without one.
        refused: what unpatch said where it would not.
        relation: of what the tool made to the model: "itself" (it has modules of the model's, or asks it anew each
            time), "copy" (with modules of its own), or what ``Used.carries`` says.
    """

    def __init__(self, tool: Tool, subject: Subject, steps: Steps, another: nn.Module) -> None:
        self.tool, self.subject, self.steps, self.another = tool, subject, steps, another
        self.seen: list[Seen] = []
        self.report: Report | None = None
        self.refused: list[str] = []
        self.relation = "itself"
        self._undone = False

    def tell(self, *, swapped: bool = False, patched: bool = False, activation: str | None = None) -> Story:
        """``swapped``: of a model that has the other function from the start; ``patched``: of one that is patched."""
        steps, subject = self.steps, self.subject
        model = subject.build(swapped)
        if patched and steps.patched_first:
            self.report = patch(model, activation=activation, implementation=BY)
        used = self.tool.use(model, subject)
        module = used.made if isinstance(used.made, nn.Module) else None
        self.relation = _relation(used, module, model)
        target = model if module is None or self.relation not in ("itself", "copy") else module
        if patched and not steps.patched_first:
            self.report = patch(target, activation=activation, implementation=BY)
        targets = [target, model] if self.relation == "copy" and steps.patched_first else [target]

        def outputs(when: str) -> None:
            self._see("tool", when, lambda: used.outputs(subject))
            self._see("model", when, lambda: subject.outputs(model))

        def undo(when: str) -> None:
            if patched:
                self._unpatch(targets)
            self._undone = not self.refused
            outputs(when)

        def everything(when: str) -> None:
            for what, one in {"tool": target, "model": model}.items():
                self._see(f"__dict__s of the {what}", when, lambda one=one: portrait(one))
                self._see(f"sites of the {what}", when, lambda one=one: _sites(one))

        outputs("used")
        self._see("another model", "used", lambda: subject.outputs(self.another))
        self._see("weights", "grown", lambda: _grow(used.weights or module or model))
        outputs("new weights")
        patched = patched and bool(self.report and self.report.changed)  # or there is nothing to undo
        if patched:
            for one in targets:
                self._see("find_sites", "patched", lambda one=one: _said_to_be_patched(one))
        if steps.undone_first:
            undo("unpatched")
            if self._undone:
                everything("unpatched")
        if used.off is not None:
            self._see("the tool itself", "taken off", lambda: str(used.off() is None))
            outputs("taken off")
            if not self._undone:
                self.refused, refused = [], self.refused
                undo("taken off")
                self.refused = refused + self.refused
            everything("taken off")
        return self

    def _see(self, what: str, when: str, action: Callable[[], Any]) -> None:
        try:
            value = action()
        except Exception as error:  # whatever a tool raises is an observation
            value = error
        self.seen.append(Seen(what, when, value, self._undone))

    def _unpatch(self, targets: list[nn.Module]) -> None:
        for one in targets:
            try:
                unpatch(one)
            except NotPatchedError as error:  # which it is
                self.seen.append(Seen("unpatch", "", error, True))
            except PatchError as error:
                self.refused.append(str(error))


def _relation(used: Used, module: nn.Module | None, model: nn.Module) -> str:
    if used.carries != "patch":
        return used.carries
    shared = module is None or {*map(id, module.modules())} & {*map(id, model.modules())}
    return "itself" if shared else "copy"


def _said_to_be_patched(module: nn.Module) -> str:
    explain(module)
    try:
        find_sites(module)
    except AlreadyPatchedError:
        return "patched"
    return "not patched"


def _grow(module: nn.Module) -> str:
    with torch.no_grad():
        for weight in {id(one): one for one in module.parameters()}.values():
            if weight.is_floating_point():
                weight.mul_(GROWTH)
    return "grown"


def _sites(module: nn.Module) -> list[str]:
    return [f"{one.path} {one.kind} {one.activation} {one.target} {one.reason}" for one in find_sites(module).sites]


# Everything on a module


def portrait(model: nn.Module) -> dict[str, str]:
    """All that is on every module of a model, in words that are the same for two models built alike."""
    names = {id(module): path or "the model" for path, module in reversed([*model.named_modules()])}
    found: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        cls = type(module)
        found[f"{path}: class"] = " < ".join(f"{one.__module__}.{one.__qualname__}" for one in cls.__mro__)
        for key, value in vars(module).items():
            if key in ("_is_replica", "_torchdynamo_wrapper_id"):  # a mark of one forward; an address
                continue
            found[f"{path}.{key}"] = _described(value, names, 0)
    config = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        found["config"] = repr(sorted(config.to_dict().items(), key=str))
    return found


def _described(value: Any, names: Mapping[int, str], depth: int) -> str:
    if id(value) in names:
        return f"module {names[id(value)]}"
    if isinstance(value, Tensor):
        return f"{type(value).__name__} {tuple(value.shape)} {value.dtype} {value.device} {_digest(value)}"
    if value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype, torch.device)):
        return repr(value)
    if depth > 4:
        return _class_of(value)
    if isinstance(value, types.MethodType):
        function = f"{value.__func__.__module__}.{value.__func__.__qualname__}"
        return f"method {function} of {_described(value.__self__, names, depth + 1)}"
    if isinstance(value, (types.FunctionType, type)):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Mapping):
        keys = [key if isinstance(key, str) else "·" for key in value]  # handles of hooks count on in one process
        parts = (_described(part, names, depth + 1) for part in value.values())
        return f"{_class_of(value)} {{{', '.join(f'{key}: {part}' for key, part in zip(keys, parts, strict=True))}}}"
    if isinstance(value, (list, tuple)):
        return f"{_class_of(value)} [{', '.join(_described(part, names, depth + 1) for part in value)}]"
    if isinstance(value, (set, frozenset)):
        return f"{_class_of(value)} {sorted(_described(part, names, depth + 1) for part in value)}"
    return _class_of(value)


def _class_of(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _digest(value: Tensor) -> str:
    try:
        return hashlib.sha1(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:12]
    except Exception:  # no storage: on meta, sharded, quantized
        return "…"


# What ``del`` sets free


def alive_after_del(tool: Tool, subject: Subject, *, patched_first: bool | None) -> list[str]:
    """The weights that are still there once the model and what the tool made of it are gone, without a collection.
    ``patched_first`` None: without a patch."""
    gc.collect()
    gc.disable()
    try:
        model = subject.build()
        if patched_first:
            patch(model, implementation=BY)
        used = tool.use(model, subject)
        if patched_first is False:
            target = used.made if isinstance(used.made, nn.Module) and used.carries == "patch" else model
            patch(target, implementation=BY)
            del target
        used.outputs(subject)
        weights = {f"model: {name}": weakref.ref(weight) for name, weight in model.named_parameters()}
        if isinstance(used.made, nn.Module):
            weights |= {f"tool: {name}": weakref.ref(weight) for name, weight in used.made.named_parameters()}
        del model, used
        return sorted(name for name, weight in weights.items() if weight() is not None)
    finally:
        gc.enable()


# Verdicts


@dataclass
class Verdict:
    """What one order came to on one model.

    Attributes:
        faults: what differs from a model that was never patched, and says nothing of it, by aspect: "outputs",
            "weights" (outputs once they have changed), "undone", "others" (another model of the process).
        refused: what patch or unpatch said where it would not.
        left_alone: why patch left sites alone that it patches on the model by itself.
        drift: the largest movement of an output before the patch was undone, relative to its scale.
        identical: whether the patch declared the same bits.
    """

    subject: str
    steps: str
    patch: str
    faults: dict[str, list[str]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)
    drift: float = 0.0
    identical: bool = True

    def blame(self, aspect: str, text: object) -> None:
        self.faults.setdefault(aspect, []).append(_short(text))


def judge(tool: Tool, subject: Subject, *, can_be_taken_off: bool) -> Iterator[Verdict]:
    """Every order of one tool on one model.

    Raises:
        Exception: whatever the tool raises on a model that was never patched.
    """
    another = subject.build()
    references: dict[tuple[bool, bool], dict[tuple[str, str], Any]] = {}

    def reference(undone_first: bool, swapped: bool) -> dict[tuple[str, str], Any]:
        if (undone_first, swapped) not in references:
            story = Story(tool, subject, Steps(True, undone_first), another).tell(swapped=swapped)
            references[undone_first, swapped] = {(one.what, one.when): one.value for one in story.seen}
        return references[undone_first, swapped]

    sites = {
        swap: _changed(patch(subject.build(), activation=swap, implementation=BY)) for swap in (None, subject.swap)
    }
    for steps in ORDERS:
        if not can_be_taken_off and not steps.undone_first:
            continue
        for activation in (None, subject.swap):
            verdict = Verdict(subject.name, str(steps), activation or BY)
            story = Story(tool, subject, steps, another)
            try:
                story.tell(patched=True, activation=activation)
            except PatchError as error:
                verdict.refused.append(str(error))
            except Exception as error:
                verdict.blame("outputs", error)
            else:
                own = reference(steps.undone_first, False)
                swapped = own if activation is None else reference(steps.undone_first, True)
                _compare(story, swapped, own, sites[activation], verdict)
            yield verdict


def _changed(report: Report) -> int:
    """At how many places: one that two forwards lead to counts once."""
    return len({site.path for site in report.changed})


def _compare(
    story: Story,
    intended: Mapping[tuple[str, str], Any],
    own: Mapping[tuple[str, str], Any],
    sites: int,
    verdict: Verdict,
) -> None:
    """Blame whatever was seen of a patched model that was not seen of one with the function intended, or, where the
    patch has no part in it, of the model as it was."""
    report = story.report
    assert report is not None
    verdict.refused = story.refused
    verdict.identical = all(site.equivalence == "identical" for site in report.changed)
    if _changed(report) < sites:
        verdict.left_alone = sorted({site.reason for site in report.unchanged})
    for one in story.seen:
        name = f"{one.what}, {one.when}"
        if one.what == "unpatch":
            verdict.blame("undone", one.value)
            continue
        if one.what == "find_sites":
            if one.value != "patched":
                verdict.blame("undone", f"find_sites: {_short(one.value)}")
            continue
        patched = _shows_the_patch(one, story)
        expected = (intended if patched else own)[one.what, one.when]
        if isinstance(expected, Exception) or (patched and verdict.left_alone and intended is not own):
            continue  # the tool does not do that; or the report has said that not all of it is swapped
        if isinstance(one.value, Exception):
            verdict.blame(one.aspect, f"{name}: {_short(one.value)}")
        elif isinstance(one.value, dict):
            for key in sorted(one.value.keys() | expected.keys()):
                if one.value.get(key) != expected.get(key):
                    verdict.blame(one.aspect, f"{name}: {key} is {one.value.get(key)}, was {expected.get(key)}")
        elif one.what in ("tool", "model", "another model"):
            moved = max((drift(*pair) for pair in zip(one.value, expected, strict=True)), default=0.0)
            if moved > (story.tool.tolerance if patched and not verdict.identical else 0.0):
                verdict.blame(one.aspect, f"{name}: outputs moved by {moved:.2g} of their scale")
            if patched:
                verdict.drift = max(verdict.drift, moved)
        elif one.value != expected:
            verdict.blame(one.aspect, f"{name}: {one.value} instead of {expected}")


def _shows_the_patch(seen: Seen, story: Story) -> bool:
    """Whether the patch has a part in what is seen."""
    if seen.what == "another model":
        return False
    report, first = story.report, story.steps.patched_first
    assert report is not None
    if seen.what == "tool" and story.relation not in ("itself", "copy"):  # made once and for all
        followed = any("→" in line for line in report.config)
        return first and (story.relation == "function" or (story.relation == "config" and followed))
    if seen.what == "model" and story.relation == "copy" and not first:
        return False
    return not seen.undone


def drift(new: Tensor, own: Tensor) -> float:
    """max |new − own| relative to max |own|; what is not finite is the same or infinitely far."""
    if new.shape != own.shape or new.dtype != own.dtype:
        return float("inf")
    if new.numel() == 0 or torch.equal(new, own):
        return 0.0
    new, own = new.double(), own.double()
    moved = torch.where((new == own) | (new.isnan() & own.isnan()), 0.0, (new - own).abs()).nan_to_num(nan=float("inf"))
    return float(moved.max()) / max(float(own.nan_to_num(0.0, 0.0, 0.0).abs().max()), 1e-30)


def _short(error: object) -> str:
    text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:300] + " …"


def examined(tool: Tool) -> dict[str, Any]:
    """All that is found of one tool, as plain data."""
    try:
        version = sys.version.split()[0] if tool.package == "Python" else importlib.metadata.version(tool.package)
    except importlib.metadata.PackageNotFoundError:
        return {"does": tool.does, "package": tool.package, "version": None}
    about = {"does": tool.does, "package": tool.package, "version": version, "note": tool.note}
    return {**about, "models": [_examined_on(tool, subject) for subject in tool.subjects]}


def _examined_on(tool: Tool, subject: Subject) -> dict[str, Any]:
    about = {"subject": subject.name, "reached": subject.reached}
    try:
        used = tool.use(subject.build(), subject)
        if used.off is not None:
            used.off()
    except Exception as error:
        return {**about, "unusable": _short(error)}
    verdicts = [asdict(one) for one in judge(tool, subject, can_be_taken_off=used.off is not None)]
    del used
    orders = {"never patched": None, "patch, tool": True, "tool, patch": False}
    alive: dict[str, list[str]] = {}
    for order, first in orders.items():
        try:
            alive[order] = alive_after_del(tool, subject, patched_first=first)
        except Exception:  # which the verdicts tell
            alive[order] = []
    return {**about, "verdicts": verdicts, "alive": alive}
