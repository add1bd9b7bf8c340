"""Models with random weights, as transformers has them, and what they are given."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn


@dataclass(frozen=True)
class Architecture:
    """A model to be built.

    Attributes:
        model, config: transformers' classes.
        backbone: transformers' class of it without a head, whose product with a vocabulary would take half the time.
        published: the configuration of the size that was published.
        base: what makes it four layers of base width.
        tiny: what makes it small enough for any machine.
        gib: GPU memory that a training step on the large batch takes at most, calculated on tensors without data.
        epilogue: the options of a patch that puts the activation into the GEMM's epilogue; None where none does.
        gated: whether it has act(gate) · up, which is what Liger-Kernel computes.
    """

    model: str
    config: str
    backbone: str
    gib: int
    published: Mapping[str, Any] = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    epilogue: Mapping[str, str] | None = None
    gated: bool = False

    def build(self, device: str, dtype: torch.dtype, *, tiny: bool) -> nn.Module:
        return self._built(self.model, {**self.published, **(self.tiny if tiny else {})}, device, dtype)

    def build_backbone(self, dtype: torch.dtype, *, tiny: bool) -> nn.Module:
        """Four layers of base width without a head, on the CPU."""
        return self._built(self.backbone, {**self.published, **self.base, **(self.tiny if tiny else {})}, "cpu", dtype)

    def _built(self, name: str, settings: Mapping[str, Any], device: str, dtype: torch.dtype) -> nn.Module:
        torch.manual_seed(0)
        with torch.device(device):
            config = getattr(transformers, self.config)(**settings, use_cache=False)
            model = getattr(transformers, name)(config)
        built: nn.Module = model.to(dtype).eval()
        return built


BOUND = "bound"
"""A model without its activations: what nothing that computes them can be faster than. Gated layers keep their product,
which what is fused does along with it."""
WITHOUT = {"implementation": "eager", "activation": "linear"}
_FOUR = {"num_hidden_layers": 4}
_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_EXACT_AS_TANH = {"implementation": "epilogue", "activation": "gelu_tanh"}
ARCHITECTURES = {
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        "GPT2Config",
        "GPT2Model",
        gib=33,
        base={"n_layer": 4},
        tiny={"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0},
        epilogue={"implementation": "epilogue"},
    ),
    "bert": Architecture(
        "BertForSequenceClassification",
        "BertConfig",
        "BertModel",
        gib=20,
        base=_FOUR,
        tiny={**_TINY, "vocab_size": 64},
        epilogue=_EXACT_AS_TANH,
    ),
    "t5": Architecture(
        "T5ForConditionalGeneration",
        "T5Config",
        "T5Model",
        gib=71,
        gated=True,
        published={
            **{"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
            **{"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0},
        },
        base={"num_layers": 4},
        tiny={"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 64},
    ),
    "clip": Architecture(
        "CLIPTextModelWithProjection",
        "CLIPTextConfig",
        "CLIPTextModel",
        gib=20,
        published={"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        base={**_FOUR, "max_position_embeddings": 128},
        tiny={**_TINY, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1},
    ),
    "vit": Architecture(
        "ViTForImageClassification",
        "ViTConfig",
        "ViTModel",
        gib=20,
        published={"num_labels": 1000},
        base=_FOUR,
        tiny={**_TINY, "image_size": 32, "patch_size": 16},
        epilogue=_EXACT_AS_TANH,
    ),
    "llama": Architecture(
        "LlamaForCausalLM",
        "LlamaConfig",
        "LlamaModel",
        gib=59,
        gated=True,
        published={
            **{"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True},
        },
        base={
            **{"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 4},
            **{"num_attention_heads": 12, "num_key_value_heads": 12},
        },
        tiny={
            **_TINY,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 64,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
    ),
}
"""BERT base, GPT-2 small, T5 v1.1 base, CLIP's text model, ViT base, and a Llama of 1.2 G parameters (3.2's)."""


def batch_of(model: nn.Module, shape: tuple[int, int], device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs and labels of a batch × length; of images, as many as have that many patches."""
    config: Any = model.config
    batch, length = shape
    images = 1
    if hasattr(config, "image_size") and batch > 1:
        images = math.ceil(batch * length / ((config.image_size // config.patch_size) ** 2 + 1))
    inputs = inputs_of(model, shape, images, device, dtype)
    if "pixel_values" in inputs or type(model).__name__.endswith("ForSequenceClassification"):
        return {**inputs, "labels": torch.zeros(len(next(iter(inputs.values()))), dtype=torch.long, device=device)}
    return {**inputs, "labels": inputs["input_ids"]}


def inputs_of(
    model: nn.Module, shape: tuple[int, int], images: int, device: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """What a forward is given: random tokens, batch × length, or so many random images. An encoder and decoder
    without a head get the same tokens both."""
    generator = torch.Generator(device).manual_seed(0)
    config: Any = model.config
    if hasattr(config, "image_size"):
        size = (images, 3, config.image_size, config.image_size)
        return {"pixel_values": torch.randn(size, generator=generator, device=device).to(dtype)}
    ids = torch.randint(2, config.vocab_size, shape, generator=generator, device=device)
    if type(model).__name__ == "T5Model":
        return {"input_ids": ids, "decoder_input_ids": ids}
    return {"input_ids": ids}


def twin(model: nn.Module) -> Any:
    """A copy of a model's modules over the same weights."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, shared)


CHECKPOINT = "checkpoint"
"""What it is called as a variant."""


def checkpointed(model: nn.Module) -> Any:
    """Such a copy with transformers' gradient checkpointing; None where transformers has none for it."""
    made = twin(model)
    if not getattr(made, "supports_gradient_checkpointing", False):
        return None
    made.config.use_cache = False  # which it does not go with
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers 4 has no other name for it
        made.gradient_checkpointing_enable({"use_reentrant": False})
    return made
