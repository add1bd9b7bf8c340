"""Whether there is a tokenizer, and whether it knows words at all."""

from __future__ import annotations

from typing import Any

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.options.subject import Subject

__all__ = ["check_vocabulary", "halves"]


def halves(processor: Any, other: str, subject: Subject) -> tuple[Any, Any]:
    """The tokenizer of a processor, which knows words, and what stands beside it.

    Args:
        processor: of the subject's model.
        other: what that is, as the processor's attribute calls it.
        subject: for messages.

    Raises:
        EvaluationError: one of them is missing, or the tokenizer is empty.
    """
    tokenizer, beside = getattr(processor, "tokenizer", None), getattr(processor, other, None)
    if tokenizer is None or beside is None:
        raise EvaluationError(
            f"{subject.name} has no {'tokenizer' if tokenizer is None else other.replace('_', ' ')}: save its own to "
            f"its folder, AutoProcessor.from_pretrained(original).save_pretrained({subject.model!r})."
        )
    check_vocabulary(tokenizer, subject.name)
    return tokenizer, beside


def check_vocabulary(tokenizer: Any, name: str) -> None:
    """See that a tokenizer knows words. transformers makes an empty one of a folder without a tokenizer's files: of
    special tokens, and the mark of a word's beginning.

    Raises:
        EvaluationError: it knows none.
    """
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    if len(set(tokenizer.get_vocab()) - special - set(tokenizer.all_special_tokens)) < 2:
        raise EvaluationError(
            f"{name} has no tokenizer: without its files (tokenizer.json, vocab.txt, …), transformers makes an empty "
            "one, to which every word is unknown. Save the model's own there: "
            f"AutoTokenizer.from_pretrained(original).save_pretrained({name!r})."
        )
