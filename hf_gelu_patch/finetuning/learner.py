"""A model that learns, step by step, in one process or several: what a step does, and all that the next one depends on.

Every step gives the same bits whenever it is run. Dropout and whatever else is drawn at random begins, in each batch,
with a seed of its own: of the run's seed, the step and the batch's place in it. So no random state has to be kept, and
two processes draw what one would.

The processes' gradients are added up here, in an order that never changes, rather than by
``DistributedDataParallel``: that orders them anew after its first step, so that a run that was resumed would add in
another order than one that was not. It is done once a step.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from torch import Tensor

from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.finetuning.errors import FinetuningError
from hf_gelu_patch.finetuning.order import Ids
from hf_gelu_patch.finetuning.settings import Training

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

__all__ = ["Learner"]

State = dict[str, Any]
"""All that the next step depends on: tensors, numbers and texts, in dicts and lists."""

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_TOGETHER = 2**24  # numbers of gradients that are added up at once


class Learner:
    """A model, its optimizer and its learning rate.

    Attributes:
        done: steps that were made.
        history: of each step the ``loss`` before it, the ``learning_rate`` and the ``grad_norm``; and ``validation``,
            for whoever measures in between.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        task: Task,
        accelerator: Accelerator,
        training: Training,
        *,
        steps: int,
        seed: int,
    ) -> None:
        """
        Args:
            model: on the accelerator's device; what requires a gradient is trained.
            task: what to train on.
            accelerator: the processes.
            training: how.
            steps: how many there will be, which the learning rate depends on.
            seed: of everything drawn at random.

        Raises:
            FinetuningError: nothing requires a gradient, weights are in half precision that cannot be trained so, or
                the processes share the work in a way that is not known here.
        """
        self.done = 0
        self.history: dict[str, list[Any]] = {"loss": [], "learning_rate": [], "grad_norm": [], "validation": []}
        self._model, self._task, self._accelerator, self._seed = model, task, accelerator, seed
        self._most = training.max_grad_norm
        self._weights = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self._check(accelerator)
        shaped = [[one for one in self._weights.values() if (one.dim() > 1) is matrix] for matrix in (True, False)]
        decays = (training.weight_decay, 0.0)
        groups = [{"params": some, "weight_decay": decay} for some, decay in zip(shaped, decays, strict=True) if some]
        self._optimizer = torch.optim.AdamW(groups, lr=training.learning_rate)
        self._rate = transformers.get_scheduler(
            training.lr_scheduler_type, self._optimizer, training.num_warmup_steps, steps
        )
        precision = training.mixed_precision or accelerator.mixed_precision
        self._half = _HALVES.get(precision)
        self._scaler = torch.amp.GradScaler(accelerator.device.type, enabled=self._half == torch.float16)

    def _check(self, accelerator: Accelerator) -> None:
        how = accelerator.distributed_type.name
        if how != "NO" and not how.startswith("MULTI_"):
            raise FinetuningError(
                f"the processes were started for {how}, where each holds a part of the model; here each holds all of "
                "it. Start them with torchrun, or train the patched model with transformers' Trainer."
            )
        if not self._weights:
            raise FinetuningError("no weight of the model requires a gradient: there is nothing to train.")
        if any(one.dtype == torch.float16 for one in self._weights.values()):
            raise FinetuningError(
                "the weights are float16, in which small steps are lost: add --dtype float32, and --mixed_precision "
                "fp16 to compute in float16."
            )

    # ----------------------------------------------------------------------------------------------------------- a step

    def step(self, batches: Sequence[Ids]) -> None:
        """Learn from some batches: of each process every n-th one, where there are n processes. The loss is the mean
        over the right answers of all of them, so it does not matter how they are shared.

        Raises:
            FinetuningError: the loss is not finite. The weights are as they were.
        """
        own = range(self._accelerator.process_index, len(batches), self._accelerator.num_processes)
        device = self._accelerator.device
        loss, count = torch.zeros((), dtype=torch.float64, device=device), 0
        self._model.train()
        for place in own:
            self._draw(place)
            examples = self._task.examples.some(batches[place])
            batch = self._task.collate(batches[place], examples).to(device)
            with torch.autocast(device.type, dtype=self._half, enabled=self._half is not None):
                summed, counted = self._task.loss(self._model, batch)
            self._scaler.scale(summed).backward()  # type: ignore[no-untyped-call]
            loss, count = loss + summed.detach().double(), count + counted
        both = self._added(torch.stack([loss, loss.new_tensor(count)]))
        mean, count = float(both[0] / both[1]), int(both[1])
        if not np.isfinite(mean):
            raise FinetuningError(
                f"the loss is {mean} at step {self.done + 1}: take a smaller --learning_rate, more --num_warmup_steps, "
                "or another --mixed_precision."
            )
        self._learn(count, mean)

    def _draw(self, place: int) -> None:
        """Begin to draw random numbers anew."""
        said = f"{self._seed} {self.done} {place}".encode()
        number = int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big") >> 1
        random.seed(number)
        np.random.seed(number % 2**32)
        torch.manual_seed(number)

    def _learn(self, count: int, loss: float) -> None:
        weights = list(self._weights.values())
        for weight in weights:
            if weight.grad is None:  # it had no part in this process's batches
                weight.grad = torch.zeros_like(weight)
        for some in _portions(weights):
            self._add_gradients(some, count)
        self._scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.clip_grad_norm_(weights, self._most)
        self.history["loss"].append(loss)
        self.history["learning_rate"].append(float(self._rate.get_last_lr()[0]))
        self.history["grad_norm"].append(float(norm))
        scale = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._scaler.get_scale() >= scale:  # else the gradients had overflown, and nothing was learnt
            self._rate.step()
        self._optimizer.zero_grad()
        self._share_buffers()
        self.done += 1

    def _add_gradients(self, weights: Sequence[Tensor], count: int) -> None:
        if self._accelerator.num_processes == 1:
            for weight in weights:
                weight.grad.div_(count)  # type: ignore[union-attr]
            return
        flat = self._added(torch.cat([weight.grad.flatten() for weight in weights])).div_(count)  # type: ignore[union-attr]
        for weight, summed in zip(weights, torch.split(flat, [weight.numel() for weight in weights]), strict=True):
            weight.grad.copy_(summed.view_as(weight))  # type: ignore[union-attr]

    def _added(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        found: Tensor = self._accelerator.reduce(values, reduction="sum")
        return found

    def _share_buffers(self) -> None:
        """What batch norm keeps is the first process's, as with ``DistributedDataParallel``."""
        if self._accelerator.num_processes > 1:
            for buffer in self._buffers().values():
                if buffer.is_floating_point():
                    torch.distributed.broadcast(buffer, 0)

    # ---------------------------------------------------------------------------------------------------------- a state

    def _buffers(self) -> dict[str, Tensor]:
        """Those that a checkpoint of the model has."""
        kept = self._model.state_dict(keep_vars=True)
        return {name: one for name, one in self._model.named_buffers() if name in kept}

    def state(self) -> State:
        """All that the next step depends on, but for what the model was loaded with and what is not trained. Tensors
        are the model's and optimizer's own: write them before the next step."""
        return {
            "done": self.done,
            "weights": {name: _alone(one) for name, one in self._weights.items()},
            "buffers": {name: _alone(one) for name, one in self._buffers().items()},
            "optimizer": self._optimizer.state_dict(),
            "rate": self._rate.state_dict(),
            "scaler": self._scaler.state_dict(),
            "history": self.history,
        }

    def load(self, state: State) -> None:
        """Go on from a state.

        Raises:
            FinetuningError: it is of another model, or of other weights of it.
        """
        for name, own in (("weights", self._weights), ("buffers", self._buffers())):
            there = state[name]
            if {key: one.shape for key, one in there.items()} != {key: one.shape for key, one in own.items()}:
                raise FinetuningError(
                    f"the checkpoint has other {name} than the model to train: resume with the options that it was "
                    "made with."
                )
            with torch.no_grad():
                for key, one in own.items():
                    one.copy_(there[key])
        self._optimizer.load_state_dict(state["optimizer"])
        self._rate.load_state_dict(state["rate"])
        self._scaler.load_state_dict(state["scaler"])
        self.history = state["history"]
        self.done = state["done"]


def _alone(tensor: Tensor) -> Tensor:
    """The tensor without what else is in its memory, which would be written too."""
    tensor = tensor.detach()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _portions(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Weights of one dtype, as many as are added up at once, in their order."""
    portion: list[Tensor] = []
    for weight in weights:
        if portion and (weight.dtype != portion[0].dtype or sum(one.numel() for one in portion) > _TOGETHER):
            yield portion
            portion = []
        portion.append(weight)
    yield portion
