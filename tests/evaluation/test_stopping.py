"""What a run tells of itself where nobody watches it on a terminal, and when it is stopped."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path

import processes
import pytest

from hf_gelu_patch.cli import evaluate, finetune, main, profile
from hf_gelu_patch.cli.interruption import how_to_go_on
from hf_gelu_patch.cli.progress import Lines

STAGES = ("load", "quality", "speed")
QUICK = ("--timing_seconds", "0.05", "--per_device_eval_batch_size", "4")
ENVIRONMENT = {**{key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}, "OMP_NUM_THREADS": "1"}

# A run that a signal reaches once it has recorded three batches, or made three steps.
STOPPED = """
import os, sys
from hf_gelu_patch.cli import main
from hf_gelu_patch.evaluation.records import Writer
from hf_gelu_patch.finetuning.learner import Learner

def thrice(method):
    calls = []
    def counted(*given):
        found = method(*given)
        calls.append(given)
        if len(calls) == 3:
            os.kill(os.getpid(), int(sys.argv[1]))
        return found
    return counted

Writer.append, Learner.step = thrice(Writer.append), thrice(Learner.step)
sys.exit(main(sys.argv[2:]))
"""


def test_a_line_every_half_minute_says_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    lines = Lines(3, STAGES, lambda: now)

    def after(seconds: float, stage: str, share: float) -> str:
        nonlocal now
        now += seconds
        tell(stage, share)
        return capsys.readouterr().err

    tell = lines("bert")
    assert after(0, "load", 0) == "[1/3] bert: load\n"
    assert after(40, "load", 1) == "[1/3] bert: load 100%; then quality, speed, 2 more models\n"
    assert after(0, "quality", 0.2) == "[1/3] bert: quality\n"  # a run that goes on, with a fifth done
    assert after(29, "quality", 0.3) == ""
    assert after(1, "quality", 0.3) == (
        "[1/3] bert: quality 30%, about 4 min left; then speed, 2 more models\n"  # 30 s for a tenth
    )
    assert after(29, "quality", 0.4) == ""
    assert after(7_141, "quality", 0.5) == "[1/3] bert: quality 50%, about 3 h left; then speed, 2 more models\n"
    assert after(1, "speed", 0) == "[1/3] bert: speed\n"
    assert after(30, "speed", 0) == "[1/3] bert: speed 0%; then 2 more models\n"
    tell = lines("vit")
    assert after(0, "speed", 0) == "[2/3] vit: speed\n"
    assert after(60, "speed", 0.5) == "[2/3] vit: speed 50%, about 60 s left; then 1 more model\n"
    tell = lines("gpt2")
    assert after(0, "speed", 0) == "[3/3] gpt2: speed\n"
    assert after(60, "speed", 0.75) == "[3/3] gpt2: speed 75%, about 20 s left\n"


def test_the_command_to_go_on_is_the_one_that_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    resume = evaluate.COMMAND.resuming({})
    monkeypatch.setattr("sys.argv", ["/some/where/hf-gelu-patch"])
    assert how_to_go_on(["evaluate", "--output_dir", "a b"], resume) == (
        ". To go on with it:\n  hf-gelu-patch evaluate --output_dir 'a b' --resume"
    )
    monkeypatch.setattr("sys.argv", ["/some/where/hf_gelu_patch/__main__.py"])
    assert how_to_go_on(["evaluate", "--resume"], resume).endswith("\n  python -m hf_gelu_patch evaluate --resume")
    monkeypatch.setenv("RANK", "0")
    assert how_to_go_on(["evaluate"], resume).endswith(", start it again as you did, with --resume")
    monkeypatch.setenv("RANK", "1")
    assert how_to_go_on(["evaluate"], resume) == ""


def test_what_cannot_go_on_is_told_no_command() -> None:
    assert evaluate.COMMAND.resuming({"dry_run": True}) == ()
    assert evaluate.COMMAND.resuming({"task": "lm_eval:arc_easy"}) == ()
    assert evaluate.COMMAND.resuming({"task": "causal-lm"}) == ("--resume",)
    assert profile.COMMAND.resuming({}) == ()
    assert finetune.COMMAND.resuming({}) == ("--resume_from_checkpoint", "latest")
    assert how_to_go_on(["profile"], profile.COMMAND.resuming({})) == ""


def stopped(number: signal.Signals, asked: list[object], folder: Path) -> tuple[int, list[str]]:
    """The exit status of a command that a signal reaches, and the words of the one that goes on with it."""
    done = processes.run("-c", STOPPED, int(number), *asked, cwd=folder, env=ENVIRONMENT)
    *_, said, command = done.stderr.splitlines()
    assert said == "hf-gelu-patch: interrupted. To go on with it:"
    program, *words = shlex.split(command)
    assert program == "hf-gelu-patch"
    assert words[: len(asked)] == [str(word) for word in asked]
    return done.returncode, words


@pytest.mark.slow
def test_an_evaluation_that_is_interrupted_says_how_to_go_on(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["evaluate", "--model_name_or_path", checkpoint, "--validation_file", data, "--output_dir", "a b", *QUICK]
    status, words = stopped(signal.SIGINT, asked, tmp_path)
    assert status == 130
    assert words[len(asked) :] == ["--resume"]
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--dry_run"]) == 0


@pytest.mark.slow
def test_a_training_that_is_terminated_says_how_to_go_on(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    asked = ["finetune", "--model_name_or_path", checkpoint, "--validation_file", data, "--train_file", data]
    asked += ["--max_train_steps", 5, "--output_dir", "a b"]
    status, words = stopped(signal.SIGTERM, asked, tmp_path)
    assert status == -signal.SIGTERM
    assert words[len(asked) :] == ["--resume_from_checkpoint", "latest"]
