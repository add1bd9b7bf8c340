"""Claim 8, with a method of second order: L-BFGS on all of a small set of images at once, without dropout."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoImageProcessor

from hf_gelu_patch import patch
from hf_gelu_patch.evaluation.reference import REFERENCES
from scripts.studying.training import OWN, small_vit
from scripts.training.digits import digits

__all__ = ["SMOOTHNESS", "fitted"]

SMOOTHNESS = ("gelu", "silu", "relu")
_IMAGES = 256
_LINE_SEARCH = 25  # evaluations of the loss in a step, at most


def fitted(function: str, seed: int, steps: int) -> dict[str, Any]:
    """The loss before each step of ``torch.optim.LBFGS`` (Liu and Nocedal 1989; strong Wolfe conditions, 10 steps
    remembered) on 256 digits, and how many times it was evaluated by the end of the step.

    Args:
        function: of the ViT, whose weights the seed draws alike for all functions.
    """
    torch.manual_seed(seed)
    model = small_vit(seed).model
    if function != OWN["vit"]:
        patch(model, implementation="eager", activation=function)
    model.eval()  # no dropout: the loss has to be one function of the weights
    images, labels, _, _ = digits()
    processor = AutoImageProcessor.from_pretrained(REFERENCES["vit"].root / "vit")
    pixels = processor(images[:_IMAGES], return_tensors="pt")["pixel_values"]
    targets = torch.tensor(labels[:_IMAGES])
    optimiser = torch.optim.LBFGS(
        model.parameters(), lr=1.0, max_iter=1, max_eval=_LINE_SEARCH, history_size=10, line_search_fn="strong_wolfe"
    )
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimiser.zero_grad()
        loss = cross_entropy(model(pixel_values=pixels).logits, targets)
        loss.backward()
        return loss

    losses, evaluated = [], []
    for _ in range(steps):
        losses.append(float(optimiser.step(closure).detach()))  # type: ignore[no-untyped-call]
        evaluated.append(calls)
        if not math.isfinite(losses[-1]):
            break
    return {"function": function, "seed": seed, "losses": losses, "evaluated": evaluated}
