"""``epilogue`` on a CPU: the activation applied by oneDNN as the product is stored."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILIES, Recorder
from layouts import memory, same
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from hf_gelu_patch import ACTIVATIONS, ImplementationUnavailableError, patch, unpatch
from hf_gelu_patch.implementations import epilogue
from hf_gelu_patch.implementations.epilogue import EPILOGUE
from hf_gelu_patch.implementations.registry import Fused

CPU = torch.device("cpu")
NAMES = tuple(name for name in EPILOGUE.functions if ACTIVATIONS[name].post_op is not None)
HALF = (torch.bfloat16, torch.float16)

pytestmark = pytest.mark.skipif(
    EPILOGUE.obstacle(CPU, torch.float32) is not None, reason=f"{EPILOGUE.obstacle(CPU, torch.float32)}"
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The activation of each product that oneDNN was given."""
    seen: list[str] = []
    own = epilogue._WAYS["cpu"]

    def recorded(linear: nn.Module, x: Tensor, record: Any, parameters: dict[str, float]) -> Tensor | None:
        y = own(linear, x, record, parameters)
        if y is not None:
            seen.append(record.name)
        return y

    monkeypatch.setitem(epilogue._WAYS, "cpu", recorded)
    return seen


def fused(name: str) -> Fused:
    built = EPILOGUE.build(ACTIVATIONS[name])
    assert built is not None
    assert built.linear is not None
    return built


def eager(name: str) -> Callable[[Tensor], Tensor]:
    record = ACTIVATIONS[name]
    return record.bind(record.eager)


def assert_near(y: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """No further from float64 than the two ops, but for a rounding of the largest."""
    assert (y.shape, y.dtype, y.stride()) == (theirs.shape, theirs.dtype, theirs.stride())
    if y.numel():
        error, their_error = (float((it.double() - exact).abs().max()) for it in (y, theirs))
        assert error <= 1.5 * their_error + 4 * torch.finfo(y.dtype).eps * max(1.0, float(exact.abs().max()))


def check(layer: nn.Module, x: Tensor, name: str = "gelu_tanh") -> None:
    record = ACTIVATIONS[name]
    before = memory(x, *layer.parameters())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y, theirs = fused(name).linear(layer, x), eager(name)(layer(x))
            exact = record.bind(record.reference)(copy.deepcopy(layer).double()(x.double()))
            assert_near(y, theirs, exact)
    assert all(torch.equal(a, b) for a, b in zip(memory(x, *layer.parameters()), before, strict=True))


LINEAR: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(12, 40),
    "without a bias": lambda: nn.Linear(12, 40, bias=False),
    "of one output": lambda: nn.Linear(12, 1),
}
INPUTS: dict[str, Callable[[], Tensor]] = {
    **{
        f"shape {shape}": functools.partial(torch.randn, shape) for shape in ((12,), (5, 12), (3, 5, 12), (2, 3, 4, 12))
    },
    **{f"shape {shape}": functools.partial(torch.randn, shape) for shape in ((0, 12), (3, 0, 12), (1, 12), (1, 1, 12))},
    "transposed": lambda: torch.randn(12, 5).t(),
    "every other column": lambda: torch.randn(5, 24)[:, ::2],
    "rows left out": lambda: torch.randn(6, 4, 12)[::2, 1:3],
    "batch and sequence exchanged": lambda: torch.randn(4, 3, 12).transpose(0, 1),
    "expanded": lambda: torch.randn(1, 12).expand(5, 12),
    "expanded twice": lambda: torch.randn(12).expand(3, 5, 12),
    "unaligned": lambda: torch.randn(61)[1:].view(5, 12),
}
CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without a bias": {"bias": False},
    "strided and padded": {"stride": 2, "padding": 1},
    "in groups": {"groups": 2},
    "depthwise": {"groups": 4},
    "dilated": {"dilation": 2},
}
RANKS = {nn.Conv1d: (3, 4, 9), nn.Conv2d: (3, 4, 9, 8), nn.Conv3d: (2, 4, 5, 6, 7)}


@pytest.mark.parametrize("name", NAMES)
def test_every_activation_after_every_kind_of_layer(products: list[str], name: str) -> None:
    calls = 0
    for make in LINEAR.values():
        check(make(), torch.randn(30, 12), name)
        calls += 2
    for kind, shape in RANKS.items():
        for options in CONVOLUTIONS.values():
            check(kind(4, 8, 3, **options), torch.randn(shape), name)
            calls += 2
    assert products == [name] * calls


@pytest.mark.parametrize("layout", INPUTS)
def test_inputs_of_any_layout(products: list[str], layout: str) -> None:
    for name in ("gelu_tanh", "silu"):
        for bias in (True, False):
            check(nn.Linear(12, 40, bias=bias), INPUTS[layout](), name)
    assert len(products) == 8


@pytest.mark.parametrize("kind", RANKS)
def test_images_of_any_layout(products: list[str], kind: type[nn.Module]) -> None:
    shape = RANKS[kind]
    layer = kind(4, 8, 3)
    images = (
        torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2],
        torch.randn(shape[1], shape[0], *shape[2:]).transpose(0, 1),
        torch.randn(1, *shape[1:]).expand(shape),
        torch.randn(0, *shape[1:]),
    )
    for image in images:
        check(layer, image)
    if kind is not nn.Conv1d:
        last = torch.channels_last if kind is nn.Conv2d else torch.channels_last_3d
        check(layer, torch.randn(shape).contiguous(memory_format=last))
        check(copy.deepcopy(layer).to(memory_format=last), torch.randn(shape))
    assert len(products) == 2 * (len(images) + 2 * (kind is not nn.Conv1d))


def test_relu_is_atens_which_keeps_nan(products: list[str]) -> None:
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        y = fused("relu").linear(layer, torch.tensor([[math.nan], [1.0]]))
        assert bool(y[0].isnan())
        assert torch.equal(y[1], F.relu(layer(torch.ones(1))))
    assert products == []


def test_constants_reach_onednn(products: list[str]) -> None:
    layer, x = nn.Linear(12, 40), torch.randn(30, 12)
    record = ACTIVATIONS["leaky_relu"].with_parameters(negative_slope=0.3)
    with torch.no_grad():
        y = EPILOGUE.build(record).linear(layer, x)
        torch.testing.assert_close(y, F.leaky_relu(layer(x), 0.3))
    assert products == ["leaky_relu"]


@pytest.mark.parametrize("name", NAMES)
def test_the_far_ends(products: list[str], name: str) -> None:
    """Sums of any size come out as act of them does."""
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    x = torch.cat([torch.linspace(-30, 30, 6001), torch.tensor([1e4, -1e4, 1e30, -1e30, 0.0, torch.nan])])[:, None]
    record = ACTIVATIONS[name]
    with torch.no_grad():
        y, theirs = fused(name).linear(layer, x), eager(name)(x)
    exact = record.bind(record.reference)(x.double())
    assert bool(y[-1].isnan())
    error, their_error = ((it.double() - exact)[:-1].abs() / exact[:-1].abs().clamp(min=1.0) for it in (y, theirs))
    assert float(error.max()) <= max(float(their_error.max()), 1e-6)
    assert products == [name]


# Where it is not taken: the bits of the two ops.


def assert_two_ops(products: list[str], layer: nn.Module, x: Tensor, name: str = "gelu_tanh") -> None:
    products.clear()
    with torch.no_grad():
        assert same(fused(name).linear(layer, x), eager(name)(layer(x)))
    assert products == []


@pytest.mark.parametrize("kind", RANKS)
def test_convolutions_that_are_left_alone(products: list[str], kind: type[nn.Module]) -> None:
    shape = RANKS[kind]
    assert_two_ops(products, kind(4, 8, 3, padding="same"), torch.randn(shape))
    assert_two_ops(products, kind(4, 8, 3, padding="valid"), torch.randn(shape))
    if kind is not nn.Conv3d:
        assert_two_ops(products, kind(4, 8, 3, padding=1, padding_mode="reflect"), torch.randn(shape))
    assert_two_ops(products, kind(4, 8, 3, padding=1, padding_mode="circular"), torch.randn(shape))
    assert_two_ops(products, kind(4, 8, 3), torch.randn(shape[1:]))  # unbatched
    transposed = {nn.Conv1d: nn.ConvTranspose1d, nn.Conv2d: nn.ConvTranspose2d, nn.Conv3d: nn.ConvTranspose3d}
    assert_two_ops(products, transposed[kind](4, 8, 3), torch.randn(shape))


def test_weights_that_lie_otherwise(products: list[str]) -> None:
    """torch gives oneDNN the memory of a bias whatever its strides, and refuses one that is broadcast."""
    x, image = torch.randn(5, 12), torch.randn(2, 12, 6)
    for bias in (torch.randn(16)[::2], torch.randn(1).expand(8), torch.randn(1)):
        layer, convolution = nn.Linear(12, 8), nn.Conv1d(12, 8, 3)
        layer.bias.data = bias
        assert_two_ops(products, layer, x)
        if bias.numel() == 8:
            convolution.bias.data = bias
            assert_two_ops(products, convolution, image)
    for weight in (torch.randn(12, 8).t(), torch.randn(8, 24)[:, ::2], torch.randn(1, 12).expand(8, 12)):
        layer = nn.Linear(12, 8)
        layer.weight.data = weight
        assert_two_ops(products, layer, x)
    convolution = nn.Conv1d(12, 8, 3)
    convolution.weight.data = torch.randn(12, 8, 3).transpose(0, 1)
    check(convolution, image)
    empty = nn.Linear(12, 8)
    empty.weight.data = torch.randn(8, 0)
    assert_two_ops(products, empty, torch.randn(3, 0))
    assert_two_ops(products, Conv1D(8, 12), x)


def test_what_does_not_fit_gets_torchs_own_message(products: list[str]) -> None:
    layer = nn.Linear(12, 8)
    with torch.no_grad():
        for x in (torch.randn(5, 11), torch.randn(24), torch.randn(2, 5, 13)):
            with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
                fused("silu").linear(layer, x)
        with pytest.raises(RuntimeError, match="need to be at least 1D"):
            fused("silu").linear(layer, torch.randn(()))
        with pytest.raises(RuntimeError, match="must have the same dtype"):
            fused("silu").linear(layer, torch.randn(5, 12, dtype=torch.float64))
        with pytest.raises(RuntimeError, match="to have 4 channels, but got 5"):
            fused("silu").linear(nn.Conv2d(4, 8, 3), torch.randn(2, 5, 6, 6))
        layer.bias.data = torch.randn(7)
        with pytest.raises(RuntimeError, match="must match the existing size"):
            fused("silu").linear(layer, torch.randn(5, 12))
    assert products == []


@pytest.mark.parametrize("dtype", [*HALF, torch.float64], ids=str)
def test_a_dtype_that_onednn_may_not_have(products: list[str], dtype: torch.dtype) -> None:
    """Also of a model that was patched in another."""
    obstacle = EPILOGUE.obstacle(CPU, dtype)
    model = nn.Sequential(nn.Linear(12, 40), nn.GELU(approximate="tanh")).to(dtype)
    x = torch.randn(3, 5, 12).to(dtype)
    if obstacle is not None:
        assert obstacle == f"oneDNN has no {str(dtype).removeprefix('torch.')} products on this processor"
        with pytest.raises(ImplementationUnavailableError, match=obstacle):
            patch(model, implementation="epilogue")
    patch(model.float(), implementation="epilogue")
    model.to(dtype)
    products.clear()
    with torch.no_grad():
        y = model(x)
        assert products == ([] if obstacle else ["gelu_tanh"])
        theirs = eager("gelu_tanh")(model[0](x))
        exact = F.gelu(copy.deepcopy(model[0]).double()(x.double()), approximate="tanh")
    assert_near(y, theirs, exact)
    convolution = nn.Conv2d(4, 8, 3).to(dtype)
    with torch.no_grad():
        image = torch.randn(2, 4, 6, 6).to(dtype)
        y, theirs = fused("silu").linear(convolution, image), F.silu(convolution(image))
        assert_near(y, theirs, F.silu(copy.deepcopy(convolution).double()(image.double())))


@pytest.mark.parametrize("what", ["input", "weight", "bias"])
def test_under_autograd(products: list[str], what: str) -> None:
    layer, x = nn.Linear(12, 8).requires_grad_(False), torch.randn(5, 12)
    leaf = {"input": x, "weight": layer.weight, "bias": layer.bias}[what].requires_grad_()
    y, expected = fused("gelu_tanh").linear(layer, x), eager("gelu_tanh")(layer(x))
    assert same(y.detach(), expected.detach())
    assert same(torch.autograd.grad(y.sum(), leaf)[0], torch.autograd.grad(expected.sum(), leaf)[0])
    assert products == []
    with torch.no_grad():
        fused("gelu_tanh").linear(layer, x)
    assert products == ["gelu_tanh"]


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN:UserWarning")  # from mkldnn.flags
def test_under_modes_transforms_and_traces(products: list[str]) -> None:
    layer, x = nn.Linear(12, 8).requires_grad_(False), torch.randn(5, 12)
    own = functools.partial(fused("gelu_tanh").linear, layer)
    two = lambda x: eager("gelu_tanh")(layer(x))  # noqa: E731
    assert same(vmap(own)(x), vmap(two)(x))
    assert same(grad(lambda x: own(x).sum())(x), grad(lambda x: two(x).sum())(x))
    for a, b in zip(jvp(own, (x,), (x,)), jvp(two, (x,), (x,)), strict=True):
        assert same(a, b)
    with forward_ad.dual_level():
        tangents = [forward_ad.unpack_dual(f(forward_ad.make_dual(x, x))).tangent for f in (own, two)]
        assert tangents[0] is not None
        assert same(tangents[0], tangents[1])
    assert "mkldnn" not in str(make_fx(own)(x).graph)
    assert "mkldnn" not in str(torch.jit.trace(lambda x: own(x), (x,), check_trace=False).graph)
    with Recorder() as recorder:
        own(x)
    assert not any("mkldnn" in name for name in recorder.names)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        assert own(fake.from_tensor(x)).shape == (5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = own(x)
        assert y.dtype == torch.bfloat16
        assert same(y, two(x))
    with torch.backends.mkldnn.flags(enabled=False):
        assert same(own(x), two(x))
    negated = torch.randn(5, 12, dtype=torch.complex64).conj().imag
    assert same(own(negated), two(negated))
    assert products == []
    own(x)
    assert products == ["gelu_tanh"]


def compiled_whole(model: nn.Module, x: Tensor) -> Tensor:
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        y: Tensor = compiled(x)
    torch._dynamo.reset()
    return y


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 16), nn.GELU(approximate="tanh"), nn.Linear(16, 12), nn.GELU())


def test_a_patched_model_is_compiled_exported_and_traced(products: list[str]) -> None:
    model, x = mlp(), torch.randn(5, 12)
    with torch.no_grad():
        expected = model(x)
        patch(model, implementation="epilogue")
        torch.testing.assert_close(model(x), expected)
        assert products == ["gelu_tanh", "gelu"]
        products.clear()
        torch.testing.assert_close(compiled_whole(model, x), expected)
        exported = torch.export.export(model, (x,))
        assert "mkldnn" not in str(exported.graph)
        torch.testing.assert_close(exported.module()(x), expected)
        torch.testing.assert_close(make_fx(model)(x)(x), expected)
        torch.testing.assert_close(torch.jit.trace(model, (x,), check_trace=False)(x), expected)
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)
    assert products == []


def test_functional_call_takes_the_weights_it_is_given(products: list[str]) -> None:
    model, x = mlp(), torch.randn(5, 12)
    weights = {name: torch.randn_like(weight) for name, weight in model.named_parameters()}
    with torch.no_grad():
        expected = functional_call(model, weights, (x,))
        patch(model, implementation="epilogue")
        torch.testing.assert_close(functional_call(model, weights, (x,)), expected)
    assert products == ["gelu_tanh", "gelu"]


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


def _hooked(model: nn.Sequential) -> None:
    model[0].register_forward_hook(lambda *call: call[2] + 1)


def _parametrized(model: nn.Sequential) -> None:
    parametrize.register_parametrization(model[0], "weight", Doubled())


def _weight_norm(model: nn.Sequential) -> None:
    nn.utils.parametrizations.weight_norm(model[0])


def _bound(model: nn.Sequential) -> None:
    own = model[0].forward
    model[0].forward = lambda x: own(x) * 3


def _subclassed(model: nn.Sequential) -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) - 1

    model[0].__class__ = Own


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(12, 2), nn.Linear(2, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def _adapted(model: nn.Sequential) -> None:
    model[0] = LoRA(model[0])


@pytest.mark.parametrize("change", [_hooked, _parametrized, _weight_norm, _bound, _subclassed, _adapted])
@pytest.mark.parametrize("first", ["patched", "changed"])
def test_what_is_no_plain_layer_runs_as_it_is(products: list[str], first: str, change: Any) -> None:
    model, x = mlp(), torch.randn(5, 12)
    other = copy.deepcopy(model)
    if first == "patched":
        patch(other, implementation="epilogue")
    torch.manual_seed(1)
    change(other)
    torch.manual_seed(1)
    change(model)
    if first == "changed":
        patch(other, implementation="epilogue")
    with torch.no_grad():
        torch.testing.assert_close(other(x), model(x))
    assert products == ["gelu"]  # that of the second layer


@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize("first", ["patched", "changed"])
def test_a_forward_that_a_tool_puts_into_torchs_class_runs(
    products: list[str], first: str, wraps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, own = mlp(), nn.Linear.forward
    x = torch.randn(5, model[0].in_features)

    def forward(layer: nn.Linear, x: Tensor) -> Tensor:
        return own(layer, x) * 3

    if first == "patched":
        patch(model, implementation="epilogue")
    monkeypatch.setattr(nn.Linear, "forward", functools.wraps(own)(forward) if wraps else forward)
    with torch.no_grad():
        expected = copy.deepcopy(model)
        if first == "patched":
            unpatch(expected)
        else:
            patch(model, implementation="epilogue")
        torch.testing.assert_close(model(x), expected(x))
    assert not products


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantized_layer_runs_as_it_is(products: list[str]) -> None:
    model, x = mlp(), torch.randn(5, 12)
    patch(model, implementation="epilogue")
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        y = quantized(x)
        unpatch(quantized)
        torch.testing.assert_close(y, quantized(x))
    assert products == []


@pytest.mark.parametrize("family", ["bert", "vit", "clip", "opt"])
def test_models(products: list[str], family: str) -> None:
    one = FAMILIES[family]
    model = one.build()
    with torch.no_grad():
        theirs, exact = one.run(model), one.exact(model)
        spelled = {"activation": "gelu"} if family in ("clip", "opt") else {}  # quick_gelu and relu have none
        if spelled:
            patch(model, implementation="eager", **spelled)
            theirs, exact = one.run(model), one.exact(model)
            unpatch(model)
        report = patch(model, implementation="epilogue", **spelled)
        y = one.run(model)
    assert products or not any(site.fused for site in report.changed)
    assert float((y.double() - exact).abs().max()) <= 4 * float((theirs.double() - exact).abs().max()) + 1e-5
    training = one.run(model)
    assert training.requires_grad
    training.sum().backward()
    unpatch(model)
    with torch.no_grad():
        assert torch.allclose(one.run(model), y, rtol=1e-3, atol=1e-3) or spelled
