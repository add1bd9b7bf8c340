"""A model evaluated before and after patches, on tasks of lm-evaluation-harness."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_gelu_patch.evaluation import digests, records
from hf_gelu_patch.evaluation.drift.logits import total_drift
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.harness.asking import Asking, Told, write_samples
from hf_gelu_patch.evaluation.harness.requests import Requests, request_drift
from hf_gelu_patch.evaluation.harness.scoring import Compared
from hf_gelu_patch.evaluation.harness.tasks import Asked, subject_of
from hf_gelu_patch.evaluation.options.harness import PREFIX, Harness
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.quality import Quality
from hf_gelu_patch.evaluation.records import Row
from hf_gelu_patch.evaluation.run.assembling import as_it_ran, variant_results
from hf_gelu_patch.evaluation.run.comparison import Comparison, Progress, Side
from hf_gelu_patch.evaluation.run.layers import CloseLook, look_closely
from hf_gelu_patch.evaluation.run.result import Result
from hf_gelu_patch.evaluation.run.resuming import fingerprint
from hf_gelu_patch.evaluation.run.tallying import Tally
from hf_gelu_patch.evaluation.run.timings import TimedRun, time_all
from hf_gelu_patch.evaluation.run.training_memory import with_memory
from hf_gelu_patch.evaluation.run.verdict import first_lost
from hf_gelu_patch.evaluation.variants import BEFORE

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

__all__ = ["Loaded", "Question", "check_processes", "evaluate_question", "record_folder"]

_USUAL_BATCH = 1  # lm-evaluation-harness's own


@dataclass(frozen=True)
class Loaded:
    """A model that is there.

    Attributes:
        name: what it is called.
        place: where it is from.
        model: in evaluation mode.
        tokenizer: its own.
        seconds: how long loading took.
    """

    name: str
    place: str
    model: PreTrainedModel
    tokenizer: Any
    seconds: float = 0.0


@dataclass(frozen=True)
class Question:
    """What a model is asked.

    Attributes:
        asked: a task, or a group of tasks.
        options: of lm-evaluation-harness.
        max_length: tokens of a prompt with its answer; None for what the model takes.
    """

    asked: Asked
    options: Harness
    max_length: int | None = None

    def subject(self, loaded: Loaded) -> Subject:
        """The model with the task, as results call them."""
        return subject_of(loaded.name, loaded.place, self.asked, self.max_length)


def evaluate_question(
    loaded: Loaded,
    question: Question,
    settings: Settings,
    accelerator: Accelerator,
    progress: Progress | None = None,
    *,
    folder: Path | None = None,
) -> Result:
    """Evaluate a model before and after patches on a task of lm-evaluation-harness, or on a group of tasks.

    Every model is asked the same documents with the same seeds, those of lm-evaluation-harness. Its scores of the
    unpatched model are those that ``lm_eval`` gives with the same batch size. Drift, layers and speed are measured on
    batches that the unpatched model was given: the forwards of likelihoods, and the prompts of generations.

    Args:
        loaded: the model. Twins of it are patched, which share its weights; or itself in turn, where it can have none.
        question: what to ask.
        settings: what to compare, and how to measure. Its seed is for the bootstrap and for timing.
        accelerator: one process.
        progress: told what is done.
        folder: for results; the samples of each model go into ``records/MODEL/lm_eval/VARIANT`` below it, as
            lm-evaluation-harness writes them. None to write nothing.

    Raises:
        PatchError: a patch was refused, before anything was asked.
        EvaluationError: there are several processes; a model fails; or samples cannot be written.
    """
    check_processes(accelerator.num_processes)
    start = time.perf_counter()
    size = settings.batch_size or _USUAL_BATCH
    task = Requests(question.subject(loaded), loaded.model.config, loaded.tokenizer, ())
    comparison = Comparison(loaded.model, task, settings, accelerator, task.batches(), size, progress=progress)
    comparison = comparison.patched(settings.variants)
    asking = Asking(question.asked, question.options, size, question.max_length, settings.limit, loaded.tokenizer)
    place = None if folder is None else folder / record_folder(loaded.name)
    told = _told(asking, comparison, place)
    task = Requests(task.subject, loaded.model.config, loaded.tokenizer, told[BEFORE].seen)
    few = task.few()
    comparison = replace(comparison, task=few, batches=few.batches())
    seconds = {"load": loaded.seconds, "quality": time.perf_counter() - start}
    if settings.memory:
        comparison = with_memory(comparison)
    with torch.inference_mode():
        start = time.perf_counter()
        look = look_closely(comparison)
        sides = {name: comparison.running.get(name) for name in comparison.names}
        rows = request_drift(few, loaded.model, sides)
        seconds["layers"] = time.perf_counter() - start
        start = time.perf_counter()
        comparison = replace(comparison, task=task, batches=task.batches())
        timed = time_all(comparison, None)
        seconds["speed"] = time.perf_counter() - start
    compared = {
        name: Compared.of(question.asked, told[BEFORE], told.get(name, told[BEFORE]), seed=settings.seed)
        for name in comparison.names
    }
    found = _result(comparison, compared, rows, look, timed)
    where = None if folder is None or place is None else str(place.relative_to(folder))
    return replace(found, seconds=seconds, records=where, fingerprint=_fingerprint(comparison, told[BEFORE], question))


def record_folder(model: str) -> Path:
    """Where the samples of a model of that name go, below the folder for results."""
    return Path("records") / records.folder_name(model) / "lm_eval"


def check_processes(number: int) -> None:
    """See that there is one process.

    Raises:
        EvaluationError: there are several.
    """
    if number > 1:
        raise EvaluationError(
            f"{PREFIX}… runs in one process: with several, lm-evaluation-harness puts other requests into a batch, and "
            "answers may differ. Start one process, or give each one tasks of its own."
        )


def _told(asking: Asking, comparison: Comparison, place: Path | None) -> dict[str, Told]:
    """What each model that is run says, the unpatched one first; each is written as soon as it is known."""
    told: dict[str, Told] = {}
    sides = {BEFORE: Side(comparison.model), **comparison.running}
    subject = comparison.task.subject.name
    for number, (name, side) in enumerate(sides.items()):
        comparison.tell("quality", number / len(sides))
        with side as model:
            told[name] = asking.of(model, subject if name == BEFORE else f"{subject}, patched as {name!r},")
        if place is not None:
            write_samples(told[name], place / re.sub(r"[^\w.,=+-]", "_", name))
    comparison.tell("quality", 1.0)
    return told


def _result(
    comparison: Comparison, compared: Mapping[str, Compared], rows: Sequence[Row], look: CloseLook, timed: TimedRun
) -> Result:
    tallies = {
        name: _tally(one.quality(comparison.settings.margin), [row for row in rows if row.variant == name])
        for name, one in compared.items()
    }
    variants = tuple(
        replace(one, tasks=compared[one.variant.name].tasks)
        for one in variant_results(comparison, tallies, look, timed)
    )
    return Result(
        subject=comparison.task.subject,
        variants=variants,
        unpatched=variants[0].quality.before,
        described={number: text for one in compared.values() for number, text in one.described().items()},
        named={},
        seconds={},
        skipped=(),
        records=None,
        fingerprint={},
        **as_it_ran(comparison.model, comparison, look, timed),
    )


def _tally(quality: Quality, rows: Sequence[Row]) -> Tally:
    """What a variant's samples, and the drift of its logits, come to."""
    drift = total_drift(row.drift for row in rows if row.drift is not None)
    quality = replace(quality, max_abs_logit_change=drift.max_abs, max_abs_logit=drift.scale)
    return Tally(quality, drift, first_lost(rows))


def _fingerprint(comparison: Comparison, told: Told, question: Question) -> records.Fingerprint:
    """All that the answers depend on."""
    samples = [one for task in question.asked.tasks for one in told.samples[task]]

    def digest(*names: str) -> str:
        return digests.text_digest([[one.get(name) for name in names] for one in samples])

    return {
        **fingerprint(comparison),
        "harness": question.asked.digest,
        "rows": digest("doc_hash", "target_hash"),
        "data": digest("prompt_hash"),
        "order": digest("doc_id", "filter"),
    }
