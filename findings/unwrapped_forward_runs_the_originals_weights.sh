#!/bin/sh
# accelerate 1.15.0 with torch 2.13.0: Accelerator(mixed_precision="bf16").prepare(model), then
# unwrap_model(model, keep_fp32_wrapper=False), gives the model back with a bound method named "forward" in its
# __dict__, where an untouched module has none. That method stays bound to this one module. A shallow copy or an
# nn.DataParallel replica of the unwrapped model takes the __dict__ over, and so computes with the weights of the module
# that it was copied from, not with its own, without a word. Deleting the attribute mends it.
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 accelerate==1.15.0 numpy==2.2.6
cd "$folder"
venv/bin/python - <<'CODE'
import accelerate
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)

    def forward(self, x):
        return self.linear(x)


def doubled(model):
    """A replica as torch.nn.parallel.replicate makes one, with a linear layer whose weights are twice as large."""
    replica = model._replicate_for_data_parallel()
    replica._modules["linear"] = nn.Linear(2, 2, bias=False)
    replica._modules["linear"].weight.data.copy_(2 * model.linear.weight.data)
    return replica


print("torch", torch.__version__, "accelerate", accelerate.__version__)
x = torch.ones(1, 2)
with torch.no_grad():
    model = Model()
    assert "forward" not in vars(model)
    assert torch.equal(doubled(model)(x), 2 * model(x))
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    model = accelerator.unwrap_model(accelerator.prepare(model), keep_fp32_wrapper=False)
    print("in __dict__:", type(vars(model)["forward"]).__name__, "forward")
    assert vars(model)["forward"].__self__ is model
    print("replica / model:", (doubled(model)(x) / model(x)).tolist(), "and of its own layers 2")
    assert torch.equal(doubled(model)(x), model(x))
    del vars(model)["forward"]
    assert torch.equal(doubled(model)(x), 2 * model(x))
CODE
