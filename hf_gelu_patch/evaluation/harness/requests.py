"""The batches that a model was given by lm-evaluation-harness: what drift and speed are measured on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from hf_gelu_patch.evaluation.drift.logits import batch_drift
from hf_gelu_patch.evaluation.makes import arithmetic, device_of
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.records import Row
from hf_gelu_patch.evaluation.tasks.base import Batch, Task
from hf_gelu_patch.evaluation.tasks.batches import Batches
from hf_gelu_patch.evaluation.tasks.examples import Examples
from hf_gelu_patch.evaluation.tasks.logits import MAX_LOGITS

__all__ = ["Requests", "request_drift"]

_LOOKED_AT = 8  # batches

Inputs = dict[str, Tensor]


class Requests(Task):
    """A task each of whose examples is a whole batch of a model's inputs, as it was seen; the largest come first. Every
    position counts, and none has a right answer: the answers are lm-evaluation-harness's matter."""

    unit = "tokens"
    answered = False

    def __init__(self, subject: Subject, config: Any, processor: Any, seen: Iterable[Inputs]) -> None:
        self.subject = subject
        self.config = config
        self.processor = processor
        self.examples = Examples(self.encode(seen, None), self.shape, self.size)
        self.skipped = ()
        self.asked = ""

    def encode(self, data: Any, limit: int | None) -> Iterable[dict[str, Any]]:
        return itertools.islice(data, limit)

    def size(self, example: dict[str, Any]) -> int:
        return int(example["input_ids"].numel())

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        [inputs] = examples
        return Batch(ids, dict(inputs), torch.zeros_like(inputs[_answered(inputs)]), self.size(inputs))

    def batches(self, size: int = 1) -> Batches:
        """The batches as they were seen, each of the size that it had."""
        del size
        return Batches(self, 1)

    def few(self) -> Requests:
        """A few batches, from the largest to the smallest, cut to rows whose logits take 128 MB at most."""
        step = max(1, len(self.examples) // _LOOKED_AT)
        vocabulary = int(getattr(self.config.get_text_config(), "vocab_size", 1))
        found = []
        for batch in self.batches()[::step][:_LOOKED_AT]:
            rows = max(1, MAX_LOGITS // (batch.targets.shape[1] * vocabulary))
            found.append({name: value[:rows] for name, value in batch.inputs.items()})
        return Requests(self.subject, self.config, self.processor, found)


def _answered(inputs: Inputs) -> str:
    """The inputs for whose positions there are logits: of an encoder with a decoder, the decoder's."""
    return next(name for name in ("labels", "decoder_input_ids", "input_ids") if name in inputs)


def request_drift(
    requests: Requests, model: Any, others: Mapping[str, AbstractContextManager[Any] | None]
) -> list[Row]:
    """How far each of some models moves the logits of batches, row by row; a row's ``example`` is that of its batch.

    Args:
        requests: what they are asked.
        model: unpatched.
        others: what has the patched model in a ``with`` block, by their variants' names; None where a variant changes
            nothing.
    """
    found = []
    for batch in requests.batches():
        here = batch.to(device_of(model))
        old = requests.forward(model, here)
        for name, other in others.items():
            new = old
            if other is not None:
                with other as patched:
                    new = requests.forward(patched, here)
            for place, row in enumerate(batch_drift(old, new, epsilon=arithmetic(model).epsilon)):
                lost = 0.0
                if not math.isfinite(row["max_abs"]):
                    lost = float((old[place].isfinite() & ~new[place].isfinite()).sum())
                found.append(Row(batch.ids[0], name, Outcome((), (), 0.0, 0), row | {"lost": lost}))
    return found
