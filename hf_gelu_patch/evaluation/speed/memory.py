"""The most memory that something takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

__all__ = ["peak_memory"]

_PROCESS = Path("/proc/self")


def peak_memory(run: Callable[[], object], *devices: torch.device) -> int | None:
    """The most memory there was in use while something ran, in bytes.

    On GPUs, what torch had allocated on them, the peaks of all added up. On a CPU, what was resident of the whole
    process, Python, weights and all: Linux's high-water mark (VmHWM in proc_pid_status(5)), set back before by writing
    5 to clear_refs; None where the system has no such mark or does not let it be set back.
    """
    if all(device.type == "cuda" for device in devices):
        for device in devices:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        run()
        for device in devices:
            torch.cuda.synchronize(device)
        return sum(map(torch.cuda.max_memory_allocated, devices))
    try:
        (_PROCESS / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    run()
    status = (_PROCESS / "status").read_text(encoding="ascii", errors="replace")
    marks = [line.split() for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(marks[0][1]) * 1024 if marks else None  # the kernel says kB and means KiB
