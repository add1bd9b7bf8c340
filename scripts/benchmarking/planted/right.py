"""Right patches, over implementations, dtypes, modes and wrappers: none of them may be called wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch import ACTIVATIONS, Implementation, register_implementation
from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS
from scripts.benchmarking.planted.specimens import SPECIMENS, Batch, Specimen

ONCE, FORMULA = "rounded once", "written out"


def _once(name: str) -> Callable[[Tensor], Tensor]:
    return lambda x: ACTIVATIONS[name].eager(x.double()).to(x.dtype)


def _product_once(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda gate, up: (ACTIVATIONS[name].eager(gate.double()) * up.double()).to(gate.dtype)


_FORMULAS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: 0.5 * x * (1.0 + torch.erf(x * 0.7071067811865476)),
    "gelu_tanh": lambda x: x * torch.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x)),
    "silu": lambda x: x / (1.0 + torch.exp(-x)),
    "relu": lambda x: 0.5 * (x + x.abs()),
}


@contextmanager
def implementations() -> Iterator[None]:
    """Two of one's own: one that computes in float64 and rounds once, one that rounds at each operation."""
    names = sorted({specimen.activation for specimen in SPECIMENS.values()})
    once = {name: _once(name) for name in names}
    register_implementation(Implementation(ONCE, once, {name: _product_once(name) for name in names}))
    register_implementation(Implementation(FORMULA, {name: _FORMULAS[name] for name in names}))
    try:
        yield
    finally:
        del IMPLEMENTATIONS[ONCE], IMPLEMENTATIONS[FORMULA]


@dataclass(frozen=True)
class Setting:
    """How a model is held while it is verified.

    Attributes:
        name: in words.
        models: those that can be held so.
        prepare: makes of the model what is patched.
        given: makes of a batch what is given.
        around: what all of it happens in.
        training: whether in training mode.
        batch: which, as ``Specimen.batch`` has it.
        gradients: whether gradients are compared.
    """

    name: str
    models: tuple[str, ...] = tuple(SPECIMENS)
    prepare: Callable[[Any], nn.Module] = lambda model: model
    given: Callable[[Batch], Batch] = lambda batch: batch
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    training: bool = False
    batch: str = "usual"
    gradients: bool = True


@dataclass(frozen=True)
class Right:
    """A right patch of a model in a setting."""

    specimen: Specimen
    dtype: torch.dtype
    implementation: str
    setting: Setting = field(repr=False)

    @property
    def name(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.specimen.name}, {dtype}, {self.implementation}, {self.setting.name}"


# ------------------------------------------------------------------------------------------------------------ settings


class _LowRank(nn.Module):
    """What an adapter does: a linear layer's result, and a product of two small matrices beside it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        size, given = base.weight.shape
        like = {"dtype": base.weight.dtype}
        self.down, self.up = nn.Linear(given, 4, bias=False, **like), nn.Linear(4, size, bias=False, **like)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def _with_adapters(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    model.requires_grad_(False)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and not isinstance(module, _LowRank):
                setattr(module, name, _LowRank(child))
    return model


def _dispatched(model: nn.Module) -> nn.Module:
    """With accelerate's hooks on every module, as a device map leaves them."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for module in model.modules():
        add_hook_to_module(module, AlignDevicesHook("cpu", io_same_device=True))
    return model


class _Masked(nn.Module):
    """A model that marks logits that may not be chosen by the least number of their dtype, as Chameleon does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        logits = self.model(**batch).logits
        least = torch.finfo(logits.dtype).min
        return {"logits": logits.index_fill(-1, torch.arange(0, logits.shape[-1], 3), least)}


class _Tuple(nn.Module):
    """A model that gives a tuple: its logits, which of them are largest, and their softmax."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Any) -> tuple[Tensor, ...]:
        logits = self.model(**batch).logits
        return logits, logits.shape[-1] * torch.ones(2, dtype=torch.long), logits.softmax(-1)


def _checkpointed(model: Any) -> nn.Module:
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _half_frozen(model: nn.Module) -> nn.Module:
    for weight in list(model.parameters())[::2]:
        weight.requires_grad_(False)
    return model


def _with_outliers(model: nn.Module) -> nn.Module:
    """One feature is a hundred times the others, as it is in large language models."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1 and "norm" in name.lower() and name.endswith("weight"):
                weight[0] *= 100
    return model


def _hooked(model: nn.Module) -> nn.Module:
    """With a hook on every module, as who looks at hidden states has them."""
    outputs: list[object] = []
    for module in model.modules():
        module.register_forward_hook(lambda *called: outputs.append(called[-1]))
    return model


def _compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def _padded(batch: Batch) -> Batch:
    mask = torch.ones_like(batch["input_ids"])
    mask[0, -4:] = 0
    return {**batch, "attention_mask": mask}


_IDS = ("bert", "gpt2", "t5", "llama", "mixtral", "gemma", "phi3", "opt")
PLAIN = Setting("evaluation mode")
_SETTINGS = (
    Setting("under torch.no_grad()", around=torch.no_grad, gradients=False),
    Setting("under autocast", around=lambda: torch.autocast("cpu", torch.bfloat16)),
    Setting("gradient checkpointing", prepare=_checkpointed, training=True),
    Setting("adapters", prepare=_with_adapters),
    Setting("accelerate's hooks", prepare=_dispatched),
    Setting("masked logits", prepare=_Masked),
    Setting("a tuple given back", prepare=_Tuple),
    Setting("hidden states given back", given=lambda batch: {**batch, "output_hidden_states": True}),
    Setting("half of the weights frozen", prepare=_half_frozen),
    Setting("outliers", prepare=_with_outliers),
    Setting("forward hooks", prepare=_hooked),
    Setting("padded", tuple(name for name in _IDS), given=_padded),
    Setting("a cache given", tuple(name for name, one in SPECIMENS.items() if one.decoder), batch="cached"),
    Setting("torch.compile", ("bert", "llama"), prepare=_compiled),
)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_NARROW = _DTYPES[:3]


def _rights() -> Iterator[Right]:
    for one in SPECIMENS.values():
        dtypes = [dtype for dtype in _DTYPES if dtype not in one.refuses]
        for dtype, training in itertools.product(dtypes, (False, True)):
            yield Right(one, dtype, "aten", Setting("training mode", training=True) if training else PLAIN)
        for dtype in dtypes:
            yield Right(one, dtype, ONCE, PLAIN)
        for dtype in _DTYPES[:2]:
            yield Right(one, dtype, FORMULA, PLAIN)
        for dtype in _NARROW:
            yield Right(one, dtype, "triton", PLAIN)
        for setting in _SETTINGS:
            if one.name in setting.models:
                yield Right(one, torch.float32, ONCE, setting)


RIGHT: tuple[Right, ...] = tuple(_rights())
