"""What the rules of ``shrinking`` do not get right, by the type of a configuration, its parts included."""

from __future__ import annotations

from typing import Any

from scripts.covering.sizes import TEXT_LENGTH

_SERIES = {"context_length": 16, "num_time_features": 1, "feature_size": 10}
# fmt: off
OVERRIDES: dict[str, dict[str, Any]] = {
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
    "dory": {"num_hidden_layers": 3, "n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 1,
             "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
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
    "nystromformer": {"num_landmarks": 4, "segment_means_seq_len": TEXT_LENGTH},
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
