"""How the pre-activations of a loaded model are reached: it goes on computing the very same, and each site is looked in
on by the way.

A module that one place alone applies is looked in on by a hook. What is written in a forward, what several places share
and what stands in a product with a gate is rewritten, as a patch rewrites it, and computes what it did. Afterwards the
model is as it was, whatever was raised.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch.activations import ACTIVATIONS, Activation, Derived, Unresolved, get_activation
from hf_gelu_patch.applying import apply
from hf_gelu_patch.errors import NoSitesError, PatchError
from hf_gelu_patch.forwards.replacements import hooked
from hf_gelu_patch.implementations.registry import Fused, Implementation
from hf_gelu_patch.implementations.tensors import ordinary
from hf_gelu_patch.planning import UNREACHED, Plan, plan
from hf_gelu_patch.profiling.counts import Counts
from hf_gelu_patch.profiling.results import Profile, SiteProfile
from hf_gelu_patch.selection import Selector
from hf_gelu_patch.sites import Site, describe_modules, places
from hf_gelu_patch.verification.runs import compiled

__all__ = ["Watched", "watching"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ENCODER, _DECODER = "attention_mask", "decoder_attention_mask"


def _product(gate: Tensor, up: Tensor, *, activation: str, **parameters: float) -> Tensor:
    y: Tensor = ACTIVATIONS[activation].eager(gate, **parameters)
    return y * up


_OWN = Implementation(
    "the model's own, looked in on",
    Derived(lambda record: None if record.learned else record.eager),
    gated=Derived(lambda record: None if record.learned else functools.partial(_product, activation=record.name)),
    identical=ACTIVATIONS,
)
"""What is asked for, to plan which products can be reached. What is put there is made of the site's own ops."""


class _Look:
    """What one site is looked in on by. It is let go of what it has seen at the end: caches of rewritten classes may
    keep it."""

    def __init__(self, counts: Counts, masks: Mapping[str, Tensor], mask: str) -> None:
        self._counts: Counts | None = counts
        self._masks = masks
        self._mask = mask

    def __call__(self, x: object, up: Tensor | None = None) -> None:
        if self._counts is None or not isinstance(x, Tensor) or not ordinary(x):
            return
        x, up = x.detach(), None if up is None else up.detach()
        mask = self._masks.get(self._mask)
        if mask is not None:
            mask = mask.to(x.device)  # of a model that is spread over devices
            if x.shape[: mask.dim()] == mask.shape:
                x, up = x[mask], None if up is None else up[mask]
            elif x.dim() == 2 and len(x) == mask.numel():
                x, up = x[mask.flatten()], None if up is None else up[mask.flatten()]
        self._counts.add(x, up)

    def close(self) -> None:
        self._counts = None


def _looked_at(look: _Look, act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    look(x)
    return act(x)


def _factor_looked_at(look: _Look, act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    look(x, torch.ones_like(x))
    return act(x)


def _product_looked_at(look: _Look, act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    look(gate, up)
    return act(gate) * up


@dataclass(frozen=True)
class Watched:
    """A model that is being watched.

    Attributes:
        model: the model.
        sites: each site that was asked for, with its counts; None where it cannot be reached.
        masks: of the batch that runs now: which tokens are no padding.
    """

    model: nn.Module
    sites: Sequence[tuple[Site, Counts | None]]
    masks: dict[str, Tensor]

    def batch(self, inputs: object) -> None:
        """Say what the model will run on next. Padding is left out where an attention mask tells of it."""
        self.masks.clear()
        given: Mapping[str, object] = inputs if isinstance(inputs, Mapping) else {}
        for name in (_ENCODER, _DECODER):
            mask = given.get(name)
            if isinstance(mask, Tensor) and mask.dim() == 2 and not bool((mask != 0).all()):
                self.masks[name] = mask != 0

    def profile(self) -> Profile:
        """What was seen up to now."""
        return Profile(
            type(self.model).__name__,
            tuple(SiteProfile(site, counts or Counts(None, ())) for site, counts in self.sites),
        )


@contextmanager
def watching(
    model: nn.Module, include: Selector = None, exclude: Selector = None, activations: Sequence[str] | None = None
) -> Iterator[Watched]:
    """Watch a model's sites for the length of a ``with`` block.

    Args:
        model: unpatched and not compiled; arguments and errors as for ``profile``.
    """
    for path, module in model.named_modules():
        if compiled(module):
            raise PatchError(
                f"{path or type(model).__name__} is compiled, so what goes on in it cannot be seen: profile the model "
                "before torch.compile."
            )
    plans = plan(model, _OWN, None, include, exclude)
    if not plans:
        raise NoSitesError(f"{type(model).__name__} applies no activation; seen: {describe_modules(model)}.")
    others = _others(activations)
    encoder = _encoder(model)
    masks: dict[str, Tensor] = {}
    shared = Counter(id(p.module) for p in plans if p.module is not None)
    sites: list[tuple[Site, Counts | None]] = []
    rewritten: list[Plan] = []
    with ExitStack() as undo:
        for place, p in zip(places(model), plans, strict=True):
            if p.spared is not None:
                continue
            module, product = p.module, p.fused is not None and p.site.fused
            by_hook = module is not None and not product and (shared[id(module)] == 1 or p.fused is None)
            if isinstance(place.current, Unresolved) or not (by_hook or p.fused is not None):
                sites.append((replace(p.site, reason=p.site.reason.removeprefix(UNREACHED)), None))
                continue
            counts = _counts(place.current.activation, others)
            counts.units_vary = _convolves(place.owner)
            look = _Look(counts, masks, _ENCODER if encoder is None or id(place.owner) in encoder else _DECODER)
            undo.callback(look.close)
            if module is not None and by_hook:
                undo.callback(module.register_forward_pre_hook(_hook(look), with_kwargs=True).remove)
            elif p.fused is not None:
                rewritten.append(replace(p, fused=_fused(p, p.fused, look, product)))
            sites.append((replace(p.site, reason=""), counts))
        undo.push(apply(rewritten, []))
        yield Watched(model, sites, masks)


def _others(names: Sequence[str] | None) -> list[Activation]:
    """The functions to hold a site against: those named, else all that are usual in hidden layers."""
    if names is not None:
        return [get_activation(name) for name in names]
    return [record for record in ACTIVATIONS.values() if record.hidden and not record.learned]


def _counts(current: Activation, others: Sequence[Activation]) -> Counts:
    """What to count at a site. One with learned parameters, or none of the usual functions, is held against nothing."""
    if current.learned:
        return Counts(None, ())
    return Counts(current, [one for one in others if one != current] if current.hidden else ())


def _convolves(owner: nn.Module) -> bool:
    """Whether a module's activations stand behind convolutions, so that the last dimension is one of time or space: it
    holds some, and beside them no linear layer, whose units are the last dimension."""
    for modules in (list(owner.children()), list(owner.modules())):
        if any(isinstance(one, nn.Linear) for one in modules):
            return False
        if any(isinstance(one, _CONVOLUTIONS) for one in modules):
            return True
    return False


def _encoder(model: nn.Module) -> set[int] | None:
    """The modules of an encoder–decoder's encoder, by their ids; None of any other model."""
    config, get_encoder = getattr(model, "config", None), getattr(model, "get_encoder", None)
    if not getattr(config, "is_encoder_decoder", False) or get_encoder is None:
        return None
    return set(map(id, get_encoder().modules()))


def _hook(look: _Look) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        look(next(iter((*given, *named.values())), None))

    return hook


def _fused(p: Plan, own: Fused, look: _Look, product: bool) -> Fused:
    """What a site computes, looked in on."""
    module = p.module
    act = own.eager if module is None or hooked(module) else module.forward
    by_itself = _factor_looked_at if product else _looked_at
    return replace(
        own,
        pointwise=functools.partial(by_itself, look, act),
        gated=functools.partial(_product_looked_at, look, act) if product else None,
        linear=None,
    )
