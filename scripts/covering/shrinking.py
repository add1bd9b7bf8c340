"""A configuration made small, by the names and values of its entries."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import PretrainedConfig

from scripts.covering.classes import modeling_module
from scripts.covering.overrides import OVERRIDES
from scripts.covering.sizes import HEAD_WIDTH, HEADS, VOCABULARY, WIDTH

# The first pattern that matches the whole name gives the largest value that the entry keeps.
_LARGEST = [
    (r"(.*_)?vocab(ulary)?_size(_.*)?|.*_vocab", VOCABULARY),
    (r"max_.*position_embeddings|n_positions|n_ctx|max_seq_len|context_length|max_target_positions", 256),
    (r"max_(source|speech|text)_positions", 128),
    (r"(.*_)?mamba_heads|mamba_(n|num)_heads", 8),
    (r"(.*_)?(key_value|kv)_heads", 2),
    (r"(.*_)?heads|n_head", HEADS),
    (r".*qk_head_dim", 2 * HEAD_WIDTH),
    (r"(.*_)?(head_?dim|head_size|d_head|dim_head|d_kv|kv_channels)|rotary_dim|qk_.*_dim", HEAD_WIDTH),
    (r"(.*_)?(ssm_state_size|state_size|d_state)", 16),
    (r"base_channels|num_pos_feats", WIDTH // 2),
    (r"(.*_)?(hidden_?size|hidden_dim(ension)?|embed_dim|emb_dim|embedding_size|dim|rank|width)(_.*)?", WIDTH),
    (r"(.*_)?(d_model|n_embd|d_latents|pooler_output_size|projection_size|proj_size|feature_size)(_.*)?", WIDTH),
    (r"(.*_)?(intermediate_size.*|ffn_dim|d_ff|dim_ff|d_inner|n_inner|ffn_hidden_size|feed_?forward.*)", WIDTH),
    (r"(.*_)?(units|mlp_size|conv_dim|channels?|upsample_groups|features|filters)", WIDTH),
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
TOKENS = r"(_id|_token_ids|token_index|token_idx|suppress_tokens)$"
# What a default may leave out, though the model needs it.
_MISSING = {
    "head_dim": HEAD_WIDTH, "num_key_value_heads": HEADS, "vocab_size": VOCABULARY, "num_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "top_k_experts": 2, "moe_intermediate_size": WIDTH,
    "n_shared_experts": 1, "prediction_length": 4,
    "image_token_id": 61, "image_token_index": 61, "audio_token_id": 62, "video_token_id": 63,
}  # fmt: skip


class Shrinker:
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
            elif re.search(TOKENS, name):
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
        for name, value in OVERRIDES.get(config.model_type, {}).items():
            setattr(config, name, value)

    def _token(self, value: Any) -> Any:
        """Tokens in the upper half of the vocabulary, each another; the text is made of the lower half."""
        if isinstance(value, list):
            return [self._token(item) for item in value]
        if type(value) is not int or value < VOCABULARY // 2:
            return value
        return self._tokens.setdefault(value, VOCABULARY // 2 + len(self._tokens))


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
    if pyramid and largest == HEADS:
        return value
    if pyramid and largest == WIDTH and not name.startswith("proj"):
        return _quarter(value)
    return min(value, largest)


def _quarter(width: int) -> int:
    """Widths that grow from stage to stage keep their ratios, and so divide by the heads of each stage."""
    return width // 4 if width >= 32 and width % 8 == 0 else width


def _smaller_widths(values: list[Any]) -> list[Any]:
    if len(values) > 4 and all(value == values[0] for value in values) and isinstance(values[0], int):
        return [min(value, WIDTH) for value in values]
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
    module = modeling_module(type(config))
    sections = module is not None and "mrope_section" in inspect.getsource(module)

    def smaller(parameters: dict[str, Any]) -> dict[str, Any]:
        new: dict[str, Any] = {
            key: smaller(value) if isinstance(value, dict) else value for key, value in parameters.items()
        }
        if "rope_type" in new and sections:
            pairs = int(HEAD_WIDTH * (new.get("partial_rotary_factor") or 1)) // 2
            count = len(new.get("mrope_section") or "thw")
            new["mrope_section"] = [(pairs + count - 1 - index) // count for index in range(count)]
        for key in {"short_factor", "long_factor"} & new.keys():
            new[key] = new[key][: len(new[key]) * HEAD_WIDTH // old]
        return new

    config.rope_parameters = smaller(entries["rope_parameters"])
