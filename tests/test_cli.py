"""The real command line in processes of its own: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_classifier import write_checkpoint, write_data

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "evaluate.py"
BIN = Path(sys.executable).parent
COMMAND = (sys.executable, "-m", "hf_gelu_patch.cli")
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "COLUMNS")},
    "OMP_NUM_THREADS": "1",
    "NO_COLOR": "1",
}
QUICK = ("--timing_seconds", "0.05")

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def run(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def quality(folder: Path) -> list[dict[str, Any]]:
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return [model["quality"] for model in found["models"]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data.csv")


@pytest.fixture(scope="module")
def evaluated(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """One evaluation with options spelled in both ways: the folder it ran in, its output and its messages."""
    folder = tmp_path_factory.mktemp("evaluated")
    done = run(
        *COMMAND,
        "evaluate",
        "--model-name-or-path",
        checkpoint,
        f"--validation-file={data}",
        "--activation",
        "relu_squared",
        "--per-device-eval-batch-size",
        4,
        *QUICK,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


def test_table_and_json_say_the_same(evaluated: tuple[Path, str, str]) -> None:
    folder, printed, _ = evaluated
    found = json.loads((folder / "results" / "evaluation.json").read_text(encoding="utf-8"))
    [model] = found["models"]
    before, after = model["quality"]["before"], model["quality"]["after"]
    assert f"accuracy {before['accuracy']:.4f} → {after['accuracy']:.4f}" in printed
    assert f"{model['quality']['flips']} of 37" in printed
    assert model["quality"]["flips"] > 0
    assert f"{model['speed']['ratio']['value']:.3f}×" in printed
    assert model["speed"]["verdict"] in printed
    assert model["patch"]["summary"] in printed
    assert "gelu_new → relu_squared" in printed
    assert found["environment"]["processes"] == found["environment"]["threads"] == 1
    assert found["settings"]["batch_size"] == model["batch_size"] == 4


def test_piped_there_are_no_colours_and_no_bars(evaluated: tuple[Path, str, str]) -> None:
    _, printed, said = evaluated
    assert said.splitlines() == ["[1/1] tiny: load", "[1/1] tiny: quality", "[1/1] tiny: speed"]
    assert not set("\x1b\r") & set(printed + said)


def test_on_a_terminal_there_is_a_bar(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    outer, inner = pty.openpty()
    command = [*COMMAND, "evaluate", "--model_name_or_path", checkpoint, "--validation_file", data, *QUICK]
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=tmp_path,
        env={**ENVIRONMENT, "TERM": "xterm"},
        stdout=subprocess.DEVNULL,
        stderr=inner,
    )
    os.close(inner)
    shown = b""
    try:
        while chunk := os.read(outer, 4096):
            shown += chunk
    except OSError:  # how a terminal says that the other side is gone
        pass
    os.close(outer)
    assert process.wait(timeout=60) == 0
    assert "━" in shown.decode()
    assert b"tiny: speed" in shown


def test_an_id_on_the_hub_is_taken_from_its_cache(
    evaluated: tuple[Path, str, str], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    cached = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(checkpoint, cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    model = ("--model_name_or_path", "someone/tiny", "--validation_file", data, "--activation", "relu_squared")
    done = run(
        *COMMAND, "evaluate", *model, "--per_device_eval_batch_size", 4, *QUICK, cwd=tmp_path, HF_HOME=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert quality(tmp_path / "results") == quality(evaluated[0] / "results")


def test_two_processes_find_the_same_to_the_last_digit(
    evaluated: tuple[Path, str, str], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    """37 examples of odd lengths in batches of 4, so that the last one is short and one process has more."""
    done = run(
        BIN / "torchrun",
        "--standalone",
        "--nproc_per_node",
        2,
        SCRIPT,
        "--num_processes",
        2,
        "--model_name_or_path",
        checkpoint,
        "--validation_file",
        data,
        "--activation",
        "relu_squared",
        "--per_device_eval_batch_size",
        4,
        *QUICK,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert quality(tmp_path / "results") == quality(evaluated[0] / "results")
    assert done.stderr.count("tiny: load") == 1, "only the main process reports"
    assert done.stdout.count("accuracy") == 1
    found = json.loads((tmp_path / "results" / "evaluation.json").read_text(encoding="utf-8"))
    assert found["environment"]["processes"] == 2


def test_two_processes_of_accelerate_on_the_reference_models(tmp_path: Path) -> None:
    models = [word for name in ("gpt2", "t5") for word in ("--model_name_or_path", name)]
    arguments = (*models, "--limit", 37, "--per_device_eval_batch_size", 8, *QUICK)
    one = run(sys.executable, SCRIPT, *arguments, "--output_dir", "one", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    two = run(
        BIN / "accelerate",
        "launch",
        *(
            "--multi_gpu",
            "--num_processes",
            2,
            "--num_machines",
            1,
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
        ),
        *("--main_process_port", 0),
        SCRIPT,
        *arguments,
        *("--output_dir", "two", "--num_processes", 2),
        cwd=tmp_path,
    )
    assert two.returncode == 0, two.stderr
    assert quality(tmp_path / "one") == quality(tmp_path / "two")
    assert [found["examples"] for found in quality(tmp_path / "two")] == [37, 37]


def test_one_process_instead_of_two_is_refused(tmp_path: Path) -> None:
    done = run(sys.executable, SCRIPT, "--num_processes", 2, cwd=tmp_path)
    assert done.returncode == 1
    assert "1 process was started, and 2 asked for" in done.stderr
    assert "torchrun" in done.stderr


@pytest.mark.parametrize("how", ["option", "config"])
def test_accelerate_launch_that_starts_one_of_two_is_refused(how: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nnum_machines: 1\nuse_cpu: true\n")
    options = ("--cpu", "--num_processes", 2) if how == "option" else ("--config_file", config)
    done = run(BIN / "accelerate", "launch", *options, SCRIPT, cwd=tmp_path)
    assert done.returncode != 0
    assert "1 process was started, and 2 asked for" in done.stderr


def refused(done: subprocess.CompletedProcess[str], status: int, *said: str) -> None:
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if not re.match(r"\[1/1\] |usage: | {10,}", line)]
    assert 1 <= len(errors) <= 2, done.stderr
    for words in said:
        assert words in done.stderr


NAMES: list[tuple[Sequence[str], int, Sequence[str]]] = [
    (["--model_name_or_path", "./nowhere"], 1, ["no model folder ./nowhere", "bert, gpt2"]),
    (["--model_name_or_path", "gtp2"], 1, ["Did you mean 'gpt2'", "--allow_download"]),
    (["--model_name_or_path", "gpt2", "--validation_file", "gone.csv"], 1, ["no data file gone.csv"]),
    (["--model_name_or_path", "gpt2", "--validation_file", "data.xls"], 1, ["no data file", "--validation_file"]),
    (["--implementation", "cuda"], 1, ["unknown implementation 'cuda'", "aten", "triton"]),
    (["--activation", "gulu"], 1, ["unknown activation 'gulu'", "Did you mean 'gelu'"]),
    (["--task", "classification"], 1, ["unknown task", "text-classification"]),
    (["--limit", "0"], 2, ["--limit", "1 or more"]),
    (["--limit", "all"], 2, ["'all' is no whole number"]),
    (["--timing_seconds", "0"], 2, ["--timing_seconds"]),
    (["--output_dir", "file/results"], 1, ["cannot be written", "--output_dir"]),
    (["--modle_name_or_path", "gpt2"], 2, ["--modle_name_or_path"]),
    (["--dtype", "int8"], 2, ["float32"]),
]


@pytest.mark.parametrize(("arguments", "status", "said"), NAMES, ids=[" ".join(case[0]) for case in NAMES])
def test_a_name_that_cannot_be_used(arguments: Sequence[str], status: int, said: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run(*COMMAND, "evaluate", *arguments, cwd=tmp_path), status, *said)


def test_an_include_pattern_that_matches_nothing(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    model = ("--model_name_or_path", checkpoint, "--validation_file", data)
    done = run(*COMMAND, "evaluate", *model, "--include", "decoder.*", cwd=tmp_path)
    refused(done, 1, "'decoder.*' matches no site", "bert.encoder.layer.0")


def test_an_implementation_that_cannot_run_here(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    model = ("--model_name_or_path", checkpoint, "--validation_file", data)
    done = run(*COMMAND, "evaluate", *model, "--implementation", "triton", cwd=tmp_path)
    refused(done, 1, "'triton' cannot run", "eager, aten")


def test_columns_and_labels_that_are_not_there(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "columns.csv").write_text("sentence,label\nw1 w2,yes\n")
    (tmp_path / "labels.csv").write_text("text,label\nw1 w2,yes\nw3,maybe\n")
    model = ("--model_name_or_path", checkpoint)
    done = run(*COMMAND, "evaluate", *model, "--validation_file", "columns.csv", cwd=tmp_path)
    refused(done, 1, "no column 'text'", "it has: sentence, label", "--input_column")
    done = run(*COMMAND, "evaluate", *model, "--validation_file", "labels.csv", cwd=tmp_path)
    refused(done, 1, "row 2 has the label 'maybe'", "0 (no), 1 (yes)")


def test_a_corrupt_checkpoint(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corrupt"
    folder.mkdir()
    for file in checkpoint.iterdir():
        content = file.read_bytes()
        (folder / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)
    done = run(*COMMAND, "evaluate", "--model_name_or_path", folder, "--validation_file", data, cwd=tmp_path)
    refused(done, 1, "cannot be loaded", "fetch the checkpoint again")


def test_a_model_without_data(checkpoint: Path, tmp_path: Path) -> None:
    done = run(*COMMAND, "evaluate", "--model_name_or_path", checkpoint, cwd=tmp_path)
    refused(done, 1, "--validation_file FILE", "text, label")


def test_sites_are_printed_without_loading_weights(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    done = run(*COMMAND, "sites", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 activation sites would be patched" in done.stdout
    assert "gelu_new → gelu_tanh" in done.stdout
    assert "+++" not in done.stdout
    done = run(*COMMAND, "sites", tmp_path, "--diff", cwd=tmp_path)
    assert "+    hidden_states = linear_act(self.intermediate_act_fn, self.dense, hidden_states)" in done.stdout
    done = run(*COMMAND, "sites", "./nowhere", cwd=tmp_path)
    refused(done, 1, "no model folder")


def test_help_has_examples_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from hf_gelu_patch.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print([name for name in ('transformers', 'datasets', 'evaluate', 'accelerate', 'triton', 'rich')"
        " if name in sys.modules])"
    )
    for command in ("evaluate", "sites"):
        done = run(sys.executable, "-c", code, command, "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"hf-gelu-patch {command}" in done.stdout
        assert "examples:" in done.stdout
        assert done.stdout.splitlines()[-1] == "[]"


def test_the_benchmark_of_patching_keeps_every_sample(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "scripts" / "benchmark.py"
    command = (sys.executable, script, "patching", "--processes", "1", "--rounds", "2", "--output", "times.json")
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["gpt2", "llama-405b"]
    written = json.loads((tmp_path / "times.json").read_text())
    assert set(written["environment"]) == {"python", "torch", "transformers", "machine"}
    for model in ("gpt2", "llama-405b"):
        samples = written["patching"][model]["samples_ms"]
        assert {name: len(values) for name, values in samples.items()} == {"first": 1, "again": 2, "undo": 3}
        assert min(value for values in samples.values() for value in values) > 0
