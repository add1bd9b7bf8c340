"""The command ``exports``: models exported to ONNX and run by ONNX Runtime, patched and not.

Each model is four layers of base width with random weights, in float32. torch.onnx.export(dynamo=True) exports it three
ways: as it is; patched; and, where it spells out GELU's tanh form, with PyTorch's one operation for that.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch import patched
from hf_gelu_patch.evaluation.report import markdown
from hf_gelu_patch.evaluation.speed.verdict import ratio
from scripts.benchmarking.architectures import ARCHITECTURES, inputs_of
from scripts.benchmarking.timing import OWN as OWN_TIME
from scripts.benchmarking.timing import compared, enough, environment, figures, rounds_on_cpu, say

OWN, AGAIN, PATCHED, ONE = "own", "own again", "patched", "one operation"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
ACTIVATIONS = frozenset({"Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Erf", "Tanh", "Sigmoid", "Swish"})
"""The operators of ONNX, and of ONNX Runtime's own, that compute an activation or the inner function of one."""


def run(options: argparse.Namespace) -> None:
    try:
        versions = {name: metadata.version(name) for name in NEEDED}
    except metadata.PackageNotFoundError as error:
        sys.exit(f"exports: {error.name} is missing: python -m pip install {' '.join(NEEDED)}")
    torch.set_num_threads(1)
    about = environment("cpu")
    about["versions"] |= versions
    cells: list[dict[str, Any]] = []
    settings = {name: getattr(options, name) for name in ("batch", "length", "rounds", "seconds", "seed", "tiny")}
    for name in options.models:
        for opset in options.opsets:
            say(f"{name}, opset {opset}")
            cells.append({"model": name, "opset": opset, **measured(name, opset, options)})
            if options.output:
                told = {"environment": about, "exports": {**settings, "cells": cells}}
                options.output.write_text(json.dumps(told) + "\n", encoding="utf-8")
    print(table(cells))


def measured(name: str, opset: int, options: argparse.Namespace) -> dict[str, Any]:
    """One model at one opset: for each variant the operators exported, those that run, and the largest difference from
    what PyTorch computes unpatched, relative to the output's scale; and the seconds of rounds."""
    model = ARCHITECTURES[name].build_backbone(torch.float32, tiny=options.tiny)
    if name == "t5":
        model = model.get_encoder()  # type: ignore[operator]
    inputs = inputs_of(model, (options.batch, options.length), 1, "cpu", torch.float32)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        expected = model(**inputs)[0]
        paths = {variant: Path(folder, f"{variant}.onnx") for variant in (OWN, PATCHED, ONE)}
        export(model, inputs, opset, paths[OWN])
        with patched(model, implementation="aten"):
            export(model, inputs, opset, paths[PATCHED])
        if put_one_operation(model):
            export(model, inputs, opset, paths[ONE])
        else:
            del paths[ONE]
        calls = {variant: session(path, inputs) for variant, path in paths.items()}
        found = {
            variant: {
                "exported": operators(path),
                "run": operators(path.with_suffix(".run")),
                "drift": difference(calls[variant](), expected),
            }
            for variant, path in paths.items()
        }
        calls[AGAIN] = session(paths[OWN], inputs)
        return {"variants": found, **times(calls, options)}


def export(model: nn.Module, inputs: Mapping[str, Tensor], opset: int, path: Path) -> None:
    program = torch.onnx.export(model, (), kwargs=dict(inputs), dynamo=True, verbose=False, opset_version=opset)
    assert program is not None
    program.save(path)


def put_one_operation(model: nn.Module) -> int:
    """Put PyTorch's one operation in the place of each module that spells out GELU's tanh form. Returns how many."""
    from transformers.activations import ACT2FN, NewGELUActivation

    owners = [(owner, key) for owner in model.modules() for key, child in owner.named_children()
              if type(child) is NewGELUActivation]  # fmt: skip
    for owner, key in owners:
        setattr(owner, key, ACT2FN["gelu_pytorch_tanh"])
    return len(owners)


def session(path: Path, inputs: Mapping[str, Tensor]) -> Callable[[], Sequence[Any]]:
    """A call of ONNX Runtime, on one thread, with all its optimizations. What it runs is written beside the model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".run"))
    made = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {one.name: inputs[one.name].numpy() for one in made.get_inputs()}
    return lambda: made.run(None, given)


def operators(path: Path) -> dict[str, int]:
    """How many nodes of each kind a model's graph has."""
    import onnx

    return dict(Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node).most_common())


def difference(outputs: Sequence[Any], expected: Tensor) -> float:
    """max |output − expected| / max |expected|, of the first output."""
    return float((torch.from_numpy(outputs[0]) - expected).abs().max() / expected.abs().max())


def times(calls: Mapping[str, Callable[[], Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of all calls by the time that the process itself computes; each variant against the model as it is."""
    trial = rounds_on_cpu(calls, 3, options.seed, clock=OWN_TIME)
    count = enough(trial, options.rounds, options.seconds)
    samples = rounds_on_cpu(calls, count, options.seed + 1, clock=OWN_TIME)
    floor = ratio(samples[OWN], samples[AGAIN], seed=options.seed)
    against = {
        variant: compared(samples[OWN], own, floor, options.seed)
        for variant, own in samples.items()
        if variant not in (OWN, AGAIN)
    }
    return {"load": os.getloadavg(), "floor": asdict(floor), "compared": against, "seconds": figures(samples)}


def table(cells: Sequence[Mapping[str, Any]]) -> str:
    """A row for each model and opset, and for what is exported with one operation in the place of several."""
    headings = "model", "opset", "nodes", "what computes the activations", "drift", "times as fast"
    rows = []
    for cell in cells:
        own = cell["variants"][OWN]
        for variant, found in cell["variants"].items():
            if variant == OWN:
                continue
            nodes = " / ".join(str(sum(one["exported"].values())) for one in (own, found))
            computed = " / ".join(dict.fromkeys(activations(one["run"]) for one in (own, found)))
            drift = " / ".join(f"{one['drift']:.1e}" for one in (own, found))
            told = cell["compared"][variant]
            name = cell["model"] if variant == PATCHED else f"{cell['model']}, {variant}"
            rows.append((name, str(cell["opset"]), nodes, computed, drift, times_as_fast(told)))
    return markdown.table(headings, rows)


def activations(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if name in ACTIVATIONS)


def times_as_fast(told: Mapping[str, Any]) -> str:
    found = told["ratio"]
    return f"{found['value']:.3f} ({found['low']:.3f}–{found['high']:.3f}), {told['verdict']}"


def add(commands: Any) -> None:
    what = "models exported to ONNX and run by ONNX Runtime, patched and not"
    command = commands.add_parser("exports", help=what, description=what, allow_abbrev=False)
    known = list(ARCHITECTURES)
    command.add_argument(
        "--models",
        nargs="+",
        choices=known,
        default=known,
        metavar="NAME",
        help=f"from {', '.join(known)} (default: all)",
    )
    command.add_argument(
        "--opsets", nargs="+", type=int, default=[18, 22], metavar="N", help="of ONNX (default: 18 22)"
    )
    command.add_argument("--batch", type=int, default=1, metavar="N", help="sequences, or 1 image (default: 1)")
    command.add_argument("--length", type=int, default=128, metavar="N", help="tokens of each (default: 128)")
    command.add_argument("--rounds", type=int, default=40, metavar="N", help="at least (default: 40)")
    command.add_argument("--seconds", type=float, default=3.0, metavar="S", help="of each variant (default: 3)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the orders (default: 0)")
    command.add_argument("--tiny", action="store_true", help="tiny models, to try the command out")
    command.add_argument("--output", type=Path, metavar="FILE", help="JSON with every sample")
    command.set_defaults(run=run)
