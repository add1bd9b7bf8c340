"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from rich.progress import Progress
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scripts.training.recipe import Optimisation, Trainee


def train(
    trainee: Trainee,
    optimisation: Optimisation,
    steps: int | None,
    seconds: float | None,
    tell: Callable[[float], object] | None = None,
) -> tuple[int, float]:
    """Train for a number of steps, or for about so many seconds; returns the steps and seconds it took. Whoever is
    told the loss of each step shows the progress too."""
    parameters = [parameter for parameter in trainee.model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters,
        lr=optimisation.learning_rate,
        betas=optimisation.betas,
        weight_decay=optimisation.weight_decay,
    )
    trainee.model.train()
    average = AveragedModel(trainee.model, multi_avg_fn=get_ema_multi_avg_fn(optimisation.averaging))
    began = time.monotonic()
    step = 0
    steps = steps or optimisation.steps
    with Progress(disable=tell is not None) as bars:
        bar = bars.add_task("training", total=1.0)
        while True:
            elapsed = time.monotonic() - began
            progress = elapsed / seconds if seconds else step / steps
            if progress >= 1:
                break
            batch = next(trainee.batches)
            if optimisation.label_smoothing:
                labels = batch.pop("labels")
                loss = nn.functional.cross_entropy(
                    trainee.model(**batch).logits, labels, label_smoothing=optimisation.label_smoothing
                )
            else:
                loss = trainee.model(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            warmup = min(1.0, (step + 1) / optimisation.warmup)
            for group in optimiser.param_groups:
                group["lr"] = optimisation.learning_rate * warmup * max(optimisation.floor, 1 - progress)
            optimiser.step()
            optimiser.zero_grad()
            if optimisation.averaging:
                average.update_parameters(trainee.model)
            step += 1
            if tell is not None:
                tell(loss.item())
            if step % 50 == 0:
                bars.update(bar, completed=progress, description=f"step {step}, loss {loss.item():.3f}")
    if optimisation.averaging:
        trainee.model.load_state_dict(average.module.state_dict())
    trainee.model.eval()
    return step, time.monotonic() - began
