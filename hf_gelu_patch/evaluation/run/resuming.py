"""What a run that died has recorded, for one that goes on with it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate.utils import gather_object

from hf_gelu_patch import __version__
from hf_gelu_patch.evaluation import digests, records
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.makes import weights_of
from hf_gelu_patch.evaluation.records import Fingerprint
from hf_gelu_patch.evaluation.run.comparison import Comparison
from hf_gelu_patch.evaluation.stored import Known, Stored
from hf_gelu_patch.evaluation.variants import BEFORE

__all__ = ["Recording", "fingerprint", "open_recording"]


@dataclass(frozen=True)
class Recording:
    """What is known already of a run's answers, and where to write the rest.

    Attributes:
        stored: the rows that this process can read.
        known: the rows that some process can read.
        writer: this process's.
        place: the folder for records; None where they are gone when the process ends.
    """

    stored: Stored
    known: Known
    writer: records.Writer
    place: Path | None

    @classmethod
    def temporary(cls, comparison: Comparison) -> Recording:
        """To write nothing that stays."""
        stored = _nothing(comparison)
        return cls(stored, stored.known, records.Writer(None, {}, comparison.accelerator.process_index), None)

    def refresh(self) -> None:
        """Take in what was written since to the files that this process can read."""
        if self.place is None:
            if self.writer.descriptor is not None:
                self.stored.add(self.writer.path, self.writer.descriptor)
            return
        for path in records.files(self.place):
            self.stored.add(path)


def _nothing(comparison: Comparison) -> Stored:
    return Stored((BEFORE, *comparison.names), len(comparison.task.examples))


def fingerprint(comparison: Comparison) -> Fingerprint:
    """All that answers depend on, by content: of the model its weights and config, of the data the rows as they stand
    there, and what the tokenizer made of them."""
    model, task, batches = comparison.model, comparison.task, comparison.batches
    generation = getattr(model, "generation_config", None)
    configs = [model.config.to_dict(), {} if generation is None else generation.to_dict()]
    for config in configs:
        for key in ("_name_or_path", "transformers_version"):
            config.pop(key, None)
    device = comparison.device
    return {
        "model": type(model).__name__,
        "weights": digests.content_digest(weights_of(model)),
        "config": digests.text_digest(configs),
        "code": digests.code_digest(model),
        "processor": digests.processor_digest(task.processor),
        "task": task.subject.task,
        "examples": len(task.examples),
        "limit": comparison.settings.limit,
        "max_length": task.subject.max_length,
        "stride": task.subject.stride,
        "source_prefix": task.subject.source_prefix,
        "labels": task.subject.labels,
        "threshold": task.subject.threshold,
        "batch_size": comparison.batch_size,
        "rows": task.asked,
        "data": digests.content_digest(
            (name, tensor) for batch in batches for name, tensor in {**batch.inputs, "targets": batch.targets}.items()
        ),
        "order": digests.list_digest(batches.all_ids()),
        "variants": [vars(variant) for variant in comparison.settings.variants],
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn_implementation": getattr(model.config, "_attn_implementation", None),
        "loading": comparison.settings.loading.said,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_gelu_patch": __version__,
    }


def open_recording(place: Path, print_: Fingerprint, comparison: Comparison) -> Recording:
    """Where to write, and what there is already: on every machine, whose folders may be one and the same or not. No
    process writes before all have read.

    Args:
        place: the folder for the records of this model.
        print_: the run's fingerprint.
        comparison: whose settings say whether to go on with what is there.

    Raises:
        EvaluationError: on every process, where one of them cannot read or write there, or finds another run's records.
    """
    accelerator, stored = comparison.accelerator, _nothing(comparison)
    found = Recording(stored, stored.known, records.Writer(place, print_, accelerator.process_index), place)
    failed: list[str] = []
    for turn in (accelerator.is_main_process, accelerator.is_local_main_process and not accelerator.is_main_process):
        if turn:
            try:
                records.prepare(place, print_, resume=comparison.settings.resume)
                found.refresh()
            except EvaluationError as error:
                failed.append(str(error))
        if told := gather_object(failed):
            raise EvaluationError(told[0])
    own = [np.packbits(stored.known)] if accelerator.is_local_main_process else []
    known = np.bitwise_or.reduce(gather_object(own))
    shape = stored.known.shape
    return replace(found, known=np.unpackbits(known, count=math.prod(shape)).reshape(shape).astype(bool))
