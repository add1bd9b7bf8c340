"""Greedy generation of a length that is set beforehand, as it is timed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_DECODED = 32  # tokens, at most, in a timed generation from running text


def generate_greedily(model: PreTrainedModel, new_tokens: int, **inputs: Tensor) -> Tensor:
    """So many tokens, the likeliest each time, past any end."""
    if "input_ids" in inputs:
        inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    options: dict[str, Any] = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens}
    if model.generation_config.pad_token_id is None:
        options["pad_token_id"] = 0  # never comes up: all go on to the end
    generated: Tensor = model.generate(**inputs, do_sample=False, num_beams=1, **options)  # type: ignore[operator]
    return generated
