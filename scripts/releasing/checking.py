"""What a wheel and an sdist must be before anybody is given them."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

from packaging.metadata import ExceptionGroup, Metadata
from packaging.utils import parse_wheel_filename

from scripts.releasing.building import Built

__all__ = ["MOST_BYTES", "Wheel", "archive_faults", "sdist_faults", "unlicensed", "wheel_faults"]

PACKAGE = "hf_gelu_patch"
REFERENCE = f"{PACKAGE}/evaluation/reference"
LICENCES = f"{REFERENCE}/licenses"

MOST_BYTES = 12_000_000
"""How large the wheel may be. Three small models with their data make up nearly all of it."""

_INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"}
_OF_SDIST = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}


class Wheel:
    """A wheel's files, read once.

    Attributes:
        files: the content of each file of the package, by its path.
        info: that of each file in the ``.dist-info`` folder, by its path in there.
        packed: how many bytes the reference models take in the wheel.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with zipfile.ZipFile(path) as archive:
            files = {one.filename: archive.read(one) for one in archive.infolist() if not one.is_dir()}
            self.packed = sum(one.compress_size for one in archive.infolist() if one.filename.startswith(REFERENCE))
        info = re.compile(r"[^/]+\.dist-info/")
        self.files = {name: content for name, content in files.items() if not info.match(name)}
        self.info = {info.sub("", name): content for name, content in files.items() if info.match(name)}

    @property
    def metadata(self) -> Metadata:
        """Raises packaging's ``ExceptionGroup``, one error a field that is not valid."""
        return Metadata.from_email(self.info["METADATA"], validate=True)

    @property
    def digest(self) -> str:
        """Of what is in it: the same for two wheels whose files differ in their dates alone."""
        return hashlib.sha256(self.info["RECORD"]).hexdigest()


def wheel_faults(wheel: Wheel, tracked: Collection[str]) -> Iterator[str]:
    """What is wrong with a wheel that was built out of a commit with these files."""
    try:
        metadata = wheel.metadata
    except ExceptionGroup as error:
        yield from (f"metadata: {one}" for one in error.exceptions)
        return
    own = {name for name in tracked if name.startswith(f"{PACKAGE}/")}
    yield from (f"not in the wheel: {name}" for name in sorted(own - wheel.files.keys()))
    yield from (f"in the wheel, and no file of the package: {name}" for name in sorted(wheel.files.keys() - own))
    licences = {"LICENSE", *(name for name in own if name.startswith(f"{LICENCES}/"))}
    if missing := sorted(licences - {*(metadata.license_files or ())}):
        yield f"licences that the metadata do not name: {', '.join(missing)}"
    expected = _INFO | {f"licenses/{name}" for name in licences}
    yield from (f"in the wheel's .dist-info: {name}" for name in sorted(wheel.info.keys() - expected))
    yield from (f"not in the wheel's .dist-info: {name}" for name in sorted(expected - wheel.info.keys()))
    if f"{PACKAGE}/py.typed" not in wheel.files:
        yield "no py.typed: type checkers would not look at the package's types"
    yield from (f"under no licence: {name}" for name in unlicensed(wheel.files))
    _, version, _, tags = parse_wheel_filename(wheel.path.name)
    if {str(tag) for tag in tags} != {"py3-none-any"}:
        yield f"{wheel.path.name} is not for every Python and platform"
    said = re.search(r'^__version__ = "(.*)"$', wheel.files[f"{PACKAGE}/__init__.py"].decode(), re.MULTILINE)
    if not (said and said[1] == str(metadata.version) == str(version)):
        yield f"versions: {said and said[1]} in the code, {metadata.version} in the metadata, {version} in the name"
    if (size := wheel.path.stat().st_size) > MOST_BYTES:
        yield f"{size:,} bytes, and {MOST_BYTES:,} at most were meant: see .github/CONTRIBUTING.md"


def unlicensed(files: Mapping[str, bytes]) -> list[str]:
    """The files of the reference models that come without a licence. Code, and what code reads, is under LICENSE.

    Data must be named in the first paragraph of a file in ``licenses/``. Weights and what belongs to them are under the
    licence that the model card beside them declares.
    """
    manifest = json.loads(files[f"{REFERENCE}/manifest.json"])
    texts = [text.decode() for name, text in files.items() if name.startswith(f"{LICENCES}/")]
    named = {word for text in texts for word in text.partition("\n\n")[0].split()}
    found = []
    for name in sorted(files):
        path = PurePosixPath(name)
        if not path.is_relative_to(REFERENCE) or path.suffix == ".py" or path.is_relative_to(LICENCES):
            continue
        inside = path.relative_to(REFERENCE)
        if len(inside.parts) == 1:
            continue  # the manifest, which is ours
        card = files.get(f"{REFERENCE}/{inside.parts[0]}/README.md", b"").decode()
        of_model = re.match(r"---\n(?:.*\n)*?license: \S+\n(?:.*\n)*?---\n", card) is not None
        data = path.suffix in {".csv", ".parquet", ".txt"}
        if not (str(inside) in named if data else of_model):
            found.append(name)
    listed = {f"{REFERENCE}/{name}" for entry in manifest.values() for name in entry["files"]}
    return found + sorted(listed - files.keys())


def sdist_faults(sdist: Path, tracked: Collection[str]) -> Iterator[str]:
    """What is wrong with an sdist: it holds what the wheel is built of, and nothing else."""
    with tarfile.open(sdist) as archive:
        files = {member.name.partition("/")[2] for member in archive if member.isfile()}
    expected = {one for one in tracked if one.startswith(f"{PACKAGE}/")} | _OF_SDIST
    generated = {one for one in files if one.startswith(f"{PACKAGE}.egg-info/")}
    yield from (f"not in the sdist: {one}" for one in sorted(expected - files))
    yield from (f"in the sdist, and not needed to build: {one}" for one in sorted(files - expected - generated))


def archive_faults(built: Built) -> Iterator[str]:
    """Everything that is wrong with what was built."""
    wheel = Wheel(built.wheel)
    yield from wheel_faults(wheel, built.tracked)
    yield from sdist_faults(built.sdist, built.tracked)
    if built.straight.read_bytes() != built.wheel.read_bytes():
        differs = {name for name, content in Wheel(built.straight).files.items() if wheel.files.get(name) != content}
        yield f"built without the sdist the wheel is another: {', '.join(sorted(differs)) or 'its .dist-info'}"
    command = ["twine", "--no-color", "check", "--strict", built.sdist, built.wheel]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        yield f"twine check: {done.stdout.strip()}"
