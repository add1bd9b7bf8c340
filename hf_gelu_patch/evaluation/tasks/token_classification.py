"""A label for each word of a text."""

from __future__ import annotations

import re
import reprlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import datasets

from hf_gelu_patch.evaluation.errors import EvaluationError, LeftOutWarning, first_line
from hf_gelu_patch.evaluation.metrics.registry import Columns
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Batch, Task, first_rows
from hf_gelu_patch.evaluation.tasks.heads import label_names
from hf_gelu_patch.evaluation.tasks.labels import BadLabelError, Labels, LabelsError, class_names
from hf_gelu_patch.evaluation.tasks.lists import Column, array_of, listed
from hf_gelu_patch.evaluation.tasks.logits import IGNORED

_ENTITY = re.compile(r"O|[BIES]|[BIES]-.+")  # tags of which seqeval makes entities


class TokenClassification(Task):
    """Words, and a tag for each of them.

    A word's answer is the likeliest tag of its first token (Devlin et al. 2018). Words beyond the length that the model
    takes, and words of which the tokenizer makes no token, are asked of nobody: a ``LeftOutWarning`` counts them. If
    all tags are O, or begin with B-, I-, E- or S-, the entities that they make up are counted too.
    """

    def __init__(self, subject: Subject, config: Any, *arguments: Any, **options: Any) -> None:
        if subject.labels == "vector":
            raise EvaluationError("token-classification has one label a word: --labels is names or ids.")
        self.labels = Labels(label_names(config, subject.name, int(config.num_labels)), subject.labels)
        self.tags = self.labels.names
        self._unasked: dict[int, int] = {}
        super().__init__(subject, config, *arguments, **options)
        self._tell_unasked()

    def _tell_unasked(self) -> None:
        cut = self._unasked
        if cut:
            warnings.warn(
                f"{self.subject.name}: {self.subject.data}: {sum(cut.values())} words in {len(cut)} rows, first in row "
                f"{min(cut) + 1}, are not asked: they have no token, or stand beyond the first {self.length()} tokens "
                "(--max_length).",
                LeftOutWarning,
                stacklevel=2,
            )

    def encode(self, data: datasets.Dataset, limit: int | None) -> Iterator[dict[str, Any]]:
        if not getattr(self.processor, "is_fast", False):
            raise EvaluationError(
                f"the tokenizer of {self.subject.name} does not say which word a token is of, as fast ones do: save "
                "AutoTokenizer.from_pretrained(original, use_fast=True) to its folder."
            )
        self._read = self._reader(data)
        first = first_rows(data, limit)
        for rows in self.parts(first):
            words = self._words(first, rows)
            tags = self._tags(first, words)
            for row, (tokens, places) in self._tokens({row: words[row] for row in tags}).items():
                targets = [IGNORED if word is None else tags[row][word] for word in places]
                unasked = len(words[row]) - sum(target != IGNORED for target in targets)
                if unasked == len(words[row]):
                    self.leave_out(row, "has no word of which the tokenizer makes a token")
                    continue
                if unasked:
                    self._unasked[row] = unasked
                ids, shown = tokens["input_ids"], " ".join(words[row])
                yield {"row": row, "tokens": tokens, "input_ids": ids, "targets": targets, "shown": shown}

    def _words(self, data: datasets.Dataset, rows: Iterable[int]) -> dict[int, list[str]]:
        """The words by row: of a list, or of a text that has spaces between them."""
        column, found = self.subject.input_column, {}
        for row, value in self.values(data, column, rows).items():
            words = _in_row(value)
            if words is None or not all(isinstance(word, str) for word in words):
                self.leave_out(row, f"has no words in the column {column!r}: {reprlib.repr(value)}")
            elif not words:
                self.leave_out(row, f"has no words in the column {column!r}: the list is empty")
            else:
                found[row] = words
        return found

    def _tags(self, data: datasets.Dataset, words: Mapping[int, list[str]]) -> dict[int, list[int]]:
        """The ids of the right tags by row."""
        column, found = self.subject.target_column, {}
        for row, value in self.values(data, column, words).items():
            tags = _in_row(value)
            if tags is None:
                self.leave_out(row, f"has no list of tags in the column {column!r}")
            elif len(tags) != len(words[row]):
                self.leave_out(row, f"has {len(words[row])} words and {len(tags)} tags in the column {column!r}")
            else:
                try:
                    found[row] = [self._read(tag) for tag in tags]
                except BadLabelError as error:
                    self.leave_out(row, str(error))
        return found

    def _reader(self, data: datasets.Dataset) -> Callable[[Any], int]:
        """What gives the id of a tag. How the column is to be read is told from the whole of it."""
        column = self.subject.target_column or ""
        classes = class_names(data.features[column])
        try:
            read = self.labels.reader((tag for value in Column(data, column) for tag in _in_row(value) or ()), classes)
            if classes is not None and self.labels.generic:  # the names that the model's config lacks
                own = {index: name for name, index in self.labels.classes(classes).items()}
                self.tags = tuple(own.get(index, name) for index, name in enumerate(self.labels.names))
        except LabelsError as error:
            raise EvaluationError(f"{self.subject.name}: {self.subject.data}, column {column!r}: {error}") from None
        return read

    def _tokens(self, words: Mapping[int, list[str]]) -> dict[int, tuple[dict[str, Any], list[int | None]]]:
        """What the tokenizer makes of the words, by row; and for each token the word whose first one it is."""
        if not words:
            return {}
        try:
            encoded = self.processor(
                list(words.values()), is_split_into_words=True, truncation=True, max_length=self.length()
            )
        except (AssertionError, ValueError) as error:  # byte-level BPE wants to know what stands between words
            raise EvaluationError(
                f"the tokenizer of {self.subject.name} does not take words: {first_line(error)}. Save it with "
                "AutoTokenizer.from_pretrained(original, add_prefix_space=True)."
            ) from error
        found = {}
        for number, row in enumerate(words):
            tokens = {key: encoded[key][number] for key in encoded if self.limits.takes(key)}
            trouble = self.limits.trouble(tokens)
            if trouble is None:
                found[row] = tokens, _first_of_each(encoded.word_ids(number))
            else:
                self.leave_out(row, trouble)
        return found

    def logits_per_example(self) -> int:
        return int(self.examples.sizes.max()) * len(self.labels)

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        targets = self.stacked([example["targets"] for example in examples], IGNORED)
        return Batch(ids, self.padded(examples), targets, len(ids))

    def columns(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> Columns:
        kind = "entities" if all(map(_ENTITY.fullmatch, self.tags)) else "tags"
        said, right = self.pairs(outcomes, examples)
        return {kind: {"predictions": array_of(said), "references": array_of(right)}}

    def pairs(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
        """Lists of tags by their names."""
        del examples
        return (
            [[self.named(answer) for answer in outcome.answers] for outcome in outcomes],
            [[self.named(target) for target in outcome.targets] for outcome in outcomes],
        )

    def named(self, answer: Any) -> str:
        return self.tags[int(answer)]


def _first_of_each(words: Iterable[int | None]) -> list[int | None]:
    """The word of each token, where it is the word's first."""
    last: int | None = None
    found: list[int | None] = []
    for word in words:
        found.append(None if word == last else word)
        last = word if word is not None else last
    return found


def _in_row(value: Any) -> list[Any] | None:
    """A list; or of a text the list that it is, else what stands between spaces. None where it is none of these."""
    found = listed(value)
    return value.split() if found is None and isinstance(value, str) else found
