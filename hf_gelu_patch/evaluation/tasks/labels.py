"""Which of a model's labels the values of a column mean.

A column is read in one way as a whole: by the labels' names, by their ids or by position. For several labels in a row,
it can also be read as vectors of 0 and 1. If two ways fit and disagree, nothing is guessed: the error shows the labels
of the data and those of the model, and ``--labels`` decides.
"""

from __future__ import annotations

import ast
import json
import math
import re
import reprlib
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

__all__ = ["READINGS", "BadLabelError", "Labels", "LabelsError", "as_number", "class_names", "shown"]

READINGS = ("names", "ids", "vector")
"""The ways to read a column that can be asked for."""

_GENERIC = re.compile(r"LABEL_\d+")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)
_NUMBER_WITHIN = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_BOOLEANS = (("false", "true"), ("no", "yes"), ("0", "1"), ("label_0", "label_1"))
_SEPARATORS = (None, "|", ";", ",", " ")
_LISTED = 12
_LETTERS = 40


class LabelsError(ValueError):
    """The labels of the data and those of the model do not go together."""


class BadLabelError(ValueError):
    """One value is no label; what is wrong with it, said of its row: "has …"."""


def shown(texts: Iterable[str]) -> str:
    """Up to twelve of them, quoted, and none of them long."""
    texts = list(texts)
    return ", ".join(map(_quoted, texts[:_LISTED])) + (", …" if len(texts) > _LISTED else "")


def _quoted(text: str) -> str:
    return f"'{text}'" if len(text) <= _LETTERS else f"'{text[: _LETTERS - 1]}…'"


def class_names(feature: Any) -> list[str] | None:
    """The names that a column's numbers stand for, of classes or of lists of classes; None where they stand for
    nothing."""
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    return None if names is None else [str(name) for name in names]


def as_number(value: Any) -> float | None:
    """A finite number, from itself or from text; None where it is none."""
    try:
        found = math.nan if isinstance(value, str) and "_" in value else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


# --------------------------------------------------------------------------------------------------------- one label


def _spelled(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _loose(text: str) -> str:
    return _spelled(text).casefold()


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or value == "" or str(value).isspace()


def _text(value: Any) -> str:
    """A value as text: 1.0, which pandas makes of 1 beside a missing value, is "1"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return _spelled(str(value))


def _whole(text: str) -> int | None:
    """The whole number that a text is, as "3", "3.0" or "-1"."""
    if _NUMBER.fullmatch(text) and float(text).is_integer():
        return int(float(text))
    return None


class Labels:
    """A model's labels by their ids, and what texts mean of them.

    Args:
        names: in the order of the ids.
        asked: one of ``READINGS``; None to tell it from the data.

    Attributes:
        names: in the order of the ids.
        generic: whether they are mere numbers of positions: LABEL_0, LABEL_1, …
    """

    def __init__(self, names: Sequence[str], asked: str | None = None) -> None:
        self.names = tuple(names)
        self._asked = asked
        self.generic = all(map(_GENERIC.fullmatch, self.names))
        alike = len({_loose(name) for name in self.names}) < len(self.names)
        self._key: Callable[[str], str] = _spelled if alike else _loose
        many = Counter(map(self._key, self.names))
        self._known = {key: i for i, name in enumerate(self.names) if many[key := self._key(name)] == 1}
        self._numbers = {} if self.generic else _numbers_within(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        names = ", ".join(f"{index} ({name})" for index, name in enumerate(self.names[:_LISTED]))
        return names + (", …" if len(self.names) > _LISTED else "")

    def reader(self, values: Iterable[Any], classes: Sequence[str] | None) -> Callable[[Any], int]:
        """What gives the id of the label that a value of a column means.

        Args:
            values: the whole column.
            classes: the names that its numbers stand for, from ``class_names``.

        Raises:
            LabelsError: the column as a whole does not fit the model's labels, or in two ways. What is given raises
                ``BadLabelError`` for a value that is no label.
        """
        if classes is None:
            texts = list(
                dict.fromkeys(_text(v) for v in values if not isinstance(v, list | dict) and not _is_missing(v))
            )
            known = self.meanings(texts)
        else:
            texts, known = list(classes), self.classes(classes)

        def read(value: Any) -> int:
            if isinstance(value, list | dict):
                raise BadLabelError(
                    f"has {reprlib.repr(value)} for a label, and the model gives one label an example: write its name "
                    "or its id"
                )
            if _is_missing(value) or (classes is not None and not 0 <= value < len(classes)):
                raise BadLabelError("has no label")
            return self.one(_text(value) if classes is None else classes[value], known, texts)

        return read

    def one(self, text: str, known: Mapping[str, int], texts: Sequence[str]) -> int:
        """The id of the label that a text means, of those in ``known``.

        Raises:
            BadLabelError: it is not there; the message has the labels of the model, and ``texts``, those of the data.
        """
        if text not in known:
            several = [index for index, name in enumerate(self.names) if self._key(name) == self._key(text)]
            if len(several) > 1:
                raise BadLabelError(
                    f"has the label {_quoted(text)}, which is the name of several of the model's: {self}. Give each a "
                    "name of its own in the model's config.json (id2label and label2id), or write ids"
                )
            raise BadLabelError(
                f"has the label {_quoted(text)}, which the model does not know (it has: {self}; the data have: "
                f"{shown(texts)})"
            )
        return known[text]

    def meanings(self, texts: Collection[str]) -> dict[str, int]:
        """The ids of the labels that a column's texts mean, read in one way: by name, else as ids. Those that mean
        nothing are left out.

        Raises:
            LabelsError: none of them fits, numbers are no ids of the model's, or both ways fit and differ.
        """
        by_name = {text: index for text in texts if (index := self._by_name(text)) is not None}
        by_id = {text: index for text in texts if (index := _whole(text)) is not None and 0 <= index < len(self)}
        if self._asked == "names":
            return by_name
        if self._asked == "ids":
            return by_id
        if by_id.keys() > by_name.keys():
            beyond = [text for text in texts if _whole(text) not in (None, -1) and text not in by_id]
            if beyond:
                raise LabelsError(
                    f"{self._both(texts)} No ids of its: {shown(beyond)}. {_REMEDY} Where the other numbers are its "
                    "ids, say so with --labels ids, and leave those rows out with --skip_bad_rows."
                )
            return by_id
        differ = any(by_id.get(text, index) != index for text, index in by_name.items())
        if differ and not by_name.keys() > by_id.keys():
            raise LabelsError(
                f"{self._both(texts)} The numbers can be the names of its labels as well as their ids: say which they "
                "are with --labels names or --labels ids."
            )
        found = by_name or self._truths(texts)
        if texts and not found:
            raise LabelsError(f"{self._both(texts)} {_REMEDY}")
        return found

    def classes(self, classes: Sequence[str]) -> dict[str, int]:
        """The ids of the labels that the classes of a column mean: by their names; by position only where either
        side's names are mere numbers of positions.

        Raises:
            LabelsError: none of them fits, or two classes are one label.
        """
        by_name = {name: index for name in classes if (index := self._by_name(_spelled(name))) is not None}
        if self._asked == "ids":
            by_position = len(classes) <= len(self)
        elif self._asked == "names" or len(by_name) == len(classes):
            by_position = False
        else:
            numbered = len(classes) <= len(self) and list(classes) == [str(index) for index in range(len(classes))]
            by_position = numbered or (self.generic and not by_name and len(classes) == len(self))
        if by_position:
            return {name: index for index, name in enumerate(classes)}
        if not by_name or self._asked == "ids":
            raise LabelsError(f"{self._both(classes)} {_REMEDY}")
        if len(set(by_name.values())) < len(by_name):
            raise LabelsError(f"{self._both(classes)} Two classes of the data are one label of the model. {_REMEDY}")
        return by_name

    def _by_name(self, text: str) -> int | None:
        index = self._known.get(self._key(text))
        if index is None and _NUMBER.fullmatch(text):
            index = self._numbers.get(float(text))
        return index

    def _truths(self, texts: Collection[str]) -> dict[str, int]:
        """What true and false mean of a model with two labels."""
        pair = tuple(map(_loose, self.names))
        if not {text.casefold() for text in texts} <= {"false", "true"} or sorted(pair) not in map(sorted, _BOOLEANS):
            return {}
        false, _ = next(one for one in _BOOLEANS if sorted(one) == sorted(pair))
        return {text: pair.index(false) ^ (text.casefold() == "true") for text in texts}

    def _both(self, texts: Iterable[str]) -> str:
        return f"the labels of the data are {shown(texts)}, and those of the model {self}."

    # ------------------------------------------------------------------------------------------------ several labels

    def set_reader(self, values: Iterable[Any], classes: Sequence[str] | None) -> Callable[[Any], tuple[int, ...]]:
        """What gives the ids, in their order, of the labels that a value of a column has: a list of names or of ids, a
        vector of 0 and 1, or one label; in text, a list as JSON, Python or numpy writes it, or names between "|", ";",
        "," or spaces. Arguments and errors as for ``reader``."""
        separator = self._separator(list(dict.fromkeys(value for value in values if isinstance(value, str))))
        different = {repr(value): value for value in values}
        lists = [found for value in different.values() if (found := _members(value, separator)) is not None]
        vector = classes is None and self._are_vectors(lists)
        texts: list[str] = list(classes or ())
        known: dict[str, int] = {}
        if classes is not None:
            known = self.classes(classes)
        elif not vector:
            texts = list(dict.fromkeys(_text(one) for found in lists for one in found if _is_scalar(one)))
            known = self.meanings(texts)

        def read(value: Any) -> tuple[int, ...]:
            found = _members(value, separator)
            if found is None:
                raise BadLabelError("has no label: write [] where none holds")
            if not all(_is_scalar(one) and (classes is None or 0 <= one < len(classes)) for one in found):
                raise BadLabelError(
                    f"has {reprlib.repr(value)} for its labels, which is no list of names, ids, or 0 and 1"
                )
            if vector:
                return self._held(found)
            written = [_text(one) if classes is None else classes[one] for one in found]
            twice = len(set(written)) < len(written) and all(_whole(text) is not None for text in written)
            if twice and classes is None and self._asked is None:
                raise BadLabelError(
                    f"has {reprlib.repr(value)} for its labels, in which an id occurs twice: if they are ids, say so "
                    "with --labels ids"
                )
            return tuple(sorted({self.one(text, known, texts) for text in written}))

        return read

    def _held(self, vector: Sequence[Any]) -> tuple[int, ...]:
        texts = [_text(one) for one in vector]
        if len(texts) != len(self) or not set(texts) <= _BITS:
            raise BadLabelError(
                f"has {reprlib.repr(list(vector))} for its labels, where others have 0 or 1 for each of the model's "
                f"{len(self)}: {self}"
            )
        return tuple(index for index, text in enumerate(texts) if text in ("1", "true"))

    def _are_vectors(self, lists: Sequence[Sequence[Any]]) -> bool:
        """Whether lists are vectors of 0 and 1 rather than lists of ids. Ids do not occur twice in a list, and are
        seldom floats. Lists with a member that is neither tell nothing: they are bad rows, however others are read."""
        if self._asked is not None:
            return self._asked == "vector"
        lists = [found for found in lists if all(_is_scalar(one) and self._is_some(_text(one)) for one in found)]
        members = [one for found in lists for one in found]
        if not members or not all(_text(one) in _BITS for one in members):
            return False
        lengths = {len(found) for found in lists}
        twice = any(len(set(map(_text, found))) < len(found) for found in lists)
        typed = any(isinstance(one, bool | float) for one in members)
        beyond = len(self) == 1 and any(_text(one) == "1" for one in members)
        if len(self) in lengths and (twice or typed or beyond):
            return True
        if twice:
            raise LabelsError(
                f"the labels are vectors of {' or '.join(map(str, sorted(lengths)))} numbers 0 and 1, and the model "
                f"has {len(self)} labels: {self}. {_REMEDY}"
            )
        [length] = lengths if len(lengths) == 1 else [0]
        if length == len(self) or length > 1:
            raise LabelsError(
                f"the labels are lists of {length} numbers 0 and 1, which can be ids of the model's labels, {self}, as "
                "well as vectors: say which they are with --labels ids or --labels vector."
            )
        return False

    def _separator(self, texts: Sequence[str]) -> str | None:
        """What stands between names in most of the texts."""
        plain = [text for text in dict.fromkeys(map(_spelled, texts)) if text and not _is_bracketed(text)]
        best: tuple[int, str | None] = (0, None)
        cuts: dict[str | None, set[tuple[str, ...]]] = {}
        for separator in _SEPARATORS:
            pieces = [tuple(_cut(text, separator)) for text in plain]
            cuts[separator] = {some for some in pieces if all(map(self._is_some, some))}
            best = max(best, (len(cuts[separator]), separator), key=lambda one: one[0])
        if any(len(cut) == best[0] and cut != cuts[best[1]] for cut in cuts.values()):
            raise LabelsError(
                f"{self._both(plain)} Some can be one label as well as several: write lists, as in ['a', 'b']."
            )
        return best[1]

    def _is_some(self, text: str) -> bool:
        number = _whole(text)
        return self._by_name(text) is not None or text in _BITS or (number is not None and 0 <= number < len(self))


_BITS = frozenset({"0", "1", "true", "false"})
_REMEDY = (
    "Write the model's names or ids into the data; or set id2label and label2id in the model's config.json to the "
    "names of the data, if it was trained on them."
)


def _numbers_within(names: Sequence[str]) -> dict[float, int]:
    """The labels by the number in each name, as in "1 star", "2 stars", if each has one number of its own."""
    found = [_NUMBER_WITHIN.findall(name) for name in names]
    numbers = {float(one[0]): index for index, one in enumerate(found) if len(one) == 1}
    return numbers if len(numbers) == len(names) else {}


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, list | tuple | dict) and not _is_missing(value)


def _is_bracketed(text: str) -> bool:
    return text[:1] + text[-1:] in ("[]", "()")


def _cut(text: str, separator: str | None) -> list[str]:
    return [text] if separator is None else [_spelled(piece) for piece in text.split(separator)]


def _members(value: Any, separator: str | None) -> list[Any] | None:
    """The labels in one value; None where it is missing."""
    if isinstance(value, list | tuple):
        return list(value)
    if _is_missing(value):
        return None
    if not isinstance(value, str):
        return [value]
    text = _spelled(value)
    return _literal(text) if _is_bracketed(text) else _cut(text, separator)


def _literal(text: str) -> list[Any]:
    """A list as JSON or Python writes it, or as numpy and people do, without quotes or commas."""
    for read in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes in strings
                found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return list(found) if isinstance(found, list | tuple) else [found]
    inner = text[1:-1]
    words = inner.split()
    if "," not in inner and all(map(_NUMBER.fullmatch, words)):
        return [_text(float(word)) for word in words]
    return [_spelled(piece) for piece in inner.split(",")]
