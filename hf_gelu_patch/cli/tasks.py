"""``hf-gelu-patch tasks``: what models can be asked."""

from __future__ import annotations

import importlib.util

from hf_gelu_patch.cli.command import Command, Said
from hf_gelu_patch.evaluation.options.harness import PREFIX
from hf_gelu_patch.evaluation.tasks.registry import TASKS, TaskInfo

__all__ = ["COMMAND"]

_NEEDED = ("accelerate", "datasets", "evaluate", "rich")


def _run(said: Said) -> int:
    del said
    for name, task in TASKS.items():
        print(f"{name}: {task.summary}")
        classes = " or ".join([task.auto_class, *(name for _, name in task.other_classes)])
        print(f"  models: {classes}; columns: {', '.join(_spelled(task, column) for column in task.columns)}")
        print(f"  metrics: {', '.join(task.metrics) or 'none, only drift and speed'}")
        if task.missing:
            print(f"  not here: {', '.join(task.missing)} missing (pip install 'hf-gelu-patch[{task.extra}]')")
    print(f"{PREFIX}NAME[,NAME]: tasks of lm-evaluation-harness, its own and yours in YAML (--include_path)")
    if importlib.util.find_spec("lm_eval") is None:
        print("  not here: lm_eval missing (pip install 'hf-gelu-patch[lm-eval]')")
    print("path/to/file.py: a task of your own; see hf_gelu_patch.evaluation.tasks.user_file.own_task")
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        print(f"\nnot available here: {', '.join(missing)} missing (pip install 'hf-gelu-patch[evaluation]')")
    return 0


def _spelled(task: TaskInfo, column: str) -> str:
    """A column, and what else it may be called."""
    others = task.also.get(column, ())
    return f"{column} (or {', '.join(others)})" if others else column


COMMAND = Command("tasks", "what models can be asked", "List the tasks.", _run)
