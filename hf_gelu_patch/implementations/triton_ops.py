"""Torch ops over the Triton kernels: checks, memory layout, shapes for tracing, autograd, vmap.

``pointwise``, ``gated`` and ``gated_halves`` are what a model calls. An ordinary tensor goes straight to the kernel, or
to an autograd function around it: the dispatcher takes Python ten times as long as a launch. Where something has to see
the call (a dispatch mode: FakeTensor, make_fx, a counter of operations), it is an op of torch.library. While
torch.compile, torch.export or torch.jit traces, it is the plain aten expression, so that Inductor fuses it with its
neighbours; an opaque op would keep it from doing so. float64 is that expression too, and so are torch.func's
transforms, forward-mode derivatives, subclasses of Tensor, nested and sparse tensors and anything on a CPU, unless
Triton's interpreter runs the kernels there. Tensors of every size are computed alike.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from hf_gelu_patch.activations import ACTIVATIONS
from hf_gelu_patch.errors import UnknownNameError

POINTWISE = (
    *("gelu", "gelu_tanh", "quick_gelu", "gelu_clipped", "silu", "relu"),
    *("relu_squared", "mish", "laplace", "sqrt_softplus"),
)
"""The activations the kernels compute (triton_kernels.FUNCTIONS, without importing triton; a test compares)."""

GATED = (*POINTWISE, "swiglu_oai")
"""The gated forms: act(gate) · up, and swiglu_oai."""

DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})
"""The dtypes they take; float64 is computed by aten."""
_KERNEL_DTYPES = DTYPES - {torch.float64}
_ORDINARY = frozenset({Tensor, nn.Parameter})

# Triton decides by this variable, when a kernel is declared, whether it runs interpreted on the CPU.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = frozenset({"cuda", "cpu"} if _INTERPRETED else {"cuda"})
"""The device types the kernels run on; torch calls ROCm's ``cuda`` too."""


def ordinary(x: object) -> bool:
    """Whether x is a tensor of floating-point numbers in strided memory: no subclass of Tensor, nothing that stands
    for a tensor while torch.fx traces, and neither nested, sparse, quantized nor in MKL-DNN's layout."""
    return type(x) in _ORDINARY and _in_memory(x) and x.is_floating_point()  # type: ignore[arg-type, attr-defined]


def _in_memory(x: Tensor) -> bool:
    """Whether x has sizes and strides. A nested tensor of the older kind says that its layout is strided, too."""
    return x.layout is torch.strided and not x.is_nested


def pointwise(x: Tensor, activation: str, **parameters: float) -> Tensor:
    """act(x), elementwise, by one kernel forward and one backward.

    Args:
        x: any shape, any strides; float32, float16, bfloat16 or float64.
        activation: one of ``POINTWISE``.
        parameters: the activation's constants, where not its own: ``min`` and ``max`` of ``gelu_clipped``, ``mu`` and
            ``sigma`` of ``laplace``.

    Returns:
        A tensor of x's shape and dtype, computed in float32 and rounded once. Differentiable any number of times: the
        first derivative by a kernel, further ones by aten.

    Raises:
        UnknownNameError: there is no such kernel; the message lists the valid names.
        TypeError: x has another dtype, or a parameter is not one of the activation's.
        ValueError: a parameter is NaN, or not positive and has to be.
        NotImplementedError: there is no kernel for x's device.
    """
    constants = _constants(activation, parameters, POINTWISE)
    y: Tensor
    if _direct(x):
        if x.requires_grad and torch.is_grad_enabled():
            y = _Pointwise.apply(x, activation, constants)  # type: ignore[no-untyped-call]
            return y
        return _forward(x, activation, constants)
    if not isinstance(x, Tensor):  # torch.fx traces with what stands for one
        return _eager(activation, constants)(x)
    _check(x)
    if _plain(x):
        return _eager(activation, constants)(x)
    y = _pointwise(x, activation, constants)
    return y


def gated(gate: Tensor, up: Tensor, activation: str, *, rounded: bool = False, **parameters: float) -> Tensor:
    """act(gate) · up by one kernel forward and one backward, which saves neither act(gate) nor the product.

    ``swiglu_oai`` is σ(alpha·g)·g·(u + 1) with g = min(gate, limit) and u = min(max(up, −limit), limit), as in OpenAI's
    gpt-oss.

    Args:
        gate: any shape, any strides; float32, float16, bfloat16 or float64. Two halves of one tensor, one behind the
            other or alternating, are read where they lie.
        up: of the same shape, dtype and device.
        activation: one of ``GATED``.
        rounded: whether act(gate) is rounded to the dtype before the product, as two ops would do: nearer to eager's
            bits, further from the truth. float32 has nothing to round.
        parameters: as in ``pointwise``; ``alpha`` and ``limit`` of ``swiglu_oai``.

    Returns:
        A tensor of that shape and dtype, computed in float32 and rounded once (twice where ``rounded``). Differentiable
        any number of times: the first derivatives, both by one kernel; further ones by aten.

    Raises:
        UnknownNameError: there is no such kernel; the message lists the valid names.
        ValueError: gate and up differ in shape; a parameter is NaN, or not positive and has to be.
        TypeError: they differ in dtype, it is another one, or a parameter is not one of the activation's.
        NotImplementedError: there is no kernel for their device.
    """
    constants = _constants(activation, parameters, GATED)
    if not (isinstance(gate, Tensor) and isinstance(up, Tensor)):  # torch.fx traces with what stands for them
        return _eager_gated(activation, constants)(gate, up)
    in_memory = _in_memory(gate) and _in_memory(up)
    if in_memory and gate.shape != up.shape:
        raise ValueError(f"gate has shape {tuple(gate.shape)} and up {tuple(up.shape)}: expand or split them first")
    if gate.dtype != up.dtype or gate.device != up.device:
        raise TypeError(f"gate is {gate.dtype} on {gate.device}, up {up.dtype} on {up.device}: they have to be alike")
    y: Tensor
    if _direct(gate, up):
        if (gate.requires_grad or up.requires_grad) and torch.is_grad_enabled():
            y = _Gated.apply(gate, up, activation, constants, rounded)  # type: ignore[no-untyped-call]
            return y
        return _gated_forward(gate, up, activation, constants, rounded)
    _check(gate)
    if _plain(gate) or _plain(up):
        return _eager_gated(activation, constants)(gate, up)
    y = _gated(gate, up, activation, constants, rounded)
    return y


def gated_halves(
    gate_up: Tensor, activation: str, *, interleaved: bool = False, rounded: bool = False, **parameters: float
) -> Tensor:
    """``gated`` of the two halves of one tensor's last dimension, whose gradient is then written as one tensor too.

    Args:
        gate_up: (..., 2n); as in ``gated``.
        activation: one of ``GATED``.
        interleaved: whether gate and up alternate (``gate_up[..., ::2]``, ``gate_up[..., 1::2]``) instead of standing
            one behind the other.
        rounded: as in ``gated``.
        parameters: as in ``gated``.

    Returns:
        (..., n), as ``gated``.

    Raises:
        ValueError: the last dimension is odd, or there is none.
        UnknownNameError, TypeError, NotImplementedError: as in ``gated``.
    """
    constants = _constants(activation, parameters, GATED)
    if gate_up.dim() == 0 or gate_up.size(-1) % 2:
        shape = tuple(gate_up.shape) if _in_memory(gate_up) else f"(…, {gate_up.size(-1)})"
        raise ValueError(f"the last dimension is split into halves, and the shape is {shape}")
    y: Tensor
    if _direct(gate_up):
        if gate_up.requires_grad and torch.is_grad_enabled():
            y = _GatedHalves.apply(gate_up, activation, constants, interleaved, rounded)  # type: ignore[no-untyped-call]
            return y
        return _halves_forward(gate_up, activation, constants, interleaved, rounded)
    _check(gate_up)
    if _plain(gate_up):
        return _eager_gated(activation, constants)(*_halves(gate_up, interleaved))
    y = _gated_halves(gate_up, activation, constants, interleaved, rounded)
    return y


def _plain(x: Tensor) -> bool:
    """Whether the aten expression is what x gets, decided before the dispatcher, which is slower than a small op."""
    if torch.compiler.is_compiling() or type(x) not in _ORDINARY or not _in_memory(x):
        return True
    return _by_aten(x) or _transformed()


def _direct(*tensors: Tensor) -> bool:
    """Whether these are ordinary tensors that a kernel takes, and nothing but autograd has to see what is done."""
    if torch.compiler.is_compiling() or _dispatch_modes() or _key_included(_PRE_DISPATCH):
        return False
    if _functorch_stack() is not None or forward_ad._current_level >= 0 or _tracing():  # _transformed, without a call
        return False
    for x in tensors:
        if x.dtype not in _KERNEL_DTYPES or type(x) not in _ORDINARY:
            return False
        if _dispatch_keys(x).raw_repr() not in _ORDINARY_KEYS and not _has_ordinary_keys(x):
            return False
    return True


_ORDINARY_KEYS: set[int] = set()
"""The dispatch keys of tensors that are nothing but memory of a device with kernels, as far as there were any."""


def _has_ordinary_keys(x: Tensor) -> bool:
    """Whether x has no other dispatch keys than such a tensor, made to be differentiated or not. A negated view, which
    the dispatcher resolves, has more, a zero without memory, a batch of gradients, a nested or sparse tensor. Asked
    where no mode and no transform has a hand in what is made here."""
    if not (x.is_cuda or (_INTERPRETED and x.is_cpu)):
        return False
    for inference in (False, True):
        with torch.inference_mode(inference):
            _ORDINARY_KEYS.add(_dispatch_keys(torch.empty(0, device=x.device)).raw_repr())
    return _dispatch_keys(x).raw_repr() in _ORDINARY_KEYS


def _transformed() -> bool:
    """Whether torch.func or torch.jit.trace goes through here, or a forward-mode derivative, which an op of
    torch.library would drop in silence."""
    return _functorch_stack() is not None or forward_ad._current_level >= 0 or _tracing()


_dispatch_keys = torch._C._dispatch_keys
_dispatch_modes = torch._C._len_torch_dispatch_stack
_key_included, _PRE_DISPATCH = torch._C._dispatch_tls_is_dispatch_key_included, torch._C.DispatchKey.PreDispatch
_functorch_stack = torch._C._functorch.peek_interpreter_stack
_tracing = torch._C._is_tracing


def _check(x: Tensor) -> None:
    if x.dtype not in DTYPES:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in DTYPES))
        raise TypeError(
            f"the triton implementation takes {names}; got {x.dtype}. "
            'unpatch(model) and patch(model, implementation="aten") for this dtype.'
        )


_SWIGLU_OAI = {"alpha": 1.702, "limit": 7.0}


def _constants(activation: str, given: dict[str, float], names: Sequence[str]) -> tuple[float, ...]:
    """The activation's constants in the order of its record."""
    if not given and activation in _WITHOUT_CONSTANTS:
        return ()
    if activation not in names:
        raise UnknownNameError("activation", activation, names)
    usual = _SWIGLU_OAI if activation == "swiglu_oai" else dict(ACTIVATIONS[activation].parameters)
    if not given.keys() <= usual.keys():
        raise TypeError(f"{activation} takes {', '.join(usual) or 'no constants'}; got {', '.join(given)}")
    values = {name: float(value) for name, value in (usual | given).items()}
    for name, value in values.items():
        if math.isnan(value) or (name in _POSITIVE and not 0.0 < value < math.inf):
            raise ValueError(
                f"{activation} takes {'a positive number' if name in _POSITIVE else 'a number'} as {name}; got {value}"
            )
    return tuple(values.values())


_POSITIVE = frozenset({"alpha", "sigma"})
_WITHOUT_CONSTANTS = frozenset(name for name in POINTWISE if not ACTIVATIONS[name].parameters)


# The plain aten expressions


def _eager(activation: str, constants: Sequence[float]) -> Callable[[Tensor], Tensor]:
    record = ACTIVATIONS[activation]
    if not constants:
        return record.eager
    return functools.partial(record.eager, **dict(zip(dict(record.parameters), constants, strict=True)))


def _eager_gated(activation: str, constants: Sequence[float]) -> Callable[[Tensor, Tensor], Tensor]:
    if activation == "swiglu_oai":
        alpha, limit = constants
        return lambda gate, up: _swiglu_oai(gate, up, alpha, limit)
    act = _eager(activation, constants)
    return lambda gate, up: act(gate) * up


def _swiglu_oai(gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor:
    gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return gate * torch.sigmoid(gate * alpha) * (up + 1)


def _halves(gate_up: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    if interleaved:
        return gate_up[..., ::2], gate_up[..., 1::2]
    gate, up = gate_up.chunk(2, dim=-1)
    return gate, up


# The kernels.


@functools.cache
def _kernels() -> ModuleType:
    from hf_gelu_patch.implementations import triton_kernels

    return triton_kernels


def _forward(x: Tensor, activation: str, constants: Sequence[float]) -> Tensor:
    y = torch.empty_like(x)
    _kernels().launch("forward", (x, y), activation, constants)
    return y


def _backward(grad_y: Tensor, x: Tensor, activation: str, constants: Sequence[float]) -> Tensor:
    grad_x = torch.empty_like(x)
    _kernels().launch("backward", (x, grad_y, grad_x), activation, constants)
    return grad_x


def _gated_forward(gate: Tensor, up: Tensor, activation: str, constants: Sequence[float], rounded: bool) -> Tensor:
    y = torch.empty_like(gate)
    _kernels().launch("gated_forward", (gate, up, y), activation, constants, rounded)
    return y


def _gated_gradients(
    grad_y: Tensor, gate: Tensor, up: Tensor, activation: str, constants: Sequence[float], rounded: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up."""
    grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(gate)
    given = (gate, up, grad_y, grad_gate, grad_up)
    _kernels().launch("gated_backward", given, activation, constants, rounded)
    return grad_gate, grad_up


def _halves_forward(
    gate_up: Tensor, activation: str, constants: Sequence[float], interleaved: bool, rounded: bool
) -> Tensor:
    return _gated_forward(*_halves(gate_up, interleaved), activation, constants, rounded)


def _halves_gradient(
    grad_y: Tensor, gate_up: Tensor, activation: str, constants: Sequence[float], interleaved: bool, rounded: bool
) -> Tensor:
    grad = torch.empty_like(gate_up)
    halves, into = _halves(gate_up, interleaved), _halves(grad, interleaved)
    _kernels().launch("gated_backward", (*halves, grad_y, *into), activation, constants, rounded)
    return grad


# The ops. On a CPU without the interpreter, and for float64, they are the aten expressions, so that a graph that holds
# them runs anywhere.


def _by_aten(x: Tensor) -> bool:
    return x.dtype == torch.float64 or (x.is_cpu and not _INTERPRETED)


def _by_formula(
    grad_y: Tensor, gate: Tensor, up: Tensor, activation: str, constants: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up in float64, rounded once. Below autograd, where aten's own cannot be asked for."""
    g, u, dy = gate.double(), up.double(), grad_y.double()
    if activation == "swiglu_oai":
        alpha, limit = constants
        inside, s = g.clamp(max=limit), torch.sigmoid(alpha * g.clamp(max=limit))
        value, slope = inside * s, torch.where(g > limit, 0.0, s + alpha * inside * s * (1.0 - s))
        factor, factor_slope = u.clamp(-limit, limit) + 1.0, torch.where(u.abs() > limit, 0.0, torch.ones_like(u))
    else:
        record = ACTIVATIONS[activation]
        named = dict(zip(dict(record.parameters), constants, strict=True))
        value, slope = record.reference(g, **named), record.derivative(g, **named)
        factor, factor_slope = u, torch.ones_like(u)
    grads = dy * factor * slope, dy * value * factor_slope
    return torch.empty_like(gate).copy_(grads[0]), torch.empty_like(gate).copy_(grads[1])


def _alike(*tensors: Tensor) -> None:
    """What no kernel asks: tensors of another shape would be read past their ends."""
    first = tensors[0]
    for x in tensors[1:]:
        if x.shape != first.shape or x.device != first.device:
            raise ValueError(
                f"the tensors have to be alike: one is {tuple(first.shape)} on {first.device}, one "
                f"{tuple(x.shape)} on {x.device}"
            )


_op = functools.partial(torch.library.custom_op, mutates_args=(), device_types=("cpu", "cuda"))


@_op("hf_gelu_patch::pointwise")
def _pointwise(x: Tensor, activation: str, constants: Sequence[float]) -> Tensor:
    if _by_aten(x):
        return _eager(activation, constants)(x)
    return _forward(x, activation, constants)


@_op("hf_gelu_patch::pointwise_backward")
def _pointwise_backward(grad_y: Tensor, x: Tensor, activation: str, constants: Sequence[float]) -> Tensor:
    _alike(grad_y, x)
    if _by_aten(x):
        return _by_formula(grad_y, x, torch.ones_like(x), activation, constants)[0]
    return _backward(grad_y, x, activation, constants)


@_op("hf_gelu_patch::gated")
def _gated(gate: Tensor, up: Tensor, activation: str, constants: Sequence[float], rounded: bool) -> Tensor:
    _alike(gate, up)
    if _by_aten(gate):
        return _eager_gated(activation, constants)(gate, up)
    return _gated_forward(gate, up, activation, constants, rounded)


@_op("hf_gelu_patch::gated_backward")
def _gated_backward(
    grad_y: Tensor, gate: Tensor, up: Tensor, activation: str, constants: Sequence[float], rounded: bool, again: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of gate and up, and act(gate) · up ``again``, for who did not keep it (else an empty tensor)."""
    _alike(grad_y, gate, up)
    if _by_aten(gate):
        y = _eager_gated(activation, constants)(gate, up) if again else gate.new_empty(0)
        return *_by_formula(grad_y, gate, up, activation, constants), y
    if not again:
        return *_gated_gradients(grad_y, gate, up, activation, constants, rounded), gate.new_empty(0)
    y, grad_gate, grad_up = (torch.empty_like(gate) for _ in range(3))
    given = (gate, up, grad_y, y, grad_gate, grad_up)
    _kernels().launch("gated_backward", given, activation, constants, rounded)
    return grad_gate, grad_up, y


@_op("hf_gelu_patch::gated_halves")
def _gated_halves(
    gate_up: Tensor, activation: str, constants: Sequence[float], interleaved: bool, rounded: bool
) -> Tensor:
    if _by_aten(gate_up):
        return _eager_gated(activation, constants)(*_halves(gate_up, interleaved))
    return _halves_forward(gate_up, activation, constants, interleaved, rounded)


@_op("hf_gelu_patch::gated_halves_backward")
def _gated_halves_backward(
    grad_y: Tensor, gate_up: Tensor, activation: str, constants: Sequence[float], interleaved: bool, rounded: bool
) -> Tensor:
    _alike(grad_y, _halves(gate_up, interleaved)[0])
    if _by_aten(gate_up):
        grad = torch.empty_like(gate_up)
        grads = _by_formula(grad_y, *_halves(gate_up, interleaved), activation, constants)
        for half, own in zip(_halves(grad, interleaved), grads, strict=True):
            half.copy_(own)
        return grad
    return _halves_gradient(grad_y, gate_up, activation, constants, interleaved, rounded)


_pointwise.register_fake(lambda x, *_: torch.empty_like(x))
_pointwise_backward.register_fake(lambda _, x, *__: torch.empty_like(x))
_gated.register_fake(lambda gate, *_: torch.empty_like(gate))
_gated_halves_backward.register_fake(lambda _, gate_up, *__: torch.empty_like(gate_up))


@_gated_halves.register_fake
def _(gate_up: Tensor, _activation: str, _constants: Sequence[float], interleaved: bool, _rounded: bool) -> Tensor:
    return torch.empty_like(_halves(gate_up, interleaved)[0])


@_gated_backward.register_fake
def _(_: Tensor, gate: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    again = options[-1]
    return torch.empty_like(gate), torch.empty_like(gate), torch.empty_like(gate) if again else gate.new_empty(0)


# Autograd. Where a graph of the backward is asked for (``create_graph``), it is aten's, differentiable without end.


def _gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_y: Tensor) -> tuple[Tensor, ...]:
    """The gradients of function(*inputs), as a function of inputs and grad_y that autograd and torch.func's transforms
    can differentiate."""
    pullback = torch.func.vjp(function, *inputs)[1]
    grads: tuple[Tensor, ...] = pullback(grad_y)
    return grads


def _differentiated() -> bool:
    """Whether the backward that runs is differentiated itself: by a further backward, or by a transform."""
    return torch.is_grad_enabled() or _transformed()


def _keep_pointwise(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, ctx.activation, ctx.constants = inputs
    ctx.save_for_backward(x)


def _pointwise_grad(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None]:
    (x,) = ctx.saved_tensors
    if _differentiated():
        return _gradients(_eager(ctx.activation, ctx.constants), (x,), grad_y)[0], None, None
    run = _backward if _direct(grad_y, x) else _pointwise_backward
    return run(grad_y, x, ctx.activation, ctx.constants), None, None


def _keep_gated(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    gate, up, ctx.activation, ctx.constants, ctx.rounded = inputs
    ctx.save_for_backward(gate, up)


def _gated_grad(ctx: Any, grad_y: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
    gate, up = ctx.saved_tensors
    if _differentiated():
        grad_gate, grad_up = _gradients(_eager_gated(ctx.activation, ctx.constants), (gate, up), grad_y)
    elif _direct(grad_y, gate, up):
        grad_gate, grad_up = _gated_gradients(grad_y, gate, up, ctx.activation, ctx.constants, ctx.rounded)
    else:
        grad_gate, grad_up, _ = _gated_backward(grad_y, gate, up, ctx.activation, ctx.constants, ctx.rounded, False)
    return grad_gate, grad_up, None, None, None


def _keep_halves(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    gate_up, ctx.activation, ctx.constants, ctx.interleaved, ctx.rounded = inputs
    ctx.save_for_backward(gate_up)


def _halves_grad(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None, None, None]:
    (gate_up,) = ctx.saved_tensors
    if _differentiated():
        function = _eager_gated(ctx.activation, ctx.constants)
        (grad,) = _gradients(lambda both: function(*_halves(both, ctx.interleaved)), (gate_up,), grad_y)
    else:
        run = _halves_gradient if _direct(grad_y, gate_up) else _gated_halves_backward
        grad = run(grad_y, gate_up, ctx.activation, ctx.constants, ctx.interleaved, ctx.rounded)
    return grad, None, None, None, None


_pointwise.register_autograd(_pointwise_grad, setup_context=_keep_pointwise)
_gated.register_autograd(_gated_grad, setup_context=_keep_gated)
_gated_halves.register_autograd(_halves_grad, setup_context=_keep_halves)


def _around(function: Callable[..., Tensor], keep: Callable[..., None]) -> Callable[..., Tensor]:
    """The forward of an autograd function."""

    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = function(*inputs)
        keep(ctx, inputs, output)
        return output

    return forward


class _Pointwise(torch.autograd.Function):
    forward = staticmethod(_around(_forward, _keep_pointwise))
    backward = staticmethod(_pointwise_grad)


class _Gated(torch.autograd.Function):
    forward = staticmethod(_around(_gated_forward, _keep_gated))
    backward = staticmethod(_gated_grad)


class _GatedHalves(torch.autograd.Function):
    forward = staticmethod(_around(_halves_forward, _keep_halves))
    backward = staticmethod(_halves_grad)


# vmap: elementwise, so one more dimension in front, for all the tensors alike.


def _in_front(info: Any, dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    return [
        x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip(tensors, dims, strict=True)
    ]


def _vectorised(op: Callable[..., Any], tensors: int) -> Callable[..., Any]:
    def rule(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> Any:
        batched = _in_front(info, in_dims[:tensors], arguments[:tensors])
        return op(*batched, *arguments[tensors:]), 0

    return rule


_pointwise.register_vmap(_vectorised(_pointwise, 1))
_pointwise_backward.register_vmap(_vectorised(_pointwise_backward, 2))
_gated.register_vmap(_vectorised(_gated, 2))
_gated_halves.register_vmap(_vectorised(_gated_halves, 1))
_gated_halves_backward.register_vmap(_vectorised(_gated_halves_backward, 2))


@_gated_backward.register_vmap
def _(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> Any:
    batched = _in_front(info, in_dims[:3], arguments[:3])
    again = arguments[-1]
    return _gated_backward(*batched, *arguments[3:]), (0, 0, 0 if again else None)
