"""patch(model, tune=batch), report.save and patch(model, plan=path): what is chosen, kept, refused and put back.

No test asserts a time. What has to be slower spins for milliseconds, where the other takes microseconds.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate import cpu_offload, dispatch_model
from conftest import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models import possibly_nothing, same_state, state
from torch import Tensor, nn

from hf_gelu_patch import (
    ACTIVATIONS,
    IMPLEMENTATIONS,
    Activation,
    Implementation,
    ImplementationUnavailableError,
    NoSitesError,
    NothingMatchedError,
    NothingPatchedError,
    NothingPatchedWarning,
    PatchError,
    Report,
    UnknownNameError,
    VerificationError,
    find_sites,
    patch,
    patched,
    register_activation,
    register_implementation,
    tuning,
    unpatch,
)
from hf_gelu_patch.activations import Module
from hf_gelu_patch.forwards.class_binding import rewritings
from hf_gelu_patch.tuning import rounds
from hf_gelu_patch.verdicts import Ratio, judge, median_ratio, reach

BATCH = {"x": torch.randn(3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float32)}


def spin(milliseconds: float) -> None:
    """Not a sleep: what is timed may be the processor's time."""
    end = time.process_time() + milliseconds / 1e3
    while time.process_time() < end:
        pass


def tardy(x: Tensor) -> Tensor:
    spin(1)
    return torch.relu(x) * 1.5


def prompt(x: Tensor) -> Tensor:
    return torch.relu(x) * 1.5


def prompt_linear(linear: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = linear(x)
    return prompt(y)


def tardier(x: Tensor) -> Tensor:
    spin(1)
    return tardy(x)


def broken(x: Tensor) -> Tensor:
    raise RuntimeError(f"no kernel for {x.dim()} dimensions")


class Tardy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return tardy(x)


class Feed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc, self.act, self.norm = nn.Linear(16, width), Tardy(), nn.BatchNorm1d(width)
        self.back, self.drop = nn.Linear(width, 16), nn.Dropout(0.5)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        out: Tensor = self.drop(self.back(self.norm(self.act(self.fc(x)))))
        return out


class Net(nn.Module):
    """Two like layers and one of another width; buffers that a run in training mode moves, dropout, and a list that
    grows with each call."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Feed(32), Feed(32), Feed(24)])

    def forward(self, x: Tensor, layers: int = 3) -> Tensor:
        for layer in self.layers[:layers]:
            x = x + layer(x)
        return x


@pytest.fixture(autouse=True)
def tardy_is_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An activation that the model computes slowly, until the test is over."""
    known = dict(ACTIVATIONS), dict(IMPLEMENTATIONS)
    record = Activation(
        "tardy",
        "1.5·max(x, 0), slowly",
        tardy,
        lambda x: x.clamp_min(0.0) * 1.5,
        derivative=lambda x: (x > 0).to(x.dtype) * 1.5,
        config_name="tardy",
        modules=(Module(f"{__name__}.Tardy", aten_ops=2),),
    )
    monkeypatch.setitem(transformers.activations.ACT2FN, "tardy", Tardy)
    register_activation(record)
    try:
        yield
    finally:
        for registry, before in zip((ACTIVATIONS, IMPLEMENTATIONS), known, strict=True):
            registry.clear()  # type: ignore[attr-defined]
            registry.update(before)  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few rounds as there may be."""
    monkeypatch.setattr(tuning, "SECONDS", 0.05)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def out(model: nn.Module, batch: dict[str, Any] | None = None) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**(BATCH if batch is None else batch))
    return found


def quick(name: str = "quick", **more: Any) -> Implementation:
    return Implementation(name, {"tardy": prompt}, linear={"tardy": prompt_linear}, **more)


# What is chosen


def test_what_is_faster_is_taken_and_the_report_says_so(net: Net) -> None:
    register_implementation(quick())
    register_implementation(Implementation("slow", {"tardy": tardier}))
    own = out(net)
    report = patch(net, tune=BATCH)
    assert [site.implementation for site in report.sites] == ["quick"] * 3
    assert torch.equal(out(net), own)
    first, second, third = report.sites
    assert first.reason == second.reason != third.reason  # another width is another group
    assert first.reason.startswith("measured: Feed.forward takes ")
    assert "slow 0." in first.reason
    found = report.tuning
    assert found is not None
    assert (found.verdict, found.gradients, found.ratio is not None) == ("faster", False, True)
    assert found.before is not None
    assert found.after is not None
    assert found.before > found.after > 0
    assert found.calls == math.ceil(found.seconds / found.saved) > 0
    assert [timed.sites for timed in found.timed] == [("layers.0.act", "layers.1.act"), ("layers.2.act",)]
    assert min(len(seconds) for timed in found.timed for seconds in timed.seconds.values()) >= 25
    last = str(report).splitlines()[-1]
    assert last.startswith("  tuned: in ")
    assert f"paid back after about {found.calls:,} calls" in last
    assert json.dumps(report.to_dict(), allow_nan=False)


def test_what_is_slower_is_left_alone(net: Net) -> None:
    register_implementation(Implementation("slow", {"tardy": tardier}))
    before = state(net)
    with pytest.warns(NothingPatchedWarning, match="nothing is faster beyond the noise; Feed.forward takes"):
        report = patch(net, tune=BATCH)
    assert report.changed == ()
    assert same_state(before, net)
    assert report.tuning is not None
    assert (report.tuning.verdict, report.tuning.saved, report.tuning.calls) == ("nothing changed", 0.0, None)
    with pytest.raises(NothingPatchedError, match="slow 0"):
        patch(net, tune=BATCH, strict=True)
    assert same_state(before, net)


OWN_OPS = {
    "gelu_tanh": transformers.activations.NewGELUActivation(),
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_the_models_own_ops_under_another_name_change_nothing(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    for _ in range(2):
        with pytest.warns(NothingPatchedWarning):
            report = patch(model, implementation=Implementation("same", OWN_OPS), tune=family.inputs())
        assert report.changed == ()


def test_one_that_raises_while_it_is_timed_is_left_out_with_the_reason(net: Net) -> None:
    register_implementation(Implementation("broken", {"tardy": broken}))
    register_implementation(quick())
    report = patch(net, tune=BATCH)
    assert {site.implementation for site in report.sites} == {"quick"}
    assert "broken raised RuntimeError: no kernel for 2 dimensions" in report.sites[0].reason
    unpatch(net)
    with pytest.warns(NothingPatchedWarning):
        report = patch(net, tune=BATCH, implementation="broken")
    assert "broken raised RuntimeError: no kernel for 2 dimensions" in report.sites[0].reason


@pytest.mark.slow
def test_one_that_is_named_is_the_only_one_tried(net: Net) -> None:
    register_implementation(quick())
    mine = quick("mine")  # not registered
    report = patch(net, tune=BATCH, implementation=mine)
    assert {site.implementation for site in report.sites} == {"mine"}
    assert report.tuning is not None
    assert "quick" not in report.tuning.timed[0].seconds
    unpatch(net)
    elsewhere = quick("elsewhere", devices=frozenset({"xpu"}))
    with pytest.raises(ImplementationUnavailableError, match="it runs on xpu"):
        patch(net, tune=BATCH, implementation=elsewhere)
    register_implementation(elsewhere)  # not asked for, it is passed over
    assert {site.implementation for site in patch(net, tune=BATCH).sites} == {"quick"}


@pytest.mark.slow
def test_include_and_exclude_hold(net: Net) -> None:
    register_implementation(quick())
    report = patch(net, tune=BATCH, include="layers.*", exclude="layers.1.*")
    assert [site.implementation for site in report.sites] == ["quick", None, "quick"]
    assert report.sites[1].reason == "excluded by 'layers.1.*'"
    unpatch(net)
    with pytest.raises(NothingMatchedError):
        patch(net, tune=BATCH, include="decoder.*")


@pytest.mark.slow
def test_where_the_batch_does_not_get_nothing_is_changed(net: Net) -> None:
    report = patch(net, implementation=quick(), tune={**BATCH, "layers": 2})
    assert [site.implementation for site in report.sites] == ["quick", "quick", None]
    assert report.sites[2].reason == "the batch that it was tuned on does not get there"
    unpatch(net)
    report = patch(net, implementation=quick(), tune={**BATCH, "layers": 1})
    assert [site.implementation for site in report.sites] == ["quick", "quick", None]  # the second is like the first


@pytest.mark.slow
def test_a_swap_is_weighed_against_the_other_functions_own_ops() -> None:
    family = FAMILIES["gpt2"]
    model = family.build()
    slow = Implementation("slow", {"silu": lambda x: (spin(1), torch.nn.functional.silu(x))[1]})
    report = patch(model, implementation=slow, activation="silu", tune=family.inputs())
    assert {(site.implementation, site.target, site.equivalence) for site in report.sites} == {
        ("eager", "silu", "different")
    }
    assert report.config == ("activation_function: gelu_new → silu",) or "silu" in report.config[0]
    assert "slow 0." in report.sites[0].reason or "slow took" in report.sites[0].reason
    unpatch(model)
    assert model.config.activation_function == "gelu_new"
    report = patch(model, implementation=quick(), activation="tardy", tune=family.inputs())
    assert {(site.implementation, site.target) for site in report.sites} == {("quick", "tardy")}
    unpatch(model)


@pytest.mark.slow
def test_what_slows_the_whole_model_down_is_undone(net: Net) -> None:
    inside: list[bool] = []
    net.register_forward_pre_hook(lambda *_: inside.append(True))
    net.register_forward_hook(lambda *_: inside.clear())

    def moody(x: Tensor) -> Tensor:
        if inside:
            spin(3)
        return prompt(x)

    before = state(net)
    with pytest.warns(NothingPatchedWarning, match="the whole model was slower with moody, though by itself"):
        report = patch(net, implementation=Implementation("moody", {"tardy": moody}), tune=BATCH)
    assert report.changed == ()
    assert report.tuning is not None
    assert (report.tuning.verdict, report.tuning.calls) == ("slower", None)
    assert str(report).endswith("slower, so it was undone")
    assert same_state(before, net)


@pytest.mark.slow
def test_what_raises_in_the_whole_model_alone_is_undone(net: Net) -> None:
    inside: list[bool] = []
    net.register_forward_pre_hook(lambda *_: inside.append(True))
    net.register_forward_hook(lambda *_: inside.clear(), always_call=True)

    def picky(x: Tensor) -> Tensor:
        return broken(x) if inside else prompt(x)

    before = state(net)
    with pytest.warns(NothingPatchedWarning, match="the whole model raised RuntimeError: no kernel for 2 dim.* picky"):
        report = patch(net, implementation=Implementation("picky", {"tardy": picky}), tune=BATCH)
    assert report.tuning is not None
    assert (report.changed, report.tuning.verdict) == ((), "nothing changed")
    assert same_state(before, net)


def test_what_is_timed_is_the_largest_call_and_none_that_the_model_makes_otherwise() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.feed = Feed(32)

        def forward(self, x: Tensor) -> Tensor:
            first = self.feed(x[:1])
            for _ in range(2):
                first = first + self.feed(x)
            return first + self.feed(x[:2]).sum()

    seen: list[int] = []

    def watching(x: Tensor) -> Tensor:
        seen.append(len(x))
        return prompt(x)

    patch(Twice().eval(), implementation=Implementation("watching", {"tardy": watching}), tune=(BATCH["x"],))
    assert seen[0] == 3
    whole = seen.index(1)  # from there on, the model by turns
    assert set(seen[:whole]) == {3}
    assert seen[whole : whole + 4] == [1, 3, 3, 2]


def test_each_timing_begins_with_the_arguments_that_the_model_gave() -> None:
    class Greedy(Feed):
        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.fc(x.add_(1.0)))

    seen: list[float] = []

    def watching(x: Tensor) -> Tensor:
        seen.append(float(x[0, 0]))
        return prompt(x)

    greedy = Greedy(32).eval()
    greedy.fc = nn.Linear(16, 32, bias=False)
    greedy.fc.weight.data.fill_(1.0)
    batch = BATCH["x"].clone()
    patch(greedy, implementation=Implementation("watching", {"tardy": watching}), tune=batch)
    assert len(seen) > 100
    assert max(seen) - min(seen) < 16 * 8  # a few calls in a row, each on what the last one left
    assert torch.equal(batch, BATCH["x"])


@pytest.mark.slow
def test_gradients_are_timed_and_what_has_none_is_left_out(net: Net) -> None:
    register_implementation(quick("forward_only", backward=False))
    with pytest.warns(NothingPatchedWarning, match="forward_only has no backward"):
        patch(net, tune=BATCH, gradients=True)
    with pytest.warns(NothingPatchedWarning, match="forward_only has no backward"):
        patch(net.train(), tune=BATCH)
    assert {site.implementation for site in patch(net.eval(), tune=BATCH).sites} == {"forward_only"}
    unpatch(net)
    seen: list[bool] = []

    def watching(x: Tensor) -> Tensor:
        seen.append(x.requires_grad and torch.is_grad_enabled())
        return prompt(x)

    report = patch(net, implementation=Implementation("watching", {"tardy": watching}), tune=BATCH, gradients=True)
    assert report.tuning is not None
    assert report.tuning.gradients
    assert all(seen)
    assert all(weight.grad is None for weight in net.parameters())
    assert "forward and backward took" in str(report.tuning)


@pytest.mark.slow
@pytest.mark.parametrize(
    "batch", [BATCH, (BATCH["x"],), [BATCH["x"]], BATCH["x"]], ids=["dict", "tuple", "list", "one"]
)
def test_a_batch_has_the_forms_that_verify_takes(net: Net, batch: object) -> None:
    report = patch(net, implementation=quick(), tune=batch, verify=batch)
    assert len(report.changed) == 3
    assert report.drift


class Parts(nn.Module):
    """Its forward does not say which module is the activation, so that one is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"norm": nn.LayerNorm(16), "act": Tardy(), "last": nn.Linear(16, 16)})

    def forward(self, x: Tensor) -> Tensor:
        for name in sorted(self.parts, reverse=True):
            x = self.parts[name](x)
        return x


def test_an_activation_module_that_others_call_is_timed_by_itself() -> None:
    model = Parts().eval()
    own = out(model)
    before = state(model)
    report = patch(model, implementation=quick(), tune=BATCH)
    assert [site.implementation for site in report.sites] == ["quick"]
    assert report.sites[0].reason.startswith("measured: Tardy.forward takes ")
    assert type(model.parts["act"]) is not Tardy
    assert torch.equal(out(model), own)
    unpatch(model)
    assert same_state(before, model)


@pytest.mark.slow
def test_a_hooked_activation_and_a_bound_forward_are_tuned_too(net: Net) -> None:
    seen: list[int] = []
    net.layers[0].act.register_forward_hook(lambda *_: seen.append(1))
    report = patch(net, implementation=quick(), tune=BATCH)
    assert {site.implementation for site in report.sites} == {"quick"}
    seen.clear()
    out(net)
    assert seen == [1]


# What stays as it was


def everything(net: Net) -> list[Any]:
    tensors = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    states = torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())
    modes = [(path, module.training) for path, module in net.named_modules()]
    return [sorted((name, tensor.tolist()) for name, tensor in tensors.items()), states, modes, net_calls(net)]


def net_calls(net: Net) -> list[list[int]]:
    return [list(layer.calls) for layer in net.layers]


@pytest.mark.slow
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_the_batch_and_the_random_states_stay(net: Net, training: bool, gradients: bool) -> None:
    net.train(training)
    net.layers[0].fc.weight.grad = torch.ones(32, 16)
    torch.manual_seed(7)
    batch = {"x": BATCH["x"].clone().requires_grad_(gradients)}
    before, shape = everything(net), state(net)
    report = patch(net, implementation=quick(), tune=batch, gradients=gradients)
    assert len(report.changed) == 3
    unpatch(net)
    assert everything(net) == before
    assert same_state(shape, net)
    assert torch.equal(batch["x"], BATCH["x"])
    assert batch["x"].grad is None
    assert torch.equal(net.layers[0].fc.weight.grad, torch.ones(32, 16))
    assert net.layers[1].fc.weight.grad is None


def test_gradients_by_way_of_grad_leave_it_as_it_was(net: Net) -> None:
    """Those of reentrant checkpoints cannot be had otherwise."""

    def forward(x: Tensor) -> Tensor:
        for layer in net.layers:
            x = x + torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=True)
        return x

    net.forward = forward  # type: ignore[method-assign]
    net.layers[0].fc.weight.grad = torch.ones(32, 16)
    batch = (BATCH["x"].clone().requires_grad_(),)
    report = patch(net, implementation=quick(), tune=batch, gradients=True)
    assert len(report.changed) == 3
    assert torch.equal(net.layers[0].fc.weight.grad, torch.ones(32, 16))
    assert net.layers[1].fc.weight.grad is None


def test_whatever_fails_leaves_the_model_as_it_was(net: Net) -> None:
    before, shape = everything(net), state(net)
    with pytest.raises(PatchError, match=r"Net cannot run on the batch given as tune= \(RuntimeError: .*Give it what"):
        patch(net, tune={"x": torch.zeros(3, 5)}, implementation=quick())

    def interrupted(_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patch(net, tune=BATCH, implementation=Implementation("interrupted", {"tardy": interrupted}))
    wrong = Implementation("wrong", {"tardy": lambda x: prompt(x) + 1})
    with pytest.raises(VerificationError):
        patch(net, tune=BATCH, verify=BATCH, implementation=wrong)
    assert everything(net) == before
    assert same_state(shape, net)


def test_patched_tunes_and_undoes(net: Net) -> None:
    shape = state(net)
    with patched(net, implementation=quick(), tune=BATCH) as report:
        assert len(report.changed) == 3
    assert same_state(shape, net)


# What cannot be tuned


def test_models_that_cannot_be_tuned_are_refused_with_the_remedy(net: Net) -> None:
    with torch.device("meta"):
        hollow = Net().eval()
    with pytest.raises(PatchError, match=r"layers.0.act is on the meta device.*load the model's weights first"):
        patch(hollow, tune=BATCH)
    with pytest.raises(NoSitesError):
        patch(nn.Linear(2, 2), tune=torch.zeros(1, 2))
    with pytest.raises(PatchError, match="give that batch as verify= or tune="):
        patch(net, gradients=True)
    with torch.inference_mode():
        made = Net().eval()
    with pytest.raises(PatchError, match=r"made under torch.inference_mode"):
        patch(made, tune=BATCH, gradients=True, implementation=quick())


@pytest.mark.slow
def test_a_compiled_model_is_refused(net: Net) -> None:
    with pytest.raises(PatchError, match=r"compiled: tune the model before torch.compile"):
        patch(torch.compile(net), tune=BATCH)
    net.layers[1].compile()
    with pytest.raises(PatchError, match=r"layers.1 is compiled"):
        patch(net, tune=BATCH)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [cpu_offload, lambda model: dispatch_model(model, {"": "cpu"}, force_hooks=True)])
def test_a_model_in_accelerates_hooks_is_tuned(net: Net, wrap: Callable[[Net], Net]) -> None:
    own = out(net)
    wrap(net)
    report = patch(net, implementation=quick(), tune=BATCH)
    assert len(report.changed) == 3
    assert torch.equal(out(net), own)
    unpatch(net)
    assert torch.equal(out(net), own)


# Saved plans


@pytest.fixture
def plan(net: Net, tmp_path: Path) -> Path:
    """One for the net, which is not patched any more."""
    register_implementation(quick())
    path = tmp_path / "plan.json"
    find_sites(net, implementation="quick", exclude="layers.1.*").save(path)
    return path


def test_a_saved_plan_does_the_same_again(net: Net, plan: Path) -> None:
    own = out(net)
    with patched(net, tune=BATCH, exclude="layers.1.*") as tuned:
        tuned.save(plan)
        classes = [type(module) for module in net.modules()]
        result = out(net)
    other = Net().eval()
    other.load_state_dict(net.state_dict())
    report = patch(other, plan=plan)
    assert [type(module) for module in other.modules()] == classes
    assert [rewritings(module) != () for module in other.layers] == [True, False, True]
    assert torch.equal(out(other), result)
    assert torch.equal(out(other), own)
    found = [(site.path, site.implementation, site.fused, site.equivalence) for site in report.sites]
    assert found == [(site.path, site.implementation, site.fused, site.equivalence) for site in tuned.sites]
    assert [site.reason for site in report.sites] == [
        site["reason"] for site in json.loads(plan.read_text(encoding="utf-8"))["sites"]
    ]
    assert report.tuning is None  # nothing was measured now
    assert json.loads(plan.read_text(encoding="utf-8"))["tuning"]["verdict"] == "faster"
    unpatch(other)
    assert torch.equal(out(other), own)
    with patched(other, plan=str(plan), verify=BATCH) as again:
        assert again.drift
        again.save(plan)
    assert len(patch(other, plan=plan).changed) == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_any_report_can_be_saved_and_done_again(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model, path = family.build(), tmp_path / "plan.json"
    for options in ({}, {"activation": "silu"}, {"implementation": "aten", "exclude": "*1*"}):
        with possibly_nothing(), patched(model, **options) as report:
            expected = [type(module) for module in model.modules()]
            result = family.run(model)
            config = model.config.to_dict()
        find_sites(model, **options).save(path)
        for save in (lambda: None, lambda report=report: report.save(path)):
            save()
            with possibly_nothing(), patched(model, plan=path) as again:
                assert again.sites == report.sites
                assert again.config == report.config
                assert [type(module) for module in model.modules()] == expected
                assert torch.equal(family.run(model), result)
                assert model.config.to_dict() == config


def changed(plan: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    data = json.loads(plan.read_text(encoding="utf-8"))
    change(data)
    plan.write_text(json.dumps(data), encoding="utf-8")
    return plan


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(model="Nets"), "the model was Nets, here it is Net"),
        (lambda d: d["versions"].update(torch="1.0"), "torch was 1.0, here it is"),
        (lambda d: d["versions"].pop("transformers"), "transformers was None, here it is"),
        (lambda d: d["machine"].update(cpu="Z80"), "cpu was Z80, here it is"),
        (lambda d: d["machine"].update(capability="AVX9"), "capability was AVX9, here it is"),
        (lambda d: d["machine"].update(threads="64"), "threads was 64, here it is 1"),
        (lambda d: d["machine"].update(devices="NVIDIA X1"), "devices was NVIDIA X1, here it is none but the CPU"),
        (lambda d: d["sites"].pop(), "there were 2 sites, here there are 3"),
        (lambda d: d["sites"][2].update(dtype="float16"), "the dtype of layers.2.act was float16, here it is float32"),
        (lambda d: d["sites"][0].update(device="cuda"), "the device of layers.0.act was cuda, here it is cpu"),
        (
            lambda d: d["sites"][0].update(activation="gelu"),
            "the activation of layers.0.act was gelu, here it is tardy",
        ),
        (
            lambda d: d["sites"][0].update(weights="fc.weight 1×1"),
            "the weights of layers.0.act was fc.weight 1×1, here",
        ),
    ],
)
def test_a_plan_for_something_else_is_refused(
    net: Net, plan: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    before = state(net)
    with pytest.raises(PatchError, match="is for something else: ") as refused:
        patch(net, plan=changed(plan, change))
    assert says in str(refused.value)
    assert "Tune again" in str(refused.value)
    assert same_state(before, net)


def test_every_difference_is_named(net: Net, plan: Path) -> None:
    def several(data: dict[str, Any]) -> None:
        data["machine"].update(threads="8", cpu="Z80")
        data["versions"]["torch"] = "1.0"

    with pytest.raises(PatchError, match=r"torch was 1\.0.*; cpu was Z80.*; threads was 8, here it is 1\. Tune again"):
        patch(net, plan=changed(plan, several))
    net.layers[0], net.layers[2] = net.layers[2], net.layers[0]
    with pytest.raises(PatchError, match=r"the weights of layers.0.act was .*; the weights of layers.2.act was "):
        patch(net, plan=plan)


def test_another_number_of_threads_is_another_machine(net: Net, plan: Path) -> None:
    torch.set_num_threads(2)
    try:
        with pytest.raises(PatchError, match="threads was 1, here it is 2"):
            patch(net, plan=plan)
    finally:
        torch.set_num_threads(1)
    with pytest.raises(PatchError, match=r"the dtype of layers.0.act was float32, here it is bfloat16"):
        patch(net.bfloat16(), plan=plan)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is no JSON"),
        ("{", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("[]", "another program wrote it"),
        ('{"schema": 2}', "another program wrote it"),
        ('{"written_by": "hf_gelu_patch", "schema": 99}', "has schema 99, and this version .* reads schema 2"),
        ('{"written_by": "hf_gelu_patch", "schema": 2}', "the file has no 'sites'"),
        ('{"written_by": "hf_gelu_patch", "schema": 2, "sites": 3}', "'sites' of the file is 3"),
        ('{"written_by": "hf_gelu_patch", "schema": 2, "sites": [1]}', "site 0 is no object"),
        ('{"written_by": "hf_gelu_patch", "schema": 2, "sites": [{}]}', "site 0 has no 'path'"),
    ],
)
def test_what_is_no_plan_is_refused(net: Net, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PatchError, match=says):
        patch(net, plan=path)


def test_a_path_that_is_none_is_refused(net: Net, plan: Path, tmp_path: Path) -> None:
    with pytest.raises(PatchError, match=r"cannot be read \(FileNotFoundError"):
        patch(net, plan=tmp_path / "none.json")
    with pytest.raises(PatchError, match=r"cannot be read \(IsADirectoryError"):
        patch(net, plan=tmp_path)
    with pytest.raises(PatchError, match=r"plan= is the path of a file that report.save wrote; got Report"):
        patch(net, plan=find_sites(net))  # type: ignore[arg-type]
    with pytest.raises(PatchError, match=r"cannot be written \(FileNotFoundError"):
        find_sites(net).save(tmp_path / "none" / "plan.json")
    plan.write_bytes(b"\xff\xfe")
    with pytest.raises(PatchError, match="it is no JSON"):
        patch(net, plan=plan)


@pytest.mark.parametrize(
    ("decision", "error", "says"),
    [
        ({"implementation": "quickest"}, UnknownNameError, "unknown implementation 'quickest'"),
        ({"implementation": "triton", "target": "tardy"}, PatchError, "triton"),
        ({"fused": False}, PatchError, "says fused: False at layers.0.act, and quick gives True there now"),
        ({"equivalence": "identical"}, PatchError, "says equivalence: identical"),
        ({"target": "gelu"}, PatchError, "says target: gelu"),
        ({"implementation": 3}, PatchError, "'implementation' of site 0 is 3"),
    ],
)
def test_a_plan_that_was_edited_is_refused(
    net: Net, plan: Path, decision: dict[str, Any], error: type[Exception], says: str
) -> None:
    before = state(net)
    with pytest.raises(error, match=says):
        patch(net, plan=changed(plan, lambda d: d["sites"][0].update(decision)))
    assert same_state(before, net)


def test_an_implementation_that_is_not_registered_is_refused_both_ways(net: Net, plan: Path) -> None:
    report = patch(net, implementation=quick("mine"))
    with pytest.raises(PatchError, match=r"'mine' is not registered.*register_implementation"):
        report.save(plan)
    unpatch(net)
    IMPLEMENTATIONS.pop("quick")  # as in another process
    with pytest.raises(UnknownNameError, match="unknown implementation 'quick'"):
        patch(net, plan=plan)


@pytest.mark.parametrize(
    "others",
    [
        {"implementation": "aten"},
        {"activation": "silu"},
        {"include": "layers.*"},
        {"exclude": "layers.*"},
        {"tune": BATCH},
    ],
    ids=lambda others: next(iter(others)),
)
def test_a_plan_excludes_what_it_says_itself(net: Net, plan: Path, others: dict[str, Any]) -> None:
    with pytest.raises(PatchError, match=f"plan= says what is done at each site, and so does {next(iter(others))}="):
        patch(net, plan=plan, **others)


def test_a_report_made_by_hand_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="save the one that patch returned"):
        Report("Net", (), applied=False).save(tmp_path / "plan.json")


JUNK = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=1)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_edited_plan_does_something_else_in_silence(data: st.DataObject) -> None:
    """Whatever is changed in one place: the same patch as before, or an error that says what is wrong."""
    name = "quick_when_edited"
    if name not in IMPLEMENTATIONS:
        register_implementation(quick(name))
    net = Net().eval()
    plan = Path(_FOLDER) / f"{name}.json"
    find_sites(net, implementation=name).save(plan)
    saved = json.loads(plan.read_text(encoding="utf-8"))
    holder: Any = saved
    key: Any = data.draw(st.sampled_from(sorted(saved)))
    while isinstance(holder[key], (dict, list)) and holder[key] and data.draw(st.booleans()):
        holder = holder[key]
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
    if data.draw(st.booleans()):
        holder[key] = data.draw(JUNK)
    else:
        del holder[key]
    plan.write_text(json.dumps(saved), encoding="utf-8")
    done = None
    with contextlib.suppress(PatchError), possibly_nothing(), patched(net, plan=plan) as report:
        done = [site.implementation for site in report.sites]
    plan.unlink()
    if done is not None:  # what is done at one site may be left out by hand
        assert done == [name] * 3 or (key == "implementation" and done.count(name) == 2)
    assert all(rewritings(module) == () for module in net.modules())


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    global _FOLDER
    _FOLDER = str(tmp_path_factory.mktemp("plans"))


_FOLDER = ""


# The rule


def test_the_rank_interval_is_that_of_the_sign_test() -> None:
    ones = [1.0] * 11
    times = [1.0 + number / 10 for number in range(11)]
    found = median_ratio(times, ones, confidence=0.999)
    assert (found.low, found.high) == (pytest.approx(1.0), pytest.approx(2.0))  # 2 / 2^11 < 0.001
    assert median_ratio(times[1:], ones[1:], confidence=0.999) == Ratio(pytest.approx(1.5492, abs=1e-3), 0.0, math.inf)
    found = median_ratio(times, ones, confidence=0.95)  # 2 (1 + 11) / 2^11 = 0.012, with the next 0.065
    assert (found.low, found.high) == (pytest.approx(1.1), pytest.approx(1.9))
    assert reach(Ratio(1.0, 0.0, math.inf)) == math.inf
    assert judge(Ratio(2.0, 0.0, math.inf), Ratio(1.0, 0.9, 1.1)) == "no difference detected"
    assert median_ratio([2.0] * 5000, [1.0] * 5000, confidence=0.999) == Ratio(*[pytest.approx(2.0)] * 3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-6, 10), st.floats(1e-6, 10)), min_size=11, max_size=80))
def test_the_rank_interval_holds_the_median_and_turns_over(pairs: list[tuple[float, float]]) -> None:
    before, after = zip(*pairs, strict=True)
    one, other = median_ratio(before, after, confidence=0.999), median_ratio(after, before, confidence=0.999)
    assert one.low <= one.value <= one.high
    assert (one.low * other.high, one.value * other.value) == (pytest.approx(1), pytest.approx(1))
    wide = median_ratio(before, after, confidence=0.9999)
    assert wide.low <= one.low
    assert wide.high >= one.high


def drawn(gain: float, noise: float, generator: random.Random) -> Callable[[str], float]:
    """Seconds as a busy machine would have them, without one."""

    def sample(name: str) -> float:
        value = 1e-3 * math.exp(generator.gauss(0, noise)) * (3 if generator.random() < 0.05 else 1)
        return value / gain if name == "other" else value

    return sample


def taken(gain: float, noise: float, seed: int) -> bool:
    generator = random.Random(seed)
    sample = drawn(gain, noise, generator)
    search = rounds.searched(["other"], sample, 10.0, generator)
    if search.verdict("other") != "faster":
        return False
    return rounds.fixed("other", sample, rounds.Rounds(40, 40, 10.0), generator).verdict("other") == "faster"


@pytest.mark.slow
def test_the_rule_takes_no_noise_for_a_gain_and_sees_what_is_there() -> None:
    assert not any(taken(1.0, 0.1, seed) for seed in range(150))
    assert sum(taken(1.3, 0.05, seed) for seed in range(40)) == 40
    assert not any(taken(1.004, 0.0001, seed) for seed in range(20))  # real, and too little to matter
    assert not any(taken(0.9, 0.1, seed) for seed in range(40))


def test_a_way_that_loses_the_first_rounds_is_not_timed_to_the_end() -> None:
    generator = random.Random(0)
    steady = drawn(0.5, 0.001, generator)
    search = rounds.searched(["other"], lambda name: steady(name) if name == "other" else 1e-3, 10.0, generator)
    assert len(search.seconds["other"]) == len(search.seconds["own"]) == 6
    assert search.verdict("other") != "faster"


def test_of_ways_that_are_as_fast_the_nearest_to_the_models_own_ops_is_taken(net: Net) -> None:
    def as_fast(_: Tensor) -> Tensor:
        return prompt(_)

    register_implementation(Implementation("rounds", {"tardy": prompt}))
    register_implementation(Implementation("exact", {"tardy": as_fast}, identical={"tardy"}))
    report = patch(net, tune=BATCH)
    assert {site.implementation for site in report.sites} == {"exact"}
    assert {site.equivalence for site in report.sites} == {"identical"}


def test_copies_of_a_tuned_model_are_tuned(net: Net) -> None:
    patch(net, implementation=quick(), tune=BATCH)
    made = copy.deepcopy(net)
    assert torch.equal(out(made), out(net))
    unpatch(made)
    assert all(rewritings(module) == () for module in made.modules())


@pytest.mark.slow
def test_transformers_models_are_tuned_with_all_that_runs_here() -> None:
    """Whatever is chosen computes the same; that it can be verified, saved and undone, for three families."""
    for name in ("gpt2", "t5-v1.1", "clip"):
        family = FAMILIES[name]
        model: transformers.PreTrainedModel = family.build()
        before = state(model)
        with possibly_nothing():
            report = patch(model, tune=family.inputs(), verify=family.inputs())
        assert {site.equivalence for site in report.changed} <= {"identical", "rounding"}
        assert all(site.reason for site in report.sites)
        if report.changed:
            unpatch(model)
        assert same_state(before, model)
