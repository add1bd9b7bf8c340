"""Inputs for one forward of a model, from the signature of its ``forward``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from scripts.covering.classes import configurations
from scripts.covering.shrinking import TOKENS
from scripts.covering.sizes import SAMPLES, TEXT_LENGTH, VOCABULARY, WIDTH


class TinyModelError(Exception):
    """A model type that cannot be built or run here; the message is the first real error."""


_ATTEMPTS = 4


def working_inputs(model: PreTrainedModel, *, text_only: bool) -> dict[str, Any]:
    """The first inputs that fit the signature and with which the model runs."""
    first: Exception | None = None
    for attempt in range(_ATTEMPTS):
        torch.default_generator.manual_seed(0)
        try:
            inputs = _Feed(model, attempt, text_only=text_only).inputs()
            with torch.no_grad():
                model(**copied(inputs))
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
        special = FEEDS.get(self.config.model_type, {})
        builders = {**BUILDERS, **special}
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
        parts = [part for part in configurations(self.config) if part is getattr(self.config, name, None)]
        parts += [
            part
            for part in configurations(self.config)
            if any(getattr(part, entry, None) is not None for entry in entries)
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
                (vars(part)[name] for part in configurations(self.config) for name in names if name in vars(part)), None
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

    def ids(self, length: int = TEXT_LENGTH) -> Tensor:
        """Tokens that have no special meaning."""
        entries = [entry for part in configurations(self.config) for entry in vars(part).items()]
        special = {value for name, value in entries if isinstance(value, int) and re.search(TOKENS, name)}
        known = min(getattr(self.config, "vocab_size", None) or VOCABULARY, VOCABULARY // 2)
        ordinary = torch.tensor([token for token in range(known) if token not in special])
        return ordinary[torch.randint(len(ordinary), (1, length))]

    def width(self) -> int:
        names = ("encoder_hidden_size", "hidden_size", "d_model")
        return next((width for name in names if (width := getattr(self.config, name, None))), WIDTH)

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
        return torch.randn([(1, SAMPLES), (1, 1, SAMPLES), (1, self.mel(), self.frames())][self.attempt % 3])

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
            return _rows(extract(**copied({name: value for name, value in inputs.items() if name in accepted})))
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
BUILDERS: _Builders = {
    "input_ids": lambda feed: feed.ids(),
    "attention_mask": lambda _: _ones(1, TEXT_LENGTH),
    "decoder_input_ids": lambda feed: feed.ids(5),
    "inputs_embeds": lambda feed: torch.randn(1, TEXT_LENGTH, feed.width()),
    "hidden_states": lambda feed: feed.patches() if "grid_thw" in feed.names else torch.randn(1, 16, feed.width()),
    "encoder_hidden_states": lambda feed: torch.randn(1, 16, feed.width()),
    "query_embeds": lambda feed: torch.randn(1, 4, feed.config.hidden_size),
    "qformer_input_ids": lambda feed: feed.ids(),
    "task_inputs": lambda feed: feed.ids(feed.config.task_seq_len),
    "bbox": lambda _: torch.tensor([[[1, 2, 30, 40]] * TEXT_LENGTH]),
    "context_input_ids": lambda feed: feed.ids().expand(feed.config.n_docs, TEXT_LENGTH),
    "protein_input_ids": lambda feed: feed.ids(),
    "protein_attention_mask": lambda _: _ones(1, TEXT_LENGTH),
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
    "image_embeds_position_mask": lambda _: (torch.arange(TEXT_LENGTH) < 4).long()[None],
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
_OF_TYPES: list[tuple[str, _Builders]] = [
    ("audio-spectrogram-transformer", {"input_values": lambda feed: torch.randn(1, 64, feed.mel())}),
    ("blip_2_qformer t5gemma2_decoder", {"encoder_hidden_states": BUILDERS["encoder_hidden_states"]}),
    ("colqwen2", {"pixel_values": lambda feed: feed.patches()[None]}),
    ("csm_depth_decoder_model", {"input_ids": lambda feed: feed.ids(4)}),
    ("depth_pro", {"pixel_values": lambda _: torch.randn(1, 3, 224, 224)}),
    ("dia", {"decoder_input_ids": lambda feed: feed.ids(5)[..., None].expand(1, 5, 9)}),
    ("dia_decoder", {"input_ids": lambda feed: feed.ids()[..., None].expand(1, TEXT_LENGTH, 9),
                     "encoder_hidden_states": BUILDERS["encoder_hidden_states"]}),
    ("florence_vision", {"hidden_states": lambda feed: feed.image()}),
    ("fun_asr_nano fun_asr_nano_encoder",
     {"input_features": lambda feed: torch.randn(1, feed.frames(), feed.audio.input_size)}),
    ("glm_image", {"images_per_sample": lambda _: torch.tensor([2]),
                   "image_grid_thw": lambda feed: feed.grid().expand(2, 3)}),  # the last one is to be generated
    ("granite_docling", {"pixel_attention_mask": lambda _: torch.ones(1, 1, dtype=torch.bool)}),
    ("granite_speech5_encoder granite_speech5_ctc",
     {"input_features": lambda feed: torch.randn(1, 64, 4 * feed.mel())}),
    ("granite_speech granite_speech_plus", {"input_features_mask": lambda _: None}),
    ("idefics", {"image_attention_mask": lambda _: _ones(1, TEXT_LENGTH, 1)}),
    ("idefics2_perceiver", {"context": lambda _: torch.randn(1, 16, WIDTH), "attention_mask": lambda _: _ones(1, 16)}),
    ("inkling2 inkling2_vision", {"pixel_values": lambda feed: torch.randn(
        16, *[feed.vision.patch_size * feed.vision.spatial_merge_size] * 2, feed.channels)}),
    ("kimi_k25 kimi_k25_vision", {"pixel_values": lambda feed: feed.square_patches()}),
    ("kosmos_2_5_vision_model", {"attention_mask": lambda _: torch.ones(1, 16)}),
    ("kyutai_speech_to_text", {"input_ids": lambda feed: feed.ids()[..., None].expand(1, TEXT_LENGTH, 5)}),
    ("mimi_decoder pocket_tts_audio_tokenizer_decoder", {"latents": lambda feed: torch.randn(1, feed.width(), 8)}),
    ("minicpm_ocr minicpm_ocr_vision minicpmv4_6 minicpmv4_6_vision minicpmv4_7 minicpmv4_7_vision",
     {"pixel_values": lambda feed: feed.strip()}),
    ("mllama mllama_vision_model", {"pixel_values": lambda feed: feed.tiles()}),
    ("molmo2 molmo2_vision", {"pixel_values": lambda feed: torch.randn(1, 16, 3 * feed.vision.patch_size**2)}),
    ("moshi_depth", {"input_ids": lambda feed: feed.ids(4),
                     "last_hidden_state": lambda feed: torch.randn(1, 4, feed.config.input_size)}),
    ("moss_transcribe_diarize", {"padding_mask": lambda feed: _ones(1, feed.frames())}),
    ("musicgen musicgen_melody", {"decoder_input_ids": lambda feed: feed.ids(5).expand(4, 5)}),
    ("musicgen_decoder musicgen_melody_decoder", {"input_ids": lambda feed: feed.ids().expand(4, TEXT_LENGTH)}),
    ("nemotron_h_omni", {"input_features": lambda _: None, "input_features_mask": lambda _: None}),
    ("neomme", {"pixel_values": lambda feed: feed.patches()}),
    ("paddleocr_vl", {"pixel_values": lambda feed: feed.square_patches()}),
    ("paddleocr_vl_vision", {"pixel_values": lambda feed: feed.square_patches()[None],
                             "grid_thw": lambda feed: feed.grid()}),
    ("qwen2_5_omni_audio_encoder qwen3_omni_moe_audio_encoder",
     {"input_features": lambda feed: torch.randn(feed.mel(), feed.frames())}),
    ("qwen2_audio", {"attention_mask": BUILDERS["attention_mask"], "input_ids": lambda feed: torch.cat(
        [feed.ids(), torch.tensor([[feed.config.audio_token_index]])], dim=1)}),  # that one token is expanded
    ("rag", {"context_attention_mask": lambda feed: _ones(feed.config.n_docs, TEXT_LENGTH),
             "doc_scores": lambda feed: torch.randn(1, feed.config.n_docs)}),
    ("seggpt", {"pixel_values": lambda _: torch.randn(1, 3, 64, 64)}),
    ("speech-encoder-decoder", {"input_features": lambda _: None}),
    ("vibevoice", {"padding_mask": lambda _: _ones(1, SAMPLES)}),
    ("vibevoice_acoustic_tokenizer_encoder", {"hidden_states": lambda _: torch.randn(1, 1, SAMPLES)}),
    ("videomt", {"pixel_values": lambda _: None, "pixel_values_videos": lambda feed: feed.video()}),
    ("voxtral_realtime", {"input_ids": lambda feed: feed.ids(8)}),
    ("voxtral_realtime_text", {"t_cond": lambda _: torch.randn(1, 1, WIDTH)}),
    ("xclip_vision_model", {"pixel_values": lambda feed: torch.randn(feed.config.num_frames, 3, *feed.size())}),
]
# fmt: on
FEEDS = {model_type: builders for types, builders in _OF_TYPES for model_type in types.split()}


def copied(value: Any) -> Any:
    """Models may write to their inputs."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, (list, tuple)):
        return type(value)(map(copied, value))
    return {key: copied(item) for key, item in value.items()} if isinstance(value, dict) else value
