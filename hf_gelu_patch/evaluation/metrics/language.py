"""Metrics of texts: of tokens told one by one, and of whole sequences."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from hf_gelu_patch.evaluation.metrics.registry import Answers, Array, Metric, register_answers, register_metric
from hf_gelu_patch.evaluation.metrics.rewritten import SUMMARY, TRANSLATION
from hf_gelu_patch.evaluation.metrics.spans import SPAN
from hf_gelu_patch.evaluation.metrics.sums import mean_of, ratio, sums

# ------------------------------------------------------------------------------------------------ kinds of answers


def edit_distance(left: Sequence[Hashable], right: Sequence[Hashable]) -> int:
    """The fewest insertions, deletions and replacements that make one sequence the other (Levenshtein 1966)."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance(left, right)


def _sequence_rows(predictions: Array, references: Array, losses: Array, tokens: Array) -> dict[str, Array]:
    pairs = [(said.split(), right.split()) for said, right in zip(predictions, references, strict=True)]
    return {
        "edits": np.array([edit_distance(*pair) for pair in pairs], dtype=np.int64),
        "lengths": np.array([len(right) for _, right in pairs], dtype=np.int64),
        "exact": np.array([said == right for said, right in pairs], dtype=np.int64),
        "losses": losses,
        "tokens": tokens,
    }


# Losses are negative log-likelihoods, summed over an example, in nats.
_TOKENS = {"losses": "float64", "tokens": "int64", "hits": "int64"}
_SEQUENCE = {"predictions": "string", "references": "string", "losses": "float64", "tokens": "int64"}

register_answers(Answers("tokens", _TOKENS, apart=True))
register_answers(
    Answers("text", {**_TOKENS, "bytes": "float64"}, apart=True)
)  # whose tokens stand for so many bytes of UTF-8
register_answers(Answers("sequence", _SEQUENCE, _sequence_rows, apart=True))  # tokens separated by spaces

# --------------------------------------------------------------------------------------------------------- metrics


def _loss(weights: Array, rows: Mapping[str, Array]) -> Array:
    """Σ negative log-likelihood / Σ tokens."""
    return ratio(sums(weights, rows["losses"]), sums(weights, rows["tokens"]))


def _perplexity(weights: Array, rows: Mapping[str, Array]) -> Array:
    """exp of the mean negative log-likelihood per token."""
    with np.errstate(over="ignore"):  # a hopeless model's perplexity is infinite
        return np.asarray(np.exp(_loss(weights, rows)))


def _token_accuracy(weights: Array, rows: Mapping[str, Array]) -> Array:
    return ratio(sums(weights, rows["hits"]), sums(weights, rows["tokens"]))


def _bits_per_byte(weights: Array, rows: Mapping[str, Array]) -> Array:
    """Σ negative log-likelihood / (ln 2 · Σ bytes), which depends on no tokenizer."""
    return ratio(sums(weights, rows["losses"]), math.log(2) * sums(weights, rows["bytes"]))


def _exact_match(weights: Array, rows: Mapping[str, Array]) -> Array:
    return mean_of(weights, rows["exact"])


def _edit_error_rate(weights: Array, rows: Mapping[str, Array]) -> Array:
    """Edits per token of the right answers."""
    return ratio(sums(weights, rows["edits"]), np.maximum(1, sums(weights, rows["lengths"])))


_SMALL = {"lower_is_better": True, "relative": True}

register_metric(Metric("perplexity", ("tokens", "text"), _perplexity, **_SMALL))
register_metric(Metric("token_accuracy", ("tokens", "text"), _token_accuracy, counts_right=True))
register_metric(Metric("bits_per_byte", ("text",), _bits_per_byte, **_SMALL))
register_metric(Metric("exact_match", ("sequence", SPAN), _exact_match, counts_right=True))
register_metric(Metric("edit_error_rate", ("sequence",), _edit_error_rate, lower_is_better=True))
register_metric(Metric("loss", ("sequence", SUMMARY, TRANSLATION), _loss, lower_is_better=True))
