"""Metrics of what is found in images, or made of them: regions, hidden patches, and texts that go with images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hf_gelu_patch.evaluation.metrics.registry import Answers, Array, Metric, register_answers, register_metric
from hf_gelu_patch.evaluation.metrics.sums import ratio, sums

# ------------------------------------------------------------------------------------------------ kinds of answers

register_answers(
    Answers("regions", dict.fromkeys(("hits", "said", "right"), "float64"), apart=True)
)  # pixels, [example, label]
register_answers(
    Answers("reconstruction", {"errors": "float64", "values": "int64"}, apart=True)
)  # summed, over so many numbers

_RANKS = {"text_rank": "int64", "image_rank": "int64", "of_image": "float64", "of_text": "float64"}
register_answers(
    Answers("ranks", _RANKS, apart=True)
)  # of the right text for an image, and of the right image for a text


# --------------------------------------------------------------------------------------------------------- metrics


def _mean_iou(weights: Array, rows: Mapping[str, Array]) -> Array:
    """Of each label the pixels that are its and were said to be, by those that are or were; the mean over the labels
    that have any. All pixels of a sample are counted together."""
    hits, said, right = (weights @ rows[name] for name in ("hits", "said", "right"))  # whole numbers: exact
    union = said + right - hits
    there = union > 0
    shares = np.divide(hits, union, out=np.zeros_like(union), where=there)
    return ratio(shares.sum(axis=1), there.sum(axis=1))


def _pixel_accuracy(weights: Array, rows: Mapping[str, Array]) -> Array:
    return ratio(sums(weights, rows["hits"].sum(axis=1)), sums(weights, rows["right"].sum(axis=1)))


def _reconstruction_error(weights: Array, rows: Mapping[str, Array]) -> Array:
    """Σ |said − right| / Σ numbers that were hidden."""
    return ratio(sums(weights, rows["errors"]), sums(weights, rows["values"]))


def _recall(rank: str, share: str, most: int) -> Metric:
    """How often what is right is among the ``most`` first. An image that stands in several rows counts once in all; so
    does a text."""

    def recall(weights: Array, rows: Mapping[str, Array]) -> Array:
        return ratio(sums(weights, rows[share] * (rows[rank] <= most)), sums(weights, rows[share]))

    return Metric(f"{rank.removesuffix('_rank')}_recall_at_{most}", ("ranks",), recall, counts_right=most == 1)


register_metric(Metric("mean_iou", ("regions",), _mean_iou))
register_metric(Metric("pixel_accuracy", ("regions",), _pixel_accuracy))
register_metric(
    Metric("reconstruction_error", ("reconstruction",), _reconstruction_error, lower_is_better=True, relative=True)
)
for _most in (1, 5):
    register_metric(_recall("text_rank", "of_image", _most))
    register_metric(_recall("image_rank", "of_text", _most))
