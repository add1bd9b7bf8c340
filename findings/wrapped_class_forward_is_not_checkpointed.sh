#!/bin/sh
# transformers 5.24.0 checkpoints a layer only while the class's forward is the very function that it put there: where
# somebody has wrapped it on the class (LlamaDecoderLayer.forward = timed(LlamaDecoderLayer.forward), as profilers and
# patchers do), gradient checkpointing is off, though model.is_activation_checkpointing stays True. Nothing is raised and
# nothing is warned of; backward keeps as much as without checkpointing. Wrapped on each instance, it stays on.
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    transformers==5.24.0 torch==2.13.0 numpy==2.2.6
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'CODE'
import functools
import logging
import warnings

import torch
import transformers
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

print("transformers", transformers.__version__, "torch", torch.__version__)
told = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: told.append(record.getMessage())
logging.getLogger("transformers").addHandler(handler)
warnings.simplefilter("error")
ids = torch.arange(64)[None]


def timed(forward):
    @functools.wraps(forward)
    def around(*args, **kwargs):
        return forward(*args, **kwargs)

    return around


def runs(*, checkpointing, wrap=None):
    """How often the layers' feed-forwards are called in one training step: twice each where computed again."""
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
                         num_key_value_heads=2, vocab_size=64, use_cache=False)
    model = LlamaModel(config).train()
    if checkpointing:
        model.activation_checkpointing_enable()
        assert model.is_activation_checkpointing
    count = []
    for layer in model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: count.append(1))
        if wrap == "instances":
            layer.forward = timed(layer.forward)
    own = LlamaDecoderLayer.forward
    if wrap == "class":
        LlamaDecoderLayer.forward = timed(own)
    try:
        model(ids).last_hidden_state.sum().backward()
    finally:
        LlamaDecoderLayer.forward = own
    return len(count)


plain, on = runs(checkpointing=False), runs(checkpointing=True)
instances, on_class = runs(checkpointing=True, wrap="instances"), runs(checkpointing=True, wrap="class")
print(f"calls of 3 feed-forwards: {plain} without checkpointing, {on} with it; "
      f"{instances} with each instance wrapped, {on_class} with the class wrapped")
assert (plain, on, instances, on_class) == (3, 6, 6, 3)
assert not told, told
CODE
