"""All that is to be known of a GPU, within the minutes given: the tests that need one, kernels and what limits them,
and whole models.

Each part is a process of its own, so that one that dies takes nothing with it. First all of them prepare side by side,
as far as the GPU's memory goes: they check, build and compile. Then each is told to measure, alone on the GPU, for as
long as its share of what is left; what there was no time for is named. The JSON is written again after each part.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarking import kernels, report
from benchmarking.timing import environment, figures, rounds_on, say

COMMAND = Path(__file__).parents[1] / "benchmark.py"
ROOT = COMMAND.parents[1]
ACTIVATIONS = ("gelu", "gelu_tanh", "silu")
MODELS = ("gpt2", "bert", "t5", "vit", "llama")
PARTS = ("tests", *ACTIVATIONS, *MODELS)
ELEMENTS = [2**26, 2**20, 2**24, 2**28]
"""64 Mi first: the size that the goals are for."""
KERNEL_GIB, TESTS_GIB = 18, 30
_PREPARING = 0.55
"""The share of the minutes after which what is not ready is left out."""

# ------------------------------------------------------------------------------------------------- what a process does


class Worker:
    """The other end: says when it is ready, waits to be told to go, writes what it has found so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = {"failures": []}
        self.until = 0.0
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is not for the other end

    def ready(self) -> None:
        self.write()
        print("ready", file=self.out, flush=True)
        told = sys.stdin.readline()
        if not told:  # the other end is gone
            raise SystemExit(1)
        self.until = time.monotonic() + float(told)

    @property
    def left(self) -> float:
        return self.until - time.monotonic()

    def write(self) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.found), encoding="utf-8")
        new.replace(self.path)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """A failure is kept, with its traceback, and costs nothing else."""
        try:
            yield
        except Exception as error:
            say(f"{what} failed: {error}")
            self.found["failures"].append({"what": what, "error": "".join(traceback.format_exception(error))[-4000:]})


def measure_kernels(activation: str, worker: Worker, options: argparse.Namespace) -> None:
    sizes = [2**12, 2**10] if options.tiny else ELEMENTS
    dtypes = ["bfloat16"] if options.tiny else ["bfloat16", "float16", "float32"]
    asked = {"activations": [activation], "forms": list(kernels.MOVED), "dtypes": dtypes, "elements": sizes}
    implementations = ["aten", "triton", "liger", *(["compile"] if options.backend == "inductor" else [])]
    rounds = {"rounds": 30, "seconds": 0.02, "most_rounds": 200}
    own = argparse.Namespace(**{**vars(options), **asked, **rounds, "implementations": implementations})
    found = kernels.subjects(own, strict=False)
    worker.found |= {"checks": kernels.checks_of(found), "cells": [], "left_out": [], "limits": []}
    for one in found:  # compiles
        for elements in sizes:
            with worker.attempt(f"{one.named()} at {kernels.sized(elements)}"):
                inputs, grad_y = kernels.arguments(one.form, kernels.DTYPES[one.dtype], elements, own)
                for name in one.functions.keys() & {"compile", "triton"}:
                    kernels.prepared(one.functions[name], one.form, inputs, grad_y)()
    if options.device == "cuda":
        torch.cuda.empty_cache()
    worker.ready()
    main = [(one, sizes[0]) for one in found if one.dtype == "bfloat16"]
    rest = [(one, elements) for elements in sizes for one in found if (one, elements) not in main]
    for number, (one, elements) in enumerate([*main, *rest]):
        named = {**one.named(), "elements": elements}
        if worker.left < 0:
            worker.found["left_out"].append(named)
            continue
        with worker.attempt(f"timing {named}"):
            worker.found["cells"].append(kernels.cell_of(one, elements, own))
        if number + 1 == len(main):
            with worker.attempt("limits"):
                worker.found["limits"] = limits(activation, sizes[0], options)
        worker.write()


def limits(activation: str, elements: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The bf16 kernels again without their arithmetic, and with other blocks: what is left of the time without it is
    memory's. ``vector`` is the elements of a thread."""
    if options.device == "cpu" and not kernels.INTERPRETED:
        return []
    from hf_gelu_patch import kernels as own

    (gate, up), grad_y = kernels.arguments("gated_backward", torch.bfloat16, elements, options)
    y, grad_gate, grad_up = (torch.empty_like(gate) for _ in range(3))

    def launches(name: str) -> dict[str, Callable[[], None]]:
        return {
            "forward": lambda: own.pointwise_forward(gate, y, name, ()),
            "backward": lambda: own.pointwise_backward(grad_y, gate, grad_gate, name, ()),
            "gated_forward": lambda: own.gated_forward(gate, up, y, name, (), False),
            "gated_backward": lambda: own.gated_backward(grad_y, gate, up, grad_gate, grad_up, None, name, (), False),
        }

    def with_blocks(block: int, vector: int, launch: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            kept = own._BLOCK, own._WARP
            own._BLOCK, own._WARP = block, vector * kept[1] // 8
            try:
                launch()
            finally:
                own._BLOCK, own._WARP = kept

        return run

    rounds = rounds_on(options.device)
    blocks = [(1024, 8)] if options.tiny else [(1024, 8), (512, 8), (2048, 8), (4096, 8), (2048, 16), (1024, 4)]
    found = []
    for form in kernels.MOVED:
        calls = {"copy": lambda: y.copy_(gate)}
        for block, vector in blocks:
            calls[f"{block}, {vector}"] = with_blocks(block, vector, launches(activation)[form])
            calls[f"{block}, {vector}, without arithmetic"] = with_blocks(block, vector, launches("relu")[form])
        rounds(calls, 3, options.seed)
        samples = figures(rounds(calls, 3 if options.tiny else 50, options.seed))
        moved = {"bytes": kernels.MOVED[form] * 2 * elements, "copied": 2 * 2 * elements}
        found.append({"activation": activation, "form": form, "elements": elements, **moved, "samples_s": samples})
    return found


def measure_model(name: str, worker: Worker, options: argparse.Namespace) -> None:
    from benchmarking.models import CELLS, Bench

    bench = Bench(name, options)
    bench.warm_up()
    worker.found |= {"about": bench.about(), "cells": [], "left_out": [], "profile": {}}
    worker.ready()
    for number, (size, mode) in enumerate(CELLS):
        if worker.left < 0:
            worker.found["left_out"].append({"model": name, "size": size, "mode": mode})
            continue
        with worker.attempt(f"{name}: {mode}, {size}"):
            worker.found["cells"].append(bench.cell(size, mode, worker.left / (len(CELLS) - number)))
        worker.found["about"] = bench.about()
        worker.write()
    with worker.attempt(f"{name}: profile"):
        worker.found["profile"] = bench.profile()


def work(options: argparse.Namespace) -> None:
    worker = Worker(options.into)
    with worker.attempt(options.part):
        if options.part in MODELS:
            measure_model(options.part, worker, options)
        else:
            measure_kernels(options.part, worker, options)
    worker.write()


# -------------------------------------------------------------------------------------------------- what starts them


@dataclass
class Job:
    """A part that runs: its process, and how far it is.

    Attributes:
        state: "preparing", "ready", "measuring", "done"; of the tests, "preparing" until they are done.
        lines: what pytest printed.
    """

    part: str
    process: subprocess.Popen[str]
    path: Path
    state: str = "preparing"
    lines: list[str] = field(default_factory=list)
    note: str | None = None

    def found(self) -> dict[str, Any]:
        told = {"note": self.note} if self.note else {}
        if self.part == "tests":
            return {**outcomes(self.lines), **told}
        own = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {"failures": []}
        return {**own, **told}


def outcomes(lines: Sequence[str]) -> dict[str, Any]:
    """What ``pytest -v`` said of each test so far."""
    told = [match for line in lines if (match := re.match(r"(\S+::.+?) (PASSED|FAILED|SKIPPED|ERROR)\b", line))]
    counted = {
        word.lower(): sum(match[2] == word for match in told) for word in ("PASSED", "FAILED", "SKIPPED", "ERROR")
    }
    wrong = [match[1] for match in told if match[2] in ("FAILED", "ERROR")]
    return {**counted, "wrong": wrong, "log": list(lines)[-200:] if wrong or not told else []}


def started(part: str, folder: Path, options: argparse.Namespace, told: queue.Queue[tuple[Job, str | None]]) -> Job:
    path = folder / f"{part}.json"
    if part == "tests":
        command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "tests/test_gpu.py", "-p", "no:cacheprovider"]
        interpreted = "0" if options.device == "cuda" else "1"
        environ = {**os.environ, "TRITON_INTERPRET": interpreted, "PYTHONUNBUFFERED": "1"}
    else:
        command = [sys.executable, str(COMMAND), "gpu", "--part", part, "--into", str(path)]
        command += ["--device", options.device, "--seed", str(options.seed), "--backend", options.backend]
        command += ["--tiny"] if options.tiny else []
        environ = dict(os.environ)
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    job = Job(part, subprocess.Popen(command, cwd=ROOT, env=environ, **pipes), path)

    def read() -> None:
        assert job.process.stdout is not None
        for line in job.process.stdout:
            told.put((job, line.rstrip("\n")))
        told.put((job, None))

    threading.Thread(target=read, daemon=True).start()
    return job


def heard(told: queue.Queue[tuple[Job, str | None]], until: float) -> bool:
    """Wait for the next thing that a job says; False where there was nothing until then."""
    try:
        job, line = told.get(timeout=max(0.0, until - time.monotonic()))
    except queue.Empty:
        return False
    if line is None:
        status = job.process.wait()
        if job.part != "tests" and (status or job.state == "preparing"):
            job.note = job.note or f"ended with status {status} while {job.state}"
        job.state = "done"
        say(f"{job.part}: done")
    elif job.part == "tests":
        job.lines.append(line)
    elif line == "ready":
        job.state = "ready"
        say(f"{job.part}: ready")
    return True


def stopped(job: Job, why: str) -> None:
    say(f"{job.part}: stopped, {why}")
    job.note = why
    job.process.kill()


def gib_of(part: str) -> int:
    from benchmarking.models import ARCHITECTURES

    if part in ARCHITECTURES:
        return ARCHITECTURES[part].gib
    return TESTS_GIB if part == "tests" else KERNEL_GIB


def bandwidth(options: argparse.Namespace) -> dict[str, Any]:
    """Of a copy of 1 GiB, bytes read and written."""
    source = torch.randn(2**20 if options.tiny else 2**28, device=options.device)
    target = torch.empty_like(source)
    rounds, calls, moved = rounds_on(options.device), {"copy": lambda: target.copy_(source)}, 2 * source.nbytes
    rounds(calls, 3, options.seed)
    samples = figures(rounds(calls, 30, options.seed))["copy"]
    return {"bytes": moved, "gb_per_s": moved / statistics.median(samples) / 1e9, "samples_s": samples}


def run(options: argparse.Namespace) -> None:
    if options.part:
        work(options)
        return
    kernels.refuse_absent(options.device)
    began = time.monotonic()
    end = began + 60 * options.minutes
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "environment": environment(options.device),
        "settings": {name: getattr(options, name) for name in ("minutes", "tiny", "seed", "backend", "parts")},
        "bandwidth": bandwidth(options),
        "parts": {},
    }
    say(f"copy: {found['bandwidth']['gb_per_s']:,.0f} GB/s")
    room = float("inf")
    if options.device == "cuda":
        torch.cuda.empty_cache()
        room = torch.cuda.mem_get_info()[0] / 2**30
    told: queue.Queue[tuple[Job, str | None]] = queue.Queue()
    with tempfile.TemporaryDirectory() as folder:
        jobs: list[Job] = []
        try:
            prepare(options, Path(folder), jobs, told, room, began + _PREPARING * (end - began))
            measure(jobs, told, end, lambda: write(found, jobs, options))
        finally:
            for job in jobs:
                if job.process.poll() is None:
                    job.process.kill()
                job.process.wait()
            write(found, jobs, options)
    print(report.summary(found), end="")
    if wrong := report.failures(found):
        sys.exit(f"{len(wrong)} failures, in {output / 'gpu.json'}: {'; '.join(wrong[:5])}")


def prepare(
    options: argparse.Namespace,
    folder: Path,
    jobs: list[Job],
    told: queue.Queue[tuple[Job, str | None]],
    room: float,
    until: float,
) -> None:
    """Start the parts, those that take the most memory first, as many at once as it holds."""
    waiting = sorted(options.parts, key=gib_of, reverse=True)
    while waiting or any(job.state == "preparing" for job in jobs):
        taken = sum(gib_of(job.part) for job in jobs if job.state == "preparing")
        for part in list(waiting):
            if taken == 0 or taken + gib_of(part) <= room:
                taken += gib_of(part)
                waiting.remove(part)
                jobs.append(started(part, folder, options, told))
        if not heard(told, until):
            break
    for job in jobs:
        if job.state == "preparing":
            stopped(job, "not ready in time: give it more --minutes, or fewer --parts")
    while any(job.state == "preparing" for job in jobs):
        heard(told, time.monotonic() + 60)


def measure(
    jobs: Sequence[Job], told: queue.Queue[tuple[Job, str | None]], end: float, write: Callable[[], None]
) -> None:
    """One after the other, each with its share of the time."""
    ready = sorted((job for job in jobs if job.state == "ready"), key=lambda job: PARTS.index(job.part))
    for number, job in enumerate(ready):
        share = max(0.0, end - time.monotonic()) / (len(ready) - number)
        job.state = "measuring"
        assert job.process.stdin is not None
        print(share, file=job.process.stdin, flush=True)
        grace = time.monotonic() + 1.5 * share + 10  # a cell that was begun is finished
        while job.state == "measuring":
            if not heard(told, grace):
                stopped(job, "took longer than its share of the time")
                grace += 60
        write()


def write(found: dict[str, Any], jobs: Sequence[Job], options: argparse.Namespace) -> None:
    started = {job.part: job.found() for job in jobs}
    found["parts"] = {part: started.get(part, {"note": "there was no time to start it"}) for part in options.parts}
    (options.output / "gpu.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    (options.output / "gpu.md").write_text(report.summary(found), encoding="utf-8")


def add(commands: Any) -> None:
    command = commands.add_parser(
        "gpu", help="all that is to be known of a GPU: tests, kernels, whole models", allow_abbrev=False
    )
    command.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="a CPU to try the command out")
    command.add_argument("--minutes", type=float, default=8.0, metavar="N", help="for all of it (default: 8)")
    command.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
        help=f"from {', '.join(PARTS)} (default: all)",
    )  # fmt: skip
    command.add_argument("--tiny", action="store_true", help="small models and tensors, to try the command out")
    command.add_argument(
        "--backend",
        default="inductor",
        metavar="NAME",
        help="of torch.compile (default: inductor); none to compile nothing",
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of data and orders (default: 0)")
    command.add_argument(
        "--output",
        type=Path,
        default=Path("results/gpu"),
        metavar="FOLDER",
        help="for gpu.json and gpu.md (default: results/gpu)",
    )
    command.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    command.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    command.set_defaults(run=run)
