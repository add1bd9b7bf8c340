"""The benchmark of memory, tiny: what it measures, writes and goes on with."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import processes
import pytest

from scripts.benchmarking.gpu.record import RecordError
from scripts.benchmarking.memory import measuring, report
from scripts.benchmarking.memory.found import RECORD, Found, read
from scripts.benchmarking.memory.subjects import LONG, MLP

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
VARIANTS = ("eager", "auto", "recompute", "tiles", "checkpoint")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    own = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    words = ("memory", "--tiny", "--rounds", "3", "--variants", *VARIANTS, "--output", str(folder), *arguments)
    return processes.run("-m", "scripts.benchmarking", *words, cwd=ROOT, env=own)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("memory") / "new"
    done = run(place, "--subjects", "gpt2", LONG, MLP)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (place / "memory.md").read_text(encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    return read(folder)


def test_bytes_are_those_of_arithmetic(found: Found) -> None:
    wide = 64 * 64 * 4  # tokens × columns of the layer inside × bytes
    layer = found.bytes[MLP]
    assert layer["eager"]["saved"] == 4 * wide  # gate, silu(gate), up, and their product
    assert layer["recompute"]["saved"] == 2 * wide
    assert layer["checkpoint"]["absent"] == "transformers has none for it"
    for name in ("gpt2", LONG):
        own = found.bytes[name]
        assert own["checkpoint"]["saved"] < own["recompute"]["saved"] <= own["auto"]["saved"] <= own["eager"]["saved"]
        assert all(row["peak"] > row["saved"] for row in own.values())
    assert found.bytes["gpt2"]["tiles"]["saved"] < found.bytes["gpt2"]["recompute"]["saved"]
    assert found.bytes[LONG]["eager"]["shape"] == [2, 64]


def test_steps_are_timed_in_the_same_rounds(found: Found) -> None:
    assert found.steps.keys() == {"gpt2", MLP}
    for name, line in found.steps.items():
        assert line["clock"] == "own"
        assert line["variants"].keys() == {*VARIANTS, "again"} - ({"checkpoint"} if name == MLP else set())
        assert {len(row["samples_s"]) for row in line["variants"].values()} == {3}
        assert all(off <= measuring.FARTHEST for off in line["off"].values())


def test_what_is_there_is_not_measured_again(folder: Path, found: Found) -> None:
    before = (folder / RECORD).read_text(encoding="utf-8").splitlines()
    done = run(folder, "--subjects", "gpt2", MLP)
    assert done.returncode == 0, done.stderr
    added = (folder / RECORD).read_text(encoding="utf-8").splitlines()[len(before) :]
    assert [json.loads(line)["kind"] for line in added] == ["environment"]
    assert read(folder).bytes == found.bytes


def test_what_it_tells(folder: Path, found: Found, tmp_path: Path) -> None:
    told = (folder / "memory.md").read_text(encoding="utf-8")
    for name in ("gpt2", LONG, MLP):
        assert told.count(f"\n| {name} |") == len(VARIANTS) - (name == MLP)
        assert report.compact(found, "peak").count(f"\n| {name} |") == 1
    assert f"- {MLP}, checkpoint: transformers has none for it" in told
    assert "Went wrong" not in told
    assert report.compact_times(found).count("\n| ") == 1 + 2
    (folder / "memory.md").unlink()
    done = processes.run("-m", "scripts.benchmarking", "report", str(folder), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == told == (folder / "memory.md").read_text(encoding="utf-8")
    with pytest.raises(RecordError, match=r"no memory.jsonl"):
        read(tmp_path)
