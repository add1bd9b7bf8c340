"""How long patch and unpatch themselves take."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarking.timing import environment

ROOT = Path(__file__).parents[2]
LLAMA_405B = {
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def milliseconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1e3


def patching_once(model: str, rounds: int) -> dict[str, list[float]]:
    """Times of the first patch in this process, of later ones, and of each undo."""
    import transformers

    from hf_gelu_patch import patch, unpatch

    torch.set_num_threads(1)
    if model == "gpt2":
        built = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    else:
        with torch.device("meta"):
            built = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA_405B))
    times = [(milliseconds(lambda: patch(built)), milliseconds(lambda: unpatch(built))) for _ in range(1 + rounds)]
    return {
        "first": [times[0][0]],
        "again": [patched for patched, _ in times[1:]],
        "undo": [undone for _, undone in times],
    }


def run(options: argparse.Namespace) -> None:
    if options.once:
        print(json.dumps(patching_once(options.once, options.rounds)))
        return
    results: dict[str, object] = {}
    for model in ("gpt2", "llama-405b"):
        samples: dict[str, list[float]] = {"first": [], "again": [], "undo": []}
        for _ in range(options.processes):
            asked = ["patching", "--once", model, "--rounds", str(options.rounds)]
            command = [sys.executable, "-m", "scripts.benchmarking", *asked]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            for name, values in json.loads(done.stdout).items():
                samples[name] += values
        medians = {name: statistics.median(values) for name, values in samples.items()}
        results[model] = {"median_ms": medians, "samples_ms": samples}
        told = ", ".join(f"{name} {medians[name]:.1f} ms (up to {max(values):.1f})" for name, values in samples.items())
        print(f"{model}: {told}")
    if options.output:
        found = {"environment": environment("cpu"), "patching": results}
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def add(commands: Any) -> None:
    command = commands.add_parser("patching", help="patch and unpatch themselves", allow_abbrev=False)
    command.add_argument("--processes", type=int, default=5, metavar="N", help="fresh processes a model (default: 5)")
    command.add_argument("--rounds", type=int, default=10, metavar="N", help="rounds in each (default: 10)")
    command.add_argument("--output", type=Path, metavar="FILE", help="JSON with every sample")
    command.add_argument("--once", choices=("gpt2", "llama-405b"), help=argparse.SUPPRESS)
    command.set_defaults(run=run)
