"""Metrics of texts that a model writes, beside the texts that it may have written: summaries and translations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hf_gelu_patch.evaluation.metrics.registry import Answers, Array, Metric, register_answers, register_metric
from hf_gelu_patch.evaluation.metrics.sums import mean_of

__all__ = ["SUMMARY", "TRANSLATION"]

SUMMARY, TRANSLATION = "summary", "translation"
"""Kinds of answers."""

# ------------------------------------------------------------------------------------------------ kinds of answers

_ROUGE = ("rouge1", "rouge2", "rougeL")


def _summary_rows(predictions: Array, references: Array, losses: Array, tokens: Array) -> dict[str, Array]:
    """F1 of the n-grams, or of the longest common subsequence, that a text shares with a reference: the best over its
    references. Words are what rouge-score takes for them, which are Latin letters and digits; none is stemmed."""
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    scorer = RougeScorer(_ROUGE)
    found = [scorer.score_multi(list(right), said) for said, right in zip(predictions, references, strict=True)]
    shared = {name: np.array([one[name].fmeasure for one in found], dtype=np.float64) for name in _ROUGE}
    return {**shared, "losses": losses, "tokens": tokens}


def _translation_rows(predictions: Array, references: Array, losses: Array, tokens: Array) -> dict[str, Array]:
    """What sacrebleu counts about each text: how many n-grams there are, and how many of them are right."""
    most = max(map(len, references), default=1)
    texts = list(predictions)
    streams = [[one[number] if number < len(one) else None for one in references] for number in range(most)]
    return {
        **{name: _counts(metric, texts, streams) for name, metric in _sacrebleu().items()},
        "losses": losses,
        "tokens": tokens,
    }


@functools.cache
def _sacrebleu() -> dict[str, Any]:
    """BLEU of up to four words as its tokenizer 13a finds them, and chrF of up to six characters: the defaults of
    sacrebleu (Post 2018)."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return {"bleu": BLEU(), "chrf": CHRF()}


def _counts(metric: Any, texts: list[str], streams: list[list[str | None]]) -> Array:
    """[example, number]: what each of sacrebleu's metrics sums over examples, as its own bootstrap does."""
    if not texts:
        return np.zeros((0, 1), dtype=np.int64)
    return np.array(metric._extract_corpus_statistics(texts, streams), dtype=np.int64)


_TEXTS = {
    "predictions": "string",
    "references": "string",
    "losses": "float64",
    "tokens": "int64",
}  # lists of references

register_answers(Answers(SUMMARY, _TEXTS, _summary_rows, apart=True))
register_answers(Answers(TRANSLATION, _TEXTS, _translation_rows, apart=True))

# --------------------------------------------------------------------------------------------------------- metrics


def _rouge(name: str) -> Callable[[Array, Mapping[str, Array]], Array]:
    def mean(weights: Array, rows: Mapping[str, Array]) -> Array:
        return mean_of(weights, rows[name])

    return mean


def _of_corpus(name: str) -> Callable[[Array, Mapping[str, Array]], Array]:
    """sacrebleu's score of all texts together, from the sums of what it counts; a fraction of 1, where sacrebleu gives
    one of 100."""

    def score(weights: Array, rows: Mapping[str, Array]) -> Array:
        metric = _sacrebleu()[name]
        totals = (weights @ rows[name]).astype(np.int64).tolist()  # whole numbers: exact in any order
        found = [float(metric._compute_score_from_stats(one).score) / 100 if any(one) else 0.0 for one in totals]
        return np.where(weights.sum(axis=1) > 0, np.array(found, dtype=np.float64), np.nan)

    return score


for _name in _ROUGE:
    register_metric(Metric(_name, (SUMMARY,), _rouge(_name)))
for _name in ("bleu", "chrf"):
    register_metric(Metric(_name, (TRANSLATION,), _of_corpus(_name)))
