"""How long a step takes: seconds on the clock, or of the processor where other programs would be timed with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import torch

__all__ = ["Watch", "watch"]

Watch = Callable[[Callable[[], object], int], float]
"""Takes a step so many times in a row, and says how many seconds one took."""


def watch(devices: Collection[torch.device]) -> Watch:
    """For a model on these devices. On a CPU with one thread, what counts is the processor's time that the process got:
    while another program has the processor, it stands still. Else it is the time on the clock, from when the devices
    have nothing left to do until they have done it all."""
    asynchronous = [device for device in devices if device.type not in ("cpu", "meta")]
    now = time.process_time if not asynchronous and torch.get_num_threads() == 1 else time.perf_counter

    def wait() -> None:
        for device in asynchronous:
            torch.accelerator.synchronize(device)

    def seconds(step: Callable[[], object], times: int) -> float:
        wait()
        start = now()
        for _ in range(times):
            step()
        wait()
        return max(now() - start, _TICK) / times

    return seconds


_TICK = 1e-9
