"""What can go wrong, as exception types: every message names the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def shortened(texts: Sequence[object], most: int = 5) -> str:
    """The first of many texts, for a message: ``a; b; and 3 more``."""
    text = "; ".join(map(str, texts[:most]))
    return text if len(texts) <= most else f"{text}; and {len(texts) - most} more"


def first_line(error: Exception) -> str:
    """What kind of error it is and the first line of what it says, for a message."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


class PatchError(ValueError):
    """Base of every error this package raises on purpose. The model is unchanged when one is raised."""


class UnknownNameError(PatchError):
    """An activation or implementation name that is not registered."""

    def __init__(self, what: str, name: object, valid: Iterable[str]) -> None:
        names = sorted(valid)
        close = difflib.get_close_matches(str(name), names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown {what} {name!r}.{hint} Valid names: {', '.join(names)}.")


class ImplementationUnavailableError(PatchError):
    """An implementation asked for by name cannot run on this device, dtype or machine."""


class GradientRefusedError(RuntimeError):
    """An implementation that declares no backward was called where gradients are recorded."""


class NoSitesError(PatchError):
    """The model holds no activation module at all."""


class NothingMatchedError(PatchError):
    """An include or exclude pattern matches no site."""


class NothingPatchedError(PatchError):
    """There are sites, none of them was changed, and ``strict=True``."""


class NothingPatchedWarning(UserWarning):
    """There are sites, none of them was changed; the message says why."""


class AlreadyPatchedError(PatchError):
    """The model, or a part of it, is patched already."""


class NotPatchedError(PatchError):
    """``unpatch`` was given a model that holds no patch."""


class VerificationError(PatchError):
    """A patch moved an output of the model by more than the margin; it was undone."""
