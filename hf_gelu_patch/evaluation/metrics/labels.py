"""Metrics of labels, and of sets of labels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hf_gelu_patch.evaluation.metrics.registry import Answers, Array, Metric, register_answers, register_metric
from hf_gelu_patch.evaluation.metrics.sums import mean_of, ratio, sums_by_group

# ------------------------------------------------------------------------------------------------ kinds of answers


def _label_rows(predictions: Array, references: Array) -> dict[str, Array]:
    codes = np.unique(np.concatenate([predictions, references]), return_inverse=True)[1]
    said, right = codes[: len(predictions)], codes[len(predictions) :]
    return {"said": said, "right": right, "hits": said == right}


def _ranked_rows(predictions: Array, references: Array, top5: Array) -> dict[str, Array]:
    return {**_label_rows(predictions, references), "top5": top5}


def _set_rows(predictions: Array, references: Array) -> dict[str, Array]:
    said, right = _bits(predictions), _bits(references)
    return {"exact": (said == right).all(axis=1), "hits": said * right, "said": said, "right": right}


def _bits(texts: Array) -> Array:
    """[example, label]: 1.0 and 0.0."""
    width = len(texts[0]) if len(texts) else 0
    return np.array([[bit == "1" for bit in text] for text in texts], dtype=np.float64).reshape(len(texts), width)


_LABEL = {"predictions": "int64", "references": "int64"}

register_answers(Answers("label", _LABEL, _label_rows))  # the ids of labels
register_answers(Answers("ranked label", {**_LABEL, "top5": "bool"}, _ranked_rows))  # is it among the five likeliest?
register_answers(
    Answers("label set", {"predictions": "string", "references": "string"}, _set_rows, apart=True)
)  # "0110": a digit each

# --------------------------------------------------------------------------------------------------------- metrics


def _accuracy(weights: Array, rows: Mapping[str, Array]) -> Array:
    return mean_of(weights, rows["hits"])


def _subset_accuracy(weights: Array, rows: Mapping[str, Array]) -> Array:
    return mean_of(weights, rows["exact"])


def _top5_accuracy(weights: Array, rows: Mapping[str, Array]) -> Array:
    return mean_of(weights, rows["top5"])


def _by_label(weights: Array, rows: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    """How often each label was told rightly, was told, and is right, each of [sample, label]."""
    said, right, hits = rows["said"], rows["right"], rows["hits"]
    if right.ndim == 2:  # of sets: whole numbers, of which float64 has the exact sums in any order
        return weights @ hits, weights @ said, weights @ right
    count = 1 + max(int(said.max(initial=0)), int(right.max(initial=0)))
    return (
        sums_by_group(weights * hits, right, count),
        sums_by_group(weights, said, count),
        sums_by_group(weights, right, count),
    )


def _macro_f1(weights: Array, rows: Mapping[str, Array]) -> Array:
    """The mean of 2·TP / (2·TP + FP + FN) over the labels that the references have. A label that only predictions have
    takes no part: one stray answer would move the mean by a whole label's share."""
    hits, said, right = _by_label(weights, rows)
    present = right > 0
    scores = np.divide(2 * hits, said + right, out=np.zeros_like(right), where=present)
    return ratio(scores.sum(axis=1), present.sum(axis=1))


def _micro_f1(weights: Array, rows: Mapping[str, Array]) -> Array:
    """2·TP / (2·TP + FP + FN) of all labels counted together."""
    hits, said, right = _by_label(weights, rows)
    return ratio(2 * hits.sum(axis=1), (said + right).sum(axis=1))


_LABELS = ("label", "ranked label")

register_metric(Metric("accuracy", _LABELS, _accuracy, counts_right=True))
register_metric(
    Metric("subset_accuracy", ("label set",), _subset_accuracy, counts_right=True)
)  # right to the last label
register_metric(Metric("micro_f1", ("label set",), _micro_f1))
register_metric(Metric("macro_f1", (*_LABELS, "label set"), _macro_f1, counts_right=True))
register_metric(Metric("top5_accuracy", ("ranked label",), _top5_accuracy))
