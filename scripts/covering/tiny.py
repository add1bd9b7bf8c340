"""A tiny random model of almost every type that transformers knows, from its configuration alone, with inputs for it.

    from scripts.covering.tiny import model_types, tiny_model

    tiny = tiny_model("llava")
    tiny.run().last_hidden_state

The default configuration is shrunk by the names and values of its entries; the activations it names stay as they are.
The inputs follow from the signature of the model's ``forward``. Nothing is read from the hub. What neither rule
covers stands in two tables: ``_OVERRIDES`` for configurations, ``_FEEDS`` for inputs.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import itertools
import logging
import random
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

__all__ = ["TinyModel", "TinyModelError", "model_types", "tiny_model"]

_WIDTH = 64
_HEADS = 4
_HEAD_WIDTH = _WIDTH // _HEADS
_VOCABULARY = 128
_TEXT_LENGTH = 12
_SAMPLES = 3840


class TinyModelError(Exception):
    """A model type that cannot be built or run here; the message is the first real error."""


@dataclass(frozen=True)
class TinyModel:
    """A tiny random model and the keyword arguments of one forward.

    Attributes:
        model_type: what was asked for. Where the whole cannot be run, the model is one of its parts, such as its
            text model; ``model.config.model_type`` is another then.
        model: float32, on the CPU, in evaluation mode.
        inputs: what ``model(**inputs)`` takes.
    """

    model_type: str
    model: PreTrainedModel
    inputs: dict[str, Any]

    def run(self, model: nn.Module | None = None) -> Any:
        """The output of ``model`` (by default the own one); two runs of the same model are identical to the bit."""
        with _isolated(0), torch.no_grad():
            return (self.model if model is None else model)(**_copied(self.inputs))


@functools.lru_cache(maxsize=1)
def model_types() -> tuple[str, ...]:
    """Every type of configuration that transformers has a model class for, sorted; imports all of them."""
    with _isolated(0):
        return tuple(sorted(name for name in CONFIG_MAPPING if _has_model(name)))


def tiny_model(model_type: str, *, seed: int = 0) -> TinyModel:
    """A tiny model of ``model_type``; the same seed gives the same weights.

    Raises:
        TinyModelError: there is no such type, or none of its classes could be built and run.
    """
    if model_type not in CONFIG_MAPPING:
        raise TinyModelError(f"unknown model type {model_type!r}; see model_types()")
    errors: list[Exception] = []
    with _isolated(seed):
        for config in _default_configs(model_type, errors):
            try:
                _Shrinker().shrink(config)
            except Exception as error:
                errors.append(error)
                continue
            for part in _configs(config):  # the whole, or else one of the models that it is made of
                found = _first_that_runs(part, errors)
                if found is not None:
                    return TinyModel(model_type, *found)
    if not errors:
        raise TinyModelError(f"{model_type}: no model class")
    raise TinyModelError(f"{model_type}: {_said(errors[0])}") from errors[0]


# Which class


def _modeling_module(config_class: type[PretrainedConfig]) -> Any:
    return importlib.import_module(config_class.__module__.replace("configuration_", "modeling_"))


def _registered(model_type: str) -> list[str]:
    """Names of the classes registered for the type, AutoModel's first."""
    tables = [name for name in vars(modeling_auto) if name.startswith("MODEL_") and name.endswith("_MAPPING_NAMES")]
    names: list[str] = []
    for table in sorted(tables, key=lambda name: name != "MODEL_MAPPING_NAMES"):
        entry = getattr(modeling_auto, table).get(model_type, ())
        names.extend([entry] if isinstance(entry, str) else entry)
    return names


def _model_classes(config_class: type[PretrainedConfig]) -> list[type[PreTrainedModel]]:
    """The model classes of a configuration: the registered ones, then the others that declare it."""
    module = _modeling_module(config_class)
    declared = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, PreTrainedModel)
        and value.__module__ == module.__name__
        and value.config_class is config_class
        and value.forward is not PreTrainedModel.forward
    ]
    registered = [getattr(module, name, None) for name in _registered(config_class.model_type)]
    return list(dict.fromkeys(cls for cls in [*registered, *declared] if cls is not None))


def _has_model(model_type: str) -> bool:
    try:
        return bool(_registered(model_type) or _model_classes(CONFIG_MAPPING[model_type]))
    except ImportError:
        return False


def _first_that_runs(
    config: PretrainedConfig, errors: list[Exception]
) -> tuple[PreTrainedModel, dict[str, Any]] | None:
    """A model of the configuration and its inputs; what failed before is added to ``errors``."""
    models: dict[type[PreTrainedModel], PreTrainedModel] = {}
    try:
        classes = _model_classes(type(config))
    except Exception as error:
        errors.append(error)
        return None
    for text_only, cls in itertools.product((False, True), classes):
        try:
            if cls not in models:
                models[cls] = _build(cls, config)
            return models[cls], _working_inputs(models[cls], text_only=text_only)
        except Exception as error:
            errors.append(error)
    return None


# A smaller configuration

# The first pattern that matches the whole name gives the largest value that the entry keeps.
_LARGEST = [
    (r"(.*_)?vocab(ulary)?_size(_.*)?|.*_vocab", _VOCABULARY),
    (r"max_.*position_embeddings|n_positions|n_ctx|max_seq_len|context_length|max_target_positions", 256),
    (r"max_(source|speech|text)_positions", 128),
    (r"(.*_)?mamba_heads|mamba_(n|num)_heads", 8),
    (r"(.*_)?(key_value|kv)_heads", 2),
    (r"(.*_)?heads|n_head", _HEADS),
    (r".*qk_head_dim", 2 * _HEAD_WIDTH),
    (r"(.*_)?(head_?dim|head_size|d_head|dim_head|d_kv|kv_channels)|rotary_dim|qk_.*_dim", _HEAD_WIDTH),
    (r"(.*_)?(ssm_state_size|state_size|d_state)", 16),
    (r"base_channels|num_pos_feats", _WIDTH // 2),
    (r"(.*_)?(hidden_?size|hidden_dim(ension)?|embed_dim|emb_dim|embedding_size|dim|rank|width)(_.*)?", _WIDTH),
    (r"(.*_)?(d_model|n_embd|d_latents|pooler_output_size|projection_size|proj_size|feature_size)(_.*)?", _WIDTH),
    (r"(.*_)?(intermediate_size.*|ffn_dim|d_ff|dim_ff|d_inner|n_inner|ffn_hidden_size|feed_?forward.*)", _WIDTH),
    (r"(.*_)?(units|mlp_size|conv_dim|channels?|upsample_groups|features|filters)", _WIDTH),
    (r"(num_|n_|moe_)*(routed_|local_|zero_)?experts?(_num)?", 4),
    (r"num_experts_per_tok(en)?|moe_?(top_?)?k|top_k(_experts)?", 2),
    (r"n_group|topk_group|num_expert_group|first_k_dense_replace|moe_layer_start_index", 1),
    (r"(.*_)?codebook_size|num_embeddings", 64),
    (r"num_codebooks|num_quantizers", 4),
    (r"num_queries|num_denoising|two_stage_num_proposals|.*num_latents|num_query_tokens", 16),
    (r"index_topk|sliding_window(_size)?|attention_window", 8),
]
_UNCHANGED = r"patch_(embed_hidden_size|dim)|.*(num_channels|in_channels|_per_channel|mel_bins|conv_pos_embed.*)"
_WIDTH_LISTS = r"(?!in_|out_)(.*_)?(hidden_sizes?|channels|dims?|channel_list|embed_dim_per_stage|features)"
_SMALL_ALREADY = ("pp_lcnet", "pp_ocr", "uvdoc")
# Entries that have one value for each stage where the model is a pyramid.
_PER_STAGE = ("depths", "embed_dim_per_stage", "hidden_sizes", "num_heads", "embed_dims", "embed_dim", "depth")
_DEPTHS = ("depths", "depth", "num_block_repeats", "layers_per_stage", "blocks_per_stage", "stage_numb_of_layers")
_LAYERS = r"(.*_)?(num_|n_)?(hidden_|encoder_|decoder_)?(layers?|blocks)|depth"
_INDICES = r"(index(es)?|indices|idxs?|_layers|layer_ids)$"
_TOKENS = r"(_id|_token_ids|token_index|token_idx|suppress_tokens)$"
# What a default may leave out, though the model needs it.
_MISSING = {
    "head_dim": _HEAD_WIDTH, "num_key_value_heads": _HEADS, "vocab_size": _VOCABULARY, "num_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "top_k_experts": 2, "moe_intermediate_size": _WIDTH,
    "n_shared_experts": 1, "prediction_length": 4,
    "image_token_id": 61, "image_token_index": 61, "audio_token_id": 62, "video_token_id": 63,
}  # fmt: skip


class _Shrinker:
    """Makes every size in a configuration, and in those inside it, small; what was equal stays equal."""

    def __init__(self) -> None:
        self._tokens: dict[int, int] = {}

    def shrink(self, config: PretrainedConfig) -> None:
        _complete(config)
        if config.model_type.startswith(_SMALL_ALREADY):
            return
        entries = {name: value for name, value in vars(config).items() if not name.startswith("_")}
        pyramid = any(isinstance(entries.get(name), list) for name in _PER_STAGE)
        for name, value in entries.items():
            if isinstance(value, PretrainedConfig):
                self.shrink(value)
            elif re.search(_TOKENS, name):
                setattr(config, name, self._token(value))
            elif type(value) is int:
                setattr(config, name, _smaller(name, value, pyramid=pyramid))
            elif isinstance(value, list) and re.fullmatch(_WIDTH_LISTS, name):
                setattr(config, name, _smaller_widths(value))
        _shrink_depth(config, entries)
        _shrink_image(config, entries)
        _shrink_rope(config, entries)
        for name, value in _MISSING.items():
            if name in entries and entries[name] is None:
                setattr(config, name, value)
        for name, value in entries.items():
            heads = name.replace("key_value", "attention")
            if name.endswith("key_value_heads") and value == entries.get(heads):
                setattr(config, name, vars(config)[heads])
        for name, value in _OVERRIDES.get(config.model_type, {}).items():
            setattr(config, name, value)

    def _token(self, value: Any) -> Any:
        """Tokens in the upper half of the vocabulary, each another; the text is made of the lower half."""
        if isinstance(value, list):
            return [self._token(item) for item in value]
        if type(value) is not int or value < _VOCABULARY // 2:
            return value
        return self._tokens.setdefault(value, _VOCABULARY // 2 + len(self._tokens))


def _complete(config: PretrainedConfig) -> None:
    """What the default leaves out or leaves to timm gets the default of its own class; tuples become lists, as they
    are after loading."""
    for name, value in list(vars(config).items()):
        if isinstance(value, tuple):
            setattr(config, name, list(value))
        elif name.endswith("_config") and value is None:
            part = type(config).sub_configs.get(name)
            if inspect.isclass(part) and issubclass(part, PretrainedConfig):
                setattr(config, name, part())
        elif isinstance(value, PretrainedConfig) and value.model_type == "timm_backbone":
            stages = [f"stage{number}" for number in range(1, 5)]
            settings: dict[str, Any] = {"out_features": stages[-max(1, len(value.out_indices)) :]}
            setattr(config, name, transformers.ResNetConfig(**settings))


def _smaller(name: str, value: int, *, pyramid: bool) -> int:
    if re.fullmatch(_UNCHANGED, name):
        return value
    largest = next((largest for pattern, largest in _LARGEST if re.fullmatch(pattern, name)), None)
    if largest is None:
        return value
    if pyramid and largest == _HEADS:
        return value
    if pyramid and largest == _WIDTH and not name.startswith("proj"):
        return _quarter(value)
    return min(value, largest)


def _quarter(width: int) -> int:
    """Widths that grow from stage to stage keep their ratios, and so divide by the heads of each stage."""
    return width // 4 if width >= 32 and width % 8 == 0 else width


def _smaller_widths(values: list[Any]) -> list[Any]:
    if len(values) > 4 and all(value == values[0] for value in values) and isinstance(values[0], int):
        return [min(value, _WIDTH) for value in values]
    return [_smaller_widths([*value]) if isinstance(value, (list, tuple)) else _quarter(value) for value in values]


def _shrink_depth(config: PretrainedConfig, entries: Mapping[str, Any]) -> None:
    """As few layers as there are kinds of them, at least two; what has one entry a layer is cut alike."""
    for name in _DEPTHS:
        if isinstance(entries.get(name), list):
            setattr(config, name, [1] * len(entries[name]))
    stages = {len(entries[name]) for name in _PER_STAGE if isinstance(entries.get(name), list)}
    indices = {
        name: value
        for name, value in {**entries, "_out_indices": vars(config).get("_out_indices")}.items()
        if re.search(_INDICES, name) and isinstance(value, list) and value and isinstance(value[0], int)
    }
    for name, depth in entries.items():
        if type(depth) is not int or depth < 2 or depth in stages or not re.fullmatch(_LAYERS, name):
            continue
        per_layer = {key: value for key, value in entries.items() if isinstance(value, list) and len(value) == depth}
        kinds = [
            tuple(str(value[layer]) for value in per_layer.values() if isinstance(value[0], (str, bool)))
            for layer in range(depth)
        ]
        few = [len(value) for key, value in indices.items() if len(value) <= 4 and key not in per_layer]
        kept = sorted({*map(kinds.index, kinds), *range(max(few, default=-1) + 1)})
        if len(kept) < 2:
            kept = [0, 1]
        if len(kept) > depth:
            continue
        setattr(config, name, len(kept))
        for key, value in per_layer.items():
            setattr(config, key, [value[layer] for layer in kept])
        for key, value in indices.items():
            if key != "_out_indices":
                setattr(config, key, _smaller_indices(value, len(kept), cut=key in per_layer))
        if len(entries.get("stage_names") or ()) == depth + 1:
            _keep_stages(config, len(kept))


def _smaller_indices(values: list[int], depth: int, *, cut: bool) -> list[int]:
    if cut or len(values) > 4:
        return [value for value in values if value < depth] or [depth - 1]
    return [depth - len(values) + position for position in range(len(values))]


def _keep_stages(config: PretrainedConfig, depth: int) -> None:
    """A backbone that has one stage a layer gives the last of those that are left."""
    names = vars(config)["stage_names"][: depth + 1]
    count = len(vars(config)["_out_indices"])
    vars(config).update(
        stage_names=names, _out_features=names[-count:], _out_indices=[*range(len(names) - count, len(names))]
    )


def _shrink_image(config: Any, entries: Mapping[str, Any]) -> None:
    """Four patches a side, or 64 pixels where the patches are small."""
    patch = entries.get("patch_size")
    size = 4 * patch if type(patch) is int and patch >= 14 else 64
    for name in ("image_size", "pretrain_image_size", "input_size"):
        value = entries.get(name)
        if isinstance(value, int) and value > 32:
            setattr(config, name, size)
        elif isinstance(value, list):
            setattr(config, name, [size] * len(value))
        elif isinstance(value, dict):
            setattr(config, name, dict.fromkeys(value, size))
    if "backbone_feature_sizes" in entries:
        config.backbone_feature_sizes = [[16, 16], [8, 8], [4, 4]]
    if "image_grid_pinpoints" in entries:
        config.image_grid_pinpoints = [[entries["vision_config"].image_size] * 2]
    layers = entries.get("vision_feature_layer")
    if isinstance(layers, int):
        config.vision_feature_layer = max(-2, min(layers, 1))
    elif isinstance(layers, list):
        config.vision_feature_layer = [-1 - position % 2 for position in range(len(layers))]


def _shrink_rope(config: Any, entries: Mapping[str, Any]) -> None:
    """Sections and factors that have one entry for each pair that is rotated."""
    if not entries.get("rope_parameters"):
        return
    heads = entries.get("num_attention_heads") or 1
    old: int = entries.get("head_dim") or entries.get("qk_rope_head_dim") or entries.get("hidden_size", heads) // heads
    sections = "mrope_section" in inspect.getsource(_modeling_module(type(config)))

    def smaller(parameters: dict[str, Any]) -> dict[str, Any]:
        new: dict[str, Any] = {
            key: smaller(value) if isinstance(value, dict) else value for key, value in parameters.items()
        }
        if "rope_type" in new and sections:
            pairs = int(_HEAD_WIDTH * (new.get("partial_rotary_factor") or 1)) // 2
            count = len(new.get("mrope_section") or "thw")
            new["mrope_section"] = [(pairs + count - 1 - index) // count for index in range(count)]
        for key in {"short_factor", "long_factor"} & new.keys():
            new[key] = new[key][: len(new[key]) * _HEAD_WIDTH // old]
        return new

    config.rope_parameters = smaller(entries["rope_parameters"])


# By the type of a configuration, its parts included: what the rules above do not get right.
_SERIES = {"context_length": 16, "num_time_features": 1, "feature_size": 10}
# fmt: off
_OVERRIDES: dict[str, dict[str, Any]] = {
    "": {"rope_theta": 10000.0, "clip_qkv": 8.0},  # DBRX's attention, a part that has no type
    "align_vision_model": {"width_coefficient": 0.2, "depth_coefficient": 1.0, "hidden_dim": 256},
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "audio-spectrogram-transformer": {"max_length": 64},
    "autoformer": _SERIES,
    "bamba": {"attn_layer_indices": [1]},
    "bit": {"num_groups": 4},
    "blt": {"num_hidden_layers": 2},
    "bros": {"dim_bbox_sinusoid_emb_2d": 16, "dim_bbox_sinusoid_emb_1d": 2, "dim_bbox_projection": 16},
    "chameleon": {"vocabulary_map": {"<image>": 61} | {
        f"IMGIMG{chr(65 + code // 10)}{chr(65 + code % 10)}Z": 64 + code for code in range(64)}},
    "clvp_encoder": {"num_attention_heads": 1},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "cvt": {"depth": [1, 2, 3]},
    "deepseek_ocr2_sam_vision_model": {"downsample_channels": [64, 64]},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "depth_pro": {"patch_size": 56},
    "donut-swin": {"window_size": 2},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 1.0, "hidden_dim": 320},
    "emu3": {"vocabulary_map": {"<image>": 61, "<|extra_200|>": 62} | {
        f"<|visual token {code:06}|>": 64 + code for code in range(64)}},
    "emu3_vqgan": {"hidden_size": 128},
    "esm": {"pad_token_id": 1, "mask_token_id": 4},
    "falcon_h1": {"mamba_d_ssm": 64},
    "florence_vision": {"projection_dim": 64, "in_channels": 3},
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_audio": {"subsampling_conv_channels": [128, 32]},
    "granite4_vision": {"deepstack_layer_map": [[-1, 0]], "spatial_target_layers": [0]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "informer": _SERIES,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kosmos-2": {"latent_query_num": 4},
    "kosmos-2.5": {"latent_query_num": 4},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 48},
    "llama4_vision_model": {"projector_input_dim": 64, "intermediate_size": 256, "vision_output_dim": 64},
    "lw_detr": {"projector_scale_factors": [1.0], "projector_in_channels": [64], "num_feature_levels": 1},
    "mamba2": {"num_heads": 8},
    "minimax_m3_vl": {"merged_hidden_size": 256},
    "mistral4": {"head_dim": 32},
    "mobilebert": {"intra_bottleneck_size": 64},
    "molmo2_vision": {"num_position_embeddings": 16},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "muse_glimmer": {"out_hidden_size": 256},
    "muse_spark": {"out_hidden_size": 256},
    "nystromformer": {"num_landmarks": 4, "segment_means_seq_len": _TEXT_LENGTH},
    "omdet-turbo": {"timm_kwargs": {}},
    "pp_doclayout_v3": {"x4_feat_dim": 32},
    "qwen3_omni_moe_talker_text": {"shared_expert_intermediate_size": 64},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_shape": (64, 64)},  # it adds it to a tuple
    "sam_hq_prompt_encoder": {"image_embedding_size": 4, "image_size": 64},
    "sam_prompt_encoder": {"image_embedding_size": 4, "image_size": 64},
    "sapiens2": {"num_key_value_heads_per_layer": [4, 2]},
    "seggpt": {"image_size": [128, 64]},
    "shieldgemma2": {"mm_tokens_per_image": 4},
    "step3p5": {"sliding_window": 8},
    "superpoint": {"keypoint_decoder_dim": 65},
    "swin": {"window_size": 2},
    "t5gemma2_decoder": {"dropout_rate": 0.0},
    "t5gemma2_encoder": {"mm_tokens_per_image": 4},
    "t5gemma2_text": {"dropout_rate": 0.0},
    "time_series_transformer": _SERIES,
    "tvp": {"max_img_size": 64, "visual_prompt_size": 8},
    "unlimited_ocr_sam_vision_model": {"downsample_channels": [64, 64]},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 128, "attention_head_dim": 32, "num_hidden_layers": 4,
              "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"attention_hidden_size": 128, "attention_head_dim": 32, "mamba_headdim": 16},
}
# fmt: on


def _default_configs(model_type: str, errors: list[Exception]) -> Iterator[PretrainedConfig]:
    """The default, then what stands for it in the default of a larger model, which may be more complete."""
    config_class = CONFIG_MAPPING[model_type]
    try:
        yield config_class()
    except Exception as error:
        errors.append(error)
    for larger in vars(importlib.import_module(config_class.__module__)).values():
        if inspect.isclass(larger) and config_class in getattr(larger, "sub_configs", {}).values():
            with contextlib.suppress(Exception):
                whole: Any = larger()
                yield from (part for part in _configs(whole) if type(part) is config_class)


def _configs(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """The configuration and all those inside it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from _configs(value)


# Weights


def _build(cls: Callable[[PretrainedConfig], Any], config: PretrainedConfig) -> PreTrainedModel:
    """The model, with weights such that what reaches the activations is of the order of one."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns with NaN
    try:
        model: PreTrainedModel = cls(config).float().eval()
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    with torch.no_grad():
        for buffer in model.buffers():
            buffer[buffer.isnan()] = 0
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if parameter.dim() > 1 and parameter.numel():
                    _rescale(parameter, fan_in=1 if isinstance(module, nn.Embedding) else parameter[0].numel())
                elif not parameter.isfinite().all():
                    parameter.fill_(1.0)
    return model


def _rescale(parameter: Tensor, fan_in: int) -> None:
    """Not smaller than what keeps the size of its input: at their own initial values 64 features would vanish."""
    if not parameter.isfinite().all() or not parameter.any():
        parameter.normal_(std=0.02)
    rms = parameter.square().mean().sqrt()
    parameter.mul_((fan_in**-0.5 / rms).clamp(min=1.0))


# Inputs

_ATTEMPTS = 4


def _working_inputs(model: PreTrainedModel, *, text_only: bool) -> dict[str, Any]:
    """The first inputs that fit the signature and with which the model runs."""
    first: Exception | None = None
    for attempt in range(_ATTEMPTS):
        torch.default_generator.manual_seed(0)
        try:
            inputs = _Feed(model, attempt, text_only=text_only).inputs()
            with torch.no_grad():
                model(**_copied(inputs))
        except Exception as error:
            first = first or error
        else:
            return inputs
    assert first is not None
    raise first


class _Feed:
    """Inputs for one forward of a model, by the names in its signature; each attempt takes other shapes."""

    def __init__(self, model: PreTrainedModel, attempt: int, *, text_only: bool) -> None:
        self.model = model
        self.attempt = attempt
        self.text_only = text_only
        self.config: Any = model.config
        self.vision: Any = self._part("vision_config", "image_size", "patch_size")
        self.audio: Any = self._part("audio_config", *_MEL)
        self.names: dict[str, bool] = _parameters(model.forward)

    def inputs(self) -> dict[str, Any]:
        special = _FEEDS.get(self.config.model_type, {})
        builders = {**_BUILDERS, **special}
        required = self._required()
        inputs: dict[str, Any] = {}
        for name in self.names:
            if self.text_only and name.startswith(_MODAL) and name not in required:
                continue
            if name in builders and (name in required or name in _WANTED or name in special):
                inputs[name] = builders[name](self)
            elif name in required:
                raise TinyModelError(f"no input for {name!r} of {type(self.model).__name__}.forward")
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if "input_ids" in inputs:
            self._place(inputs)
        return inputs

    def _required(self) -> set[str]:
        """What has no default, in the extraction of features either."""
        functions = [self.model.forward]
        if not self.text_only:
            functions += [extract for kind in ("image", "audio") if (extract := self._extractor(kind)) is not None]
        return {name for function in functions for name, needed in _parameters(function).items() if needed}

    def _part(self, name: str, *entries: str) -> Any:
        """The part of that name, or else the first part that has one of the entries, or else the whole."""
        parts = [part for part in _configs(self.config) if part is getattr(self.config, name, None)]
        parts += [
            part for part in _configs(self.config) if any(getattr(part, entry, None) is not None for entry in entries)
        ]
        return parts[0] if parts else self.config

    def _extractor(self, modality: str) -> Callable[..., Any] | None:
        """What gives the features that take the place of the placeholders in the text."""
        methods = (getattr(module, f"get_{modality}_features", None) for module in self.model.modules())
        return next((method for method in methods if method is not None), None)

    def _place(self, inputs: dict[str, Any]) -> None:
        """Put a placeholder into the text for each of the features that an image, video or audio gives."""
        ids = inputs["input_ids"]
        tokens, kinds = [ids[:, :4]], [torch.zeros_like(ids[:, :4])]
        for kind, (modality, prefixes) in enumerate(_MODALITIES.items(), start=1):
            names = (f"{modality}_token_id", f"{modality}_token_index")
            token = next(
                (vars(part)[name] for part in _configs(self.config) for name in names if name in vars(part)), None
            )
            extract = self._extractor(modality)
            if token is not None and extract is not None and any(name.startswith(prefixes) for name in inputs):
                count = _feature_count(extract, inputs)
                tokens.append(torch.full((1, count), token))
                kinds.append(torch.full((1, count), kind))
        inputs["input_ids"] = torch.cat([*tokens, ids[:, 4:]], dim=1)
        if "attention_mask" in inputs:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in self.names:
            inputs["mm_token_type_ids"] = torch.cat([*kinds, torch.zeros_like(ids[:, 4:])], dim=1)

    # What the builders use

    def ids(self, length: int = _TEXT_LENGTH) -> Tensor:
        """Tokens that have no special meaning."""
        entries = [entry for part in _configs(self.config) for entry in vars(part).items()]
        special = {value for name, value in entries if isinstance(value, int) and re.search(_TOKENS, name)}
        known = min(getattr(self.config, "vocab_size", None) or _VOCABULARY, _VOCABULARY // 2)
        ordinary = torch.tensor([token for token in range(known) if token not in special])
        return ordinary[torch.randint(len(ordinary), (1, length))]

    def width(self) -> int:
        names = ("encoder_hidden_size", "hidden_size", "d_model")
        return next((width for name in names if (width := getattr(self.config, name, None))), _WIDTH)

    def size(self) -> tuple[int, int]:
        """Height and width of an image."""
        size = getattr(self.vision, "image_size", None) or 64
        if isinstance(size, dict):
            size = (size["height"], size["width"])
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        return height, width

    def side(self) -> int:
        """Patches along one side of an image."""
        return self.size()[0] // int(getattr(self.vision, "patch_size", 16))

    @property
    def channels(self) -> int:
        names = ("num_channels", "in_channels", "in_chans")
        return next((count for name in names if isinstance(count := getattr(self.vision, name, None), int)), 3)

    def image(self) -> Tensor:
        extract = self._extractor("image")
        names = {*self.names, *(_parameters(extract) if extract is not None else ())}
        if {"image_grid_thw", "image_grid_hw", "grid_thw"} & names:
            return self.patches()
        if {"spatial_shapes", "image_position_ids", "pixel_position_ids"} & names:
            return torch.rand(1, self.side() ** 2, self.channels * self.vision.patch_size**2)
        frames = getattr(self.vision, "num_frames", None) or 2
        return torch.randn(*[(1,), (1, 1), (1, frames), (2,)][self.attempt], self.channels, *self.size())

    def video(self) -> Tensor:
        return torch.randn(1, getattr(self.vision, "num_frames", None) or 2, self.channels, *self.size())

    def grid(self) -> Tensor:
        """Patches in time, height and width."""
        merge = getattr(self.vision, "spatial_merge_size", 1)
        return torch.tensor([[1, 2 * merge, 2 * merge]])

    def patches(self) -> Tensor:
        vision = self.vision
        time = getattr(vision, "temporal_patch_size", None) or getattr(vision, "patch_temporal", None) or 1
        return torch.randn(int(self.grid().prod()), self.channels * time * vision.patch_size**2)

    def square_patches(self) -> Tensor:
        return torch.randn(int(self.grid().prod()), self.channels, self.vision.patch_size, self.vision.patch_size)

    def strip(self) -> Tensor:
        """All patches of an image side by side."""
        return torch.randn(1, self.channels, self.vision.patch_size, self.side() ** 2 * self.vision.patch_size)

    def tiles(self) -> Tensor:
        return torch.randn(1, 1, self.vision.max_num_tiles, self.channels, *self.size())

    def mel(self) -> int:
        return next((bins for name in _MEL if isinstance(bins := vars(self.audio).get(name), int)), 128)

    def frames(self) -> int:
        return 2 * (getattr(self.audio, "n_window", None) or getattr(self.audio, "max_source_positions", None) or 32)

    def spectrogram(self) -> Tensor:
        mel, frames = self.mel(), self.frames()
        return torch.randn([(1, mel, frames), (1, frames, mel), (1, 1, frames, mel)][self.attempt % 3])

    def wave(self) -> Tensor:
        return torch.randn([(1, _SAMPLES), (1, 1, _SAMPLES), (1, self.mel(), self.frames())][self.attempt % 3])

    def series(self) -> tuple[int, ...]:
        """The shape of the past that a forecast takes."""
        if hasattr(self.config, "lags_sequence"):
            return 1, self.config.context_length + max(self.config.lags_sequence)
        channels = getattr(self.config, "num_input_channels", None)
        return (1, self.config.context_length, channels) if channels else (1, self.config.context_length)


def _parameters(function: Callable[..., Any]) -> dict[str, bool]:
    """The names of the arguments, and whether they have to be given."""
    parameters = inspect.signature(function).parameters.values()
    return {
        parameter.name: parameter.default is parameter.empty
        for parameter in parameters
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def _feature_count(extract: Callable[..., Any], inputs: Mapping[str, Any]) -> int:
    accepted = _parameters(extract)
    try:
        with torch.no_grad():
            return _rows(extract(**_copied({name: value for name, value in inputs.items() if name in accepted})))
    except ValueError as error:  # some compare them to the placeholders there already
        told = re.search(r"features:? (\d+)", str(error))
        if told is None:
            raise
        return int(told[1])


def _rows(features: Any) -> int:
    """How many vectors there are in a tensor, or in the tensors of an output."""
    if isinstance(features, Tensor):
        return features.shape[:-1].numel()
    if isinstance(features, Mapping):
        pooled = features.get("pooler_output")
        return _rows(features["last_hidden_state"] if pooled is None else pooled)
    return sum(_rows(item) for item in features)


def _ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.long)


def _grid_positions(side: int) -> Tensor:
    """(1, side², 2): where each patch is."""
    steps = torch.arange(side)
    return torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).reshape(1, -1, 2)


_MEL = (
    "num_mel_bins", "n_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", "input_feat_size",
    "mel_dim", "input_dim", "feature_size", "model_in_dim",
)  # fmt: skip
_MODALITIES = {
    "image": ("pixel_values",),
    "video": ("pixel_values_videos",),
    "audio": ("input_features", "input_values", "audio_"),
}
_MODAL = (
    "pixel_values",
    "image",
    "video",
    "input_features",
    "input_values",
    "audio",
    "feature_attention_mask",
    "visual",
)
_Builders = dict[str, Callable[[_Feed], Any]]
# How each argument of a forward is made.
_BUILDERS: _Builders = {
    "input_ids": lambda feed: feed.ids(),
    "attention_mask": lambda _: _ones(1, _TEXT_LENGTH),
    "decoder_input_ids": lambda feed: feed.ids(5),
    "inputs_embeds": lambda feed: torch.randn(1, _TEXT_LENGTH, feed.width()),
    "hidden_states": lambda feed: feed.patches() if "grid_thw" in feed.names else torch.randn(1, 16, feed.width()),
    "encoder_hidden_states": lambda feed: torch.randn(1, 16, feed.width()),
    "query_embeds": lambda feed: torch.randn(1, 4, feed.config.hidden_size),
    "qformer_input_ids": lambda feed: feed.ids(),
    "task_inputs": lambda feed: feed.ids(feed.config.task_seq_len),
    "bbox": lambda _: torch.tensor([[[1, 2, 30, 40]] * _TEXT_LENGTH]),
    "context_input_ids": lambda feed: feed.ids().expand(feed.config.n_docs, _TEXT_LENGTH),
    "protein_input_ids": lambda feed: feed.ids(),
    "protein_attention_mask": lambda _: _ones(1, _TEXT_LENGTH),
    # images and videos
    "pixel_values": lambda feed: feed.image(),
    "image": lambda feed: feed.image(),
    "high_res_pixel_values": lambda _: torch.randn(1, 3, 64, 64),
    "pixel_values_videos": lambda feed: feed.video(),
    "flattened_patches": lambda feed: torch.rand(1, 16, 2 + 3 * getattr(feed.vision, "patch_size", 16) ** 2),
    "prompt_pixel_values": lambda _: torch.randn(1, 3, 64, 64),
    "prompt_masks": lambda _: torch.randn(1, 3, 64, 64),
    "image_sizes": lambda feed: torch.tensor([feed.size()]),
    "image_grid_thw": lambda feed: feed.grid(),
    "image_grid_hw": lambda feed: feed.grid()[:, 1:],
    "grid_thw": lambda feed: feed.grid(),
    "target_sizes": lambda feed: torch.tensor([[feed.side()] * 2]),
    "spatial_shapes": lambda feed: torch.tensor([[feed.side()] * 2]),
    "pixel_mask": lambda feed: _ones(1, *feed.size()),
    "pixel_attention_mask": lambda feed: _ones(1, feed.side() ** 2),
    "image_position_ids": lambda feed: _grid_positions(feed.side()),
    "pixel_position_ids": lambda feed: _grid_positions(feed.side()),
    "image_merge_sizes": lambda _: torch.tensor([2]),
    "merge_sizes": lambda _: torch.tensor([2]),
    "image_token_pooling": lambda feed: torch.arange(feed.side() ** 2).view(1, -1, 4),
    "image_grids": lambda feed: torch.tensor([[1, feed.side() ** 2 // 4, 0, 0]]),
    "image_embeds_position_mask": lambda _: (torch.arange(_TEXT_LENGTH) < 4).long()[None],
    "aspect_ratio_ids": lambda _: torch.tensor([[1]]),
    "aspect_ratio_mask": lambda feed: _ones(1, 1, feed.vision.max_num_tiles),
    "visual_feats": lambda feed: torch.randn(1, 4, feed.config.visual_feat_dim),
    "visual_pos": lambda feed: torch.rand(1, 4, feed.config.visual_pos_dim),
    # audio
    "input_features": lambda feed: feed.spectrogram(),
    "input_features_mask": lambda feed: _ones(1, feed.frames()).bool(),
    "feature_attention_mask": lambda feed: _ones(1, feed.frames()),
    "feature_lens": lambda feed: torch.tensor([feed.frames()]),
    "input_values": lambda feed: feed.wave(),
    "spectrogram": lambda feed: torch.randn(1, 16, feed.mel()),
    "mel_spectrogram": lambda feed: torch.randn(1, feed.mel(), 16),
    "audio_mel": lambda feed: torch.randn(1, feed.frames(), feed.mel()),
    "audio_mel_mask": lambda feed: torch.zeros(1, feed.frames(), dtype=torch.bool),
    # time series
    "past_values": lambda feed: torch.randn(feed.series()),
    "past_time_features": lambda feed: torch.randn(*feed.series(), feed.config.num_time_features),
    "past_observed_mask": lambda feed: torch.ones(feed.series()),
    "past_values_padding": lambda feed: torch.zeros(feed.series()),
    "freq": lambda _: torch.tensor([[0]]),
    "future_values": lambda feed: torch.randn(1, feed.config.prediction_length),
    "future_time_features": lambda feed: torch.randn(1, feed.config.prediction_length, feed.config.num_time_features),
    "states": lambda feed: torch.randn(1, 4, feed.config.state_dim),
    "actions": lambda feed: torch.randn(1, 4, feed.config.act_dim),
    "rewards": lambda _: torch.randn(1, 4, 1),
    "returns_to_go": lambda _: torch.randn(1, 4, 1),
    "timesteps": lambda _: torch.arange(4)[None],
}
# Those that are given though they have a default.
_WANTED = {
    "input_ids", "decoder_input_ids", "bbox", "context_input_ids", "protein_input_ids", "protein_attention_mask",
    "pixel_values", "flattened_patches", "image_grid_thw", "image_position_ids", "spatial_shapes", "target_sizes",
    "image_merge_sizes", "aspect_ratio_ids", "aspect_ratio_mask", "image_embeds_position_mask", "visual_feats",
    "visual_pos", "input_features", "input_features_mask", "feature_attention_mask", "feature_lens", "input_values",
    "past_time_features", "past_observed_mask", "future_values", "future_time_features", "states", "actions",
    "rewards", "returns_to_go", "timesteps",
}  # fmt: skip
# By the types of the model: arguments that are made in another way, or not given.
# fmt: off
_FEEDS_OF_TYPES: list[tuple[str, _Builders]] = [
    ("audio-spectrogram-transformer", {"input_values": lambda feed: torch.randn(1, 64, feed.mel())}),
    ("blip_2_qformer t5gemma2_decoder", {"encoder_hidden_states": _BUILDERS["encoder_hidden_states"]}),
    ("colqwen2", {"pixel_values": lambda feed: feed.patches()[None]}),
    ("csm_depth_decoder_model", {"input_ids": lambda feed: feed.ids(4)}),
    ("depth_pro", {"pixel_values": lambda _: torch.randn(1, 3, 224, 224)}),
    ("dia", {"decoder_input_ids": lambda feed: feed.ids(5)[..., None].expand(1, 5, 9)}),
    ("dia_decoder", {"input_ids": lambda feed: feed.ids()[..., None].expand(1, _TEXT_LENGTH, 9),
                     "encoder_hidden_states": _BUILDERS["encoder_hidden_states"]}),
    ("florence_vision", {"hidden_states": lambda feed: feed.image()}),
    ("fun_asr_nano fun_asr_nano_encoder",
     {"input_features": lambda feed: torch.randn(1, feed.frames(), feed.audio.input_size)}),
    ("glm_image", {"images_per_sample": lambda _: torch.tensor([2]),
                   "image_grid_thw": lambda feed: feed.grid().expand(2, 3)}),  # the last one is to be generated
    ("granite_docling", {"pixel_attention_mask": lambda _: torch.ones(1, 1, dtype=torch.bool)}),
    ("granite_speech5_encoder granite_speech5_ctc",
     {"input_features": lambda feed: torch.randn(1, 64, 4 * feed.mel())}),
    ("granite_speech granite_speech_plus", {"input_features_mask": lambda _: None}),
    ("idefics", {"image_attention_mask": lambda _: _ones(1, _TEXT_LENGTH, 1)}),
    ("idefics2_perceiver", {"context": lambda _: torch.randn(1, 16, _WIDTH), "attention_mask": lambda _: _ones(1, 16)}),
    ("inkling2 inkling2_vision", {"pixel_values": lambda feed: torch.randn(
        16, *[feed.vision.patch_size * feed.vision.spatial_merge_size] * 2, feed.channels)}),
    ("kimi_k25 kimi_k25_vision", {"pixel_values": lambda feed: feed.square_patches()}),
    ("kosmos_2_5_vision_model", {"attention_mask": lambda _: torch.ones(1, 16)}),
    ("kyutai_speech_to_text", {"input_ids": lambda feed: feed.ids()[..., None].expand(1, _TEXT_LENGTH, 5)}),
    ("mimi_decoder pocket_tts_audio_tokenizer_decoder", {"latents": lambda feed: torch.randn(1, feed.width(), 8)}),
    ("minicpm_ocr minicpm_ocr_vision minicpmv4_6 minicpmv4_6_vision minicpmv4_7 minicpmv4_7_vision",
     {"pixel_values": lambda feed: feed.strip()}),
    ("mllama mllama_vision_model", {"pixel_values": lambda feed: feed.tiles()}),
    ("molmo2 molmo2_vision", {"pixel_values": lambda feed: torch.randn(1, 16, 3 * feed.vision.patch_size**2)}),
    ("moshi_depth", {"input_ids": lambda feed: feed.ids(4),
                     "last_hidden_state": lambda feed: torch.randn(1, 4, feed.config.input_size)}),
    ("moss_transcribe_diarize", {"padding_mask": lambda feed: _ones(1, feed.frames())}),
    ("musicgen musicgen_melody", {"decoder_input_ids": lambda feed: feed.ids(5).expand(4, 5)}),
    ("musicgen_decoder musicgen_melody_decoder", {"input_ids": lambda feed: feed.ids().expand(4, _TEXT_LENGTH)}),
    ("nemotron_h_omni", {"input_features": lambda _: None, "input_features_mask": lambda _: None}),
    ("neomme", {"pixel_values": lambda feed: feed.patches()}),
    ("paddleocr_vl", {"pixel_values": lambda feed: feed.square_patches()}),
    ("paddleocr_vl_vision", {"pixel_values": lambda feed: feed.square_patches()[None],
                             "grid_thw": lambda feed: feed.grid()}),
    ("qwen2_5_omni_audio_encoder qwen3_omni_moe_audio_encoder",
     {"input_features": lambda feed: torch.randn(feed.mel(), feed.frames())}),
    ("qwen2_audio", {"attention_mask": _BUILDERS["attention_mask"], "input_ids": lambda feed: torch.cat(
        [feed.ids(), torch.tensor([[feed.config.audio_token_index]])], dim=1)}),  # that one token is expanded
    ("rag", {"context_attention_mask": lambda feed: _ones(feed.config.n_docs, _TEXT_LENGTH),
             "doc_scores": lambda feed: torch.randn(1, feed.config.n_docs)}),
    ("seggpt", {"pixel_values": lambda _: torch.randn(1, 3, 64, 64)}),
    ("speech-encoder-decoder", {"input_features": lambda _: None}),
    ("vibevoice", {"padding_mask": lambda _: _ones(1, _SAMPLES)}),
    ("vibevoice_acoustic_tokenizer_encoder", {"hidden_states": lambda _: torch.randn(1, 1, _SAMPLES)}),
    ("videomt", {"pixel_values": lambda _: None, "pixel_values_videos": lambda feed: feed.video()}),
    ("voxtral_realtime", {"input_ids": lambda feed: feed.ids(8)}),
    ("voxtral_realtime_text", {"t_cond": lambda _: torch.randn(1, 1, _WIDTH)}),
    ("xclip_vision_model", {"pixel_values": lambda feed: torch.randn(feed.config.num_frames, 3, *feed.size())}),
]
# fmt: on
_FEEDS = {model_type: builders for types, builders in _FEEDS_OF_TYPES for model_type in types.split()}


# Surroundings


@contextlib.contextmanager
def _isolated(seed: int) -> Iterator[None]:
    """Random state seeded, libraries silent; both put back."""
    verbosity = transformers.logging.get_verbosity()
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity(logging.CRITICAL)
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            transformers.logging.set_verbosity(verbosity)
            random.setstate(python)
            np.random.set_state(numpy)


def _copied(value: Any) -> Any:
    """Models may write to their inputs."""
    if isinstance(value, Tensor):
        return value.clone()
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, dict) else value


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
