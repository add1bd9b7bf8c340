"""The benchmarks gpu and report, on the CPU and tiny: what they measure, write and survive. No time is judged."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import processes
import pytest
import torch
from torch import Tensor

from hf_gelu_patch import IMPLEMENTATIONS, patch
from scripts.benchmarking.gpu import command, schedule

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
COMMAND = ["-m", "scripts.benchmarking"]
FORMS = ("forward", "backward", "gated_forward", "gated_backward")
BARE = f"""
import importlib.util, runpy, sys
sys.path[:] = [path for path in sys.path if path not in ("", {str(ROOT)!r})]
sys.meta_path[:] = [one for one in sys.meta_path if "editable" not in str(getattr(one, "__module__", one))]
assert importlib.util.find_spec("hf_gelu_patch") is None
sys.path.insert(0, {str(ROOT)!r})  # as -m does, where the command is given in the repository's root
runpy.run_module("scripts.benchmarking", run_name="__main__", alter_sys=True)
"""
"""The command where the package is not installed."""


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return command


@pytest.fixture(scope="module")
def record() -> ModuleType:
    return command.record


@pytest.fixture(scope="module")
def report() -> ModuleType:
    return command.report


def run(command: Sequence[str], *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {**os.environ, "TRITON_INTERPRET": "1", **environment}
    return processes.run(*command, *arguments, env=own, cwd=ROOT)


def run_anew(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """With nothing imported beforehand."""
    own = {**os.environ, "TRITON_INTERPRET": "1", **environment}
    told = [sys.executable, *map(str, arguments)]
    return subprocess.run(told, env=own, capture_output=True, text=True, cwd=ROOT)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


# What it measures

STEPS = (
    *("smoke", "gpt2", "kernels-bf16", "sites", "products"),
    *("training-gpt2", "training-layer", "variants", "compiled-gpt2", "sanitizer"),
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What it wrote where the package is not installed, and neither datasets nor evaluate can be imported."""
    folder = tmp_path_factory.mktemp("gpu")
    for name in ("datasets", "evaluate"):
        (folder / f"{name}.py").write_text("raise RuntimeError('not to be imported')\n")
    output = folder / "new" / "folder"
    options = ("gpu", "--device", "cpu", "--tiny", "--backend", "aot_eager", "--output", output, "--steps", *STEPS)
    done = run_anew("-c", BARE, *options, PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stderr
    return {"folder": output, "told": done.stdout, "announced": done.stderr}


@pytest.fixture(scope="module")
def found(measured: dict[str, Any], record: ModuleType) -> Any:
    return record.read([measured["folder"]])


def test_every_step_is_done_and_nothing_failed(found: Any, report: ModuleType) -> None:
    assert list(found.steps) == ["card", *STEPS]
    assert {step["ended"]["how"] for step in found.steps.values()} == {"done"}
    assert not report.failures(found)
    (absent,) = found.of("absent")
    assert absent["what"] == "compute-sanitizer"
    assert {"gpu", "cpu", "versions", "date", "sources", "nvidia_smi"} <= found.environment.keys()


def test_every_cell_of_the_kernels(found: Any) -> None:
    assert list(found.kernels) == [("gelu", form, "bfloat16", 4096) for form in FORMS]
    assert list(found.checks) == [("gelu", form, "bfloat16") for form in FORMS]
    for cell in found.kernels.values():
        assert set(cell["candidates"]) == {"eager", "aten", "triton"}
        assert "Liger-Kernel" in cell["absent"]["liger"]


def runs_in_bfloat16(name: str) -> bool:
    """Whether an implementation does so on the CPU of the tests: cpp wants a compiler, epilogue some processors."""
    return IMPLEMENTATIONS[name].obstacle(torch.device("cpu"), torch.bfloat16) is None


def test_every_cell_of_a_model(found: Any) -> None:
    patched = {"eager", "again", "auto", "triton", "bound"}
    inferring = patched | {"epilogue"} if runs_in_bfloat16("epilogue") else patched
    compiled = {"eager", "again", "compiled", "compiled_again", "compiled_triton"}
    assert {key: set(cell["variants"]) for key, cell in found.models.items()} == {
        ("gpt2", "large", "forward", False): inferring,
        ("gpt2", "large", "training step", False): patched,
        ("gpt2", "small", "forward", False): inferring,
        ("gpt2", "small", "training step", False): patched,
        ("gpt2", "large", "forward", True): compiled,
    }
    for cell in found.models.values():
        rows = cell["variants"]
        (rounds,) = {len(row["samples_s"]) for row in rows.values()}
        assert rounds >= 5
        assert cell["batch"] == cell["batch_asked"]
        for name, row in rows.items():
            assert row["median_s"] == statistics.median(row["samples_s"])
            if name in {"auto", "triton", "bound", "compiled", "compiled_triton"}:
                assert row["base"] == ("compiled" if name == "compiled_triton" else "eager")
                pairs = zip(rows[row["base"]]["samples_s"], row["samples_s"], strict=True)
                ratios = sorted(before / after for before, after in pairs)
                assert row["ratio"]["value"] == pytest.approx(ratios[rounds // 2])
        if not cell["compiled"] and not runs_in_bfloat16("epilogue"):
            assert "oneDNN has no bfloat16 products on this processor" in cell["absent"]["epilogue"]
    assert "gelu_new → gelu_tanh" in found.about["gpt2"]["reports"]["auto"]
    assert "gelu_new → linear" in found.about["gpt2"]["reports"]["bound"]
    assert "bound" not in found.about["gpt2"]["drift"]
    assert found.about["gpt2"]["drift"]["triton"]["largest"] > 0
    kernels = {name: {row["kernel"] for row in rows} for name, rows in found.profiles["gpt2"]["kernels"].items()}
    assert kernels["eager"] > {"aten::addmm", "aten::tanh"}
    assert "aten::tanh" not in kernels["triton"]


def test_every_way_to_train_with_less_memory(found: Any) -> None:
    ways = {"auto", "recompute", "triton", "triton_recompute", "tiles", "triton_tiles"}
    assert list(found.training) == ["gpt2", "llama's MLP"]
    model, layer = found.training.values()
    assert model["variants"].keys() == {"eager", "again", "checkpoint", *ways}
    assert layer["variants"].keys() == {"eager", "again", *ways}
    assert layer["absent"].keys() == {"liger", "liger_tiled"}
    for cell in found.training.values():
        assert all("verdict" in cell["variants"][name] for name in ways)
        assert "kept" in cell["reports"]["recompute"]
        assert "tiles" in cell["reports"]["tiles"]


def test_peaks_of_training_are_held_against_their_goals(record: ModuleType) -> None:
    def cell(model: str, **peaks: int) -> dict[str, Any]:
        return {"kind": "training", "model": model, "variants": {name: {"peak_bytes": n} for name, n in peaks.items()}}

    found = record.Found()
    found.card, found.settings = {"name": "NVIDIA H200"}, {"tiny": False}
    found.add(cell("llama", eager=100, liger=90, triton_recompute=80))
    found.add(cell("llama's MLP", eager=100, tiles=40))
    told = {one["goal"]: (one["measured"], one["outcome"]) for one in command.goals.outcomes(found)}
    assert told["Llama, 32 × 512, training step: Liger-Kernel's peak over ours"] == (90 / 80, "met")
    assert told["Llama's MLP, 32,768 tokens, in tiles: eager's peak over ours"] == (2.5, "missed")


def test_every_cell_of_the_layers(found: Any) -> None:
    """One that a patch would not change, or that cannot be computed so, is not timed."""
    computed = {
        ("pointwise", "gelu"): {"triton"},
        ("pointwise", "gelu_new"): {"aten", "triton"},
        ("linear", "gelu"): {"aten", "triton"},
        ("linear", "gelu_new"): {"aten", "triton"},
        ("gated", "gelu"): {"aten", "triton"},
        ("gated", "gelu_new"): {"aten", "triton"},
    }
    sizes = {"large": 16, "small": 4}
    for (kind, _), names in computed.items():
        names |= {"cpp"} if runs_in_bfloat16("cpp") else set()
        names |= {"epilogue"} if kind == "linear" and runs_in_bfloat16("epilogue") else set()
    for (kind, spelling), names in computed.items():
        for size, mode in itertools.product(sizes, ("forward", "training step")):
            cell = found.sites[kind, spelling, "bfloat16", size, mode]
            assert cell["variants"].keys() == {"eager", "again", *names}
            assert (cell["ops"], cell["rows"]) == ({"gelu": 1, "gelu_new": 8}[spelling], sizes[size])
            assert {"ratio", "verdict"} <= cell["variants"]["triton"].keys()
    assert len(found.sites) == 4 * len(computed)


def test_every_linear_layer_with_its_activation(found: Any) -> None:
    assert [cell["activation"] for cell in found.products.values()] == ["gelu", "gelu_tanh"]
    for cell in found.products.values():
        assert cell["candidates"].keys() == {"product", "eager", "aten", "triton", "template"}
        assert cell["errors"].keys() == cell["candidates"].keys() - {"product"}
        assert max(cell["errors"].values()) < 5e-3


def test_every_form_of_the_variants(found: Any) -> None:
    assert [form for form, *_ in found.variants] == list(FORMS)
    for cell in found.variants.values():
        assert len(cell["variants"]) == 2
        assert set(cell["samples_s"]) == {
            "copy", *(f"{of}, {name}" for of in ("gelu", "relu") for name in cell["variants"])
        }  # fmt: skip


def test_what_it_tells(measured: dict[str, Any], found: Any) -> None:
    told = measured["told"]
    assert told == (measured["folder"] / "gpu.md").read_text()
    assert told.count("\n| gpt2 | 2 × 16 |") == 4
    assert told.count("\n| gelu | ") == 4 + 1
    assert len(re.findall(r"^\| (?:gated )?(?:forward|backward) \|", told, re.MULTILINE)) == 8
    goals = told.partition("| goal |")[2].splitlines()[2:]
    assert len(goals) == 20
    assert all(goal.endswith("| not measured |") for goal in goals)  # on a CPU, and tiny
    announced = [line for line in measured["announced"].splitlines() if line.startswith("measured ")]
    cells = found.models, found.training, found.kernels, found.sites, found.products, found.variants
    assert len(announced) == 3 + sum(map(len, cells))


def test_report_makes_the_same_tables_again(measured: dict[str, Any]) -> None:
    tables = measured["folder"] / "gpu.md"
    tables.unlink()
    done = run(COMMAND, "report", measured["folder"])
    assert done.returncode == 0, done.stderr
    assert done.stdout == measured["told"] == tables.read_text()


def test_a_compiler_that_fails_costs_what_is_compiled(tmp_path: Path, record: ModuleType) -> None:
    options = ("gpu", "--device", "cpu", "--tiny", "--backend", "nonsense", "--output", tmp_path)
    done = run(COMMAND, *options, "--steps", "compiled-vit", "kernels-bf16")
    assert done.returncode == 1
    assert "compiled-vit: vit, compiled" in done.stderr.splitlines()[-1]
    found = record.read([tmp_path])
    assert len(found.kernels) == 4
    (cell,) = found.models.values()
    assert set(cell["variants"]) == {"eager", "again"}
    assert "nonsense" in cell["absent"]["compiled"]


def test_no_time_is_no_failure(tmp_path: Path) -> None:
    done = run(COMMAND, "gpu", "--device", "cpu", "--tiny", "--output", tmp_path, "--minutes", "0.01")
    assert done.returncode == 0, done.stderr
    left_out = [line["step"] for line in lines_of(tmp_path) if line["kind"] == "left_out"]
    assert left_out[:2] == ["card", "smoke"]
    assert left_out[-1] == "sanitizer"
    assert "- sanitizer: 0 s were left, and it wants 35" in done.stdout


@pytest.mark.parametrize(("interpreted", "told"), [("1", "unset TRITON_INTERPRET"), ("0", "torch sees no CUDA device")])
def test_a_gpu_that_is_not_there(tmp_path: Path, interpreted: str, told: str) -> None:
    if torch.cuda.is_available() and interpreted == "0":
        pytest.skip("there is a CUDA device")
    done = run(COMMAND, "gpu", "--output", tmp_path, TRITON_INTERPRET=interpreted)
    assert done.returncode == 1
    assert told in done.stderr.splitlines()[-1]


# What it survives: steps that are planted, in the command as it is.

PLANTED = """
import dataclasses, os, signal, subprocess, sys, time, torch
from scripts.benchmarking import __main__ as script
from scripts.benchmarking.gpu import command as gpu, schedule
schedule._SPARE = 0.0

def step(run, measure=30.0, prepare=0.0):
    return schedule.Step(run.__name__, "planted", run, prepare, measure)

def cells(work, count=3, size=10):
    for number in range(count):
        work.cell(f"{number}", "planted", number=number, samples_s=[0.123456789] * size)
        time.sleep(0.001)
"""
FATAL = """
def first(work): cells(work)

def hangs(work):
    cells(work)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)

def aborts(work):
    cells(work)
    os.abort()

def has_no_memory(work):
    with work.attempt("a cell"):
        raise MemoryError("no more")
    cells(work)

def has_no_gpu_memory(work):
    cells(work)
    raise torch.OutOfMemoryError("CUDA out of memory")

def is_killed(work):
    cells(work)
    os.kill(os.getpid(), signal.SIGKILL)

def leaves_something(work):
    sleeper = "import os, sys, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(600)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    child = subprocess.Popen([sys.executable, "-c", sleeper], **pipes)
    work.write("sleeper", pid=int(child.stdout.readline()))
    cells(work)

def leaves_the_python(work):
    cells(work)
    os._exit(3)

def last(work): cells(work)

gpu.STEPS = tuple(
    step(one, measure=1.0 if one is hangs else 30.0)
    for one in (first, hangs, aborts, has_no_memory, has_no_gpu_memory, is_killed, leaves_something, leaves_the_python,
                last)
)
script.main()
"""


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_step_loses_itself_only(tmp_path: Path) -> None:
    done = run(["-c", PLANTED + FATAL], "gpu", "--device", "cpu", "--output", tmp_path)
    lines = lines_of(tmp_path)
    ended = {line["step"]: line["how"] for line in lines if line["kind"] == "ended"}
    assert ended == {
        "card": "done",
        "first": "done",
        "hangs": "overran its limit",
        "aborts": "killed by SIGABRT",
        "has_no_memory": "done",
        "has_no_gpu_memory": "failed",
        "is_killed": "killed by SIGKILL",
        "leaves_something": "done",
        "leaves_the_python": "failed",
        "last": "done",
    }
    for name in ended.keys() - {"card"}:
        assert [line["number"] for line in lines if (line["kind"], line.get("step")) == ("planted", name)] == [0, 1, 2]
    failed = {line["step"]: line["why"] for line in lines if line["kind"] == "failure"}
    assert set(failed) == {"has_no_memory", "has_no_gpu_memory"}
    assert "MemoryError: no more" in failed["has_no_memory"]
    assert "OutOfMemoryError: CUDA out of memory" in failed["has_no_gpu_memory"]
    (sleeper,) = [line["pid"] for line in lines if line["kind"] == "sleeper"]
    assert not is_alive(sleeper)
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    for name in ("hangs: overran", "aborts: killed by SIGABRT", "has_no_memory: a cell", "leaves_the_python: failed"):
        assert name in told
    assert "first" not in told


KILLED = """
import ctypes, random
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # whatever loses its parent becomes a child of this process

def busy(work):
    sleeper = [sys.executable, "-c", "import os, time; os.setsid(); time.sleep(600)"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    work.write("sleeper", pid=subprocess.Popen(sleeper, **pipes).pid)
    cells(work, 10_000, 3_000)

def busy_again(work):
    cells(work, 10_000, 3_000)

def left():
    found = []
    for place in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{place}/stat") as stat:
                state, parent = stat.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.append(int(place))
    return found

gpu.STEPS = (step(busy, 0.3), step(busy_again, 30.0))
gpu.preload = lambda: None  # here it is done already
number, folder = int(sys.argv[1]), sys.argv[2]
for kill in range(4):
    output = os.path.join(folder, str(kill))
    os.makedirs(output)
    told = os.open(os.path.join(output, "told"), os.O_WRONLY | os.O_CREAT)
    command = os.fork()
    if command == 0:
        os.dup2(told, 1), os.dup2(told, 2)
        sys.argv[1:] = ["gpu", "--device", "cpu", "--output", output]
        try:
            script.main()
        except SystemExit as ending:
            print(ending.code, flush=True)
        finally:
            os._exit(0)
    while "measured" not in open(os.path.join(output, "told")).read():
        time.sleep(0.01)
    time.sleep(random.uniform(0.0, 1.0))
    os.kill(command, number)
    os.waitpid(command, 0)
    until = time.monotonic() + 2
    while left() and time.monotonic() < until:
        time.sleep(0.05)
    print(len(left()), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_killed_at_any_moment(tmp_path: Path, record: ModuleType, report: ModuleType, number: int) -> None:
    """What was announced is in the record, all that was written can be read, and nothing runs on."""
    done = run(["-c", PLANTED + KILLED], int(number), tmp_path)
    assert done.stdout.split() == ["0"] * 4, done.stderr
    for folder in tmp_path.iterdir():
        announced = re.findall(r"^measured (\w+): (\d+)$", (folder / "told").read_text(), re.MULTILINE)
        *written, last = (folder / "gpu.jsonl").read_bytes().split(b"\n")
        lines = [json.loads(line) for line in written if line and is_json(line)]
        assert len(written) - len(lines) <= 1  # torn by a kill, and gone around
        cells = [line for line in lines if line["kind"] == "planted"]
        assert {(step, int(cell)) for step, cell in announced} <= {(line["step"], line["number"]) for line in cells}
        assert len(last) == 0 or not is_json(last)
        assert not any(is_alive(line["pid"]) for line in lines if line["kind"] == "sleeper")
        assert "| goal |" in report.written(record.read([folder]), folder)
        assert ("it was stopped" in (folder / "told").read_text()) == (number == signal.SIGTERM)


FORKED = """
import os, signal, sys, time
from scripts.benchmarking.gpu import processes

told = []

def tell():
    if not told:
        told.append(os.kill(os.getpid(), signal.SIGTERM))
        time.sleep(0)  # here Python looks for signals

os.register_at_fork(**{sys.argv[1]: tell})
try:
    with processes.stoppable():
        processes.run(lambda: time.sleep(600), 20.0, lambda how, seconds: print(how, flush=True))
except processes.Stopped:
    print("it was stopped", flush=True)
"""


@pytest.mark.parametrize("when", ["after_in_parent", "after_in_child"])
def test_told_to_stop_while_it_forks(when: str) -> None:
    """What is raised in the hooks that Python runs around a fork is dropped."""
    done = run(["-c", FORKED], when)
    assert done.stderr == ""
    assert done.stdout.splitlines()[:1] == ["stopped"]
    assert ("it was stopped" in done.stdout) == (when == "after_in_parent")


def is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


CAREFUL = """
parent, place = os.getpid(), sys.argv[sys.argv.index("--output") + 1]

def touched(name, real):
    def call(*arguments, **options):
        if os.getpid() == parent:
            with open(place + ".touched", "a") as told:
                print(name, file=told)
        return real(*arguments, **options)
    return call

torch.cuda._lazy_init = touched("_lazy_init", torch.cuda._lazy_init)
torch.cuda.is_available = touched("is_available", lambda: True)  # which is what makes forks unable to
torch.cuda.device_count = touched("device_count", lambda: 1)
gpu.STEPS = (step(cells),)
try:
    script.main()
finally:
    # Libraries that transformers looks for; modules of these names lie in scripts/.
    print("imported:", {"kernels", "evaluate"} & sys.modules.keys())
"""


def test_the_command_itself_never_touches_cuda(tmp_path: Path) -> None:
    """Or none of its forks could."""
    output = tmp_path / "output"
    done = run_anew("-c", PLANTED + CAREFUL, "gpu", "--output", output, TRITON_INTERPRET="0")
    assert done.stdout.splitlines()[-1] == "imported: set()"
    assert [line["step"] for line in lines_of(output) if line["kind"] == "ended"] == ["card", "cells"]
    assert not (tmp_path / "output.touched").exists()


SPOILT = """
torch.cuda._is_in_bad_fork = lambda: True
gpu.CARD = dataclasses.replace(gpu.CARD, measure=300.0)  # on cores that others use too, importing again takes its time
sys.argv[1:1] = ["gpu"]
script.main()
"""


def test_a_step_that_cannot_be_a_fork_begins_anew(tmp_path: Path) -> None:
    options = ("--device", "cpu", "--tiny", "--output", tmp_path, "--steps", "sanitizer")
    done = run(["-c", PLANTED + SPOILT], *options)
    assert done.returncode == 0, done.stderr
    lines = lines_of(tmp_path)
    assert [line["how"] for line in lines if line["kind"] == "ended"] == ["done", "done"]
    assert {"card", "environment", "absent"} <= {line["kind"] for line in lines}
    assert done.stderr.count("CUDA was touched before the fork") == 2


# When


GUESSED_IMPORT = 12.0


def simulated(gpu: ModuleType, schedule: Any, room: float, slower: float) -> dict[str, tuple[float, int, int]]:
    """When each step had its last cell, the cells it had, and the batch of its training step, on a machine of which
    everything takes ``slower`` times as long to prepare as was guessed."""
    now, found = slower * GUESSED_IMPORT, {}

    def run(step: Any, limit: float) -> None:
        nonlocal now
        architecture = gpu.models.ARCHITECTURES.get(step.name)
        batch = gpu.models.batch_for(architecture.gib, room, 32) if architecture else 0
        moments = [slower * step.prepare + step.measure * (cell + 1) / step.cells for cell in range(step.cells)]
        had = [moment for moment in moments if moment <= limit]
        found[step.name] = (now + max(had, default=0.0), len(had), batch)
        now += min(limit, slower * step.prepare + step.measure)

    end = 8 * 60 - gpu._TABLES
    schedule([gpu.CARD, *gpu.STEPS], end, lambda: now, run, lambda step, _: found.setdefault(step.name, (now, 0, 0)))
    return found


@pytest.mark.parametrize("room", [78.0, 139.0])
def test_everything_eager_within_eight_minutes(gpu: ModuleType, room: float) -> None:
    slower = schedule.SLOWER
    assert slower == 3
    found = simulated(gpu, gpu.schedule, room, slower)
    needed = {step.name: step.cells for step in gpu.STEPS if step.needed and step.cells}
    assert list(needed) == [*gpu.MODELS, "kernels-bf16", "kernels-fp32"]
    for name, cells in needed.items():
        at, had, batch = found[name]
        assert had == cells
        assert at <= 8 * 60
        assert batch == (32 if name in gpu.MODELS else 0)
    as_guessed = simulated(gpu, gpu.schedule, room, 1.0)
    assert all(had == step.cells for step in gpu.STEPS[:10] for _, had, _ in [as_guessed[step.name]])


def test_what_is_needed_has_its_time_whatever_the_rest_takes(gpu: ModuleType) -> None:
    """Each may be killed at its limit, and the last one still begins in time."""
    limits = [step.limit for step in (gpu.CARD, *gpu.STEPS) if step.needed]
    assert 3 * GUESSED_IMPORT + sum(limits) <= 8 * 60 - gpu._TABLES
    first = [step.needed for step in gpu.STEPS]
    assert first == sorted(first, reverse=True)


def test_the_limits_are_those_of_the_page(gpu: ModuleType) -> None:
    text = (ROOT / "scripts" / "benchmarking" / "gpu" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+?)`.* \| ([\d, each]+) \|$", text, re.MULTILINE)
    shown = {name: [int(seconds) for seconds in re.findall(r"\d+", told)] for name, told in rows}
    limits: dict[str, list[float]] = {}
    for step in gpu.STEPS:
        limits.setdefault(step.name if step.name == "kernels-other" else step.group, []).append(step.limit)
    limits["smoke"][0] += gpu.CARD.limit
    limits["compiled"] = sorted(set(limits["compiled"]), reverse=True)
    assert shown == limits


@pytest.mark.parametrize(
    ("need", "room", "batch"), [(59, 78, 32), (71, 78, 32), (71, 70, 16), (71, 17, 4), (71, 0.1, 1)]
)
def test_the_batch_is_halved_until_it_fits(gpu: ModuleType, need: float, room: float, batch: int) -> None:
    assert gpu.models.batch_for(need, room, 32) == batch


# What it does where memory is short, and with Liger-Kernel


class Work:
    """What a step is given, without a process or a record."""

    def __init__(self) -> None:
        self.options = SimpleNamespace(device="cpu", seed=0, backend="none", tiny=True)
        self.failed: list[str] = []

    def fail(self, what: str, why: str) -> None:
        self.failed.append(f"{what}: {why}")

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:  # noqa: ARG002
        yield


def test_a_batch_without_memory_is_halved(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    models, work = gpu.models, Work()
    bench = models.Bench("gpt2", work, tiny=True)
    call = bench.call

    def small(variant: str, mode: str, batch: Mapping[str, Tensor]) -> Callable[[], Any]:
        if len(batch["input_ids"]) > 4 or (variant == "auto" and len(batch["input_ids"]) > 2):
            return lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("no more"))
        return call(variant, mode, batch)

    monkeypatch.setattr(bench, "call", small)
    monkeypatch.setattr(models, "TINY_SHAPES", {"large": (16, 8), "small": (1, 8)})
    cell = bench.cell("large", "training step", 1.0)
    assert (cell["batch"], cell["batch_asked"], cell["shape"]) == (4, 16, [4, 8])
    assert set(cell["variants"]) == {"eager", "again", "triton", "bound"}
    assert "OutOfMemoryError" in cell["absent"]["auto"]
    assert len(work.failed) == 1


@pytest.mark.parametrize(("name", "sites"), [("llama", 2), ("t5", 4)])
def test_models_are_patched_with_liger_where_it_is_there(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, sites: int
) -> None:
    models, liger = gpu.models, gpu.models.liger
    functions = {"silu": lambda gate, up: gate * up, "gelu_tanh": lambda gate, up: gate * up}
    monkeypatch.setattr(liger, "_imported", lambda: functions)
    assert liger.missing("cuda") is None
    assert liger.missing("cpu") == "Liger-Kernel runs on CUDA"
    known = set(IMPLEMENTATIONS)
    try:
        liger.register()
        liger.register()
        assert IMPLEMENTATIONS["liger"].gated["silu"] is functions["silu"]
        model = models.ARCHITECTURES[name].build("meta", torch.bfloat16, tiny=True)
        told = patch(model, implementation="liger")
        assert models.ARCHITECTURES[name].gated
        assert len([site for site in told.sites if site.implementation == "liger"]) == sites
    finally:
        for added in set(IMPLEMENTATIONS) - known:
            del IMPLEMENTATIONS[added]


def test_liger_that_cannot_be_imported_says_why(gpu: ModuleType) -> None:
    work = Work()
    bench = gpu.models.Bench("llama", work, tiny=True)
    assert "liger" not in bench.variants
    assert bench.absent["liger"].startswith("Liger-Kernel cannot be imported (pip install liger-kernel): No module")
    assert not work.failed


def test_variants_that_are_wrong_or_fail(gpu: ModuleType) -> None:
    y = torch.zeros(4)

    def launch(activation: str, variant: str | None) -> None:
        if variant == "broken":
            raise RuntimeError("out of registers")
        y.fill_(1.0 if activation == "gelu" else 0.0)
        if variant == "wrong":
            y[2] = 3.0

    kept, absent = gpu.variants.right(launch, [y], {name: name for name in ("fine", "broken", "wrong")})
    assert kept == {"fine": "fine"}
    assert absent["broken"] == "RuntimeError: out of registers"
    assert absent["wrong"].startswith("its results")


def test_tests_are_told_one_by_one(gpu: ModuleType, record: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest, warnings\n\npytestmark = pytest.mark.gpu\n\n\n"
        "@pytest.fixture\ndef broken():\n    raise ValueError\n\n\n"
        "@pytest.mark.parametrize('word', ['a b', 'c'])\ndef test_good(word):\n    warnings.warn(word)\n\n\n"
        "def test_bad():\n    assert 0\n\n\ndef test_never(broken):\n    pass\n\n\n"
        "def test_not():\n    pytest.skip('so')\n"
    )
    options = SimpleNamespace(device="cpu")
    step = gpu.Step("tests", "tests", gpu.gpu_tests, 1, 1)
    gpu.run_tests(gpu.Work(step, 60.0, gpu.Record(tmp_path), options), str(tmp_path / "test_some.py"))
    found = record.read([tmp_path])
    told = {line["test"].partition("::")[2]: line["outcome"] for line in found.of("test")}
    assert told == {
        **{"test_good[a b]": "passed", "test_good[c]": "passed", "test_bad": "failed", "test_never": "error"},
        "test_not": "skipped",
    }
    (log,) = found.of("log")
    assert any("assert 0" in line for line in log["lines"])
    assert "Tests: 2 passed, 2 failed, 1 skipped." in command.report.summary(found)
    gpu.run_tests(gpu.Work(step, 60.0, gpu.Record(tmp_path), options), str(tmp_path / "test_absent.py"))
    (failure,) = record.read([tmp_path]).of("failure")
    assert "pytest ran none" in failure["why"]


def test_a_test_that_hangs_has_a_name(gpu: ModuleType, report: ModuleType, put_together: Callable[..., Any]) -> None:
    read, write = os.pipe()
    begun, lines = [], []
    listened = gpu._lines(read, begun.append)
    for text in ("tests/a.py::test_one[a b] ", "PASSED  [ 50%]\nwarn", "ing\n", "tests/a.py::test_two "):
        os.write(write, text.encode())
        if "\n" in text:
            lines.append(next(listened))
    os.close(write)
    lines += listened
    os.close(read)
    assert lines == ["tests/a.py::test_one[a b] PASSED  [ 50%]", "warning", "tests/a.py::test_two "]
    assert begun[-1] == "tests/a.py::test_two"
    outcomes = [("test_one", "begun"), ("test_one", "passed"), ("test_two", "begun")]
    told = [{"kind": "test", "step": "tests", "test": test, "outcome": outcome} for test, outcome in outcomes]
    step = {"kind": "begun", "step": "tests", "limit": 50.0, "whole": 50.0, "guess": 8, "cells": 0}
    found = put_together([step, *told, {"kind": "ended", "step": "tests", "how": "overran its limit", "seconds": 50.0}])
    assert report.failures(found) == ["test test_two: did not end", "tests: overran its limit"]


# What is told

FASTER = {"value": 1.3, "low": 1.2, "high": 1.4}
EVEN = {"value": 1.0, "low": 0.9, "high": 1.1}


def kernel_cell(form: str, *, activation: str = "gelu", elements: int = 2**26) -> dict[str, Any]:
    def row(median: float, ratio: Any, verdict: str) -> dict[str, Any]:
        samples = [median * (1 + 0.001 * (number % 3 - 1)) for number in range(30)]
        told = {"share_of_copy": 0.94, "ratio": ratio, "verdict": verdict, "interpreted": False}
        return {"median_s": median, "samples_s": samples, **told}

    candidates = {"eager": row(8.0, None, ""), "aten": row(2.5, EVEN, "faster"), "triton": row(2.0, FASTER, "faster")}
    named = {"activation": activation, "form": form, "dtype": "bfloat16", "elements": elements}
    return {"kind": "cell", "step": "kernels-bf16", **named, "absent": {}, "candidates": candidates}


def model_cell(name: str, mode: str, size: str = "large", *, ratio: float = 1.04, **fields: Any) -> dict[str, Any]:
    rows = {"eager": {"median_s": 1.0, "peak_bytes": 2**31}}
    for variant, value in {"auto": 1.0, "triton": ratio}.items():
        ratios = {"value": value, "low": value, "high": value}
        rows[variant] = {"median_s": 1.0, "peak_bytes": 2**30, "base": "eager", "ratio": ratios, "verdict": "faster"}
    named = {"model": name, "size": size, "mode": mode, "compiled": False, "shape": [32, 512], "absent": {}}
    batches = {"batch": 32, "batch_asked": 32}
    return {"kind": "cell", "step": name, **named, **batches, "variants": rows, **fields}


def as_on(card: str, *lines: Mapping[str, Any], tiny: bool = False) -> list[Mapping[str, Any]]:
    """The lines of a run on that card."""
    about = {"kind": "environment", "gpu": card, "cpu": "some", "versions": {"torch": "2.11"}}
    named = {"kind": "card", "name": card, "free_gib": 78.0, "total_gib": 80.0}
    return [{"kind": "settings", "tiny": tiny}, named, about, *lines]


@pytest.fixture
def put_together(record: ModuleType, tmp_path: Path) -> Callable[..., Any]:
    """Records of these lines, each in a folder of its own, as one."""

    def together(*runs: Sequence[Mapping[str, Any]]) -> Any:
        folders = []
        for number, lines in enumerate(runs):
            folders.append(tmp_path / str(number))
            folders[-1].mkdir()
            told = [json.dumps({"at": float(second), **line}) + "\n" for second, line in enumerate(lines)]
            (folders[-1] / "gpu.jsonl").write_text("".join(told))
        return record.read(folders)

    return together


@pytest.mark.parametrize(
    ("card", "share", "over_aten"), [("NVIDIA H100 80GB HBM3", "missed", "no goal here"), ("NVIDIA H200", "met", "met")]
)
def test_goals_by_card(put_together: Callable[..., Any], card: str, share: str, over_aten: str) -> None:
    cells = [kernel_cell(form) for form in FORMS]
    large = [model_cell("bert", "forward", ratio=1.04), model_cell("llama", "training step", ratio=1.04)]
    found = put_together(as_on(card, *cells, *large, model_cell("gpt2", "forward", "small", ratio=0.97)))
    goals = {goal["goal"]: goal for goal in command.report.goals.outcomes(found)}
    assert len(goals) == 20
    for form in FORMS:
        goal = goals[f"kernels, {form.replace('_', ' ')}: share of a copy's bandwidth, the least"]
        assert (goal["measured"], goal["outcome"]) == (0.94, share)
    assert goals["exact GELU over F.gelu, backward"]["outcome"] == over_aten
    assert goals["exact GELU over F.gelu, backward"]["measured"] == 1.25
    assert goals["gated backward over eager"]["measured"] == 4.0
    assert goals["gelu_new over eager"]["outcome"] == "not measured"
    assert goals["BERT, 32 × 512, forward"]["outcome"] == "missed"
    assert goals["Llama, 32 × 512, training step"]["outcome"] == "met"
    assert goals["T5 v1.1, 32 × 512, forward"]["measured"] is None
    assert goals["1 × 128, triton, the least of all"]["measured"] == 0.97
    assert goals["1 × 128, auto, the least of all"]["measured"] == 1.0


@pytest.mark.parametrize(("card", "tiny"), [("NVIDIA H200", True), ("NVIDIA A100", False), ("CPU", False)])
def test_no_goals_but_for_a_card_that_has_some_at_full_size(
    put_together: Callable[..., Any], card: str, tiny: bool
) -> None:
    found = put_together(as_on(card, kernel_cell("forward"), tiny=tiny))
    assert {goal["outcome"] for goal in command.report.goals.outcomes(found)} == {"not measured"}


def test_what_auto_should_take(report: ModuleType, put_together: Callable[..., Any]) -> None:
    """By the rule of ``choices``: what was faster and never slower."""
    rows = {
        "triton": {"ratio": FASTER, "verdict": "faster"},
        "aten": {"ratio": EVEN, "verdict": "no difference detected"},
    }
    named = {"kind_of_site": "gated", "activation": "silu", "spelling": "silu", "dtype": "bfloat16", "ops": 1}
    cells = [
        {"kind": "site", **named, "size": size, "mode": mode, "variants": {"eager": {"median_s": 1.0}, **rows}}
        for size, mode in itertools.product(("large", "small"), ("forward", "training step"))
    ]
    told = report.summary(put_together(as_on("NVIDIA H200", *cells))).partition("What auto should take")[2]
    rows = told.partition("\n\n")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(rows) == 1
    assert rows[0].startswith("| gated | silu | 1 | bfloat16 | triton | triton | 1.30× (1.20–1.40) |")


def begun(step: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "begun", "step": step, "limit": 50.0, "whole": 50.0, "guess": 8, "cells": 4, **fields}


def ended(step: str, how: str) -> dict[str, Any]:
    return {"kind": "ended", "step": step, "how": how, "seconds": 1.5}


FIRST = (
    begun("gpt2"),
    model_cell("gpt2", "forward", ratio=1.1),
    model_cell("gpt2", "training step", ratio=1.2),
    {"kind": "failure", "step": "gpt2", "what": "a cell", "why": "broken"},
    ended("gpt2", "done"),
    begun("bert"),
    ended("bert", "overran its limit"),
    begun("llama", limit=20.0),
    ended("llama", "overran its limit"),
    {"kind": "left_out", "step": "tests", "why": "late"},
    begun("vit"),
)
AGAIN = (
    begun("gpt2"),
    model_cell("gpt2", "forward", ratio=1.5),
    ended("gpt2", "done"),
    {"kind": "left_out", "step": "vit", "why": "late"},
    begun("tests"),
    {"kind": "test", "step": "tests", "test": "test_one", "outcome": "failed"},
    ended("tests", "done"),
)


def test_what_failed(report: ModuleType, put_together: Callable[..., Any]) -> None:
    """To be killed because the minutes are over is no failure."""
    found = put_together(as_on("NVIDIA H200", *FIRST))
    assert report.failures(found) == ["gpt2: a cell", "bert: overran its limit", "vit: cut off"]
    told = report.summary(found)
    assert "| llama | out of time | 1.5 | 20 |" in told
    assert "| gpt2 | done | 1.5 | 50 | 8 | 1.0 | 2 of 4 |" in told
    assert "- tests: late" in told


def test_runs_put_together(report: ModuleType, put_together: Callable[..., Any]) -> None:
    """What was done again counts, the rest stays as it was."""
    found = put_together(as_on("NVIDIA H200", *FIRST), as_on("NVIDIA H200", *AGAIN))
    ratios = [cell["variants"]["triton"]["ratio"]["value"] for cell in found.models.values()]
    assert ratios == [1.5, 1.2]
    assert report.failures(found) == ["bert: overran its limit", "vit: cut off", "test test_one"]
    assert not found.of("left_out")


def test_another_card_is_refused(record: ModuleType, put_together: Callable[..., Any]) -> None:
    with pytest.raises(record.RecordError, match=r"recorded on NVIDIA H200, and what is before it on NVIDIA H100"):
        put_together(as_on("NVIDIA H100"), as_on("NVIDIA H200"))


def test_a_smaller_batch_is_told(report: ModuleType, put_together: Callable[..., Any]) -> None:
    told = report.summary(put_together(as_on("NVIDIA H100", model_cell("t5", "training step", batch=16))))
    assert "| t5 | 32 × 512 (batch 16 of 32: no memory for more) | training step | 1000.00 ms | 2.00 GiB |" in told
    assert "1.040× (1.040–1.040) faster, memory 0.500×" in told


def test_a_torn_record(record: ModuleType, tmp_path: Path) -> None:
    own = record.Record(tmp_path)
    for line in as_on("NVIDIA H200", begun("gpt2"), model_cell("gpt2", "forward")):
        own.write(**line)
    with own.path.open("ab") as file:
        file.write(b'{"kind": "cell", "model": "gpt2", "si')
    assert len(record.read([tmp_path]).models) == 1
    done = run(COMMAND, "report", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| gpt2 | cut off |" in done.stdout
    own.write(**model_cell("gpt2", "training step"))  # behind what is torn
    assert len(record.read([tmp_path]).models) == 2
    assert "no gpu.jsonl" in run(COMMAND, "report", tmp_path / "none").stderr
