"""How an activation is computed: the registry of implementations, and which one ``auto`` takes.

An implementation declares what it computes, where, and whether it has a backward. One asked for by name never falls
back to another in silence; only ``auto`` chooses, and says what it chose and why.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_gelu_patch.activations import ACTIVATIONS, Activation, Resolved
from hf_gelu_patch.errors import GradientRefusedError, PatchError, UnknownNameError
from hf_gelu_patch.implementations import triton_ops
from hf_gelu_patch.implementations.measured import Table

__all__ = ["IMPLEMENTATIONS", "Fused", "Implementation", "choose", "get_implementation", "register_implementation"]

Function = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Fused:
    """One activation as one implementation computes it: what takes the place of the model's own at a site.

    Attributes:
        activation: its name.
        pointwise: act(x), for an ordinary tensor.
        eager: act(x) for any other: nested, sparse, masked, quantized, complex or of a subclass, as the model's own
            ops take it; and for what stands for a tensor while torch.fx traces.
        gated: act(gate) · up, for two ordinary tensors of one shape and dtype; None where it fuses none.
        linear: act(linear(x)), for a plain linear layer or convolution; None where it fuses none.
    """

    activation: str
    pointwise: Callable[[Tensor], Tensor]
    eager: Callable[[Tensor], Tensor]
    gated: Callable[[Tensor, Tensor], Tensor] | None = None
    linear: Callable[[nn.Module, Tensor], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.pointwise(x) if triton_ops.ordinary(x) else self.eager(x)

    def __deepcopy__(self, memo: object) -> Fused:
        return self  # it has no state


@dataclass(frozen=True, eq=False)
class Implementation:
    """One way to compute activations.

    Attributes:
        name: what a user asks for.
        functions: activation name → function(x, **parameters), x of any shape and strides. Module-level functions,
            so that a patched model can be pickled.
        gated: activation name → function(gate, up, **parameters) = act(gate) · up, for two tensors of one shape and
            dtype. Only for activations in ``functions``, which is what runs where this cannot.
        linear: activation name → function(linear, x, **parameters) = act(linear(x)), for a linear layer
            or convolution that is called as it stands or gone around: it has no hooks, and its weights are plain.
            Only for activations in ``functions``, likewise.
        devices: the ``torch.device`` types it runs on; None for any.
        dtypes: the dtypes it takes; None for any floating one.
        backward: whether gradients flow through it. Without one, a call that would need gradients is refused.
        identical: activations whose bits are those of the activation's ``eager``.
        missing: what this machine lacks to run it, in words, or None.
    """

    name: str
    functions: Mapping[str, Function] = field(repr=False)
    gated: Mapping[str, Function] = field(default_factory=dict, repr=False)
    linear: Mapping[str, Function] = field(default_factory=dict, repr=False)
    devices: frozenset[str] | None = None
    dtypes: frozenset[torch.dtype] | None = None
    backward: bool = True
    identical: frozenset[str] = frozenset()
    missing: Callable[[], str | None] = field(default=lambda: None, repr=False)

    def obstacle(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot run on this device with this dtype, or None where it can. The meta device has no kernels to
        lack: it stands for whichever device the model is loaded to."""
        if (lack := self.missing()) is not None:
            return lack
        if self.devices is not None and device.type != "meta" and device.type not in self.devices:
            return f"it runs on {' or '.join(sorted(self.devices))}, and the model is on {device.type}"
        if self.dtypes is not None and dtype not in self.dtypes:
            names = ", ".join(sorted(str(known).removeprefix("torch.") for known in self.dtypes))
            return f"it takes {names}, and the model is in {str(dtype).removeprefix('torch.')}"
        return None

    def fuses(self, kind: str, activation: Activation) -> bool:
        """Whether it computes more than the activation itself at a site of this kind."""
        kinds = {"gated": self.gated, "linear": self.linear}
        return kind in kinds and activation.name in kinds[kind]

    def build(self, activation: Activation, eager: Callable[[Tensor], Tensor] | None = None) -> Fused | None:
        """What computes ``activation``, the same object each time, or None if nothing does.

        Args:
            activation: the function.
            eager: the model's own ops for it, where they are others than the activation's ``eager``.
        """
        return _build(self, activation, eager)


@functools.lru_cache(maxsize=1024)
def _build(
    implementation: Implementation, activation: Activation, eager: Callable[[Tensor], Tensor] | None
) -> Fused | None:
    if activation.name not in implementation.functions:
        return None

    def bound(functions: Mapping[str, Function]) -> Function | None:
        function = functions.get(activation.name)
        if function is None:
            return None
        function = activation.bind(function)
        return function if implementation.backward else functools.partial(_refuse, function, implementation.name)

    pointwise = bound(implementation.functions)
    assert pointwise is not None
    eager = eager or activation.bind(activation.eager)
    return Fused(activation.name, pointwise, eager, bound(implementation.gated), bound(implementation.linear))


def _refuse(function: Function, name: str, *inputs: Tensor | nn.Module) -> Tensor:
    """``function``, unless autograd would have to go through it."""
    tensors = [t for one in inputs for t in ([one] if isinstance(one, Tensor) else one.parameters())]
    if any(_needs_gradient(tensor) for tensor in tensors):
        raise GradientRefusedError(
            f"implementation {name!r} has no backward and its input requires a gradient. Run under torch.no_grad(), "
            "or unpatch(model) and patch it with an implementation that has one."
        )
    return function(*inputs)


IMPLEMENTATIONS: dict[str, Implementation] = {}
"""Every implementation by name."""


def register_implementation(implementation: Implementation) -> None:
    """Add an implementation, to be asked for by its name. ``auto`` never takes one that was added.

    Raises:
        PatchError: the name is taken, or ``"auto"``; or it fuses an activation it does not compute.
        UnknownNameError: it names an activation there isn't.
    """
    if implementation.name == "auto" or implementation.name in IMPLEMENTATIONS:
        raise PatchError(f"the implementation name {implementation.name!r} is taken: register it under another.")
    for name in (*implementation.functions, *implementation.identical):
        if name not in ACTIVATIONS:
            raise UnknownNameError("activation", name, ACTIVATIONS)
    if alone := sorted({*implementation.gated, *implementation.linear} - implementation.functions.keys()):
        raise PatchError(
            f"implementation {implementation.name!r} fuses {', '.join(alone)} without computing it by itself: add it "
            "to functions, which is what runs where the fused form cannot."
        )
    IMPLEMENTATIONS[implementation.name] = implementation


def get_implementation(name: str) -> Implementation:
    """The implementation called ``name``.

    Raises:
        UnknownNameError: there is none; the message lists the valid names.
    """
    if name not in IMPLEMENTATIONS:
        raise UnknownNameError("implementation", name, [*IMPLEMENTATIONS, "auto"])
    return IMPLEMENTATIONS[name]


# aten: one op where there is one; else the fewest passes over memory that give the same bits. In place only on a
# tensor made here, and only where autograd does not keep it.


def _needs_gradient(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


def _stays(*tensors: Tensor) -> bool:
    """Whether nothing may be written over what was computed from these: autograd keeps it, or a transform (vmap, grad)
    or a trace goes through here, which record each op."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None or torch._C._is_tracing()


def _quick_gelu(x: Tensor) -> Tensor:
    if _stays(x):
        return ACTIVATIONS["quick_gelu"].eager(x)
    return (1.702 * x).sigmoid_().mul_(x)


def _relu_squared(x: Tensor) -> Tensor:
    if _stays(x):
        return ACTIVATIONS["relu_squared"].eager(x)
    return F.relu(x).square_()


def _gelu_clipped(x: Tensor, min: float, max: float) -> Tensor:
    if _stays(x):
        return ACTIVATIONS["gelu_clipped"].eager(x, min, max)
    return F.gelu(x).clamp_(min, max)


_FEWER_PASSES: Mapping[str, Function] = {
    "quick_gelu": _quick_gelu,
    "relu_squared": _relu_squared,
    "gelu_clipped": _gelu_clipped,
}

# In place on a tensor that nobody else holds.


def _quick_gelu_(y: Tensor) -> Tensor:
    return y.mul_((1.702 * y).sigmoid_())


def _relu_squared_(y: Tensor) -> Tensor:
    return y.relu_().square_()


def _gelu_clipped_(y: Tensor, min: float, max: float) -> Tensor:
    gelu_: Tensor = torch.ops.aten.gelu_(y)
    return gelu_.clamp_(min, max)


def _gelu_tanh_(y: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.gelu_(y, approximate="tanh")
    return result


_IN_PLACE: Mapping[str, Function] = {
    "gelu": torch.ops.aten.gelu_,
    "gelu_tanh": _gelu_tanh_,
    "silu": functools.partial(F.silu, inplace=True),
    "relu": torch.relu_,
    "relu6": functools.partial(F.relu6, inplace=True),
    "leaky_relu": functools.partial(F.leaky_relu, inplace=True),
    "elu": functools.partial(F.elu, inplace=True),
    "mish": functools.partial(F.mish, inplace=True),
    "hardswish": functools.partial(F.hardswish, inplace=True),
    "tanh": torch.tanh_,
    "sigmoid": torch.sigmoid_,
    "quick_gelu": _quick_gelu_,
    "relu_squared": _relu_squared_,
    "gelu_clipped": _gelu_clipped_,
}
_ATEN: Mapping[str, Function] = {name: _FEWER_PASSES.get(name, ACTIVATIONS[name].eager) for name in _IN_PLACE}


def _gated(gate: Tensor, up: Tensor, *, activation: str, **parameters: float) -> Tensor:
    """The product written over act(gate), a tensor made here. A new one of that size costs the CPU as much as the
    arithmetic: its pages are fetched from the system anew each time."""
    y: Tensor = _ATEN[activation](gate, **parameters)
    return y * up if _stays(y, up) else y.mul_(up)


LARGE = 32 * 2**20
"""Bytes of a linear layer's output from which on its activation is written over it. glibc hands out fresh pages for
each tensor of that size or more; below it, in place was measured to be no faster, exact GELU in fp32 slower."""


def _after_linear(linear: nn.Module, x: Tensor, *, activation: str, **parameters: float) -> Tensor:
    """The activation written over the linear layer's output, which nobody else holds, where that is large."""
    y: Tensor = linear(x)
    over = triton_ops.ordinary(y) and y.nbytes >= LARGE and not _stays(y)
    result: Tensor = (_IN_PLACE if over else _ATEN)[activation](y, **parameters)
    return result


def _in_epilogue(linear: nn.Module, x: Tensor, *, activation: str) -> Tensor:
    """act(x·W + b) as one GEMM, cuBLASLt applying the activation as it writes. Linear and Conv1D with a bias, where
    nothing needs a gradient; anything else as ``aten`` does it."""
    weight, bias = linear.weight, linear.bias
    if not isinstance(bias, Tensor) or not isinstance(weight, Tensor) or weight.dim() != 2:
        return _after_linear(linear, x, activation=activation)
    if _stays(x, weight, bias) or torch.is_autocast_enabled(x.device.type):
        return _after_linear(linear, x, activation=activation)
    matrix = weight.t() if isinstance(linear, nn.Linear) else weight  # transformers' Conv1D keeps it transposed
    y = torch._addmm_activation(bias, x.reshape(-1, x.shape[-1]), matrix, use_gelu=activation == "gelu_tanh")
    return y.view(*x.shape[:-1], matrix.shape[1])


def _each(function: Function, names: Iterable[str]) -> dict[str, Function]:
    return {name: functools.partial(function, activation=name) for name in names}


def _no_triton() -> str | None:
    return None if importlib.util.find_spec("triton") else "triton is not installed (pip install triton)"


def _triton(name: str, *, rounded: bool) -> Implementation:
    return Implementation(
        name,
        _each(triton_ops.pointwise, triton_ops.POINTWISE),
        gated=_each(functools.partial(triton_ops.gated, rounded=rounded), triton_ops.POINTWISE),
        devices=triton_ops.DEVICES,
        dtypes=triton_ops.DTYPES - {torch.float64},  # which would be aten's, under another name
        missing=_no_triton,
    )


for _implementation in (
    Implementation(
        "eager",
        {name: record.eager for name, record in ACTIVATIONS.items() if not record.learned},
        identical=frozenset(ACTIVATIONS),
    ),
    Implementation(
        "aten",
        _ATEN,
        gated=_each(_gated, _ATEN),
        linear=_each(_after_linear, _ATEN),
        identical=frozenset(_ATEN),
    ),
    Implementation(
        "epilogue",
        {name: _ATEN[name] for name in ("gelu_tanh", "relu")},
        linear=_each(_in_epilogue, ("gelu_tanh", "relu")),
        devices=frozenset({"cuda"}),
    ),
    _triton("triton", rounded=False),
    _triton("triton_rounded", rounded=True),
):
    register_implementation(_implementation)

AUTO = ("aten", "eager")
"""What ``auto`` takes on every device: the first that computes the activation. On a GPU that was measured, Triton's
kernels come before them where they won there (``hf_gelu_patch.implementations.measured``).
The epilogue, and Triton's kernels anywhere else, are taken only where they are asked for."""


def choose(
    name: str, kind: str, current: Resolved, target: Activation, dtype: torch.dtype, table: Table | None
) -> tuple[str | None, str]:
    """Which implementation computes ``target`` at a site that computes ``current`` now, and why.

    Args:
        name: the implementation asked for, or ``"auto"``.
        kind: what can be fused there: ``pointwise``, ``gated`` or ``linear``.
        dtype: of what the site is given.
        table: what was measured on the GPU that the site runs on; None where it runs on none.

    Returns:
        (implementation, why it), or (None, why the site is left alone).
    """
    if name != "auto" or table is None or not _could_be_triton(target, dtype):
        return _first(name, kind, current, target)
    run = kind if IMPLEMENTATIONS["triton"].fuses(kind, target) else "pointwise"  # what Triton has for such a site
    measured = table.choice(target.name, run, dtype)
    if measured is None:
        chosen, reason = _first(name, kind, current, target)
        return chosen, f"{reason}; triton unmeasured for {run} in {str(dtype).removeprefix('torch.')} on {table.card}"
    if measured.implementation == "triton":
        alone = "" if run == kind else "the activation alone, "
        return "triton", f"measured on {table.card}: {alone}{measured}"
    return _first(name, kind, current, target)


def _could_be_triton(activation: Activation, dtype: torch.dtype) -> bool:
    """Whether Triton computes it on a GPU, with what this machine has."""
    triton = IMPLEMENTATIONS["triton"]
    return activation.name in triton.functions and triton.obstacle(torch.device("cuda"), dtype) is None


def _first(name: str, kind: str, current: Resolved, target: Activation) -> tuple[str | None, str]:
    """``choose`` without measurements."""
    for candidate in AUTO if name == "auto" else (name,):
        implementation = get_implementation(candidate)
        if target.name not in implementation.functions:
            continue
        fuses = implementation.fuses(kind, target)
        reasons = []
        if target != current.activation:
            reasons.append("auto" if name == "auto" else "asked for")
        elif candidate == "eager":
            return None, "eager is what the model has"
        elif candidate != "aten":
            reasons.append("asked for")
        elif current.aten_ops > (ops := _OPS.get(target.name, 1)):
            reasons.append(f"{current.aten_ops} aten ops become {'one' if ops == 1 else ops}")
        elif ops > 1:
            reasons.append(f"{ops} aten ops, in place where no gradient is needed")
        elif not fuses:
            return None, f"{current.spelling} is one aten op already"
        if candidate == "aten" and fuses:
            reasons.append(_IN_PLACE_REASONS[kind])
        return candidate, ", ".join(reasons)
    return None, f"{name} does not compute {target.name}"


_OPS = {"quick_gelu": 3, "relu_squared": 2, "gelu_clipped": 2}  # aten's own, where more than one
_IN_PLACE_REASONS = {
    "gated": "the product in place where no gradient is needed",
    "linear": "in place on the linear layer's output where that is large and no gradient is needed",
}
