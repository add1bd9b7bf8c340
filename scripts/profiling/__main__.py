"""Hold a profile's predictions against swaps that are made, and time it.

    python -m scripts.profiling         # some minutes on a core that others use too
    python -m scripts.profiling gpt2    # one model anew

Of each reference model and each hidden activation site, four functions are swapped in there alone. The drift of that
site's output, and of the model's, is held against what the profile of the unpatched model said. Passes with and without
a profile are timed in turns, by the CPU time that they take. What was found is written to
``scripts/profiling/profiling.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_gelu_patch import patched
from hf_gelu_patch.evaluation.environment import environment
from hf_gelu_patch.evaluation.loading.subjects import subject
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.reference import REFERENCES
from hf_gelu_patch.evaluation.run import load
from hf_gelu_patch.evaluation.tasks.base import Batch, Task
from hf_gelu_patch.profiling import Profile, watching
from hf_gelu_patch.profiling.table import SHOWN
from hf_gelu_patch.verdicts import median_ratio
from scripts.profiling.observing import observing

RECORD = Path(__file__).parent / "profiling.json"
SHOWN_MODEL = "gpt2"  # whose table is in the guide

_EXAMPLES = {
    "bert": 12,
    "gpt2": 12,
    "t5": 24,
    "vit": 48,
    "llama": 1,
}  # of which swaps are made, each a batch: no padding
_TIMED = {"bert": 64, "gpt2": 64, "t5": 128, "vit": 128, "llama": 2}  # in batches as evaluate makes them
_ROUNDS = 11
_MAX_LENGTH = {"llama": 128}  # tokens, of a model that takes a second for so many


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m scripts.profiling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=list(REFERENCES), help="the others stay as they are recorded")
    options = parser.parse_args()
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    about = environment(processes=1, device="cpu", command=["python", "-m", "scripts.profiling"])
    del about["git"]
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {"models": {}}
    found["environment"] = about
    for name in options.models:
        print(name, flush=True)
        found["models"][name] = {
            "swaps": _swaps(name, accelerator, _EXAMPLES[name]),
            "time": _time(name, accelerator, _TIMED[name]),
        }
        _write(found)
    model, task, batches = _loaded(SHOWN_MODEL, accelerator, 64, None)
    found["shown"] = {"name": SHOWN_MODEL, "examples": 64, **_profile(model, task, batches).to_dict()}
    _write(found)


def _write(found: dict[str, Any]) -> None:
    RECORD.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _loaded(
    name: str, accelerator: Accelerator, limit: int, batch_size: int | None
) -> tuple[nn.Module, Task, list[Batch]]:
    model, task, _ = load(subject(name, **_cut(name)), Settings(limit=limit), accelerator)
    return model, task, list(task.batches(batch_size or task.batch_size()))


def _cut(name: str) -> dict[str, Any]:
    return {"max_length": _MAX_LENGTH[name]} if name in _MAX_LENGTH else {}


def _profile(model: Any, task: Task, batches: Sequence[Batch]) -> Profile:
    with torch.inference_mode(), watching(model) as watched:
        for batch in batches:
            watched.batch(batch.inputs)
            task.forward(model, batch)
        return watched.profile()


# --------------------------------------------------------------------------------------------------- what a swap does


def _swaps(name: str, accelerator: Accelerator, examples: int) -> list[dict[str, Any]]:
    model, task, batches = _loaded(name, accelerator, examples, 1)
    found = []
    for site in _profile(model, task, batches).sites:
        if not site.moved:
            continue
        path, own = site.site.path, site.counts.activation
        assert own is not None
        before = _run(model, task, batches, path, None)
        for other in SHOWN:
            if other != own.name:
                after = _run(model, task, batches, path, other)
                moved = {
                    what: _relative(one, two) for what, one, two in zip(("site", "model"), before, after, strict=True)
                }
                found.append({"path": path, "to": other, "predicted": site.moved[other].relative, **moved})
    return found


def _run(
    model: Any, task: Task, batches: Sequence[Batch], path: str, activation: str | None
) -> tuple[list[Tensor], list[Tensor]]:
    """What one site gives, and what the model does, with this function at the site; None: with its own."""
    given: list[Tensor] = []
    watched = observing(given.append, SHOWN)
    outputs = []
    with torch.inference_mode(), patched(model, implementation=watched, activation=activation, include=path):
        for batch in batches:
            outputs.append(task.forward(model, batch).clone())
    return given, outputs


def _relative(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """RMS of the difference / RMS, over all numbers, in float64."""
    moved = sum(float((one.double() - two.double()).square().sum()) for one, two in zip(before, after, strict=True))
    return float((moved / sum(float(one.double().square().sum()) for one in before)) ** 0.5)


# --------------------------------------------------------------------------------------------------- what it costs


def _time(name: str, accelerator: Accelerator, examples: int) -> dict[str, Any]:
    """CPU time of passes over the same batches, plain and profiled, in turns. Setting up is timed apart."""
    model, task, batches = _loaded(name, accelerator, examples, None)
    seconds: dict[str, list[float]] = {"plain": [], "profiled": []}
    generator = random.Random(0)
    for _ in range(_ROUNDS):
        for way in generator.sample(sorted(seconds), 2):
            enter: AbstractContextManager[Any] = watching(model) if way == "profiled" else nullcontext()
            with torch.inference_mode(), enter as watched:
                start = time.process_time()
                for batch in batches:
                    if watched is not None:
                        watched.batch(batch.inputs)
                    task.forward(model, batch)
                seconds[way].append(time.process_time() - start)
    start = time.process_time()
    with watching(model):
        setting_up = time.process_time() - start
    ratio = median_ratio(seconds["plain"], seconds["profiled"], confidence=0.99)
    return {"examples": examples, "setting_up": setting_up, "seconds": seconds, "ratio": asdict(ratio)}


if __name__ == "__main__":
    main()
