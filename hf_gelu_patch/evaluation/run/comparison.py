"""One model beside its patched variants: what every part of an evaluation works with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hf_gelu_patch import NothingPatchedWarning, Report, patch, unpatch
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.makes import TURN, device_of
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.tasks.batches import Batches
from hf_gelu_patch.evaluation.twins import obstacle, twin
from hf_gelu_patch.evaluation.variants import Variant, check_variants

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from transformers import PreTrainedModel

__all__ = ["STAGES", "Comparison", "Progress", "Side", "patched_by"]

Progress = Callable[[str, float], None]
"""Told the stage, one of ``STAGES``, and the share of it that is done."""

STAGES = ("load", "quality", "layers", "speed")


@dataclass(frozen=True)
class Side:
    """One of the models that are compared. Within a ``with`` block it is as it is to be compared, and there is no other
    way to it.

    Attributes:
        model: what is run.
        turn: how to patch it for the length of each block; None where it is as it is to be.
    """

    model: PreTrainedModel
    turn: Variant | None = None

    def __enter__(self) -> PreTrainedModel:
        if self.turn is not None:
            patched_by(self.model, self.turn)
            vars(self.model)[TURN] = self
        return self.model

    def __exit__(self, *_: object) -> None:
        if self.turn is not None:
            vars(self.model).pop(TURN, None)
            unpatch(self.model)


@dataclass(frozen=True)
class Comparison:
    """One model and its patched variants, on one task's data, in the processes that share the work.

    Attributes:
        model: unpatched, in evaluation mode.
        task: its data.
        settings: what to compare, and how to measure.
        accelerator: the processes.
        batches: of all examples, each made when it is asked for.
        batch_size: examples in each, but for the last.
        patches: what each variant's patch did, by the variant's name.
        running: the variants that are run, by name. A variant in which nothing was patched says what the unpatched
            model says: it is run only where that is what was asked for.
        in_turn: why variants are no twins of the model, but the model itself, patched and unpatched in turn; "" where
            they are twins.
        progress: told what is done; only on the main process.
    """

    model: PreTrainedModel
    task: Task
    settings: Settings
    accelerator: Accelerator
    batches: Batches
    batch_size: int
    patches: Mapping[str, Report] = field(default_factory=dict)
    running: Mapping[str, Side] = field(default_factory=dict)
    in_turn: str = ""
    progress: Progress | None = None

    @classmethod
    def unpatched(
        cls,
        model: PreTrainedModel,
        task: Task,
        settings: Settings,
        accelerator: Accelerator,
        progress: Progress | None = None,
    ) -> Comparison:
        """The model by itself, without any variant."""
        size = settings.batch_size or task.batch_size()
        return cls(
            model,
            task,
            replace(settings, variants=()),
            accelerator,
            task.batches(size),
            size,
            progress=progress if accelerator.is_main_process else None,
        )

    def patched(self, variants: Sequence[Variant]) -> Comparison:
        """The same beside these variants of it.

        Raises:
            PatchError: a patch was refused.
            EvaluationError: the model is in training mode, or two variants have one name.
        """
        if self.model.training:
            raise EvaluationError("the model is in training mode, where dropout would differ: call model.eval() first.")
        check_variants(variants)
        in_turn = obstacle(self.model)
        patches: dict[str, Report] = {}
        running: dict[str, Side] = {}
        for variant in variants:
            model = self.model if in_turn else twin(self.model)
            report = patches[variant.name] = patched_by(model, variant)
            changes = bool(report.changed or report.in_tiles)
            if in_turn and changes:
                unpatch(model)
            if changes or variant.implementation == "eager":
                running[variant.name] = Side(model, variant if in_turn and changes else None)
        settings = replace(self.settings, variants=tuple(variants))
        return replace(self, settings=settings, patches=patches, running=running, in_turn=in_turn)

    def on(self, task: Task) -> Comparison:
        """The same on another task, such as one without the rows that the model fails on."""
        return self if task is self.task else replace(self, task=task, batches=task.batches(self.batch_size))

    @property
    def device(self) -> torch.device:
        """Where the model, and each variant of it, is given its inputs."""
        return device_of(self.model)

    @property
    def names(self) -> tuple[str, ...]:
        """The variants' names."""
        return tuple(variant.name for variant in self.settings.variants)

    def tell(self, stage: str, share: float) -> None:
        """Say how far a stage has got."""
        if self.progress is not None:
            self.progress(stage, share)


def patched_by(model: PreTrainedModel, variant: Variant) -> Report:
    """What patching a model as a variant says did. Where it changes nothing the report says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingPatchedWarning)  # the result says so
        return patch(model, **variant.options)
