"""The details that lighteval has written down: ``details_TASK_DATE.parquet``, by ``--save-details``.

A row is one document. lighteval 0.13 has the columns ``doc``, ``metric`` and ``model_response``, each a structure; its
documentation up to 0.12 calls them ``__doc__``, ``__metric__`` and ``__model_response__``. Up to 0.9 a row was flat:
``example``, ``full_prompt``, ``predictions``, ``metrics`` and others. Where lighteval could not store a structure it
has written its text, which Python reads back. ``results/…/results_DATE.json`` has each metric's direction.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_gelu_patch.evaluation.digests import text_digest
from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.samples.documents import Document, Measure, Samples
from hf_gelu_patch.evaluation.samples.lm_eval_files import dated

__all__ = ["find", "read"]

_NAME = re.compile(r"details_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)\.parquet")
_SHOWN = 400  # characters


def find(place: Path) -> list[Path]:
    """The files of details in a folder and those below it, or the one file that is named."""
    if place.is_file():
        return [place] if _NAME.fullmatch(place.name) else []
    return sorted(path for path in place.rglob("details_*.parquet") if _NAME.fullmatch(path.name))


def read(place: Path) -> list[Samples]:
    """Each task's details.

    Args:
        place: a folder that lighteval wrote to, or one file of details.

    Raises:
        EvaluationError: a row is no detail; or a task's files lie in several folders.
    """
    found = []
    for task, date, path, notes in dated(find(place), _NAME, place):
        documents = tuple(_document(path, number, row) for number, row in enumerate(_rows(path)))
        metrics = dict.fromkeys(name for document in documents for name in document.values)
        config = _config(path, date, task)
        told = () if config is not None else (
            f"there is no results_{date}.json for the details of {task!r}: each metric is taken for a mean, and nobody "
            "says of which less is better",
        )  # fmt: skip
        measures = {metric: (config or {}).get(metric, Measure()) for metric in metrics}
        found.append(Samples(task, "", documents, measures, str(path), (*notes, *told)))
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise EvaluationError(
            f"{path} cannot be read: {first_line(error)} Run lighteval with --save-details again."
        ) from error
    return rows


def _document(path: Path, number: int, row: Mapping[str, Any]) -> Document:
    """The document of a row."""
    try:
        if "metrics" in row:
            return _flat(number, row)
        doc, metric, said = (
            _structure(row[name] if name in row else row[f"__{name}__"]) for name in ("doc", "metric", "model_response")
        )
        answers = _answers(said.get("text_post_processed") or said.get("text"), said.get("logprobs"), doc["choices"])
        return Document(
            number=str(doc.get("id") or number),
            content=text_digest([doc["query"], doc["choices"], doc.get("gold_index")]),
            prompt=text_digest(said["input"]) if said.get("input") is not None else "",
            answers=answers,
            targets=(_golds(doc["choices"], doc.get("gold_index")),) if answers else (),
            text=" ".join(str(doc["query"]).split())[:_SHOWN],
            values=_values(metric),
        )
    except (KeyError, TypeError, ValueError, SyntaxError, AttributeError) as error:
        raise EvaluationError(
            f"{path}: row {number + 1} is no detail of lighteval ({type(error).__name__}: {error}). It is read as "
            "lighteval 0.13 writes it, with the columns doc, metric and model_response: save the details again."
        ) from error


def _flat(number: int, row: Mapping[str, Any]) -> Document:
    """The document of a row as lighteval up to 0.9 writes it."""
    choices, metrics = (_plain(row.get(name)) or [] for name in ("choices", "metrics"))
    said = _plain(row.get("predictions")) or []
    numbers = [one[0] if isinstance(one, list | tuple) else one for one in said]
    likelihoods = numbers if numbers and all(isinstance(one, int | float) for one in numbers) else None
    answers = _answers(None if likelihoods else said, likelihoods, choices)
    golds = _plain(row.get("gold")) or _golds(choices, _plain(row.get("gold_index")))
    return Document(
        number=str(number),
        content=text_digest([row["example"], choices, golds]),
        prompt=text_digest(row["full_prompt"]) if row.get("full_prompt") else "",
        answers=answers,
        targets=(str(golds),) if answers else (),
        text=" ".join(str(row["example"]).split())[:_SHOWN],
        values=_values(_structure(metrics)),
    )


def _answers(texts: Any, likelihoods: Any, choices: Any) -> tuple[str, ...]:
    """What the model said: its texts, or the likeliest of the choices."""
    if texts:
        return (str(texts[0]) if len(texts) == 1 else json.dumps(texts, default=str),)
    if likelihoods and choices and len(likelihoods) == len(choices):
        return (str(max(range(len(likelihoods)), key=lambda place: likelihoods[place])),)
    return ()


def _golds(choices: Any, index: Any) -> str:
    places = index if isinstance(index, list) else [index]
    return ", ".join(str(choices[one]) for one in places if isinstance(one, int) and 0 <= one < len(choices))


def _values(metric: Mapping[str, Any]) -> dict[str, Any]:
    """What each metric makes of the answer. A column of structures has every metric in every row, most of them None
    where rows have different ones."""
    return {str(name): value for name, value in metric.items() if value is not None}


def _structure(value: Any) -> Mapping[str, Any]:
    found = _plain(value)
    if not isinstance(found, Mapping):
        raise TypeError(f"{str(value)[:60]!r} is no structure")
    return found


def _plain(value: Any) -> Any:
    """A value, or what a text says that lighteval made of one it could not store."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _config(path: Path, date: str, task: str) -> dict[str, Measure] | None:
    """How each metric of a task becomes a score, as the results say; None without them."""
    place = next((one for up in path.parents[:6] for one in up.glob(f"results/**/results_{date}.json")), None)
    if place is None:
        return None
    try:
        tasks = json.loads(place.read_text(encoding="utf-8")).get("config_tasks", {})
    except (OSError, ValueError, AttributeError) as error:
        raise EvaluationError(f"{place} cannot be read: {error}. Remove it to go on without it.") from error
    config: Mapping[str, Any] = next((tasks[name] for name in tasks if task == name or task.startswith(f"{name}|")), {})
    found = {}
    for one in config.get("metrics") or config.get("metric") or ():
        if not isinstance(one, Mapping):
            continue
        names, better = one.get("metric_name"), one.get("higher_is_better")
        how = one.get("corpus_level_fn")
        for name in names if isinstance(names, list) else [names]:
            higher = better.get(name) if isinstance(better, Mapping) else better
            call = how.get(name) if isinstance(how, Mapping) else how
            lower = None if not isinstance(higher, bool) else not higher
            found[str(name)] = Measure(call if isinstance(call, str) else "mean", lower)
    return found
