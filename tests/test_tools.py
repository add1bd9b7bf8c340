"""What other tools and a patch do to each other, with the tools that there are here; and
whatever would be wrong is seen."""

from __future__ import annotations

import copy
import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import hf_gelu_patch
from scripts.benchmarking.tools import __main__ as SCRIPT
from scripts.benchmarking.tools import catalogue, judging, table
from scripts.benchmarking.tools.judging import Tool, Used
from scripts.benchmarking.tools.subjects import SUBJECTS, Subject

pytestmark = pytest.mark.slow

FOLDER = Path(table.__file__).parent

RECORDED = json.loads((FOLDER / "tools.json").read_text(encoding="utf-8"))


def found_of(tool: Tool, *names: str) -> dict[str, Any]:
    """What the script finds of a tool on some models."""
    warnings.simplefilter("ignore")  # of the tools themselves
    return judging.examined(replace(tool, subjects=tuple(SUBJECTS[name] for name in names)))


# Beside what test_wrappers and test_binding have, which look closer at fewer.
HERE = {
    "copy.copy, module by module": ("gpt2", "xlm"),
    "nn.DataParallel's replicas": ("llama", "plain"),
    "swa_utils.AveragedModel": ("bert", "plain"),
    "Module.to_empty, load_state_dict": ("gpt2", "llama"),
    "cloudpickle": ("xlm", "plain"),
    "dill": ("llama", "plain"),
    "joblib.dump, joblib.load": ("bert",),
    "save_pretrained, from_pretrained": ("xlm",),
    "DistributedDataParallel": ("plain",),
    "FSDP2, fully_shard": ("gpt2", "plain"),
    "Accelerator(mixed_precision='bf16').prepare": ("llama", "plain"),
    "parametrize.register_parametrization, on the owner": ("gpt2",),
    "accelerate's add_hook_to_module": ("llama", "plain"),
    "torch.fx.symbolic_trace": ("bert", "plain"),
}


@pytest.mark.parametrize("name", HERE)
def test_a_tool_finds_a_patched_model_as_it_finds_any(name: str) -> None:
    found = found_of(catalogue.TOOLS[name], *HERE[name])
    if table.missing(found):
        pytest.skip(f"{found['package']} is not installed")
    assert table.faults(found) == []
    verdicts = [verdict for model in found["models"] for verdict in model["verdicts"]]
    assert len(verdicts) >= 4 * len(HERE[name])


# What would be wrong


def _deep_copy(model: nn.Module, _: Subject) -> Used:
    return Used(copy.deepcopy(model))


def _of_the_originals_weights(model: nn.Module, subject: Subject) -> Used:
    """A copy whose patched owner computes with the original's modules."""
    made = copy.deepcopy(model)
    owner = model.get_submodule(subject.owner)
    if type(owner).forward is not type(subject.build().get_submodule(subject.owner)).forward:
        made.get_submodule(subject.owner).forward = owner.forward
    return Used(made)


_KEPT: list[object] = []


def _kept_for_ever(model: nn.Module, subject: Subject) -> Used:
    """One that a patched model keeps alive."""
    if type(model.get_submodule(subject.owner)) is not type(subject.build().get_submodule(subject.owner)):
        _KEPT.append(model)
    return Used(model)


def _unless_patched(model: nn.Module, subject: Subject) -> Used:
    if type(model.get_submodule(subject.owner)) is not type(subject.build().get_submodule(subject.owner)):
        raise TypeError("a class that I do not know")
    return Used(model)


@pytest.mark.parametrize(
    ("use", "aspect"),
    [
        (_of_the_originals_weights, "weights: tool, new weights: outputs moved"),
        (_kept_for_ever, "patch, tool: alive after del"),
        (_unless_patched, "outputs: TypeError: a class that I do not know"),
    ],
)
@pytest.mark.parametrize("subject", ["gpt2", "llama"])
def test_what_a_tool_finds_otherwise_is_told(
    use: Callable[[nn.Module, Subject], Used], aspect: str, subject: str
) -> None:
    found = found_of(Tool("planted", "copies", "torch", use, ()), subject)
    _KEPT.clear()
    told = table.faults(found)
    assert any(aspect in one for one in told), told
    assert "**" in table.document({"environment": {}, "tools": {"planted": found}})


def _in_name_only(model: nn.Module, **options: Any) -> hf_gelu_patch.Report:
    report = hf_gelu_patch.patch(model, **options)
    hf_gelu_patch.unpatch(model)
    hf_gelu_patch.patch(model)
    return report


def _of_every_model(model: nn.Module, **options: Any) -> hf_gelu_patch.Report:
    """What several others do: the class is changed, and with it the models that were not given."""
    own = nn.Linear.forward
    nn.Linear.forward = lambda self, x: own(self, x) * 1.5  # type: ignore[method-assign]
    return hf_gelu_patch.patch(model, **options)


@pytest.mark.parametrize(
    ("name", "function", "aspect"),
    [
        ("unpatch", lambda _: None, "[silu]: undone: tool, unpatched: outputs moved"),
        ("unpatch", lambda model: vars(model).update(left="behind"), "left is 'behind', was None"),
        ("patch", _in_name_only, "[silu]: outputs: tool, used: outputs moved"),
        ("patch", _of_every_model, "others: another model, used: outputs moved"),
    ],
)
def test_what_a_patch_does_wrong_is_told(
    name: str, function: Callable[..., Any], aspect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Linear, "forward", nn.Linear.forward)
    monkeypatch.setattr(judging, name, function)
    told = table.faults(found_of(Tool("deepcopy", "copies", "torch", _deep_copy, ()), "bert"))
    assert any(aspect in one for one in told), told


def test_a_refusal_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: nn.Module) -> None:
        raise hf_gelu_patch.PatchError("a wrapper of somebody's holds the forward")

    monkeypatch.setattr(judging, "unpatch", refuse)
    found = found_of(Tool("deepcopy", "copies", "torch", _deep_copy, ()), "gpt2")
    assert not [one for one in table.faults(found) if "alive" not in one]
    page = table.document({"environment": {}, "tools": {"deepcopy": found}})
    assert "to the bit; refused while it is on" in page
    assert "- deepcopy: a wrapper of somebody's holds the forward" in page


# The script and its record


def test_what_is_not_installed_is_told() -> None:
    found = found_of(Tool("no such tool", "wraps", "no-such-distribution", _deep_copy, ()), "gpt2")
    assert table.missing(found)
    page = table.document({"environment": {}, "tools": {"no such tool": found}})
    assert "Not run, because it is not installed: no such tool (no-such-distribution)." in page
    assert page.count("no such tool") == 1


@pytest.mark.filterwarnings("ignore:.*fork")  # from Python 3.12 on, of a process that has threads
def test_a_tool_that_crashes_or_hangs_costs_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        catalogue.TOOLS, "crash", Tool("crash", "wraps", "torch", lambda *_: os._exit(3), (SUBJECTS["gpt2"],))
    )
    monkeypatch.setitem(
        catalogue.TOOLS, "hang", Tool("hang", "wraps", "torch", lambda *_: time.sleep(99), (SUBJECTS["gpt2"],))
    )
    assert SCRIPT.in_its_own_process("crash", 60.0) == {"error": "crashed: exit status 3"}
    assert SCRIPT.in_its_own_process("hang", 0.5) == {"error": "not done after 0.5 s"}


def test_an_unknown_tool_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        SCRIPT.main(["--only", "copy.deepcopi"])
    assert "no tool copy.deepcopi; there are: copy.copy" in capsys.readouterr().err


def test_the_table_is_that_of_the_record() -> None:
    page = (FOLDER / "tools.md").read_text(encoding="utf-8")
    assert page == table.document(RECORDED)
    assert RECORDED["tools"].keys() == catalogue.TOOLS.keys()
    run = [found for found in RECORDED["tools"].values() if not table.missing(found)]
    assert len(run) >= 25
    assert [fault for found in run for fault in table.faults(found)] == []
    for path in ("/tmp", "/root", "/home", "site-packages"):
        assert path not in page + json.dumps(RECORDED)
