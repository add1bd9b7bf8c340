"""Single layers as models have them, patched: what a user waits for at a site, from which ``auto`` chooses."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch import ImplementationUnavailableError, find_sites, patch
from hf_gelu_patch.activations import Resolved
from hf_gelu_patch.implementations import IMPLEMENTATIONS
from hf_gelu_patch.recognition import resolve
from scripts.benchmarking.gpu.models import AGAIN, FORWARD, LARGE, SMALL, TRAINING, concluded
from scripts.benchmarking.gpu.schedule import Work
from scripts.benchmarking.kernels import candidates
from scripts.benchmarking.timing import enough, figures, rounds_on

SPELLINGS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "silu", "quick_gelu", "relu")
"""Of transformers' activations; gelu_new and gelu_pytorch_tanh are one function, in eight ops and in one."""
DTYPES = ("bfloat16", "float32", "float16")
COLUMNS, TINY_COLUMNS = (768, 3072), (8, 32)
"""Those that a linear layer reads, and that it writes: as in BERT base and GPT-2 small."""
TOKENS = {LARGE: 32 * 512, SMALL: 128}
TINY_TOKENS = {LARGE: 16, SMALL: 4}
CELLS = tuple(itertools.product(TOKENS, (FORWARD, TRAINING)))
_SECONDS, _MOST_ROUNDS = 0.02, 60


class Pointwise(nn.Module):
    def __init__(self, act: nn.Module, columns: tuple[int, int]) -> None:
        super().__init__()
        self.act, self.columns, self.norm = act, columns[1], nn.LayerNorm(columns[1])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.norm(x))
        return y


class Linear(nn.Module):
    def __init__(self, act: nn.Module, columns: tuple[int, int]) -> None:
        super().__init__()
        self.act, self.columns, self.dense = act, columns[0], nn.Linear(*columns)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.dense(x))
        return y


class Gated(nn.Module):
    def __init__(self, act: nn.Module, columns: tuple[int, int]) -> None:
        super().__init__()
        self.act, self.columns, self.gate, self.up = act, columns[0], nn.Linear(*columns), nn.Linear(*columns)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.gate(x)) * self.up(x)
        return y


LAYERS: Mapping[str, Callable[..., Any]] = {"pointwise": Pointwise, "linear": Linear, "gated": Gated}
"""The kind of a site → a layer with one of it."""
COUNT = len(DTYPES) * len(LAYERS) * len(SPELLINGS) * len(CELLS)
"""Of all the cells."""


def measure(work: Work) -> None:
    """Every kind of site, as transformers writes it and patched, on many tokens and on few."""
    tiny = work.options.tiny
    for dtype in DTYPES[: 1 if tiny else None]:
        for kind, spelling in itertools.product(LAYERS, SPELLINGS[:2] if tiny else SPELLINGS):
            what = f"{kind}, {spelling}, {dtype}"
            if work.left <= 0:
                work.leave_out(what)
                continue
            with work.attempt(what):
                _measure(kind, spelling, dtype, work)


def compared(device: str, dtype: torch.dtype) -> list[str]:
    """The implementations that run there; but triton_rounded, which takes as long as triton."""
    left_out = ("eager", "triton_rounded")
    where = torch.device(device)
    return [
        name for name, one in IMPLEMENTATIONS.items() if name not in left_out and one.obstacle(where, dtype) is None
    ]


def variants_of(kind: str, spelling: str, dtype: str, work: Work) -> dict[str, Any]:
    """The layer by what its activation is computed with: those implementations that change something there."""
    from transformers.activations import ACT2FN

    options = work.options
    torch.manual_seed(options.seed)
    eager = LAYERS[kind](ACT2FN[spelling], TINY_COLUMNS if options.tiny else COLUMNS)
    made = {"eager": eager.to(options.device, candidates.DTYPES[dtype])}
    for name in compared(options.device, candidates.DTYPES[dtype]):
        with work.attempt(f"{kind}, {spelling}, {dtype}, {name}"):
            try:
                [site] = find_sites(eager, implementation=name).sites
            except ImplementationUnavailableError:
                continue
            if site.implementation == name and (site.fused or name != "epilogue"):  # else it is aten, by another name
                made[name] = copy.deepcopy(eager)
                patch(made[name], implementation=name)
    return made


def _measure(kind: str, spelling: str, dtype: str, work: Work) -> None:
    options = work.options
    made = variants_of(kind, spelling, dtype, work)
    current = resolve(made["eager"].act)
    assert isinstance(current, Resolved)
    named = {"kind_of_site": kind, "activation": current.activation.name, "dtype": dtype, "ops": current.aten_ops}
    for size, mode in CELLS:
        rows = (TINY_TOKENS if options.tiny else TOKENS)[size]
        generator = torch.Generator(options.device).manual_seed(options.seed)
        columns = made["eager"].columns
        x = torch.randn(rows, columns, generator=generator, device=options.device).to(candidates.DTYPES[dtype])
        calls = {name: call_of(layer, x, mode) for name, layer in made.items()}
        calls = {AGAIN["eager"]: call_of(made["eager"], x, mode), **calls}
        rounds = rounds_on(options.device, with_launch=True)
        rounds(calls, 3, options.seed)
        count = 5 if options.tiny else enough(rounds(calls, 3, options.seed), 30, _SECONDS, _MOST_ROUNDS)
        samples = figures(rounds(calls, count, options.seed))
        variants = concluded(samples, {}, options.seed)
        work.cell(f"{kind}, {spelling}, {dtype}, {size}, {mode}", "site", **named, size=size, mode=mode, rows=rows,
                  spelling=spelling, variants=variants)  # fmt: skip


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
