"""Metrics of tagged words: of each word's tag, and of the entities that tags make up."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hf_gelu_patch.evaluation.metrics.registry import Answers, Array, Metric, register_answers, register_metric
from hf_gelu_patch.evaluation.metrics.sums import ratio, sums

# ------------------------------------------------------------------------------------------------ kinds of answers


def _tag_rows(predictions: Array, references: Array) -> dict[str, Array]:
    pairs = list(zip(predictions, references, strict=True))
    return {
        "words": np.array([len(right) for _, right in pairs], dtype=np.int64),
        "hits": np.array([sum(map(_same, said, right)) for said, right in pairs], dtype=np.int64),
    }


def _same(said: str, right: str) -> bool:
    return said == right


def _entity_rows(predictions: Array, references: Array) -> dict[str, Array]:
    """The same, and how many entities of each example were told rightly, were told, and are right. An entity is its
    kind, its first and its last word, as seqeval finds them in tags by its usual, lenient reading (Nakayama 2018,
    https://github.com/chakki-works/seqeval)."""
    from seqeval.metrics.sequence_labeling import get_entities  # type: ignore[import-untyped]

    found = []
    for said, right in zip(predictions, references, strict=True):
        told, there = set(get_entities(list(said))), set(get_entities(list(right)))
        found.append((len(told & there), len(told), len(there)))
    counts = np.array(found, dtype=np.int64).reshape(len(found), 3)
    return {
        **_tag_rows(predictions, references),
        "right_entities": counts[:, 0],
        "told_entities": counts[:, 1],
        "entities": counts[:, 2],
    }


_TAGS = {"predictions": "string", "references": "string"}  # of each example a list of names, one for each word

register_answers(Answers("tags", _TAGS, _tag_rows, apart=True))
register_answers(
    Answers("entities", _TAGS, _entity_rows, apart=True)
)  # O, and B-, I-, E- or S- before the entity's kind

# --------------------------------------------------------------------------------------------------------- metrics


def _entity_precision(weights: Array, rows: Mapping[str, Array]) -> Array:
    return _share(weights, rows["right_entities"], rows["told_entities"])


def _entity_recall(weights: Array, rows: Mapping[str, Array]) -> Array:
    return _share(weights, rows["right_entities"], rows["entities"])


def _entity_f1(weights: Array, rows: Mapping[str, Array]) -> Array:
    """2·right / (told + there), of all entities counted together."""
    return _share(weights, 2 * rows["right_entities"], rows["told_entities"] + rows["entities"])


def _share(weights: Array, part: Array, whole: Array) -> Array:
    """The quotient of their sums; 0 where there is no entity, as seqeval has it, and NaN without an example."""
    found = ratio(sums(weights, part), np.maximum(1, sums(weights, whole)))
    return np.where(weights.sum(axis=1) > 0, found, np.nan)


def _tag_accuracy(weights: Array, rows: Mapping[str, Array]) -> Array:
    return ratio(sums(weights, rows["hits"]), sums(weights, rows["words"]))


register_metric(Metric("entity_f1", ("entities",), _entity_f1))
register_metric(Metric("entity_precision", ("entities",), _entity_precision))
register_metric(Metric("entity_recall", ("entities",), _entity_recall))
register_metric(Metric("tag_accuracy", ("entities", "tags"), _tag_accuracy, counts_right=True))
