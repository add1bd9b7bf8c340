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
from hf_gelu_patch.evaluation.samples.comparing import HITS
from hf_gelu_patch.evaluation.samples.documents import Document, Measure, Samples

__all__ = ["find", "read"]

_FOLDER = "records"


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
        for variant, some in by_variant.items():
            documents = tuple(_document(row, fingerprint) for row in some)
            found.append(Samples(name, variant, documents, _measures(documents), str(folder)))
    return found


def _document(row: records.Row, fingerprint: records.Fingerprint) -> Document:
    said = row.outcome
    values: dict[str, Any] = {}
    if said.answers and all(target is not None for target in said.targets):
        values["accuracy"] = [int(answer == target) for answer, target in zip(said.answers, said.targets, strict=True)]
    if said.tokens:
        values["perplexity"] = [-said.loss, said.tokens]
    if said.top5:
        values["top5_accuracy"] = [int(one) for one in said.top5]
    if said.score is not None and not said.answers:
        values["score"] = said.score
    return Document(
        number=str(row.example),
        content=text_digest([fingerprint.get("rows"), list(said.targets)]),
        prompt=str(fingerprint.get("data", "")),
        answers=said.answers,
        targets=said.targets,
        text=f"example {row.example}",
        values=values,
    )


def _measures(documents: Sequence[Document]) -> Mapping[str, Measure]:
    usual = {
        "accuracy": Measure(HITS, False),
        "top5_accuracy": Measure(HITS, False),
        "perplexity": Measure("weighted_perplexity", True),
        "score": Measure("mean", None),
    }
    return {name: usual[name] for document in documents for name in document.values}
