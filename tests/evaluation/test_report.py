"""Reports: made of the JSON alone, whole, and of several runs together."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import processes
import pytest
import yaml
from accelerate import Accelerator
from rich.console import Console
from tiny_classifier import write_checkpoint, write_data

from hf_gelu_patch.evaluation.environment import environment
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.subjects import subject
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.report import formats
from hf_gelu_patch.evaluation.report.card import model_card
from hf_gelu_patch.evaluation.report.document import sections, summary, verdicts
from hf_gelu_patch.evaluation.report.files import rebuild, save
from hf_gelu_patch.evaluation.report.formats import names
from hf_gelu_patch.evaluation.report.markdown import escaped, markdown, table
from hf_gelu_patch.evaluation.report.page import page
from hf_gelu_patch.evaluation.report.plots import draw
from hf_gelu_patch.evaluation.report.results import JSON_NAME, SCHEMA, Data, merge, plain, read
from hf_gelu_patch.evaluation.report.terminal import print_results
from hf_gelu_patch.evaluation.run import evaluate_subject
from hf_gelu_patch.evaluation.variants import Variant

VARIANTS = ("aten", "activation=relu_squared", "eager")
PNG = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "br", "img", "wbr"}


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Data]:
    folder = tmp_path_factory.mktemp("evaluated")
    model, rows = write_checkpoint(folder / "tiny"), write_data(folder / "data.csv")

    def run(*variants: str, **options: Any) -> Data:
        settings = Settings(
            variants=tuple(map(Variant.parse, variants)), min_rounds=3, min_seconds=0.01, max_seconds=0.1, **options
        )
        found = evaluate_subject(subject(str(model), validation_file=str(rows)), settings, Accelerator(cpu=True))
        return plain([found], settings, environment(processes=1, device="cpu", command=["bin/evaluate", "--x"]))

    return run


@pytest.fixture(scope="module")
def data(evaluate: Callable[..., Data]) -> Data:
    return evaluate(*VARIANTS, margin=0.01)


@pytest.fixture
def strange(data: Data) -> Data:
    """Numbers that are not finite, texts that would be markup, no float64 copy, a wrong implementation."""
    found = copy.deepcopy(data)
    [model] = found["models"]
    model["subject"]["name"] = "a|<script>alert(1)</script>"
    model["exact_reason"] = "no <memory>"
    model["skipped"] = [[3, "has no `text`"]] * 12
    first, second, _ = model["variants"]
    first["quality"]["differences"]["accuracy"] = {"value": -3e-8, "low": -4.2e-5, "high": 0.0}
    first["wrong"] = "it gives numbers that are not finite"
    first["name"] = "include=*.<b>"
    first["patch"]["text"] += "\n```\n# No heading\n"
    second["drift"].update(max_abs="inf", mean_abs="nan", own=None)
    second["quality"].update(p=1e-9, right_to_wrong=4)
    for layer in second["layers"]:
        layer.update(change="inf", own=None, exact=None)
    for layer in first["layers"]:
        layer.update(own=None, exact=None)
    for name in second["quality"]["after"]:
        second["quality"]["after"][name] = "nan"
        second["quality"]["differences"][name] = {"value": "nan", "low": "nan", "high": "nan"}
    flip = second["quality"]["flipped"][0]
    model["described"][str(flip["example"])] = "<img src=x onerror=alert(2)> ``` |"
    return found


class Checked(HTMLParser):
    """Every element is closed, in its order; nothing is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[int] = []
        self.tags: set[str] = set()
        self.named: set[str] = set()
        self.links: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        found = dict(attrs)
        assert (found.get("src") or "data:").startswith("data:")
        self.named.add(found.get("id") or "")
        self.links |= {found["href"] or ""} if "href" in found else set()
        assert not [name for name in found if name.startswith("on")]
        assert tag != "img" or len(found["alt"] or "") > 20

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def checked(text: str) -> Checked:
    found = Checked()
    found.feed(text)
    found.close()
    assert found.open == []
    assert found.links <= {f"#{name}" for name in found.named}
    assert found.headings[0] == 1
    assert all(after <= before + 1 for before, after in zip(found.headings, found.headings[1:], strict=False))
    return found


def test_the_json_holds_everything(data: Data) -> None:
    again = json.loads(json.dumps(data, allow_nan=False))
    assert again == data
    [model] = data["models"]
    assert [variant["name"] for variant in model["variants"]] == list(VARIANTS)
    samples = {timed["part"]: timed for timed in model["timings"]}
    assert samples.keys() == {"forward", "end_to_end"}
    for timed in samples.values():
        assert timed["seconds"].keys() == {"before", "again", *VARIANTS}
        assert {len(seconds) for seconds in timed["seconds"].values()} == {len(timed["units"])}
    assert data["settings"]["margin"] == 0.01
    assert data["environment"]["command"] == ["evaluate", "--x"]
    assert data["environment"]["versions"]["transformers"]
    assert model["fingerprint"]["examples"] == 37
    assert model["amdahl"] == pytest.approx(1 / (1 - model["activation_share"]))
    assert plain([], Settings(), {"x": (math.inf, math.nan)})["environment"] == {"x": ["inf", "nan"]}


def test_every_figure_of_the_table_is_one_of_the_json(data: Data) -> None:
    [model] = data["models"]
    for variant, row in zip(model["variants"], summary(data).rows, strict=True):
        told = "\n".join(line for cell in row for line in cell)
        quality, speed = variant["quality"], variant["speed"]["forward"]
        for name, value in quality["before"].items():
            assert f"{name.replace('_', ' ')} {value:.4f} → {quality['after'][name]:.4f}" in told
        assert f"{quality['flips']} of 37" in told
        if quality["right_to_wrong"]:
            assert (f"p = {quality['p']:.2g}" if quality["p"] >= 1e-4 else "p < 0.0001") in told
        ratio = speed["ratio"]
        assert f"{ratio['value']:.3f}× ({ratio['low']:.3f} to {ratio['high']:.3f})" in told
        assert f"activations allow {model['amdahl']:.2f}×" in told
        drift = variant["drift"]
        assert (f"max |Δ| {drift['max_abs']:.2g} (of {drift['scale']:.3g})" in told) == (drift["max_abs"] > 0)
        assert f"own: {drift['own']['max_abs']:.2g}" in told
        assert row[-1] == verdicts(variant) == (speed["verdict"], variant["answers"])
    flips = model["variants"][1]["quality"]["flipped"]
    written = markdown(data)
    assert flips
    assert model["variants"][1]["quality"]["p"] >= 1e-4
    names = model["named"]
    assert names == {"0": "no", "1": "yes"}
    for flip in flips[:10]:
        assert (
            f"| {names[flip['before']]} | {names[flip['after']]} | {names[flip['target']]} | "
            f"{model['described'][str(flip['example'])]}" in written
        )
    for layer in model["variants"][1]["layers"]:
        assert f"| {layer['path']} | {layer['change']:.2g} | {layer['own']:.2g} | {layer['exact']:.2g} |" in written
    assert "equivalent within ±0.01" not in verdicts(model["variants"][1])
    assert "The same to the last bit, in every layer: tiny (eager)" in written


def test_what_is_made_again_is_the_same(data: Data, tmp_path: Path) -> None:
    first = save(data, tmp_path / "first")
    assert sorted(path.name for path in first) == sorted(names())
    second = rebuild([tmp_path / "first"], tmp_path / "second")
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert (one.suffix == ".png") == one.read_bytes().startswith(PNG)
    third = rebuild([tmp_path / "first" / JSON_NAME], tmp_path / "first")
    assert [path.read_bytes() for path in third] == [path.read_bytes() for path in second]
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == sorted(names())


def test_a_format_is_one_record(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = formats.Format("created.txt", "when it was made", lambda data, _: data["created"])
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, own))
    assert {path.name for path in save(data, tmp_path)} == set(names())
    assert (tmp_path / "created.txt").read_text() == data["created"]


def test_a_markdown_table() -> None:
    written = table(["name", "value"], [["a", "1"], [escaped("b|<i>"), ""]], right=["value"])
    assert written.splitlines() == ["| name | value |", "| --- | ---: |", "| a | 1 |", r"| b\|\<i\> |  |"]
    with pytest.raises(ValueError, match=r"2 columns .name, value., and a row 1"):
        table(["name", "value"], [["a"]])


def test_who_reads_sees_the_old_file_or_the_new_one(data: Data, strange: Data, tmp_path: Path) -> None:
    save(strange, tmp_path)
    with (tmp_path / "evaluation.md").open(encoding="utf-8") as reader:
        save(data, tmp_path)
        assert reader.read() == markdown(strange, ("quality", "speed", "drift"))
    (tmp_path / "evaluation.html").unlink()
    (tmp_path / "evaluation.html").mkdir()
    with pytest.raises(EvaluationError, match=r"evaluation\.html cannot be written"):
        save(data, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_results_of_another_run_are_kept(data: Data, strange: Data, tmp_path: Path) -> None:
    for found in (data, data, strange, data):
        save(found, tmp_path)
    assert [read(tmp_path / "earlier" / f"{number}.json") for number in (1, 2)] == [data, strange]
    assert len(list((tmp_path / "earlier").iterdir())) == 2
    rebuild([tmp_path / "earlier" / "2.json"], tmp_path / "again")
    assert read(tmp_path / "again") == strange


def test_the_page_needs_nothing_else(data: Data) -> None:
    pictures = draw(data)
    assert pictures.keys() == {"quality", "speed", "drift"}
    found = checked(page(data, pictures))
    assert not found.tags & {"script", "link", "iframe"}
    written = page(data, pictures)
    assert 'name="viewport"' in written
    assert "@media print" in written
    assert "@media screen and (max-width" in written
    assert "prefers-color-scheme" in written
    assert "url(" not in written
    for picture in pictures.values():
        width = int.from_bytes(picture[16:20], "big")
        assert f'" width="{width // 2}" alt="' in written
    titles = {f"#{section.title.lower().replace(' ', '-')}" for section in sections(data)}
    assert found.links == titles | {f"#variant-{number}" for number in (1, 2, 3)}
    text = " ".join("".join(found.text).split())
    for row in summary(data).rows:
        for cell in row:
            for line in cell:
                assert line in text
    for section in sections(data, tuple(pictures)):
        assert section.title in text


def test_strange_results_are_shown_as_they_are(data: Data, strange: Data, tmp_path: Path) -> None:
    save(strange, tmp_path)
    assert read(tmp_path) == strange
    found = checked((tmp_path / "evaluation.html").read_text(encoding="utf-8"))
    assert not found.tags & {"script", "b"}
    text = "".join(found.text)
    for shown in (
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(2)>",
        "WRONG IMPLEMENTATION: it gives numbers",
    ):
        assert shown in text
    written = (tmp_path / "evaluation.md").read_text(encoding="utf-8")
    assert "<script>" not in written.replace("\\<script", "").partition("```")[0]
    assert "a\\|\\<script\\>" in written
    fences = re.findall("^(`{3,})", written, re.MULTILINE)
    assert fences.count("````") == 2, "longer than those inside"
    for row in re.findall(r"^\|.*\|$", written, re.MULTILINE):
        assert len(re.split(r"(?<!\\)\|", row)) - 2 in (7, 8, 6), "a column a cell"
    assert "12 left out: row 3 has no" in written.replace("\\", "")
    assert "M parameters<br>rows left out: 12 |" in written
    assert "nothing to hold it against: no \\<memory\\>" in written
    assert "4 right → wrong<br>" in written
    assert "| −3e−08 | −4.2e−05 to ±0 | yes |" in written
    assert "<br>p \\< 0.0001" in written
    assert "accuracy" in model_card(strange)
    assert "rows_left_out: 12" in model_card(strange)
    assert "left_out" not in model_card(data)


def test_the_metadata_are_a_model_cards(data: Data) -> None:
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import model_index_to_eval_results

    written = model_card(data)
    name, results = model_index_to_eval_results(yaml.safe_load(written.strip("-\n"))["model-index"])
    assert name == "tiny"
    [model] = data["models"]
    found = {(one.metric_args["variant"], one.metric_type): one.metric_value for one in results}
    expected = {("unpatched", metric): value for metric, value in model["unpatched"].items()}
    for variant in model["variants"]:
        expected |= {(variant["name"], metric): value for metric, value in variant["quality"]["after"].items()}
    assert found == expected
    assert ModelCard(written + "\n# A model\n").data.eval_results


def test_on_a_screen(data: Data, strange: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for found, terminal, colours in ((data, False, False), (strange, True, True)):
        path = tmp_path / "screen"
        with path.open("w", encoding="utf-8") as file:
            print_results(found, Console(file=file, force_terminal=terminal, color_system="auto" if terminal else None))
        shown = path.read_text(encoding="utf-8")
        assert ("\x1b[" in shown) == colours
        assert found["models"][0]["variants"][1]["patch"]["text"].splitlines()[0] in shown
        accuracy = found["models"][0]["variants"][0]["quality"]["before"]["accuracy"]
        grid = shown[shown.index("┏") :]
        assert (f"accuracy {accuracy:.4f} → {accuracy:.4f}" in grid) == (not terminal), "on a line, where there is room"
    monkeypatch.setenv("NO_COLOR", "1")
    with path.open("w", encoding="utf-8") as file:
        print_results(data, Console(file=file, force_terminal=True))
    assert not re.search(r"\x1b\[(3[0-7]|9[0-7])", path.read_text(encoding="utf-8"))


def test_runs_of_one_model_stand_side_by_side(data: Data, evaluate: Callable[..., Data], tmp_path: Path) -> None:
    later = evaluate("activation=relu", "eager")
    found = merge([("monday", data), ("tuesday", later)])
    [model] = found["models"]
    assert [one["name"] for one in model["variants"]] == ["aten", "activation=relu_squared", "activation=relu", "eager"]
    assert model["variants"][3] == later["models"][0]["variants"][1], "the later one's"
    assert model["variants"][0] == data["models"][0]["variants"][0]
    assert len(model["timings"]) == 4
    assert found["environment"] == {"monday": data["environment"], "tuesday": later["environment"]}
    flips = [flip["example"] for one in model["variants"] for flip in one["quality"]["flipped"]]
    assert flips
    assert all(str(example) in model["described"] for example in flips)
    save(data, tmp_path / "monday")
    save(later, tmp_path / "tuesday")
    rebuild([tmp_path / "monday", tmp_path / "tuesday"], tmp_path / "both")
    assert read(tmp_path / "both") == found
    assert merge([("monday", data)]) is data


def test_other_data_or_another_dtype_are_another_model(data: Data, evaluate: Callable[..., Data]) -> None:
    other, half = evaluate("aten", limit=20), evaluate("aten", loading=Loading(dtype="bfloat16"))
    found = merge([("monday", data), ("tuesday", other), ("friday", half)])
    assert [one["subject"]["name"] for one in found["models"]] == ["tiny (monday)", "tiny (tuesday)", "tiny (friday)"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there are no results in .*evaluation.json"),
        ("{", "cannot be read: .*--resume"),
        ("[]", "is no evaluation's.*hf-gelu-patch evaluate"),
        ("{}", "is no evaluation's"),
        (f'{{"schema": {SCHEMA + 1}}}', f"written in form {SCHEMA + 1}, and this reads form {SCHEMA}"),
    ],
)
def test_what_is_no_result_is_refused(content: str | None, said: str, data: Data, tmp_path: Path) -> None:
    save(data, tmp_path / "good")
    before = {path.name: path.read_bytes() for path in (tmp_path / "good").iterdir()}
    (tmp_path / "bad").mkdir()
    if content is not None:
        (tmp_path / "bad" / JSON_NAME).write_text(content)
    with pytest.raises(EvaluationError, match=said):
        rebuild([tmp_path / "good", tmp_path / "bad"], tmp_path / "good")
    assert {path.name: path.read_bytes() for path in (tmp_path / "good").iterdir()} == before


def test_a_folder_that_cannot_be_written_to(data: Data, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match=r"cannot be written to .*--output_dir"):
        save(data, tmp_path / "file" / "results")


def test_a_full_disk_is_told_before_anything_is_written(data: Data, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    (tmp_path / JSON_NAME).write_text(json.dumps(data))
    code = (
        "import resource, sys; from hf_gelu_patch.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); sys.exit(main(sys.argv[1:]))"
    )
    done = processes.run("-c", code, "report", tmp_path, "--output_dir", tmp_path / "new")
    assert done.returncode == 1
    assert "Make room, or name another folder with --output_dir" in done.stderr
    assert list((tmp_path / "new").iterdir()) == []


def test_without_matplotlib_there_are_no_plots(data: Data, tmp_path: Path) -> None:
    (tmp_path / JSON_NAME).write_text(json.dumps(data))
    code = (
        "import sys; sys.modules['matplotlib'] = None; from hf_gelu_patch.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = processes.run("-c", code, "report", tmp_path, env={**os.environ, "MPLCONFIGDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "pip install 'hf-gelu-patch[evaluation]', which brings matplotlib" in done.stdout
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.is_file()) == [".html", ".json", ".md", ".md"]
    assert "<img" not in (tmp_path / "evaluation.html").read_text(encoding="utf-8")
    assert ".png" not in (tmp_path / "evaluation.md").read_text(encoding="utf-8")


def test_plots_hold_one_and_many(data: Data) -> None:
    one = {**data, "models": [{**data["models"][0], "variants": data["models"][0]["variants"][:1]}]}
    many = {**data, "models": data["models"] * 5}
    sizes = [{name: int.from_bytes(png[20:24], "big") for name, png in draw(found).items()} for found in (one, many)]
    for name, height in sizes[0].items():
        assert height < sizes[1][name] < 12_000
    nothing = copy.deepcopy(one)
    [variant] = nothing["models"][0]["variants"]
    variant["layers"], variant["quality"]["differences"], variant["speed"]["forward"]["ratio"] = [], {}, None
    variant["speed"].pop("end_to_end")
    assert draw(nothing) == {}
