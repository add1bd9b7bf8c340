"""What one model said of one example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_gelu_patch.evaluation.json_values import as_json

Answer = str | int | float | bool | None


@dataclass(frozen=True)
class Outcome:
    """What one model said of one example.

    Attributes:
        answers: the predicted label; or the predicted set of labels, as a text with a digit 0 or 1 for each label; or
            the likeliest token at each position; or the generated sequence, its tokens separated by spaces.
        targets: the right answers, one for each.
        loss: the negative log-likelihood of the targets, summed, in nats.
        tokens: how many terms the loss sums.
        score: the answer, where it is a number: a similarity, or what a regression head gives.
        top5: for each answer, whether the target is among the five likeliest; () where that was not asked.
        details: what metrics are computed of where answers and score do not say it, by name: plain data, as JSON has
            it, and finite. Such are the boxes that a detector found, or the scores of the documents that were ranked.
    """

    answers: tuple[Answer, ...]
    targets: tuple[Answer, ...]
    loss: float
    tokens: int
    score: float | None = None
    top5: tuple[bool, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data that ``json.dumps`` writes as valid JSON and ``from_json`` reads back to the bit."""
        plain: dict[str, Any] = as_json(vars(self))
        if not self.details:
            del plain["details"]
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        """The outcome that ``to_json`` made ``data`` of.

        Raises:
            KeyError, TypeError, ValueError: it did not.
        """
        score = data["score"]
        return cls(
            answers=tuple(data["answers"]),
            targets=tuple(data["targets"]),
            loss=float(data["loss"]),
            tokens=int(data["tokens"]),
            score=None if score is None else float(score),
            top5=tuple(data["top5"]),
            details=dict(data.get("details", {})),
        )
