"""One run: a model measured, patched, measured, trained, measured and written."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hf_gelu_patch import NothingPatchedWarning, Report, patch
from hf_gelu_patch.evaluation import digests
from hf_gelu_patch.evaluation.environment import environment
from hf_gelu_patch.evaluation.json_values import as_json
from hf_gelu_patch.evaluation.loading.subjects import load_rows
from hf_gelu_patch.evaluation.options.declaring import declared
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.run import load
from hf_gelu_patch.evaluation.run.comparison import Progress
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.tasks.limits import Limits
from hf_gelu_patch.evaluation.tasks.making import make_task
from hf_gelu_patch.evaluation.variants import Variant
from hf_gelu_patch.finetuning import results
from hf_gelu_patch.finetuning.adapters import add_adapters, check_adapters
from hf_gelu_patch.finetuning.checkpoints import RunFolder, agreed, read_state
from hf_gelu_patch.finetuning.errors import FinetuningError
from hf_gelu_patch.finetuning.heads import with_new_head
from hf_gelu_patch.finetuning.learner import Learner
from hf_gelu_patch.finetuning.order import Order
from hf_gelu_patch.finetuning.saving import reloaded, save, save_adapters
from hf_gelu_patch.finetuning.settings import Training
from hf_gelu_patch.finetuning.stages import Measuring, read, written
from hf_gelu_patch.verification.restoring import seeded

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel

__all__ = ["STAGES", "Request", "finetune"]

STAGES = ("load", "before", "patched", "train", "trained")
"""What is told of the progress."""

_NOT_THE_WEIGHTS = {"train_file", "resume_from_checkpoint", "save_total_limit", "checkpointing_steps"}
_SHARED = {"per_device_train_batch_size", "gradient_accumulation_steps"}  # among the processes: their product counts


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        subject: the model, and the data to measure it on.
        settings: how to measure.
        training: how to train; its ``train_file`` as ``data_file`` gives it.
        variant: how to patch.
        folder: for all that is written.
        command: the program and its arguments, for the record.
    """

    subject: Subject
    settings: Settings
    training: Training
    variant: Variant
    folder: Path
    command: tuple[str, ...] = ()


def finetune(request: Request, accelerator: Accelerator, tell: Progress) -> results.Data:
    """Measure a model, patch it, measure what that costs, train it, measure again, and write it.

    Every process computes all steps; what a step gives does not depend on how many there are, up to the order in which
    gradients are added. A run that died goes on from its last checkpoint, and ends in the same weights to the bit.

    Args:
        request: what was asked for.
        accelerator: the processes.
        tell: told the progress, one of ``STAGES`` and its share.

    Returns:
        What was found out, as it stands in ``finetuning.json``.

    Raises:
        EvaluationError: what was named cannot be used; ``FinetuningError`` where that has to do with training.
        PatchError: the patch was refused.
    """
    training, settings = request.training, request.settings
    folder = RunFolder(request.folder, training.resume_from_checkpoint, training.save_total_limit)
    agreed(accelerator, folder.check)
    check_adapters(training)
    with seeded():
        torch.manual_seed(settings.seed)
        tell("load", 0.0)
        model, task, order = _loaded(request, accelerator)
        steps = training.max_train_steps or training.num_train_epochs * order.steps_in_epoch
        run = _fingerprint(request, model, task, order, steps)
        checkpoint = agreed(accelerator, lambda: folder.claim(run))
        found = _Run(request, accelerator, tell, folder, Measuring(task, settings, accelerator))
        report = found.measured_and_patched(model)
        adapters = add_adapters(model, task, training) if training.lora_r is not None else None
        if training.gradient_checkpointing:
            _checkpoint_activations(model, on=True)
        learner = Learner(model, order.task, accelerator, training, steps=steps, seed=settings.seed)
        if checkpoint is not None:
            learner.load(read_state(checkpoint))
        took = found.train(learner, order, steps, model)
        return found.finish(model, learner, adapters, report, {"run": run, "training": took})


def _loaded(request: Request, accelerator: Accelerator) -> tuple[PreTrainedModel, Task, Order]:
    """The model, the task to measure it on, and the examples to train on."""
    training, settings = request.training, request.settings
    assert training.train_file is not None
    subject = replace(request.subject, data=training.train_file, split=None, metric=None)
    data = load_rows(subject, skip_bad_rows=settings.skip_bad_rows, training=True)
    with with_new_head(request.subject, data, settings) if training.new_head else nullcontext(request.subject) as one:
        model, task, _ = load(one, settings, accelerator)
    learnt = make_task(
        subject,
        model.config,
        task.loaded,
        data,
        limit=settings.limit,
        limits=Limits.of(model),
        skip_bad_rows=settings.skip_bad_rows,
    )
    for some in (task, learnt):
        if (reason := some.not_learnable()) is not None:
            raise FinetuningError(f"{some.subject.data}, for {some.subject.task}, {reason}")
    order = Order(
        learnt,
        training.per_device_train_batch_size,
        training.gradient_accumulation_steps * accelerator.num_processes,
        settings.seed,
        training.group_by_length,
    )
    return model, task, order


def _checkpoint_activations(model: PreTrainedModel, *, on: bool) -> None:
    """transformers calls it one way up to 5.x, and another since."""
    what = "enable" if on else "disable"
    names = (f"activation_checkpointing_{what}", f"gradient_checkpointing_{what}")
    switch = next(getattr(model, name) for name in names if hasattr(model, name))
    try:
        switch({"use_reentrant": False}) if on else switch()
    except ValueError as error:
        raise FinetuningError(f"{type(model).__name__} has no --gradient_checkpointing: leave it out.") from error


def _fingerprint(request: Request, model: PreTrainedModel, task: Task, order: Order, steps: int) -> dict[str, Any]:
    """All that the weights depend on, by what the command line calls it; data and weights by their content."""
    said = {
        name: getattr(request.training, name)
        for name in declared(Training)
        if name not in _NOT_THE_WEIGHTS and name not in _SHARED
    }
    found: dict[str, Any] = as_json(
        {
            "model_name_or_path": request.subject.name,
            "weights": digests.content_digest(model.state_dict().items()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "task": request.subject.task,
            "train_file": digests.text_digest([order.task.asked, len(order.task.examples)]),
            "validation_file": digests.text_digest([task.asked, len(task.examples)]),
            "examples": len(order.task.examples),
            "max_length": request.subject.max_length,
            "limit": request.settings.limit,
            **request.variant.options,
            "seed": request.settings.seed,
            "batch": order.size,
            "batches in a step": order.batches,
            "steps": steps,
            **said,
        }
    )
    return found


@dataclass
class _Run:
    """What the parts of a run have in common."""

    request: Request
    accelerator: Accelerator
    tell: Progress
    folder: RunFolder
    measuring: Measuring
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)

    # -------------------------------------------------------------------------------------------------- before training

    def measured_and_patched(self, model: PreTrainedModel) -> Report:
        """Measure the model as it came, patch it, and where that swaps a function measure it again."""

        def first() -> list[Outcome]:
            self.measuring, found = self.measuring.first(model, self._telling("before"))
            return found

        self._stage("before", first)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingPatchedWarning)  # the report says so
            report = patch(model, **self.request.variant.options)
        if any(site.equivalence == "different" for site in report.changed):
            self._stage("patched", lambda: self.measuring.again(model, self._telling("patched")))
        return report

    def _stage(self, name: str, measure: Callable[[], list[Outcome]]) -> None:
        """What is said at a stage: as a run that died has written it, else measured and written. With rows left out
        it is measured anew, for these are found by measuring."""
        place = f"answers/{name}.json"

        def there() -> bytes | None:
            path = self.folder.path / place
            return path.read_bytes() if path.is_file() and not self.request.settings.skip_bad_rows else None

        found = agreed(self.accelerator, there)
        if found is not None:
            self.outcomes[name] = read(found)
            return
        self.outcomes[name] = measure()
        agreed(self.accelerator, lambda: self.folder.write_file(place, written(self.outcomes[name])))

    def _telling(self, stage: str) -> Progress:
        return lambda _, share: self.tell(stage, share)

    # --------------------------------------------------------------------------------------------------------- training

    def train(self, learner: Learner, order: Order, steps: int, model: PreTrainedModel) -> dict[str, Any]:
        """Make the steps that are left; write checkpoints, and measure at the end of each epoch but the last."""
        start, began, per_epoch = time.perf_counter(), learner.done, order.steps_in_epoch
        often = self.request.training.checkpointing_steps
        measured = 0.0
        while learner.done < steps:
            epoch, within = divmod(learner.done, per_epoch)
            for batches in order.epoch(epoch)[within:]:
                self.tell("train", learner.done / steps)
                learner.step(batches)
                ends = learner.done % per_epoch == 0
                if ends and learner.done < steps:
                    since = time.perf_counter()
                    self._look(learner, model)
                    measured += time.perf_counter() - since
                if learner.done == steps or (ends if often == "epoch" else learner.done % int(often) == 0):
                    state = learner.state()
                    agreed(self.accelerator, lambda state=state: self.folder.write(state))  # type: ignore[misc]
                if learner.done == steps:
                    break
        weights = list(model.parameters())
        return {
            "steps": steps,
            "timed": steps - began,
            "seconds": time.perf_counter() - start - measured,
            "parameters": sum(one.numel() for one in weights),
            "trained": sum(one.numel() for one in weights if one.requires_grad),
            "history": learner.history,
        }

    def _look(self, learner: Learner, model: PreTrainedModel) -> None:
        share = learner.done
        outcomes = self.measuring.again(model, lambda _, __: None)
        learner.history["validation"].append({"step": share, "metrics": self.measuring.metrics(outcomes)})
        self._draw(learner)

    def _draw(self, learner: Learner) -> None:
        try:
            from hf_gelu_patch.finetuning.curves import draw
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != "matplotlib":
                raise
            return
        stages = self._metrics()
        agreed(self.accelerator, lambda: self.folder.write_file("curves.png", draw(learner.history, stages)))

    def _metrics(self) -> dict[str, dict[str, float]]:
        return {name: self.measuring.metrics(outcomes) for name, outcomes in self.outcomes.items()}

    # --------------------------------------------------------------------------------------------------- after training

    def finish(
        self, model: PreTrainedModel, learner: Learner, adapters: Any, report: Report, known: Mapping[str, Any]
    ) -> results.Data:
        """Write the trained model, measure it, and put together what was found out."""
        if self.request.training.gradient_checkpointing:
            _checkpoint_activations(model, on=False)
        model.train(False)
        processor = self.measuring.task.loaded
        if adapters is not None:
            agreed(self.accelerator, lambda: save_adapters(self.folder, adapters))
            adapters.merge_and_unload()
        agreed(self.accelerator, lambda: save(self.folder, model, processor))
        self.outcomes["trained"] = self.measuring.again(model, self._telling("trained"))
        agreed(
            self.accelerator, lambda: self.folder.write_file("answers/trained.json", written(self.outcomes["trained"]))
        )
        self._draw(learner)
        pairs = {"patched": ("before", "patched"), "trained": ("before", "trained"), "healed": ("patched", "trained")}
        surroundings = environment(
            processes=self.accelerator.num_processes,
            device=str(self.accelerator.device),
            command=self.request.command or ("hf-gelu-patch", "finetune"),
        )
        data: results.Data = as_json(
            {
                "schema": 1,
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "environment": surroundings,
                "subject": {**asdict(self.request.subject), "data": str(self.request.subject.data)},
                **known,
                "patch": report.to_dict(),
                "stages": self._metrics(),
                "changes": {
                    name: results.plain_change(self.measuring.compared(self.outcomes[one], self.outcomes[other]))
                    for name, (one, other) in pairs.items()
                    if one in self.outcomes and other in self.outcomes
                },
                "skipped": self.measuring.task.skipped,
                "reloaded": reloaded(self.folder, report, self.request.settings.loading),
            }
        )
        for name, content in (
            (results.JSON_NAME, results.content(data)),
            ("finetuning.md", results.markdown(data).encode()),
        ):
            agreed(self.accelerator, lambda name=name, content=content: self.folder.write_file(name, content))  # type: ignore[misc]
        return data
