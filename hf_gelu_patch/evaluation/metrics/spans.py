"""Metrics of answers that are a piece of a text, as SQuAD measures them (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping

import numpy as np

from hf_gelu_patch.evaluation.metrics.registry import Answers, Array, Metric, register_answers, register_metric
from hf_gelu_patch.evaluation.metrics.sums import mean_of

__all__ = ["SPAN", "normalised"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)

# ------------------------------------------------------------------------------------------------ kinds of answers


def normalised(text: str) -> str:
    """In lower case, without punctuation (ASCII's), articles and more than one space: ``normalize_answer`` of SQuAD's
    own script (https://rajpurkar.github.io/SQuAD-explorer/)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _span_rows(predictions: Array, references: Array) -> dict[str, Array]:
    """The best over an example's references; without any, the right answer is an empty text."""
    pairs = [
        (normalised(said), [normalised(one) for one in right] or [""])
        for said, right in zip(predictions, references, strict=True)
    ]
    return {
        "exact": np.array([said in right for said, right in pairs], dtype=np.int64),
        "overlap": np.array([max(_overlap(said, one) for one in right) for said, right in pairs], dtype=np.float64),
    }


def _overlap(said: str, right: str) -> float:
    """F1 of the words that two normalised texts share. If one has no words, it is 1 if the other has none, else 0."""
    told, there = said.split(), right.split()
    if not told or not there:
        return float(told == there)
    shared = sum((Counter(told) & Counter(there)).values())
    return 2 * shared / (len(told) + len(there))


SPAN = "span"
"""The kind of answer that is a piece of a text; its references are lists."""

register_answers(Answers(SPAN, {"predictions": "string", "references": "string"}, _span_rows, apart=True))

# --------------------------------------------------------------------------------------------------------- metrics


def _answer_f1(weights: Array, rows: Mapping[str, Array]) -> Array:
    return mean_of(weights, rows["overlap"])


register_metric(Metric("answer_f1", (SPAN,), _answer_f1))
