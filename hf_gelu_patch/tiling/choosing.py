"""Which methods of a model run in tiles: around each activation, the outermost one that treats each token by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import FunctionType

from torch import nn

from hf_gelu_patch.errors import PatchError
from hf_gelu_patch.forwards.class_binding import written_attribute
from hf_gelu_patch.forwards.rewriting import Rewriting, as_written
from hf_gelu_patch.sources import all_names, faithful_source_of, undecorated
from hf_gelu_patch.tiling.judging import judge
from hf_gelu_patch.tiling.running import Amount, Tiles
from hf_gelu_patch.tiling.verdicts import Verdict

__all__ = ["Tiled", "Tiling", "tilings"]


@dataclass(frozen=True)
class Tiled:
    """A method that runs in tiles; or a module that applies an activation in none, with the reason.

    Attributes:
        path: the qualified name of the module.
        owner: its class name.
        method: the method; "" where none runs in tiles.
        tiles: how many, as it was asked for; None where none runs in tiles.
        bytes_per_token: of all tensors that it makes for one token in forward, in the dtype of the weights; 0 where it
            does not run in tiles.
        draws: whether it draws random numbers, which in tiles are others.
        reason: why it runs in tiles, or why it does not.
    """

    path: str
    owner: str
    method: str
    tiles: str | None
    bytes_per_token: int
    draws: bool
    reason: str

    @property
    def group(self) -> tuple[str, str]:
        """What the entries of one line of the report have in common."""
        if self.tiles is None:
            return self.owner, f"not in tiles: {self.reason}"
        drawn = "; its dropout draws other numbers than untiled" if self.draws else ""
        return f"{self.owner}.{self.method}", f"{self.tiles}, rounding; {self.reason}{drawn}"


@dataclass(frozen=True)
class Tiling:
    """An entry of the report with what a patch needs.

    Attributes:
        told: the entry.
        module: the live module.
        tiles: what is called in the method's place; None where nothing is.
        inside: the names of the modules that run in the tiles and apply an activation.
    """

    told: Tiled
    module: nn.Module
    tiles: Tiles | None
    inside: frozenset[str] = frozenset()

    def around(self, rewritings: tuple[Rewriting, ...]) -> tuple[Rewriting, ...]:
        """The module's rewritten methods, with this one among them, called in tiles."""
        name = self.told.method
        others = tuple(one for one in rewritings if one.method != name)
        own = next((one for one in rewritings if one.method == name), None) or self._as_written()
        return (*others, replace(own, around=self.tiles))

    def _as_written(self) -> Rewriting:
        function = written_attribute(type(self.module), self.told.method)
        source = faithful_source_of(function)
        assert source is not None
        return as_written(self.told.method, function, source)


def tilings(model: nn.Module, owners: Mapping[str, str | None], amount: Amount) -> tuple[Tiling, ...]:
    """What is done about each module that applies an activation.

    Args:
        model: the model, not patched.
        owners: by the names of those modules, why the user wants them left alone; None where that is not so.
        amount: how many tiles.

    Raises:
        PatchError: the amount is less than one token takes.
    """
    chosen: dict[tuple[str, str], Verdict] = {}
    verdicts: _Verdicts = {}
    left: dict[str, str] = {}
    for path, spared in owners.items():
        if spared is not None:
            left[path] = spared
        elif not any(_covers(where, verdict, path) for (where, _), verdict in chosen.items()):
            found, why = _outermost(model, path, owners, verdicts)
            if found is None:
                left[path] = why
            else:
                chosen[found[:2]] = found[2]
    entries = [
        replace(
            _in_tiles(model, path, method, verdict, amount),
            inside=frozenset(other for other in owners if _covers(path, verdict, other)),
        )
        for (path, method), verdict in chosen.items()
    ]
    return (*entries, *(_left_alone(model, path, why) for path, why in left.items()))


def _outermost(
    model: nn.Module, path: str, owners: Mapping[str, str | None], verdicts: _Verdicts
) -> tuple[tuple[str, str, Verdict] | None, str]:
    """(module, method, verdict) of what runs in tiles for the module ``path``; None, and why nothing does."""
    found, reasons = None, ["it has no method of its own"]
    for above in _upwards(path):
        if above not in verdicts:
            verdicts[above] = tuple(_verdicts_on(model.get_submodule(above)))
        for method, verdict in verdicts[above]:
            why = _why_not(verdict, above, path, owners)
            if why is None:
                found = above, method, verdict
                break
            if above == path:
                reasons.append(why)
    return found, reasons[min(1, len(reasons) - 1)]


def _upwards(path: str) -> Iterator[str]:
    """A module's name, and those of the modules around it, innermost first."""
    yield path
    while path:
        path = path.rpartition(".")[0]
        yield path


_Verdicts = dict[str, tuple[tuple[str, Verdict], ...]]
"""By the names of modules, what ``_verdicts_on`` says of them."""


def _verdicts_on(module: nn.Module) -> Iterator[tuple[str, Verdict]]:
    """(name, verdict) of a module's forward, and of the methods that it mentions."""
    forward = written_attribute(type(module), "forward")
    if not isinstance(forward, FunctionType):
        return
    yield "forward", judge(module, "forward", at_rest=True)
    for name in sorted(all_names(undecorated(forward, "forward")[0].__code__)):
        if isinstance(written_attribute(type(module), name), FunctionType):
            yield name, judge(module, name, at_rest=True)


def _covers(where: str, verdict: Verdict, path: str) -> bool:
    """Whether a method of the module ``where`` runs the module ``path``."""
    if path == where or not where:
        return path in verdict.paths or path == where
    return path.startswith(f"{where}.") and path[len(where) + 1 :] in verdict.paths


def _why_not(verdict: Verdict, above: str, path: str, owners: Mapping[str, str | None]) -> str | None:
    """Why a method of the module ``above`` does not run in tiles for the sake of the module ``path``, or None."""
    if verdict.reason is not None:
        return verdict.reason
    if not _covers(above, verdict, path):
        return "it does not run the activation"
    if any(spared is not None and _covers(above, verdict, other) for other, spared in owners.items()):
        return "another activation in it is to be left alone"
    if verdict.widest <= verdict.ends:
        return "nothing in it is wider than its input or its output, so tiles would save nothing"
    return None


def _in_tiles(model: nn.Module, path: str, method: str, verdict: Verdict, amount: Amount) -> Tiling:
    module = model.get_submodule(path)
    itemsize = max((weight.element_size() for weight in module.parameters() if weight.is_floating_point()), default=4)
    each = verdict.numbers * itemsize
    name = type(module).__name__
    if amount.size is not None and amount.size < each:
        raise PatchError(
            f"{amount}: one token takes {each:,} bytes in {name}.{method} ({path or 'the model itself'}). Give the "
            f"size of some hundred tokens at least: '{max(1, round(1024 * each / 2**20))}MiB'."
        )
    reason = "each token by itself, computed again in backward"
    told = Tiled(path, name, method, str(amount), each, verdict.draws, reason)
    return Tiling(told, module, Tiles(method, amount))


def _left_alone(model: nn.Module, path: str, why: str) -> Tiling:
    module = model.get_submodule(path)
    return Tiling(Tiled(path, type(module).__name__, "", None, 0, False, why), module, None)
