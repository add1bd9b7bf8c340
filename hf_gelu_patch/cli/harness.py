"""``hf-gelu-patch evaluate --task lm_eval:…``: models before and after a patch, on tasks of lm-evaluation-harness."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hf_gelu_patch.cli.command import Said
from hf_gelu_patch.cli.progress import progress
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.harness.tasks import Asked, check_installed, load_tasks, subject_of
from hf_gelu_patch.evaluation.loading.checkpoints import checkpoint, locate, read_config
from hf_gelu_patch.evaluation.options.declaring import declared, made
from hf_gelu_patch.evaluation.options.harness import PREFIX, Harness
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.options.subject import Subject

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hf_gelu_patch.evaluation.harness.run import Loaded
    from hf_gelu_patch.evaluation.run.result import Result

__all__ = ["HarnessRun", "check_others"]

_OWN = ("task", "max_length", "allow_download")
"""The options of a subject that mean something to lm-evaluation-harness."""


def check_others(said: Said) -> None:
    """See that no option of lm-evaluation-harness's is given to another task.

    Raises:
        EvaluationError: one is.
    """
    if other := [name for name in declared(Harness) if name in said]:
        raise EvaluationError(f"--{other[0]} is for tasks of lm-evaluation-harness, --task {PREFIX}NAME: drop it.")


@dataclass(frozen=True)
class HarnessRun:
    """Models on tasks of lm-evaluation-harness: everything that was named is there before anything is loaded.

    Attributes:
        places: where each model is, by its name.
        asked: what to ask.
        options: of lm-evaluation-harness.
        settings: what to compare, and how to measure.
        max_length: tokens of a prompt with its answer; None for what the model takes.
        download: fetch what is not here.
    """

    places: Mapping[str, str]
    asked: Sequence[Asked]
    options: Harness
    settings: Settings
    max_length: int | None
    download: bool

    @classmethod
    def of(cls, said: Said, models: Sequence[str], names: Sequence[str], settings: Settings) -> HarnessRun:
        """What a command line asks for.

        Raises:
            EvaluationError: a model, a task or its data are not there, or an option has no use for these.
        """
        other = [name for name in declared(Subject) if name in said and name not in _OWN]
        other += [name for name in ("skip_bad_rows",) if said.get(name)]
        if other:
            raise EvaluationError(f"a task of lm-evaluation-harness has no use for --{other[0]}: drop it.")
        if settings.loading.tp_plan is not None:
            raise EvaluationError("a task of lm-evaluation-harness runs in one process: drop --tp_plan.")
        if settings.loading.torch_compile:
            raise EvaluationError("a task of lm-evaluation-harness has prompts of any length: drop --torch_compile.")
        if settings.resume:
            raise EvaluationError("a task of lm-evaluation-harness is run as a whole: drop --resume.")
        check_installed()
        download = bool(said.get("allow_download"))
        if not download:
            os.environ.setdefault("HF_EVALUATE_OFFLINE", "1")
        options = made(Harness, said)
        places = {name: locate(name, settings.loading, allow_download=download) for name in models}
        return cls(places, load_tasks(names, options), options, settings, said.get("max_length"), download)

    def evaluate(self, accelerator: Accelerator, folder: Path) -> list[Result]:
        """Each model on each task."""
        from hf_gelu_patch.evaluation.harness.run import Question, check_processes, evaluate_question
        from hf_gelu_patch.evaluation.run import STAGES

        check_processes(accelerator.num_processes)
        found = []
        with progress(accelerator.is_main_process, len(self.places) * len(self.asked), STAGES) as tell:
            for name, place in self.places.items():
                loaded = self._loaded(name, place, accelerator)
                for asked in self.asked:
                    question = Question(asked, self.options, self.max_length)
                    told = tell(question.subject(loaded).name)
                    found.append(evaluate_question(loaded, question, self.settings, accelerator, told, folder=folder))
        return found

    def _loaded(self, name: str, place: str, accelerator: Accelerator) -> Loaded:
        from hf_gelu_patch.evaluation.harness.run import Loaded
        from hf_gelu_patch.evaluation.loading.models import load_model
        from hf_gelu_patch.evaluation.loading.processors import load_processor

        start = time.perf_counter()
        loading = self.settings.loading
        found = checkpoint(place, loading, allow_download=self.download)
        architectures = [] if found.gguf_file else map(str, read_config(found).get("architectures") or [])
        task = "seq2seq" if any(one.endswith("ForConditionalGeneration") for one in architectures) else "causal-lm"
        tokenizer = load_processor(place, task, loading, allow_download=self.download)
        model = load_model(place, task, loading, allow_download=self.download, device=accelerator.device)
        return Loaded(_shown(name), place, model, tokenizer, time.perf_counter() - start)

    def record_folders(self) -> list[str]:
        """Where the samples of each model go, below the folder for results."""
        from hf_gelu_patch.evaluation.harness.run import record_folder

        return [f"{record_folder(_shown(name))}/" for name in self.places]

    def subjects(self) -> list[Subject]:
        """Each model with each task, as results call them."""
        return [
            subject_of(_shown(name), place, asked, self.max_length)
            for name, place in self.places.items()
            for asked in self.asked
        ]


def _shown(name: str) -> str:
    """A model's name, or that of its folder."""
    return Path(name).resolve().name if Path(name).is_dir() else name
