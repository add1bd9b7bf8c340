"""Tasks and groups of lm-evaluation-harness found by name, with their data."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.options.harness import PREFIX, Harness
from hf_gelu_patch.evaluation.options.subject import Subject

__all__ = ["Asked", "check_installed", "load_tasks", "quiet", "subject_of"]


@dataclass(frozen=True)
class Asked:
    """A task or a group as it was asked for.

    Attributes:
        name: as it was asked for; a tag's name stands for several tasks.
        tasks: its tasks by name, as lm-evaluation-harness has them.
        groups: the group of that name, and those within it.
    """

    name: str
    tasks: dict[str, Any]
    groups: dict[str, Any]

    @property
    def title(self) -> str:
        """What reports call it: its name; of a tag or a file, its tasks' names."""
        return self.name if self.name in {*self.tasks, *self.groups} else ", ".join(self.tasks)

    @property
    def data(self) -> str:
        """Where its documents are from."""
        places = dict.fromkeys(_place(task) for task in self.tasks.values())
        return ", ".join(list(places)[:3]) + (", …" if len(places) > 3 else "")

    @property
    def digest(self) -> str:
        """A hash of how its tasks are configured."""
        from hf_gelu_patch.evaluation.digests import text_digest

        return text_digest({name: [task.VERSION, dict(task.dump_config())] for name, task in self.tasks.items()})


def _place(task: Any) -> str:
    """A data set's name, or the first file of a local one."""
    files = (task.get_config("dataset_kwargs") or {}).get("data_files")
    while isinstance(files, dict | list) and files:
        files = next(iter(files.values())) if isinstance(files, dict) else files[0]
    return str(files or task.get_config("dataset_path") or task.task_name)


def subject_of(name: str, place: str, asked: Asked, max_length: int | None = None) -> Subject:
    """A model with a task, as results call them.

    Args:
        name: the model's.
        place: where it is.
        asked: the task or group.
        max_length: tokens of a prompt with its answer; None for what the model takes.
    """
    return Subject(
        name=f"{name}: {asked.title}",
        title=f"{name} on {asked.title}",
        model=place,
        task=f"{PREFIX}{asked.title}",
        data=asked.data,
        input_column=None,
        target_column=None,
        max_length=max_length,
    )


def check_installed() -> None:
    """See that lm-evaluation-harness is there.

    Raises:
        EvaluationError: it is not.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise EvaluationError(
            f"{PREFIX}… needs lm-evaluation-harness, which is not installed: pip install 'hf-gelu-patch[lm-eval]'"
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Its log, its warnings and its progress bars, some of which nothing turns off, have no place beside our own."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def load_tasks(names: Sequence[str], options: Harness) -> list[Asked]:
    """Tasks with their data, by their names there, those of ``include_path`` first. A name may be a YAML file's path.

    Raises:
        EvaluationError: there is no such task, its data are not here, or it cannot be made.
    """
    for folder in options.include_path:
        if not folder.is_dir():
            raise EvaluationError(f"--include_path {folder} is no folder: name one with tasks in YAML.")
    with quiet():
        manager = _manager(names, options)
        return [_asked(manager, name, options) for name in names]


def _manager(names: Sequence[str], options: Harness) -> Any:
    """What knows the tasks. Its own number thousands, which take seconds to list: without them where all that is asked
    for is the user's."""
    from lm_eval.tasks import TaskManager

    own = [str(folder.resolve()) for folder in options.include_path]
    if own or all(_is_file(name) for name in names):
        manager = TaskManager(include_path=own, include_defaults=False)
        if all(_is_file(name) or _all_there(manager, name) for name in names):
            return manager
    return TaskManager(include_path=own or None)


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _all_there(manager: Any, name: str) -> bool:
    """Whether a task is known, with all that a group of that name has in it."""
    entry = manager.task_index.get(name)
    if entry is None:
        return False
    inside = (entry.cfg or {}).get("task")
    children = inside if isinstance(inside, list) else []
    return all(_all_there(manager, child) for child in children if isinstance(child, str) and child != name)


def _asked(manager: Any, name: str, options: Harness) -> Asked:
    if _is_file(name) and not Path(name).is_file():
        raise EvaluationError(f"there is no file {name} that could hold a task.")
    if not _is_file(name) and name not in manager.task_index:
        raise EvaluationError(f"lm-evaluation-harness has no task {name!r}.{_near(name, manager.all_tasks)}")
    try:
        loaded = manager.load([name])
        for task in loaded["tasks"].values():
            _configure(task, options)
    except Exception as error:  # each data set, template and function has its own
        raise EvaluationError(_reason(name, error)) from error
    for task in loaded["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False) and not options.confirm_run_unsafe_code:
            raise EvaluationError(
                f"the task {task.task_name} executes code that the model writes. Run it where that can do no harm, "
                "with --confirm_run_unsafe_code."
            )
        if getattr(task, "MULTIMODAL", False):
            raise EvaluationError(f"the task {task.task_name} asks about images or sounds: only texts are asked here.")
    return Asked(name, loaded["tasks"], loaded.get("groups", {}))


def _configure(task: Any, options: Harness) -> None:
    """What lm-evaluation-harness's ``simple_evaluate`` does with a task before it runs it: few-shot examples are left
    out where the task says that it has none."""
    from lm_eval.utils import simple_parse_args_string

    if options.gen_kwargs and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=simple_parse_args_string(options.gen_kwargs), update=True)
    own = task.get_config("num_fewshot")
    if options.num_fewshot is not None and own != 0:
        task.set_config(key="num_fewshot", value=options.num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)


def _near(name: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=3)
    said = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"{said} Tasks of your own come from a folder, --include_path FOLDER; 'lm_eval ls tasks' lists the others."


def _reason(name: str, error: Exception) -> str:
    said = first_line(error)
    if any(word in said for word in ("Offline", "offline", "Hub")) or isinstance(error, ConnectionError):
        return (
            f"the data of the task {name!r} are not here: {said.rstrip('.')}. Add --allow_download to fetch "
            "them, or name a task of your own with local data, --include_path FOLDER."
        )
    return f"the task {name!r} cannot be made: {type(error).__name__}: {said}"
