"""Running a model on a batch so that nothing of either changes, and each run draws the same random numbers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch.errors import VerificationError, first_line
from hf_gelu_patch.verification.copies import copied
from hf_gelu_patch.verification.restoring import as_it_was, seeded
from hf_gelu_patch.verification.values import GRADIENT, Found, attributes, finite, numbers

__all__ = ["called", "cannot_run", "compiled", "derived", "run"]


def run(model: nn.Module, batch: object, *, gradients: bool = False) -> Found:
    """What a model computes on a batch, in the mode it is in. The model, the batch and all random states are afterwards
    what they were before, also where the model raises.

    Args:
        model: the model.
        batch: a mapping of keyword arguments, a tuple or list of positional ones, or the one argument.
        gradients: also those of its loss, where the output has a ``loss``, and else of Σ r·y over the numbers y of the
            output, with r drawn from a normal distribution; with respect to each parameter, and each tensor of the
            batch, that requires one. They are called "gradient of NAME".

    Returns:
        Copies of the numbers in its output.

    Raises:
        VerificationError: ``gradients``, and there are none.
    """
    if gradients and any(weight.is_inference() for weight in model.parameters()):
        raise VerificationError(
            "the model was made under torch.inference_mode(), so it has no gradients to compare: make it outside, or "
            "leave out gradients=True."
        )
    with as_it_was(model), seeded(), ExitStack() as modes:
        if gradients:
            modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.set_grad_enabled(gradients))
        arguments = copied(batch)
        found = numbers(output := called(model, arguments))
        if gradients:
            found.tensors.update(_gradients(model, arguments, output, found))
        found.tensors = {name: tensor.detach().clone() for name, tensor in found.tensors.items()}
        return found


def called(model: nn.Module, arguments: Any) -> object:
    """What a model returns for a batch: a mapping, a tuple or list, or the one argument. A mapping is that one itself
    where ``forward`` needs one argument which the mapping does not name: the features of sentence-transformers."""
    if isinstance(arguments, Mapping):
        return model(arguments) if _is_one(model, arguments) else model(**arguments)
    return model(*arguments) if isinstance(arguments, (tuple, list)) else model(arguments)


def _is_one(model: nn.Module, batch: Mapping[Any, Any]) -> bool:
    """Whether a mapping is the one argument that a model takes, and not its arguments by their names."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # not everything has one
        return False
    named = {one.name: one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)}
    if not named and len(inside := list(model.children())) == 1:  # a wrapper that hands on whatever it is given
        return _is_one(inside[0], batch)
    needed = [name for name, one in named.items() if one.default is one.empty]
    return bool(batch) and len(needed) == 1 and not named.keys() & batch.keys()


def cannot_run(model: nn.Module, batch: str, error: Exception) -> str:
    """What is said of a batch that a model cannot run on, and the remedy.

    Args:
        model: the model.
        batch: which one, in words.
        error: what the model raised.
    """
    return (
        f"{type(model).__name__} cannot run on {batch} ({first_line(error)}). Give it what the model takes: a mapping "
        "of keyword arguments, a tuple or list of positional ones, or one tensor. A list, tuple or mapping that is one "
        "argument is put in a tuple: (batch,)."
    )


def compiled(module: nn.Module) -> bool:
    """Whether a module runs by ``torch.compile``."""
    forward = vars(module).get("forward")
    return (
        type(module).__module__.startswith("torch._dynamo")
        or module._compiled_call_impl is not None
        or hasattr(forward, "_torchdynamo_orig_callable")
    )


# ----------------------------------------------------------------------------------------------------------- gradients


def _gradients(model: nn.Module, arguments: object, output: object, found: Found) -> dict[str, Tensor]:
    inputs = {f"the input {name}": tensor for name, tensor in numbers(arguments).tensors.items() if tensor.is_leaf}
    leaves = {name: leaf for name, leaf in {**dict(model.named_parameters()), **inputs}.items() if leaf.requires_grad}
    ends, weights = _loss(output, found)
    if not leaves or not ends:
        raise VerificationError(
            f"no gradient to compare: {'no output of the model depends on a' if leaves else 'there is no'} parameter "
            "or input that requires one. Call requires_grad_(True) on parameters, hand in inputs that require a "
            "gradient, or leave out gradients=True."
        )
    kept = {name: leaf.grad for name, leaf in leaves.items()}
    try:
        found_here = derived(ends, list(leaves.values()), weights)
    finally:
        for name, leaf in leaves.items():
            leaf.grad = kept[name]
    return {
        f"{GRADIENT}{name}": gradient for name, gradient in zip(leaves, found_here, strict=True) if gradient is not None
    }


def _loss(output: Any, found: Found) -> tuple[list[Tensor], list[Tensor]]:
    """What is differentiated, and dL/d(each of it): 1 of the output's own loss, else random."""
    loss = output.get("loss") if isinstance(output, Mapping) else attributes(output).get("loss")
    if isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1:
        return [loss], [torch.ones_like(loss)]
    ends = [tensor for tensor in found.tensors.values() if tensor.requires_grad and tensor.numel()]
    generator = torch.Generator().manual_seed(0)
    weights = []
    for end in ends:
        weight = torch.randn(end.shape, generator=generator, dtype=torch.float64) / math.sqrt(end.numel())
        weights.append(torch.where(finite(end), weight.to(end), 0.0))
    return ends, weights


def derived(ends: list[Tensor], leaves: list[Tensor], weights: list[Tensor]) -> list[Tensor | None]:
    """The gradients. Those of reentrant checkpoints can only be had through ``.grad``; the caller puts that back."""
    try:
        return list(torch.autograd.grad(ends, leaves, weights, allow_unused=True, retain_graph=True))
    except RuntimeError as error:
        if "checkpoint" not in str(error):
            raise
    for leaf in leaves:
        leaf.grad = None
    torch.autograd.backward(ends, weights)
    return [leaf.grad for leaf in leaves]
