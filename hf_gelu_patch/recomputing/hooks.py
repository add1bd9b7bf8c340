"""The hook on a module that sees to it after each forward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hf_gelu_patch.implementations.tensors import transformed
from hf_gelu_patch.recomputing.graph import drop, tensors_in

__all__ = ["Recompute", "put", "recomputes", "taken"]


class Recompute:
    """A forward hook that drops what backward can compute again.

    On the module that applies an activation it drops what the module itself keeps. Where the activation's result is
    what the module gives, the layer that keeps it belongs to another module: the hook on the one around both drops it.

    Attributes:
        applies: whether the module applies an activation itself.
        around: the hook of the module around it; None for the outermost.
        asked: whether the result of an activation below has come out of the module that applies it; None: not known.
    """

    def __init__(self) -> None:
        self.applies = False
        self.around: Recompute | None = None
        self.asked: bool | None = None

    def __call__(self, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        if (not self.applies and self.asked is False) or transformed():
            return
        found, is_output = drop(tensors_in(output), tensors_in((args, kwargs)))
        if self.applies and self.around is not None and found:
            if is_output:
                self.around.asked = True
            elif self.around.asked is None:
                self.around.asked = False


def put(path: tuple[nn.Module, ...]) -> Iterator[nn.Module]:
    """Hook the module that applies an activation, and the one around it.

    Args:
        path: the modules from the outermost to the one that applies it.

    Returns:
        The modules that were given a hook now, one after the other.
    """
    called = [module for module in reversed(path) if _is_called(module)][:2]
    inner: Recompute | None = None
    for module in called:
        hook = _of(module)
        if hook is None:
            hook = Recompute()
            module.register_forward_hook(hook, with_kwargs=True)
            yield module
        if inner is None:
            hook.applies = True
        else:
            inner.around = hook
        inner = hook


def _is_called(module: nn.Module) -> bool:
    """Whether a module has a forward, rather than being a container of others."""
    return type(module).forward is not nn.Module.forward


def _of(module: nn.Module) -> Recompute | None:
    return next((hook for hook in module._forward_hooks.values() if type(hook) is Recompute), None)


def recomputes(module: nn.Module) -> bool:
    """Whether a module has the hook."""
    return _of(module) is not None


def taken(module: nn.Module) -> bool:
    """Take the hook off a module. Whether it had one."""
    found = [key for key, hook in module._forward_hooks.items() if type(hook) is Recompute]
    for key in found:
        del module._forward_hooks[key]
        module._forward_hooks_with_kwargs.pop(key, None)
    return bool(found)
