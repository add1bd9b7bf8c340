"""The registry, the numbers of each implementation, and the Triton op (interpreted)."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import of_implementation
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from hf_gelu_patch import (
    ACTIVATIONS,
    IMPLEMENTATIONS,
    GradientRefusedError,
    Implementation,
    PatchError,
    UnknownNameError,
    register_implementation,
)
from hf_gelu_patch.implementations import aten, epilogue
from hf_gelu_patch.implementations.registry import Fused, get_implementation

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
COMPUTED = [of_implementation(name, activation) for name, it in IMPLEMENTATIONS.items() for activation in it.functions]


def every_value(dtype: torch.dtype) -> Tensor:
    """All finite 16-bit values of magnitude up to 100; in fp32, a dense grid."""
    if dtype == torch.float32:
        return torch.linspace(-20.0, 20.0, 65_537)
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    return x[x.isfinite() & (x.abs() <= 100)]


def error(y: Tensor, expected: Tensor) -> float:
    """The largest error against float64, as a share of the larger of |expected| and 1."""
    return float(((y.double() - expected).abs() / expected.abs().clamp(min=1.0)).max())


@pytest.mark.newest
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
        own = ACT2FN[record.config_name] if record.config_name in ACT2FN else record.bind(record.eager)
        with torch.no_grad():
            expected, y = own(x), implementation.build(record)(x)
        assert torch.equal(y, expected), activation
        leaf = x.clone().requires_grad_()
        assert torch.equal(implementation.build(record)(leaf).detach(), expected), activation
        checked += 1
    assert checked == {"eager": 17, "aten": 14, "cpp": 0, "epilogue": 0, "triton": 0, "triton_rounded": 0}[name]


# Fused: the same bits, and nothing of the caller's written over

ATEN = IMPLEMENTATIONS["aten"]


def fused_and_eager(activation: str) -> tuple[Fused, Callable[[Tensor], Tensor]]:
    record = ACTIVATIONS[activation]
    fused = ATEN.build(record)
    assert fused is not None
    return fused, record.bind(record.eager)


@pytest.mark.newest
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ATEN.gated)
def test_a_gated_product_has_the_bits_of_the_two_ops(activation: str, dtype: torch.dtype) -> None:
    fused, act = fused_and_eager(activation)
    assert fused.gated is not None
    for gate_needs, up_needs in itertools.product((False, True), repeat=2):
        torch.manual_seed(0)
        gate, up, grad = ((torch.randn(4, 7, 24) * 4).to(dtype) for _ in range(3))
        gate, up = gate[..., ::2].requires_grad_(gate_needs), up[..., 12:].requires_grad_(up_needs)  # not contiguous
        kept = gate.detach().clone(), up.detach().clone()
        y, expected = fused.gated(gate, up), act(gate) * up
        assert y.dtype == dtype
        assert torch.equal(y, expected)
        with torch.no_grad():
            assert torch.equal(fused.gated(gate, up), expected)
        with torch.inference_mode():
            assert torch.equal(fused.gated(gate, up), expected)
        wanted = [leaf for leaf in (gate, up) if leaf.requires_grad]
        if wanted:
            new = torch.autograd.grad(y, wanted, grad[..., :12], retain_graph=True)
            again = torch.autograd.grad(y, wanted, grad[..., :12])
            own = torch.autograd.grad(expected, wanted, grad[..., :12])
            assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(own, new, again, strict=True))
        assert torch.equal(gate, kept[0])
        assert torch.equal(up, kept[1])


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(12, 8), (3, 5, 12)),
    "Linear without bias": (lambda: nn.Linear(12, 8, bias=False), (3, 5, 12)),
    "Conv1D": (lambda: Conv1D(8, 12), (3, 5, 12)),
    "Conv1d": (lambda: nn.Conv1d(12, 8, 3), (3, 12, 7)),
    "Conv2d": (lambda: nn.Conv2d(2, 4, 3), (3, 2, 6, 6)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(12, 8, 3), (3, 12, 7)),
}


def layer_and_input(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer = make().to(dtype)
    for weight in layer.parameters():
        weight.data = torch.randn(weight.shape).to(dtype)
    return layer, torch.randn(shape).to(dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("activation", ATEN.linear)
def test_an_activation_after_a_linear_layer_has_the_bits_of_the_two_ops(activation: str, dtype: torch.dtype) -> None:
    fused, act = fused_and_eager(activation)
    assert fused.linear is not None
    for name in LAYERS:
        for input_needs, weights_need in itertools.product((False, True), repeat=2):
            layer, x = layer_and_input(name, dtype)
            x.requires_grad_(input_needs)
            layer.requires_grad_(weights_need)
            kept = x.detach().clone()
            y, expected = fused.linear(layer, x), act(layer(x))
            assert y.dtype == dtype
            assert torch.equal(y, expected), name
            with torch.no_grad():
                assert torch.equal(fused.linear(layer, x), expected), name
            with torch.inference_mode():
                assert torch.equal(fused.linear(layer, x), expected), name
            wanted = [leaf for leaf in (x, *layer.parameters()) if leaf.requires_grad]
            if wanted:
                grad = torch.randn(y.shape, dtype=torch.float32).to(dtype)
                new = torch.autograd.grad(y, wanted, grad, retain_graph=True)
                again = torch.autograd.grad(y, wanted, grad)
                own = torch.autograd.grad(expected, wanted, grad)
                assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(own, new, again, strict=True))
            assert torch.equal(x, kept)


@pytest.mark.parametrize("activation", ATEN.functions)
def test_fused_forms_take_empty_inputs(activation: str) -> None:  # higgs_audio_v2 has [0, 96]
    fused, act = fused_and_eager(activation)
    layer, x = nn.Linear(4, 3), torch.randn(0, 4, requires_grad=True)
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            assert fused.linear(layer, x).shape == act(layer(x)).shape == (0, 3)
            assert fused.gated(x, x).shape == (0, 4)


@pytest.mark.newest
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_gives_the_dtype_and_bits_of_the_two_ops(dtype: torch.dtype) -> None:
    layer, x = layer_and_input("Linear", torch.float32)
    for activation in ("gelu", "silu", "quick_gelu"):
        fused, act = fused_and_eager(activation)
        for mode in (torch.no_grad(), torch.enable_grad()):
            with mode, torch.autocast("cpu", torch.bfloat16):
                y, expected = fused.linear(layer, x), act(layer(x))
                assert y.dtype == expected.dtype == torch.bfloat16
                assert torch.equal(y, expected)
                gate, up = x.to(dtype), torch.randn_like(x).to(dtype)
                y, expected = fused.gated(gate, up), act(gate) * up
                assert y.dtype == expected.dtype
                assert torch.equal(y, expected)


# cuBLASLt's epilogue, on a CPU. There ``_addmm_activation`` computes the exact GELU whatever is asked: the function's
# paths and shapes are held here, with ReLU; its tanh form on a GPU.

EPILOGUE = IMPLEMENTATIONS["epilogue"]


@pytest.fixture
def gemms(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """use_gelu of each GEMM with an epilogue that was run, as on a GPU."""
    monkeypatch.setitem(epilogue._WAYS, "cpu", epilogue._by_cublaslt)
    calls: list[bool] = []
    own = torch._addmm_activation

    def counted(*args: Tensor, use_gelu: bool) -> Tensor:
        calls.append(use_gelu)
        return own(*args, use_gelu=use_gelu)

    monkeypatch.setattr(torch, "_addmm_activation", counted)
    return calls


@pytest.mark.parametrize("shape", [(12,), (5, 12), (3, 5, 12), (2, 3, 5, 12), (0, 12), (1, 12)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["Linear", "Conv1D"])
def test_the_epilogue_computes_act_of_linear(
    gemms: list[bool], name: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    layer, _ = layer_and_input(name, dtype)
    x = torch.randn(shape).to(dtype)
    relu = EPILOGUE.build(ACTIVATIONS["relu"]).linear
    with torch.no_grad():
        y, expected = relu(layer, x), F.relu(layer(x))
        exact = F.relu(copy.deepcopy(layer).double()(x.double()))
    assert gemms == [False]
    assert (y.shape, y.dtype) == (expected.shape, dtype)
    if y.numel():
        assert error(y, exact) <= max(error(expected, exact), 2 * torch.finfo(dtype).eps)
        assert bool((y == 0).any())
    with torch.no_grad():
        y = EPILOGUE.build(ACTIVATIONS["gelu_tanh"]).linear(layer, x)
    assert (y.shape, y.dtype, gemms) == (expected.shape, dtype, [False, True])


def test_the_epilogue_takes_strided_inputs(gemms: list[bool]) -> None:
    layer, _ = layer_and_input("Linear", torch.float32)
    relu = EPILOGUE.build(ACTIVATIONS["relu"]).linear
    for x in (torch.randn(12, 5).t(), torch.randn(5, 24)[:, ::2], torch.randn(4, 3, 12).transpose(0, 1)):
        with torch.no_grad():
            torch.testing.assert_close(relu(layer, x), F.relu(layer(x)))
    assert gemms == [False] * 3


@pytest.mark.parametrize("activation", ["relu", "gelu_tanh"])
@pytest.mark.parametrize(
    "case",
    [
        "no bias",
        "convolution",
        "input needs a gradient",
        "weight needs a gradient",
        "bias needs a gradient",
        "autocast",
    ],
)
def test_where_the_epilogue_cannot_be_the_two_ops_run(gemms: list[bool], case: str, activation: str) -> None:
    name = {"no bias": "Linear without bias", "convolution": "Conv1d"}.get(case, "Linear")
    layer, x = layer_and_input(name, torch.float32)
    layer.requires_grad_(False)
    needs = {"input needs a gradient": x, "weight needs a gradient": layer.weight, "bias needs a gradient": layer.bias}
    if case in needs:
        needs[case].requires_grad_()
    record = ACTIVATIONS[activation]
    linear = EPILOGUE.build(record).linear
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        y, expected = linear(layer, x), record.eager(layer(x))
    assert gemms == []
    assert y.dtype == expected.dtype
    assert torch.equal(y, expected)
    if case in needs:
        (new,), (own,) = (torch.autograd.grad(out.sum(), needs[case]) for out in (y, expected))
        assert torch.equal(new, own)
        with torch.no_grad():  # nothing needs one there
            linear(layer, x)
        assert len(gemms) == 1


@pytest.mark.newest
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


@pytest.mark.newest
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_shape_and_stride(layout: str) -> None:  # trap 12
    x = LAYOUTS[layout]()
    for activation in ATEN.functions:
        record = ACTIVATIONS[activation]
        function, eager = ATEN.build(record), record.bind(record.eager)
        leaf = x.detach().clone().requires_grad_() if layout == "expanded" else x.detach().requires_grad_()
        y = function(leaf)
        expected = eager(leaf)
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
            torch.autograd.grad(eager(leaf), leaf, strided)[0],
            rtol=1e-5,
            atol=1e-6,
        )


def test_an_unknown_implementation_lists_the_valid_ones() -> None:
    with pytest.raises(
        UnknownNameError,
        match=r"Did you mean 'triton'\? Valid names: aten, auto, cpp, eager, epilogue, triton, triton_rounded",
    ):
        get_implementation("tritn")


def test_a_name_is_registered_once_and_only_for_known_activations() -> None:
    with pytest.raises(PatchError, match="taken"):
        register_implementation(Implementation("aten", {}))
    with pytest.raises(PatchError, match="taken"):
        register_implementation(Implementation("auto", {}))
    with pytest.raises(UnknownNameError, match="gelu_newest"):
        register_implementation(Implementation("mine", {"gelu_newest": F.gelu}))
    for kind in ("gated", "linear"):  # what runs where the fused form cannot has to be there too
        with pytest.raises(PatchError, match=r"'mine' fuses silu without computing it by itself: add it to functions"):
            register_implementation(
                Implementation("mine", {"gelu": F.gelu}, **{kind: {"gelu": F.gelu, "silu": F.silu}})
            )
        with pytest.raises((PatchError, UnknownNameError)):
            register_implementation(Implementation("mine", {"gelu": F.gelu}, **{kind: {"gelu_newest": F.gelu}}))
    assert "mine" not in IMPLEMENTATIONS


def test_what_an_implementation_fuses_is_built_with_the_activations_constants() -> None:
    def pointwise(x: Tensor, negative_slope: float) -> Tensor:
        return F.leaky_relu(x, negative_slope)

    implementation = Implementation(
        "mine",
        {"leaky_relu": pointwise, "gelu": F.gelu},
        gated={"leaky_relu": lambda gate, up, negative_slope: pointwise(gate, negative_slope) * up},
        linear={"leaky_relu": lambda linear, x, negative_slope: pointwise(linear(x), negative_slope)},
    )
    record = ACTIVATIONS["leaky_relu"].with_parameters(negative_slope=0.3)
    fused = implementation.build(record)
    assert fused is not None
    assert implementation.build(record) is fused
    gate, up, layer = torch.randn(8), torch.randn(8), nn.Linear(8, 8)
    assert torch.equal(fused.gated(gate, up), F.leaky_relu(gate, 0.3) * up)
    assert torch.equal(fused.linear(layer, gate), F.leaky_relu(layer(gate), 0.3))
    assert torch.equal(fused(gate), F.leaky_relu(gate, 0.3))
    plain = implementation.build(ACTIVATIONS["gelu"])
    assert (plain.gated, plain.linear) == (None, None)
    assert implementation.build(ACTIVATIONS["silu"]) is None
    assert implementation.fuses("gated", record)
    assert not implementation.fuses("pointwise", record)
    assert not implementation.fuses("gated", ACTIVATIONS["gelu"])


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


def test_without_a_backward_gradients_are_refused_of_fused_forms_too() -> None:  # trap 2
    fused = Implementation(
        "forward only",
        {"gelu": F.gelu},
        gated={"gelu": lambda gate, up: F.gelu(gate) * up},
        linear={"gelu": lambda linear, x: F.gelu(linear(x))},
        backward=False,
    ).build(ACTIVATIONS["gelu"])
    x, y, leaf = torch.randn(3), torch.randn(3), torch.randn(3, requires_grad=True)
    layer, frozen = nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)
    for call in (
        lambda: fused.gated(leaf, x),
        lambda: fused.gated(x, leaf),
        lambda: fused.linear(layer, x),
        lambda: fused.linear(frozen, leaf),
    ):
        with pytest.raises(GradientRefusedError, match="no backward"):
            call()
        with torch.no_grad():
            call()
    assert torch.equal(fused.gated(x, y), F.gelu(x) * y)
    assert torch.equal(fused.linear(frozen, x), F.gelu(frozen(x)))


def test_only_a_large_output_of_a_linear_layer_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aten, "LARGE", 4 * 8 * 64)
    linear = nn.Linear(16, 64)
    kept: list[torch.Tensor] = []
    linear.register_forward_hook(lambda _module, _args, y: kept.append(y))
    after = IMPLEMENTATIONS["aten"].build(ACTIVATIONS["relu"]).linear
    with torch.no_grad():
        outputs = [after(linear, torch.randn(rows, 16)) for rows in (7, 8)]
    assert [y is output for y, output in zip(kept, outputs, strict=True)] == [False, True]
