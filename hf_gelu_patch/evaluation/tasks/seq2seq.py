"""A text from another."""

from __future__ import annotations

import re
import reprlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hf_gelu_patch.evaluation.errors import LeftOutWarning
from hf_gelu_patch.evaluation.metrics.registry import Columns
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Batch, Prediction, Task, first_rows
from hf_gelu_patch.evaluation.tasks.generation import MOST_DECODED, generate_greedily
from hf_gelu_patch.evaluation.tasks.lists import array_of
from hf_gelu_patch.evaluation.tasks.logits import IGNORED, read_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROUGE_SEES = re.compile(r"[a-z0-9]")  # of texts in lower case: rouge-score's words are made of these


class Seq2Seq(Task):
    """A text and the text it should become.

    The answer is generated greedily. For the loss and the logits, the decoder is given the right answer token by
    token, and this forward is what is timed. With ``--source_prefix``, each source begins with that text, as T5 was
    trained.

    Attributes:
        new_tokens: generate at most so many where the model's generation config does not say.
        decode_tokens: how many ``generate`` makes: as many as the longest right answer has, at most 32.
    """

    generates = True
    kind: ClassVar[str] = "sequence"
    """Its kind of answer."""

    def encode(self, data: datasets.Dataset, limit: int | None) -> Iterator[dict[str, Any]]:
        data, longest = first_rows(data, limit), 1
        for rows in self.parts(data):
            for example in self._encoded(data, rows):
                longest = max(longest, len(example["labels"]))
                yield example
        self.new_tokens, self.decode_tokens, self._longest = longest + 8, min(MOST_DECODED, longest), longest

    def _encoded(self, data: datasets.Dataset, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        sources = self.texts(data, self.subject.input_column, rows)
        references = self.references(data, sources)
        prefix = self.subject.source_prefix or ""
        encoded = self.tokens(list(references), {row: prefix + text for row, text in sources.items()})
        given = [references[row][0] for row in encoded]
        labels = self.processor(text_target=given, truncation=True, max_length=self.length()) if given else {}
        for number, (row, tokens) in enumerate(encoded.items()):
            if not labels["input_ids"][number]:
                self.leave_out(row, "has no tokens in the right answer")
                continue
            yield {
                "row": row,
                "tokens": {key: tokens[key] for key in ("input_ids", "attention_mask") if key in tokens},
                "input_ids": tokens["input_ids"],
                "labels": labels["input_ids"][number],
                "references": [" ".join(text.split()) for text in references[row]],
                "shown": sources[row],
            }

    def references(self, data: datasets.Dataset, rows: Iterable[int]) -> dict[int, list[str]]:
        """The right answers by row, the first of which the decoder is given."""
        return {row: [text] for row, text in self.texts(data, self.subject.target_column, rows).items()}

    def logits_per_example(self) -> int:
        return self._longest * int(self.config.get_text_config().vocab_size)

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        labels = pad_sequence([torch.tensor(e["labels"]) for e in examples], batch_first=True, padding_value=IGNORED)
        return Batch(ids, {**self.padded(examples), "labels": labels}, labels, len(ids))

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits: Tensor = model(**batch.inputs, use_cache=False).logits
        return logits

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        logits = self.forward(model, batch)
        inputs = {key: value for key, value in batch.inputs.items() if key != "labels"}
        own = getattr(model.generation_config, "max_new_tokens", None)
        generated = model.generate(  # type: ignore[operator]  # what torch says of any attribute of a module
            **inputs, do_sample=False, num_beams=1, max_new_tokens=own or self.new_tokens
        )
        texts = self.processor.batch_decode(generated, skip_special_tokens=True)
        read = read_logits(logits, batch.targets)
        outcomes = (
            self._outcome(text, self.examples[example]["references"], loss, tokens)
            for example, text, (_, _, loss, tokens) in zip(batch.ids, texts, read, strict=True)
        )
        return Prediction(logits, tuple(outcomes))

    def _outcome(self, text: str, references: list[str], loss: float, tokens: int) -> Outcome:
        """All references stand in the details, where there are several."""
        details = {"references": references} if len(references) > 1 else {}
        return Outcome((" ".join(text.split()),), (references[0],), loss, tokens, details=details)

    def generate(self, model: PreTrainedModel, batch: Batch, new_tokens: int | None = None) -> Tensor:
        """Generate greedily, always ``decode_tokens`` of them, whatever comes. With one, it is the prefill (the
        encoder, and the decoder's first step) alone."""
        inputs = {key: value for key, value in batch.inputs.items() if key != "labels"}
        return generate_greedily(model, new_tokens or self.decode_tokens, **inputs)

    @classmethod
    def recorded(cls, outcomes: Sequence[Outcome]) -> Columns:
        return {cls.kind: cls._columns(outcomes)}

    @classmethod
    def _columns(cls, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        return {
            "predictions": np.array([outcome.answers[0] for outcome in outcomes], dtype=object),
            "references": np.array([outcome.targets[0] for outcome in outcomes], dtype=object),
            "losses": np.array([outcome.loss for outcome in outcomes], dtype=np.float64),
            "tokens": np.array([outcome.tokens for outcome in outcomes], dtype=np.int64),
        }


class Rewriting(Seq2Seq):
    """A text, and one or several texts that it may become: a text, or a list of texts in the data. The loss is that of
    the first."""

    def references(self, data: datasets.Dataset, rows: Iterable[int]) -> dict[int, list[str]]:
        column, found = self.subject.target_column, {}
        for row, value in self.values(data, column, rows).items():
            texts = [value] if isinstance(value, str) else value
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                said = reprlib.repr(value)
                self.leave_out(row, f"of the column {column!r} is no text, and no list of texts: {said}")
            elif not texts or not all(text.strip() for text in texts):
                self.leave_out(row, f"has {'an empty' if texts else 'no'} reference in the column {column!r}")
            else:
                found[row] = texts
        return found

    @classmethod
    def _columns(cls, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        references = [list(outcome.details.get("references", outcome.targets)) for outcome in outcomes]
        return {**super()._columns(outcomes), "references": array_of(references)}


class Summarization(Rewriting):
    """A text, and its summary. ROUGE knows Latin letters and digits alone: a warning counts the rows of which no
    reference has any."""

    kind = "summary"

    def __init__(self, subject: Subject, *arguments: Any, **options: Any) -> None:
        self._unseen: set[int] = set()
        super().__init__(subject, *arguments, **options)
        if self._unseen:
            warnings.warn(
                f"{subject.name}: {subject.data}: {len(self._unseen)} rows, the first of them row "
                f"{min(self._unseen) + 1}, have no Latin letter or digit in the column {subject.target_column!r}, and "
                "ROUGE finds words of no others: it is 0 there, whatever the model writes. --task translation measures "
                "such texts by chrF.",
                LeftOutWarning,
                stacklevel=2,
            )

    def references(self, data: datasets.Dataset, rows: Iterable[int]) -> dict[int, list[str]]:
        found = super().references(data, rows)
        self._unseen |= {row for row, texts in found.items() if not _ROUGE_SEES.search(" ".join(texts).lower())}
        return found


class Translation(Rewriting):
    """A text, and its translation. Which languages it is from and to, a model of many is told by its tokenizer's and
    its generation config."""

    kind = "translation"
