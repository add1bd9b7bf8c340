"""diffusers' models, each built tiny from numbers of its own: UNets, transformers, autoencoders and ControlNets.

A name is that of a class, and of a variant: ``UNet2DConditionModel-sdxl``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor

from scripts.covering.libraries import Ways
from scripts.covering.sizes import TEXT_LENGTH, VOCABULARY, WIDTH


class _Tiny(NamedTuple):
    """What the class takes, and what its forward takes."""

    settings: dict[str, Any]
    inputs: Callable[[], dict[str, Any]]


def _noise(*shape: int) -> Tensor:
    return torch.randn(1, *shape)


def _text(width: int = WIDTH) -> Tensor:
    return torch.randn(1, TEXT_LENGTH, width)


def _step() -> Tensor:
    return torch.tensor([3])


def _seen() -> Tensor:
    """A mask of text, none of it hidden."""
    return torch.ones(1, TEXT_LENGTH)


def _positions(length: int, axes: int = 3) -> Tensor:
    return torch.arange(length).float()[:, None].expand(length, axes).clone()


_HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16}
_WIDTHS: dict[str, Any] = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
_UNET: dict[str, Any] = {
    **_WIDTHS, "sample_size": 16, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": WIDTH, "attention_head_dim": 8,
}  # fmt: skip
_CONTROL: dict[str, Any] = {
    name: value for name, value in _UNET.items() if name not in ("sample_size", "up_block_types")
}
_VAE: dict[str, Any] = {
    **_WIDTHS, "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
_JOINT: dict[str, Any] = {"joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH}
_FLUX: dict[str, Any] = {
    "patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, **_HEADS,
    "axes_dims_rope": (4, 4, 8),
}  # fmt: skip


def _denoised(channels: int = 4, *size: int, **more: Any) -> Callable[[], dict[str, Any]]:
    """Inputs of a UNet: a sample, a step, and a text."""
    return lambda: {
        "sample": _noise(channels, *(size or (16, 16))),
        "timestep": _step(),
        **{name: value() for name, value in {"encoder_hidden_states": _text, **more}.items()},
    }


def _transformed(channels: int, *size: int, **more: Any) -> Callable[[], dict[str, Any]]:
    """Inputs of a transformer for diffusion: latents, a step, and a text."""
    return lambda: {
        "hidden_states": _noise(channels, *(size or (16, 16))),
        "timestep": _step(),
        **{name: value() for name, value in {"encoder_hidden_states": _text, **more}.items()},
    }


def _packed(**more: Any) -> Callable[[], dict[str, Any]]:
    """Inputs of the transformers that take patches of latents as tokens, and the positions of these."""
    return lambda: {
        "hidden_states": _noise(16, 4),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": _text(),
        "img_ids": _positions(16),
        "txt_ids": torch.zeros(TEXT_LENGTH, 3),
        **{name: value() for name, value in more.items()},
    }


def _pooled() -> Tensor:
    return torch.randn(1, WIDTH)


def _sample(*shape: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"sample": _noise(*shape)}


def _sizes(**more: Any) -> dict[str, Callable[[], Any]]:
    return {
        name: lambda: torch.tensor([[64.0, 64.0]]) for name in ("original_size", "target_size", "crop_coords")
    } | more


_MODELS: dict[str, _Tiny] = {
    # UNets
    "UNet1DModel": _Tiny({"sample_size": 64, "in_channels": 2, "extra_in_channels": 64}, lambda: {
        "sample": _noise(2, 64), "timestep": _step()}),
    "UNet2DModel": _Tiny({**_WIDTHS, "sample_size": 16, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}, lambda: {"sample": _noise(3, 16, 16), "timestep": _step()}),
    "UNet2DConditionModel": _Tiny(_UNET, _denoised()),
    "UNet2DConditionModel-gelu": _Tiny({**_UNET, "act_fn": "gelu"}, _denoised()),
    "UNet2DConditionModel-sdxl": _Tiny({**_UNET, "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 2),
        "projection_class_embeddings_input_dim": WIDTH + 6 * 8}, _denoised(added_cond_kwargs=lambda: {
            "text_embeds": _pooled(), "time_ids": torch.ones(1, 6)})),
    "UNet3DConditionModel": _Tiny({**_UNET, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")}, _denoised(4, 4, 16, 16)),
    "UNetMotionModel": _Tiny({**{k: v for k, v in _UNET.items() if k != "attention_head_dim"}, "num_attention_heads": 2,
        "motion_num_attention_heads": 2, "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion")}, _denoised(4, 4, 16, 16,
        encoder_hidden_states=lambda: torch.randn(4, TEXT_LENGTH, WIDTH))),
    "UNetSpatioTemporalConditionModel": _Tiny({"sample_size": 16, "in_channels": 4, "block_out_channels": (32, 64),
        "layers_per_block": 1, "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), "cross_attention_dim": WIDTH,
        "num_attention_heads": 2, "addition_time_embed_dim": 32, "projection_class_embeddings_input_dim": 96,
        "num_frames": 2}, lambda: {"sample": torch.randn(1, 2, 4, 16, 16), "timestep": _step(),
        "encoder_hidden_states": torch.randn(1, 1, WIDTH), "added_time_ids": torch.ones(1, 3)}),
    "I2VGenXLUNet": _Tiny({**_WIDTHS, "sample_size": 16, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"), "cross_attention_dim": WIDTH, "attention_head_dim": 8},
        _denoised(4, 4, 16, 16, fps=lambda: torch.tensor([8]), image_latents=lambda: _noise(4, 4, 16, 16),
        image_embeddings=_pooled)),
    "Kandinsky3UNet": _Tiny({"time_embedding_dim": 32, "groups": 8, "attention_head_dim": 8, "layers_per_block": 2,
        "block_out_channels": (32, 64, 64, 64), "cross_attention_dim": WIDTH, "encoder_hid_dim": WIDTH},
        _denoised(4, 16, 16, encoder_attention_mask=_seen)),
    "StableCascadeUNet": _Tiny({"in_channels": 4, "out_channels": 4, "conditioning_dim": WIDTH,
        "block_out_channels": (32, 64), "num_attention_heads": (2, 4), "down_num_layers_per_block": (1, 1),
        "up_num_layers_per_block": (1, 1), "clip_text_pooled_in_channels": WIDTH}, lambda: {
        "sample": _noise(4, 16, 16), "timestep_ratio": torch.tensor([0.5]), "clip_text_pooled": _noise(1, WIDTH)}),
    "UVit2DModel": _Tiny({"hidden_size": WIDTH, "cond_embed_dim": WIDTH, "micro_cond_encode_dim": 8,
        "micro_cond_embed_dim": 40, "encoder_hidden_size": WIDTH, "vocab_size": VOCABULARY, "codebook_size": 100,
        "in_channels": 32, "block_out_channels": 32, "num_res_blocks": 1, "block_num_heads": 2, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": WIDTH, "sample_size": 8}, lambda: {
        "input_ids": torch.randint(100, (1, 8, 8)), "encoder_hidden_states": _text(), "pooled_text_emb": _pooled(),
        "micro_conds": torch.ones(1, 5)}),
    # Transformers
    "DiTTransformer2DModel": _Tiny({**_HEADS, "num_layers": 2, "sample_size": 16, "norm_num_groups": 1}, lambda: {
        "hidden_states": _noise(4, 16, 16), "timestep": _step(), "class_labels": torch.tensor([5])}),
    "Transformer2DModel-geglu": _Tiny({**_HEADS, "in_channels": 32, "cross_attention_dim": WIDTH, "norm_num_groups": 8},
        lambda: {"hidden_states": _noise(32, 8, 8), "encoder_hidden_states": _text()}),
    "Transformer2DModel-geglu-approximate": _Tiny({**_HEADS, "in_channels": 32, "cross_attention_dim": WIDTH,
        "norm_num_groups": 8, "activation_fn": "geglu-approximate"},
        lambda: {"hidden_states": _noise(32, 8, 8), "encoder_hidden_states": _text()}),
    "PixArtTransformer2DModel": _Tiny({**_HEADS, "num_layers": 2, "sample_size": 16, "cross_attention_dim": 32,
        "caption_channels": WIDTH, "use_additional_conditions": False}, _transformed(4, 16, 16,
        added_cond_kwargs=lambda: {"resolution": None, "aspect_ratio": None})),
    "SD3Transformer2DModel": _Tiny({**_HEADS, **_JOINT, "sample_size": 16, "in_channels": 4, "out_channels": 4,
        "num_layers": 2, "caption_projection_dim": 32}, _transformed(4, 16, 16, pooled_projections=_pooled)),
    "SD3Transformer2DModel-3.5": _Tiny({**_HEADS, **_JOINT, "sample_size": 16, "in_channels": 4, "out_channels": 4,
        "num_layers": 2, "caption_projection_dim": 32, "dual_attention_layers": (0,), "qk_norm": "rms_norm"},
        _transformed(4, 16, 16, pooled_projections=_pooled)),
    "FluxTransformer2DModel": _Tiny({**_FLUX, **_JOINT, "guidance_embeds": True}, _packed(
        pooled_projections=_pooled, guidance=lambda: torch.tensor([3.5]))),
    "Flux2Transformer2DModel": _Tiny({**_FLUX, "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 4, 4, 4)}, _packed(
        img_ids=lambda: _positions(16, 4), txt_ids=lambda: torch.zeros(TEXT_LENGTH, 4),
        guidance=lambda: torch.tensor([3.5]))),
    "ChromaTransformer2DModel": _Tiny({**_FLUX, "joint_attention_dim": WIDTH, "approximator_num_channels": 16,
        "approximator_hidden_dim": 32, "approximator_layers": 1}, _packed()),
    "BriaTransformer2DModel": _Tiny({**_FLUX, **_JOINT}, _packed(pooled_projections=_pooled)),
    "AuraFlowTransformer2DModel": _Tiny({**_HEADS, "sample_size": 16, "num_mmdit_layers": 1, "num_single_dit_layers": 1,
        "joint_attention_dim": WIDTH, "caption_projection_dim": 32, "pos_embed_max_size": 64}, _transformed(4)),
    "HunyuanDiT2DModel": _Tiny({**_HEADS, "in_channels": 4, "patch_size": 2, "sample_size": 16, "hidden_size": 32,
        "num_layers": 2, "cross_attention_dim": WIDTH, "cross_attention_dim_t5": WIDTH, "pooled_projection_dim": 16,
        "text_len": TEXT_LENGTH, "text_len_t5": TEXT_LENGTH, "use_style_cond_and_image_meta_size": False},
        _transformed(4, 16, 16, timestep=lambda: torch.tensor([3.0]), text_embedding_mask=_seen,
        encoder_hidden_states_t5=_text, text_embedding_mask_t5=_seen,
        image_rotary_emb=lambda: (torch.ones(64, 16), torch.zeros(64, 16)))),
    "LuminaNextDiT2DModel": _Tiny({"sample_size": 16, "hidden_size": WIDTH, "num_layers": 2, "num_attention_heads": 4,
        "num_kv_heads": 2, "multiple_of": 16, "cross_attention_dim": WIDTH}, _transformed(4, 16, 16,
        encoder_mask=_seen, cross_attention_kwargs=dict,
        image_rotary_emb=lambda: torch.polar(torch.ones(384, 384, 8), torch.ones(384, 384, 8)))),
    "Lumina2Transformer2DModel": _Tiny({"sample_size": 16, "in_channels": 4, "hidden_size": 48, "num_layers": 1,
        "num_refiner_layers": 1, "num_attention_heads": 4, "num_kv_heads": 2, "multiple_of": 16,
        "axes_dim_rope": (4, 4, 4), "axes_lens": (64, 64, 64), "cap_feat_dim": WIDTH}, _transformed(4, 16, 16,
        encoder_attention_mask=lambda: _seen().bool())),
    "SanaTransformer2DModel": _Tiny({**_HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2,
        "num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32,
        "caption_channels": WIDTH, "sample_size": 8}, _transformed(4, 8, 8)),
    "CogView3PlusTransformer2DModel": _Tiny({**_HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2,
        "text_embed_dim": WIDTH, "time_embed_dim": 32, "condition_dim": 8, "pos_embed_max_size": 16, "sample_size": 16},
        _transformed(4, 16, 16, **_sizes())),
    "CogView4Transformer2DModel": _Tiny({**_HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2,
        "text_embed_dim": WIDTH, "time_embed_dim": 32, "condition_dim": 8, "pos_embed_max_size": 16, "sample_size": 16,
        "rope_axes_dim": (16, 16)}, _transformed(4, 16, 16, **_sizes())),
    "HiDreamImageTransformer2DModel": _Tiny({**_HEADS, "patch_size": 2, "in_channels": 4, "out_channels": 4,
        "num_layers": 1, "num_single_layers": 1, "caption_channels": [WIDTH, WIDTH], "text_emb_dim": WIDTH,
        "axes_dims_rope": (8, 4, 4), "max_resolution": (16, 16), "llama_layers": (0, 1),
        "force_inference_output": True}, lambda: {
        "hidden_states": _noise(4, 16, 16), "timesteps": _step(), "encoder_hidden_states_t5": _text(),
        "encoder_hidden_states_llama3": torch.randn(2, 1, TEXT_LENGTH, WIDTH), "pooled_embeds": _pooled()}),
    "QwenImageTransformer2DModel": _Tiny({**_HEADS, "patch_size": 2, "in_channels": 16, "out_channels": 4,
        "num_layers": 2, "joint_attention_dim": WIDTH, "axes_dims_rope": (4, 4, 8)}, lambda: {
        "hidden_states": _noise(16, 16), "timestep": torch.tensor([0.5]), "encoder_hidden_states": _text(),
        "encoder_hidden_states_mask": _seen().bool(), "img_shapes": [(1, 4, 4)]}),
    "PRXTransformer2DModel": _Tiny({"in_channels": 4, "context_in_dim": WIDTH, "hidden_size": 32, "num_heads": 2,
        "depth": 2, "axes_dim": (8, 8)}, _transformed(4, 16, 16)),
    "OmniGenTransformer2DModel": _Tiny({"in_channels": 4, "hidden_size": 32, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": WIDTH, "num_layers": 2, "pad_token_id": 0,
        "vocab_size": VOCABULARY, "time_step_dim": 8, "rope_scaling": {"long_factor": [1.0] * 8,
        "short_factor": [1.0] * 8}}, lambda: {"hidden_states": _noise(4, 8, 8), "timestep": _step(),
        "input_ids": torch.randint(VOCABULARY, (1, TEXT_LENGTH)), "input_img_latents": [], "input_image_sizes": {},
        "attention_mask": torch.ones(1, TEXT_LENGTH + 17, TEXT_LENGTH + 17),
        "position_ids": torch.arange(TEXT_LENGTH + 17)[None]}),
    "PriorTransformer": _Tiny({**_HEADS, "num_layers": 2, "embedding_dim": WIDTH, "num_embeddings": TEXT_LENGTH},
        lambda: {"hidden_states": _pooled(), "timestep": _step(), "proj_embedding": _pooled(),
        "encoder_hidden_states": _text()}),
    "StableAudioDiTModel": _Tiny({"sample_size": 16, "in_channels": 4, "out_channels": 4, "num_layers": 2,
        "attention_head_dim": 16, "num_attention_heads": 2, "num_key_value_attention_heads": 1,
        "cross_attention_dim": 32, "time_proj_dim": 8, "global_states_input_dim": WIDTH,
        "cross_attention_input_dim": WIDTH}, _transformed(4, 16, global_hidden_states=lambda: _noise(1, WIDTH),
        rotary_embedding=lambda: (torch.ones(17, 8), torch.zeros(17, 8)))),
    # Transformers of video
    "LatteTransformer3DModel": _Tiny({**_HEADS, "in_channels": 4, "out_channels": 8, "num_layers": 1,
        "cross_attention_dim": 32, "attention_bias": True, "sample_size": 8, "patch_size": 2, "caption_channels": WIDTH,
        "activation_fn": "gelu-approximate", "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False, "video_length": 2}, _transformed(4, 2, 8, 8)),
    "CogVideoXTransformer3DModel": _Tiny({**_HEADS, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8,
        "text_embed_dim": WIDTH, "num_layers": 2, "sample_width": 8, "sample_height": 8, "sample_frames": 9,
        "max_text_seq_length": TEXT_LENGTH}, _transformed(3, 4, 8, 8)),
    "AllegroTransformer3DModel": _Tiny({**_HEADS, "num_layers": 1, "cross_attention_dim": 32, "caption_channels": WIDTH,
        "sample_height": 16, "sample_width": 16, "sample_frames": 8}, _transformed(4, 2, 16, 16,
        encoder_attention_mask=_seen, attention_mask=lambda: torch.ones(1, 2, 16, 16),
        image_rotary_emb=lambda: None)),
    "HunyuanVideoTransformer3DModel": _Tiny({**_HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 1,
        "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_dim": WIDTH, "pooled_projection_dim": WIDTH,
        "rope_axes_dim": (4, 4, 8)}, _transformed(4, 1, 8, 8, encoder_attention_mask=lambda: _seen().bool(),
        pooled_projections=_pooled, guidance=lambda: torch.tensor([3.5]))),
    "LTXVideoTransformer3DModel": _Tiny({**_HEADS, "in_channels": 4, "out_channels": 4, "cross_attention_dim": 32,
        "num_layers": 2, "caption_channels": WIDTH}, _transformed(8, 4, encoder_attention_mask=_seen,
        num_frames=lambda: 2, height=lambda: 2, width=lambda: 2)),
    "MochiTransformer3DModel": _Tiny({**_HEADS, "num_layers": 2, "pooled_projection_dim": 16, "in_channels": 4,
        "text_embed_dim": WIDTH, "time_embed_dim": 8, "max_sequence_length": TEXT_LENGTH}, _transformed(4, 2, 8, 8,
        encoder_attention_mask=lambda: _seen().bool())),
    "WanTransformer3DModel": _Tiny({**_HEADS, "in_channels": 4, "out_channels": 4, "text_dim": WIDTH, "freq_dim": 32,
        "ffn_dim": WIDTH, "num_layers": 2, "rope_max_seq_len": 32}, _transformed(4, 1, 8, 8)),
    "CosmosTransformer3DModel": _Tiny({**_HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "mlp_ratio": 2.0,
        "text_embed_dim": WIDTH, "adaln_lora_dim": 8, "max_size": (4, 32, 32)}, _transformed(4, 1, 8, 8,
        fps=lambda: 8, padding_mask=lambda: torch.zeros(1, 1, 64, 64))),
    # Autoencoders
    "AutoencoderKL": _Tiny(_VAE, _sample(3, 32, 32)),
    "AutoencoderTiny": _Tiny({"encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16),
        "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}, _sample(3, 32, 32)),
    "AutoencoderDC": _Tiny({"latent_channels": 4, "attention_head_dim": 8, **{
        f"{half}_{name}": value for half in ("encoder", "decoder") for name, value in {
            "block_types": ("ResBlock", "EfficientViTBlock"), "block_out_channels": (16, 32),
            "layers_per_block": (1, 1), "qkv_multiscales": ((), (5,))}.items()}}, _sample(3, 32, 32)),
    "AutoencoderKLTemporalDecoder": _Tiny({"block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D",) * 2}, lambda: {"sample": _noise(3, 32, 32), "num_frames": 1}),
    "AutoencoderKLWan": _Tiny({"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2], "num_res_blocks": 1,
        "temperal_downsample": [False]}, _sample(3, 1, 32, 32)),
    "AutoencoderOobleck": _Tiny({"encoder_hidden_size": 8, "decoder_channels": 8, "decoder_input_channels": 4,
        "downsampling_ratios": [2, 4], "channel_multiples": [1, 2]}, _sample(2, 64)),
    "VQModel": _Tiny({**_VAE, "num_vq_embeddings": 32}, _sample(3, 32, 32)),
    # ControlNets and adapters
    "ControlNetModel": _Tiny({**_CONTROL, "conditioning_embedding_out_channels": (8, 16)}, _denoised(4, 16, 16,
        controlnet_cond=lambda: _noise(3, 32, 32))),
    "SD3ControlNetModel": _Tiny({**_HEADS, **_JOINT, "sample_size": 16, "in_channels": 4, "out_channels": 4,
        "num_layers": 1, "caption_projection_dim": 32}, _transformed(4, 16, 16, pooled_projections=_pooled,
        controlnet_cond=lambda: _noise(4, 16, 16))),
    "FluxControlNetModel": _Tiny({**_FLUX, **_JOINT}, _packed(pooled_projections=_pooled,
        controlnet_cond=lambda: _noise(16, 4))),
    "T2IAdapter": _Tiny({"channels": [16, 32], "num_res_blocks": 1, "downscale_factor": 4}, lambda: {
        "x": _noise(3, 32, 32)}),
}  # fmt: skip


def names() -> Sequence[str]:
    return tuple(_MODELS)


def build(name: str) -> Ways:
    tiny = _MODELS[name]
    yield lambda: getattr(diffusers, name.partition("-")[0])(**tiny.settings), lambda _: tiny.inputs()
