"""How far each layer's output moves, on one batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch.evaluation.variants import BEFORE
from hf_gelu_patch.verification import Exact, exact_copy, output_tensors

__all__ = ["LayerDrift", "layer_drift"]

Forward = Callable[[Any, Any], Tensor]
"""Runs a model on a batch and gives its logits: ``Task.forward``."""

_Model = nn.Module | AbstractContextManager[nn.Module]


@dataclass(frozen=True)
class LayerDrift:
    """How far a layer's output moved: RMS of the difference / RMS of the output it is measured against, over all its
    elements, padding included, on one batch.

    Attributes:
        path: the layer's; ``path[0]``, ``path[1]``, … where one forward calls it several times; at the end
            what the task looks at: "logits", "embeddings" or "features".
        change: patched against unpatched.
        own: unpatched against float64; None where there is no float64 copy.
        exact: patched against float64, likewise.
    """

    path: str
    change: float
    own: float | None = None
    exact: float | None = None


def layer_drift(
    before: nn.Module,
    variants: Mapping[str, _Model],
    batch: Any,
    forward: Forward,
    *,
    exact: Exact[Tensor] | None = None,
    output: str = "logits",
) -> dict[str, list[LayerDrift]]:
    """The drift of each layer's output (its first floating-point tensor) and of the logits, on one batch.

    Layers are the members of the outermost ``nn.ModuleList`` on each branch, as far as they have parts themselves: the
    blocks of encoders and decoders. The outputs of one model at a time are kept; the others are compared with them as
    they are computed. Arguments as for ``exact_drift``; ``output`` is what ``forward`` gives, in a word. A variant may
    be what has the model in a ``with`` block, and more than once.

    Returns:
        For each variant, an entry a layer in the order of their first call, the logits last.
    """
    exact = exact_copy(before, batch, forward) if exact is None else exact
    models: dict[str, tuple[_Model, Any]] = {name: (model, batch) for name, model in variants.items()}
    changes = _against((before, batch), models, forward)
    errors: dict[str, dict[str, float]] = {}
    if exact.model is not None:
        errors = _against((exact.model, exact.batch), {**models, BEFORE: (before, batch)}, forward)
    return {
        name: [
            LayerDrift(
                path or output,
                change,
                errors[BEFORE].get(path, math.inf) if errors else None,
                errors[name].get(path, math.inf) if errors else None,
            )
            for path, change in changes[name].items()
        ]
        for name in variants
    }


def _against(
    reference: tuple[nn.Module, Any], others: Mapping[str, tuple[_Model, Any]], forward: Forward
) -> dict[str, dict[str, float]]:
    """For each of the others, by path: RMS of its output less the reference's / RMS of the reference's."""
    outputs: dict[tuple[str, int], Tensor] = {}

    def keep(path: str, call: int, output: Tensor) -> None:
        outputs[path, call] = output.detach().clone()  # a later layer may write over it

    _watch(*reference, forward, keep)
    calls = Counter(path for path, _ in outputs)
    found: dict[str, dict[str, float]] = {}
    for name, other in others.items():
        found[name] = {(f"{path}[{call}]" if calls[path] > 1 else path): math.inf for path, call in outputs}

        def hold(path: str, call: int, output: Tensor, found: dict[str, float] = found[name]) -> None:
            if (path, call) in outputs:
                found[f"{path}[{call}]" if calls[path] > 1 else path] = _relative(output, outputs[path, call])

        model, batch = other
        with nullcontext(model) if isinstance(model, nn.Module) else model as one:
            _watch(one, batch, forward, hold)
    return found


def _relative(output: Tensor, reference: Tensor) -> float:
    """RMS(output − reference) / RMS(reference), in float64; 0.0 for 0 / 0."""
    if output.shape != reference.shape:
        return math.inf
    error = float(torch.linalg.vector_norm(output.double() - reference.double()))
    scale = float(torch.linalg.vector_norm(reference.double()))
    return error / scale if scale else (math.inf if error else 0.0)


def _watch(model: nn.Module, batch: Any, forward: Forward, see: Callable[[str, int, Tensor], None]) -> None:
    """Show ``see`` each layer's output as it is computed (path, which call of it, the output), then what ``forward``
    makes of the model's own, under the model's own path, which is ""."""
    calls: Counter[str] = Counter()

    def hook(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def seen(_module: nn.Module, _inputs: Any, output: Any) -> None:
            for tensor in output_tensors(output).values():
                see(path, calls[path], tensor)
                calls[path] += 1
                break

        return seen

    handles = [layer.register_forward_hook(hook(path)) for path, layer in _layers(model).items()]
    try:
        with torch.no_grad():
            logits = forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    see("", 0, logits)


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """The members of the outermost lists of modules that have parts: a hook on a bare linear layer or activation would
    keep the patch from fusing it."""
    layers: dict[str, nn.Module] = {}
    known: set[nn.Module] = set()
    lists: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{outer}.") for outer in lists):
            continue
        for key, layer in module.named_children():
            if any(True for _ in layer.children()) and layer not in known:
                layers[f"{path}.{key}" if path else key] = layer
                known.add(layer)
                lists.append(path)
    return layers
