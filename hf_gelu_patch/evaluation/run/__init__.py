"""One model evaluated before and after patches: the same examples, the same batches, in one process or several.

comparison (the model beside its patched variants) → training_memory, compiling (where they are asked for) → resuming
(what is recorded already) → answers (what they say of each example) → together (what several processes wrote) →
tallying, layers, timings (what all of it comes to, one batch looked at, and the clock; by the main process alone) →
verdict → result.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import torch
from accelerate.utils import gather_object

from hf_gelu_patch.evaluation import records
from hf_gelu_patch.evaluation.loading.models import load_model
from hf_gelu_patch.evaluation.loading.placing import named_device
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.loading.subjects import load_rows
from hf_gelu_patch.evaluation.makes import is_split
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.padding import check_padding
from hf_gelu_patch.evaluation.run.answers import all_answers
from hf_gelu_patch.evaluation.run.assembling import as_it_ran, variant_results
from hf_gelu_patch.evaluation.run.comparison import STAGES, Comparison, Progress
from hf_gelu_patch.evaluation.run.compiling import compilable, compiled
from hf_gelu_patch.evaluation.run.layers import look_closely
from hf_gelu_patch.evaluation.run.leading import led
from hf_gelu_patch.evaluation.run.result import Result, VariantResult
from hf_gelu_patch.evaluation.run.resuming import Recording, fingerprint, open_recording
from hf_gelu_patch.evaluation.run.tallying import all_metrics, tally
from hf_gelu_patch.evaluation.run.timings import time_all
from hf_gelu_patch.evaluation.run.training_memory import with_memory
from hf_gelu_patch.evaluation.speed.memory import peak_memory
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.tasks.limits import Limits
from hf_gelu_patch.evaluation.tasks.making import make_task

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

__all__ = ["STAGES", "Progress", "evaluate", "evaluate_subject", "load", "unpatched_metrics"]

_ALIGNMENT = 64  # bytes, as torch gives them out


def evaluate_subject(
    subject: Subject,
    settings: Settings,
    accelerator: Accelerator,
    progress: Progress | None = None,
    *,
    folder: Path | None = None,
) -> Result:
    """Load a model with its data and evaluate it; arguments and errors as for ``evaluate`` and the loading."""
    progress = progress if accelerator.is_main_process else None
    start = time.perf_counter()
    if progress is not None:
        progress("load", 0.0)
    loaded: list[tuple[PreTrainedModel, Task, datasets.Dataset]] = []
    memory = peak_memory(
        lambda: loaded.append(load(subject, settings, accelerator)), *_devices(settings.loading, accelerator)
    )
    model, task, rows = loaded.pop()
    if progress is not None:
        progress("load", 1.0)
    seconds = time.perf_counter() - start
    found = evaluate(model, task, settings, accelerator, progress, rows=rows, folder=folder)
    memories = gather_object([memory] if accelerator.is_main_process else [])
    return replace(found, seconds={**found.seconds, "load": seconds}, load_memory=next(iter(memories), None))


def _devices(loading: Loading, accelerator: Accelerator) -> list[torch.device]:
    """Those that a model may be loaded onto."""
    if loading.device_map is not None and torch.cuda.is_available():
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    return [named_device(loading.device) if loading.device is not None else accelerator.device]


def unpatched_metrics(subject: Subject, settings: Settings, accelerator: Accelerator) -> dict[str, float]:
    """The task's metrics for the model as it is: nothing is patched, nothing timed. Errors as for the loading."""
    model, task, _ = load(subject, settings, accelerator)
    comparison = Comparison.unpatched(model, task, settings, accelerator)
    with torch.inference_mode():
        check_padding(task, model, comparison.batches)
        usable, answers = all_answers(comparison, Recording.temporary(comparison))
    [found] = gather_object([] if answers is None else [all_metrics(usable, answers)])
    metrics: dict[str, float] = found
    return metrics


def load(
    subject: Subject, settings: Settings, accelerator: Accelerator
) -> tuple[PreTrainedModel, Task, datasets.Dataset]:
    """A model in evaluation mode, its task, and the data that this is made of. Errors as for the loading."""
    rows = load_rows(subject, skip_bad_rows=settings.skip_bad_rows)
    loading, download = settings.loading, subject.allow_download
    processor = load_processor(subject.model, subject.task, loading, allow_download=download)
    model = load_model(
        subject.model,
        subject.task,
        loading,
        allow_download=download,
        device=accelerator.device,
        processes=accelerator.num_processes,
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
    and a matrix in another order where the matrix starts elsewhere. Where transformers leaves the weights depends on
    the file's header, and on whether there are several processes: without this, two processes would not find what one
    finds."""
    for weight in (*model.parameters(), *model.buffers()):
        if weight.device.type == "cpu" and not is_split(weight) and weight.data_ptr() % _ALIGNMENT:
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
) -> Result:
    """Evaluate a loaded model before and after patches. Twins of ``model`` are patched, which share its weights. Where
    it can have none, it is patched and unpatched in turn.

    All processes run the models together: each takes whole batches in turn, and writes down what is said. The main
    process alone reads all of it, looks at layers and measures speed, while the others wait; they then have its
    figures. These are the same with two processes as with one, with the same number of threads; tests hold that for
    what they run. No process holds more than some thousands of examples or answers in memory.

    Args:
        model: in evaluation mode.
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
            others in its batch; what a training step keeps was asked for and cannot be measured; the records cannot be
            written or are of another run; or examples were lost among the processes.
    """
    comparison = Comparison.unpatched(model, task, settings, accelerator, progress).patched(settings.variants)
    work = partial(_evaluated, comparison, rows, folder)
    return work() if settings.loading.tp_plan is None else led(comparison, work)


def _evaluated(comparison: Comparison, rows: datasets.Dataset | None, folder: Path | None) -> Result:
    """What all processes find out together, or the first one where it leads the others."""
    start = time.perf_counter()
    model, task, settings, accelerator = comparison.model, comparison.task, comparison.settings, comparison.accelerator
    comparison = with_memory(comparison) if settings.memory else comparison
    place = None if folder is None else folder / "records" / records.folder_name(task.subject.name)
    with torch.inference_mode(), compilable(comparison):
        comparison, compiling = compiled(comparison)
        check_padding(task, comparison.model, comparison.batches)
        known = fingerprint(comparison)
        recording = Recording.temporary(comparison) if place is None else open_recording(place, known, comparison)
        comparison, answers = all_answers(comparison, recording)
        found = []
        if answers is not None:
            tallies = tally(comparison, answers)
            seconds = {"load": 0.0, "compile": compiling, "quality": time.perf_counter() - start - compiling}
            start = time.perf_counter()
            look = look_closely(comparison)
            seconds["layers"] = time.perf_counter() - start
            start = time.perf_counter()
            timed = time_all(comparison, rows)
            seconds["speed"] = time.perf_counter() - start
            found.append((tallies, look, timed, seconds))
        accelerator.wait_for_everyone()
        [(tallies, look, timed, seconds)] = gather_object(found)
    variants = variant_results(comparison, tallies, look, timed)
    described, named = _told(comparison.task, variants)
    return Result(
        subject=task.subject,
        variants=variants,
        unpatched=variants[0].quality.before,
        described=described,
        named=named,
        seconds=seconds,
        skipped=comparison.task.skipped,
        records=None if folder is None or place is None else str(place.relative_to(folder)),
        fingerprint=known,
        **as_it_ran(model, comparison, look, timed),
    )


def _told(task: Task, variants: tuple[VariantResult, ...]) -> tuple[dict[int, str], dict[str, str]]:
    """``Result.described`` and ``Result.named``: what the examples and answers in the flips are to people."""
    flips = [flip for one in variants for flip in one.quality.flipped]
    said = sorted({answer for flip in flips for answer in (flip.before, flip.after, flip.target) if answer})
    described = {example: task.describe(example) for example in sorted({flip.example for flip in flips})}
    return described, {answer: task.named(answer) for answer in said}
