"""The registry, the numbers of each implementation, and the Triton op (interpreted)."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from conftest import printed_by
from torch import Tensor
from transformers.activations import ACT2FN

from hf_gelu_patch import (
    ACTIVATIONS,
    IMPLEMENTATIONS,
    GradientRefusedError,
    Implementation,
    PatchError,
    UnknownNameError,
    kernels,
    ops,
    register_implementation,
)
from hf_gelu_patch.implementations import get_implementation

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
COMPUTED = [(name, activation) for name, it in IMPLEMENTATIONS.items() for activation in it.functions]


def every_value(dtype: torch.dtype) -> Tensor:
    """All finite 16-bit values of magnitude up to 100; in fp32, a dense grid."""
    if dtype == torch.float32:
        return torch.linspace(-20.0, 20.0, 65_537)
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    return x[x.isfinite() & (x.abs() <= 100)]


def error(y: Tensor, expected: Tensor) -> float:
    """The largest error against float64, as a share of the larger of |expected| and 1."""
    return float(((y.double() - expected).abs() / expected.abs().clamp(min=1.0)).max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "activation"), COMPUTED)
def test_forward_and_backward_against_float64(name: str, activation: str, dtype: torch.dtype) -> None:
    record = ACTIVATIONS[activation]
    function = IMPLEMENTATIONS[name].build(record)
    x = every_value(dtype)
    exact = record.bind(record.reference)(x.double())
    slope = record.bind(record.derivative)(x.double())
    eager_error = error(record.bind(record.eager)(x), exact)
    # 16-bit: computed in fp32, rounded once. fp32: a few roundings of its own.
    floor = torch.finfo(dtype).eps * (2.0 if dtype == torch.float32 else 0.51)
    with torch.no_grad():
        without_gradient = function(x)
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    grad_y = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    (grad_x,) = torch.autograd.grad(y, leaf, grad_y)
    assert without_gradient.dtype == y.dtype == grad_x.dtype == dtype
    assert error(without_gradient, exact) <= max(eager_error, floor)
    assert error(y.detach(), exact) <= max(eager_error, floor)
    if name != "eager":
        kink = (record.bind(record.derivative)(x.double() + 1e-9) - slope).abs() < 1e-3  # relu's at 0: either side
        leaf = x.clone().requires_grad_()
        (eager_grad,) = torch.autograd.grad(record.bind(record.eager)(leaf), leaf, grad_y)
        expected = grad_y.double() * slope
        assert error(grad_x[kink], expected[kink]) <= max(error(eager_grad[kink], expected[kink]) * 1.1, floor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_identical_means_identical_bits(name: str, dtype: torch.dtype) -> None:
    implementation = IMPLEMENTATIONS[name]
    x = every_value(dtype)
    checked = 0
    for activation in implementation.identical & implementation.functions.keys():
        record = ACTIVATIONS[activation]
        if record.config_name is None:
            continue
        with torch.no_grad():
            expected, y = ACT2FN[record.config_name](x), implementation.build(record)(x)
        assert torch.equal(y, expected), activation
        leaf = x.clone().requires_grad_()
        assert torch.equal(implementation.build(record)(leaf).detach(), expected), activation
        checked += 1
    assert checked == {"eager": 16, "aten": 3, "triton": 0}[name]


@pytest.mark.parametrize("activation", IMPLEMENTATIONS["aten"].functions)
def test_aten_never_writes_to_its_input_and_double_backward_is_right(activation: str) -> None:
    record = ACTIVATIONS[activation]
    function = IMPLEMENTATIONS["aten"].build(record)
    x = torch.randn(64)
    before = x.clone()
    with torch.no_grad():
        function(x)
    assert torch.equal(x, before)
    if activation != "hardswish":  # torch has no double backward for it
        leaf = (torch.randn(16, dtype=torch.float64) * 3).requires_grad_()
        assert torch.autograd.gradgradcheck(function, leaf)


@pytest.mark.parametrize("special", [0.0, -0.0, 1e-40, 3e38, -3e38, 1e13, -1e13, float("inf"), float("nan")])
@pytest.mark.parametrize("activation", ops.POINTWISE)
def test_special_values(activation: str, special: float) -> None:  # NaN stays NaN; nothing else becomes one
    x = torch.tensor([special]).requires_grad_()
    y = ops.pointwise(x, activation)
    (grad,) = torch.autograd.grad(y, x, torch.ones(1))
    if special != special:
        assert y.isnan()
        assert grad.isnan()
    else:
        assert not y.isnan()
        assert not grad.isnan()
        assert (y > 1e12) == (special > 1e12)


def test_there_is_a_kernel_for_every_activation_the_op_declares() -> None:
    assert set(ops.POINTWISE) == kernels.FUNCTIONS.keys() == IMPLEMENTATIONS["triton"].functions.keys()


LAYOUTS = {
    "empty": lambda: torch.randn(0, 96),
    "scalar": lambda: torch.randn(()),
    "one": lambda: torch.randn(1),
    "odd": lambda: torch.randn(3, 7, 5),
    "past a block": lambda: torch.randn(16385),
    "4-d": lambda: torch.randn(2, 3, 4, 5),
    "transposed": lambda: torch.randn(8, 6).t(),
    "channels last": lambda: torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "chunk half": lambda: torch.randn(4, 5, 12).chunk(2, dim=-1)[1],
    "every other": lambda: torch.randn(40)[::2],
    "expanded": lambda: torch.randn(1, 6).expand(4, 6),
}


@pytest.mark.parametrize("implementation", ["aten", "triton"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_shape_and_stride(layout: str, implementation: str) -> None:  # trap 12
    x = LAYOUTS[layout]()
    for activation in ops.POINTWISE:
        function = IMPLEMENTATIONS[implementation].build(ACTIVATIONS[activation])
        leaf = x.detach().clone().requires_grad_() if layout == "expanded" else x.detach().requires_grad_()
        y = function(leaf)
        expected = ACTIVATIONS[activation].eager(leaf)
        assert y.shape == x.shape
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            torch.autograd.grad(y.sum(), leaf)[0],  # sum() sends back a gradient of stride 0
            torch.autograd.grad(expected.sum(), leaf)[0],
            rtol=1e-5,
            atol=1e-6,
        )
        strided = torch.randn(*x.shape, 2)[..., 0]
        torch.testing.assert_close(
            torch.autograd.grad(function(leaf), leaf, strided)[0],
            torch.autograd.grad(ACTIVATIONS[activation].eager(leaf), leaf, strided)[0],
            rtol=1e-5,
            atol=1e-6,
        )


def test_a_second_backward_gives_the_same_gradient() -> None:  # trap 4
    x = torch.randn(100, requires_grad=True)
    y = ops.pointwise(x, "gelu")
    grad_y = torch.randn(100)
    kept = grad_y.clone()
    (first,) = torch.autograd.grad(y, x, grad_y, retain_graph=True)
    (second,) = torch.autograd.grad(y, x, grad_y)
    assert torch.equal(first, second)
    assert torch.equal(grad_y, kept)


def test_double_backward_of_the_kernels_is_refused() -> None:
    x = torch.randn(10, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.pointwise(x, "gelu").sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        grad.sum().backward()


def test_the_op_is_well_formed() -> None:
    for shape in ((7,), (2, 3), (2, 3, 4)):
        torch.library.opcheck(torch.ops.hf_gelu_patch.pointwise, (torch.randn(shape, requires_grad=True), "silu"))


def test_under_compile_the_op_is_plain_aten() -> None:  # trap 18
    seen = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    compiled = torch.compile(functools.partial(ops.pointwise, activation="gelu"), backend=backend, fullgraph=True)
    x = torch.randn(8)
    torch.testing.assert_close(compiled(x), F.gelu(x))
    assert any("gelu" in target for target in seen)
    assert not any("hf_gelu_patch" in target for target in seen)


def test_the_kernels_say_where_they_run() -> None:
    code = """
import torch
from hf_gelu_patch import ops
for x in (torch.randn(3),):
    try:
        ops.pointwise(x, "gelu")
    except RuntimeError as error:
        print(error)
"""
    printed = printed_by(code)
    assert "runs on CUDA and ROCm devices; got a tensor on cpu" in printed
    assert 'implementation="auto"' in printed


def test_the_kernels_refuse_float64() -> None:
    with pytest.raises(TypeError, match="float64"):
        ops.pointwise(torch.randn(3, dtype=torch.float64), "gelu")


def test_an_unknown_implementation_lists_the_valid_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'triton'\? Valid names: aten, auto, eager, triton"):
        get_implementation("tritn")


def test_a_name_is_registered_once_and_only_for_known_activations() -> None:
    with pytest.raises(PatchError, match="taken"):
        register_implementation(Implementation("aten", {}))
    with pytest.raises(PatchError, match="taken"):
        register_implementation(Implementation("auto", {}))
    with pytest.raises(UnknownNameError, match="gelu_newest"):
        register_implementation(Implementation("mine", {"gelu_newest": F.gelu}))
    assert "mine" not in IMPLEMENTATIONS


def test_obstacles() -> None:
    triton = IMPLEMENTATIONS["triton"]
    assert triton.obstacle(torch.device("cuda"), torch.bfloat16) is None
    assert triton.obstacle(torch.device("meta"), torch.bfloat16) is None
    assert triton.obstacle(torch.device("mps"), torch.float32) == "it runs on cpu or cuda, and the model is on mps"
    assert "float64" in triton.obstacle(torch.device("cuda"), torch.float64)


def test_without_a_backward_gradients_are_refused() -> None:  # trap 2
    function = Implementation("forward only", {"gelu": F.gelu}, backward=False).build(ACTIVATIONS["gelu"])
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(GradientRefusedError, match="no backward"):
        function(x)
    with torch.no_grad():
        assert torch.equal(function(x), F.gelu(x))
    assert torch.equal(function(x.detach()), F.gelu(x))
