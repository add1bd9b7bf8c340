"""A task of one's own: a function in a Python file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line


def own_file(task: str) -> bool:
    """Whether a task is named by a Python file, rather than as one of ``TASKS``."""
    return task.endswith(".py")


def own_task(task: str) -> Callable[..., Any]:
    """The function ``batch`` out of a Python file: a task of one's own. It makes of some rows what the model is given,
    and what is right::

        # emotions.py, for --task emotions.py
        AUTO_CLASS = "AutoModelForSequenceClassification"  # in transformers; AutoModel where it isn't named


        def batch(rows, processor, config):
            texts = [row["title"] + ": " + row["body"] for row in rows]
            inputs = processor(texts, padding=True, truncation=True, return_tensors="pt")
            return inputs, [config.label2id[row["emotion"]] for row in rows]

    ``rows`` are dicts as they stand in the data (cells of a csv file are texts), ``processor`` is the model's tokenizer
    or image processor, and ``config`` the model's config. What comes first are the model's keyword arguments, whose
    tensors have a row for each of ``rows``; then the right classes: a number for each row, or a row of numbers for the
    positions of its logits, −100 where none counts; or None, where only the drift is looked at. The model's ``logits``
    (or its last hidden state) are what is compared. The function has to give the same for the same rows.

    Raises:
        EvaluationError: there is no such file, it cannot be run, or has no such function.
    """
    path = Path(task).expanduser()
    function = getattr(own_module(path), "batch", None)
    if not callable(function):
        raise EvaluationError(f"{task} has no function batch(rows, processor, config): a task of one's own is one.")
    return function  # type: ignore[no-any-return]


def own_module(path: Path) -> Any:
    """The module that a Python file is.

    Raises:
        EvaluationError: it cannot be run.
    """
    import importlib.util

    specification = importlib.util.spec_from_file_location(f"_own_task_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except Exception as error:  # it is the user's own code
        raise EvaluationError(f"{path} cannot be run: {type(error).__name__}: {first_line(error)}") from error
    return module
