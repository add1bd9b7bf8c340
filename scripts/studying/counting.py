"""Claim 4: how many elementwise nonlinearities a block has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn

from hf_gelu_patch import find_sites
from hf_gelu_patch.errors import NoSitesError
from hf_gelu_patch.sites import Site
from scripts.covering.tiny import TinyModelError, model_types, tiny_model

__all__ = ["all_types", "blocks", "one_type"]


def one_type(model_type: str, *, seed: int = 0) -> dict[str, Any]:
    """The blocks of a tiny model of a type, and the activations in each of them.

    Raises:
        TinyModelError: there is no such model here.
    """
    return {"type": model_type, **blocks(tiny_model(model_type, seed=seed).model)}


def blocks(model: nn.Module) -> dict[str, Any]:
    """``blocks``: of each kind of block (the class of the modules in an outermost ``ModuleList`` that has two or more,
    all of one class) how many there are, and ``activations``: the functions that one of them applies, in order, gates
    marked with ×. ``outside``: how many sites lie in no block."""
    try:
        sites = find_sites(model).sites
    except NoSitesError:
        sites = ()
    found: dict[str, Any] = {}
    inside: set[str] = set()
    for path, layers in _lists(model):
        own = [_of(f"{path}.{number}.", sites) for number in range(len(layers))]
        inside |= {site.path for some in own for site in some}
        key = type(layers[0]).__name__
        kept = found.setdefault(key, {"count": 0, "per block": Counter(), "activations": []})
        kept["count"] += len(layers)
        kept["per block"].update(str(len(some)) for some in own)
        kept["activations"] = kept["activations"] or [_said(site) for site in own[0]]
    for kept in found.values():
        kept["per block"] = dict(sorted(kept["per block"].items()))
    return {"blocks": found, "outside": sum(site.path not in inside for site in sites)}


def all_types() -> dict[str, Any]:
    """Of all of transformers' types: in how many each block has so many elementwise nonlinearities."""
    spread: Counter[str] = Counter()
    none = 0
    for model_type in model_types():
        try:
            found = one_type(model_type)["blocks"]
        except TinyModelError:
            continue
        counts = {int(count) for kept in found.values() for count in kept["per block"]}
        if not counts:
            none += 1
            continue
        spread[str(min(counts)) if len(counts) == 1 else "several"] += 1
    return {"types": sum(spread.values()), "without blocks": none, "per block": dict(sorted(spread.items()))}


def _lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """The outermost lists of blocks."""
    outer: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(f"{one}.") for one in outer):
            continue
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(one) for one in module}) == 1:
            outer.append(path)
            yield path, module


def _of(prefix: str, sites: tuple[Site, ...]) -> list[Site]:
    return [site for site in sites if site.path.startswith(prefix)]


def _said(site: Site) -> str:
    return f"{site.activation} ×" if site.kind == "gated" else site.activation
