"""One model evaluated before and after patches: the same examples, the same batches, in one process or several."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
import transformers
from accelerate.utils import gather_object

from hf_gelu_patch import NothingPatchedWarning, Report, __version__, patch
from hf_gelu_patch.evaluation import digests, records
from hf_gelu_patch.evaluation.drift import (
    Exact,
    LayerDrift,
    LogitDrift,
    activation_share,
    batch_drift,
    exact_copy,
    exact_drift,
    layer_drift,
    total_drift,
)
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.failures import failing, not_finite
from hf_gelu_patch.evaluation.loading.models import load_model
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.loading.subjects import load_rows
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.padding import check_padding
from hf_gelu_patch.evaluation.quality import Quality, compare
from hf_gelu_patch.evaluation.records import Fingerprint, Row
from hf_gelu_patch.evaluation.settings import Settings
from hf_gelu_patch.evaluation.speed import CudaClock, Speed, measure, measure_generation, peak_memory, summarise
from hf_gelu_patch.evaluation.subject import Subject
from hf_gelu_patch.evaluation.tasks.base import Batch, Prediction, Task
from hf_gelu_patch.evaluation.tasks.limits import Limits
from hf_gelu_patch.evaluation.tasks.making import make_task
from hf_gelu_patch.evaluation.variants import BEFORE, Variant, check_variants
from hf_gelu_patch.verification import Drift, drifts, half_the_digits

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

__all__ = [
    "STAGES",
    "Result",
    "Settings",
    "Variant",
    "VariantResult",
    "evaluate",
    "evaluate_subject",
    "unpatched_metrics",
]

Progress = Callable[[str, float], None]
"""Told the stage, one of ``STAGES``, and the share of it that is done."""

STAGES = ("load", "quality", "layers", "speed")

_TIMED_BATCHES = 4
_OTHER_TIMES = 1 / 3  # how long to measure end to end, and generation, beside the forward alone
_AGAIN = "again"
_ALIGNMENT = 64  # bytes, as torch gives them out


@dataclass(frozen=True)
class VariantResult:
    """Everything that was found out about one variant.

    Attributes:
        variant: how it was patched.
        patch: what was patched, and why the rest was not.
        quality: before and after.
        drift: of the logits (of a task without logits, of what stands for them), over all examples; ``own`` and
            ``exact`` on one batch.
        layers: the drift of each layer's output on that batch, last that of the logits or what stands for them.
        speed: before and after.
        wrong: why its implementation is wrong, in words; None where nothing says so. It is where there are numbers
            that are not finite where the unpatched model's are, or where the sites claim to compute the same function
            and the logits moved further than ``patch(verify=)`` lets them: by more than √ε of what they usually are,
            or, on one batch, further from float64 than the unpatched model's own error allows.
    """

    variant: Variant
    patch: Report
    quality: Quality
    drift: LogitDrift
    layers: tuple[LayerDrift, ...]
    speed: Speed
    wrong: str | None


@dataclass(frozen=True)
class Result:
    """Everything that was found out about one model.

    Attributes:
        subject: the model and its data.
        variants: each against the unpatched model.
        unpatched: that model's metrics by name.
        activation_share: the share of its forward's time that activations take.
        peak_memory: the memory its forward takes, as ``speed.peak_memory`` tells it.
        described: a short text of each example whose answer is in some ``quality.flipped``.
        named: what people call the answers there, by what ``quality.flipped`` has: labels and tokens by their texts.
        exact_reason: why there was no float64 copy to compare with; "" where there was one.
        model_class, parameters, dtype, device, attn_implementation: the model as it ran.
        batch_size: examples in a batch.
        seconds: how long each of ``STAGES`` took.
        skipped: each row of the data that was left out, counted from 1, and why.
        records: the folder with what each model said of each example, relative to the one for results; None where
            nothing was recorded.
        fingerprint: all that the answers depend on: the weights, config and data by their hashes, dtype, versions, ….
    """

    subject: Subject
    variants: tuple[VariantResult, ...]
    unpatched: dict[str, float]
    activation_share: float
    peak_memory: int | None
    described: dict[int, str]
    named: dict[str, str]
    exact_reason: str
    model_class: str
    parameters: int
    dtype: str
    device: str
    attn_implementation: str | None
    batch_size: int
    seconds: dict[str, float]
    skipped: tuple[tuple[int, str], ...]
    records: str | None
    fingerprint: Fingerprint

    @property
    def wrong(self) -> dict[str, str]:
        """The variants whose implementation is wrong, and why."""
        return {one.variant.name: one.wrong for one in self.variants if one.wrong is not None}


def evaluate_subject(
    subject: Subject,
    settings: Settings,
    accelerator: Accelerator,
    progress: Progress | None = None,
    *,
    folder: Path | None = None,
) -> Result:
    """Load a model with its data and evaluate it; arguments and errors as for ``evaluate`` and the loading."""
    tell = progress if progress is not None and accelerator.is_main_process else _tell_nobody
    tell("load", 0.0)
    start = time.perf_counter()
    model, task, rows = _load(subject, settings, accelerator)
    tell("load", 1.0)
    seconds = time.perf_counter() - start
    return evaluate(model, task, settings, accelerator, progress, rows=rows, folder=folder, load_seconds=seconds)


def unpatched_metrics(subject: Subject, settings: Settings, accelerator: Accelerator) -> dict[str, float]:
    """The task's metrics for the model as it is: nothing is patched, nothing timed. Errors as for the loading."""
    model, task, _ = _load(subject, settings, accelerator)
    batches = task.batches(settings.batch_size or task.batch_size())
    with torch.inference_mode():
        check_padding(task, model, batches)
        task, answers = _answers(task, model, {}, (), batches, accelerator, _tell_nobody)
    return task.metrics([row.outcome for row in answers[BEFORE]])


def _load(
    subject: Subject, settings: Settings, accelerator: Accelerator
) -> tuple[PreTrainedModel, Task, datasets.Dataset]:
    rows = load_rows(subject, skip_bad_rows=settings.skip_bad_rows)
    hub = {"trust_remote_code": settings.trust_remote_code, "allow_download": subject.allow_download}
    processor = load_processor(subject.model, subject.task, **hub)
    model = load_model(
        subject.model,
        subject.task,
        dtype=settings.dtype,
        attn_implementation=settings.attn_implementation,
        device=accelerator.device,
        **hub,
    )
    _align(model)
    task = make_task(
        subject,
        model.config,
        processor,
        rows,
        limit=settings.limit,
        limits=Limits.of(model),
        skip_bad_rows=settings.skip_bad_rows,
    )
    return model, task, rows


def _align(model: PreTrainedModel) -> None:
    """Move weights that do not start at a multiple of 64 bytes to where they do. MKL adds up the product of a vector
    and a matrix in another order where the matrix starts elsewhere; and where transformers leaves the weights depends
    on the file's header, and on whether there are several processes, which would then not find the same."""
    for weight in (*model.parameters(), *model.buffers()):
        if weight.device.type == "cpu" and weight.data_ptr() % _ALIGNMENT:
            weight.data = weight.data.clone()


def evaluate(
    model: PreTrainedModel,
    task: Task,
    settings: Settings,
    accelerator: Accelerator,
    progress: Progress | None = None,
    *,
    rows: datasets.Dataset | None = None,
    folder: Path | None = None,
    load_seconds: float = 0.0,
) -> Result:
    """Evaluate a loaded model before and after patches. ``model`` itself is not patched: twins of it are, which share
    its weights.

    Quality is computed by all processes together, whole batches to each in turn, and put together on every one of
    them in the order of the examples: the figures are the same for any number of processes with the same number of
    threads. Layers are looked at, and speed is measured, by the main process while the others wait, on batches as they
    stand; in the other processes' results it is the main one's.

    Args:
        model: in evaluation mode, on ``accelerator.device``.
        task: its data, from ``make_task``.
        settings: what to compare, and how to measure.
        accelerator: the processes.
        progress: told what is done; only ever called on the main process.
        rows: the data that ``task`` was made of, to time it from its rows on; None to time the forward alone.
        folder: for results; below it, what each model says of each example is recorded batch by batch. None to record
            nothing.

    Raises:
        PatchError: a patch was refused, before anything was measured.
        EvaluationError: ``model`` is in training mode; two variants have one name; what it says of a row depends on the
            others in its batch; the records cannot be written or are of another run; or examples were lost among the
            processes.
    """
    if model.training:
        raise EvaluationError("the model is in training mode, where dropout would differ: call model.eval() first.")
    check_variants(settings.variants)
    tell = progress if progress is not None and accelerator.is_main_process else _tell_nobody
    clock = _Stopwatch({"load": load_seconds})
    names = tuple(variant.name for variant in settings.variants)
    patches, twins = {}, {}
    for variant in settings.variants:
        twins[variant.name] = _twin(model)
        patches[variant.name] = _patch(twins[variant.name], variant)
    # What was left as it is says what the unpatched model says. Only where that is what was asked for is it run.
    running = {v.name: twins[v.name] for v in settings.variants if _runs(v, patches[v.name])}
    size = settings.batch_size or task.batch_size()
    batches = task.batches(size)
    place = None if folder is None else folder / "records" / records.folder_name(task.subject.name)

    with torch.inference_mode():
        check_padding(task, model, batches)
        writer: records.Writer | None = None
        known: dict[tuple[int, str], Row] = {}
        fingerprint = _fingerprint(model, task, settings, batches, size)
        if place is not None:
            writer, known = _open_records(place, fingerprint, settings, accelerator)
        usable, answers = _answers(task, model, running, names, batches, accelerator, tell, writer, known)
        if usable is not task:
            task, batches = usable, usable.batches(size)
        clock.stop("quality")
        found = []
        if accelerator.is_main_process:
            on_device = [batch.to(model.device) for batch in _chosen(batches)]
            drifts, judged, layers, reason = _drift(task, model, running, names, answers, batches, tell)
            clock.stop("layers")
            share = activation_share(model, on_device[len(on_device) // 2 :][:1], task.forward)
            speeds, memory = _speeds(task, model, running, names, on_device, rows, settings, tell)
            clock.stop("speed")
            found.append((drifts, judged, layers, reason, share, speeds, memory, clock.seconds))
        accelerator.wait_for_everyone()
        [(drifts, judged, layers, reason, share, speeds, memory, seconds)] = gather_object(found)

    outcomes = {name: [row.outcome for row in rows_] for name, rows_ in answers.items()}
    results = tuple(
        VariantResult(
            variant=variant,
            patch=patches[variant.name],
            quality=_quality(task, outcomes[BEFORE], outcomes[variant.name], drifts[variant.name], settings),
            drift=drifts[variant.name],
            layers=layers[variant.name],
            speed=speeds[variant.name],
            wrong=_wrong(
                patches[variant.name],
                answers[variant.name],
                drifts[variant.name],
                judged.get(variant.name),
                model.dtype,
            ),
        )
        for variant in settings.variants
    )
    flips = [flip for result in results for flip in result.quality.flipped]
    said = sorted({answer for flip in flips for answer in (flip.before, flip.after, flip.target) if answer})
    return Result(
        subject=task.subject,
        variants=results,
        unpatched=results[0].quality.before,
        activation_share=share,
        peak_memory=memory,
        described={example: task.describe(example) for example in sorted({flip.example for flip in flips})},
        named={answer: task.named(answer) for answer in said},
        exact_reason=reason,
        model_class=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        attn_implementation=getattr(model.config, "_attn_implementation", None),
        batch_size=size,
        seconds=seconds,
        skipped=task.skipped,
        records=None if folder is None or place is None else str(place.relative_to(folder)),
        fingerprint=fingerprint,
    )


def _tell_nobody(stage: str, share: float) -> None:
    del stage, share


class _Stopwatch:
    """How long stages took, one after the other."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self._start = time.perf_counter()

    def stop(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self._start = now - self._start, now


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """A second tree of modules over the very same weights."""
    weights = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(weight): weight for weight in weights})


def _patch(model: PreTrainedModel, variant: Variant) -> Report:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingPatchedWarning)  # the result says so
        return patch(model, **variant.options)


def _runs(variant: Variant, report: Report) -> bool:
    """Whether there is something to run: ``eager`` by itself changes nothing, and is asked for to compare the model
    with itself."""
    return bool(report.changed) or variant.implementation == "eager"


# ------------------------------------------------------------------------------------------------------------- quality


def _fingerprint(
    model: PreTrainedModel, task: Task, settings: Settings, batches: Sequence[Batch], size: int
) -> Fingerprint:
    """All that answers depend on, by content: of the model its weights and config, of the data the rows as they stand
    there, and what the tokenizer made of them."""
    generation = getattr(model, "generation_config", None)
    configs = [model.config.to_dict(), {} if generation is None else generation.to_dict()]
    for config in configs:
        for key in ("_name_or_path", "transformers_version"):
            config.pop(key, None)
    cuda = model.device.type == "cuda"
    return {
        "model": type(model).__name__,
        "weights": digests.content_digest(model.state_dict().items()),
        "config": digests.text_digest(configs),
        "task": task.subject.task,
        "examples": len(task.examples),
        "limit": settings.limit,
        "max_length": task.subject.max_length,
        "stride": task.subject.stride,
        "labels": task.subject.labels,
        "threshold": task.subject.threshold,
        "batch_size": size,
        "rows": task.asked,
        "data": digests.content_digest(
            (name, tensor) for batch in batches for name, tensor in {**batch.inputs, "targets": batch.targets}.items()
        ),
        "order": digests.text_digest([batch.ids for batch in batches]),
        "variants": [vars(variant) for variant in settings.variants],
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": getattr(model.config, "_attn_implementation", None),
        "device": torch.cuda.get_device_name(model.device) if cuda else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_gelu_patch": __version__,
    }


def _open_records(
    place: Path, fingerprint: Fingerprint, settings: Settings, accelerator: Accelerator
) -> tuple[records.Writer, dict[tuple[int, str], Row]]:
    """Where to write, and what there is already: on every machine, whose folders may be one and the same or not. No
    process writes before all have read."""
    failed: list[str] = []
    known: list[dict[tuple[int, str], Row]] = []
    for turn in (accelerator.is_main_process, accelerator.is_local_main_process and not accelerator.is_main_process):
        if turn:
            try:
                records.prepare(place, fingerprint, resume=settings.resume)
                known.append(records.read(place)[1])
            except EvaluationError as error:
                failed.append(str(error))
        if told := gather_object(failed):
            raise EvaluationError(told[0])
    together = {key: row for one in gather_object(known) for key, row in one.items()}
    return records.Writer(place, fingerprint, accelerator.process_index), together


def _answers(
    task: Task,
    before: PreTrainedModel,
    running: Mapping[str, PreTrainedModel],
    names: Sequence[str],
    batches: Sequence[Batch],
    accelerator: Accelerator,
    tell: Progress,
    writer: records.Writer | None = None,
    known: Mapping[tuple[int, str], Row] | None = None,
) -> tuple[Task, dict[str, list[Row]]]:
    """What the unpatched model and each variant say, in the order of the examples: what is known, and the rest found
    out by all processes together. With it the task, without the rows that the model fails on."""
    everyone = (BEFORE, *names)
    found = dict(known or {})
    left = [batch for batch in batches if any((id_, name) not in found for id_ in batch.ids for name in everyone)]
    own: list[Row] = []
    own_failed: dict[int, str] = {}
    tell("quality", 1 - len(left) / len(batches))
    with writer or nullcontext():
        for number, batch in enumerate(left):
            if number % accelerator.num_processes == accelerator.process_index:
                said, failed = _said(task, before, running, names, batch.to(before.device))
                if failed:
                    task.without(failed)  # which refuses at once, unless such rows are to be skipped
                own += said
                own_failed |= failed
                if writer is not None:
                    writer.append(said)
            tell("quality", 1 - (len(left) - number - 1) / len(batches))
    gathered: list[Row] = gather_object(own)
    found.update({(row.example, row.variant): row for row in gathered})
    failures: dict[int, str] = dict(gather_object(list(own_failed.items())))
    wanted = {(example, name) for example in range(len(task.examples)) if example not in failures for name in everyone}
    once = (sum(len(batch.ids) for batch in left) - len(failures)) * len(everyone) == len(gathered)
    if found.keys() != wanted or not once:
        raise EvaluationError(
            f"{len(found)} results came back where {len(wanted)} were due: a process was lost. Run it again."
        )
    usable = task.without(failures) if failures else task
    there = set(map(id, usable.examples))
    kept = [example for example, one in enumerate(task.examples) if id(one) in there]
    return usable, {
        name: [replace(found[example, name], example=number) for number, example in enumerate(kept)]
        for name in everyone
    }


def _said(
    task: Task, before: PreTrainedModel, running: Mapping[str, PreTrainedModel], names: Sequence[str], batch: Batch
) -> tuple[list[Row], dict[int, str]]:
    """What they say of one batch; and of which of its examples nothing, because the unpatched model fails on them or
    gives numbers that are not finite. Only two models' logits are held at a time."""
    try:
        old = task.predict(before, batch)
    except EvaluationError:
        raise
    except Exception as error:  # each model has its own
        failed = failing(task, before, batch, error)
    else:
        failed = not_finite(task, batch, old.logits)
    if failed:
        if not (ids := tuple(example for example in batch.ids if example not in failed)):
            return [], failed
        rest = task.collate(ids, [task.examples[example] for example in ids])
        rows, more = _said(task, before, running, names, rest.to(before.device))
        return rows, {**failed, **more}
    counts = batch.targets != -100
    rows = [Row(example, BEFORE, outcome, None) for example, outcome in zip(batch.ids, old.outcomes, strict=True)]
    for name in names:
        new = _patched(task, running[name], name, batch) if name in running else old
        epsilon = torch.finfo(before.dtype).eps
        moved = batch_drift(old.logits, new.logits, counts, softmax=task.softmax, epsilon=epsilon)
        for place, (example, outcome) in enumerate(zip(batch.ids, new.outcomes, strict=True)):
            row = moved[place] | {"lost": 0.0}
            if not math.isfinite(row["max_abs"]):
                was, is_ = old.logits[place][counts[place]], new.logits[place][counts[place]]
                row["lost"] = float((was.isfinite() & ~is_.isfinite()).sum())
            rows.append(Row(example, name, outcome, row))
    return rows, {}


def _patched(task: Task, model: PreTrainedModel, variant: str, batch: Batch) -> Prediction:
    """What a variant says of a batch that the unpatched model runs on."""
    try:
        return task.predict(model, batch)
    except EvaluationError:
        raise
    except Exception as error:  # it is an implementation's fault
        [(example, reason), *_] = failing(task, model, batch, error).items()
        raise EvaluationError(
            f"{task.place(example)} {reason}. That is the variant {variant!r}: the unpatched model runs on it. Leave "
            "the site out with exclude=, or mend the implementation."
        ) from error


def _quality(
    task: Task, before: Sequence[Outcome], after: Sequence[Outcome], drift: LogitDrift, settings: Settings
) -> Quality:
    return compare(
        before,
        after,
        task.columns,
        seed=settings.seed,
        margin=settings.margin,
        metrics=None if task.extra is None else (task.metrics(before), task.metrics(after)),
        logits=(drift.max_abs, drift.scale),
    )


def _wrong(
    report: Report, rows: Sequence[Row], drift: LogitDrift, judged: Drift | None, dtype: torch.dtype
) -> str | None:
    """See ``VariantResult.wrong``; ``judged`` is the drift on one batch, beside the model's own error."""
    lost = [row.example for row in rows if row.drift is not None and row.drift["lost"]]
    if lost:
        return f"it gives numbers that are not finite where the unpatched model's are, first in example {lost[0]}"
    if not report.changed or any(site.equivalence not in ("identical", "rounding") for site in report.changed):
        return None
    said = "it is said to compute the same function, and moves logits by"
    margin = half_the_digits(torch.finfo(dtype).eps)
    if drift.positions and not drift.relative <= margin:
        name = str(dtype).removeprefix("torch.")
        return (
            f"{said} {drift.max_abs:.2g} (the largest is {drift.scale:.3g}): more than {margin:.2g} (√ε of {name}) of "
            "what they usually are"
        )
    return f"{said} more than they are off by themselves: {judged}" if judged is not None and judged.exceeded else None


# --------------------------------------------------------------------------------------------------------------- drift


def _drift(
    task: Task,
    before: PreTrainedModel,
    running: Mapping[str, PreTrainedModel],
    names: Sequence[str],
    answers: Mapping[str, Sequence[Row]],
    batches: Sequence[Batch],
    tell: Progress,
) -> tuple[dict[str, LogitDrift], dict[str, Drift], dict[str, tuple[LayerDrift, ...]], str]:
    """The drift of each variant's logits over all examples; on the batch in the middle (neither the longest nor the
    shortest) as ``patch(verify=)`` judges it, where there is a float64 copy; of its layers there; and why there is no
    such copy, if there is none."""
    tell("layers", 0.0)
    batch = batches[len(batches) // 2].to(before.device)
    models = {name: running.get(name, before) for name in names}
    exact = exact_copy(before, batch, task.forward)
    tell("layers", 0.3)
    layers = layer_drift(before, models, batch, task.forward, exact=exact, output=task.output)
    tell("layers", 0.7)
    counts = batch.targets != -100
    errors = exact_drift(before, models, batch, task.forward, counts=counts, softmax=task.softmax, exact=exact)
    drifts = {
        name: replace(
            total_drift(row.drift for row in answers[name] if row.drift is not None),
            own=errors.get(BEFORE),
            exact=errors.get(name),
        )
        for name in names
    }
    judged = _judged(task, before, running, batch, exact)
    tell("layers", 1.0)
    return drifts, judged, {name: tuple(layers[name]) for name in names}, exact.reason


def _judged(
    task: Task, before: PreTrainedModel, running: Mapping[str, PreTrainedModel], batch: Batch, exact: Exact
) -> dict[str, Drift]:
    """How far each variant moves the logits that count, judged beside the model's own error."""
    if exact.logits is None:
        return {}
    counts, epsilon = batch.targets != -100, torch.finfo(before.dtype).eps
    reference, old = exact.logits[counts], task.forward(before, batch)[counts]
    found = {}
    for name, model in running.items():
        new = task.forward(model, batch)[counts]
        what = task.output
        [found[name]] = drifts({what: old}, {what: new}, {what: reference}, None, epsilon=epsilon)
    return found


# --------------------------------------------------------------------------------------------------------------- speed


def _chosen(batches: Sequence[Batch]) -> Sequence[Batch]:
    """A few that stand for all: from the longest to the shortest."""
    return batches[:: max(1, len(batches) // _TIMED_BATCHES)][:_TIMED_BATCHES]


def _speeds(
    task: Task,
    before: PreTrainedModel,
    running: Mapping[str, PreTrainedModel],
    names: Sequence[str],
    batches: Sequence[Batch],
    rows: datasets.Dataset | None,
    settings: Settings,
    tell: Progress,
) -> tuple[dict[str, Speed], int | None]:
    """The speed of each variant, all timed in the same rounds; and the memory that the unpatched model takes."""
    device = before.device
    cuda = device.type == "cuda"
    models = {BEFORE: before, _AGAIN: _twin(before), **running}
    parts = ["forward", *(["rows"] if rows is not None else []), *(["generation"] if task.generates else [])]

    def timing(part: str) -> dict[str, Any]:
        # With nothing to compare, a third of the time is enough to say how fast the model is.
        effort = (1.0 if running else 1 / 3) * (1.0 if part == "forward" else _OTHER_TIMES)
        place = parts.index(part)
        return {
            "seed": settings.seed,
            "min_rounds": max(3, round(settings.min_rounds * effort)),
            "min_seconds": settings.min_seconds * effort,
            "max_seconds": settings.max_seconds * effort,
            "progress": lambda share: tell("speed", (place + share) / len(parts)),
        }

    def waits(run: Callable[..., object]) -> Callable[..., None]:
        def until_done(*arguments: Any) -> None:
            run(*arguments)
            if cuda:
                torch.cuda.synchronize(device)

        return until_done

    def forward(model: PreTrainedModel) -> Callable[[int], object]:
        return lambda batch: task.forward(model, batches[batch])

    shapes = {tuple(value.shape for value in batch.inputs.values()): number for number, batch in enumerate(batches)}
    timings = measure(
        {name: forward(model) for name, model in models.items()},
        [batch.units for batch in batches],
        warm_up=list(shapes.values()),
        clock=CudaClock(device) if cuda else time.perf_counter,
        **timing("forward"),
    )
    speeds = summarise(timings, task.unit, variants=names, seed=settings.seed)

    if rows is not None and (made := _from_rows(task, batches, rows)) is not None:
        run, units = made
        timings = measure(
            {name: waits(run(model)) for name, model in models.items()},
            units,
            warm_up=list(shapes.values()),
            resolution=0.03,
            **timing("rows"),
        )
        for name, speed in summarise(timings, task.unit, variants=names, seed=settings.seed).items():
            speeds[name] = replace(speeds[name], end_to_end=speed)

    new_tokens = getattr(task, "decode_tokens", 0)
    if task.generates and new_tokens >= 2:

        def generate(model: PreTrainedModel) -> Callable[[int, int], object]:
            return lambda batch, tokens: task.generate(model, batches[batch], tokens)  # type: ignore[attr-defined]

        sequences = [len(batch.ids) for batch in batches]
        prefill, decode = measure_generation(
            {name: waits(generate(model)) for name, model in models.items()},
            sequences,
            sequences,
            new_tokens,
            warm_up=list(shapes.values()),
            **timing("generation"),
        )
        for part, times, unit in (("prefill", prefill, "prompts"), ("decode", decode, "tokens")):
            if times.units:
                for name, speed in summarise(times, unit, variants=names, seed=settings.seed).items():
                    more: dict[str, Any] = {part: speed}
                    speeds[name] = replace(speeds[name], **more)

    for name, model in running.items():
        speeds[name] = replace(speeds[name], peak_memory=_memory(task, model, batches[0]))
    tell("speed", 1.0)
    return speeds, _memory(task, before, batches[0])


def _memory(task: Task, model: PreTrainedModel, batch: Batch) -> int | None:
    return peak_memory(lambda: task.forward(model, batch), model.device)


def _from_rows(
    task: Task, batches: Sequence[Batch], rows: datasets.Dataset
) -> tuple[Callable[[PreTrainedModel], Callable[[int], object]], list[int]] | None:
    """What runs a batch from the rows of the data on: tokenised (or an image opened and resized), put together, copied
    to the device, forward. Of running text, whose blocks are no rows, the batch's own text is a row. And the units in
    each such batch. None where there is no such text."""
    copied = copy.copy(task)  # encoding notes down what it finds
    column = task.subject.input_column
    sources: list[datasets.Dataset]
    if task.unit == "tokens":
        if column is None or not hasattr(task.processor, "decode"):
            return None
        ids = [batch.inputs["input_ids"] for batch in batches]
        texts = ["\n\n".join(task.processor.decode(one, skip_special_tokens=True) for one in some) for some in ids]
        sources = [datasets.Dataset.from_dict({column: [text]}) for text in texts]
    else:
        bad = {row - 1 for row, _ in task.skipped}
        good = [row for row in range(len(rows)) if row not in bad]
        sources = [rows.select([good[example] for example in batch.ids]) for batch in batches]

    def batch_of(number: int) -> Batch:
        examples = copied.encode(sources[number], None)
        return copied.collate(tuple(range(len(examples))), examples)

    def runner(model: PreTrainedModel) -> Callable[[int], object]:
        return lambda number: task.forward(model, batch_of(number).to(model.device))

    return runner, [batch_of(number).units for number in range(len(sources))]
