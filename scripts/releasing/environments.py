"""The wheel in empty environments: each Python of the range that is here, the oldest and newest that it asks for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.metadata import Metadata
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from scripts.releasing.checking import REFERENCE, Wheel

__all__ = ["Stack", "lowest", "pythons", "stacks", "tried"]

OLDEST, NEWEST = "oldest", "newest"
_EVALUATED = ("vit", "gpt2")
"""Reference models whose weights come along; all of their data is asked."""
_NEAR = 1e-3
"""How far the quality of a reference model may lie from what the manifest says, relative to that."""
_SECONDS = 1800


@dataclass(frozen=True)
class Stack:
    """What an environment is made of.

    Attributes:
        python: "3.10".
        torch, transformers: "oldest" that the wheel asks for, or "newest" that there is.
        extra: "evaluation" or "".
        everything: whether all else that is asked for is the oldest, too.
        installer: "uv pip", whose cache serves every environment, or "pip" as a user has it, with nothing pinned.
    """

    python: str
    torch: str
    transformers: str
    extra: str = ""
    everything: bool = False
    installer: str = "uv pip"

    @property
    def name(self) -> str:
        of = "everything asked for" if self.everything else f"torch {self.torch}, transformers {self.transformers}"
        return f"Python {self.python}, {of}{f', [{self.extra}]' if self.extra else ''}, {self.installer}"

    def requirements(self, wheel: Path, metadata: Metadata) -> list[str]:
        """What the installer is asked for."""
        bounds = lowest(metadata, self.extra)
        pinned = {name for name in ("torch", "transformers") if getattr(self, name) == OLDEST}
        pinned |= bounds.keys() if self.everything else set()
        asked = f"{wheel}[{self.extra}]" if self.extra else str(wheel)
        return [asked, *(f"{name}=={bounds[name]}" for name in sorted(pinned))]


def lowest(metadata: Metadata, extra: str) -> dict[str, Version]:
    """The lowest version of each package that the metadata ask for, by themselves and for an extra."""
    bounds: dict[str, Version] = {}
    for requirement in metadata.requires_dist or ():
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            name = canonicalize_name(requirement.name)
            for one in requirement.specifier:
                if one.operator == ">=":
                    bounds[name] = max(bounds.get(name, Version("0")), Version(one.version))
    return bounds


def pythons(requires: SpecifierSet, environment: Mapping[str, str]) -> dict[str, Path]:
    """The newest release of each minor version of Python in the range that is on PATH or that pyenv or uv have."""
    of_pyenv = Path(environment.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions").glob("*/bin")
    path = os.pathsep.join([*map(str, sorted(of_pyenv)), environment.get("PATH", "")])
    command = ["uv", "python", "list", "--only-installed", "--output-format", "json"]
    listed = subprocess.run(
        command, env={**environment, "PATH": path}, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    found: dict[str, tuple[Version, Path]] = {}
    for one in json.loads(listed.stdout):
        if one["implementation"] != "cpython" or one["variant"] != "default" or one["path"] is None:
            continue
        version = Version(one["version"])
        minor = f"{version.major}.{version.minor}"
        if requires.contains(version) and version > found.get(minor, (Version("0"), Path()))[0]:
            found[minor] = version, Path(one["path"])
    return {minor: found[minor][1] for minor in sorted(found, key=Version)}


def stacks(minors: list[str]) -> Iterator[Stack]:
    """Every environment, those that share a Python and a torch behind one another.

    Each Python gets the oldest torch with the oldest transformers, and the newest with the newest. The first Python
    gets the other two pairs, too. With the oldest transformers the patcher alone is tried: evaluating asks for a newer
    one. That, and the oldest of everything else that evaluating needs, is tried on the first Python: newer ones have no
    builds of so old packages.
    """
    for minor in minors:
        first = minor == minors[0]
        yield Stack(minor, OLDEST, OLDEST)
        if first:
            yield Stack(minor, OLDEST, OLDEST, "evaluation", everything=True)
            yield Stack(minor, OLDEST, NEWEST, "evaluation")
            yield Stack(minor, NEWEST, OLDEST)
        yield Stack(minor, NEWEST, NEWEST, "evaluation")
    yield Stack(minors[-1], NEWEST, NEWEST, installer="pip")


def tried(stack: Stack, python: Path, wheel: Wheel, work: Path, cache: Path) -> dict[str, Any]:
    """An environment made, tried and removed. In what is found of it, ``problems`` is empty where all held.

    Args:
        python: the interpreter that it is made with.
        work: an empty folder outside the repository, for everything but what is downloaded.
        cache: where environments share that, and the C++ that they compile.
    """
    row: dict[str, Any] = {"asked": stack.name, "extra": stack.extra, "installer": stack.installer, "problems": []}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(work / "hub"),
        "XDG_CACHE_HOME": str(cache),  # so that its C++ is compiled here, once: no Python or torch takes part in it
        "UV_CACHE_DIR": str(cache / "uv"),
    }
    run = _Runs(environment, work)
    began = time.monotonic()
    try:
        place = _installed(stack, python, wheel, run)
        row["seconds"] = {"install": round(time.monotonic() - began)}
        row["megabytes"] = round(sum(one.lstat().st_size for one in place.rglob("*") if not one.is_dir()) / 1e6)
        began = time.monotonic()
        shutil.copy(Path(__file__).with_name("trying.py"), work)
        run(place / "bin" / "python", "-I", work / "trying.py", work)
        found = json.loads((work / "tried.json").read_text(encoding="utf-8"))
        row |= {"versions": found["versions"], "models": found["models"]}
        row["problems"] += found["problems"]
        for problem in _commands(stack, place, run, row["versions"]["hf-gelu-patch"]):
            row["problems"].append(problem)
        if stack.extra == "evaluation":
            row["quality"], problems = _evaluated(place, wheel, run)
            row["problems"] += problems
        row["seconds"]["run"] = round(time.monotonic() - began)
    except _FailedError as error:
        row["problems"].append(str(error))
    return row


class _FailedError(RuntimeError):
    """A command ended as it should not; the message is its end, and what it said last."""


class _Runs:
    """Runs commands in an environment of variables and a folder that are not ours."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self.environment, self.folder = environment, folder

    def __call__(self, *command: str | Path, status: int = 0) -> str:
        """What a command says.

        Raises:
            _FailedError: its exit status is another, or it takes too long.
        """
        shown = " ".join(Path(one).name for one in command)
        try:
            done = subprocess.run(
                command,
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise _FailedError(f"{shown}: not done after {_SECONDS} s") from None
        if done.returncode != status:
            said = "\n".join(done.stdout.strip().splitlines()[-12:])
            raise _FailedError(f"{shown}: exit status {done.returncode}: {said}")
        return done.stdout


def _installed(stack: Stack, python: Path, wheel: Wheel, run: _Runs) -> Path:
    place = run.folder / "venv"
    requirements = stack.requirements(wheel.path.resolve(), wheel.metadata)
    if stack.installer == "pip":
        run(python, "-m", "venv", place)
        run(place / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements)
    else:
        run("uv", "venv", "--no-project", "--python", python, place)
        run("uv", "pip", "install", "--python", place / "bin" / "python", *requirements)
    return place


def _commands(stack: Stack, place: Path, run: _Runs, version: str) -> Iterator[str]:
    """What the command line says that it should not, or does not."""
    command = place / "bin" / "hf-gelu-patch"
    asked: list[tuple[list[str | Path], int, str]] = [
        ([command, "--help"], 0, "evaluate"),
        ([place / "bin" / "python", "-m", "hf_gelu_patch", "--version"], 0, version),
        ([command, "sites", run.folder / "gpt2"], 0, "activation sites"),
    ]
    if not stack.extra:
        asked.append(([command, "evaluate", "--model_name_or_path", "gpt2"], 1, "hf-gelu-patch[evaluation]"))
    for arguments, status, says in asked:
        shown = " ".join(Path(one).name for one in arguments)
        try:
            said = run(*arguments, status=status)
        except _FailedError as error:
            yield str(error)
        else:
            if says not in said:
                yield f"{shown} does not say {says!r}: {said.strip()[-300:]}"


def _evaluated(place: Path, wheel: Wheel, run: _Runs) -> tuple[dict[str, Any], list[str]]:
    """The quality of reference models before and after a patch, and what of it is not as the manifest says."""
    names = [word for name in _EVALUATED for word in ("--model_name_or_path", name)]
    options = ["--implementation", "aten", "--timing_seconds", "0.1", "--output_dir", "evaluation"]
    run(place / "bin" / "hf-gelu-patch", "evaluate", *names, *options)
    record = json.loads((run.folder / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    manifest = json.loads(wheel.files[f"{REFERENCE}/manifest.json"])
    found: dict[str, Any] = {}
    problems = []
    for model in record["models"]:
        name = model["subject"]["name"]
        quality = model["variants"][0]["quality"]
        found[name] = {when: quality[when] for when in ("before", "after")}
        for metric, noted in manifest[name]["quality"].items():
            for when, values in found[name].items():
                if not abs(values[metric] - noted) <= _NEAR * abs(noted):
                    problems.append(f"{name}: {metric} {when} the patch is {values[metric]:.6g}, and was {noted:.6g}")
    if missing := {*_EVALUATED} - found.keys():
        problems.append(f"not evaluated: {', '.join(sorted(missing))}")
    return found, problems
