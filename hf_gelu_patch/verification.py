"""What a patch does to a model's outputs on a batch: the drift of each, beside the model's own rounding error."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Drift", "drifts", "exact_outputs", "largest_difference", "output_tensors", "outputs", "scale_of"]


@dataclass(frozen=True)
class Drift:
    """How far a patch moved one output.

    Attributes:
        output: its name: ``logits``, ``hidden_states.0``.
        largest: max |patched − before| over its elements; inf where one of them alone is not a number or infinite.
        scale: max |before|.
        margin: how large ``largest / scale`` may be.
        error_before, error_after: max |y − exact|, where the exact output is that of a float64 copy of the unpatched
            model; None where there was no memory for one or it could not run.
    """

    output: str
    largest: float
    scale: float
    margin: float
    error_before: float | None
    error_after: float | None

    @property
    def exceeded(self) -> bool:
        return not self.largest <= self.margin * self.scale

    def __str__(self) -> str:
        text = f"{self.output}: max |Δ| {self.largest:.2g} (of {self.scale:.3g}, margin {self.margin:.2g} of that)"
        if self.error_before is not None:
            text += f"; error against float64 {self.error_before:.2g} before, {self.error_after:.2g} after"
        return text


def outputs(model: nn.Module, batch: object) -> dict[str, Tensor]:
    """A model's outputs on a batch, without gradients, in the mode it is in; random numbers drawn alike each time.

    Args:
        model: the model.
        batch: a mapping of keyword arguments, a tuple or list of positional ones, or the one argument.

    Returns:
        Name → a copy of each floating-point tensor among the outputs.
    """
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"]
    with torch.no_grad(), torch.random.fork_rng(devices=sorted({d.index for d in devices})):
        torch.manual_seed(0)
        if isinstance(batch, Mapping):
            output = model(**batch)
        else:
            output = model(*batch) if isinstance(batch, (tuple, list)) else model(batch)
    return {name: tensor.clone() for name, tensor in output_tensors(output).items()}


def output_tensors(output: object) -> dict[str, Tensor]:
    """The floating-point tensors in whatever a model returns, caches included, by name: ``hidden_states.0``."""
    return dict(_named("", output))


def _named(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name or "output", value
        return
    if isinstance(value, (tuple, list)):
        value = dict(enumerate(value))
    elif not isinstance(value, Mapping) and (is_dataclass(value) or _is_of_transformers(value)):
        value = vars(value)
    for key, part in value.items() if isinstance(value, Mapping) else ():
        yield from _named(f"{name}.{key}" if name else str(key), part)


def _is_of_transformers(value: object) -> bool:
    return type(value).__module__.startswith("transformers.") and hasattr(value, "__dict__")


def exact_outputs(model: nn.Module, batch: object) -> dict[str, Tensor] | None:
    """The outputs of a float64 copy of a model; None where there is no memory for one, where weights are offloaded or
    quantized, or where it cannot run in float64."""
    weights = [*model.parameters(), *model.buffers()]
    devices = {weight.device for weight in weights}
    if len(devices) != 1 or any("_hf_hook" in vars(module) for module in model.modules()):
        return None
    (device,) = devices
    if 2 * 8 * sum(weight.numel() for weight in weights) > free_memory(device):
        return None
    try:
        exact = copy.deepcopy(model).double()
        return outputs(exact, _in_double(batch))
    except Exception:  # whatever a model raises in float64, there is no reference then
        return None


def free_memory(device: torch.device) -> float:
    """Bytes free on a device, as far as it tells; 0 on meta."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0 if device.type == "meta" else math.inf


def _in_double(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, Mapping):
        return {key: _in_double(value) for key, value in batch.items()}
    return type(batch)(map(_in_double, batch)) if type(batch) in (tuple, list) else batch


def drifts(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    exact: Mapping[str, Tensor] | None,
    margin: float | None,
) -> tuple[Drift, ...]:
    """One ``Drift`` for each output. ``margin`` None: √ε of the output's dtype, half of its digits."""
    return tuple(
        Drift(
            name,
            largest_difference(after[name], own) if name in after else math.inf,
            scale_of(own),
            math.sqrt(torch.finfo(own.dtype).eps) if margin is None else margin,
            None if exact is None or name not in exact else largest_difference(own, exact[name]),
            None
            if exact is None or name not in exact or name not in after
            else largest_difference(after[name], exact[name]),
        )
        for name, own in before.items()
    )


def scale_of(tensor: Tensor) -> float:
    """max |x| over the finite elements; 0.0 without any."""
    finite = tensor[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def largest_difference(a: Tensor, b: Tensor) -> float:
    """max |a − b|; what is not finite counts as equal where both are the same, else as infinitely far."""
    if a.shape != b.shape:
        return math.inf
    if a.numel() == 0:
        return 0.0
    a, b = a.double(), b.to(a.device).double()
    same = (a == b) | (a.isnan() & b.isnan())
    return float(torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf).max())
