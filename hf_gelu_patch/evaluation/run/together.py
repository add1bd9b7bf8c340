"""What was recorded by several processes, where one of them can read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from accelerate.utils import gather_object

from hf_gelu_patch.evaluation import records
from hf_gelu_patch.evaluation.run.resuming import Recording
from hf_gelu_patch.evaluation.stored import Known, Stored

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["bring_together"]

_AT_A_TIME = 2**25  # bytes that all processes together send
_SENT = -1  # in the place of a process's number: the file of what others sent


def bring_together(recording: Recording, accelerator: Accelerator) -> None:
    """Have the main process read what all processes wrote. It reads the files that it sees; what stands in others, on
    machines that share no disk with it, is sent to it, some rows at a time, and kept in a temporary file there: first
    by one process of each machine, then what is still missing by whoever has it."""
    main, stored = accelerator.is_main_process, recording.stored
    if main:
        recording.refresh()
    if accelerator.num_processes == 1:
        return
    with records.Writer(None, {}, _SENT) as sent:
        for one_of_each_machine in (True, False):
            [lacking] = gather_object([np.packbits(~stored.known)] if main else [])
            if not lacking.any():
                return
            if main:
                _receive(stored, sent)
                continue
            wanted = np.unpackbits(lacking, count=stored.known.size).reshape(stored.known.shape).astype(bool)
            if accelerator.is_local_main_process or not one_of_each_machine:
                recording.refresh()
                wanted &= stored.known
            else:
                wanted[:] = False
            _send(stored, wanted, _AT_A_TIME // accelerator.num_processes)


def _receive(stored: Stored, sent: records.Writer) -> None:
    while any(parts := gather_object([b""])):
        sent.append_lines(b"".join(parts))
    if sent.descriptor is not None:
        stored.add(sent.path, sent.descriptor)


def _send(stored: Stored, which: Known, size: int) -> None:
    parts = _parts(stored.lines(which), size)
    while any(gather_object([next(parts, b"")])):
        pass


def _parts(lines: Iterator[bytes], size: int) -> Iterator[bytes]:
    part: list[bytes] = []
    length = 0
    for line in lines:
        part.append(line)
        length += len(line)
        if length >= size:
            yield b"".join(part)
            part, length = [], 0
    if part:
        yield b"".join(part)
