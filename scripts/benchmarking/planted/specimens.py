"""Tiny models of ten families, with weights as large as trained ones', and batches that reach what can go wrong.

A model as it is initialised gives its activations numbers around 0.1, where every one of them is nearly a straight
line, and has biases of zero. These have pre-activations of a standard deviation of 4 or so, up to 12 and beyond, and
random biases. An activation is given a few thousand numbers at a time, in an odd number of rows.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

Batch = dict[str, Any]

EXAMPLES, LENGTH, LONG = 3, 11, 400
_VOCABULARY = 64
_SMALL = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_DECODER = {**_SMALL, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 2048}
_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_WIDENED = ("fc1", "c_fc", "intermediate.dense", "wi_0", "gate_proj", "gate_up_proj", "conv1", "conv2")
"""What stands before an activation, by its name."""
_SPREAD = 4.0  # of what they give, times that of what they are given


def _ids(examples: int = EXAMPLES, length: int = LENGTH) -> Tensor:
    return torch.randint(3, _VOCABULARY, (examples, length), generator=_generator())


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator())


def _text(length: int) -> Batch:
    return {"input_ids": _ids(length=length)}


def _seq2seq(length: int) -> Batch:
    return {"input_ids": _ids(length=length), "decoder_input_ids": _ids(length=5)}


def _images(length: int) -> Batch:
    del length
    return {"pixel_values": _noise(EXAMPLES, 3, 24, 32)}  # 12 patches and the class token


def _speech(length: int) -> Batch:
    del length
    return {"input_features": _noise(EXAMPLES, 16, 22), "decoder_input_ids": _ids(length=5)}


@dataclass(frozen=True)
class Specimen:
    """A tiny model.

    Attributes:
        name: of its family.
        activation: the function of its hidden layers.
        kind: what a patch can fuse there: ``gated`` or ``linear``.
        make: builds it as transformers initialises it.
        inputs: a batch of that many tokens (of images and sounds, of the one size there is).
        decoder: whether it takes a cache.
        refuses: dtypes in which transformers does not run it.
    """

    name: str
    activation: str
    kind: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Batch] = _text
    decoder: bool = False
    refuses: tuple[torch.dtype, ...] = ()

    def build(self, dtype: torch.dtype = torch.float32) -> Any:
        """The model in evaluation mode, the same each time."""
        return copy.deepcopy(self._built).to(dtype)

    @functools.cached_property
    def _built(self) -> nn.Module:
        torch.manual_seed(0)
        model = self.make().eval()
        for name, weight in model.named_parameters():
            with torch.no_grad():
                _as_if_trained(name, weight)
        return model

    def batch(self, model: nn.Module, name: str = "usual") -> Batch:
        """Keyword arguments for ``model``.

        Args:
            name: ``usual``; ``long``, of ``LONG`` tokens; ``cached``, a single token behind a cache of the others.
        """
        inputs = self.inputs(LONG if name == "long" else LENGTH)
        dtype = next(model.parameters()).dtype
        inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
        if name != "cached":
            return {**inputs, "use_cache": False} if self.decoder else inputs
        name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # before 5.24
        with torch.no_grad():
            cache = model(input_ids=inputs["input_ids"][:, :-1], use_cache=True)[name]
        return {"input_ids": inputs["input_ids"][:, -1:], name: cache, "use_cache": True}


def _as_if_trained(name: str, weight: Tensor) -> None:
    """What is multiplied keeps the spread of what it is given; what stands before an activation widens it."""
    module = name.rpartition(".")[0]
    wide = any(name.endswith((part, f"{part}.weight")) or module.endswith(part) for part in _WIDENED)
    if weight.dim() == 1:
        if name.endswith("bias"):
            weight.normal_(std=0.5)
    elif "embed" in name or name.endswith(("shared.weight", "wte.weight", "wpe.weight")):
        weight.normal_()
    else:
        inputs = weight[0].numel()
        if weight.dim() == 3 and "experts" in name:
            inputs = weight.shape[-1]
        elif "h." in name and weight.dim() == 2:  # GPT-2's lie transposed
            inputs = weight.shape[0]
        weight.normal_(std=inputs**-0.5 * (_SPREAD if wide else 1.0))


_T = transformers


def _t5() -> nn.Module:
    sizes = {"d_model": 48, "d_kv": 12, "d_ff": 96, "num_heads": 4, "num_layers": 2, "vocab_size": _VOCABULARY}
    config = _T.T5Config(**sizes, feed_forward_proj="gated-gelu", dropout_rate=0.1, tie_word_embeddings=False)
    return _T.T5ForConditionalGeneration(config)


def _whisper() -> nn.Module:
    sizes = {"d_model": 48, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "vocab_size": _VOCABULARY}
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    positions = {"num_mel_bins": 16, "max_source_positions": LENGTH, "max_target_positions": 32}
    config = _T.WhisperConfig(**sizes, **layers, **positions, **_TOKENS, decoder_start_token_id=0, dropout=0.1)
    return _T.WhisperForConditionalGeneration(config)


def _opt() -> nn.Module:
    sizes = {"hidden_size": 48, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = _T.OPTConfig(
        **sizes, vocab_size=_VOCABULARY, word_embed_proj_dim=48, max_position_embeddings=2048, **_TOKENS
    )
    return _T.OPTForCausalLM(config)


SPECIMENS: Mapping[str, Specimen] = {
    specimen.name: specimen
    for specimen in (
        Specimen("bert", "gelu", "linear", lambda: _T.BertForMaskedLM(_T.BertConfig(**_SMALL))),
        Specimen(
            "gpt2",
            "gelu_tanh",
            "linear",
            lambda: _T.GPT2LMHeadModel(
                _T.GPT2Config(n_embd=48, n_head=4, n_layer=2, n_positions=2048, vocab_size=_VOCABULARY, **_TOKENS)
            ),
            decoder=True,
        ),
        Specimen("t5", "gelu_tanh", "gated", _t5, _seq2seq),
        Specimen(
            "llama",
            "silu",
            "gated",
            lambda: _T.LlamaForCausalLM(_T.LlamaConfig(**_DECODER, **_TOKENS)),
            decoder=True,
        ),
        Specimen(
            "vit",
            "gelu",
            "linear",
            lambda: _T.ViTForImageClassification(
                _T.ViTConfig(
                    **{key: value for key, value in _SMALL.items() if key != "vocab_size"},
                    image_size=(24, 32),
                    patch_size=8,
                    num_labels=10,
                )
            ),
            _images,
        ),
        Specimen("whisper", "gelu", "linear", _whisper, _speech),
        Specimen(
            "mixtral",
            "silu",
            "gated",
            lambda: _T.MixtralForCausalLM(
                _T.MixtralConfig(**_DECODER, num_local_experts=4, num_experts_per_tok=2, **_TOKENS)
            ),
            decoder=True,
            refuses=(torch.float64,),
        ),
        Specimen(
            "gemma",
            "gelu_tanh",
            "gated",
            lambda: _T.GemmaForCausalLM(_T.GemmaConfig(**_DECODER, **_TOKENS)),
            decoder=True,
        ),
        Specimen(
            "phi3",
            "silu",
            "gated",
            lambda: _T.Phi3ForCausalLM(
                _T.Phi3Config(**{k: v for k, v in _DECODER.items() if k != "head_dim"}, **_TOKENS)
            ),
            decoder=True,
        ),
        Specimen("opt", "relu", "linear", _opt, decoder=True),
    )
}
"""Eight families and more, by name."""
