"""Saved decisions: a JSON file that says what a patch did at each site, for the very model, versions and machine."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from hf_gelu_patch.errors import PatchError, first_line, shortened
from hf_gelu_patch.implementations.registry import ALWAYS, IMPLEMENTATIONS, Least
from hf_gelu_patch.sites import Site

__all__ = ["SCHEMA", "Decision", "Origin", "Saved", "read", "shapes", "write"]

SCHEMA = 2
"""Of the file. It grows when an older reader would misread a newer file."""

_SHOWN = 12  # weights of a module whose shapes are listed; of more there is a digest
_REMEDY = "Tune again on this one with patch(model, tune=batch), and save that report."


def shapes(module: nn.Module) -> str:
    """The shapes of a module's weights, as text: ``weight 3072×768, bias 3072``."""
    listed = [f"{name} {_shape(weight)}" for name, weight in module.named_parameters()]
    if len(listed) <= _SHOWN:
        return ", ".join(listed)
    digest = hashlib.sha256("\n".join(listed).encode()).hexdigest()[:16]
    return f"{', '.join(listed[:_SHOWN])}, … ({len(listed)} in all, sha256 {digest})"


def _shape(weight: torch.Tensor) -> str:
    if is_lazy(weight):
        return "not made yet"
    return "×".join(map(str, weight.shape)) or "scalar"


# -------------------------------------------------------------------------------------------------------------- origin


@dataclass(frozen=True)
class Origin:
    """What a decision holds for, beside the sites.

    Attributes:
        versions: of torch, transformers and this package.
        machine: the CPU, what torch takes of it, the threads, and the GPUs that the model is on, by name.
        weights: the shapes of the weights around each site.
        activation: the function that was asked for in a swap; None where each site keeps its own.
    """

    versions: Mapping[str, str]
    machine: Mapping[str, str]
    weights: tuple[str, ...]
    activation: str | None = None

    @classmethod
    def of(cls, model: nn.Module, sites: Sequence[Site], activation: str | None) -> Origin:
        """That of a model, here and now."""
        owners = {path: shapes(model.get_submodule(path)) for path in {site.owner_path for site in sites}}
        weights = tuple(owners[site.owner_path] for site in sites)
        return cls(_versions(), _machine({site.device for site in sites}), weights, activation)


def _versions() -> dict[str, str]:
    return {name: _version(name) for name in ("torch", "transformers", "hf-gelu-patch")}


def _version(name: str) -> str:
    if name == "torch":
        return str(torch.__version__)
    loaded = getattr(sys.modules.get(name.replace("-", "_")), "__version__", None)
    return str(loaded) if loaded else _installed(name)


@functools.lru_cache(maxsize=8)
def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _machine(devices: set[str]) -> dict[str, str]:
    gpus = sorted({torch.cuda.get_device_name(one) for one in devices if one.startswith("cuda")})
    others = sorted({one.partition(":")[0] for one in devices if not one.startswith(("cpu", "cuda"))})
    return {
        "cpu": _cpu(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "devices": ", ".join([*gpus, *others]) or "none but the CPU",
    }


@functools.lru_cache(maxsize=1)
def _cpu() -> str:
    """The CPU's name. Virtual machines hide it, so its family, model and stepping too."""
    told: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else ():
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), value.strip())
    numbers = [f"{key} {told[key]}" for key in ("cpu family", "model", "stepping") if key in told]
    name = told.get("model name") or platform.processor() or platform.machine()
    return ", ".join([name, *numbers])


# --------------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class Decision:
    """What is done at a site.

    Attributes:
        implementation: the name; None: it is left alone.
        target: the function, as the report names it.
        fused, equivalence, reason, least: as in ``Site``.
    """

    implementation: str | None
    target: str | None
    fused: bool
    equivalence: str | None
    reason: str
    least: Least


_DECISION: dict[str, tuple[type, ...]] = {
    "implementation": (str, type(None)),
    "target": (str, type(None)),
    "fused": (bool,),
    "equivalence": (str, type(None)),
    "reason": (str,),
}
_LEAST = "least"
_SITE = ("path", "owner", "module", "kind", "activation", "device", "dtype")  # that a site is known by


@dataclass(frozen=True)
class Saved:
    """What a file says.

    Attributes:
        path: the file.
        model: the model's class.
        origin: what the decisions hold for.
        sites: what each site is known by, in the model's order.
        decisions: of each.
        recompute: whether backward keeps no more than it has to.
    """

    path: Path
    model: str
    origin: Origin
    sites: tuple[Mapping[str, str], ...]
    decisions: tuple[Decision, ...]
    recompute: bool = False

    def check(self, model: nn.Module, sites: Sequence[Site]) -> None:
        """Compare what the decisions hold for with a model, its sites as they are found in it, and this machine.

        Raises:
            PatchError: they hold for something else; it names every difference.
        """
        here = Origin.of(model, sites, None)
        name = type(model).__name__
        differences = [f"the model was {self.model}, here it is {name}"] if name != self.model else []
        for then, now in ((self.origin.versions, here.versions), (self.origin.machine, here.machine)):
            named = dict.fromkeys([*then, *now])
            differences += [
                f"{key} was {then.get(key)}, here it is {now.get(key)}"
                for key in named
                if then.get(key) != now.get(key)
            ]
        differences += self._differing_sites(sites, here)
        if differences:
            raise PatchError(f"the plan in {self.path} is for something else: {shortened(differences, 12)}. {_REMEDY}")

    def _differing_sites(self, sites: Sequence[Site], here: Origin) -> Iterator[str]:
        if len(sites) != len(self.sites):
            yield f"there were {len(self.sites)} sites, here there are {len(sites)}"
            return
        told: set[tuple[str, str, str]] = set()  # the same difference at every layer is one
        for then, weights, site, shaped in zip(self.sites, self.origin.weights, sites, here.weights, strict=True):
            for key, before, now in (
                *((key, then[key], _known_by(site)[key]) for key in _SITE),
                ("weights", weights, shaped),
            ):
                if before != now and (key, before, now) not in told:
                    told.add((key, before, now))
                    yield f"the {key} of {then['path']} was {before or 'none'}, here it is {now or 'none'}"


def _known_by(site: Site) -> dict[str, str]:
    known = {key: str(getattr(site, key)) for key in _SITE}
    return {**known, "device": site.device.partition(":")[0]}


def write(path: str | os.PathLike[str], report: Mapping[str, Any], sites: Sequence[Site], origin: Origin) -> None:
    """Save decisions.

    Args:
        path: the file, which is replaced.
        report: ``model``, and whatever else is to be kept with them.
        sites: what was decided, in the model's order.
        origin: what it holds for.

    Raises:
        PatchError: an implementation is not registered, so that no other process could find it; or the file cannot be
            written.
    """
    unknown = {str(site.implementation) for site in sites if site.changed} - IMPLEMENTATIONS.keys()
    if unknown:
        raise PatchError(
            f"the implementation {sorted(unknown)[0]!r} is not registered, so who loads the plan could not find it: "
            "register_implementation(it) before the patch, and wherever the plan is loaded."
        )
    entries = [
        {
            **_known_by(site),
            "weights": weights,
            **{key: getattr(site, key) for key in _DECISION},
            _LEAST: asdict(site.least),
        }
        for site, weights in zip(sites, origin.weights, strict=True)
    ]
    plan = {
        "schema": SCHEMA,
        "written_by": "hf_gelu_patch",
        **report,
        "versions": dict(origin.versions),
        "machine": dict(origin.machine),
        "swapped_to": origin.activation,
        "sites": entries,
    }
    text = json.dumps(plan, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise PatchError(f"the plan cannot be written ({first_line(error)}): name a file that can be.") from error


def read(path: str | os.PathLike[str]) -> Saved:
    """What ``write`` has written.

    Raises:
        PatchError: there is no such file, or it is something else.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise PatchError(f"plan= is the path of a file that report.save wrote; got {type(path).__name__}.")
    file = Path(os.fspath(path))
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise PatchError(f"the plan {file} cannot be read ({first_line(error)}): name a file that exists.") from error
    except (ValueError, RecursionError) as error:
        raise _broken(file, f"it is no JSON ({first_line(error)})") from error
    if not isinstance(data, dict) or data.get("written_by") != "hf_gelu_patch":
        raise _broken(file, "another program wrote it")
    if data.get("schema") != SCHEMA:
        raise PatchError(
            f"the plan {file} has schema {data.get('schema')!r}, and this version of hf_gelu_patch reads schema "
            f"{SCHEMA}. {_REMEDY}"
        )
    return _parsed(file, data)


def _broken(file: Path, why: str) -> PatchError:
    return PatchError(f"{file} is no plan that report.save wrote: {why}. {_REMEDY}")


def _parsed(file: Path, data: dict[str, Any]) -> Saved:
    def entry(of: Mapping[str, Any], key: str, kinds: tuple[type, ...], where: str) -> Any:
        if key not in of:
            raise _broken(file, f"{where} has no {key!r}")
        if type(of[key]) not in kinds:
            raise _broken(file, f"{key!r} of {where} is {json.dumps(of[key])[:40]}")
        return of[key]

    def texts(key: str) -> dict[str, str]:
        found: dict[str, str] = entry(data, key, (dict,), "the file")
        return {name: entry(found, name, (str,), key) for name in found}

    sites: list[dict[str, str]] = []
    weights: list[str] = []
    decisions: list[Decision] = []
    for number, one in enumerate(entry(data, "sites", (list,), "the file")):
        where = f"site {number}"
        if not isinstance(one, dict):
            raise _broken(file, f"{where} is no object")
        sites.append({key: entry(one, key, (str,), where) for key in _SITE})
        weights.append(entry(one, "weights", (str,), where))
        told = entry(one, _LEAST, (dict,), where)
        least = Least(*(entry(told, mode, (int, type(None)), f"{_LEAST} of {where}") for mode in asdict(ALWAYS)))
        decided = {key: entry(one, key, kinds, where) for key, kinds in _DECISION.items()}
        decisions.append(Decision(**decided, least=least))
    swapped_to = entry(data, "swapped_to", (str, type(None)), "the file")
    origin = Origin(texts("versions"), texts("machine"), tuple(weights), swapped_to)
    recompute = entry({"recompute": False, **data}, "recompute", (bool,), "the file")  # which older files do not say
    return Saved(file, entry(data, "model", (str,), "the file"), origin, tuple(sites), tuple(decisions), recompute)
