#!/bin/sh
# timm 1.0.31 and transformers 5.24.0 do not compute the same SigLIP. transformers' SiglipVisionModel has the tanh form of
# GELU by default ("gelu_pytorch_tanh"), as the published model. timm's vit_*_siglip_* have the exact one, the class's
# default. So a SigLIP checkpoint gives other image features in timm, and in open_clip, which takes its image tower from
# timm. With the same weights in both, timm's agrees with transformers' to the last digits once that is told
# hidden_act="gelu"; as they come, two layers of them differ by more than a hundred times as much.
# Fails if any of that changes. (torchvision, which timm imports, brings some gigabytes of CUDA's libraries along.)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir \
    torch==2.14.1 torchvision==0.29.1 timm==1.0.31 transformers==5.24.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'CODE'
import timm
import torch
import transformers

print("torch", torch.__version__, "timm", timm.__version__, "transformers", transformers.__version__)
SIZES = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4}
RENAMED = (  # timm's names -> transformers'
    ("patch_embed.proj", "embeddings.patch_embedding"), ("blocks.", "encoder.layers."), ("norm1", "layer_norm1"),
    ("norm2", "layer_norm2"), ("attn_pool.latent", "head.probe"), ("attn_pool.proj", "head.attention.out_proj"),
    ("attn_pool.norm", "head.layernorm"), ("attn_pool.mlp", "head.mlp"), ("attn.proj", "self_attn.out_proj"),
)


def renamed(weights):
    """timm's weights as transformers names them."""
    found = {}
    for name, weight in weights.items():
        if ".qkv." in name:
            for part, third in zip("qkv", weight.chunk(3)):
                key = name.replace("blocks.", "encoder.layers.").replace("attn.qkv", f"self_attn.{part}_proj")
                found[key] = third
        elif name.startswith(("attn_pool.q.", "attn_pool.kv.")):
            both = torch.cat([weights[f"attn_pool.{one}.{name.rpartition('.')[2]}"] for one in ("q", "kv")])
            found[f"head.attention.in_proj_{name.rpartition('.')[2]}"] = both
        elif name == "pos_embed":
            found["embeddings.position_embedding.weight"] = weight[0]
        elif name.startswith("norm."):
            found[f"post_layernorm.{name.partition('.')[2]}"] = weight
        else:
            for old, new in RENAMED:
                name = name.replace(old, new)
            found[name] = weight
    return found


torch.manual_seed(0)
images = torch.randn(2, 3, 224, 224)
own = timm.create_model("vit_base_patch16_siglip_224", num_classes=0, embed_dim=96, depth=2, num_heads=4).eval()
with torch.no_grad():
    for weight in own.parameters():
        weight.copy_(torch.randn_like(weight) * (2 * weight[0].numel() ** -0.5 if weight.dim() > 1 else 0.1))
    features, differences = own(images), {}
    for told in ({}, {"hidden_act": "gelu"}):
        config = transformers.SiglipVisionConfig(**SIZES, **told)
        other = transformers.SiglipVisionModel(config).eval()
        print(other.load_state_dict(renamed(own.state_dict())), config.hidden_act)
        found = other(pixel_values=images).pooler_output
        differences[config.hidden_act] = float((found - features).abs().max() / features.abs().max())
print(own.blocks[0].mlp.act, own.attn_pool.mlp.act, differences)
assert own.blocks[0].mlp.act.approximate == own.attn_pool.mlp.act.approximate == "none"
assert list(differences) == ["gelu_pytorch_tanh", "gelu"]
assert differences["gelu"] < 2e-6
assert differences["gelu_pytorch_tanh"] > 100 * differences["gelu"]
CODE
