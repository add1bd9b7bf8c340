"""What a model is compared with: one way to patch it, and how that is written on a command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.options.declaring import GROUPS, declared, option

__all__ = ["AGAIN", "BEFORE", "Variant", "check_variants"]

_PATCH = GROUPS[1]

BEFORE = "before"
"""What the unpatched model is called beside its variants."""
AGAIN = "again"
"""What the unpatched model is called where it is timed once more, which tells the noise."""


def _amount(text: str) -> int | str:
    """A number of tiles, or what else ``patch(tiles=…)`` takes, which says whether it makes sense."""
    return int(text) if text.strip().isdecimal() else text.strip()


@dataclass(frozen=True)
class Variant:
    """One way to patch a model.

    Attributes:
        name: what it is called in results.
        implementation, activation, include, exclude, recompute, tiles: as for ``patch``.
    """

    name: str
    implementation: str = option(
        "auto",
        "auto, aten, cpp, epilogue, triton, triton_rounded or eager (default: auto: aten, where it gains something; on "
        "a GPU or CPU that was measured, what was never slower there)",
        _PATCH,
        metavar="NAME",
    )
    activation: str | None = option(None, "another function to swap in (default: keep each)", _PATCH, metavar="NAME")
    include: tuple[str, ...] | None = option(
        None, "patch only such sites; may be repeated", _PATCH, metavar="PATTERN", repeated=True
    )
    exclude: tuple[str, ...] | None = option(
        None, "leave such sites alone; may be repeated", _PATCH, metavar="PATTERN", repeated=True
    )
    recompute: bool = option(False, "train with less memory: keep an activation's inputs alone for backward", _PATCH)
    tiles: int | str | None = option(
        None,
        "run what treats each token by itself in tiles: a number, the most bytes of one (256MiB), or auto",
        _PATCH,
        metavar="AMOUNT",
        read=_amount,
    )

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``patch`` and ``find_sites``."""
        return {key: getattr(self, key) for key in _KEYS}

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Read ``aten``, ``activation=silu`` or ``aten,activation=gelu_tanh,include=encoder.*;decoder.*``: an
        implementation's name, ``recompute``, and ``key=value`` for the rest, patterns separated by ``;``. The text is
        the name.

        Raises:
            EvaluationError: it says nothing, says something twice, or has an unknown key.
        """
        text = text.strip()
        found: dict[str, str] = {}
        for part in text.split(","):
            key, equals, value = (word.strip() for word in part.partition("="))
            if part.strip() in _SWITCHES:
                value = "yes"
            elif not equals:
                key, value = "implementation", key
            elif key in _SWITCHES:
                raise EvaluationError(f"--variant {text!r}: {key} takes no value. Write {key} alone, or leave it out.")
            if key not in _KEYS:
                known = ", ".join(one if one in _SWITCHES else f"{one}=…" for one in _KEYS)
                raise EvaluationError(
                    f"--variant {text!r}: there is no {key!r}. Write an implementation's name, or {known}, with commas "
                    "between them."
                )
            if not value:
                raise EvaluationError(f"--variant {text!r}: {key} is empty. Write {key}=NAME, or leave it out.")
            if key in found:
                raise EvaluationError(f"--variant {text!r} gives {key} twice; patterns are separated by ';'.")
            found[key] = value
        return cls(
            name=text,
            implementation=found.get("implementation", "auto"),
            activation=found.get("activation"),
            include=_patterns(found.get("include")),
            exclude=_patterns(found.get("exclude")),
            recompute="recompute" in found,
            tiles=_amount(found["tiles"]) if "tiles" in found else None,
        )

    @classmethod
    def of(
        cls,
        implementation: str = "auto",
        activation: str | None = None,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        recompute: bool = False,
        tiles: int | str | None = None,
    ) -> Variant:
        """The variant that is patched so, called as ``parse`` would read it."""
        said = {
            "activation": activation,
            "include": ";".join(include) if include else None,
            "exclude": ";".join(exclude) if exclude else None,
            "tiles": tiles,
        }
        parts = [f"{key}={value}" for key, value in said.items() if value is not None]
        parts += ["recompute"] if recompute else []
        if implementation != "auto" or not parts:
            parts.insert(0, implementation)
        return cls(
            ",".join(parts),
            implementation,
            activation,
            tuple(include) if include else None,
            tuple(exclude) if exclude else None,
            recompute,
            tiles,
        )


_KEYS = tuple(declared(Variant))
_SWITCHES = frozenset(name for name, one in declared(Variant).items() if one.switch)


def _patterns(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(pattern.strip() for pattern in text.split(";") if pattern.strip())


def check_variants(variants: Sequence[Variant]) -> None:
    """See that results can be told apart by the variants' names.

    Raises:
        EvaluationError: there are no variants, or two of one name.
    """
    if not variants:
        raise EvaluationError("there is no variant to evaluate: name one with --variant.")
    name, count = Counter(variant.name for variant in variants).most_common(1)[0]
    if count > 1:
        raise EvaluationError(f"the variant {name!r} is named {count} times: once is enough.")
    if any(variant.name == BEFORE for variant in variants):
        raise EvaluationError(f"{BEFORE!r} is what the unpatched model is called: name the variant otherwise.")
