"""The README's code runs as it stands there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import transformers

from hf_gelu_patch import IMPLEMENTATIONS
from hf_gelu_patch.evaluation.reference import REFERENCES

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def _models_by_their_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of a model's name in the working directory is what from_pretrained loads."""
    shutil.copytree(REFERENCES["gpt2"].model_path(), tmp_path / "openai-community" / "gpt2")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_models_by_their_hub_names")
def test_every_block_runs(capsys: pytest.CaptureFixture[str]) -> None:
    transformers.logging.set_verbosity_error()
    assert len(BLOCKS) >= 3
    names: dict[str, object] = {}
    known = set(IMPLEMENTATIONS)
    try:
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"README.md, block {number + 1}", "exec"), names)
    finally:
        for added in set(IMPLEMENTATIONS) - known:
            del IMPLEMENTATIONS[added]
    printed = capsys.readouterr().out
    assert "3 × GPT2MLP.act  gelu_new → gelu_tanh  aten, rounding; 8 aten ops become one" in printed
    shown = re.findall(r"^# > (.*)$", "\n".join(BLOCKS), re.MULTILINE)
    assert len(shown) == 2
    assert all(line in printed for line in shown)


@pytest.mark.parametrize("name", REFERENCES)
def test_the_qualities_shown_are_those_recorded(name: str) -> None:
    (row,) = re.findall(rf"^\| {name}<br>.*$", README.read_text(encoding="utf-8"), re.MULTILINE)
    for metric, value in REFERENCES[name].quality.items():
        assert f"{metric.replace('_', ' ')} {value:.4f} → {value:.4f}" in row
