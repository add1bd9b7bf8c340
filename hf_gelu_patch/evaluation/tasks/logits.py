"""What logits say: the likeliest class at each position, and the negative log-likelihood of the right one."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_gelu_patch.evaluation.errors import EvaluationError

__all__ = ["IGNORED", "MAX_LOGITS", "read_logits", "widened"]

IGNORED = -100
"""The target of a position where there is no right answer."""
MAX_LOGITS = 2**25
"""Numbers in the logits of one batch, 128 MB in float32."""

_MAX_READ = 2**20  # of them that are read at a time on a CPU


def read_logits(logits: Tensor, targets: Tensor) -> list[tuple[tuple[int, ...], tuple[int, ...], float, int]]:
    """For each example: the most likely class at each position that counts, the right ones, their summed negative
    log-likelihood −log softmax(logits)[target] in nats, and how many they are.

    Softmax's sum is taken in the logits' precision (in float32 where that is less): within 1e-6 nats of the exact one.
    What is added up beyond it is float64. Only so many logits at a time as a cache holds: it is what makes it cheap.

    Args:
        logits: [examples, positions, classes].
        targets: [examples, positions]; ``IGNORED`` where none counts.

    Raises:
        EvaluationError: the shapes do not go together.
    """
    if logits.shape[:2] != targets.shape:
        raise EvaluationError(
            f"the model gave logits of the shape {list(logits.shape)} for answers of the shape {list(targets.shape)}."
        )
    counts = targets != IGNORED
    losses = torch.zeros(targets.shape, dtype=torch.float64, device=logits.device)
    rows, columns = counts.nonzero(as_tuple=True)
    said: list[int] = []
    step = max(1, (_MAX_READ if logits.device.type == "cpu" else MAX_LOGITS) // logits.shape[-1])
    for places in zip(torch.split(rows, step), torch.split(columns, step), strict=True):
        scores = logits[places]
        scores = widened(scores)
        largest, indices = scores.max(-1)
        given = scores.gather(-1, targets[places][:, None])[:, 0]
        total = scores.sub_(largest[:, None]).exp_().sum(-1)
        losses[places] = total.double().log() + (largest.double() - given.double())
        said += indices.tolist()
    right = targets[counts].tolist()
    found, end = [], 0
    for loss, size in zip(losses.sum(1).tolist(), counts.sum(1).tolist(), strict=True):
        begin, end = end, end + size
        found.append((tuple(said[begin:end]), tuple(right[begin:end]), loss, size))
    return found


def widened(values: Tensor) -> Tensor:
    """In float32, or float64 where they are."""
    return values if values.dtype == torch.float64 else values.float()
