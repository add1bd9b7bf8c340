"""The part of a text that answers a question."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import torch
from torch import Tensor

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.metrics.registry import Columns
from hf_gelu_patch.evaluation.metrics.spans import normalised
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Batch, Prediction, Task, first_rows, shortened
from hf_gelu_patch.evaluation.tasks.lists import Column, written
from hf_gelu_patch.evaluation.tasks.logits import IGNORED, widened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LONGEST = 30  # tokens in an answer, as in SQuAD's scripts of BERT and of transformers
_OVERLAP = 128  # tokens that two windows share, likewise
_NONE = "(no answer)"


@dataclass(frozen=True)
class Window:
    """A piece of a context behind its question, as the model is given it.

    Attributes:
        tokens: what the tokenizer made of it, by name.
        none: the place that says that there is no answer: of [CLS], or the first.
        begin, end: the places of the context's tokens.
        spans: of each of these, where its characters begin and end in the context.
    """

    tokens: dict[str, list[int]]
    none: int
    begin: int
    end: int
    spans: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.tokens["input_ids"])

    def asked(self) -> list[int]:
        """0 at the places at which an answer, or none, may begin or end; −100 at the others."""
        places = {self.none, *range(self.begin, self.end)}
        return [0 if place in places else IGNORED for place in range(len(self))]

    def places(self, start: int | None, end: int) -> tuple[int, int]:
        """The places of the first and the last token of an answer that takes the characters from ``start`` to ``end``;
        those of no answer, if it does not lie within the window as a whole."""
        if start is not None and self.spans and self.spans[0][0] <= start and end <= self.spans[-1][1]:
            held = [place for place, (one, other) in enumerate(self.spans, self.begin) if one < end and start < other]
            if held:
                return held[0], held[-1]
        return self.none, self.none


class QuestionAnswering(Task):
    """A question, a context, and the right answers out of it (Rajpurkar et al. 2016).

    A context that is too long is read in windows that begin with the question. Each moves on by ``--stride`` tokens;
    without it, two share 128 tokens, or half of what a window has room for. The answer is the span with the largest
    sum of the two logits over all windows, of 30 tokens or less. If rows have no right answer (SQuAD 2.0), a model may
    say that there is none: it does if in every window the two logits at [CLS] sum to more than those of the best span.

    ``forward`` gives [examples, tokens of all windows, 2]: the logits of beginning and of ending there.
    """

    softmax = False

    def encode(self, data: datasets.Dataset, limit: int | None) -> Iterator[dict[str, Any]]:
        if not getattr(self.processor, "is_fast", False):
            raise EvaluationError(
                f"the tokenizer of {self.subject.name} does not say where its tokens stand, as fast ones do: save "
                "AutoTokenizer.from_pretrained(original, use_fast=True) to its folder."
            )
        self.may_be_none = any(_listed(value) == [] for value in Column(data, self.subject.target_column))
        self._most = 1  # windows of a row
        data = first_rows(data, limit)
        for rows in self.parts(data):
            questions = self.texts(data, self.subject.input_column, rows)
            contexts = self.texts(data, self.subject.second_column, questions)
            for row, answers in self._answers(data, contexts).items():
                windows = self._windows(row, questions[row].lstrip(), contexts[row])
                if not windows:
                    continue
                self._most = max(self._most, len(windows))
                yield {
                    "row": row,
                    "windows": windows,
                    "input_ids": max((window.tokens["input_ids"] for window in windows), key=len),
                    "context": contexts[row],
                    "references": [text for text, _ in answers],
                    "learned": _place(answers, contexts[row]),
                    "shown": f"{shortened(questions[row])} | {shortened(contexts[row])}",
                }

    def _answers(self, data: datasets.Dataset, rows: Iterable[int]) -> dict[int, list[tuple[str, int | None]]]:
        """The right answers by row, each with the character at which it begins, where the data say so."""
        found = {}
        for row, value in self.values(data, self.subject.target_column, rows).items():
            answers = _listed(value)
            if answers is None:
                self.leave_out(
                    row,
                    f"has no answers in the column {self.subject.target_column!r} "
                    f"({reprlib.repr(value)}): write a text, a list of texts, or [] where there is none",
                )
            elif not all(text.strip() for text, _ in answers):
                self.leave_out(row, "has an empty text for an answer: write [] where there is none")
            else:
                found[row] = answers
        return found

    def _windows(self, row: int, question: str, context: str) -> list[Window]:
        """The windows of one row; none if it cannot be used."""
        encoded = self.processor(question, context, return_offsets_mapping=True, verbose=False)
        of = encoded.sequence_ids(0)
        places = [place for place, sequence in enumerate(of) if sequence == 1]
        tokens = {key: ids for key, ids in encoded.items() if key != "offset_mapping" and self.limits.takes(key)}
        trouble = self.limits.trouble(tokens)
        if trouble is None and (not places or 0 not in of):
            trouble = f"has no tokens in the {'question' if places else 'context'}"
        if trouble is not None:
            self.leave_out(row, trouble)
            return []
        begin, end = places[0], places[-1] + 1
        room = self.length() - begin - (len(of) - end)
        step = self._step(room)
        if room < 1 or not 1 <= step <= room:
            left = f"has a question of {of.count(0)} tokens, which leaves {max(room, 0)} of {self.length()}"
            gap = f": windows that move on by {step} (--stride) would leave some of its context out"
            self.leave_out(row, left + (gap if room > 0 else " for its context"))
            return []
        spans = encoded["offset_mapping"]
        head = tokens["input_ids"][:begin]
        none = head.index(self.processor.cls_token_id) if self.processor.cls_token_id in head else 0
        windows = []
        for start in range(begin, max(end - room, begin) + step, step):
            stop = min(start + room, end)
            kept = [*range(begin), *range(start, stop), *range(end, len(of))]
            piece = {key: [ids[place] for place in kept] for key, ids in tokens.items()}
            windows.append(Window(piece, none, begin, begin + stop - start, spans[start:stop]))
            if stop == end:
                break
        return windows

    def _step(self, room: int) -> int:
        """How far a window moves on."""
        if self.subject.stride is not None:
            return self.subject.stride
        return max(1, room - min(_OVERLAP, room // 2))

    def size(self, example: dict[str, Any]) -> int:
        return sum(map(len, example["windows"]))

    def logits_per_example(self) -> int:
        return 2 * int(self.examples.sizes.max())

    def batch_size(self) -> int:
        """32 windows, or fewer where their logits would take more than 128 MB."""
        return max(1, super().batch_size() // self._most)

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        windows = [window for example in examples for window in example["windows"]]
        inputs = self.padded([{"tokens": window.tokens} for window in windows])
        asked = self.stacked([window.asked() for window in windows], IGNORED)
        most = max(len(example["windows"]) for example in examples)
        targets = torch.full((len(ids), most, asked.shape[1]), IGNORED)
        end = 0
        for place, example in enumerate(examples):
            begin, end = end, end + len(example["windows"])
            targets[place, : end - begin] = asked[begin:end]
        return Batch(ids, inputs, targets.flatten(1), len(ids))

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        output = model(**batch.inputs)
        logits = torch.stack([output.start_logits, output.end_logits], dim=-1)
        there = _by_window(batch.targets, logits.shape[1])
        found = logits.new_zeros((*there.shape[:2], *logits.shape[1:]))
        found[(there != IGNORED).any(-1)] = logits
        return found.flatten(1, 2)

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        logits = self.forward(model, batch)
        width = next(iter(batch.inputs.values())).shape[1]
        scores = _by_window(logits.double().cpu(), width)
        outcomes = []
        for place, number in enumerate(batch.ids):
            example = self.examples[number]
            text = self._said(example, scores[place])
            outcomes.append(_outcome(text, example["references"]))
        return Prediction(logits, tuple(outcomes))

    def _said(self, example: Mapping[str, Any], scores: Tensor) -> str:
        """The answer to an example; "" for none. ``scores``: [windows, tokens, 2], in float64."""
        best, none, said = -float("inf"), float("inf"), ""
        for window, own in zip(example["windows"], scores, strict=False):
            shift = len(own) - len(window) if self.processor.padding_side == "left" else 0
            none = min(none, float(own[shift + window.none].sum()))
            begins, ends = own[shift + window.begin : shift + window.end].unbind(-1)
            for length in range(min(_LONGEST, len(begins))):
                value, first = (begins[: len(begins) - length] + ends[length:]).max(0)
                if float(value) > best:
                    best = float(value)
                    said = example["context"][window.spans[int(first)][0] : window.spans[int(first) + length][1]]
        return "" if self.may_be_none and none > best else said

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """The mean of the two −log softmax over the places of a window at which an answer may begin, and end; summed
        over windows. In a window without the answer, the place of none is right."""
        width = next(iter(batch.inputs.values())).shape[1]
        targets = _by_window(batch.targets, width)
        there = (targets != IGNORED).any(-1)
        logits = widened(_by_window(self.forward(model, batch), width)[there])
        allowed = (targets[there] != IGNORED)[..., None]
        found = logits.masked_fill(~allowed, -float("inf")).log_softmax(1)
        right = torch.tensor(list(self._learned(batch.ids, width)), device=found.device)
        return -found.gather(1, right[:, None, :]).sum() / 2, len(right)

    def _learned(self, ids: Sequence[int], width: int) -> Iterator[tuple[int, int]]:
        """The places of the right answer in each window."""
        for number in ids:
            example = self.examples[number]
            start, end = example["learned"]
            for window in example["windows"]:
                shift = width - len(window) if self.processor.padding_side == "left" else 0
                first, last = window.places(start, end)
                yield first + shift, last + shift

    def not_learnable(self) -> str | None:
        for example in self.examples:
            if example["references"] and example["learned"][0] is None:
                return (
                    f"has an answer in row {example['row'] + 1} that does not stand in its context: leave that row out."
                )
        return None

    @classmethod
    def recorded(cls, outcomes: Sequence[Outcome]) -> Columns:
        said, right = _texts(outcomes)
        return {"span": {"predictions": said, "references": right}}

    def pairs(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
        """Texts, "" where a model says that there is none; and lists of texts."""
        del examples
        return _texts(outcomes)


def _texts(outcomes: Sequence[Outcome]) -> tuple[list[Any], list[Any]]:
    said = [outcome.details["text"] for outcome in outcomes]
    return said, [list(outcome.details["references"]) for outcome in outcomes]


def _by_window(values: Tensor, width: int) -> Tensor:
    """[examples, windows, tokens, …] out of [examples, windows · tokens, …]."""
    return values.reshape(len(values), -1, width, *values.shape[2:])


def _outcome(text: str, references: list[str]) -> Outcome:
    """An answer that agrees with a right one, as SQuAD compares them, is given as the first right one: what counts as
    a changed answer is then the same as what counts as a wrong one."""
    right = references[0] if references else _NONE
    agrees = normalised(text) in ([normalised(one) for one in references] or [""])
    return Outcome(
        (right if agrees else text or _NONE,), (right,), 0.0, 0, details={"text": text, "references": references}
    )


def _place(answers: Sequence[tuple[str, int | None]], context: str) -> tuple[int | None, int]:
    """The characters that the first right answer takes in the context; None where it does not stand there, or where
    there is none."""
    for text, start in answers[:1]:
        if start is None or not context.startswith(text, start):
            start = context.find(text)
        return (None, 0) if start < 0 else (start, start + len(text))
    return None, 0


def _listed(value: Any) -> list[tuple[str, int | None]] | None:
    """The right answers in one value, each with where it begins. It is a text; a list of texts; SQuAD's object with the
    lists ``text`` and ``answer_start``; a list of such; or one of these in JSON or Python. None where it is no such
    thing."""
    if isinstance(value, str):
        text = value.strip()
        found = written(text) if text[:1] + text[-1:] in ("[]", "{}") else text
        return [(value, None)] if found is text else _listed_object(found)
    return _listed_object(value)


def _listed_object(value: Any) -> list[tuple[str, int | None]] | None:
    if isinstance(value, Mapping) and "text" in value:
        texts, starts = value["text"], value.get("answer_start")
        if isinstance(texts, str):
            texts, starts = [texts], [starts]
        if not isinstance(texts, list):
            return None
        starts = starts if isinstance(starts, list) and len(starts) == len(texts) else [None] * len(texts)
        value = [{"text": text, "start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(value, list):
        return None
    found = []
    for one in value:
        text, start = (
            (one.get("text"), one.get("start", one.get("answer_start"))) if isinstance(one, Mapping) else (one, None)
        )
        if not isinstance(text, str):
            return None
        found.append((text, start if isinstance(start, int) and start >= 0 else None))
    return found
