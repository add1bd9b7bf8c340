"""Which text goes with an image, and which image with a text, of all that there are."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.makes import device_of, state_of
from hf_gelu_patch.evaluation.metrics.registry import Columns
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Batch, Prediction, first_rows, shortened
from hf_gelu_patch.evaluation.tasks.features import tower
from hf_gelu_patch.evaluation.tasks.images import AT_A_TIME, pixels_of, stacked_pixels
from hf_gelu_patch.evaluation.tasks.towers import TwoTowers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_AT_A_TIME = 32  # rows that are embedded, and queries that are ranked, whatever the run's batches are
_ROUNDING = 1e-12  # of cosines in float64


@dataclass(frozen=True)
class _Ranked:
    """The place of the best of what goes with a query among all candidates, from 1 on; and what is said to go with it,
    and what does, each by the first row that has it. What goes with it counts as one."""

    rank: int
    said: int
    right: int


Ranks = dict[int, tuple[_Ranked, _Ranked]]
"""Of each example the text for its image, and the image for its text."""


class ImageTextRetrieval(TwoTowers):
    """Rows of an image and a text that goes with it. Of each row the image looks for its texts among all texts of the
    data, and the text for its images among all images, by the cosine of their embeddings.

    An image may stand in several rows with several texts, any of which is right; so may a text. What is alike to the
    model counts as one candidate: images with the same pixels, texts with the same tokens. A tie counts against what is
    right.

    A model embeds all rows once, 32 at a time whatever the run's batches are, before it ranks any. Each process does so
    for itself. What is recorded of a row are its two ranks (``details``); the answers are the candidates that are
    likeliest, by the first row that has them. The bootstrap resamples rows as queries: the candidates stay.

    ``forward`` gives the embeddings of both, [examples, 2, size].
    """

    softmax = False
    output = "embeddings"
    pairable = False

    def __init__(self, subject: Subject, *arguments: Any, **options: Any) -> None:
        self._known: WeakKeyDictionary[Any, tuple[object, tuple[type, ...], Ranks]] = WeakKeyDictionary()
        super().__init__(subject, *arguments, **options)
        for what, many in self._many.items():
            if len(many) < 2:
                raise EvaluationError(
                    f"{subject.name}: {subject.data}: all rows have the same {what}, as the model is given it: "
                    "there is nothing to find."
                )

    def encode(self, data: datasets.Dataset, limit: int | None) -> Iterator[dict[str, Any]]:
        data = first_rows(data, limit)
        firsts: dict[Any, int] = {}
        self._many: dict[str, Counter[int]] = {"image": Counter(), "text": Counter()}
        for rows in self.parts(data, AT_A_TIME):
            texts = self._texts(data, rows)
            tokens = self.tokens(list(texts), texts)
            for row, image in pixels_of(self, data, tokens, self.image_processor).items():
                own = tokens[row]
                of_image = firsts.setdefault(("image", _digest(image["pixels"])), row)
                of_text = firsts.setdefault(("text", tuple(own["input_ids"])), row)
                self._many["image"].update([of_image])
                self._many["text"].update([of_text])
                more = {"tokens": own, "input_ids": own["input_ids"], "image": of_image, "text": of_text}
                yield {**image, **more, "shown": f"{image['shown']} | {texts[row]}"}

    def _texts(self, data: datasets.Dataset, rows: Sequence[int]) -> dict[int, str]:
        """The texts that have words, by row."""
        column, found = self.subject.target_column, {}
        for row, value in self.values(data, column, rows).items():
            if isinstance(value, list):
                self.leave_out(
                    row, f"has a list in the column {column!r}: give each text a row of its own, with the same image"
                )
            elif not isinstance(value, str):
                self.leave_out(row, f"of the column {column!r} is no text: {shortened(repr(value))}")
            elif not value.split():
                self.leave_out(row, f"has no words in the column {column!r}")
            else:
                found[row] = value
        return found

    def logits_per_example(self) -> int:
        return 2 * int(getattr(self.config, "projection_dim", None) or self.config.get_text_config().hidden_size)

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        inputs = {**stacked_pixels(self, examples), **self.filled([example["tokens"] for example in examples])}
        return Batch(ids, inputs, torch.zeros(len(ids), 2, dtype=torch.long), len(ids))

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
            raise EvaluationError(f"{self.subject.name} has no embeddings of images and of texts: name another --task.")
        of_text = {name: value for name, value in batch.inputs.items() if name in self.processor.model_input_names}
        of_image = {name: value for name, value in batch.inputs.items() if name not in of_text}
        of_both: list[Any] = [tower(model, "image")(**of_image), tower(model, "text")(**of_text)]
        return torch.stack([getattr(found, "pooler_output", found) for found in of_both], dim=1)

    def predict(self, model: PreTrainedModel, batch: Batch) -> Prediction:
        embeddings = self.forward(model, batch)
        ranked = self._ranked(model)
        outcomes = []
        for example in batch.ids:
            found = ranked.get(example)
            if found is None:
                raise ValueError("its embeddings are not finite, or could not be had beside those of other rows")
            details = {"text_rank": found[0].rank, "image_rank": found[1].rank}
            said, right = tuple(one.said for one in found), tuple(one.right for one in found)
            outcomes.append(Outcome(said, right, 0.0, 0, details=details))
        return Prediction(embeddings, tuple(outcomes))

    def _ranked(self, model: PreTrainedModel) -> Ranks:
        """Made once of each model as it is: where variants take turns with one model, once of each. A patch from
        elsewhere changes the classes of its modules."""
        whose = state_of(model)
        state = tuple(map(type, model.modules())) if whose is model else ()
        known = self._known.get(whose)
        if known is None or known[0] is not self.examples or known[1] != state:
            known = self.examples, state, self._ranked_anew(model)
            self._known[whose] = known
        return known[2]

    def _ranked_anew(self, model: PreTrainedModel) -> Ranks:
        images: dict[int, Tensor] = {}
        texts: dict[int, Tensor] = {}
        pairs: dict[int, tuple[int, int]] = {}
        for number, (image, text), (of_image, of_text) in self._embedded(model):
            pairs[number] = image, text
            images.setdefault(image, of_image)
            texts.setdefault(text, of_text)
        if not pairs:
            return {}
        for_images = _ranks(images, texts, list(pairs.values()))
        for_texts = _ranks(texts, images, [(text, image) for image, text in pairs.values()])
        return {number: (for_images[image], for_texts[text]) for number, (image, text) in pairs.items()}

    def _embedded(self, model: PreTrainedModel) -> Iterator[tuple[int, tuple[int, int], Tensor]]:
        """Of each example its image and text, and [2, size], their embeddings in float64 and of length 1; without those
        that the model fails on, which fail by themselves too, or for which it gives no finite numbers."""
        for ids in self.batches(_AT_A_TIME).all_ids():
            examples = self.examples.some(ids)
            names = [(example["image"], example["text"]) for example in examples]
            for number, pair, own in zip(ids, names, self._some(model, ids), strict=True):
                if own.isfinite().all():
                    yield number, pair, own

    def _some(self, model: PreTrainedModel, ids: Sequence[int]) -> list[Tensor]:
        """[2, size] of some examples; NaN where the model fails."""
        examples = self.examples.some(ids)
        try:
            return list(self._embeddings(model, ids, examples))
        except Exception:  # each model has its own
            return [one for pair in zip(ids, examples, strict=True) for one in self._alone(model, *pair)]

    def _alone(self, model: PreTrainedModel, number: int, example: dict[str, Any]) -> Tensor:
        """[1, 2, size]; NaN where the model fails."""
        try:
            return self._embeddings(model, [number], [example])
        except Exception:  # whoever asks for that row by itself says which
            return torch.full((1, 2, 1), torch.nan)

    def _embeddings(self, model: PreTrainedModel, ids: Sequence[int], examples: Sequence[dict[str, Any]]) -> Tensor:
        batch = self.collate(tuple(ids), examples).to(device_of(model))
        return normalize(self.forward(model, batch).double(), dim=-1).cpu()

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """The model's own, which holds each pair of a batch against the others."""
        return model(**batch.inputs, return_loss=True).loss * len(batch.ids), len(batch.ids)

    def columns(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> Columns:
        ranks: dict[str, Any] = {
            name: np.array([outcome.details[name] for outcome in outcomes], dtype=np.int64)
            for name in ("text_rank", "image_rank")
        }
        shares = {
            f"of_{kind}": np.array([1 / many[one[kind]] for one in examples]) for kind, many in self._many.items()
        }
        return {"ranks": {**ranks, **shares}}

    def named(self, answer: str) -> str:
        return f"row {int(answer) + 1}"


def _digest(pixels: Mapping[str, Tensor]) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for _, value in sorted(pixels.items()):
        found.update(value.contiguous().numpy().tobytes())
    return found.digest()


def _ranks(
    queries: Mapping[int, Tensor], candidates: Mapping[int, Tensor], pairs: Sequence[tuple[int, int]]
) -> dict[int, _Ranked]:
    """Where the best of what goes with a query stands among all candidates.

    Args:
        queries, candidates: embeddings of length 1, by name.
        pairs: a query and what goes with it.
    """
    names = list(candidates)
    places = {name: place for place, name in enumerate(names)}
    matrix = torch.stack([candidates[name] for name in names])
    right: dict[int, list[int]] = defaultdict(list)
    for query, candidate in pairs:
        right[query].append(candidate)
    asked, found = list(queries), {}
    for start in range(0, len(asked), _AT_A_TIME):
        some = asked[start : start + _AT_A_TIME]
        for query, cosines in zip(some, torch.stack([queries[name] for name in some]) @ matrix.T, strict=True):
            own = [places[name] for name in right[query]]
            best = cosines[own].max() - _ROUNDING
            cosines[own] = -2.0
            rank, first = 1 + int((cosines >= best).sum()), min(right[query])
            found[query] = _Ranked(rank, first if rank == 1 else names[int(cosines.argmax())], first)
    return found
