"""Which columns data have to have, and under which other names they may stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

__all__ = ["Wanted"]


@dataclass(frozen=True)
class Wanted:
    """The columns that a task reads.

    Attributes:
        names: what it calls them. A name with dots, "translation.en", is a field of a column of objects.
        also: other names that a column may have in the data, by its own; the first one there is taken.
        optional: those that may be missing. They are then there without values.
    """

    names: tuple[str, ...]
    also: Mapping[str, Sequence[str]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every name under which one of them may stand in a file."""
        every = [spelling for name in self.names for spelling in (name, *self.also.get(name, ()))]
        return tuple(dict.fromkeys([*every, *(name.split(".")[0] for name in every)]))

    def of(self, data: datasets.Dataset) -> datasets.Dataset:
        """The data with these columns under their own names, as far as they are there."""
        for name in self.names:
            if name in data.column_names:
                continue
            found = next((other for other in self.also.get(name, ()) if other in data.column_names), None)
            if found is not None:
                data = data.rename_column(found, name)
            elif (parent := name.split(".")[0]) in data.column_names and "." in name:
                values = [_field(value, name.split(".")[1:]) for value in data[parent][:]]
                if any(value is not None for value in values):
                    data = data.add_column(name, values)
            elif name in self.optional:
                data = data.add_column(name, [None] * len(data))
        return data


def _field(value: Any, path: Sequence[str]) -> Any:
    """What stands at a path in an object; None where nothing does."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
