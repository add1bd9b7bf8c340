"""Where a model applies activations, what a patch would do at each place, and every reason to leave one alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch.activations import (
    Activation,
    Resolved,
    Unresolved,
    get_activation,
    max_difference,
    resolve,
)
from hf_gelu_patch.errors import (
    AlreadyPatchedError,
    ImplementationUnavailableError,
    NothingMatchedError,
    PatchError,
)
from hf_gelu_patch.implementations import IMPLEMENTATIONS, choose, get_implementation

__all__ = ["PatchedActivation", "Plan", "Report", "Selector", "Site", "find_sites", "plan", "walk"]

Selector = str | type[nn.Module] | Iterable[str | type[nn.Module]] | None
"""Which sites: glob patterns on a site's path, the class name of its owner or its module, or its activation; or
classes of either. One, or several of which any may match."""


@dataclass(frozen=True)
class Site:
    """One activation module of a model.

    Attributes:
        path: its qualified name; with ``paths``, all its names where it is shared.
        owner: the class name of the module that holds it.
        module: its own class name.
        kind: ``pointwise``: act(x).
        device, dtype: those of the nearest weights.
        activation: the function it computes now, as its class spells it (``gelu_new``).
        target: the function it computes once patched; None where it is left alone.
        implementation: by which implementation; None where it is left alone.
        equivalence: ``identical`` bits, ``rounding`` (the same function), ``approximate`` (bound known), ``different``
            function; None where it is left alone.
        bound: max |new(x) − old(x)| over all x in exact arithmetic: 0.0 for the same function, inf where unbounded.
        reason: why this implementation, or why it is left alone.
    """

    path: str
    paths: tuple[str, ...]
    owner: str
    module: str
    kind: str
    device: str
    dtype: str
    activation: str
    target: str | None
    implementation: str | None
    equivalence: str | None
    bound: float | None
    reason: str

    @property
    def changed(self) -> bool:
        return self.implementation is not None

    @property
    def group(self) -> tuple[str, ...]:
        """What the sites of one line of the report have in common."""
        edge = f"{self.owner}.{self.path.rpartition('.')[2]}"
        if not self.changed:
            return (edge, self.activation, f"left alone: {self.reason}")
        equivalence = str(self.equivalence)
        if self.equivalence in ("approximate", "different"):
            equivalence += " (unbounded)" if self.bound == float("inf") else f" (|Δ| ≤ {self.bound:.3g})"
        shared = f", shared by {len(self.paths)}" if len(self.paths) > 1 else ""
        return (
            edge + shared,
            f"{self.activation} → {self.target}",
            f"{self.implementation}, {equivalence}; {self.reason}",
        )


@dataclass(frozen=True)
class ConfigChange:
    """One entry of a model's config that follows a swap: ``owner`` is the config object itself."""

    label: str
    owner: Any = field(repr=False)
    key: str
    old: object
    new: object


@dataclass(frozen=True)
class Report:
    """What a patch did, or would do. ``print`` it for a table; ``sites``, ``changed`` and ``to_dict`` are the data."""

    model: str
    sites: tuple[Site, ...]
    applied: bool
    config: tuple[str, ...] = ()
    seen: str = ""

    @property
    def changed(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.changed)

    @property
    def unchanged(self) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if not site.changed)

    @property
    def summary(self) -> str:
        """One line: how many sites, how many changed."""
        if not self.sites:
            return f"{self.model}: no activation module among {self.seen}"
        done = "patched" if self.applied else "would be patched"
        return f"{self.model}: {len(self.changed)} of {len(self.sites)} activation sites {done}"

    def lines(self) -> list[str]:
        """The table below the summary, a line a group of like sites, changed ones first."""
        groups = Counter(site.group for site in (*self.changed, *self.unchanged))
        rows = [(f"{count} ×", *group) for group, count in groups.items()]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
        lines = [
            f"  {row[0]:>{widths[0]}} {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]}".rstrip() for row in rows
        ]
        return lines + [f"  config: {line}" for line in self.config]

    def __str__(self) -> str:
        return "\n".join([self.summary, *self.lines()])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data; an infinite bound becomes None beside ``equivalence``, so that it is valid JSON."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        for site in data["sites"]:
            site["bound"] = None if site["bound"] == float("inf") else site["bound"]
        return data


class PatchedActivation(nn.Module):
    """Stands at a patched site in the stead of the original, which it keeps, out of sight of ``modules()``.

    It has no state of its own: hooks live in the original's own dictionaries, so that handles taken before and after
    patching go on working, and a deep copy or a pickle of the model carries all that ``unpatch`` needs.

    Attributes:
        original: the module it replaces.
        function: what it computes.
        site: the report's entry on it.
        config_changes: the config entries that follow this patch; the same list at all sites of one patch.
    """

    original: nn.Module
    function: Callable[[Tensor], Tensor]

    def __init__(
        self,
        original: nn.Module,
        function: Callable[[Tensor], Tensor],
        site: Site,
        config_changes: list[ConfigChange],
    ) -> None:
        super().__init__()
        object.__setattr__(self, "original", original)  # past nn.Module's own, which would make it a child
        self.function = function
        self.site = site
        self.config_changes = config_changes
        self.training = original.training
        for name in _HOOK_ATTRIBUTES & vars(original).keys():
            object.__setattr__(self, name, vars(original)[name])
        _carry_accelerate_hook(original, self)

    def forward(self, input: Tensor) -> Tensor:
        return self.function(input)

    def extra_repr(self) -> str:
        return f"{self.site.target}, implementation={self.site.implementation}, was {type(self.original).__name__}"

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


@dataclass(frozen=True)
class Edge:
    """A module as one attribute of its owner: what is replaced."""

    path: str
    owner: nn.Module
    key: str


@dataclass(frozen=True)
class Plan:
    """A site with the live objects a patch needs: the module, every edge that leads to it, and what takes its place
    (None where it is left alone)."""

    site: Site
    module: nn.Module
    edges: tuple[Edge, ...]
    function: Callable[[Tensor], Tensor] | None


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
    return f"{sum(counts.values())} modules: {', '.join(shown)}{', …' if len(counts) > 8 else ''}"


def find_sites(
    model: nn.Module,
    *,
    implementation: str = "auto",
    activation: str | None = None,
    include: Selector = None,
    exclude: Selector = None,
) -> Report:
    """What ``patch`` with the same arguments would do, without doing it: every site, and every reason to leave one
    alone. An empty report says what the model is made of instead.

    Raises:
        As ``patch`` does, but for a model without sites.
    """
    plans = plan(model, implementation, activation, include, exclude)
    return Report(type(model).__name__, tuple(p.site for p in plans), applied=False, seen=describe_modules(model))


def plan(
    model: nn.Module, implementation: str, activation: str | None, include: Selector, exclude: Selector
) -> tuple[Plan, ...]:
    """One ``Plan`` for each distinct activation module below ``model``, in the order of its modules.

    Raises:
        PatchError: see ``patch``.
    """
    if not isinstance(model, nn.Module):
        remedy = " Give it the pipeline's .model." if isinstance(getattr(model, "model", None), nn.Module) else ""
        raise PatchError(f"a torch.nn.Module is patched; got {type(model).__name__}.{remedy}")
    if implementation != "auto":
        get_implementation(implementation)
    target = None if activation is None else get_activation(activation)
    if target is not None and target.learned:
        raise PatchError(f"{activation} has learned parameters, which a swap cannot invent: choose another activation.")

    found: dict[int, tuple[nn.Module, Resolved | Unresolved, list[Edge]]] = {}
    for edge, child in walk(model):
        if isinstance(child, PatchedActivation):
            raise AlreadyPatchedError(f"{edge.path} is patched already: unpatch(model) before patching it anew.")
        if id(child) in found:
            found[id(child)][2].append(edge)
        elif (current := resolve(child)) is not None:
            found[id(child)] = (child, current, [edge])

    selection = _Selection(include, exclude)
    plans = tuple(
        _plan_site(model, module, current, tuple(edges), implementation, target, selection)
        for module, current, edges in found.values()
    )
    selection.check_used(p.site.path for p in plans)
    return plans


def _plan_site(
    model: nn.Module,
    module: nn.Module,
    current: Resolved | Unresolved,
    edges: tuple[Edge, ...],
    implementation: str,
    swap_to: Activation | None,
    selection: _Selection,
) -> Plan:
    device, dtype = _device_and_dtype(model, edges[0])
    site = Site(
        path=edges[0].path,
        paths=tuple(edge.path for edge in edges),
        owner=type(edges[0].owner).__name__,
        module=type(module).__name__,
        kind="pointwise",
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        activation=current.spelling if isinstance(current, Resolved) else "unknown",
        target=None,
        implementation=None,
        equivalence=None,
        bound=None,
        reason="",
    )

    def left(reason: str) -> Plan:
        return Plan(replace(site, reason=reason), module, edges, None)

    unselected = selection.why_not(site, module, edges, current)
    if isinstance(current, Unresolved):
        return left(current.reason)
    if unselected:
        return left(unselected)
    source = current.activation
    target = source if swap_to is None else swap_to
    if source.learned:
        return left(f"{source.name} has learned parameters")
    for edge in edges:
        if isinstance(edge.owner, nn.TransformerEncoderLayer):
            return left("torch's TransformerEncoderLayer goes around its activation module in inference")
    if target != source and getattr(module, "inplace", False):
        return left("it works in place, and what stands behind it may count on that")
    if target != source and not source.hidden and selection.include is None:
        return left(f"{source.name} is no hidden-layer activation: name it in include to swap it")
    if implementation != "auto" and (obstacle := get_implementation(implementation).obstacle(device, dtype)):
        able = [name for name, other in IMPLEMENTATIONS.items() if other.obstacle(device, dtype) is None]
        raise ImplementationUnavailableError(
            f"implementation {implementation!r} cannot run at {site.path}: {obstacle}. "
            f"What can, on {device.type} in {site.dtype}: {', '.join(able)}."
        )
    chosen, reason = choose(implementation, site.kind, current, target)
    if chosen is None:
        return left(reason)
    taken = IMPLEMENTATIONS[chosen]
    equivalence, bound = _equivalence(source, target, identical=target.name in taken.identical)
    site = replace(
        site, target=target.label, implementation=chosen, equivalence=equivalence, bound=bound, reason=reason
    )
    return Plan(site, module, edges, taken.build(target))


def _equivalence(source: Activation, target: Activation, *, identical: bool) -> tuple[str, float]:
    if source == target:
        return ("identical" if identical else "rounding"), 0.0
    kin = {source.name, source.approximates} & {target.name, target.approximates} - {None}
    return ("approximate" if kin else "different"), max_difference(source, target)


_WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _device_and_dtype(model: nn.Module, edge: Edge) -> tuple[torch.device, torch.dtype]:
    """Where an activation, which has no weights, will run: as the nearest weights do, its owner's or else those of
    the nearest ancestor that has any. Offloaded weights are on meta until accelerate's hook brings them."""
    path = edge.path
    while path:
        path = path.rpartition(".")[0]
        owner = model.get_submodule(path)
        for weight in owner.parameters():
            if weight.dtype in _WEIGHT_DTYPES:
                device = _execution_device(owner) if weight.is_meta else None
                return device or weight.device, weight.dtype
    return torch.device("cpu"), torch.get_default_dtype()


def _execution_device(owner: nn.Module) -> torch.device | None:
    for module in owner.modules():
        hook = vars(module).get("_hf_hook")
        for one in getattr(hook, "hooks", (hook,)):
            if (device := getattr(one, "execution_device", None)) is not None:
                return torch.device(device)
    return None


class _Selection:
    """include and exclude, and which of their patterns have matched something."""

    def __init__(self, include: Selector, exclude: Selector) -> None:
        self.include = self._listed("include", include)
        self.exclude = self._listed("exclude", exclude) or ()
        self._used: set[str | type[nn.Module]] = set()

    @staticmethod
    def _listed(argument: str, selector: Selector) -> tuple[str | type[nn.Module], ...] | None:
        if selector is None:
            return None
        listed = (selector,) if isinstance(selector, (str, type)) else tuple(selector)
        for pattern in listed:
            if not isinstance(pattern, str) and not (isinstance(pattern, type) and issubclass(pattern, nn.Module)):
                raise PatchError(f"{argument} takes glob patterns and module classes; got {pattern!r}.")
        return listed

    def why_not(
        self, site: Site, module: nn.Module, edges: tuple[Edge, ...], current: Resolved | Unresolved
    ) -> str | None:
        """Why a site is not selected, or None where it is."""
        names = [*site.paths, site.module, site.activation, *(type(edge.owner).__name__ for edge in edges)]
        if isinstance(current, Resolved):
            names.append(current.activation.name)
        objects = (module, *(edge.owner for edge in edges))

        def matching(patterns: tuple[str | type[nn.Module], ...]) -> list[str | type[nn.Module]]:
            return [
                pattern
                for pattern in patterns
                if (
                    any(fnmatchcase(name, pattern) for name in names)
                    if isinstance(pattern, str)
                    else any(isinstance(one, pattern) for one in objects)
                )
            ]

        included = None if self.include is None else matching(self.include)
        excluded = matching(self.exclude)
        self._used.update(included or (), excluded)
        if excluded:
            return f"excluded by {_named(excluded[0])}"
        return "not included" if included == [] else None

    def check_used(self, paths: Iterable[str]) -> None:
        """Raise NothingMatchedError for a pattern that matched no site."""
        for pattern in (*(self.include or ()), *self.exclude):
            if pattern not in self._used:
                shown = list(paths)
                raise NothingMatchedError(
                    f"{_named(pattern)} matches no site. A pattern is compared, as a glob, with a site's path, the "
                    f"class names of its owner and its module, and its activation ('encoder.*' is all below encoder). "
                    f"Sites: {', '.join(shown[:6]) or 'none'}{', …' if len(shown) > 6 else ''}."
                )


def _named(pattern: str | type[nn.Module]) -> str:
    return repr(pattern) if isinstance(pattern, str) else pattern.__name__
