"""Documents to be put in order, the most relevant to a query first: by a model that reads both together, or by one
that embeds each by itself."""

from __future__ import annotations

import reprlib
import weakref
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.makes import device_of, state_of
from hf_gelu_patch.evaluation.metrics.registry import Columns
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Batch, Prediction, Task, first_rows
from hf_gelu_patch.evaluation.tasks.features import embedded
from hf_gelu_patch.evaluation.tasks.labels import as_number
from hf_gelu_patch.evaluation.tasks.lists import Column, array_of, listed
from hf_gelu_patch.evaluation.tasks.logits import IGNORED, widened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tokens = dict[str, list[int]]

_TOGETHER = 128  # texts that a model is given at once
_SHOWN = 10  # documents in an answer


class Ranking(Task):
    """A query, documents, and how relevant each of them is.

    A row has the query, a list of documents, and a list of as many numbers, which are 0 where a document is not
    relevant. Or it has two lists of texts, or two texts: the relevant documents, and others. The answer is the order of
    the first ten documents, counted from 1. No order is the right one, so that what changed counts neither as gained
    nor as lost.

    Attributes:
        most: documents of a query.
    """

    most: int

    def encode(self, data: datasets.Dataset, limit: int | None) -> Iterator[dict[str, Any]]:
        column = Column(data, self.subject.target_column)
        texts = any(_holds_texts(value) for value in column)
        self.most = 1
        data = first_rows(data, limit)
        for rows in self.parts(data):
            queries = self.queries(data, rows)
            for row, (documents, relevance) in self.candidates(data, queries, texts=texts).items():
                example = self.encoded(row, queries[row], documents, relevance)
                if example is not None:
                    self.most = max(self.most, len(documents))
                    yield {"row": row, **example, "shown": queries[row]}

    @abstractmethod
    def encoded(self, row: int, query: str, documents: list[str], relevance: list[float]) -> dict[str, Any] | None:
        """What there is to say of a row, with its tokens; None if it cannot be used."""

    def queries(self, data: datasets.Dataset, rows: Iterable[int]) -> dict[int, str]:
        """The queries, by row."""
        found = {}
        for row, text in self.texts(data, self.subject.input_column, rows).items():
            if text.strip():
                found[row] = text
            else:
                self.leave_out(row, f"has an empty query in the column {self.subject.input_column!r}")
        return found

    def candidates(
        self, data: datasets.Dataset, rows: Iterable[int], *, texts: bool
    ) -> dict[int, tuple[list[str], list[float]]]:
        """The documents and how relevant they are, by row.

        Args:
            texts: whether the last column holds other documents, rather than numbers.
        """
        rows = list(rows)
        documents = self.values(data, self.subject.second_column, rows)
        others = self.values(data, self.subject.target_column, rows)
        found = {}
        for row in rows:
            held = _documents(documents[row], others[row] if texts else None)
            if held is None:
                self.leave_out(
                    row,
                    f"has no list of documents in the column {self.subject.second_column!r}: "
                    f"{reprlib.repr(documents[row])}",
                )
                continue
            first, second = held
            numbers = [1.0] * len(first) + [0.0] * len(second) if texts else _numbers(listed(others[row]))
            trouble = _trouble([*first, *second], numbers)
            if trouble is None:
                found[row] = [*first, *second], numbers or []
            else:
                self.leave_out(row, trouble)
        return found

    def read(self, row: int, texts: Sequence[str], *pairs: list[str]) -> list[Tokens] | None:
        """What the tokenizer makes of texts, or of pairs of texts, that belong to one row; None if the model cannot
        take one of them."""
        encoded = self.processor(list(texts), *pairs, truncation=True, max_length=self.length())
        found = [
            {key: encoded[key][number] for key in encoded if self.limits.takes(key)} for number in range(len(texts))
        ]
        for number, tokens in enumerate(found):
            trouble = self.limits.trouble(tokens) if tokens["input_ids"] else "has no tokens"
            if trouble is not None:
                self.leave_out(row, f"(text {number + 1} of it) {trouble}" if len(texts) > 1 else trouble)
                return None
        return found

    def batch_size(self) -> int:
        """So many queries that they have 64 documents, or 1."""
        return max(1, min(super().batch_size(), 64 // self.most))

    def outcome(self, scores: Sequence[float], example: Mapping[str, Any]) -> Outcome:
        """The order of the documents of an example."""
        return ranked(scores, example["relevance"], range(1, len(scores) + 1))

    def not_learnable(self) -> str | None:
        return (
            "is not trained here: which documents a model is to learn from, and by which loss, is a choice of its own. "
            "Train it with sentence-transformers, and evaluate what comes out."
        )

    @classmethod
    def recorded(cls, outcomes: Sequence[Outcome]) -> Columns:
        scores, relevance = _scores(outcomes)
        return {"ranking": {"scores": array_of(scores), "relevance": array_of(relevance)}}

    def pairs(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[Any]]:
        """Of each query, the documents' scores; and how relevant they are."""
        del examples
        return _scores(outcomes)


def _scores(outcomes: Sequence[Outcome]) -> tuple[list[Any], list[Any]]:
    return [list(one.details["scores"]) for one in outcomes], [list(one.details["relevance"]) for one in outcomes]


class Reranking(Ranking):
    """A query and a document read together by a classifier (Nogueira & Cho 2019): of one output, whose value is the
    score; or of two, whose difference is: label 1 is that of a relevant document.

    ``forward`` gives [queries, documents, outputs].
    """

    def __init__(self, subject: Subject, config: Any, *arguments: Any, **options: Any) -> None:
        self.outputs = int(config.num_labels or 1)
        if self.outputs > 2:
            raise EvaluationError(
                f"{subject.name} has {self.outputs} labels (num_labels in its config), and a document is put in order "
                "by one number, or by two labels of which the second is that of a relevant one."
            )
        self.softmax = self.outputs == 2
        super().__init__(subject, config, *arguments, **options)

    def encoded(self, row: int, query: str, documents: list[str], relevance: list[float]) -> dict[str, Any] | None:
        tokens = self.read(row, [query] * len(documents), documents)
        if tokens is None:
            return None
        longest = max((one["input_ids"] for one in tokens), key=len)
        return {"texts": tokens, "input_ids": longest, "relevance": relevance}

    def logits_per_example(self) -> int:
        return self.outputs * self.most

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        inputs = self.padded([{"tokens": tokens} for example in examples for tokens in example["texts"]])
        return Batch(ids, inputs, _places([len(example["texts"]) for example in examples]), len(ids))

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        parts = [model(**part).logits for part in _in_parts(batch.inputs)]
        return _by_query(torch.cat(parts), batch.targets)

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        logits = self.forward(model, batch)
        if logits.shape[2] != self.outputs:
            raise EvaluationError(
                f"{self.subject.name} gives {logits.shape[2]} numbers a document, where num_labels in its config says "
                f"{self.outputs}: mend config.json."
            )
        values = logits.double()
        scores = values[..., 0] if self.outputs == 1 else values[..., 1] - values[..., 0]
        return Prediction(
            logits,
            tuple(
                self.outcome(own[: len(self.examples[number]["relevance"])], self.examples[number])
                for number, own in zip(batch.ids, scores.tolist(), strict=True)
            ),
        )


@dataclass(frozen=True)
class _Document:
    """One document of a corpus: its place there, the row in which it first stands, counted from 1, and its tokens."""

    place: int
    row: int
    tokens: Tokens


class Retrieval(Ranking):
    """A query and documents, each embedded by itself as for ``sentence-similarity``; a document's score is the cosine
    of the two (Karpukhin et al. 2020).

    Where rows have one document each, and no numbers, all rows' documents are what each query is held against (a
    corpus). Those of the rows with its own text are relevant. A document that stands in several rows is one. Then an
    answer has the numbers of the rows in which the documents first stand, and its details those of the best ten and of
    the relevant ones.

    ``forward`` gives [queries, 1 + documents, hidden size]: the embeddings of the query and of its row's documents.
    """

    softmax = False
    output = "embeddings"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._corpus: dict[str, _Document] | None = None
        self._answers: dict[str, set[int]] = {}
        self._embedded: weakref.WeakKeyDictionary[Any, Tensor] = weakref.WeakKeyDictionary()
        super().__init__(*arguments, **options)
        if self._corpus is not None and len(self._corpus) == 1:
            raise EvaluationError(
                f"{self.subject.name}: {self.subject.data}: all rows have the same document: there is nothing to find."
            )

    def encode(self, data: datasets.Dataset, limit: int | None) -> Iterator[dict[str, Any]]:
        documents, relevance = Column(data, self.subject.second_column), Column(data, self.subject.target_column)
        corpus = all(value is None for value in relevance) and not any(map(listed, documents))
        self._corpus = {} if corpus else None
        yield from self._pairs(data, limit, self._corpus) if self._corpus is not None else super().encode(data, limit)

    def _pairs(
        self, data: datasets.Dataset, limit: int | None, corpus: dict[str, _Document]
    ) -> Iterator[dict[str, Any]]:
        """The rows, each with a document of its own, which goes into the corpus."""
        data = first_rows(data, limit)
        self.most, self._answers = 1, defaultdict(set)
        for rows in self.parts(data):
            queries = self.queries(data, rows)
            for row, text in self.texts(data, self.subject.second_column, queries).items():
                if not text.strip():
                    self.leave_out(row, "has an empty document")
                elif (example := self.encoded(row, queries[row], [text], [1.0])) is not None:
                    document = corpus.setdefault(text, _Document(len(corpus), row + 1, example["documents"][0]))
                    self._answers[queries[row]].add(document.place)
                    yield {"row": row, **example, "shown": queries[row]}

    def encoded(self, row: int, query: str, documents: list[str], relevance: list[float]) -> dict[str, Any] | None:
        own, texts = self.read(row, [query]), self.read(row, documents)
        if own is None or texts is None:
            return None
        longest = max((one["input_ids"] for one in (*own, *texts)), key=len)
        return {"query": own[0], "documents": texts, "input_ids": longest, "relevance": relevance}

    def logits_per_example(self) -> int:
        size = int(self.config.get_text_config().hidden_size)
        return size * (1 + self.most)

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        sides = {
            "query.": [{"tokens": example["query"]} for example in examples],
            "document.": [{"tokens": tokens} for example in examples for tokens in example["documents"]],
        }
        inputs = {f"{side}{name}": v for side, some in sides.items() for name, v in self.padded(some).items()}
        return Batch(ids, inputs, _places([1 + len(example["documents"]) for example in examples]), len(ids))

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        queries, documents = (
            torch.cat([embedded(model, part) for part in _in_parts(_of_side(batch.inputs, side))])
            for side in ("query.", "document.")
        )
        return torch.cat([queries[:, None], _by_query(documents, batch.targets[:, 1:])], dim=1)

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        embeddings = self.forward(model, batch)
        if self._corpus is not None:
            return Prediction(embeddings, self._found(model, batch, embeddings[:, 0]))
        queries, documents = embeddings[:, :1].double(), embeddings[:, 1:].double()
        cosines = torch.cosine_similarity(queries, documents, dim=-1).tolist()
        return Prediction(
            embeddings,
            tuple(
                self.outcome(own[: len(self.examples[number]["relevance"])], self.examples[number])
                for number, own in zip(batch.ids, cosines, strict=True)
            ),
        )

    def _found(self, model: PreTrainedModel, batch: Batch, queries: Tensor) -> tuple[Outcome, ...]:
        """What each query finds in the corpus: the best ten documents, and where the relevant ones are."""
        assert self._corpus is not None
        rows = [document.row for document in self._corpus.values()]
        cosines = normalize(widened(queries), dim=-1) @ self._embedded_corpus(model).T
        outcomes = []
        for number, own in zip(batch.ids, cosines.cpu(), strict=True):
            relevant = self._answers[self.examples[number]["shown"]]
            best = own.topk(min(_SHOWN, len(own))).indices.tolist()
            kept = sorted({*best, *relevant})
            scores = own[kept].tolist()
            outcomes.append(ranked(scores, [float(one in relevant) for one in kept], [rows[one] for one in kept]))
        return tuple(outcomes)

    def _embedded_corpus(self, model: PreTrainedModel) -> Tensor:
        """[documents, hidden size], of length 1; made once for each model."""
        assert self._corpus is not None
        if (state := state_of(model)) not in self._embedded:
            texts = [{"tokens": document.tokens} for document in self._corpus.values()]
            parts = []
            for start in range(0, len(texts), _TOGETHER):
                inputs = self.padded(texts[start : start + _TOGETHER])
                moved = {name: value.to(device_of(model)) for name, value in inputs.items()}
                parts.append(normalize(widened(embedded(model, moved)), dim=-1))
            self._embedded[state] = torch.cat(parts)
        return self._embedded[state]


def ranked(scores: Sequence[float], relevance: Sequence[float], names: Iterable[int]) -> Outcome:
    """Some documents in the order of their scores; equals as they stand in the data."""
    order = sorted(zip(names, scores, strict=True), key=lambda one: -one[1])
    answer = " ".join(str(name) for name, _ in order[:_SHOWN])
    return Outcome((answer,), (None,), 0.0, 0, details={"scores": list(scores), "relevance": list(relevance)})


def _places(counts: Sequence[int]) -> Tensor:
    """[queries, most documents]: 0 where there is one, −100 beyond."""
    targets = torch.full((len(counts), max(counts)), IGNORED)
    for place, count in enumerate(counts):
        targets[place, :count] = 0
    return targets


def _by_query(rows: Tensor, targets: Tensor) -> Tensor:
    """[queries, most documents, …] out of a row for each document, where ``targets`` say that there is one."""
    found = rows.new_zeros((*targets.shape, *rows.shape[1:]))
    found[targets != IGNORED] = rows
    return found


def _of_side(inputs: Mapping[str, Tensor], side: str) -> dict[str, Tensor]:
    return {name.removeprefix(side): value for name, value in inputs.items() if name.startswith(side)}


def _in_parts(inputs: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The same texts, no more than 128 at a time."""
    size = len(inputs["input_ids"])
    return [
        {name: value[start : start + _TOGETHER] for name, value in inputs.items()}
        for start in range(0, size, _TOGETHER)
    ]


def _holds_texts(value: Any) -> bool:
    """Whether a value of the last column is documents, rather than numbers: a list with a text in it, or a text."""
    texts = listed(value)
    if texts is None:
        return isinstance(value, str) and bool(value.strip()) and as_number(value) is None
    return any(isinstance(one, str) for one in texts)


def _documents(value: Any, others: Any) -> tuple[list[str], list[str]] | None:
    """The documents in a row's two columns; None where they are no texts."""
    found = []
    for one in (value, [] if others is None else others):
        texts = listed(one)
        texts = [one] if texts is None and isinstance(one, str) else texts
        if texts is None or not all(isinstance(text, str) for text in texts):
            return None
        found.append(texts)
    return found[0], found[1]


def _numbers(values: list[Any] | None) -> list[float] | None:
    """How relevant documents are; None where it is not said in numbers."""
    numbers = [as_number(one) for one in values or ()]
    return None if not numbers or None in numbers else [one for one in numbers if one is not None]


def _trouble(documents: Sequence[str], numbers: Sequence[float] | None) -> str | None:
    """Why documents cannot be put in order; None if they can."""
    if not all(text.strip() for text in documents):
        return "has an empty text among its documents"
    if len(documents) < 2:
        return f"has {len(documents)} document{'' if documents else 's'}: to put in order takes two"
    if numbers is None:
        return "does not say in numbers how relevant its documents are"
    if len(numbers) != len(documents):
        return f"has {len(documents)} documents, and says of {len(numbers)} how relevant they are"
    if min(numbers) < 0:
        return f"has a document that is less than not relevant: {min(numbers):g}"
    return None if max(numbers) > 0 else "has no relevant document"
