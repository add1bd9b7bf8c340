#!/bin/sh
# liger-kernel 0.8.5 with transformers 5.24.0: apply_liger_kernel_to_llama(model=one), which the Trainer calls for
# use_liger_kernel=True, binds LigerSwiGLUMLP.forward on every MLP without a look at hidden_act. A Llama that is
# configured with "gelu" computes SiLU from then on: another function, here 0.03 of the scale of what the MLP computes
# away. Nothing is raised and nothing is warned of. The class itself knows better: LigerSwiGLUMLP(config) raises for the
# same config. The default PixtralVisionConfig says "gelu", and its model is bound to SiLU likewise.
# Triton's interpreter runs the kernel on a CPU. It gives a kernel plain numbers, which the kernel asks for .to().
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    liger-kernel==0.8.5 torch==2.13.0 triton==3.7.1 transformers==5.24.0 numpy==2.2.6
cd "$folder"
HF_HUB_OFFLINE=1 TRITON_INTERPRET=1 venv/bin/python - <<'CODE'
import warnings
from importlib.metadata import version

import liger_kernel.ops.swiglu
import torch
from liger_kernel.transformers import apply_liger_kernel_to_llama, apply_liger_kernel_to_pixtral, swiglu
from transformers import LlamaConfig, LlamaForCausalLM, PixtralVisionConfig, PixtralVisionModel

print(*(f"{name} {version(name)}" for name in ("liger-kernel", "torch", "transformers")))


class Number(float):
    def to(self, _):
        return self


liger_kernel.ops.swiglu.float = Number
config = LlamaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64, hidden_act="gelu"
)
torch.manual_seed(0)
model = LlamaForCausalLM(config).eval()
mlp, x = model.model.layers[0].mlp, torch.randn(4, 32)
for weight in mlp.parameters():
    torch.nn.init.normal_(weight)
with torch.no_grad(), warnings.catch_warnings():
    warnings.simplefilter("error")
    own = mlp(x)
    silu = mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
    apply_liger_kernel_to_llama(
        rope=False, rms_norm=False, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False, model=model
    )
    bound = mlp(x)
scale = own.abs().max()
print("from gelu:", float((bound - own).abs().max() / scale), "from silu:", float((bound - silu).abs().max() / scale))
assert (bound - own).abs().max() > 0.01 * scale
assert (bound - silu).abs().max() < 1e-5 * scale
try:
    swiglu.LigerSwiGLUMLP(config)
    raise SystemExit("LigerSwiGLUMLP takes gelu now")
except ValueError as error:
    print("its constructor:", error)
    assert str(error) == "Activation function gelu not supported."

vision = PixtralVisionModel(
    PixtralVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
)
apply_liger_kernel_to_pixtral(rope=False, rms_norm=False, model=vision)
forward = vision.transformer.layers[0].feed_forward.forward
print("pixtral:", vision.config.hidden_act, "and", forward.__func__.__qualname__)
assert vision.config.hidden_act == "gelu"
assert forward.__func__ is swiglu.LigerSwiGLUMLP.forward
CODE
