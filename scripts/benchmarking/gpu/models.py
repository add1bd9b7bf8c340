"""Whole models with random weights, as transformers has them, patched, compiled, and both.

All variants of a model share its weights; they differ in what their activations run. A batch that a training step has
no memory for is halved until it has.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hf_gelu_patch import ImplementationUnavailableError, patch
from hf_gelu_patch.evaluation.speed.verdict import ratio
from hf_gelu_patch.verification import drifts, exact_outputs, outputs
from scripts.benchmarking.architectures import ARCHITECTURES, BOUND, WITHOUT, batch_of, twin
from scripts.benchmarking.gpu.schedule import Work
from scripts.benchmarking.kernels import liger
from scripts.benchmarking.timing import Samples, compared, enough, figures, peak, rounds_on

LARGE, SMALL = "large", "small"
SHAPES = {LARGE: (32, 512), SMALL: (1, 128)}
"""Batch × length; of images, as many as have that many patches."""
TINY_SHAPES = {LARGE: (2, 16), SMALL: (1, 8)}
FORWARD, TRAINING = "forward", "training step"
CELLS = {(LARGE, FORWARD): 2, (LARGE, TRAINING): 4, (SMALL, FORWARD): 1, (SMALL, TRAINING): 1}
"""What is timed, in this order → its share of the time."""
COMPILED_CELLS = {cell: CELLS[cell] for cell in list(CELLS)[:3]}
"""The training step on the small batch is not compiled: a minute for each model, of the few there are."""
BASES = {"compiled": "eager", "compiled_triton": "compiled"}
"""What a variant is compared with, where that is not eager."""
AGAIN = {"eager": "again", "compiled": "compiled_again"}
"""What is timed twice → the name of the second, for the noise floor."""


def batch_for(need: float, room: float, batch: int) -> int:
    """The batch, halved until what it needs of ``need``, which is that of the whole one, fits."""
    while batch > 1 and need > room:
        need, batch = need / 2, batch // 2
    return batch


def room_on(device: str) -> float:
    """GiB of memory that are free."""
    return torch.cuda.mem_get_info()[0] / 2**30 if device == "cuda" else math.inf


def concluded(samples: Samples, peaks: Mapping[str, int | None], seed: int) -> dict[str, dict[str, Any]]:
    """What follows from the samples of each variant, beside the noise floor of what it is compared with; ``peaks`` of
    those whose memory was measured."""
    floors = {
        base: ratio(samples[base], samples[again], seed=seed)
        for base, again in AGAIN.items()
        if {base, again} <= samples.keys()
    }
    rows = {}
    for name, own in samples.items():
        row: dict[str, Any] = {"median_s": statistics.median(own), "samples_s": own, "peak_bytes": peaks.get(name)}
        base = BASES.get(name, "eager")
        if name != "eager" and name not in AGAIN.values() and base in floors:
            row |= {"base": base, **compared(samples[base], own, floors[base], seed)}
        rows[name] = row
    return rows


def in_turns(calls: Mapping[str, Callable[[], Any]], options: Any, until: float) -> dict[str, dict[str, Any]]:
    """Calls that ran once, timed in turns until about then, with the GPU memory of each: what ``concluded`` says."""
    rounds = rounds_on(options.device, with_launch=True)
    trial = rounds(calls, 1, options.seed)
    once = sum(own[0] for own in trial.values())
    count = 5 if options.tiny else max(5, min(enough(trial, 30, 1.0, 300), int((until - time.monotonic()) / once)))
    samples = figures(rounds(calls, count, options.seed))
    peaks = {name: peak(call) if options.device == "cuda" else None for name, call in calls.items()}
    return concluded(samples, peaks, options.seed)


class Bench:
    """One model in all its variants, ready to be timed.

    Args:
        patches: the options of a patch, by the variant's name; None for those that a model is timed with in inference
            and training.
        compiled: the model is compiled instead, as it is and patched.

    Attributes:
        variants: "eager" and the patched ones; or, to be compiled, "eager", "compiled" and "compiled_triton". Those
            that could not be made are in ``absent``, each with the reason.
        reports: what each patch did.
        drift: how far each moved the outputs of a small batch, beside the error against float64.
        room: GiB that were free when nothing was there yet.
    """

    def __init__(
        self,
        name: str,
        work: Work,
        *,
        tiny: bool,
        patches: Mapping[str, Mapping[str, Any]] | None = None,
        compiled: bool = False,
    ) -> None:
        self.name, self.work, self.tiny, self.compiled = name, work, tiny, compiled
        self.device, self.seed = work.options.device, work.options.seed
        self.architecture = ARCHITECTURES[name]
        self.dtype = torch.bfloat16
        self.variants: dict[str, Any] = {}
        self.absent: dict[str, str] = {}
        self.reports: dict[str, str] = {}
        self.drift: dict[str, dict[str, Any]] = {}
        self.room = room_on(self.device)
        model = self.architecture.build(self.device, self.dtype, tiny=tiny)
        self.variants["eager"] = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)  # the weights stay what they are
        if compiled:
            self._compile(work.options.backend)
            return
        for variant, options in (self._usual() if patches is None else patches).items():
            with self._attempt(variant, self.absent):
                self._patch(variant, options)
        with work.attempt(f"{name}: drift"):
            self._check_drift()

    def _usual(self) -> dict[str, Mapping[str, Any]]:
        """What it is patched with: "auto", "triton", "liger" and "epilogue" where they serve the model, and "bound"."""
        patches: dict[str, Mapping[str, Any]] = {name: {"implementation": name} for name in ("auto", "triton")}
        if self.architecture.gated:
            patches[liger.NAME] = {"implementation": liger.NAME}
        if self.architecture.epilogue:
            patches["epilogue"] = self.architecture.epilogue
        return {**patches, BOUND: WITHOUT}

    def _patch(self, name: str, options: Mapping[str, Any]) -> None:
        if name == liger.NAME:
            if lack := liger.missing(self.device):
                self.absent[name] = lack
                return
            liger.register()
        model = twin(self.variants["eager"])
        self.reports[name] = str(patch(model, **options))
        self.variants[name] = model

    def _compile(self, backend: str) -> None:
        torch._dynamo.config.recompile_limit = 64
        patched = twin(self.variants["eager"])
        for name, model in (("compiled", self.variants["eager"]), ("compiled_triton", patched)):
            with self._attempt(name, self.absent):
                if model is patched:
                    self.reports[name] = str(patch(model, implementation="triton"))
                self.variants[name] = torch.compile(model, backend=backend, dynamic=False)

    @contextmanager
    def _attempt(self, name: str, absent: dict[str, str]) -> Iterator[None]:
        """Whatever a variant raises costs that variant alone; that this machine cannot run it is no failure."""
        try:
            yield
        except ImplementationUnavailableError as error:
            absent[name] = str(error)
        except Exception as error:
            absent[name] = f"{type(error).__name__}: {' '.join(str(error).split()[:60])}"
            self.release()
            self.work.fail(f"{self.name}, {name}", absent[name])
        if absent is self.absent and name in absent:
            self.variants.pop(name, None)

    def _check_drift(self) -> None:
        inputs = self.inputs(batch_of(self.variants["eager"], self.shapes[SMALL], self.device, self.dtype))
        before = outputs(self.variants["eager"], inputs)
        before = {"logits": before["logits"]}
        exact = exact_outputs(self.variants["eager"], inputs)
        for name in [name for name in self.variants if name != BOUND]:
            with self._attempt(name, self.absent):
                after = outputs(self.variants[name], inputs)
                (drift,) = drifts(before, {"logits": after["logits"]}, exact, None)
                self.drift[name] = vars(drift)
                if drift.exceeded:
                    self.work.fail(f"{self.name}, {name}", f"it moves the outputs by {drift.largest:.2g}")

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        return TINY_SHAPES if self.tiny else SHAPES

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A forward's: without labels, but for T5, which has its decoder's inputs from them."""
        return {key: value for key, value in batch.items() if key != "labels" or self.name == "t5"}

    def call(self, variant: str, mode: str, batch: dict[str, Tensor]) -> Callable[[], Any]:
        model = self.variants[variant]
        if mode == FORWARD:
            inputs = self.inputs(batch)

            def forward() -> Any:
                with torch.no_grad():
                    return model(**inputs)

            return forward

        def step() -> None:
            model(**batch).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        return step

    def release(self) -> None:
        """What a call that failed has left, and the memory that is kept for the next."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def cell(self, size: str, mode: str, seconds: float) -> dict[str, Any]:
        """One shape in one mode, within about so many seconds."""
        until = time.monotonic() + seconds
        asked, length = self.shapes[size]
        need = self.architecture.gib if (size, mode) == (LARGE, TRAINING) and not self.tiny else 0.0
        number = batch_for(need, self.room, asked)
        cell = {"model": self.name, "size": size, "mode": mode, "compiled": self.compiled}
        cell |= {"room_gib": None if self.device == "cpu" else round(self.room, 2), "batch_asked": asked}
        while True:
            batch = batch_of(self.variants["eager"], (number, length), self.device, self.dtype)
            try:
                found = self._timed(mode, batch, until)
                shape = next(list(tensor.shape) for tensor in batch.values())
                return {**cell, "batch": number, "length": length, "shape": shape, **found}
            except torch.OutOfMemoryError:
                if number == 1:
                    raise
                number //= 2
            self.release()

    def _timed(self, mode: str, batch: dict[str, Tensor], until: float) -> dict[str, Any]:
        absent = dict(self.absent)
        calls = {}
        for name, model in self.variants.items():
            if mode == TRAINING and name == "epilogue":
                continue  # it has no backward of its own
            model.train(mode == TRAINING)
            call = self.call(name, mode, batch)
            if name == "eager":
                call()
                calls[name] = call
                continue
            with self._attempt(name, absent):
                call()  # compiles, and lets every library make its choices
                calls[name] = call
        calls = {**{again: calls[name] for name, again in AGAIN.items() if name in calls}, **calls}
        found = in_turns(calls, self.work.options, until)
        self.release()
        return {"absent": absent, "variants": found}

    def profile(self) -> dict[str, list[dict[str, Any]]]:
        """The kernels that a large forward spends its time in, eager and by Triton: what is left to be won."""
        activity = torch.profiler.ProfilerActivity
        on_gpu = self.device == "cuda"
        wanted, clock = ([activity.CUDA], "device") if on_gpu else ([activity.CPU], "cpu")
        batch = batch_of(self.variants["eager"], self.shapes[LARGE], self.device, self.dtype)
        found = {}
        for name in ("eager", "triton"):
            if name not in self.variants:
                continue
            self.variants[name].eval()
            with torch.profiler.profile(activities=wanted, acc_events=True) as seen:
                self.call(name, FORWARD, batch)()
                if on_gpu:
                    torch.cuda.synchronize()
            rows = [
                {"kernel": event.key[:100], "calls": event.count, "us": getattr(event, f"self_{clock}_time_total")}
                for event in seen.key_averages()
            ]
            found[name] = sorted(rows, key=lambda row: -row["us"])[:20]
        return found

    def about(self) -> dict[str, Any]:
        weights = sum(weight.numel() for weight in self.variants["eager"].parameters())
        return {
            **{"model": self.name, "architecture": self.architecture.model, "parameters": weights},
            **{"dtype": str(self.dtype).removeprefix("torch."), "reports": self.reports, "drift": self.drift},
            **{"attention": getattr(self.variants["eager"].config, "_attn_implementation", None)},
        }


def measure(name: str, work: Work) -> None:
    """A model as it is and patched: what its forwards spend their time in, then each cell."""
    bench = Bench(name, work, tiny=work.options.tiny)
    work.write("about", **bench.about())
    work.prepared()
    with work.attempt(f"{name}: profile"):
        work.write("profile", model=name, kernels=bench.profile())
    _measure_cells(bench, CELLS)


def measure_compiled(name: str, work: Work) -> None:
    """The same compiled. What a cell needs is compiled just before it is timed."""
    cells = list(COMPILED_CELLS.items())[: 1 if work.options.tiny else None]
    with tempfile.TemporaryDirectory() as folder:  # what a step that was killed left half written is not found again
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        _measure_cells(Bench(name, work, tiny=work.options.tiny, compiled=True), dict(cells))


def _measure_cells(bench: Bench, cells: Mapping[tuple[str, str], int]) -> None:
    work, waiting = bench.work, dict(cells)
    for (size, mode), share in cells.items():
        what = f"{bench.name}: {mode}, {size}"
        seconds = work.left * share / sum(waiting.values())
        del waiting[size, mode]
        if seconds <= 0:
            work.leave_out(what)
            continue
        with work.attempt(what):
            work.cell(what, **bench.cell(size, mode, seconds))
