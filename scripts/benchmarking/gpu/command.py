"""All that is to be known of a GPU, in the order of what it is worth, within the minutes given.

Each step is a process of its own, under a limit of its own, that writes down each figure the moment it has it: see
``processes``, ``schedule`` and ``record``. The command itself only starts them, and must not touch CUDA: they are forks
of it, and CUDA does not survive a fork.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarking.gpu import goals, models, processes, products, record, report, sites, training, variants
from scripts.benchmarking.gpu.record import Record
from scripts.benchmarking.gpu.schedule import Step, Work, schedule
from scripts.benchmarking.kernels import candidates, cells
from scripts.benchmarking.timing import environment, figures, rounds_on, say

ROOT = Path(__file__).parents[3]
ACTIVATIONS = ("gelu", "gelu_tanh", "silu")
SIZES = (goals.MAIN, 2**20, 2**24, 2**28)
TINY_SIZES = (2**12, 2**10)
SANITIZED = "tests/test_gpu.py::test_accesses_within_bounds"
_TABLES = 5.0
"""Seconds at the end for writing the tables."""

# ------------------------------------------------------------------------------------------------- what the steps do


def ask_the_card(work: Work) -> None:
    """Which one it is and what memory it has, before anything else; then the versions, driver and clocks."""
    device = work.options.device
    card: dict[str, Any] = {"name": "CPU", "free_gib": None}
    if device == "cuda":
        if not torch.cuda.is_available():
            work.write("refused", why="torch sees no CUDA device: use --device cpu, or a build of torch with CUDA")
            return
        properties = torch.cuda.get_device_properties(0)
        card = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "total_gib": round(properties.total_memory / 2**30, 2),
            "free_gib": round(models.room_on(device), 2),
        }
    known = record.read([work.record.path.parent]).card
    if known and known["name"] != card["name"]:
        work.write(
            "refused", why=f"the record there is of {known['name']}, and this is {card['name']}: another --output"
        )
        return
    work.write("card", **card)
    say(", ".join(f"{key} {value}" for key, value in card.items() if value is not None))
    work.write("environment", **environment(device), date=datetime.now(timezone.utc).isoformat(timespec="seconds"))


def smoke(work: Work) -> None:
    """Whether anything works at all: a copy, one kernel beside float64, one small model patched."""
    options = work.options
    with work.attempt("copy"):
        found = copied(2**20 if options.tiny else 2**28, options)
        work.cell(f"a copy moves {found['gb_per_s']:,.0f} GB/s", "bandwidth", **found)
    with work.attempt("kernel"):
        one = cells.subject("gelu", "bfloat16", "forward", kernel_options(work, ["triton"]), strict=False)
        fail_wrong(one, work)
        work.cell("a kernel beside float64", "check", **cells.check_of(one))
    with work.attempt("model"):
        bench = models.Bench("gpt2", work, tiny=True)
        work.cell("a small model, patched", "smoke", reports=bench.reports, drift=bench.drift, absent=bench.absent)


def copied(elements: int, options: argparse.Namespace) -> dict[str, Any]:
    """The bandwidth of a copy in fp32, bytes read and written."""
    source = torch.randn(elements, device=options.device)
    target = torch.empty_like(source)
    rounds, calls, moved = rounds_on(options.device), {"copy": lambda: target.copy_(source)}, 2 * source.nbytes
    rounds(calls, 3, options.seed)
    samples = figures(rounds(calls, 30, options.seed))["copy"]
    return {"bytes": moved, "gb_per_s": moved / statistics.median(samples) / 1e9, "samples_s": samples}


def kernel_options(work: Work, implementations: Sequence[str]) -> argparse.Namespace:
    """What ``kernels`` wants to know."""
    rounds = {"rounds": 30, "seconds": 0.02, "most_rounds": 200}
    if work.options.tiny:
        rounds = {"rounds": 3, "seconds": 0.0, "most_rounds": 3}
    return argparse.Namespace(**{**vars(work.options), **rounds, "implementations": list(implementations)})


def fail_wrong(one: cells.Subject, work: Work) -> None:
    for name in one.failed:
        work.fail(", ".join([*one.named().values(), name]), one.absent[name])


def measure_kernels(wanted: Sequence[tuple[str, Sequence[int]]], implementations: Sequence[str], work: Work) -> None:
    """Every activation and form of these dtypes, at their sizes: checked over all values, and timed at once."""
    cells.set_up()
    options = kernel_options(work, implementations)
    for dtype, sizes in wanted:
        for activation in ACTIVATIONS[:1] if work.options.tiny else ACTIVATIONS:
            for form in candidates.MOVED:
                named = f"{activation}, {form.replace('_', ' ')}, {dtype}"
                if work.left <= 0:
                    work.leave_out(named)
                    continue
                with work.attempt(named):
                    one = cells.subject(activation, dtype, form, options, strict=False)
                    fail_wrong(one, work)
                    work.write("check", **cells.check_of(one))
                    for elements in sizes:
                        _measure_kernel(one, elements, options, work)


def _measure_kernel(one: cells.Subject, elements: int, options: argparse.Namespace, work: Work) -> None:
    what = f"{', '.join(one.named().values())}, {cells.sized(elements)}"
    if work.left <= 0:
        work.leave_out(what)
        return
    with work.attempt(what):
        work.cell(what, **cells.cell_of(one, elements, options))


def main_kernels(dtype: str, work: Work) -> None:
    measure_kernels([(dtype, (TINY_SIZES if work.options.tiny else SIZES)[:1])], ("aten", "triton", "liger"), work)


def other_kernels(work: Work) -> None:
    """The other sizes, and fp16: bf16 at all sizes before fp32."""
    sizes = TINY_SIZES if work.options.tiny else SIZES
    wanted = [("float16", sizes[:1]), *((dtype, sizes[1:]) for dtype in sites.DTYPES)]
    measure_kernels(wanted[:2] if work.options.tiny else wanted, ("aten", "triton", "liger"), work)


def compiled_kernels(work: Work) -> None:
    """The main cells again, with torch.compile among the candidates."""
    if work.options.backend != "inductor":
        work.write("absent", what="torch.compile of kernels", why="--backend is another than inductor")
        return
    sizes = (TINY_SIZES if work.options.tiny else SIZES)[:1]
    measure_kernels([("bfloat16", sizes)], ("aten", "compile", "triton", "liger"), work)


OUTCOME = re.compile(r"(\S+::.+?) (PASSED|FAILED|SKIPPED|ERROR)\b")


BEGUN = re.compile(r"(\S+::.+?) $")


def _lines(file: int, begun: Callable[[str], None]) -> Iterator[str]:
    """The lines of pytest's output as they come. It names a test before it runs it: a line that ends there is told to
    ``begun``, so that a test that hangs has a name."""
    text = ""
    while chunk := os.read(file, 2**16):
        *whole, text = (text + chunk.decode(errors="replace")).split("\n")
        yield from whole
        if match := BEGUN.fullmatch(text):
            begun(match[1])
    if text:
        yield text


def run_tests(work: Work, *selected: str) -> None:
    """Tests, each outcome written down as its line comes. Warnings of another stack fail nothing."""
    command = [sys.executable, "-m", "pytest", "-W", "default", "-v", "-m", "gpu", "-p", "no:cacheprovider", *selected]
    environ = {
        **os.environ,
        "TRITON_INTERPRET": "0" if work.options.device == "cuda" else "1",
        "PYTHONUNBUFFERED": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # whatever else is installed there
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]),
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    log, wrong, told = [], False, 0
    with subprocess.Popen(command, cwd=ROOT, env=environ, **pipes) as pytest:
        assert pytest.stdout is not None
        for line in _lines(pytest.stdout.fileno(), lambda test: work.write("test", test=test, outcome="begun")):
            log.append(line)
            say(line)
            if match := OUTCOME.match(line):
                told, wrong = told + 1, wrong or match[2] in ("FAILED", "ERROR")
                work.write("test", test=match[1], outcome=match[2].lower())
    if wrong or not told:
        work.write("log", lines=log[-200:])
    if not told:
        work.fail("tests", f"pytest ran none, status {pytest.returncode}: {' '.join(log[-3:])}")


def gpu_tests(work: Work) -> None:
    run_tests(work, "tests/test_gpu.py", "--deselect", SANITIZED)


def sanitize(work: Work) -> None:
    """The kernels' accesses under compute-sanitizer, where there is one."""
    if work.options.device == "cpu":
        work.write("absent", what="compute-sanitizer", why="it checks what runs on a GPU")
    elif shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/cuda/bin") is None:
        work.write("absent", what="compute-sanitizer", why="it is not installed (it comes with CUDA's toolkit)")
    else:
        run_tests(work, SANITIZED)


# ------------------------------------------------------------------------------------------------------ what there is

MODELS = ("gpt2", "bert", "vit", "t5", "llama")
PREPARE_MODEL = {"gpt2": 8.0, "bert": 8.0, "vit": 8.0, "t5": 10.0, "llama": 10.0}
"""Seconds; for T5 and Llama, Liger-Kernel is imported."""
MEASURE_MODEL = {"gpt2": 16.0, "bert": 16.0, "vit": 16.0, "t5": 24.0, "llama": 30.0}
"""Seconds. A round of Llama's training step, all variants, takes more than one."""
COMPILE_MODEL = {"gpt2": 75.0, "bert": 50.0, "vit": 50.0, "t5": 160.0, "llama": 100.0}
"""Seconds for three cells. Without Inductor, on two busy cores, it took 73 for GPT-2, 200 for T5 and 98 for Llama."""
FORMS = len(ACTIVATIONS) * len(candidates.MOVED)

CARD = Step("card", "card", ask_the_card, prepare=8, measure=1, needed=True)
STEPS = (
    Step("smoke", "smoke", smoke, prepare=7, measure=3, needed=True),
    *(
        Step(
            name,
            "models",
            functools.partial(models.measure, name),
            PREPARE_MODEL[name],
            MEASURE_MODEL[name],
            len(models.CELLS),
            True,
        )
        for name in MODELS
    ),
    Step("kernels-bf16", "kernels", functools.partial(main_kernels, "bfloat16"), 13, 8, FORMS, True),
    Step("kernels-fp32", "kernels", functools.partial(main_kernels, "float32"), 13, 8, FORMS, True),
    Step("sites", "sites", sites.measure, 15, 75, sites.COUNT),
    Step("products", "products", products.measure, 40, 15, len(products.SHAPES) * len(products.WANTED)),
    *(
        Step(
            f"training-{name}",
            "training",
            functools.partial(training.measure, name),
            PREPARE_MODEL[name] + 4,
            MEASURE_MODEL[name],
            1,
        )
        for name in training.MODELS
    ),
    Step("training-layer", "training", training.measure_layer, 10, 10, 1),
    Step("kernels-other", "kernels", other_kernels, 12, 40, 10 * FORMS),
    Step("tests", "tests", gpu_tests, 20, 60),
    Step("variants", "variants", variants.measure, 40, 10, len(candidates.MOVED)),
    *(
        Step(
            f"compiled-{name}",
            "compiled",
            functools.partial(models.measure_compiled, name),
            COMPILE_MODEL[name],
            15,
            len(models.COMPILED_CELLS),
        )
        for name in MODELS
    ),
    Step("compiled-kernels", "compiled", compiled_kernels, 40, 10, FORMS),
    Step("sanitizer", "sanitizer", sanitize, 30, 150),
)
"""Everything there is to measure, in the order it is measured. The seconds are guesses for an H100 or an H200; what a
step took stands in the record."""

# ------------------------------------------------------------------------------------------------------- the command


def names() -> list[str]:
    """What can be asked for: groups, and the steps in them."""
    return list(dict.fromkeys(name for step in STEPS for name in (step.group, step.name)))


def chosen(names: Sequence[str]) -> list[Step]:
    """The steps of these names or groups; what the card is comes first in any case."""
    return [CARD, *(step for step in STEPS if {step.name, step.group} & set(names))]


def preload() -> None:
    """What the steps import, once for all of them. None of it touches CUDA; what is missing, a step will say."""
    import transformers

    for architecture in models.ARCHITECTURES.values():
        with contextlib.suppress(Exception):
            getattr(transformers, architecture.model)
    with contextlib.suppress(ImportError):
        importlib.import_module("hf_gelu_patch.implementations.triton_launch")


def perform(step: Step, limit: float, own: Record, options: argparse.Namespace) -> None:
    """A step, in its process. Where a library has touched CUDA as it was imported, no fork can use it: then the step
    imports everything for itself."""
    if torch.cuda._is_in_bad_fork():
        say(f"{step.name}: CUDA was touched before the fork: importing again")
        until = str(time.monotonic() + limit)  # a clock that all processes share
        again = [sys.executable, "-m", "scripts.benchmarking", *sys.argv[1:], "--alone", step.name, until]
        os.execv(sys.executable, again)
    torch.set_num_threads(1)
    work = Work(step, limit, own, options)
    with work.attempt(step.name):
        step.run(work)
        return
    sys.exit(1)


def begin(step: Step, limit: float, own: Record, options: argparse.Namespace) -> None:
    """Run a step in a process, and write down when it began and how it ended."""
    say(f"{step.name}: {limit:.0f} s at most")
    guessed = {"limit": round(limit, 1), "whole": step.limit, "guess": step.prepare, "cells": step.cells}
    own.write("begun", step=step.name, **guessed)
    known = own.path.stat().st_size

    def ended(how: str, seconds: float) -> None:
        say(f"{step.name}: {how}, {seconds:.1f} s")
        own.write("ended", step=step.name, how=how, seconds=round(seconds, 2))

    processes.run(lambda: perform(step, limit, own, options), limit, ended)
    for line in record.lines(own.path, known):
        if line["kind"] == "refused":
            sys.exit(line["why"])


def run(options: argparse.Namespace) -> None:
    if options.alone:
        name, until = options.alone
        (step,) = [step for step in (CARD, *STEPS) if step.name == name]
        perform(step, float(until) - time.monotonic(), Record(options.output), options)
        return
    if options.device == "cuda" and candidates.INTERPRETED:
        sys.exit(candidates.UNSET)
    end = options.began + 60 * options.minutes - _TABLES
    own, stopped = Record(options.output), False
    settings = ("minutes", "device", "tiny", "seed", "backend", "steps")
    own.write("settings", **{name: getattr(options, name) for name in settings})

    def leave_out(step: Step, why: str) -> None:
        say(f"{step.name}: left out: {why}")
        own.write("left_out", step=step.name, why=why)

    try:
        with processes.stoppable():
            preload()
            start = functools.partial(begin, own=own, options=options)
            schedule(chosen(options.steps), end, time.monotonic, start, leave_out)
    except processes.Stopped:
        stopped = True
    found = record.read([options.output])
    print(report.written(found, options.output), end="")
    wrong = ["it was stopped"] * stopped + report.failures(found)
    if wrong:
        sys.exit(f"{len(wrong)} failed, see {own.path}: {'; '.join(wrong[:8])}")


def add(commands: Any) -> None:
    command = commands.add_parser(
        "gpu", help="all that is to be known of a GPU: tests, kernels, whole models", allow_abbrev=False
    )
    command.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="a CPU to try the command out")
    command.add_argument("--minutes", type=float, default=8.0, metavar="N", help="for all of it (default: 8)")
    command.add_argument(
        "--steps", nargs="+", choices=names(), default=names(), metavar="NAME",
        help=f"steps, or groups of them, from {', '.join(names())} (default: all)",
    )  # fmt: skip
    command.add_argument("--tiny", action="store_true", help="small models and tensors, to try the command out")
    command.add_argument(
        "--backend", default="inductor", metavar="NAME", help="of torch.compile for models (default: inductor)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of data and orders (default: 0)")
    command.add_argument(
        "--output",
        type=Path,
        default=Path("results/gpu"),
        metavar="FOLDER",
        help=f"for {record.NAME}, to which is added, and {report.NAME} (default: results/gpu)",
    )
    command.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)  # a step, and until when, in this process
    command.set_defaults(run=run)
