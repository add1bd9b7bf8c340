"""How far the verdicts on speed can be trusted: a model against itself, and against itself with a planted delay."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_gelu_patch import ACTIVATIONS
from scripts.benchmarking.timing import environment, say

Function = Callable[..., Tensor]

SAME, SLOWED = "eager", "slowed"


@contextmanager
def planted_delay(seconds: float) -> Iterator[None]:
    """An implementation that computes what the model does, and then waits, busily, at each activation."""
    from hf_gelu_patch import Implementation, register_implementation
    from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS

    def late(function: Function) -> Function:
        def run(*tensors: Tensor, **parameters: Any) -> Tensor:
            y = function(*tensors, **parameters)
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                pass
            return y

        return run

    functions = {name: late(record.eager) for name, record in ACTIVATIONS.items() if not record.learned}
    register_implementation(Implementation(SLOWED, functions))
    try:
        yield
    finally:
        del IMPLEMENTATIONS[SLOWED]


def run(options: argparse.Namespace) -> None:
    """Each run: the verdict on each variant, with its interval and that of the noise floor."""
    from accelerate import Accelerator

    from hf_gelu_patch import find_sites
    from hf_gelu_patch.evaluation.loading.models import load_model
    from hf_gelu_patch.evaluation.loading.subjects import subject
    from hf_gelu_patch.evaluation.options.settings import Settings
    from hf_gelu_patch.evaluation.run import evaluate_subject
    from hf_gelu_patch.evaluation.variants import Variant

    torch.set_num_threads(1)
    one = subject(options.model)
    settings = Settings(
        variants=(Variant.parse(SAME),),
        limit=options.examples,
        batch_size=options.examples,
        min_seconds=options.seconds,
        max_seconds=8 * options.seconds,
    )
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    [alone] = evaluate_subject(one, settings, accelerator).variants
    forward = alone.speed.percentiles["before"]["p50"]
    sites = len(find_sites(load_model(one.model, one.task), implementation="eager").sites)
    runs = []
    with planted_delay(options.delay * forward / sites):
        variants = (Variant.parse(SAME), Variant.parse(SLOWED))
        for number in range(options.runs):
            found = evaluate_subject(one, replace(settings, variants=variants, seed=number), accelerator)
            told = {
                variant.variant.name: {
                    "verdict": variant.speed.verdict,
                    "ratio": asdict(variant.speed.ratio),
                    "floor": asdict(variant.speed.floor),
                    "rounds": len(variant.speed.timings.units),
                }
                for variant in found.variants
            }
            runs.append(told)
            say(f"{number + 1}/{options.runs}", *(f"{name}: {one['verdict']}" for name, one in told.items()))
    counted = {name: Counter(run[name]["verdict"] for run in runs) for name in (SAME, SLOWED)}
    covered = sum(run[SAME]["ratio"]["low"] <= 1 <= run[SAME]["ratio"]["high"] for run in runs)
    print(f"{one.name}, {forward * 1e3:.2f} ms a batch, {options.runs} runs of {options.seconds:g} s or more a variant")
    for name, of in ((SAME, "itself"), (SLOWED, f"itself with {options.delay:.0%} of delay")):
        verdicts = ", ".join(f"{verdict} {count}" for verdict, count in counted[name].most_common())
        print(f"against {of}: {verdicts}")
    print(f"intervals against itself that cover 1: {covered} of {options.runs}")
    found = {
        "model": one.name,
        "seconds_a_batch": forward,
        "delay": options.delay,
        "seconds": options.seconds,
        "load": os.getloadavg(),
        "cover_one": covered,
        "runs": runs,
    }
    if options.output:
        told = {"environment": environment("cuda" if torch.cuda.is_available() else "cpu"), "noise": found}
        options.output.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def add(commands: Any) -> None:
    command = commands.add_parser(
        "noise", help="how far the verdicts on speed can be trusted on this machine", allow_abbrev=False
    )
    command.add_argument("--model", default="vit", metavar="NAME", help="a reference model (default: vit)")
    command.add_argument("--runs", type=int, default=20, metavar="N", help="evaluations (default: 20)")
    command.add_argument("--examples", type=int, default=64, metavar="N", help="in the batch timed (default: 64)")
    command.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of each variant (default: 10)")
    command.add_argument(
        "--delay", type=float, default=0.03, metavar="SHARE", help="planted, of a forward (default: 0.03)"
    )
    command.add_argument("--output", type=Path, metavar="FILE", help="JSON with every verdict")
    command.set_defaults(run=run)
