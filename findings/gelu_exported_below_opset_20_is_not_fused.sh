#!/bin/sh
# onnxruntime 1.32.0 with torch 2.13.0: torch.onnx.export(dynamo=True) takes F.gelu apart for ONNX opset 18, which runtimes
# of before 2024 need. It writes x * (0.5 * (1 + erf(x / sqrt(2)))), and the tanh form likewise. onnxruntime's fusions know
# the products in another order: it runs the pieces, five nodes of exact GELU and eight of the tanh form, where it has a
# kernel for each. Where a model spells the tanh form out, as transformers' gelu_new does, the same eight nodes are in an
# order that is known, and run as one. So are quick_gelu and silu. At opset 20, the default, each of the five is one node.
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 \
    numpy==2.2.6 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
cd "$folder"
cat >export.py <<'CODE'
import logging
from collections import Counter

import onnx
import onnxruntime
import torch
from torch import nn
from transformers.activations import ACT2FN

logging.disable(logging.WARNING)
print("torch", torch.__version__, "onnxruntime", onnxruntime.__version__)
x = torch.randn(2, 3, 8)
around = {"Reshape": 4, "Gemm": 2}
alone = {}
for opset in (18, None):
    for name in ("gelu", "gelu_pytorch_tanh", "gelu_new", "quick_gelu", "silu"):
        model = nn.Sequential(nn.Linear(8, 8), ACT2FN[name], nn.Linear(8, 8)).eval()
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False, opset_version=opset)
        assert program.model.opset_imports[""] == (opset or 20)
        program.save("model.onnx")
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = "optimized.onnx"
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), model(x).detach())
        nodes = Counter(node.op_type for node in onnx.load("optimized.onnx").graph.node) - Counter(around)
        print(f"opset {opset or '20, the default'}: {name} runs as {dict(nodes)}", flush=True)
        alone[opset or 20, name] = dict(nodes)
assert alone[18, "gelu"] == {"Div": 1, "Erf": 1, "Add": 1, "Mul": 2}
assert alone[18, "gelu_pytorch_tanh"] == {"Pow": 1, "Mul": 4, "Add": 2, "Tanh": 1}
for opset in (18, 20):
    assert alone[opset, "gelu_new"] == {"FastGelu": 1}
    assert alone[opset, "quick_gelu"] == alone[opset, "silu"] == {"QuickGelu": 1}
assert alone[20, "gelu"] == alone[20, "gelu_pytorch_tanh"] == {"Gelu": 1}
CODE
venv/bin/python -W ignore export.py
