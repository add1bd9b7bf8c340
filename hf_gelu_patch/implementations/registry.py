"""The registry of implementations. Each declares what it computes, where, and whether it has a backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hf_gelu_patch.activations import ACTIVATIONS, Activation
from hf_gelu_patch.errors import GradientRefusedError, PatchError, UnknownNameError
from hf_gelu_patch.implementations.tensors import needs_gradient, ordinary

__all__ = [
    "ALWAYS",
    "IMPLEMENTATIONS",
    "Fused",
    "Implementation",
    "Least",
    "get_implementation",
    "register_implementation",
    "writing_over",
]

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Least:
    """How many numbers a site is given at least, for another implementation than the model's own to compute it there.

    Attributes:
        inference: where no gradients are recorded; None: it never does.
        training: where they are; None: it never does.
    """

    inference: int | None = 0
    training: int | None = 0

    def __str__(self) -> str:
        if self.inference == self.training:
            return "" if not self.inference else f"from {self.inference:,} numbers on"
        told = {"in inference": self.inference, "with gradients": self.training}
        return ", ".join(f"{_from(least)} {mode}" for mode, least in told.items())


def _from(least: int | None) -> str:
    if least is None:
        return "never"
    return f"from {least:,} numbers on" if least else "always"


ALWAYS = Least()


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
        prepare: what has to be done once before any of them is called; None where there is nothing.
        least: how many numbers x or gate holds at least, for any of them to be called. With fewer, the model's own ops
            are.
        keeps_inputs: as in ``Implementation``; or it has no backward at all.
    """

    activation: str
    pointwise: Callable[[Tensor], Tensor]
    eager: Callable[[Tensor], Tensor]
    gated: Callable[[Tensor, Tensor], Tensor] | None = None
    linear: Callable[[nn.Module, Tensor], Tensor] | None = None
    prepare: Callable[[], None] | None = None
    least: Least = ALWAYS
    keeps_inputs: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        return self.eager(x) if not ordinary(x) or self.spares(x) else self.pointwise(x)

    def spares(self, x: Tensor) -> bool:
        """Whether x holds too few numbers. What is traced is computed alike whatever the size."""
        if self.least is ALWAYS or torch.compiler.is_compiling() or torch._C._is_tracing():
            return False
        least = self.least.training if torch.is_grad_enabled() else self.least.inference
        return least is None or x.numel() < least

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
        only: ``torch.device`` type → the activations it computes there, where it does not compute all of ``functions``.
        unable: why it cannot run on a device with a dtype for another reason than those above, or None.
        declines: why ``linear`` does not fuse a layer on a device, though it is a plain one, or None. It computes such
            a layer otherwise, and ``auto`` does not take it there.
        prepare: activation name → makes it ready to run here (compiles it), if it never was. It raises
            ImplementationUnavailableError where that fails, and ``missing`` says why from then on.
        keeps_inputs: whether its functions are autograd functions that keep their inputs and nothing else, and have a
            static method ``again``: ctx → the result (``hf_gelu_patch.recomputing``).
    """

    name: str
    functions: Mapping[str, Function] = field(repr=False)
    gated: Mapping[str, Function] = field(default_factory=dict, repr=False)
    linear: Mapping[str, Function] = field(default_factory=dict, repr=False)
    devices: frozenset[str] | None = None
    dtypes: frozenset[torch.dtype] | None = None
    backward: bool = True
    identical: Collection[str] = frozenset()
    missing: Callable[[], str | None] = field(default=lambda: None, repr=False)
    only: Mapping[str, Collection[str]] = field(default_factory=dict, repr=False)
    unable: Callable[[torch.device, torch.dtype], str | None] = field(default=lambda device, dtype: None, repr=False)  # noqa: ARG005
    declines: Callable[[nn.Module, torch.device], str | None] = field(default=lambda layer, device: None, repr=False)  # noqa: ARG005
    prepare: Callable[[str], None] | None = field(default=None, repr=False)
    keeps_inputs: bool = False

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
        return self.unable(device, dtype)

    def computes(self, activation: str, device: torch.device) -> bool:
        """Whether it computes an activation on a device; on the meta device, whether on any."""
        return activation in self.functions and activation in self.only.get(device.type, self.functions)

    def fuses(self, kind: str, activation: Activation) -> bool:
        """Whether it computes more than the activation itself at a site of this kind."""
        kinds = {"gated": self.gated, "linear": self.linear}
        return kind in kinds and activation.name in kinds[kind]

    def build(
        self, activation: Activation, eager: Callable[[Tensor], Tensor] | None = None, least: Least = ALWAYS
    ) -> Fused | None:
        """What computes ``activation``, the same object each time, or None if nothing does.

        Args:
            activation: the function.
            eager: the model's own ops for it, where they are others than the activation's ``eager``.
            least: from how many numbers on.
        """
        return _build(self, activation, eager, least)


@functools.lru_cache(maxsize=1024)
def _build(
    implementation: Implementation, activation: Activation, eager: Callable[[Tensor], Tensor] | None, least: Least
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
    prepare = None if implementation.prepare is None else functools.partial(implementation.prepare, activation.name)
    fused = bound(implementation.gated), bound(implementation.linear)
    keeps_inputs = implementation.keeps_inputs or not implementation.backward
    return Fused(activation.name, pointwise, eager, *fused, prepare, least, keeps_inputs)


@functools.lru_cache(maxsize=1024)
def writing_over(fused: Fused) -> Fused:
    """The same, but what it computes of a tensor is written over that tensor, which is returned: what takes the place
    of an activation that works in place."""
    over, eager = (functools.partial(_written_over, function) for function in (fused.pointwise, fused.eager))
    return Fused(fused.activation, over, eager, prepare=fused.prepare)


def _written_over(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return x.copy_(function(x.clone()))  # which backward may need as it was


def _refuse(function: Function, name: str, *inputs: Tensor | nn.Module) -> Tensor:
    """``function``, unless autograd would have to go through it."""
    tensors = [t for one in inputs for t in ([one] if isinstance(one, Tensor) else one.parameters())]
    if any(needs_gradient(tensor) for tensor in tensors):
        raise GradientRefusedError(
            f"implementation {name!r} has no backward and its input requires a gradient. Run under torch.no_grad(), "
            "or unpatch(model) and patch it with an implementation that has one."
        )
    return function(*inputs)


IMPLEMENTATIONS: dict[str, Implementation] = {}
"""Every implementation by name."""


def register_implementation(implementation: Implementation) -> None:
    """Add an implementation, to be asked for by its name and listed with the others. ``auto`` never takes one that was
    added.

    Raises:
        PatchError: the name is taken, or ``"auto"``; or it fuses an activation it does not compute.
        UnknownNameError: it names an activation there isn't.
    """
    _check(implementation)
    if implementation.name in IMPLEMENTATIONS:
        raise _taken(implementation)
    IMPLEMENTATIONS[implementation.name] = implementation


def get_implementation(asked: str | Implementation) -> Implementation:
    """The implementation called ``asked``; or ``asked`` itself, which need not be registered.

    Raises:
        UnknownNameError: there is none of this name, and the message lists the valid ones; or it names an activation
            there isn't.
        PatchError: it bears the name of another that is registered, or ``"auto"``; or it fuses an activation it does
            not compute.
    """
    if isinstance(asked, str):
        if asked not in IMPLEMENTATIONS:
            raise UnknownNameError("implementation", asked, [*IMPLEMENTATIONS, "auto"])
        return IMPLEMENTATIONS[asked]
    _check(asked)
    if IMPLEMENTATIONS.get(asked.name, asked) is not asked:
        raise _taken(asked)
    return asked


def _taken(implementation: Implementation) -> PatchError:
    return PatchError(f"the implementation name {implementation.name!r} is taken: give it another.")


def _check(implementation: Implementation) -> None:
    """Refuse what cannot be an implementation."""
    if implementation.name == "auto":
        raise _taken(implementation)
    for name in (*implementation.functions, *implementation.identical):
        if name not in ACTIVATIONS:
            raise UnknownNameError("activation", name, ACTIVATIONS)
    if alone := sorted({*implementation.gated, *implementation.linear} - implementation.functions.keys()):
        raise PatchError(
            f"implementation {implementation.name!r} fuses {', '.join(alone)} without computing it by itself: add it "
            "to functions, which is what runs where the fused form cannot."
        )
