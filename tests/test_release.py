"""What is released: the archives built out of this tree, what would be wrong with them, where the wheel was tried."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from packaging.version import Version

from scripts.releasing import table, trying
from scripts.releasing.checking import MOST_BYTES, Wheel, sdist_faults, wheel_faults
from scripts.releasing.environments import NEWEST, OLDEST, lowest, stacks

pytestmark = [pytest.mark.newest, pytest.mark.slow]

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "scripts" / "releasing" / "matrix.json"
RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))
OF_PROJECT = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml")
BUILD = """
import sys
from setuptools import build_meta
output = sys.argv[1]  # which the backend forgets
build_meta.build_sdist(output)
build_meta.build_wheel(output)
"""


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The files of the package that lie in the tree."""
    files = (path for path in (ROOT / "hf_gelu_patch").rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel of this tree, as the build backend makes them."""
    tree, output = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in OF_PROJECT:
        shutil.copy(ROOT / name, tree)
    for name in ("hf_gelu_patch", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-c", BUILD, output], cwd=tree, check=True, capture_output=True, timeout=300)
    return output


@pytest.fixture(scope="module")
def wheel(built: Path) -> Wheel:
    return Wheel(next(built.glob("*.whl")))


def test_the_archives_hold_the_package_its_data_and_their_licences(
    built: Path, wheel: Wheel, tracked: set[str]
) -> None:
    assert {"hf_gelu_patch/py.typed", "hf_gelu_patch/guides/patching.md"} <= tracked
    assert list(wheel_faults(wheel, tracked)) == []
    assert list(sdist_faults(next(built.glob("*.tar.gz")), tracked)) == []
    assert "hf-gelu-patch = hf_gelu_patch.cli:main" in wheel.info["entry_points.txt"].decode()


GPT2 = "hf_gelu_patch/evaluation/reference/gpt2"


def _without_its_licence(wheel: Wheel) -> None:
    card = wheel.files[f"{GPT2}/README.md"]
    wheel.files[f"{GPT2}/README.md"] = card.replace(b"license: apache-2.0\n", b"")


def _of_another_version(wheel: Wheel) -> None:
    init = wheel.files["hf_gelu_patch/__init__.py"]
    wheel.files["hf_gelu_patch/__init__.py"] = init.replace(b'__version__ = "', b'__version__ = "9')


FAULTS: dict[str, tuple[Callable[[Wheel], object], str]] = {
    "no types": (lambda wheel: wheel.files.pop("hf_gelu_patch/py.typed"), "no py.typed"),
    "no template": (
        lambda wheel: wheel.files.pop("hf_gelu_patch/evaluation/report/templates/page.css"),
        "not in the wheel: hf_gelu_patch/evaluation/report/templates/page.css",
    ),
    "no weights": (lambda wheel: wheel.files.pop(f"{GPT2}/model.safetensors"), f"under no licence: {GPT2}/model"),
    "stray": (lambda wheel: wheel.files.update({"tests/test_x.py": b""}), "no file of the package: tests/test_x.py"),
    "data of nobody": (lambda wheel: wheel.files.update({f"{GPT2}/x.csv": b""}), f"under no licence: {GPT2}/x.csv"),
    "weights of nobody": (_without_its_licence, f"under no licence: {GPT2}/model.safetensors"),
    "a licence left out": (
        lambda wheel: wheel.info.pop("licenses/hf_gelu_patch/evaluation/reference/licenses/digits.txt"),
        "not in the wheel's .dist-info: licenses/hf_gelu_patch/evaluation/reference/licenses/digits.txt",
    ),
    "no licence that there is": (
        lambda wheel: wheel.info.update(METADATA=wheel.info["METADATA"].replace(b" AND MIT", b" AND MITT")),
        "metadata: ",
    ),
    "another version": (_of_another_version, "versions: 90.1.0 in the code"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_wheel_is_told(fault: str, wheel: Wheel, tracked: set[str]) -> None:
    broken, (spoil, told) = copy.copy(wheel), FAULTS[fault]
    broken.files, broken.info = dict(wheel.files), dict(wheel.info)
    spoil(broken)
    assert any(told in one for one in wheel_faults(broken, tracked))


def test_the_environments_are_the_oldest_and_newest_of_each_python(wheel: Wheel) -> None:
    chosen = list(stacks(["3.10", "3.13"]))
    both, crossed = {(OLDEST, OLDEST), (NEWEST, NEWEST)}, {(OLDEST, NEWEST), (NEWEST, OLDEST)}
    for minor, expected in {"3.10": both | crossed, "3.13": both}.items():
        assert {(one.torch, one.transformers) for one in chosen if one.python == minor} == expected
    metadata = wheel.metadata
    asked = {one.name: one.requirements(Path("a.whl"), metadata)[1:] for one in chosen}
    torch_, transformers = lowest(metadata, "")["torch"], lowest(metadata, "")["transformers"]
    assert asked["Python 3.10, torch oldest, transformers oldest, uv pip"] == [
        f"torch=={torch_}",
        f"transformers=={transformers}",
    ]
    assert asked["Python 3.13, torch newest, transformers newest, pip"] == []
    everything = asked["Python 3.10, everything asked for, [evaluation], uv pip"]
    assert len(everything) == len(lowest(metadata, "evaluation")) > 10
    assert f"transformers=={transformers}" not in everything, "evaluating asks for a newer one"


def test_the_record_is_of_the_range_that_is_declared(wheel: Wheel) -> None:
    metadata, rows = wheel.metadata, RECORDED["environments"]
    assert RECORDED["wheel"]["name"] == wheel.path.name
    minors = {".".join(row["versions"]["Python"].split(".")[:2]) for row in rows}
    prefix = "Programming Language :: Python :: 3."
    assert {f"3.{one.removeprefix(prefix)}" for one in metadata.classifiers or () if one.startswith(prefix)} == minors
    found = {row["asked"]: row for row in rows}
    for stack in stacks(sorted(minors, key=Version)):
        row, bounds = found.pop(stack.name), lowest(metadata, stack.extra)
        for name in ("torch", "transformers"):
            version = Version(row["versions"][name].split("+")[0])
            assert version == bounds[name] if getattr(stack, name) == OLDEST else version > bounds[name], stack.name
    assert found == {}


def test_everything_that_was_tried_passed() -> None:
    assert RECORDED["wheel"]["reference"] < RECORDED["wheel"]["bytes"] < MOST_BYTES
    for row in RECORDED["environments"]:
        assert row["problems"] == [], row["asked"]
        assert len(row["models"]) == 5
        for model in row["models"].values():
            assert model["aten"]["patched"] > 0
            assert all(one["moved"] <= trying.MOST for one in model.values() if "moved" in one)
        assert ("quality" in row) == (row["extra"] == "evaluation")


def test_the_page_is_that_of_the_record() -> None:
    assert RECORD.with_suffix(".md").read_text(encoding="utf-8") == table.document(RECORDED)
    assert RECORD.read_text(encoding="utf-8") == table.record(RECORDED)


def test_what_a_patch_does_to_a_model_is_told_apart() -> None:
    torch.manual_seed(0)
    model, inputs = trying._built()["gpt2"]
    found, problems = trying._tried(model, inputs, implementation="aten")
    assert (found["sites"], found["patched"], problems) == (2, 2, [])
    _, problems = trying._tried(model, inputs, activation="relu")
    assert len(problems) == 1
    assert "outputs moved by" in problems[0]
