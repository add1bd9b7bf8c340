"""Whole models without a head, four layers of base width with random weights: in inference, patched and not.

All variants of a model share its weights, and run in the same rounds. Each is compared with the model as it is, beside
the noise of that model against itself.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import inspect
import itertools
import math
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch import IMPLEMENTATIONS, ImplementationUnavailableError, NothingPatchedWarning, find_sites, patch
from hf_gelu_patch.evaluation.speed.verdict import ratio
from hf_gelu_patch.verdicts import Ratio, judge, reach
from scripts.benchmarking.architectures import ARCHITECTURES, BOUND, WITHOUT, inputs_of, twin
from scripts.benchmarking.cpu.earlier import Earlier
from scripts.benchmarking.gpu.models import AGAIN, LARGE, SMALL, concluded
from scripts.benchmarking.gpu.record import Found
from scripts.benchmarking.gpu.schedule import Work
from scripts.benchmarking.gpu.sites import by_itself, compared
from scripts.benchmarking.kernels import candidates
from scripts.benchmarking.timing import Samples, figures, rounds_on_cpu

SHAPES, IMAGES = {LARGE: (8, 128), SMALL: (1, 16)}, {LARGE: 4, SMALL: 1}
"""Batch × length of tokens; and how many images."""
TINY_SHAPES, TINY_IMAGES = {LARGE: (2, 16), SMALL: (1, 8)}, {LARGE: 2, SMALL: 1}
DTYPES = ("float32", "bfloat16")
THREADS = (1, 2)
EAGER, AUTO, TUNED, COMPILED, BOTH, EARLIER = "eager", "auto", "tuned", "compiled", "compiled_patched", "earlier"
VARIANTS = (EAGER, AUTO, *compared(), TUNED, COMPILED, BOTH, BOUND, EARLIER)
"""What can be asked for. "compiled_patched" is patched by "auto", and "earlier" is by another checkout."""
FARTHEST = {"float32": 1e-3, "bfloat16": 0.1, "float16": 2e-2}
"""From the model as it is, as a share of the largest output: rounding alone stays far below."""
DISCERNIBLE = 3
"""So many times the noise has the bound's gain to be, to speak of shares of it."""
_LEAST_ROUNDS = 5

Call = Callable[[], Any]


def named(dtype: str, threads: int, model: str, size: str) -> str:
    return f"{model}, {dtype}, {threads} {'thread' if threads == 1 else 'threads'}, {size}"


def measure(work: Work, known: Found) -> None:
    """Every cell that is not yet in the record, with what this checkout's code makes of it."""
    options = work.options
    torch._dynamo.config.recompile_limit = 64
    earlier = None if options.earlier is None else Earlier(options.earlier)
    for dtype, threads, name in itertools.product(options.dtypes, options.threads, options.models):
        wanted = [size for size in options.sizes if not _done(known.cpu.get((name, dtype, threads, size)), options)]
        if not wanted:
            continue
        if work.left <= 0:
            work.leave_out(named(dtype, threads, name, " and ".join(wanted)))
            continue
        torch.set_num_threads(threads)
        with work.attempt(named(dtype, threads, name, "the model")):
            model = ARCHITECTURES[name].build_backbone(candidates.DTYPES[dtype], tiny=options.tiny)
            for size in wanted:
                _measure(model, name, dtype, size, earlier, work)


def _done(cell: Mapping[str, Any] | None, options: argparse.Namespace) -> bool:
    """Whether a record has all that is asked for, of the same code."""
    if cell is None or cell["sources"] != options.sources:
        return False
    return {*options.variants} - {EARLIER} <= {*cell["variants"], *cell["absent"]}


def _measure(model: nn.Module, name: str, dtype: str, size: str, earlier: Earlier | None, work: Work) -> None:
    threads = torch.get_num_threads()
    what = named(dtype, threads, name, size)
    if work.left <= 0:
        work.leave_out(what)
        return
    with work.attempt(what):
        bench = Bench(model, name, dtype, size, earlier, work)
        cell = bench.timed()
        about = {"model": name, "dtype": dtype, "threads": threads, "size": size, "shape": bench.shape}
        work.cell(what, "cpu", **about, sources=work.options.sources, **cell)
    torch._dynamo.reset()
    gc.collect()


class Bench:
    """One model in all its variants on one batch.

    Attributes:
        calls: name → a forward of that variant, each run once.
        absent: why others are not there.
        taken: what each patch took, and at how many sites.
        seconds: how long a variant took to be made beyond a plain patch: to be compiled, or tuned.
    """

    def __init__(self, model: nn.Module, name: str, dtype: str, size: str, earlier: Earlier | None, work: Work) -> None:
        tiny, options = work.options.tiny, work.options
        shape, images = (TINY_SHAPES if tiny else SHAPES)[size], (TINY_IMAGES if tiny else IMAGES)[size]
        self.inputs = inputs_of(model, shape, images, "cpu", candidates.DTYPES[dtype])
        self.shape = next(list(tensor.shape) for tensor in self.inputs.values())
        self.model, self.name, self.dtype, self.earlier, self.work = model, name, dtype, earlier, work
        self.calls: dict[str, Call] = {}
        self.absent: dict[str, str] = {}
        self.taken: dict[str, dict[str, int]] = {}
        self.seconds: dict[str, float] = {}
        exact = self._call(model)()
        self.calls[EAGER] = self._call(model)
        for variant in (one for one in VARIANTS if one in options.variants and one != EAGER):
            with self._attempt(variant):
                call = self._call(self._made(variant))
                self._check(variant, call, exact)
                self.calls[variant] = call
        self.calls[AGAIN[EAGER]] = self.calls[EAGER]

    def _call(self, model: Callable[..., Any]) -> Call:
        def forward() -> Any:
            with torch.no_grad():
                return model(**self.inputs)

        return forward

    def _made(self, variant: str) -> Any:
        """The model as this variant."""
        model, patched = twin(self.model), patch
        options: dict[str, Any] = {"implementation": variant}
        if variant == BOUND:
            options = WITHOUT
        elif variant == TUNED:
            if "tune" not in inspect.signature(patch).parameters:
                raise ImplementationUnavailableError("patch has no tune= here")
            options = {"tune": self.inputs}
        elif variant == BOTH:
            options = {"implementation": AUTO}
        elif variant == EARLIER:
            if self.earlier is None:
                raise ImplementationUnavailableError("no --earlier FOLDER was given")
            patched, options = self.earlier.patch, {}
        if variant != COMPILED:
            if variant in IMPLEMENTATIONS and not changes(model, variant):  # or it says why it cannot run
                raise ImplementationUnavailableError("it changes nothing here")
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NothingPatchedWarning)  # a model that is left alone is timed too
                report = patched(model, **options)
            if variant == TUNED:
                self.seconds[variant] = time.perf_counter() - start
            self.taken[variant] = dict(Counter(site.implementation or "left alone" for site in report.sites))
        if variant in (COMPILED, BOTH):
            return torch.compile(model, backend=self.work.options.backend, dynamic=False)
        return model

    def _check(self, variant: str, call: Call, exact: Any) -> None:
        """Run it once, in which it compiles and makes its choices; and see whether it computes the same."""
        with _own_cache() if variant in (COMPILED, BOTH) else contextlib.nullcontext():
            start = time.perf_counter()
            found = call()
            if variant in (COMPILED, BOTH):
                self.seconds[variant] = time.perf_counter() - start
        if variant == BOUND:
            return
        off = _distance(found[0], exact[0])
        if not off <= FARTHEST[self.dtype]:
            raise ValueError(f"its outputs are {off:.2g} of the largest away from the model's own")

    @contextmanager
    def _attempt(self, variant: str) -> Iterator[None]:
        """Whatever a variant raises costs that variant alone; that this machine cannot run it is no failure."""
        try:
            yield
        except ImplementationUnavailableError as error:
            self.absent[variant] = str(error)
        except Exception as error:
            self.absent[variant] = f"{type(error).__name__}: {' '.join(str(error).split()[:60])}"
            self.work.fail(f"{self.name}, {variant}", self.absent[variant])

    def timed(self) -> dict[str, Any]:
        """All variants in the same rounds, and what follows."""
        options = self.work.options
        trial = rounds_on_cpu(self.calls, 1, options.seed)
        once = sum(own[0] for own in trial.values())
        budget = min(options.cell_seconds, max(0.0, self.work.left))
        least = min(_LEAST_ROUNDS, options.rounds)
        rounds = max(least, min(options.rounds, int(budget / once)))
        samples = figures(rounds_on_cpu(self.calls, rounds, options.seed, clock=options.clock))
        told = {name: round(seconds, 3) for name, seconds in self.seconds.items()}
        found = {"clock": options.clock, "absent": self.absent, "taken": self.taken, "made_s": told}
        return {**found, **judged(samples, options.seed)}


def changes(model: nn.Module, implementation: str) -> bool:
    """Whether a patch by this name does something that is no other's."""
    return any(map(by_itself, find_sites(model, implementation=implementation).sites))


def _distance(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).abs().max() / exact.double().abs().max())


@contextmanager
def _own_cache() -> Iterator[None]:
    """Nothing that was compiled before is found again: what is told of compiling is what it takes the first time."""
    kept = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        try:
            yield
        finally:
            os.environ.pop("TORCHINDUCTOR_CACHE_DIR")
            if kept is not None:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = kept


def judged(samples: Samples, seed: int) -> dict[str, Any]:
    """What follows from the samples: each variant over eager; its share of the gain of ``bound``, where that is
    discernible, else whether it is as fast as ``bound`` within the noise."""
    variants = concluded(samples, {}, seed)
    floor = ratio(samples[EAGER], samples[AGAIN[EAGER]], seed=seed)
    noise = math.expm1(reach(floor))
    if BOUND in variants:
        gain = variants[BOUND]["ratio"]["value"] - 1
        for name, row in variants.items():
            if "ratio" not in row or name == BOUND:
                continue
            if gain >= DISCERNIBLE * noise:
                row["share_of_gain"] = round((row["ratio"]["value"] - 1) / gain, 4)
            else:
                row["within_bound"] = judge(_ratio(samples, BOUND, name, seed), floor) != "slower"
    return {"noise": round(noise, 5), "variants": variants}


def over(cell: Mapping[str, Any], base: str, name: str, seed: int = 0) -> tuple[Ratio, str] | None:
    """How many times as fast one variant of a cell is as another, and the verdict; None where one was not timed."""
    rows = cell["variants"]
    if not {base, name, EAGER, AGAIN[EAGER]} <= rows.keys():
        return None
    samples = {variant: row["samples_s"] for variant, row in rows.items()}
    floor = _ratio(samples, EAGER, AGAIN[EAGER], seed)
    found = _ratio(samples, base, name, seed)
    return found, judge(found, floor)


def _ratio(samples: Samples, base: str, name: str, seed: int) -> Ratio:
    return ratio(samples[base], samples[name], seed=seed)
