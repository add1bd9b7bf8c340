"""What Liger-Kernel and transformers' use_kernels would change, read from files; and what they have changed already.

Liger-Kernel needs triton, so most tests read a package that is written here in its manner, under its name. What is read
of it is held to what happens once its functions are run for real, on a copy.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterator
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
from hf_gelu_patch.beside import Beside, scan

PACKAGE = {
    "__init__.py": "",
    "transformers/__init__.py": "raise RuntimeError('nobody has to import this to read it')\n",
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
            def forward(self, x):
                return torch.ops.aten.gelu(x, approximate="tanh")
        """,
    "transformers/losses.py": """\
        try:
            from transformers.modeling_outputs import NoSuchOutput
        except ImportError:
            NoSuchOutput = None

        if NoSuchOutput is not None:
            def other_forward(self): ...

        def lce_forward(self, *args, **kwargs): ...
        """,
    "transformers/monkey_patch.py": '''\
        import inspect
        import logging
        from functools import partial
        from types import MethodType

        import transformers
        from packaging import version

        from liger_kernel.transformers.gelu import LigerGELU
        from liger_kernel.transformers.swiglu import LigerSwiGLUMLP

        try:
            import a_package_that_is_not_there as peft

            PEFT_AVAILABLE = True
        except ImportError:
            PEFT_AVAILABLE = False

        logger = logging.getLogger(__name__)
        NEW = version.parse(transformers.__version__) >= version.parse("4.0.0")

        def _bind(module, name, method):
            module.__dict__[name] = method.__get__(module, module.__class__)

        def _patch_norm(module, offset=0.0, mode="llama"):
            if PEFT_AVAILABLE and isinstance(module, peft.Wrapper):
                raise RuntimeError("never")
            module.offset = getattr(module, "offset", None) or offset
            module.mode = mode

        def _patch_swiglu(module, by):
            _bind(module, "forward", by.forward)
            _bind(module, "_get_name", lambda self: by.__name__)

        def apply_liger_kernel_to_llama(rms_norm=True, swiglu: bool = True, lce: bool = True, model=None) -> None:
            """It binds, and it replaces the class for whoever comes later."""
            from transformers.models.llama import modeling_llama

            from liger_kernel.transformers.losses import lce_forward as llama_lce_forward

            if swiglu and NEW:
                modeling_llama.LlamaMLP = LigerSwiGLUMLP
            if lce:
                if model is not None:
                    model.forward = MethodType(llama_lce_forward, model)
                else:
                    modeling_llama.LlamaForCausalLM.forward = llama_lce_forward
            if model is None:
                return
            norm = partial(_patch_norm, offset=1.0)
            base = getattr(model, model.base_model_prefix, model)
            if rms_norm:
                norm(base.norm)
            for number, layer in enumerate(base.layers):
                if number == 0:
                    continue
                if swiglu and isinstance(layer.mlp, modeling_llama.nn.Module) and not hasattr(layer.mlp, "experts"):
                    _patch_swiglu(layer.mlp, LigerSwiGLUMLP)

        def apply_liger_kernel_to_gpt2(model=None, **kwargs):
            kwargs = {"lce": False, **kwargs} | {"swiglu": False}
            accepted = inspect.signature(apply_liger_kernel_to_llama).parameters
            left = {key: value for key, value in kwargs.items() if key not in set(accepted)}
            assert not left
            blocks = [block for block in model.transformer.h if getattr(block, "mlp", None) is not None]
            for block in blocks:
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
    kept = [(module, dict(vars(module))) for module in (modeling_llama, modeling_gpt2)]
    yield tmp_path / "liger_kernel"
    for module, names in kept:
        vars(module).update(names)
    for name in [one for one in sys.modules if one.partition(".")[0] == "liger_kernel"]:
        del sys.modules[name]


def apply(kind: str, folder: Path, model: nn.Module) -> None:
    """Liger-Kernel's function, run for real."""
    (folder / "transformers" / "__init__.py").write_text("", encoding="utf-8")
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
        elif type(module) is not type(before[name]):
            found[name] = type(module).__name__
    return found


def only(model: nn.Module, tool: str) -> Beside:
    (found,) = scan(model, [tool])
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_is_read_is_what_would_happen(kind: str, liger: Path) -> None:
    model = FAMILIES[kind].build()
    before, names = state(model), dict(vars(modeling_llama))
    found = only(model, "liger")
    assert state(model) == before
    assert dict(vars(modeling_llama)) == names
    assert not any(name.partition(".")[0] == "liger_kernel" for name in sys.modules)
    assert found.notes == ()
    patched = copy.deepcopy(model)
    apply(kind, liger, patched)
    happened = {path: by.replace("lce_forward", "llama_lce_forward") for path, by in bound(patched, model).items()}
    assert {change.path: change.text.partition(" replaces")[0] for change in found.changes} == happened
    assert happened
    replaced = {name for name, value in vars(modeling_llama).items() if value is not names.get(name)}
    assert found.process == tuple(f"modeling_llama.{name} → LigerSwiGLUMLP" for name in sorted(replaced))
    assert bool(replaced) == (kind == "llama")


@pytest.mark.usefixtures("liger")
def test_each_site_says_what_a_tool_would_change_there() -> None:
    report = find_sites(FAMILIES["llama"].build(), beside=("liger", "kernels", "liger"))
    assert [one.tool for one in report.beside] == ["liger", "kernels"]
    lines = str(report).splitlines()
    rows = [number for number, line in enumerate(lines) if "LlamaMLP.act_fn" in line]
    assert ["1 ×" in lines[number] for number in rows] == [True, True]  # of two layers it leaves the first alone
    assert {lines[number + 1].strip() for number in rows} == {
        "liger: nothing",
        "liger: LigerSwiGLUMLP replaces LlamaMLP.forward",
    }
    assert all(lines[number + 2].strip().startswith("kernels: SiLU → kernels-community/") for number in rows)
    assert (
        sum("beside the activations: 1 × LlamaForCausalLM: llama_lce_forward replaces" in line for line in lines) == 1
    )
    assert json.loads(json.dumps(report.to_dict()))["beside"][0]["changes"][0]["module"] == "LlamaForCausalLM"
    assert find_sites(FAMILIES["llama"].build()).beside == ()
    assert find_sites(FAMILIES["llama"].build(), beside="kernels").beside == report.beside[1:]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # transformers' own
@pytest.mark.usefixtures("liger")
def test_a_model_within_another() -> None:
    adapted = get_peft_model(FAMILIES["llama"].build(), LoraConfig(target_modules=["q_proj"]))
    inner = only(FAMILIES["llama"].build(), "liger").changes
    found = only(nn.ModuleDict({"a": nn.Identity(), "b": adapted}), "liger").changes
    assert [change.path for change in found] == [f"b.base_model.model.{one.path}".rstrip(".") for one in inner]
    (note,) = only(nn.Sequential(nn.SiLU()), "liger").notes
    assert note == "it has nothing for a Sequential without a transformers model"


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("bert", "apply_liger_kernel_to_bert fails on this model: cannot import name 'other_forward'"),
        ("t5-v1.1", "apply_liger_kernel_to_t5 fails on this model: TypeError: Unsupported: T5ForConditionalGeneration"),
        ("vit", "it has nothing for the model type vit (it knows 4)"),
    ],
)
def test_what_would_fail_is_told(family: str, says: str, liger: Path) -> None:
    model = FAMILIES[family].build()
    (note,) = only(model, "liger").notes
    assert note.startswith(says)
    if family != "vit":
        with pytest.raises((ImportError, TypeError)):
            apply(model.config.model_type, liger, copy.deepcopy(model))


def test_a_constructor_that_binding_goes_around(liger: Path) -> None:
    def mlp_at(act: str) -> str:
        config = copy.deepcopy(FAMILIES["llama"].build().config)
        config.hidden_act = act
        return only(modeling_llama.LlamaForCausalLM(config), "liger").at("model.layers.1.mlp")

    told = mlp_at("gelu")
    assert "it would refuse this config (ValueError: Activation function gelu not supported.)" in told
    assert "refuse" not in mlp_at("silu")
    config = FAMILIES["llama"].build().config
    config.hidden_act = "gelu"
    apply("llama", liger, FAMILIES["llama"].build())  # it replaces the class
    with pytest.raises(ValueError, match="Activation function gelu not supported"):
        modeling_llama.LlamaForCausalLM(config)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "what it would change cannot be read: 'MODEL_TYPE_TO_APPLY_LIGER_FN'"),
        (
            "raise ImportError('needs transformers 99')",
            "what it would change cannot be read: ImportError: needs transf",
        ),
        ("while True: pass", "what it would change cannot be read: line 1: While is not read here"),
        ("def (", "what it would change cannot be read: invalid syntax"),
        (
            "def f(model):\n    del model.lm_head\nMODEL_TYPE_TO_APPLY_LIGER_FN = {'llama': f}",
            "f cannot be followed to its end here: line 2: Delete is not read here",
        ),
    ],
)
def test_what_cannot_be_read_is_told(text: str, says: str, liger: Path) -> None:
    (liger / "transformers" / "monkey_patch.py").write_text(text, encoding="utf-8")
    (note,) = only(FAMILIES["llama"].build(), "liger").notes
    assert note.startswith(says)


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


def test_a_model_that_liger_has_bound_forwards_on(liger: Path) -> None:
    model = FAMILIES["llama"].build()
    apply("llama", liger, model)
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


def test_a_model_that_liger_built(liger: Path) -> None:
    config = FAMILIES["llama"].build().config
    apply("llama", liger, FAMILIES["llama"].build())
    model = modeling_llama.LlamaForCausalLM(config)
    with pytest.raises(NoSitesError, match=f"Liger-Kernel computes 2 × LigerSwiGLUMLP. .*{REMEDY}"):
        patch(model)


def test_liger_over_a_patch(liger: Path) -> None:
    model = FAMILIES["llama"].build()
    before = copy.deepcopy(model)
    patch(model, activation="relu")
    apply("llama", liger, model)
    assert "not run: Liger-Kernel has bound LigerSwiGLUMLP.forward there since" in explain(model)
    unpatch(model)
    wanted = copy.deepcopy(before)
    apply("llama", liger, wanted)
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
    happened = {path: by.replace("lce_forward", f"{kind}_lce_forward") for path, by in bound(patched, model).items()}
    happened[""] = found.changes[0].text.partition(" replaces")[0]  # by the name under which it is imported
    assert {change.path: change.text.partition(" replaces")[0] for change in found.changes} == happened
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
