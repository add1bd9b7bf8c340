"""patch, unpatch and patched on real models: what they touch, what they leave, what they refuse."""

from __future__ import annotations

import copy
import functools
import json
import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module
from conftest import FAMILIES, Family, printed_by_fork
from peft import LoraConfig, get_peft_model
from test_models import ON_THE_CPU, same_state, state
from torch import Tensor, nn

from hf_gelu_patch import (
    IMPLEMENTATIONS,
    AlreadyPatchedError,
    Implementation,
    ImplementationUnavailableError,
    NoSitesError,
    NothingMatchedError,
    NothingPatchedError,
    NothingPatchedWarning,
    NotPatchedError,
    PatchError,
    UnknownNameError,
    explain,
    find_sites,
    patch,
    patched,
    register_implementation,
    unpatch,
)
from hf_gelu_patch.forwards.class_binding import is_patched, kept

GPT2 = FAMILIES["gpt2"]


def out(model: nn.Module, family: Family = GPT2) -> Tensor:
    with torch.no_grad():
        return family.run(model)


# What a patch says


def test_the_report_reads_as_a_table(gpt2: nn.Module) -> None:
    report = patch(gpt2)
    assert str(report) == (
        "GPT2LMHeadModel: 2 of 2 activation sites patched\n"
        "  2 × GPT2MLP.act  linear  gelu_new → gelu_tanh  aten, rounding; 8 aten ops become one, "
        "in place on the linear layer's output where that is large and no gradient is needed"
    )


def test_the_report_is_data(bert: nn.Module) -> None:
    report = find_sites(bert, activation="relu", exclude="*layer.1*")
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert [site["path"] for site in data["sites"]] == [
        "bert.encoder.layer.0.intermediate.intermediate_act_fn",
        "bert.encoder.layer.1.intermediate.intermediate_act_fn",
        "bert.pooler.activation",
    ]
    first, second, pooler = data["sites"]
    assert first["equivalence"] == "different"
    assert first["bound"] == pytest.approx(0.17, abs=0.001)
    assert (first["implementation"], first["target"], first["device"], first["dtype"]) == (
        "aten",
        "relu",
        "cpu",
        "float32",
    )
    assert second["implementation"] is None
    assert second["reason"] == "excluded by '*layer.1*'"
    assert "usually no hidden-layer activation: it is swapped only where include= names it" in pooler["reason"]
    assert find_sites(bert, activation="tanh").to_dict()["sites"][0]["bound"] is None  # unbounded


def test_the_report_says_where_each_site_is_written(bert: nn.Module) -> None:
    layer, _, pooler = find_sites(bert).to_dict()["sites"]
    assert (layer["kind"], layer["fused"], layer["written"], layer["owner"]) == (
        "linear",
        True,
        False,
        "BertIntermediate",
    )
    assert layer["owner_path"] == "bert.encoder.layer.0.intermediate"
    for site, text in ((layer, "self.intermediate_act_fn(hidden_states)"), (pooler, "self.activation(pooled_output)")):
        lines = Path(site["file"]).read_text().splitlines()[site["line"] - 1 : site["end_line"]]
        assert any(text in line for line in lines)


def nothing_to_gain() -> nn.Module:
    """One-op activations behind what cannot be fused with one."""
    return nn.Sequential(nn.LayerNorm(4), nn.GELU(), nn.LayerNorm(4), nn.GELU(), nn.LayerNorm(4), nn.Tanh())


def test_every_site_left_alone_has_its_reason() -> None:  # trap 8
    report = find_sites(nothing_to_gain())
    assert report.changed == ()
    assert {site.reason for site in report.unchanged} == {
        "gelu is one aten op already",
        "tanh is one aten op already",
    }


@pytest.mark.parametrize(
    ("source", "target", "equivalence", "bound"),
    [
        ("gelu", "gelu_tanh", "approximate", 4.732e-4),
        ("gelu_new", "gelu", "approximate", 4.732e-4),
        ("quick_gelu", "gelu_fast", "approximate", 0.02066),
        ("gelu", "silu", "different", 0.193),
        ("gelu_new", "gelu_pytorch_tanh", "rounding", 0.0),
        ("relu2", "relu2", "identical", 0.0),
        ("gelu", "tanh", "different", float("inf")),
    ],
)
def test_equivalence_and_its_bound(source: str, target: str, equivalence: str, bound: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2), transformers.activations.ACT2FN[source])
    (site,) = find_sites(model, activation=target).sites
    assert (site.equivalence, site.bound) == (equivalence, pytest.approx(bound, rel=0.01))


def test_find_sites_changes_nothing(gpt2: nn.Module) -> None:
    before = state(gpt2)
    find_sites(gpt2, activation="silu")
    assert same_state(before, gpt2)
    assert gpt2.config.activation_function == "gelu_new"


# Selection


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        ("*.h.0.*", 1),
        ("transformer.h.1.mlp.act", 1),
        (["*.h.0.*", "*.h.1.*"], 2),
        ("GPT2MLP", 2),
        ("NewGELUActivation", 2),
        ("gelu_new", 2),
        ("gelu_tanh", 2),
        (transformers.models.gpt2.modeling_gpt2.GPT2MLP, 2),
        (transformers.activations.NewGELUActivation, 2),
    ],
)
def test_include_and_exclude(gpt2: nn.Module, include: object, expected: int) -> None:
    assert len(find_sites(gpt2, include=include).changed) == expected
    assert len(find_sites(gpt2, exclude=include).changed) == 2 - expected


def test_exclude_wins_over_include(gpt2: nn.Module) -> None:
    report = patch(gpt2, include="GPT2MLP", exclude="*.1.*")
    assert [site.path for site in report.changed] == ["transformer.h.0.mlp.act"]


def test_what_is_no_hidden_activation_is_swapped_only_by_name(bert: nn.Module) -> None:
    assert "bert.pooler.activation" not in [site.path for site in find_sites(bert, activation="silu").changed]
    only = find_sites(bert, activation="silu", include="*pooler*").changed
    assert [site.path for site in only] == ["bert.pooler.activation"]


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_a_pattern_that_matches_nothing(gpt2: nn.Module, argument: str) -> None:
    before = state(gpt2)
    with pytest.raises(NothingMatchedError, match=r"'encoder\.\*' matches no site.*transformer\.h\.0\.mlp\.act"):
        patch(gpt2, **{argument: ["gelu_new", "encoder.*"]})
    with pytest.raises(PatchError, match="glob patterns and module classes"):
        patch(gpt2, **{argument: [3.0]})
    assert same_state(before, gpt2)


# Undo


def test_only_the_given_instance_is_touched() -> None:  # trap 9
    student, teacher = GPT2.build(), GPT2.build()
    before = state(teacher)
    patch(student, activation="relu")
    assert same_state(before, teacher)
    assert teacher.config.activation_function == "gelu_new"
    assert not torch.equal(out(student), out(teacher))


def test_process_wide_singletons_are_left_as_they_are() -> None:
    config = transformers.XLMConfig(emb_dim=32, n_layers=2, n_heads=4, n_words=64, gelu_activation=True)
    model = transformers.XLMModel(config).eval()
    shared = transformers.activations.gelu
    before = copy.copy(vars(shared))
    report = patch(model, activation="relu")
    assert [site.path for site in report.changed] == ["ffns.0.act", "ffns.1.act"]
    assert model.ffns[0].act is model.ffns[1].act
    assert vars(shared) == before
    assert transformers.activations.gelu is shared
    assert len(shared._forward_hooks) == 0
    unpatch(model)
    assert all(layer.act is shared for layer in model.ffns)


def test_undo_restores_the_identical_objects_and_leaves_nothing(gpt2: nn.Module) -> None:  # trap 10
    before = state(gpt2)
    config = gpt2.config.to_dict()
    patch(gpt2, activation="silu")
    unpatch(gpt2)
    assert same_state(before, gpt2)
    assert gpt2.config.to_dict() == config
    assert not any("hf_gelu_patch" in repr(value) for module in gpt2.modules() for value in vars(module).values())


def test_a_patch_that_changed_nothing_is_undone_where_nothing_may_be_missing(bert: nn.Module) -> None:
    before = state(bert)
    with pytest.warns(NothingPatchedWarning):
        patch(bert, implementation="eager")
    with pytest.raises(NotPatchedError, match=r"nothing to undo.*unpatch\(model, missing_ok=True"):
        unpatch(bert)
    unpatch(bert, missing_ok=True)
    assert same_state(before, bert)
    patch(bert, activation="silu")
    unpatch(bert, missing_ok=True)
    assert same_state(before, bert)
    with pytest.raises(PatchError, match=r"only a torch.nn.Module can be patched; got NoneType\.$"):
        unpatch(None, missing_ok=True)  # type: ignore[arg-type]


class Holder:
    """What holds modules and is none, as a pipeline of diffusers does."""

    def __init__(self, **held: object) -> None:
        vars(self).update(held)


class Guarded(Holder):
    """The same, as lm_eval's models do."""

    @property
    def model(self) -> object:
        return self._model  # type: ignore[attr-defined]


SMALL, LARGE_ONE = nn.Linear(2, 2), nn.Linear(9, 9)


@pytest.mark.parametrize(
    ("what", "remedy"),
    [
        (Holder(vae=SMALL, unet=LARGE_ONE, scheduler="x"), "Give it its .unet or its .vae, each by itself."),
        (Holder(model=SMALL, model_wrapped=SMALL), "Give it its .model."),
        (Guarded(_model=SMALL, tokenizer=None), "Give it its .model."),
        (Holder(_net=SMALL), "Give it its ._net."),
        ((SMALL, None, len), "Give it its [0]."),
        ({"student": SMALL}, "Give it its ['student']."),
        (
            Holder(**{f"m{n}": nn.Linear(n, 1) for n in range(2, 9)}),
            "its .m5 or another that it holds, each by itself.",
        ),
        ("openai-community/gpt2", "Load it first, with from_pretrained for one."),
        (nn.Linear, "got type. Linear is a class: load a model, or make one of it."),
        (Holder(a=1), "got Holder."),
    ],
    ids=lambda value: value[-12:] if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_module_is_told_where_the_modules_are(what: Any, remedy: str) -> None:
    for look in (patch, find_sites, unpatch, explain):
        with pytest.raises(PatchError) as told:
            look(what)
        assert str(told.value).endswith(remedy)


def test_the_modules_keep_their_names(gpt2: nn.Module) -> None:
    names = [name for name, _ in gpt2.named_modules()]
    patch(gpt2)
    assert [name for name, _ in gpt2.named_modules()] == names


def test_a_shared_activation_stays_shared() -> None:  # trap 20
    act = transformers.activations.NewGELUActivation()
    model = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act)
    report = patch(model)
    assert model[1] is model[3] is act
    assert [site.path for site in report.changed] == ["1", "3"]
    unpatch(model)
    report = patch(model, activation="silu")
    assert model[1] is model[3]
    assert model[1] is not act
    assert [site.path for site in report.changed] == ["1", "3"]
    unpatch(model)
    assert model[1] is act
    assert model[3] is act


def test_an_owner_that_is_shared_is_patched_once() -> None:
    block = nn.Sequential(nn.Linear(4, 4), transformers.activations.NewGELUActivation())
    model = nn.ModuleList([block, block])
    original = block[1]
    patch(model)
    unpatch(model)
    assert block[1] is original


def test_training_mode_follows_through_the_patch(gpt2: nn.Module) -> None:
    gpt2.train()
    originals = [layer.mlp.act for layer in gpt2.transformer.h]
    patch(gpt2)
    gpt2.eval()
    unpatch(gpt2)
    assert [original.training for original in originals] == [False, False]


def test_patched_undoes_on_exceptions_too(gpt2: nn.Module) -> None:
    before = state(gpt2)
    with pytest.raises(IndexError), patched(gpt2, activation="silu") as report:
        report.changed[2]
    assert len(report.changed) == 2
    assert same_state(before, gpt2)
    assert gpt2.config.activation_function == "gelu_new"


def test_patched_with_nothing_to_change_ends_quietly() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingPatchedWarning)
        with patched(nothing_to_gain()) as report:
            assert report.changed == ()


class _LostDevice(AlignDevicesHook):
    def init_hook(self, module: nn.Module) -> nn.Module:  # noqa: ARG002
        raise OSError("device lost")


def test_a_failure_half_way_rolls_everything_back() -> None:
    act = transformers.activations.NewGELUActivation()
    act._hf_hook = _LostDevice()  # cannot be attached to what would replace it
    model = nn.ModuleList([GPT2.build(), nn.Sequential(act)])  # found last
    before = state(model)
    with pytest.raises(OSError, match="device lost"):
        patch(model, activation="silu")
    assert same_state(before, model)
    assert model[0].config.activation_function == "gelu_new"


# What a model goes through


def test_deep_copies_before_and_after(gpt2: nn.Module) -> None:
    plain = copy.deepcopy(gpt2)
    own = out(gpt2)
    patch(gpt2, activation="silu")
    swapped = out(gpt2)
    assert torch.equal(out(plain), own)
    twin = copy.deepcopy(gpt2)
    assert torch.equal(out(twin), swapped)
    unpatch(twin)
    assert torch.equal(out(twin), own)
    assert twin.config.activation_function == "gelu_new"
    assert gpt2.config.activation_function == "silu"
    assert torch.equal(out(gpt2), swapped)
    assert twin.transformer.h[0].mlp.act is not kept(gpt2.transformer.h[0].mlp.act).original


@pytest.mark.parametrize("implementation", ON_THE_CPU)
@pytest.mark.parametrize("activation", ["silu", "quick_gelu", "relu_squared"])
def test_pickled(gpt2: nn.Module, implementation: str, activation: str) -> None:
    own = out(gpt2)
    if not IMPLEMENTATIONS[implementation].computes(activation, torch.device("cpu")):
        activation = "leaky_relu"
    patch(gpt2, activation=activation, implementation=implementation)
    again = pickle.loads(pickle.dumps(gpt2))
    assert torch.equal(out(again), out(gpt2))
    unpatch(again)
    assert torch.equal(out(again), own)


def test_saved_and_reloaded_a_swap_computes_the_same(family: Family, tmp_path: Path) -> None:  # trap 21
    model = family.build()
    own = out(model, family)
    model.save_pretrained(tmp_path / "own")  # writes into the config itself
    config = model.config.to_dict()
    report = patch(model, activation="mish")
    assert len(report.changed) >= 2
    assert any("→ 'mish'" in line for line in report.config) == (family.name != "bloom")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    if family.name == "bloom":  # its class hard-codes the function: no config entry can follow, and the report says so
        assert any("a reload computes the old function" in line for line in report.config)
        assert torch.equal(out(again, family), own)
    else:
        torch.testing.assert_close(out(again, family), out(model, family), rtol=0, atol=0)
        assert not torch.equal(out(again, family), own)
    unpatch(model)
    assert model.config.to_dict() == config
    assert torch.equal(out(model, family), own)


def test_a_config_entry_that_sets_other_sites_too_stays(gpt2: nn.Module) -> None:
    report = patch(gpt2, activation="silu", include="*.h.0.*")
    assert gpt2.config.activation_function == "gelu_new"
    assert any("stays 'gelu_new'" in line and "transformer.h.1.mlp.act" in line for line in report.config)
    assert any("a reload computes the old function at transformer.h.0.mlp.act" in line for line in report.config)


class _StubbornConfig(transformers.BertConfig):
    """Says what it says whatever was saved."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**{**kwargs, "hidden_act": "gelu"})


class _StubbornBert(transformers.BertModel):
    config_class = _StubbornConfig


def test_a_config_entry_that_does_not_survive_reloading_is_not_followed() -> None:
    model = _StubbornBert(_StubbornConfig(**FAMILIES["bert"].config().to_dict()))
    report = patch(model, activation="silu")
    assert len(report.changed) == 2
    assert model.config.hidden_act == "gelu"
    assert any("not followed at 2 of 2 sites" in line for line in report.config)


def test_half_of_a_composite_config_follows() -> None:
    clip = FAMILIES["clip"].build()
    patch(clip, activation="gelu", include="text_model.*")
    assert clip.config.text_config.hidden_act == "gelu"
    assert clip.config.vision_config.hidden_act == "quick_gelu"
    unpatch(clip)
    assert clip.config.text_config.hidden_act == "quick_gelu"


def test_following_a_swap_draws_no_random_numbers(gpt2: nn.Module) -> None:
    before = torch.get_rng_state()
    patch(gpt2, activation="silu")
    assert torch.equal(torch.get_rng_state(), before)


def test_what_was_set_since_is_not_undone(gpt2: nn.Module) -> None:
    patch(gpt2, activation="silu")
    gpt2.config.activation_function = "relu"
    unpatch(gpt2)
    assert gpt2.config.activation_function == "relu"


def test_without_a_transformers_config_the_report_says_so() -> None:
    report = patch(nn.Sequential(nn.Linear(2, 2), nn.GELU()), activation="silu")
    assert "a model without a transformers config" in report.config[0]


def test_tied_weights_stay_tied(gpt2: nn.Module) -> None:
    patch(gpt2)
    assert gpt2.lm_head.weight is gpt2.transformer.wte.weight


def test_on_the_meta_device() -> None:
    family = FAMILIES["vit"]
    with torch.device("meta"):
        model = transformers.ViTForImageClassification(family.config()).eval()
    report = patch(model, implementation="triton")
    assert {site.device for site in report.changed} == {"meta"}
    assert model(torch.zeros(1, 3, 16, 16, device="meta")).logits.is_meta
    loaded = family.build()
    model.load_state_dict(loaded.state_dict(), assign=True)
    torch.testing.assert_close(out(model, family), out(loaded, family))
    unpatch(model)
    assert torch.equal(out(model, family), out(loaded, family))


def test_inside_a_pipeline(gpt2: nn.Module) -> None:
    vocabulary = {chr(ord("a") + i): i for i in range(26)} | {"[UNK]": 26}
    from tokenizers import Tokenizer, models, pre_tokenizers

    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[UNK]")
    pipe = transformers.pipeline("text-generation", model=gpt2, tokenizer=tokenizer, device="cpu")

    def run() -> str:
        settings = transformers.GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=2)
        return pipe("hello", generation_config=settings)[0]["generated_text"]

    own = run()
    with pytest.raises(PatchError, match=r"got TextGenerationPipeline\. Give it its \.model\.$"):
        patch(pipe)
    patch(pipe.model)
    assert run() == own
    unpatch(pipe.model)
    assert run() == own


def test_beneath_accelerates_dispatch_hooks(gpt2: nn.Module, tmp_path: Path) -> None:  # trap 5
    own = out(gpt2)
    model = dispatch_model(
        gpt2,
        {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.drop": "cpu", "transformer.h.0": "cpu"}
        | {"transformer.h.1.mlp": "disk", "transformer.h.1.ln_1": "cpu", "transformer.h.1.attn": "cpu"}
        | {"transformer.h.1.ln_2": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"},
        main_device="cpu",
        offload_dir=tmp_path,
        force_hooks=True,
    )
    hooks = {path: module._hf_hook for path, module in model.named_modules() if hasattr(module, "_hf_hook")}
    assert "transformer.h.1.mlp.c_fc" in hooks
    report = patch(model)
    assert {site.device for site in report.changed} == {"cpu"}
    torch.testing.assert_close(out(model), own)
    assert {path: module._hf_hook for path, module in model.named_modules() if hasattr(module, "_hf_hook")} == hooks
    remove_hook_from_module(model.transformer.h[0], recurse=True)
    assert is_patched(model.transformer.h[0].mlp)
    torch.testing.assert_close(out(model), own)
    unpatch(model)
    assert torch.equal(out(model), own)


class _Counting(AlignDevicesHook):
    def __init__(self) -> None:
        super().__init__(execution_device="cpu")
        self.calls = 0

    def pre_forward(self, module: nn.Module, *args: object, **kwargs: object) -> tuple[object, object]:
        self.calls += 1
        return super().pre_forward(module, *args, **kwargs)


def test_an_accelerate_hook_on_the_activation_itself_survives(gpt2: nn.Module) -> None:  # trap 5
    act = gpt2.transformer.h[0].mlp.act
    hook = _Counting()
    add_hook_to_module(act, hook)
    before = state(gpt2)
    own = out(gpt2)
    patch(gpt2)
    torch.testing.assert_close(out(gpt2), own)
    assert hook.calls == 2
    unpatch(gpt2)
    assert same_state(before, gpt2)
    assert act._hf_hook is hook
    out(gpt2)
    assert hook.calls == 3
    patch(gpt2)
    remove_hook_from_module(gpt2, recurse=True)  # removing the hook does not undo the patch
    out(gpt2)
    assert hook.calls == 3
    assert gpt2.transformer.h[0].mlp.act is not act
    unpatch(gpt2)
    assert "_hf_hook" not in vars(act)
    patch(gpt2)  # accelerate leaves a bound forward behind, which is the class's own
    assert gpt2.transformer.h[0].mlp.act is not act
    add_hook_to_module(gpt2.transformer.h[0].mlp.act, hook)
    unpatch(gpt2)
    out(gpt2)
    assert hook.calls == 4


def test_cpu_offload_after_the_patch(gpt2: nn.Module) -> None:
    own = out(gpt2)
    patch(gpt2)
    new = out(gpt2)
    cpu_offload(gpt2, execution_device=torch.device("cpu"))
    assert torch.equal(out(gpt2), new)
    unpatch(gpt2)
    assert torch.equal(out(gpt2), own)


def test_the_users_hooks_fire_before_during_and_after(gpt2: nn.Module) -> None:
    act = gpt2.transformer.h[0].mlp.act
    fired: list[str] = []
    early = act.register_forward_hook(lambda *_: fired.append("early"))
    act.register_forward_pre_hook(lambda *_: fired.append("pre"))
    act.register_full_backward_hook(lambda *_: fired.append("backward"))
    patch(gpt2)
    late = gpt2.transformer.h[0].mlp.act.register_forward_hook(lambda *_: fired.append("late"))
    GPT2.run(gpt2).sum().backward()
    assert fired == ["pre", "early", "late", "backward"]
    early.remove()
    unpatch(gpt2)
    fired.clear()
    out(gpt2)
    assert fired == ["pre", "late"]
    late.remove()
    fired.clear()
    out(gpt2)
    assert fired == ["pre"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_wrapped_by_peft(gpt2: nn.Module, when: str) -> None:
    own = out(gpt2)
    if when == "after":
        patch(gpt2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(gpt2, LoraConfig(target_modules=["c_fc"], r=2, init_lora_weights=False))
    wrapped.eval()
    if when == "before":
        patch(wrapped)
    new = out(wrapped)
    GPT2.run(wrapped).sum().backward()
    gradients = [weight.grad for name, weight in wrapped.named_parameters() if "lora" in name]
    assert len(gradients) == 4
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)
    unpatch(wrapped)
    torch.testing.assert_close(out(wrapped), new, rtol=1e-4, atol=1e-4)
    with wrapped.disable_adapter():
        assert torch.equal(out(wrapped), own)


def test_a_compiled_model_patched_and_unpatched(gpt2: nn.Module) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(gpt2, backend="aot_eager")
    own = out(compiled)
    report = patch(compiled, activation="relu")
    assert report.changed[0].path == "_orig_mod.transformer.h.0.mlp.act"
    with torch.no_grad():
        torch.testing.assert_close(out(compiled), out(gpt2), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(out(compiled), own)
        unpatch(compiled)
        torch.testing.assert_close(out(compiled), own)


# What is left alone, for reasons of its own


def test_learned_activations_are_neither_swapped_nor_a_target() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.PReLU())
    assert "learned parameters" in find_sites(model, activation="silu").sites[0].reason
    with pytest.raises(PatchError, match="prelu has learned parameters"):
        patch(nn.Sequential(nn.GELU()), activation="prelu")


def test_torchs_own_encoder_layer_goes_around_its_activation() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.GELU(), batch_first=True)
    assert "goes around" in find_sites(model, activation="silu").sites[0].reason


def test_scripted_modules_are_left_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.GELU()))
    assert find_sites(nn.ModuleList([scripted]), activation="silu").sites == ()


def test_unknown_activations_are_listed(gpt2: nn.Module) -> None:
    class MyGELU(nn.GELU):
        def forward(self, input: Tensor) -> Tensor:
            return torch.sin(input) + input

    gpt2.transformer.h[0].mlp.act = MyGELU()
    report = patch(gpt2)
    assert len(report.changed) == 1
    assert "its values are those of no known activation" in report.unchanged[0].reason


# Bad input


@pytest.mark.parametrize("act", [patch, find_sites, unpatch, explain])
@pytest.mark.parametrize("given", ["bert-base-uncased", None, nn.GELU, [nn.GELU()], {"weight": torch.zeros(2)}])
def test_not_a_module(act: Callable[[Any], object], given: object) -> None:
    with pytest.raises(PatchError, match=rf"only a torch\.nn\.Module can be patched; got {type(given).__name__}"):
        act(given)


@pytest.mark.parametrize("margin", [-1, math.nan, "0.1", [0.1]])
def test_a_margin_that_is_none(gpt2: nn.Module, margin: Any) -> None:
    with pytest.raises(PatchError, match=r"margin is a number that is not negative.*; got "):
        patch(gpt2, verify=gpt2.dummy_inputs, margin=margin)
    assert patch(gpt2).changed


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize("selector", [3, nn.GELU(), [None], [torch.Tensor]], ids=lambda selector: repr(selector)[:8])
def test_a_selector_that_is_none(gpt2: nn.Module, argument: str, selector: Any) -> None:
    with pytest.raises(PatchError, match=f"{argument} takes glob patterns and module classes; got "):
        find_sites(gpt2, **{argument: selector})


@pytest.mark.parametrize("act", [nn.GELU(), nn.SiLU(), nn.Mish()])
def test_an_activation_alone(act: nn.Module) -> None:
    with pytest.raises(NoSitesError, match="It is an activation itself: patch the model that holds it"):
        patch(act)


def test_no_activation_at_all() -> None:
    with pytest.raises(NoSitesError, match=r"4 modules: 2 Linear, 1 Sequential, 1 LayerNorm"):
        patch(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2)))
    assert "no call of an activation in 1 module: 1 Linear" in str(find_sites(nn.Linear(2, 2)))


def test_nothing_changed_warns_with_the_reasons() -> None:
    model = nothing_to_gain()
    before = state(model)
    with pytest.warns(NothingPatchedWarning, match=r"0 of 3 .*2 × gelu: gelu is one aten op already; 1 × tanh"):
        patch(model)
    with pytest.raises(NothingPatchedError, match="2 × gelu: gelu is one aten op already"):
        patch(model, strict=True)
    assert same_state(before, model)


@pytest.mark.parametrize("argument", ["activation", "implementation"])
def test_unknown_names(gpt2: nn.Module, argument: str) -> None:
    before = state(gpt2)
    with pytest.raises(UnknownNameError, match="Valid names: "):
        patch(gpt2, **{argument: "gelu_newest"})
    assert same_state(before, gpt2)


def test_patched_already_and_not_patched(gpt2: nn.Module) -> None:
    with pytest.raises(NotPatchedError, match="nothing to undo"):
        unpatch(gpt2)
    patch(gpt2.transformer)
    before = state(gpt2)
    for call in (patch, find_sites):
        with pytest.raises(AlreadyPatchedError, match=r"transformer\.h\.0\.mlp is patched already: unpatch"):
            call(gpt2)
    assert same_state(before, gpt2)
    unpatch(gpt2)
    with pytest.raises(NotPatchedError):
        unpatch(gpt2)


@pytest.mark.parametrize("part", ["", "0", "0.mlp"])
def test_a_part_that_is_patched_already_is_found_from_above_and_from_itself(part: str) -> None:
    """Where it is a forward that was rewritten, where it is a module that was replaced."""
    rewritten = nn.ModuleList([FAMILIES["llama"].build().model.layers[0]])
    patch(rewritten.get_submodule(part))
    with pytest.raises(AlreadyPatchedError, match="is patched already: unpatch"):
        patch(rewritten)
    with pytest.raises(AlreadyPatchedError, match="LlamaMLP is patched already"):
        patch(rewritten[0].mlp)
    replaced = nn.ModuleList([nn.Sequential(nn.LayerNorm(4), transformers.activations.NewGELUActivation())])
    patch(replaced, activation="silu")
    with pytest.raises(AlreadyPatchedError, match=r"0 is patched already: unpatch"):
        patch(nn.ModuleList([replaced[0][1]]))


def test_an_implementation_that_cannot_run_here(gpt2: nn.Module) -> None:
    before = state(gpt2)
    with pytest.raises(ImplementationUnavailableError, match=r"'epilogue' cannot run at transformer\.h\.0\.mlp\.act"):
        patch(gpt2.double(), implementation="epilogue")
    gpt2.float()
    nowhere = Implementation("nowhere", {"gelu_tanh": F.relu}, devices=frozenset({"npu"}))
    absent = Implementation("absent", {"gelu_tanh": F.relu}, missing=lambda: "the absent package is not installed")
    try:
        register_implementation(nowhere)
        register_implementation(absent)
        with pytest.raises(
            ImplementationUnavailableError, match=r"runs on npu.*on cpu.*What can.*: eager, aten,.* triton"
        ):
            patch(gpt2, implementation="nowhere")
        with pytest.raises(ImplementationUnavailableError, match="absent package is not installed"):
            patch(gpt2, implementation="absent")
        with pytest.raises(ImplementationUnavailableError, match="float64"):
            patch(gpt2.double(), implementation="triton")
    finally:
        IMPLEMENTATIONS.pop("nowhere", None)
        IMPLEMENTATIONS.pop("absent", None)
    assert same_state(before, gpt2)


@pytest.mark.parametrize("kinds", [(), ("gated",), ("linear",), ("gated", "linear")])
def test_an_implementation_fuses_only_the_kinds_it_declares(kinds: tuple[str, ...]) -> None:
    calls: list[str] = []

    def pointwise(x: Tensor) -> Tensor:
        calls.append("pointwise")
        return F.gelu(x, approximate="tanh")

    def gated(gate: Tensor, up: Tensor) -> Tensor:
        calls.append("gated")
        return F.gelu(gate, approximate="tanh") * up

    def linear(layer: nn.Module, x: Tensor) -> Tensor:
        calls.append("linear")
        return F.gelu(layer(x), approximate="tanh")

    fused = {"gated": {"gelu_tanh": gated}, "linear": {"gelu_tanh": linear}}
    try:
        register_implementation(
            Implementation("mine", {"gelu_tanh": pointwise}, **{kind: fused[kind] for kind in kinds})
        )
        for name, kind in (("gpt2", "linear"), ("t5-v1.1", "gated")):
            family = FAMILIES[name]
            model = family.build()
            own = out(model, family)
            calls.clear()
            with patched(model, implementation="mine") as report:
                torch.testing.assert_close(out(model, family), own, rtol=1e-3, atol=1e-4)
            assert {(site.kind, site.fused, site.reason) for site in report.sites} == {
                (kind, kind in kinds, "asked for")
            }
            assert calls == [kind if kind in kinds else "pointwise"] * family.sites
    finally:
        IMPLEMENTATIONS.pop("mine", None)


def test_an_implementation_without_the_activation_leaves_the_site_alone(gpt2: nn.Module) -> None:
    (reason,) = {site.reason for site in find_sites(gpt2, implementation="triton", activation="elu").sites}
    assert reason == "triton does not compute elu"


def test_triton_on_a_cpu_is_refused_with_what_can() -> None:
    code = """
import torch, transformers
from hf_gelu_patch import patch
model = torch.nn.Sequential(torch.nn.Linear(2, 2), transformers.activations.NewGELUActivation())
try:
    patch(model, implementation="triton")
except ValueError as error:
    print(error)
"""
    printed = printed_by_fork(code)
    assert "'triton' cannot run at 1: it runs on cuda, and the model is on cpu. What can" in printed
    assert "eager, aten" in printed
    assert "triton" not in printed.partition("What can")[2]


def test_an_implementation_without_a_backward(gpt2: nn.Module) -> None:  # trap 2
    forward_only = Implementation(
        "forward_only", {"gelu_tanh": functools.partial(F.gelu, approximate="tanh")}, backward=False
    )
    try:
        register_implementation(forward_only)
        patch(gpt2, implementation="forward_only")
        out(gpt2)
        with pytest.raises(RuntimeError, match=r"'forward_only' has no backward.*unpatch"):
            GPT2.run(gpt2)
    finally:
        del IMPLEMENTATIONS["forward_only"]


@pytest.mark.parametrize("name", ["t5-v1.1", "gpt2"])
def test_a_fused_form_without_a_backward(name: str) -> None:  # trap 2: also where only the weights need a gradient
    family = FAMILIES[name]
    tanh = functools.partial(F.gelu, approximate="tanh")
    forward_only = Implementation(
        "forward_only",
        {"gelu_tanh": tanh},
        gated={"gelu_tanh": lambda gate, up: tanh(gate) * up},
        linear={"gelu_tanh": lambda linear, x: tanh(linear(x))},
        backward=False,
    )
    try:
        register_implementation(forward_only)
        model = family.build()
        assert {site.fused for site in patch(model, implementation="forward_only").sites} == {True}
        out(model, family)
        for weight in model.parameters():
            weight.requires_grad_(False)
        family.run(model)
        mlp = next(module for module in model.modules() if type(module).__name__ in ("GPT2MLP", "T5DenseGatedActDense"))
        (mlp.c_fc if name == "gpt2" else mlp.wi_1).weight.requires_grad_(True)  # T5: up, the other factor
        with pytest.raises(RuntimeError, match=r"'forward_only' has no backward.*unpatch"):
            family.run(model)
    finally:
        del IMPLEMENTATIONS["forward_only"]
