"""How far a patch moves what a model computes, example by example and layer by layer, beside the model's own rounding
error: that of its unpatched self against a float64 copy. And how much of a forward there is to gain at all."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_gelu_patch import NoSitesError, NothingPatchedWarning, NotPatchedError, patch, unpatch
from hf_gelu_patch.activations import ACTIVATIONS, Resolved
from hf_gelu_patch.errors import first_line
from hf_gelu_patch.evaluation.speed import CudaClock
from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS, Implementation, register_implementation
from hf_gelu_patch.sites import places
from hf_gelu_patch.verification import Scale, free_memory, output_tensors, relative

__all__ = [
    "Exact",
    "LayerDrift",
    "LogitDrift",
    "activation_share",
    "amdahl",
    "batch_drift",
    "exact_copy",
    "exact_drift",
    "in_double",
    "layer_drift",
    "total_drift",
]

Forward = Callable[[Any, Any], Tensor]
"""Runs a model on a batch and gives its logits: ``Task.forward``."""

_AT_A_TIME = 2**18  # numbers that are looked at together: they stay in the processor's cache
_SMALL = 0.01  # |Δ| of logits up to which KL is half their variance
_MEASURED = ("max_abs", "sum_abs", "scale", "relative", "kl", "agree")  # at each position; the last two with softmax
_SAMPLE = 2**14  # numbers of a batch by which its scale is told
_LARGEST = ("max_abs", "scale", "relative", "kl_max")  # of what ``batch_drift`` gives: the others add up
_SHARE_ROUNDS = 7
_TIMED = "timed for activation_share"
_OWN = "before"  # what the unpatched model is called beside its variants


@dataclass(frozen=True)
class LogitDrift:
    """How far logits moved, over all positions that count.

    Attributes:
        max_abs, mean_abs: of |after − before|, over every logit; inf where one of them alone is not finite.
        scale: max |before|, masks left out.
        kl_mean, kl_max: of KL(before ‖ after) = Σ p·log(p / q) at a position, in nats; p, q the softmax of the logits
            before and after. None where features stand for logits: their softmax means nothing.
        top1_agreement: the share of positions at which the same class is likeliest, or one of those that are; None
            likewise.
        positions: how many there were. All else is NaN without any.
        relative: max |Δ| / s, by which ``patch(verify=)`` judges too: beside how large the logits of a batch usually
            are, whatever the masks among them.
        own: the unpatched model's against a float64 copy of it, on one batch; None where there is none.
        exact: the patched model's against that same copy, likewise.
    """

    max_abs: float
    mean_abs: float
    scale: float
    kl_mean: float | None
    kl_max: float | None
    top1_agreement: float | None
    positions: int
    relative: float = 0.0
    own: LogitDrift | None = None
    exact: LogitDrift | None = None


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


# -------------------------------------------------------------------------------------------------------------- logits


def batch_drift(
    before: Tensor,
    after: Tensor,
    counts: Tensor | None = None,
    *,
    softmax: bool = True,
    epsilon: float | None = None,
) -> list[dict[str, float]]:
    """What ``total_drift`` adds up, for each example of a batch, in float32 (float64 where the logits are). Logits that
    are bit-identical cost less than their softmax, others about three of them.

    Args:
        before, after: logits, [examples, positions, classes].
        counts: [examples, positions], which positions count; None for all.
        softmax: whether their softmax means something; False for features.
        epsilon: of the arithmetic that they come from; None for their dtype's.

    Returns:
        For each example: max_abs, sum_abs, scale, relative, positions, elements; with ``softmax`` kl_sum, kl_max and
        agree too.

    Raises:
        ValueError: the shapes differ.
    """
    if before.shape != after.shape or before.dim() != 3:
        raise ValueError(
            f"logits are [examples, positions, classes], before and after alike; got {list(before.shape)} and "
            f"{list(after.shape)}."
        )
    before, after = before.detach(), after.detach()
    examples, positions, classes = before.shape
    if counts is None:
        counts = torch.ones(examples, positions, dtype=torch.bool, device=before.device)
    where, which = counts.nonzero(as_tuple=True)
    step = max(1, _AT_A_TIME // max(1, classes))
    measured = _MEASURED if softmax else _MEASURED[:-2]
    scale = Scale.of(_sampled(before, where, which))
    epsilon = torch.finfo(before.dtype).eps if epsilon is None else epsilon
    parts = [_moved(*part, scale, epsilon, softmax=softmax) for part in _parts(before, after, where, which, step)]
    found = torch.cat(parts, dim=1).cpu().numpy() if parts else np.zeros((len(measured), 0))
    rows = where.cpu().numpy()
    columns: dict[str, Any] = {"positions": np.bincount(rows, minlength=examples).astype(np.float64)}
    columns["elements"] = columns["positions"] * classes
    for name, values in zip(measured, found, strict=True):
        if name != "kl" and name not in _LARGEST:
            columns[name] = np.bincount(rows, weights=values, minlength=examples)
            continue
        columns[f"{name}_max" if name == "kl" else name] = largest = np.zeros(examples)
        np.maximum.at(largest, rows, values)
        if name == "kl":
            columns["kl_sum"] = np.bincount(rows, weights=values, minlength=examples)
    return [{name: float(values[example]) for name, values in columns.items()} for example in range(examples)]


def _parts(before: Tensor, after: Tensor, where: Tensor, which: Tensor, step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """[positions, classes] of both, the positions that count in their order, as views where they can be: fetching them
    one by one costs as much as the rest."""
    examples, positions, classes = before.shape
    if len(where) == examples * positions and before.is_contiguous() and after.is_contiguous():
        flat = before.view(-1, classes), after.view(-1, classes)
        for start in range(0, len(where), step):
            yield flat[0][start : start + step], flat[1][start : start + step]
    elif len(where) == examples * positions and step < positions:
        for old, new in zip(before, after, strict=True):
            for start in range(0, positions, step):
                yield old[start : start + step], new[start : start + step]
    else:
        for start in range(0, len(where), step):
            place = where[start : start + step], which[start : start + step]
            yield before[place], after[place]


def _sampled(logits: Tensor, where: Tensor, which: Tensor) -> Tensor:
    """Some of the logits at the positions that count."""
    classes = logits.shape[-1]
    if len(where) * classes <= _SAMPLE:
        return logits[where, which]
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(len(where), (_SAMPLE,), generator=draw).to(where.device)
    return logits[where[rows], which[rows], torch.randint(classes, (_SAMPLE,), generator=draw).to(where.device)]


def _scale(logits: Tensor, mask: float) -> Tensor:
    """max |x| of each position, over what is finite and below a mask."""
    scale = torch.maximum(logits.amax(dim=-1), -logits.amin(dim=-1))
    if not (scale < mask).all():
        size = logits.abs()
        scale = torch.where(size < mask, size, 0.0).amax(dim=-1)
    return scale.double()


def _moved(before: Tensor, after: Tensor, scale: Scale, epsilon: float, *, softmax: bool) -> Tensor:
    """[4 or 6, positions]: max |Δ|, Σ|Δ|, scale and max |Δ| / s of two [positions, classes]; with ``softmax`` KL and
    agreement."""
    dtype = torch.float64 if torch.float64 in (before.dtype, after.dtype) else torch.float32
    before, after = before.to(dtype), after.to(dtype)
    found = torch.zeros(6 if softmax else 4, len(before), dtype=torch.float64, device=before.device)
    found[2] = _scale(before, scale.mask)
    change = after - before
    size = change.abs()
    largest = size.amax(dim=-1)
    most = float(largest.max()) if len(largest) else 0.0
    if most == 0:
        found[5:] = 1.0
        return found
    if not math.isfinite(most):  # what is not finite counts as equal where both are the same, else as infinitely far
        alike = (before == after) | (before.isnan() & after.isnan())
        change = torch.where(alike, 0.0, change)
        size = change.abs().nan_to_num_(nan=math.inf, posinf=math.inf)
        largest = size.amax(dim=-1)
    found[0] = largest
    found[3] = relative(size, before, scale, epsilon).amax(dim=-1)
    found[1] = size.sum(dim=-1)
    if not softmax:
        return found
    top, top_after = before.amax(dim=-1, keepdim=True), after.amax(dim=-1, keepdim=True)
    found[5] = ((before == top) & (after == top_after)).any(dim=-1)
    p = before.softmax(dim=-1)
    mean = torch.linalg.vecdot(p, change)
    if most <= _SMALL:
        # KL = log E e^Δ − E Δ under p: half the variance of Δ, but for third powers. The logarithms themselves would
        # leave nothing but their rounding.
        found[4] = torch.linalg.vecdot(p, change.sub_(mean[:, None]).square_()) / 2
    else:
        # The largest of p is 1 / Σ e^(x − top), so that the logarithm of Σ e^x is top − log p.
        normaliser = top_after.double() - after.softmax(dim=-1).amax(dim=-1, keepdim=True).double().log()
        normaliser -= top.double() - p.amax(dim=-1, keepdim=True).double().log()
        found[4] = (normaliser[:, 0] - mean).clamp_(min=0.0)
    if not math.isfinite(most):
        found[4].nan_to_num_(nan=math.inf)
    return found


def total_drift(rows: Iterable[Mapping[str, float]]) -> LogitDrift:
    """The drift over the examples of which ``batch_drift`` gave these rows."""
    rows = list(rows)

    def largest(name: str) -> float:
        return max((row[name] for row in rows), default=math.nan)

    def total(name: str) -> float:
        return math.fsum(row[name] for row in rows)

    positions, elements = total("positions"), total("elements")
    if not positions:
        return LogitDrift(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, 0)
    softmax = all("kl_sum" in row for row in rows)
    return LogitDrift(
        max_abs=largest("max_abs"),
        mean_abs=total("sum_abs") / elements,
        scale=largest("scale"),
        kl_mean=total("kl_sum") / positions if softmax else None,
        kl_max=largest("kl_max") if softmax else None,
        top1_agreement=total("agree") / positions if softmax else None,
        positions=int(positions),
        relative=largest("relative"),
    )


# ------------------------------------------------------------------------------------------------------------- float64


@dataclass(frozen=True)
class Exact:
    """A float64 copy of a model, its batch and its logits; or why there is none.

    Attributes:
        model: the copy; None where there is none.
        batch: the batch, its floating-point numbers in float64.
        logits: the copy's on it.
        reason: why there is none, in words; "" where there is one.
    """

    model: nn.Module | None
    batch: Any
    logits: Tensor | None
    reason: str


def exact_copy(model: nn.Module, batch: Any, forward: Forward) -> Exact:
    """A float64 copy of a model, run once on a batch. It needs twice the memory of the weights in float64 for a moment.

    Args:
        model: unpatched.
        batch: a tensor, or any nesting of mappings, tuples, lists and dataclasses with tensors inside.
        forward: runs a model on a batch.
    """
    weights = [*model.parameters(), *model.buffers()]
    devices = {weight.device for weight in weights}
    if len(devices) != 1 or any("_hf_hook" in vars(module) for module in model.modules()):
        return Exact(None, None, None, "the model is spread over devices")
    (device,) = devices
    needed = 2 * 8 * sum(weight.numel() for weight in weights)
    if needed > (free := free_memory(device)):
        reason = f"a float64 copy needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
        return Exact(None, None, None, reason)
    doubled = in_double(batch)
    try:
        with torch.no_grad():
            exact = copy.deepcopy(model).double()
            return Exact(exact, doubled, forward(exact, doubled), "")
    except Exception as error:  # whatever a model raises in float64
        return Exact(None, None, None, f"the model does not run in float64: {first_line(error)}")


def in_double(value: Any) -> Any:
    """A batch whose floating-point numbers are in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {key: in_double(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(in_double, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: in_double(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def exact_drift(
    before: nn.Module,
    variants: Mapping[str, nn.Module],
    batch: Any,
    forward: Forward,
    *,
    counts: Tensor | None = None,
    softmax: bool = True,
    exact: Exact | None = None,
) -> dict[str, LogitDrift]:
    """The drift of each model's logits on a batch against a float64 copy of the unpatched one.

    Args:
        before: unpatched.
        variants: patched, by name.
        batch, forward: as for ``exact_copy``.
        counts, softmax: as for ``batch_drift``.
        exact: the copy, from ``exact_copy`` with the same batch; None to make one.

    Returns:
        By name, the unpatched model's as "before"; empty where there is no float64 copy.
    """
    exact = exact_copy(before, batch, forward) if exact is None else exact
    if exact.logits is None:
        return {}
    found = {}
    for name, model in {**variants, _OWN: before}.items():
        with torch.no_grad():
            logits = _masked_alike(forward(model, batch).double(), exact.logits)
            found[name] = total_drift(batch_drift(exact.logits, logits, counts, softmax=softmax))
    return found


def _masked_alike(logits: Tensor, exact: Tensor) -> Tensor:
    """The masks of less precision as float64's: the least number of a dtype is another in each."""
    if logits.shape != exact.shape:
        return logits
    masks = (logits.abs() >= Scale.of(logits).mask) & (exact.abs() >= Scale.of(exact).mask)
    return torch.where(masks & (logits.sign() == exact.sign()), exact, logits)


# -------------------------------------------------------------------------------------------------------------- layers


def layer_drift(
    before: nn.Module,
    variants: Mapping[str, nn.Module],
    batch: Any,
    forward: Forward,
    *,
    exact: Exact | None = None,
    output: str = "logits",
) -> dict[str, list[LayerDrift]]:
    """The drift of each layer's output (its first floating-point tensor) and of the logits, on one batch.

    Layers are the members of the outermost ``nn.ModuleList`` on each branch, as far as they have parts themselves: the
    blocks of encoders and decoders. The outputs of one model at a time are kept; the others are compared with them as
    they are computed. Arguments as for ``exact_drift``; ``output`` is what ``forward`` gives, in a word.

    Returns:
        For each variant, an entry a layer in the order of their first call, the logits last.
    """
    exact = exact_copy(before, batch, forward) if exact is None else exact
    models = {name: (model, batch) for name, model in variants.items()}
    changes = _against((before, batch), models, forward)
    errors: dict[str, dict[str, float]] = {}
    if exact.model is not None:
        errors = _against((exact.model, exact.batch), {**models, _OWN: (before, batch)}, forward)
    return {
        name: [
            LayerDrift(
                path or output,
                change,
                errors[_OWN].get(path, math.inf) if errors else None,
                errors[name].get(path, math.inf) if errors else None,
            )
            for path, change in changes[name].items()
        ]
        for name in variants
    }


def _against(
    reference: tuple[nn.Module, Any], others: Mapping[str, tuple[nn.Module, Any]], forward: Forward
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

        _watch(*other, forward, hold)
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


# --------------------------------------------------------------------------------------------------------------- share


def activation_share(
    model: nn.Module,
    batches: Sequence[Any],
    forward: Callable[[Any, Any], object],
    *,
    clock: Callable[[], Any] | None = None,
) -> float:
    """The share of a forward's time that is spent in activations: what a patch could save at the very most.

    Counted is, at each site that ``patch`` finds and can compute, the model's own activation, and the product with it
    where the site is gated; not the linear layer before it. Each call is timed within the forward that it is part of,
    in a copy of the modules that shares the weights; a call costs a microsecond more by that, and what is not read as
    a site (``explain`` would not show it) counts as the rest. The median of seven rounds over the batches, after one
    to warm up. On a GPU by events, so between the moments at which the GPU gets there.

    Args:
        model: patched or not; it is not changed.
        batches: what to run.
        forward: runs a model on a batch.
        clock: moments; one less another is seconds. None: the device's.
    """
    twin = copy.deepcopy(model, {id(weight): weight for weight in (*model.parameters(), *model.buffers())})
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
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
        _time_sites(twin, timed)
    except NoSitesError:
        return 0.0
    shares: list[float] = []
    with torch.no_grad():
        for _ in range(1 + _SHARE_ROUNDS):
            spans.clear()
            start = now()
            for batch in batches:
                forward(twin, batch)
            end = now()
            shares.append(sum(after - before for before, after in spans) / (end - start))
    return statistics.median(shares[1:])


def _time_sites(model: nn.Module, timed: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> None:
    """Have ``timed`` around each site's own computation: an implementation that is there while the model is patched."""
    with contextlib.suppress(NotPatchedError):
        unpatch(model)
    functions = {name: record.eager for name, record in ACTIVATIONS.items() if not record.learned}
    functions |= _own_forwards(model)
    register_implementation(
        Implementation(
            _TIMED,
            {name: timed(function) for name, function in functions.items()},
            gated={name: timed(functools.partial(_gated, function)) for name, function in functions.items()},
        )
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingPatchedWarning)
            patch(model, implementation=_TIMED)
    finally:
        del IMPLEMENTATIONS[_TIMED]


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
