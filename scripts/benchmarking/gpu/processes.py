"""A step in a process of its own, under a limit, that nothing of it survives.

The command forks a watcher for each step, and the watcher forks the process that works. The watcher does nothing but
wait: for the end of the work, for the limit, or for the end of the command itself. Then it kills whatever the work has
started, process groups and sessions of its own included: as a subreaper it inherits what loses its parent. So nothing
is left on the GPU, not even when the command is killed by a signal that it cannot see.

Forking saves each step the import of torch and transformers. It takes that the command itself never touches CUDA.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_POLL = 0.05
"""Seconds."""
_REAPING = 5.0
"""Seconds after which what does not die is let go: a process may be stuck in the driver."""

_STOPPING = (signal.SIGTERM, signal.SIGINT)

DONE, FAILED, OVERRAN, STOPPED = "done", "failed", "overran its limit", "stopped"


class Stopped(BaseException):
    """The command was told to end."""


def _stop(*_: Any) -> NoReturn:
    raise Stopped


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and Ctrl-C raise ``Stopped`` in here."""
    kept = {number: signal.signal(number, _stop) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def run(work: Callable[[], object], limit: float, ended: Callable[[str, float], object]) -> None:
    """Run ``work()`` in a process of its own, for ``limit`` seconds at most.

    Args:
        ended: told, in the watcher, how it ended and after how many seconds, once nothing of it is left.

    Raises:
        Stopped: in here, where ``stoppable``; the work is killed then.
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    if (watcher := _fork()) == 0:
        try:
            _watch(work, limit, ended, parent)
        finally:
            os._exit(0)
    try:
        _hear()
        if _ending(watcher, limit + 2 * _REAPING) is None:
            os.kill(watcher, signal.SIGKILL)
    except Stopped:
        os.kill(watcher, signal.SIGTERM)
        _ending(watcher, 2 * _REAPING)
        raise


def _fork() -> int:
    """``os.fork()``, after which both processes wait for ``_hear()`` before they are told to stop.

    Python runs hooks around a fork (logging's, random's) and drops what is raised in them. A signal that came then
    would be lost.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    return os.fork()


def _hear() -> None:
    """What came since ``_fork()`` acts now, and what comes later at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)


def _watch(work: Callable[[], object], limit: float, ended: Callable[[str, float], object], parent: int) -> None:
    os.setpgid(0, 0)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    began = time.monotonic()
    watcher = os.getpid()
    if (worker := _fork()) == 0:
        _work(work, watcher)
    try:
        _hear()
        status = _ending(worker, limit, parent)
        how = OVERRAN if status is None else _told(status)
    except Stopped:
        how = STOPPED
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _kill_all(worker)
    ended(how, time.monotonic() - began)


def _work(work: Callable[[], object], watcher: int) -> NoReturn:
    """In its own process group, that dies with the watcher; what it prints goes where errors go."""
    status = 1
    try:
        os.setpgid(0, 0)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == watcher:
            for number in _STOPPING:
                signal.signal(number, signal.SIG_DFL)
            _hear()
            os.dup2(2, 1)
            work()
            status = 0
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _ending(process: int, seconds: float, parent: int | None = None) -> int | None:
    """The status with which a child ends; None where it did not within so many seconds.

    Raises:
        Stopped: the parent that is named is gone.
    """
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return status
        if parent is not None and os.getppid() != parent:
            raise Stopped
        if time.monotonic() >= until:
            return None
        time.sleep(_POLL)


def _told(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return DONE if code == 0 else FAILED


def _kill_all(group: int) -> None:
    """The process group, and again and again what became a child of this process, until none is left."""
    until = time.monotonic() + _REAPING
    while time.monotonic() < until:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # there is none any more
            return
        time.sleep(0.01)


def _children() -> list[int]:
    """The processes whose parent is this one."""
    found, own = [], os.getpid()
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(place.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]) == own:
                found.append(int(place.parent.name))
    return found


def _prctl(option: int, value: int) -> None:
    """Where a system has no such thing, the watcher still sees the end of the command, and kills the group."""
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
