"""Masked language models."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import datasets

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.tasks.base import Batch, shortened
from hf_gelu_patch.evaluation.tasks.language import LanguageModel, tokens_around
from hf_gelu_patch.evaluation.tasks.logits import IGNORED

if TYPE_CHECKING:
    pass

_MASKED = 0.15  # of a text's tokens


class MaskedLM(LanguageModel):
    """Texts of which some tokens are hidden and have to be told (Devlin et al. 2018).

    15 % of an example's tokens, and at least one, are replaced by the mask token. The example's number decides which.
    A text longer than ``max_length`` gives several examples, so that none of it is left out. Each of them stands
    between what the tokenizer puts around a text.
    """

    def encode(self, data: datasets.Dataset, limit: int | None) -> Iterator[dict[str, Any]]:
        if self.processor.mask_token_id is None:
            raise EvaluationError(f"the tokenizer of {self.subject.name} has no mask token: it is for another --task.")
        before, behind = tokens_around(self.processor, (text for _, text in self._texts(data)))
        room = self.length() - before - behind
        if room < 1:
            raise EvaluationError(
                f"{before + behind} tokens of {self.length()} are the tokenizer's own, which leaves none for the text: "
                "take a larger --max_length."
            )
        count = 0
        for row, text in self._texts(data):
            encoded = {key: ids for key, ids in self.processor(text, verbose=False).items() if self.limits.takes(key)}
            end = len(encoded["input_ids"]) - behind
            shown = {**encoded, "input_ids": [*encoded["input_ids"], self.processor.mask_token_id]}
            trouble = self.limits.trouble(shown) if end > before else "has no tokens"
            if trouble is not None:
                self.leave_out(row, trouble)
                continue
            for start in range(before, end, room):
                stop = min(start + room, end)
                kept = [*range(before), *range(start, stop), *range(end, end + behind)]
                tokens = {key: [values[place] for place in kept] for key, values in encoded.items()}
                yield {"row": row, **self._masked(tokens, range(before, before + stop - start), count)}
                count += 1
                if count == limit:
                    return

    def _texts(self, data: datasets.Dataset) -> Iterator[tuple[int, str]]:
        for rows in self.parts(data):
            yield from self.texts(data, self.subject.input_column, rows).items()

    def _masked(self, tokens: dict[str, Any], places: Sequence[int], example: int) -> dict[str, Any]:
        chosen = random.Random(f"masked-lm {example}").sample(places, max(1, round(_MASKED * len(places))))
        ids, targets = list(tokens["input_ids"]), [IGNORED] * len(tokens["input_ids"])
        for place in chosen:
            targets[place], ids[place] = ids[place], self.processor.mask_token_id
        whole = tokens["input_ids"]
        return {"tokens": {**tokens, "input_ids": ids}, "input_ids": ids, "targets": targets, "shown_ids": whole}

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        targets = self.stacked([example["targets"] for example in examples], IGNORED)
        return Batch(ids, self.padded(examples), targets, sum(map(self.size, examples)))

    def describe(self, example: int) -> str:
        return shortened(self.processor.decode(self.examples[example]["shown_ids"][:100]))
