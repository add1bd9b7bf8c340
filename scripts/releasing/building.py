"""Sdist and wheel out of a commit: what lies untracked or unsaved in the folder comes into neither."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Built", "build"]


@dataclass(frozen=True)
class Built:
    """What was built.

    Attributes:
        commit: out of which commit.
        tracked: the paths of its files.
        sdist, wheel: the archives; the wheel is built from the sdist, as an installer would.
        straight: a second wheel, built from the commit's files without the sdist. Its bytes should be the wheel's.
    """

    commit: str
    tracked: tuple[str, ...]
    sdist: Path
    wheel: Path
    straight: Path


def build(root: Path, output: Path, work: Path) -> Built:
    """Build the commit that is checked out at ``root``: sdist and wheel into ``output``, what else is made in ``work``.

    Raises:
        subprocess.CalledProcessError: git or the build backend failed; its output was shown.
    """
    commit, epoch = _git(root, "log", "-1", "--format=%H %ct").decode().split()
    tree = work / "tree"
    with tarfile.open(fileobj=io.BytesIO(_git(root, "archive", commit))) as archive:
        archive.extractall(tree, filter="data")
    tracked = tuple(sorted(path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()))
    # The commit's time is that of every file in the wheel: built twice, it is the same to the byte.
    environment = os.environ | {"SOURCE_DATE_EPOCH": epoch}
    for folder, arguments in ((work / "built", ()), (work / "straight", ("--wheel",))):
        command = ["pyproject-build", "--installer", "uv", "--outdir", folder, *arguments, tree]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            sys.stderr.write(done.stdout)
            done.check_returncode()
    output.mkdir(parents=True, exist_ok=True)
    sdist, wheel = (next((work / "built").glob(pattern)) for pattern in ("*.tar.gz", "*.whl"))
    return Built(
        commit,
        tracked,
        sdist.replace(output / sdist.name),
        wheel.replace(output / wheel.name),
        next((work / "straight").glob("*.whl")),
    )


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", root, *arguments], check=True, stdout=subprocess.PIPE).stdout
