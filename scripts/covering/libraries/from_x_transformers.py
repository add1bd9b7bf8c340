"""x-transformers: one tiny decoder, encoder and the like for each activation that its options choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from x_transformers import (
    ContinuousTransformerWrapper,
    Decoder,
    Encoder,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
)

from scripts.covering.libraries import Ways
from scripts.covering.libraries.images import image
from scripts.covering.sizes import HEAD_WIDTH, HEADS, TEXT_LENGTH, VOCABULARY, WIDTH

_SIZE: dict[str, Any] = {"dim": WIDTH, "depth": 2, "heads": HEADS, "attn_dim_head": HEAD_WIDTH}


def _decoder(**options: Any) -> Callable[[], nn.Module]:
    return lambda: TransformerWrapper(
        num_tokens=VOCABULARY, max_seq_len=TEXT_LENGTH, attn_layers=Decoder(**_SIZE, **options)
    )


def _encoder(**options: Any) -> Callable[[], nn.Module]:
    return lambda: TransformerWrapper(
        num_tokens=VOCABULARY, max_seq_len=TEXT_LENGTH, attn_layers=Encoder(**_SIZE, **options)
    )


def _ids() -> torch.Tensor:
    return torch.randint(VOCABULARY, (1, TEXT_LENGTH))


def _text(_: nn.Module) -> dict[str, Any]:
    return {"x": _ids()}


def _pair(_: nn.Module) -> dict[str, Any]:
    return {"src": _ids(), "tgt": _ids()}


_MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], dict[str, Any]]]] = {
    "decoder": (_decoder(), _text),
    "decoder-glu": (_decoder(ff_glu=True), _text),
    "decoder-swiglu": (_decoder(ff_glu=True, ff_swish=True, ff_no_bias=True), _text),
    "decoder-glu-mult-bias": (_decoder(ff_glu=True, ff_glu_mult_bias=True), _text),
    "decoder-glu-softclamp": (_decoder(ff_glu=True, ff_glu_softclamp=True), _text),
    "decoder-swish": (_decoder(ff_swish=True), _text),
    "decoder-relu-squared": (_decoder(ff_relu_squared=True), _text),
    "decoder-reglu-squared": (_decoder(ff_glu=True, ff_relu_squared=True), _text),
    "decoder-solu": (_decoder(ff_solu=True), _text),
    "decoder-post-act-ln": (_decoder(ff_post_act_ln=True), _text),
    "decoder-mish": (_decoder(ff_custom_activation=nn.Mish()), _text),
    "decoder-gelu-tanh": (_decoder(ff_custom_activation=nn.GELU(approximate="tanh")), _text),
    "decoder-gate-values": (_decoder(attn_gate_values=True), _text),
    "decoder-gru-residual": (_decoder(gate_residual=True), _text),
    "decoder-dynamic-tanh": (_decoder(use_dynamic_tanh=True), _text),
    "decoder-softclamp-logits": (_decoder(attn_softclamp_logits=True), _text),
    "decoder-dynamic-position-bias": (_decoder(dynamic_pos_bias=True), _text),
    "encoder": (_encoder(), _text),
    "encoder-macaron-glu": (_encoder(macaron=True, ff_glu=True), _text),
    "encoder-decoder-glu": (
        lambda: XTransformer(
            dim=WIDTH,
            **{
                f"{side}_{name}": value
                for side in ("enc", "dec")
                for name, value in {
                    "num_tokens": VOCABULARY, "depth": 2, "heads": HEADS, "max_seq_len": TEXT_LENGTH, "ff_glu": True,
                }.items()
            },
        ),
        _pair,
    ),
    "vit-glu": (
        lambda: ViTransformerWrapper(
            image_size=32, patch_size=16, num_classes=8, attn_layers=Encoder(**_SIZE, ff_glu=True)
        ),
        lambda model: image(model, 3, 32, 32),
    ),
    "continuous-swiglu": (
        lambda: ContinuousTransformerWrapper(
            dim_in=8, dim_out=8, max_seq_len=TEXT_LENGTH, attn_layers=Decoder(**_SIZE, ff_glu=True, ff_swish=True)
        ),
        lambda _: {"x": torch.randn(1, TEXT_LENGTH, 8)},
    ),
}  # fmt: skip


def names() -> Sequence[str]:
    return tuple(_MODELS)


def build(name: str) -> Ways:
    yield _MODELS[name]
