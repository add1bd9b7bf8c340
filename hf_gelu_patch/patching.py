"""patch, unpatch, patched: a model's sites replaced as one act, and put back.

The patched model is its own record: each replacement keeps the original it stands for, so undoing works on a deep
copy, after a pickle, and inside whatever wrapped the model since.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from hf_gelu_patch.activations import get_activation
from hf_gelu_patch.configs import config_changes
from hf_gelu_patch.errors import (
    NoSitesError,
    NothingPatchedError,
    NothingPatchedWarning,
    NotPatchedError,
    PatchError,
    VerificationError,
)
from hf_gelu_patch.forwards import Use
from hf_gelu_patch.implementations import Fused
from hf_gelu_patch.replacements import PatchedActivation
from hf_gelu_patch.rewriting import PatchedMethods, explained, rewritten
from hf_gelu_patch.sites import (
    ConfigChange,
    Plan,
    Report,
    Selector,
    describe_modules,
    plan,
    walk,
)
from hf_gelu_patch.sources import lines_of
from hf_gelu_patch.verification import Drift, Verification

__all__ = ["explain", "patch", "patched", "unpatch"]


def patch(
    model: nn.Module,
    *,
    implementation: str = "auto",
    activation: str | None = None,
    include: Selector = None,
    exclude: Selector = None,
    strict: bool = False,
    verify: object = None,
    margin: float | None = None,
    gradients: bool = False,
) -> Report:
    """Replace the activations of one loaded model, in place and reversibly. Only this instance is touched.

    Args:
        model: any ``nn.Module``, on any device (meta too), in training or evaluation mode.
        implementation: a registered name, or ``"auto"``: the best one for the device, where one gains anything.
        activation: another function to compute instead, by name or transformers spelling; None keeps each site's
            own. Where the model's config sets the swapped sites, its entry follows, so that save → reload computes
            the same.
        include: the sites to patch: glob patterns on a site's path, the class name of its owner or its module, or
            its activation; or classes of either. None for all; a swap then spares tanh, sigmoid and the other
            functions that are no hidden-layer activation.
        exclude: the sites to leave alone, likewise; it wins over include.
        strict: raise, instead of warning, when no site was changed.
        verify: a batch to run the model on before and after, as it is (mode, device): keyword arguments as a mapping,
            positional ones as a tuple or list, or one tensor. The batch, the model and all random states are left as
            they were. The drift of every output is in the report, beside the model's own error against a float64 copy
            where memory allows one; where it is too large the patch is undone and an error raised.
        margin: how far an output may move, relative to its scale max |output|, masks left out. None: a patch that keeps
            the functions may at most double the model's own error against float64 (the worst number's fourfold). A
            swap, and a patch of a model that no float64 copy could be made of, may move numbers by √ε of their usual
            size (float32 3.5e-4, float16 3.1e-2, bfloat16 8.8e-2), half of their digits. Of integers and booleans it
            is the share that may change; None: twice as many as differ from the float64 copy's.
        gradients: with ``verify``: also compare the gradients of the output's ``loss``, and where there is none of a
            random weighted sum of the outputs, with respect to the parameters and inputs that require one.

    Returns:
        What was done at each site, and why the others were left alone.

    Raises:
        PatchError: ``model`` is not a module; or the table of measurements of its GPU, which ``"auto"`` looks at,
            cannot be used.
        NoSitesError: it has no activation module.
        NothingMatchedError: a pattern matches no site.
        UnknownNameError: an activation or implementation there isn't; the message lists the valid ones.
        ImplementationUnavailableError: the implementation named cannot run on the model's device or dtype.
        AlreadyPatchedError: the model or a part of it is patched.
        NothingPatchedError: no site was changed, and ``strict``.
        VerificationError: an output or gradient moved too far on ``verify``; or there is none to compare.

    Whatever is raised, the model is as it was.
    """
    if margin is not None and verify is None:
        raise PatchError("margin says how far outputs may move on a batch: give that batch as verify=.")
    if gradients and verify is None:
        raise PatchError("gradients are compared on a batch: give that batch as verify=.")
    plans = plan(model, implementation, activation, include, exclude)
    if not plans:
        raise NoSitesError(
            f"{type(model).__name__} applies no activation, neither in a module nor by a call in a forward; seen: "
            f"{describe_modules(model)}."
        )
    changing = [p for p in plans if p.fused is not None]
    config: list[ConfigChange] = []
    notes: list[str] = []
    if activation is not None:
        swaps = [p for p in changing if p.site.equivalence in ("approximate", "different")]
        if swaps:
            config, notes = config_changes(model, swaps, get_activation(activation))
    report = Report(
        type(model).__name__,
        tuple(p.site for p in plans),
        applied=True,
        config=tuple(notes),
        seen=describe_modules(model),
    )
    if not changing:
        reasons = Counter(f"{site.activation}: {site.reason}" for site in report.sites)
        message = f"{report.summary}: " + "; ".join(f"{count} × {reason}" for reason, count in reasons.items())
        if strict:
            raise NothingPatchedError(message)
        warnings.warn(message, NothingPatchedWarning, stacklevel=2)
    verification = None if verify is None else Verification.of(model, verify, gradients=gradients)
    _apply(changing, config)
    if verification is None:
        return report
    try:
        same = all(p.site.equivalence in ("identical", "rounding") for p in changing)
        drift = verification.drift(model, margin=margin, same=same)
        report = replace(report, drift=drift, unverified=verification.before.unseen)
        if exceeded := [one for one in drift if one.exceeded]:
            raise VerificationError(
                f"{report.summary}, and undone again: on the batch given, {_worst(exceeded)}. "
                "Leave sites out with exclude=, or declare a larger margin= where that much is meant to change."
            )
    except BaseException:
        if changing:
            unpatch(model)
        raise
    return report


def _worst(drift: list[Drift], most: int = 5) -> str:
    text = "; ".join(map(str, drift[:most]))
    return text if len(drift) <= most else f"{text}; and {len(drift) - most} more"


def _apply(plans: list[Plan], config: list[ConfigChange]) -> None:
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    bound: list[PatchedMethods] = []
    changed: list[ConfigChange] = []
    stand_ins: dict[tuple[int, Fused], PatchedActivation] = {}  # what is shared stays shared
    rewriting: dict[int, list[tuple[Use, Fused]]] = {}
    try:
        for p in plans:
            assert p.fused is not None
            if p.edge is not None:
                owner, key = p.edge.owner, p.edge.key
                original = owner._modules[key]
                assert original is not None
                if not isinstance(original, PatchedActivation):  # by another use of the same attribute
                    if (id(original), p.fused) not in stand_ins:
                        label = f"{p.site.target}, implementation={p.site.implementation}"
                        stand_ins[id(original), p.fused] = PatchedActivation(original, p.fused, label, config)
                    owner._modules[key] = stand_ins[id(original), p.fused]
                    replaced.append((owner, key, original))
            if p.rewrites:
                assert p.use is not None
                rewriting.setdefault(id(p.use.owner), []).append((p.use, p.fused))
        for parts in rewriting.values():
            record = PatchedMethods(parts[0][0].owner, rewritten(parts), config)
            bound.append(record)
            record.bind()
        for change in config:
            setattr(change.owner, change.key, change.new)
            changed.append(change)
    except BaseException:
        for change in reversed(changed):
            setattr(change.owner, change.key, change.old)
        for record in reversed(bound):
            record.unbind()
        for owner, key, original in reversed(replaced):
            owner._modules[key] = original
        raise


def unpatch(model: nn.Module) -> None:
    """Put the identical original objects back, and the config's entries, as if the model had never been patched.

    ``model`` is the one that was patched, a deep copy or an unpickled copy of it, or a wrapper around either.

    Raises:
        NotPatchedError: nothing below ``model`` is patched; nothing is changed.
    """
    edges = [(edge, child) for edge, child in walk(model) if isinstance(child, PatchedActivation)]
    records = _records(model)
    if not edges and not records:
        raise NotPatchedError(f"{type(model).__name__} is not patched: there is nothing to undo.")
    config: dict[int, ConfigChange] = {}
    for record in records:
        record.unbind()
        config.update((id(change), change) for change in record.config_changes)
    for edge, replacement in edges:
        edge.owner._modules[edge.key] = replacement.restored()
        config.update((id(change), change) for change in replacement.config_changes)
    for change in config.values():
        if getattr(change.owner, change.key) == change.new:  # what was set since then is not ours to undo
            setattr(change.owner, change.key, change.old)


def _records(model: nn.Module) -> list[PatchedMethods]:
    return [record for module in model.modules() if (record := PatchedMethods.of(module)) is not None]


def explain(model: nn.Module, *, color: bool | None = None) -> str:
    """The rewritten forwards of a patched model, as a unified diff against the source they come from, once a class.

    Args:
        color: with ANSI colours; None: if standard output is a terminal and ``NO_COLOR`` is not set.

    Returns:
        The diff; a line that says so where the patch replaced modules and rewrote no forward.

    Raises:
        NotPatchedError: nothing below ``model`` is patched.
    """
    records = _records(model)
    if not records and not any(isinstance(module, PatchedActivation) for module in model.modules()):
        raise NotPatchedError(f"{type(model).__name__} is not patched: there is nothing to explain.")
    seen = Counter(part for record in records for part in explained(record))
    if not seen:
        return f"{type(model).__name__}: activation modules were replaced, no forward was rewritten."
    if color is None:
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    lines: list[str] = []
    for (name, where, before, after), count in seen.items():
        diff = difflib.unified_diff(
            [line.removesuffix(chr(10)) for line in lines_of(before)],
            [line.removesuffix(chr(10)) for line in lines_of(after)],
            fromfile=f"{name}  {where}",
            tofile=f"{name}  patched on {count} module{'s' if count > 1 else ''}",
            lineterm="",
        )
        first = int(where.rpartition(":")[2])
        lines += [_moved_down(line, first - 1) for line in diff]
    return "\n".join(_colored(line) for line in lines) if color else "\n".join(lines)


def _moved_down(line: str, by: int) -> str:
    return _HUNK.sub(lambda hunk: f"{hunk[1]}{int(hunk[2]) + by}", line) if line.startswith("@@") else line


_HUNK = re.compile(r"([-+])(\d+)")  # the line numbers of "@@ -1,6 +1,5 @@", to be the file's


_COLORS = {"---": "1", "+++": "1", "@@": "36", "-": "31", "+": "32"}


def _colored(line: str) -> str:
    code = next((code for start, code in _COLORS.items() if line.startswith(start)), None)
    return line if code is None else f"\x1b[{code}m{line}\x1b[0m"


@contextmanager
def patched(
    model: nn.Module,
    *,
    implementation: str = "auto",
    activation: str | None = None,
    include: Selector = None,
    exclude: Selector = None,
    strict: bool = False,
    verify: object = None,
    margin: float | None = None,
    gradients: bool = False,
) -> Iterator[Report]:
    """``patch`` for the length of a ``with`` block, undone on the way out, exceptions included. Arguments as there."""
    report = patch(
        model,
        implementation=implementation,
        activation=activation,
        include=include,
        exclude=exclude,
        strict=strict,
        verify=verify,
        margin=margin,
        gradients=gradients,
    )
    try:
        yield report
    finally:
        if report.changed:
            unpatch(model)
