"""Training with less memory: models and one long layer, patched with ``recompute`` and ``tiles``, timed, with peaks.

Beside them stand Liger-Kernel's and transformers' gradient checkpointing. What ``torch.compile`` takes, the compiled
models' training steps say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from hf_gelu_patch import ImplementationUnavailableError, patch
from scripts.benchmarking.architectures import ARCHITECTURES, CHECKPOINT, checkpointed, twin
from scripts.benchmarking.gpu import models
from scripts.benchmarking.gpu.schedule import Work
from scripts.benchmarking.kernels import liger
from scripts.benchmarking.memory.liger import PLAIN, TILED, layer_of
from scripts.benchmarking.memory.subjects import MLP

__all__ = ["MODELS", "VARIANTS", "measure", "measure_layer"]

MODELS = ("gpt2", "bert", "t5", "llama")
_TILES = "auto"
_PATCHES: Mapping[str, Mapping[str, Any]] = {
    "auto": {},
    "recompute": {"recompute": True},
    "triton": {"implementation": "triton"},
    "triton_recompute": {"implementation": "triton", "recompute": True},
    "tiles": {"tiles": _TILES},
    "triton_tiles": {"implementation": "triton", "tiles": _TILES},
}
VARIANTS = (*_PATCHES, CHECKPOINT, PLAIN, TILED)
_TOKENS = 32768
_TINY_TOKENS = 64


def measure(name: str, work: Work) -> None:
    """A model's training step on the large batch."""
    patches = dict(_PATCHES)
    if ARCHITECTURES[name].gated:
        patches[liger.NAME] = {"implementation": liger.NAME}
    bench = models.Bench(name, work, tiny=work.options.tiny, patches=patches)
    if (checkpointing := checkpointed(bench.variants["eager"])) is not None:
        bench.variants[CHECKPOINT] = checkpointing
    work.prepared()
    what = f"{name}: {models.TRAINING}"
    with work.attempt(what):
        work.cell(what, "training", **bench.cell(models.LARGE, models.TRAINING, work.left), reports=bench.reports)


def measure_layer(work: Work) -> None:
    """Forward and backward of one of Llama's feed-forward layers, on very many tokens."""
    options = work.options
    model: Any = ARCHITECTURES["llama"].build_backbone(torch.bfloat16, tiny=options.tiny)
    eager = model.layers[0].mlp.train().to(options.device)
    shape = (1, _TINY_TOKENS if options.tiny else _TOKENS, model.config.hidden_size)
    x = torch.randn(shape, device=options.device, dtype=torch.bfloat16).requires_grad_()
    layers, absent, reports = {"eager": eager}, {}, {}
    for name in VARIANTS:
        if name == CHECKPOINT:
            continue  # is for whole models
        try:
            if name in (PLAIN, TILED):
                if lack := liger.missing(options.device):
                    raise ImplementationUnavailableError(lack)
                layers[name] = layer_of(name, eager)
            else:
                layers[name] = twin(eager)
                reports[name] = str(patch(layers[name], **_PATCHES[name]))
        except ImplementationUnavailableError as error:
            layers.pop(name, None)
            absent[name] = str(error)
    work.prepared()
    with work.attempt(MLP):
        calls = {name: _step(layer, x) for name, layer in layers.items()}
        calls = {models.AGAIN["eager"]: calls["eager"], **calls}
        for call in calls.values():
            call()
        found = models.in_turns(calls, options, time.monotonic() + work.left)
        work.cell(MLP, "training", model=MLP, shape=list(shape), absent=absent, reports=reports, variants=found)


def _step(layer: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    weights = torch.randn(x.shape, device=x.device, dtype=x.dtype)

    def step() -> None:
        layer(x).backward(weights)
        x.grad = None
        for weight in layer.parameters():
            weight.grad = None

    return step
