"""A sample of lm-evaluation-harness (0.4.13), as it gives it or as ``--log_samples`` writes it down.

Written down, every value in ``resps`` and ``filtered_resps`` is a text, and ``arguments`` is a table by name. Both
forms are read alike here, so that a run and its files give the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hf_gelu_patch.evaluation.digests import text_digest
from hf_gelu_patch.evaluation.samples.documents import Document, Measure

__all__ = ["by_filter", "document_of", "measures_of"]

_OWN = frozenset(
    {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"}
    | {"doc_hash", "prompt_hash", "target_hash"}
)
"""What a sample holds beside its metrics."""

_UNFILTERED = "none"
_SHOWN = 400  # characters


def by_filter(samples: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Samples by the filter that has read their answers, each in their order; "" for the one filter of a task that
    names none."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for sample in samples:
        name = str(sample.get("filter", _UNFILTERED))
        found.setdefault("" if name == _UNFILTERED else name, []).append(sample)
    return found


def document_of(sample: Mapping[str, Any]) -> Document:
    """The document of a sample, with what the model said of it.

    Raises:
        KeyError, TypeError, ValueError: it is no such sample.
    """
    content = sample["doc"]
    names = sample.get("metrics") or [name for name in sample if name not in _OWN]
    answer = _answer(sample, "acc_mutual_info" in names)
    return Document(
        number=str(sample["doc_id"]),
        content=str(sample.get("doc_hash") or text_digest(content)),
        prompt=str(sample.get("prompt_hash", "")),
        answers=() if answer is None else (answer,),
        targets=() if answer is None else (str(sample.get("target", "")),),
        text=_text(content),
        values={str(name): sample[name] for name in names},
    )


def _answer(sample: Mapping[str, Any], halved: bool) -> str | None:
    """What the model said: the place of the likeliest choice, whether the continuation is what it would have said
    itself, or the text that the filter found. None where a likelihood is all there is."""
    kept = sample["filtered_resps"]
    arguments = sample["arguments"]
    first = next(iter(arguments.values() if isinstance(arguments, Mapping) else arguments), ())
    if len(first) < 2:
        return None  # of running text
    if all(isinstance(one, list | tuple) and len(one) == 2 and str(one[1]) in ("True", "False") for one in kept):
        if len(kept) == 1:
            return str(kept[0][1])
        likelihoods = [float(one[0]) for one in kept]
        return str(int(np.argmax(likelihoods[: len(likelihoods) // 2] if halved else likelihoods)))
    said = kept[0] if len(kept) == 1 else kept
    return said if isinstance(said, str) else json.dumps(said, default=str)


def _text(content: Any) -> str:
    """The beginning of a document: its texts, one after the other."""
    texts = [one for one in content.values() if isinstance(one, str)] if isinstance(content, Mapping) else [content]
    return " ".join(" ".join(map(str, texts or [content])).split())[:_SHOWN]


def measures_of(
    metrics: Iterable[str],
    config: Mapping[str, Any],
    higher_is_better: Mapping[str, bool | None],
    aggregations: Mapping[str, Any] | None = None,
) -> dict[str, Measure]:
    """How each metric of a task becomes a score.

    Args:
        metrics: their names.
        config: the task's, whose ``metric_list`` may name aggregations.
        higher_is_better: by metric, as the results say.
        aggregations: the functions themselves, by metric; None where only their names are known.
    """
    listed = {
        str(one["metric"]): one["aggregation"] for one in config.get("metric_list") or () if one.get("aggregation")
    }
    found = {}
    for metric in metrics:
        better = higher_is_better.get(metric)
        lower = None if better is None else not better
        call = None if aggregations is None else aggregations.get(metric)
        if call is not None:
            found[metric] = Measure(_name_of(call), lower, call)
        else:
            found[metric] = Measure(str(listed.get(metric) or _usual(metric)), lower)
    return found


def _name_of(call: Any) -> str:
    """By which lm-evaluation-harness knows an aggregation, or what the function is called."""
    from lm_eval.api import metrics  # noqa: F401  (registers them)
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    known = {id(function): str(name) for name, function in AGGREGATION_REGISTRY.items()}
    return known.get(id(call)) or str(getattr(call, "__name__", call))


_USUAL = {
    "perplexity": "perplexity",
    "word_perplexity": "weighted_perplexity",
    "byte_perplexity": "weighted_perplexity",
    "bits_per_byte": "bits_per_byte",
    "brier_score": "brier_score",
    "f1": "f1",
    "mcc": "matthews_corrcoef",
    "bleu": "bleu",
    "chrf": "chrf",
    "chrf++": "chrf++",
    "ter": "ter",
    "bypass": "bypass",
}
"""What lm-evaluation-harness takes for its own metrics where a task does not say; for all others, the mean."""


def _usual(metric: str) -> str:
    return _USUAL.get(metric, "mean")
