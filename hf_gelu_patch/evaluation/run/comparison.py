"""One model beside its patched twins: what every part of an evaluation works with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hf_gelu_patch import NothingPatchedWarning, Report, patch
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.tasks.batches import Batches
from hf_gelu_patch.evaluation.twins import twin
from hf_gelu_patch.evaluation.variants import Variant, check_variants

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

__all__ = ["STAGES", "Comparison", "Progress", "patched_by"]

Progress = Callable[[str, float], None]
"""Told the stage, one of ``STAGES``, and the share of it that is done."""

STAGES = ("load", "quality", "layers", "speed")


@dataclass(frozen=True)
class Comparison:
    """One model and its patched twins, on one task's data, in the processes that share the work.

    Attributes:
        model: unpatched, in evaluation mode, on the device of ``accelerator``.
        task: its data.
        settings: what to compare, and how to measure.
        accelerator: the processes.
        batches: of all examples, each made when it is asked for.
        batch_size: examples in each, but for the last.
        patches: what each variant's patch did, by the variant's name.
        running: the patched twins that are run, by the variant's name. A variant in which nothing was patched says what
            the unpatched model says: it is run only where that is what was asked for.
        progress: told what is done; only on the main process.
    """

    model: PreTrainedModel
    task: Task
    settings: Settings
    accelerator: Accelerator
    batches: Batches
    batch_size: int
    patches: Mapping[str, Report] = field(default_factory=dict)
    running: Mapping[str, PreTrainedModel] = field(default_factory=dict)
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
        twins = {variant.name: twin(self.model) for variant in variants}
        patches = {variant.name: patched_by(twins[variant.name], variant) for variant in variants}
        running = {v.name: twins[v.name] for v in variants if patches[v.name].changed or v.implementation == "eager"}
        settings = replace(self.settings, variants=tuple(variants))
        return replace(self, settings=settings, patches=patches, running=running)

    def on(self, task: Task) -> Comparison:
        """The same on another task, such as one without the rows that the model fails on."""
        return self if task is self.task else replace(self, task=task, batches=task.batches(self.batch_size))

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
