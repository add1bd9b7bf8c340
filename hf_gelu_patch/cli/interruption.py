"""What is said where a command is stopped before its end: how to go on with it."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

__all__ = ["INTERRUPTED", "how_to_go_on", "told_when_terminated"]

INTERRUPTED = "hf-gelu-patch: interrupted"


def how_to_go_on(arguments: Sequence[str], resuming: Sequence[str]) -> str:
    """The command that goes on with one that was stopped; "" on any process but the main one, and for a command that
    can only begin anew.

    Args:
        arguments: those of the command.
        resuming: the options that have it go on; none where it cannot.
    """
    if not resuming or os.environ.get("RANK", "0") != "0":
        return ""
    if "RANK" in os.environ:  # by torchrun or accelerate, whose own options nobody here knows
        return f". To go on with it, start it again as you did, with {shlex.join(resuming)}"
    module = Path(sys.argv[0]).name == "__main__.py"
    command = ["python", "-m", "hf_gelu_patch"] if module else ["hf-gelu-patch"]
    more = [] if set(resuming) <= set(arguments) else resuming
    return f". To go on with it:\n  {shlex.join([*command, *arguments, *more])}"


@contextmanager
def told_when_terminated(message: str) -> Iterator[None]:
    """Where this process is sent SIGTERM, it says something and ends by that signal, as it would without a word.

    Nothing else is done then: what was recorded until then is complete. Whoever handles the signal already keeps it.
    """
    ours = threading.current_thread() is threading.main_thread() and bool(message)
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    process = os.getpid()

    def told(number: int, frame: FrameType | None) -> None:
        del frame
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() == process:  # not a worker that was forked since
            os.write(2, f"{message}\n".encode())  # print might be in the middle of something
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, told)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
