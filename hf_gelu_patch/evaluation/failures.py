"""Which rows a model fails on, or gives no finite number for.

After a batch has failed, its rows are run one by one. If each of them runs, the message says what else can be wrong.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.tasks.base import Batch, Task
from hf_gelu_patch.evaluation.tasks.logits import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["batch_remedy", "failing", "not_finite"]

_HALF = 1e-4  # ε of half precision is more, of float32 less


def failing(task: Task, model: PreTrainedModel, batch: Batch, error: Exception) -> dict[int, str]:
    """Those examples of a batch that a model fails on by themselves, and how, after it failed on all of them together.

    Args:
        error: how it did.

    Raises:
        EvaluationError: it is no example's fault: there is no memory for the batch, examples do not go together, or
            the GPU is lost. The message names the remedy.
    """
    name = task.subject.name
    if "device-side assert" in str(error):
        raise EvaluationError(
            f"{name} looked up what it has no row for, and the GPU cannot tell in which row of the data. Run it once "
            "on the CPU, with CUDA_VISIBLE_DEVICES= before the command, to have that row named."
        ) from error
    found = {}
    for example in batch.ids:
        try:
            task.predict(model, task.alone(example).to(batch.targets.device))
        except Exception as failure:  # each model has its own
            said = f"{type(failure).__name__}: {first_line(failure).rstrip('.')}"
            found[example] = f"({task.describe(example)}) makes {name} fail: {said}"
    if found:
        return _all_alike(found, batch)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error):
        raise EvaluationError(
            f"there is no memory for {name} on {len(batch.ids)} rows at once: take a smaller "
            "--per_device_eval_batch_size."
        ) from error
    raise EvaluationError(
        f"{name} runs on one row, and not on {len(batch.ids)} in a batch: {first_line(error).rstrip('.')}. "
        f"{batch_remedy(task)}"
    ) from error


def not_finite(task: Task, batch: Batch, logits: Tensor) -> dict[int, str]:
    """Those examples of a batch of which a model says nothing, because it gives numbers that are not finite where an
    answer is to be: any figure made of these would mean nothing. −∞ rules a class out, if another one is left.

    Args:
        logits: the model's, [examples, positions, classes].
    """
    size = logits if task.softmax else logits.abs()
    lost = ~size.amax(-1).isfinite() & (batch.targets != IGNORED)
    if not lost.any():
        return {}
    half = "" if torch.finfo(logits.dtype).eps < _HALF else f" in {str(logits.dtype).removeprefix('torch.')}"
    said = f"makes {task.subject.name}, unpatched, give {task.output} that are NaN or infinite{half}"
    if half:
        said += ", which --dtype float32 may mend"
    places = zip(batch.ids, lost.any(-1).tolist(), strict=True)
    return _all_alike({example: f"({task.describe(example)}) {said}" for example, is_lost in places if is_lost}, batch)


def _all_alike(found: dict[int, str], batch: Batch) -> dict[int, str]:
    """``found``, which also says so where it has every row of a batch of several."""
    if not len(found) == len(batch.ids) > 1:
        return found
    everyone = "; and so does every other row in its batch, which points to the model's files"
    return {example: f"{said}{everyone}" for example, said in found.items()}


def batch_remedy(task: Task) -> str:
    """What can be done where rows do not go together, by what the tokenizer and the config say."""
    tokenizer, config = task.processor, task.config
    causes = []
    extractor = getattr(task, "extractor", tokenizer)
    if getattr(extractor, "return_attention_mask", False):
        return (
            "Set return_attention_mask to false in its preprocessor_config.json: then sounds of one length alone go "
            "into one batch. Or evaluate with --per_device_eval_batch_size 1."
        )
    given, own = getattr(tokenizer, "pad_token_id", None), getattr(config.get_text_config(), "pad_token_id", None)
    if given is not None:
        if given != own:
            said = "no pad_token_id" if own is None else f"the pad_token_id {own}"
            causes.append(f"The config has {said}, the tokenizer {given}: give both the same.")
        if given >= (getattr(config.get_text_config(), "vocab_size", None) or math.inf):
            causes.append(f"The model has no embedding for the tokenizer's pad_token_id {given}: choose another token.")
        if tokenizer.padding_side == "left":
            causes.append("The tokenizer fills up on the left: set its padding_side to 'right'.")
        if "attention_mask" not in tokenizer.model_input_names and task.limits.takes("attention_mask"):
            causes.append("The tokenizer gives no attention_mask: name it in its model_input_names.")
    causes.append(f"{'Or evaluate' if causes else 'Evaluate'} with --per_device_eval_batch_size 1.")
    return " ".join(causes)
