"""A subject in its variants: the bytes that each keeps for backward, its peak, and how long a step takes."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch import ImplementationUnavailableError, NoSitesError, NothingPatchedWarning, patch
from hf_gelu_patch.memory import measure
from scripts.benchmarking.architectures import CHECKPOINT, checkpointed, twin
from scripts.benchmarking.cpu.models import AUTO, EAGER, judged
from scripts.benchmarking.gpu.models import AGAIN
from scripts.benchmarking.gpu.schedule import Work
from scripts.benchmarking.memory import liger
from scripts.benchmarking.memory.found import Found
from scripts.benchmarking.memory.subjects import LLAMA, LONG, MLP, SUBJECTS, Subject
from scripts.benchmarking.timing import OWN, figures, rounds_on_cpu

TILES = "tiles"
PATCHES: Mapping[str, Mapping[str, Any]] = {AUTO: {}, "recompute": {"recompute": True}, TILES: {"tiles": "auto"}}
"""Variant → the options of its patch."""
FEW = 4
"""Tiles, of what has so few tokens that "auto" would leave it whole."""
VARIANTS = (EAGER, *PATCHES, CHECKPOINT, *liger.NAMES)
FARTHEST = 1e-3
"""From eager's gradients, as a share of the largest of each."""
_LEAST_ROUNDS = 3

Step = Callable[[], list[Tensor | None]]


def measure_bytes(name: str, work: Work, known: Found) -> None:
    """The bytes of each variant of a subject that the record does not have; of a patch, of the same code."""
    options = work.options
    had = known.bytes.get(name, {})
    lacking = [
        variant
        for variant in options.variants
        if (variant not in liger.NAMES or name in LLAMA)
        and (variant not in had or (variant in PATCHES and had[variant]["sources"] != options.sources))
    ]
    if lacking and work.left <= 0:
        work.leave_out(f"{name}: {', '.join(lacking)}")
        return
    subject = SUBJECTS[name](options.tiny) if lacking else None
    for variant in lacking:
        assert subject is not None
        what = f"{name}, {variant}"
        with work.attempt(what):
            found: dict[str, Any] = {"model": name, "variant": variant, "sources": options.sources}
            found["shape"] = list(subject.shape)
            try:
                module, found["taken"] = _made(variant, name, subject.module)
            except (ImplementationUnavailableError, NoSitesError) as error:
                work.cell(what, "memory", **found, absent=str(error))
                continue
            with liger.computed_by_torch() if variant in liger.NAMES else contextlib.nullcontext():
                step = measure(module, subject.batch)
            work.cell(what, "memory", **found, saved=step.saved, peak=step.peak)


def measure_steps(name: str, work: Work, known: Found) -> None:
    """The time of a step of each variant, all in the same rounds; not Liger-Kernel's, whose kernels do not run here."""
    options = work.options
    wanted = [variant for variant in options.variants if variant not in liger.NAMES]
    had = known.steps.get(name)
    if had and had["sources"] == options.sources and {*wanted} <= {*had["variants"], *had["absent"]}:
        return
    if work.left <= 0:
        work.leave_out(f"{name}, steps")
        return
    with work.attempt(f"{name}, steps"):
        subject, absent = SUBJECTS[name](options.tiny), {}
        calls: dict[str, Step] = {}
        for variant in wanted:
            try:
                calls[variant] = _step(_made(variant, name, subject.module)[0], subject, options.seed)
            except (ImplementationUnavailableError, NoSitesError) as error:
                absent[variant] = str(error)
        calls[AGAIN[EAGER]] = calls[EAGER]
        off, seconds = _checked(calls)
        budget = min(options.cell_seconds, max(0.0, work.left))
        rounds = max(min(_LEAST_ROUNDS, options.rounds), min(options.rounds, int(budget / seconds)))
        timed = judged(figures(rounds_on_cpu(calls, rounds, options.seed, clock=OWN)), options.seed)
        work.cell(
            f"{name}, steps", "steps", model=name, sources=options.sources, clock=OWN, absent=absent, off=off, **timed
        )


def options_of(variant: str, name: str) -> Mapping[str, Any]:
    """The options of a patch."""
    return {"tiles": FEW} if variant == TILES and name not in (LONG, MLP) else PATCHES[variant]


def _made(variant: str, name: str, module: nn.Module) -> tuple[nn.Module, dict[str, int]]:
    """A copy that shares the weights, as this variant; and what a patch took, at how many sites.

    Raises:
        ImplementationUnavailableError, NoSitesError: there is none.
    """
    if variant == EAGER:
        return module, {}
    if variant in liger.NAMES and name == MLP:
        return liger.layer_of(variant, module), {}
    if variant == CHECKPOINT:
        if (checkpointing := checkpointed(module)) is None:
            raise ImplementationUnavailableError("transformers has none for it")
        return checkpointing, {}
    made: Any = twin(module)
    if variant in liger.NAMES:
        for layer in made.layers:
            layer.mlp = liger.layer_of(variant, layer.mlp)
        return made.train(), {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingPatchedWarning)  # what is left alone is measured too
        report = patch(made, **options_of(variant, name))
    return made, dict(Counter(site.implementation or "left alone" for site in report.sites))


def _step(module: nn.Module, subject: Subject, seed: int) -> Step:
    """A forward, and the gradients of a weighted sum of its output: the sum of what a norm gives depends on nothing."""
    batch, generator = subject.batch, torch.Generator().manual_seed(seed)
    inputs = batch.values() if isinstance(batch, dict) else batch
    leaves = [leaf for leaf in (*subject.module.parameters(), *inputs) if leaf.requires_grad]
    weights: list[Tensor] = []

    def step() -> list[Tensor | None]:
        output: Any = module(**batch) if isinstance(batch, dict) else module(*batch)
        end = output if isinstance(output, Tensor) else output[0]
        del output
        if not weights:
            weights.append(torch.randn(end.shape, generator=generator))
        return list(torch.autograd.grad([end], leaves, weights, allow_unused=True))

    return step


def _checked(calls: Mapping[str, Step]) -> tuple[dict[str, float], float]:
    """How far each variant's gradients are from eager's, as a share of the largest number in each, that of the
    farthest; and the seconds that a round takes.

    Raises:
        ValueError: one is too far.
    """
    start, own = time.perf_counter(), None
    off: dict[str, float] = {}
    for variant, call in calls.items():
        gradients = call()
        if own is None:
            own = gradients
            continue
        off[variant] = 0.0
        for one, other in zip(gradients, own, strict=True):
            if (one is None) != (other is None):
                raise ValueError(f"{variant} has other gradients than eager")
            if one is not None and other is not None and (largest := float(other.abs().max())):
                share = float((one - other).abs().max()) / largest
                off[variant] = max(off[variant], float(f"{share:.3g}"))
        if not off[variant] <= FARTHEST:
            raise ValueError(f"{variant}: its gradients are {off[variant]:.2g} of the largest away from eager's")
    return off, time.perf_counter() - start
