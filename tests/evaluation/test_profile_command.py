"""Profiles of the reference models against float64, and the command that makes them, in one process and in two."""

from __future__ import annotations

import json
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from accelerate import Accelerator
from profiled import check
from tiny_classifier import write_checkpoint, write_data
from torch import Tensor, nn

from hf_gelu_patch.cli import main
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.subjects import subject
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.reference import REFERENCES
from hf_gelu_patch.evaluation.run import load
from hf_gelu_patch.evaluation.run.profiling import profiled
from hf_gelu_patch.profiling.page import page
from hf_gelu_patch.profiling.table import table
from scripts.profiling import foretold, measured

ROOT = Path(__file__).parents[2]

# Of each reference model: the module whose input is an activation's, in a site's owner; and the factor beside it.
GIVEN = {
    "bert": ("intermediate_act_fn", None),
    "gpt2": ("act", None),
    "t5": ("act", "wi_1"),
    "vit": ("activation_fn", None),
    "llama": ("act_fn", "up_proj"),
}


def seen(model: nn.Module, act: str, up: str | None) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
    """What hooks of our own see from now on: the inputs of activations, and the outputs beside them, by owner."""
    given: dict[str, list[Tensor]] = {}
    factors: dict[str, list[Tensor]] = {}

    def hook(path: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda _, x: given.setdefault(path, []).append(x[0].clone()))

    def hook_up(path: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _, __, y: factors.setdefault(path, []).append(y.clone()))

    for path, owner in list(model.named_modules()):
        if isinstance(getattr(owner, act, None), nn.Module):
            hook(path, getattr(owner, act))
            if up is not None:
                hook_up(path, getattr(owner, up))
    return given, factors


@pytest.mark.slow
@pytest.mark.parametrize("name", GIVEN)
def test_a_reference_model_s_profile_is_that_of_its_numbers(name: str) -> None:
    limit = {"bert": 12, "gpt2": 6, "t5": 12, "vit": 12, "llama": 1}[name]
    settings = Settings(limit=limit, batch_size=4)
    one = subject(name, **({"max_length": 48} if name == "llama" else {}))
    accelerator = Accelerator(cpu=True)
    found, data = profiled(one, settings, accelerator)
    model, task, _ = load(one, settings, accelerator)
    act, up = GIVEN[name]
    given, factors = seen(model, act, up)
    masks: list[Tensor] = []
    with torch.inference_mode():
        for batch in task.batches(4):
            masks.append(batch.inputs.get("attention_mask", torch.ones(1)))
            task.forward(model, batch)
    sites = [site for site in found.sites if site.site.path.endswith(f".{act}")]
    assert {site.site.path.removesuffix(f".{act}") for site in sites} == given.keys()
    assert data["examples"] == len(task.examples)
    for site in sites:
        path = site.site.path.removesuffix(f".{act}")
        kept = [mask.bool() if name != "t5" or path.startswith("encoder") else torch.ones(1) for mask in masks]

        def counted(tensors: list[Tensor], kept: list[Tensor] = kept) -> Tensor:
            parts = [x[mask] if mask.shape == x.shape[:2] else x for x, mask in zip(tensors, kept, strict=True)]
            return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])

        check(site, counted(given[path]), counted(factors[path]) if up else None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    return write_checkpoint(folder / "tiny"), write_data(folder / "data.csv")


BOTH = """
import os, socket, sys
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
other = os.fork()
rank = "0" if other else "1"
os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
from hf_gelu_patch.cli import main
status = main(sys.argv[1:])
if not other:
    os._exit(status)
sys.exit(status or os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
"""
"""What torchrun does, without a new Python for each process."""


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    model, rows = tiny
    words = ("profile", model, "--validation_file", rows, "--per_device_eval_batch_size", "5")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    alone = processes.run("-m", "hf_gelu_patch", *words, "--output_dir", tmp_path / "1", env=environment)
    assert alone.returncode == 0, alone.stderr
    words = (*words, "--num_processes", "2", "--output_dir", tmp_path / "2")
    both = processes.run("-c", BOTH, *words, env=environment)
    assert both.returncode == 0, both.stderr
    written = [(tmp_path / number / "profile.json").read_bytes() for number in "12"]
    assert written[0] == written[1]
    pages = [(tmp_path / number / "profile.html").read_bytes() for number in "12"]
    assert pages[0] == pages[1]
    found = json.loads(written[0])
    assert [site["path"] for site in found["sites"] if site["activation"] == "gelu_new"] == [
        f"bert.encoder.layer.{layer}.intermediate.intermediate_act_fn" for layer in range(2)
    ]
    assert found["examples"] == 37
    assert found["sites"][0]["count"] % 48 == 0
    assert alone.stdout.count("bert.encoder.layer.") == both.stdout.count("bert.encoder.layer.") == 2


def test_the_command_shows_and_writes(
    tiny: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows = tiny
    words = ["profile", str(model), "--validation_file", str(rows), "--output_dir", str(tmp_path), "--limit", "9"]
    assert main([*words, "--include", "*layer.0*", "--activation", "silu", "--activation", "gelu"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "profile.json").read_text(encoding="utf-8"))
    [site] = found["sites"]
    assert list(site["drift"]) == ["silu", "gelu"]
    line = next(line for line in printed.splitlines() if line.startswith("bert."))
    assert f"{site['mean']:.2f}".replace("-", "−") in line
    assert f"{site['drift']['silu']['relative']:.0%}".replace("%", " %") in line
    assert "profile.json, profile.html" in printed
    assert "Rows left out" not in printed
    bad = tmp_path / "bad.csv"
    bad.write_text(f"{rows.read_text()}w1 w2,nosuch\n")
    assert main(["profile", str(model), "--validation_file", str(bad), *words[4:6], "--skip_bad_rows"]) == 0
    assert "Rows left out (--skip_bad_rows): 1." in capsys.readouterr().out
    assert main([*words, "--activation", "nosuch"]) == 1
    assert "unknown activation 'nosuch'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--activations", "silu"])
    said = capsys.readouterr().err
    assert "profile: error: unrecognized arguments: --activations silu. Did you mean --activation? 'hf-gelu-" in said
    assert main([*words, "--task", "lm_eval:facts"]) == 1
    assert "lm_eval:facts is asked by 'hf-gelu-patch evaluate' alone" in capsys.readouterr().err
    assert main([*words, "--include", "nosuch"]) == 1
    assert "matches no site" in capsys.readouterr().err


def test_a_row_that_the_model_fails_on_is_named(tiny: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny
    one = subject(str(model), validation_file=str(rows))
    from hf_gelu_patch.evaluation.tasks.classification import TextClassification

    usual = TextClassification.forward

    def fails(self: Any, model: Any, batch: Any) -> Any:
        if 3 in batch.ids:
            raise ValueError("no")
        return usual(self, model, batch)

    monkeypatch.setattr(TextClassification, "forward", fails)
    with pytest.raises(EvaluationError, match=r"row 4 .*Mend the row or remove it"):
        profiled(one, Settings(limit=6, batch_size=2), Accelerator(cpu=True))


class Checked(HTMLParser):
    """Every element is closed in its order, and nothing is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []
        self.bars = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert not found.keys() & {"src", "href", "onload"}
        assert tag != "script"
        if tag not in ("meta", "rect", "path", "wbr"):
            self.open.append(tag)
        self.bars += tag == "rect"
        if tag == "svg":
            self.pictures.append(found["aria-label"] or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "path"):
            assert self.open.pop() == tag


def test_the_page_has_a_picture_of_each_site(tiny: tuple[Path, Path]) -> None:
    model, rows = tiny
    one = subject(str(model), validation_file=str(rows))
    _, data = profiled(one, Settings(limit=9), Accelerator(cpu=True))
    data["sites"][1]["path"] = "<script>alert(1)</script>"
    data["sites"].append({**data["sites"][0], "path": "<b>", "reason": "who knows"})
    del data["sites"][-1]["mean"]
    text = page(data)
    found = Checked()
    found.feed(text)
    assert found.open == []
    assert len(found.pictures) == 3
    assert found.bars == sum(1 for site in data["sites"][:3] for bar in site["histogram"] if bar)
    assert f"mean {data['sites'][0]['mean']:.2f}".replace("-", "−") in found.pictures[0]
    assert "<script" not in text
    assert "&lt;b&gt;: who knows" in text
    assert "prefers-color-scheme: dark" in text
    assert page({key: data[key] for key in ("model", "bars", "sites")}).count("<svg") == 3


def test_the_guide_shows_what_was_recorded() -> None:
    record = json.loads((ROOT / "scripts" / "profiling" / "profiling.json").read_text(encoding="utf-8"))
    guide = (ROOT / "hf_gelu_patch" / "guides" / "profiling.md").read_text(encoding="utf-8")
    assert foretold(record) in guide
    assert f"{measured(record)}." in " ".join(guide.split())
    assert f"```text\n{table(record['shown'])}\n```" in guide
    assert f"on {record['shown']['examples']} blocks" in guide
    assert list(record["models"]) == list(REFERENCES)
    for name, found in record["models"].items():
        sites = {swap["path"] for swap in found["swaps"]}
        assert len(found["swaps"]) == 4 * len(sites), "each of five functions but the site's own"
        assert len(sites) == {"bert": 6, "gpt2": 3, "t5": 6, "vit": 4, "llama": 30}[name]
        assert 1 / found["time"]["ratio"]["value"] <= 2
        for swap in found["swaps"]:
            assert swap["predicted"] == pytest.approx(swap["site"], rel=1e-3)
    last = record["shown"]["sites"][-1]
    assert last["flat"] > 0.5
    assert last["drift"]["gelu"]["relative"] < 0.01 < last["drift"]["silu"]["relative"]
