"""What Liger-Kernel and transformers' use_kernels would change; and what they have changed already.

Liger-Kernel needs triton, so most tests ask a package that is written here in its manner, under its name. What is told
of it is held to what its functions do to a copy of the model. Most are asked in this process, which saves seconds each.
"""

from __future__ import annotations

import copy
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from conftest import FAMILIES
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama

from hf_gelu_patch import (
    NoSitesError,
    NotPatchedError,
    PatchError,
    UnknownNameError,
    explain,
    find_sites,
    patch,
    unpatch,
)
from hf_gelu_patch.beside import Beside, scan, trial
from hf_gelu_patch.beside.liger import NoAnswerError, ask, question_on

PACKAGE = {
    "__init__.py": "",
    "transformers/__init__.py": "print('a line that is no answer')\n",
    "transformers/swiglu.py": """\
        import torch
        from torch import nn

        class LigerSiLUMulFunction(torch.autograd.Function):
            @staticmethod
            def forward(ctx, gate, up):
                return torch.nn.functional.silu(gate) * up

        class LigerSwiGLUMLP(nn.Module):
            def __init__(self, config, intermediate_size=None):
                super().__init__()
                self.config = config
                self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
                self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
                self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
                if config.hidden_act not in ["silu", "swish"]:
                    raise ValueError(f"Activation function {config.hidden_act} not supported.")

            def forward(self, x):
                return self.down_proj(LigerSiLUMulFunction.apply(self.gate_proj(x), self.up_proj(x)))
        """,
    "transformers/gelu.py": """\
        import torch

        class LigerGELU(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.within = torch.nn.Identity()

            def forward(self, x):
                return torch.ops.aten.gelu(x, approximate="tanh")
        """,
    "transformers/losses.py": "def lce_forward(self, *args, **kwargs): ...\n",
    "transformers/monkey_patch.py": '''\
        from functools import partial
        from types import MethodType

        import torch

        from liger_kernel.transformers.gelu import LigerGELU
        from liger_kernel.transformers.losses import lce_forward as llama_lce_forward
        from liger_kernel.transformers.swiglu import LigerSwiGLUMLP

        def _bind(module, name, method):
            module.__dict__[name] = method.__get__(module, module.__class__)

        def apply_liger_kernel_to_llama(swiglu=True, lce=True, model=None):
            """It binds, and it replaces the class for whoever comes later."""
            from transformers.models.llama import modeling_llama

            class LigerRMSNorm(torch.nn.RMSNorm): ...

            modeling_llama.LlamaMLP = LigerSwiGLUMLP
            modeling_llama.LlamaRMSNorm = LigerRMSNorm
            modeling_llama.LlamaRotaryEmbedding.rescaled = partial(llama_lce_forward, scale=1)
            model.forward = MethodType(llama_lce_forward, model)
            for layer in model.model.layers[1:]:
                _bind(layer.mlp, "forward", LigerSwiGLUMLP.forward)
                _bind(layer.mlp, "_get_name", lambda self: "LigerSwiGLUMLP")

        def apply_liger_kernel_to_gpt2(model=None):
            for block in model.transformer.h:
                block.mlp.act = LigerGELU()
            setattr(model.transformer.ln_f, "forward", MethodType(LigerGELU.forward, model.transformer.ln_f))

        def apply_liger_kernel_to_bert(model=None):
            from liger_kernel.transformers.losses import other_forward

            model.forward = MethodType(other_forward, model)

        def apply_liger_kernel_to_t5(model=None):
            for block in model.encoder.block:
                block.layer[1].forward = MethodType(LigerGELU.forward, block.layer[1])
                raise TypeError(f"Unsupported: {type(model).__name__}")

        MODEL_TYPE_TO_APPLY_LIGER_FN = {
            "llama": apply_liger_kernel_to_llama,
            "gpt2": apply_liger_kernel_to_gpt2,
            "bert": apply_liger_kernel_to_bert,
            "t5": apply_liger_kernel_to_t5,
        }
        ''',
}


@pytest.fixture
def liger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package of this module, as the one that is installed; what it replaces is put back."""
    for name, text in PACKAGE.items():
        path = tmp_path / "liger_kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.removeprefix("        ") for line in text.splitlines()), encoding="utf-8")
    for name in [one for one in sys.modules if one.partition(".")[0] == "liger_kernel"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    rotary = modeling_llama.LlamaRotaryEmbedding
    monkeypatch.setattr(rotary, "rescaled", None, raising=False)  # which is taken off at the end
    kept = [(module, dict(vars(module))) for module in (modeling_llama, modeling_gpt2)]
    yield tmp_path / "liger_kernel"
    for module, names in kept:
        vars(module).update(names)
    for name in [one for one in sys.modules if one.partition(".")[0] == "liger_kernel"]:
        del sys.modules[name]


def apply(kind: str, model: nn.Module) -> None:
    """Liger-Kernel's function, run for real."""
    from liger_kernel.transformers import monkey_patch

    monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN[kind](model=model)


def state(model: nn.Module) -> dict[str, tuple[object, ...]]:
    return {name: (type(one), *map(id, vars(one).values()), *one._modules) for name, one in model.named_modules()}


def bound(model: nn.Module, own: nn.Module) -> dict[str, str]:
    """The modules that compute something else than those of another model, and by what."""
    found = {}
    before = dict(own.named_modules())
    for name, module in model.named_modules():
        forward = vars(module).get("forward")
        if isinstance(forward, MethodType):
            found[name] = forward.__func__.__qualname__.removesuffix(".forward")
        elif name in before and type(module) is not type(before[name]):
            found[name] = type(module).__name__
    return found


def only(model: nn.Module, tool: str) -> Beside:
    (found,) = scan(model, [tool])
    return found


def asked(model: Any) -> dict[str, Any]:
    """What another process would answer, from this one, which it changes."""
    return trial.answer(question_on(model))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.usefixtures("liger")
def test_what_is_told_is_what_happens(kind: str) -> None:
    model = FAMILIES[kind].build()
    before = state(model)
    said = asked(model)
    assert state(model) == before
    assert said["notes"] == []
    patched = copy.deepcopy(model)
    apply(kind, patched)
    happened = bound(patched, model)
    assert {path: text.partition(" replaces")[0] for path, _, text in said["changes"]} == happened
    assert happened
    replaced = ["LlamaMLP → LigerSwiGLUMLP", "LlamaRMSNorm → LigerRMSNorm"]
    own = ["LlamaRotaryEmbedding.rescaled → lce_forward", *(f"modeling_llama.{one}" for one in replaced)]
    assert sorted(said["process"]) == (own if kind == "llama" else [])


@pytest.mark.slow
def test_each_site_says_what_a_tool_would_change_there(
    liger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)  # it is looked up anew
    (liger / "__init__.py").write_text("import tempfile\ntempfile.mkdtemp()\n", encoding="utf-8")
    model = FAMILIES["llama"].build()
    before, names = state(model), dict(vars(modeling_llama))
    report = find_sites(model, beside=("liger", "kernels", "liger"))
    assert state(model) == before
    assert dict(vars(modeling_llama)) == names
    assert not any(name.partition(".")[0] == "liger_kernel" for name in sys.modules)
    assert not [*liger.rglob("__pycache__"), *temporary.iterdir()]
    assert [one.tool for one in report.beside] == ["liger", "kernels"]
    lines = str(report).splitlines()
    rows = [number for number, line in enumerate(lines) if "LlamaMLP.act_fn" in line]
    assert ["1 ×" in lines[number] for number in rows] == [True, True]  # of two layers it leaves the first alone
    assert {lines[number + 1].strip() for number in rows} == {
        "liger: nothing",
        "liger: LigerSwiGLUMLP replaces LlamaMLP.forward",
    }
    assert all(lines[number + 2].strip().startswith("kernels: SiLU → kernels-community/") for number in rows)
    assert sum("beside the activations: 1 × LlamaForCausalLM: lce_forward replaces" in line for line in lines) == 1
    assert sum("for all models of the process: " in line for line in lines) == 1
    assert json.loads(json.dumps(report.to_dict()))["beside"][0]["changes"][0]["module"] == "LlamaForCausalLM"
    assert find_sites(FAMILIES["llama"].build()).beside == ()
    assert find_sites(FAMILIES["llama"].build(), beside="kernels").beside == report.beside[1:]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # transformers' own
@pytest.mark.usefixtures("liger")
def test_a_model_within_another() -> None:
    adapters = LoraConfig(target_modules=["c_attn"], modules_to_save=["ln_f"], fan_in_fan_out=True)
    adapted = get_peft_model(FAMILIES["gpt2"].build(), adapters)
    found = only(nn.ModuleDict({"a": nn.Identity(), "b": adapted}), "liger")
    place = "b.base_model.model.transformer.h"
    assert [change.path for change in found.changes] == [f"{place}.{number}.mlp.act" for number in range(2)]
    (note,) = found.notes
    assert note == ("1 × LayerNorm of its config, here ModulesToSaveWrapper: what it would change there is not known")
    (note,) = only(nn.Sequential(nn.SiLU()), "liger").notes
    assert note == "it has nothing for a Sequential without a transformers model"


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("bert", "apply_liger_kernel_to_bert fails on this model: ImportError: cannot import name 'other_forward'"),
        ("t5-v1.1", "apply_liger_kernel_to_t5 fails on this model: TypeError: Unsupported: T5ForConditionalGeneration"),
        ("vit", "it has nothing for the model type vit (it knows 4)"),
    ],
)
@pytest.mark.usefixtures("liger")
def test_what_would_fail_is_told(family: str, says: str) -> None:
    said = asked(FAMILIES[family].build())
    (note,) = said["notes"]
    assert note.startswith(says)
    assert [path for path, *_ in said["changes"]] == (["encoder.block.0.layer.1"] if family == "t5-v1.1" else [])


@pytest.mark.parametrize("act", ["gelu", "silu"])
@pytest.mark.usefixtures("liger")
def test_a_constructor_that_binding_goes_around(act: str) -> None:
    config = FAMILIES["llama"].build().config
    config.hidden_act = act
    told = {path: text for path, _, text in asked(modeling_llama.LlamaForCausalLM(config))["changes"]}
    refuses = "it would refuse this config (ValueError: Activation function gelu not supported.)"
    assert (refuses in told["model.layers.1.mlp"]) == (act == "gelu")
    with pytest.raises(ValueError, match="gelu not supported") if act == "gelu" else nullcontext():
        modeling_llama.LlamaForCausalLM(config)  # the class has been replaced


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "AttributeError: module 'liger_kernel.transformers.monkey_patch' has no attribute 'MODEL_TYPE_"),
        ("import no_such_driver", "ModuleNotFoundError: No module named 'no_such_driver'"),
        ("def (", "SyntaxError: invalid syntax"),
    ],
)
def test_a_package_that_cannot_be_imported_is_told(text: str, says: str, liger: Path) -> None:
    (liger / "transformers" / "monkey_patch.py").write_text(text, encoding="utf-8")
    (note,) = asked(FAMILIES["llama"].build())["notes"]
    assert note.startswith(f"it cannot be imported: {says}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import time\ntime.sleep(60)", "and no answer came in 0.5 s"),
        ("import os, sys\nsys.exit('no licence')", "which ended with status 1: no licence"),
        ("import os\nos._exit(0)", "which ended with status 0: it wrote nothing"),
        ("import os\nos.abort()", "which ended with status -6: "),
    ],
)
def test_a_process_that_gives_no_answer(text: str, says: str, liger: Path) -> None:
    (liger / "transformers" / "monkey_patch.py").write_text(text, encoding="utf-8")
    with pytest.raises(NoAnswerError, match=f"^it was asked in a process of its own, {says}"):
        ask(question_on(FAMILIES["llama"].build()), limit=0.5 if "sleep" in text else 60.0)


class Own(modeling_llama.LlamaForCausalLM):
    """A user's class, in a module that may be found or not."""


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("transformers_modules.a_repository.modeling", "it is not asked: Own is code that came with the checkpoint"),
        ("__main__", "it cannot be asked: no other process can import Own from a script, a notebook or a function"),
    ],
)
@pytest.mark.usefixtures("liger")
def test_a_class_that_no_other_process_has(module: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Own, "__module__", module)
    (note,) = only(Own(FAMILIES["llama"].build().config), "liger").notes
    assert note.startswith(says)

    class Within(Own): ...

    with pytest.raises(
        NoAnswerError, match="no other process can import Within from a script, a notebook or a function"
    ):
        question_on(Within(FAMILIES["llama"].build().config))


@pytest.mark.usefixtures("liger")
def test_what_the_other_process_cannot_make_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    config = FAMILIES["llama"].build().config
    assert asked(Own(config))["changes"][0][1] == "Own"
    monkeypatch.setattr(Own, "__module__", "no_such_module")
    (note,) = asked(Own(config))["notes"]
    told = "no Own can be made of its config in a process of its own: ModuleNotFoundError: No module named 'no_such_"
    assert note.startswith(told)
    model = FAMILIES["llama"].build()
    model.config.of_our_own = (0.0, float("inf"))
    assert question_on(model)["config"]["of_our_own"] == [0.0, float("inf")]
    model.config.of_our_own = nn.SiLU()
    (note,) = only(model, "liger").notes
    assert note.startswith("it cannot be asked, as the model's config is not plain data: Object of type SiLU")


def test_a_package_that_is_not_there_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in sys.modules if one.partition(".")[0] == "liger_kernel"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if not (Path(one) / "liger_kernel").is_dir()])
    report = find_sites(FAMILIES["llama"].build(), beside=["liger"])
    assert report.lines()[-1].strip() == "liger (Liger-Kernel): it is not installed: pip install liger-kernel"
    assert "nothing" not in str(report)


def test_a_tool_of_no_such_name() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown tool 'ligre'. Did you mean 'liger'\? Valid names: kernels, liger"
    ):
        find_sites(FAMILIES["llama"].build(), beside=["ligre"])


# transformers' own mapping


def test_the_kernels_of_activations() -> None:
    """By the name in a config, against the decorators that transformers shows for reading."""
    text = Path(sys.modules["transformers.activations"].__file__ or "").read_text(encoding="utf-8")
    marked = 0
    for name in ("gelu_new", "gelu", "silu", "gelu_fast", "quick_gelu", "gelu_pytorch_tanh", "relu", "mish"):
        module = ACT2FN[name]
        above = text.partition(f"\nclass {type(module).__name__}(")[0].rpartition("\n\n")[2]
        layer = above.partition('use_kernel_forward_from_hub("')[2].partition('"')[0]
        marked += bool(layer)
        told = only(nn.Sequential(nn.Linear(2, 2), module), "kernels").at("1")
        assert told.startswith(f"{layer} → kernels-community/activation (" if layer else "nothing"), name
        assert (" on cuda" in told) == bool(layer)
    assert marked >= 3


def test_kernels_elsewhere_in_a_model() -> None:
    found = only(FAMILIES["llama"].build(), "kernels")
    norms = [change for change in found.changes if change.module == "LlamaRMSNorm"]
    assert len(norms) == 5
    assert all(change.text.startswith("RMSNorm → kernels-community/") for change in norms)
    if "use_kernelized_func" in Path(modeling_llama.__file__).read_text(encoding="utf-8"):
        rotary = [change for change in found.changes if change.module == "apply_rotary_pos_emb in LlamaAttention"]
        assert [change.path for change in rotary] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    if "kernels" not in sys.modules:
        (note,) = found.notes
        assert "use_kernels=True raises: pip install 'kernels" in note


# What they have changed already


REMEDY = "load the model anew in a process that does not apply Liger-Kernel"


@pytest.mark.usefixtures("liger")
def test_a_model_that_liger_has_bound_forwards_on() -> None:
    model = FAMILIES["llama"].build()
    apply("llama", model)
    with torch.no_grad():
        own = model.model(**FAMILIES["llama"].inputs())[0]
    for undone in (unpatch, explain):
        with pytest.raises(
            NotPatchedError, match=f"Liger-Kernel computes 1 × LlamaForCausalLM by lce_forward, .*{REMEDY}"
        ):
            undone(model)
    report = patch(model, implementation="aten")
    assert [site.reason for site in report.unchanged] == [
        "Liger-Kernel has bound LigerSwiGLUMLP.forward on this LlamaMLP"
    ]
    assert len(report.changed) == 1
    assert report.others == find_sites(FAMILIES["gpt2"].build()).others + report.others
    assert REMEDY in str(report)
    assert "# Liger-Kernel computes" in explain(model).splitlines()[-1]
    with torch.no_grad():
        assert torch.equal(model.model(**FAMILIES["llama"].inputs())[0], own)
    unpatch(model)


@pytest.mark.usefixtures("liger")
def test_a_model_that_liger_built() -> None:
    config = FAMILIES["llama"].build().config
    apply("llama", FAMILIES["llama"].build())
    model = modeling_llama.LlamaForCausalLM(config)
    with pytest.raises(NoSitesError, match=f"Liger-Kernel computes 2 × LigerSwiGLUMLP. .*{REMEDY}"):
        patch(model)


@pytest.mark.usefixtures("liger")
def test_liger_over_a_patch() -> None:
    model = FAMILIES["llama"].build()
    before = copy.deepcopy(model)
    patch(model, activation="relu")
    apply("llama", model)
    assert "not run: Liger-Kernel has bound LigerSwiGLUMLP.forward there since" in explain(model)
    unpatch(model)
    wanted = copy.deepcopy(before)
    apply("llama", wanted)
    assert bound(model, before) == bound(wanted, before)
    assert {type(one) for one in model.modules()} == {type(one) for one in before.modules()}


# The real packages, where they are installed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gemma2", "qwen3_moe", "mixtral", "phi3"])
def test_the_real_liger_kernel(kind: str) -> None:
    monkey_patch = pytest.importorskip("liger_kernel.transformers.monkey_patch")
    model = _small(kind)
    found = only(model, "liger")
    modeling = sys.modules[type(model).__module__]
    names, patched = dict(vars(modeling)), copy.deepcopy(model)
    try:
        monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN[kind](model=patched)
    finally:
        replaced = {name for name, value in vars(modeling).items() if value is not names.get(name)}
        vars(modeling).update(names)
    told = {change.path: change.text.partition(" replaces")[0] for change in found.changes}
    assert told == bound(patched, model)
    assert {one.partition(" ")[0].partition(".")[2] for one in found.process} >= replaced
    assert any(site.reason.startswith("Liger-Kernel has bound Liger") for site in find_sites(patched).sites)


def _small(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "vocab_size": 64, "head_dim": 8, "pad_token_id": 0}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **more))


@pytest.mark.slow
@pytest.mark.parametrize("first", ["patched", "kernelized"])
def test_the_real_kernels(first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("kernels")
    marked = type(ACT2FN["silu"])
    for name, value in (("kernel_layer_name", "SiLU"), ("kernel_condition", staticmethod(lambda _: True))):
        monkeypatch.setattr(marked, name, value, raising=False)  # as where transformers takes this version of kernels
    place = tmp_path / "activation" / "build" / "torch-universal"
    place.mkdir(parents=True)
    kernel = {"id": f"_activation_{first}", "name": "activation", "version": 1, "license": "MIT", "python-depends": []}
    (place / "metadata.json").write_text(json.dumps({**kernel, "backend": {"type": "cpu"}}), encoding="utf-8")
    (place / "__init__.py").write_text("from . import layers\n", encoding="utf-8")
    (place / "layers.py").write_text(
        "import torch\n\n"
        "class Silu(torch.nn.Module):\n    def forward(self, input):\n        return torch.ops.aten.silu(input)\n",
        encoding="utf-8",
    )
    repository = kernels.LocalLayerRepository(repo_path=tmp_path / "activation", layer_name="Silu")
    mapping = {"SiLU": {"cpu": {kernels.Mode.INFERENCE: repository}}}
    config = FAMILIES["gpt2"].config()
    config.activation_function = "silu" if first == "kernelized" else "gelu_new"
    model = modeling_gpt2.GPT2LMHeadModel(config).eval()
    own = copy.deepcopy(model)
    if first == "patched":
        patch(model, activation="silu", implementation="eager")
    with kernels.use_kernel_mapping(mapping, inherit_mapping=False):
        kernels.kernelize(model, mode=kernels.Mode.INFERENCE, device="cpu")
    computes = r"kernels computes 2 × SiLUActivation by Silu\.forward"
    if first == "kernelized":
        assert {site.reason.rpartition(": ")[2] for site in find_sites(model).sites} == {
            "kernels has bound Silu.forward on it"
        }
        with pytest.raises(NotPatchedError, match=rf"{computes}\. .* without use_kernels=True"):
            unpatch(model)
        return
    assert re.search(computes, explain(model))
    with pytest.raises(PatchError, match=r"by kernels, and is in the way of unpatch: take it off first \(del module"):
        unpatch(model)
    for block in model.transformer.h:
        del block.mlp.act.forward
    unpatch(model)
    assert state(model).keys() == state(own).keys()
    assert not bound(model, own)
