"""How what a fault computes is made, from the function that would be right."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.benchmarking.planted.fault import Change, Forms, Function, Make

# ------------------------------------------------------------------------------------------------- how they are made


def forms_of(act: Function) -> Forms:
    """Nothing else is wrong than the activation."""
    return Forms(act, lambda gate, up: act(gate) * up, lambda linear, x: act(linear(x)))


def changed(change: Change) -> Make:
    """The value is another."""

    def make(right: Function) -> Forms:
        return forms_of(lambda x: change(x, right(x)))

    return make


def instead(function: Function) -> Make:
    """Another function is computed."""
    return lambda _: forms_of(function)


def product(rule: Callable[[Function, Tensor, Tensor], Tensor]) -> Make:
    """The gated product is wrong, the activation right."""

    def make(right: Function) -> Forms:
        return Forms(right, lambda gate, up: rule(right, gate, up), forms_of(right).linear)

    return make


def layer(rule: Callable[[nn.Module, Tensor], Tensor]) -> Make:
    """The linear layer is wrong, the activation right."""

    def make(right: Function) -> Forms:
        return Forms(right, forms_of(right).gated, lambda linear, x: right(rule(linear, x)))

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

        return forms_of(lambda x: _Backward.apply(right, rule, x))

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

        return Forms(right, lambda gate, up: _Backward.apply(multiplied, both, gate, up), forms_of(right).linear)

    return make


# --------------------------------------------------------------------------------------------------- values in places


def written_over(y: Tensor, rule: Callable[[Tensor], None], *shape: int) -> Tensor:
    """A copy of y, over which, seen in that shape, ``rule`` writes."""
    y = y.clone(memory_format=torch.contiguous_format)
    rule(y.view(*shape))
    return y


def in_flat(rule: Callable[[Tensor], None]) -> Make:
    """Wrong where ``rule`` writes over the values, all in one row."""
    return changed(lambda x, y: written_over(y, rule, -1))


def in_rows(rule: Callable[[Tensor], None]) -> Make:
    """Likewise, over the rows of the last dimension."""
    return changed(lambda x, y: written_over(y, rule, -1, y.shape[-1]))


TILE = 1024
_EVERY = 10_000


def written(places: Callable[[Tensor], Tensor], value: float | Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    def rule(flat: Tensor) -> None:
        part = places(flat)
        part.copy_(value(part) if callable(value) else torch.full_like(part, value))

    return rule


def last_tile(flat: Tensor) -> Tensor:
    return flat[(flat.numel() - 1) // TILE * TILE :]


def one_in_many(flat: Tensor) -> Tensor:
    return flat[1234::_EVERY]


def off(by: float) -> Function:
    return lambda part: part + by


def tiles_begin_late(flat: Tensor) -> None:
    flat[TILE::TILE] = flat[TILE - 1 : -1 : TILE]


def misread(right: Function) -> Forms:
    """As if x, whatever its strides, lay in one piece."""

    def act(x: Tensor) -> Tensor:
        room = x.untyped_storage().nbytes() // x.element_size()
        whole = x.as_strided((x.numel(),), (1,), min(x.storage_offset(), room - x.numel()))
        return right(whole.view(x.shape))

    return forms_of(act)


def transposed(right: Function) -> Forms:
    return forms_of(lambda x: right(x.transpose(-1, -2).reshape(x.shape)))


def shared_buffer(right: Function) -> Forms:
    """What it gives is written over by the next call on a tensor of that shape, behind autograd's back."""
    buffers: dict[Any, Tensor] = {}

    def act(x: Tensor) -> Tensor:
        y = right(x)
        buffer = buffers.setdefault((x.shape, x.dtype, torch.is_inference(x)), torch.empty_like(y))
        buffer.data.copy_(y.data)
        y.data = buffer.data
        return y

    return forms_of(act)


def first_result(right: Function) -> Forms:
    """What the first call on a tensor of that shape gave, again and again."""
    kept: dict[Any, Tensor] = {}

    def act(x: Tensor) -> Tensor:
        y = right(x)
        return y * 0 + kept.setdefault((x.shape, x.dtype), y.detach().clone())

    return forms_of(act)


def every_second_call(right: Function) -> Forms:
    count = itertools.count()
    return forms_of(lambda x: right(x) * (1.05 if next(count) % 2 else 1.0))


def after_the_first_call(right: Function) -> Forms:
    """The first call of a shape goes another way: it is the one that is tuned."""
    seen: set[Any] = set()

    def act(x: Tensor) -> Tensor:
        known, _ = (x.shape, x.dtype) in seen, seen.add((x.shape, x.dtype))
        return right(x) * (1.05 if known else 1.0)

    return forms_of(act)


def overwrites_its_input(right: Function) -> Forms:
    def act(x: Tensor) -> Tensor:
        y = right(x)
        x.data.copy_(y.data)
        return y

    return forms_of(act)


def overwrites_the_layers_input(right: Function) -> Forms:
    def linear_act(linear: nn.Module, x: Tensor) -> Tensor:
        y = right(linear(x))
        x.data.zero_()
        return y

    return Forms(right, forms_of(right).gated, linear_act)


def draws_random_numbers(right: Function) -> Forms:
    def act(x: Tensor) -> Tensor:
        torch.rand(1)
        return right(x)

    return forms_of(act)


# ------------------------------------------------------------------------------------------------------------- layers


def _with(linear: nn.Module, x: Tensor, **others: Any) -> Tensor:
    """What the layer gives with other weights than its own."""
    own = {name: weight for name, weight in linear.named_parameters() if weight is not None}
    return torch.func.functional_call(linear, {**own, **others}, (x,))


def without_bias(linear: nn.Module, x: Tensor) -> Tensor:
    return _with(linear, x, bias=torch.zeros_like(linear.bias))


def bias_twice(linear: nn.Module, x: Tensor) -> Tensor:
    return _with(linear, x, bias=2 * linear.bias)


def rounded_weights(linear: nn.Module, x: Tensor) -> Tensor:
    return _with(linear, x, weight=linear.weight.bfloat16().to(linear.weight.dtype))


def in_half(linear: nn.Module, x: Tensor) -> Tensor:
    """The product in bf16."""
    others = {name: weight.bfloat16() for name, weight in linear.named_parameters()}
    return _with(linear, x.bfloat16(), **others).to(x.dtype)


def without_last_inputs(share: float) -> Callable[[nn.Module, Tensor], Tensor]:
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
        return right(without_bias(linear, x)) + bias

    return Forms(right, forms_of(right).gated, linear_act)


def edges_repeated(linear: nn.Module, x: Tensor) -> Tensor:
    """What lies outside of the input is the nearest of it, not zero."""
    if not isinstance(linear, nn.Conv1d):
        return linear(x)
    (padding,) = linear.padding
    return F.conv1d(F.pad(x, (padding, padding), "replicate"), linear.weight, linear.bias, linear.stride)


def shifted_taps(linear: nn.Module, x: Tensor) -> Tensor:
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

        return Forms(right, forms_of(right).gated, linear_act)

    return make


def shape(linear: nn.Module) -> Any:
    return type(linear), linear.weight.shape


def detached(*names: str) -> Callable[[nn.Module, Tensor], Tensor]:
    """No gradient comes to these weights."""

    def rule(linear: nn.Module, x: Tensor) -> Tensor:
        return _with(linear, x, **{name: getattr(linear, name).detach() for name in names})

    return rule


# ---------------------------------------------------------------------------------------------------------- gradients


def of_the_result(right: Function) -> Forms:
    """The gradient is taken at y, which was kept in the place of x."""

    def rule(grad_y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return gradients(right, (right(x),), grad_y)

    return forms_of(lambda x: _Backward.apply(right, rule, x))


def without_second_term(right: Function) -> Forms:
    """Of (x · s(x))′ = s(x) + x · s′(x), the first term alone."""

    def rule(grad_y: Tensor, x: Tensor) -> tuple[Tensor]:
        return (grad_y * torch.where(x == 0, 0.5, right(x) / x),)

    return forms_of(lambda x: _Backward.apply(right, rule, x))


# ------------------------------------------------------------------------------------------------- where and when only


def when(condition: Callable[[Tensor], bool], factor: float = 1.05) -> Make:
    """Too large by that factor, where the condition holds."""

    def make(right: Function) -> Forms:
        return forms_of(lambda x: right(x) * (factor if condition(x) else 1.0))

    return make


def wrong_in(dtype: torch.dtype, function: Function) -> Make:
    def make(right: Function) -> Forms:
        return forms_of(lambda x: function(x) if x.dtype == dtype else right(x))

    return make


def rounded(dtype: torch.dtype) -> Make:
    return changed(lambda x, y: y.to(dtype).to(y.dtype))


def cut_off(right: Function) -> Forms:
    """To bf16 by leaving off the lower half of an fp32."""

    def act(x: Tensor) -> Tensor:
        y = right(x.float())
        kept = (y.detach().view(torch.int32) & -65536).view(torch.float32)
        return (y + (kept - y.detach())).to(x.dtype)

    return forms_of(act)


def by_table(x: Tensor, y: Tensor) -> Tensor:
    """Straight lines between 64 points an eighth apart."""
    step = 0.25
    low = (x.detach() / step).floor() * step
    return torch.where(x.abs() < 8, y - _bend(x, low, step), y)


def _bend(x: Tensor, low: Tensor, step: float) -> Tensor:
    """About what a chord is off an arc of a curvature of ½."""
    return -0.25 * (x.detach() - low) * (low + step - x.detach())


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def few_digits(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.erf(0.7071 * x))


def coefficient(cubic: float, factor: float = math.sqrt(2.0 / math.pi)) -> Function:
    return lambda x: 0.5 * x * (1.0 + torch.tanh(factor * (x + cubic * x**3)))


def overflowing(x: Tensor, y: Tensor) -> Tensor:
    """e^x / (1 + e^x) without a look at how large e^x is: ∞ / ∞."""
    return torch.where(x > math.log(torch.finfo(torch.float16).max), math.nan, y)


def minus_zero(x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x < 0, -0.0, y)


def interleaved(act: Function, gate: Tensor, up: Tensor) -> Tensor:
    """Gate and up, one behind the other, taken for the even and the odd of one tensor."""
    both = torch.cat([gate, up], dim=-1)
    return act(both[..., ::2]) * both[..., 1::2]
