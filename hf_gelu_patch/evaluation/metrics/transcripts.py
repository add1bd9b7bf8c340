"""Metrics of what was said, by jiwer: word and character error rates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hf_gelu_patch.evaluation.metrics.registry import Answers, Array, Metric, register_answers, register_metric
from hf_gelu_patch.evaluation.metrics.sums import ratio, sums


def _transcript_rows(predictions: Array, references: Array) -> dict[str, Array]:
    """Of each text the substitutions, deletions and insertions, and how long the right one is."""
    import jiwer

    counted: dict[str, list[int]] = {"word_edits": [], "words": [], "character_edits": [], "characters": []}
    for said, right in zip(predictions, references, strict=True):
        for unit, process in (("word", jiwer.process_words), ("character", jiwer.process_characters)):
            found = process(right, said)
            counted[f"{unit}_edits"].append(found.substitutions + found.deletions + found.insertions)
            counted[f"{unit}s"].append(found.hits + found.substitutions + found.deletions)
    return {name: np.array(values, dtype=np.int64) for name, values in counted.items()}


register_answers(Answers("transcript", {"predictions": "string", "references": "string"}, _transcript_rows, apart=True))


def _wer(weights: Array, rows: Mapping[str, Array]) -> Array:
    """Edits per word of the right texts."""
    return ratio(sums(weights, rows["word_edits"]), sums(weights, rows["words"]))


def _cer(weights: Array, rows: Mapping[str, Array]) -> Array:
    """Edits per character of the right texts, spaces among them."""
    return ratio(sums(weights, rows["character_edits"]), sums(weights, rows["characters"]))


register_metric(Metric("wer", ("transcript",), _wer, lower_is_better=True))
register_metric(Metric("cer", ("transcript",), _cer, lower_is_better=True))
