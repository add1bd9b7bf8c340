"""The tracer on small modules where every execution is known, and what a patch does to models of many types."""

from __future__ import annotations

import inspect
import json
import math
import re
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import processes
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN, NewGELUActivation, QuickGELUActivation
from transformers.activations import gelu as library_gelu
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from hf_gelu_patch import IMPLEMENTATIONS, Implementation, find_sites, patch, unpatch
from scripts.covering import coverage
from scripts.covering.coverage import LARGEST_DRIFT, Coverage, cover
from scripts.covering.table import table, totals
from scripts.covering.tiny import TinyModel
from scripts.covering.tracing import Execution, trace

X = torch.linspace(-3.0, 3.0, 32).reshape(4, 8)


def here(owner: Callable[..., Any] | type, text: str) -> dict[str, Any]:
    """file and line of the one line of ``owner``'s source that has ``text``."""
    lines, first = inspect.getsourcelines(owner)
    (line,) = [first + number for number, line in enumerate(lines) if text in line]
    return {"file": __file__, "line": line}


def traced(model: nn.Module, *inputs: Tensor) -> list[Execution]:
    with torch.no_grad():
        return trace(lambda: model(*(inputs or (X.clone(),))), model)


def functions(model: nn.Module) -> list[str]:
    return [one.function for one in traced(model)]


def flags(model: nn.Module) -> list[tuple[str, bool, bool]]:
    return [(one.function, one.gated, one.linear) for one in traced(model)]


class Model(nn.Module):
    """A module around a function of itself and x."""

    def __init__(self, function: Callable[..., object], **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(8, 8, bias=False)
        self.up_proj = nn.Linear(8, 8, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act_fn(self.gate_proj(x)) * self.up_proj(x)


class Intermediate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 8)
        self.activation = NewGELUActivation()

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(x)
        return self.activation(x)


def gate_site(owner: str = "", module: str = "act_fn") -> Execution:
    return Execution("silu", module, owner, True, True, **here(Gated, "self.act_fn("), gated=True)


def test_a_gated_product() -> None:
    assert traced(Gated()) == [gate_site()]


def test_behind_a_linear_layer() -> None:
    expected = Execution(
        "gelu_tanh", "0.activation", "0", True, True, **here(Intermediate, "self.activation(x)"), linear=True
    )
    assert traced(nn.Sequential(Intermediate())) == [expected]


LINEAR = nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("function", "linear"),
    [
        pytest.param(lambda self, x: self.act(self.dense(x)), True, id="linear"),
        pytest.param(lambda self, x: F.gelu(F.linear(x, self.dense.weight, self.dense.bias)), True, id="functional"),
        pytest.param(lambda self, x: F.gelu(F.linear(x, self.dense.weight)), False, id="without bias"),
        pytest.param(lambda self, x: self.act(self.conv1d(x)), True, id="Conv1D"),
        pytest.param(lambda self, x: self.act(self.conv1d(x[None])), True, id="Conv1D, 3-D"),
        pytest.param(lambda self, x: self.act(self.dropout(self.dense(x))), False, id="dropout between"),
        pytest.param(lambda self, x: self.act(self.identity(self.dense(x))), False, id="identity between"),
        pytest.param(lambda self, x: self.act(self.dense(x).float()), False, id="cast between"),
        pytest.param(lambda self, x: self.act(self.dense(x).view(-1)), False, id="view between"),
        pytest.param(lambda self, x: self.act(x), False, id="input"),
        pytest.param(lambda self, x: [self.act(h := self.dense(x)), h + 1], False, id="read again"),
        pytest.param(lambda self, x: [h := self.dense(x), self.act(h)], False, id="returned"),
        pytest.param(lambda self, x: self.act(self.dense(x).relu_()), False, id="another's in between"),
    ],
)
def test_directly_behind_a_linear_layer_and_nothing_else_reads_it(
    function: Callable[..., object], linear: bool
) -> None:
    model = Model(
        function,
        dense=nn.Linear(8, 8),
        conv1d=Conv1D(8, 8),
        act=nn.GELU(),
        dropout=nn.Dropout(),
        identity=nn.Identity(),
    )
    assert traced(model.eval())[-1].linear is linear


def test_shapes_and_types_are_not_reading() -> None:
    def function(self: Any, x: Tensor) -> Tensor:
        h = self.dense(x)
        assert h.shape == x.shape
        assert h.size(0) == 4
        assert h.dtype == torch.float32
        assert h.is_floating_point()
        y = F.gelu(h)
        assert y.dim() == 2
        return y * x

    assert flags(Model(function, dense=nn.Linear(8, 8))) == [("gelu", True, True)]


@pytest.mark.parametrize(
    ("function", "gated"),
    [
        pytest.param(lambda x: F.silu(x) * X, True, id="left"),
        pytest.param(lambda x: X * F.silu(x), True, id="right"),
        pytest.param(lambda x: X.clone().mul_(F.silu(x)), True, id="in place"),
        pytest.param(lambda x: torch.mul(F.silu(x), X), True, id="torch.mul"),
        pytest.param(lambda x: F.silu(x) * (X + 1), True, id="up + 1"),
        pytest.param(lambda x: F.silu(x) * 2.0, False, id="number"),
        pytest.param(lambda x: F.silu(x) * X[:1], False, id="broadcast"),
        pytest.param(lambda x: F.silu(x) * torch.tensor(2.0), False, id="scalar tensor"),
        pytest.param(lambda x: F.silu(x.sum()) * x.mean(), False, id="two scalars"),
        pytest.param(lambda x: F.silu(x) + X, False, id="sum"),
        pytest.param(lambda x: F.dropout(F.silu(x), training=False) * X, False, id="dropout between"),
        pytest.param(lambda x: F.silu(x).view(32) * X.view(32), False, id="view between"),
        pytest.param(lambda x: [h := F.silu(x), h * h], False, id="square"),
        pytest.param(lambda x: [h := F.silu(x), h + 1, h * X], False, id="something else first"),
        pytest.param(lambda x: [h := F.silu(x), h * X, h + 1], True, id="something else later"),
    ],
)
def test_gated_is_the_first_thing_done_with_the_output(function: Callable[[Tensor], object], gated: bool) -> None:
    assert flags(Model(lambda _, x: function(x))) == [("silu", gated, False)]


def test_a_product_of_two_activations_is_one_gate() -> None:
    assert flags(Model(lambda _, x: torch.tanh(x) * torch.sigmoid(x + 1))) == [
        ("tanh", True, False),
        ("sigmoid", False, False),
    ]


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.convolution(x))
        return torch.relu(
            x,
        )


def test_calls_written_in_a_forward() -> None:
    assert traced(nn.ModuleDict({"stem": Written()})["stem"]) == [
        Execution("gelu", "", "", False, False, **here(Written, "F.gelu(")),
        Execution("relu", "", "", False, False, **here(Written, "torch.relu(")),
    ]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (F.gelu, "gelu"),
        (lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh"),
        (F.silu, "silu"),
        (F.relu, "relu"),
        (torch.relu, "relu"),
        (Tensor.relu, "relu"),
        (F.relu6, "relu6"),
        (F.leaky_relu, "leaky_relu"),
        (F.elu, "elu"),
        (F.mish, "mish"),
        (F.hardswish, "hardswish"),
        (torch.sigmoid, "sigmoid"),
        (Tensor.sigmoid, "sigmoid"),
        (F.sigmoid, "sigmoid"),
        (torch.special.expit, "sigmoid"),
        (torch.tanh, "tanh"),
        (Tensor.tanh, "tanh"),
        (F.tanh, "tanh"),
        (lambda x: F.prelu(x, torch.tensor([0.25])), "prelu"),
        (lambda x: F.silu(x, inplace=True), "silu"),
        (lambda x: F.relu(x, inplace=True), "relu"),
        (lambda x: F.mish(x, inplace=True), "mish"),
        (torch.relu_, "relu"),
        (F.elu_, "elu"),
        (Tensor.sigmoid_, "sigmoid"),
        (Tensor.tanh_, "tanh"),
        (torch.ops.aten.gelu_, "gelu"),
    ],
)
def test_every_spelling_of_a_call_is_one_execution(function: Callable[[Tensor], Tensor], name: str) -> None:
    assert functions(Model(lambda _, x: function(x.clone()))) == [name]


@pytest.mark.parametrize(
    "model",
    [
        Model(lambda _, x: [F.softplus(x), F.glu(x), x.softmax(-1), F.logsigmoid(x), F.hardsigmoid(x), torch.erf(x)]),
        nn.LSTM(8, 4),
        nn.GLU(),
        nn.MultiheadAttention(8, 2),
        nn.TransformerEncoderLayer(8, 2, 8, batch_first=True),
        nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, activation="gelu").eval(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_is_not_counted(model: nn.Module) -> None:
    inputs = (X, X, X) if isinstance(model, nn.MultiheadAttention) else (X[None],)
    assert traced(model, *inputs) == []


def erf_gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x * torch.sigmoid(1.702 * x), "quick_gelu"),
        (lambda x: x * torch.sigmoid(x * 1.702), "quick_gelu"),
        (lambda x: x * x.sigmoid(), "silu"),
        (lambda x: x * (1.702 * x).sigmoid_(), "quick_gelu"),
        (lambda x: torch.sigmoid(x) * x, "silu"),
        (erf_gelu, "gelu"),
        (lambda x: 0.5 * (x * (1 + torch.erf(x * 0.7071067811865476))), "gelu"),
        (lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3))), "gelu_tanh"),
        (lambda x: x * torch.tanh(F.softplus(x)), "mish"),
        (lambda x: x * torch.sigmoid(x + 1), "sigmoid"),
        (lambda x: x * torch.sigmoid(-x), "sigmoid"),
        (lambda x: (x + 1) * torch.sigmoid(x), "sigmoid"),
        (lambda x: x * torch.sigmoid(x.clone()), "sigmoid"),
        (lambda x: x * torch.tanh(x), "tanh"),
    ],
)
def test_activations_written_out(function: Callable[[Tensor], Tensor], name: str) -> None:
    (execution,) = traced(Model(lambda _, x: function(x)))
    assert execution.function == name
    assert execution.gated is (name in ("sigmoid", "tanh"))  # its product is its own, not a gate's


def test_written_out_behind_a_linear_layer_and_gated() -> None:
    def function(self: Any, x: Tensor) -> Tensor:
        h = self.dense(x)
        return h * torch.sigmoid(1.702 * h) * x

    assert flags(Model(function, dense=nn.Linear(8, 8))) == [("quick_gelu", True, True)]

    def leaking(self: Any, x: Tensor) -> Tensor:
        h = self.dense(x)
        return h * torch.sigmoid(1.702 * h) + h

    assert flags(Model(leaking, dense=nn.Linear(8, 8))) == [("quick_gelu", False, False)]


def test_a_gate_that_meets_its_own_input_later_is_a_gate() -> None:
    assert flags(Model(lambda _, x: [s := torch.sigmoid(x), s * X, s * x])) == [("sigmoid", True, False)]


def test_tensors_that_are_gone_are_not_taken_for_others() -> None:
    def function(self: Any, x: Tensor) -> list[Tensor]:
        for _ in range(10):
            F.silu(x)
            self.dense(x)
        return [F.gelu(x + 1) for _ in range(10)] + [(x + 1) * (x + 2) for _ in range(10)]

    expected = [("silu", False, False)] * 10 + [("gelu", False, False)] * 10
    assert flags(Model(function, dense=nn.Linear(8, 8))) == expected


class Head(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return erf_gelu(x.contiguous())  # which makes it more than an activation


def test_a_function_between_the_owner_and_the_op() -> None:
    through = ((__file__, here(erf_gelu, "torch.erf(")["line"]),)
    assert traced(nn.Sequential(Head())) == [
        Execution("gelu", "0", "0", False, False, **here(Head, "erf_gelu(x.contiguous())"), through=through)
    ]


class CallTime(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = ACT2FN["gelu_new"](x)
        return library_gelu(x) * x


def test_modules_that_are_not_part_of_the_model() -> None:
    assert traced(nn.Sequential(CallTime())) == [
        Execution("gelu_tanh", "0", "0", True, False, **here(CallTime, 'ACT2FN["gelu_new"](x)')),
        Execution("gelu", "0", "0", True, False, **here(CallTime, "library_gelu(x)"), gated=True),
    ]


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dense(x).tanh_()
        h = self.dense(x)
        self.relu(h)
        return h * y + h


def test_in_place() -> None:
    assert traced(InPlace()) == [
        Execution("tanh", "", "", False, False, **here(InPlace, ".tanh_()"), linear=True),
        Execution("relu", "relu", "", True, True, **here(InPlace, "self.relu(h)"), linear=True, gated=True),
    ]


class Layer(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)

    def project(self, x: Tensor) -> Tensor:
        return self.act(F.relu(x))


def test_one_module_shared_by_two_layers() -> None:
    shared = nn.GELU()
    call = here(Layer.forward, "self.act(x)")
    assert traced(nn.Sequential(Layer(shared), Layer(shared))) == [
        Execution("gelu", "0.act", "0", True, True, **call),
        Execution("gelu", "0.act", "1", True, True, **call),
    ]


def test_a_method_of_another_module_is_its_code() -> None:
    place = here(Layer.project, "self.act(F.relu(x))")
    assert traced(Model(lambda self, x: self.layer.project(x), layer=Layer(nn.GELU()))) == [
        Execution("relu", "layer", "layer", False, False, **place),
        Execution("gelu", "layer.act", "layer", True, True, **place),
    ]


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.ones(3, 16, 8))
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert in range(3):
            gate, up = F.linear(x, self.gate_up[expert]).chunk(2, dim=-1)
            out += self.act_fn(gate) * up
        return out


def test_each_expert_counts() -> None:
    expected = Execution("silu", "act_fn", "", True, True, **here(Experts, "self.act_fn(gate)"), gated=True)
    assert traced(Experts()) == [expected] * 3


class Stacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), QuickGELUActivation())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_in_a_sequential() -> None:
    place = here(Stacked, "self.layers(x)")
    assert traced(Stacked()) == [
        Execution("relu", "layers.1", "layers", True, True, **place, linear=True),
        Execution("quick_gelu", "layers.3", "layers", True, True, **place, linear=True),
    ]


@pytest.mark.parametrize(
    "spelling",
    ["gelu_new", "gelu_fast", "gelu_accurate", "gelu_python", "quick_gelu", "gelu_10", "relu2", "laplace", "mish"],
)
def test_a_module_of_several_ops_is_one_execution(spelling: str) -> None:
    assert len(traced(nn.Sequential(nn.Linear(8, 8), ACT2FN[spelling]))) == 1


def test_a_class_that_is_not_known_shows_its_calls() -> None:
    class Own(nn.GELU):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    (execution,) = traced(nn.Sequential(Own()))
    assert (execution.function, execution.module, execution.in_module) == ("gelu", "0", False)


def test_nothing_is_left_behind() -> None:
    class Failing(nn.Module):
        def forward(self, _: Tensor) -> Tensor:
            raise ValueError("on purpose")

    model = nn.Sequential(Gated(), Failing())
    call = nn.Module.__call__
    with pytest.raises(ValueError, match="on purpose"):
        traced(model)
    assert nn.Module.__call__ is call
    model[1] = nn.Identity()
    assert traced(model) == [gate_site("0", "0.act_fn")]
    with torch.no_grad():
        plain = model(X)
        outputs: list[Tensor] = []
        trace(lambda: outputs.append(model(X)), model)
    assert torch.equal(outputs[0], plain)


def test_an_exception_that_the_model_catches() -> None:
    def function(self: Any, x: Tensor) -> Tensor:
        with pytest.raises(RuntimeError):
            self.act(self.dense(x[:, :3]))
        with pytest.raises(TypeError):
            self.act("not a tensor")
        return self.act(self.dense(x))

    (_, last) = traced(Model(function, dense=nn.Linear(8, 8), act=nn.GELU()))
    assert last.linear


# Patched models


class WrittenGate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x) * X


class WrittenOut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 + 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))


class Mixed(nn.Module):
    """Fused and not, in one module and at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 8)
        self.first = QuickGELUActivation()
        self.second = QuickGELUActivation()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.dense(x)) + self.second(x + 1)
        return self.second(x) * X


@pytest.mark.parametrize(
    ("model", "fused"),
    [
        (Gated(), ["gated"]),
        (Intermediate(), ["linear"]),
        (Layer(NewGELUActivation()), ["pointwise"]),
        (nn.Sequential(nn.Linear(8, 8), NewGELUActivation()), ["linear"]),
        (WrittenGate(), ["gated"]),
        (WrittenOut(), ["pointwise"]),
        (Layer(nn.GELU()), []),
        (Mixed(), ["linear", "pointwise", "gated"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_patch_computes(model: nn.Module, fused: list[str]) -> None:
    model = nn.Sequential(model)
    own = traced(model)
    assert {one.fused for one in own} == {None}
    if fused:
        patch(model)
    after = traced(model)
    assert [one.fused for one in after] == (fused or [None])
    # A module that stays is not called: its owner computes the activation in its stead.
    unknown: Any = dict.fromkeys(("module", "in_module", "registered", "gated", "linear", "file", "line", "fused"))
    assert [replace(one, **unknown) for one in after] == [replace(one, **unknown) for one in own]
    if fused:
        unpatch(model)
    assert traced(model) == own


def test_an_implementation_of_several_calls_is_one_execution(monkeypatch: pytest.MonkeyPatch) -> None:
    def relu(x: Tensor) -> Tensor:
        return F.leaky_relu(torch.relu(x), 2.0)

    implementation = Implementation("twice", {"relu": relu}, devices=frozenset({"cpu"}))
    monkeypatch.setitem(IMPLEMENTATIONS, "twice", implementation)
    model = nn.Sequential(Model(lambda _, x: x), Written())
    (_, own) = traced(model[1])
    patch(model, implementation="twice", include="*relu*")
    assert traced(model[1])[1:] == [replace(own, fused="pointwise", file=ANY, line=ANY, through=ANY)]


def test_falling_back() -> None:
    model = Gated()
    patch(model)
    handle = model.act_fn.register_forward_hook(lambda *_: None)
    assert [(one.fused, one.in_module) for one in traced(model)] == [(None, True)]  # the module itself is called
    handle.remove()
    assert [one.fused for one in traced(model)] == ["gated"]
    written = WrittenGate()
    patch(written)
    assert [one.fused for one in traced(written)] == ["gated"]
    assert [one.fused for one in traced(written, X[:1])] == ["pointwise"]  # the product broadcasts


# What a patch does to a model: first that the harness sees it when something is wrong


class Tiny(nn.Module):
    """A model of transformers' kind: one gelu_new, its output by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mlp = Intermediate()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.mlp(x)}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """``cover("tiny")`` is about this model."""
    model = Tiny()
    built = TinyModel("tiny", model, {"x": X})
    monkeypatch.setattr(coverage, "model_of", lambda _: built)
    return model


def after(monkeypatch: pytest.MonkeyPatch, name: str, wrong: Callable[[nn.Module], object]) -> None:
    """``patch`` or ``unpatch`` does what it does, and then this."""
    right = getattr(coverage, name)

    def function(model: nn.Module, **options: Any) -> object:
        result = right(model, **options)
        wrong(model)
        return result

    monkeypatch.setattr(coverage, name, function)


def test_a_row(tiny: Tiny) -> None:
    row = cover("tiny")
    assert row.problems == ()
    assert replace(row, seconds=0.0) == Coverage(
        model_type="tiny",
        model="Tiny",
        parameters=72,
        executions=1,
        in_modules=1,
        functions={"gelu_tanh": 1},
        sites={"linear": 1},
        changed=1,
        linear=1,
        linear_fused=1,
        drift=row.drift,
        scale=float(tiny(X)["y"].detach().abs().max()),
        undo_identical=True,
        state_dict_unchanged=True,
        class_names_unchanged=True,
        second_round_identical=True,
    )
    assert 0 < row.drift < 1e-6
    assert row.seconds > 0


WRONGS = [
    (lambda model: model.mlp.dense.register_buffer("extra", torch.ones(1)), "the keys of the state_dict changed"),
    (lambda model: setattr(model.mlp.dense, "__class__", type("Other", (nn.Linear,), {})), "class names changed"),
]


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (lambda model: model.mlp.dense.weight.data.mul_(1.01), "drift"),
        (lambda model: model.mlp.dense.bias.data.fill_(math.nan), "drift inf"),
        (lambda model: model.mlp.register_forward_pre_hook(None), "patched run: TypeError"),
        *WRONGS,
    ],
)
def test_what_a_patch_must_not_do(
    wrong: Callable[[Any], object], problem: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny is not None
    after(monkeypatch, "patch", wrong)
    assert any(found.startswith(problem) for found in cover("tiny").problems)


@pytest.mark.parametrize(("wrong", "problem"), WRONGS)
def test_what_must_not_be_left_behind(
    wrong: Callable[[Any], object], problem: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny is not None
    after(monkeypatch, "unpatch", wrong)
    assert problem in cover("tiny").problems


@pytest.mark.parametrize(("wrong", "problem"), WRONGS)
def test_what_must_not_be_while_it_is_patched(
    wrong: Callable[[Any], object], problem: str, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def right(model: Any) -> None:
        model.mlp.dense._buffers.clear()
        model.mlp.dense.__class__ = nn.Linear

    assert tiny is not None
    after(monkeypatch, "patch", wrong)
    after(monkeypatch, "unpatch", right)
    assert cover("tiny").problems == (problem,)


def test_an_undo_must_undo(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    after(monkeypatch, "unpatch", lambda _: tiny.mlp.dense.weight.data.add_(1e-6))
    row = cover("tiny")
    assert not row.undo_identical
    assert not row.second_round_identical
    assert row.state_dict_unchanged
    assert row.class_names_unchanged


def test_a_second_round_must_be_like_the_first(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = iter([lambda: None, lambda: tiny.mlp.dense.weight.data.add_(1e-6)])
    after(monkeypatch, "patch", lambda _: next(rounds)())
    row = cover("tiny")
    assert row.undo_identical
    assert row.problems == ("a second round is not like the first",)


def test_what_find_sites_does_not_list(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    right = coverage.find_sites
    monkeypatch.setattr(coverage, "find_sites", lambda model, **options: replace(right(model, **options), sites=()))
    line = here(Intermediate, "self.activation(x)")["line"]
    assert tiny is not None
    assert cover("tiny").missing == (f"gelu_tanh at test_coverage.py:{line} in mlp",)


def test_an_execution_is_listed_where_a_site_has_its_lines_or_its_module() -> None:
    (module,), (call,) = find_sites(Gated()).sites, find_sites(nn.Sequential(WrittenGate())).sites
    executions = [*traced(Gated()), *traced(nn.Sequential(WrittenGate()))]
    gate = f"silu at test_coverage.py:{executions[0].line} in the model itself"
    written = f"silu at test_coverage.py:{executions[1].line} in 0"
    missing = partial(coverage._missing, executions)
    assert missing([module, call]) == ()
    assert missing([module]) == (written,)
    assert missing([call]) == (gate,)
    assert missing([replace(module, path="other"), call]) == (gate,)
    for other in ({"owner_path": "1"}, {"file": "other.py"}, {"line": call.line + 1, "end_line": call.line + 2}):
        assert missing([module, replace(call, **other)]) == (written,)
    assert missing([module, replace(call, line=call.line - 2, end_line=call.line + 1)]) == ()
    helped = replace(executions[1], line=1, through=((executions[1].file, executions[1].line),))
    assert coverage._missing([helped], [call]) == ()


def test_errors_have_their_stage(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise ValueError("first line\nsecond line")

    assert tiny is not None
    for name, stage in (("find_sites", "find_sites"), ("patch", "patch"), ("unpatch", "unpatch"), ("trace", "trace")):
        with monkeypatch.context() as context:
            context.setattr(coverage, name, wrong)
            assert cover("tiny").error == f"{stage}: ValueError: first line"


def test_a_type_that_there_is_not() -> None:
    row = cover("no such type")
    assert row.unavailable is not None
    assert "unknown model type" in row.unavailable
    assert row.problems == ()


@pytest.mark.parametrize(
    ("own", "new", "drift"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [1.5, -4.0], 0.125),
        ([math.nan, math.inf, 2.0], [math.nan, math.inf, 3.0], 0.5),
        ([math.nan, 1.0], [1.0, 1.0], math.inf),
        ([math.inf, 1.0], [-math.inf, 1.0], math.inf),
        ([math.inf], [1.0], math.inf),
        ([0.0], [0.0], 0.0),
        ([0.0], [1e-9], 1e-3),
        ([], [], 0.0),
        ([1.0], [1.0, 1.0], math.inf),
    ],
)
def test_drift(own: list[float], new: list[float], drift: float) -> None:
    small = {"y": torch.tensor([1e-3])}
    assert coverage._drift({"x": torch.tensor(own), **small}, {"x": torch.tensor(new), **small}) == pytest.approx(drift)
    assert coverage._drift({"x": torch.tensor(own)}, {"z": torch.tensor(own)}) == math.inf


def test_identical_is_to_the_bit() -> None:
    def same(a: Tensor, b: Tensor) -> bool:
        return coverage._identical({"y": a}, {"y": b})

    nan = torch.tensor([math.nan, 1.0])
    assert same(nan, nan.clone())
    assert same(torch.tensor(2.0), torch.tensor(2.0))
    assert same(X[:, 1], X[:, 1].clone())
    assert same(X[:, 1:2].T, X[:, 1:2].T.clone())
    assert same(X[:1, 1], X[:1, 1].clone())
    assert not same(X[:, 1], X[:, 2])
    assert not same(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert not same(torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]))
    assert not same(torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64))
    assert not coverage._identical({"y": nan}, {"z": nan})


def test_rows_as_data_and_as_tables() -> None:
    row = Coverage("bert", "BertModel", 1234, gated=3, gated_fused=2, executions=4, drift=math.inf, missing=("a|b",))
    assert Coverage.from_dict(json.loads(json.dumps(row.to_dict(), allow_nan=False))) == row
    gone = Coverage("esm", unavailable="esm: no such\nthing")
    lines = table([row, gone]).splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "| bert | BertModel | 1,234 | 4 | 0 | 0 | 2 of 3 |" in lines[2]
    assert "not listed: a\\|b" in lines[2]
    assert "esm: no such thing" in lines[3]
    summary = totals([row, gone])
    assert "1 model types, 0 as promised, 1 not; 1 more" in summary
    assert "2 of 3 fused" in summary


@pytest.mark.slow
def test_the_script_writes_rows_and_a_table_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    rows, written = tmp_path / "rows.jsonl", tmp_path / "table.md"
    rows.write_text(json.dumps(Coverage("bert", "BertModel", error="on purpose").to_dict()) + '\n{"model_type": "g')

    def run(*types: str) -> subprocess.CompletedProcess[str]:
        command = ("-m", "scripts.covering", *types, "--output", rows, "--table", written)
        return processes.run(*command, cwd=Path(__file__).parents[2])

    done = run("gpt2")
    assert done.returncode == 0, done.stderr
    assert "1 of 1" in done.stderr
    assert "1 model types, 1 as promised" in done.stdout
    assert "| gpt2 | GPT2Model |" in written.read_text()
    done = run("gpt2", "bert")  # neither is covered again
    assert done.returncode == 1
    assert "on purpose" in done.stdout
    assert [json.loads(line)["model_type"] for line in rows.read_text().splitlines() if line.endswith("}")] == [
        "bert",
        "gpt2",
    ]


# Many types

_WELL_KNOWN = [
    "albert", "bart", "beit", "bert", "bloom", "blip", "clip", "convnext", "deberta-v2", "detr", "distilbert",
    "electra", "falcon", "flaubert", "gemma", "gemma2", "gpt2", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "lfm2",
    "llama", "llava", "mamba", "mamba2", "mbart", "mistral", "mixtral", "modernbert", "mpt", "openai-gpt", "opt",
    "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "roberta", "rwkv", "siglip", "swin", "t5", "vit", "wav2vec2",
    "whisper", "xlm", "xlm-roberta",
]  # fmt: skip
_RECORD = Path(coverage.__file__).with_name("coverage.md").read_text(encoding="utf-8")
_BUILT = {*re.findall(r"^\| (\S+) \| (?!\1: )", _RECORD, re.MULTILINE)}
"""What the record has of types that are built here, and want neither a package nor an input."""
_SAMPLE = [name for name in CONFIG_MAPPING if zlib.crc32(name.encode()) % 5 == 0]
TYPES = sorted({*_WELL_KNOWN, *_SAMPLE} & _BUILT)
"""The well-known ones, and a fifth of all, by their names: types that a new release brings move no other in or out."""


def test_enough_types() -> None:
    assert len(TYPES) >= 120
    assert {*_WELL_KNOWN} <= {*TYPES}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_a_patch_keeps_its_promises(model_type: str) -> None:
    row = cover(model_type)
    assert row.unavailable is None
    assert row.error is None
    assert row.drift <= LARGEST_DRIFT
    assert row.undo_identical
    assert row.state_dict_unchanged
    assert row.class_names_unchanged
    assert row.second_round_identical
    assert row.missing == ()
