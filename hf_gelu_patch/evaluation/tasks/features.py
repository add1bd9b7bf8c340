"""Hidden states of texts or images, without right answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import torch
from torch import Tensor

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Batch, Prediction, Task, first_rows
from hf_gelu_patch.evaluation.tasks.images import AT_A_TIME, pixel_sizes, pixels_of, stacked_pixels
from hf_gelu_patch.evaluation.tasks.logits import IGNORED
from hf_gelu_patch.evaluation.tasks.vocabulary import check_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def tower(model: PreTrainedModel, kind: str) -> Callable[..., Any]:
    """What has hidden states of a "text" or an "image": the model, or one of its two towers."""
    features: Callable[..., Any] = getattr(model, f"get_{kind}_features", model)
    return features


def embedded(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """[texts, hidden size]: the mean of each text's last hidden state over all tokens but padding (Reimers & Gurevych
    2019). A model with an encoder and a decoder is asked for its encoder's (Ni et al. 2021); one with a tower for
    images and one for texts for that of the texts. Where a sentence-transformers model has modules of its own behind
    the transformer, ``sentence_head``, what they give.

    Args:
        inputs: what the tokenizer made of the texts, by name.
    """
    embed = model.get_encoder() if model.config.is_encoder_decoder else tower(model, "text")
    states: Tensor = embed(**inputs).last_hidden_state
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    if (head := getattr(model, "sentence_head", None)) is not None:
        embedding: Tensor = head({**inputs, "token_embeddings": states, "attention_mask": mask})["sentence_embedding"]
        return embedding
    mask = mask.to(states.dtype)
    weights = mask / mask.sum(1, keepdim=True)
    return (weights[:, None, :] @ states)[:, 0]


class FeatureDrift(Task):
    """Texts or images without right answers: only drift and speed are measured.

    ``forward`` gives the last hidden states where other tasks give logits. Padding does not count, and an image's
    states are one position. Where a model has a tower for images and one for texts, the data decide which is asked.
    """

    answered = False
    softmax = False
    output = "features"
    names_files = True

    def encode(self, data: datasets.Dataset, limit: int | None) -> Iterator[dict[str, Any]]:
        data = first_rows(data, limit)
        self.processor, images = self._reader(data, next(filter(None, self.parts(data)), []))
        if images:
            for rows in self.parts(data, AT_A_TIME):
                yield from pixels_of(self, data, rows).values()
            return
        check_vocabulary(self.processor, self.subject.name)
        for rows in self.parts(data):
            texts = self.texts(data, self.subject.input_column, rows)
            for row, tokens in self.tokens(list(texts), texts).items():
                yield {"row": row, "tokens": tokens, "input_ids": tokens["input_ids"], "shown": texts[row]}

    def _reader(self, data: datasets.Dataset, rows: Sequence[int]) -> tuple[Any, bool]:
        """The tokenizer or the image processor, and whether it is the latter: of a processor with both the one that the
        first row is for, which is an image, the path of a file, or a text."""
        column = self.subject.input_column
        is_image = isinstance(data.features[column], datasets.Image)
        if hasattr(self.processor, "pad_token"):
            if is_image:
                raise EvaluationError(
                    f"{self.subject.data}: the column {column!r} holds images, and {self.subject.name} has a tokenizer "
                    "alone: save its image processor to its folder, or name a column of texts with --input_column."
                )
            return self.processor, False
        tokenizer, images = (getattr(self.processor, name, None) for name in ("tokenizer", "image_processor"))
        if tokenizer is None or images is None:
            return tokenizer or images or self.processor, tokenizer is None
        if not is_image and rows:
            value = data[rows[0]][column]
            is_image = isinstance(value, dict | bytes) or (isinstance(value, str) and self.file(value) is not None)
        return (images if is_image else tokenizer), is_image

    def shape(self, example: dict[str, Any]) -> tuple[Any, ...]:
        return pixel_sizes(example)

    def logits_per_example(self) -> int:
        return self.size(self.examples[0]) * int(getattr(self.config.get_text_config(), "hidden_size", 1024))

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        if "pixels" in examples[0]:
            return Batch(ids, stacked_pixels(self, examples), torch.zeros(len(ids), 1, dtype=torch.long), len(ids))
        inputs = self.padded(examples)
        if self.config.is_encoder_decoder and self.limits.takes("decoder_input_ids"):
            inputs |= {f"decoder_{name}": inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        return Batch(ids, inputs, self.stacked([[0] * self.size(example) for example in examples], IGNORED), len(ids))

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        images = "pixel_values" in batch.inputs
        states: Tensor = tower(model, "image" if images else "text")(**batch.inputs).last_hidden_state
        return states.flatten(1)[:, None] if images else states

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        return Prediction(self.forward(model, batch), (Outcome((), (), 0.0, 0),) * len(batch.ids))
