"""Causal language models: perplexity of running text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.metrics.registry import Columns
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Batch
from hf_gelu_patch.evaluation.tasks.generation import MOST_DECODED, generate_greedily
from hf_gelu_patch.evaluation.tasks.language import LanguageModel, token_columns, tokens_around
from hf_gelu_patch.evaluation.tasks.logits import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LAST_OF_UTF8 = (0x7F, 0x7FF, 0xFFFF)  # the last characters that take one, two and three bytes


class CausalLM(LanguageModel):
    """Running text, each token told from those before it.

    The text is cut into blocks of ``max_length`` tokens that do not overlap; what is left at its end is dropped. With
    a stride, a window of ``max_length`` tokens moves on by so many tokens to the end of the text. Every token then
    counts once, in the first window that reaches it (https://huggingface.co/docs/transformers/perplexity).

    If the tokenizer puts something before a text (BOS), it stands before each block and window, and the first token
    there counts. If it puts nothing there, the first token of each block, or of the windowed text, does not count.
    What it puts behind a text is left out.

    Attributes:
        decode_tokens: how many ``generate`` adds.
    """

    generates = True

    def encode(self, data: datasets.Dataset, limit: int | None) -> list[dict[str, Any]]:
        texts = self.texts(data, self.subject.input_column, self.rows(data))
        opening, tokens, sizes = self._tokens("\n\n".join(texts.values()))
        if (trouble := self.limits.trouble({"input_ids": opening + tokens})) is not None:
            raise EvaluationError(f"{self.subject.name}: the text of {self.subject.data} {trouble}.")
        window, least = self.length(), max(len(opening), 1)  # tokens that stand before the first answer
        room = min(window - len(opening), len(tokens))
        length = len(opening) + max(room, 0)
        if length <= least:
            raise EvaluationError(
                f"{self.subject.data}: perplexity needs {least + 1} tokens or more in a block, and there are {length}: "
                "give it more text, or a larger --max_length."
            )
        stride = self.subject.stride
        if stride is not None and not 1 <= stride <= window - least:
            raise EvaluationError(
                f"a window of {window} tokens that moves on by {stride} leaves tokens out, for each is told from those "
                f"before it: take a --stride of 1 to {window - least}."
            )
        self.decode_tokens = min(MOST_DECODED, length - length // 2)
        if stride is None:
            starts: Sequence[int] = range(0, len(tokens) - room + 1, room)
        else:
            starts = range(0, max(1, len(tokens) - room + stride), stride)
        examples, told = [], 0
        for start in starts[:limit]:
            block = opening + tokens[start : start + room]
            known = max(len(opening) + told - start, 1)
            told = start + len(block) - len(opening)
            size = float(sizes[start + known - len(opening) : told].sum())
            examples.append({"input_ids": block, "known": known, "bytes": size})
        return examples

    def _tokens(self, text: str) -> tuple[list[int], list[int], np.ndarray[Any, Any]]:
        """What the tokenizer puts before a text, the text's own tokens, and how many bytes of UTF-8 each stands for.

        A token's bytes are those from the end of the token before it to its own end. They add up to the text's. If the
        tokenizer does not say where its tokens stand, all of them have the same size.
        """
        before, behind = tokens_around(self.processor, [text])
        fast = bool(self.processor.is_fast)
        encoded = self.processor(text, return_offsets_mapping=fast, verbose=False)
        ids = encoded["input_ids"]
        end = len(ids) - behind
        if not fast:
            return ids[:before], ids[before:end], np.full(end - before, len(text.encode()) / max(1, end - before))
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        reached = np.concatenate([[0], np.cumsum(1 + sum(codes > most for most in _LAST_OF_UTF8))])
        ends = [0, *(place for _, place in encoded["offset_mapping"][before : end - 1]), len(text)]
        return ids[:before], ids[before:end], np.diff(reached[np.maximum.accumulate(ends)])

    def columns(self, outcomes: Sequence[Outcome], examples: Sequence[Mapping[str, Any]]) -> Columns:
        sizes = np.array([example["bytes"] for example in examples])
        return {"text": {**token_columns(outcomes), "bytes": sizes}}

    def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Batch:
        windows = [torch.tensor(example["input_ids"]) for example in examples]
        targets = [window.clone() for window in windows]
        for target, example in zip(targets, examples, strict=True):
            target[: example["known"]] = IGNORED
        inputs = {"input_ids": pad_sequence(windows, batch_first=True)}
        units = sum(map(len, windows))
        if units < inputs["input_ids"].numel():  # the text's last window is shorter
            inputs["attention_mask"] = pad_sequence([torch.ones_like(w) for w in windows], batch_first=True)
        return Batch(ids, inputs, pad_sequence(targets, batch_first=True, padding_value=IGNORED)[:, 1:], units)

    def forward(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits: Tensor = model(**batch.inputs, use_cache=False).logits
        return logits[:, :-1]

    def generate(self, model: PreTrainedModel, batch: Batch, new_tokens: int | None = None) -> Tensor:
        """Go on, greedily, from the first half of each block: always by ``decode_tokens``, whatever comes. With one
        new token it is the prefill alone."""
        ids = batch.inputs["input_ids"]
        prompt = ids[:, : max(1, ids.shape[1] // 2)]
        return generate_greedily(model, new_tokens or self.decode_tokens, input_ids=prompt)
