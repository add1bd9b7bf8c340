"""Faults of known kinds, each an implementation that claims to compute what a model has and does not.

A fault says how it computes the activation alone, a gated product, and what stands behind a linear layer, given the
function that would be right. It is planted through the registry, as an implementation of one's own is.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_gelu_patch import ACTIVATIONS, Implementation, register_implementation
from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS
from scripts.benchmarking.planted.specimens import SPECIMENS

Function = Callable[[Tensor], Tensor]
Change = Callable[[Tensor, Tensor], Tensor]
"""What becomes of x, where y is right."""


@dataclass(frozen=True)
class Forms:
    """What an implementation computes: act(x), act(gate) · up and act(linear(x))."""

    pointwise: Function
    gated: Callable[[Tensor, Tensor], Tensor]
    linear: Callable[[nn.Module, Tensor], Tensor]


Make = Callable[[Function], Forms]
"""A fault's forms, made anew each time it is planted, from the function that would be right."""


@dataclass(frozen=True)
class Fault:
    """Something an implementation can do wrong.

    Attributes:
        name: in words.
        kind: which sort it is of.
        make: how it computes.
        models: those it is planted in.
        dtype: that of the model.
        batch: the one that reaches it, as ``Specimen.batch`` has it.
        training: whether the model is in training mode.
        one_site: whether it is at one site alone, in the middle; otherwise it is at all.
        seasoned: whether the model is patched once, run, and trained for a step, before it is verified.
        unseen: why nothing is to be seen of it, where that is so.
    """

    name: str
    kind: str
    make: Make
    models: tuple[str, ...]
    dtype: torch.dtype = torch.float32
    batch: str = "usual"
    training: bool = False
    one_site: bool = False
    seasoned: bool = False
    unseen: str = ""

    @property
    def held_out(self) -> bool:
        """Whether it is for judging alone, a quarter of all: no bar is set by what becomes of it. Its name decides."""
        return zlib.crc32(self.name.encode()) % 4 == 0

    @contextmanager
    def planted(self, activation: str) -> Iterator[None]:
        """Registered, by its name, as an implementation of that activation, and taken out again."""
        forms = self.make(ACTIVATIONS[activation].eager)
        alone = {"gated": {activation: forms.gated}, "linear": {activation: forms.linear}}
        claims = frozenset({activation})
        register_implementation(Implementation(self.name, {activation: forms.pointwise}, **alone, identical=claims))
        try:
            yield
        finally:
            del IMPLEMENTATIONS[self.name]


# ------------------------------------------------------------------------------------------------- how they are made


def _of(act: Function) -> Forms:
    """Nothing else is wrong than the activation."""
    return Forms(act, lambda gate, up: act(gate) * up, lambda linear, x: act(linear(x)))


def changed(change: Change) -> Make:
    """The value is another."""

    def make(right: Function) -> Forms:
        return _of(lambda x: change(x, right(x)))

    return make


def instead(function: Function) -> Make:
    """Another function is computed."""
    return lambda _: _of(function)


def product(rule: Callable[[Function, Tensor, Tensor], Tensor]) -> Make:
    """The gated product is wrong, the activation right."""

    def make(right: Function) -> Forms:
        return Forms(right, lambda gate, up: rule(right, gate, up), _of(right).linear)

    return make


def layer(rule: Callable[[nn.Module, Tensor], Tensor]) -> Make:
    """The linear layer is wrong, the activation right."""

    def make(right: Function) -> Forms:
        return Forms(right, _of(right).gated, lambda linear, x: right(rule(linear, x)))

    return make


class _Backward(torch.autograd.Function):
    """A function with a backward of one's own: (grad_y, inputs) → the inputs' gradients."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], rule: Callable[..., Any], *inputs: Tensor) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        return None, None, *ctx.rule(grad_y, *ctx.saved_tensors)


def gradients(function: Callable[..., Tensor], inputs: Iterable[Tensor], grad_y: Tensor) -> tuple[Tensor, ...]:
    """The right ones."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        return torch.autograd.grad(function(*leaves), leaves, grad_y)


def backward(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Make:
    """The value is right, and its gradient is what becomes of x, grad_y and the right gradient."""

    def make(right: Function) -> Forms:
        def rule(grad_y: Tensor, x: Tensor) -> tuple[Tensor]:
            return (change(x, grad_y, *gradients(right, (x,), grad_y)),)

        return _of(lambda x: _Backward.apply(right, rule, x))

    return make


def backward_of(function: Function) -> Make:
    """The gradient is another function's."""
    return backward(lambda x, grad_y, _: gradients(function, (x,), grad_y)[0])


def product_backward(rule: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Make:
    """The gradients of gate and up are what becomes of gate, up, grad_y and the right ones; the product is right."""

    def make(right: Function) -> Forms:
        def multiplied(gate: Tensor, up: Tensor) -> Tensor:
            return right(gate) * up

        def both(grad_y: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
            return rule(gate, up, grad_y, *gradients(multiplied, (gate, up), grad_y))

        return Forms(right, lambda gate, up: _Backward.apply(multiplied, both, gate, up), _of(right).linear)

    return make


# --------------------------------------------------------------------------------------------------- values in places


def _over(y: Tensor, rule: Callable[[Tensor], None], *shape: int) -> Tensor:
    """A copy of y, over which, seen in that shape, ``rule`` writes."""
    y = y.clone(memory_format=torch.contiguous_format)
    rule(y.view(*shape))
    return y


def in_flat(rule: Callable[[Tensor], None]) -> Make:
    """Wrong where ``rule`` writes over the values, all in one row."""
    return changed(lambda x, y: _over(y, rule, -1))


def in_rows(rule: Callable[[Tensor], None]) -> Make:
    """Likewise, over the rows of the last dimension."""
    return changed(lambda x, y: _over(y, rule, -1, y.shape[-1]))


TILE = 1024
_EVERY = 10_000


def _written(places: Callable[[Tensor], Tensor], value: float | Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    def rule(flat: Tensor) -> None:
        part = places(flat)
        part.copy_(value(part) if callable(value) else torch.full_like(part, value))

    return rule


def _last_tile(flat: Tensor) -> Tensor:
    return flat[(flat.numel() - 1) // TILE * TILE :]


def _one_in_many(flat: Tensor) -> Tensor:
    return flat[1234::_EVERY]


def _off(by: float) -> Function:
    return lambda part: part + by


def _tiles_begin_late(flat: Tensor) -> None:
    flat[TILE::TILE] = flat[TILE - 1 : -1 : TILE]


def misread(right: Function) -> Forms:
    """As if x, whatever its strides, lay in one piece."""

    def act(x: Tensor) -> Tensor:
        room = x.untyped_storage().nbytes() // x.element_size()
        whole = x.as_strided((x.numel(),), (1,), min(x.storage_offset(), room - x.numel()))
        return right(whole.view(x.shape))

    return _of(act)


def transposed(right: Function) -> Forms:
    return _of(lambda x: right(x.transpose(-1, -2).reshape(x.shape)))


def shared_buffer(right: Function) -> Forms:
    """What it gives is written over by the next call on a tensor of that shape, behind autograd's back."""
    buffers: dict[Any, Tensor] = {}

    def act(x: Tensor) -> Tensor:
        y = right(x)
        buffer = buffers.setdefault((x.shape, x.dtype, torch.is_inference(x)), torch.empty_like(y))
        buffer.data.copy_(y.data)
        y.data = buffer.data
        return y

    return _of(act)


def first_result(right: Function) -> Forms:
    """What the first call on a tensor of that shape gave, again and again."""
    kept: dict[Any, Tensor] = {}

    def act(x: Tensor) -> Tensor:
        y = right(x)
        return y * 0 + kept.setdefault((x.shape, x.dtype), y.detach().clone())

    return _of(act)


def every_second_call(right: Function) -> Forms:
    count = itertools.count()
    return _of(lambda x: right(x) * (1.05 if next(count) % 2 else 1.0))


def after_the_first_call(right: Function) -> Forms:
    """The first call of a shape goes another way: it is the one that is tuned."""
    seen: set[Any] = set()

    def act(x: Tensor) -> Tensor:
        known, _ = (x.shape, x.dtype) in seen, seen.add((x.shape, x.dtype))
        return right(x) * (1.05 if known else 1.0)

    return _of(act)


def overwrites_its_input(right: Function) -> Forms:
    def act(x: Tensor) -> Tensor:
        y = right(x)
        x.data.copy_(y.data)
        return y

    return _of(act)


def overwrites_the_layers_input(right: Function) -> Forms:
    def linear_act(linear: nn.Module, x: Tensor) -> Tensor:
        y = right(linear(x))
        x.data.zero_()
        return y

    return Forms(right, _of(right).gated, linear_act)


def draws_random_numbers(right: Function) -> Forms:
    def act(x: Tensor) -> Tensor:
        torch.rand(1)
        return right(x)

    return _of(act)


# ------------------------------------------------------------------------------------------------------------- layers


def _with(linear: nn.Module, x: Tensor, **others: Any) -> Tensor:
    """What the layer gives with other weights than its own."""
    own = {name: weight for name, weight in linear.named_parameters() if weight is not None}
    return torch.func.functional_call(linear, {**own, **others}, (x,))


def _without_bias(linear: nn.Module, x: Tensor) -> Tensor:
    return _with(linear, x, bias=torch.zeros_like(linear.bias))


def _bias_twice(linear: nn.Module, x: Tensor) -> Tensor:
    return _with(linear, x, bias=2 * linear.bias)


def _rounded_weights(linear: nn.Module, x: Tensor) -> Tensor:
    return _with(linear, x, weight=linear.weight.bfloat16().to(linear.weight.dtype))


def _in_half(linear: nn.Module, x: Tensor) -> Tensor:
    """The product in bf16."""
    others = {name: weight.bfloat16() for name, weight in linear.named_parameters()}
    return _with(linear, x.bfloat16(), **others).to(x.dtype)


def _without_last_inputs(share: float) -> Callable[[nn.Module, Tensor], Tensor]:
    """Those of the last ``share`` of the input's features, at least one, are not added."""

    def rule(linear: nn.Module, x: Tensor) -> Tensor:
        dim = x.dim() - 1 if not isinstance(linear, nn.Conv1d) else 1
        keep = x.shape[dim] - max(1, int(x.shape[dim] * share))
        kept = torch.arange(x.shape[dim]) < keep
        return linear(x * kept.view(-1, *[1] * (x.dim() - 1 - dim)))

    return rule


def bias_behind_the_activation(right: Function) -> Forms:
    def linear_act(linear: nn.Module, x: Tensor) -> Tensor:
        bias = linear.bias.view(-1, 1) if isinstance(linear, nn.Conv1d) else linear.bias
        return right(_without_bias(linear, x)) + bias

    return Forms(right, _of(right).gated, linear_act)


def _edges_repeated(linear: nn.Module, x: Tensor) -> Tensor:
    """What lies outside of the input is the nearest of it, not zero."""
    if not isinstance(linear, nn.Conv1d):
        return linear(x)
    (padding,) = linear.padding
    return F.conv1d(F.pad(x, (padding, padding), "replicate"), linear.weight, linear.bias, linear.stride)


def _shifted_taps(linear: nn.Module, x: Tensor) -> Tensor:
    return _with(linear, x, weight=linear.weight.flip(-1)) if isinstance(linear, nn.Conv1d) else linear(x)


def stale_weights(key: Callable[[nn.Module], Any]) -> Make:
    """A copy of the weights, made at the first call, is what it multiplies by ever after."""

    def make(right: Function) -> Forms:
        kept: dict[Any, dict[str, Tensor]] = {}

        def linear_act(linear: nn.Module, x: Tensor) -> Tensor:
            now = {name: weight.detach().clone() for name, weight in linear.named_parameters()}
            old = kept.setdefault((key(linear), x.dtype), now)
            stale = {name: old[name] + (weight - weight.detach()) for name, weight in linear.named_parameters()}
            return right(_with(linear, x, **stale))

        return Forms(right, _of(right).gated, linear_act)

    return make


def _shape(linear: nn.Module) -> Any:
    return type(linear), linear.weight.shape


def _detached(*names: str) -> Callable[[nn.Module, Tensor], Tensor]:
    """No gradient comes to these weights."""

    def rule(linear: nn.Module, x: Tensor) -> Tensor:
        return _with(linear, x, **{name: getattr(linear, name).detach() for name in names})

    return rule


# ---------------------------------------------------------------------------------------------------------- gradients


def _of_the_result(right: Function) -> Forms:
    """The gradient is taken at y, which was kept in the place of x."""

    def rule(grad_y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return gradients(right, (right(x),), grad_y)

    return _of(lambda x: _Backward.apply(right, rule, x))


def _without_second_term(right: Function) -> Forms:
    """Of (x · s(x))′ = s(x) + x · s′(x), the first term alone."""

    def rule(grad_y: Tensor, x: Tensor) -> tuple[Tensor]:
        return (grad_y * torch.where(x == 0, 0.5, right(x) / x),)

    return _of(lambda x: _Backward.apply(right, rule, x))


# ------------------------------------------------------------------------------------------------- where and when only


def when(condition: Callable[[Tensor], bool], factor: float = 1.05) -> Make:
    """Too large by that factor, where the condition holds."""

    def make(right: Function) -> Forms:
        return _of(lambda x: right(x) * (factor if condition(x) else 1.0))

    return make


def _wrong_in(dtype: torch.dtype, function: Function) -> Make:
    def make(right: Function) -> Forms:
        return _of(lambda x: function(x) if x.dtype == dtype else right(x))

    return make


def _rounded(dtype: torch.dtype) -> Make:
    return changed(lambda x, y: y.to(dtype).to(y.dtype))


def _cut_off(right: Function) -> Forms:
    """To bf16 by leaving off the lower half of an fp32."""

    def act(x: Tensor) -> Tensor:
        y = right(x.float())
        kept = (y.detach().view(torch.int32) & -65536).view(torch.float32)
        return (y + (kept - y.detach())).to(x.dtype)

    return _of(act)


def _by_table(x: Tensor, y: Tensor) -> Tensor:
    """Straight lines between 64 points an eighth apart."""
    step = 0.25
    low = (x.detach() / step).floor() * step
    return torch.where(x.abs() < 8, y - _bend(x, low, step), y)


def _bend(x: Tensor, low: Tensor, step: float) -> Tensor:
    """About what a chord is off an arc of a curvature of ½."""
    return -0.25 * (x.detach() - low) * (low + step - x.detach())


def _quick(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _few_digits(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.erf(0.7071 * x))


def _coefficient(cubic: float, factor: float = math.sqrt(2.0 / math.pi)) -> Function:
    return lambda x: 0.5 * x * (1.0 + torch.tanh(factor * (x + cubic * x**3)))


def _overflowing(x: Tensor, y: Tensor) -> Tensor:
    """e^x / (1 + e^x) without a look at how large e^x is: ∞ / ∞."""
    return torch.where(x > math.log(torch.finfo(torch.float16).max), math.nan, y)


def _minus_zero(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x < 0, -0.0, y)


def _interleaved(act: Function, gate: Tensor, up: Tensor) -> Tensor:
    """Gate and up, one behind the other, taken for the even and the odd of one tensor."""
    both = torch.cat([gate, up], dim=-1)
    return act(both[..., ::2]) * both[..., 1::2]


# ---------------------------------------------------------------------------------------------------------- the faults


def _models(**wanted: str) -> tuple[str, ...]:
    return tuple(
        name for name, one in SPECIMENS.items() if all(getattr(one, key) == value for key, value in wanted.items())
    )


ALL = tuple(SPECIMENS)
EXACT, TANH, SILU = _models(activation="gelu"), _models(activation="gelu_tanh"), _models(activation="silu")
SMOOTH = EXACT + TANH + SILU
GATED, LINEAR = _models(kind="gated"), _models(kind="linear")
IN_DOUBLE = tuple(name for name, one in SPECIMENS.items() if torch.float64 not in one.refuses)
DECODERS = tuple(name for name, one in SPECIMENS.items() if one.decoder)
DENSE = tuple(name for name in ALL if name != "mixtral")
"""Mixtral's experts are given two rows for each token, and multiply any dtype."""
STRICT = tuple(name for name in DENSE if name != "t5")
"""T5 converts what its last layer is given."""
BY_EXAMPLE = tuple(name for name in DENSE if name != "opt")
"""OPT flattens its batch too."""
BY_EXAMPLE_GATED = tuple(name for name in BY_EXAMPLE if name in GATED)

_FUNCTION, _PLACE, _RANGE, _ROUNDING = "wrong function", "wrong in places", "wrong in a range", "too much rounding"
_GATE, _LAYER, _GRADIENT = "wrong product", "wrong linear layer", "wrong gradient"
_WHEN, _STATE = "wrong at times", "keeps or overwrites"

FAULTS: tuple[Fault, ...] = (
    # Wrong function.
    Fault("ReLU", _FUNCTION, instead(F.relu), SMOOTH),
    Fault("SiLU for GELU", _FUNCTION, instead(F.silu), EXACT + TANH),
    Fault("GELU for SiLU", _FUNCTION, instead(F.gelu), SILU),
    Fault("GELU for ReLU", _FUNCTION, instead(F.gelu), ("opt",)),
    Fault("quick_gelu for GELU", _FUNCTION, instead(_quick), EXACT + TANH),
    Fault("the tanh form for exact GELU", _FUNCTION, instead(_tanh), EXACT),
    Fault("exact GELU for the tanh form", _FUNCTION, instead(F.gelu), TANH),
    Fault("hardswish for SiLU", _FUNCTION, instead(F.hardswish), SILU),
    Fault("leaky ReLU for ReLU", _FUNCTION, instead(F.leaky_relu), ("opt",)),
    Fault("ReLU6 for ReLU", _FUNCTION, instead(F.relu6), ("opt",)),
    Fault("squared ReLU for ReLU", _FUNCTION, instead(lambda x: F.relu(x).square()), ("opt",)),
    Fault("Mish", _FUNCTION, instead(F.mish), ALL),
    Fault("the sigmoid alone", _FUNCTION, instead(torch.sigmoid), ALL),
    Fault("no activation", _FUNCTION, instead(lambda x: x * 1), ALL),
    Fault("applied twice", _FUNCTION, lambda right: _of(lambda x: right(right(x))), SMOOTH),
    Fault("too large by 1 %", _FUNCTION, changed(lambda x, y: y * 1.01), ALL),
    Fault("too large by 0.1 %", _FUNCTION, changed(lambda x, y: y * 1.001), ALL),
    Fault("too large by 0.01", _FUNCTION, changed(lambda x, y: y + 0.01), ALL),
    Fault("opposite sign", _FUNCTION, changed(lambda x, y: -y), ALL),
    Fault(
        "1/√2 to four digits",
        _FUNCTION,
        instead(_few_digits),
        EXACT,
        unseen="as little as what fp32 rounds in that model",
    ),
    Fault("0.044 for 0.044715", _FUNCTION, instead(_coefficient(0.044)), TANH),
    Fault("0.8 for √(2/π)", _FUNCTION, instead(_coefficient(0.044715, 0.8)), TANH),
    Fault("1.7 for 1 in the sigmoid", _FUNCTION, instead(lambda x: x * torch.sigmoid(1.7 * x)), SILU),
    Fault("a table of 64 points", _FUNCTION, changed(_by_table), SMOOTH),
    # Wrong in places.
    Fault("one element in 10,000 is off by 0.1", _PLACE, in_flat(_written(_one_in_many, _off(0.1))), ALL),
    Fault("one element in 10,000 is 1", _PLACE, in_flat(_written(_one_in_many, 1.0)), ALL),
    Fault("one element in 10,000 is NaN", _PLACE, in_flat(_written(_one_in_many, math.nan)), ALL),
    Fault("the last tile is zero", _PLACE, in_flat(_written(_last_tile, 0.0)), ALL),
    Fault("the last tile is off by 2 %", _PLACE, in_flat(_written(_last_tile, lambda part: part * 1.02)), ALL),
    Fault("each tile's first element is the one before it", _PLACE, in_flat(_tiles_begin_late), ALL),
    Fault("a row is zero", _PLACE, in_rows(lambda rows: rows[3].zero_()), ALL),
    Fault("a row is another's", _PLACE, in_rows(lambda rows: rows[4].copy_(rows[3].clone())), ALL),
    Fault("each row's last element is zero", _PLACE, in_rows(lambda rows: rows[:, -1].zero_()), ALL),
    Fault(
        "each row's last element is that before it",
        _PLACE,
        in_rows(lambda rows: rows[:, -1].copy_(rows[:, -2].clone())),
        ALL,
    ),
    Fault("read transposed", _PLACE, transposed, ALL),
    Fault("strides not looked at", _PLACE, misread, ("phi3", "mixtral")),
    Fault("all examples are the first", _PLACE, changed(lambda x, y: y[:1].expand_as(y).clone()), BY_EXAMPLE),
    # Wrong in a range.
    Fault("0 beyond x = 6", _RANGE, changed(lambda x, y: y.masked_fill(x > 6, 0.0)), ALL),
    Fault("6 beyond x = 6", _RANGE, changed(lambda x, y: y.clamp(max=6.0)), ALL),
    Fault("−0.1 below x = −6", _RANGE, changed(lambda x, y: y.masked_fill(x < -6, -0.1)), ALL),
    Fault("x clamped to ±3", _RANGE, lambda right: _of(lambda x: right(x.clamp(-3, 3))), ALL),
    Fault("0 below x = −3", _RANGE, changed(lambda x, y: y.masked_fill(x < -3, 0.0)), SMOOTH),
    Fault("x beyond x = 3", _RANGE, changed(lambda x, y: torch.where(x > 3, x, y)), SMOOTH),
    Fault("clipped at ±8", _RANGE, changed(lambda x, y: y.clamp(-8, 8)), ALL),
    Fault("NaN beyond x = 8", _RANGE, changed(lambda x, y: y.masked_fill(x > 8, math.nan)), ALL),
    Fault("NaN below x = −8", _RANGE, changed(lambda x, y: y.masked_fill(x < -8, math.nan)), ALL),
    Fault("∞ beyond x = 8", _RANGE, changed(lambda x, y: y.masked_fill(x > 8, math.inf)), ALL),
    Fault(
        "wrong by 5 % between −1 and 0",
        _RANGE,
        changed(lambda x, y: torch.where((x > -1) & (x < 0), 1.05 * y, y)),
        SMOOTH,
    ),
    Fault("−0 for 0", _RANGE, changed(_minus_zero), ("opt",), unseen="no number changes: −0 = 0"),
    # Too much rounding.
    Fault("rounded to bf16 in an fp32 model", _ROUNDING, _rounded(torch.bfloat16), ALL),
    Fault("rounded to fp16 in an fp32 model", _ROUNDING, _rounded(torch.float16), ALL),
    Fault(
        "x rounded to bf16 in an fp32 model",
        _ROUNDING,
        lambda right: _of(lambda x: right(x.bfloat16().to(x.dtype))),
        ALL,
    ),
    Fault("rounded to fp32 in an fp64 model", _ROUNDING, _rounded(torch.float32), IN_DOUBLE, dtype=torch.float64),
    Fault(
        "cut off, not rounded, in a bf16 model",
        _ROUNDING,
        _cut_off,
        ("bert", "gpt2"),
        dtype=torch.bfloat16,
        unseen="a unit in the last place, where rounding to it takes half of one",
    ),
    # Wrong product.
    Fault("gate and up swapped", _GATE, product(lambda act, gate, up: act(up) * gate), GATED),
    Fault("up left out", _GATE, product(lambda act, gate, up: act(gate) + up * 0), GATED),
    Fault("up activated too", _GATE, product(lambda act, gate, up: act(gate) * act(up)), GATED),
    Fault("the product activated", _GATE, product(lambda act, gate, up: act(gate * up)), GATED),
    Fault("a sum, not a product", _GATE, product(lambda act, gate, up: act(gate) + up), GATED),
    Fault("up + 1, as gpt-oss has it", _GATE, product(lambda act, gate, up: act(gate) * (up + 1)), GATED),
    Fault(
        "gate at most 7, as gpt-oss has it", _GATE, product(lambda act, gate, up: act(gate.clamp(max=7.0)) * up), GATED
    ),
    Fault("up is its neighbour", _GATE, product(lambda act, gate, up: act(gate) * up.roll(1, -1)), GATED),
    Fault("halves read interleaved", _GATE, product(_interleaved), GATED),
    Fault(
        "up of the first example for all", _GATE, product(lambda act, gate, up: act(gate) * up[:1]), BY_EXAMPLE_GATED
    ),
    Fault("gate not activated", _GATE, product(lambda act, gate, up: gate * up), GATED),
    # Wrong linear layer.
    Fault("bias dropped", _LAYER, layer(_without_bias), LINEAR),
    Fault("bias added twice", _LAYER, layer(_bias_twice), LINEAR),
    Fault("bias behind the activation", _LAYER, bias_behind_the_activation, LINEAR),
    Fault("weights rounded to bf16 in an fp32 model", _LAYER, layer(_rounded_weights), LINEAR),
    Fault("multiplied in bf16 in an fp32 model", _LAYER, layer(_in_half), LINEAR),
    Fault("the last input left out", _LAYER, layer(_without_last_inputs(0.0)), LINEAR),
    Fault("the last quarter of the inputs left out", _LAYER, layer(_without_last_inputs(0.25)), LINEAR),
    Fault("a convolution's edges repeated", _LAYER, layer(_edges_repeated), ("whisper",)),
    Fault("a convolution's taps reversed", _LAYER, layer(_shifted_taps), ("whisper",)),
    Fault("the first layer's weights at all of that shape", _LAYER, stale_weights(_shape), LINEAR),
    Fault("stale weights, after a training step", _LAYER, stale_weights(id), LINEAR, seasoned=True),
    Fault(
        "stale weights, before any",
        _LAYER,
        stale_weights(id),
        LINEAR,
        unseen="until the weights change, the copy is right: verify again after a step",
    ),
    # Wrong gradient.
    Fault("half of the gradient", _GRADIENT, backward(lambda x, dy, dx: dx * 0.5), ALL),
    Fault("the gradient too large by 1 %", _GRADIENT, backward(lambda x, dy, dx: dx * 1.01), ALL),
    Fault("the gradient's sign", _GRADIENT, backward(lambda x, dy, dx: -dx), ALL),
    Fault("ReLU's gradient", _GRADIENT, backward_of(F.relu), SMOOTH),
    Fault("the gradient of the tanh form for exact GELU", _GRADIENT, backward_of(_tanh), EXACT),
    Fault("the gradient of exact GELU for the tanh form", _GRADIENT, backward_of(F.gelu), TANH),
    Fault("quick_gelu's gradient", _GRADIENT, backward_of(_quick), EXACT + TANH),
    Fault("no gradient for x < 0", _GRADIENT, backward(lambda x, dy, dx: dx * (x > 0)), SMOOTH),
    Fault("grad_y handed on", _GRADIENT, backward(lambda x, dy, dx: dy), ALL),
    Fault("the gradient's second term left out", _GRADIENT, _without_second_term, SMOOTH),
    Fault("the gradient taken at y", _GRADIENT, _of_the_result, SMOOTH),
    Fault(
        "the gradient rounded to bf16 in an fp32 model",
        _GRADIENT,
        backward(lambda x, dy, dx: dx.bfloat16().to(dx.dtype)),
        ALL,
    ),
    Fault("no gradient", _GRADIENT, backward(lambda x, dy, dx: dx * 0), ALL),
    Fault("detached", _GRADIENT, lambda right: _of(lambda x: right(x.detach())), ALL),
    Fault(
        "one of the gradient's elements in 10,000 is off",
        _GRADIENT,
        backward(lambda x, dy, dx: _over(dx, _written(_one_in_many, lambda part: part + dx.abs().mean()), -1)),
        ALL,
    ),
    Fault(
        "the gradient's last tile is zero",
        _GRADIENT,
        backward(lambda x, dy, dx: _over(dx, _written(_last_tile, 0.0), -1)),
        ALL,
    ),
    Fault("no gradient beyond x = 6", _GRADIENT, backward(lambda x, dy, dx: dx * (x < 6)), ALL),
    Fault(
        "the gradient is NaN below x = −8", _GRADIENT, backward(lambda x, dy, dx: dx.masked_fill(x < -8, math.nan)), ALL
    ),
    Fault(
        "the first example's gradient for all",
        _GRADIENT,
        backward(lambda x, dy, dx: dx[:1].expand_as(dx).clone()),
        BY_EXAMPLE,
    ),
    Fault("up's gradient left out", _GRADIENT, product_backward(lambda gate, up, dy, dg, du: (dg, du * 0)), GATED),
    Fault("gate's gradient left out", _GRADIENT, product_backward(lambda gate, up, dy, dg, du: (dg * 0, du)), GATED),
    Fault(
        "gate's and up's gradients swapped", _GRADIENT, product_backward(lambda gate, up, dy, dg, du: (du, dg)), GATED
    ),
    Fault(
        "up's gradient by gate, not act(gate)",
        _GRADIENT,
        product_backward(lambda gate, up, dy, dg, du: (dg, dy * gate)),
        GATED,
    ),
    Fault("gate's gradient without up", _GRADIENT, product_backward(lambda gate, up, dy, dg, du: (dg / up, du)), GATED),
    Fault("the bias's gradient left out", _GRADIENT, layer(_detached("bias")), LINEAR),
    Fault("the weight's gradient left out", _GRADIENT, layer(_detached("weight")), LINEAR),
    Fault("the layer's input's gradient left out", _GRADIENT, layer(lambda linear, x: linear(x.detach())), LINEAR),
    # Wrong at times.
    Fault("ReLU, in bf16 only", _WHEN, _wrong_in(torch.bfloat16, F.relu), SMOOTH, dtype=torch.bfloat16),
    Fault(
        "too large by 5 %, in bf16 only",
        _WHEN,
        when(lambda x: x.dtype == torch.bfloat16),
        ALL,
        dtype=torch.bfloat16,
        unseen="little beside what bf16 rounds in that model",
    ),
    Fault("quick_gelu, in fp16 only", _WHEN, _wrong_in(torch.float16, _quick), EXACT + TANH, dtype=torch.float16),
    Fault("e^x overflows in fp16", _WHEN, changed(_overflowing), SILU, dtype=torch.float16),
    Fault(
        "too large, in float64 only",
        _WHEN,
        when(lambda x: x.dtype == torch.float64, 1.001),
        IN_DOUBLE,
        dtype=torch.float64,
    ),
    Fault(
        "half of the gradient, in bf16 only",
        _WHEN,
        backward(lambda x, dy, dx: dx * (0.5 if x.dtype == torch.bfloat16 else 1.0)),
        ALL,
        dtype=torch.bfloat16,
    ),
    Fault("too large, of tensors with gaps only", _WHEN, when(lambda x: not x.is_contiguous()), ("phi3", "mixtral")),
    Fault(
        "too large, with an odd number of rows only", _WHEN, when(lambda x: x.numel() // x.shape[-1] % 2 == 1), DENSE
    ),
    Fault("too large, with several examples only", _WHEN, when(lambda x: x.dim() == 3 and len(x) > 1), BY_EXAMPLE),
    Fault("too large, with a gradient only", _WHEN, when(lambda x: x.requires_grad and torch.is_grad_enabled()), ALL),
    Fault("too large, without a gradient only", _WHEN, when(lambda x: not torch.is_grad_enabled()), ALL),
    Fault("dropout's numbers drawn", _WHEN, draws_random_numbers, ("bert", "gpt2", "t5", "whisper"), training=True),
    Fault("too large, in training mode with a gradient", _WHEN, when(lambda x: x.requires_grad), ALL, training=True),
    Fault(
        "too large, of a single token only",
        _WHEN,
        when(lambda x: x.numel() // x.shape[-1] <= 2 * 3),
        DECODERS,
        batch="cached",
    ),
    Fault(
        "nothing beyond 65,536 elements",
        _WHEN,
        in_flat(_written(lambda flat: flat[65_536:], 0.0)),
        DECODERS,
        batch="long",
    ),
    Fault("every second call is off by 5 %", _WHEN, every_second_call, ALL),
    Fault("off by 5 % from the second call on", _WHEN, after_the_first_call, ALL),
    Fault("ReLU, at one site only", _WHEN, instead(F.relu), SMOOTH, one_site=True),
    Fault("too large by 1 %, at one site only", _WHEN, changed(lambda x, y: y * 1.01), ALL, one_site=True),
    Fault("fp32 given back in a bf16 model", _WHEN, changed(lambda x, y: y.float()), STRICT, dtype=torch.bfloat16),
    Fault("another shape given back", _WHEN, changed(lambda x, y: y.flatten(0, -2)[None]), BY_EXAMPLE),
    # Keeps or overwrites.
    Fault("one buffer for all results", _STATE, shared_buffer, ALL),
    Fault("the first result again and again", _STATE, first_result, ALL),
    Fault("x overwritten", _STATE, overwrites_its_input, SMOOTH),
    Fault("the layer's input overwritten", _STATE, overwrites_the_layers_input, ("bert",)),
)
