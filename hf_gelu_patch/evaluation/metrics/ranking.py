"""Metrics of documents in an order, the most relevant one first."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from hf_gelu_patch.evaluation.metrics.registry import Answers, Array, Metric, register_answers, register_metric
from hf_gelu_patch.evaluation.metrics.sums import mean_of

_DEPTH = 10

# ------------------------------------------------------------------------------------------------ kinds of answers


def _ranking_rows(scores: Array, relevance: Array) -> dict[str, Array]:
    from sklearn.metrics import ndcg_score

    pairs = [(np.array(list(one)), np.array(list(right))) for one, right in zip(scores, relevance, strict=True)]
    gains = [ndcg_score([right], [one], k=_DEPTH) for one, right in pairs]
    ranks = [_reciprocal_rank(one, right > 0) for one, right in pairs]
    return {"ndcg": np.array(gains, dtype=np.float64), "reciprocal_rank": np.array(ranks, dtype=np.float64)}


def _reciprocal_rank(scores: Array, relevant: Array) -> float:
    """1 / the rank of the first relevant document, 0 beyond the tenth. Where it shares its score with others, it is the
    mean over the orders in which they can stand, as scikit-learn's nDCG has it."""
    best = scores[relevant].max(initial=-math.inf)
    before, tied = int((scores > best).sum()), scores == best
    size, right = int(tied.sum()), int((tied & relevant).sum())
    orders = math.comb(size, right)
    return sum(
        math.comb(size - place, right - 1) / orders / (before + place)
        for place in range(1, min(size - right + 1, _DEPTH - before) + 1)
    )


# Of each query, lists with a number for each document: how well it fits in the model's eyes, and in fact.
register_answers(Answers("ranking", {"scores": "string", "relevance": "string"}, _ranking_rows, apart=True))

# --------------------------------------------------------------------------------------------------------- metrics


def _ndcg(weights: Array, rows: Mapping[str, Array]) -> Array:
    """The mean over queries of Σ relevance / log2(rank + 1) over the first ten, as a share of the largest possible
    (Järvelin & Kekäläinen 2002)."""
    return mean_of(weights, rows["ndcg"])


def _mrr(weights: Array, rows: Mapping[str, Array]) -> Array:
    return mean_of(weights, rows["reciprocal_rank"])


register_metric(Metric("ndcg_at_10", ("ranking",), _ndcg))
register_metric(Metric("mrr_at_10", ("ranking",), _mrr))
