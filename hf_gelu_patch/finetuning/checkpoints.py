"""The folder of a run: whose it is, and its checkpoints, each of which is there as a whole or not at all.

``run.json`` says what the run is: all that its weights depend on. ``checkpoint-<step>/`` holds a state of the learner,
and the same ``run.json``. Files are written to a hidden folder beside, seen off to the disk, and renamed.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate.utils import gather_object

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.finetuning.errors import FinetuningError
from hf_gelu_patch.finetuning.settings import LATEST

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hf_gelu_patch.finetuning.learner import State

__all__ = ["RunFolder", "agreed"]

Run = Mapping[str, Any]
"""All that the weights of a run depend on, as plain data, by what the command line calls it."""

T = TypeVar("T")

_RUN = "run.json"
_STATE = "state.pt"


def agreed(accelerator: Accelerator, act: Callable[[], T]) -> T:
    """What the main process finds out or does, told to all of them; where it fails, all do.

    Raises:
        FinetuningError: it failed.
    """
    told: list[tuple[str, Any]] = []
    if accelerator.is_main_process:
        try:
            told.append(("", act()))
        except EvaluationError as error:
            told.append((str(error), None))
        except OSError as error:
            told.append(
                (f"{error.filename}: {error.strerror or error}. Make room, or name another --output_dir.", None)
            )
    [(failed, found)] = gather_object(told)
    if failed:
        raise FinetuningError(failed)
    answer: T = found
    return answer


class RunFolder:
    """The folder that a run writes to.

    Args:
        path: the folder.
        resume: the checkpoint to go on from, or ``LATEST``; None to begin.
        kept: checkpoints that stay.
    """

    def __init__(self, path: Path, resume: str | None, kept: int) -> None:
        self.path, self._resume, self._kept = path, resume, kept

    # ------------------------------------------------------------------------------------------------------ whose it is

    def check(self) -> None:
        """See that there is nothing of another's in the folder, before anything is loaded.

        Raises:
            FinetuningError: there is, or there is a run and it is not said to go on with it, or no such checkpoint.
        """
        if self._resume not in (None, LATEST) and not (Path(self._resume) / _STATE).is_file():
            there = ", ".join(str(one) for _, one in self._checkpoints()) or "none"
            raise FinetuningError(
                f"{self._resume} is no checkpoint of a fine-tuning run. Those in {self.path}: {there}. Name one of "
                f"them, or {LATEST}."
            )
        if self.path.exists() and not self.path.is_dir():
            raise FinetuningError(f"{self.path} is a file: name another --output_dir.")
        if not self.path.is_dir() or not (names := [one.name for one in self.path.iterdir() if not _is_left(one.name)]):
            return
        if not (self.path / _RUN).is_file():
            raise FinetuningError(
                f"{self.path} holds other files ({', '.join(sorted(names)[:3])}), which would be among those of the "
                "run: name another --output_dir, or empty it."
            )
        if self._resume is None:
            raise FinetuningError(
                f"{self.path} holds a run: go on with it with --resume_from_checkpoint {LATEST}, or name another "
                "--output_dir."
            )

    def claim(self, run: Run) -> Path | None:
        """Make the folder this run's, and find the checkpoint to go on from; None to begin at the beginning.

        Raises:
            FinetuningError: the folder, or the checkpoint, is another run's.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        for one in [one for one in self.path.iterdir() if _is_left(one.name)]:
            shutil.rmtree(one, ignore_errors=True)
        own = self.path / _RUN
        if own.is_file():
            _check_same(own, run)
        else:
            replace_file(own, json.dumps(run, indent=2, default=str).encode())
        if self._resume is None:
            return None
        if self._resume == LATEST:
            return max(self._checkpoints(), default=(0, None))[1]
        found = Path(self._resume)
        _check_same(found / _RUN, run)
        return found

    # ------------------------------------------------------------------------------------------------------ checkpoints

    def _checkpoints(self) -> list[tuple[int, Path]]:
        found = []
        for one in self.path.glob("checkpoint-*"):
            number = one.name.removeprefix("checkpoint-")
            if number.isdecimal() and (one / _STATE).is_file():
                found.append((int(number), one))
        return sorted(found)

    def write(self, state: State) -> None:
        """Write a checkpoint, and remove the oldest of those that are too many."""
        step = state["done"]
        target, made = self.path / f"checkpoint-{step}", self.path / f".checkpoint-{step}"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        try:
            with (made / _STATE).open("wb") as file:
                torch.save(state, file)
                _to_disk(file.fileno())
        except RuntimeError as error:  # torch's, where the disk is full
            raise FinetuningError(
                f"{target} cannot be written: {first_line(error)}. Make room, and go on with --resume_from_checkpoint "
                f"{LATEST}."
            ) from error
        replace_file(made / _RUN, (self.path / _RUN).read_bytes())
        if target.exists():  # of a run that went on from an earlier one: the same to the bit
            self._remove(target)
        made.rename(target)
        _folder_to_disk(self.path)
        for number, old in self._checkpoints()[: -self._kept]:
            if number < step:
                self._remove(old)

    def _remove(self, checkpoint: Path) -> None:
        """At once, or not at all."""
        aside = checkpoint.with_name(f".removed-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------------ other files

    def write_file(self, name: str, content: bytes) -> Path:
        """Write a file, whole or not at all."""
        path = self.path / name
        path.parent.mkdir(exist_ok=True)
        replace_file(path, content)
        return path

    def write_folder(self, write: Callable[[Path], object], last: str) -> None:
        """Put files into the folder, all written before the first is put there.

        Args:
            write: writes them to the folder that it is given.
            last: the one that says that the others are there.
        """
        made = self.path / ".files"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        write(made)
        for one in sorted(made.iterdir(), key=lambda path: path.name == last):
            target = self.path / one.name
            if target.is_dir():
                shutil.rmtree(target)
            one.rename(target)
        made.rmdir()
        _folder_to_disk(self.path)


def read_state(checkpoint: Path) -> State:
    """The state in a checkpoint, in the CPU's memory.

    Raises:
        FinetuningError: it is damaged, or not there for this process.
    """
    try:
        state: State = torch.load(checkpoint / _STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise FinetuningError(
            f"the checkpoint {checkpoint} cannot be read: {first_line(error)}. Remove it, and --resume_from_checkpoint "
            f"{LATEST} goes on from the one before; processes on several machines need a folder that all of them see."
        ) from error
    return state


def replace_file(path: Path, content: bytes) -> None:
    """Whoever reads sees the old file or the whole new one."""
    made = path.with_name(f".{path.name}.new")
    with made.open("wb") as file:
        file.write(content)
        file.flush()
        _to_disk(file.fileno())
    made.replace(path)


def _is_left(name: str) -> bool:
    """Whether a file or folder is what a run that was killed was just making."""
    return name.startswith((".checkpoint-", ".removed-checkpoint-", ".files", f".{_RUN}"))


def _to_disk(file: int) -> None:
    os.fsync(file)


def _folder_to_disk(path: Path) -> None:
    if os.name == "posix":
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _check_same(path: Path, run: Run) -> None:
    """See that a run is the one that a file tells of."""
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FinetuningError(f"{path} cannot be read ({first_line(error)}): name another --output_dir.") from error
    own = json.loads(json.dumps(run, default=str))
    differing = [key for key in {**there, **own} if there.get(key) != own.get(key)]
    if differing:
        said = "; ".join(f"{key} {_shown(there.get(key))} there, {_shown(own.get(key))} now" for key in differing)
        raise FinetuningError(
            f"{path.parent} is of another run: {said}. Say the same again to go on with it, or name another "
            "--output_dir, without --resume_from_checkpoint, to begin anew."
        )


def _shown(value: Any) -> str:
    return "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
