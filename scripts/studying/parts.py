"""The pieces of the study, each written down as soon as it is known: a study that is killed loses the pieces that it
was at."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_gelu_patch.evaluation.json_values import as_json
from scripts.studying import costs, counting, functions, models, second_order, training
from scripts.studying.sizes import Sizes

__all__ = ["Part", "missing", "parts", "put_together", "run"]

_FOLDER = "parts"


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


def missing(folder: Path, sizes: Sizes) -> tuple[Part, ...]:
    """Those that are not written down yet."""
    return tuple(part for part in parts(sizes) if not _place(folder, part.name).is_file())


def run(folder: Path, sizes: Sizes, processes: int) -> Iterator[str]:
    """Find out what is missing, some pieces side by side, each with one thread, and what is timed by itself at the end;
    tell of each as it is there."""
    (folder / _FOLDER).mkdir(parents=True, exist_ok=True)
    left = missing(folder, sizes)
    if processes == 1:
        yield from (_find(folder, part) for part in left)
        return
    together, alone = ([part for part in left if part.alone is one] for one in (False, True))
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(_find, folder, part) for part in together]
        try:
            for one in as_completed(running):
                yield one.result()
        finally:
            pool.shutdown(cancel_futures=True)
    yield from (_find(folder, part) for part in alone)


def _find(folder: Path, part: Part) -> str:
    torch.set_num_threads(1)
    began = time.monotonic()
    found = as_json(part.find())
    seconds = time.monotonic() - began
    place = _place(folder, part.name)
    unfinished = place.with_suffix(f".{os.getpid()}")
    text = json.dumps({"claim": part.claim, "seconds": round(seconds, 1), "found": found}, allow_nan=False)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(place)
    return f"{part.name}: {seconds:.0f} s"


def put_together(folder: Path, sizes: Sizes, about: Mapping[str, Any]) -> dict[str, Any]:
    """The record of the whole study."""
    read = {part.name: json.loads(_place(folder, part.name).read_text(encoding="utf-8")) for part in parts(sizes)}
    return {"environment": dict(about), "sizes": asdict(sizes), "parts": read}


def _place(folder: Path, name: str) -> Path:
    return folder / _FOLDER / f"{name}.json"
