"""How an activation is computed: the registry of implementations, and which one ``auto`` takes.

An implementation declares what it computes, where, and whether it has a backward. One asked for by name never falls
back to another in silence; only ``auto`` chooses, and says what it chose and why.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_gelu_patch import ops
from hf_gelu_patch.activations import ACTIVATIONS, Activation, Resolved
from hf_gelu_patch.errors import GradientRefusedError, PatchError, UnknownNameError

__all__ = ["IMPLEMENTATIONS", "Implementation", "choose", "get_implementation", "register_implementation"]

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Implementation:
    """One way to compute activations.

    Attributes:
        name: what a user asks for.
        functions: activation name → function(x, **parameters), x of any shape and strides. Module-level functions,
            so that a patched model can be pickled.
        devices: the ``torch.device`` types it runs on; None for any.
        dtypes: the dtypes it takes; None for any floating one.
        backward: whether gradients flow through it. Without one, a call that would need gradients is refused.
        identical: activations whose bits are those of the modules transformers has for them.
        kinds: the kinds of site it can compute.
        missing: what this machine lacks to run it, in words, or None.
    """

    name: str
    functions: Mapping[str, Function] = field(repr=False)
    devices: frozenset[str] | None = None
    dtypes: frozenset[torch.dtype] | None = None
    backward: bool = True
    identical: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset({"pointwise"})
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

    def build(self, activation: Activation) -> Callable[[Tensor], Tensor] | None:
        """The function that computes ``activation``, or None if it has none."""
        function = self.functions.get(activation.name)
        if function is None:
            return None
        bound = activation.bind(function)
        return bound if self.backward else functools.partial(_refuse_gradients, bound, self.name)


def _refuse_gradients(function: Callable[[Tensor], Tensor], name: str, x: Tensor) -> Tensor:
    if torch.is_grad_enabled() and x.requires_grad:
        raise GradientRefusedError(
            f"implementation {name!r} has no backward and its input requires a gradient. Run under torch.no_grad(), "
            "or unpatch(model) and patch it with an implementation that has one."
        )
    return function(x)


IMPLEMENTATIONS: dict[str, Implementation] = {}
"""Every implementation by name."""


def register_implementation(implementation: Implementation) -> None:
    """Add an implementation, to be asked for by its name. ``auto`` never takes one that was added.

    Raises:
        PatchError: the name is taken, or ``"auto"``.
        UnknownNameError: it names an activation there isn't.
    """
    if implementation.name == "auto" or implementation.name in IMPLEMENTATIONS:
        raise PatchError(f"the implementation name {implementation.name!r} is taken: register it under another.")
    for name in (*implementation.functions, *implementation.identical):
        if name not in ACTIVATIONS:
            raise UnknownNameError("activation", name, ACTIVATIONS)
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


def _quick_gelu(x: Tensor) -> Tensor:
    if _needs_gradient(x):
        return ACTIVATIONS["quick_gelu"].eager(x)
    return (1.702 * x).sigmoid_().mul_(x)


def _relu_squared(x: Tensor) -> Tensor:
    if _needs_gradient(x):
        return ACTIVATIONS["relu_squared"].eager(x)
    return F.relu(x).square_()


def _gelu_clipped(x: Tensor, min: float, max: float) -> Tensor:
    if _needs_gradient(x):
        return ACTIVATIONS["gelu_clipped"].eager(x, min, max)
    return F.gelu(x).clamp_(min, max)


_ONE_OP = (
    "gelu",
    "gelu_tanh",
    "silu",
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "mish",
    "hardswish",
    "tanh",
    "sigmoid",
)
_FEWER_PASSES: Mapping[str, Function] = {
    "quick_gelu": _quick_gelu,
    "relu_squared": _relu_squared,
    "gelu_clipped": _gelu_clipped,
}


def _no_triton() -> str | None:
    return None if importlib.util.find_spec("triton") else "triton is not installed (pip install triton)"


# Triton itself decides by this variable, when a kernel is declared, whether it runs interpreted on the CPU.
_TRITON_DEVICES = frozenset({"cuda", "cpu"} if os.environ.get("TRITON_INTERPRET") == "1" else {"cuda"})

for _implementation in (
    Implementation(
        "eager",
        {name: record.eager for name, record in ACTIVATIONS.items() if not record.learned},
        identical=frozenset(ACTIVATIONS),
    ),
    Implementation(
        "aten",
        {**{name: ACTIVATIONS[name].eager for name in _ONE_OP}, **_FEWER_PASSES},
        identical=frozenset(_FEWER_PASSES),
    ),
    Implementation(
        "triton",
        {name: functools.partial(ops.pointwise, activation=name) for name in ops.POINTWISE},
        devices=_TRITON_DEVICES,
        dtypes=ops.DTYPES,
        missing=_no_triton,
    ),
):
    register_implementation(_implementation)

AUTO = ("aten", "eager")
"""What ``auto`` takes, on every device: the first that computes the activation. Triton's kernels have not been
measured on a GPU, and are taken only where they are asked for."""


def choose(name: str, kind: str, current: Resolved, target: Activation) -> tuple[str | None, str]:
    """Which implementation computes ``target`` at a site that computes ``current`` now, and why.

    Args:
        name: the implementation asked for, or ``"auto"``.
        kind: the site's.

    Returns:
        (implementation, why it), or (None, why the site is left alone).
    """
    for candidate in AUTO if name == "auto" else (name,):
        implementation = get_implementation(candidate)
        if kind not in implementation.kinds or target.name not in implementation.functions:
            continue
        if target != current.activation:
            return candidate, "auto" if name == "auto" else "asked for"
        if candidate == "eager":
            return None, "eager is what the model has"
        if candidate != "aten":
            return candidate, "asked for"
        if target.name in _FEWER_PASSES:
            return candidate, f"{current.aten_ops} aten ops, in place where no gradient is needed"
        if current.aten_ops == 1:
            return None, f"{current.spelling} is one aten op already"
        return candidate, f"{current.aten_ops} aten ops become one"
    return None, f"{name} does not compute {target.name} at a {kind} site"
