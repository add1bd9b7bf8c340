"""What was measured on a GPU, from the benchmark's record to what ``auto`` takes at a site."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from conftest import FAMILIES, printed_by
from torch import nn

from hf_gelu_patch import ACTIVATIONS, PatchError, find_sites, patched, planning
from hf_gelu_patch.activations import Resolved
from hf_gelu_patch.cli import main
from hf_gelu_patch.implementations import measured
from hf_gelu_patch.implementations.choice import choose
from hf_gelu_patch.implementations.measured import Table
from hf_gelu_patch.recognition import resolve
from scripts.benchmarking.gpu import choices

ROOT = Path(__file__).parents[1]
CARD = "NVIDIA H100 80GB HBM3"
MAIN = 2**26
ABOUT = {
    "kind": "environment",
    "date": "2026-02-01T08:00:00+00:00",
    "gpu": CARD,
    "versions": {"torch": "2.11.0+cu130", "triton": "3.6.0"},
    "nvidia_smi": ["name, driver_version, clocks.current.sm [MHz]", f"{CARD}, 580.65.06, 1980 MHz"],
}


def cell(activation: str, form: str, times: float, *, dtype: str = "bfloat16", **changed: Any) -> dict[str, Any]:
    """A kernel's cell in which Triton is so many times as fast as each of the others. From round to round the card is
    up to twice as slow, for all alike; each sample is 1 % off."""
    generator = random.Random(f"{activation} {form} {dtype}")
    slower = [1e-4 * generator.uniform(1, 2) for _ in range(60)]
    rows = {
        name: {
            "interpreted": False,
            "samples_s": [one * generator.uniform(0.99, 1.01) / (times if name == "triton" else 1.0) for one in slower],
        }
        for name in ("eager", "aten", "triton")
    }
    made = {"activation": activation, "dtype": dtype, "form": form, "elements": MAIN, "candidates": rows}
    return {"kind": "cell", **made, **changed}


def both(activation: str, forward: float, backward: float, *, gated: bool = False, **options: Any) -> list[Any]:
    forms = ("gated_forward", "gated_backward") if gated else ("forward", "backward")
    return [cell(activation, form, times, **options) for form, times in zip(forms, (forward, backward), strict=True)]


CELLS = [
    *both("gelu", 1.3, 1.1),
    *both("silu", 1.0, 0.9),
    *both("silu", 1.5, 1.6, gated=True),
    *both("gelu_tanh", 1.05, 1.2),
    *both("quick_gelu", 1.4, 1.2, dtype="float32"),
    *both("laplace", 3.0, 3.0),
]

# The rule


@pytest.mark.parametrize(
    ("forward", "backward", "taken"),
    [
        (1.3, 1.2, "triton"),
        (1.3, 1.0, "triton"),
        (1.0, 1.3, "triton"),
        (1.3, 0.95, "aten"),
        (0.95, 1.3, "aten"),
        (1.0, 1.0, "aten"),
        (1.01, 1.01, "aten"),
        (0.9, 0.9, "aten"),
    ],
)
@pytest.mark.parametrize("gated", [False, True])
def test_triton_where_it_wins_one_way_and_loses_none(forward: float, backward: float, taken: str, gated: bool) -> None:
    [entry] = choices.choices(both("gelu", forward, backward, gated=gated))
    assert entry["implementation"] == taken
    assert (entry["kind"], entry["over"]) == ("gated" if gated else "pointwise", "aten")
    for form, times in (("forward", forward), ("backward", backward)):
        found = entry[form]
        assert found["low"] < found["value"] < found["high"]
        assert found["value"] == pytest.approx(times, rel=0.005)
        assert found["high"] - found["low"] < 0.015 * times, "each sample beside the other of its round"


def test_over_eager_where_aten_does_not_compute_it() -> None:
    cells = both("laplace", 3.0, 3.0)
    for one in cells:
        del one["candidates"]["aten"]
    [entry] = choices.choices(cells)
    assert (entry["implementation"], entry["over"]) == ("triton", "eager")


def without(candidate: str) -> Callable[[], list[Any]]:
    def made() -> list[Any]:
        cells = both("gelu", 1.3, 1.3)
        del cells[1]["candidates"][candidate]
        return cells

    return made


def interpreted() -> list[Any]:
    cells = both("gelu", 1.3, 1.3)
    cells[0]["candidates"]["triton"]["interpreted"] = True
    return cells


@pytest.mark.parametrize(
    "cells",
    [
        pytest.param(lambda: both("gelu", 1.3, 1.3)[:1], id="no backward"),
        pytest.param(lambda: both("gelu", 1.3, 1.3)[1:], id="no forward"),
        pytest.param(lambda: both("gelu", 1.3, 1.3, elements=2**22), id="another size"),
        pytest.param(lambda: both("swiglu_oai", 1.3, 1.3, gated=True), id="no activation"),
        pytest.param(lambda: both("gelu", 1.3, 1.3, candidates={}), id="out of memory"),
        pytest.param(without("triton"), id="Triton was wrong"),
        pytest.param(without("aten"), id="eager is no stand-in for aten"),
        pytest.param(interpreted, id="no speed"),
    ],
)
def test_what_was_not_measured_is_left_out(cells: Callable[[], list[Any]]) -> None:
    assert choices.choices(cells()) == []


# From the record to the file


def record(folder: Path, lines: Iterable[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "gpu.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return processes.run("-m", "scripts.benchmarking", "choices", *arguments, cwd=ROOT)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with the table of a card, and what was printed."""
    folder = tmp_path_factory.mktemp("measured")
    model = {"kind": "cell", "model": "gpt2", "size": "large", "mode": "forward", "compiled": False}
    done = command(record(folder / "h100", [ABOUT, model, *CELLS]), "--output", folder / "tables")
    assert done.returncode == 0, done.stderr
    return folder / "tables", done.stdout


@pytest.fixture(scope="module")
def table(written: tuple[Path, str]) -> Table:
    return measured.table_of(CARD, written[0])


def test_the_file_says_what_was_measured_where(written: tuple[Path, str], table: Table) -> None:
    folder, printed = written
    [file] = folder.iterdir()
    assert file.name == "nvidia-h100-80gb-hbm3.json"
    assert measured.tables(folder) == [table]
    assert table.card == CARD
    assert {key: table.source[key] for key in ("record", "date", "torch", "triton", "driver")} == {
        "record": "h100/gpu.jsonl",
        "date": "2026-02-01T08:00:00+00:00",
        "torch": "2.11.0+cu130",
        "triton": "3.6.0",
        "driver": "580.65.06",
    }
    assert len(table.source["sha256"]) == 64
    assert {key: choice.implementation for key, choice in table.choices.items()} == {
        ("gelu", "pointwise", "bfloat16"): "triton",
        ("silu", "pointwise", "bfloat16"): "aten",
        ("silu", "gated", "bfloat16"): "triton",
        ("gelu_tanh", "pointwise", "bfloat16"): "triton",
        ("quick_gelu", "pointwise", "float32"): "triton",
        ("laplace", "pointwise", "bfloat16"): "triton",
    }
    assert printed.splitlines() == [str(file), *table.lines()]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{**ABOUT, "gpu": None}, *CELLS], "does not name the GPU"),
        (CELLS, "does not name the GPU"),
        (
            [ABOUT, *both("gelu", 1.3, 1.3, elements=2**22)],
            "no kernel that was measured beside aten at 67,108,864 elements",
        ),
    ],
)
def test_records_that_tell_nothing(lines: list[Any], said: str, tmp_path: Path) -> None:
    done = command(record(tmp_path / "record", lines), "--output", tmp_path / "tables")
    assert done.returncode == 1
    assert said in done.stderr
    assert not (tmp_path / "tables").exists()


def test_a_folder_without_a_record(tmp_path: Path) -> None:
    done = command(tmp_path)
    assert done.returncode == 1
    assert "there is no gpu.jsonl in" in done.stderr


def test_tables_that_come_with_the_package_are_what_their_records_say() -> None:
    for file in measured.FOLDER.glob("*.json"):
        shipped = json.loads(file.read_text(encoding="utf-8"))
        folders = [(ROOT / record).parent for record in shipped["source"]["record"].split(", ")]
        assert choices.table(folders) == shipped, f"{file.name}: choices {' '.join(map(str, folders))}"


# From the file to a site

ACTS = {"gelu": nn.GELU(), "silu": nn.SiLU(), "gelu_tanh": nn.GELU(approximate="tanh"), "tanh": nn.Tanh()}
UNMEASURED = Table("NVIDIA L4", None, {}, {})


def chosen(
    table: Table | None,
    activation: str,
    kind: str = "pointwise",
    dtype: torch.dtype = torch.bfloat16,
    *,
    name: str = "auto",
    target: str | None = None,
) -> tuple[str | None, str]:
    current = resolve(ACTS[activation])
    assert isinstance(current, Resolved)
    taken, reason = choose(name, kind, current, ACTIVATIONS[target or activation], dtype, table)
    return (None if taken is None else taken.name), reason


def test_where_triton_won_auto_takes_it_and_says_by_how_much(table: Table) -> None:
    name, reason = chosen(table, "gelu")
    found = table.choices["gelu", "pointwise", "bfloat16"]
    forward, backward = (f"{it.value:.2f} ({it.low:.2f}–{it.high:.2f})" for it in (found.forward, found.backward))
    assert name == "triton"
    assert reason == f"measured on NVIDIA H100 80GB HBM3: {forward} × aten forward, {backward} backward"
    assert chosen(table, "silu", "gated")[0] == "triton"
    assert chosen(table, "silu", target="gelu")[0] == "triton", "a swap"


@pytest.mark.parametrize(
    ("activation", "kind", "options"),
    [
        pytest.param("silu", "pointwise", {}, id="it did not win"),
        pytest.param("silu", "gated", {"name": "aten"}, id="asked for"),
        pytest.param("gelu", "pointwise", {"name": "eager", "target": "silu"}, id="another asked for"),
        pytest.param("tanh", "pointwise", {}, id="not computed by Triton"),
        pytest.param("gelu", "pointwise", {"dtype": torch.float64}, id="nor in this dtype"),
    ],
)
def test_anywhere_else_auto_does_as_without_a_table(
    table: Table, activation: str, kind: str, options: dict[str, Any]
) -> None:
    expected = chosen(None, activation, kind, **options)
    assert chosen(table, activation, kind, **options) == expected
    assert "triton" not in expected


@pytest.mark.parametrize("on", ["measured", "unmeasured"])
@pytest.mark.parametrize(
    ("activation", "kind", "dtype"),
    [
        ("gelu_tanh", "gated", torch.bfloat16),
        ("gelu", "pointwise", torch.half),
    ],
)
def test_what_is_unmeasured_is_said_to_be(
    table: Table, on: str, activation: str, kind: str, dtype: torch.dtype
) -> None:
    used = table if on == "measured" else UNMEASURED
    name, reason = chosen(None, activation, kind, dtype)
    suffix = f"; triton unmeasured for {kind} in {str(dtype).removeprefix('torch.')} on {used.card}"
    assert chosen(used, activation, kind, dtype) == (name, reason + suffix)


def test_without_triton_auto_does_as_without_a_table(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    own = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else own(name))
    for used in (table, UNMEASURED):
        assert chosen(used, "gelu") == chosen(None, "gelu") == (None, "gelu is one aten op already")


def test_the_card_is_asked_for_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cpu", "meta", "cuda"):
        assert measured.measured_on(torch.device(device)) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device}")
    assert measured.measured_on(torch.device("cuda", 1)) == Table("card cuda:1", None, {}, {})
    assert measured.measured_on(torch.device("meta")) is None


# In a model: Triton's interpreter stands in for the card


def test_a_model_on_a_measured_card(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "measured_on", {torch.device("cpu"): table}.__getitem__)
    family = FAMILIES["llama"]
    model = family.build(torch.bfloat16)
    before = family.run(model)
    with patched(model) as report:
        for site in report.sites:
            assert (site.kind, site.implementation, site.fused) == ("gated", "triton", True)
            assert site.equivalence == "rounding", "aten's would be identical"
            assert site.reason.startswith(f"measured on {CARD}: 1.50 (")
        off = (family.run(model) - before).abs().max() / before.abs().max()
        assert 0 < off < 0.1, "Triton's bits"
    assert torch.equal(family.run(model), before)
    for site in find_sites(model, implementation="aten").sites:
        assert (site.implementation, site.equivalence) == ("aten", "identical")
    for site in find_sites(model.float()).sites:
        assert (site.implementation, site.equivalence) == ("aten", "identical")
        assert site.reason.endswith(f"triton unmeasured for gated in float32 on {CARD}")
    for site in find_sites(FAMILIES["gpt2"].build(torch.bfloat16)).sites:
        assert (site.kind, site.implementation, site.fused) == ("linear", "triton", False)
        assert site.reason.startswith(f"measured on {CARD}: the activation alone, ")


# Files that cannot be used


def broken(change: Callable[[Any], Any], source: Path, folder: Path) -> Path:
    data = json.loads((source / measured.file_name(CARD)).read_text(encoding="utf-8"))
    path = folder / measured.file_name(CARD)
    path.write_text(json.dumps(change(data)), encoding="utf-8")
    return path


def first(**changes: Any) -> Callable[[Any], Any]:
    return lambda data: {**data, "choices": [{**data["choices"][0], **changes}]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data | {"schema": 2}, "its schema is 2, and this version reads 1"),
        (lambda data: [data], "it is not laid out as a table (list"),
        (lambda data: {key: value for key, value in data.items() if key != "card"}, "it lacks 'card'"),
        (lambda data: data | {"card": "NVIDIA L4"}, "it is of another card, NVIDIA L4"),
        (lambda data: data | {"card": 4}, "its card and what its source holds have to be texts"),
        (lambda data: data | {"source": []}, "it is not laid out as a table ('list'"),
        (lambda data: data | {"choices": 4}, "it is not laid out as a table ('int'"),
        (lambda data: data | {"choices": [4]}, "it is not laid out as a table ('int'"),
        (lambda data: data | {"choices": data["choices"] * 2}, "it has two choices for one"),
        (first(activation="gelu_newest"), "activation 'gelu_newest' is none of gelu, "),
        (first(kind="linear"), "kind 'linear' is none of pointwise, gated"),
        (first(dtype="float64"), "dtype 'float64' is none of"),
        (first(implementation="tritn"), "implementation 'tritn' is none of triton, aten"),
        (first(implementation="eager"), "implementation 'eager' is none of triton, aten"),
        (first(over="liger"), "over 'liger' is none of aten, eager"),
        (first(dtype=["bfloat16"]), "dtype ['bfloat16'] is none of"),
        (first(forward=1.3), "it is not laid out as a table ("),
        (first(forward={"value": 1.3}), "it is not laid out as a table (Times"),
        (first(forward={"value": "1", "low": "1", "high": "1"}), "it is not laid out as a table ('<'"),
        (first(backward={"value": 1.3, "low": 1.4, "high": 1.5}), "backward is no ratio with its interval"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_remedy(
    written: tuple[Path, str], change: Callable[[Any], Any], said: str, tmp_path: Path
) -> None:
    path = broken(change, written[0], tmp_path)
    with pytest.raises(PatchError) as error:
        measured.table_of(CARD, tmp_path)
    assert str(error.value).startswith(f"the table of measurements {path} cannot be used: {said}")
    assert "'python -m scripts.benchmarking choices', or delete it: the card is then unmeasured" in str(error.value)


def test_a_file_that_is_no_json_or_not_readable(tmp_path: Path) -> None:
    path = tmp_path / measured.file_name(CARD)
    for content in (b"{", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(PatchError, match=r"h100-80gb-hbm3\.json cannot be used: .*delete it"):
            measured.table_of(CARD, tmp_path)
    assert measured.table_of("NVIDIA L4", tmp_path) == UNMEASURED, "another card's file is not read"


# The command line


def test_implementations_lists_what_was_measured(
    written: tuple[Path, str],
    table: Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def listed(folder: Path) -> list[str]:
        monkeypatch.setattr(measured, "FOLDER", folder)
        assert main(["implementations"]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [line.strip() for line in lines[2 : lines.index(next(x for x in lines if x.startswith("eager:")))]]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert listed(tmp_path) == ["unmeasured"]
    lines = listed(written[0])
    assert lines == [line.strip() for line in table.lines()]
    assert lines[0].startswith(f"{CARD}: measured: nvidia-h100-80gb-hbm3.json, from record h100/gpu.jsonl, sha256 ")
    choice = table.choices["gelu", "pointwise", "bfloat16"]
    assert f"pointwise gelu bfloat16: triton; triton is {choice}" in lines
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for here, more in (("NVIDIA L4", ["NVIDIA L4: unmeasured"]), (CARD, [])):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, here=here: here)
        assert listed(written[0]) == [*lines, *more]
    broken(lambda data: data | {"schema": 2}, written[0], tmp_path)
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    assert main(["implementations"]) == 1
    assert "hf-gelu-patch: error: the table of measurements" in capsys.readouterr().err


@pytest.mark.slow
def test_reading_tables_loads_nothing_heavy(written: tuple[Path, str]) -> None:
    code = f"""
import sys, torch
from pathlib import Path
before = set(sys.modules)  # torch itself may bring triton
from hf_gelu_patch.implementations import measured
assert measured.table_of({CARD!r}, Path({str(written[0])!r})).choices
heavy = ["triton", "transformers", "scipy", "datasets", "evaluate"]
print([name for name in heavy if name in set(sys.modules) - before])
"""
    assert printed_by(code) == "[]\n"
