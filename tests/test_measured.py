"""What was measured on a GPU or a CPU, from the benchmark's record to what ``auto`` takes at a site."""

from __future__ import annotations

import importlib.util
import json
import platform
import random
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from conftest import FAMILIES, OWN_CPU, printed_by
from torch import Tensor, nn
from transformers.activations import ACT2FN

from hf_gelu_patch import ACTIVATIONS, PatchError, find_sites, patched, planning
from hf_gelu_patch.activations import Resolved
from hf_gelu_patch.cli import main
from hf_gelu_patch.forwards import replacements
from hf_gelu_patch.implementations import measured
from hf_gelu_patch.implementations.choice import choose
from hf_gelu_patch.implementations.measured import Table, processors
from hf_gelu_patch.implementations.registry import ALWAYS, Implementation, Least
from hf_gelu_patch.recognition import resolve
from scripts.benchmarking.gpu import choices
from scripts.benchmarking.gpu.models import concluded

ROOT = Path(__file__).parents[1]
CARD = "NVIDIA H100 80GB HBM3"
ABOUT = {
    "kind": "environment",
    "date": "2026-02-01T08:00:00+00:00",
    "gpu": CARD,
    "versions": {"torch": "2.11.0+cu130", "triton": "3.6.0"},
    "nvidia_smi": ["name, driver_version, clocks.current.sm [MHz]", f"{CARD}, 580.65.06, 1980 MHz"],
}

ON_A_CARD = ("large, forward", "large, training step", "small, forward", "small, training step")
"""Of ``measured.CELLS``, what is measured there."""
ROWS = {"large": 1024, "medium": 128, "small": 16}


def layer(
    activation: str, *, kind: str = "linear", dtype: str = "bfloat16", ops: int = 1, **times: Sequence[float]
) -> list[Any]:
    """The cells of a layer in which each implementation is so many times as fast as eager, one number for each of
    ``ON_A_CARD``, or for all of ``measured.CELLS``. From round to round the card is up to twice as slow, for all alike;
    each sample is 1 % off."""
    generator = random.Random(f"{activation} {kind} {dtype}")
    cells = []
    for number, cell in enumerate(measured.CELLS if any(len(own) > 4 for own in times.values()) else ON_A_CARD):
        slower = [1e-4 * generator.uniform(1, 2) for _ in range(60)]
        faster = {"again": 1.0, "eager": 1.0, **{name: own[number] for name, own in times.items()}}
        samples = {name: [one * generator.uniform(0.99, 1.01) / by for one in slower] for name, by in faster.items()}
        size, mode = cell.split(", ")
        named = {
            "activation": activation,
            "spelling": f"{activation}_{ops}",
            "kind_of_site": kind,
            "dtype": dtype,
            "ops": ops,
        }
        variants = concluded(samples, dict.fromkeys(samples), 0)
        cells.append({"kind": "site", **named, "size": size, "mode": mode, "rows": ROWS[size], "variants": variants})
    return cells


CELLS = [
    *layer("gelu", triton=(1.3, 1.2, 1.1, 1.0), aten=(1.0,) * 4),
    *layer("silu", triton=(1.2, 1.2, 0.9, 0.8), aten=(1.0,) * 4),
    *layer("silu", kind="gated", triton=(1.5, 1.6, 1.2, 1.1)),
    *layer("gelu_tanh", ops=8, epilogue=(3.2, 2.7, 2.0, 1.8), aten=(2.7, 2.4, 2.0, 1.8)),
    *layer("gelu_tanh", ops=1, epilogue=(1.1, 1.0, 0.8, 0.9)),
    *layer("relu", epilogue=(1.2, 1.1, 1.0, 1.0), dtype="float32"),
]

# The rule


@pytest.mark.parametrize(
    ("times", "taken", "best"),
    [
        pytest.param({"triton": (1.3, 1.2, 1.1, 1.05)}, "triton", "triton", id="faster everywhere"),
        pytest.param({"triton": (1.0, 1.0, 1.3, 1.0)}, "triton", "triton", id="faster in one"),
        pytest.param({"triton": (1.3, 1.3, 1.3, 0.9)}, "eager", "triton", id="slower in one"),
        pytest.param({"triton": (1.3, 1.3, 1.3, 0.985)}, "eager", "triton", id="slower in one, beyond its interval"),
        pytest.param({"triton": (1.0, 1.0, 1.0, 1.0)}, "eager", "triton", id="no difference"),
        pytest.param({"aten": (1.1,) * 4, "triton": (1.11,) * 4}, "aten", "aten", id="hardly more than aten"),
        pytest.param({"aten": (1.1,) * 4, "triton": (1.2,) * 4}, "triton", "triton", id="more than aten"),
        pytest.param(
            {"aten": (1.2,) * 4, "triton": (1.9, 1.9, 1.9, 0.9)}, "aten", "aten", id="more, but slower in one"
        ),
        pytest.param({"aten": (1.0, 1.0, 1.0, 0.9), "triton": (1.2, 0.8, 0.8, 0.8)}, "eager", "triton", id="none"),
        pytest.param({"epilogue": (1.4, 1.2, 1.1, 1.0), "triton": (1.1,) * 4}, "epilogue", "epilogue", id="of all"),
    ],
)
def test_the_fastest_of_what_is_never_slower(times: dict[str, Sequence[float]], taken: str, best: str) -> None:
    [entry] = choices.choices(layer("gelu", **times))
    told = entry["able"][0] if entry["able"] else entry["fastest"]
    assert (told["implementation"] if entry["able"] else "eager", told["implementation"]) == (taken, best)
    assert tuple(told["times"]) == ON_A_CARD
    for found, expected in zip(told["times"].values(), times[best], strict=True):
        assert found["low"] < found["value"] < found["high"]
        assert found["value"] == pytest.approx(expected, rel=0.005)
        assert found["high"] - found["low"] < 0.015 * expected, "each sample beside the other of its round"


def test_slower_by_more_than_the_margin_however_wide_the_interval() -> None:
    cells = layer("gelu", triton=(1.3, 1.3, 1.3, 0.9))
    cells[3]["variants"]["triton"] |= {
        "ratio": {"value": 0.9, "low": 0.7, "high": 1.2},
        "verdict": "no difference detected",
    }
    [entry] = choices.choices(cells)
    assert entry["able"] == []


def test_what_is_never_slower_is_ranked_down_to_what_always_runs() -> None:
    """So that a machine without the first takes the next."""
    slower = {"aten": (1.2,) * 4, "triton": (1.1,) * 4}
    [entry] = choices.choices(layer("gelu", cpp=(1.5,) * 4, epilogue=(1.8, 1.5, 1.1, 1.1), **slower))
    assert [one["implementation"] for one in entry["able"]] == ["cpp", "epilogue", "aten"]
    [entry] = choices.choices(layer("gelu", cpp=(1.5, 1.5, 1.5, 0.9), **slower))
    assert [one["implementation"] for one in entry["able"]] == ["aten"]


@pytest.mark.parametrize(
    ("times", "inference", "training"),
    [
        pytest.param((1.3, 1.2, 1.2, 1.1, 1.1, 1.1), 0, 0, id="never slower"),
        pytest.param((1.3, 1.2, 1.2, 1.1, 0.8, 0.9), 128 * 768, 128 * 768, id="slower at few"),
        pytest.param((1.3, 1.2, 0.9, 0.9, 0.8, 0.9), 1024 * 768, 1024 * 768, id="faster at many"),
        pytest.param((1.3, 1.0, 1.2, 1.0, 0.8, 0.9), 128 * 768, None, id="faster in inference"),
        pytest.param((1.3, 0.9, 1.2, 1.3, 1.0, 1.3), 0, None, id="slower at many in training"),
        pytest.param((1.0, 1.3, 1.0, 1.0, 1.0, 0.9), None, 128 * 768, id="faster in training"),
    ],
)
def test_where_three_sizes_were_measured_it_is_taken_from_one_of_them_on(
    times: Sequence[float], inference: int | None, training: int | None
) -> None:
    [entry] = choices.choices(layer("gelu", cpp=times))
    [taken] = entry["able"]
    assert taken["least"] == {"inference": inference, "training": training}
    assert list(taken["times"]) == list(measured.CELLS)


def test_where_it_is_not_taken_its_times_do_not_count() -> None:
    slow_at_few, even = (1.4, 1.4, 1.3, 1.3, 0.3, 0.3), (1.2,) * 6
    [entry] = choices.choices(layer("gelu", cpp=slow_at_few, epilogue=even, aten=(1.1,) * 6))
    assert [one["implementation"] for one in entry["able"]] == ["cpp", "epilogue", "aten"]
    [entry] = choices.choices(layer("gelu", cpp=slow_at_few, aten=(1.5, 1.5, 1.5, 1.5, 0.9, 0.9), triton=even))
    names = [one["implementation"] for one in entry["able"]]
    assert names == ["aten", "cpp", "triton"], "behind an aten that is not always taken"
    assert choices.choices(layer("gelu", cpp=(1.0, 1.0, 1.3, 1.0, 1.3, 0.9)))[0]["able"]
    assert not choices.choices(layer("gelu", cpp=(0.9, 1.0, 1.3, 1.0, 1.3, 0.9)))[0]["able"]


def test_each_number_of_ops_is_a_choice_of_its_own() -> None:
    found = {
        entry["ops"]: [one["implementation"] for one in entry["able"]]
        for entry in choices.choices(CELLS)
        if entry["activation"] == "gelu_tanh"
    }
    assert found == {8: ["epilogue", "aten"], 1: []}


def one_without(candidate: str) -> list[Any]:
    cells = layer("gelu", triton=(1.3,) * 4)
    del cells[1]["variants"][candidate]
    return cells


@pytest.mark.parametrize(
    "cells",
    [
        pytest.param(lambda: layer("gelu", triton=(1.3,) * 4)[:3], id="a cell is missing"),
        pytest.param(lambda: layer("gelu"), id="nothing computes it"),
        pytest.param(lambda: one_without("triton"), id="it failed in one"),
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
    return measured.table_of(CARD, "cuda", written[0])


def test_the_file_says_what_was_measured_where(written: tuple[Path, str], table: Table) -> None:
    folder, printed = written
    [file] = folder.iterdir()
    assert file.name == "nvidia-h100-80gb-hbm3.json"
    assert measured.tables(folder) == [table]
    assert (table.processor, table.device) == (CARD, "cuda")
    assert {key: table.source[key] for key in ("record", "date", "torch", "triton", "driver")} == {
        "record": "h100/gpu.jsonl",
        "date": "2026-02-01T08:00:00+00:00",
        "torch": "2.11.0+cu130",
        "triton": "3.6.0",
        "driver": "580.65.06",
    }
    assert len(table.source["sha256"]) == 64
    assert {key: choice.implementation for key, choice in table.choices.items()} == {
        ("gelu", "linear", "bfloat16", 1): "triton",
        ("silu", "linear", "bfloat16", 1): "eager",
        ("silu", "gated", "bfloat16", 1): "triton",
        ("gelu_tanh", "linear", "bfloat16", 8): "epilogue",
        ("gelu_tanh", "linear", "bfloat16", 1): "eager",
        ("relu", "linear", "float32", 1): "epilogue",
    }
    assert printed.splitlines() == [str(file), *table.lines()]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{**ABOUT, "gpu": None}, *CELLS], "does not name the GPU or CPU"),
        (CELLS, "does not name the GPU or CPU"),
        (
            [ABOUT, *CELLS[:3]],
            "no layer that was measured in every cell",
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

ACTS: dict[str, nn.Module] = {
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "gelu_new": ACT2FN["gelu_new"],
    "relu": nn.ReLU(),
    "tanh": nn.Tanh(),
}
UNMEASURED = Table("NVIDIA L4", "cuda", None, {}, {})
IN_PLACE = f"writing in place was never faster on {CARD}, whatever was measured"


def chosen(
    table: Table | None,
    spelling: str,
    kind: str = "linear",
    dtype: torch.dtype = torch.bfloat16,
    *,
    name: str = "auto",
    target: str | None = None,
) -> tuple[str | None, str]:
    current = resolve(ACTS[spelling])
    assert isinstance(current, Resolved)
    aim = ACTIVATIONS[target] if target else current.activation
    taken = choose(name, kind, current, aim, (torch.device("cuda"), dtype), table)
    return (None if taken.implementation is None else taken.implementation.name), taken.reason


def told(table: Table, *key: Any) -> str:
    found = table.choices[key].fastest
    values = sorted(it.value for it in found.times.values())
    return f"{found.implementation} {values[0]:.2f} to {values[-1]:.2f} times as fast"


def test_what_was_never_slower_is_taken_and_said_to_be_how_fast(table: Table) -> None:
    assert chosen(table, "gelu") == ("triton", f"measured on {CARD}: {told(table, 'gelu', 'linear', 'bfloat16', 1)}")
    assert chosen(table, "silu", "gated")[0] == "triton"
    assert chosen(table, "silu", target="gelu")[0] == "triton", "a swap"
    assert chosen(table, "relu", dtype=torch.float32)[0] == "epilogue", "no kernel of Triton's computes it"


def test_what_nothing_was_faster_for_is_left_alone(table: Table) -> None:
    why = f"nothing was faster without ever being slower on {CARD}: {told(table, 'silu', 'linear', 'bfloat16', 1)}"
    assert chosen(table, "silu") == (None, why)
    assert chosen(table, "gelu", target="silu") == chosen(None, "gelu", target="silu"), "but not where it is swapped"


def test_the_same_function_in_one_op_and_in_more(table: Table) -> None:
    assert chosen(table, "gelu_new")[0] == "epilogue"
    assert chosen(table, "gelu_tanh")[0] is None
    assert chosen(table, "gelu", target="gelu_tanh")[0] == "epilogue", "what it would run is eight"
    alike = "gelu_tanh", "linear", torch.bfloat16
    assert table.choice(*alike, 7) is None, "more may be gained than with one, which was left alone"
    assert table.choice("gelu", "linear", torch.bfloat16, 5) is table.choices["gelu", "linear", "bfloat16", 1]
    assert table.choice(*alike, 9) is table.choices["gelu_tanh", "linear", "bfloat16", 8]
    assert Table(CARD, "cuda", None, {}, {}).choice(*alike, 9) is None


@pytest.mark.parametrize(
    ("spelling", "kind", "options"),
    [
        pytest.param("silu", "gated", {"name": "aten"}, id="asked for"),
        pytest.param("gelu", "linear", {"name": "eager", "target": "silu"}, id="another asked for"),
        pytest.param("tanh", "pointwise", {}, id="not computed by Triton"),
        pytest.param("gelu_new", "linear", {"dtype": torch.float64}, id="nor in this dtype"),
    ],
)
def test_anywhere_else_auto_does_as_without_a_table(
    table: Table, spelling: str, kind: str, options: dict[str, Any]
) -> None:
    expected = chosen(None, spelling, kind, **options)
    assert chosen(table, spelling, kind, **options) == expected
    assert "triton" not in expected


@pytest.mark.parametrize("on", ["measured", "unmeasured"])
@pytest.mark.parametrize(
    ("spelling", "kind", "dtype"),
    [("gelu_new", "gated", torch.bfloat16), ("gelu_new", "linear", torch.half), ("gelu", "pointwise", torch.bfloat16)],
)
def test_what_is_unmeasured_is_said_to_be(table: Table, on: str, spelling: str, kind: str, dtype: torch.dtype) -> None:
    used = table if on == "measured" else UNMEASURED
    name, reason = chosen(None, spelling, kind, dtype)
    suffix = f"; that was not measured as {kind} in {str(dtype).removeprefix('torch.')} on {used.processor}"
    assert chosen(used, spelling, kind, dtype) == (name, reason + suffix)


def test_where_aten_would_only_write_in_place_a_measured_card_leaves_it(table: Table) -> None:
    """Of whatever was not measured on it."""
    for unmeasured in (("tanh", "linear"), ("gelu", "gated"), ("silu", "linear", torch.half)):
        assert chosen(None, *unmeasured)[0] == "aten"
        assert chosen(UNMEASURED, *unmeasured)[0] == "aten"
        assert chosen(table, *unmeasured) == (
            None,
            f"writing in place was never faster on {CARD}, whatever was measured",
        )
    assert chosen(table, "tanh", target="relu")[0] == "aten", "but where it is swapped"


def test_without_triton_nothing_is_taken_that_was_slower(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    own = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else own(name))
    assert chosen(UNMEASURED, "gelu", "linear") == chosen(None, "gelu", "linear")
    assert chosen(table, "gelu") == (None, f"on {CARD} only triton gained something, and cannot run here")
    assert chosen(table, "silu", target="gelu") == chosen(None, "silu", target="gelu"), "but a swap is made"
    assert chosen(table, "gelu_new")[0] == "epilogue", "which needs none"


def test_the_next_that_was_never_slower_is_taken_where_the_best_cannot_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = layer("gelu", triton=(1.5,) * 4, aten=(1.1,) * 4)
    data = choices.table([record(tmp_path / "record", [ABOUT, *cells])])
    (tmp_path / measured.file_name(CARD)).write_text(json.dumps(data), encoding="utf-8")
    ranked = measured.table_of(CARD, "cuda", tmp_path)
    assert ranked.in_place_pays
    assert chosen(ranked, "gelu")[0] == "triton"
    own = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else own(name))
    name, reason = chosen(ranked, "gelu")
    assert name == "aten"
    assert reason.startswith(f"measured on {CARD}: aten 1.")
    assert chosen(ranked, "tanh", "linear")[0] == "aten", "unmeasured, and writing in place pays there"


def test_the_card_is_asked_for_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("meta", "cuda"):
        assert measured.measured_on(torch.device(device)) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device}")
    assert measured.measured_on(torch.device("cuda", 1)) == Table("card cuda:1", "cuda", None, {}, {})
    assert measured.measured_on(torch.device("meta")) is None


# A CPU


@pytest.mark.parametrize(
    ("told", "features", "named"),
    [
        ("", ["AVX2"], "AMD CPU with AVX2"),
        ("", ["AVX512", "bf16", "AMX"], "AMD CPU with AVX512, bf16, AMX"),
        ("Intel64 Family 6 Model 85 Stepping 7, GenuineIntel", ["AVX512"], "Intel CPU with AVX512"),
        ("ARMv8 (64-bit) Family 8 Model 1", ["SVE256"], "arm64 CPU with SVE256"),
    ],
)
def test_a_cpu_is_named_by_its_maker_and_what_it_can_do(
    told: str, features: list[str], named: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As torch, the system's files and its environment tell it."""
    info = tmp_path / "cpuinfo"
    if not told:
        info.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n")
    monkeypatch.setattr(processors, "Path", lambda _: info)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setenv("PROCESSOR_IDENTIFIER", told)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: features[0])
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: "bf16" in features)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: "AMX" in features)
    assert OWN_CPU.__wrapped__() == named


def test_a_cpu_is_named_also_where_torch_does_not_say_what_it_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert OWN_CPU.__wrapped__().endswith(f"CPU with {torch.backends.cpu.get_cpu_capability()}")


@pytest.fixture
def measured_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """The table of the CPU that the tests run on, as far as they tell."""
    about = {"kind": "environment", "date": "2026-02-02", "gpu": None, "processor": processors.cpu()}
    about |= {"cpu": "a CPU", "threads": 1, "versions": {"torch": "2.13.0+cpu"}}
    cells = [
        *layer("gelu", dtype="float32", aten=(1.0,) * 4),
        *layer("gelu_tanh", dtype="float32", ops=8, aten=(3.0, 2.0, 1.5, 1.2)),
        *layer("silu", dtype="float32", kind="gated", aten=(1.2, 1.0, 1.0, 0.9)),
    ]
    folder = tmp_path / "record"
    record(folder, [about, *cells])
    (folder / "gpu.jsonl").rename(folder / "cpu.jsonl")
    done = command(folder, "--output", tmp_path / "tables")
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(measured, "FOLDER", tmp_path / "tables")
    return measured.table_of(processors.cpu(), "cpu", tmp_path / "tables")


def test_a_model_on_a_measured_cpu(measured_cpu: Table) -> None:
    """What gained nothing is left alone: a forward is rewritten only for something."""
    name = processors.cpu()
    assert measured.measured_on(torch.device("cpu")) is measured_cpu
    assert (measured_cpu.processor, measured_cpu.device, measured_cpu.source["threads"]) == (name, "cpu", "1")
    assert measured_cpu.lines()[0] == f"{name}: measured (2026-02-02, 2.13.0+cpu, a CPU)"
    for site in find_sites(FAMILIES["gpt2"].build()).sites:
        assert site.implementation == "aten"
        assert site.reason.startswith(f"measured on {name}: aten ")
    left = [*find_sites(FAMILIES["bert"].build()).sites, *find_sites(FAMILIES["llama"].build()).sites]
    for site in left:
        assert site.implementation is None
        if site.activation != "tanh":
            assert f"nothing was faster without ever being slower on {name}: aten " in site.reason
    for site in find_sites(FAMILIES["llama"].build(), implementation="aten").sites:
        assert site.implementation == "aten", "asked for"


SIZED_WEIGHTS = 1024
"""Of the layers that ``sized_cpu`` measured, as its record is changed: the families' layers have no fewer."""


@pytest.fixture
def sized_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU of the tests, on which all pays from 128 rows on, and half of it only in inference."""
    sizes = (1.3, 1.3, 1.3, 1.3, 0.8, 0.8)
    about = {"kind": "environment", "date": "2026-02-02", "gpu": None, "processor": processors.cpu()}
    about |= {"cpu": "a CPU", "threads": 1, "versions": {"torch": "2.13.0+cpu"}}
    cells = [
        *layer("gelu", dtype="float32", aten=(1.3, 0.9, 1.3, 0.9, 0.8, 0.8)),
        *layer("gelu_tanh", dtype="float32", ops=8, epilogue=(1.5,) * 6, aten=sizes),
        *layer("silu", dtype="float32", kind="gated", aten=sizes),
    ]
    record(tmp_path / "record", [about, *cells])
    (tmp_path / "record" / "gpu.jsonl").rename(tmp_path / "record" / "cpu.jsonl")
    data = choices.table([tmp_path / "record"])
    assert data["weights"] == 768 * 3072
    data["weights"] = SIZED_WEIGHTS
    (tmp_path / measured.file_name(processors.cpu())).write_text(json.dumps(data), encoding="utf-8")
    monkeypatch.setattr(measured, "FOLDER", tmp_path)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_what_pays_from_a_size_on_is_the_model_s_own_below_it(name: str, sized_cpu: None, tmp_path: Path) -> None:
    del sized_cpu
    family = FAMILIES[name]
    model = family.build()
    before = family.run(model)
    numbers = 128 * 3072 if name == "llama" else 128 * 768
    with patched(model, include="*intermediate*" if name == "bert" else "*mlp*") as report:
        for site in report.changed:
            assert site.implementation == "aten", "of a Conv1D oneDNN has no epilogue"
            assert site.least == Least(numbers, None if name == "bert" else numbers)
            assert f"from {numbers:,} numbers on" in site.reason
        assert torch.equal(family.run(model), before), "fewer: the model's own ops, bit for bit"
        report.save(tmp_path / "plan.json")
    with patched(model, plan=tmp_path / "plan.json") as again:
        assert [site.least for site in again.sites] == [site.least for site in report.sites]
    for site in find_sites(model, implementation="aten").sites:
        assert site.least is ALWAYS, "asked for"


@pytest.mark.parametrize(("columns", "patched_by"), [(16, None), (64, "aten")])
def test_what_pays_from_a_size_on_is_left_alone_in_layers_smaller_than_the_measured(
    columns: int, patched_by: str | None, sized_cpu: None
) -> None:
    """Where a product is small, it is not known from how many numbers on another pays."""
    del sized_cpu
    layer = nn.Sequential(nn.Linear(16, columns), nn.GELU())
    [site] = find_sites(layer).sites
    assert site.implementation == patched_by
    if patched_by is None:
        assert "from 98,304 numbers on in inference, never with gradients, in layers of 1,024 weights" in site.reason
        assert "this one has 256, and was not measured" in site.reason
    [asked] = find_sites(layer, implementation="aten").sites
    assert asked.implementation == "aten"
    [swapped] = find_sites(layer, activation="silu").sites
    assert (swapped.implementation, swapped.reason.partition(",")[0]) == ("aten", "chosen by auto")


MARK = 7.0


def marked(*inputs: Tensor | nn.Module, **_: float) -> Tensor:
    x = inputs[-1]
    assert isinstance(x, Tensor)
    return torch.full_like(x, MARK)


@pytest.mark.parametrize(
    ("least", "inference", "training"),
    [
        (ALWAYS, (True, True), (True, True)),
        (Least(64, 64), (False, True), (False, True)),
        (Least(0, None), (True, True), (False, False)),
        (Least(None, 64), (False, False), (False, True)),
    ],
)
def test_by_size_and_mode_what_computes(
    least: Least, inference: tuple[bool, bool], training: tuple[bool, bool]
) -> None:
    one = dict.fromkeys(["gelu"], marked)
    fused = Implementation("marked", one, gated=one, linear=one).build(ACTIVATIONS["gelu"], None, least)
    assert fused is not None
    layer_before = nn.Linear(4, 4)
    for gradients, expected in ((False, inference), (True, training)):
        for rows, taken in zip((4, 16), expected, strict=True):
            x = torch.randn(rows, 4)
            with torch.set_grad_enabled(gradients):
                found = {
                    "pointwise": (fused(x), nn.functional.gelu(x)),
                    "gated": (replacements.gated(fused, x, x), nn.functional.gelu(x) * x),
                    "linear": (
                        replacements.linear_act(fused, layer_before, x),
                        nn.functional.gelu(layer_before(x)),
                    ),
                }
            for kind, (y, own) in found.items():
                assert torch.equal(y, torch.full_like(y, MARK) if taken else own), f"{kind}, {rows} rows"


def test_what_is_traced_is_computed_alike_whatever_the_size() -> None:
    one = dict.fromkeys(["gelu"], marked)
    fused = Implementation("marked", one).build(ACTIVATIONS["gelu"], None, Least(64, 64))
    assert fused is not None
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: fused(x), (torch.randn(4, 4),), check_trace=False)
        assert (traced(torch.randn(2, 2)) == MARK).all()


def test_an_unmeasured_cpu_is_as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    table = measured.measured_on(torch.device("cpu"))
    assert table == Table(processors.cpu(), "cpu", None, {}, {})
    for spelling, kind in (("gelu", "linear"), ("gelu_new", "gated"), ("tanh", "pointwise"), ("silu", "gated")):
        assert chosen(table, spelling, kind, torch.float32) == chosen(None, spelling, kind, torch.float32)


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
            assert site.reason == f"measured on {CARD}: {told(table, 'silu', 'gated', 'bfloat16', 1)}"
        off = (family.run(model) - before).abs().max() / before.abs().max()
        assert 0 < off < 0.1, "Triton's bits"
    assert torch.equal(family.run(model), before)
    for site in find_sites(model, implementation="aten").sites:
        assert (site.implementation, site.equivalence) == ("aten", "identical")
    for site in find_sites(model.float()).sites:
        assert (site.implementation, site.reason) == (None, IN_PLACE)
    for site in find_sites(FAMILIES["gpt2"].build(torch.bfloat16)).sites:
        next_best = "linear", "aten", True  # the device is a CPU, where no epilogue takes a Conv1D
        assert (site.kind, site.implementation, site.fused) == next_best
    for site in find_sites(FAMILIES["bert"].build(torch.bfloat16), include="*intermediate*").sites:
        if site.activation == "gelu":
            assert (site.kind, site.implementation, site.fused) == ("linear", "triton", False)


# Files that cannot be used


def broken(change: Callable[[Any], Any], source: Path, folder: Path) -> Path:
    data = json.loads((source / measured.file_name(CARD)).read_text(encoding="utf-8"))
    path = folder / measured.file_name(CARD)
    path.write_text(json.dumps(change(data)), encoding="utf-8")
    return path


ONE = {"value": 1.3, "low": 1.2, "high": 1.4}
TIMES = dict.fromkeys(ON_A_CARD, ONE)
LEAST = {"inference": 0, "training": 0}


def first(**changes: Any) -> Callable[[Any], Any]:
    return lambda data: {**data, "choices": [{**data["choices"][0], **changes}]}


def able(**changes: Any) -> Callable[[Any], Any]:
    return first(able=[{"implementation": "triton", "least": LEAST, "times": TIMES, **changes}])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data | {"schema": 3}, "its schema is 3, and this version reads 5"),
        (lambda data: [data], "it is not laid out as a table (list"),
        (lambda data: {key: value for key, value in data.items() if key != "processor"}, "it lacks 'processor'"),
        (lambda data: data | {"processor": "NVIDIA L4"}, "it is of another processor, NVIDIA L4 (cuda)"),
        (lambda data: data | {"device": "cpu"}, f"it is of another processor, {CARD} (cpu)"),
        (lambda data: data | {"device": "xpu"}, "device 'xpu' is none of cpu, cuda"),
        (lambda data: data | {"processor": 4}, "its processor and what its source holds have to be texts"),
        (lambda data: data | {"source": []}, "it is not laid out as a table ('list'"),
        (lambda data: data | {"weights": None}, "weights has to be a number"),
        (lambda data: data | {"weights": -1}, "weights -1 is no number of elements"),
        (lambda data: data | {"choices": 4}, "it is not laid out as a table ('int'"),
        (lambda data: data | {"choices": [4]}, "it is not laid out as a table ('int'"),
        (lambda data: data | {"choices": data["choices"] * 2}, "it has two choices for one"),
        (first(activation="gelu_newest"), "activation 'gelu_newest' is none of gelu, "),
        (first(kind="chain"), "kind 'chain' is none of pointwise, linear, gated"),
        (first(dtype="float64"), "dtype 'float64' is none of"),
        (able(implementation="tritn"), "implementation 'tritn' is none of aten, "),
        (able(implementation="eager"), "implementation 'eager' is none of aten, "),
        (first(able=[], fastest={"implementation": "liger"}), "implementation 'liger' is none of aten, "),
        (first(able=[]), "it lacks 'fastest'"),
        (first(able=4), "it is not laid out as a table ('int'"),
        (first(dtype=["bfloat16"]), "dtype ['bfloat16'] is none of"),
        (first(ops=0), "ops 0 is no number of operations"),
        (first(ops=True), "ops True is no number of operations"),
        (able(times=1.3), "it is not laid out as a table ("),
        (able(times={}), "it lacks 'large, forward'"),
        (able(times={**TIMES, "small, forward": {"value": 1.3}}), "it is not laid out as a table (Times"),
        (able(times={**TIMES, "large, forward": dict.fromkeys(ONE, "1")}), "it is not laid out as a table ('<'"),
        (able(times={**TIMES, "small, forward": {**ONE, "low": 1.4}}), "small, forward is no ratio with its interval"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_remedy(
    written: tuple[Path, str], change: Callable[[Any], Any], said: str, tmp_path: Path
) -> None:
    path = broken(change, written[0], tmp_path)
    with pytest.raises(PatchError) as error:
        measured.table_of(CARD, "cuda", tmp_path)
    assert str(error.value).startswith(f"the table of measurements {path} cannot be used: {said}")
    assert "'python -m scripts.benchmarking choices', or delete it: what it is of is then unmeasured" in str(
        error.value
    )


def test_a_file_that_is_no_json_or_not_readable(tmp_path: Path) -> None:
    path = tmp_path / measured.file_name(CARD)
    for content in (b"{", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(PatchError, match=r"h100-80gb-hbm3\.json cannot be used: .*delete it"):
            measured.table_of(CARD, "cuda", tmp_path)
    assert measured.table_of("NVIDIA L4", "cuda", tmp_path) == UNMEASURED, "another card's file is not read"


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
    unmeasured_cpu = f"{processors.cpu()}: unmeasured"
    assert listed(tmp_path) == [unmeasured_cpu]
    *lines, last = listed(written[0])
    assert lines == [line.strip() for line in table.lines()]
    assert last == unmeasured_cpu
    assert lines[0] == f"{CARD}: measured (2026-02-01T08:00:00+00:00, 2.11.0+cu130, 3.6.0)"
    choice = table.choices["gelu_tanh", "linear", "bfloat16", 8]
    assert f"linear gelu_tanh in 8 ops, bfloat16: epilogue, else aten; {choice.fastest}" in lines
    assert lines[-1] == "left alone, see nvidia-h100-80gb-hbm3.json: linear silu, linear gelu_tanh"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for here, more in (("NVIDIA L4", ["NVIDIA L4: unmeasured"]), (CARD, [])):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, here=here: here)
        assert listed(written[0]) == [*lines, unmeasured_cpu, *more]
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
from hf_gelu_patch.forwards import replacements
from hf_gelu_patch.implementations import measured
assert measured.table_of({CARD!r}, "cuda", Path({str(written[0])!r})).choices
heavy = ["triton", "transformers", "scipy", "datasets", "evaluate"]
print([name for name in heavy if name in set(sys.modules) - before])
"""
    assert printed_by(code) == "[]\n"
