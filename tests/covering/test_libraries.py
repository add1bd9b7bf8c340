"""Models of other libraries: how one is made, what is recorded of them, and that a patch keeps its promises there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from scripts.covering import coverage, libraries
from scripts.covering.__main__ import main
from scripts.covering.coverage import Coverage, cover
from scripts.covering.libraries import LIBRARIES, library_of, model_of, names_of
from scripts.covering.libraries.images import image, smallest
from scripts.covering.processes import cover_all
from scripts.covering.record import keep, page, read_record, rows_of, summary, written
from scripts.covering.table import totals
from scripts.covering.tiny import TinyModelError
from scripts.covering.tracing import trace

ROOT = Path(__file__).parents[2]
RECORD = read_record(ROOT / "scripts" / "covering" / "libraries.json")


# How a model is made


class Scaled(nn.Module):
    """A residual branch that is all but shut, as before training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))
        self.temperature = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * nn.functional.gelu(self.dense(x) * self.temperature)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``timm/any`` is made in these ways, each a width of the model and one of its input."""

    def stands_for(*ways: tuple[int, int]) -> None:
        def build(name: str) -> Any:
            if name != "any":
                raise RuntimeError(f"Unknown model ({name})\nand more")
            for width, given in ways:
                yield lambda width=width: Scaled(width), lambda model, given=given: image(model, 1, given)

        module = SimpleNamespace(names=lambda: ["b", "a"], build=build)
        monkeypatch.setattr(libraries, "_module", lambda _: module)
        monkeypatch.setattr(libraries, "installed", lambda _: True)

    return stands_for


def test_the_first_way_that_runs_is_taken(library: Callable[..., None]) -> None:
    library((8, 6), (6, 6), (4, 4))
    made = model_of("timm/any")
    assert isinstance(made.model, Scaled)
    assert made.model.gamma.shape == (6,)
    assert made.inputs["x"].shape == (1, 1, 6)
    assert not made.model.training
    assert torch.equal(made.model.dense.weight, model_of("timm/any").model.dense.weight)


def test_a_branch_that_is_shut_is_opened(library: Callable[..., None]) -> None:
    library((4, 4))
    model: Any = model_of("timm/any").model
    assert torch.equal(model.gamma, torch.ones(4))
    assert model.temperature.item() == pytest.approx(0.7)
    assert not torch.equal(model.dense.bias, torch.ones(4))


def test_why_there_is_no_model(library: Callable[..., None]) -> None:
    library((8, 6), (4, 6))
    with pytest.raises(TinyModelError, match=r"^timm/any: RuntimeError: mat1 and mat2 .*1x6"):
        model_of("timm/any")
    with pytest.raises(TinyModelError, match=r"^timm/other: RuntimeError: Unknown model \(other\)$"):
        model_of("timm/other")
    library()
    assert cover("timm/any").unavailable == "timm/any: no way to make it"


def test_a_library_that_is_not_here() -> None:
    with pytest.raises(TinyModelError, match="nowhere is not installed here"):
        model_of("nowhere/any")


def test_names(library: Callable[..., None]) -> None:
    library()
    assert names_of("timm") == ("timm/a", "timm/b")
    assert [library_of(name) for name in ("bert", "timm/a")] == ["transformers", "timm"]


def test_the_smallest_by_its_name() -> None:
    names = ["vit_base_16", "vit_tiny_16", "ViT-L-14", "ViT-B-32", "ViT-B-16", "resnet50", "resnet18", "test_resnet"]
    kinds = [(name[0], name) for name in names]
    assert smallest(kinds) == ["vit_tiny_16", "ViT-B-16", "resnet18", "test_resnet"]


# What is judged


class OwnGelu(nn.Module):
    """As diffusers' GEGLU: a method of the module applies the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 8)

    def gelu(self, gate: Tensor) -> Tensor:
        return nn.functional.gelu(gate)

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.dense(x).chunk(2, dim=-1)
        return up * self.gelu(gate)


def test_a_site_may_be_where_the_method_is_called_that_applies_it() -> None:
    model = nn.Sequential(OwnGelu())
    (one,) = trace(lambda: model(torch.randn(2, 4)), model)
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    assert lines[one.line - 1].strip() == "return nn.functional.gelu(gate)"
    ((file, line),) = one.callers
    assert (file, lines[line - 1].strip()) == (__file__, "return up * self.gelu(gate)")
    site = coverage.find_sites(model).sites[0]
    there = replace(site, file=file, line=line, end_line=line, path="0")
    assert coverage._missing([one], [there]) == ()
    assert coverage._missing([replace(one, callers=())], [there]) == (f"gelu at {Path(__file__).name}:{one.line} in 0",)
    assert coverage._missing([one], [replace(there, owner_path="1")]) != ()


def test_gated_products_that_are_not_fused_are_named() -> None:
    model = nn.Sequential(OwnGelu(), nn.Linear(4, 4), OwnGelu())
    executions = trace(lambda: model(torch.randn(2, 4)), model)
    first, second = executions
    assert coverage._not_fused(executions, [replace(one, fused="gated") for one in executions]) == ()
    assert coverage._not_fused(executions, [replace(first, fused="gated"), replace(second, fused="linear")]) == (
        f"gelu at {Path(__file__).name}:{second.line} in 2",
    )
    assert len(coverage._not_fused(executions, [])) == 1  # one for each line


def test_a_drift_is_judged_by_the_models_own_error() -> None:
    row = Coverage("timm/a", drift=1e-4, **dict.fromkeys(coverage._PROMISES, True))
    assert row.problems == ("drift 1.0e-04",)
    assert replace(row, own_error=1e-4, patched_error=2e-4).problems == ()
    assert replace(row, own_error=1e-6, patched_error=1e-4).problems == ("drift 1.0e-04",)


def test_a_thorough_row_has_errors_and_what_auto_does() -> None:
    quick, thorough = cover("gpt2"), cover("gpt2", thorough=True)
    assert quick.own_error is None
    assert quick.changed_by_auto == 0
    assert thorough.own_error is not None
    assert 0 < thorough.own_error < 1e-5
    assert thorough.patched_error is not None
    assert 0 < thorough.patched_error < 4 * thorough.own_error
    assert thorough.changed == quick.changed == 2
    assert thorough.changed_by_auto == len(patched_by_auto())


def patched_by_auto() -> tuple[Any, ...]:
    return coverage.find_sites(model_of("gpt2").model).changed


# The record


ROWS = [
    Coverage("timm/a", "A", 10, 1.0, 4, 4, gated=3, gated_fused=2, linear=1, linear_fused=1, sites={"gated": 3},
             changed=2, changed_by_auto=1, drift=1.23456e-7, own_error=2e-7, patched_error=3e-7,
             not_fused=("gelu at a.py:1 in x",), **dict.fromkeys(coverage._PROMISES, True)),
    Coverage("timm/b", unavailable="no"),
    Coverage("timm/c", "C", error="patch: boom"),
]  # fmt: skip


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    monkeypatch.setattr("scripts.covering.record.version_of", lambda library: f"1.0-{library}")
    keep([*reversed(ROWS)], tmp_path / "all.json")
    return read_record(tmp_path / "all.json")


def test_a_record_is_read_back(record: dict[str, Any]) -> None:
    (library,) = rows_of(record).items()
    expected = [replace(row, seconds=0.0, drift=float(f"{row.drift:.3g}")) for row in ROWS]
    assert library == ("timm", expected)
    own = record["timm"]
    assert own["versions"]["timm"] == "1.0-timm"
    assert own["versions"]["transformers"] == transformers.__version__
    assert "seconds" not in own["rows"][0]
    assert own["rows"][1] == {"model_type": "timm/b", "unavailable": "no"}


def test_a_record_keeps_what_it_has_of_other_libraries(record: dict[str, Any], tmp_path: Path) -> None:
    keep([Coverage("diffusers/a"), Coverage("torchvision/a")], tmp_path / "all.json")
    found = read_record(tmp_path / "all.json")
    assert list(found) == ["timm", "torchvision", "diffusers"]
    assert found["timm"] == record["timm"]
    keep([Coverage("timm/z")], tmp_path / "all.json")
    assert [row.model_type for row in rows_of(read_record(tmp_path / "all.json"))["timm"]] == ["timm/z"]
    assert "| timm/z |" in (tmp_path / "all.md").read_text(encoding="utf-8")


def test_what_is_shown_of_a_record(record: dict[str, Any]) -> None:
    lines = summary(record).splitlines()
    assert lines[2] == "| timm 1.0-timm | 2 | 1 | 4 | 2 of 3 | 1 of 1 | 3 | 2 | 1 | 1.2e-07 | 2.0e-07 | 3.0e-07 |"
    assert lines[3] == lines[2].replace("timm 1.0-timm", "all")
    shown = page(record)
    assert summary(record) in shown
    assert "2 models, 1 as promised, 1 not; 1 more cannot be built here." in shown
    assert "- timm/c: patch: boom" in shown
    assert "Gated, not fused, and in how many models:\n- 1 × gelu at a.py:1\n" in shown
    assert "2 model types" in totals(ROWS)


def test_the_page_is_that_of_the_record() -> None:
    assert (ROOT / "scripts" / "covering" / "libraries.md").read_text(encoding="utf-8") == page(RECORD)
    assert (ROOT / "scripts" / "covering" / "libraries.json").read_text(encoding="utf-8") == written(RECORD)


@pytest.mark.slow
def test_the_command_covers_a_library_and_records_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentence_transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # which the command sets
    name, made = "sentence_transformers/SentenceTransformer-bert", tmp_path / "all.json"
    assert main([name, "--output", str(tmp_path / "rows.jsonl"), "--record", str(made)]) == 0
    ((library, (row,)),) = rows_of(read_record(made)).items()
    assert library == "sentence_transformers"
    assert (row.model_type, row.problems) == (name, ())
    assert row.own_error is not None
    assert f"| {name} | SentenceTransformer |" in made.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere/a"], "no library nowhere; there are transformers, timm"),
        (["x_transformers/a"], "not installed: pip install x-transformers"),
        (["--library", "torch"], "invalid choice: 'torch'"),
    ],
)
def test_what_the_command_does_not_know(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("scripts.covering.__main__.installed", lambda library: library == "transformers")
    with pytest.raises(SystemExit):
        main(arguments)
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_that_wants_too_much_memory_costs_its_own_row() -> None:
    (row,) = cover_all(["gpt2"], processes=1, timeout=60.0, memory=0.01)
    assert row.error is not None or row.unavailable is not None


# Promises

SPREAD = [
    *(f"timm/{name}" for name in (
        "test_vit", "test_convnext", "test_efficientnet", "test_resnet", "test_nfnet", "test_mambaout",
        "eva02_tiny_patch14_224", "gmlp_b16_224", "swin_s3_tiny_224", "mobilenetv3_rw", "levit_128",
        "xcit_nano_12_p8_224",
    )),
    *(f"torchvision/{name}" for name in ("resnet18", "vit_b_16", "swin_t", "mobilenet_v3_small")),
    *(f"diffusers/{name}" for name in (
        "UNet2DConditionModel", "Transformer2DModel-geglu", "DiTTransformer2DModel", "FluxTransformer2DModel",
        "Flux2Transformer2DModel", "SD3Transformer2DModel", "PixArtTransformer2DModel", "MochiTransformer3DModel",
        "WanTransformer3DModel", "AutoencoderKL",
    )),
    *(f"open_clip/{name}" for name in ("ViT-M-16-alt", "RN50-quickgelu", "coca_base", "mt5-base-ViT-B-32")),
    *(f"sentence_transformers/{name}" for name in (
        "SentenceTransformer-bert-dense-gelu", "SentenceTransformer-modernbert", "SentenceTransformer-gemma3_text",
        "CrossEncoder-bert", "SparseEncoder-distilbert-log1p",
    )),
    *(f"x_transformers/{name}" for name in (
        "decoder-swiglu", "decoder-reglu-squared", "decoder-gate-values", "encoder-macaron-glu", "vit-glu",
    )),
]  # fmt: skip


def test_the_spread_is_of_models_that_are_recorded() -> None:
    kept = {row.model_type for rows in rows_of(RECORD).values() for row in rows if not row.unavailable}
    assert {*SPREAD} <= kept
    assert {library_of(name) for name in SPREAD} == {*LIBRARIES} - {"transformers"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPREAD)
def test_a_patch_keeps_its_promises(name: str) -> None:
    if not libraries.installed(library_of(name)):
        pytest.skip(f"{library_of(name)} is not installed")
    row = cover(name)
    assert row.unavailable is None
    assert row.problems == ()
