"""Options from a YAML file: a second way to write what the command line takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.options.declaring import Option

__all__ = ["with_config"]


def with_config(path: Path, options: Mapping[str, Option], given: Sequence[str]) -> list[str]:
    """The arguments, and those that the file names and they do not. How to patch is one matter: where the command line
    says anything about it, the file's word does not count.

    Args:
        path: the file.
        options: those of the command, by how they are spelled.
        given: the command's name, and its arguments.

    Raises:
        EvaluationError: the file cannot be read, or names what is no option.
    """
    found = _read(path)
    valid = [name for name in options if name != "config"]
    if unknown := [name for name in found if name not in valid]:
        raise EvaluationError(f"the config {path} has no option {', '.join(unknown)}. Valid: {', '.join(valid)}.")
    said = {word[2:].partition("=")[0] for word in given if word.startswith("--")}
    patching = {name for name, option in options.items() if option.group == "patch"}
    if said & patching:
        said |= patching
    added = [
        word
        for name, value in found.items()
        if name not in said and value is not None and value is not False
        for word in _words(path, name, value, repeated=options[name].repeated)
    ]
    return [given[0], *added, *given[1:]]


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EvaluationError(f"the config {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise EvaluationError(f"the config {path} names no options: write one a line, as in 'limit: 100'.")
    return {str(name).replace("-", "_"): value for name, value in config.items()}


def _words(path: Path, name: str, value: Any, *, repeated: bool) -> Iterator[str]:
    """An option of the file as arguments."""
    if value is True:
        yield f"--{name}"
        return
    values = value if isinstance(value, list) else [value]
    if len(values) > 1 and not repeated:
        raise EvaluationError(f"the config {path} gives {name} {len(values)} values: it takes one.")
    for one in values:
        if isinstance(one, dict) and name == "variant":
            one = ",".join(f"{key}={_joined(pattern)}" for key, pattern in one.items())
        if isinstance(one, dict | list):
            raise EvaluationError(f"the config {path} gives {name} {one!r}: it takes a text or a number.")
        yield f"--{name}={one}"


def _joined(patterns: Any) -> str:
    return ";".join(map(str, patterns)) if isinstance(patterns, list) else str(patterns)
