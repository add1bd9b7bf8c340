"""The compiled kernels of ``cpp``: values, layouts, autograd, what goes past them, threads."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILIES, KERNELS, Recorder, derivatives, printed_by_fork
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import layouts, memory, same
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Config
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

from hf_gelu_patch import ACTIVATIONS, Activation, patch, unpatch
from hf_gelu_patch.implementations import cpp_ops
from hf_gelu_patch.implementations.cpp_ops import CPP, after_linear, gated, pointwise

pytestmark = KERNELS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAMES = tuple(CPP.functions)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


least = cpp_ops._least


@pytest.fixture(autouse=True)
def _of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors go to the kernels too, which are judged by them here."""
    monkeypatch.setattr(cpp_ops, "_least", lambda *_: 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_small_tensor_is_left_to_torchs_own_op(name: str, runs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_ops, "_least", least)
    record = ACTIVATIONS[name]
    assert record.cpp is not None
    count, layer = record.cpp.least, nn.Linear(1, 1)
    if count:
        x = torch.randn(count - 1, 1)
        for needs in (False, True):
            x.requires_grad_(needs)
            assert torch.equal(pointwise(x, activation=name, **dict(record.parameters)), record.bind(record.eager)(x))
            gated(x, x, activation=name, **dict(record.parameters))
            after_linear(layer, x, activation=name, **dict(record.parameters))
        assert runs == []
    x = torch.randn(max(1, count), 1)
    with torch.no_grad():
        pointwise(x, activation=name, **dict(record.parameters))
        gated(x, x, activation=name, **dict(record.parameters))
        after_linear(layer, x, activation=name, **dict(record.parameters))
    assert runs == [cpp_ops._FORWARD, cpp_ops._GATED_FORWARD, cpp_ops._FORWARD]
    runs.clear()
    for count, forms in ((cpp_ops._LEAST_WITH_GRADIENT - 1, []), (cpp_ops._LEAST_WITH_GRADIENT, [0, 2, 0])):
        x = torch.randn(count, 1, requires_grad=True)
        pointwise(x, activation=name, **dict(record.parameters))
        gated(x, x, activation=name, **dict(record.parameters))
        after_linear(layer, x, activation=name, **dict(record.parameters))
        assert runs == forms


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which form of a kernel was run, each time."""
    seen: list[int] = []
    own = cpp_ops._run

    def recorded(kernel: Any, form: int, *rest: Any) -> None:
        seen.append(form)
        own(kernel, form, *rest)

    monkeypatch.setattr(cpp_ops, "_run", recorded)
    return seen


def exact(activation: Activation, x: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative in float64."""
    return activation.bind(activation.reference)(x.double()), activation.bind(activation.derivative)(x.double())


def value_and_slope(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    return y.detach(), torch.autograd.grad(y.sum(), leaf)[0]


def ulp(expected: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of the numbers of a dtype around each number."""
    least = torch.finfo(dtype).tiny
    return torch.exp2(expected.abs().clamp(min=least).log2().floor()) * torch.finfo(dtype).eps


# Values


def every_value(dtype: torch.dtype) -> Tensor:
    """All finite 16-bit values; in fp32 a dense grid, and magnitudes down to the subnormal and up to the largest."""
    if dtype == torch.float32:
        sizes = torch.logspace(-44, 38, 4001)
        return torch.cat([torch.linspace(-20, 20, 40_001), torch.linspace(-120, 120, 20_001), sizes, -sizes])
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    return x[x.isfinite()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_rounded_once(name: str, dtype: torch.dtype) -> None:
    record, x = ACTIVATIONS[name], every_value(dtype)
    expected, slope = exact(record, x)
    y, grad_x = value_and_slope(CPP.build(record), x)
    largest = torch.finfo(dtype).max
    held = expected.abs() <= largest
    assert bool(((y.double() - expected).abs() <= 0.51 * ulp(expected, dtype))[held].all())
    assert bool(y[~held].isinf().all())
    held = (slope.abs() <= largest) & (x != 0)  # 0 is relu's kink
    beside_its_root = 3e-7  # where the slope is small and its terms are not
    assert bool(((grad_x.double() - slope).abs() <= 0.51 * ulp(slope, dtype) + beside_its_root)[held].all())


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_nearer_than_the_models_own_ops(name: str) -> None:
    record, x = ACTIVATIONS[name], every_value(torch.float32)
    own, eager = value_and_slope(CPP.build(record), x), value_and_slope(record.bind(record.eager), x)
    eps = torch.finfo(torch.float32).eps
    for y, theirs, expected in zip(own, eager, exact(record, x), strict=True):
        held = (expected.abs() <= torch.finfo(torch.float32).max) & (x != 0) & theirs.isfinite()
        scale = expected.abs().clamp(min=1.0)
        error, their_error = (((it.double() - expected).abs() / scale)[held].max() for it in (y, theirs))
        assert float(error) <= max(float(their_error), eps)
        assert bool(y[(expected.abs() <= torch.finfo(torch.float32).max) & (x != 0)].isfinite().all())
    expected = exact(record, x)[0]
    normal = (expected.abs() >= torch.finfo(torch.float32).tiny) & (expected.abs() <= torch.finfo(torch.float32).max)
    assert bool(((own[0].double() - expected).abs() <= 256 * eps * expected.abs())[normal].all())  # both tails


LIMITS = {  # at -∞ and +∞: of the value, and of the derivative
    **dict.fromkeys(("gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "mish"), ((0.0, math.inf), (0.0, 1.0))),
    "gelu_clipped": ((0.0, 10.0), (0.0, 0.0)),
    "relu_squared": ((0.0, math.inf), (0.0, math.inf)),
    "laplace": ((0.0, 1.0), (0.0, 0.0)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_limits_zeros_and_nan(name: str, dtype: torch.dtype) -> None:
    function = CPP.build(ACTIVATIONS[name])
    for count in (1, 33):  # in a vector and behind it
        y, slope = value_and_slope(function, torch.tensor([-math.inf, math.inf] * count, dtype=dtype))
        assert y.tolist() == [*LIMITS[name][0]] * count
        assert slope.tolist() == [*LIMITS[name][1]] * count
        assert bool(function(torch.full((count,), math.nan, dtype=dtype)).isnan().all())
    if name not in ("relu", "laplace"):  # relu's is 1, as torch's is
        assert bool(value_and_slope(function, torch.tensor([math.nan], dtype=dtype))[1].isnan())
    zeros = function(torch.tensor([0.0, -0.0], dtype=dtype))
    if name != "laplace":
        assert not zeros.any()
        assert zeros.signbit().tolist() == [False, name != "relu_squared"]


@pytest.mark.parametrize("name", NAMES)
def test_constants_reach_the_kernel(name: str) -> None:
    record = ACTIVATIONS[name]
    for constants in ({"min": -0.1, "max": 1.5}, {"mu": 0.2, "sigma": 0.9}):
        if constants.keys() == dict(record.parameters).keys():
            other = record.with_parameters(**constants)
            x = torch.linspace(-3, 3, 1001)
            for y, expected in zip(value_and_slope(CPP.build(other), x), exact(other, x), strict=True):
                assert float((y.double() - expected).abs().max()) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_gated_product_is_rounded_once(name: str, dtype: torch.dtype) -> None:
    record = ACTIVATIONS[name]
    gate = (torch.randn(20_000) * 4).to(dtype)
    up, grad_y = (torch.randn(20_000).to(dtype) for _ in range(2))
    value, slope = exact(record, gate)
    expected = (value * up.double(), grad_y.double() * up.double() * slope, grad_y.double() * value)
    fused = CPP.build(record)
    eager = functools.partial(lambda act, gate, up: act(gate) * up, record.bind(record.eager))
    for y, theirs, right in zip(
        results(fused.gated, (gate, up), grad_y), results(eager, (gate, up), grad_y), expected, strict=True
    ):
        error, their_error = ((it.double() - right).abs() for it in (y, theirs))
        if dtype != torch.float32:
            assert bool((error <= 0.51 * ulp(right, dtype) + 1e-6 * (1 + right.abs())).all())
            assert float(error.mean()) <= float(their_error.mean())
        scale = right.abs().clamp(min=1.0)
        assert float((error / scale).max()) <= max(float((their_error / scale).max()), 3 * torch.finfo(dtype).eps)


def test_no_gradient_where_the_slope_is_zero() -> None:
    """Whatever comes from behind, as torch's ReLU and clamp have it."""
    wild = torch.tensor([math.inf, -math.inf, math.nan])
    for name, x in (("relu", -1.0), ("relu_squared", -1.0), ("gelu_clipped", 20.0)):
        leaf = torch.full((3,), x, requires_grad=True)
        assert (
            torch.autograd.grad(pointwise(leaf, activation=name, **dict(ACTIVATIONS[name].parameters)), leaf, wild)[
                0
            ].tolist()
            == [0.0] * 3
        )
        y = gated(leaf, torch.ones(3), activation=name, **dict(ACTIVATIONS[name].parameters))
        assert torch.autograd.grad(y, leaf, wild)[0].tolist() == [0.0] * 3


# Layouts


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    **{f"shape {shape}": functools.partial(torch.randn, shape) for shape in ((), (0,), (1,), (7,), (255,), (256,))},
    **{f"shape {shape}": functools.partial(torch.randn, shape) for shape in ((257,), (3, 0, 5), (2, 3, 4, 6))},
    "many short rows": lambda: torch.randn(20_000, 4)[:, :3],
    "transposed": lambda: torch.randn(9, 6).t(),
    "channels last": lambda: torch.randn(2, 8, 4, 6).contiguous(memory_format=torch.channels_last),
    "first half": lambda: torch.randn(2, 3, 20).chunk(2, dim=-1)[0],
    "second half": lambda: torch.randn(2, 3, 20).chunk(2, dim=-1)[1],
    "half of one row": lambda: torch.randn(1, 1, 20).chunk(2, dim=-1)[1],
    "rows left out": lambda: torch.randn(6, 4, 10)[::2, 1:3],
    "one column": lambda: torch.randn(5, 1, 1),
    "one column of many": lambda: torch.randn(5, 4)[:, 1:2],
    "every other": lambda: torch.randn(80)[::2],
    "every other column": lambda: torch.randn(3, 40)[:, 1::2],
    "expanded rows": lambda: torch.randn(1, 40).expand(4, 40),
    "expanded batch": lambda: torch.randn(1, 3, 40).expand(4, 3, 40),
    "expanded in the middle": lambda: torch.randn(4, 1, 40).expand(4, 3, 40),
    "expanded columns": lambda: torch.randn(4, 1).expand(4, 40),
    "expanded scalar": lambda: torch.randn(()).expand(2, 3, 7),
    "size 1 with a stride of its own": lambda: torch.randn(7, 5).as_strided((3, 1, 5), (10, 77, 1)),
    "contiguous, of a size 1 with a stride of its own": lambda: torch.randn(1, 3, 5).transpose(0, 1),
    "unaligned": lambda: torch.randn(1001)[1:],
    "a middle dimension gone": lambda: torch.randn(3, 4, 20)[:, 1],
}


def gradients_of(shape: torch.Size, dtype: torch.dtype) -> list[Tensor]:
    """Gradients as they come from behind: dense, of stride 0 (``sum`` sends that), between other numbers."""
    dense, pairs = torch.randn(shape), torch.randn(*shape, 2)
    return [dense.to(dtype), torch.ones((), dtype=dtype).expand(shape), pairs.to(dtype)[..., 1]]


def results(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_y: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad_y)]


def assert_as_dense(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_y: Tensor) -> None:
    """The bits that dense copies give; nothing that was given is written to."""
    before = memory(*inputs, grad_y)
    new = results(function, inputs, grad_y)
    dense = [x.clone(memory_format=torch.contiguous_format) for x in (*inputs, grad_y)]
    for own, expected, like in zip(new, results(function, dense[:-1], dense[-1]), (inputs[0], *inputs), strict=True):
        assert own.shape == like.shape
        assert same(own, expected)
    with torch.no_grad():
        assert same(function(*inputs), new[0])
    with torch.inference_mode():
        assert same(function(*inputs), new[0])
    assert all(torch.equal(a, b) for a, b in zip(memory(*inputs, grad_y), before, strict=True))


SILU, GATED_SILU = (functools.partial(it, activation="silu") for it in (pointwise, gated))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout: str, dtype: torch.dtype) -> None:
    x, up = (LAYOUTS[layout]().to(dtype) for _ in range(2))
    other = LAYOUTS[layout]()
    assert SILU(x).shape == other.shape
    for grad_y in gradients_of(x.shape, dtype):
        assert_as_dense(SILU, [x], grad_y)
        assert_as_dense(GATED_SILU, [x, up], grad_y)
        assert_as_dense(GATED_SILU, [x.clone(memory_format=torch.contiguous_format), up], grad_y)
        assert_as_dense(GATED_SILU, [x, up.clone(memory_format=torch.contiguous_format)], grad_y)
        assert_as_dense(GATED_SILU, [x, x], grad_y)


def test_dense_layouts_are_kept() -> None:
    for layout in ("transposed", "channels last"):
        x = LAYOUTS[layout]()
        assert SILU(x).stride() == GATED_SILU(x, x).stride() == x.stride()


SHAPES = st.lists(st.one_of(st.integers(0, 5), st.sampled_from([255, 256, 257])), max_size=5).filter(
    lambda shape: math.prod(max(size, 1) for size in shape) <= 600
)
PROPERTY = settings(deadline=None, max_examples=100, derandomize=True, database=None)


@PROPERTY
@given(st.data(), SHAPES, st.sampled_from(DTYPES))
def test_layouts_of_every_kind(data: st.DataObject, shape: list[int], dtype: torch.dtype) -> None:
    x, up, grad_y = (data.draw(layouts(shape, dtype)) for _ in range(3))
    assert_as_dense(SILU, [x], grad_y)
    assert_as_dense(GATED_SILU, [x, up], grad_y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_number_gives_the_same_bits_wherever_it_stands(name: str, dtype: torch.dtype) -> None:
    """In a vector, behind it, or alone."""
    function = CPP.build(ACTIVATIONS[name])
    x = (torch.randn(64) * 3).to(dtype)
    expected = value_and_slope(function, x)
    for width in (1, 3, 17):
        pieces = [value_and_slope(function, piece) for piece in x.split(width)]
        for whole, parts in zip(expected, zip(*pieces, strict=True), strict=True):
            assert same(whole, torch.cat(parts))


def test_any_number_of_threads_gives_the_same_bits() -> None:
    dense, rows, grad_y = torch.randn(60_001), torch.randn(300, 401)[:, :201], torch.randn(60_001)
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(
                [
                    *results(SILU, [dense], grad_y),
                    *results(SILU, [rows], torch.ones(rows.shape)),
                    *results(GATED_SILU, [dense, dense], grad_y),
                ]
            )
    finally:
        torch.set_num_threads(1)
    for other in found[1:]:
        assert all(same(a, b) for a, b in zip(found[0], other, strict=True))


# Linear layers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_after_a_linear_layer(runs: list[int], dtype: torch.dtype) -> None:
    layer, x = nn.Linear(12, 40).to(dtype), torch.randn(3, 5, 12).to(dtype)
    convolution, image = nn.Conv2d(3, 4, 3).to(dtype), torch.randn(2, 3, 8, 8).to(dtype)
    for linear, given_ in ((layer, x), (convolution, image)):
        before = memory(given_, *linear.parameters())
        expected = SILU(linear(given_))
        y = after_linear(linear, given_, activation="silu")
        assert same(y.detach(), expected.detach())
        grad_y = torch.randn(y.shape).to(dtype)
        for own, theirs in zip(
            *(torch.autograd.grad(it, list(linear.parameters()), grad_y) for it in (y, expected)), strict=True
        ):
            assert same(own, theirs)
        for mode in (torch.no_grad, torch.inference_mode, torch.no_grad):
            with mode():
                assert same(after_linear(linear, given_, activation="silu"), expected.detach())
        assert all(torch.equal(a, b) for a, b in zip(memory(given_, *linear.parameters()), before, strict=True))
    assert set(runs) == {0, 1}


def test_what_a_layer_keeps_is_not_written_over() -> None:
    """A hook, or a class of one's own, may hold the output of a linear layer."""

    class Keeping(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = super().forward(x)
            return self.kept

    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(approximate="tanh"), Keeping(8, 8), nn.GELU(approximate="tanh"))
    x, kept = torch.randn(4, 8), []
    with torch.no_grad():
        expected = model(x)
        patch(model, implementation="cpp")
        handle = model[0].register_forward_hook(lambda *call: kept.append(call[2]))
        y = model(x)
        torch.testing.assert_close(y, expected)
        assert torch.equal(kept[0], F.linear(x, model[0].weight, model[0].bias))
        hidden = pointwise(kept[0], activation="gelu_tanh")
        assert torch.equal(model[2].kept, F.linear(hidden, model[2].weight, model[2].bias))
        handle.remove()
        torch.testing.assert_close(model(x), expected)


# Autograd

POINTS = torch.tensor([-3.1, -1.2, -0.5, 0.3, 0.9, 2.6], dtype=torch.float64)  # no kink near


def forms(name: str) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    constants = dict(ACTIVATIONS[name].parameters)
    return {
        "pointwise": (functools.partial(pointwise, activation=name, **constants), (POINTS,)),
        "gated": (functools.partial(gated, activation=name, **constants), (POINTS, POINTS.flip(0))),
    }


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_of_any_order(name: str) -> None:
    for function, inputs in forms(name).values():
        orders = [derivatives(function, [x.to(dtype) for x in inputs]) for dtype in (torch.float32, torch.float64)]
        assert len(orders[0]) == len(orders[1])
        for own, expected in zip(*orders, strict=True):
            torch.testing.assert_close(own.double(), expected, rtol=3e-4, atol=3e-4)


def test_only_the_gradients_asked_for() -> None:
    for gate_needs, up_needs, create_graph in itertools.product((False, True), repeat=3):
        gate, up = torch.randn(50).requires_grad_(gate_needs), torch.randn(50).requires_grad_(up_needs)
        y, expected = GATED_SILU(gate, up), F.silu(gate) * up
        assert y.requires_grad == (gate_needs or up_needs)
        if wanted := [leaf for leaf in (gate, up) if leaf.requires_grad]:
            for _ in range(2):  # the graph is retained, and nothing saved was written over
                for own, theirs in zip(
                    torch.autograd.grad(y.sum(), wanted, create_graph=create_graph, retain_graph=True),
                    torch.autograd.grad(expected.sum(), wanted, retain_graph=True),
                    strict=True,
                ):
                    torch.testing.assert_close(own, theirs)


def test_what_is_saved_for_the_backward() -> None:
    gate, up = (torch.randn(64).requires_grad_() for _ in range(2))
    for function, kept in ((lambda: SILU(gate), [gate]), (lambda: GATED_SILU(gate, up), [gate, up])):
        found: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: found.append(x.data_ptr()) or x, lambda x: x):  # noqa: B023
            assert function().requires_grad
        assert found == [x.data_ptr() for x in kept]


def test_a_saved_tensor_that_was_written_to_is_refused() -> None:
    x = torch.randn(8, requires_grad=True)
    inner = x * 1
    y = SILU(inner)
    inner.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    "unpacked",
    [lambda x: x.to(torch.float16), lambda x: x.double(), lambda x: x[:1], lambda x: x.to_sparse().to_dense()],
    ids=["half", "double", "smaller", "through sparse"],
)
def test_whatever_a_hook_gives_back_no_other_memory_is_read(
    runs: list[int], unpacked: Callable[[Tensor], Tensor]
) -> None:
    x = torch.randn(64, requires_grad=True)
    for function in (SILU, lambda x: GATED_SILU(x, x)):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, unpacked):
            y = function(x)
            runs.clear()
            try:
                (own,) = torch.autograd.grad(y.sum(), x)
            except RuntimeError:
                own = None  # as torch's own ops may say
        if unpacked(x).dtype != x.dtype or unpacked(x).shape != x.shape:
            assert runs == []
        else:
            assert len(runs) == 1
            assert own is not None


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool) -> None:
    layer, x = nn.Linear(8, 8), torch.randn(3, 8, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        return GATED_SILU(after_linear(layer, x, activation="gelu_tanh"), x)

    leaves = (x, *layer.parameters())
    checkpoint(block, x, use_reentrant=reentrant).sum().backward()
    grads = [leaf.grad for leaf in leaves]
    for own, expected in zip(grads, torch.autograd.grad(block(x).sum(), leaves), strict=True):
        assert same(own, expected)


def test_batched_gradients() -> None:
    x = torch.randn(4, 6, requires_grad=True)
    for function in (SILU, lambda x: GATED_SILU(x, x)):
        y, grads = function(x), torch.randn(5, 4, 6)
        (batched,) = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)
        each = torch.stack([torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in grads])
        torch.testing.assert_close(batched, each)


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "grad": lambda f, x: grad(lambda x: f(x).sum())(x),
    "vmap": lambda f, x: vmap(f)(x),
    "vmap of grad": lambda f, x: vmap(grad(lambda x: f(x).sum()))(x),
    "vjp": lambda f, x: vjp(f, x)[1](torch.ones_like(x)),
    "jvp": lambda f, x: jvp(f, (x,), (torch.ones_like(x),)),
    "hessian": lambda f, x: hessian(lambda x: f(x).sum())(x[0, :3]),
    "forward mode": lambda f, x: _forward_mode(f, x),
}


def _forward_mode(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
        assert tangent is not None
        return tangent.clone()


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(transform: str) -> None:
    layer = nn.Linear(6, 6).requires_grad_(False)
    for own, eager in (
        (functools.partial(pointwise, activation="gelu_tanh"), functools.partial(F.gelu, approximate="tanh")),
        (lambda x: gated(x, x + 1, activation="gelu_tanh"), lambda x: F.gelu(x, approximate="tanh") * (x + 1)),
        (
            lambda x: after_linear(layer, F.pad(x, (0, 6 - x.shape[-1])), activation="gelu_tanh"),
            lambda x: F.gelu(layer(F.pad(x, (0, 6 - x.shape[-1]))), approximate="tanh"),
        ),
    ):
        x = torch.randn(4, 6)
        torch.testing.assert_close(TRANSFORMS[transform](own, x), TRANSFORMS[transform](eager, x))


def test_functional_call_of_a_patched_model() -> None:
    model = FAMILIES["gpt2"].build()
    patch(model, implementation="cpp")
    weights = {name: weight.detach() * 1.01 for name, weight in model.named_parameters()}
    ids = FAMILIES["gpt2"].inputs()["input_ids"]

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return functional_call(model, weights, (ids,)).logits.logsumexp(-1).mean()

    own = grad(loss)(weights)
    unpatch(model)
    for name, expected in grad(loss)(weights).items():
        torch.testing.assert_close(own[name], expected, rtol=1e-4, atol=1e-5)


# What has to see the ops, and what is no ordinary tensor


def test_modes_and_traces_see_atens_ops(runs: list[int]) -> None:
    x = torch.randn(4, 6)
    with Recorder() as recorder:
        SILU(x)
        GATED_SILU(x, x)
        after_linear(nn.Linear(6, 6), x, activation="silu")
    assert [name for name in recorder.names if "silu" in name or "mul" in name] == [
        "aten::silu",
        "aten::silu",
        "aten::mul.Tensor",
        "aten::silu",
    ]
    graph = make_fx(lambda x: GATED_SILU(SILU(x), x))(x)
    assert [str(node.target) for node in graph.graph.nodes if node.op == "call_function"] == [
        "aten.silu.default",
        "aten.silu.default",
        "aten.mul.Tensor",
    ]
    assert "silu" in str(torch.jit.trace(lambda x: SILU(x), (x,), check_trace=False).graph)
    assert "silu" in str(torch.fx.symbolic_trace(lambda x: CPP.build(ACTIVATIONS["silu"])(x)).graph)
    with FakeTensorMode() as fake:
        assert SILU(fake.from_tensor(x)).shape == (4, 6)
        assert SILU(torch.empty(3)).shape == (3,)
    assert runs == []
    SILU(x)
    assert runs == [0]


class Logged(Tensor):
    """A tensor that hears of each function of torch that is called with it."""

    heard: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.heard.append(function.__name__)
        return super().__torch_function__(function, types, args, kwargs)


def negated() -> Tensor:
    x = torch.randn(3, 4, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    return x


OTHERS: dict[str, Callable[[], Tensor]] = {
    "float64": lambda: torch.randn(3, 4, dtype=torch.float64),
    "meta": lambda: torch.randn(3, 4, device="meta"),
    "subclass": lambda: torch.randn(3, 4).as_subclass(Logged),
    "nested": lambda: torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(5, 4)], layout=torch.jagged),
    "negated": negated,
    "zero": lambda: torch._efficientzerotensor((3, 4)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_ordinary_tensor_gets_the_expression(runs: list[int], kind: str) -> None:
    x = OTHERS[kind]()
    for y, expected in (
        (functools.partial(pointwise, activation="silu")(x), F.silu(x)),
        (gated(x, x, activation="silu"), F.silu(x) * x),
    ):
        assert (type(y), y.dtype, y.device, y.layout) == (type(expected), expected.dtype, x.device, expected.layout)
        if kind not in ("meta", "nested"):
            torch.testing.assert_close(y, expected)
        if kind == "nested":
            for own, theirs in zip(y.unbind(), expected.unbind(), strict=True):
                torch.testing.assert_close(own, theirs)
    assert runs == []
    assert kind != "subclass" or "silu" in Logged.heard


def test_sparse_and_integer_tensors_are_as_torch_has_them() -> None:
    relu = CPP.build(ACTIVATIONS["relu"])
    sparse = torch.eye(4).to_sparse()
    assert torch.equal(relu(sparse).to_dense(), torch.eye(4))
    whole = torch.arange(-3, 3)
    assert torch.equal(relu(whole), F.relu(whole))
    assert torch.equal(pointwise(whole, activation="relu"), F.relu(whole))


def test_what_comes_from_behind_may_be_no_memory() -> None:
    leaf, plain = torch.randn(3, 4).requires_grad_(), negated()
    for function in (SILU, lambda x: GATED_SILU(x, x)):
        (own,) = torch.autograd.grad(function(leaf), leaf, plain)
        torch.testing.assert_close(own, torch.autograd.grad(function(leaf), leaf, plain.resolve_neg())[0])
        (none,) = torch.autograd.grad(function(leaf), leaf, torch._efficientzerotensor((3, 4)))
        assert not none.any()


def test_tensors_that_are_not_alike_are_as_torch_has_them(runs: list[int]) -> None:
    gate = torch.randn(3, 4)
    for up in (torch.randn(4), torch.randn(3, 4).half(), torch.randn(3, 4).double(), torch.randn(())):
        y, expected = GATED_SILU(gate, up), F.silu(gate) * up
        assert y.dtype == expected.dtype
        torch.testing.assert_close(y, expected)
    assert runs == []


def test_under_a_default_device_the_tensors_stay_where_they_are() -> None:
    x = torch.randn(3, 8)[:, :4].requires_grad_()
    with torch.device("meta"):
        y = SILU(x)
        assert y.device.type == "cpu"
    assert same(y.detach(), SILU(x).detach())


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str) -> None:
    record = ACTIVATIONS[name]
    fused, layer, x = CPP.build(record), nn.Linear(8, 8), torch.randn(4, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in DTYPES:
            given_ = x.detach().to(dtype)
            assert fused(given_).dtype == record.bind(record.eager)(given_).dtype
            assert fused.gated(given_, given_).dtype == (record.bind(record.eager)(given_) * given_).dtype
        y = fused.linear(layer, x)
        with torch.no_grad():
            assert same(fused.linear(layer, x), y.detach())
    assert y.dtype == torch.bfloat16
    (own,) = torch.autograd.grad(y.float().sum(), x)
    assert own.dtype == torch.float32


# Models


@pytest.mark.parametrize("mlp", [GPT2MLP, LlamaMLP])
def test_a_patched_layer_is_compiled_whole(mlp: Any, runs: list[int]) -> None:
    config = (
        GPT2Config(n_embd=8, resid_pdrop=0.0)
        if mlp is GPT2MLP
        else LlamaConfig(hidden_size=8, intermediate_size=32, num_attention_heads=2)
    )
    model = mlp(32, config) if mlp is GPT2MLP else mlp(config)
    x = torch.randn(3, 8, requires_grad=True)
    expected = results(model, [x], x)
    patch(model, implementation="cpp")
    for own, theirs in zip(results(model, [x], x), expected, strict=True):
        torch.testing.assert_close(own, theirs)
    assert runs
    runs.clear()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for own, theirs in zip(results(compiled, [x], x), expected, strict=True):
        torch.testing.assert_close(own, theirs)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected[0])
    torch._dynamo.reset()
    assert runs == []


def test_a_patched_model_is_exported(runs: list[int]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(approximate="tanh"), nn.Linear(8, 8))
    x = torch.randn(3, 8)
    expected = model(x)
    patch(model, implementation="cpp")
    exported = torch.export.export(model, (x,))
    assert "hf_gelu_patch" not in str(exported.graph)
    torch.testing.assert_close(exported.module()(x), expected)
    torch.testing.assert_close(torch.jit.trace(model, (x,), check_trace=False)(x), expected)
    torch.testing.assert_close(make_fx(model)(x)(x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)
    assert runs == []


def test_many_threads_of_python_on_one_model() -> None:
    model = FAMILIES["llama"].build()
    patch(model, implementation="cpp")
    batches = [torch.randint(3, 64, (2, 9)) for _ in range(32)]
    with torch.no_grad():
        expected = [model(ids).logits for ids in batches]

    def run(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model(ids).logits

    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(a, b) for a, b in zip(pool.map(run, batches), expected, strict=True))


def _in_a_child(x: Tensor) -> list[float]:
    torch.set_num_threads(1)
    return [float(SILU(x).sum()), float(pointwise(x, activation="gelu_tanh").sum())]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_after_use() -> None:
    """torch itself cannot compute with several threads after a fork."""
    x = torch.randn(40_000)
    expected = _in_a_child(x)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_in_a_child, (x,)).get(timeout=60) == expected


def test_copies_and_replicas() -> None:
    model = FAMILIES["gpt2"].build()
    names = list(model.state_dict())
    expected = FAMILIES["gpt2"].run(model)
    patch(model, implementation="cpp")
    assert list(model.state_dict()) == names
    own = FAMILIES["gpt2"].run(model)
    replicas = torch.nn.parallel.replicate(model, []) if torch.cuda.is_available() else []
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), *replicas):
        assert torch.equal(FAMILIES["gpt2"].run(other), own)
        unpatch(other)
        assert torch.equal(FAMILIES["gpt2"].run(other), expected)
    assert torch.equal(FAMILIES["gpt2"].run(model), own)


@pytest.mark.slow
def test_a_patched_model_in_another_process(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(approximate="tanh"))
    patch(model, implementation="cpp")
    x = torch.randn(5000, 8)  # enough for a kernel
    with torch.no_grad():
        torch.save((model, x, model(x)), tmp_path / "model.pt")
    said = printed_by_fork(
        f"""
import torch
model, x, expected = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
with torch.no_grad():
    print(torch.equal(model(x), expected))
from hf_gelu_patch import unpatch
unpatch(model)
print(type(model[1]).__name__)
"""
    )
    assert said.split() == ["True", "GELU"]
