"""The Triton ops, interpreted: values over any layout, autograd, tracing, transforms, what they refuse."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from conftest import Recorder, derivatives, printed_by_fork
from functorch.compile import make_boxed_func
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import layouts, memory, same
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssConfig, GptOssExperts

from hf_gelu_patch import ACTIVATIONS, UnknownNameError
from hf_gelu_patch.implementations import tensors, triton_forms, triton_launch, triton_library
from hf_gelu_patch.implementations.triton_ops import gated, gated_halves, pointwise

OPS = torch.ops.hf_gelu_patch
POINTWISE, GATED = tuple(triton_forms.POINTWISE), (*triton_forms.POINTWISE, *triton_forms.GATED_FORMS)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CONSTANTS = {"gelu_clipped": [-10.0, 10.0], "laplace": [0.707107, 0.282095], "swiglu_oai": [1.702, 7.0]}
SMALL = 64


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape) * 2.5).to(dtype)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# The same in float64, by another road: the references and derivatives of the records.


def exact_act(gate: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The value and derivative of what is done to the gate."""
    g = gate.double()
    if activation == "swiglu_oai":
        inside = g.clamp(max=7.0)
        s = torch.sigmoid(1.702 * inside)
        return inside * s, (s + 1.702 * inside * s * (1 - s)) * (g <= 7.0)
    record = ACTIVATIONS[activation]
    return record.bind(record.reference)(g), record.bind(record.derivative)(g)


def exact_gated(gate: Tensor, up: Tensor, grad_y: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """The product, the gradient of gate and that of up."""
    value, slope = exact_act(gate, activation)
    u, dy = up.double(), grad_y.double()
    factor, factor_slope = (u.clamp(-7.0, 7.0) + 1, u.abs() <= 7.0) if activation == "swiglu_oai" else (u, 1.0)
    return value * factor, dy * factor * slope, dy * value * factor_slope


def assert_near(y: Tensor, expected: Tensor, scale: Tensor | float = 1.0) -> None:
    """One rounding to a 16-bit dtype, a few to float32; ``scale``: what the activation's own error is multiplied by."""
    roundings = 4.0 if y.dtype == torch.float32 else 0.52
    bound = roundings * torch.finfo(y.dtype).eps * expected.abs() + 2e-6 * (1 + torch.as_tensor(scale).abs().double())
    if y.dtype == torch.float16:
        bound = bound + 2.0**-25  # half the distance of the subnormals
    assert bool(((y.double() - expected).abs() <= bound).all()), float(((y.double() - expected).abs() / bound).max())


# Layouts

Layout = Callable[[torch.dtype], Tensor]


def plain_layout(*shape: int) -> Layout:
    return lambda dtype: randn(*shape, dtype=dtype)


LAYOUTS: dict[str, Layout] = {
    **{f"shape {shape}": plain_layout(*shape) for shape in ((), (0,), (1,), (7,), (1023,), (1024,), (1025,))},
    **{f"shape {shape}": plain_layout(*shape) for shape in ((3, 0, 5), (2, 3, 8), (2, 3, 4, 6))},
    "past a block": plain_layout(triton_launch.INTERPRETED_BLOCK + 1),
    "5-D that no four dimensions describe": lambda dtype: randn(4, 3, 4, 6, 2 * SMALL, dtype=dtype)[
        ::2, :, ::2, ::2, ::2
    ].transpose(0, 1),
    "transposed": lambda dtype: randn(9, 6, dtype=dtype).t(),
    "transposed, long": lambda dtype: randn(SMALL + 1, 5, dtype=dtype).t(),
    "channels last": lambda dtype: randn(2, 8, 4, 6, dtype=dtype).contiguous(memory_format=torch.channels_last),
    "channels last, sliced": lambda dtype: randn(1, SMALL + 6, 2, 3, dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )[:, 1:-1],
    "first half": lambda dtype: randn(2, 2, 2 * SMALL, dtype=dtype).chunk(2, dim=-1)[0],
    "second half": lambda dtype: randn(2, 2, 2 * SMALL, dtype=dtype).chunk(2, dim=-1)[1],
    "second half, odd": lambda dtype: randn(3, 2 * SMALL + 6, dtype=dtype)[:, SMALL + 3 :],
    "every other": lambda dtype: randn(81, dtype=dtype)[::2],
    "every other, from the second": lambda dtype: randn(3, 2 * SMALL, dtype=dtype)[:, 1::2],
    "expanded rows": lambda dtype: randn(1, SMALL, dtype=dtype).expand(4, SMALL),
    "expanded columns": lambda dtype: randn(4, 1, dtype=dtype).expand(4, SMALL),
    "expanded scalar": lambda dtype: randn(1, dtype=dtype).expand(2, 3, 7),
    "rows just too short": lambda dtype: randn(3, SMALL + 9, dtype=dtype)[:, : SMALL - 1],
    "rows just long enough": lambda dtype: randn(3, SMALL + 9, dtype=dtype)[:, :SMALL],
    "rows a little longer": lambda dtype: randn(3, SMALL + 9, dtype=dtype)[:, : SMALL + 1],
    "unaligned": lambda dtype: randn(1025, dtype=dtype)[1:],
    "unaligned rows": lambda dtype: randn(4, SMALL + 1, dtype=dtype)[1:, 1:],
}


def gradients_of(shape: torch.Size, dtype: torch.dtype) -> dict[str, Tensor]:
    """Gradients as they come from behind: dense, of stride 0 (``sum`` sends that), between other numbers."""
    return {
        "dense": randn(*shape, dtype=dtype),
        "stride 0": torch.ones((), dtype=dtype).expand(shape),
        "strided": randn(*shape, 2, dtype=dtype)[..., 1],
    }


def check(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    exact: Callable[..., Sequence[Tensor]],
    like: Tensor,
) -> None:
    """Value and gradients of function(*inputs) against exact(*inputs, grad_y), and what they leave untouched."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    before = memory(*leaves)
    y = function(*leaves)
    assert (y.shape, y.dtype, y.device) == (like.shape, like.dtype, like.device)
    with torch.no_grad():
        assert same(function(*leaves), y)
    for kind, grad_y in gradients_of(y.shape, y.dtype).items():
        before_grad = memory(grad_y)
        grads = torch.autograd.grad(y, leaves, grad_y, retain_graph=True)
        again = torch.autograd.grad(y, leaves, grad_y, retain_graph=True) if kind == "dense" else grads
        value, *slopes = exact(*inputs, grad_y)
        widest = max((float(x.detach().abs().max()) for x in (*inputs, grad_y) if x.numel()), default=0.0) + 1
        assert_near(y.detach(), value, widest)
        for x, new, second, expected in zip(leaves, grads, again, slopes, strict=True):
            assert (new.shape, new.dtype) == (x.shape, x.dtype)
            assert_near(new, expected, widest**2)
            assert same(new, second)
        assert torch.equal(memory(grad_y)[0], before_grad[0])
    assert all(torch.equal(a, b) for a, b in zip(memory(*leaves), before, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pointwise_over_layouts(layout: str, dtype: torch.dtype) -> None:
    x = LAYOUTS[layout](dtype)
    for activation in ("gelu", "silu"):

        def exact(x: Tensor, grad_y: Tensor, activation: str = activation) -> tuple[Tensor, Tensor]:
            value, slope = exact_act(x, activation)
            return value, slope * grad_y.double()

        check(functools.partial(pointwise, activation=activation), [x], exact, x)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gated_over_layouts(layout: str, dtype: torch.dtype) -> None:
    gate, up = LAYOUTS[layout](dtype), LAYOUTS[layout](dtype)
    exact = functools.partial(exact_gated, activation="silu")
    for inputs in ((gate, up), (gate.contiguous(), up)):
        check(functools.partial(gated, activation="silu"), inputs, exact, gate)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_of_one_layout_each(dtype: torch.dtype) -> None:
    n = SMALL + 4
    permuted = randn(n, 2, 3, dtype=dtype).permute(1, 2, 0)
    both = randn(2, 3, 2 * n, dtype=dtype)
    expanded = randn(n, dtype=dtype).expand(2, 3, n)
    tensors = (permuted, both[..., ::2], both[..., 1::2], both[..., n:], expanded, randn(2, 3, n, dtype=dtype))
    function = functools.partial(gated, activation="gelu_tanh")
    for gate, up in itertools.product(tensors, repeat=2):
        grad_y = randn(2, 3, n, dtype=dtype)
        y, *grads = results(function, (gate, up), grad_y)
        expected, *slopes = exact_gated(gate, up, grad_y, "gelu_tanh")
        assert_near(y, expected, 15.0)
        for own, slope in zip(grads, slopes, strict=True):
            assert_near(own, slope, 200.0)


def test_neighbours_in_memory_that_do_not_alternate() -> None:
    n = SMALL + 4
    thirds, row = randn(2, 3 * n), randn(2, n + 1)
    for gate, up in (
        (thirds[:, ::3], thirds[:, 1::3]),
        (row[:, :-1], row[:, 1:]),
        (thirds[:, 1 : 2 * n : 2], thirds[:, : 2 * n : 2]),
        (thirds[:, : 2 * n : 2], thirds[:, 1 : n + 1]),
    ):
        grad_y = randn(2, n)
        for own, exact in zip(
            results(functools.partial(gated, activation="silu"), (gate, up), grad_y),
            exact_gated(gate, up, grad_y, "silu"),
            strict=True,
        ):
            assert_near(own, exact, 200.0)


HALVES: dict[str, Layout] = {
    **{
        f"shape {shape}": plain_layout(*shape)
        for shape in ((2,), (0,), (6,), (3, 0), (0, 8), (2, 3, 10), (4, 2 * SMALL), (4, 2 * SMALL + 2), (3, 2046))
    },
    "rows too short": plain_layout(5, 2 * SMALL - 2),
    "transposed": lambda dtype: randn(2 * SMALL, 5, dtype=dtype).t(),
    "channels last": lambda dtype: randn(2, 8, 4, 6, dtype=dtype).contiguous(memory_format=torch.channels_last),
    "every other": lambda dtype: randn(3, 4 * SMALL, dtype=dtype)[:, ::2],
    "expanded": lambda dtype: randn(1, 2 * SMALL, dtype=dtype).expand(4, -1),
    "unaligned": lambda dtype: randn(4, 2 * SMALL + 1, dtype=dtype)[:, 1:],
    "experts": lambda dtype: randn(2, 3, 2 * SMALL + 8, dtype=dtype).transpose(0, 1)[..., 3:-1],
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True], ids=["concatenated", "interleaved"])
@pytest.mark.parametrize("layout", HALVES)
def test_gated_halves_over_layouts(layout: str, interleaved: bool, dtype: torch.dtype) -> None:
    both = HALVES[layout](dtype)
    n = both.shape[-1] // 2
    halves = (slice(None, None, 2), slice(1, None, 2)) if interleaved else (slice(None, n), slice(n, None))
    activation = "swiglu_oai" if interleaved else "silu"

    def exact(both: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
        y, *slopes = exact_gated(*(both[..., half] for half in halves), grad_y, activation)
        slope = torch.empty(both.shape, dtype=torch.float64)
        for half, own in zip(halves, slopes, strict=True):
            slope[..., half] = own
        return y, slope

    check(
        functools.partial(gated_halves, activation=activation, interleaved=interleaved),
        [both],
        exact,
        both[..., :n],
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", GATED)
def test_every_activation(activation: str, dtype: torch.dtype) -> None:
    gate, up = (torch.linspace(-12.0, 12.0, 2500)).to(dtype), randn(2500, dtype=dtype)
    gate = gate[gate != 0]  # relu's kink
    up = up[: gate.numel()]
    check(
        functools.partial(gated, activation=activation),
        (gate, up),
        functools.partial(exact_gated, activation=activation),
        gate,
    )
    if activation in POINTWISE:
        exact = lambda x, dy: (exact_act(x, activation)[0], exact_act(x, activation)[1] * dy.double())  # noqa: E731
        check(functools.partial(pointwise, activation=activation), [gate], exact, gate)


def test_constants_reach_the_kernels() -> None:
    x, up = randn(300).requires_grad_(), randn(300)
    for activation, constants in (
        ("gelu_clipped", {"min": -0.1, "max": 1.5}),
        ("laplace", {"mu": 0.2, "sigma": 0.9}),
        ("laplace", {"sigma": 0.9}),  # mu stays its own
    ):
        record = ACTIVATIONS[activation]
        every = dict(record.parameters) | constants
        value, slope = (f(x.detach().double(), **every) for f in (record.reference, record.derivative))
        for y, factor in ((pointwise(x, activation, **constants), 1.0), (gated(x, up, activation, **constants), up)):
            assert_near(y.detach(), value * factor, 8.0)
            assert_near(torch.autograd.grad(y.sum(), x)[0], slope * factor, 8.0)
    g = x.detach().double().clamp(max=2.0)
    y = gated(x, up, "swiglu_oai", limit=2.0, alpha=1.5)
    assert_near(y.detach(), g * torch.sigmoid(1.5 * g) * (up.double().clamp(-2.0, 2.0) + 1), 8.0)


# Past the dispatcher: ordinary tensors, of any size.

CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "pointwise": lambda x: pointwise(x, "gelu"),
    "gated": lambda x: gated(x, x + 1, "silu"),
    "halves": lambda x: gated_halves(x, "gelu_tanh"),
}


@pytest.fixture
def _no_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls one of the ops fails."""
    for name in ("pointwise", "gated", "gated_halves"):
        for op in (name, f"{name}_backward"):
            monkeypatch.setattr(triton_library, op, lambda *_: pytest.fail("went through the dispatcher"))


@pytest.mark.usefixtures("_no_ops")
@pytest.mark.parametrize("name", CALLS)
def test_ordinary_tensors_go_past_the_dispatcher(name: str) -> None:
    for size in (2, 5000):
        x = randn(3, size)
        y = CALLS[name](x)
        leaf = nn.Parameter(x)
        assert same(CALLS[name](leaf), y)
        torch.autograd.grad(CALLS[name](leaf).sum(), leaf)
        with torch.inference_mode():
            assert same(CALLS[name](x), y)
            assert same(CALLS[name](x.clone()), y)


@pytest.mark.parametrize("name", CALLS)
def test_past_the_dispatcher_it_is_the_same(name: str) -> None:
    """As under a mode that sees every op."""
    x, grad_y = randn(3, 500), None
    for dtype in DTYPES:
        leaf = x.to(dtype).requires_grad_()
        y = CALLS[name](leaf)
        grad_y = torch.randn_like(y)
        (grad_x,) = torch.autograd.grad(y, leaf, grad_y)
        with Recorder() as recorder:
            seen = CALLS[name](leaf)
            (seen_grad,) = torch.autograd.grad(seen, leaf, grad_y)
        assert len(recorder.own) == 2
        assert same(y, seen)
        assert same(grad_x, seen_grad)


def test_what_is_no_memory_goes_through_the_dispatcher() -> None:
    """A negated view and a zero tensor, whose memory says something else, or is none."""
    negated = torch.randn(40, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    assert same(pointwise(negated, "gelu"), pointwise(negated.resolve_neg(), "gelu"))
    assert same(gated(negated, negated, "silu"), gated(*[negated.resolve_neg()] * 2, "silu"))
    leaf = randn(40).requires_grad_()
    (grad,) = torch.autograd.grad(pointwise(leaf, "gelu"), leaf, negated)
    assert same(grad, torch.autograd.grad(pointwise(leaf, "gelu"), leaf, negated.resolve_neg())[0])
    assert torch.equal(pointwise(torch._efficientzerotensor((3,)), "gelu"), torch.zeros(3))


def test_what_was_saved_may_be_no_memory_either() -> None:
    """A negated view, or a zero, that comes back in the backward."""
    z = torch.randn(40, dtype=torch.complex64).requires_grad_()
    negated = z.conj().imag
    assert negated.is_neg()
    grad_y, plain = randn(40), negated.detach().resolve_neg().requires_grad_()
    for function in (
        lambda x: pointwise(x, "gelu"),
        lambda x: gated(x, x, "silu"),
        lambda x: gated(x.detach(), x, "silu"),
    ):
        (own,) = torch.autograd.grad(function(negated), negated, grad_y, retain_graph=True)
        assert same(own, torch.autograd.grad(function(plain), plain, grad_y)[0])
    (own,) = torch.autograd.grad(gated_halves(negated, "silu"), negated, grad_y[:20], retain_graph=True)
    assert same(own, torch.autograd.grad(gated_halves(plain, "silu"), plain, grad_y[:20])[0])
    zero = torch._efficientzerotensor((40,))
    (own,) = torch.autograd.grad(gated(plain, zero, "silu"), plain, grad_y)
    assert torch.equal(own, torch.zeros(40))


@pytest.mark.parametrize("name", CALLS)
def test_a_trace_before_the_dispatcher_sees_the_op(name: str) -> None:
    graph = make_fx(CALLS[name], pre_dispatch=True)(randn(4, 8)).graph
    assert any("hf_gelu_patch" in str(node.target) for node in graph.nodes)


def test_what_is_ordinary_is_found_out_apart_from_modes_and_transforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "_ORDINARY_KEYS", set())
    graph = make_fx(lambda x: pointwise(x, "gelu"))(randn(4)).graph
    assert [str(node.target) for node in graph.nodes if node.op == "call_function"] == [
        "hf_gelu_patch.pointwise.default"
    ]
    grad(lambda x: pointwise(x, "gelu").sum())(randn(4))
    vmap(lambda x: pointwise(x, "gelu"))(randn(4, 3))
    assert not tensors._ORDINARY_KEYS
    pointwise(randn(4), "gelu")
    assert len(tensors._ORDINARY_KEYS) == 2


@pytest.mark.parametrize("name", CALLS)
def test_a_backward_is_differentiated_by_transforms(name: str) -> None:
    """Forward mode over the backward of a graph from outside, and torch.func.grad over one that makes a graph."""
    functions = {**CALLS, "gated": lambda x: gated(x, x + 1, "gelu")}  # aten's SiLU has no second forward derivative
    x, function = randn(4, 6).double().requires_grad_(), functions[name]
    single = x.detach().float().requires_grad_()
    y, exact = function(single), function(x)
    v, t = torch.randn_like(y), torch.randn_like(y)

    def pulled(y: Tensor, x: Tensor, **options: bool) -> Callable[[Tensor], Tensor]:
        return lambda v: torch.autograd.grad(y, x, v, retain_graph=True, **options)[0]

    own = jvp(pulled(y, single), (v,), (t,))
    for mine, truth in zip(own, jvp(pulled(exact, x), (v.double(),), (t.double(),)), strict=True):
        torch.testing.assert_close(mine.double(), truth, rtol=1e-4, atol=1e-5)
    assert bool(own[1].any())
    squared = [
        grad(lambda v, y=y, x=x: pulled(y, x, create_graph=True)(v).square().sum())(v.to(y.dtype))
        for y, x in ((y, single), (exact, x))
    ]
    torch.testing.assert_close(squared[0].double(), squared[1], rtol=1e-4, atol=1e-5)
    assert bool(squared[0].any())


def test_ops_refuse_tensors_that_are_not_alike() -> None:
    eight, two = torch.arange(1.0, 9.0), torch.ones(2)
    for call in (
        lambda: OPS.pointwise_backward(two, eight, "relu", []),
        lambda: OPS.gated(eight, two, "relu", [], False),
        lambda: OPS.gated_backward(two, eight, eight, "relu", [], False, False),
        lambda: OPS.gated_halves_backward(two, eight, "relu", [], False, False),
    ):
        with pytest.raises(ValueError, match="the tensors have to be alike: one is "):
            call()


@pytest.mark.parametrize(
    ("activation", "constants"),
    [
        ("swiglu_oai", {"alpha": -1.0}),
        ("swiglu_oai", {"alpha": 0.0}),
        ("swiglu_oai", {"limit": torch.nan}),
        ("laplace", {"sigma": 0.0}),
        ("laplace", {"mu": torch.nan}),
    ],
)
def test_constants_that_mean_nothing_are_refused(activation: str, constants: dict[str, float]) -> None:
    (name,) = constants
    with pytest.raises(ValueError, match=rf"{activation} takes a .*number as {name}; got"):
        gated(randn(4), randn(4), activation, **constants)


def test_fx_traces_the_expression() -> None:
    x, up = randn(4), randn(4)
    traced = torch.fx.symbolic_trace(lambda x, up: gated(pointwise(x, "gelu"), up, "silu"))
    expected = torch.nn.functional.silu(torch.nn.functional.gelu(x)) * up
    torch.testing.assert_close(traced(x, up), expected)


class Logged(Tensor):
    """A tensor that hears of each function of torch that is called with it."""

    heard: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.heard.append(function.__name__)
        return super().__torch_function__(function, types, args, kwargs)


def test_a_subclass_hears_of_the_function() -> None:
    x = randn(40).as_subclass(Logged)
    y = pointwise(x, "gelu")
    assert "gelu" in Logged.heard
    assert type(y) is Logged


def test_a_batch_of_one_is_computed_as_a_larger_one() -> None:
    """No size is another implementation's: what PyTorch has no limit for is told apart from it in any number."""
    for elements in (1, 7, 5000):
        x = torch.full((elements,), -torch.inf)
        assert torch.equal(pointwise(x, "gelu"), torch.zeros(elements))
        half = torch.full((elements,), 0.7, dtype=torch.bfloat16)
        assert torch.equal(
            gated(half, half * 1.3, "gelu", rounded=True),
            gated(half, half * 1.3, "gelu", rounded=True)[:1].expand(elements),
        )


# Copies: the kernel reads and writes the very tensors, in one launch.


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The addresses of the inputs of each launch; a launch that makes dense copies launches once more with those."""
    seen: list[list[int]] = []
    own = triton_launch.launch

    def recorded(form: str, given: Sequence[Tensor], *options: Any) -> None:
        seen.append([x.data_ptr() for x in given[: triton_launch.FORMS[form]]])
        own(form, given, *options)

    monkeypatch.setattr(triton_launch, "launch", recorded)
    return seen


@pytest.mark.parametrize("columns", [SMALL, SMALL + 1, 1025])
@pytest.mark.parametrize("interleaved", [False, True], ids=["concatenated", "interleaved"])
def test_halves_are_read_where_they_lie(launches: list[list[int]], interleaved: bool, columns: int) -> None:
    both = randn(3, 4, 2 * columns, dtype=torch.bfloat16).requires_grad_()
    start, second = both.data_ptr(), both.data_ptr() + both.element_size() * (1 if interleaved else columns)
    y = gated_halves(both, "silu", interleaved=interleaved)
    grad_y = torch.randn_like(y)
    y.backward(grad_y)
    assert launches == [[start, second], [start, second, grad_y.data_ptr()]]
    launches.clear()
    gate, up = (both[..., ::2], both[..., 1::2]) if interleaved else both.chunk(2, dim=-1)
    gate, up = gate.detach().requires_grad_(), up.detach().requires_grad_()
    gated(gate, up, "silu").backward(grad_y)
    assert launches == [[start, second], [start, second, grad_y.data_ptr()]]


def test_only_too_many_dimensions_go_through_copies(launches: list[list[int]]) -> None:
    gated_halves(randn(3, 2 * SMALL - 2), "silu")
    gated(randn(5, 70, 30).transpose(1, 2), randn(5, 30, 70), "silu")
    assert len(launches) == 2
    permuted, plain = randn(3, 2, 4, 6, SMALL).permute(3, 1, 0, 2, 4), randn(6, 2, 3, 4, SMALL)
    gated(permuted, plain, "silu")
    assert len(launches) == 4


# Any layout gives the bits of a dense copy.


SIZES = st.one_of(st.integers(0, 5), st.sampled_from([SMALL - 1, SMALL, SMALL + 1]))
SHAPES = st.lists(SIZES, max_size=5).filter(
    lambda shape: math.prod(shape) <= 4_000
)  # interpreted, each row is a program
PROPERTY = settings(deadline=None, max_examples=60, derandomize=True, database=None)


def results(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_y: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad_y)]


def assert_as_dense(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_y: Tensor) -> Tensor:
    """The value, which is compared as the gradients are."""
    new = results(function, inputs, grad_y)
    dense = [x.clone(memory_format=torch.contiguous_format) for x in (*inputs, grad_y)]
    expected = results(function, dense[:-1], dense[-1])
    assert all(same(a, b) for a, b in zip(new, expected, strict=True))
    return new[0]


@pytest.mark.slow
@PROPERTY
@given(st.data(), SHAPES, st.sampled_from(DTYPES), st.sampled_from(POINTWISE))
def test_pointwise_is_that_of_a_dense_copy(
    data: st.DataObject, shape: list[int], dtype: torch.dtype, activation: str
) -> None:
    x, grad_y = (data.draw(layouts(shape, dtype)) for _ in range(2))
    assert_as_dense(functools.partial(pointwise, activation=activation), [x], grad_y)


@pytest.mark.slow
@PROPERTY
@given(st.data(), SHAPES, st.sampled_from(DTYPES), st.sampled_from(GATED), st.booleans())
def test_gated_is_that_of_dense_copies(
    data: st.DataObject, shape: list[int], dtype: torch.dtype, activation: str, rounded: bool
) -> None:
    gate, up, grad_y = (data.draw(layouts(shape, dtype)) for _ in range(3))
    assert_as_dense(functools.partial(gated, activation=activation, rounded=rounded), [gate, up], grad_y)


@pytest.mark.slow
@PROPERTY
@given(st.data(), SHAPES.filter(bool), st.sampled_from(DTYPES), st.sampled_from(GATED), st.booleans())
def test_gated_halves_are_those_of_a_dense_copy(
    data: st.DataObject, shape: list[int], dtype: torch.dtype, activation: str, interleaved: bool
) -> None:
    both = data.draw(layouts([*shape[:-1], 2 * shape[-1]], dtype))
    grad_y = data.draw(layouts(shape, dtype))
    function = functools.partial(gated_halves, activation=activation, interleaved=interleaved)
    y = assert_as_dense(function, [both], grad_y)
    gate, up = (both[..., ::2], both[..., 1::2]) if interleaved else both.chunk(2, dim=-1)
    assert same(y, gated(gate, up, activation))


# Rounding


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_rounded_is_nearer_to_eager_and_further_from_the_truth(activation: str, dtype: torch.dtype) -> None:
    gate, up, grad_y = (randn(20_000, dtype=dtype) for _ in range(3))
    act = ACTIVATIONS[activation].eager
    eager = results(lambda gate, up: act(gate) * up, (gate, up), grad_y)
    exact = exact_gated(gate, up, grad_y, activation)
    once, twice = (
        results(functools.partial(gated, activation=activation, rounded=rounded), (gate, up), grad_y)
        for rounded in (False, True)
    )
    for own, rounded, theirs, truth in zip(once, twice, eager, exact, strict=True):
        alike, alike_rounded = (float((y == theirs).double().mean()) for y in (own, rounded))
        assert alike_rounded > max(0.95, alike + 0.1)
        error, error_rounded = ((y.double() - truth).abs() for y in (own, rounded))
        assert float(error.mean()) < 0.9 * float(error_rounded.mean())
        assert float(error.max()) <= float(error_rounded.max())
    both = torch.cat([gate, up])
    assert same(gated_halves(both, activation, rounded=True), twice[0])


def test_float32_has_nothing_to_round() -> None:
    inputs, grad_y = (randn(1000), randn(1000)), randn(1000)
    once, twice = (
        results(functools.partial(gated, activation="silu", rounded=it), inputs, grad_y) for it in (False, True)
    )
    assert all(same(a, b) for a, b in zip(once, twice, strict=True))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("rounded", [False, True])
def test_the_backward_gives_the_product_again(rounded: bool, dtype: torch.dtype) -> None:
    for activation, make in itertools.product(("silu", "swiglu_oai"), (lambda: randn(1500), lambda: randn(70, 3).t())):
        gate, up, grad_y = (make().to(dtype) for _ in range(3))
        options = activation, CONSTANTS.get(activation, []), rounded
        *grads, y = OPS.gated_backward(grad_y, gate, up, *options, True)
        assert same(y, OPS.gated(gate, up, *options))
        *without, empty = OPS.gated_backward(grad_y, gate, up, *options, False)
        assert empty.shape == (0,)
        assert all(same(a, b) for a, b in zip(grads, without, strict=True))


@pytest.mark.skipif(not hasattr(GptOssExperts, "_apply_gate"), reason="inline before transformers 5")
@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES], ids=str)
def test_swiglu_oai_is_that_of_gpt_oss(dtype: torch.dtype) -> None:
    experts = GptOssExperts(GptOssConfig(num_local_experts=1, hidden_size=4, intermediate_size=4))
    edges = torch.tensor([7.0, -7.0, 7.125, -7.125, 6.875, -6.875, 0.0, 20.0, -20.0, 1.5, -0.75])
    pairs = torch.cartesian_prod(edges, edges).reshape(1, -1)
    both = torch.cat([pairs, randn(1, 400) * 2], dim=1).to(dtype)
    grad_y = randn(1, both.shape[1] // 2, dtype=dtype)
    exact = results(experts._apply_gate, [both.double()], grad_y.double())
    theirs = results(experts._apply_gate, [both], grad_y)
    split = lambda both: gated(both[..., ::2], both[..., 1::2], "swiglu_oai")  # noqa: E731
    halves = functools.partial(gated_halves, activation="swiglu_oai", interleaved=True)
    op = lambda both: OPS.gated_halves(both, "swiglu_oai", [1.702, 7.0], True, False)  # noqa: E731
    for function in (halves, split, op):
        for y, expected, eager in zip(results(function, [both], grad_y), exact, theirs, strict=True):
            if dtype == torch.float64:
                assert torch.allclose(y, expected, rtol=1e-13, atol=1e-13)
            else:
                assert_near(y, expected, 30.0)
                error, eager_error = ((it.double() - expected).abs().max() for it in (y, eager))
                assert float(error) <= float(eager_error) + 1e-5
            assert bool((y[expected == 0] == 0).all())  # beyond the clamps, no gradient; at them, one
            assert bool((y[expected.abs() > 1e-6] != 0).all())


# Autograd beyond the first derivative

POINTS = torch.tensor([-3.1, -1.2, -0.5, 0.3, 0.9, 2.6], dtype=torch.float64)  # no kink near
NAMED = {"gelu_clipped": {"min": -0.1, "max": 1.5}, "swiglu_oai": {"alpha": 1.702, "limit": 1.4}}


def forms(activation: str) -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Each function of the activation, through the public function and as the op itself, and points in float64."""
    named = NAMED.get(activation, {})
    constants = list(named.values()) or CONSTANTS.get(activation, [])
    public = {"activation": activation, **named}
    gate, up = POINTS.clone().requires_grad_(), POINTS.flip(0).clone().requires_grad_()
    both = torch.cat([POINTS, POINTS.flip(0)]).requires_grad_()
    found: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
        "gated": (functools.partial(gated, **public), (gate, up)),
        "halves": (functools.partial(gated_halves, **public), (both,)),
        "interleaved": (functools.partial(gated_halves, interleaved=True, **public), (both,)),
        "op gated": (lambda g, u: OPS.gated(g, u, activation, constants, False), (gate, up)),
        "op halves": (lambda x: OPS.gated_halves(x, activation, constants, False, False), (both,)),
        "op interleaved": (lambda x: OPS.gated_halves(x, activation, constants, True, False), (both,)),
    }
    if activation in POINTWISE:
        found["pointwise"] = functools.partial(pointwise, **public), (gate,)
        found["op pointwise"] = lambda x: OPS.pointwise(x, activation, constants), (gate,)
    return found


@pytest.mark.parametrize("activation", GATED)
def test_first_and_second_derivatives_by_differences(activation: str) -> None:
    for function, inputs in forms(activation).values():
        assert torch.autograd.gradcheck(function, inputs, rtol=1e-5, atol=1e-7)
        assert torch.autograd.gradgradcheck(function, inputs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("activation", GATED)
def test_derivatives_of_any_order_in_float32(activation: str) -> None:
    for name, (function, inputs) in forms(activation).items():
        if name.startswith("op"):
            continue
        orders = [derivatives(function, [x.to(dtype) for x in inputs]) for dtype in (torch.float32, torch.float64)]
        assert len(orders[0]) == len(orders[1])
        for own, expected in zip(*orders, strict=True):
            torch.testing.assert_close(own.double(), expected, rtol=2e-4, atol=2e-4)


def test_a_gradient_penalty_trains() -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(1)
        layer, out, x = nn.Linear(6, 16).to(dtype), nn.Linear(8, 1).to(dtype), torch.randn(5, 6).to(dtype)
        x.requires_grad_()
        score = out(gated_halves(pointwise(layer(x), "gelu"), "silu"))
        (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        (score.mean() + (slope.norm(dim=1) - 1).square().mean()).backward()
        found.append([weight.grad for weight in (*layer.parameters(), *out.parameters(), x) if weight.grad is not None])
    assert len(found[0]) == len(found[1]) == 5
    for own, expected in zip(*found, strict=True):
        assert float(expected.abs().max()) > 0
        torch.testing.assert_close(own.double(), expected, rtol=1e-4, atol=1e-5)


def test_only_the_gradients_asked_for() -> None:
    for gate_needs, up_needs, create_graph in itertools.product((False, True), repeat=3):
        gate, up = randn(50).requires_grad_(gate_needs), randn(50).requires_grad_(up_needs)
        y = gated(gate, up, "silu")
        assert y.requires_grad == (gate_needs or up_needs)
        if y.requires_grad:
            y.sum().backward(create_graph=False) if not create_graph else None
            wanted = [leaf for leaf in (gate, up) if leaf.requires_grad]
            y = gated(gate, up, "silu")
            grads = torch.autograd.grad(y.sum(), wanted, create_graph=create_graph)
            _, *expected = exact_gated(gate.detach(), up.detach(), torch.ones(50), "silu")
            kept = [slope for slope, leaf in zip(expected, (gate, up), strict=True) if leaf.requires_grad]
            for own, slope in zip(grads, kept, strict=True):
                assert_near(own.detach(), slope, 8.0)


def test_what_is_saved_for_the_backward() -> None:
    def saved(function: Callable[[], Tensor]) -> list[int]:
        found: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: found.append(x) or x, lambda x: x):
            assert function().requires_grad
        return sorted({x.data_ptr() for x in found})

    gate, up = (randn(64).requires_grad_() for _ in range(2))
    both = randn(128).requires_grad_()
    assert len(saved(lambda: F.silu(gate) * up)) == 3
    assert saved(lambda: gated(gate, up, "silu")) == sorted([gate.data_ptr(), up.data_ptr()])
    assert saved(lambda: gated_halves(both, "silu")) == [both.data_ptr()]
    assert saved(lambda: pointwise(gate, "gelu")) == [gate.data_ptr()]


# The ops as torch knows them

CHECKED = {"1-D": (6,), "2-D": (3, 2 * SMALL), "3-D": (2, 3, 4)}


def checked(shape: Sequence[int], layout: str, dtype: torch.dtype) -> Tensor:
    return {
        "dense": lambda: randn(*shape, dtype=dtype),
        "reversed": lambda: randn(*reversed(shape), dtype=dtype).permute(*reversed(range(len(shape)))),
        "sliced": lambda: randn(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., ::2],
        "expanded": lambda: randn(shape[-1], dtype=dtype).expand(tuple(shape)),
    }[layout]()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ("1-D", "dense"),
        ("1-D", "sliced"),
        *itertools.product(("2-D", "3-D"), ("dense", "reversed", "sliced", "expanded")),
    ],
)  # of one dimension, the other two are dense
def test_opcheck(shape: str, layout: str, dtype: torch.dtype) -> None:
    size = CHECKED[shape]
    half = (*size[:-1], size[-1] // 2)
    make = functools.partial(checked, layout=layout, dtype=dtype)
    for needs in (False, True):
        x, up = make(size).detach().requires_grad_(needs), randn(*size, dtype=dtype)
        torch.library.opcheck(OPS.pointwise.default, (x, "gelu", []))
        torch.library.opcheck(OPS.gated.default, (x, up, "swiglu_oai", [1.702, 7.0], False))
        torch.library.opcheck(OPS.gated_halves.default, (x, "silu", [], needs, False))
    x, grad_y = make(size), randn(*size, dtype=dtype)
    torch.library.opcheck(OPS.pointwise_backward.default, (grad_y, x, "gelu", []))
    for again in (False, True):
        torch.library.opcheck(
            OPS.gated_backward.default, (grad_y, x, up.detach(), "swiglu_oai", [1.702, 7.0], again, again)
        )
        torch.library.opcheck(
            OPS.gated_halves_backward.default, (randn(*half, dtype=dtype), x, "silu", [], again, False)
        )


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_traced_as_ops_they_stay_ops(mode: str) -> None:
    def step(gate: Tensor, up: Tensor) -> tuple[Tensor, ...]:
        y = OPS.gated(OPS.pointwise(gate, "gelu", []), up, "silu", [], False)
        both = OPS.gated_halves(y, "silu", [], False, False)
        return y, both, *OPS.gated_backward(y, gate, up, "silu", [], False, False)

    gate, up = randn(4, 6), randn(6, 4).t()
    graph = make_fx(step, tracing_mode=mode)(gate, up)
    found = {str(node.target): node.meta["val"] for node in graph.graph.nodes if "hf_gelu_patch" in str(node.target)}
    names = "pointwise", "gated", "gated_halves", "gated_backward"
    assert list(found) == [f"hf_gelu_patch.{name}.default" for name in names]
    pointwise_, gated_, halves, backward = found.values()
    shapes = [tuple(y.shape) for y in (pointwise_, gated_, halves, *backward)]
    assert shapes == [(4, 6), (4, 6), (4, 3), (4, 6), (4, 6), (0,)]
    for own, expected in zip(graph(gate, up), step(gate, up), strict=True):
        assert torch.equal(own, expected)


# Compiled, they are plain aten.


class Mixed(nn.Module):
    def forward(self, x: Tensor, up: Tensor) -> Tensor:
        y = gated(pointwise(x, "gelu"), up, "silu")
        both = torch.cat([y, up * 3], dim=-1)
        return gated_halves(both, "swiglu_oai", interleaved=True) + pointwise(y, "laplace", mu=0.1)


def compiled_and_not(compiled: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    grad_y = torch.randn(inputs[0].shape)
    for own, expected in zip(results(compiled, inputs, grad_y), results(Mixed(), inputs, grad_y), strict=True):
        torch.testing.assert_close(own, expected, rtol=2e-5, atol=2e-5)


def test_compiled_they_are_aten() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    compiled = torch.compile(Mixed(), backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True)
    compiled_and_not(compiled, (randn(4, 6), randn(4, 6)))
    assert len(graphs) == 2  # forward, backward
    calls = [node.target for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert len(calls) > 10
    assert {target.namespace for target in calls if isinstance(target, torch._ops.OpOverload)} <= {"aten", "prims"}
    assert torch.ops.aten.gelu.default in calls
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    # That the compiler can vectorise is no question here; to answer it, Inductor compiles a program.
    compiled = torch.compile(Mixed(), fullgraph=True, options={"cpp.vec_isa_ok": True})
    compiled_and_not(compiled, (randn(4, 6), randn(6, 4).t()))
    torch._dynamo.reset()


def test_exported_with_a_dynamic_batch() -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(
        Mixed(), (randn(4, 6), randn(4, 6)), dynamic_shapes={"x": {0: batch}, "up": {0: batch}}
    )
    assert "hf_gelu_patch" not in str(exported.graph)
    inputs = randn(9, 6), randn(9, 6)
    torch.testing.assert_close(exported.module()(*inputs), Mixed()(*inputs), rtol=2e-5, atol=2e-5)


def test_a_jit_trace_holds_no_op_of_ours() -> None:
    x = randn(4, 6)
    traced = torch.jit.trace(lambda x: pointwise(x, "gelu"), (x,))
    assert "aten::gelu" in str(traced.graph)
    assert "hf_gelu_patch::" not in str(traced.graph)
    torch.testing.assert_close(traced(x * 2), F.gelu(x * 2))


# Modes and transforms


@pytest.mark.parametrize("activation", GATED)
def test_autocast_gives_the_dtype_of_the_expression(activation: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in DTYPES:
            gate, up = randn(8, 8, dtype=dtype), randn(8, 8, dtype=dtype)
            expected = triton_forms.eager_gated(activation, CONSTANTS.get(activation, []))(gate, up)
            assert gated(gate, up, activation).dtype == expected.dtype
            assert gated_halves(gate, activation).dtype == expected.dtype
            if activation in POINTWISE:
                expected = triton_forms.eager(activation, CONSTANTS.get(activation, []))(gate)
                assert pointwise(gate, activation).dtype == expected.dtype
    linear, x = nn.Linear(8, 8), randn(4, 8).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = gated_halves(linear(x), "silu")
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == linear.weight.grad.dtype == torch.float32


SINGLE: dict[str, tuple[Callable[..., Any], int]] = {
    "pointwise": (lambda x: OPS.pointwise(x, "gelu", []), 1),
    "pointwise_backward": (lambda dy, x: OPS.pointwise_backward(dy, x, "gelu", []), 2),
    "gated": (lambda g, u: OPS.gated(g, u, "silu", [], False), 2),
    "gated_backward": (lambda dy, g, u: OPS.gated_backward(dy, g, u, "silu", [], False, False), 3),
    "gated_backward, again": (lambda dy, g, u: OPS.gated_backward(dy, g, u, "silu", [], False, True), 3),
    "gated_halves": (lambda x: OPS.gated_halves(x, "silu", [], False, False), 1),
    "gated_halves, interleaved": (lambda x: OPS.gated_halves(x, "silu", [], True, False), 1),
    "gated_halves_backward": (lambda dy, x: OPS.gated_halves_backward(dy[..., :3], x, "silu", [], True, False), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("op", SINGLE)
def test_vmap_is_one_call_after_the_other(op: str) -> None:
    function, count = SINGLE[op]
    one = randn(5, 6)
    batched = {0: randn(4, 5, 6), 1: randn(5, 4, 6), -1: randn(5, 6, 4), None: one}
    for dims in itertools.product((0, 1, -1, None) if count < 3 else (1, -1, None), repeat=count):
        if all(dim is None for dim in dims):
            continue
        inputs = [batched[dim] for dim in dims]
        with Recorder() as recorder:
            new = vmap(function, in_dims=dims)(*inputs)
        assert len(recorder.own) == 1  # not one each
        each = [
            function(*(x if dim is None else x.select(dim, i) for x, dim in zip(inputs, dims, strict=True)))
            for i in range(4)
        ]
        if isinstance(new, Tensor):
            new, each = (new,), [(y,) for y in each]
        for own, *others in zip(new, *each, strict=True):
            assert torch.equal(own, torch.stack(others))


def test_batched_gradients() -> None:
    for function, width in (
        (lambda x: pointwise(x, "gelu"), 6),
        (lambda x: gated(x, x, "silu"), 6),
        (lambda x: gated_halves(x, "silu"), 3),
    ):
        x = randn(4, 6).requires_grad_()
        grads = randn(5, 4, width)
        y = function(x)
        (batched,) = torch.autograd.grad(y, x, grads, is_grads_batched=True, retain_graph=True)
        each = torch.stack([torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in grads])
        torch.testing.assert_close(batched, each)


def transformed() -> dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    return {
        "pointwise": (lambda x: pointwise(x, "gelu"), (randn(4, 6),)),
        "gated": (lambda g, u: gated(g, u, "gelu_tanh"), (randn(4, 6), randn(4, 6))),
        "halves": (lambda x: gated_halves(x, "swiglu_oai"), (randn(4, 6),)),
    }


@pytest.mark.parametrize("name", ["pointwise", "gated", "halves"])
def test_transforms_give_the_derivatives(name: str) -> None:
    function, inputs = transformed()[name]
    total = lambda *inputs: function(*inputs).sum()  # noqa: E731
    leaves = [x.clone().requires_grad_() for x in inputs]
    expected = torch.autograd.grad(total(*leaves), leaves)
    every = tuple(range(len(inputs)))
    for transform in (grad(total, argnums=every), vmap(grad(total, argnums=every))):
        for own, slope in zip(transform(*inputs), expected, strict=True):
            torch.testing.assert_close(own, slope, rtol=1e-5, atol=1e-5)
    tangents = tuple(torch.randn_like(x) for x in inputs)
    doubled = jvp(function, tuple(x.double() for x in inputs), tuple(t.double() for t in tangents))
    for own, exact in zip(jvp(function, inputs, tangents), doubled, strict=True):
        torch.testing.assert_close(own.double(), exact, rtol=1e-5, atol=1e-5)
    with forward_ad.dual_level():
        y = function(*(forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)))
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent.double(), doubled[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vmap(function)(*inputs), function(*inputs), rtol=1e-5, atol=1e-5)


def test_subclasses_of_tensor_get_the_expression() -> None:
    pieces = [randn(3, 4), randn(5, 4)]
    nested = torch.nested.nested_tensor(pieces, layout=torch.jagged)
    for own, x in zip(pointwise(nested, "gelu").unbind(), pieces, strict=True):
        torch.testing.assert_close(own, F.gelu(x))
    for own, x in zip(gated(nested, nested, "silu").unbind(), pieces, strict=True):
        torch.testing.assert_close(own, F.silu(x) * x)
    with Recorder() as recorder:
        pointwise(nn.Parameter(randn(4)), "gelu")
        pointwise(randn(4), "gelu")
    assert recorder.own == ["pointwise"] * 2


def test_nothing_is_computed_on_the_meta_device() -> None:
    x = torch.empty(3, 8, device="meta", requires_grad=True)
    for function, shape in (
        (lambda: pointwise(x, "gelu"), (3, 8)),
        (lambda: gated(x, x, "silu"), (3, 8)),
        (lambda: gated_halves(x, "silu", interleaved=True), (3, 4)),
        (lambda: OPS.gated_halves(x, "silu", [], False, False), (3, 4)),
    ):
        y = function()
        assert (y.shape, y.device.type) == (shape, "meta")
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert (slope.shape, slope.device.type) == ((3, 8), "meta")
    *grads, y = OPS.gated_backward(x, x, x, "silu", [], False, True)
    assert [tuple(it.shape) for it in (*grads, y)] == [(3, 8)] * 3


# What is refused


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x: pointwise(x, "gleu"),
            UnknownNameError,
            r"'gleu'. Did you mean 'gelu'\? Valid names: gelu, gelu_clip",
        ),
        (lambda x: pointwise(x, "swiglu_oai"), UnknownNameError, "Valid names: gelu, .*silu, sqrt_softplus.$"),
        (lambda x: gated(x, x, "tanh"), UnknownNameError, "Valid names: gelu, .*swiglu_oai"),
        (lambda x: gated_halves(x, "tanh"), UnknownNameError, "Valid names: gelu, .*swiglu_oai"),
        (lambda x: pointwise(x, "gelu", mu=0.0), TypeError, "gelu takes no constants; got mu"),
        (lambda x: pointwise(x, "laplace", min=0.0), TypeError, "laplace takes mu, sigma; got min"),
        (lambda x: gated(x, x, "swiglu_oai", beta=1.0), TypeError, "swiglu_oai takes alpha, limit; got beta"),
        (lambda x: gated(x, x[:1], "silu"), ValueError, r"gate has shape \(3, 4\) and up \(1, 4\): expand or split"),
        (lambda x: gated(x, x.half(), "silu"), TypeError, r"gate is torch.float32 on cpu, up torch.float16 on cpu"),
        (lambda x: gated(x, x.to("meta"), "silu"), TypeError, r"on cpu, up torch.float32 on meta"),
        (lambda x: gated_halves(x[:, :3], "silu"), ValueError, r"split into halves, and the shape is \(3, 3\)"),
        (lambda x: gated_halves(x.sum(), "silu"), ValueError, r"split into halves, and the shape is \(\)"),
        (
            lambda x: pointwise(x.long(), "relu"),
            TypeError,
            "takes bfloat16, float16, float32, float64; got torch.int64",
        ),
        (lambda x: gated(x.long(), x.long(), "relu"), TypeError, "takes bfloat16, .*; got torch.int64"),
        (lambda x: gated_halves(x.cfloat(), "silu"), TypeError, "takes bfloat16, .*; got torch.complex64"),
    ],
)
def test_errors(call: Callable[[Tensor], Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(randn(3, 4))


# Without the interpreter, a CPU has no kernels: everything there is aten's.


@pytest.mark.slow
def test_on_a_cpu_without_the_interpreter_all_is_aten() -> None:
    printed = printed_by_fork("""
import sys, torch
import torch.nn.functional as F
from hf_gelu_patch.implementations import triton_ops
from torch.utils._python_dispatch import TorchDispatchMode
class Names(TorchDispatchMode):
    seen = []
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))
x, up = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6)
expected = F.gelu(x), F.silu(x) * up, F.silu(x[:, :3]) * x[:, 3:]
with Names():
    public = triton_ops.pointwise(x, "gelu"), triton_ops.gated(x, up, "silu"), triton_ops.gated_halves(x, "silu")
    sum(y.sum() for y in public).backward()
print(any(name.startswith("hf_gelu_patch") for name in Names.seen), all(map(torch.equal, public, expected)))
raw = torch.ops.hf_gelu_patch
own = raw.pointwise(x, "gelu", []), raw.gated(x, up, "silu", [], False), raw.gated_halves(x, "silu", [], False, False)
print(all(map(torch.equal, own, expected)))
for y, aten in zip(own, expected):
    grad_y = torch.randn(y.shape)
    a, b = (torch.autograd.grad(it, x, grad_y)[0] for it in (y, aten))
    print(torch.allclose(a, b, rtol=1e-5, atol=1e-6))
try:
    triton_ops.pointwise(torch.arange(3), "relu")
except TypeError as error:
    print("TypeError")
print("hf_gelu_patch.implementations.triton_kernels" in sys.modules)
""")
    assert printed.split() == ["False", "True", "True", "True", "True", "True", "TypeError", "False"]
