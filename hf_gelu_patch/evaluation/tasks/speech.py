"""What was said, from the sound of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.metrics.registry import Columns
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Batch, Prediction, Task, first_rows
from hf_gelu_patch.evaluation.tasks.generation import MOST_DECODED, generate_greedily
from hf_gelu_patch.evaluation.tasks.logits import IGNORED, read_logits
from hf_gelu_patch.evaluation.tasks.sounds import AT_A_TIME, sound_sizes, sounds_of, stacked_sounds
from hf_gelu_patch.evaluation.tasks.vocabulary import halves

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SpeechRecognition(Task):
    """A sound, and the text that is said in it.

    A model with a decoder, such as Whisper, generates the text greedily; its logits are those of the right text, token
    by token, as for seq2seq. A model that was trained with CTC (Graves et al. 2006), such as wav2vec2, names a token or
    none for each of its frames: the likeliest ones are read off, repeated ones once; its logits are the frames'.

    Texts are compared as they stand, but for spaces: upper case is not lower case.

    Attributes:
        extractor: what makes features of sounds.
    """

    names_files = True

    def __init__(self, subject: Subject, config: Any, processor: Any, *arguments: Any, **options: Any) -> None:
        tokenizer, self.extractor = halves(processor, "feature_extractor", subject)
        self.generates = bool(config.is_encoder_decoder)  # type: ignore[misc]  # not of the class: each model has its own way
        super().__init__(subject, config, tokenizer, *arguments, **options)
        self.loaded = processor

    def encode(self, data: datasets.Dataset, limit: int | None) -> Iterator[dict[str, Any]]:
        data = first_rows(data, limit)
        self._positions = 1
        for rows in self.parts(data, AT_A_TIME):
            texts = {}
            for row, text in self.texts(data, self.subject.target_column, rows).items():
                if text.split():
                    texts[row] = " ".join(text.split())
                else:
                    self.leave_out(row, f"has no words in the column {self.subject.target_column!r}")
            for row, sound in sounds_of(self, data, texts, self.extractor).items():
                example = {**sound, "target": texts[row]}
                trouble = self._with_answer(example)
                if trouble is None:
                    positions = len(example["labels"]) if self.generates else example["frames"]
                    self._positions = max(self._positions, positions)
                    yield example
                else:
                    self.leave_out(row, trouble)

    @property
    def new_tokens(self) -> int:
        """Generate at most so many where the model's generation config does not say."""
        return self._positions + 8

    @property
    def decode_tokens(self) -> int:
        """How many ``generate`` makes: as many as the longest right text has, at most 32."""
        return min(MOST_DECODED, self._positions)

    def _with_answer(self, example: dict[str, Any]) -> str | None:
        """Put to a sound what its logits are held to: the tokens of the right text, or how many frames there are. Why
        that cannot be, if so."""
        if not self.generates:
            example["frames"] = self._frames(example)
            return None if example["frames"] > 0 else f"holds {example['size']} samples, less than a frame of the model"
        most = getattr(self.config, "max_target_positions", None) or self.length()
        labels = list(self.processor(text_target=example["target"]).input_ids)
        start = self.config.decoder_start_token_id
        example["labels"] = labels = labels[labels[:1] == [start] :][:most]
        return None if labels else "has no tokens in the right answer"

    def _frames(self, example: dict[str, Any]) -> int:
        """How many frames a CTC model makes of a sound, which its convolutions tell."""
        size = len(example["features"].get("input_values", example["features"].get("input_features", ())))
        kernels, strides = (getattr(self.config, name, ()) for name in ("conv_kernel", "conv_stride"))
        layers = list(zip(kernels, strides, strict=True))
        if getattr(self.config, "add_adapter", False):
            layers += [(1, self.config.adapter_stride)] * self.config.num_adapter_layers
        for kernel, stride in layers:
            size = max(0, (size - kernel) // stride + 1)
        return size

    def shape(self, example: dict[str, Any]) -> tuple[Any, ...]:
        return sound_sizes(self.extractor, example)

    def size(self, example: dict[str, Any]) -> int:
        return int(example["size"])

    def logits_per_example(self) -> int:
        return self._positions * int(self.config.get_text_config().vocab_size)

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        inputs = stacked_sounds(self, self.extractor, examples)
        if not self.generates:
            frames = [torch.zeros(example["frames"], dtype=torch.long) for example in examples]
            return Batch(ids, inputs, pad_sequence(frames, batch_first=True, padding_value=IGNORED), len(ids))
        labels = pad_sequence([torch.tensor(e["labels"]) for e in examples], batch_first=True, padding_value=IGNORED)
        return Batch(ids, {**inputs, "labels": labels}, labels, len(ids))

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits: Tensor = model(**batch.inputs, **({"use_cache": False} if self.generates else {})).logits
        return logits

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        logits = self.forward(model, batch)
        if self.generates:
            read = read_logits(logits, batch.targets)
            texts = self.processor.batch_decode(self._said(model, batch), skip_special_tokens=True)
        else:
            if logits.shape[:2] != batch.targets.shape:
                raise EvaluationError(
                    f"{self.subject.name} makes {logits.shape[1]} frames of a sound, where its config (conv_kernel, "
                    f"conv_stride) says {batch.targets.shape[1]}: its frames cannot be told from the padding."
                )
            said = [row[counts] for row, counts in zip(logits.argmax(-1), batch.targets != IGNORED, strict=True)]
            read = [((), (), 0.0, 0)] * len(said)  # no frame has a right token of its own
            texts = [
                self.processor.decode(row.tolist()) for row in said
            ]  # its blank is a special token, to be kept here
        outcomes = (
            Outcome((" ".join(text.split()),), (self.examples[example]["target"],), loss, tokens)
            for example, text, (_, _, loss, tokens) in zip(batch.ids, texts, read, strict=True)
        )
        return Prediction(logits, tuple(outcomes))

    def _said(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """[examples, tokens], generated greedily up to the end that the model's generation config sets."""
        own = model.generation_config
        limit = {} if own.max_new_tokens or own.max_length else {"max_new_tokens": self.new_tokens}
        inputs = {key: value for key, value in batch.inputs.items() if key != "labels"}
        generated: Tensor = model.generate(**inputs, do_sample=False, num_beams=1, **limit)  # type: ignore[operator]
        return generated

    def generate(self, model: PreTrainedModel, batch: Batch, new_tokens: int | None = None) -> Tensor:
        """Generate greedily, always ``decode_tokens`` of them, whatever comes. With one, it is the prefill (the
        encoder, and the decoder's first step) alone."""
        inputs = {key: value for key, value in batch.inputs.items() if key != "labels"}
        return generate_greedily(model, new_tokens or self.decode_tokens, **inputs)

    def not_learnable(self) -> str | None:
        if self.generates:
            return None
        return "is learned by CTC's loss, which is not built in here: train a model with a decoder, such as Whisper."

    @classmethod
    def recorded(cls, outcomes: Sequence[Outcome]) -> Columns:
        texts = {
            "predictions": np.array([outcome.answers[0] for outcome in outcomes], dtype=object),
            "references": np.array([outcome.targets[0] for outcome in outcomes], dtype=object),
        }
        return {"transcript": texts}
