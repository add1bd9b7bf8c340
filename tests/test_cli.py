"""The real command line in processes of its own: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import processes
import pytest

from hf_gelu_patch.cli import main
from hf_gelu_patch.evaluation import reference
from hf_gelu_patch.evaluation.reference import materialise
from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "evaluate.py"
BIN = Path(sys.executable).parent
COMMAND = ("-m", "hf_gelu_patch")
MODULE = ("-m", "hf_gelu_patch", "evaluate")
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if key not in ("TRITON_INTERPRET", "COLUMNS")},
    "OMP_NUM_THREADS": "1",
    "NO_COLOR": "1",
}
QUICK = ("--timing_seconds", "0.05")

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What Python does with these arguments, in a process that need not import torch again."""
    return processes.run(*words, cwd=cwd, env=ENVIRONMENT)


def start(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program from its very beginning."""
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
    return [variant["quality"] for model in found["models"] for variant in model["variants"]]


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
    [variant] = model["variants"]
    before, after = variant["quality"]["before"], variant["quality"]["after"]
    assert f"accuracy {before['accuracy']:.4f} → {after['accuracy']:.4f}" in printed
    assert f"{variant['quality']['flips']} of 37" in printed
    assert variant["quality"]["flips"] > 0
    assert f"{variant['speed']['forward']['ratio']['value']:.3f}×" in printed
    assert variant["speed"]["forward"]["verdict"] in printed
    assert variant["patch"]["summary"] in printed
    written = {path.name for path in (folder / "results").iterdir()}
    assert written == {*(f"evaluation.{kind}" for kind in ("json", "md", "html")), "model-card.md", "records"} | {
        f"{picture}.png" for picture in ("quality", "speed", "drift")
    }
    assert "gelu_new → relu_squared" in printed
    assert found["environment"]["processes"] == found["environment"]["threads"] == 1
    assert found["settings"]["batch_size"] == model["batch_size"] == 4


def test_piped_there_are_no_colours_and_no_bars(evaluated: tuple[Path, str, str]) -> None:
    _, printed, said = evaluated
    assert said.splitlines() == [f"[1/1] tiny: {stage}" for stage in ("load", "quality", "layers", "speed")]
    assert not set("\x1b\r") & set(printed + said)


@pytest.mark.slow
def test_on_a_terminal_there_is_a_bar(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    outer, inner = pty.openpty()
    command = (*COMMAND, "evaluate", "--model_name_or_path", checkpoint, "--validation_file", data, *QUICK)
    shown = b""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(
            processes.call,
            *command,
            cwd=tmp_path,
            env={**ENVIRONMENT, "TERM": "xterm"},
            stdout=tmp_path / "stdout",
            stderr=Path(os.ttyname(inner)),
        )
        done.add_done_callback(lambda _: os.close(inner))
        try:
            while chunk := os.read(outer, 4096):
                shown += chunk
        except OSError:  # how a terminal says that the other side is gone
            pass
    os.close(outer)
    assert done.result() == 0
    assert "━" in shown.decode()
    assert b"tiny: speed" in shown


@pytest.mark.slow
def test_an_id_on_the_hub_is_taken_from_its_cache(
    evaluated: tuple[Path, str, str], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    cached = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(checkpoint, cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    model = ("--model_name_or_path", "someone/tiny", "--validation_file", data, "--activation", "relu_squared")
    command = (sys.executable, *COMMAND, "evaluate", *model, "--per_device_eval_batch_size", 4, *QUICK)
    done = start(*command, cwd=tmp_path, HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert quality(tmp_path / "results") == quality(evaluated[0] / "results")


@pytest.mark.slow
def test_two_processes_find_the_same_to_the_last_digit(
    evaluated: tuple[Path, str, str], checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    """37 examples of odd lengths in batches of 4, so that the last one is short and one process has more."""
    done = start(
        BIN / "torchrun",
        "--standalone",
        "--nproc_per_node",
        2,
        *MODULE,
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
    assert done.stdout.count("written to results") == 1
    found = json.loads((tmp_path / "results" / "evaluation.json").read_text(encoding="utf-8"))
    assert found["environment"]["processes"] == 2


@pytest.mark.slow
def test_two_processes_of_accelerate_on_the_reference_models(tmp_path: Path) -> None:
    models = [word for name in ("gpt2", "t5") for word in ("--model_name_or_path", name)]
    arguments = (*models, "--limit", 37, "--per_device_eval_batch_size", 8, *QUICK)
    # In the script's own folder it must not pass for the library of its name.
    one = start(sys.executable, SCRIPT.name, *arguments, "--output_dir", tmp_path / "one", cwd=SCRIPT.parent)
    assert one.returncode == 0, one.stderr
    two = start(
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
        *MODULE,
        *arguments,
        *("--output_dir", "two", "--num_processes", 2),
        cwd=tmp_path,
    )
    assert two.returncode == 0, two.stderr
    assert quality(tmp_path / "one") == quality(tmp_path / "two")
    assert [found["examples"] for found in quality(tmp_path / "two")] == [37, 37]


def test_one_process_instead_of_two_is_refused(tmp_path: Path) -> None:
    done = run(SCRIPT, "--num_processes", 2, cwd=tmp_path)
    assert done.returncode == 1
    assert "1 process was started, and 2 asked for" in done.stderr
    assert "torchrun" in done.stderr


@pytest.mark.slow
def test_torchrun_that_starts_one_of_two_is_refused(tmp_path: Path) -> None:
    launch = (BIN / "torchrun", "--standalone", "--nproc_per_node", 1)
    done = run(*launch, SCRIPT, "--num_processes", 2, cwd=tmp_path)
    assert done.returncode == 1
    assert "1 process was started, and 2 asked for" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("what", [(SCRIPT,), MODULE], ids=["script", "module"])
@pytest.mark.parametrize("how", ["option", "config"])
def test_accelerate_launch_that_starts_one_of_two_is_refused(how: str, what: Sequence[object], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nnum_machines: 1\nuse_cpu: true\n")
    options = ("--cpu", "--num_processes", 2) if how == "option" else ("--config_file", config)
    done = start(BIN / "accelerate", "launch", *options, *what, cwd=tmp_path)
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
    (["--labels", "positions"], 2, ["names", "ids", "vector"]),
    (["--threshold", "nan"], 2, ["--threshold", "finite number"]),
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
    assert (
        "+    hidden_states = linear_act(patched_gelu_tanh(self.intermediate_act_fn), self.dense, hidden_states)"
        in done.stdout
    )
    done = run(*COMMAND, "sites", "./nowhere", cwd=tmp_path)
    refused(done, 1, "no model folder")


def test_sites_beside_other_tools(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sites", "gpt2", "--beside", "kernels, liger"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\n +3 × GPT2MLP.act .*\n +kernels: NewGELU → kernels-community/activation", out)
    assert re.search(
        r"\n  liger \(Liger-Kernel.*: (it is not installed: pip install|it has nothing for the model)", out
    )
    assert main(["sites", "gpt2", "--beside", "liger,kernel"]) == 1
    assert "unknown tool 'kernel'. Did you mean 'kernels'?" in capsys.readouterr().err


def test_sites_of_a_packaged_model_read_none_of_its_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[str] = []
    hashed = reference.sha256
    for module in (reference, materialise):
        monkeypatch.setattr(module, "sha256", lambda path: (read.append(path.name), hashed(path))[1])
    assert main(["sites", "bert"]) == 0
    assert "activation sites would be patched" in capsys.readouterr().out
    assert read == ["config.json"]


def test_help_has_examples_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from hf_gelu_patch.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print([name for name in ('transformers', 'datasets', 'evaluate', 'accelerate', 'triton', 'rich')"
        " if name in sys.modules])"
    )
    for command in ("evaluate", "sites", "report"):
        done = start(sys.executable, "-c", code, command, "--help", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"hf-gelu-patch {command}" in done.stdout
        assert "examples:" in done.stdout
        assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_the_benchmark_of_patching_keeps_every_sample(tmp_path: Path) -> None:
    command = ("-m", "scripts.benchmarking", "patching", "--processes", "1", "--rounds", "2")
    done = run(*command, "--output", tmp_path / "times.json", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["gpt2", "llama-405b"]
    written = json.loads((tmp_path / "times.json").read_text())
    assert {"python", "torch", "transformers"} <= set(written["environment"]["versions"])
    for model in ("gpt2", "llama-405b"):
        samples = written["patching"][model]["samples_ms"]
        assert {name: len(values) for name, values in samples.items()} == {"first": 1, "again": 2, "undo": 3}
        assert min(value for values in samples.values() for value in values) > 0


# ------------------------------------------------------------------------------------------- several variants, and more


@pytest.fixture(scope="module")
def several(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Options from a file, one of which the command line overrides: the folder, and what was printed."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "night.yaml").write_text(
        f"model-name-or-path: {checkpoint}\nvalidation_file: {data}\nlimit: 5\nmargin: 0.5\nskip-bad-rows: true\n"
        f"timing_seconds: {QUICK[1]}\nvariant:\n  - aten\n  - activation: relu_squared\n    include: ['*layer.0*']\n"
    )
    done = run(*COMMAND, "evaluate", "--config", "night.yaml", "--limit", 20, "--no-color", cwd=folder)
    assert done.returncode == 2, "there is no such option"
    done = run(*COMMAND, "evaluate", "--config", "night.yaml", "--limit", 20, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_variants_from_a_file_in_one_table(several: tuple[Path, str]) -> None:
    folder, printed = several
    found = json.loads((folder / "results" / "evaluation.json").read_text(encoding="utf-8"))
    assert found["settings"]["limit"] == 20
    assert found["settings"]["skip_bad_rows"] is True
    [model] = found["models"]
    assert [one["name"] for one in model["variants"]] == ["aten", "activation=relu_squared,include=*layer.0*"]
    assert [one["quality"]["examples"] for one in model["variants"]] == [20, 20]
    assert [one["quality"]["margin"] for one in model["variants"]] == [0.5, 0.5]
    assert "include=*layer.0*" in printed
    assert "tiny, aten: " in printed
    assert "tiny, activation=relu_squared,include=*layer.0*: " in printed
    assert not (folder / "results" / "earlier").exists()
    [records] = (folder / "results" / "records" / "tiny").iterdir()
    assert len(records.read_text().splitlines()) == 1 + 3 * 20


def test_what_is_complete_is_not_run_again(several: tuple[Path, str]) -> None:
    folder, _ = several
    before = quality(folder / "results")
    [records] = (folder / "results" / "records" / "tiny").iterdir()
    content = records.read_bytes()
    done = run(*COMMAND, "evaluate", "--config", "night.yaml", "--limit=20", "--resume", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert quality(folder / "results") == before
    assert records.read_bytes() == content
    done = run(*COMMAND, "evaluate", "--config", "night.yaml", "--resume", cwd=folder)
    refused(done, 1, "limit 20 there, 5 now", "--resume")
    assert records.read_bytes() == content


def test_reports_once_more_and_together(several: tuple[Path, str], evaluated: tuple[Path, str, str]) -> None:
    folder, _ = several
    page = (folder / "results" / "evaluation.html").read_bytes()
    done = run(*COMMAND, "report", "results", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "results" / "evaluation.html").read_bytes() == page
    done = run(*COMMAND, "report", "results", evaluated[0] / "results", cwd=folder)
    refused(done, 1, "--output_dir")
    done = run(*COMMAND, "report", "results", evaluated[0] / "results", "--output-dir", "both", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "evaluation.html" in done.stdout
    assert len(quality(folder / "both")) == 3
    done = run(*COMMAND, "report", "nowhere", cwd=folder)
    refused(done, 1, "no results in nowhere")


def test_a_wrong_implementation_fails_the_run(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    code = (
        "import sys, torch\n"
        "from hf_gelu_patch import Implementation, register_implementation\n"
        "from hf_gelu_patch.cli import main\n"
        "wrong = lambda x: torch.nn.functional.gelu(x, approximate='tanh') * 1.05\n"
        "register_implementation(Implementation('wrong', {'gelu_tanh': wrong}))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    model = ("--model_name_or_path", checkpoint, "--validation_file", data, "--include", "*intermediate*")
    done = run("-c", code, "evaluate", *model, "--implementation", "wrong", *QUICK, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "hf-gelu-patch: wrong implementation: tiny, wrong,include=*intermediate*: it is said" in done.stderr
    assert "WRONG IMPLEMENTATION" in done.stdout
    [variant] = json.loads((tmp_path / "results" / "evaluation.json").read_text())["models"][0]["variants"]
    assert variant["wrong"]


def test_rows_left_out_are_counted_and_named(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("text,label\nw1 w2,yes\nw3,maybe\nw1,no\n,yes\n")
    model = ("--model_name_or_path", checkpoint, "--validation_file", "bad.csv")
    done = run(*COMMAND, "evaluate", *model, *QUICK, cwd=tmp_path)
    refused(done, 1, "bad.csv", "row 2", "'maybe'", "--skip_bad_rows")
    done = run(*COMMAND, "evaluate", *model, "--skip-bad-rows", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [model_] = json.loads((tmp_path / "results" / "evaluation.json").read_text())["models"]
    assert [row for row, _ in model_["skipped"]] == [2, 4]
    assert "tiny: 2 left out: row 2" in (tmp_path / "results" / "evaluation.md").read_text()
    assert "rows left out: 2 " in done.stdout
    assert "tiny: 2 left out: row 2 has the label 'maybe'" in done.stdout, "whoever looks at the figures alone sees it"


def test_a_dry_run_loads_no_weights_and_writes_nothing(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    command = ("--model_name_or_path", folder, "--validation_file", data, "--variant", "aten", "--limit", 7)
    more = ("--variant", "activation=silu", "--dtype", "bfloat16", "--torch_compile", "--dry-run")
    done = run(*COMMAND, "evaluate", *command, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tiny (--dtype bfloat16 --torch_compile)\n" in done.stdout
    for said in ("tiny: text-classification", "text, label", "gelu_new → silu", "first 7", "evaluation.json"):
        assert said in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    (tmp_path / "a.yaml").write_text("variant: [aten, activation=relu]\nlimit: 5\nmodel_name_or_path: ./nowhere\n")
    done = run(*COMMAND, "evaluate", *command[:4], "--config=a.yaml", "--activation=mish", "--dry_run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "gelu_new → mish" in done.stdout
    assert "first 5" in done.stdout
    assert "relu" not in done.stdout, "how to patch is one matter, and the command line spoke of it"


def test_listings(tmp_path: Path) -> None:
    done = run(*COMMAND, "tasks", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for task in ("text-classification", "sentence-similarity", "masked-lm", "causal-lm", "seq2seq", "feature-drift"):
        assert f"{task}: " in done.stdout
    done = run(*COMMAND, "implementations", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "here (cpu): available" in done.stdout
    assert "not available" in done.stdout, "triton"


def test_without_a_network_the_remedy_comes_at_once(tmp_path: Path) -> None:
    """Importing torch and transformers takes longer than to be refused; so neither is."""
    code = "import sys; from hf_gelu_patch.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    for named in (("someone/model",), ("gpt2", "--validation_file", "someone/data"), ("gpt2", "--metric", "rouge")):
        done = start(sys.executable, "-c", code, "evaluate", "--model_name_or_path", *named, cwd=tmp_path)
        assert done.stdout == "1 False\n", done.stderr
        assert "--allow_download" in done.stderr


BAD: list[tuple[str, Sequence[str]]] = [
    ("", ["no option"]),
    ("limits: 3", ["no option limits", "Valid: "]),
    ("limit: [1, 2]", ["limit 2 values"]),
    ("limit: {a: 1}", ["a text or a number"]),
    ("{", ["cannot be read"]),
    ("variant: [aten, aten]", ["named 2 times"]),
    ("variant: colour=red", ["no 'colour'", "activation=…"]),
]


@pytest.mark.parametrize(("content", "said"), BAD)
def test_a_config_that_makes_no_sense(content: str, said: Sequence[str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(content)
    refused(run(*COMMAND, "evaluate", "--config", "a.yaml", cwd=tmp_path), 1, *said)


def test_what_nobody_thought_of_is_told_without_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which is kept in a file, for whoever mends it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setitem(IMPLEMENTATIONS, "broken", None)
    assert main(["implementations"]) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert "hf-gelu-patch: error: AttributeError: 'NoneType' object" in said.err
    [kept] = tmp_path.iterdir()
    assert str(kept) in said.err
    assert kept.read_text().startswith("Traceback")


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    done = start(sys.executable, "-m", "hf_gelu_patch", "evaluate", "--task", "depth-estimation", cwd=tmp_path)
    refused(done, 1, "unknown task 'depth-estimation'. Tasks: text-classification", "Python file of your own")
