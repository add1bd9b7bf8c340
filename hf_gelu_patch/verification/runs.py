"""Running a model on a batch so that nothing of either changes, and each run draws the same random numbers."""

from __future__ import annotations

import copy
import itertools
import math
import os
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from hf_gelu_patch.errors import VerificationError
from hf_gelu_patch.verification.values import Found, attributes, finite, numbers

__all__ = ["GRADIENT", "exact_copy", "exact_run", "free_memory", "redraw", "run"]

GRADIENT = "gradient of "  # what the name of each begins with

Restore = Callable[[], object]

_NOT_KEPT = ("_parameters", "_modules", "_hf_hook", "_old_forward")  # accelerate's hold the weights that it offloads
_DEPTH = 6  # of objects in objects that a module keeps: module → cache → list of layers → layer → tensor


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
    with _as_it_was(model), _seeded(), ExitStack() as modes:
        if gradients:
            modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.set_grad_enabled(gradients))
        arguments = _copied(batch, {})
        found = numbers(output := _called(model, arguments))
        if gradients:
            found.tensors.update(_gradients(model, arguments, output, found))
        found.tensors = {name: tensor.detach().clone() for name, tensor in found.tensors.items()}
        return found


def exact_copy(model: nn.Module) -> nn.Module | None:
    """A float64 copy of a model; None where there is no memory for one, or where weights are offloaded or quantized."""
    weights = [*model.parameters(), *model.buffers()]
    devices = {weight.device for weight in weights}
    if len(devices) != 1 or any("_hf_hook" in vars(module) for module in model.modules()):
        return None
    (device,) = devices
    if 2 * 8 * sum(weight.numel() for weight in weights) > free_memory(device):
        return None
    try:
        exact = copy.deepcopy(model).double()
        for module in exact.modules():
            if "_original_forward" in vars(module):  # accelerate's mixed precision is around it
                module.forward = vars(module)["_original_forward"]
            if callable(switch := getattr(module, "set_experts_implementation", None)):
                switch("eager")  # grouped products of experts take no float64
        return exact
    except Exception:  # whatever a model raises that cannot be copied
        return None


def exact_run(exact: nn.Module, batch: object, *, gradients: bool = False) -> Found | None:
    """``run`` of a float64 copy of a model, without autocast; None where it cannot run in float64."""
    device = next(itertools.chain(exact.parameters(), exact.buffers())).device
    try:
        with torch.autocast(device.type, enabled=False):
            return run(exact, _copied(batch, {}, torch.float64), gradients=gradients)
    except Exception:  # whatever a model raises in float64, there is no reference then
        return None


def redraw(exact: nn.Module, model: nn.Module, epsilon: float, generator: torch.Generator) -> None:
    """Turn a float64 copy into a copy of the model in its own precision, one weight in 64 moved by ε of itself: enough
    for every rounding behind it to fall otherwise.

    Args:
        exact: the copy, or what an earlier call made of it.
        model: gives the dtypes.
        epsilon: of its arithmetic.
        generator: draws the weights, and which way they move.
    """
    dtypes = {name: tensor.dtype for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    for name, weight in exact.named_parameters():
        drawn = torch.randint(-64, 64, weight.shape, generator=generator).to(weight.device)
        moves = (drawn == 0).double() - (drawn == -1).double()
        weight.data = (weight.data.double() * (1 + epsilon * moves)).to(dtypes.get(name, weight.dtype))
    for name, buffer in exact.named_buffers():
        buffer.data = buffer.data.to(dtypes.get(name, buffer.dtype))


def free_memory(device: torch.device) -> float:
    """Bytes free on a device, as far as it tells; 0 on meta."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu" and hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0 if device.type == "meta" else math.inf


def _called(model: nn.Module, arguments: Any) -> object:
    if isinstance(arguments, Mapping):
        return model(**arguments)
    return model(*arguments) if isinstance(arguments, (tuple, list)) else model(arguments)


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
        found_here = _derived(ends, list(leaves.values()), weights)
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


def _derived(ends: list[Tensor], leaves: list[Tensor], weights: list[Tensor]) -> list[Tensor | None]:
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


# ------------------------------------------------------------------------------------------------------------- copying


def _copied(value: Any, memo: dict[int, Any], dtype: torch.dtype | None = None) -> Any:
    """A copy that no run can change the original through: of tensors (their floating-point numbers in ``dtype``),
    arrays, generators, sequences, mappings, data classes, caches. Modules and functions are shared."""
    if id(value) not in memo:
        memo[id(value)] = (_copy_of(value, memo, dtype), value)  # the value too: an id is only its own while it lives
    return memo[id(value)][0]


def _copy_of(value: Any, memo: dict[int, Any], dtype: torch.dtype | None) -> Any:
    if isinstance(value, Tensor):
        to = dtype if dtype is not None and value.is_floating_point() else value.dtype
        if dtype is not None and value.is_complex():
            to = torch.complex128
        made = value.detach().clone().to(to)
        return made.requires_grad_() if value.requires_grad else made
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, (np.ndarray, np.random.Generator, np.random.RandomState, random.Random)):
        return copy.deepcopy(value)
    if type(value) in (list, tuple, set, deque):
        return type(value)(_copied(part, memo, dtype) for part in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_copied(part, memo, dtype) for part in value))
    if isinstance(value, nn.Module) or not (isinstance(value, Mapping) or attributes(value)) or callable(value):
        return value
    try:
        made = copy.copy(value)
    except Exception:  # some objects refuse: they are handed on as they are
        return value
    memo[id(value)] = (made, value)  # for objects that hold themselves
    for key, part in attributes(value).items():
        object.__setattr__(made, key, _copied(part, memo, dtype))  # frozen data classes too
    if isinstance(value, dict) and isinstance(made, dict):
        for key, part in value.items():
            dict.__setitem__(made, key, _copied(part, memo, dtype))
    return made


# ----------------------------------------------------------------------------------------------------------- restoring


@contextmanager
def _seeded() -> Iterator[None]:
    """The random numbers of torch, NumPy and Python begin with seed 0, and are the user's again afterwards."""
    python, numpy_, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        random.seed(0)
        np.random.seed(0)
        torch.default_generator.manual_seed(0)
        if cuda:
            torch.cuda.manual_seed_all(0)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """The buffers of a model, its training mode and whatever else its modules keep, put back to what they hold now.
    Parameters are not: a copy of them would take as much memory as the model."""
    seen: set[int] = {id(weight) for weight in model.parameters()}
    restores: list[Restore] = []
    for module in model.modules():
        # torch's wrappers of distributed training keep books of what ran, and lazy modules make their weights by it
        distributed = type(module).__module__.startswith(("torch.distributed", "torch.nn.parallel"))
        if not distributed and not isinstance(module, LazyModuleMixin):
            restores.append(_kept_in_module(module, seen))
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        yield
    finally:
        for restore in restores:
            restore()
        for weight, flag in flags:
            if weight.requires_grad != flag:
                weight.requires_grad_(flag)


def _kept_in_module(module: nn.Module, seen: set[int]) -> Restore:
    own = vars(module)
    kept = {key: value for key, value in own.items() if key not in _NOT_KEPT}
    inner = [_kept(value, seen, _DEPTH) for value in kept.values()]

    def restore() -> None:
        for key in [key for key in own if key not in _NOT_KEPT and key not in kept]:
            del own[key]
        own.update(kept)
        for part in inner:
            part()

    return restore


def _nothing() -> None:
    pass


_GENERATORS: tuple[tuple[type, Callable[[Any], Any], Callable[[Any, Any], object]], ...] = (
    (torch.Generator, torch.Generator.get_state, torch.Generator.set_state),
    (random.Random, random.Random.getstate, random.Random.setstate),
    (np.random.RandomState, np.random.RandomState.get_state, np.random.RandomState.set_state),
    (np.random.Generator, lambda own: own.bit_generator.state, lambda own, to: setattr(own.bit_generator, "state", to)),
)  # how each is read, and put back


def _kept(value: Any, seen: set[int], depth: int) -> Restore:
    """What puts back the content that an object has now."""
    if depth == 0 or id(value) in seen or isinstance(value, (nn.Module, nn.Parameter)):
        return _nothing
    seen.add(id(value))
    if isinstance(value, Tensor):
        return _kept_tensor(value)
    for kind, read, write in _GENERATORS:
        if isinstance(value, kind):
            return partial(write, value, read(value))
    if isinstance(value, np.ndarray):
        array = value.copy()
        return lambda: np.copyto(value, array) if value.flags.writeable else None
    if isinstance(value, (list, deque, set)):
        return _kept_container(value, seen, depth)
    if isinstance(value, dict):
        return _kept_mapping(value, seen, depth)
    if hasattr(value, "__dict__") and not type(value).__module__.startswith("torch.") and attributes(value):
        return _kept_mapping(vars(value), seen, depth)
    return _nothing


def _kept_tensor(value: Tensor) -> Restore:
    if value.is_meta or type(value) is not Tensor:
        return _nothing
    content = value.detach().clone()

    def restore() -> None:
        if not torch.equal(value, content):  # batch norm's do not count their versions
            value.data.copy_(content)

    return restore


def _kept_container(value: Any, seen: set[int], depth: int) -> Restore:
    parts = list(value)
    inner = [_kept(part, seen, depth - 1) for part in parts]

    def restore() -> None:
        if list(value) != parts if isinstance(value, set) else [*map(id, value)] != [*map(id, parts)]:
            value.clear()
            value.update(parts) if isinstance(value, set) else value.extend(parts)
        for part in inner:
            part()

    return restore


def _kept_mapping(value: dict[Any, Any], seen: set[int], depth: int) -> Restore:
    items = dict(value)
    inner = [_kept(part, seen, depth - 1) for part in items.values()]

    def restore() -> None:
        if [*map(id, value.values())] != [*map(id, items.values())] or list(value) != list(items):
            value.clear()
            value.update(items)
        for part in inner:
            part()

    return restore
