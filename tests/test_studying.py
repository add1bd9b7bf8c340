"""The study of what is claimed of GELU: its record, its verdicts, and that a kill loses nothing."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch.profiler import ProfilerActivity, profile
from transformers import AutoImageProcessor

from hf_gelu_patch.evaluation.json_values import as_json
from hf_gelu_patch.evaluation.reference import REFERENCES
from scripts.studying import costs, documents, functions, second_order
from scripts.studying.__main__ import RECORD, main
from scripts.studying.claims import VERDICTS, judged, paired, reached, updates
from scripts.studying.counting import blocks
from scripts.studying.figures import FIGURES
from scripts.studying.models import _ratio
from scripts.studying.page import page
from scripts.studying.parts import FolderError, begin, missing, parts
from scripts.studying.sizes import FULL, QUICK
from scripts.studying.training import OWN, SMOOTHED, small_vit
from scripts.training.digits import digits

ROOT = Path(__file__).parents[1]
_LONGEST = 600  # seconds


def test_the_derivative_has_one_zero_and_underflows_where_it_should() -> None:
    found = functions.underflow()
    x = torch.tensor(found["zero_of_derivative"], dtype=torch.float64, requires_grad=True)
    [slope] = torch.autograd.grad(torch.nn.functional.gelu(x), x)
    assert abs(float(slope)) < 1e-15
    for dtype, parts_ in found["dtypes"].items():
        for part, ends in parts_.items():
            assert ends["rounded"] <= ends["gelu"] + 0.01, (dtype, part)  # torch gives up no later than rounding does
    at = torch.tensor([found["dtypes"]["float32"]["value"]["gelu"]] * 64)  # of one number, torch computes another way
    assert not torch.nn.functional.gelu(at).any()
    assert (at.double() * torch.special.ndtr(at.double()) < -1e-8).all()


@pytest.mark.parametrize("dtype", [*functions.DTYPES])
def test_from_where_torch_gives_0_it_gives_nothing_else(dtype: str) -> None:
    x = functions._negative(functions.DTYPES[dtype])
    for part, ends in functions.underflow()["dtypes"][dtype].items():
        results = functions._by_torch(x, "gelu", part)
        assert not results[x <= ends["gelu"]].any()
        assert results[x > ends["gelu"]][-1] != 0


def test_the_eight_operations_of_the_tanh_form_are_eight() -> None:
    """What is timed under that name."""
    call = costs._FUNCTIONS["gelu_new"]
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call(torch.ones(8))
    assert "aten::tanh" in {event.key for event in seen.key_averages()}


def test_the_forms_are_told_apart_as_counted_one_by_one() -> None:
    """All bf16 numbers between −8 and 8, one at a time, with Python's own functions."""
    found = functions.distances()["dtypes"]["bfloat16"]["positive"]
    differ = count = 0
    bits = 1
    while (x := float(torch.tensor(bits, dtype=torch.int16).view(torch.bfloat16))) <= 8:
        exact = 0.5 * x * (1 + math.erf(x / math.sqrt(2)))
        other = 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        one, two = (torch.tensor(y, dtype=torch.float64).to(torch.bfloat16) for y in (exact, other))
        differ += bool(one != two)
        count, bits = count + 1, bits + 1
    assert found["numbers"] == count
    assert found["told_apart"] == pytest.approx(differ / count, abs=2 / count)


def test_paired_intervals_are_students() -> None:
    values = [0.1, 0.3, -0.05, 0.22, 0.17]
    found = paired(values)
    low, high = stats.t.interval(0.95, 4, loc=sum(values) / 5, scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.visible > (high - low) / 2
    assert not found.seen
    assert paired([1.0, 1.1, 0.9, 1.05]).seen


@pytest.mark.parametrize(
    ("losses", "goal", "place"),
    [([3.0, 2.0, 1.0], 2.0, 2.0), ([3.0, 2.0, 1.0], 1.25, 2.75), ([3.0, 2.0], 1.0, 2.0), ([0.5], 1.0, 1.0)],
)
def test_a_loss_is_reached_between_two_points(losses: list[float], goal: float, place: float) -> None:
    assert reached(losses, goal) == place


def test_steps_are_counted_by_the_updates_before_a_loss() -> None:
    """What L-BFGS returns is the loss before its step, and each of AdamW's is that of a batch before its update."""
    before = [*range(4 * SMOOTHED)]  # updates, when the loss of each step was measured
    assert updates(1, 1) == before[0]
    assert updates(2, SMOOTHED) == sum(before[SMOOTHED : 2 * SMOOTHED]) / SMOOTHED
    torch.manual_seed(0)
    model = small_vit(0).model.eval()
    images, labels, _, _ = digits()
    processor = AutoImageProcessor.from_pretrained(REFERENCES["vit"].root / "vit")
    with torch.inference_mode():
        logits = model(**processor(images[:256], return_tensors="pt")).logits
    own = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[:256]))
    assert second_order.fitted("gelu", 0, 1)["losses"] == pytest.approx([float(own)])


def test_a_damaged_part_is_found_out_anew(tmp_path: Path) -> None:
    begin(tmp_path, QUICK)
    every = len(parts(QUICK))
    place = tmp_path / "parts" / "underflow.json"
    place.write_text('{"claim": 1, "found": {}}', encoding="utf-8")
    assert len(missing(tmp_path, QUICK)) == every - 1
    for text in ('{"claim": 1, "fou', "", "[]", "{}"):
        place.write_text(text, encoding="utf-8")
        assert len(missing(tmp_path, QUICK)) == every


def test_a_folder_holds_one_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, about = tmp_path / "one", tmp_path / "one" / "about.json"
    begin(folder, QUICK)
    begin(folder, QUICK)
    with pytest.raises(FolderError, match="another size"):
        begin(folder, FULL)
    own = about.read_text(encoding="utf-8")
    for other in (own.replace('"code": "', '"code": "0'), own.replace('"torch": "', '"torch": "0'), own[:20]):
        about.write_text(other, encoding="utf-8")
        with pytest.raises(FolderError, match="other versions"):
            begin(folder, QUICK)
    with pytest.raises(SystemExit):
        main([str(folder), "--recorded"])
    assert "a study of its own" in capsys.readouterr().err
    assert not (folder / "study.json").exists()


@pytest.mark.parametrize("how", ["--recorded", "--quick"])
def test_a_folder_that_cannot_be_written_is_named(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "file" / "below"), how])
    assert "file/below cannot be written: Not a directory." in capsys.readouterr().err


def test_blocks_are_those_of_the_outermost_lists() -> None:
    class Layer(torch.nn.Module):
        def __init__(self, acts: int) -> None:
            super().__init__()
            self.up = torch.nn.Linear(4, 4)
            self.acts = torch.nn.ModuleList([torch.nn.GELU() for _ in range(acts)])

    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([Layer(2), Layer(2), Layer(3)])
    model.last = torch.nn.Tanh()
    found = blocks(model)
    assert found["blocks"]["Layer"]["per block"] == {"2": 2, "3": 1}
    assert found["outside"] == 1


def test_every_claim_has_parts() -> None:
    for sizes in (FULL, QUICK):
        names = [part.name for part in parts(sizes)]
        assert len(set(names)) == len(names)
        assert {part.claim for part in parts(sizes)} == {1, 2, 3, 4, 5, 7, 8}  # the sixth looks into the fifth's models


def test_the_ratio_of_sums_has_the_interval_of_its_pairs() -> None:
    """Pairs that rise and fall together leave little doubt, however much they vary."""
    draw = random.Random(0)
    others = [math.exp(draw.gauss(0, 2)) for _ in range(60)]
    found = _ratio([3 * one * math.exp(draw.gauss(0, 0.05)) for one in others], others)
    assert 2.7 < found["low"] < found["value"] < found["high"] < 3.3
    apart = _ratio(others[::-1], others)
    assert apart["low"] < 0.9 < 1.1 < apart["high"]


# ------------------------------------------------------------------------------------------------------- what was found


def test_the_documents_have_the_tables_of_the_record(tmp_path: Path) -> None:
    found = json.loads(RECORD.read_text(encoding="utf-8"))
    assert found["sizes"] == as_json(asdict(FULL))
    assert {*found["parts"]} == {part.name for part in parts(FULL)}
    tables = {documents.README: documents.verdicts(found), documents.GUIDE: documents.headline(found)}
    copies = []
    for path, table in tables.items():
        text = path.read_text(encoding="utf-8")
        assert f"\n\n{table}\n\n" in text
        copies.append(tmp_path / path.name)
        copies[-1].write_text(text.replace(table, "| old |\n| --- |\n| false |"), encoding="utf-8")
    documents.write(found, *copies)
    for path, copy in zip(tables, copies, strict=True):
        assert copy.read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


def _as_own(found: Any, *what: str, noise: float = 0.0) -> None:
    """SiLU's trainings are those of each recipe's own function, but for noise; of the latter, what swapping and healing
    gave."""
    for name, part in found["parts"].items():
        if match := re.fullmatch(r"trained-(\w+?)-silu-(\d)", name):
            recipe, seed = match.groups()
            own = found["parts"][f"trained-{recipe}-{OWN[recipe]}-{seed}"]["found"]
            if "scratch" in what:
                loss = own["held_out"]["loss"] + (-1) ** int(seed) * noise
                part["found"]["held_out"] = {**own["held_out"], "loss": loss}
            if "swapped" in what:
                own["swapped"]["silu"] = own["held_out"]
                own["healed"]["silu"] = own["healed"][OWN[recipe]]


def _relu_slow(found: Any) -> None:
    """ReLU's curves lie above all others."""
    for name, part in found["parts"].items():
        if "-relu-" in name:
            part["found"]["losses"] = [loss + 1.0 for loss in part["found"]["losses"]]


def _silu_as_relu(found: Any) -> None:
    """SiLU's curves are ReLU's."""
    for name, part in found["parts"].items():
        if "-silu-" in name:
            part["found"]["losses"] = found["parts"][name.replace("-silu-", "-relu-")]["found"]["losses"]


def _ratio_of(found: Any, value: float, reach: float = 1.1) -> None:
    for name, part in found["parts"].items():
        if name.startswith("moved-"):
            part["found"]["ratios"]["float16"] = {"value": value, "low": value / reach, "high": value * reach}


def _silu_on_this_cpu(found: Any) -> Any:
    return found["parts"]["cost-on-this-cpu"]["found"]["ratios"]["silu"]


def _dead(found: Any, share: float) -> None:
    for name, part in found["parts"].items():
        if match := re.fullmatch(r"trained-\w+?-relu-(\d)", name):
            for layer in part["found"]["activations"]:
                layer["dead"] = share * (1 + int(match[1]) / 10)


@pytest.mark.parametrize(
    ("number", "change", "verdict"),
    [
        (2, lambda found: _ratio_of(found, 0.1), "holds"),
        (2, lambda found: _ratio_of(found, 3.0), "false"),
        (2, lambda found: _ratio_of(found, 1.5, 2.0), "not decidable here"),
        (3, lambda found: found["parts"]["loaded-t5"]["found"].update(missing=1), "false"),
        (4, lambda found: found["parts"]["blocks-of-all"]["found"].update(types=451), "holds"),
        (5, lambda found: _as_own(found, "scratch", "swapped"), "holds"),
        (5, lambda found: _as_own(found, "scratch"), "holds with limits"),
        (5, lambda found: _as_own(found, "scratch", "swapped", noise=1.0), "not decidable here"),
        (6, lambda found: _dead(found, 0.1), "holds"),
        (7, lambda found: _silu_on_this_cpu(found).update(verdict="slower"), "false"),
        (8, _relu_slow, "holds"),
        (8, _silu_as_relu, "not decidable here"),
    ],
)  # fmt: skip
def test_a_verdict_is_that_of_the_numbers(number: int, change: Callable[[Any], object], verdict: str) -> None:
    found = json.loads(RECORD.read_text(encoding="utf-8"))
    change(found)
    assert judged(found)[number - 1].verdict == verdict


def test_families_with_several_are_told() -> None:
    found = json.loads(RECORD.read_text(encoding="utf-8"))
    [kept] = found["parts"]["blocks-vit"]["found"]["blocks"].values()
    kept["per block"] = {"2": 4}
    assert "So it is in bert, gpt2, t5, mt5, llama, mistral, not in vit;" in judged(found)[3].sentence


def test_the_recorded_study_is_shown_without_measuring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "new"), "--recorded"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "new" / "study.json").read_text(encoding="utf-8"))
    assert found == json.loads(RECORD.read_text(encoding="utf-8"))
    assert (tmp_path / "new" / "study.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    for claim in judged(found):
        assert f"{claim.number}. {claim.said}\n   {claim.verdict}: {claim.sentence}" in printed
        assert claim.verdict in VERDICTS


# ------------------------------------------------------------------------------------------------------ the quick study


def _started(folder: Path, count: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "scripts.studying", str(folder), "--quick", "--processes", str(count)]
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    own.pop("TRITON_INTERPRET", None)  # instructions are those of compiled kernels
    pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=own, start_new_session=True, **pipes)


def _written(folder: Path) -> int:
    return len([*folder.glob("parts/*.json")])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick study, killed on the way, then stopped by Ctrl-C, of which every process hears."""
    folder = tmp_path_factory.mktemp("study")
    draw = random.Random(0)
    for tell, count, how in ((os.kill, 2, signal.SIGKILL), (os.killpg, 2, signal.SIGINT)):
        run, known, until = _started(folder, count), _written(folder), time.monotonic() + _LONGEST
        goal = known + draw.randint(5, 15)
        while run.poll() is None and _written(folder) < goal and time.monotonic() < until:
            time.sleep(0.05)
        tell(run.pid, how)
        _, told = run.communicate(timeout=_LONGEST)
        assert known < _written(folder) < len(parts(QUICK))
        if how == signal.SIGINT:
            assert run.returncode == 130
            assert told.endswith(f"\nStopped. {folder} keeps what was found: the same command goes on.\n")
            assert "Traceback" not in told
        while time.monotonic() < until and _lives(run.pid):
            time.sleep(0.05)
        assert not _lives(run.pid)
    run = _started(folder)
    _, told = run.communicate(timeout=_LONGEST)
    assert run.returncode == 0, told
    return folder


def _lives(group: int) -> bool:
    """Whether any of its processes does."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_killed_twice_it_ends_in_the_same_record(study: Path) -> None:
    """One part of each kind, found out anew here, is what the killed study has."""
    found = json.loads((study / "study.json").read_text(encoding="utf-8"))["parts"]
    kinds = (
        "distances", "other-form-vit-float32", "loaded-gpt2", "blocks-llama", "trained-vit-silu-1",
        "trained-gpt2-gelu_tanh-0", "second-order-relu-1",
    )  # fmt: skip
    assert set(found) == {part.name for part in parts(QUICK)}
    for part in parts(QUICK):
        if part.name in kinds:
            assert as_json(part.find()) == found[part.name]["found"], part.name


@pytest.mark.slow
def test_the_page_says_what_the_record_has(study: Path) -> None:
    found = json.loads((study / "study.json").read_text(encoding="utf-8"))
    written = (study / "study.html").read_text(encoding="utf-8")
    assert written == page(found)
    assert "https://" not in re.sub(r"<svg.*?</svg>", "", written, flags=re.DOTALL)
    drawn = re.findall(r"<svg.*?>", written)
    assert len(drawn) == len(FIGURES)
    assert all('role="img" aria-label="' in one for one in drawn)
    claims = judged(found)
    assert [claim.number for claim in claims] == [*range(1, 9)]
    for claim in claims:
        assert claim.numbers
        assert claim.figures
        assert {*claim.figures} <= {*FIGURES}
    changed = json.loads(json.dumps(found))
    changed["parts"]["distances"]["found"]["largest"] = 0.5
    assert "5.00e-01" in page(changed)
