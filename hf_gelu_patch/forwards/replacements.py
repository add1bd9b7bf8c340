"""What a rewritten forward calls: the fused forms of an activation and what stands around it.

Whether fusing is right is decided here, at each call: hooks, wrappers and sharding come and go after a patch.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass, field
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.nn.modules import module as torch_module

from hf_gelu_patch.formula_reader import NotAFormulaError, formula_of_module, held
from hf_gelu_patch.implementations.registry import Fused
from hf_gelu_patch.implementations.tensors import ordinary

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "OwnMethod",
    "Substitute",
    "WrittenOut",
    "gated",
    "gated_last",
    "hooked",
    "is_linear",
    "linear_act",
    "plain",
    "recorded",
    "runs_in_order",
    "steps",
    "substitute",
    "written_out",
]


_LINEAR = {
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
}


def is_linear(module: object) -> bool:
    """Whether a module is, by its exact type, a linear layer or a convolution."""
    cls = type(module)
    return cls in _LINEAR or (cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils")


def hooked(module: nn.Module) -> bool:
    """Whether calling ``module`` runs anything beside its class's forward: hooks of its own or of all modules, a
    forward bound on it (accelerate's)."""
    own = module.__dict__
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or _before_all
        or _after_all
        or _before_all_backward
        or _after_all_backward
    )


# The hooks of all modules: dictionaries that torch fills and empties, and never puts others in the place of.
_before_all, _after_all = torch_module._global_forward_pre_hooks, torch_module._global_forward_hooks
_before_all_backward = torch_module._global_backward_pre_hooks
_after_all_backward = torch_module._global_backward_hooks


def plain(module: nn.Module) -> bool:
    """Whether nothing but x·W + b happens in a linear layer: exact type, with the forward that its class was written
    with, no hooks, weights that are plain tensors (no parametrization, sharding, quantization)."""
    cls: Any = type(module)
    if not is_linear(module) or not _is_written(cls.forward, cls) or hooked(module):
        return False
    for weight in module._parameters.values():  # at every call: a loop is faster than all()
        if weight is not None and type(weight) is not nn.Parameter and type(weight) is not Tensor:
            return False
    return True


@functools.lru_cache(maxsize=64)
def _is_written(forward: Any, cls: Any) -> bool:
    """Whether a class's forward is its own: some tools put theirs into torch's classes, for all models."""
    named = (getattr(forward, "__module__", ""), getattr(forward, "__qualname__", ""))
    return named == (cls.__module__, f"{cls.__qualname__}.forward") and not hasattr(forward, "__wrapped__")


def recorded() -> bool:
    """Whether torch.compile, torch.jit.trace or torch.fx goes through here: they are shown the plain ops."""
    return _compiling() or _tracing() or is_fx_symbolic_tracing()  # the flag below it is elsewhere in torch 2.14


_compiling, _tracing = torch.compiler.is_compiling, torch._C._is_tracing


@dataclass(frozen=True)
class Substitute:
    """What computes an activation in the stead of a module that stays where it is.

    It takes the module's place only while that is what it was when it was patched: the same class, with the same
    attributes, without hooks. Otherwise the module itself is called.

    Attributes:
        fused: what computes it.
        of: the module's class.
        state: its attributes, as ``held``.
        reads: the ways to what its forward reads beside these (of its class, of an object that it holds), and what was
            there.
    """

    fused: Fused
    of: type[nn.Module]
    state: tuple[tuple[str, object], ...]
    reads: tuple[tuple[tuple[str, ...], object], ...] = ()
    _forward: object = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_forward", self.of.forward)

    def __reduce__(self) -> tuple[Any, ...]:
        return Substitute, (self.fused, self.of, self.state, self.reads)

    def __call__(self, act: Any) -> Any:
        return self.fused if type(act) is self.of and not recorded() and not hooked(act) and self.fits(act) else act

    def fits(self, act: nn.Module) -> bool:
        """Whether nothing that decides what a module of that class computes has changed."""
        if self._forward is not None and self.of.forward is not self._forward:  # None: pickled by an older version
            return False
        attributes = act.__dict__
        for name, value in self.state:
            if not _is_still(attributes.get(name), value):
                return False
        return all(_is_still(functools.reduce(getattr, way, act), value) for way, value in self.reads)


@dataclass(frozen=True)
class OwnMethod:
    """What computes an activation in the stead of a method that applies it.

    It takes the method's place only while the module has the method that was read when it was patched, and the same
    attributes that this reads.

    Attributes:
        fused: what computes it.
        function: the method.
        swaps: whether that is another function, which a trace is shown as well.
        state: the way to each attribute of the module that decides what the method computes, and what was there.
    """

    fused: Fused
    function: Callable[..., object]
    swaps: bool = False
    state: tuple[tuple[tuple[str, ...], object], ...] = ()

    def __call__(self, method: Any) -> Any:
        if type(method) is not MethodType or method.__func__ is not self.function:
            return method
        if recorded() and not self.swaps:
            return method
        for way, value in self.state:
            if not _is_still(functools.reduce(getattr, way, method.__self__), value):
                return method
        return self.fused


@dataclass(frozen=True)
class WrittenOut:
    """What computes an activation in the stead of an expression that reads attributes of its module.

    It takes the expression's place only while these are what they were when it was patched.

    Attributes:
        fused: what computes it.
        state: the attributes, as ``held``, in the order in which they stand.
    """

    fused: Fused
    state: tuple[object, ...]

    def __call__(self, own: Callable[[Any], Any], *now: object) -> Any:
        for value, before in zip(now, self.state, strict=True):
            if not _is_still(value, before):
                return own
        return self.fused


@functools.lru_cache(maxsize=1024)
def written_out(fused: Fused, state: tuple[object, ...]) -> WrittenOut:
    """The same object each time."""
    return WrittenOut(fused, state)


def _is_still(now: object, before: object) -> bool:
    return now is before or held(now) == before


def substitute(fused: Fused, act: nn.Module) -> Substitute:
    """``fused`` in the stead of ``act`` and of what is like it; the same object each time."""
    own = vars(act)
    of: Any = type(act)
    state = tuple((name, held(value)) for name, value in own.items() if name not in _MODULE)
    try:
        read = formula_of_module(act).reads
    except NotAFormulaError:
        read = ()
    reads = tuple((way, value) for way, value in read if len(way) > 1 or way[0] not in own)
    return _substitute(fused, of, state, reads)


_Ways = tuple[tuple[tuple[str, ...], object], ...]


@functools.lru_cache(maxsize=1024)
def _substitute(fused: Fused, of: Any, state: tuple[tuple[str, object], ...], reads: _Ways) -> Substitute:
    return Substitute(fused, of, state, reads)


_MODULE = frozenset(vars(nn.Module()))


def gated(act: Any, gate: Tensor, up: Tensor) -> Tensor:
    """act(gate) · up, fused where ``act`` is a ``Fused`` and both are ordinary tensors of one shape and dtype."""
    product: Tensor = act.gated(gate, up) if _fuses(act, gate, up) else act(gate) * up
    return product


def gated_last(act: Any, up: Tensor, gate: Tensor) -> Tensor:
    """up · act(gate), likewise. A product lies in memory as its first factor does, on which a later ``view`` depends:
    so this is fused only where both factors lie alike."""
    fused = _fuses(act, gate, up) and (gate.stride() == up.stride() or (_by_rows(gate) and _by_rows(up)))
    product: Tensor = act.gated(gate, up) if fused else up * act(gate)
    return product


def _fuses(act: Any, gate: Tensor, up: Tensor) -> bool:
    return (
        type(act) is Fused
        and act.gated is not None
        and not recorded()
        and ordinary(gate)
        and ordinary(up)
        and gate.dtype == up.dtype
        and gate.shape == up.shape
        and not act.spares(gate)
    )


def _by_rows(x: Tensor) -> bool:
    """Whether no dimension of a tensor lies inside one that stands behind it."""
    strides = x.stride()
    return all(map(operator.ge, strides, strides[1:]))


def linear_act(act: Callable[[Any], Any], linear: Callable[[Any], Any], x: Any) -> Any:
    """act(linear(x)), fused where ``act`` is a ``Fused`` and ``linear`` a plain linear layer or convolution:
    never going around one that is quantized, sharded, parametrized, wrapped or hooked."""
    if type(act) is Fused and act.linear is not None and ordinary(x) and not recorded():
        if act.spares(x):
            return act.eager(linear(x))
        if isinstance(linear, nn.Module) and plain(linear):
            return act.linear(linear, x)
    return act(linear(x))


def runs_in_order(container: object) -> bool:
    """Whether a loop over a module runs through its children as they stand: a subclass may have an ``__iter__`` of its
    own, and what was put in a container's place later may be anything."""
    return getattr(type(container), "__iter__", None) in (nn.Sequential.__iter__, nn.ModuleList.__iter__)


def steps(
    container: nn.Sequential | nn.ModuleList, patched: tuple[tuple[str, Substitute], ...]
) -> list[Callable[[Any], Any]]:
    """The modules of a chain, the patched activations fused, each with the linear layer before it.

    Args:
        container: the modules, in their order.
        patched: the key of each patched activation, and its substitute.
    """
    if recorded() or not runs_in_order(container):
        return list(container)
    substitutes = dict(patched)
    chain: list[Callable[[Any], Any]] = []
    for key, module in container._modules.items():
        if key not in substitutes:
            chain.append(module)
            continue
        act = substitutes[key](module)
        if act is not module and chain and is_linear(chain[-1]):
            chain[-1] = functools.partial(linear_act, act, chain[-1])
        else:
            chain.append(act)
    return chain
