"""How many bytes a training step of a model keeps for backward, at its sites and in all, and the most it takes."""

from __future__ import annotations

import gc
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._profiler import _EventType, _ProfilerEvent

from hf_gelu_patch.errors import PatchError
from hf_gelu_patch.report import Kept, Memory, Step
from hf_gelu_patch.sites import Edge, check_module, places
from hf_gelu_patch.verification.copies import copied
from hf_gelu_patch.verification.restoring import as_it_was, own_gradients, seeded
from hf_gelu_patch.verification.runs import called, cannot_run, compiled
from hf_gelu_patch.verification.values import output_tensors

__all__ = ["Meter", "measure"]

Forward = Callable[[nn.Module, Any], object]
"""Runs a model on a batch."""

_STEP, _KEPT, _SITE = "hf_gelu_patch: step", "hf_gelu_patch: kept", "hf_gelu_patch: site "
"""How marks are named: around a step, between forward and backward, and around the method of a site."""


def measure(model: nn.Module, batch: object, *, forward: Forward = called) -> Step:
    """What a training step of a model takes, patched or not: its forward, and the gradients of its loss.

    Counted is what torch allocates from the first operation on, in bytes: on the accelerator where the model's weights
    are on one, else on the CPU. The weights, the buffers and the batch are there before and do not count. What an
    optimiser keeps does not either. A forward runs before, so that what is made once is there. The model, the batch,
    ``.grad`` and all random states are left as they were.

    Args:
        model: in the mode it is in. On a CPU the numbers are exact; a GPU gives memory out by 512 bytes.
        batch: a mapping of keyword arguments, a tuple or list of positional ones, or the one argument.
        forward: runs the model on the batch, where it takes another call than ``model(**batch)``.

    Returns:
        ``saved``: the bytes that are alive when the forward is over and only its loss is held: what backward needs.
        ``peak``: the most that is alive at one time in forward and backward, gradients included. The loss is the
        output's own ``loss``; where there is none, the sum of all outputs.

    Raises:
        PatchError: ``model`` is not a module, cannot run on the batch, has no gradient, or is on the meta device; or
            another profiler is running.
    """
    return _measured(model, batch, forward, ())[0]


class Meter:
    """Measures a model before a patch, and after it again: in all, and at the methods that apply its activations.

    What a site keeps is what its method allocates and is still alive when the forward is over. The input that the
    method is given was allocated by others, and counts there.

    Args:
        model: not patched, and not compiled.
        batch, forward: as for ``measure``.

    Raises:
        PatchError: as for ``measure``; or the model is compiled.
        AlreadyPatchedError: it is patched.
    """

    def __init__(self, model: nn.Module, batch: object, forward: Forward = called) -> None:
        check_module(model)
        for path, module in model.named_modules():
            if compiled(module):
                raise PatchError(
                    f"{path or type(model).__name__} is compiled, and what happens inside is not to be seen: give "
                    "memory= before torch.compile, or leave it out."
                )
        self._batch, self._forward = batch, forward
        self._methods = _methods(model)
        self._before, self._kept = _measured(model, batch, forward, self._methods)

    def after(self, model: nn.Module) -> Memory:
        """What the same model, patched since, takes beside what it took before.

        Raises:
            PatchError: as for ``measure``.
        """
        after, kept = _measured(model, self._batch, self._forward, self._methods)
        found = zip(self._methods, self._kept, kept, strict=True)
        return Memory(tuple(Kept(one.name, one.sites, *bytes_) for one, *bytes_ in found), self._before, after)


# ---------------------------------------------------------------------------------------------------- methods of sites


@dataclass(frozen=True, eq=False)
class _Method:
    """A method that applies activations.

    Attributes:
        owner: the module, unless it is the activation module itself.
        method: its name.
        edge: where the activation module stands, or what takes its place; None where the owner has the method.
        sites: the paths of the sites in it.
    """

    owner: nn.Module
    method: str
    edge: Edge | None
    sites: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{type(self.module).__name__}.{self.method}"

    @property
    def module(self) -> Any:
        """Whose method it is at the moment, patched or not."""
        return self.owner if self.edge is None else self.edge.owner._modules[self.edge.key]


def _methods(model: nn.Module) -> tuple[_Method, ...]:
    found: dict[tuple[int, str], list[Any]] = {}
    for place in places(model):
        if place.use is not None and (place.edge is None or not place.use.obstacle):
            owner, method, edge = place.use.owner, place.use.methods[0], None
        else:
            assert place.edge is not None
            edge, method = place.edge, "forward"
            module = edge.owner._modules[edge.key]
            assert module is not None
            owner = module
        found.setdefault((id(owner), method), [owner, method, edge, []])[3].append(place.name)
    return tuple(_Method(owner, method, edge, tuple(sites)) for owner, method, edge, sites in found.values())


@contextmanager
def _marked(methods: Sequence[_Method]) -> Iterator[None]:
    """Marks for the profiler while methods run, by looking at the frames of this thread: the modules are left as they
    are, since what computes them may look whether somebody has a hand in them."""
    watched: dict[CodeType, dict[int, int]] = {}
    for number, method in enumerate(methods):
        function = getattr(type(method.module), method.method)
        code = getattr(function, "__code__", None) or getattr(inspect.unwrap(function), "__code__", None)
        if code is not None:
            watched.setdefault(code, {})[id(method.module)] = number
    running: list[tuple[FrameType, Any]] = []

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and (numbers := watched.get(frame.f_code)) is not None:
            number = numbers.get(id(_first_argument(frame)))
            if number is not None:
                mark = torch.profiler.record_function(f"{_SITE}{number}")
                mark.__enter__()  # type: ignore[no-untyped-call]
                running.append((frame, mark))
        elif event == "return" and running and running[-1][0] is frame:
            running.pop()[1].__exit__(None, None, None)

    kept = sys.getprofile()
    if watched:
        sys.setprofile(look)
    try:
        yield
    finally:
        if watched:
            sys.setprofile(kept)


def _first_argument(frame: FrameType) -> object:
    code, own = frame.f_code, frame.f_locals
    if code.co_argcount:
        return own.get(code.co_varnames[0])
    if not code.co_flags & inspect.CO_VARARGS:
        return None
    return next(iter(own.get(code.co_varnames[code.co_kwonlyargcount], ())), None)


# ---------------------------------------------------------------------------------------------------------- one step


def _measured(
    model: nn.Module, batch: object, forward: Forward, methods: Sequence[_Method]
) -> tuple[Step, list[int | None]]:
    """A step, and what each method keeps; None for one that is not called."""
    devices = _devices(model)
    with as_it_was(model), own_gradients(model), _no_collector(), ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        with seeded():
            _loss(model, copied(batch), forward)  # what a first run makes, and the model keeps, is there then
        modes.enter_context(_marked(methods))
        try:
            seen, address = _profiled(model, batch, forward, by_grad=False)
        except RuntimeError as error:
            if "checkpoint" not in str(error):
                raise
            seen, address = _profiled(model, batch, forward, by_grad=True)
    assert seen.kineto_results is not None
    return _read(seen.kineto_results.experimental_event_tree(), devices, address, len(methods))


def _devices(model: nn.Module) -> frozenset[str]:
    """The types of the devices on which memory counts."""
    check_module(model)
    name = type(model).__name__
    weights = [*model.parameters(), *model.buffers()]
    if any(weight.is_inference() for weight in weights):
        raise PatchError(
            f"{name} was made under torch.inference_mode(), so nothing is kept for gradients: make it outside, or "
            "leave out memory=."
        )
    devices = {weight.device.type for weight in weights}
    if devices == {"meta"}:
        raise PatchError(
            f"memory= runs the model, and {name} is on the meta device, which computes nothing: load its weights first."
        )
    if torch.autograd.profiler._is_profiler_enabled:
        raise PatchError("memory= counts by torch's profiler, and one is running: leave its block first.")
    return frozenset(devices - {"cpu", "meta"} or {"cpu"})


def _profiled(
    model: nn.Module, batch: object, forward: Forward, *, by_grad: bool
) -> tuple[torch.autograd.profiler.profile, int]:
    """A step that the profiler has seen, and where the loss was.

    Args:
        by_grad: the gradients are had by way of ``.grad``, as those of reentrant checkpoints have to be.
    """
    arguments = copied(batch)
    leaves = [one for one in (*model.parameters(), *output_tensors(arguments).values()) if one.requires_grad]
    for leaf in leaves:  # a backward inside backward adds to what is there
        leaf.grad = None
    torch.clear_autocast_cache()  # a step makes its own casts of the weights
    gc.collect(0)
    mark = torch.profiler.record_function
    with seeded(), _quiet(), torch.autograd.profiler.profile(profile_memory=True) as seen, mark(_STEP):
        loss = _loss(model, arguments, forward)
        gc.collect(0)
        with mark(_KEPT):
            address = loss.untyped_storage().data_ptr()
        if by_grad:
            torch.autograd.backward(loss)
        else:
            gradients = torch.autograd.grad([loss], leaves, allow_unused=True)
            del gradients
    return seen, address


def _loss(model: nn.Module, arguments: Any, forward: Forward) -> Tensor:
    """What is differentiated: the output's own loss, else the sum of all its numbers.

    Raises:
        PatchError: the model cannot run on the batch; or nothing in its output has a gradient.
    """
    name = type(model).__name__
    try:
        found = output_tensors(forward(model, arguments))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise PatchError(cannot_run(model, "the batch given as memory=", error)) from error
    loss = found.get("loss")
    if loss is not None and loss.numel() == 1:
        found = {"loss": loss}
    ends = [end for end in found.values() if end.requires_grad and end.numel()]
    if not ends:
        raise PatchError(
            f"memory= counts what {name} keeps for gradients, and no output of it on this batch has one: call "
            "requires_grad_(True) on parameters, hand in inputs that require a gradient, or leave out memory=."
        )
    if loss is not None and ends[0] is loss:
        return loss
    total = ends[0].sum()
    for end in ends[1:]:
        total = total + end.sum().to(total)
    return total


@contextmanager
def _no_collector() -> Iterator[None]:
    """Python looks for cycles where it is told to alone, so that memory in them is freed at the same place each time.
    What was made since is the youngest generation, which takes no time to look through."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines on standard error in which torch's profiler says that it starts and stops, unless the user has
    asked for some: it looks once, when it first runs."""
    name = "KINETO_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "6"  # above all its levels
    try:
        yield
    finally:
        os.environ.pop(name, None)


# ---------------------------------------------------------------------------------------------------------- the events


def _read(
    events: Sequence[_ProfilerEvent], devices: frozenset[str], loss: int, methods: int
) -> tuple[Step, list[int | None]]:
    """What the profiler saw of a step.

    Args:
        events: the outermost ones.
        devices: the types of those that count.
        loss: where the loss was, which is held all along.
        methods: how many there are.
    """
    kept: list[int | None] = [None] * methods
    changes: list[tuple[int, int, int, int | None]] = []  # when, where, how many bytes more, in which method
    start = end = 0
    left: list[tuple[_ProfilerEvent, int | None]] = [(event, None) for event in reversed(events)]
    while left:
        event, method = left.pop()
        if event.name == _STEP:
            start = event.start_time_ns
        elif event.name == _KEPT:
            end = event.start_time_ns
        elif event.name.startswith(_SITE):
            method = int(event.name.removeprefix(_SITE))
            kept[method] = 0
        elif event.tag == _EventType.Allocation:
            fields: Any = event.extra_fields
            if fields.device.type in devices:
                changes.append((event.start_time_ns, fields.ptr, fields.alloc_size, method))
        left += [(child, method) for child in reversed(event.children)]
    changes.sort(key=lambda change: change[0])
    saved, peak, now = -1, 0, 0
    alive: dict[int, tuple[int, int | None]] = {}
    for when, where, size, method in changes:
        if when < start:
            continue
        if when >= end and saved < 0:
            saved = _count(alive, loss, kept)
        if size > 0:
            alive[where] = (size, method)
            now += size
            peak = max(peak, now)
        else:
            now -= alive.pop(where, (0, None))[0]
    if saved < 0:
        saved = _count(alive, loss, kept)
    return Step(saved, peak), kept


def _count(alive: dict[int, tuple[int, int | None]], loss: int, kept: list[int | None]) -> int:
    """What is alive but the loss, in bytes; each method's share of it goes into ``kept``."""
    for where, (size, method) in alive.items():
        if method is not None and where != loss:
            kept[method] = (kept[method] or 0) + size
    return sum(size for where, (size, _) in alive.items() if where != loss)
