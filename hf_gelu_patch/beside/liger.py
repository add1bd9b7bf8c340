"""What Liger-Kernel would change in a model: what its own function does to another model of that class and config, in a
process that ends with that."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from hf_gelu_patch.beside import trial
from hf_gelu_patch.beside.records import Beside, Change

__all__ = ["NAME", "NoAnswerError", "ask", "question_on", "scan"]

NAME = "liger"
_LIMIT = 300.0
"""Seconds that the process has. It takes about eight, most of them for imports; on a busy machine many times that."""


class NoAnswerError(Exception):
    """The process gave no answer, or none can be asked. The message says why."""


def scan(model: nn.Module) -> Beside:
    """What ``apply_liger_kernel_to_…(model=model)``, with nothing else said, would change: as the Trainer does with
    ``use_liger_kernel=True``."""
    if importlib.util.find_spec("liger_kernel") is None:
        return Beside(NAME, "Liger-Kernel", notes=("it is not installed: pip install liger-kernel",))
    title = f"Liger-Kernel {_version()}".rstrip()
    path, subject = _subject(model)
    if subject is None:
        return Beside(NAME, title, notes=(f"it has nothing for a {type(model).__name__} without a transformers model",))
    try:
        said = ask(question_on(subject))
    except NoAnswerError as error:
        return Beside(NAME, title, notes=(str(error),))
    there = {name: type(one).__name__ for name, one in subject.named_modules(remove_duplicate=False)}
    changes: list[Change] = []
    others: Counter[str] = Counter()
    for name, cls, text in said["changes"]:
        if there.get(name) == cls:
            changes.append(Change(".".join(part for part in (path, name) if part), cls, text))
        else:
            others[
                f"{cls} of its config, here {there.get(name, 'missing')}: what it would change there is not known"
            ] += 1
    notes = (*said["notes"], *(f"{count} × {text}" for text, count in others.items()))
    return Beside(NAME, title, tuple(changes), tuple(said["process"]), notes)


def _version() -> str:
    try:
        return version("liger-kernel")
    except PackageNotFoundError:  # of another name: a nightly build
        return ""


def _subject(model: nn.Module) -> tuple[str, Any]:
    """The outermost transformers model in a model, with its name; None where there is none."""
    from transformers import PreTrainedModel

    found = ((path, module) for path, module in model.named_modules() if isinstance(module, PreTrainedModel))
    return next(found, ("", None))


def question_on(model: Any) -> dict[str, Any]:
    """What the other process is told of a transformers model: its type, its class, and its config.

    Raises:
        NoAnswerError: it cannot be told.
    """
    config = model.config
    classes = {"model_class": type(model), "config_class": type(config)}
    for cls in classes.values():
        if cls.__module__.partition(".")[0] == "transformers_modules":
            raise NoAnswerError(f"it is not asked: {cls.__name__} is code that came with the checkpoint")
        if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
            raise NoAnswerError(
                f"it cannot be asked: no other process can import {cls.__name__} from a script, a notebook or a "
                "function. Define it in a module"
            )
    try:
        data = json.loads(json.dumps(config.to_dict()))  # to_json_string would write an infinity as an object
    except (TypeError, ValueError) as error:
        raise NoAnswerError(f"it cannot be asked, as the model's config is not plain data: {error}") from error
    named = {key: (cls.__module__, cls.__qualname__) for key, cls in classes.items()}
    return {"kind": config.model_type, **named, "config": data}


def ask(question: dict[str, Any], limit: float = _LIMIT) -> dict[str, Any]:
    """The answer of ``trial.answer``, from a process that imports what this one would, asks no hub, and leaves nothing
    behind.

    Args:
        limit: seconds after which the process is ended.

    Raises:
        NoAnswerError: there is none.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:  # for whatever its imports make
            done = subprocess.run(
                [sys.executable, "-I", "-B", trial.__file__],
                input=json.dumps({**question, "path": sys.path}),
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=limit,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": folder},
            )
    except subprocess.TimeoutExpired as error:
        raise NoAnswerError(f"it was asked in a process of its own, and no answer came in {limit:g} s") from error
    except OSError as error:
        raise NoAnswerError(f"it cannot be asked, as no process can be started: {error}") from error
    if done.returncode or not done.stdout:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it wrote nothing")
        raise NoAnswerError(f"it was asked in a process of its own, which ended with status {done.returncode}: {last}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
