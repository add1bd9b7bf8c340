"""What others wrap around a patched model, and what it goes through: hooks, offloading, adapters, parametrizations,
checkpointing, transforms, tracing, copies, other processes, verification, torch.compile."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import pickle
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import remove_hook_from_module
from conftest import FAMILIES, KERNELS, of_implementation
from peft import LoraConfig, get_peft_model
from test_models import counted_compiles, of_any_size, same_state, state, with_layers
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations, prune

from hf_gelu_patch import (
    IMPLEMENTATIONS,
    Implementation,
    PatchError,
    Report,
    VerificationError,
    explain,
    find_sites,
    patch,
    patched,
    register_implementation,
    unpatch,
)
from scripts.benchmarking.tools.catalogue.hooks import device_map


@dataclass(frozen=True)
class Place:
    """Where one family's first feed-forward is.

    ``before``: the linear layers that the activation's site computes with: act(before[0](x)), and of a gated product
    · before[1](x). ``identical``: whether a patch keeps the bits. ``by``: the implementation that is asked for.
    """

    family: str
    owner: str
    before: tuple[str, ...]
    act: str
    identical: bool
    by: str = "auto"

    @property
    def other(self) -> str:
        """Another function, that ``by`` computes."""
        return "silu" if self.by == "epilogue" else "quick_gelu"

    def patch(self, model: nn.Module, **options: Any) -> Report:
        return patch(model, implementation=self.by, **options)

    def patched(self, model: nn.Module, **options: Any) -> contextlib.AbstractContextManager[Report]:
        return patched(model, implementation=self.by, **options)

    def build(self, **dropout: float) -> transformers.PreTrainedModel:
        if not dropout:
            return FAMILIES[self.family].build()
        config = FAMILIES[self.family].config()
        for key, value in vars(config).items():
            if "drop" in key and key != "layerdrop" and isinstance(value, float):
                setattr(config, key, dropout["dropout"])
        torch.manual_seed(0)
        return getattr(transformers, FAMILIES[self.family].model)(config)

    def run(self, model: nn.Module) -> Tensor:
        return FAMILIES[self.family].run(model)

    def out(self, model: nn.Module) -> Tensor:
        with torch.no_grad():
            return self.run(model)

    def mlp(self, model: nn.Module) -> nn.Module:
        return model.get_submodule(self.owner)

    @property
    def gated(self) -> bool:
        return len(self.before) == 2

    @property
    def paths(self) -> dict[str, str]:
        return {
            "owner": self.owner,
            "act": f"{self.owner}.{self.act}",
            **{name: f"{self.owner}.{name}" for name in self.before},
        }

    def close(self, new: Tensor, own: Tensor) -> None:
        """Same bits, or as near as another formula of the same function comes."""
        if self.identical:
            assert torch.equal(new, own)
        else:
            torch.testing.assert_close(new, own, rtol=1e-3, atol=1e-4 * max(1.0, float(own.abs().max())))


PLACES = [
    Place("bert", "bert.encoder.layer.0.intermediate", ("dense",), "intermediate_act_fn", True),
    Place("gpt2", "transformer.h.0.mlp", ("c_fc",), "act", False),
    Place("t5-v1.1", "encoder.block.0.layer.1.DenseReluDense", ("wi_0", "wi_1"), "act", False),
    Place("llama", "model.layers.0.mlp", ("gate_proj", "up_proj"), "act_fn", True),
    Place("opt", "model.decoder.layers.0", ("fc1",), "activation_fn", True),
]
BERT, GPT2, T5, LLAMA, OPT = PLACES
BY_CPP = [replace(place, by="cpp", identical=False) for place in (GPT2, T5, LLAMA)]
BY_EPILOGUE = [replace(place, by="epilogue", identical=False) for place in (BERT, OPT)]


def named(place: Place) -> str:
    return place.family if place.by == "auto" else f"{place.family} by {place.by}"


def marked(*places: Place) -> list[Any]:
    return [pytest.param(place, id=named(place), marks=KERNELS if place.by == "cpp" else ()) for place in places]


@pytest.fixture(params=marked(*PLACES, *BY_CPP, *BY_EPILOGUE))
def place(request: pytest.FixtureRequest) -> Place:
    return request.param


@pytest.fixture
def fused_calls() -> Iterator[list[str]]:
    """An implementation "spy" that computes the models' own functions, and what it was asked for, call by call."""
    calls: list[str] = []
    own: dict[str, Callable[[Tensor], Tensor]] = {
        "gelu": F.gelu,
        "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
        "silu": F.silu,
        "relu": F.relu,
        "tanh": torch.tanh,
    }

    def pointwise(x: Tensor, *, act: Callable[[Tensor], Tensor]) -> Tensor:
        calls.append("pointwise")
        return act(x)

    def gated(gate: Tensor, up: Tensor, *, act: Callable[[Tensor], Tensor]) -> Tensor:
        calls.append("gated")
        return act(gate) * up

    def linear(layer: nn.Module, x: Tensor, *, act: Callable[[Tensor], Tensor]) -> Tensor:
        calls.append("linear")
        return act(layer(x))

    def each(function: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
        return {name: functools.partial(function, act=act) for name, act in own.items()}

    register_implementation(Implementation("spy", each(pointwise), gated=each(gated), linear=each(linear)))
    try:
        yield calls
    finally:
        del IMPLEMENTATIONS["spy"]


def gradients(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    run(model).square().mean().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def close_gradients(new: Mapping[str, Tensor], own: Mapping[str, Tensor], *, identical: bool) -> None:
    assert new.keys() == own.keys()
    assert own
    largest = max(float(gradient.abs().max()) for gradient in own.values())
    for name, gradient in own.items():
        if identical:
            assert torch.equal(new[name], gradient), name
        torch.testing.assert_close(new[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=name)


# The user's hooks


class Recorder:
    """Hooks of every sort on chosen modules, or on all; each firing noted with the values it was given."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, list[Tensor]]] = []  # sort, module, values as they were
        self.kept: list[Tensor] = []  # the very tensors
        self.handles: list[Any] = []

    def note(self, sort: str, name: str, *values: Any) -> None:
        tensors = [tensor for value in values for tensor in torch.utils._pytree.tree_leaves(value)]
        tensors = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
        self.events.append((sort, name, [tensor.detach().clone() for tensor in tensors]))
        self.kept.extend(tensors)

    def on(self, name: str, module: nn.Module) -> None:
        self.handles += [
            module.register_forward_pre_hook(lambda _, args: self.note("pre", name, args)),
            module.register_forward_hook(lambda _, args, out: self.note("forward", name, args, out)),
            module.register_full_backward_pre_hook(lambda _, grad: self.note("backward pre", name, grad)),
            module.register_full_backward_hook(lambda _, *grads: self.note("backward", name, *grads)),
        ]

    def on_all(self, model: nn.Module) -> None:
        def name(module: nn.Module) -> str:  # by identity, when it fires: whatever stands there then
            return next((path for path, one in model.named_modules() if one is module), "?")

        self.handles += [
            torch_module.register_module_forward_pre_hook(lambda m, args: self.note("pre", name(m), args)),
            torch_module.register_module_forward_hook(lambda m, args, out: self.note("forward", name(m), args, out)),
            torch_module.register_module_full_backward_pre_hook(lambda m, g: self.note("backward pre", name(m), g)),
            torch_module.register_module_full_backward_hook(lambda m, *g: self.note("backward", name(m), *g)),
        ]

    def taken(self) -> list[tuple[str, str, list[Tensor]]]:
        events = self.events.copy()
        self.events.clear()
        return events

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()


def same_events(
    place: Place,
    new: list[tuple[str, str, list[Tensor]]],
    own: list[tuple[str, str, list[Tensor]]],
    *,
    reordered: bool = False,
) -> None:
    """The same firings with the same values, in the same order. ``reordered``: the order is each module's own only. A
    gated product computes act(gate) behind up instead of ahead of it, forward and backward."""
    names = [(sort, name) for sort, name, _ in own]
    if reordered:
        assert Counter((sort, name) for sort, name, _ in new) == Counter(names)
        for name in {name for _, name in names}:
            assert [event[0] for event in new if event[1] == name] == [sort for sort, one in names if one == name]
        new, own = (sorted(events, key=lambda event: event[:2]) for events in (new, own))
    else:
        assert [(sort, name) for sort, name, _ in new] == names
    for (_, _, values), (_, _, expected) in zip(new, own, strict=True):
        assert len(values) == len(expected)
        for value, one in zip(values, expected, strict=True):
            place.close(value, one)


def forward_and_backward(place: Place, model: nn.Module) -> None:
    model.zero_grad()
    place.run(model).square().mean().backward()


@pytest.mark.parametrize("where", ["act", "linear", "owner", "everywhere"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_users_hooks_fire_as_before_and_can_be_removed(place: Place, when: str, where: str) -> None:
    model = place.build()
    recorder = Recorder()

    def register() -> None:
        for name, path in place.paths.items():
            if where == "everywhere" or name == where or (where == "linear" and name in place.before):
                recorder.on(name, model.get_submodule(path))

    register()
    place.out(model)
    forward_and_backward(place, model)
    own = recorder.taken()
    assert own
    if when == "after":
        recorder.remove()
        before = state(model)
    place.patch(model)
    if when == "after":
        register()
    place.out(model)
    forward_and_backward(place, model)
    # Hooked beforehand, the activation is computed where it was, and the order is as it was; with hooks that came
    # after the patch, the forward that was rewritten for the product stays, and up comes ahead of act(gate).
    reordered = place.gated and where == "everywhere" and when == "after"
    same_events(place, recorder.taken(), own, reordered=reordered)
    if when == "after":
        recorder.remove()
        place.out(model)
        unpatch(model)
        # torch leaves this flag set where a full backward hook once was, on any module.
        for module in model.modules():
            module._is_full_backward_hook = None
        assert same_state(before, model)
    else:
        unpatch(model)
        place.out(model)
        forward_and_backward(place, model)
        new = recorder.taken()
        same_events(place, new, own)
        recorder.remove()
    forward_and_backward(place, model)
    assert recorder.events == []
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_a_users_hook_on_the_activation_makes_its_site_pointwise_with_the_reason(
    place: Place, fused_calls: list[str]
) -> None:
    model = place.build()
    path = place.paths["act"]
    kind = "gated" if place.gated else "linear"
    handle = model.get_submodule(path).register_forward_hook(lambda *_: None)
    (site,) = (one for one in patch(model, implementation="spy").sites if one.path == path)
    assert (site.kind, site.fused) == (kind, False)
    assert "not fused: its hooks must run" in site.reason
    place.out(model)
    assert fused_calls.count("pointwise") == 1
    assert set(fused_calls) == {"pointwise", kind, "linear"} - (
        {"linear"} if place.family in ("t5-v1.1", "llama") else set()
    )
    unpatch(model)
    handle.remove()
    (site,) = (one for one in patch(model, implementation="spy").sites if one.path == path)
    assert site.fused
    fused_calls.clear()
    place.out(model)
    assert "pointwise" not in fused_calls
    before = fused_calls.count(kind)
    heard: list[Tensor] = []
    late = model.get_submodule(path).register_forward_hook(lambda *given: heard.append(given[2]))
    fused_calls.clear()
    place.out(model)
    assert len(heard) == 1  # seen when it is called: the module itself is
    assert fused_calls.count(kind) + fused_calls.count("pointwise") == before - 1
    late.remove()
    fused_calls.clear()
    place.out(model)
    assert "pointwise" not in fused_calls


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", [BERT, GPT2, OPT], ids=lambda place: place.family)
def test_a_hooked_linear_layer_is_not_gone_around(place: Place, when: str, fused_calls: list[str]) -> None:
    model = place.build()
    linear = model.get_submodule(place.paths[place.before[0]])
    sort = {BERT: "register_forward_hook", GPT2: "register_forward_pre_hook", OPT: "register_full_backward_hook"}[place]
    if when == "before":
        getattr(linear, sort)(lambda *_: None)
    (site,) = (one for one in patch(model, implementation="spy").sites if one.path == place.paths["act"])
    assert site.fused == (when == "after")
    assert ("its linear layer is hooked" in site.reason) == (when == "before")
    if when == "after":
        getattr(linear, sort)(lambda *_: None)
    place.out(model)
    assert fused_calls.count("pointwise") == 1


@pytest.mark.filterwarnings("ignore:For backward hooks to be called")  # of modules that return no tensor
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # of the embeddings, whose inputs are no floats
@pytest.mark.usefixtures("fused_calls")
def test_hooks_of_all_modules_fire_as_before(place: Place) -> None:
    model = place.build()
    recorder = Recorder()
    recorder.on_all(model)
    try:
        place.out(model)
        forward_and_backward(place, model)
        own = recorder.taken()
        report = patch(model, implementation="spy")
        assert report.changed
        assert not any(site.fused for site in report.sites)
        assert all("hooks must run" in site.reason for site in report.changed)
        place.out(model)
        forward_and_backward(place, model)
        same_events(place, recorder.taken(), own)
        unpatch(model)
        recorder.remove()
        patch(model)
        recorder.on_all(model)
        place.out(model)
        forward_and_backward(place, model)
        same_events(place, recorder.taken(), own, reordered=place.gated)
    finally:
        recorder.remove()
    place.out(model)
    assert recorder.events == []


def test_what_a_hook_keeps_is_not_written_over_later(place: Place) -> None:
    model = place.build()
    place.patch(model)
    for where in ((*place.before,), ("act",), (*place.before, "act", "owner")):
        recorder = Recorder()
        for name in where:
            recorder.on(name, model.get_submodule(place.paths[name]))
        place.out(model)
        place.out(model)
        then = [value for _, _, values in recorder.taken() for value in values]
        assert len(then) >= 2 * 2 * len(where)
        assert all(torch.equal(kept, value) for kept, value in zip(recorder.kept, then, strict=True))
        recorder.remove()


def test_a_hook_that_changes_the_output_is_heeded(place: Place) -> None:
    model = place.build()
    twin = copy.deepcopy(model)
    place.patch(model)
    for name in (*place.before, "act", "owner"):
        path = place.paths[name]
        for one in (model, twin):
            one.get_submodule(path).register_forward_hook(
                lambda _, __, out: (out[0] * 1.5, *out[1:]) if isinstance(out, tuple) else out * 1.5
            )
    place.close(place.out(model), place.out(twin))


def test_hidden_states_and_attentions_are_recorded_as_before(place: Place) -> None:
    """transformers collects them by hooks of its own."""
    model = place.build()

    def outputs() -> list[Tensor]:
        with torch.no_grad():
            output = model(**FAMILIES[place.family].inputs(), output_hidden_states=True, return_dict=True)
        names = [name for name in output if "hidden_states" in name]
        assert names
        return [tensor for name in names for tensor in output[name]]

    own = outputs()
    place.patch(model)
    for new, one in zip(outputs(), own, strict=True):
        place.close(new, one)


# accelerate


def dispatched(place: Place, model: nn.Module, folder: Path) -> nn.Module:
    placed = device_map(model, place.owner)
    assert set(placed.values()) == {"cpu", "disk"}
    return dispatch_model(model, placed, main_device="cpu", offload_dir=folder, force_hooks=True)


def offloaded(_place: Place, model: nn.Module, _folder: Path) -> nn.Module:
    return cpu_offload(model, execution_device=torch.device("cpu"))


def offloaded_by_owner(place: Place, model: nn.Module, _folder: Path) -> nn.Module:
    """The hook is the owner's alone, and brings its linear layers' weights: they look plain when they are called."""
    return cpu_offload(
        model,
        execution_device=torch.device("cpu"),
        preload_module_classes=[type(place.mlp(model)).__name__],
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match")  # T5's shared embedding, in 4.57
@pytest.mark.usefixtures("fused_calls")
@pytest.mark.parametrize("taken_off", ["before unpatch", "after unpatch", "never"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("wrap", [dispatched, offloaded, offloaded_by_owner])
def test_accelerates_hooks(
    place: Place,
    wrap: Callable[..., nn.Module],
    when: str,
    taken_off: str,
    tmp_path: Path,
) -> None:  # trap 5
    model = place.build()
    own = place.out(model)
    untouched = copy.deepcopy(model)
    before = state(model)
    if when == "after":
        place.patch(model)
    wrap(place, model, tmp_path)
    hooks = {path: one._hf_hook for path, one in model.named_modules() if "_hf_hook" in vars(one)}
    assert any(path.startswith(place.owner) for path in hooks)
    if when == "before":
        report = patch(
            model, implementation="spy" if place in (BERT, OPT) else place.by
        )  # auto has nothing to gain there
        assert {site.device for site in report.sites} == {"cpu"}
        (site,) = (one for one in report.sites if one.path == place.paths["act"])
        assert site.fused == (place.gated or wrap is offloaded_by_owner)
        assert site.fused or "not fused: its linear layer is hooked" in site.reason
    for _ in range(2):
        place.close(place.out(model), own)
    assert {path: one._hf_hook for path, one in model.named_modules() if "_hf_hook" in vars(one)} == hooks
    if taken_off == "before unpatch":
        remove_hook_from_module(model, recurse=True)
        place.close(place.out(model), own)
    unpatch(model)
    assert torch.equal(place.out(model), own)
    if taken_off == "never":
        assert {path: one._hf_hook for path, one in model.named_modules() if "_hf_hook" in vars(one)} == hooks
    else:
        remove_hook_from_module(model, recurse=True)
    assert torch.equal(place.out(model), own)
    assert not any("_hf_gelu_patch" in vars(one) for one in model.modules())
    # accelerate leaves a forward behind where its hook was, which is the class's own.
    for path, one in model.named_modules():
        for slot in ("forward", "_old_forward"):
            if slot in vars(one) and taken_off != "never":
                assert vars(one)[slot].__func__ is type(one).forward, path
    assert [(path, identity) for path, identity, _ in before] == [
        (path, identity) for path, identity, _ in state(model)
    ]
    assert [type(one) for one in model.modules()] == [type(one) for one in untouched.modules()]


# PEFT


def with_lora(place: Place, model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        targets = [*place.before, *(["c_proj"] if place.family == "gpt2" else [])]
        torch.manual_seed(1)
        wrapped = get_peft_model(model, LoraConfig(target_modules=targets, r=2, init_lora_weights=False))
    return wrapped.eval()


@pytest.mark.usefixtures("fused_calls")
@pytest.mark.parametrize("when", ["before", "after"])
def test_lora(place: Place, when: str) -> None:
    plain = place.build()
    own = place.out(plain)
    expected = with_lora(place, copy.deepcopy(plain))
    model = copy.deepcopy(plain)
    if when == "after":
        place.patch(model)
    wrapped = with_lora(place, model)
    if when == "before":
        report = patch(wrapped, implementation="spy" if place in (BERT, OPT) else place.by)
        (site,) = (one for one in report.sites if one.path.endswith(place.paths["act"]))
        assert site.fused == place.gated
    assert not torch.allclose(place.out(expected), own)
    place.close(place.out(wrapped), place.out(expected))
    wanted = gradients(expected, place.run)
    assert all("lora" in name for name in wanted)
    assert all(bool(gradient.any()) for gradient in wanted.values())
    close_gradients(gradients(wrapped, place.run), wanted, identical=place.identical)
    with wrapped.disable_adapter():
        place.close(place.out(wrapped), own)
    wrapped.merge_adapter()
    expected.merge_adapter()
    place.close(place.out(wrapped), place.out(expected))
    wrapped.unmerge_adapter()
    expected.unmerge_adapter()
    merged, expected = wrapped.merge_and_unload(), expected.merge_and_unload()
    assert not any("lora" in type(one).__module__ for one in merged.modules())
    place.close(place.out(merged), place.out(expected))
    unpatch(merged)
    assert torch.equal(place.out(merged), place.out(expected))


@pytest.mark.parametrize("when", ["before", "after"])
def test_lora_unloaded_leaves_the_model_as_it_was(place: Place, when: str, fused_calls: list[str]) -> None:
    model = place.build()
    before = state(model)
    own = place.out(model)
    if when == "after":
        patch(model)
        again = with_lora(place, model).unload()
        place.close(place.out(again), own)
        unpatch(again)
    else:
        wrapped = with_lora(place, model)
        patch(wrapped, implementation="spy")
        assert fused_calls == []
        place.out(wrapped)
        assert fused_calls
        unpatch(wrapped)
        again = wrapped.unload()
    assert again is model
    assert torch.equal(place.out(model), own)
    assert same_state(before, model)


# Linear layers that are not plain


class Doubling(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2.0 * super().forward(input)


class Counted(Tensor):
    """A tensor subclass as quantized weights are: torch's functions are its own to compute."""

    calls: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.calls.append(getattr(func, "__name__", str(func)))
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        return result.as_subclass(cls) if func is Tensor.detach else result


def make_weight_norm(linear: nn.Module) -> nn.Module:
    return parametrizations.weight_norm(linear)


def make_spectral_norm(linear: nn.Module) -> nn.Module:
    return parametrizations.spectral_norm(linear)


def make_own_parametrization(linear: nn.Module) -> nn.Module:
    class Scaled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 0.5 * weight

    torch.nn.utils.parametrize.register_parametrization(linear, "weight", Scaled())
    return linear


def make_pruned(linear: nn.Module) -> nn.Module:
    return prune.l1_unstructured(linear, "weight", amount=0.3)


def make_subclass(linear: nn.Module) -> nn.Module:
    linear.__class__ = Doubling
    return linear


def make_own_forward(linear: nn.Module) -> nn.Module:
    forward = linear.forward
    linear.forward = lambda x: 3.0 * forward(x)
    return linear


def make_tensor_subclass(linear: nn.Module) -> nn.Module:
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Counted))
    return linear


NOT_PLAIN = [
    make_weight_norm,
    make_spectral_norm,
    make_own_parametrization,
    make_pruned,
    make_subclass,
    make_own_forward,
    make_tensor_subclass,
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", NOT_PLAIN)
@pytest.mark.parametrize("place", [BERT, OPT, LLAMA], ids=lambda place: place.family)
def test_linear_layers_that_are_not_plain_are_called_as_they_are(
    place: Place, change: Callable[[nn.Module], nn.Module], when: str, fused_calls: list[str]
) -> None:  # trap 11
    model = place.build()

    def changed(one: nn.Module) -> None:
        for name in place.before:
            torch.manual_seed(2)
            change(one.get_submodule(place.paths[name]))

    expected = copy.deepcopy(model)
    changed(expected)
    own = place.out(expected)
    wanted = gradients(expected, place.run)
    assert not torch.allclose(own, place.out(model)) or change in (make_weight_norm, make_tensor_subclass)
    if when == "before":
        changed(model)
    (site,) = (one for one in patch(model, implementation="spy").sites if one.path == place.paths["act"])
    if when == "after":
        changed(model)
    elif not place.gated:
        assert not site.fused  # a parametrization makes a class of its own
        assert site.kind == "pointwise" or "its linear layer is hooked, wrapped or holds no plain" in site.reason
    Counted.calls.clear()
    fused_calls.clear()
    assert torch.equal(place.out(model), own)
    if change is make_tensor_subclass:
        assert "linear" in Counted.calls
    assert fused_calls.count("pointwise") == (0 if place.gated else 1)
    close_gradients(gradients(model, place.run), wanted, identical=True)
    unpatch(model)
    with patched(model):  # the real one
        assert torch.equal(place.out(model), own)
        close_gradients(gradients(model, place.run), wanted, identical=True)


@pytest.mark.parametrize("place", [BERT, GPT2, LLAMA, T5], ids=lambda place: place.family)
def test_tensor_subclasses_compute_by_themselves(place: Place, fused_calls: list[str]) -> None:
    """A subclass may have its own product and its own x·W + b: DTensors and jagged tensors do."""

    class Kept(Tensor):
        pass

    model, x = place.build(), torch.randn(2, 3, 32)
    mlp = place.mlp(model)
    own = mlp(x)
    patch(model, implementation="spy")
    mlp(x)
    assert fused_calls == ["gated" if place.gated else "linear"]
    fused_calls.clear()
    y = mlp(x.as_subclass(Kept))
    assert fused_calls == []
    assert type(y) is Kept
    assert torch.equal(y.as_subclass(Tensor), own)


class AtSite(nn.Module):
    """One activation site of a kind, the activation being a module or a call."""

    def __init__(self, kind: str, spelling: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.act, self.kind = nn.Linear(4, 4), transformers.activations.ACT2FN[spelling], kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "gated":
            return self.act(x) * x
        return self.act(self.fc(x)) if self.kind == "linear" else self.act(x)


class Called(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x) * torch.sigmoid(x)


def _pieces() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, 4, generator=generator) for rows in (3, 5)]


def _masked(x: Tensor) -> Tensor:
    return torch.masked.masked_tensor(x, x > 0)


# Each as tensors of a model come, and what its numbers are.
OTHER_TENSORS: dict[str, tuple[Callable[[], Any], Callable[[Any], Tensor]]] = {
    "nested": (lambda: torch.nested.nested_tensor(_pieces()), lambda y: torch.cat(y.unbind())),
    "nested, made of one": (lambda: torch.nested.as_nested_tensor(_pieces()[:1]), lambda y: torch.cat(y.unbind())),
    "jagged": (lambda: torch.nested.nested_tensor(_pieces(), layout=torch.jagged), lambda y: torch.cat(y.unbind())),
    "sparse": (lambda: F.relu(_pieces()[0]).to_sparse(), Tensor.to_dense),
    "sparse rows": (lambda: F.relu(_pieces()[0]).to_sparse_csr(), Tensor.to_dense),
    "masked": (lambda: _masked(_pieces()[0]), lambda y: y.to_tensor(0.0)),
    "mkldnn": (lambda: _pieces()[0].to_mkldnn(), Tensor.to_dense),
    "quantized": (lambda: torch.quantize_per_tensor(_pieces()[0], 0.1, 0, torch.qint8), Tensor.dequantize),
    "complex": (lambda: torch.complex(*_pieces()[0].split(2, dim=-1)), torch.view_as_real),
    "integers": (lambda: (10 * _pieces()[0]).int(), Tensor.double),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # prototypes, says torch of most of these
@pytest.mark.parametrize("implementation", [of_implementation(name) for name in ("aten", "cpp", "epilogue", "triton")])
@pytest.mark.parametrize("kind", OTHER_TENSORS)
def test_tensors_that_are_no_plain_memory_go_the_way_they_went(kind: str, implementation: str) -> None:
    make, numbers = OTHER_TENSORS[kind]
    ran: list[str] = []
    spelt = ("gelu", "gelu_new", "gelu_fast", "silu", "relu") if implementation == "epilogue" else SPELT
    for model in [Called(), *(AtSite(site, spelling) for site in SITE_KINDS for spelling in spelt)]:
        try:
            with torch.no_grad():
                before = model(make())
        except (RuntimeError, TypeError):  # torch has no such op for it
            continue
        ran.append(type(model).__name__)
        with torch.no_grad(), patched(model, implementation=implementation) as report:
            running = [site for site in report.sites if "does not run here" not in site.reason]
            assert report.changed or all("one aten op already" in site.reason for site in running)
            after = model(make())
        assert (type(after), after.layout, after.dtype) == (type(before), before.layout, before.dtype)
        torch.testing.assert_close(numbers(after), numbers(before))
    assert len(ran) >= (2 if implementation == "epilogue" else 3), ran


SITE_KINDS = ("pointwise", "gated", "linear")
SPELT = ("gelu", "gelu_new", "gelu_fast", "silu", "relu", "quick_gelu", "relu2", "gelu_10", "mish")


@pytest.mark.parametrize("when", ["before", "after"])
def test_tensor_parallel_linears_are_not_gone_around(one_process: Any, when: str, fused_calls: list[str]) -> None:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = OPT.build()
    own = OPT.out(model)
    wanted = gradients(model, OPT.run)
    if when == "after":
        patch(model, implementation="spy")
    plan = {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parallelize_module(OPT.mlp(model), one_process, plan)
    assert isinstance(OPT.mlp(model).fc1.weight, DTensor)
    if when == "before":
        patch(model, implementation="spy")
    torch.testing.assert_close(OPT.out(model), own)
    assert fused_calls.count("pointwise") == 1
    unpatch(model)
    with patched(model):
        torch.testing.assert_close(OPT.out(model), own)
        new = {name: getattr(g, "_local_tensor", g) for name, g in gradients(model, OPT.run).items()}
    close_gradients(new, wanted, identical=False)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", marked(GPT2, LLAMA, *BY_CPP[::2]))
def test_fully_sharded(one_process: Any, place: Place, when: str) -> None:
    from torch.distributed.fsdp import fully_shard

    model = place.build()
    own = place.out(model)
    wanted = gradients(model, place.run)
    if when == "after":
        place.patch(model)
    layers = model.transformer.h if place.family == "gpt2" else model.model.layers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for layer in layers:
            fully_shard(layer, mesh=one_process)
        fully_shard(model, mesh=one_process)
        if when == "before":
            place.patch(model)
        place.close(place.out(model), own)
        new = {name: getattr(g, "_local_tensor", g) for name, g in gradients(model, place.run).items()}
    close_gradients(new, wanted, identical=place.identical)
    unpatch(model)


def test_torchao_quantized() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    for place in (BERT, LLAMA):
        for when in ("before", "after"):
            model = place.build()
            if when == "after":
                patch(model)
            quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
            if when == "before":
                patch(model)
            new = place.out(model)
            unpatch(model)
            assert torch.equal(place.out(model), new)


def test_bitsandbytes_quantized() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    for place in (BERT, LLAMA):
        model = place.build()
        for name in place.before:
            linear = model.get_submodule(place.paths[name])
            quantized = bnb.nn.Linear8bitLt(
                linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False
            )
            quantized.load_state_dict(linear.state_dict())
            setattr(place.mlp(model), name, quantized)
        own = place.out(model)
        with patched(model):
            torch.testing.assert_close(place.out(model), own)


# Training and inference modes


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(place: Place, use_reentrant: bool) -> None:
    model = place.build(dropout=0.0).train()
    model.config.use_cache = False
    own = gradients(model, place.run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older name of the method, which transformers 5.0 has
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    checkpointed = gradients(model, place.run)
    with place.patched(model):
        new = gradients(model, place.run)
    close_gradients(new, checkpointed, identical=place.identical)
    close_gradients(new, own, identical=False)


def test_autocast(place: Place) -> None:
    model = place.build()
    if not place.identical:
        for weight in model.parameters():  # build made them larger: in bfloat16, T5's gradients are all rounding then
            weight.data.div_(4.0) if weight.dim() > 1 else None
    patch_too = copy.deepcopy(model)
    place.patch(patch_too)

    def run(one: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return place.run(one)

    with torch.no_grad():
        own, new = run(model), run(patch_too)
    assert own.dtype == new.dtype
    wanted, got = gradients(model, run), gradients(patch_too, run)
    if place.identical:
        assert torch.equal(new, own)
        close_gradients(got, wanted, identical=True)
    else:
        slack = 16 * torch.finfo(torch.bfloat16).eps
        assert float((new - own).abs().max()) <= slack * float(own.abs().max())
        largest = max(float(gradient.abs().max()) for gradient in wanted.values())
        assert all(float((got[name] - one).abs().max()) <= slack * largest for name, one in wanted.items())


def test_inference_mode(place: Place) -> None:
    model = place.build()
    with torch.inference_mode():
        own = place.run(model)
    with place.patched(model), torch.inference_mode():
        new = place.run(model)
        assert new.is_inference()
        place.close(new, own)
        place.close(place.run(model), own)
    with place.patched(model):
        place.close(place.out(model), own.clone())  # no inference tensor is left anywhere
        forward_and_backward(place, model)


def test_the_models_inputs_are_not_written_over(place: Place) -> None:
    model = place.build()
    place.patch(model)
    mlp = place.mlp(model)
    if place.family == "opt":
        return
    x = torch.randn(2, 3, 32)
    kept = x.clone()
    with torch.no_grad():
        first = mlp(x)
        second = mlp(x)
    assert torch.equal(x, kept)
    assert torch.equal(first, second)


@pytest.mark.parametrize("place", marked(GPT2, LLAMA, BERT, *BY_CPP[::2], BY_EPILOGUE[0]))
def test_functional_transforms(place: Place) -> None:
    from torch.func import functional_call, grad, jvp, vmap

    model = place.build()
    own = copy.deepcopy(place.mlp(model))
    place.patch(model)
    new = place.mlp(model)
    parameters = {name: weight.detach() for name, weight in own.named_parameters()}
    x = torch.randn(3, 5, 32)

    def loss(mlp: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
        return lambda weights, x: functional_call(mlp, weights, (x,)).square().mean()

    def each(mlp: nn.Module) -> dict[str, Tensor]:
        return vmap(grad(loss(mlp)), in_dims=(None, 0))(parameters, x)

    close_gradients(each(new), each(own), identical=False)
    for mode in (torch.enable_grad(), torch.no_grad()):
        with mode:
            torch.testing.assert_close(vmap(new)(x), vmap(own)(x), rtol=1e-4, atol=1e-4)
            for name, weight in parameters.items():

                def ensemble(mlp: nn.Module, weights: Tensor, name: str = name) -> Tensor:
                    return vmap(lambda one: functional_call(mlp, {**parameters, name: one}, (x,)))(weights)

                def tangent(mlp: nn.Module, weight: Tensor, name: str = name) -> tuple[Tensor, Tensor]:
                    call = lambda one: functional_call(mlp, {**parameters, name: one}, (x,))  # noqa: E731
                    return jvp(call, (weight,), (torch.ones_like(weight),))

                stacked = torch.stack([weight, 2 * weight])
                torch.testing.assert_close(ensemble(new, stacked), ensemble(own, stacked), rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(tangent(new, weight), tangent(own, weight), rtol=1e-4, atol=1e-4)


# Tracing and exporting


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("grad_mode", [False, True])
@pytest.mark.parametrize("place", marked(GPT2, LLAMA, BERT, T5, *BY_CPP, BY_EPILOGUE[0]))
def test_traced(place: Place, grad_mode: bool) -> None:
    model = place.build()
    own = copy.deepcopy(place.mlp(model)).eval()
    place.patch(model)
    with torch.set_grad_enabled(grad_mode):
        traced = torch.jit.trace(place.mlp(model), (torch.randn(2, 5, 32),))
    x = torch.randn(3, 7, 32)
    place.close(traced(x).detach(), own(x).detach())
    new = torch.autograd.grad(traced(x).square().sum(), list(traced.parameters()))
    wanted = torch.autograd.grad(own(x).square().sum(), list(own.parameters()))
    for one, expected in zip(new, wanted, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_activations_of_several_ops_traced() -> None:
    """Not in place: the trace is checked without gradients, and may be run with them."""
    act = transformers.activations.ACT2FN
    model = nn.Sequential(
        nn.LayerNorm(8), act["quick_gelu"], nn.LayerNorm(8), act["relu2"], nn.Linear(8, 8), act["gelu_10"]
    )
    own = copy.deepcopy(model)
    patch(model)
    x = torch.randn(3, 8, requires_grad=True)
    traced = torch.jit.trace(model, (torch.randn(2, 8),))
    assert torch.equal(traced(x), own(x))
    assert torch.equal(*(torch.autograd.grad(one(x).sum(), x)[0] for one in (traced, own)))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("place", marked(GPT2, LLAMA, *BY_CPP[::2]))
def test_exported(place: Place, strict: bool) -> None:
    model = place.build()
    own = copy.deepcopy(place.mlp(model))
    place.patch(model)
    batch = torch.export.Dim("batch", min=2, max=64)
    with torch.no_grad():
        program = torch.export.export(
            place.mlp(model), (torch.randn(2, 5, 32),), dynamic_shapes=({0: batch},), strict=strict
        )
        x = torch.randn(3, 5, 32)
        place.close(program.module()(x), own(x))
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("hf_gelu_patch" in target or target.endswith(("gelu_.default", "mul_.Tensor")) for target in targets)


# Copies, files, processes


def test_classes_stay_so_that_wrap_policies_by_class_go_on_matching(place: Place) -> None:
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    model = place.build()
    classes = {path: type(module) for path, module in model.named_modules()}
    owner = type(place.mlp(model))
    layers = set(model._no_split_modules or ())
    policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={owner})
    place.patch(model)
    after = {path: type(module) for path, module in model.named_modules()}
    names = ("__name__", "__qualname__", "__module__", "__doc__")
    for path, cls in classes.items():
        assert issubclass(after[path], cls)
        assert all(getattr(after[path], name) == getattr(cls, name) for name in names)
    assert after[place.paths["act"]] is classes[place.paths["act"]]
    assert policy(place.mlp(model), recurse=False, nonwrapped_numel=0)
    assert isinstance(place.mlp(model), owner)
    assert set(model._no_split_modules or ()) == layers
    assert place.mlp(model).forward.__qualname__ == f"{owner.__name__}.forward"


def test_a_deep_copy_is_unpatched_alone(place: Place) -> None:
    model = place.build()
    own = place.out(model)
    place.patch(model)
    patched_state = state(model)
    new = place.out(model)
    twin = copy.deepcopy(model)
    assert torch.equal(place.out(twin), new)
    assert place.mlp(twin).forward.__self__ is place.mlp(twin)
    for weight in twin.parameters():
        weight.data.mul_(1.1)
    assert not torch.equal(place.out(twin), new)  # its forwards are bound to its own modules
    assert torch.equal(place.out(model), new)
    for weight, one in zip(twin.parameters(), model.parameters(), strict=True):
        weight.data.copy_(one)
    unpatch(twin)
    assert torch.equal(place.out(twin), own)
    assert not any(key == "forward" or "_hf_gelu_patch" in key for module in twin.modules() for key in vars(module))
    assert same_state(patched_state, model)
    assert torch.equal(place.out(model), new)
    unpatch(model)
    assert torch.equal(place.out(model), own)


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("through", [saved_and_loaded, pickled, lambda model: pickled(copy.deepcopy(pickled(model)))])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_round_trip_through_a_file(place: Place, through: Callable[[nn.Module], nn.Module], swapped: bool) -> None:
    model = place.build()
    own = place.out(model)
    config = model.config.to_dict()
    report = place.patch(model, activation=place.other if swapped else None)
    again = through(model)
    assert torch.equal(place.out(again), place.out(model))
    assert place.mlp(again).forward.__self__ is place.mlp(again)
    assert explain(again) == explain(model)
    unpatch(again)
    assert torch.equal(place.out(again), own)
    assert not any({"forward", "_hf_gelu_patch"} & vars(module).keys() for module in again.modules())
    assert again.config.to_dict() == config
    assert {site.path for site in find_sites(again).changed} >= {site.path for site in report.changed}


@pytest.mark.slow
def test_in_spawned_processes() -> None:
    model = LLAMA.build().requires_grad_(False)
    own = LLAMA.out(model)
    patch(model, activation="relu")
    new = LLAMA.out(model)
    inputs = {**FAMILIES["llama"].inputs(), "return_dict": False, "use_cache": False}
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        (there,) = pool.apply(model, kwds=inputs)
        again = pool.apply(copy.deepcopy, (model,))  # there and back
    assert torch.equal(there, new)
    assert torch.equal(LLAMA.out(again), new)
    unpatch(again)
    assert torch.equal(LLAMA.out(again), own)
    assert torch.equal(LLAMA.out(model), new)


# verify=


def test_verified(place: Place) -> None:
    model = place.build()
    own = place.out(model)
    report = place.patch(model, verify=FAMILIES[place.family].inputs())
    assert report.drift
    assert all(not drift.exceeded for drift in report.drift)
    logits = next(drift for drift in report.drift if drift.output == "logits")
    assert logits.scale == pytest.approx(float(own.abs().max()))
    assert logits.margin is None  # its own error is the bar
    assert logits.largest == pytest.approx(float((place.out(model) - own).abs().max()))
    assert (logits.largest == 0.0) == place.identical or place.by == "epilogue"  # whose product may be the same
    exact = place.out(copy.deepcopy(model).double())
    assert logits.error_before == pytest.approx(float((own.double() - exact).abs().max()), rel=0.2)
    assert logits.error_after is not None
    assert f"verified: logits: max |Δ| {logits.largest:.2g} (of {logits.scale:.3g})" in str(report)
    assert "error against float64" in str(report)
    drift = json.loads(json.dumps(report.to_dict(), allow_nan=False))["drift"]
    assert {one["output"] for one in drift} == {one.output for one in report.drift}
    unpatch(model)
    assert torch.equal(place.out(model), own)


def test_every_output_is_verified() -> None:
    model = GPT2.build()
    batch = {**FAMILIES["gpt2"].inputs(), "output_hidden_states": True}
    names = {drift.output for drift in patch(model, verify=batch).drift}
    assert {"logits", "hidden_states.0", "hidden_states.1", "hidden_states.2"} <= names


@pytest.mark.parametrize("batch", ["mapping", "tuple", "tensor"])
def test_a_batch_is_given_as_the_model_takes_it(batch: str) -> None:
    ids = FAMILIES["gpt2"].inputs()["input_ids"]
    given = {"mapping": {"input_ids": ids}, "tuple": (ids,), "tensor": ids}[batch]
    assert [d.output for d in patch(GPT2.build(), verify=given).drift][:1] == ["logits"]


def test_a_swap_beyond_the_margin_is_rolled_back(place: Place) -> None:  # trap 15
    model = place.build()
    own = place.out(model)
    before = state(model)
    config = model.config.to_dict()
    batch = FAMILIES[place.family].inputs()
    with pytest.raises(VerificationError, match=r"undone again: .*logits: max \|Δ\| .*exclude=.*margin="):
        place.patch(model, activation=place.other, verify=batch)
    assert same_state(before, model)
    assert model.config.to_dict() == config
    assert torch.equal(place.out(model), own)
    report = place.patch(model, activation=place.other, verify=batch, margin=10.0)
    assert max(drift.largest for drift in report.drift) > 0
    assert not any(drift.exceeded for drift in report.drift)
    unpatch(model)
    assert same_state(before, model)


def test_a_margin_of_nothing_holds_a_patch_to_the_bits() -> None:
    assert patch(LLAMA.build(), verify=FAMILIES["llama"].inputs(), margin=0.0).drift
    model = GPT2.build()
    before = state(model)
    with pytest.raises(VerificationError, match="margin 0 of that"):
        patch(model, verify=FAMILIES["gpt2"].inputs(), margin=0.0)
    assert same_state(before, model)


def test_a_margin_without_a_batch_is_refused(gpt2: nn.Module) -> None:
    before = state(gpt2)
    with pytest.raises(PatchError, match="verify="):
        patch(gpt2, margin=0.1)
    assert same_state(before, gpt2)


def test_a_model_that_fails_on_the_batch_is_left_as_it_was(gpt2: nn.Module) -> None:
    before = state(gpt2)
    with pytest.raises(VerificationError, match=r"cannot run on the batch given as verify= \(IndexError: index out"):
        patch(gpt2, activation="silu", verify={"input_ids": torch.tensor([[1000]])})  # before the patch
    assert same_state(before, gpt2)
    assert gpt2.config.activation_function == "gelu_new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_model_that_fails_once_patched_is_left_as_it_was(gpt2: nn.Module, error: type[BaseException]) -> None:
    def failing(_: Tensor) -> Tensor:
        raise error("no more")

    before = state(gpt2)
    register_implementation(Implementation("failing", {"gelu_tanh": failing}))
    try:
        with pytest.raises(error, match="no more"):
            patch(gpt2, implementation="failing", verify=FAMILIES["gpt2"].inputs())
    finally:
        del IMPLEMENTATIONS["failing"]
    assert same_state(before, gpt2)


@pytest.mark.parametrize("place", [BERT, LLAMA, T5, GPT2], ids=lambda place: place.family)
def test_verified_in_training_mode_with_dropout(place: Place) -> None:
    """The same random numbers are drawn before and after, and the user's are left alone."""
    model = place.build(dropout=0.3).train()
    generator = torch.get_rng_state()
    report = place.patch(model, verify=FAMILIES[place.family].inputs())
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training
    logits = next(drift for drift in report.drift if drift.output == "logits")
    assert logits.largest <= (0.0 if place.identical else 1e-4 * logits.scale)
    first, second = place.out(model), place.out(model)
    assert place is LLAMA or not torch.equal(first, second)  # there was some to draw


def test_patched_verifies_too(gpt2: nn.Module) -> None:
    before = state(gpt2)
    with patched(gpt2, verify=FAMILIES["gpt2"].inputs()) as report:
        assert report.drift
    with (
        pytest.raises(VerificationError),
        patched(gpt2, activation="relu", verify=FAMILIES["gpt2"].inputs(), margin=1e-6),
    ):
        raise AssertionError("never reached")
    assert same_state(before, gpt2)


# torch.compile


_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_SMALL = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 64,
    "num_hidden_layers": 1,
}
_DECODER = {**_SMALL, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32, **_TOKENS}
_T = transformers
COMPILED: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "gemma2": lambda: _T.Gemma2ForCausalLM(_T.Gemma2Config(**_DECODER)),
    "modernbert": lambda: _T.ModernBertForMaskedLM(
        _T.ModernBertConfig(**_SMALL, max_position_embeddings=32, cls_token_id=0, sep_token_id=1, **_TOKENS)
    ),
    "phi3": lambda: _T.Phi3ForCausalLM(_T.Phi3Config(**_DECODER)),
    "whisper": lambda: _T.WhisperForConditionalGeneration(
        _T.WhisperConfig(
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            vocab_size=64,
            num_mel_bins=8,
            max_source_positions=10,
            max_target_positions=16,
            decoder_start_token_id=3,
            **_TOKENS,
        )
    ),
    "mixtral": lambda: _T.MixtralForCausalLM(_T.MixtralConfig(**_DECODER, num_local_experts=2, num_experts_per_tok=1)),
}


def batch_for(model: nn.Module, size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(size)
    ids = torch.randint(3, 64, (size, 9), generator=generator)
    if isinstance(model, transformers.WhisperForConditionalGeneration):
        return {"input_features": torch.randn(size, 8, 20, generator=generator), "decoder_input_ids": ids[:, :5]}
    return {"input_ids": ids}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_without_graph_breaks_or_more_recompiles(name: str) -> None:
    """Beside the families of test_models."""
    if name == "mixtral":
        pytest.importorskip("transformers.integrations.moe")  # before it, Mixtral does not compile whole
    torch.manual_seed(0)
    model = COMPILED[name]().eval()
    batches = [of_any_size(batch_for(model, 2)), batch_for(model, 5)]
    with counted_compiles() as counts, torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        own = [compiled(**batch)[0] for batch in batches]
        graphs = counts()["graphs"]
        assert counts() == {"graphs": graphs}
        assert graphs == 1 or transformers.__version__.startswith("4.")  # whose ModernBERT takes one for each size
        report = patch(model)
        assert report.changed
        assert all(site.fused for site in report.changed if site.kind != "pointwise")
        new = [compiled(**batch)[0] for batch in batches]
        made = counts()["graphs"]
        assert counts() == {"graphs": made}
        assert graphs < made <= 2 * graphs
    for one, expected in zip(new, own, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, as it traces
@pytest.mark.parametrize("place", marked(GPT2, LLAMA, *BY_CPP[::2]))
def test_layers_compiled_one_by_one(place: Place) -> None:
    """Each layer's forward is bound on the layer: Dynamo must not take each for new code."""
    model = with_layers(FAMILIES[place.family], 10).build()  # beyond Dynamo's limit of recompiles
    layers = model.transformer.h if place.family == "gpt2" else model.model.layers

    def run(model: nn.Module) -> Tensor:
        return model(**FAMILIES[place.family].inputs(), use_cache=False)[0]

    def outcome() -> tuple[dict[str, int], Tensor, dict[str, Tensor]]:
        with counted_compiles() as counts:
            for layer in layers:
                layer.compile(fullgraph=True, backend="eager")
            with torch.no_grad():
                output = run(model)
            found = gradients(model, run)
            made = counts()
        for layer in layers:
            layer._compiled_call_impl = None
        return made, output, found

    own_made, own, wanted = outcome()
    place.patch(model)
    made, new, got = outcome()
    assert made == own_made
    assert made["graphs"] <= 2  # without gradients, and with
    place.close(new, own)
    close_gradients(got, wanted, identical=False)


@pytest.mark.slow
@pytest.mark.parametrize("place", [BERT, LLAMA], ids=lambda place: place.family)
def test_compiled_training(place: Place) -> None:
    model = with_layers(FAMILIES[place.family], 1).build()
    own = gradients(model, place.run)
    with counted_compiles(), place.patched(model):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        new = gradients(model, lambda _: place.run(compiled))
    close_gradients(new, own, identical=False)


@pytest.mark.slow
def test_patched_and_unpatched_while_compiled() -> None:
    model = with_layers(FAMILIES["llama"], 1).build()
    with counted_compiles() as counts:
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        own = LLAMA.out(compiled)
        with patched(model):
            assert torch.equal(LLAMA.out(compiled), own)
        with patched(model, activation="relu"):
            assert not torch.equal(LLAMA.out(compiled), own)
            assert torch.equal(LLAMA.out(compiled), LLAMA.out(model))
        assert torch.equal(LLAMA.out(compiled), own)
        with patched(model):
            assert torch.equal(LLAMA.out(compiled), own)
        assert counts()["graphs"] <= 4  # each state once, or a known one anew
