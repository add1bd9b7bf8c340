"""Tiny models of various kinds: built, run whole, the same each time, and nothing else touched."""

from __future__ import annotations

import functools
import random
import sys
import warnings

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.activations import ACT2CLS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_gelu_patch.verification import output_tensors
from scripts.covering import feeding, overrides
from scripts.covering.tiny import TinyModel, TinyModelError, model_types, tiny_model

# One of each kind, and the towers whose activations the inputs have to reach.
TOWERS = {
    "bert": ["encoder"],
    "t5": ["encoder", "decoder"],
    "vit": ["layers"],
    "swin": ["encoder"],
    "whisper": ["encoder", "decoder"],
    "wav2vec2": ["encoder", "feature_extractor"],
    "clip": ["text_model", "vision_model"],
    "llava": ["vision_tower", "multi_modal_projector", "language_model"],
    "llava_next": ["vision_tower", "multi_modal_projector", "language_model"],
    "qwen2_5_vl": ["visual", "language_model"],
    "qwen2_audio": ["audio_tower", "language_model"],
    "mixtral": ["layers"],
    "jamba": ["layers"],
    "mamba2": [],  # calls its activation as a function
    "patchtst": ["encoder"],
    "detr": ["backbone", "encoder", "decoder"],
}
ACTIVATIONS = tuple({cls[0] if isinstance(cls, tuple) else cls for cls in ACT2CLS.values()})


@functools.cache
def made(model_type: str) -> TinyModel:
    return tiny_model(model_type)


def activations(model: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in model.named_modules() if isinstance(module, ACTIVATIONS)}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize("model_type", TOWERS)
def test_runs_finite_small_and_the_same_each_time(model_type: str) -> None:
    one, other = made(model_type), tiny_model(model_type)
    assert one.model.config.model_type == model_type
    assert not one.model.training
    assert {parameter.dtype for parameter in one.model.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in one.model.parameters()) < 3e6
    assert same(one.model.state_dict(), other.model.state_dict())
    outputs = output_tensors(one.run())
    assert outputs
    assert all(tensor.isfinite().all() for tensor in outputs.values())
    assert max(tensor.std() for tensor in outputs.values() if tensor.numel() > 1) > 0.1
    assert same(outputs, output_tensors(one.run()))
    assert same(outputs, output_tensors(other.run(one.model)))


@pytest.mark.parametrize("model_type", TOWERS)
def test_inputs_reach_every_tower(model_type: str) -> None:
    model = made(model_type).model
    reached: dict[str, float] = {}

    def note(path: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return module.register_forward_pre_hook(lambda _, inputs: reached.__setitem__(path, float(inputs[0].std())))

    handles = [note(path, module) for path, module in activations(model).items()]
    made(model_type).run()
    for handle in handles:
        handle.remove()
    for tower in TOWERS[model_type]:
        sizes = [size for path, size in reached.items() if tower in path.split(".")]
        assert sizes, f"no activation runs in {tower}"
        assert all(0.02 < size < 100 for size in sizes), sizes


def test_keeps_what_alternates() -> None:
    assert {type(layer).__name__ for layer in tiny_model("jamba").model.layers} == {
        "JambaAttentionDecoderLayer",
        "JambaMambaDecoderLayer",
    }
    mlps = {type(layer.mlp).__name__ for layer in tiny_model("deepseek_v3").model.layers}
    assert mlps == {"DeepseekV3MLP", "DeepseekV3MoE"}
    assert set(tiny_model("gemma3_text").model.config.layer_types) == {"sliding_attention", "full_attention"}


@pytest.mark.parametrize(("model_type", "name"), [("t5", "feed_forward_proj"), ("gpt2", "activation_function")])
def test_activations_are_those_of_the_default(model_type: str, name: str) -> None:
    default = transformers.AutoConfig.for_model(model_type)
    assert getattr(tiny_model(model_type).model.config, name) == getattr(default, name)


def test_the_seed_sets_the_weights() -> None:
    one, other = (dict(tiny_model("gpt2", seed=seed).model.named_parameters()) for seed in (0, 1))
    assert not torch.equal(one["h.0.mlp.c_fc.weight"], other["h.0.mlp.c_fc.weight"])


def test_what_draws_at_random_draws_the_same_each_time() -> None:
    vits = tiny_model("vits")  # speaks with noise
    torch.manual_seed(1)
    one = output_tensors(vits.run())
    torch.manual_seed(2)
    assert same(one, output_tensors(vits.run()))


def test_weights_that_a_class_leaves_unset_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.PreTrainedModel, "init_weights", lambda _: None)
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda _: None)  # leaves what torch.empty gave
    one, other = tiny_model("llama"), tiny_model("llama")
    assert all(parameter.isfinite().all() for parameter in one.model.parameters())
    assert same(one.model.state_dict(), other.model.state_dict())


def test_output_tensors_are_named() -> None:
    cache = transformers.DynamicCache()
    cache.update(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), 0)
    output = {
        "logits": torch.ones(2),
        "ids": torch.ones(2, dtype=torch.long),
        "states": (torch.ones(1),),
        "past": cache,
    }
    names = {"logits", "states.0", "past.layers.0.keys", "past.layers.0.values"}
    assert set(output_tensors(output)) == names
    assert set(output_tensors((torch.ones(1), None))) == {"0"}


def test_unknown_and_impossible_types_are_refused() -> None:
    with pytest.raises(TinyModelError, match="unknown model type 'brt'"):
        tiny_model("brt")
    with pytest.raises(TinyModelError, match="timm"):
        tiny_model("timm_backbone")


def test_an_argument_that_nobody_can_make_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(feeding.BUILDERS, "past_values")
    with pytest.raises(TinyModelError, match=r"patchtst: .*no input for 'past_values' of PatchTSTModel\.forward"):
        tiny_model("patchtst")


@pytest.mark.parametrize("model_type", ["bert", "timm_backbone"])
def test_global_state_is_as_before(model_type: str, capfd: pytest.CaptureFixture[str]) -> None:
    def state() -> list[object]:
        return [
            torch.get_rng_state().tolist(),
            random.getstate(),
            str(np.random.get_state()),
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_grad_enabled(),
            list(warnings.filters),
            transformers.logging.get_verbosity(),
        ]

    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    torch.use_deterministic_algorithms(False)
    before = state()
    try:
        tiny_model(model_type).run()
    except TinyModelError:
        assert model_type == "timm_backbone"
    assert state() == before
    assert capfd.readouterr() == ("", "")


def test_model_types() -> None:
    types = model_types()
    assert list(types) == sorted(types)
    assert {"bert", "clip_text_model", "llava"} <= set(types)
    assert len(types) >= 650
    if sys.version_info >= (3, 11):  # Python 3.10 has an older transformers, without the newest types
        assert {*overrides.OVERRIDES, *feeding.FEEDS} - {""} <= set(CONFIG_MAPPING)
