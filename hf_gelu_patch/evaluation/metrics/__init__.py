"""How good answers are.

``registry`` has the records of metrics, and of the kinds of answers that they are computed of; the other modules
register those that come along. ``plugged`` loads a metric of the user's own, or the hub's. A metric is
added in one place::

    from hf_gelu_patch.evaluation.metrics import Metric, mean_of, register_metric

    def error_rate(weights, rows):
        return 1 - mean_of(weights, rows["hits"])

    register_metric(Metric("error_rate", ("label",), error_rate, lower_is_better=True))

From then on every task whose answers are labels is measured by it, with its interval; reports and the list of tasks
have it.
"""

from hf_gelu_patch.evaluation.metrics import (
    labels,
    language,
    numbers,
    objects,
    pictures,
    ranking,
    rewritten,
    spans,
    tags,
    transcripts,
)
from hf_gelu_patch.evaluation.metrics.registry import (
    ANSWERS,
    METRICS,
    Answers,
    Metric,
    register_answers,
    register_metric,
)
from hf_gelu_patch.evaluation.metrics.sums import mean_of, ratio, sums

__all__ = [
    "ANSWERS",
    "METRICS",
    "Answers",
    "Metric",
    "mean_of",
    "ratio",
    "register_answers",
    "register_metric",
    "sums",
]

# They are imported for what they register.
del labels, language, numbers, objects, pictures, ranking, rewritten, spans, tags, transcripts
