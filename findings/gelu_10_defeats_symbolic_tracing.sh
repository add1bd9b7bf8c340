#!/bin/sh
# transformers 5.23.0 with torch 2.13.0: of the activations in transformers.activations.ACT2FN, "gelu_10" (a clipped GELU)
# cannot be traced by torch.fx, where the other GELUs can. Its forward calls a module that the library keeps in a global
# and that is a child of nothing, so that any model with it raises
# "NameError: module is not installed as a submodule". The same global serves all models of the process.
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 numpy==2.2.6
cd "$folder"
venv/bin/python - <<'CODE'
import torch
import transformers
from torch import nn
from transformers.activations import ACT2FN

print("torch", torch.__version__, "transformers", transformers.__version__)
x = torch.randn(3, 4)
for name in ("gelu", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "quick_gelu", "gelu_10"):
    model = nn.Sequential(nn.Linear(4, 4), ACT2FN[name])
    try:
        traced = torch.fx.symbolic_trace(model)
        torch.testing.assert_close(traced(x), model(x))
        said = "traced"
    except NameError as error:
        said = f"NameError: {error}"
    print(f"{name}: {said}")
    assert (said == "traced") == (name != "gelu_10")
assert said == "NameError: module is not installed as a submodule"
assert list(ACT2FN["gelu_10"].children()) == []
CODE
