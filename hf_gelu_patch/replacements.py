"""What runs in a patched model: the module in an activation's stead, and the fused calls of a rewritten forward."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from hf_gelu_patch.implementations import Fused
from hf_gelu_patch.ops import ordinary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["PatchedActivation", "gated", "hooked", "is_linear", "linear_act", "plain", "steps"]


class PatchedActivation(nn.Module):
    """Stands at a patched site in the stead of the original, which it keeps, out of sight of ``modules()``.

    It has no state of its own: hooks live in the original's own dictionaries, so that handles taken before and after
    patching go on working, and a deep copy or a pickle of the model carries all that ``unpatch`` needs.

    Attributes:
        original: the module it replaces.
        fused: what it computes.
        label: what that is, in words.
        config_changes: the config entries that follow this patch; the same list at all sites of one patch.
    """

    original: nn.Module
    fused: Fused

    def __init__(self, original: nn.Module, fused: Fused, label: str, config_changes: list[Any]) -> None:
        super().__init__()
        object.__setattr__(self, "original", original)  # past nn.Module's own, which would make it a child
        self.fused = fused
        self.label = label
        self.config_changes = config_changes
        self.training = original.training
        for name in _HOOK_ATTRIBUTES & vars(original).keys():
            object.__setattr__(self, name, vars(original)[name])
        _carry_accelerate_hook(original, self)

    def forward(self, input: Tensor) -> Tensor:
        return self.fused(input)

    def extra_repr(self) -> str:
        return f"{self.label}, was {type(self.original).__name__}"

    def restored(self) -> nn.Module:
        """The original, told what happened to its stand-in: training mode, hooks."""
        if self.original.training != self.training:
            self.original.training = self.training
        if self.original._is_full_backward_hook != self._is_full_backward_hook:
            self.original._is_full_backward_hook = self._is_full_backward_hook
        _carry_accelerate_hook(self, self.original)
        return self.original


# Every dictionary of hooks that nn.Module keeps on an instance, and the flag beside them.
_HOOK_ATTRIBUTES = {name for name in vars(nn.Module()) if "_hook" in name}


def _carry_accelerate_hook(source: nn.Module, target: nn.Module) -> None:
    """accelerate's dispatch hook on an activation itself (device maps that name one do that)."""
    wanted, present = vars(source).get("_hf_hook"), vars(target).get("_hf_hook")
    if wanted is present:
        return
    from accelerate.hooks import add_hook_to_module, remove_hook_from_module

    if present is not None:
        remove_hook_from_module(target)
    if wanted is not None:
        add_hook_to_module(target, wanted)


# What a rewritten forward calls. Whether fusing is right is decided here, at each call: hooks, wrappers and sharding
# come and go after a patch.

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
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )


def plain(module: nn.Module) -> bool:
    """Whether nothing but x·W + b happens in a linear layer: exact type, no hooks, weights that are plain tensors (no
    parametrization, sharding, quantization)."""
    if not is_linear(module) or hooked(module):
        return False
    for weight in module._parameters.values():  # at every call: a loop is faster than all()
        if weight is not None and type(weight) is not nn.Parameter and type(weight) is not Tensor:
            return False
    return True


def _recorded() -> bool:
    """Whether torch.compile or torch.jit.trace goes through here: they are shown the plain ops."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()


def gated(act: Any, gate: Tensor, up: Tensor) -> Tensor:
    """act(gate) · up, fused where ``act`` is a patched activation without hooks and both are ordinary tensors of one
    shape and dtype."""
    if _recorded():
        product: Tensor = act(gate) * up
        return product
    fused = _fused(act)
    if (
        fused is not None
        and fused.gated is not None
        and ordinary(gate)
        and ordinary(up)
        and gate.dtype == up.dtype
        and gate.shape == up.shape
    ):
        return fused.gated(gate, up)
    product = act(gate) * up
    return product  # noqa: RET504 (typed)


def linear_act(act: Any, linear: Callable[[Any], Any], x: Any) -> Any:
    """act(linear(x)), fused where ``act`` is a patched activation without hooks and ``linear`` a plain linear layer or
    convolution: never going around one that is quantized, sharded, parametrized, wrapped or hooked."""
    if _recorded():
        return act(linear(x))
    fused = _fused(act)
    if fused is None or fused.linear is None or not ordinary(x):
        return act(linear(x))
    if isinstance(linear, nn.Module) and plain(linear):
        return fused.linear(linear, x)
    return act(linear(x))


def steps(modules: Iterable[nn.Module]) -> list[Callable[[Any], Any]]:
    """The modules of a chain, each linear layer and the patched activation behind it as one ``linear_act``."""
    chain = list(modules)
    if _recorded():
        return list(chain)
    fused: list[Callable[[Any], Any]] = []
    for module in chain:
        if type(module) is PatchedActivation and fused and is_linear(fused[-1]):
            fused[-1] = functools.partial(linear_act, module, fused[-1])
        else:
            fused.append(module)
    return fused


def _fused(act: Any) -> Fused | None:
    if type(act) is Fused:
        return act
    return act.fused if type(act) is PatchedActivation and not hooked(act) else None
