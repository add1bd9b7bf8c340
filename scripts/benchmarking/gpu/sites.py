"""Single layers as models have them, patched: what a user waits for at a site, from which ``auto`` chooses."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch import ImplementationUnavailableError, Site, find_sites, patch
from hf_gelu_patch.activations import Resolved
from hf_gelu_patch.implementations import IMPLEMENTATIONS
from hf_gelu_patch.recognition import resolve
from scripts.benchmarking.architectures import twin
from scripts.benchmarking.gpu.models import AGAIN, FORWARD, LARGE, SMALL, TRAINING, concluded
from scripts.benchmarking.gpu.schedule import Work
from scripts.benchmarking.kernels import candidates
from scripts.benchmarking.timing import WALL, Samples, enough, figures, rounds_on

SPELLINGS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "silu", "quick_gelu", "relu")
"""Of transformers' activations; gelu_new and gelu_pytorch_tanh are one function, in eight ops and in one."""
DTYPES = ("bfloat16", "float32", "float16")
MEDIUM = "medium"
Layer = tuple[int, int, int]
LAYERS_ON: Mapping[str, Mapping[str, Layer]] = {
    "cuda": {LARGE: (32 * 512, 768, 3072), SMALL: (128, 768, 3072)},
    "cpu": {LARGE: (8 * 128, 768, 3072), MEDIUM: (128, 768, 3072), SMALL: (16, 256, 1024)},
}
"""Tokens, and the columns that a linear layer reads and writes: as in BERT base and GPT-2 small; on a CPU, where few
tokens wait for nothing but the products, a narrower one too."""
TINY_LAYERS: Mapping[str, Layer] = {LARGE: (16, 8, 32), MEDIUM: (8, 8, 32), SMALL: (4, 8, 32)}
MODES = (FORWARD, TRAINING)
CELLS = tuple(itertools.product(LAYERS_ON["cuda"], MODES))
_SECONDS, _MOST_ROUNDS = 0.02, 60
_LEAST_ON_CPU, _MOST_ON_CPU = 5, 300


class Pointwise(nn.Module):
    def __init__(self, act: nn.Module, read: int, written: int) -> None:  # noqa: ARG002
        super().__init__()
        self.act, self.columns, self.norm = act, written, nn.LayerNorm(written)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.norm(x))
        return y


class Linear(nn.Module):
    def __init__(self, act: nn.Module, read: int, written: int) -> None:
        super().__init__()
        self.act, self.columns, self.dense = act, read, nn.Linear(read, written)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.dense(x))
        return y


class Gated(nn.Module):
    def __init__(self, act: nn.Module, read: int, written: int) -> None:
        super().__init__()
        self.act, self.columns = act, read
        self.gate, self.up = nn.Linear(read, written), nn.Linear(read, written)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.gate(x)) * self.up(x)
        return y


LAYERS: Mapping[str, Callable[..., Any]] = {"pointwise": Pointwise, "linear": Linear, "gated": Gated}
"""The kind of a site → a layer with one of it."""
COUNT = len(DTYPES) * len(LAYERS) * len(SPELLINGS) * len(CELLS)
"""Of all the cells on a GPU."""


def measure(work: Work) -> None:
    """Every kind of site, as transformers writes it and patched, on many tokens and on few."""
    tiny = work.options.tiny
    every = itertools.product(DTYPES[: 1 if tiny else None], LAYERS, SPELLINGS[:2] if tiny else SPELLINGS)
    for dtype, kind, spelling in every:
        measure_one(kind, spelling, dtype, work)


def measure_one(
    kind: str, spelling: str, dtype: str, work: Work, sizes: Iterable[str] = tuple(LAYERS_ON["cuda"])
) -> None:
    """One kind of site, in the cells of these sizes."""
    what = f"{kind}, {spelling}, {dtype}"
    if work.left <= 0:
        work.leave_out(what)
        return
    for size in sizes:
        with work.attempt(f"{what}, {size}"):
            _measure(kind, spelling, dtype, size, work)


def compared() -> list[str]:
    """The implementations that are measured; not triton_rounded, which takes as long as triton."""
    return [name for name in IMPLEMENTATIONS if name not in ("eager", "triton_rounded")]


def by_itself(site: Site) -> bool:
    """Whether what is planned at a site is of that name alone: what an epilogue cannot be fused at is aten's."""
    return site.implementation is not None and (site.fused or site.implementation != "epilogue")


def layer_of(size: str, work: Work) -> Layer:
    return TINY_LAYERS[size] if work.options.tiny else LAYERS_ON[work.options.device][size]


def numbers_of(kind: str, size: str, rows: int) -> int:
    """How many numbers a site of a layer on a CPU is given: a linear layer its input, else the activation its own."""
    _, read, written = LAYERS_ON["cpu"][size]
    return rows * (read if kind == "linear" else written)


def variants_of(kind: str, spelling: str, dtype: str, size: str, work: Work) -> dict[str, Any]:
    """The layer by what its activation is computed with: those implementations that change something there. They share
    its weights: its own would be in a CPU's cache more often, since it runs twice in each round."""
    from transformers.activations import ACT2FN

    options = work.options
    torch.manual_seed(options.seed)
    eager = LAYERS[kind](ACT2FN[spelling], *layer_of(size, work)[1:])
    made = {"eager": eager.to(options.device, candidates.DTYPES[dtype])}
    for name in compared():
        with work.attempt(f"{kind}, {spelling}, {dtype}, {name}"):
            try:
                [site] = find_sites(eager, implementation=name).sites
            except ImplementationUnavailableError:
                continue
            if by_itself(site):
                made[name] = twin(eager)
                patch(made[name], implementation=name)
    return made


def _measure(kind: str, spelling: str, dtype: str, size: str, work: Work) -> None:
    options = work.options
    made = variants_of(kind, spelling, dtype, size, work)
    current = resolve(made["eager"].act)
    assert isinstance(current, Resolved)
    named = {"kind_of_site": kind, "activation": current.activation.name, "dtype": dtype, "ops": current.aten_ops}
    rows = layer_of(size, work)[0]
    for mode in MODES:
        generator = torch.Generator(options.device).manual_seed(options.seed)
        columns = made["eager"].columns
        x = torch.randn(rows, columns, generator=generator, device=options.device).to(candidates.DTYPES[dtype])
        calls = {name: call_of(layer, x, mode) for name, layer in made.items()}
        calls = {AGAIN["eager"]: call_of(made["eager"], x, mode), **calls}
        clock = options.clock if "clock" in options else WALL
        rounds = rounds_on(options.device, clock, with_launch=True)
        rounds(calls, 3, options.seed)
        samples = figures(rounds(calls, _count(rounds(calls, 3, options.seed), options), options.seed))
        variants = concluded(samples, {}, options.seed)
        about = {**named, "size": size, "mode": mode, "rows": rows, "spelling": spelling}
        about |= {"threads": torch.get_num_threads(), "clock": clock} if options.device == "cpu" else {}
        about |= {"sources": options.sources} if "sources" in options else {}
        work.cell(f"{kind}, {spelling}, {dtype}, {size}, {mode}", "site", **about, variants=variants)


def _count(trial: Samples, options: Any) -> int:
    """How many rounds. On a CPU other work makes more noise, and nothing is lent by the minute."""
    if options.tiny:
        return 5
    if options.device == "cuda":
        return enough(trial, 30, _SECONDS, _MOST_ROUNDS)
    once = sum(statistics.median(own) for own in trial.values())
    return max(_LEAST_ON_CPU, min(_MOST_ON_CPU, int(options.cell_seconds / once)))


def call_of(layer: nn.Module, x: Tensor, mode: str) -> Callable[[], Any]:
    """A forward that nothing is differentiated of, or one and its backward."""
    if mode == FORWARD:

        def forward() -> Any:
            with torch.no_grad():
                return layer(x)

        return forward
    learned = x.clone().requires_grad_()
    wanted, grad_y = [learned, *layer.parameters()], torch.ones_like(layer(learned))
    return lambda: torch.autograd.grad(layer(learned), wanted, grad_y)
