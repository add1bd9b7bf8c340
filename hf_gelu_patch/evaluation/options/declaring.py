"""Options, each declared once: a field of a dataclass that says of itself what a command line has to know.

``option`` makes such a field, and ``declared`` lists those of a class. The command line's parser and its help, the keys
of a configuration file and the checks follow from the declarations; ``made`` turns what was said into an object.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

__all__ = ["GROUPS", "Option", "above_zero", "declared", "finite", "made", "not_negative", "option", "positive"]

GROUPS = ("models and data", "patch", "training", "measuring")
"""Under which a command's help shows its options, in this order; those of no group come before them."""

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """What a command line has to know of a field.

    Attributes:
        help: what it is for, in a line; or what gives that line when it is shown, where it depends on what is
            registered.
        group: one of ``GROUPS``; None for none.
        metavar: what stands for its value in the help.
        read: makes the value of a text; raises ``argparse.ArgumentTypeError`` for one that makes no sense.
        choices: the only values; None for any.
        spelled: how the command line calls it where that is not the field's name.
        repeated: it may be given several times, and its value is a tuple.
        positional: it is given by its place and not by its name.
        switch: it takes no value.
    """

    help: str | Callable[[], str]
    group: str | None = None
    metavar: str | None = None
    read: Callable[[str], Any] = str
    choices: Sequence[str] | None = None
    spelled: str | None = None
    repeated: bool = False
    positional: bool = False
    switch: bool = False


def option(default: Any, help: str | Callable[[], str], group: str | None = None, **more: Any) -> Any:
    """A field of a dataclass that is an option: a switch where its default is False.

    Args:
        default: its value where nothing is said; ``dataclasses.MISSING`` where the class is made with a value always.
        help, group, more: as for ``Option``.
    """
    return field(default=default, metadata={"option": Option(help, group, switch=default is False, **more)})


def declared(kind: type, *names: str) -> dict[str, Option]:
    """The options of a dataclass by how they are spelled.

    Args:
        kind: the class.
        names: only these of its fields; all where none is named.
    """
    return {
        one.spelled or known.name: one
        for known in fields(kind)
        if (one := known.metadata.get("option")) is not None and (not names or known.name in names)
    }


def made(kind: Callable[..., T], said: Mapping[str, Any], **more: Any) -> T:
    """An object of a dataclass with what was said of its options, by how they are spelled; the rest has its default.

    Args:
        kind: the class.
        said: values by the spelling of their options; what is no option of the class is left out of account.
        more: values by the name of their field, which count before what was said.
    """
    values: dict[str, Any] = {}
    for known in fields(kind):  # type: ignore[arg-type]
        one = known.metadata.get("option")
        if one is not None and (name := one.spelled or known.name) in said:
            values[known.name] = tuple(said[name]) if one.repeated else said[name]
    return kind(**{**values, **more})


# -------------------------------------------------------------------------------------------------- numbers of a text


def positive(text: str) -> int:
    """A whole number from 1 on."""
    return _whole(text, 1)


def not_negative(text: str) -> int:
    """A whole number from 0 on."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"{number} is too few: it takes {least} or more")
    return number


def finite(text: str) -> float:
    """A number that is not infinite."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text}: it takes a finite number")
    return number


def above_zero(text: str) -> float:
    """A finite number above 0."""
    number = finite(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text}: it takes a number above 0")
    return number
