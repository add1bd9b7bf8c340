"""Each type in a process that may crash, hang or want too much memory: that costs the row of the type alone."""

from __future__ import annotations

import multiprocessing
import resource
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch
import transformers

from scripts.covering.coverage import Coverage, cover

_TYPES_PER_PROCESS = 100  # each leaves its modules imported


@dataclass
class _Worker:
    """A process that covers one type after the other, and the one it is at."""

    process: BaseProcess
    connection: Connection
    served: int = 0
    model_type: str | None = None
    deadline: float = 0.0

    @classmethod
    def start(cls, memory: float) -> _Worker:
        context = multiprocessing.get_context("spawn")
        connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, memory), daemon=True)
        process.start()
        theirs.close()
        return cls(process, connection)

    def give(self, model_type: str, seconds: float) -> None:
        self.connection.send(model_type)
        self.model_type, self.deadline = model_type, time.monotonic() + seconds
        self.served += 1

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, memory: float) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 2**30),) * 2)
    torch.set_num_threads(1)
    while True:
        try:
            model_type = connection.recv()
        except EOFError:
            return
        connection.send(cover(model_type, thorough=True).to_dict())


def cover_all(types: Iterable[str], *, processes: int, timeout: float, memory: float) -> Iterator[Coverage]:
    """A row for each type, as they are done; a process that wants more than ``memory`` GiB gets an error."""
    waiting = deque(types)
    workers: list[_Worker] = []
    try:
        while waiting or workers:
            while waiting and len(workers) < processes:
                workers.append(_Worker.start(memory))
                workers[-1].give(waiting.popleft(), timeout)
            soonest = min(worker.deadline for worker in workers)
            ready = wait([worker.connection for worker in workers], max(0.0, soonest - time.monotonic()))
            for worker in [*workers]:
                assert worker.model_type is not None
                row = None
                if worker.connection in ready:
                    try:
                        row = Coverage.from_dict(worker.connection.recv())
                    except (EOFError, OSError):
                        worker.process.join()
                        row = Coverage(worker.model_type, error=f"crashed: exit status {worker.process.exitcode}")
                elif time.monotonic() > worker.deadline:
                    row = Coverage(worker.model_type, error=f"not done after {timeout:g} s")
                if row is None:
                    continue
                yield row
                healthy = worker.process.is_alive() and worker.connection in ready
                if healthy and waiting and worker.served < _TYPES_PER_PROCESS:
                    worker.give(waiting.popleft(), timeout)
                else:
                    workers.remove(worker)
                    worker.stop()
    finally:
        for worker in workers:
            worker.stop()
