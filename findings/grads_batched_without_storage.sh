#!/bin/sh
# torch 2.13.0: with is_grads_batched=True (and so in torch.autograd.functional.jacobian(vectorize=True)) the backward of a
# torch.autograd.Function is given a whole batch of gradients that looks like one: its type is exactly torch.Tensor, its
# shape that of a single gradient, and torch._C._functorch.peek_interpreter_stack() is None, so that no test for
# torch.func's transforms sees it. It has no storage: data_ptr() raises. A backward that launches a kernel of its own on
# data_ptr(), as Triton does, fails there; one that only calls torch's ops is batched. Its dispatch keys tell it apart.
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.2.6
cd "$folder"
venv/bin/python - <<'CODE'
import torch

seen = {}


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        seen["type"] = type(grad)
        seen["shape"] = tuple(grad.shape)
        seen["transforms"] = torch._C._functorch.peek_interpreter_stack()
        seen["more keys"] = torch._C._dispatch_keys(grad).raw_repr() != torch._C._dispatch_keys(torch.ones(3)).raw_repr()
        try:
            seen["data_ptr"] = grad.data_ptr()
        except RuntimeError as error:
            seen["data_ptr"] = str(error)
        return grad * 2


def told(what):
    print(what, {name: str(value) for name, value in seen.items()})
    assert seen["type"] is torch.Tensor
    assert seen["shape"] == (3,)
    assert seen["transforms"] is None
    assert seen["more keys"]
    assert "doesn't have storage" in str(seen["data_ptr"])


print("torch", torch.__version__)
x = torch.ones(3, requires_grad=True)
(batched,) = torch.autograd.grad(Double.apply(x), x, torch.eye(3), is_grads_batched=True)
assert torch.equal(batched, 2 * torch.eye(3))
told("is_grads_batched=True:")
seen.clear()
assert torch.equal(torch.autograd.functional.jacobian(Double.apply, x, vectorize=True), 2 * torch.eye(3))
told("jacobian(vectorize=True):")
CODE
