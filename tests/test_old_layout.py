"""Pickles that an older layout of the package made load, run and unpatch.

``old_layout/make.py`` made those of commit 7e06156, the last before the modules had their present homes; it says how.
Two more are of commit 82f782e, where rewritten methods were bound on each module.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import printed_by_fork
from old_layout import models

import hf_gelu_patch
from hf_gelu_patch import PatchError, explain, patch, unpatch
from hf_gelu_patch.forwards.class_binding import is_patched
from hf_gelu_patch.old_layout import MOVED

HERE = Path(__file__).parent / "old_layout"
GONE = {"bound_methods", "stand_ins"}
PICKLES = {path.stem for path in HERE.glob("*.pt")} - GONE
OWN = sorted(name for name in PICKLES if name.startswith("own_") and name not in ("own_epilogue", "own_part"))
TRANSFORMERS = sorted({"bert", "bert_swapped", "gpt2", "llama", "t5"})


def loaded(name: str) -> tuple[Any, Any]:
    """The object, and what it computed when it was saved."""
    held = torch.load(HERE / f"{name}.pt", weights_only=False)
    return held["value"], held["result"]


def globals_in(name: str) -> Iterator[str]:
    """What a pickle names of ours."""
    with zipfile.ZipFile(HERE / f"{name}.pt") as archive:
        (data,) = (archive.read(member) for member in archive.namelist() if member.endswith("data.pkl"))
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL" and str(argument).startswith("hf_gelu_patch"):
            yield str(argument).replace(" ", ".").removeprefix("hf_gelu_patch.")


@pytest.mark.parametrize("name", [*OWN, "own_part"])
def test_a_model_of_plain_modules(name: str) -> None:
    model, result = loaded(name)
    x = models.inputs()
    with torch.no_grad():
        torch.testing.assert_close(model(x), result)  # another CPU may have computed it
        assert any(is_patched(module) for module in model.modules())
        explain(model)
        unpatch(model)
        assert not any(is_patched(module) for module in model.modules())
        original = models.own()[0] if name == "own_part" else models.own()
        assert torch.allclose(model(x), original(x), atol=1e-6)
        assert {type(module) for module in model.modules()} == {type(module) for module in original.modules()}
    assert patch(model).changed


NEW_ENOUGH = pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="a pickle of transformers' models is one of its major version"
)


@NEW_ENOUGH
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_model_of_transformers(name: str) -> None:
    model, result = loaded(name)
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids)[0], result, atol=1e-6)
        unpatch(model)
        assert not any(is_patched(module) for module in model.modules())
        plain = model(ids)[0]
        assert (name == "bert_swapped") != torch.allclose(plain, result, atol=1e-6)
        patch(model, implementation="aten")
        assert torch.allclose(model(ids)[0], plain, atol=1e-6)
    if name.startswith("bert"):
        assert model.config.hidden_act == "gelu"


@NEW_ENOUGH
def test_a_model_that_was_unpatched_before_it_was_saved() -> None:
    model, result = loaded("bert_unpatched")
    assert not any(is_patched(module) for module in model.modules())
    assert torch.allclose(model(torch.arange(3, 9)[None])[0], result, atol=1e-6)


def test_a_model_on_the_meta_device() -> None:
    model, _ = loaded("own_epilogue")
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    unpatch(model)
    assert {type(module) for module in model.modules()} == {type(module) for module in models.own().modules()}


@NEW_ENOUGH
def test_every_function_by_every_implementation() -> None:
    swapped, results = loaded("every_function")
    assert len(swapped) > 30
    for name, parts in swapped.items():
        for part, result in zip(parts, results[name], strict=True):
            torch.testing.assert_close(part(models.inputs()), result, msg=lambda text, name=name: f"{name}: {text}")


def test_reports() -> None:
    (done, sites, dry), _ = loaded("reports")
    assert type(done) is type(dry) is hf_gelu_patch.Report
    assert done.sites == sites
    assert {type(site) for site in sites} == {hf_gelu_patch.Site}
    assert (done.applied, dry.applied) == (True, False)
    assert done.drift
    assert "verified" in str(done)
    assert {site["path"] for site in dry.to_dict()["sites"]} == {site.path for site in sites}


def test_errors() -> None:
    errors, _ = loaded("errors")
    public = {name for name in hf_gelu_patch.__all__ if name.endswith(("Error", "Warning"))} - {"UnknownNameError"}
    assert {type(error).__name__ for error in errors} == public
    assert all(str(error) == "said" and type(error) is getattr(hf_gelu_patch, type(error).__name__) for error in errors)


@pytest.mark.parametrize("name", sorted(GONE))
def test_methods_that_were_bound_are_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(PatchError, match=r"Load it with the version that saved it, unpatch\(model\) and save it again"):
        loaded(name)


def test_the_table_lists_what_pickles_name_and_no_more() -> None:
    named = {name for pickle in PICKLES for name in globals_in(pickle)}
    here = set()
    for name in named:
        module, _, attribute = name.rpartition(".")
        try:
            if attribute in vars(import_module(f"hf_gelu_patch.{module}")):
                here.add(name)
        except ModuleNotFoundError:
            pass
    assert named - here == MOVED.keys()


def test_in_a_process_that_has_imported_nothing_of_ours() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(HERE.parent)!r})
import torch
held = torch.load({str(HERE / "own_aten.pt")!r}, weights_only=False)
from old_layout import models
print(torch.allclose(held["value"](models.inputs()), held["result"], rtol=1e-5, atol=1e-6))
import hf_gelu_patch
hf_gelu_patch.unpatch(held["value"])
print(len(hf_gelu_patch.find_sites(held["value"]).sites) > 5)
"""
    assert printed_by_fork(code).split() == ["True", "True"]


def test_new_pickles_name_the_present_homes(tmp_path: Path) -> None:
    model = models.own()
    report = patch(model, implementation="aten")
    torch.save([model, report], tmp_path / "new.pt")
    with zipfile.ZipFile(tmp_path / "new.pt") as archive:
        (data,) = (archive.read(member) for member in archive.namelist() if member.endswith("data.pkl"))
    named = [str(argument).split() for opcode, argument, _ in pickletools.genops(data) if opcode.name == "GLOBAL"]
    ours = [(module, name) for module, name in named if module.startswith("hf_gelu_patch")]
    assert len(ours) > 10
    for module, name in ours:
        assert f"{module}.{name}".removeprefix("hf_gelu_patch.") not in MOVED
        assert getattr(import_module(module), name).__module__ == module
