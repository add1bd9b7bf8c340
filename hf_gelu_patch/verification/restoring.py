"""What a run of a model may change, put back: the random states, and what its modules keep."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from hf_gelu_patch.verification.values import attributes

__all__ = ["as_it_was", "fingerprints", "mark", "own_gradients", "seeded"]

Restore = Callable[[], object]

_NOT_KEPT = ("_hf_hook", "_old_forward")  # accelerate's hold the weights that it offloads
_WEIGHTS = ("_parameters", "_modules")
_DEPTH = 6  # of objects in objects that a module keeps: module → cache → list of layers → layer → tensor


@contextmanager
def seeded() -> Iterator[None]:
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
def own_gradients(model: nn.Module) -> Iterator[None]:
    """The weights' ``.grad``, put back to what it is now: the gradients of reentrant checkpoints come by way of it."""
    kept = [(weight, weight.grad) for weight in model.parameters()]
    try:
        yield
    finally:
        for weight, grad in kept:
            if weight.grad is not grad:
                weight.grad = grad


def mark(tensor: Tensor) -> int:
    """A number that is another once a bit of a tensor has changed, numbers have changed their signs or their places:
    the sum of all its bits as integers of 32 or fewer, each times an odd number of its own, modulo 2⁶⁴.

    Raises:
        RuntimeError: a kind of tensor whose bits torch does not hand out.
    """
    numbers = tensor.detach().reshape(-1).contiguous()
    bits = numbers.view(_INTEGERS[numbers.dtype.itemsize])
    size = 2**16 if bits.device.type == "cpu" else 2**24  # what stays in a CPU's cache
    places = torch.arange(1, 2 * min(size, len(bits)), 2, device=bits.device)
    sums = torch.stack([(part * places[: len(part)]).sum() for part in torch.split(bits, size)])
    return int((sums * torch.arange(1, 2 * len(sums), 2, device=sums.device)).sum())


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32, 16: torch.int32}


def fingerprints(model: nn.Module) -> dict[str, int]:
    """Parameter → its ``mark``. What is sharded, quantized, offloaded or not made yet has none, and nothing of a model
    that is spread over processes."""
    if any(_distributed(module) for module in model.modules()):
        return {}
    found = {}
    for name, weight in model.named_parameters():
        if type(weight) is nn.Parameter and weight.numel() and not weight.is_meta:
            with suppress(RuntimeError):
                found[name] = mark(weight)
    return found


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """The buffers of a model, its training mode, which layers and parameters it has and whatever else its modules keep,
    put back to what they hold now; and of modules that are kept in a list or another object. The numbers in parameters
    are not: a copy of them would take as much memory as the model."""
    seen: set[int] = {id(weight) for weight in model.parameters()}
    restores = [_kept_in_module(module, seen, weights=not _spread(model)) for module in model.modules()]
    flags = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        yield
    finally:
        for restore in restores:
            restore()
        for weight, flag in flags:
            if weight.requires_grad != flag:
                weight.requires_grad_(flag)


def _distributed(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.distributed", "torch.nn.parallel"))


def _spread(model: nn.Module) -> bool:
    """Whether a model's weights are split among processes, or offloaded. Who does that exchanges them in each run."""
    bases = {base for module in model.modules() for base in type(module).__mro__}
    split = any(base.__module__.startswith(("torch.distributed", "torch.nn.parallel", "deepspeed")) for base in bases)
    return split or any("_hf_hook" in vars(module) for module in model.modules())


def _kept_in_module(module: nn.Module, seen: set[int], *, weights: bool) -> Restore:
    """Nothing of torch's wrappers of distributed training, which keep books of what ran, nor of lazy modules, which
    make their weights by it. With ``weights`` also which layers and parameters it has."""
    if id(module) in seen or _distributed(module) or isinstance(module, LazyModuleMixin):
        return _nothing
    seen.add(id(module))
    own = vars(module)
    kept = {key: value for key, value in own.items() if key not in (*_NOT_KEPT, *_WEIGHTS)}
    inner = [_kept(value, seen, _DEPTH) for value in kept.values()]
    inner += [_kept_names(own[key]) for key in _WEIGHTS] if weights else []

    def restore() -> None:
        for key in [key for key in own if key not in (*_NOT_KEPT, *_WEIGHTS) and key not in kept]:
            del own[key]
        own.update(kept)
        for part in inner:
            part()

    return restore


def _kept_names(held: dict[str, Any]) -> Restore:
    """What puts back which layers, or which parameters, stand under which names."""
    items = dict(held)

    def restore() -> None:
        if list(held) != list(items) or any(held[name] is not one for name, one in items.items()):
            held.clear()
            held.update(items)

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
    if depth == 0 or id(value) in seen or isinstance(value, nn.Parameter):
        return _nothing
    if isinstance(value, nn.Module):  # hidden from the model's own list of modules
        hidden = [_kept_in_module(module, seen, weights=not _spread(value)) for module in value.modules()]
        return lambda: [restore() for restore in hidden]
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
