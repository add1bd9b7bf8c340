"""Whether a tokenizer knows words at all."""

from __future__ import annotations

from typing import Any

from hf_gelu_patch.evaluation.errors import EvaluationError


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
