"""What is raised where something that was named for evaluation cannot be used, and how other errors are told."""

from __future__ import annotations

import re


class EvaluationError(ValueError):
    """Something that was named for evaluation cannot be used; the message names the remedy. No model was changed."""


class LeftOutWarning(UserWarning):
    """A part of the data is not asked for, and the evaluation goes on; the message says which part, and the remedy."""


_ADDRESS = r" ?<[\w.]+ object at 0x[0-9a-f]+>"  # says nothing, and something else in each run


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 300 characters."""
    said = f"no {error}" if isinstance(error, KeyError) else str(error)  # the key alone says nothing
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return (re.sub(_ADDRESS, "", lines[0]) if lines else type(error).__name__)[:300]
