"""An evaluation in several processes, watched from outside, and killed where that is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

_SECONDS = 0.5  # between two looks
_KEPT = 40  # looks that a record keeps


@dataclass
class Watched:
    """What was seen of a run.

    Attributes:
        seconds: of wall time.
        looks: at times since the start, the bytes that each process had of its own (anonymous memory), the bytes that
            stood for it in memory in all (which counts pages of files, that the system takes back when it needs them),
            and the lines of the records.
        killed: at how many lines; None where it ended by itself.
        output: its last words.
    """

    seconds: float = 0.0
    looks: list[dict[str, Any]] = field(default_factory=list)
    killed: int | None = None
    output: str = ""

    def to_json(self) -> dict[str, Any]:
        step = max(1, len(self.looks) // _KEPT)
        return {
            "seconds": round(self.seconds, 1),
            "killed at lines": self.killed,
            "most of its own": max((max(one["own"], default=0) for one in self.looks), default=0),
            "most in memory": max((max(one["resident"], default=0) for one in self.looks), default=0),
            "looks": self.looks[::step],
        }


def evaluated(arguments: Sequence[str], folder: Path, processes: int, kill_at: int | None = None) -> Watched:
    """Run ``hf-gelu-patch evaluate`` in several processes under torchrun, with one thread each.

    Args:
        arguments: of the command.
        folder: for its results.
        processes: how many.
        kill_at: kill all of them, as a power cut would, when the records have so many lines.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)),
        *("-m", "hf_gelu_patch", "evaluate", *arguments, "--num_processes", str(processes)),
        *("--output_dir", str(folder)),
    ]
    found, lines, began = Watched(), _Lines(folder), time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    log = folder.parent / f"{folder.name}.log"
    with log.open("wb") as output:
        run = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        while run.poll() is None:
            time.sleep(_SECONDS)
            count = lines.count()
            found.looks.append({"second": round(time.monotonic() - began, 1), "lines": count, **_memory(run.pid)})
            if kill_at is not None and count >= kill_at:
                workers = _workers(run.pid)  # they are in groups of their own
                run.kill()
                for one in workers:
                    one.kill()
                psutil.wait_procs(workers)
                found.killed = count
                run.wait()
    found.seconds = time.monotonic() - began
    found.output = log.read_text(encoding="utf-8", errors="replace")[-4000:]
    if run.returncode and found.killed is None:
        raise RuntimeError(found.output)
    return found


class _Lines:
    """How many lines the records below a folder have. What was counted once is not read again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._counted: dict[Path, tuple[int, int]] = {}

    def count(self) -> int:
        for path in self._folder.glob("records/*/*.jsonl"):
            position, known = self._counted.get(path, (0, 0))
            with path.open("rb") as file:
                file.seek(position)
                content = file.read()
            self._counted[path] = (position + len(content), known + content.count(b"\n"))
        return sum(count for _, count in self._counted.values())


def _workers(pid: int) -> list[psutil.Process]:
    try:
        return [one for one in psutil.Process(pid).children() if "evaluate" in one.cmdline()]
    except psutil.Error:
        return []


def _memory(pid: int) -> dict[str, list[int]]:
    own, resident = [], []
    for one in _workers(pid):
        try:
            memory = one.memory_info()
        except psutil.Error:
            continue
        own.append(memory.rss - memory.shared)
        resident.append(memory.rss)
    return {"own": own, "resident": resident}
