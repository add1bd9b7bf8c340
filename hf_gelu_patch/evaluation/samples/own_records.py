"""The records of our own evaluations: ``records/MODEL/*.jsonl``, with the answers of each variant.

They hold no text of an example. Examples are paired by their number, if both runs had the same rows of data and the
same right answers there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_gelu_patch.evaluation import records
from hf_gelu_patch.evaluation.digests import text_digest
from hf_gelu_patch.evaluation.metrics import METRICS
from hf_gelu_patch.evaluation.metrics.registry import metric_names
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.samples.comparing import HITS
from hf_gelu_patch.evaluation.samples.documents import Document, Measure, Samples
from hf_gelu_patch.evaluation.tasks.registry import TASKS, TaskInfo

__all__ = ["find", "read"]

_FOLDER = "records"
_SHARES = ("accuracy", "token_accuracy", "tag_accuracy", "exact_match")  # metrics that are a share of right answers


def find(place: Path) -> list[Path]:
    """The folders of records below a folder of results, or the one folder that is named."""
    if not place.is_dir():
        return []
    below = (
        [place, *sorted(place.iterdir())] if place.name == _FOLDER else [place, *sorted((place / _FOLDER).glob("*"))]
    )
    return [one for one in below if one.is_dir() and any(_is_record(path) for path in one.glob("*.jsonl"))]


def _is_record(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16).startswith(b'{"fingerprint"')


def read(place: Path) -> list[Samples]:
    """What each model said in a run, by variant: the variant stands for the filter, and the model's folder goes with
    the task where there are several.

    Args:
        place: a folder of results, or one model's folder of records.

    Raises:
        EvaluationError: the records are damaged, or of several runs.
    """
    folders = find(place)
    found = []
    for folder in folders:
        fingerprint, rows = records.read(folder)
        if fingerprint is None:
            continue
        task = str(fingerprint.get("task"))
        name = task if len(folders) == 1 else f"{folder.name}: {task}"
        by_variant: dict[str, list[records.Row]] = {}
        for _, row in sorted(rows.items()):
            by_variant.setdefault(row.variant, []).append(row)
        info = TASKS.get(task)
        if info is not None:
            info.check_libraries()
        for variant, some in by_variant.items():
            outcomes = [row.outcome for row in some]
            measures = _measures(info, outcomes)
            documents = tuple(_document(row, fingerprint, measures) for row in some)
            missing = _missing(info, measures, outcomes)
            found.append(Samples(name, variant, documents, measures, str(folder), missing))
    return found


def _measures(info: TaskInfo | None, outcomes: Sequence[Outcome]) -> dict[str, Measure]:
    """What can be told of the outcomes alone: the task's metrics, where its records hold all that these are computed
    of; else what answers, likelihoods and scores say by themselves."""
    hits = _hits(info, outcomes)
    found = {} if hits is None else {hits: Measure(HITS, False)}
    recorded = None if info is None else info.load().recorded
    if recorded is not None and (kinds := recorded(outcomes)):
        for name in metric_names(kinds):
            found.setdefault(name, Measure(name, METRICS[name].lower_is_better, columns=recorded))
        return found
    if any(said.tokens for said in outcomes):
        found["perplexity"] = Measure("weighted_perplexity", True)
    if any(said.top5 for said in outcomes):
        found["top5_accuracy"] = Measure(HITS, False)
    if any(said.score is not None and not said.answers for said in outcomes):
        found["score"] = Measure("mean", None)
    return found


def _hits(info: TaskInfo | None, outcomes: Sequence[Outcome]) -> str | None:
    """What the share of right answers is called; None where answers are not right or wrong."""
    if not any(said.answers and None not in said.targets for said in outcomes):
        return None
    if info is None:
        return "accuracy"
    sets = "subset_accuracy" in info.metrics and all(isinstance(one, str) for said in outcomes for one in said.answers)
    return next((name for name in (("subset_accuracy",) if sets else _SHARES) if name in info.metrics), None)


def _missing(info: TaskInfo | None, measures: Mapping[str, Measure], outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Which of the task's metrics cannot be told, in words. Those of a classifier depend on its head: what is right of
    a number is in no record."""
    if info is None:
        return ()
    expected = info.metrics
    if "label" in info.answers:
        expected = metric_names(("number",)) if any(said.score is not None for said in outcomes) else ()
    names = [name for name in expected if name not in measures]
    if not names:
        return ()
    listed = ", ".join(name.replace("_", " ") for name in names)
    return (f"the records do not hold all that these are computed of: {listed}. Each run's evaluation.json has them",)


def _document(row: records.Row, fingerprint: records.Fingerprint, measures: Mapping[str, Measure]) -> Document:
    said = row.outcome
    values: dict[str, Any] = {}
    for name, measure in measures.items():
        if measure.columns is not None:
            values[name] = said
        elif name == "top5_accuracy":
            values[name] = [int(one) for one in said.top5] or None
        elif measure.aggregation == HITS and said.answers and None not in said.targets:
            pairs = zip(said.answers, said.targets, strict=True)
            values[name] = [int(answer == target) for answer, target in pairs]
        elif name == "perplexity" and said.tokens:
            values[name] = [-said.loss, said.tokens]
        elif name == "score":
            values[name] = said.score
    return Document(
        number=str(row.example),
        content=text_digest([fingerprint.get("rows"), list(said.targets)]),
        prompt=str(fingerprint.get("data", "")),
        answers=said.answers,
        targets=said.targets,
        text=f"example {row.example}",
        values=values,
    )
