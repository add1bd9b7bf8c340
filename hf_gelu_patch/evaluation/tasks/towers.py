"""Models with a tower for images and one for texts, such as CLIP (Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.tasks.images import pixel_sizes
from hf_gelu_patch.evaluation.tasks.vocabulary import halves


class TwoTowers(Task):
    """Images and texts. Texts are filled up to one length; where the tokenizer gives no attention mask, to the model's
    whole length, as SigLIP was trained.

    Attributes:
        image_processor: beside the tokenizer, which is ``processor``.
    """

    names_files = True

    def __init__(self, subject: Subject, config: Any, processor: Any, *arguments: Any, **options: Any) -> None:
        tokenizer, self.image_processor = halves(processor, "image_processor", subject)
        super().__init__(subject, config, tokenizer, *arguments, **options)
        self.loaded = processor

    def shape(self, example: dict[str, Any]) -> tuple[Any, ...]:
        return pixel_sizes(example)

    def filled(self, tokens: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """What the tokenizer made of some texts, as the model takes it."""
        if "attention_mask" in tokens[0]:
            return self.padded([{"tokens": one} for one in tokens])
        return dict(self.processor.pad(tokens, padding="max_length", max_length=self.length(), return_tensors="pt"))
