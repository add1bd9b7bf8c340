"""One model evaluated before and after a patch: the same examples, the same batches, in one process or several."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from hf_gelu_patch import NothingPatchedWarning, Report, patch
from hf_gelu_patch.evaluation.loading import EvaluationError, Subject, load_data, load_model, load_processor
from hf_gelu_patch.evaluation.quality import Outcome, Quality, compare
from hf_gelu_patch.evaluation.speed import Speed, measure, summarise
from hf_gelu_patch.evaluation.tasks import Batch, Task, make_task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

__all__ = ["Result", "Settings", "evaluate", "evaluate_subject", "unpatched_metrics"]

Progress = Callable[[str, float], None]
"""Told the stage ("load", "quality", "speed") and the share of it that is done."""

_TIMED_BATCHES = 4


@dataclass(frozen=True)
class Settings:
    """How to patch, and how to measure.

    Attributes:
        implementation, activation, include, exclude: as for ``patch``.
        limit: use the first so many examples; None for all.
        batch_size: examples in a batch; None for 32, or fewer where the logits would take more than 128 MB.
        seed: for the order of timed runs and the bootstrap.
        dtype: "auto" (the checkpoint's), "float32", "bfloat16" or "float16".
        attn_implementation, trust_remote_code: as for ``from_pretrained``.
        min_rounds, min_seconds, max_seconds: how long to time: so many rounds and so long for each variant, but no
            longer than this in all.
    """

    implementation: str = "auto"
    activation: str | None = None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    limit: int | None = None
    batch_size: int | None = None
    seed: int = 0
    dtype: str = "auto"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    min_rounds: int = 30
    min_seconds: float = 10.0
    max_seconds: float = 60.0


@dataclass(frozen=True)
class Result:
    """Everything that was found out about one model.

    Attributes:
        subject: the model and its data.
        patch: what was patched, and why the rest was not.
        quality: before and after.
        speed: before and after.
        model_class, parameters, dtype, device, attn_implementation: the model as it ran.
        batch_size: examples in a batch.
        seconds: how long each stage took.
    """

    subject: Subject
    patch: Report
    quality: Quality
    speed: Speed
    model_class: str
    parameters: int
    dtype: str
    device: str
    attn_implementation: str | None
    batch_size: int
    seconds: dict[str, float]


def evaluate_subject(
    subject: Subject, settings: Settings, accelerator: Accelerator, progress: Progress | None = None
) -> Result:
    """Load a model with its data and evaluate it; arguments and errors as for ``evaluate`` and the loading."""
    tell = progress if progress is not None and accelerator.is_main_process else _tell_nobody
    tell("load", 0.0)
    start = time.perf_counter()
    model, task = _load(subject, settings, accelerator)
    tell("load", 1.0)
    return evaluate(model, task, settings, accelerator, progress, load_seconds=time.perf_counter() - start)


def unpatched_metrics(subject: Subject, settings: Settings, accelerator: Accelerator) -> dict[str, float]:
    """The task's metrics for the model as it is: nothing is patched, nothing timed. Errors as for the loading."""
    model, task = _load(subject, settings, accelerator)
    with torch.inference_mode():
        batches = _batches(task, settings.batch_size or task.batch_size(), accelerator)
        return _quality(task, model, None, batches, accelerator, _tell_nobody).before


def _load(subject: Subject, settings: Settings, accelerator: Accelerator) -> tuple[PreTrainedModel, Task]:
    columns = (subject.input_column, *filter(None, (subject.target_column,)))
    data = load_data(subject.data, columns)
    processor = load_processor(subject.model, subject.task, trust_remote_code=settings.trust_remote_code)
    model = load_model(
        subject.model,
        subject.task,
        dtype=settings.dtype,
        attn_implementation=settings.attn_implementation,
        trust_remote_code=settings.trust_remote_code,
        device=accelerator.device,
    )
    return model, make_task(subject, model.config, processor, data, limit=settings.limit)


def _batches(task: Task, size: int, accelerator: Accelerator) -> list[Batch]:
    return [batch.to(accelerator.device) for batch in task.batches(size)]


def evaluate(
    model: PreTrainedModel,
    task: Task,
    settings: Settings,
    accelerator: Accelerator,
    progress: Progress | None = None,
    *,
    load_seconds: float = 0.0,
) -> Result:
    """Evaluate a loaded model before and after a patch. ``model`` itself is not patched: a twin of it is, which
    shares its weights.

    Quality is computed by all processes together, whole batches to each in turn, and put together on every one of
    them in the order of the examples: the figures are the same for any number of processes with the same number of
    threads. Speed is measured by the main process while the others wait, on every batch as it stands; in the other
    processes' results it is the main one's.

    Args:
        model: in evaluation mode, on ``accelerator.device``.
        task: its data, from ``make_task``.
        settings: how to patch and to measure.
        accelerator: the processes.
        progress: told what is done; only ever called on the main process.

    Raises:
        PatchError: the patch was refused, before anything was measured.
        EvaluationError: ``model`` is in training mode, or examples were lost among the processes.
    """
    if model.training:
        raise EvaluationError("the model is in training mode, where dropout would differ: call model.eval() first.")
    tell = progress if progress is not None and accelerator.is_main_process else _tell_nobody
    before, twin = model, _twin(model)
    report = _patch(twin, settings)
    after = twin if report.changed else None
    size = settings.batch_size or task.batch_size()
    batches = _batches(task, size, accelerator)

    with torch.inference_mode():
        start = time.perf_counter()
        quality = _quality(task, before, after, batches, accelerator, tell)
        quality_seconds = time.perf_counter() - start
        start = time.perf_counter()
        found = [_speed(task, before, after, batches, settings, tell)] if accelerator.is_main_process else []
        accelerator.wait_for_everyone()
        [speed] = gather_object(found)

    weight = next(model.parameters())
    return Result(
        subject=task.subject,
        patch=report,
        quality=quality,
        speed=speed,
        model_class=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()),
        dtype=str(weight.dtype).removeprefix("torch."),
        device=str(weight.device),
        attn_implementation=getattr(model.config, "_attn_implementation", None),
        batch_size=size,
        seconds={"load": load_seconds, "quality": quality_seconds, "speed": time.perf_counter() - start},
    )


def _tell_nobody(stage: str, share: float) -> None:
    del stage, share


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """A second tree of modules over the very same weights."""
    weights = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(weight): weight for weight in weights})


def _patch(model: PreTrainedModel, settings: Settings) -> Report:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingPatchedWarning)  # the result says so
        return patch(
            model,
            implementation=settings.implementation,
            activation=settings.activation,
            include=settings.include,
            exclude=settings.exclude,
        )


@dataclass(frozen=True)
class _Record:
    """What both variants said of one example."""

    example: int
    before: Outcome
    after: Outcome
    change: float
    scale: float


def _quality(
    task: Task,
    before: PreTrainedModel,
    after: PreTrainedModel | None,
    batches: list[Batch],
    accelerator: Accelerator,
    tell: Progress,
) -> Quality:
    records: list[_Record] = []
    for number, batch in enumerate(batches):
        if number % accelerator.num_processes == accelerator.process_index:
            records += _records(task, before, after, batch)
        tell("quality", (number + 1) / len(batches))
    records = sorted(gather_object(records), key=lambda record: record.example)
    if [record.example for record in records] != list(range(len(task.examples))):
        raise EvaluationError(
            f"{len(records)} results came back for {len(task.examples)} examples: a process was lost. Run it again."
        )
    old, new = [record.before for record in records], [record.after for record in records]
    metrics = task.metrics(old)
    return compare(
        old,
        new,
        (metrics, dict(metrics) if after is None else task.metrics(new)),
        max_abs_logit_change=_largest(record.change for record in records),
        max_abs_logit=_largest(record.scale for record in records),
    )


def _largest(values: Any) -> float:
    """The maximum; NaN if any is, which ``max`` would hide."""
    values = list(values)
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def _records(task: Task, before: PreTrainedModel, after: PreTrainedModel | None, batch: Batch) -> list[_Record]:
    old = task.predict(before, batch)
    new = old if after is None else task.predict(after, batch)
    counts = batch.targets != -100
    records = []
    for row, example in enumerate(batch.ids):
        a, b = old.logits[row][counts[row]].float(), new.logits[row][counts[row]].float()
        change = 0.0 if after is None else float((b - a).abs().max())
        records.append(_Record(example, old.outcomes[row], new.outcomes[row], change, float(a.abs().max())))
    return records


def _speed(
    task: Task,
    before: PreTrainedModel,
    after: PreTrainedModel | None,
    batches: list[Batch],
    settings: Settings,
    tell: Progress,
) -> Speed:
    chosen = batches[:: max(1, len(batches) // _TIMED_BATCHES)][:_TIMED_BATCHES]
    device = before.device

    def runner(model: PreTrainedModel) -> Callable[[int], None]:
        def run(batch: int) -> None:
            task.forward(model, chosen[batch])
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return run

    variants = {"before": runner(before), "again": runner(_twin(before))}
    if after is not None:
        variants["after"] = runner(after)
    # With nothing to compare, a third of the time is enough to say how fast the model is.
    effort = 1.0 if after is not None else 1 / 3
    shapes = {tuple(value.shape for value in batch.inputs.values()): number for number, batch in enumerate(chosen)}
    timings = measure(
        variants,
        [batch.units for batch in chosen],
        warm_up=list(shapes.values()),
        seed=settings.seed,
        min_rounds=max(3, round(settings.min_rounds * effort)),
        min_seconds=settings.min_seconds * effort,
        max_seconds=settings.max_seconds * effort,
        progress=lambda share: tell("speed", share),
    )
    return summarise(timings, task.unit, seed=settings.seed)
