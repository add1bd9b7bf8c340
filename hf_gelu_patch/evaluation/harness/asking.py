"""lm-evaluation-harness run on one model: the same documents, prompts and seeds whichever model it is."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.harness.tasks import Asked, quiet
from hf_gelu_patch.evaluation.options.harness import Harness

__all__ = ["Asking", "Told", "write_samples"]

_PYTHON_SEED, _OTHER_SEED = 0, 1234  # lm-evaluation-harness's own


@dataclass(frozen=True)
class Told:
    """What lm-evaluation-harness says of a model.

    Attributes:
        results: as it gives them: scores, configurations, and each task's samples.
        seen: the batches that the model was given.
    """

    results: Mapping[str, Any]
    seen: list[dict[str, Tensor]]

    @property
    def samples(self) -> dict[str, list[Mapping[str, Any]]]:
        """Each task's samples."""
        found: dict[str, list[Mapping[str, Any]]] = self.results["samples"]
        return found


@dataclass(frozen=True)
class Asking:
    """What to ask, and how; of any number of models.

    Attributes:
        asked: the tasks.
        options: of lm-evaluation-harness.
        batch_size: requests in a batch.
        max_length: tokens of a prompt; None for what the model takes.
        limit: documents of each task; None for all.
        tokenizer: the model's.
    """

    asked: Asked
    options: Harness
    batch_size: int
    max_length: int | None
    limit: int | None
    tokenizer: Any

    def of(self, model: Any, who: str) -> Told:
        """Ask a model. What ``lm_eval.simple_evaluate`` does of a model that is loaded, with its seeds.

        Args:
            model: in evaluation mode.
            who: what it is called where it fails.

        Raises:
            EvaluationError: it does.
        """
        if self.tokenizer.bos_token_id is None and self.tokenizer.eos_token_id is None:
            raise EvaluationError(
                f"{who}: its tokenizer has neither a BOS nor an EOS token, one of which lm-evaluation-harness puts "
                "before texts: name one of its tokens in tokenizer_config.json as eos_token."
            )
        from lm_eval.evaluator import evaluate

        from hf_gelu_patch.evaluation.harness.model import DrivenModel

        random.seed(_PYTHON_SEED)
        np.random.seed(_OTHER_SEED)
        torch.manual_seed(_OTHER_SEED)
        for task in self.asked.tasks.values():  # each draws on where the model before it has stopped
            task.set_fewshot_seed(seed=_OTHER_SEED)
        with quiet():
            try:
                driven = DrivenModel(model, self.tokenizer, batch_size=self.batch_size, max_length=self.max_length)
                results = evaluate(
                    lm=driven,
                    task_dict={"tasks": self.asked.tasks, "groups": self.asked.groups},
                    limit=self.limit,
                    bootstrap_iters=0,
                    log_samples=True,
                    apply_chat_template=self.options.apply_chat_template,
                    fewshot_as_multiturn=True,
                    confirm_run_unsafe_code=self.options.confirm_run_unsafe_code,
                )
            except Exception as error:  # each model and each task has its own
                raise EvaluationError(
                    f"{who} fails on {self.asked.name}: {type(error).__name__}: {first_line(error)}\n{self._remedy()}"
                ) from error
        return Told(results, driven.seen)

    def _remedy(self) -> str:
        """What may help where lm-evaluation-harness fails, by what was asked for."""
        found = "Take a smaller --per_device_eval_batch_size or --max_length where memory or length is the matter"
        if self.options.num_fewshot:
            found += f", a smaller --num_fewshot where the task has no {self.options.num_fewshot} other examples"
        if self.options.gen_kwargs:
            found += ", other --gen_kwargs where it names one of them: they go to transformers' generate"
        return f"{found}."


def write_samples(told: Told, folder: Path) -> list[str]:
    """Write results and samples as lm-evaluation-harness itself does: ``samples_TASK_DATE.jsonl``.

    Returns:
        The files' names.

    Raises:
        EvaluationError: they cannot be written. It would say nothing of that.
    """
    from lm_eval.loggers import EvaluationTracker

    with quiet():
        tracker = EvaluationTracker(output_path=str(folder))
        tracker.general_config_tracker.model_name_sanitized = ""
        tracker.date_id = datetime.now().isoformat().replace(":", "-")
        samples = {task: [dict(one) for one in some] for task, some in told.samples.items()}
        tracker.save_results_aggregated(
            results={key: value for key, value in told.results.items() if key != "samples"}, samples=samples
        )
        for task, some in samples.items():
            tracker.save_results_samples(task_name=task, samples=some)
    names = [f"results_{tracker.date_id}.json", *(f"samples_{task}_{tracker.date_id}.jsonl" for task in samples)]
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise EvaluationError(
            f"{folder / missing[0]} cannot be written. Make room, or name another folder with --output_dir."
        )
    return names
