"""Which activation the published models of a family were trained with, each with its source."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAMILIES", "Family", "of_gguf", "of_model_type"]


@dataclass(frozen=True)
class Family:
    """One published definition.

    Attributes:
        model_type: as a config of transformers says it.
        models: which of them.
        activation: the function in the feed-forward layers, as transformers spells it.
        entry: the config's entry that sets it; None where it stands in the code.
        source: where that is said.
        gated: of a class that has both kinds of layers, which kind this holds for, as ``is_gated_act`` says it.
        spelled: what the published config has in the entry, where that means another function by itself.
        gguf: what llama.cpp calls the architecture in a GGUF file.
    """

    model_type: str
    models: str
    activation: str
    entry: str | None
    source: str
    gated: bool | None = None
    spelled: str | None = None
    gguf: tuple[str, ...] = ()


def _config(checkpoint: str) -> str:
    return f"config.json of {checkpoint}"


_HIDDEN = "hidden_act"
_FUNCTION = "activation_function"

_ENCODERS = (
    Family("bert", "BERT", "gelu", _HIDDEN, _config("google-bert/bert-base-uncased")),
    Family("roberta", "RoBERTa", "gelu", _HIDDEN, _config("FacebookAI/roberta-base")),
    Family("xlm-roberta", "XLM-R", "gelu", _HIDDEN, _config("FacebookAI/xlm-roberta-base")),
    Family("camembert", "CamemBERT", "gelu", _HIDDEN, _config("almanach/camembert-base")),
    Family("distilbert", "DistilBERT", "gelu", "activation", _config("distilbert/distilbert-base-uncased")),
    Family("electra", "ELECTRA", "gelu", _HIDDEN, _config("google/electra-base-discriminator")),
    Family("deberta", "DeBERTa", "gelu", _HIDDEN, _config("microsoft/deberta-base")),
    Family("deberta-v2", "DeBERTa v2, v3", "gelu", _HIDDEN, _config("microsoft/deberta-v3-base")),
    Family("albert", "ALBERT v2", "gelu_new", _HIDDEN, _config("albert/albert-base-v2")),
    Family("albert", "ALBERT v1", "gelu", _HIDDEN, _config("albert/albert-base-v1")),
    Family("mpnet", "MPNet", "gelu", _HIDDEN, _config("microsoft/mpnet-base")),
    Family("mobilebert", "MobileBERT", "relu", _HIDDEN, "Sun et al. 2020, MobileBERT"),
    Family("modernbert", "ModernBERT", "gelu", "hidden_activation", _config("answerdotai/ModernBERT-base")),
    Family("longformer", "Longformer", "gelu", _HIDDEN, _config("allenai/longformer-base-4096")),
    Family("big_bird", "BigBird", "gelu_new", _HIDDEN, _config("google/bigbird-roberta-base")),
    Family("funnel", "Funnel Transformer", "gelu_new", _HIDDEN, _config("funnel-transformer/small")),
    Family("xlnet", "XLNet", "gelu", "ff_activation", _config("xlnet/xlnet-base-cased")),
    Family("layoutlm", "LayoutLM", "gelu", _HIDDEN, _config("microsoft/layoutlm-base-uncased")),
    Family("esm", "ESM-2", "gelu", None, "modules.py of facebookresearch/esm: x·½·(1 + erf(x/√2))"),
)

_DECODERS = (
    Family(
        "gpt2",
        "GPT-2",
        "gelu_new",
        _FUNCTION,
        "model.py of openai/gpt-2: gelu by tanh",
        gguf=("gpt2",),
    ),
    Family(
        "openai-gpt",
        "GPT-1",
        "gelu_new",
        "afn",
        "train.py of openai/finetune-transformer-lm: gelu by tanh",
        spelled="gelu",
    ),
    Family("gptj", "GPT-J", "gelu_new", _FUNCTION, _config("EleutherAI/gpt-j-6b")),
    Family("gpt_neo", "GPT-Neo", "gelu_new", _FUNCTION, _config("EleutherAI/gpt-neo-1.3B")),
    Family("gpt_neox", "GPT-NeoX 20B", "gelu_fast", _HIDDEN, _config("EleutherAI/gpt-neox-20b")),
    Family("gpt_neox", "Pythia", "gelu", _HIDDEN, _config("EleutherAI/pythia-160m"), gguf=("gptneox",)),
    Family("gpt_bigcode", "StarCoder", "gelu_pytorch_tanh", _FUNCTION, _config("bigcode/starcoder")),
    Family("codegen", "CodeGen", "gelu_new", _FUNCTION, _config("Salesforce/codegen-350M-mono")),
    Family("llama", "Llama 1 to 3", "silu", _HIDDEN, "Touvron et al. 2023, LLaMA: SwiGLU", gguf=("llama",)),
    Family("mistral", "Mistral 7B", "silu", _HIDDEN, _config("mistralai/Mistral-7B-v0.1")),
    Family("mixtral", "Mixtral 8x7B", "silu", _HIDDEN, "Jiang et al. 2024, Mixtral of Experts: SwiGLU"),
    Family("qwen2", "Qwen 1.5, 2, 2.5", "silu", _HIDDEN, _config("Qwen/Qwen2-7B"), gguf=("qwen2",)),
    Family("qwen2_moe", "Qwen 1.5 MoE", "silu", _HIDDEN, _config("Qwen/Qwen1.5-MoE-A2.7B"), gguf=("qwen2moe",)),
    Family("qwen3", "Qwen 3", "silu", _HIDDEN, _config("Qwen/Qwen3-8B"), gguf=("qwen3",)),
    Family("qwen3_moe", "Qwen 3 MoE", "silu", _HIDDEN, _config("Qwen/Qwen3-30B-A3B"), gguf=("qwen3moe",)),
    Family(
        "gemma",
        "Gemma 1",
        "gelu_pytorch_tanh",
        _HIDDEN,
        'model.py of google/gemma_pytorch: F.gelu(gate, approximate="tanh"); transformers #29402',
        spelled="gelu",
        gguf=("gemma",),
    ),
    Family(
        "gemma2", "Gemma 2", "gelu_pytorch_tanh", "hidden_activation", _config("google/gemma-2-9b"), gguf=("gemma2",)
    ),
    Family(
        "gemma3_text",
        "Gemma 3",
        "gelu_pytorch_tanh",
        "hidden_activation",
        _config("google/gemma-3-1b-pt"),
        gguf=("gemma3",),
    ),
    Family("phi", "Phi-1, 1.5, 2", "gelu_new", _HIDDEN, _config("microsoft/phi-2"), gguf=("phi2",)),
    Family("phi3", "Phi-3, 4", "silu", _HIDDEN, _config("microsoft/Phi-3-mini-4k-instruct"), gguf=("phi3",)),
    Family("stablelm", "StableLM 3B, 2", "silu", _HIDDEN, _config("stabilityai/stablelm-3b-4e1t"), gguf=("stablelm",)),
    Family(
        "starcoder2",
        "StarCoder 2",
        "gelu_pytorch_tanh",
        _HIDDEN,
        _config("bigcode/starcoder2-3b"),
        gguf=("starcoder2",),
    ),
    Family(
        "falcon", "Falcon", "gelu", "activation", "modeling_falcon.py of tiiuae/falcon-7b: nn.GELU()", gguf=("falcon",)
    ),
    Family(
        "bloom",
        "BLOOM",
        "gelu_pytorch_tanh",
        None,
        "bigscience-workshop/Megatron-DeepSpeed: bias_gelu by tanh",
        gguf=("bloom",),
    ),
    Family("mpt", "MPT", "gelu", None, 'mosaicml/llm-foundry: nn.GELU(approximate="none")', gguf=("mpt",)),
    Family("opt", "OPT", "relu", _FUNCTION, "Zhang et al. 2022, OPT"),
    Family("opt", "Galactica", "gelu", _FUNCTION, "Taylor et al. 2022, Galactica"),
    Family("cohere", "Command R", "silu", _HIDDEN, _config("CohereForAI/c4ai-command-r-v01"), gguf=("command-r",)),
    Family("olmo", "OLMo", "silu", _HIDDEN, _config("allenai/OLMo-7B-hf"), gguf=("olmo",)),
    Family("olmo2", "OLMo 2", "silu", _HIDDEN, _config("allenai/OLMo-2-1124-7B"), gguf=("olmo2",)),
    Family("olmoe", "OLMoE", "silu", _HIDDEN, _config("allenai/OLMoE-1B-7B-0924"), gguf=("olmoe",)),
    Family("persimmon", "Persimmon", "relu2", _HIDDEN, _config("adept/persimmon-8b-base")),
    Family("nemotron", "Nemotron-4", "relu2", _HIDDEN, "Parmar et al. 2024, Nemotron-4 15B", gguf=("nemotron",)),
    Family("bitnet", "BitNet b1.58", "relu2", _HIDDEN, _config("microsoft/bitnet-b1.58-2B-4T")),
    Family("granite", "Granite 3", "silu", _HIDDEN, _config("ibm-granite/granite-3.0-8b-base"), gguf=("granite",)),
    Family("deepseek_v3", "DeepSeek V3, R1", "silu", _HIDDEN, _config("deepseek-ai/DeepSeek-V3")),
    Family("mamba", "Mamba", "silu", _HIDDEN, _config("state-spaces/mamba-130m-hf"), gguf=("mamba",)),
    Family("xglm", "XGLM", "gelu", _FUNCTION, _config("facebook/xglm-564M")),
    Family("biogpt", "BioGPT", "gelu", _HIDDEN, _config("microsoft/biogpt")),
    Family("ctrl", "CTRL", "relu", None, "Keskar et al. 2019, CTRL"),
)

_GATED = "Shazeer 2020, GLU Variants; t5 of google-research: gated-gelu, by tanh"

_SEQUENCE_TO_SEQUENCE = (
    Family("t5", "T5 1.0", "relu", "dense_act_fn", "Raffel et al. 2020, T5", gated=False, gguf=("t5", "t5encoder")),
    Family("t5", "T5 1.1, Flan-T5, ByT5", "gelu_new", "dense_act_fn", _GATED, gated=True, gguf=("t5", "t5encoder")),
    Family("t5", "UL2", "silu", "dense_act_fn", f"{_config('google/ul2')}: gated-silu", gated=True),
    Family("mt5", "mT5", "gelu_new", "dense_act_fn", _config("google/mt5-base"), gated=True),
    Family("umt5", "UMT5", "gelu_new", "dense_act_fn", _config("google/umt5-base"), gated=True),
    Family("longt5", "LongT5", "gelu_new", "dense_act_fn", _config("google/long-t5-tglobal-base"), gated=True),
    Family("switch_transformers", "Switch", "relu", "dense_act_fn", _config("google/switch-base-8")),
    Family("bart", "BART", "gelu", _FUNCTION, "Lewis et al. 2019, BART"),
    Family("mbart", "mBART 25", "gelu", _FUNCTION, _config("facebook/mbart-large-cc25")),
    Family("mbart", "mBART 50", "relu", _FUNCTION, _config("facebook/mbart-large-50")),
    Family("pegasus", "PEGASUS", "relu", _FUNCTION, _config("google/pegasus-large")),
    Family("bigbird_pegasus", "BigBird-PEGASUS", "gelu_new", _FUNCTION, _config("google/bigbird-pegasus-large-arxiv")),
    Family("blenderbot", "Blenderbot", "gelu", _FUNCTION, _config("facebook/blenderbot-400M-distill")),
    Family("m2m_100", "M2M-100, NLLB", "relu", _FUNCTION, _config("facebook/m2m100_418M")),
    Family("marian", "OPUS-MT", "swish", _FUNCTION, _config("Helsinki-NLP/opus-mt-en-de")),
    Family("fsmt", "WMT19 of FAIR", "relu", _FUNCTION, _config("facebook/wmt19-en-de")),
    Family("led", "LED", "gelu", _FUNCTION, _config("allenai/led-base-16384")),
)

_SOUNDS = (
    Family("whisper", "Whisper", "gelu", _FUNCTION, "model.py of openai/whisper: nn.GELU()"),
    Family("wav2vec2", "wav2vec 2.0, XLS-R", "gelu", _HIDDEN, "Baevski et al. 2020, wav2vec 2.0"),
    Family("hubert", "HuBERT", "gelu", _HIDDEN, _config("facebook/hubert-base-ls960")),
    Family("wavlm", "WavLM", "gelu", _HIDDEN, _config("microsoft/wavlm-base")),
    Family("data2vec-audio", "data2vec", "gelu", _HIDDEN, _config("facebook/data2vec-audio-base")),
    Family("speech_to_text", "S2T", "relu", _FUNCTION, _config("facebook/s2t-small-librispeech-asr")),
    Family(
        "audio-spectrogram-transformer",
        "AST",
        "gelu",
        _HIDDEN,
        _config("MIT/ast-finetuned-audioset-10-10-0.4593"),
    ),
)

_OPENAI_CLIP = "model.py of openai/CLIP: x·σ(1.702x)"
_OPEN_CLIP = "mlfoundations/open_clip: nn.GELU unless quick_gelu"

_IMAGES = (
    Family("vit", "ViT", "gelu", _HIDDEN, _config("google/vit-base-patch16-224")),
    Family("deit", "DeiT", "gelu", _HIDDEN, _config("facebook/deit-base-distilled-patch16-224")),
    Family("beit", "BEiT", "gelu", _HIDDEN, _config("microsoft/beit-base-patch16-224")),
    Family("swin", "Swin", "gelu", _HIDDEN, "Liu et al. 2021, Swin Transformer"),
    Family("convnext", "ConvNeXt", "gelu", _HIDDEN, "Liu et al. 2022, A ConvNet for the 2020s"),
    Family("convnextv2", "ConvNeXt V2", "gelu", _HIDDEN, _config("facebook/convnextv2-tiny-1k-224")),
    Family("dinov2", "DINOv2", "gelu", _HIDDEN, _config("facebook/dinov2-base")),
    Family("vit_mae", "MAE", "gelu", _HIDDEN, _config("facebook/vit-mae-base")),
    Family("videomae", "VideoMAE", "gelu", _HIDDEN, _config("MCG-NJU/videomae-base")),
    Family("segformer", "SegFormer", "gelu", _HIDDEN, "Xie et al. 2021, SegFormer"),
    Family("resnet", "ResNet", "relu", _HIDDEN, "He et al. 2016, Deep Residual Learning"),
    Family("regnet", "RegNet", "relu", _HIDDEN, _config("facebook/regnet-y-040")),
    Family("efficientnet", "EfficientNet", "swish", _HIDDEN, "Tan and Le 2019, EfficientNet"),
    Family("mobilenet_v2", "MobileNetV2", "relu6", _HIDDEN, "Sandler et al. 2018, MobileNetV2"),
    Family("mobilevit", "MobileViT", "silu", _HIDDEN, "Mehta and Rastegari 2022, MobileViT: Swish"),
    Family("detr", "DETR", "relu", _FUNCTION, "Carion et al. 2020, DETR"),
    Family("yolos", "YOLOS", "gelu", _HIDDEN, _config("hustvl/yolos-small")),
    Family("vilt", "ViLT", "gelu", _HIDDEN, _config("dandelin/vilt-b32-mlm")),
    Family("clip_text_model", "CLIP of OpenAI", "quick_gelu", _HIDDEN, _OPENAI_CLIP),
    Family("clip_text_model", "CLIP of LAION", "gelu", _HIDDEN, _OPEN_CLIP),
    Family("clip_vision_model", "CLIP of OpenAI", "quick_gelu", _HIDDEN, _OPENAI_CLIP),
    Family("clip_vision_model", "CLIP of LAION", "gelu", _HIDDEN, _OPEN_CLIP),
    Family("siglip_text_model", "SigLIP", "gelu_pytorch_tanh", _HIDDEN, _config("google/siglip-base-patch16-224")),
    Family("siglip_vision_model", "SigLIP", "gelu_pytorch_tanh", _HIDDEN, _config("google/siglip-base-patch16-224")),
    Family("owlvit_text_model", "OWL-ViT", "quick_gelu", _HIDDEN, _config("google/owlvit-base-patch32")),
    Family("owlvit_vision_model", "OWL-ViT", "quick_gelu", _HIDDEN, _config("google/owlvit-base-patch32")),
    Family("blip_vision_model", "BLIP", "gelu", _HIDDEN, _config("Salesforce/blip-image-captioning-base")),
)

FAMILIES = (*_ENCODERS, *_DECODERS, *_SEQUENCE_TO_SEQUENCE, *_SOUNDS, *_IMAGES)
"""The published definitions. A family with several was published in several forms."""


def of_model_type(model_type: str, gated: bool | None) -> tuple[Family, ...]:
    """The definitions of a family.

    Args:
        model_type: as a config says it.
        gated: which kind of layers the model has, where its config says.
    """
    return tuple(one for one in FAMILIES if one.model_type == model_type and one.gated in (None, gated))


def of_gguf(architecture: str, gated: bool) -> tuple[Family, ...]:
    """The definitions of what llama.cpp calls an architecture, with or without matrices of gates."""
    return tuple(one for one in FAMILIES if architecture in one.gguf and one.gated in (None, gated))
