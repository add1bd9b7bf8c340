#!/bin/sh
# torch 2.13.0, CPU build: ReLU keeps NaN, except in oneDNN's (MKL-DNN's) own layout, where it returns 0. So a model that
# has diverged, or was given a NaN, looks healthy after torch.jit.optimize_for_inference or
# torch.utils.mkldnn.to_mkldnn: the same convolution and ReLU return NaN before and plain zeros after. GELU keeps NaN in
# that layout, and so does torch.compile of the same model. Seen: "eager 8 NaN, optimized for inference 0".
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6
cd "$folder"
venv/bin/python -W ignore - <<'CODE'
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import mkldnn

print("torch", torch.__version__)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
image = torch.randn(1, 3, 8, 8)
image[0, 0, 0, 0] = float("nan")
with torch.no_grad():
    expected = int(model(image).isnan().sum())
    optimized = torch.jit.optimize_for_inference(torch.jit.script(model))
    after = optimized(image)
    print(f"eager {expected} NaN, optimized for inference {int(after.isnan().sum())}")
    assert (expected, int(after.isnan().sum())) == (8, 0)
    assert bool(after.isfinite().all())
    torch.testing.assert_close(optimized(torch.ones_like(image)), model(torch.ones_like(image)), rtol=1e-4, atol=1e-5)
    converted = mkldnn.to_mkldnn(model)(image.to_mkldnn()).to_dense()
    print(f"to_mkldnn {int(converted.isnan().sum())} NaN")
    assert int(converted.isnan().sum()) == 0
    x = torch.tensor([float("nan"), 1.0])
    for name, function in (("relu", F.relu), ("gelu", F.gelu)):
        y = function(x.to_mkldnn()).to_dense()
        print(f"{name} of NaN: {function(x)[0]:g}, in MKL-DNN's layout {y[0]:g}")
        assert bool(function(x)[0].isnan())
        assert bool(y[0].isnan()) == (name == "gelu")
CODE
