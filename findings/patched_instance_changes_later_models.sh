#!/bin/sh
# liger-kernel 0.8.5 with transformers 5.23.0: apply_liger_kernel_to_llama(model=one) is given one model that exists. It
# also replaces the class in transformers' module, so that every Llama built later in the process is Liger's, one that is
# to be compared with the patched model included; another that existed before is left as it was. With model=one and
# swiglu=True alone, nothing of it is undone by deleting that model.
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    liger-kernel==0.8.5 torch==2.13.0 triton==3.7.1 transformers==5.23.0 numpy==2.2.6
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'CODE'
from importlib.metadata import version

from liger_kernel.transformers import apply_liger_kernel_to_llama
from transformers import LlamaConfig, LlamaForCausalLM

print(*(f"{name} {version(name)}" for name in ("liger-kernel", "torch", "transformers")))
config = LlamaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=64
)


def mlp(model):
    return model.model.layers[0].mlp


one, earlier = LlamaForCausalLM(config), LlamaForCausalLM(config)
before = type(mlp(earlier)).__name__
apply_liger_kernel_to_llama(
    rope=False, rms_norm=False, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False, model=one
)
del one
later = LlamaForCausalLM(config)
print("earlier:", type(mlp(earlier)).__name__, "later:", type(mlp(later)).__name__)
assert before == type(mlp(earlier)).__name__ == "LlamaMLP"
assert "forward" not in vars(mlp(earlier))
assert type(mlp(later)).__name__ == "LigerSwiGLUMLP"
CODE
