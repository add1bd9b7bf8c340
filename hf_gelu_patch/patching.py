"""patch, unpatch, patched: a model's sites replaced as one act, and put back.

The patched model is its own record: a class made here knows the one it was made of, and a module in an activation's
stead keeps that. So undoing works on a deep copy, after a pickle, and inside whatever wrapped the model since.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Real

from torch import nn

from hf_gelu_patch.activations import get_activation
from hf_gelu_patch.applying import apply, prepare
from hf_gelu_patch.configs import ConfigChange, config_changes
from hf_gelu_patch.errors import (
    ImplementationUnavailableError,
    NoSitesError,
    NothingPatchedError,
    NothingPatchedWarning,
    NotPatchedError,
    PatchError,
    VerificationError,
    shortened,
)
from hf_gelu_patch.forwards.carried import reaches
from hf_gelu_patch.forwards.class_binding import (
    check_nothing_over,
    class_without,
    hand_back,
    is_overridden,
    is_patched,
    kept,
    original_of,
    rewritings,
    unbind,
)
from hf_gelu_patch.forwards.rewriting import Rewriting
from hf_gelu_patch.implementations.registry import Implementation
from hf_gelu_patch.memory import Meter
from hf_gelu_patch.others import bound, found_in
from hf_gelu_patch.planning import Plan, Wanted, plan_tiles, planned_again, recomputed
from hf_gelu_patch.planning import plan as planned
from hf_gelu_patch.plans import Origin, Saved, read
from hf_gelu_patch.recognition import resolve
from hf_gelu_patch.recomputing import taken
from hf_gelu_patch.report import Report, Tuning
from hf_gelu_patch.selection import Selector
from hf_gelu_patch.sites import check_module, describe_modules, walk
from hf_gelu_patch.sources import lines_of
from hf_gelu_patch.tiling.choosing import Tiling
from hf_gelu_patch.tuning import tuned
from hf_gelu_patch.verification import Verification

__all__ = ["explain", "patch", "patched", "unpatch"]


def patch(
    model: nn.Module,
    *,
    implementation: str | Implementation = "auto",
    activation: str | None = None,
    include: Selector = None,
    exclude: Selector = None,
    strict: bool = False,
    verify: object = None,
    margin: float | None = None,
    gradients: bool = False,
    tune: object = None,
    recompute: bool = False,
    memory: object = None,
    plan: str | os.PathLike[str] | None = None,
    tiles: int | str | bool | None = None,
) -> Report:
    """Replace the activations of one loaded model, in place and reversibly. Only this instance is touched.

    Args:
        model: any ``nn.Module``, on any device (meta too), in training or evaluation mode.
        implementation: ``"auto"``: the best one for the device, where one gains anything. Or a registered name; or an
            ``Implementation``, which need not be registered.
        activation: another function to compute instead, by name or transformers spelling; None keeps each site's
            own. Where the model's config sets the swapped sites, its entry follows, so that save → reload computes
            the same.
        include: the sites to patch: glob patterns on a site's path, the class name of its owner or its module, or
            its activation; or classes of either. None for all; a swap then spares tanh, sigmoid and the other
            functions that are usually no hidden-layer activation.
        exclude: the sites to leave alone, likewise; it wins over include.
        strict: raise, instead of warning, when no site was changed.
        verify: a batch to run the model on before and after, as it is (mode, device): keyword arguments as a mapping,
            positional ones as a tuple or list, or one tensor; or the one mapping that the model takes as such, as a
            SentenceTransformer its features. A list or tuple that is one argument is put in a tuple: ``(batch,)``. The
            batch, the model and all random states are left as they were. The drift of every output is in the report,
            beside the model's own error against a float64 copy where memory allows one; where it is too large the
            patch is undone and an error raised.
        margin: how far an output may move, relative to its scale max |output|, masks left out. None: a patch that keeps
            the functions may at most double the model's own error against float64 (the worst number's fourfold). A
            swap, and a patch of a model that no float64 copy could be made of, may move numbers by √ε of their usual
            size (float32 3.5e-4, float16 3.1e-2, bfloat16 8.8e-2), half of their digits. Of integers and booleans it
            is the share that may change; None: twice as many as differ from the float64 copy's, and from arithmetic
            coarser than float32 one of eight or more.
        gradients: with ``verify``: also compare the gradients of the output's ``loss``, and where there is none of a
            random weighted sum of the outputs, with respect to the parameters and inputs that require one. With
            ``tune``: time forward and backward together.
        tune: a batch, likewise, to measure on what pays: at each group of like sites every implementation that computes
            the same there (or only the one named), and the model's own ops. What is faster beyond the noise is taken,
            the rest is left alone; a swap is then computed by the model's own kind of ops. Each group takes some three
            to six seconds, and the whole model three; longer where one call takes long, or where there is much noise.
            Nothing else should run on the machine meanwhile.
        recompute: train with less memory: backward keeps an activation's input, or gate and up, and not the result that
            the next linear layer keeps for the gradient of its weights. That is computed again when backward gets
            there, dropout and casts on the way included. Also at sites where nothing is faster; gradients are the
            same. Under torch.compile and a gradient checkpoint, which decide by themselves what is kept, nothing
            changes. With ``tune``, what is timed keeps as much as ever.
        memory: a batch, likewise, to measure what a training step on it takes: the bytes that each site and the whole
            model keep for backward, and the peak, before and after. They are in the report's ``memory``;
            ``hf_gelu_patch.memory.measure`` says what is counted.
        plan: a file that ``Report.save`` wrote: the same is done again, without measuring, if the model, the versions
            and the machine are the same. It says all that implementation, activation, include, exclude, tune and
            recompute do.
        tiles: run the methods around activations that treat each token by itself in tiles along the sequence, in
            forward and backward, so that the wide tensors are there for one tile at a time. Each tile is computed again
            in backward. The number of tiles; or the most bytes that the tensors of one may take in forward, as text
            (``"256MiB"``); or ``"auto"``: 16, none of fewer than 2,048 tokens. What is not known to treat each token by
            itself is left alone, with the reason. None: nothing runs in tiles.

    Returns:
        What was done at each site, and why the others were left alone.

    Raises:
        PatchError: ``model`` is not a module; or the table of measurements of its GPU, which ``"auto"`` looks at,
            cannot be used; or arguments exclude each other; or ``tune``: the model is compiled, has no weights yet, or
            cannot run on the batch; or ``memory``: likewise, or nothing has a gradient there; or ``plan``: the file is
            no plan, or one for something else.
        NoSitesError: it has no activation module.
        NothingMatchedError: a pattern matches no site.
        UnknownNameError: an activation or implementation there isn't; the message lists the valid ones.
        ImplementationUnavailableError: the implementation named cannot run on the model's device or dtype.
        AlreadyPatchedError: the model or a part of it is patched.
        NothingPatchedError: no site was changed, and ``strict``.
        VerificationError: an output or gradient moved too far on ``verify``; or there is none to compare; or the model
            cannot run on it, or says something else each time.

    Whatever is raised, the model is as it was.
    """
    _check_arguments(verify, margin, gradients, tune)
    wanted = _wanted(implementation, activation, include, exclude, tune, recompute, plan)
    tuning: Tuning | None = None
    if isinstance(wanted, Saved):
        plans, activation = planned_again(wanted, model), wanted.origin.activation
        recompute = wanted.recompute
        prepare(plans)
    elif tune is not None:
        plans, tuning = tuned(model, tune, wanted, gradients=gradients)
    else:
        plans = _prepared(model, implementation, activation, include, exclude)
    if recompute and not isinstance(wanted, Saved):
        plans = tuple(recomputed(model, one) for one in plans)
    if not plans:
        remedy = "" if resolve(model) is None else " It is an activation itself: patch the model that holds it."
        raise NoSitesError(
            f"{type(model).__name__} applies no activation, neither in a module nor by a call in a forward; seen: "
            f"{describe_modules(model)}.{remedy}{_of_others(model)}"
        )
    tilings = plan_tiles(model, plans, tiles)
    inside = frozenset().union(*(one.inside for one in tilings))
    plans = tuple(replace(p, around=()) if p.site.owner_path in inside else p for p in plans)  # tiles keep nothing
    changing = [p for p in plans if p.fused is not None]
    config: list[ConfigChange] = []
    notes: list[str] = []
    if activation is not None and (swaps := [p for p in changing if p.swaps]):
        config, notes = config_changes(model, swaps, get_activation(activation))
    sites = tuple(p.site for p in plans)
    report = Report(
        type(model).__name__,
        sites,
        applied=True,
        config=tuple(notes),
        seen=describe_modules(model),
        tuning=tuning,
        tiled=tuple(one.told for one in tilings),
        origin=Origin.of(model, sites, activation),
        recompute=recompute,
        others=found_in(model),
    )
    in_tiles = [one for one in tilings if one.tiles is not None]
    if not changing and not in_tiles:
        reasons = Counter(f"{site.activation}: {site.reason}" for site in report.sites)
        reasons += Counter(f"{one.owner}, not in tiles: {one.reason}" for one in report.tiled)
        message = f"{report.summary}: " + "; ".join(f"{count} × {reason}" for reason, count in reasons.items())
        if strict:
            raise NothingPatchedError(message)
        warnings.warn(message, NothingPatchedWarning, stacklevel=2)
    if verify is not None:
        _check_draws(model, in_tiles)
    meter = None if memory is None else Meter(model, memory)
    verification = None if verify is None else Verification.of(model, verify, gradients=gradients)
    if verification is not None and margin is None and verification.far_from_exact:
        verification.check_repeats(model, margin)
    apply(changing, config, in_tiles)
    if verification is not None:
        report = _verified(model, report, verification, margin)
    return report if meter is None else _measured(model, report, meter)


def _prepared(
    model: nn.Module, implementation: str | Implementation, activation: str | None, include: Selector, exclude: Selector
) -> tuple[Plan, ...]:
    """The plans, all that they take ready to run. Where that fails, ``auto`` plans anew, without it."""
    plans = planned(model, implementation, activation, include, exclude)
    try:
        prepare(plans)
    except ImplementationUnavailableError:
        if implementation != "auto":
            raise
        plans = planned(model, implementation, activation, include, exclude)
    return plans


def _check_arguments(verify: object, margin: float | None, gradients: bool, tune: object) -> None:
    if margin is not None and verify is None:
        raise PatchError("margin says how far outputs may move on a batch: give that batch as verify=.")
    if margin is not None and not (isinstance(margin, Real) and margin >= 0):
        raise PatchError(f"margin is a number that is not negative, relative to an output's scale; got {margin!r}.")
    if gradients and verify is None and tune is None:
        raise PatchError("gradients are compared on a batch, or timed: give that batch as verify= or tune=.")


def _check_draws(model: nn.Module, tilings: Sequence[Tiling]) -> None:
    """Refuse to compare a model whose dropout draws other numbers once it runs in tiles."""
    for one in tilings:
        if one.told.draws and one.module.training:
            raise PatchError(
                f"{one.told.path or type(model).__name__} draws its dropout tile by tile, which gives other numbers "
                "than whole: verify it with model.eval(), or leave out verify= or tiles=."
            )


def _wanted(
    implementation: str | Implementation,
    activation: str | None,
    include: Selector,
    exclude: Selector,
    tune: object,
    recompute: bool,
    plan: str | os.PathLike[str] | None,
) -> Wanted | Saved:
    """What a user asks for, by arguments or by a saved plan."""
    if plan is None:
        return Wanted.of(implementation, activation, include, exclude)
    others = {"activation": activation, "include": include, "exclude": exclude, "tune": tune}
    given = [name for name, value in others.items() if value is not None]
    if implementation != "auto":
        given.insert(0, "implementation")
    if recompute:
        given.append("recompute")
    if given:
        raise PatchError(f"plan= says what is done at each site, and so does {given[0]}=: leave one of them out.")
    return read(plan)


def _verified(model: nn.Module, report: Report, verification: Verification, margin: float | None) -> Report:
    """The report of a patch with the drift on the batch. Where that is too large the patch is undone.

    Raises:
        VerificationError: it is too large, or the model does not repeat itself without the patch.
    """

    def undo() -> None:
        if report.changed or report.in_tiles:
            unpatch(model)

    same = all(site.equivalence in ("identical", "rounding") for site in report.changed)
    try:
        drift = verification.drift(model, margin=margin, same=same)
    except BaseException:
        undo()
        raise
    exceeded = [one for one in drift if one.exceeded]
    if not exceeded:
        return replace(report, drift=drift, unverified=verification.before.unseen)
    undo()
    verification.check_repeats(model, margin)
    raise VerificationError(
        f"{report.summary}, and undone again: on the batch given, {shortened(exceeded)}. "
        "Leave sites out with exclude=, or declare a larger margin= where that much is meant to change."
    )


def _measured(model: nn.Module, report: Report, meter: Meter) -> Report:
    """The report of a patch with what the model takes now. Where it cannot be measured the patch is undone."""
    try:
        return replace(report, memory=meter.after(model))
    except BaseException:
        if report.changed or report.in_tiles:
            unpatch(model)
        raise


def unpatch(model: nn.Module, *, missing_ok: bool = False) -> None:
    """Put the identical original objects back, and the config's entries, as if the model had never been patched.

    ``model`` is the one that was patched, a deep copy or an unpickled copy of it, or a wrapper around either. What
    has taken hold of a rewritten method meanwhile (a wrapper, a compiled forward) runs the model's own code again.

    Args:
        model: what to undo the patch of.
        missing_ok: do nothing, instead of raising, where nothing is patched. A patch may have had nothing to change.

    Raises:
        NotPatchedError: nothing below ``model`` is patched, and not ``missing_ok``; nothing is changed.
        PatchError: another tool has put a class of its own over a patched one, and that cannot be made without it; or
            a forward over that of a module which stands where an activation was. The message names it; nothing is
            changed.
        PatchError: ``model`` is not a module.
    """
    check_module(model)
    edges = [(edge, child, found) for edge, child in walk(model) if (found := original_of(child)) is not None]
    owners = [(module, class_without(module)) for module in _owners(model)]
    if not edges and not owners:
        if missing_ok:
            return
        raise NotPatchedError(
            f"{type(model).__name__} is not patched: there is nothing to undo. Where a patch may have changed nothing, "
            f"undo it with unpatch(model, missing_ok=True), or use the block `with patched(model):`.{_of_others(model)}"
        )
    for _, child, _ in edges:
        check_nothing_over(child)
    records = [record for module in model.modules() if (record := kept(module)) is not None]
    config = {id(change): change for record in records for change in record.config_changes}
    for module, cls in owners:
        unbind(module, cls)
    for edge, child, original in edges:
        hand_back(child, original)
        edge.owner._modules[edge.key] = original
    for module in model.modules():
        taken(module)
    for change in config.values():
        if getattr(change.owner, change.key) == change.new:  # what was set since then is not ours to undo
            setattr(change.owner, change.key, change.old)


def _of_others(model: nn.Module) -> str:
    """What other tools compute in a model, behind a sentence; "" where that is nothing."""
    return "".join(f" {one}." for one in found_in(model))


def _noted(model: nn.Module) -> list[str]:
    """The same as lines below a diff."""
    return [f"# {one}" for one in found_in(model)]


def _owners(model: nn.Module) -> list[nn.Module]:
    """The modules below ``model`` with rewritten methods."""
    return [module for module in model.modules() if rewritings(module)]


def explain(model: nn.Module, *, color: bool | None = None) -> str:
    """The rewritten forwards of a patched model, as a unified diff against the source they come from, once a class.

    Args:
        color: with ANSI colours; None: if standard output is a terminal and ``NO_COLOR`` is not set.

    Returns:
        The diff; a line that says so where the patch replaced modules and rewrote no forward. Behind it, what other
        tools compute in the model.

    Raises:
        NotPatchedError: nothing below ``model`` is patched.
        PatchError: ``model`` is not a module.
    """
    check_module(model)
    if not any(is_patched(module) for module in model.modules()):
        raise NotPatchedError(f"{type(model).__name__} is not patched: there is nothing to explain.{_of_others(model)}")
    owners = _owners(model)
    if not owners:
        told = f"{type(model).__name__}: activation modules were replaced, no forward was rewritten."
        return "\n".join([told, *_noted(model)])
    seen: Counter[tuple[Rewriting, str]] = Counter()
    for module in owners:
        for one in rewritings(module):
            overruling = _overruling(module, one.method)
            seen.update(dict.fromkeys([(one, overruling), *((inner, overruling) for inner in one.followed)], 1))
    if color is None:
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    lines: list[str] = []
    for (rewriting, overruling), count in seen.items():
        name, where, before, after = rewriting.shown
        note = f"; not run: {overruling}" if overruling else ""
        diff = difflib.unified_diff(
            [line.removesuffix(chr(10)) for line in lines_of(before)],
            [line.removesuffix(chr(10)) for line in lines_of(after)],
            fromfile=f"{name}  {where}",
            tofile=f"{name}  patched on {count} module{'s' if count > 1 else ''}{note}",
            lineterm="",
        )
        first = int(where.rpartition(":")[2])
        lines += [_moved_down(line, first - 1) for line in diff]
    if color:
        lines = [_colored(line) for line in lines]
    return "\n".join([*lines, *_noted(model)])


def _overruling(module: nn.Module, method: str) -> str:
    """What a module has been given since that does not come to run its rewritten method, in words; "" for nothing."""
    carried = vars(module).get(method)
    if carried is None or reaches(carried, getattr(type(module), method)):
        return f"its class has another {method} since" if is_overridden(module, method) else ""
    return f"{bound(method, carried)} there since"


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
    implementation: str | Implementation = "auto",
    activation: str | None = None,
    include: Selector = None,
    exclude: Selector = None,
    strict: bool = False,
    verify: object = None,
    margin: float | None = None,
    gradients: bool = False,
    tune: object = None,
    recompute: bool = False,
    memory: object = None,
    plan: str | os.PathLike[str] | None = None,
    tiles: int | str | bool | None = None,
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
        tune=tune,
        recompute=recompute,
        memory=memory,
        plan=plan,
        tiles=tiles,
    )
    try:
        yield report
    finally:
        if report.changed or report.in_tiles:
            unpatch(model)
