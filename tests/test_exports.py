"""What torch.jit.script, torch.fx, torch.export and torch.onnx.export make of a patched model: what they make of it
unpatched."""

from __future__ import annotations

import copy
import inspect
import io
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from transformers import BertConfig, GPT2Config, LlamaConfig, T5Config
from transformers.activations import ACT2FN
from transformers.models.bert.modeling_bert import BertIntermediate
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

from hf_gelu_patch import PatchError, patch, patched, unpatch


class FeedForward(nn.Module):
    """As timm and torchvision have it."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(8, 16), act, nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = self.act(x)
        return self.fc2(x)


class Written(nn.Module):
    """With the function in its forward, whose layer has names of the module's own, and an argument with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x))) * scale


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.act = nn.Linear(8, 8), nn.Linear(8, 8), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.gate(x)) * self.up(x)


SCRIPTABLE: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: FeedForward(nn.GELU()),
    "gelu_new": lambda: FeedForward(ACT2FN["gelu_new"]),
    "quick_gelu": lambda: FeedForward(ACT2FN["quick_gelu"]),
    "relu2": lambda: FeedForward(ACT2FN["relu2"]),
    "written": Written,
    "gated": Gated,
    "chain": lambda: nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.SiLU()),
    "below an unpatched root": lambda: nn.ModuleDict({"a": Gated(), "b": nn.Sequential(Gated(), nn.Tanh())})["b"],
}
BY_MODULES = [name for name in SCRIPTABLE if name != "written"]


def inputs() -> Tensor:
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def drift(one: Callable[[Tensor], Any], other: Callable[[Tensor], Any], x: Tensor) -> float:
    with torch.no_grad():
        return float((one(x) - other(x)).abs().max())


# torch.jit.script

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture(autouse=True)
def scripted_types_forgotten() -> Iterator[None]:
    """torch keeps what it has compiled of each class, and shares it among modules with the same attributes."""
    yield
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
    torch._C._jit_clear_class_registry()


@pytest.mark.parametrize("name", SCRIPTABLE)
def test_a_patched_module_is_scripted_as_an_unpatched_one(name: str) -> None:
    model = SCRIPTABLE[name]()
    own = copy.deepcopy(model)
    report = patch(model, implementation="aten")
    assert report.changed
    scripted = torch.jit.script(model)
    assert drift(scripted, model, inputs()) <= 1e-6
    unpatched = torch.jit.script(own)
    assert drift(scripted, unpatched, inputs()) == 0.0
    assert str(scripted.inlined_graph).count("aten::") == str(unpatched.inlined_graph).count("aten::")
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    assert drift(torch.jit.load(file), own, inputs()) == 0.0
    unpatch(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in own.modules()]


@pytest.mark.parametrize("name", BY_MODULES)
def test_a_swapped_module_is_scripted_as_it_computes(name: str) -> None:
    model = SCRIPTABLE[name]()
    own = copy.deepcopy(model)
    patch(model, activation="mish", include="*")
    scripted = torch.jit.script(model)
    assert drift(scripted, model, inputs()) <= 1e-6
    assert drift(scripted, own, inputs()) >= 1e-3


def test_a_hooked_activation_is_scripted_with_its_own_function() -> None:
    model = FeedForward(ACT2FN["gelu_new"])
    with torch.no_grad():
        expected = model(inputs())
    handle = model.act.register_forward_hook(lambda *_: None)
    patch(model, implementation="aten")
    handle.remove()
    assert torch.equal(torch.jit.script(model)(inputs()), expected)


def test_what_is_not_scriptable_says_so_and_what_to_do() -> None:
    model = nn.Sequential(Written(), nn.Linear(8, 8))
    with patched(model, activation="silu"):
        with pytest.raises(
            PatchError, match=r"a patched Written computes another function in forward.*unpatch\(model\)"
        ):
            torch.jit.script(model)
        traced = torch.jit.trace(model, (inputs(),))
        assert drift(traced, model, inputs()) <= 1e-6
    with patched(model, recompute=True), pytest.raises(PatchError, match=r"Written computes results again in backward"):
        torch.jit.script(model)
    in_place = FeedForward(nn.ReLU(inplace=True))
    with patched(in_place, activation="silu"), pytest.raises(PatchError, match=r"another function over its input"):
        torch.jit.script(in_place)
    torch.jit.script(model)


def test_scripting_leaves_the_patched_model_patched() -> None:
    model = nn.Sequential(FeedForward(nn.GELU()), Written())
    patch(model, implementation="aten")
    classes, children = [type(one) for one in model.modules()], list(model.modules())
    before = model(inputs())
    torch.jit.script(model)
    assert [type(one) for one in model.modules()] == classes
    assert all(one is other for one, other in zip(model.modules(), children, strict=True))
    assert torch.equal(model(inputs()), before)
    frame = inspect.unwrap(type(model[0]).forward)
    assert frame is FeedForward.forward
    copied = copy.deepcopy(model)
    unpatch(model)
    unpatch(copied)
    assert type(model[0]) is FeedForward
    assert type(copied[1]) is Written


class Prepared(FeedForward):
    def __prepare_scriptable__(self) -> nn.Module:
        return FeedForward(nn.Identity())


def test_a_models_own_preparation_for_scripting_is_made_as_ever() -> None:
    model = Prepared(nn.GELU())
    patch(model, implementation="aten")
    assert "Identity" in str(torch.jit.script(model))


@pytest.mark.parametrize(
    ("build", "width"),
    [
        (lambda: BertIntermediate(BertConfig(hidden_size=8, intermediate_size=16)), 8),
        (lambda: LlamaMLP(LlamaConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2)), 8),
        (lambda: T5DenseGatedActDense(T5Config(d_model=8, d_ff=16, dense_act_fn="gelu_new")), 8),
    ],
    ids=["BertIntermediate", "LlamaMLP", "T5DenseGatedActDense"],
)
def test_feed_forwards_of_transformers_are_scripted(build: Callable[[], nn.Module], width: int) -> None:
    model = build().eval()
    own = copy.deepcopy(model)
    patch(model, implementation="aten")
    assert drift(torch.jit.script(model), own, torch.randn(2, 3, width)) <= 1e-6


# torch.fx, torch.export


def steps_of(graph: fx.Graph) -> list[str]:
    """In no order: of a gated product, act(gate) and up may be computed one or the other first."""
    return sorted(f"{node.op} {node.target}" for node in graph.nodes)


TRACED: dict[str, Callable[[], nn.Module]] = {
    **SCRIPTABLE,
    "GPT2MLP": lambda: GPT2MLP(16, GPT2Config(n_embd=8)),
    "LlamaMLP": lambda: LlamaMLP(LlamaConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2)),
    "BertIntermediate": lambda: BertIntermediate(BertConfig(hidden_size=8, intermediate_size=16)),
}


def check_traced(model: nn.Module, patching: Callable[[nn.Module], object]) -> None:
    """torch.fx, torch.export and torch.jit.trace find the same operations before and after a patch."""
    model.eval()
    symbolic = steps_of(fx.symbolic_trace(model).graph)
    exported = steps_of(torch.export.export(model, (inputs(),), strict=False).graph)
    traced = sorted(node.kind() for node in torch.jit.trace(model, (inputs(),)).inlined_graph.nodes())
    patching(model)
    assert steps_of(fx.symbolic_trace(model).graph) == symbolic
    assert steps_of(torch.export.export(model, (inputs(),), strict=False).graph) == exported
    assert sorted(node.kind() for node in torch.jit.trace(model, (inputs(),)).inlined_graph.nodes()) == traced
    assert drift(fx.symbolic_trace(model), model, inputs()) <= 1e-6
    assert not any("hf_gelu_patch" in step for step in (*symbolic, *exported))


@pytest.mark.parametrize("name", TRACED)
def test_fx_and_export_see_what_they_see_unpatched(name: str) -> None:
    check_traced(TRACED[name](), lambda model: patch(model, implementation="aten", strict=True))


@pytest.mark.parametrize("name", ["gelu_new", "quick_gelu", "relu2", "GPT2MLP"])
def test_an_activation_that_another_stands_in_for_is_seen_as_it_was(name: str) -> None:
    """It has a hook when it is patched, so that a module takes its place. Of gelu_new that computes one operation, and
    an export shows the eight that runtimes know."""

    def patch_hooked(model: nn.Module) -> None:
        act = model.get_submodule("act")
        handle = act.register_forward_hook(lambda *_: None)
        patch(model, implementation="aten", strict=True)
        handle.remove()
        assert model.get_submodule("act") is not act

    check_traced(TRACED[name](), patch_hooked)


# torch.onnx.export

EXPORTED: dict[str, Callable[[], nn.Module]] = {
    "gelu": SCRIPTABLE["plain"],
    "gelu, behind a hook": SCRIPTABLE["gelu_new"],
    "written": Written,
    "gated": Gated,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("opset", [18, 22])
@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_has_the_nodes_that_it_has_unpatched(name: str, opset: int) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = EXPORTED[name]().eval()

    def exported() -> tuple[Counter[str], Tensor]:
        program = torch.onnx.export(model, (inputs(),), dynamo=True, verbose=False, opset_version=opset)
        assert program is not None
        file = io.BytesIO()
        program.save(file)
        session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        (y,) = session.run(None, {session.get_inputs()[0].name: inputs().numpy()})
        return Counter(node.op_type for node in program.model.graph), torch.from_numpy(y)

    with torch.no_grad():
        nodes, y = exported()
        handle = model.get_submodule("act").register_forward_hook(lambda *_: None) if "hook" in name else None
        patch(model, implementation="aten", strict=True)
        if handle is not None:
            handle.remove()
        after, patched_y = exported()
        assert after == nodes
        assert torch.equal(patched_y, y)
        assert float((y - model(inputs())).abs().max()) <= 1e-5
    if opset >= 20 and name in ("gelu", "written"):
        assert nodes["Gelu"] == 1
