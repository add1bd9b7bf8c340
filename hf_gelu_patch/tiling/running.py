"""A call of a method in tiles: some tokens after the other, each tile computed again in backward.

Whether that is right is decided here, at each call: hooks, adapters and sharding come and go after a patch.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hf_gelu_patch.errors import PatchError
from hf_gelu_patch.forwards.names import MISSING
from hf_gelu_patch.forwards.replacements import recorded
from hf_gelu_patch.implementations.tensors import nothing_but_memory, watched
from hf_gelu_patch.tiling.judging import judge
from hf_gelu_patch.tiling.verdicts import Verdict, registers

__all__ = ["Amount", "Tiles", "verdict_on"]

_FEWEST_TOKENS = 2048
_MOST_TILES = 16
"""What is taken where the user names no amount. In a tile of 2,048 tokens, what a tile costs beside its products (its
share of the weights' gradients added up) is a few per cent of them; beyond 16 tiles what is left of the peak is the
input, the output and their gradients."""


@dataclass(frozen=True)
class Amount:
    """How many tiles: a number of them, or the bytes that the tensors of one may take; neither: chosen for each call.

    Attributes:
        count: at most so many.
        size: bytes of all tensors that one tile makes in forward.
    """

    count: int | None = None
    size: int | None = None

    @classmethod
    def of(cls, given: object) -> Amount:
        """What ``patch(tiles=…)`` is given.

        Raises:
            PatchError: it is no amount.
        """
        if given is True or given == "auto":
            return cls()
        if isinstance(given, int) and not isinstance(given, bool):
            if given < 2:
                raise PatchError(f"tiles={given}: a method runs in 2 tiles or more. Leave tiles= out to run it whole.")
            return cls(count=given)
        if isinstance(given, str) and (found := _SIZE.fullmatch(given.strip())):
            size = int(float(found[1]) * _UNITS[found[2].lower()])
            if size > 0:
                return cls(size=size)
        raise PatchError(
            f"tiles={given!r}: give the number of tiles (8), the most that the tensors of one may take ('256MiB'; "
            f"{', '.join(sorted({unit.upper().replace('I', 'i') for unit in _UNITS}))}), or 'auto'."
        )

    def __str__(self) -> str:
        if self.count is not None:
            return f"tiles={self.count}"
        return "tiles='auto'" if self.size is None else f"tiles='{self.size}B'"

    def tiles(self, tokens: int, bytes_each: int) -> int:
        """Into how many tiles so many tokens go.

        Args:
            tokens: of the call.
            bytes_each: of all tensors that are made for one token.
        """
        if self.count is not None:
            wanted = self.count
        elif self.size is not None:
            wanted = math.ceil(tokens * bytes_each / self.size)
        else:
            wanted = min(_MOST_TILES, tokens // _FEWEST_TOKENS)
        return max(1, min(wanted, tokens))


_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"(?i)(\d+(?:\.\d+)?)\s*([kmg]?i?b)")


_VERDICTS: WeakKeyDictionary[nn.Module, dict[str, Verdict]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def verdict_on(module: nn.Module, method: str) -> Verdict:
    """``judge``, asked again only where something that the last verdict rests on has changed."""
    with _LOCK:
        known = _VERDICTS.setdefault(module, {})
    found = known.get(method)
    if found is None or not found.holds(module):
        known[method] = found = judge(module, method)
    return found


@dataclass(frozen=True)
class Tiles:
    """What is called in a method's place.

    Attributes:
        method: its name.
        amount: how many tiles.
    """

    method: str
    amount: Amount

    def __str__(self) -> str:
        return f"in_tiles({self.amount})"

    def __call__(self, whole: Callable[..., Any], module: nn.Module, *given: Any, **named: Any) -> Any:
        """What ``whole(module, *given, **named)`` gives; in tiles where the arguments are plain tensors of the same
        tokens, and nothing but autograd looks on."""
        if recorded() or watched() or not _hooks_allowed():
            return whole(module, *given, **named)
        first = given[0] if given else None
        if not isinstance(first, Tensor) or not _of_several_tokens(first):
            return whole(module, *given, **named)
        tokens = first.numel() // first.shape[-1]
        if self.amount.size is None and self.amount.tiles(tokens, 0) < 2:  # before anything is looked at
            return whole(module, *given, **named)
        verdict = verdict_on(module, self.method)
        tensors, rest = given[: verdict.tensors], given[verdict.tensors :]
        count = self.amount.tiles(tokens, verdict.numbers * first.element_size())
        if verdict.reason is not None or count < 2 or not _as_judged(verdict, tensors, rest, named):
            return whole(module, *given, **named)
        parts = [torch.split(_rows(tensor, tokens), math.ceil(tokens / count), dim=-2) for tensor in tensors]
        needed = torch.is_grad_enabled() and (
            any(tensor.requires_grad for tensor in tensors)
            or any(weight.requires_grad for weight in module.parameters())
        )
        if not needed:
            result = _written_into_one(whole, module, parts, rest, tokens)
        else:
            run = _Again(whole, module, verdict)
            tiles = [
                checkpoint(run, *part, *rest, use_reentrant=False, preserve_rng_state=verdict.draws)
                for part in zip(*parts, strict=True)
            ]
            result = torch.cat(tiles, dim=-2)
        return result.reshape(*first.shape[:-1], result.shape[-1])


class _Again:
    """A method on a module as it is now, whatever becomes of the module until backward computes a tile again.

    Of an ordinary call autograd keeps the weights that it took, and how it was computed. So what the module holds, its
    classes, the training mode and what is frozen are put back for as long as a tile takes:
    ``torch.func.functional_call``, hooks of offloading, ``unpatch`` or ``eval()`` may have exchanged them since.
    """

    def __init__(self, whole: Callable[..., Any], module: nn.Module, verdict: Verdict) -> None:
        self.whole, self.module, self.verdict = whole, module, verdict
        self.modes = [(part, type(part), part.training) for part in verdict.modules(module)]
        self.held = [
            (register, name, one)
            for part, _, _ in self.modes
            for register in registers(part)
            for name, one in register.items()
        ]
        self.weights = [(one, _version(one), one.requires_grad) for _, _, one in self.held if isinstance(one, Tensor)]

    def __call__(self, *given: Any) -> Any:
        """What the method gives.

        Raises:
            RuntimeError: a weight was written to since, or the module computes something else now.
        """
        with self._as_it_was():
            if any(_version(weight) != version for weight, version, _ in self.weights):
                raise RuntimeError(
                    f"A weight of {type(self.module).__name__} has been modified by an inplace operation between "
                    "forward and backward, which computes the tiles again. Run backward before the optimizer's step."
                )
            if not self.verdict.holds(self.module):
                raise RuntimeError(
                    f"{type(self.module).__name__} was changed between forward and backward, which computes the tiles "
                    "again: an adapter was switched, a hook or another layer was put into it. Run backward before that."
                )
            return self.whole(self.module, *given)

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        held = [(*one, one[0].get(one[1], MISSING)) for one in self.held if one[0].get(one[1]) is not one[2]]
        leaves = [(one, then) for one, _, then in self.weights if one.is_leaf and one.requires_grad is not then]
        modes = [(*one, type(one[0]), one[0].training) for one in self.modes]
        modes = [one for one in modes if one[1:3] != one[3:]]
        try:
            for register, name, then, _ in held:
                register[name] = then
            for part, cls, training, *_ in modes:
                part.__class__, part.training = cls, training
            for weight, wanted in leaves:
                weight.requires_grad_(wanted)
            yield
        finally:
            for weight, wanted in leaves:
                weight.requires_grad_(not wanted)
            for part, *_, cls, training in modes:
                part.__class__, part.training = cls, training
            for register, name, _, now in held:
                if now is MISSING:
                    del register[name]
                else:
                    register[name] = now


def _version(weight: Tensor) -> int:
    return 0 if weight.is_inference() else weight._version


def _written_into_one(
    whole: Callable[..., Any], module: nn.Module, parts: list[Any], rest: tuple[Any, ...], tokens: int
) -> Tensor:
    """The tiles of a call that nothing is derived of, each written to its place in one tensor."""
    result: Tensor | None = None
    start = 0
    for part in zip(*parts, strict=True):
        tile = whole(module, *part, *rest)
        if result is None:
            result = tile.new_empty((*tile.shape[:-2], tokens, tile.shape[-1]))
        result.narrow(-2, start, tile.shape[-2]).copy_(tile)
        start += tile.shape[-2]
    assert result is not None
    return result


def _rows(x: Tensor, tokens: int) -> Tensor:
    """All tokens of a tensor in one row, in as many dimensions as it has: (1, …, tokens, width)."""
    return x.reshape(*(1,) * (x.dim() - 2), tokens, x.shape[-1])


def _of_several_tokens(x: Tensor) -> bool:
    """Whether x is (…, length, width) with a length to part, unlike one position of each sequence, as in decoding."""
    return x.dim() >= 2 and x.shape[-2] > 1 and x.numel() > 0


def _as_judged(verdict: Verdict, tensors: tuple[Any, ...], rest: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether a method is called as it was judged: with ordinary tensors of the same tokens, and its own defaults."""
    if len(tensors) != verdict.tensors or len(rest) != len(verdict.defaults):
        return False
    if any(now is not then for now, then in zip(rest, verdict.defaults, strict=True)):
        return False
    then = dict(verdict.named)
    if any(name not in then or value is not then[name] for name, value in named.items()):
        return False
    return all(
        isinstance(x, Tensor) and nothing_but_memory(x) and x.shape[:-1] == tensors[0].shape[:-1] for x in tensors
    )


_hooks_allowed = torch._C._autograd._saved_tensors_hooks_is_enabled  # type: ignore[attr-defined]
