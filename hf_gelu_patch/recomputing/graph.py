"""Autograd's graph looked through: what its nodes keep, and what of that an activation's node can make again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_gelu_patch.recomputing.functions import again_from, can_be_asked, writes

__all__ = ["Dropped", "Found", "drop", "held", "tensors_in"]


# -------------------------------------------------------------------------------------------------- what nodes keep


@functools.lru_cache(maxsize=1024)
def _names(node: Any) -> tuple[str, ...]:
    """How nodes of a type call the tensors that they keep."""
    if hasattr(node, "_forward_cls"):
        return ("_raw_saved_tensors",)
    return tuple(name for name in dir(node) if name.startswith("_raw_saved_"))


def _kept_by(node: Any) -> Iterator[Any]:
    """What a node keeps, each as torch's ``SavedTensor``: nothing is unpacked."""
    kind: Any = type(node)
    for name in _names(kind):
        kept = getattr(node, name)
        if isinstance(kept, (tuple, list)):
            yield from kept
        else:
            yield kept


def held(outputs: object) -> Iterator[Tensor]:
    """Every tensor that autograd's graph keeps for backward, parameters included; those that more nodes keep come more
    than once. What was dropped, to be computed again, is none of them, and nothing is computed.

    Args:
        outputs: tensors, and tuples, lists and mappings of them.

    What other tools have put away by hooks on saved tensors counts where it is a tensor still.
    """
    pending: list[Any] = [x.grad_fn for x in tensors_in(outputs) if x.grad_fn is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        yield from (raw.data for raw in _kept_by(node) if isinstance(raw.data, Tensor))
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                pending.append(child)


def tensors_in(value: object, depth: int = 4) -> Iterator[Tensor]:
    """The tensors in a value: itself, or in tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (tuple, list)):
        for one in value:
            yield from tensors_in(one, depth - 1)
    elif depth and isinstance(value, Mapping):
        for one in value.values():
            yield from tensors_in(one, depth - 1)


# ------------------------------------------------------------------- between an activation and who keeps its result


def _reshaped(node: Any, y: Tensor) -> Tensor:
    return y.reshape(node._input_metadata[0].shape)


def _cast(node: Any, y: Tensor) -> Tensor:
    made = node._input_metadata[0]
    return y.to(device=made.device, dtype=made.dtype)


def _times(node: Any, y: Tensor) -> Tensor:
    other: Tensor = node._saved_self if node.next_functions[0][0] is None else node._saved_other
    return y * other


def _with_dropout(node: Any, y: Tensor) -> Tensor:
    p = node._saved_p
    scale = 0.0 if p == 1.0 else 1.0 / (1.0 - p)
    dropped: Tensor = torch.ops.aten.native_dropout_backward(y, node._saved_result1, scale)  # y · mask · scale
    return dropped


_REPEATED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    **dict.fromkeys(("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "AliasBackward0"), _reshaped),
    **dict.fromkeys(("UnsqueezeBackward0", "SqueezeBackward0", "SqueezeBackward1", "CloneBackward0"), _reshaped),
    "ToCopyBackward0": _cast,  # autocast
    "MulBackward0": _times,  # by what needs no gradient: dropout on a CPU
    "NativeDropoutBackward0": _with_dropout,
}
"""What may stand between, by the name of its node: op(node, y), cheap and without randomness of its own."""
_VIEWS = frozenset(name for name, op in _REPEATED.items() if op is _reshaped and name != "CloneBackward0")

_Step = tuple[Callable[[Any, Tensor], Tensor], Any]


@functools.lru_cache(maxsize=1024)
def _of_use(node: Any) -> bool:
    """Whether the results of nodes of a type may be computed again."""
    return can_be_asked(node) or _repeated(node) is not None


@functools.lru_cache(maxsize=1024)
def _repeated(node: Any) -> Callable[[Any, Tensor], Tensor] | None:
    return _REPEATED.get(node.__name__)


@dataclass(frozen=True)
class Found:
    """Where a tensor comes from that can be computed again.

    Attributes:
        source: the activation's node.
        again: makes its result.
        steps: what else was done to it since, first to last.
    """

    source: Any
    again: Callable[[], Tensor]
    steps: tuple[_Step, ...]

    @property
    def in_memory(self) -> bool:
        """Whether all it takes is kept as it is: a checkpoint gives a tensor back once, no more."""
        nodes = (self.source, *(node for _, node in self.steps))
        return all(raw.unpack_hook is None for node in nodes for raw in _kept_by(node))

    def still(self, kept: Tensor) -> bool:
        """Whether what is kept is what the activation made, and the steps of it. Autograd takes it as it is once
        somebody has written to it, or to what it was copied from. Between two copies that cannot be known."""
        now, first = writes(self.source)
        if all(type(node).__name__ in _VIEWS for _, node in self.steps):
            return kept._version == first
        return now == first and kept._version == 0


def _origin(node: Any) -> Found | None:
    """Where the result of a node comes from; None where it cannot be computed again."""
    steps: list[_Step] = []
    while (again := again_from(node)) is None:
        kind: Any = type(node)
        op = _repeated(kind)
        above = node.next_functions
        if op is None:
            return None
        steps.append((op, node))
        if op is _times:
            above = [one for one in above if one[0] is not None]
        if len(above) != 1 or above[0][0] is None:
            return None
        node = above[0][0]
    return Found(node, again, tuple(reversed(steps)))


# -------------------------------------------------------------------------------------------------------- what is put


class Dropped:
    """In the place of a tensor that backward computes again.

    Attributes:
        found: where it comes from.
    """

    __slots__ = ("found",)

    def __init__(self, found: Found) -> None:
        self.found = found

    def computed(self) -> Tensor:
        with torch.no_grad():
            y = self.found.again()
            for op, node in self.found.steps:
                y = op(node, y)
        return y


def drop(outputs: Iterable[Tensor], inputs: Iterable[Tensor]) -> tuple[int, bool]:
    """Take from the nodes between a module's inputs and its outputs what can be computed again in backward. What other
    hooks have hold of, or somebody has written over, stays.

    Returns:
        How many activations there are, and whether the result of one is an output itself.
    """
    roots = [x.grad_fn for x in outputs if x.grad_fn is not None]
    if not roots:
        return 0, False
    seen: set[Any] = {x.grad_fn for x in inputs}
    latest = max(root._sequence_nr() for root in roots)
    before = (node._sequence_nr() for node in seen if node is not None)
    floor = max((number for number in before if number <= latest), default=-1)  # what is older was not made here
    pending: list[Any] = [root for root in dict.fromkeys(roots) if root not in seen]
    sources: set[Any] = set()
    is_output = False
    for root in pending:
        if (found := _origin(root)) is not None:
            is_output = True
            sources.add(found.source)
    seen.update(pending)
    while pending:
        node = pending.pop()
        for child, number in node.next_functions:
            kind: Any = type(child)
            if _of_use(kind) and (found := _origin(child)) is not None:
                sources.add(found.source)
                _take(node, child, number, found)
            if child is not None and child not in seen:
                seen.add(child)
                if child._sequence_nr() > floor:
                    pending.append(child)
    return len(sources), is_output


def _take(node: Any, child: Any, number: int, found: Found) -> None:
    """What a node keeps of the result of another, put away."""
    for raw in _kept_by(node):
        if raw.unpack_hook is not None:  # a checkpoint's, or another tool's
            continue
        kept = raw.data
        if (
            isinstance(kept, Tensor)
            and kept.grad_fn is child
            and kept.output_nr == number
            and found.still(kept)
            and found.in_memory
        ):
            raw.register_hooks(functools.partial(_packed, found), _unpacked)


def _packed(found: Found, _: Tensor) -> Dropped:
    return Dropped(found)


def _unpacked(kept: Dropped) -> Tensor:
    return kept.computed()
