"""Tiny random models of real classes, and Triton's interpreter for the whole test process."""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is declared, so before anything imports one
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import copy
import gc
import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import processes
import pytest
import torch
import transformers
from tiny_classifier import write_checkpoint, write_data
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_gelu_patch.implementations import aten, cpp_build, cpp_ops
from hf_gelu_patch.implementations.measured import processors

torch.set_num_threads(1)

OWN_CPU = processors.cpu

KERNELS = pytest.mark.skipif(cpp_build.missing() is not None, reason=f"no compiled kernels: {cpp_build.missing()}")
"""Of a test that runs the kernels of ``cpp``."""


def of_implementation(name: str, *values: object) -> Any:
    """The parameters of a test for one implementation, which is left out where that cannot run."""
    return pytest.param(name, *values, marks=KERNELS if name == "cpp" else ())


def derivatives(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of a function's sum, and those of their squares' sum, up to the third order."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    total, found = function(*leaves).sum(), []
    for _ in range(3):
        grads = torch.autograd.grad(total, leaves, create_graph=True, materialize_grads=True)
        found.extend(grads)
        total = sum(g.square().sum() for g in grads)
        if not total.requires_grad:  # relu's second derivative is none
            break
    return found


_SMALL = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 64}
_DECODER = {**_SMALL, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 32}
_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


@dataclass(frozen=True)
class Family:
    """A tiny random model of one family, its input, and how transformers spells its hidden activation."""

    name: str
    spelling: str
    config: Callable[[], transformers.PretrainedConfig]
    model: str
    inputs: Callable[[], dict[str, Tensor]]
    sites: int

    def build(self, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
        torch.manual_seed(0)
        model = getattr(transformers, self.model)(self.config()).eval().to(dtype)
        for weight in model.parameters():  # larger than at initialisation, so that the activations see large inputs
            weight.data.mul_(4.0) if weight.dim() > 1 else None
        return model

    def run(self, model: nn.Module) -> Tensor:
        """The model's main output on the family's input."""
        inputs = {
            key: value.to(next(model.parameters()).dtype) if value.is_floating_point() else value
            for key, value in self.inputs().items()
        }
        output = model(**inputs)
        return output.logits_per_image if hasattr(output, "logits_per_image") else output[0]

    def exact(self, model: nn.Module) -> Tensor:
        """The model's main output in float64."""
        # transformers 4.57 makes CLIP's causal mask in torch's default dtype, out of the least number of the model's.
        torch.set_default_dtype(torch.float64)
        try:
            return self.run(copy.deepcopy(model).double()).detach()
        finally:
            torch.set_default_dtype(torch.float32)


def _ids() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))}


def _seq2seq() -> dict[str, Tensor]:
    return {**_ids(), "decoder_input_ids": _ids()["input_ids"][:, :5]}


def _image() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float32)}


def _t5(feed_forward: str) -> transformers.T5Config:
    return transformers.T5Config(
        d_model=32, d_kv=8, d_ff=48, num_heads=4, num_layers=2, vocab_size=64, feed_forward_proj=feed_forward
    )


def _clip() -> transformers.CLIPConfig:
    text = {**_SMALL, "num_hidden_layers": 2, "max_position_embeddings": 32, **_TOKENS}
    vision = {**_SMALL, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
    return transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)


_T = transformers
FAMILIES = {
    family.name: family
    for family in (
        Family(
            "bert",
            "gelu",
            lambda: _T.BertConfig(**_SMALL, num_hidden_layers=2),
            "BertForSequenceClassification",
            _ids,
            3,
        ),
        Family(
            "gpt2",
            "gelu_new",
            lambda: _T.GPT2Config(n_embd=32, n_head=4, n_layer=2, n_positions=32, vocab_size=64, **_TOKENS),
            "GPT2LMHeadModel",
            _ids,
            2,
        ),
        Family("t5-v1.0", "relu", lambda: _t5("relu"), "T5ForConditionalGeneration", _seq2seq, 4),
        Family("t5-v1.1", "gelu_new", lambda: _t5("gated-gelu"), "T5ForConditionalGeneration", _seq2seq, 4),
        Family(
            "vit",
            "gelu",
            lambda: _T.ViTConfig(**_SMALL, num_hidden_layers=2, image_size=16, patch_size=8),
            "ViTForImageClassification",
            _image,
            2,
        ),
        Family("llama", "silu", lambda: _T.LlamaConfig(**_DECODER, **_TOKENS), "LlamaForCausalLM", _ids, 2),
        Family("mistral", "silu", lambda: _T.MistralConfig(**_DECODER, **_TOKENS), "MistralForCausalLM", _ids, 2),
        Family(
            "gemma", "gelu_pytorch_tanh", lambda: _T.GemmaConfig(**_DECODER, **_TOKENS), "GemmaForCausalLM", _ids, 2
        ),
        Family(
            "opt",
            "relu",
            lambda: _T.OPTConfig(
                hidden_size=32,
                num_attention_heads=4,
                ffn_dim=48,
                num_hidden_layers=2,
                vocab_size=64,
                word_embed_proj_dim=32,
                max_position_embeddings=32,
                **_TOKENS,
            ),
            "OPTForCausalLM",
            _ids,
            2,
        ),
        Family("clip", "quick_gelu", _clip, "CLIPModel", lambda: {**_ids(), **_image()}, 4),
        Family(
            "bloom",
            "bloom_gelu",
            lambda: _T.BloomConfig(hidden_size=32, n_head=4, n_layer=2, vocab_size=64, **_TOKENS),
            "BloomForCausalLM",
            _ids,
            2,
        ),
    )
}


class Recorder(TorchDispatchMode):
    """The names of the ops that run, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))

    @property
    def own(self) -> list[str]:
        return [name.removeprefix("hf_gelu_patch::") for name in self.names if name.startswith("hf_gelu_patch::")]


def printed_by(code: str) -> str:
    """What a fresh process prints, one whose Triton compiles, as a user's does."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def printed_by_fork(code: str) -> str:
    """The same of a process that has imported torch and transformers already, and nothing of this package."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = processes.run("-c", code, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny classifier's folder."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows for the tiny classifier."""
    return write_data(tmp_path_factory.mktemp("data") / "data.csv")


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES.keys())
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture
def gpt2() -> transformers.GPT2LMHeadModel:
    return FAMILIES["gpt2"].build()


@pytest.fixture
def bert() -> transformers.BertForSequenceClassification:
    return FAMILIES["bert"].build()


@pytest.fixture
def one_process() -> Iterator[Any]:
    """A process group of one process, as a mesh of its CPU."""
    import torch.distributed as dist

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            yield dist.init_device_mesh("cpu", (1,))
        finally:
            dist.destroy_process_group()


@pytest.fixture(autouse=True)
def _quiet_libraries() -> None:
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(torch|transformers|triton)\..*")


@pytest.fixture(autouse=True, scope="module")
def _what_a_process_has_once() -> Iterator[None]:
    """accelerate's settings and torch's process group, which stay for a whole process, go with a file of tests.

    What has been imported until then is no garbage: to look through it took most of a second at every collection.
    """
    gc.collect()
    gc.freeze()
    yield
    if (state := sys.modules.get("accelerate.state")) is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def _small_tensors_count_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is written in place, or computed by a compiled kernel, only where it is large is so here."""
    monkeypatch.setattr(aten, "LARGE", 0)
    monkeypatch.setattr(cpp_ops, "_least", lambda *_: 0)


@pytest.fixture(scope="session", autouse=True)
def _unmeasured_cpu() -> Iterator[None]:
    """So that ``auto`` does the same on whatever CPU the tests run, also in what other fixtures make."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(processors, "cpu", lambda: "CPU of the tests")
        yield


@pytest.fixture(scope="session", autouse=True)
def _interpreted_language_stays() -> Iterator[None]:
    """Triton's interpreter exchanges the functions of ``triton.language`` for its own, and afterwards puts them back.

    It does so for a kernel and for every function that the kernel calls: two thirds of the time of a launch here.
    Nothing in this process compiles, so its own stay once they are there. Nor does it work out for each sum and product
    of integers whether it overflowed: that takes half of the rest, and the interpreter tells nobody.
    """
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime import interpreter

    exchange = interpreter._patch_lang
    exchanged: dict[int, Any] = {}

    def once(kernel: Callable[..., None]) -> SimpleNamespace:
        module = id(kernel.__globals__)
        if module not in exchanged:
            exchanged[module] = exchange(kernel)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = once
    builder = interpreter.interpreter_builder
    options, builder.options = builder.options, replace(builder.options, sanitize_overflow=False)
    yield
    builder.options = options
    interpreter._patch_lang = exchange
    for scope in reversed(exchanged.values()):
        scope.restore()


@pytest.fixture(scope="session")
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where evaluate copies the scripts of metrics to, once for all tests: Python keeps the package it finds first."""
    import evaluate

    own = evaluate.config.HF_MODULES_CACHE
    evaluate.config.HF_MODULES_CACHE = folder = tmp_path_factory.mktemp("modules")
    yield folder
    evaluate.config.HF_MODULES_CACHE = own
