"""A linear layer and its activation: the product alone, which is the bound, then with the activation as ops behind it
and in its epilogue."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_gelu_patch.activations import ACTIVATIONS
from hf_gelu_patch.evaluation.speed.verdict import ratio
from hf_gelu_patch.implementations.registry import get_implementation
from scripts.benchmarking.gpu.schedule import Work
from scripts.benchmarking.kernels import candidates
from scripts.benchmarking.timing import compared, figures, rounds_on

SHAPES = ((16384, 768, 3072), (16384, 2048, 8192))
"""Rows, columns read and columns written: 32 × 512 tokens in BERT base or GPT-2 small, and in a wider layer."""
TINY_SHAPES = ((16, 8, 32),)
WANTED = ("gelu", "gelu_tanh")
FARTHEST = 1e-2
"""From float64, as a share of the norm. bf16 alone makes about 2e-3; the tanh form for the exact one stays near it."""
_ROUNDS = 100

Given = tuple[Tensor, Tensor, Tensor]
Layer = Callable[[Given], Tensor]


def product(given: Given) -> Tensor:
    return F.linear(*given)


def layers(activation: str, work: Work) -> dict[str, Layer]:
    """What computes act(x·Wᵀ + b), by name, beside the product alone."""
    act = candidates.eager(activation, "forward")
    made: dict[str, Layer] = {"product": product, "again": product, "eager": lambda given: act(product(given))}
    for name in ("aten", "triton"):
        with work.attempt(name):
            own = ACTIVATIONS[activation].bind(get_implementation(name).functions[activation])
            made[name] = lambda given, own=own: own(product(given))
    if work.options.device == "cuda":
        # cuBLASLt has the tanh form alone: for the exact one this is an approximation.
        made["epilogue"] = lambda given: torch._addmm_activation(given[2], given[0], given[1].t(), use_gelu=True)
    tuned: dict[str, Any] = {}
    if work.options.backend == "inductor":
        tuned = {"options": {"max_autotune_gemm": True, "max_autotune_gemm_backends": "TRITON"}}
    written = torch.compile(made["eager"], backend=work.options.backend, dynamic=False, **tuned)
    return {**made, "template": written}


def measure(work: Work) -> None:
    """Each layer in bf16, all candidates in the same rounds: "template" is Inductor's Triton product, the fastest of
    those that it tries, with the activation in its epilogue."""
    options = work.options
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for shape in TINY_SHAPES if options.tiny else SHAPES:
            for activation in WANTED:
                what = f"{activation}, {' × '.join(map(str, shape))}"
                if work.left <= 0:
                    work.leave_out(what)
                    continue
                with work.attempt(what):
                    work.cell(what, "product", activation=activation, shape=shape, **_measured(activation, shape, work))


def _measured(activation: str, shape: tuple[int, int, int], work: Work) -> dict[str, Any]:
    options = work.options
    rows, inner, columns = shape
    generator = torch.Generator(options.device).manual_seed(options.seed)
    sizes = ((rows, inner), (columns, inner), (columns,))
    x, weight, bias = (torch.randn(size, generator=generator, device=options.device) for size in sizes)
    given = (x.bfloat16(), (weight / inner**0.5).bfloat16(), bias.bfloat16())
    kept, errors = _right(layers(activation, work), activation, given, work)
    calls = {name: (lambda layer=layer: layer(given)) for name, layer in kept.items()}
    with torch.no_grad():
        rounds = rounds_on(options.device)
        rounds(calls, 3, options.seed)
        samples = figures(rounds(calls, 3 if options.tiny else _ROUNDS, options.seed))
    return {"errors": errors, "candidates": _concluded(samples, options)}


def _right(
    made: Mapping[str, Layer], activation: str, given: Given, work: Work
) -> tuple[dict[str, Layer], dict[str, float]]:
    """Those that compute what they should, and how far each is from float64 on the first rows."""
    x, weight, bias = (tensor.double() for tensor in given)
    exact = candidates.eager(activation, "forward")(product((x[:256], weight, bias)))
    kept, errors = {}, {}
    for name, layer in made.items():
        with work.attempt(name), torch.no_grad():
            found = layer(given)[: len(exact)].double()
            if layer is not product:
                errors[name] = float((found - exact).norm() / exact.norm())
                if not errors[name] <= FARTHEST:
                    work.fail(name, f"it is {errors[name]:.2g} away from float64")
                    continue
            kept[name] = layer
    return kept, errors


def _concluded(samples: Mapping[str, list[float]], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Medians, and how many times as fast as eager each is, beside the noise of the product timed twice."""
    floor = ratio(samples["product"], samples["again"], seed=options.seed)
    return {
        name: {
            "median_s": statistics.median(own),
            "samples_s": own,
            **compared(samples["eager"], own, floor, options.seed),
        }
        for name, own in samples.items()
        if name != "again"
    }
