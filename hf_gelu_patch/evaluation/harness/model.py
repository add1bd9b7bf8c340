"""A loaded model as lm-evaluation-harness drives it, which keeps the batches that it is given."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

__all__ = ["DrivenModel"]


class DrivenModel(HFLM):  # type: ignore[misc]  # it has no types
    """lm-evaluation-harness's own way to ask a model of transformers; nothing is computed differently here.

    Attributes:
        seen: the inputs of each forward of a likelihood, and the prompts of each generation, on the CPU and in their
            order: keyword arguments of the model.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int, max_length: int | None) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),  # it may be given a padding token
            batch_size=batch_size,
            max_length=max_length,
        )
        self.seen: list[dict[str, Tensor]] = []

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: Any, **options: Any) -> Any:
        return super()._loglikelihood_tokens(requests, **{**options, "disable_tqdm": True})

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        given = {"input_ids": inps, "attention_mask": attn_mask, "labels": labels}
        self._keep(given)
        logits: Tensor = super()._model_call(inps, attn_mask=attn_mask, labels=labels)
        return logits

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Any:
        given = {"input_ids": context, "attention_mask": generation_kwargs.get("attention_mask")}
        if self.backend == "seq2seq":
            start = self.config.decoder_start_token_id
            given["decoder_input_ids"] = torch.full((len(context), 1), 0 if start is None else start)
        self._keep(given)
        return super()._model_generate(context, max_length, stop, **generation_kwargs)

    def _keep(self, given: dict[str, Tensor | None]) -> None:
        self.seen.append({name: value.detach().cpu().clone() for name, value in given.items() if value is not None})
