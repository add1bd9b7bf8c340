"""patch, unpatch, patched: a model's sites replaced as one act, and put back.

The patched model is its own record: each replacement keeps the original it stands for, so undoing works on a deep
copy, after a pickle, and inside whatever wrapped the model since.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from hf_gelu_patch.activations import get_activation
from hf_gelu_patch.configs import config_changes
from hf_gelu_patch.errors import NoSitesError, NothingPatchedError, NothingPatchedWarning, NotPatchedError
from hf_gelu_patch.sites import (
    ConfigChange,
    PatchedActivation,
    Plan,
    Report,
    Selector,
    describe_modules,
    plan,
    walk,
)

__all__ = ["patch", "patched", "unpatch"]


def patch(
    model: nn.Module,
    *,
    implementation: str = "auto",
    activation: str | None = None,
    include: Selector = None,
    exclude: Selector = None,
    strict: bool = False,
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

    Returns:
        What was done at each site, and why the others were left alone.

    Raises:
        PatchError: ``model`` is not a module.
        NoSitesError: it has no activation module.
        NothingMatchedError: a pattern matches no site.
        UnknownNameError: an activation or implementation there isn't; the message lists the valid ones.
        ImplementationUnavailableError: the implementation named cannot run on the model's device or dtype.
        AlreadyPatchedError: the model or a part of it is patched.
        NothingPatchedError: no site was changed, and ``strict``.

    Whatever is raised, the model is as it was.
    """
    plans = plan(model, implementation, activation, include, exclude)
    if not plans:
        raise NoSitesError(
            f"{type(model).__name__} has no activation module to replace; seen: {describe_modules(model)}. "
            "Activations that are called as functions inside a forward are not reached."
        )
    changing = [p for p in plans if p.function is not None]
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
    _apply(changing, config)
    return report


def _apply(plans: list[Plan], config: list[ConfigChange]) -> None:
    done: list[tuple[nn.Module, str, nn.Module]] = []
    changed: list[ConfigChange] = []
    try:
        for p in plans:
            assert p.function is not None
            replacement = PatchedActivation(p.module, p.function, p.site, config)
            for edge in p.edges:
                edge.owner._modules[edge.key] = replacement
                done.append((edge.owner, edge.key, p.module))
        for change in config:
            setattr(change.owner, change.key, change.new)
            changed.append(change)
    except BaseException:
        for change in reversed(changed):
            setattr(change.owner, change.key, change.old)
        for owner, key, original in reversed(done):
            owner._modules[key] = original
        raise


def unpatch(model: nn.Module) -> None:
    """Put the identical original objects back, and the config's entries, as if the model had never been patched.

    ``model`` is the one that was patched, a deep copy or an unpickled copy of it, or a wrapper around either.

    Raises:
        NotPatchedError: nothing below ``model`` is patched; nothing is changed.
    """
    edges = [(edge, child) for edge, child in walk(model) if isinstance(child, PatchedActivation)]
    if not edges:
        raise NotPatchedError(f"{type(model).__name__} is not patched: there is nothing to undo.")
    config: dict[int, ConfigChange] = {}
    for edge, replacement in edges:
        edge.owner._modules[edge.key] = replacement.restored()
        config.update((id(change), change) for change in replacement.config_changes)
    for change in config.values():
        if getattr(change.owner, change.key) == change.new:  # what was set since then is not ours to undo
            setattr(change.owner, change.key, change.old)


@contextmanager
def patched(
    model: nn.Module,
    *,
    implementation: str = "auto",
    activation: str | None = None,
    include: Selector = None,
    exclude: Selector = None,
    strict: bool = False,
) -> Iterator[Report]:
    """``patch`` for the length of a ``with`` block, undone on the way out, exceptions included. Arguments as there."""
    report = patch(
        model,
        implementation=implementation,
        activation=activation,
        include=include,
        exclude=exclude,
        strict=strict,
    )
    try:
        yield report
    finally:
        if report.changed:
            unpatch(model)
