#!/bin/sh
# torch 2.13.0: torch.jit.script lets a module say what to compile in its place, by __prepare_scriptable__. It then puts
# that into the model that it was given, too: the eager model keeps the other module after scripting. A child that wraps,
# watches or measures what it holds, and gives the plain module to script, is gone from the model that goes on training.
# Only the root, which the caller holds, stays.
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6
cd "$folder"
cat >model.py <<'CODE'
import torch
from torch import nn

calls = []


class Watched(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        calls.append(x.shape)
        return self.inner(x)

    def __prepare_scriptable__(self):
        return self.inner


model = nn.Sequential(nn.Linear(4, 4), Watched(nn.GELU()))
x = torch.randn(2, 4)
model(x)
assert len(calls) == 1
scripted = torch.jit.script(model)
model(x)
print("torch", torch.__version__)
print("the eager model's child, after torch.jit.script(model):", type(model[1]).__name__)
print("calls that it has watched, of two:", len(calls))
assert type(model[1]) is nn.GELU
assert len(calls) == 1
root = Watched(nn.GELU())
torch.jit.script(root)
assert type(root) is Watched
CODE
venv/bin/python -W ignore model.py
