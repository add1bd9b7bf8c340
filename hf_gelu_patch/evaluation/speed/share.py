"""How much of a forward's time activations take: what a patch could save at the very most."""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch import NoSitesError, NothingPatchedWarning, NotPatchedError, patch, unpatch
from hf_gelu_patch.activations import ACTIVATIONS, Resolved
from hf_gelu_patch.evaluation.makes import device_of
from hf_gelu_patch.evaluation.speed.rounds import CudaClock
from hf_gelu_patch.evaluation.twins import obstacle, twin
from hf_gelu_patch.implementations.registry import Implementation
from hf_gelu_patch.sites import places

__all__ = ["activation_share", "amdahl"]

_ROUNDS = 7


def activation_share(
    model: nn.Module,
    batches: Sequence[Any],
    forward: Callable[[Any, Any], object],
    *,
    clock: Callable[[], Any] | None = None,
) -> float:
    """The share of a forward's time that is spent in activations: what a patch could save at the very most.

    At each site that ``patch`` finds and can compute, the model's own activation counts. So does the product with it,
    where the site is gated. The linear layer before it does not count, nor does what ``patch`` does not find.

    Each call is timed within the forward that it is part of, which makes it a microsecond longer. A twin of the model
    is patched for that, which shares its weights; where it can have none, the model itself, which then has to come
    unpatched, and is so again afterwards. The share is the median of seven rounds over the batches,
    after one to warm up. On a GPU, time is taken by events, between the moments at which the GPU gets to them.

    Args:
        model: patched or not; it is not changed, as far as it can have a twin.
        batches: what to run.
        forward: runs a model on a batch.
        clock: moments; one less another is seconds. None: the device's.
    """
    own = model if obstacle(model) else twin(model)
    device = device_of(model)
    now: Callable[[], Any] = clock or (CudaClock(device) if device.type == "cuda" else time.perf_counter)
    spans: list[tuple[Any, Any]] = []

    def timed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*tensors: Tensor, **parameters: Any) -> Tensor:
            start = now()
            result = function(*tensors, **parameters)
            spans.append((start, now()))
            return result

        return run

    try:
        _time_sites(own, timed)
    except NoSitesError:
        return 0.0
    shares: list[float] = []
    try:
        with torch.no_grad():
            for _ in range(1 + _ROUNDS):
                spans.clear()
                start = now()
                for batch in batches:
                    forward(own, batch)
                end = now()
                shares.append(sum(after - before for before, after in spans) / (end - start))
    finally:
        if own is model:
            _unpatched(model)
    return statistics.median(shares[1:])


def _unpatched(model: nn.Module) -> None:
    with contextlib.suppress(NotPatchedError):
        unpatch(model)


def _time_sites(model: nn.Module, timed: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> None:
    """Have ``timed`` around each site's own computation, by an implementation that nobody else can ask for."""
    _unpatched(model)
    functions = {name: record.eager for name, record in ACTIVATIONS.items() if not record.learned}
    functions |= _own_forwards(model)
    own = Implementation(
        "the model's own, timed",
        {name: timed(function) for name, function in functions.items()},
        gated={name: timed(functools.partial(_gated, function)) for name, function in functions.items()},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingPatchedWarning)
        patch(model, implementation=own)


def _gated(act: Callable[..., Tensor], gate: Tensor, up: Tensor, **parameters: float) -> Tensor:
    return act(gate, **parameters) * up


def _own_forwards(model: nn.Module) -> dict[str, Callable[..., Tensor]]:
    """activation → the forward of the model's own module for it, which may take more steps than the plainest form."""

    def own(module: nn.Module | None) -> Callable[..., Tensor]:
        assert module is not None
        return lambda x, **_: module(x)

    return {
        place.current.activation.name: own(place.edge.owner._modules[place.edge.key])
        for place in places(model)
        if place.edge is not None and isinstance(place.current, Resolved)
    }


def amdahl(share: float) -> float:
    """The most that any speed-up of the activations can bring the whole forward: 1 / (1 − share) (Amdahl 1967)."""
    return 1 / (1 - share) if share < 1 else math.inf
