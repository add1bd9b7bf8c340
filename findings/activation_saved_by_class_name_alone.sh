#!/bin/sh
# sentence-transformers 6.2.0 saves the activation of a Dense layer as the name of its class, without its arguments:
# GELU(approximate="tanh") comes back as the exact GELU, LeakyReLU(0.3) as LeakyReLU(0.01), ELU(alpha=2.0) as ELU(1.0).
# Neither saving nor loading raises or warns, and the embeddings of the loaded model are others.
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    sentence-transformers==6.2.0 torch==2.13.0 transformers==5.23.0 numpy==2.2.6
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'CODE'
import logging
import warnings

import sentence_transformers
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from torch import nn

print("sentence-transformers", sentence_transformers.__version__, "torch", torch.__version__)
told = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: told.append(record.getMessage())
logging.getLogger("sentence_transformers").addHandler(handler)
warnings.simplefilter("error")
x = torch.linspace(-3.0, 3.0, 8).expand(2, 8)
for activation in (nn.GELU(approximate="tanh"), nn.LeakyReLU(0.3), nn.ELU(alpha=2.0)):
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[Dense(8, 4, activation_function=activation)], device="cpu")
    model.save("saved", create_model_card=False)
    again = SentenceTransformer("saved", device="cpu")
    with torch.no_grad():
        before, after = (one({"sentence_embedding": x.clone()})["sentence_embedding"] for one in (model, again))
    moved = float((before - after).abs().max())
    print(f"{activation} comes back as {again[0].activation_function}; embeddings moved by {moved:.2g}")
    assert type(again[0].activation_function) is type(activation)
    assert repr(again[0].activation_function) != repr(activation)
    assert moved > 0
assert not told, told
CODE
