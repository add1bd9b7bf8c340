"""What language models have in common: tokens that are to be told from others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_gelu_patch.evaluation.metrics.registry import Columns
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Task, shortened

if TYPE_CHECKING:
    pass

_PROBE = 200  # characters of a text that tell what a tokenizer puts around it


class LanguageModel(Task):
    """Tokens that are to be told from others."""

    unit = "tokens"
    limits_rows = False

    def logits_per_example(self) -> int:
        return int(self.examples.sizes.max()) * int(self.config.get_text_config().vocab_size)

    def columns(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> Columns:
        del examples
        return {"tokens": token_columns(outcomes)}

    def pairs(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
        del examples
        return token_pairs(outcomes)

    def describe(self, example: int) -> str:
        return shortened(self.processor.decode(self.examples[example]["input_ids"][:100]))

    def named(self, answer: str) -> str:
        return repr(self.processor.decode([int(answer)]))


def token_columns(outcomes: Sequence[Outcome]) -> dict[str, np.ndarray[Any, Any]]:
    hits = [sum(a == b for a, b in zip(o.answers, o.targets, strict=True)) for o in outcomes]
    return {
        "losses": np.array([outcome.loss for outcome in outcomes], dtype=np.float64),
        "tokens": np.array([outcome.tokens for outcome in outcomes], dtype=np.int64),
        "hits": np.array(hits, dtype=np.int64),
    }


def token_pairs(outcomes: Sequence[Outcome]) -> tuple[list[Any], list[Any]]:
    """Token by token."""
    return (
        [answer for outcome in outcomes for answer in outcome.answers],
        [target for outcome in outcomes for target in outcome.targets],
    )


def tokens_around(tokenizer: Any, texts: Iterable[str]) -> tuple[int, int]:
    """How many tokens a tokenizer puts before a text, and how many behind it: told from the first text of which it
    makes any. Without one, all of them are before."""
    around = 0
    for text in texts:
        piece = text.strip()[:_PROBE]
        bare, whole = (tokenizer(piece, add_special_tokens=own, verbose=False)["input_ids"] for own in (False, True))
        around = len(whole) - len(bare)
        for before in range(around + 1) if bare else ():
            if whole[before : before + len(bare)] == bare:
                return before, around - before
    return around, 0
