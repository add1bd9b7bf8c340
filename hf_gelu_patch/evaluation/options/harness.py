"""What can be asked of lm-evaluation-harness, beside what every evaluation may be asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.options.declaring import GROUPS, not_negative, option

__all__ = ["PREFIX", "Harness", "asked_tasks"]

_DATA = GROUPS[0]

PREFIX = "lm_eval:"
"""What the name of a task of lm-evaluation-harness begins with."""


@dataclass(frozen=True)
class Harness:
    """Its options, called as its own command line calls them. They say of themselves what they are."""

    include_path: tuple[Path, ...] = option(
        (),
        "lm_eval: a folder with tasks of your own, in YAML; may be repeated",
        _DATA,
        metavar="FOLDER",
        read=Path,
        repeated=True,
    )
    num_fewshot: int | None = option(
        None, "lm_eval: examples before each question (default: the task's)", _DATA, metavar="N", read=not_negative
    )
    apply_chat_template: bool = option(False, "lm_eval: put each prompt into the tokenizer's chat template", _DATA)
    gen_kwargs: str | None = option(
        None, "lm_eval: how to generate, as in max_gen_toks=64,do_sample=true", _DATA, metavar="KEY=VALUE,…"
    )
    confirm_run_unsafe_code: bool = option(False, "lm_eval: run tasks that execute the code that a model writes", _DATA)


def asked_tasks(task: str | None) -> tuple[str, ...] | None:
    """The names in ``lm_eval:NAME,NAME``; None where something else is asked for.

    Raises:
        EvaluationError: no name follows, or one stands there twice.
    """
    if task is None or not task.startswith(PREFIX):
        return None
    names = tuple(filter(None, (name.strip() for name in task.removeprefix(PREFIX).split(","))))
    if not names:
        raise EvaluationError(f"{task} names no task: write {PREFIX}NAME, or several names with commas between them.")
    if len(set(names)) < len(names):
        raise EvaluationError(f"{task} names a task twice: once is enough.")
    return names
