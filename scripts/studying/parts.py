"""The pieces of the study, each written down as soon as it is known: a study that is killed loses the pieces that it
was at."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_gelu_patch.evaluation.environment import environment
from hf_gelu_patch.evaluation.json_values import as_json
from scripts.studying import costs, counting, functions, models, second_order, training
from scripts.studying import sizes as sizes_
from scripts.studying.sizes import Sizes

__all__ = ["FolderError", "Part", "begin", "holds_a_study", "missing", "parts", "put_together", "run"]

_FOLDER = "parts"
_ABOUT = "about.json"
_MEASURING = (costs, counting, functions, models, second_order, sizes_, training)


class FolderError(Exception):
    """A folder that a study cannot be written into."""


@dataclass(frozen=True)
class Part:
    """A piece of the study.

    Attributes:
        name: of its file.
        claim: the number of the claim that it belongs to first.
        find: finds it out; plain data.
        alone: whether nothing else may run beside it, since it is timed.
    """

    name: str
    claim: int
    find: Callable[[], Mapping[str, Any]]
    alone: bool = False


def parts(sizes: Sizes) -> tuple[Part, ...]:
    """All of them, the long ones first."""
    found = [Part("underflow", 1, functions.underflow), Part("distances", 2, functions.distances)]
    for name in models.OTHER:
        for dtype in sizes.dtypes:
            find = partial(models.with_the_other, name, dtype, sizes)
            found.append(Part(f"other-form-{name}-{dtype}", 2, find))
        found.append(Part(f"moved-{name}", 2, partial(models.moved, name, sizes)))
        found.append(Part(f"loaded-{name}", 3, partial(models.loaded_with_the_other, name, sizes)))
    found += [Part(f"blocks-{family}", 4, partial(counting.one_type, family)) for family in sizes.families]
    if sizes.all_types:
        found.append(Part("blocks-of-all", 4, counting.all_types))
    for recipe in training.RECIPES:
        for function in training.FUNCTIONS:
            for seed in range(sizes.seeds):
                find = partial(training.trained, recipe, function, seed, sizes)
                found.append(Part(f"trained-{recipe}-{function}-{seed}", 5, find))
    found.append(Part("instructions", 7, costs.instructions))
    found.append(Part("cost-on-a-gpu", 7, costs.on_a_gpu))
    found.append(Part("cost-on-this-cpu", 7, partial(costs.on_this_cpu, sizes), alone=True))
    for function in second_order.SMOOTHNESS:
        for seed in range(sizes.seeds):
            find = partial(second_order.fitted, function, seed, sizes.second_order)
            found.append(Part(f"second-order-{function}-{seed}", 8, find))
    return tuple(found)


def holds_a_study(folder: Path) -> bool:
    """Whether something was measured into a folder."""
    return (folder / _ABOUT).exists() or (folder / _FOLDER).exists()


def begin(folder: Path, sizes: Sizes) -> None:
    """Make the folder, or see that what it holds belongs to the same study.

    Raises:
        FolderError: it holds parts of a study of another size, or of other code, or it cannot be written.
    """
    own = {
        "sizes": asdict(sizes),
        "code": hashlib.sha256(b"".join(Path(str(one.__file__)).read_bytes() for one in _MEASURING)).hexdigest()[:16],
        "versions": environment(processes=1, device="cpu", command=["python"])["versions"],
    }
    own = json.loads(json.dumps(own))  # a version of torch's own class is equal to other texts too
    try:
        if holds_a_study(folder):
            kept = _read(folder / _ABOUT) or {}
            if kept.get("sizes", own["sizes"]) != own["sizes"]:
                raise FolderError(f"{folder} holds a study of another size: name another folder.")
            if kept != own:
                raise FolderError(
                    f"{folder} holds a study by other versions of this code or of its packages, which is not mixed "
                    "with this one: name another folder, or delete that one."
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / _ABOUT, own)
        (folder / _FOLDER).mkdir(exist_ok=True)
    except OSError as error:
        raise FolderError(f"{folder} cannot be written: {error.strerror}.") from error


def missing(folder: Path, sizes: Sizes) -> tuple[Part, ...]:
    """Those that are not written down yet, or not as they were written."""
    return tuple(part for part in parts(sizes) if "found" not in (_read(_place(folder, part.name)) or {}))


def run(folder: Path, sizes: Sizes, processes: int) -> Iterator[str]:
    """Find out what is missing, some pieces side by side, each with one thread, and what is timed by itself at the end;
    tell of each as it is there."""
    left = missing(folder, sizes)
    if processes == 1:
        yield from (_find(folder, part) for part in left)
        return
    together, alone = ([part for part in left if part.alone is one] for one in (False, True))
    how = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=how, initializer=_end_with_the_parent) as pool:
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # by the parent alone, which tells what to do next
        running = [pool.submit(_find, folder, part) for part in together]
        signal.signal(signal.SIGINT, heard)
        try:
            for one in as_completed(running):
                yield one.result()
        except (GeneratorExit, KeyboardInterrupt):
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    yield from (_find(folder, part) for part in alone)


def _end_with_the_parent() -> None:
    """A worker whose parent was killed would else wait for ever."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _find(folder: Path, part: Part) -> str:
    torch.set_num_threads(1)
    began = time.monotonic()
    found = as_json(part.find())
    seconds = time.monotonic() - began
    _write(_place(folder, part.name), {"claim": part.claim, "seconds": round(seconds, 1), "found": found})
    return f"{part.name}: {seconds:.0f} s"


def _write(place: Path, what: Mapping[str, Any]) -> None:
    """All of it or nothing, even if killed."""
    unfinished = place.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(what, allow_nan=False), encoding="utf-8")
    unfinished.replace(place)


def _read(place: Path) -> dict[str, Any] | None:
    """A file that ``_write`` wrote; None where there is none, or it is damaged."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def put_together(folder: Path, sizes: Sizes, about: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the whole study."""
    read = {part.name: json.loads(_place(folder, part.name).read_text(encoding="utf-8")) for part in parts(sizes)}
    return {"environment": dict(about), "sizes": asdict(sizes), "parts": read}


def _place(folder: Path, name: str) -> Path:
    return folder / _FOLDER / f"{name}.json"
