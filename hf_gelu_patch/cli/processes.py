"""The processes of a command: how many were asked for, and how many there are."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.options.declaring import option, positive

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Processes"]


@dataclass(frozen=True)
class Processes:
    """What the command line says of them."""

    num_threads: int = option(
        1,
        "CPU threads of each process (default: 1: on shared cores a second one often costs time, and rounding depends "
        "on the number)",
        "measuring",
        metavar="N",
        read=positive,
    )
    num_processes: int | None = option(
        None,
        "abort unless so many processes were started, which torchrun or accelerate launch does",
        "measuring",
        metavar="N",
        read=positive,
    )

    def check(self) -> None:
        """See that there are as many processes as were asked for.

        Raises:
            EvaluationError: there are not.
        """
        wanted = self.num_processes or _launched_for()
        if wanted is not None:
            _check(_started(), wanted)

    def accelerator(self, device: str | None = None, *, split: bool = False) -> Accelerator:
        """The processes, which on a CPU have to be told so: otherwise each would take itself for the only one. They
        wait for the main one as long as it times, for which the usual ten minutes may not do.

        Args:
            device: what was asked for; None for a GPU, where there is one.
            split: the model is split among the processes. Then the first one takes itself for the only one, and the
                others run what it runs.
        """
        import torch
        from accelerate import Accelerator, InitProcessGroupKwargs, PartialState

        torch.set_num_threads(self.num_threads)
        patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
        hidden = {name: os.environ.pop(name) for name in _RANKS if name in os.environ} if split else {}
        try:
            accelerator = Accelerator(cpu=device == "cpu" or not torch.cuda.is_available(), kwargs_handlers=[patience])
        finally:
            os.environ.update(hidden)
        if split:
            accelerator.state.process_index = PartialState().process_index = int(os.environ.get("RANK", "0"))
        else:
            _check(accelerator.num_processes, _started())
        return accelerator


_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""What tells a process of the others."""


def _started() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _check(started: int, wanted: int) -> None:
    if started != wanted:
        raise EvaluationError(
            f"{started} {'process was' if started == 1 else 'processes were'} started, and {wanted} asked for. "
            f"Start them with: torchrun --standalone --nproc_per_node {wanted} -m hf_gelu_patch "
            f"{next(iter(sys.argv[1:]), 'evaluate')} --num_processes {wanted} …"
        )


def _launched_for() -> int | None:
    """How many processes ``accelerate launch`` was asked for, on its command line or in its config; None where it is
    not what started this one. Asked for several on a CPU, it starts one and does not say so."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or "WORLD_SIZE" in os.environ:
        return None
    import psutil
    import yaml
    from accelerate.commands.config import default_config_file

    launcher = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    launcher.add_argument("--num_processes", "--num-processes", type=int)
    launcher.add_argument("--config_file", "--config-file", default=default_config_file)
    given = psutil.Process(os.getppid()).cmdline()
    own = len(sys.argv) - 2  # our arguments, but for the command's name, which a script may stand for: they come last
    asked, _ = launcher.parse_known_args(given[: len(given) - own])
    if asked.num_processes is None and Path(asked.config_file).is_file():
        config = yaml.safe_load(Path(asked.config_file).read_text(encoding="utf-8")) or {}
        return int(config.get("num_processes", 1))
    return int(asked.num_processes or 1)
