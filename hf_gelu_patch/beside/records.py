"""What another tool would change in a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["Beside", "Change"]


@dataclass(frozen=True)
class Change:
    """What a tool would change at one module.

    Attributes:
        path: the module's qualified name.
        module: its class name.
        text: what takes the place of what (``LigerSwiGLUMLP replaces LlamaMLP.forward``).
    """

    path: str
    module: str
    text: str


@dataclass(frozen=True)
class Beside:
    """What a tool would change in a model, by the package that is installed. Nothing of it is done to the model.

    Attributes:
        tool: the name it is asked for by.
        title: the package and its version.
        changes: what it would change in this model, module by module.
        process: what it would change for all models of the process with that, as ``where.what → by what``.
        notes: why something is not known, or would not run, with the remedy.
    """

    tool: str
    title: str
    changes: tuple[Change, ...] = ()
    process: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def at(self, *paths: str) -> str:
        """What it would change at the modules of these names; "nothing" where that is so."""
        found = dict.fromkeys(change.text for change in self.changes if change.path in paths)
        return "; ".join(found) or "nothing"

    def elsewhere(self, paths: Collection[str]) -> list[str]:
        """Lines on what it would change at other modules than those of these names, and in the whole process; and what
        is not known."""
        found = Counter((one.module, one.text) for one in self.changes if one.path not in paths)
        who = f"{self.tool} ({self.title})"
        lines = [f"{who}, beside the activations: {count} × {name}: {text}" for (name, text), count in found.items()]
        if self.process:
            lines.append(f"{who}, for all models of the process: {', '.join(self.process)}")
        return [*lines, *(f"{who}: {note}" for note in self.notes)]
