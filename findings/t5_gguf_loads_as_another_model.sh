#!/bin/sh
# transformers 5.24.0 gives every T5 in a GGUF file layers with gates and the ReLU. No T5 was published so: T5 1.1 and
# Flan-T5 have gates and gelu_new, T5 1.0 has ReLU and no gates, and llama.cpp takes the one or the other by whether the
# file holds matrices of gates. A file of T5 1.1 loads without a word and gives other logits. Of T5 1.0 half of each
# feed-forward layer's first matrices are drawn at random.
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    transformers==5.24.0 gguf==0.19.0 torch==2.13.0 accelerate==1.14.0 numpy==2.2.6
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'CODE'
import gguf
import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

print("transformers", transformers.__version__, "torch", torch.__version__)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
SIZES = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
IDS = torch.arange(1, 9)[None]


def write(path, gated):
    kind = "gated-gelu" if gated else "relu"
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**SIZES, feed_forward_proj=kind, tie_word_embeddings=not gated)).eval()
    writer = gguf.GGUFWriter(path, "t5")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(24)
    writer.add_head_count(2)
    writer.add_key_length(8)
    writer.add_value_length(8)
    writer.add_layer_norm_eps(1e-6)
    writer.add_relative_attn_buckets_count(32)
    writer.add_vocab_size(40)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, 1)
    for name, weight in model.state_dict().items():
        if "embed_tokens" not in name and (gated or name != "lm_head.weight"):
            writer.add_tensor(names.get_name(name.removesuffix(".weight")) + ".weight", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, decoder_input_ids=IDS).logits


for version, gated in (("1.1", True), ("1.0", False)):
    own = write(f"{version}.gguf", gated)
    model, told = T5ForConditionalGeneration.from_pretrained(".", gguf_file=f"{version}.gguf", output_loading_info=True)
    model.eval()
    config = model.config
    moved = float((logits(model) - logits(own)).abs().max())
    print(
        f"T5 {version}: {own.config.dense_act_fn}, gates: {own.config.is_gated_act}; loaded {config.dense_act_fn}, "
        f"gates: {config.is_gated_act}; missing {sorted(told['missing_keys'])}; logits moved by {moved:.3g} of "
        f"{float(logits(own).abs().max()):.3g}"
    )
    assert (config.dense_act_fn, config.is_gated_act) == ("relu", True)
    assert moved > 0.1
    assert bool(told["missing_keys"]) is not gated
    right = {"dense_act_fn": "gelu_new"} if gated else {"is_gated_act": False}
    mended = T5ForConditionalGeneration.from_pretrained(".", gguf_file=f"{version}.gguf", **right).eval()
    assert float((logits(mended) - logits(own)).abs().max()) < 1e-4, "all else is as it was"
CODE
