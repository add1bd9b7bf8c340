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

import processes
import pytest
import torch
from scipy import stats

from hf_gelu_patch.evaluation.json_values import as_json
from scripts.studying import documents, functions
from scripts.studying.__main__ import RECORD, main
from scripts.studying.claims import VERDICTS, judged, paired, reached
from scripts.studying.counting import blocks
from scripts.studying.figures import FIGURES
from scripts.studying.models import _ratio
from scripts.studying.page import page
from scripts.studying.parts import parts
from scripts.studying.sizes import FULL, QUICK
from scripts.studying.training import OWN

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


def _as_own(found: Any, *what: str) -> None:
    """SiLU's trainings are those of each recipe's own function; of the latter, what swapping and healing gave."""
    for name, part in found["parts"].items():
        if match := re.fullmatch(r"trained-(\w+?)-silu-(\d)", name):
            recipe, seed = match.groups()
            own = found["parts"][f"trained-{recipe}-{OWN[recipe]}-{seed}"]["found"]
            if "scratch" in what:
                part["found"]["held_out"] = own["held_out"]
            if "swapped" in what:
                own["swapped"]["silu"] = own["held_out"]


def _relu_slow(found: Any) -> None:
    """ReLU's curves lie above all others."""
    for name, part in found["parts"].items():
        if "-relu-" in name:
            part["found"]["losses"] = [loss + 1.0 for loss in part["found"]["losses"]]


def _ratio_of(found: Any, value: float) -> None:
    for name, part in found["parts"].items():
        if name.startswith("moved-"):
            part["found"]["ratios"]["float16"] = {"value": value, "low": 0.9 * value, "high": 1.1 * value}


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
        (3, lambda found: found["parts"]["loaded-t5"]["found"].update(missing=1), "false"),
        (4, lambda found: found["parts"]["blocks-of-all"]["found"].update(types=451), "holds"),
        (5, lambda found: _as_own(found, "scratch", "swapped"), "holds"),
        (5, lambda found: _as_own(found, "scratch"), "holds with limits"),
        (6, lambda found: _dead(found, 0.1), "holds"),
        (7, lambda found: _silu_on_this_cpu(found).update(verdict="slower"), "false"),
        (8, _relu_slow, "holds"),
    ],
)  # fmt: skip
def test_a_verdict_is_that_of_the_numbers(number: int, change: Callable[[Any], object], verdict: str) -> None:
    found = json.loads(RECORD.read_text(encoding="utf-8"))
    change(found)
    assert judged(found)[number - 1].verdict == verdict


def test_the_recorded_study_is_shown_without_measuring(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "new"), "--recorded"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "new" / "study.json").read_text(encoding="utf-8"))
    assert found == json.loads(RECORD.read_text(encoding="utf-8"))
    assert (tmp_path / "new" / "study.html").read_text(encoding="utf-8") == page(found)
    for claim in judged(found):
        assert f"{claim.number}. {claim.verdict}: {claim.sentence}" in printed
        assert claim.verdict in VERDICTS


# ------------------------------------------------------------------------------------------------------ the quick study


def _started(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "scripts.studying", str(folder), "--quick", "--processes", "1"]
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=own, start_new_session=True, stdout=subprocess.DEVNULL)


def _written(folder: Path) -> int:
    return len([*folder.glob("parts/*.json")])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick study, killed twice on the way with all its processes."""
    folder = tmp_path_factory.mktemp("study")
    draw = random.Random(0)
    for _ in range(2):
        run, known, until = _started(folder), _written(folder), time.monotonic() + _LONGEST
        goal = known + draw.randint(5, 15)
        while run.poll() is None and _written(folder) < goal and time.monotonic() < until:
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        assert known < _written(folder) < len(parts(QUICK))
    assert _started(folder).wait(timeout=_LONGEST) == 0
    return folder


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
    claims = judged(found)
    assert [claim.number for claim in claims] == [*range(1, 9)]
    for claim in claims:
        assert claim.numbers
        assert claim.figures
        assert {*claim.figures} <= {*FIGURES}
    changed = json.loads(json.dumps(found))
    changed["parts"]["distances"]["found"]["largest"] = 0.5
    assert "5.00e-01" in page(changed)


@pytest.mark.slow
def test_another_size_is_not_mixed_in(study: Path) -> None:
    done = processes.run("-m", "scripts.studying", study, cwd=ROOT)
    assert done.returncode == 2
    assert "name another folder" in done.stderr
