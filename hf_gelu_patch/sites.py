"""Where a model applies activations, what a patch would do at each place, and every reason to leave one alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from hf_gelu_patch.activations import Activation, Resolved, Unresolved, get_activation, max_difference
from hf_gelu_patch.errors import (
    AlreadyPatchedError,
    ImplementationUnavailableError,
    NothingMatchedError,
    PatchError,
)
from hf_gelu_patch.forwards.binding import is_patched
from hf_gelu_patch.forwards.replacements import hooked, plain
from hf_gelu_patch.forwards.uses import Use, holds_activation, methods_of, uses
from hf_gelu_patch.implementations.measured import measured_on
from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS, Fused, Implementation, choose, get_implementation
from hf_gelu_patch.recognition import looks_like_activation, resolve
from hf_gelu_patch.verification import Drift

__all__ = [
    "ConfigChange",
    "Edge",
    "Place",
    "Plan",
    "Report",
    "Selector",
    "Site",
    "find_sites",
    "places",
    "plan",
    "walk",
]

Selector = str | type[nn.Module] | Iterable[str | type[nn.Module]] | None
"""Which sites: glob patterns on a site's path, the class name of its owner or its module, or its activation; or
classes of either. One, or several of which any may match."""


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

    @property
    def changed(self) -> bool:
        return self.implementation is not None

    @property
    def group(self) -> tuple[str, ...]:
        """What the sites of one line of the report have in common."""
        name = f"{self.owner}.{self.path.rpartition('.')[2]}"
        if not self.changed:
            return (name, self.kind, self.activation, f"left alone: {self.reason}")
        equivalence = str(self.equivalence)
        if self.equivalence in ("approximate", "different"):
            equivalence += " (unbounded)" if self.bound == float("inf") else f" (|Δ| ≤ {self.bound:.3g})"
        return (
            name,
            self.kind,
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
    drift: tuple[Drift, ...] = ()
    unverified: tuple[str, ...] = ()

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
            return f"{self.model}: no activation among {self.seen}"
        done = "patched" if self.applied else "would be patched"
        return f"{self.model}: {len(self.changed)} of {len(self.sites)} activation sites {done}"

    def lines(self) -> list[str]:
        """The table below the summary, a line a group of like sites, changed ones first."""
        groups = Counter(site.group for site in (*self.changed, *self.unchanged))
        rows = [(f"{count} ×", *group) for group, count in groups.items()]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
        lines = [
            f"  {row[0]:>{widths[0]}} {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]:<{widths[3]}}  {row[4]}"
            for row in rows
        ]
        lines += [f"  config: {line}" for line in self.config] + [f"  verified: {one}" for one in self.drift]
        return lines + [f"  not verified: {one}" for one in self.unverified]

    def __str__(self) -> str:
        return "\n".join([self.summary, *self.lines()])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data; an infinite bound becomes None beside ``equivalence``, so that it is valid JSON."""
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        for part in (*data["sites"], *data["drift"]):
            part.update((key, None) for key, value in part.items() if value == float("inf"))
        return data


@dataclass(frozen=True)
class Edge:
    """A module as one attribute of its owner: what is replaced."""

    path: str
    owner: nn.Module
    key: str


@dataclass(frozen=True)
class Plan:
    """A site with the live objects a patch needs.

    Attributes:
        site: the report's entry.
        edge: the attribute that holds the activation module; None for a call.
        use: where the owner's source applies it; None where it does not say.
        fused: what takes its place; None where it is left alone.
    """

    site: Site
    edge: Edge | None
    use: Use | None
    fused: Fused | None

    @property
    def swaps(self) -> bool:
        """Whether another function takes the place of the site's own."""
        return self.site.equivalence in ("approximate", "different")

    @property
    def module(self) -> nn.Module | None:
        """The activation module; None for a call."""
        return None if self.edge is None else self.edge.owner._modules[self.edge.key]


def check_module(model: object) -> None:
    """Raises PatchError for what is no module."""
    if not isinstance(model, nn.Module):
        remedy = " Give it the pipeline's .model." if isinstance(getattr(model, "model", None), nn.Module) else ""
        raise PatchError(f"only a torch.nn.Module can be patched; got {type(model).__name__}.{remedy}")


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
    """One ``Plan`` for each place below ``model`` that applies an activation, in the order of its modules.

    Raises:
        PatchError: see ``patch``.
    """
    check_module(model)
    asked = None if implementation == "auto" else get_implementation(implementation)
    target = None if activation is None else get_activation(activation)
    if target is not None and target.learned:
        raise PatchError(f"{activation} has learned parameters, which a swap cannot invent: choose another activation.")
    selection = _Selection(include, exclude)
    wanted = _Wanted(asked, target, selection)
    plans = tuple(_plan_place(place, wanted, _device_and_dtype(model, place.path)) for place in places(model))
    selection.check_used(p.site.path for p in plans)
    return plans


@dataclass(frozen=True)
class _Wanted:
    implementation: Implementation | None  # None: auto
    target: Activation | None  # None: what each site computes
    selection: _Selection


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


def _plan_place(place: Place, wanted: _Wanted, where: tuple[torch.device, torch.dtype]) -> Plan:
    edge, use, current = place.edge, place.use, place.current
    module = None if edge is None else edge.owner._modules[edge.key]
    device, dtype = where
    site = Site(
        path=place.name,
        owner_path=place.path,
        owner=type(place.owner).__name__,
        module=use.text if module is None and use is not None else type(module).__name__,
        written=module is None,
        file="" if use is None else use.file,
        line=0 if use is None else use.expression.line,
        end_line=0 if use is None else use.expression.end_line,
        kind="pointwise" if use is None else use.kind,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        activation=current.spelling,
        target=None,
        implementation=None,
        fused=False,
        equivalence=None,
        bound=None,
        reason="",
    )

    def left(reason: str) -> Plan:
        return Plan(replace(site, reason=reason), edge, use, None)

    unselected = wanted.selection.why_not(site, module, place.owner, current)
    if isinstance(current, Unresolved):
        return left(current.reason)
    if unselected:
        return left(unselected)
    source = current.activation
    target = source if wanted.target is None else wanted.target
    if source.learned:
        return left(f"{source.name} has learned parameters")
    if isinstance(place.owner, nn.TransformerEncoderLayer):
        return left("torch's TransformerEncoderLayer goes around its activation module in inference")
    if target != source and not source.hidden and wanted.selection.include is None:
        return left(f"{source.name} is no hidden-layer activation: name it in include to swap it")
    if current.in_place:
        return left("it works in place, and what stands behind it may count on that")
    if use is not None and use.overruled:
        return left(f"another {use.method} is bound on this {site.owner}")
    asked = wanted.implementation
    if asked is not None and (obstacle := asked.obstacle(device, dtype)):
        able = [name for name, other in IMPLEMENTATIONS.items() if other.obstacle(device, dtype) is None]
        raise ImplementationUnavailableError(
            f"implementation {asked.name!r} cannot run at {site.path}: {obstacle}. "
            f"What can, on {device.type} in {site.dtype}: {', '.join(able)}."
        )
    name = "auto" if asked is None else asked.name
    unfused = _why_not_fused(site.kind, module, use)
    kind = "pointwise" if unfused else site.kind
    chosen, reason = choose(name, kind, current, target, dtype, measured_on(device) if name == "auto" else None)
    if unfused:
        reason += f"; not fused: {unfused}"
    if chosen is None or (edge is None and use is not None and use.obstacle):
        return left(reason)
    taken = IMPLEMENTATIONS[chosen]
    identical = target.name in taken.identical and current.as_eager
    equivalence, bound = _equivalence(source, target, identical=identical)
    site = replace(
        site,
        target=target.label,
        implementation=chosen,
        fused=not unfused and taken.fuses(site.kind, target),
        equivalence=equivalence,
        bound=bound,
        reason=reason,
    )
    return Plan(site, edge, use, taken.build(target, current.formula if target == source else None))


def _why_not_fused(kind: str, module: nn.Module | None, use: Use | None) -> str | None:
    """Why what surrounds an activation stays apart from it, or None where it can be fused."""
    if use is None or (kind == "pointwise" and use.edge is not None):
        return None
    if use.obstacle:
        return use.obstacle
    if kind == "gated" and use.exposed:
        return "what stands between it and its product may write over its input"
    if module is not None and hooked(module):
        return "its hooks must run"
    if kind == "linear" and (linear := use.linear) is not None and not plain(linear):
        return "its linear layer is hooked, wrapped or holds no plain weights"
    return None


def _equivalence(source: Activation, target: Activation, *, identical: bool) -> tuple[str, float]:
    if source == target:
        return ("identical" if identical else "rounding"), 0.0
    kin = {source.name, source.approximates} & {target.name, target.approximates} - {None}
    return ("approximate" if kin else "different"), max_difference(source, target)


_WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _device_and_dtype(model: nn.Module, path: str) -> tuple[torch.device, torch.dtype]:
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
        if isinstance(selector, (str, type)) or not isinstance(selector, Iterable):
            selector = (selector,)
        listed = tuple(selector)
        for pattern in listed:
            if not isinstance(pattern, str) and not (isinstance(pattern, type) and issubclass(pattern, nn.Module)):
                raise PatchError(f"{argument} takes glob patterns and module classes; got {pattern!r}.")
        return listed

    def why_not(
        self, site: Site, module: nn.Module | None, owner: nn.Module, current: Resolved | Unresolved
    ) -> str | None:
        """Why a site is not selected, or None where it is."""
        names = [site.path, site.module, site.activation, site.owner]
        if isinstance(current, Resolved):
            names.append(current.activation.name)
        objects = (module, owner)

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
