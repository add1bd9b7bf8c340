"""How fast the unpatched model and each variant are, all timed in the same rounds."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import datasets
import torch

from hf_gelu_patch.evaluation.makes import devices_of
from hf_gelu_patch.evaluation.run.comparison import Comparison, Side
from hf_gelu_patch.evaluation.run.compiling import again
from hf_gelu_patch.evaluation.speed.memory import peak_memory
from hf_gelu_patch.evaluation.speed.rounds import CudaClock, Effort, Timings, measure, measure_generation
from hf_gelu_patch.evaluation.speed.share import activation_share
from hf_gelu_patch.evaluation.speed.summary import Speed, summarise
from hf_gelu_patch.evaluation.tasks.base import Batch, Task
from hf_gelu_patch.evaluation.variants import AGAIN, BEFORE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["TimedRun", "time_all"]

_TIMED_BATCHES = 4
_OTHER_TIMES = 1 / 3  # how long to measure end to end, and generation, beside the forward alone


@dataclass(frozen=True)
class TimedRun:
    """What was timed.

    Attributes:
        speeds: of each variant.
        activation_share: the share of the unpatched model's forward that activations take.
        peak_memory: the memory that the unpatched model's forward takes; None where the system does not tell.
    """

    speeds: Mapping[str, Speed]
    activation_share: float
    peak_memory: int | None


def time_all(comparison: Comparison, rows: datasets.Dataset | None) -> TimedRun:
    """Time forwards; where there are rows, everything from these on; and generation, where the task generates.

    Args:
        comparison: what to time, on a few of its batches.
        rows: the data that its task was made of; None to leave out what starts from these.
    """
    model, task = comparison.model, comparison.task
    batches = [batch.to(comparison.device) for batch in _chosen(comparison.batches)]
    share = activation_share(model, batches[len(batches) // 2 :][:1], task.forward)
    timer = _Timer(comparison, batches, {BEFORE: Side(model), AGAIN: again(comparison), **comparison.running}, rows)
    speeds = timer.summarised(timer.forward(), task.unit)
    if (timed := timer.from_rows()) is not None:
        for name, speed in timer.summarised(timed, task.unit).items():
            speeds[name] = replace(speeds[name], end_to_end=speed)
    for part, timed, unit in timer.generation():
        if timed.units:
            for name, speed in timer.summarised(timed, unit).items():
                more: dict[str, Any] = {part: speed}
                speeds[name] = replace(speeds[name], **more)
    for name, side in comparison.running.items():
        with side as running:
            speeds[name] = replace(speeds[name], peak_memory=_memory(task, running, batches[0]))
    comparison.tell("speed", 1.0)
    return TimedRun(speeds, share, _memory(task, model, batches[0]))


def _chosen(batches: Sequence[Batch]) -> Sequence[Batch]:
    """A few that stand for all: from the longest to the shortest."""
    return batches[:: max(1, len(batches) // _TIMED_BATCHES)][:_TIMED_BATCHES]


def _memory(task: Task, model: PreTrainedModel, batch: Batch) -> int | None:
    return peak_memory(lambda: task.forward(model, batch), *devices_of(model))


@dataclass(frozen=True)
class _Timer:
    """Times the parts of one evaluation, one after the other.

    Attributes:
        comparison: what it is about.
        batches: what to run, on the model's device.
        sides: what to run it with: the variants, and the unpatched model as "before" and as "again".
        rows: of the data; None to leave out what starts from these.
    """

    comparison: Comparison
    batches: Sequence[Batch]
    sides: Mapping[str, Side]
    rows: datasets.Dataset | None

    @property
    def task(self) -> Task:
        return self.comparison.task

    def summarised(self, timings: Timings, unit: str) -> dict[str, Speed]:
        """What follows for each variant from samples of it."""
        names, seed = self.comparison.names, self.comparison.settings.seed
        return summarise(timings, unit, variants=names, seed=seed)

    def forward(self) -> Timings:
        """The forward by itself, on a GPU by the GPU's clock."""
        device = self.comparison.device

        def run(model: PreTrainedModel) -> Callable[[int], object]:
            return lambda batch: self.task.forward(model, self.batches[batch])

        return measure(
            {name: run(side.model) for name, side in self.sides.items()},
            [batch.units for batch in self.batches],
            self._effort("forward"),
            warm_up=self._shapes(),
            turns=self.sides,
            clock=CudaClock(device) if device.type == "cuda" else time.perf_counter,
        )

    def from_rows(self) -> Timings | None:
        """Everything from the rows of the data on; None where there are none to start from."""
        if self.rows is None or (sources := _sources(self.task, self.batches, self.rows)) is None:
            return None
        encoding = copy.copy(self.task)  # encoding notes down what it finds

        def batch_of(number: int) -> Batch:
            examples = list(encoding.encode(sources[number], None))
            return encoding.collate(tuple(range(len(examples))), examples)

        def run(model: PreTrainedModel) -> Callable[[int], object]:
            return lambda number: self.task.forward(model, batch_of(number).to(self.comparison.device))

        return measure(
            {name: self._waits(run(side.model)) for name, side in self.sides.items()},
            [batch_of(number).units for number in range(len(sources))],
            self._effort("rows", resolution=0.03),
            warm_up=self._shapes(),
            turns=self.sides,
        )

    def generation(self) -> Iterator[tuple[str, Timings, str]]:
        """Both parts of generation, each with its unit; nothing where the task does not generate."""
        new_tokens = getattr(self.task, "decode_tokens", 0)
        if not self.task.generates or new_tokens < 2:
            return
        generate: Callable[..., object] = self.task.generate  # type: ignore[attr-defined]

        def run(model: PreTrainedModel) -> Callable[[int, int], object]:
            return lambda batch, tokens: generate(model, self.batches[batch], tokens)

        sequences = [len(batch.ids) for batch in self.batches]
        prefill, decode = measure_generation(
            {name: self._waits(run(side.model)) for name, side in self.sides.items()},
            [(count, count) for count in sequences],
            new_tokens,
            self._effort("generation"),
            warm_up=self._shapes(),
            turns=self.sides,
        )
        yield "prefill", prefill, "prompts"
        yield "decode", decode, "tokens"

    def _effort(self, part: str, resolution: float = 0.01) -> Effort:
        """How long to time a part. With nothing to compare, a third of the time is enough to say how fast the model
        is."""
        settings = self.comparison.settings
        timed = {"forward": True, "rows": self.rows is not None, "generation": self.task.generates}
        parts = [name for name, there in timed.items() if there]
        times = (1.0 if self.comparison.running else 1 / 3) * (1.0 if part == "forward" else _OTHER_TIMES)
        place = parts.index(part)
        return Effort(
            seed=settings.seed,
            min_rounds=max(3, round(settings.min_rounds * times)),
            min_seconds=settings.min_seconds * times,
            max_seconds=settings.max_seconds * times,
            resolution=resolution,
            progress=lambda share: self.comparison.tell("speed", (place + share) / len(parts)),
        )

    def _shapes(self) -> list[int]:
        """A batch of each shape that there is."""
        shapes = {
            tuple(value.shape for value in batch.inputs.values()): number for number, batch in enumerate(self.batches)
        }
        return list(shapes.values())

    def _waits(self, run: Callable[..., object]) -> Callable[..., None]:
        """The same, which returns when the GPU is done too."""
        device = self.comparison.device

        def until_done(*arguments: Any) -> None:
            run(*arguments)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        return until_done


def _sources(task: Task, batches: Sequence[Batch], rows: datasets.Dataset) -> list[datasets.Dataset] | None:
    """The rows that each batch is made of. Of running text, whose blocks are no rows, the batch's own text is a row;
    None where there is no such text."""
    if task.unit != "tokens":
        return [rows.select([int(task.examples.rows[example]) for example in batch.ids]) for batch in batches]
    column = task.subject.input_column
    if column is None or not hasattr(task.processor, "decode"):
        return None
    ids = [batch.inputs["input_ids"] for batch in batches]
    texts = ["\n\n".join(task.processor.decode(one, skip_special_tokens=True) for one in some) for some in ids]
    return [datasets.Dataset.from_dict({column: [text]}) for text in texts]
