"""Where the parts of a model go: one device, several, or the disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.options.loading import Loading

if TYPE_CHECKING:
    import torch

__all__ = ["check_device_map", "check_modules", "check_room", "named_device", "placement"]

_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
_WEIGHTS = ("*.safetensors", "*.bin")


def named_device(name: str) -> torch.device:
    """The device of a name.

    Raises:
        EvaluationError: there is none here.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EvaluationError(f"--device {name} is no device: write cpu, cuda, cuda:1 or mps.") from error
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False) or (device.index or 0) >= count:
        known = [*(f"cuda:{number}" for number in range(torch.cuda.device_count())), "cpu"]
        raise EvaluationError(f"--device {name}: there is no such device here. There are: {', '.join(known)}.")
    return device


def check_device_map(loading: Loading) -> None:
    """See that ``--device_map`` is a name that there is, or a file that can be read.

    Raises:
        EvaluationError: it is not.
    """
    if loading.device_map is not None:
        _device_map(loading.device_map)


def _device_map(named: str) -> str | dict[str, Any]:
    if named in _MAPS:
        return named
    if not named.endswith(".json"):
        raise EvaluationError(f"--device_map {named} is none of {', '.join(_MAPS)}, and no JSON file.")
    try:
        found = json.loads(Path(named).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"--device_map {named} cannot be read: {first_line(error)}") from error
    if not isinstance(found, dict) or not found or not all(isinstance(place, str | int) for place in found.values()):
        raise EvaluationError(
            f"--device_map {named} has to say where each module goes, as "
            '{"model.embed_tokens": 0, "model.layers": "cpu", "lm_head": "disk"}.'
        )
    _check_places(named, found.values())
    return found


def _check_places(named: str, places: Iterable[str | int]) -> None:
    """See that the devices of a map are here. A number is that of a GPU, or of what else torch has of the kind."""
    import torch

    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    for place in dict.fromkeys(places):
        try:
            device = None if place == "disk" else torch.device(f"cuda:{place}" if str(place).isdecimal() else place)
        except RuntimeError:
            raise EvaluationError(
                f"--device_map {named} names {place!r}, which is no device: write a GPU's number, cpu or disk."
            ) from None
        if device is not None and device.type not in ("cpu", "meta") and (device.index or 0) >= count:
            known = ", ".join([*map(str, range(count)), "cpu", "disk"])
            raise EvaluationError(
                f"--device_map {named} names {place!r}, and there is no such device here. There are: {known}."
            )


def placement(loading: Loading, processes: int = 1) -> dict[str, Any]:
    """What ``from_pretrained`` is told of it.

    Args:
        loading: what was asked for.
        processes: how many there are.

    Raises:
        EvaluationError: a map cannot be read, or each of several processes would spread its model over all GPUs.
    """
    if processes > 1 and ":" in (loading.device or ""):
        raise EvaluationError(
            f"--device {loading.device} is one device, and there are {processes} processes: write --device cuda, which "
            "gives each its own."
        )
    if loading.device_map is None:
        return {}
    import torch

    if processes > 1 and torch.cuda.is_available():
        raise EvaluationError(
            f"--device_map spreads a model over the GPUs, and each of {processes} processes would: start one."
        )
    found: dict[str, Any] = {"device_map": _device_map(loading.device_map)}
    if loading.max_memory is not None:
        found["max_memory"] = loading.max_memory
    if loading.offload_folder is not None:  # each process writes to a folder of its own
        rank = os.environ.get("RANK", "0") if processes > 1 else ""
        found["offload_folder"] = str(Path(loading.offload_folder).expanduser() / rank)
    return found


def check_modules(device_map: object, modules: Iterable[str], place: str) -> None:
    """See that each key of a map is a module's path, or a parameter's.

    Raises:
        EvaluationError: it is not.
    """
    if not isinstance(device_map, dict):
        return
    known = set(modules)
    if unknown := [key for key in device_map if key not in known]:
        tops = sorted({name for name in known if name and name.count(".") <= 1})
        raise EvaluationError(
            f"--device_map names {', '.join(unknown[:3])}, and {place} has no such module. It has: "
            f"{', '.join(tops[:12])}{', …' if len(tops) > 12 else ''}."
        )


def check_room(place: str, loading: Loading, device: torch.device) -> None:
    """See that the weights in a folder take no more memory than there is, where all of them are to be held as they
    are: the system would kill the process without a word.

    Raises:
        EvaluationError: they do.
    """
    folder = Path(place)
    if loading.device_map or loading.quantization or loading.tp_plan or device.type == "mps" or not folder.is_dir():
        return
    sizes = [sum(file.stat().st_size for file in folder.glob(pattern)) for pattern in _WEIGHTS]
    needed = next((size for size in sizes if size), 0)  # where there are both, one of them is loaded
    if needed > (free := _available(device)):
        raise EvaluationError(
            f"{place} does not fit: its weights take {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free on "
            f"{device}. Spread them with --device_map auto, which puts on the disk what nothing else has room for; or "
            "take --quantization bitsandbytes-4bit, or --dtype bfloat16 of a checkpoint that is smaller so."
        )


def _available(device: torch.device) -> int:
    """Bytes: of the CPU's memory, also those that the system keeps files in."""
    import psutil
    import torch

    return int(torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available)
