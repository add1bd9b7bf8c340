"""open_clip's models: its own configurations made small, one of each kind that is left."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any

import open_clip
import timm
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn
from transformers import AutoConfig

from scripts.covering.libraries import Ways
from scripts.covering.libraries.images import smallest
from scripts.covering.shrinking import Shrinker
from scripts.covering.sizes import HEAD_WIDTH, HEADS, TEXT_LENGTH, VOCABULARY, WIDTH

_TEXT = {"context_length": TEXT_LENGTH, "vocab_size": VOCABULARY, "width": WIDTH, "heads": HEADS, "layers": 2}
_POOLER = {"attn_pooler_heads": HEADS, "attn_pooler_queries": 4}
# What a text tower of transformers is, by its checkpoint's name.
_TYPES = (("mt5", "mt5"), ("xlm-roberta", "xlm-roberta"), ("roberta", "roberta"), ("nllb", "m2m_100"))


def names() -> Sequence[str]:
    return smallest((json.dumps(_kind(name), sort_keys=True), name) for name in open_clip.list_models())


def build(name: str) -> Ways:
    config = _small(name)
    custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    cls = CoCa if "multimodal_cfg" in config else CustomTextCLIP if custom else CLIP
    yield partial(_made, cls, config), partial(_inputs, config["vision_cfg"]["image_size"])


def _small(name: str) -> dict[str, Any]:
    """The configuration of a model, with small numbers; towers of timm stay as they are."""
    config = open_clip.get_model_config(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    config["embed_dim"] = WIDTH
    if "timm_model_name" not in vision:
        layers = [1, 1, 1, 1] if isinstance(vision["layers"], list) else 2
        vision.update(layers=layers, width=WIDTH, head_width=HEAD_WIDTH)
        patch = vision.get("patch_size") or 16
        vision["image_size"] = 64 if isinstance(layers, list) else 2 * patch
        vision.update(_POOLER if vision.get("attentional_pool") else {})
    if "hf_model_name" not in text:
        text.update(_TEXT)
    if "multimodal_cfg" in config:
        config["multimodal_cfg"].update(_TEXT, attn_pooler_heads=HEADS)
    return config


def _kind(name: str) -> dict[str, Any]:
    """What sets a model apart from others once it is small."""
    config = _small(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    for tokens in ("tokenizer_kwargs", "hf_tokenizer_name", "eos_id", "pad_id"):
        text.pop(tokens, None)
    for part in (vision, text):
        part.pop("mlp_ratio", None)
    if "timm_model_name" in vision:
        config["vision_cfg"] = timm.models.model_entrypoint(vision["timm_model_name"]).__module__
    else:
        for size in ("image_size", "patch_size"):
            vision.pop(size)
    if "hf_model_name" in text:
        config["text_cfg"] = _type(text["hf_model_name"])
    config.pop("init_logit_bias", None)
    config.pop("init_logit_scale", None)
    return config


def _type(checkpoint: str) -> str:
    return next(model_type for part, model_type in _TYPES if part in checkpoint)


def _made(cls: type[nn.Module], config: dict[str, Any]) -> nn.Module:
    """The model. A text tower of transformers is given as a folder that has its configuration, made small. Of a tower
    of timm that has blocks of one kind, two are kept."""
    text = dict(config["text_cfg"])
    with tempfile.TemporaryDirectory() as folder:
        if "hf_model_name" in text:
            small = AutoConfig.for_model(_type(text["hf_model_name"]))
            Shrinker().shrink(small)
            small.save_pretrained(folder)
            text.update(hf_model_name=folder, hf_model_pretrained=False)
        model = cls(**{**config, "text_cfg": text})
    trunk = getattr(model.visual, "trunk", None)
    blocks = getattr(trunk, "blocks", None)
    if isinstance(blocks, (nn.Sequential, nn.ModuleList)) and len({type(block) for block in blocks}) == 1:
        trunk.blocks = blocks[:2]
    return model


def _inputs(size: int, _: nn.Module) -> dict[str, Any]:
    return {
        "image": torch.randn(1, 3, size, size),
        "text": torch.randint(4, VOCABULARY // 2, (1, TEXT_LENGTH)),
    }
