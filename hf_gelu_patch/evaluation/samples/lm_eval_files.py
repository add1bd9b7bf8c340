"""The samples that lm-evaluation-harness has written down: ``samples_TASK_DATE.jsonl``, by ``--log_samples``.

Beside them lies ``results_DATE.json``, which has each task's configuration: by what its metrics are aggregated, and of
which less is better. Without it the usual aggregation of a metric's name is taken, and said so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.samples.aggregating import find_aggregation
from hf_gelu_patch.evaluation.samples.documents import Measure, Samples
from hf_gelu_patch.evaluation.samples.lm_eval_samples import by_filter, document_of, measures_of

__all__ = ["dated", "find", "read"]

_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl")


def find(place: Path) -> list[Path]:
    """The files of samples in a folder and those below it, or the one file that is named."""
    if place.is_file():
        return [place] if _NAME.fullmatch(place.name) else []
    return sorted(path for path in place.rglob("samples_*.jsonl") if _NAME.fullmatch(path.name))


def dated(paths: Sequence[Path], name: re.Pattern[str], place: Path) -> list[tuple[str, str, Path, tuple[str, ...]]]:
    """(task, date, file, notes) of the newest file of each task.

    Args:
        paths: files whose names have a task and a date.
        name: how they are called.
        place: what was named, for messages.

    Raises:
        EvaluationError: a task's files are in several folders, as those of several models are.
    """
    of_task: dict[str, list[tuple[str, Path]]] = {}
    for path in paths:
        if (found := name.fullmatch(path.name)) is not None:
            of_task.setdefault(found["task"], []).append((found["date"], path))
    newest: list[tuple[str, str, Path, tuple[str, ...]]] = []
    for task, files in of_task.items():
        files.sort()
        folders = sorted({str(path.parent if path.parent.name not in _dates(files) else path.parent.parent)
                          for _, path in files})  # fmt: skip
        if len(folders) > 1:
            raise EvaluationError(
                f"{place} has the task {task!r} in several folders: {', '.join(folders)}. Name one of them."
            )
        date, path = files[-1]
        notes = (f"{path.parent}: of {len(files)} files of the task {task!r} the newest is read, {path.name}",)
        newest.append((task, date, path, notes if len(files) > 1 else ()))
    return newest


def _dates(files: Sequence[tuple[str, Path]]) -> set[str]:
    return {date for date, _ in files}


def read(place: Path) -> list[Samples]:
    """Each task's samples, by filter.

    Args:
        place: a folder that lm-evaluation-harness wrote to, or one file of samples.

    Raises:
        EvaluationError: a line is no sample; or a task's files lie in several folders.
    """
    found = []
    for task, date, path, notes in dated(find(place), _NAME, place):
        results, told = _results(path.parent / f"results_{date}.json", task)
        for filter_, samples in by_filter(sample for _, sample in _lines(path)).items():
            documents = tuple(document_of(sample) for sample in samples)
            metrics = dict.fromkeys(name for document in documents for name in document.values)
            measures = measures_of(
                metrics, results.get("configs", {}).get(task, {}), results.get("higher_is_better", {}).get(task, {})
            )
            one = Samples(task, filter_, documents, measures, str(path), (*notes, *told))
            differing = _not_as_told(one, results.get("results", {}).get(task, {}), measures)
            found.append(Samples(task, filter_, documents, measures, str(path), (*one.notes, *differing)))
    return found


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The samples of a file, each checked, by the number of its line."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    sample = json.loads(line)
                    document_of(sample)
                except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                    raise EvaluationError(
                        f"{path}: line {number} is no sample of lm-evaluation-harness "
                        f"({type(error).__name__}: {error}). Remove the line, or run lm_eval with --log_samples again."
                    ) from error
                yield number, sample
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read: {error}.") from error


def _results(path: Path, task: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The results beside the samples; and what is to be said where there are none."""
    if not path.is_file():
        return {}, (
            f"there is no {path.name} beside the samples of {task!r}: its metrics are aggregated as usual for their "
            "names",
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path} cannot be read: {error}. Remove it to go on without it.") from error
    return (found if isinstance(found, dict) else {}), ()


def _not_as_told(samples: Samples, told: Mapping[str, Any], measures: Mapping[str, Measure]) -> tuple[str, ...]:
    """Where the score that the samples give is not the one that the run told: lines were lost or changed since."""
    notes = []
    for metric, measure in measures.items():
        score = told.get(f"{metric},{samples.filter or 'none'}")
        values = [document.values[metric] for document in samples.documents if metric in document.values]
        aggregation = find_aggregation(measure.aggregation)
        if not isinstance(score, int | float) or aggregation is None or aggregation.sampled is None or not values:
            continue
        try:
            own = aggregation.score(values)
        except (TypeError, ValueError, ArithmeticError):
            continue
        if not (math.isclose(own, score, rel_tol=1e-9, abs_tol=1e-12) or (math.isnan(own) and math.isnan(score))):
            notes.append(
                f"{samples.place}: {metric} is {own:.6g} of its lines, and was {score:.6g} when it was run: lines are "
                "missing, or were changed"
            )
    return tuple(notes)
