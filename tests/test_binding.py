"""What a patched module is to others: its class, its copies and replicas, who holds its methods, what undo reaches."""

from __future__ import annotations

import abc
import asyncio
import copy
import functools
import gc
import importlib
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any, Generic, Protocol, TypeVar

import dill
import pytest
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from accelerate.utils import compile_regions
from conftest import FAMILIES, Family
from test_models import same_state, state
from test_wrappers import pickled, saved_and_loaded
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, parametrize

from hf_gelu_patch import NothingPatchedWarning, PatchError, explain, find_sites, patch, patched, unpatch
from hf_gelu_patch.recomputing import held


@pytest.fixture(params=["bert", "gpt2", "t5-v1.1", "llama", "opt"])
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def out(family: Family, model: nn.Module) -> Tensor:
    with torch.no_grad():
        return family.run(model)


# Copies and replicas compute with their own weights


def replica(model: nn.Module, weight: Callable[[Tensor], Tensor]) -> nn.Module:
    """What ``torch.nn.parallel.replicate`` does, with other weights in the place of copies on another device."""
    modules = list(model.modules())
    made = {module: module._replicate_for_data_parallel() for module in modules}
    for module, copied in made.items():
        for key, child in module._modules.items():
            copied._modules[key] = None if child is None else made[child]
        for key, one in module._parameters.items():
            setattr(copied, key, None if one is None else weight(one.detach()))
        for key, buffer in module._buffers.items():
            copied._buffers[key] = buffer
    return made[model]


@pytest.mark.parametrize("activation", [None, "relu6"])
def test_replicas_of_a_patched_model_compute_with_their_own_weights(family: Family, activation: str | None) -> None:
    model = family.build()
    with patched(model, activation=activation):
        other = copy.deepcopy(model)
        for weight in other.parameters():
            weight.data.mul_(0.5)
        expected = out(family, other)
        assert not torch.allclose(expected, out(family, model))
        assert torch.equal(out(family, replica(model, lambda one: one * 0.5)), expected)


def test_a_shallow_copy_computes_with_the_layers_it_holds() -> None:
    llama = FAMILIES["llama"].build()
    for activation in (None, "relu6"):
        with patched(llama, activation=activation):
            mlp = llama.model.layers[0].mlp
            twin = copy.copy(mlp)
            twin._modules = dict(twin._modules)
            twin.gate_proj = copy.deepcopy(mlp.gate_proj)
            twin.gate_proj.weight.data.mul_(-1.0)
            x = torch.randn(3, mlp.gate_proj.in_features)
            expected = twin.down_proj(mlp.act_fn(twin.gate_proj(x)) * twin.up_proj(x))
            assert torch.equal(twin(x), expected)
            assert not torch.allclose(twin(x), mlp(x))


def through_dill(model: nn.Module) -> nn.Module:
    """dill takes along all globals of transformers' decorators. Where a test has compiled a model, Dynamo has left
    things among them that no pickle takes, such as the modules of other tests."""
    torch._dynamo.reset()
    gc.collect()
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.") and module is not None:
            for left in [key for key in vars(module) if key.startswith("__import_")]:
                delattr(module, left)
    return dill.loads(dill.dumps(model))


@pytest.mark.parametrize("activation", [None, "relu6"])
@pytest.mark.parametrize("through", [pickled, saved_and_loaded, through_dill, copy.deepcopy])
def test_a_copy_is_undone_alone(through: Callable[[nn.Module], nn.Module], activation: str | None) -> None:
    config = transformers.DistilBertConfig(dim=8, hidden_dim=16, n_layers=1, n_heads=2, vocab_size=20)
    torch.manual_seed(0)
    model = transformers.DistilBertForSequenceClassification(config).eval()  # nn.ReLU() and F.gelu in its forwards
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        own = model(ids).logits
        patch(model, activation=activation)
        new = model(ids).logits
        twin = through(model)
        assert torch.equal(twin(ids).logits, new)
        unpatch(twin)
        assert torch.equal(twin(ids).logits, own)
        assert torch.equal(model(ids).logits, new)
        twin.load_state_dict({name: value * 0.5 for name, value in model.state_dict().items()})
        assert not torch.equal(twin(ids).logits, own)
        unpatch(model)
        assert torch.equal(model(ids).logits, own)


def test_the_layers_of_an_unpickled_model_share_their_class() -> None:  # or torch.compile would compile each anew
    model = FAMILIES["llama"].build()
    patch(model)
    twin = pickled(model)
    assert type(twin.model.layers[0].mlp) is type(twin.model.layers[1].mlp)


@pytest.mark.parametrize("activation", [None, "relu6"])
def test_weights_are_freed_by_del_alone(family: Family, activation: str | None) -> None:
    model = family.build()
    out(family, model)
    patch(model, activation=activation)
    out(family, model)
    gc.collect()
    gc.disable()
    try:
        weights = {name: weakref.ref(weight) for name, weight in model.named_parameters()}
        del model
        assert [name for name, weight in weights.items() if weight() is not None] == []
    finally:
        gc.enable()


# Whoever has taken hold of a rewritten forward


def compiled_whole(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def with_a_forward_of_its_own(model: nn.Module) -> nn.Module:
    def forward(x: Tensor) -> Tensor:
        return model.act(F.relu(model.linear(x)))

    model.forward = forward
    return model


def with_a_method_of_its_own(model: nn.Module) -> nn.Module:
    own = model.forward

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.act(own(x))

    model.forward = MethodType(forward, model)
    return model


def with_a_formula_of_its_own(model: nn.Module) -> nn.Module:
    def act(x: Tensor) -> Tensor:
        return x * torch.sigmoid(model.slope * x)

    model.slope = 1.702
    model.squash = act
    return model


@pytest.mark.parametrize(
    "change", [compiled_whole, with_a_forward_of_its_own, with_a_method_of_its_own, with_a_formula_of_its_own]
)
def test_what_was_read_keeps_no_model_alive(change: Callable[[nn.Module], nn.Module]) -> None:
    """Functions that a module carries close over it; what is known of functions is kept."""
    model = Owner(nn.ReLU())
    changed = change(model)
    with patched(changed, activation="silu"):
        pass
    weight = weakref.ref(model.linear.weight)
    del model, changed
    gc.collect()  # they refer to themselves
    assert weight() is None


@pytest.mark.parametrize(
    "wrap",
    [compiled_whole, lambda model: in_bf16().prepare(model), checkpoint_wrapper],
)
def test_a_method_that_a_wrapper_keeps_is_no_site_of_its_own(wrap: Callable[[nn.Module], nn.Module]) -> None:
    class Written(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(F.linear(x, self.weight))

    assert len(find_sites(wrap(Written(4, 4))).sites) == 1


class Head(nn.Module):
    """Activations by a call, by a module, and by a module made on the spot."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.SiLU()

    def forward(self, x: Tensor, *more: Tensor, scale: float = 1.0, **kept: Tensor) -> Tensor:
        """Doc."""
        y = F.gelu(self.a(x), approximate="tanh") + nn.ReLU()(self.b(x)) * scale
        return self.act(self.a(y)) * self.b(y) + sum(more) + sum(kept.values())


def hidden_in_a_closure(model: nn.Module) -> None:
    inner = model.forward
    model.forward = lambda *args, **kwargs: inner(*args, **kwargs)


def partially_applied(model: nn.Module) -> None:
    model.forward = functools.partial(type(model).forward, model)


def compiled(model: nn.Module) -> None:
    model.forward = torch.compile(model.forward, backend="eager")


def in_bf16() -> Accelerator:
    return Accelerator(cpu=True, mixed_precision="bf16")


def prepared(model: nn.Module) -> None:
    in_bf16().prepare(model)


def bound_again(model: nn.Module) -> None:
    model.forward = MethodType(type(model).forward, model)


WRAPS = [hidden_in_a_closure, partially_applied, compiled, prepared, bound_again]


@pytest.mark.parametrize("wrap", WRAPS, ids=lambda wrap: wrap.__name__)
def test_undoing_reaches_whoever_has_taken_hold_of_a_forward(wrap: Callable[[nn.Module], None]) -> None:
    torch.manual_seed(0)
    x, more = torch.randn(3, 4), {"third": torch.randn(3, 4)}

    def run(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model(x, x, scale=3.0, **more)

    never = Head()
    model = copy.deepcopy(never)
    wrap(never)
    own = run(never)
    patch(model, activation="relu6")
    wrap(model)
    assert not torch.allclose(run(model), own, atol=1e-2)
    unpatch(model)
    assert torch.equal(run(model), own)


def test_a_coroutine_and_a_generator_that_were_taken_hold_of() -> None:
    class Waiting(nn.Module):
        async def forward(self, x: Tensor) -> Tensor:
            return F.gelu(x)

    class Yielding(nn.Module):
        def forward(self, x: Tensor) -> Iterator[Tensor]:
            yield F.gelu(x)

    x = torch.randn(5)
    for model, run in (
        (Waiting(), lambda forward: asyncio.run(forward(x))),
        (Yielding(), lambda forward: next(iter(forward(x)))),
    ):
        patch(model, activation="relu")
        forward = model.forward
        assert torch.equal(run(forward), x.relu())
        unpatch(model)
        assert torch.equal(run(forward), F.gelu(x))


def test_a_forward_that_comes_back_from_a_wrapper_is_the_classs_own() -> None:
    torch.manual_seed(0)
    never, x = Head(), torch.randn(3, 4)
    model = copy.deepcopy(never)
    patch(model, activation="relu6")
    accelerator = in_bf16()
    wrapped = accelerator.prepare(model)
    unpatch(wrapped)
    model = accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    assert torch.equal(model(x), never(x))
    assert str(find_sites(model, activation="silu")) == str(find_sites(never, activation="silu"))
    patch(model, activation="silu")
    patch(never, activation="silu")
    assert torch.equal(model(x), never(x))
    twice = accelerator.unwrap_model(accelerator.prepare(model), keep_fp32_wrapper=False)
    assert torch.equal(twice(x), never(x))
    unpatch(twice)
    unpatch(never)
    assert torch.equal(twice(x), never(x))


def test_what_others_put_on_a_swapped_activation_stays_with_the_original() -> None:
    model = Owner(nn.GELU("tanh"))
    patch(model, activation="silu")
    model.act.marked_by_a_tool = mark = object()
    unpatch(model)
    assert model.act.marked_by_a_tool is mark
    assert model.act.approximate == "tanh"
    assert not [name for name in vars(model.act) if "gelu_patch" in name]


def test_explain_says_where_another_forward_runs_since() -> None:
    model = nn.Sequential(Head(), Head())
    patch(model, activation="relu6")
    assert "not run" not in explain(model)
    model[1].forward = MethodType(lambda self, x: self.a(x), model[1])
    text = explain(model)
    assert text.count("patched on 1 module\n") == 1
    assert text.count("patched on 1 module; not run: another forward is bound there since\n") == 1


def by_a_class(model: nn.Module) -> None:
    for name in ("0", "1"):
        model._modules[name].forward = MethodType(lambda self, x: F.silu(self.a(x)) * self.b(x), model._modules[name])


def by_a_function(model: nn.Module) -> None:
    def forward(x: Tensor) -> Tensor:
        return x

    for module in model:
        module.forward = forward


def by_a_class_with_state(model: nn.Module) -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten.mul(self.a(x), 2.0)

    for module in model:
        module.forward = Other.forward.__get__(module)


@pytest.mark.parametrize("carry", [by_a_class, by_a_function, by_a_class_with_state], ids=lambda f: f.__name__)
def test_modules_that_carry_another_forward_are_left_alone(carry: Callable[[nn.Module], None]) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.a(x)) * self.b(x)

    model = nn.Sequential(Gated(), Gated())
    carry(model)
    x = torch.randn(3, 4)
    own = model(x)
    sites = [site for site in find_sites(model, activation="relu").sites if site.path.endswith(".act")]
    assert [site.reason for site in sites] == ["another forward is bound on this Gated"] * 2
    assert torch.equal(model(x), own)


# Classes


def test_a_class_that_keeps_a_register_of_its_subclasses_hears_of_none() -> None:
    register: dict[str, type] = {}

    class Base(nn.Module):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            register[cls.__name__] = cls

    class Layer(Base):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(x)

    model = Layer()
    with patched(model, activation="relu"):
        assert register == {"Layer": Layer}
        assert isinstance(model, Layer)
        assert type(model).__name__ == "Layer"


class Named:
    name = "a name"


class Slotted(nn.Module):
    __slots__ = ("extra",)


class Shaped(Protocol):
    shape: int


@pytest.mark.parametrize(
    "bases",
    [(abc.ABC, nn.Module), (Generic[TypeVar("T")], nn.Module), (Named, nn.Module), (Shaped, nn.Module), (Slotted,)],
    ids=["ABC", "Generic", "a mixin", "Protocol", "__slots__"],
)
def test_a_class_with_another_base_before_module(bases: tuple[Any, ...]) -> None:
    """Python lays its instances out in another way: sentence-transformers' modules are such."""

    def fill(members: dict[str, Any]) -> None:
        def __init__(self: Any) -> None:  # noqa: N807
            nn.Module.__init__(self)
            self.linear, self.act = nn.Linear(4, 4), nn.ReLU()

        def forward(self: Any, x: Tensor) -> Tensor:
            return self.act(self.linear(x))

        members.update(__init__=__init__, forward=forward, __module__=__name__)

    cls = types.new_class("Other", bases, {}, fill)
    model, x = cls(), torch.randn(3, 4)
    own = model(x)
    report = patch(model, activation="silu")
    assert report.changed[0].fused
    assert torch.equal(model(x), F.silu(model.linear(x)))
    assert isinstance(model, cls)
    unpatch(model)
    assert type(model) is cls
    assert torch.equal(model(x), own)


def test_an_abstract_base_class() -> None:
    class Base(nn.Module, abc.ABC):
        @abc.abstractmethod
        def forward(self, x: Tensor) -> Tensor: ...

    class Layer(Base):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(x)

    class Other(Base):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model, x = Layer(), torch.randn(5)
    patch(model, activation="relu")
    assert torch.equal(model(x), x.relu())
    assert not isinstance(Layer(), type(model))
    assert not isinstance(Other(), type(model))
    assert isinstance(Layer(), Layer)
    assert isinstance(Other(), Other)
    unpatch(model)
    assert torch.equal(model(x), F.gelu(x))
    assert type(model) is Layer


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_parametrization_goes_on_and_comes_off(when: str) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(x @ self.weight)

    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * 2

    model, x = Layer(), torch.randn(3, 4)
    weight = model.weight.detach().clone()
    if when == "before":
        parametrize.register_parametrization(model, "weight", Doubled())
    patch(model, activation="relu")
    if when == "after":
        parametrize.register_parametrization(model, "weight", Doubled())
    assert torch.equal(model(x), (x @ (weight * 2)).relu())
    unpatch(model)
    assert torch.equal(model(x), F.gelu(x @ (weight * 2)))
    patch(model, activation="relu")
    parametrize.remove_parametrizations(model, "weight", leave_parametrized=False)
    assert torch.equal(model(x), (x @ weight).relu())
    unpatch(model)
    assert torch.equal(model(x), F.gelu(x @ weight))
    assert type(model) is Layer


def test_weight_norm_on_a_layer_beside_it() -> None:
    model, x = Head(), torch.randn(3, 4)
    parametrizations.weight_norm(model.a)
    own = model(x)
    before = state(model)
    with patched(model, activation="relu"):
        assert not torch.equal(model(x), own)
    assert torch.equal(model(x), own)
    assert same_state(before, model)


def registered() -> type:
    """A metaclass that makes one class of each name."""
    seen: set[str] = set()

    class Registered(type):
        def __new__(cls, name: str, bases: Any, members: Any) -> Any:
            if name in seen:
                raise KeyError(f"{name} is taken\nby another class")
            seen.add(name)
            return super().__new__(cls, name, bases, members)

    return Registered


def with_keywords() -> Callable[..., type]:
    """A metaclass that each class has to give a keyword."""

    class Tagged(type):
        def __new__(cls, name: str, bases: Any, members: Any, *, tag: str) -> Any:
            return super().__new__(cls, name, bases, {**members, "tag": tag})

        def __init__(cls, name: str, bases: Any, members: Any, **_: str) -> None:
            super().__init__(name, bases, members)

    return functools.partial(Tagged, tag="gelu")


def complete() -> type:
    """A metaclass of which each class has all its methods itself."""

    class Complete(type):
        def __init__(cls, name: str, bases: Any, members: Any) -> None:
            if "__init__" not in members:
                raise RuntimeError(f"{name} has no __init__")
            super().__init__(name, bases, members)

    return Complete


@pytest.mark.parametrize("metaclass", [registered, with_keywords, complete])
def test_a_metaclass_that_lets_no_class_be_derived_is_named_and_nothing_is_changed(
    metaclass: Callable[[], Callable[..., Any]],
) -> None:
    class Stubborn(nn.Module, metaclass=metaclass()):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.SiLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.gate(x)) * self.up(x)

    model = nn.Sequential(Head(), Stubborn(), nn.ReLU())
    before = state(model)
    with pytest.raises(PatchError, match=r"no class can be derived from \S+Stubborn \(\w+: .*\): exclude='Stubborn'"):
        patch(model, activation="relu6")
    assert same_state(before, model)
    report = patch(model, activation="relu6", exclude="Stubborn")
    assert {site.owner for site in report.changed} == {"Head", "Sequential"}


def test_a_class_that_cannot_be_made_again_is_named_and_nothing_is_undone() -> None:
    class Stubborn(type):
        made = False

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            if cls.made:
                raise RuntimeError("one class of mine is enough")
            return super().__new__(cls, *args, **kwargs)

    model = nn.Sequential(Head(), Head())
    patch(model, activation="relu6")
    x = torch.randn(3, 4)
    new = model(x)

    class Meta(Stubborn, type(type(model[1]))):
        pass

    class Over(type(model[1]), metaclass=Meta):  # type: ignore[misc]
        pass

    model[1].__class__ = Over
    Stubborn.made = True
    with pytest.raises(PatchError, match=r"Over was put over a patched Head and is in the way of unpatch: take it off"):
        unpatch(model)
    assert torch.equal(model(x), new)
    model[1].__class__ = Over.__bases__[0]
    unpatch(model)
    assert type(model[0]) is type(model[1]) is Head


# Activations stay what they are


@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.LeakyReLU(0.2), nn.Mish()])
def test_a_patch_that_keeps_the_function_keeps_the_module(act: nn.Module) -> None:
    for model, place in ((nn.Sequential(nn.Linear(4, 4), act, nn.LayerNorm(4)), "1"), (Owner(act), "act")):
        before, x = state(model), torch.randn(3, 4)
        own = model(x)
        attributes = dict(vars(act))
        patch(model, implementation="aten")
        assert model.get_submodule(place) is act
        assert vars(act) == attributes
        torch.testing.assert_close(model(x), own)
        unpatch(model)
        assert same_state(before, model)


class Owner(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(4, 4), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


@pytest.mark.parametrize("target", ["silu", "relu", "gelu_new", "quick_gelu", "mish", "elu", "relu2", "hardswish"])
def test_what_a_swap_puts_in_place_is_saved_under_a_name_that_computes_it(target: str) -> None:
    """sentence-transformers writes an activation's class to its config, and makes one by that name when it loads."""
    model = Owner(nn.GELU())
    patch(model, activation=target)
    cls = type(model.act)
    again = getattr(importlib.import_module(cls.__module__), cls.__qualname__)()
    x = torch.linspace(-5, 5, 101)
    torch.testing.assert_close(again(x), model.act(x))
    assert isinstance(model.act, type(again))
    assert type(model.act) is not type(again)
    unpatch(model)
    assert type(model.act) is nn.GELU


def marked(module: nn.Module) -> None:
    module._is_managed = True


def rebound(module: nn.Module) -> None:
    """As nnsight and others do it."""
    own = module.forward

    def watched(x: Tensor) -> Tensor:
        return own(x)

    module.forward = watched


def compiled_forward(module: nn.Module) -> None:
    module.forward = torch.compile(module.forward, backend="eager")


class Controller:
    """A callable that passes for what it calls, as nnsight's does."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


def controlled(module: nn.Module) -> None:
    module.forward = Controller(module.forward)


def partially(module: nn.Module) -> None:
    module.forward = functools.partial(module.forward)


@pytest.mark.parametrize("act", [nn.ReLU(), transformers.activations.NewGELUActivation(), nn.SiLU()])
def test_marks_that_others_put_on_what_a_swap_put_in_place_are_the_originals_afterwards(act: nn.Module) -> None:
    own = copy.deepcopy(act)
    model = Owner(own)
    before = {*vars(own)}
    patch(model, activation="gelu")
    assert model.act is not own
    marked(model.act)
    unpatch(model)
    assert model.act is own
    assert vars(own).keys() - before == {"_is_managed"}
    assert type(own) is type(act)


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (rebound, "rebound.<locals>.watched"),
        (compiled_forward, "forward"),
        (partially, "functools.partial"),
        (controlled, "test_binding.Controller"),
    ],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, as it traces
def test_a_forward_over_that_of_what_a_swap_put_in_place_is_named(
    wrap: Callable[[nn.Module], None], named: str
) -> None:
    model, x = Owner(nn.ReLU()), torch.randn(3, 4)
    own = model(x)
    patch(model, activation="silu")
    wrap(model.act)
    swapped, before = model(x), state(model)
    with pytest.raises(PatchError, match=f"{named} was put over the forward of a SiLU .*take it off first"):
        unpatch(model)
    assert same_state(before, model)
    assert torch.equal(model(x), swapped)
    del model.act.forward
    unpatch(model)
    assert torch.equal(model(x), own)
    assert type(model.act) is nn.ReLU


def test_an_activation_that_is_replaced_after_the_patch_is_heeded() -> None:
    x = torch.randn(3, 4)
    for other in (nn.Tanh(), nn.GELU("tanh"), nn.LeakyReLU(0.5)):
        for model in (Owner(nn.GELU()), Owner(nn.LeakyReLU(0.1))):
            patch(model, implementation="aten")
            model.act = other
            assert torch.equal(model(x), other(model.linear(x)))
            unpatch(model)
            assert model.act is other
    leaky = Owner(nn.LeakyReLU(0.1))
    patch(leaky, implementation="aten")
    leaky.act.negative_slope = 0.7
    assert torch.equal(leaky(x), F.leaky_relu(leaky.linear(x), 0.7))


def test_a_swap_in_one_model_leaves_the_other_that_shares_its_activation() -> None:
    act = transformers.activations.NewGELUActivation()
    first, second = Owner(act), Owner(act)
    x = torch.randn(3, 4)
    own = second(x)
    for activation in (None, "relu"):
        with patched(first, activation=activation):
            assert torch.equal(second(x), own)
            assert second.act is act


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "quick_gelu", "relu2", "silu", "mish"])
@pytest.mark.parametrize("activation", [None, "quick_gelu", "relu2"])
def test_symbolically_traced(name: str, activation: str | None) -> None:
    model, x = Owner(transformers.activations.ACT2FN[name]), torch.randn(3, 4)
    torch.fx.symbolic_trace(model)
    if name == activation:
        return
    patch(model, activation=activation, implementation="aten")
    expected = model(x)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)


# A swap's config, through the wrappers of single layers


def regions(model: nn.Module) -> nn.Module:
    return compile_regions(model, backend="eager")


def layers_compiled(model: nn.Module) -> nn.Module:
    for key, layer in model.model.layers._modules.items():
        model.model.layers._modules[key] = torch.compile(layer, backend="eager")
    return model


def checkpointed(model: nn.Module) -> nn.Module:
    for key, layer in model.model.layers._modules.items():
        model.model.layers._modules[key] = checkpoint_wrapper(layer)
    return model


def parallel(model: nn.Module) -> nn.Module:
    model.model.layers[0].mlp = nn.DataParallel(model.model.layers[0].mlp)
    return model


@pytest.mark.parametrize("wrap", [regions, layers_compiled, checkpointed, parallel], ids=lambda wrap: wrap.__name__)
def test_the_config_follows_a_swap_through_wrappers_of_layers(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = wrap(FAMILIES["llama"].build())
    report = patch(model, activation="gelu")
    assert report.config == ("hidden_act: 'silu' → 'gelu'",)
    assert model.config.hidden_act == "gelu"
    unpatch(model)
    assert model.config.hidden_act == "silu"


# Gradient checkpointing


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_a_layer_whose_own_forward_is_rewritten_is_still_checkpointed() -> None:
    family = FAMILIES["opt"]  # its layers apply the activation themselves
    kept = {}
    for what in ("plain", "checkpointed", "both"):
        model = family.build().train()
        if what != "plain":
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if what == "both":
            assert patch(model, implementation="aten").changed
        kept[what] = sum(x.numel() for x in held(family.run(model)))
    assert kept["both"] == kept["checkpointed"] < kept["plain"] / 2


def test_what_zero_3_keeps_count_on_is_left_alone() -> None:
    model = FAMILIES["llama"].build()
    for module in model.modules():  # as deepspeed.initialize leaves them
        module.ds_id = 1
        module.register_forward_pre_hook(lambda module, _: setattr(module, "ds_grads_remaining", 0))
    for asked in ({}, {"recompute": True}, {"tiles": 2}):
        with pytest.warns(NothingPatchedWarning, match="ZeRO-3 keeps count on it: patch before"):
            assert not patch(model, **asked).changed  # type: ignore[arg-type]
