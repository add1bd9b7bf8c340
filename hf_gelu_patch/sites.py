"""Where a model applies activations: each place found, in its modules and in the source of their methods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from hf_gelu_patch.activations import Resolved, Unresolved
from hf_gelu_patch.errors import AlreadyPatchedError, PatchError
from hf_gelu_patch.forwards.class_binding import is_patched
from hf_gelu_patch.forwards.methods import holds_activation, methods_of
from hf_gelu_patch.forwards.own_methods import handing_on
from hf_gelu_patch.forwards.uses import Use, uses
from hf_gelu_patch.implementations.registry import ALWAYS, Least
from hf_gelu_patch.old_layout import moved_from
from hf_gelu_patch.recognition import looks_like_activation, resolve

__all__ = [
    "Edge",
    "Place",
    "Site",
    "check_module",
    "describe_modules",
    "device_and_dtype",
    "places",
    "walk",
]


@dataclass(frozen=True)
class Site:
    """One place in a model where an activation is applied: by a module, or by a call written in a forward.

    Attributes:
        path: the qualified name of the activation module; of a call, that of the module whose method makes it, the
            method, and the line (``encoder.forward:615``).
        owner_path: the qualified name of the module that holds the activation module, or makes the call.
        owner: its class name.
        module: the class name of the activation module; of a call, what is called, as the source says.
        written: whether it is a call written in a method (``F.gelu(x)``), rather than a module's.
        file, line, end_line: where it is applied, as far as that is written in the owner's methods; "" and 0 where an
            activation module is called from elsewhere (``nn.Sequential``).
        kind: ``pointwise``: act(x); ``gated``: act(gate) · up; ``linear``: act(linear(x)).
        device, dtype: those of the nearest weights.
        activation: the function it computes now, as its class spells it (``gelu_new``).
        target: the function it computes once patched; None where it is left alone.
        implementation: by which implementation; None where it is left alone.
        fused: whether the forward is rewritten, so that what ``kind`` says is computed as one.
        equivalence: ``identical`` bits, ``rounding`` (the same function), ``approximate`` (bound known), ``different``
            function; None where it is left alone.
        bound: max |new(x) − old(x)| over all x in exact arithmetic: 0.0 for the same function, inf where unbounded.
        reason: why this implementation, or why it is left alone.
        least: from how many numbers on the implementation computes there. With fewer, the model's own ops do, or those
            of the function that is swapped in.
        recompute: what ``recompute=True`` makes of what backward keeps there; "" where that was not asked for.
    """

    path: str
    owner_path: str
    owner: str
    module: str
    written: bool
    file: str
    line: int
    end_line: int
    kind: str
    device: str
    dtype: str
    activation: str
    target: str | None
    implementation: str | None
    fused: bool
    equivalence: str | None
    bound: float | None
    reason: str
    least: Least = ALWAYS
    recompute: str = ""

    @property
    def changed(self) -> bool:
        return self.implementation is not None

    @property
    def group(self) -> tuple[str, ...]:
        """What the sites of one line of the report have in common."""
        name = f"{self.owner}.{self.path.rpartition('.')[2]}"
        recompute = f"; recompute: {self.recompute}" if self.recompute else ""
        if not self.changed:
            return (name, self.kind, self.activation, f"left alone: {self.reason}{recompute}")
        equivalence = str(self.equivalence)
        if self.equivalence in ("approximate", "different"):
            equivalence += " (unbounded)" if self.bound == float("inf") else f" (|Δ| ≤ {self.bound:.3g})"
        return (
            name,
            self.kind,
            f"{self.activation} → {self.target}",
            f"{self.implementation}, {equivalence}; {self.reason}{recompute}",
        )


@dataclass(frozen=True)
class Edge:
    """A module as one attribute of its owner: what is replaced."""

    path: str
    owner: nn.Module
    key: str


@dataclass(frozen=True)
class Place:
    """Where an activation is applied: by a module (edge), as a method says (use), or both."""

    path: str  # the owner's
    owner: nn.Module
    current: Resolved | Unresolved
    edge: Edge | None
    use: Use | None

    @property
    def name(self) -> str:
        """The site's path."""
        if self.edge is not None:
            return self.edge.path
        assert self.use is not None
        return f"{self.path}{'.' if self.path else ''}{self.use.method}:{self.use.expression.line}"


def check_module(model: object) -> None:
    """Raises PatchError for what is no module. The message names the modules that it holds, the largest first."""
    if isinstance(model, nn.Module):
        return
    remedy = ""
    if isinstance(model, type):
        remedy = f" {model.__name__} is a class: load a model, or make one of it."
    elif isinstance(model, str):
        remedy = " Load it first, with from_pretrained for one."
    elif held := _held_modules(model):
        *others, last = held if len(held) <= 5 else [*held[:4], "another that it holds"]
        remedy = f" Give it {', '.join(others)}{' or ' if others else ''}{last}{', each by itself' if others else ''}."
    raise PatchError(f"only a torch.nn.Module can be patched; got {type(model).__name__}.{remedy}")


def _held_modules(holder: object) -> list[str]:
    """How to get at the modules in a pipeline, a trainer, a tuple or a mapping, from the one with the most weights on:
    ``its .unet``."""
    if isinstance(holder, Mapping):
        inside = {f"its [{key!r}]": value for key, value in holder.items()}
    elif isinstance(holder, (tuple, list)):
        inside = {f"its [{number}]": value for number, value in enumerate(holder)}
    else:
        inside = {}
        for name, value in getattr(holder, "__dict__", {}).items():
            if isinstance(value, nn.Module):  # ._model is what the property .model gives
                public = name.lstrip("_")
                inside[f"its .{public if getattr(holder, public, None) is value else name}"] = value
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    for name, value in inside.items():
        if isinstance(value, nn.Module) and id(value) not in seen:
            seen.add(id(value))
            sizes[name] = sum(weight.numel() for weight in value.parameters())
    return sorted(sizes, key=lambda name: -sizes[name])


def walk(model: nn.Module) -> Iterator[tuple[Edge, nn.Module]]:
    """Every edge of the module graph with what it leads to, once each, however often its owner is shared."""
    for path, owner in model.named_modules():
        for key, child in owner._modules.items():
            if child is not None:
                yield Edge(f"{path}.{key}" if path else key, owner, key), child


def describe_modules(model: nn.Module) -> str:
    """What a model is made of: ``14 modules: 4 Linear, 2 LayerNorm, …``."""
    counts = Counter(type(module).__name__ for module in model.modules())
    shown = [f"{count} {name}" for name, count in counts.most_common(8)]
    total = sum(counts.values())
    return f"{total} module{'' if total == 1 else 's'}: {', '.join(shown)}{', …' if len(counts) > 8 else ''}"


class _Activations:
    """What each module computes, found out once. A function that calls itself would do, and would hold itself, and with
    it the modules, until the garbage collector runs."""

    def __init__(self) -> None:
        self._found: dict[int, Resolved | Unresolved | None] = {}
        self._asked: list[nn.Module] = []  # alive, so that no two modules have one id

    def __call__(self, module: nn.Module) -> Resolved | Unresolved | None:
        if id(module) not in self._found:
            self._asked.append(module)
            self._found[id(module)] = current = resolve(module)
            if current is None and (called_like_one := looks_like_activation(module)):
                inside = uses(module, methods_of(type(module), frozenset()), self)
                self._found[id(module)] = None if any(True for _ in inside) else called_like_one
        return self._found[id(module)]


def places(model: nn.Module) -> Iterator[Place]:
    """Every place below ``model`` that applies an activation, in the order of its modules.

    Raises:
        AlreadyPatchedError: one of them is patched.
    """
    activation_of = _Activations()
    owners = list(model.named_modules())
    for path, module in owners:
        if is_patched(module):
            name = path or type(module).__name__
            raise AlreadyPatchedError(f"{name} is patched already: unpatch(model) before patching it anew.")
    walked = list(walk(model))
    edges = [(edge, child) for edge, child in walked if activation_of(child) is not None]
    holders = {id(edge.owner) for edge, _ in edges if isinstance(edge.owner, (nn.Sequential, nn.ModuleList))}
    names = frozenset(edge.key for edge, _ in edges) | {e.key for e, child in walked if id(child) in holders}
    names |= {name for _, owner in owners for name, value in vars(owner).items() if holds_activation(value)}
    names |= {name for cls in {type(owner) for _, owner in owners} for name in handing_on(cls)}
    by_edge: dict[tuple[int, str], list[tuple[str, Use]]] = {}
    calls: dict[int, list[Use]] = {}
    methods = {cls: methods_of(cls, names) for cls in {type(owner) for _, owner in owners}}
    for path, owner in owners:
        if path and activation_of(owner) is not None:
            continue  # it is judged as a whole
        for use in uses(owner, methods[type(owner)], activation_of):
            if use.edge is None:
                calls.setdefault(id(owner), []).append(use)
            else:
                by_edge.setdefault((id(use.edge[0]), use.edge[1]), []).append((path, use))
    edges_of: dict[int, list[tuple[Edge, nn.Module]]] = {}
    for edge, child in edges:
        edges_of.setdefault(id(edge.owner), []).append((edge, child))
    for path, owner in owners:
        for edge, child in edges_of.get(id(owner), ()):
            current = activation_of(child)
            assert current is not None
            found = by_edge.get((id(owner), edge.key))
            if not found:
                yield Place(path, owner, current, edge, None)
            for user_path, use in found or ():
                yield Place(user_path, use.owner, current, edge, use)
        for use in calls.get(id(owner), ()):
            yield Place(path, owner, use.current, None, use)


_WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def device_and_dtype(model: nn.Module, path: str) -> tuple[torch.device, torch.dtype]:
    """Where an activation, which has no weights, will run: as the nearest weights do, its owner's or else those of
    the nearest ancestor that has any. Offloaded weights are on meta until accelerate's hook brings them."""
    while True:
        owner = model.get_submodule(path)
        for weight in owner.parameters():
            if weight.dtype in _WEIGHT_DTYPES:
                device = _execution_device(owner) if weight.is_meta else None
                return device or weight.device, weight.dtype
        if not path:
            return torch.device("cpu"), torch.get_default_dtype()
        path = path.rpartition(".")[0]


def _execution_device(owner: nn.Module) -> torch.device | None:
    for module in owner.modules():
        hook = vars(module).get("_hf_hook")
        for one in getattr(hook, "hooks", (hook,)):
            if (device := getattr(one, "execution_device", None)) is not None:
                return torch.device(device)
    return None


if not TYPE_CHECKING:  # which would take every name for one of this module's
    __getattr__ = moved_from(__name__)
