"""What a training step keeps for backward: the bytes of each site and of the model, and the peak."""

from __future__ import annotations

import gc
import json
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from hf_gelu_patch import AlreadyPatchedError, Implementation, PatchError, find_sites, patch, patched, unpatch
from hf_gelu_patch.memory import measure
from hf_gelu_patch.patching import _owners

FLOAT = 4
"""Bytes."""


class Net(nn.Module):
    """Two layers with an activation between them; and what a run of a model may change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.up, self.act, self.down = nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 8)
        self.last: Tensor | None = None

    def forward(self, x: Tensor, noise: bool = False) -> Tensor:
        x = self.drop(self.norm(x))
        self.last = x.detach() + (random.random() + np.random.rand() if noise else 0.0)
        y: Tensor = self.down(self.act(self.up(x)))
        return y


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 6))


def test_what_is_kept_is_what_arithmetic_says() -> None:
    hidden = 5 * 24 * FLOAT
    assert measure(plain(), torch.ones(5, 8)).saved == hidden + hidden  # GELU's derivative and a weight's take them


def test_the_peak_is_what_arithmetic_says() -> None:
    class Curve(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1000))

        def forward(self, x: Tensor) -> Tensor:
            return (self.weight * x).tanh()

    found, size = measure(Curve(), torch.ones(1000)), 1000 * FLOAT
    assert found.saved == size  # what tanh returns; the batch, which the product keeps, was there
    assert found.peak == size + FLOAT + FLOAT + size  # with the loss, its gradient, and the gradient of tanh's input


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        (
            "gpt2",
            5,
            2,
        ),  # fc's output; half of it, tanh(…), 1 + tanh(…); the product → the first and the last
        ("llama", 4, 4),  # gate, silu(gate), up, the product
        ("bert", 2, 2),  # the intermediate layer's output, and its GELU, which the next module's layer needs
    ],
)
def test_a_sites_bytes_are_those_of_arithmetic(name: str, before: int, after: int) -> None:
    family = FAMILIES[name]
    model, batch = family.build(), family.inputs()
    hidden = batch["input_ids"].numel() * (128 if name == "gpt2" else 48) * FLOAT
    numbers = 3 * 8 if name == "gpt2" else 0  # the formula's constants, in float64
    report = patch(model, implementation="aten", memory=batch)
    memory = report.memory
    assert memory is not None
    sites = {path: one for one in memory.kept for path in one.sites}
    assert sites.keys() == {site.path for site in report.sites}
    layers = [one for path, one in sites.items() if "pooler" not in path]
    assert len(layers) == 2
    for one in layers:
        assert (one.before, one.after) == (before * hidden + numbers, after * hidden)
    assert memory.before.saved - memory.after.saved == 2 * ((before - after) * hidden + numbers)
    assert memory.before.peak > memory.before.saved
    assert memory.after == measure(model, batch)
    unpatch(model)
    assert memory.before == measure(model, batch)


@pytest.mark.parametrize(
    ("name", "options", "after"),
    [
        ("bert", {"recompute": True}, 1),  # the next module's layer keeps nothing of it
        ("llama", {"recompute": True}, 2),  # gate and up
        ("bert", {"tiles": 2}, 0),
        ("llama", {"tiles": 2}, 0),
    ],
)
def test_what_is_computed_again_is_not_kept(name: str, options: dict[str, Any], after: int) -> None:
    family = FAMILIES[name]
    model, batch = family.build(), family.inputs()
    memory = patch(model, implementation="aten", memory=batch, **options).memory
    assert memory is not None
    layers = [one for one in memory.kept if "pooler" not in one.sites[0]]
    assert [one.after for one in layers] == [after * batch["input_ids"].numel() * 48 * FLOAT] * 2
    if "recompute" in options:  # tiles keep states of random numbers, which are more than so small a model's tensors
        assert memory.after.saved < memory.before.saved


def test_what_a_loss_keeps_counts_and_what_is_returned_beside_it_does_not() -> None:
    model = FAMILIES["gpt2"].build()
    ids = FAMILIES["gpt2"].inputs()["input_ids"]
    without, loss = measure(model, (ids,)), measure(model, {"input_ids": ids, "labels": ids})
    logits = ids.numel() * 64 * FLOAT
    assert without.saved + logits <= loss.saved < without.saved + 2 * logits  # log-softmax of all, and little numbers


def test_it_is_said_in_the_report(net: Net) -> None:
    report = patch(net, implementation="aten", memory=torch.ones(4, 8))
    memory = report.memory
    assert memory is not None
    told = [line.strip() for line in report.lines() if "memory: " in line]
    assert told == [f"memory: {line}" for line in memory.lines()]
    assert told[0].startswith(f"memory: kept for backward {memory.before.saved / 2**10:.1f} KiB, as before; peak of")
    assert told[1] == f"memory: 1 × Net.forward keeps {memory.kept[0].before / 2**10:.1f} KiB, as before"
    data = json.loads(json.dumps(report.to_dict()))["memory"]
    assert data["before"] == {"saved": memory.before.saved, "peak": memory.before.peak}
    assert data["kept"][0]["sites"] == ["act"]
    unpatch(net)
    assert patch(net, implementation="aten").memory is None


class Hidden(torch.autograd.Function):
    """Keeps a tensor where no hook on saved tensors sees it, and takes much for a moment in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.kept = torch.ones(1000)
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        assert ctx.kept.numel() == 1000
        large = torch.empty(2**20, dtype=torch.uint8)
        return grad.clone() if large.numel() else grad


def test_what_is_kept_out_of_sight_and_what_backward_takes_for_a_moment() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = plain(), nn.Linear(6, 8)
            self.hidden: Callable[[Tensor], Tensor] | None = Hidden.apply

        def forward(self, x: Tensor) -> Tensor:
            y = self.second(self.first(x))
            return y if self.hidden is None else self.hidden(y)

    model, x = Whole(), torch.ones(5, 8)
    found = measure(model, x)
    model.hidden = None
    without = measure(model, x)
    assert found.saved == without.saved + 1000 * FLOAT
    assert 2**20 + found.saved < found.peak < 2**20 + found.saved + 2000
    assert without.peak < 10_000


def test_what_hooks_drop_is_not_counted_nor_rebuilt(net: Net) -> None:
    rebuilt = []

    def unpack(shape: Any) -> Tensor:
        rebuilt.append(shape)
        return torch.zeros(shape)

    def forward(x: Tensor) -> Tensor:
        y = net.up(x)
        act = net.act(y)
        act.grad_fn._raw_saved_self.register_hooks(lambda tensor: tensor.shape, unpack)
        return net.down(act)

    x = torch.ones(5, 8)
    net.forward = forward  # type: ignore[method-assign]
    assert measure(net, x).saved == 5 * 24 * FLOAT
    assert len(rebuilt) == 1  # in backward


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(net: Net, reentrant: bool) -> None:
    def forward(x: Tensor) -> Tensor:
        return checkpoint(inner, x * 1.0, use_reentrant=reentrant, preserve_rng_state=False)

    inner, x = net.forward, torch.ones(5, 8, requires_grad=True)
    whole = measure(net, x)
    net.forward = forward  # type: ignore[method-assign]
    net.up.weight.grad = kept = torch.ones(24, 8)
    found = measure(net, x)
    assert found.saved < whole.saved / 2
    assert found.peak > whole.saved  # when it is computed again
    assert net.up.weight.grad is kept
    assert torch.equal(kept, torch.ones(24, 8))
    assert net.down.weight.grad is None
    assert x.grad is None


def everything(net: Net) -> list[Any]:
    states = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()), sys.getprofile()
    tensors = {name: tensor.tolist() for name, tensor in net.state_dict().items()}
    modes = [(path, module.training, sorted(vars(module))) for path, module in net.named_modules()]
    return [tensors, states, modes, net.last, type(net)]


@pytest.mark.parametrize("training", [False, True])
def test_the_model_the_batch_and_the_random_states_stay(net: Net, training: bool) -> None:
    net.train(training)
    net.up.weight.grad = torch.ones(24, 8)
    batch = {"x": torch.ones(5, 8, requires_grad=True), "noise": True}
    before = everything(net)
    with patched(net, implementation="aten", memory=batch) as report:
        assert report.changed
    assert everything(net) == before
    assert gc.isenabled()
    assert torch.equal(net.up.weight.grad, torch.ones(24, 8))
    assert net.down.weight.grad is None
    assert batch["x"].grad is None
    assert torch.equal(batch["x"], torch.ones(5, 8))


def test_whatever_fails_leaves_the_model_as_it_was(net: Net) -> None:
    before = everything(net)
    with pytest.raises(PatchError, match=r"Net cannot run on the batch given as memory= \(RuntimeError: .*Give it"):
        patch(net, memory={"x": torch.zeros(3, 5)}, implementation="aten")

    def broken(_: Tensor) -> Tensor:
        raise RuntimeError("out of order")

    with pytest.raises(PatchError, match=r"memory= \(RuntimeError: out of order\)"):
        patch(net, memory=torch.ones(5, 8), implementation=Implementation("broken", {"gelu": broken}))
    assert everything(net) == before
    assert not _owners(net)
    assert find_sites(net).sites


def test_a_site_that_the_batch_does_not_get_to(net: Net) -> None:
    class Either(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.other = net, Net().eval()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    report = patch(Either(), implementation="aten", memory=torch.ones(5, 8))
    assert report.memory is not None
    got, not_got = report.memory.kept
    assert got.before
    assert (not_got.before, not_got.after) == (None, None)
    assert report.lines()[-1] == "  memory: 1 × Net.forward: not called on the batch"


def test_what_cannot_be_measured_is_refused_with_the_remedy(net: Net) -> None:
    x = torch.ones(5, 8)
    with pytest.raises(PatchError, match=r"only a torch.nn.Module"):
        measure(x, x)  # type: ignore[arg-type]
    with torch.device("meta"), pytest.raises(PatchError, match=r"on the meta device.*load its weights first"):
        measure(Net(), x)
    with torch.inference_mode(), pytest.raises(PatchError, match=r"made under torch.inference_mode"):
        measure(Net(), x)
    with torch.autograd.profiler.profile(), pytest.raises(PatchError, match=r"profiler, and one is running"):
        measure(net, x)
    with patched(net, implementation="aten"), pytest.raises(AlreadyPatchedError):
        patch(net, memory=x)
    with pytest.raises(PatchError, match=r"no output of it on this batch has one: call requires_grad_"):
        measure(net.requires_grad_(False), x)


@pytest.mark.slow
def test_a_compiled_model_is_measured_but_not_its_sites(net: Net) -> None:
    x = torch.ones(5, 8)
    with pytest.raises(PatchError, match=r"compiled.*before torch.compile"):
        patch(torch.compile(net), memory=x)
    assert measure(torch.compile(net, backend="aot_eager"), x).saved > 0


def test_under_inference_mode_and_without_gradients_it_is_the_same(net: Net) -> None:
    x = torch.ones(5, 8)
    expected = measure(net, x)
    with torch.inference_mode():
        assert measure(net, torch.ones(5, 8)) == expected
    with torch.no_grad():
        assert measure(net, x) == expected


def test_nothing_is_said_on_standard_error(net: Net, capfd: pytest.CaptureFixture[str]) -> None:
    measure(net, torch.ones(5, 8))
    assert capfd.readouterr() == ("", "")
