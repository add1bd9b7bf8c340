"""Whole models with random weights, as transformers has them, patched, compiled, and both.

All variants of a model share its weights; they differ in what their activations run.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarking.timing import compared, enough, figures, peak, rounds_on, say
from hf_gelu_patch import ops, patch
from hf_gelu_patch.evaluation.speed import ratio
from hf_gelu_patch.verification import drifts, exact_outputs, outputs


@dataclass(frozen=True)
class Architecture:
    """A model to be built.

    Attributes:
        model, config: transformers' classes.
        published: the configuration of the size that was published.
        tiny: what makes it small enough for any machine.
        gib: GPU memory that a training step on the large batch may take, an estimate.
        epilogue: the options of a patch that puts the activation into the GEMM's epilogue; None where none does.
    """

    model: str
    config: str
    gib: int
    published: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    epilogue: Mapping[str, str] | None = None

    def build(self, device: str, dtype: torch.dtype, *, tiny: bool) -> nn.Module:
        settings = {**self.published, **(self.tiny if tiny else {}), "use_cache": False}
        torch.manual_seed(0)
        with torch.device(device):
            model = getattr(transformers, self.model)(getattr(transformers, self.config)(**settings))
        built: nn.Module = model.to(dtype).eval()
        return built


_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_EXACT_AS_TANH = {"implementation": "epilogue", "activation": "gelu_tanh"}
ARCHITECTURES = {
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        "GPT2Config",
        gib=30,
        tiny={"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0},
        epilogue={"implementation": "epilogue"},
    ),
    "bert": Architecture(
        "BertForSequenceClassification",
        "BertConfig",
        gib=12,
        tiny={**_TINY, "vocab_size": 64},
        epilogue=_EXACT_AS_TANH,
    ),
    "t5": Architecture(
        "T5ForConditionalGeneration",
        "T5Config",
        gib=60,
        published={
            **{"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
            **{"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0},
        },
        tiny={"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 64},
    ),
    "vit": Architecture(
        "ViTForImageClassification",
        "ViTConfig",
        gib=14,
        published={"num_labels": 1000},
        tiny={**_TINY, "image_size": 32, "patch_size": 16},
        epilogue=_EXACT_AS_TANH,
    ),
    "llama": Architecture(
        "LlamaForCausalLM",
        "LlamaConfig",
        gib=85,
        published={
            **{"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True},
        },
        tiny={
            **_TINY,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 64,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
    ),
}
"""BERT base, GPT-2 small, T5 v1.1 base, ViT base, and a Llama of 1.2 G parameters (3.2's)."""

LARGE, SMALL = "large", "small"
SHAPES = {LARGE: (32, 512), SMALL: (1, 128)}
"""Batch × length; of images, as many as have that many patches."""
TINY_SHAPES = {LARGE: (2, 16), SMALL: (1, 8)}
FORWARD, TRAINING = "forward", "training step"
CELLS = ((LARGE, FORWARD), (LARGE, TRAINING), (SMALL, FORWARD), (SMALL, TRAINING))
COMPILED_CELLS = CELLS[:3]
"""The training step on the small batch is not compiled: a minute for each model, of the few there are."""
BASES = {"compiled": "eager", "compiled_triton": "compiled"}
"""What a variant is compared with, where that is not eager."""


def batch_of(model: nn.Module, shape: tuple[int, int], device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs and labels of a batch."""
    generator = torch.Generator(device).manual_seed(0)
    config: Any = model.config
    batch, length = shape
    if hasattr(config, "image_size"):
        images = math.ceil(batch * length / ((config.image_size // config.patch_size) ** 2 + 1)) if batch > 1 else 1
        size = (images, 3, config.image_size, config.image_size)
        pixels = torch.randn(size, generator=generator, device=device).to(dtype)
        return {"pixel_values": pixels, "labels": torch.zeros(images, dtype=torch.long, device=device)}
    ids = torch.randint(2, config.vocab_size, shape, generator=generator, device=device)
    if type(model).__name__.endswith("ForSequenceClassification"):
        return {"input_ids": ids, "labels": torch.zeros(batch, dtype=torch.long, device=device)}
    return {"input_ids": ids, "labels": ids}


def twin(model: nn.Module) -> Any:
    """A copy of a model's modules over the same weights."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, shared)


class Bench:
    """One model in all its variants, ready to be timed.

    Attributes:
        variants: "eager", "auto", "triton", where there is one "epilogue", and "compiled", "compiled_triton"; those
            that could not be made are in ``absent``, those that do not run in a cell in ``failed``, with the reason.
        reports: what each patch did.
        drift: how far each moved the outputs of a small batch, beside the error against float64.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.options, self.device = name, options, options.device
        self.architecture = ARCHITECTURES[name]
        self.dtype = torch.bfloat16
        self.shapes = TINY_SHAPES if options.tiny else SHAPES
        self.variants: dict[str, Any] = {}
        self.absent: dict[str, str] = {}
        self.failed: dict[tuple[str, str], dict[str, str]] = {cell: {} for cell in CELLS}
        self.reports: dict[str, str] = {}
        model = self.architecture.build(self.device, self.dtype, tiny=options.tiny)
        self.variants["eager"] = model
        self.batches = {name: batch_of(model, shape, self.device, self.dtype) for name, shape in self.shapes.items()}
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)  # the weights stay what they are
        for name in ("auto", "triton", *(["epilogue"] if self.architecture.epilogue else [])):
            with self._attempt(name):
                self._patch(name)
        self.drift = self._drift()
        torch._dynamo.config.recompile_limit = 64
        for name, of in (("compiled", "eager"), ("compiled_triton", "triton")):
            if options.backend != "none" and of in self.variants:
                with self._attempt(name):
                    self.variants[name] = torch.compile(self.variants[of], backend=options.backend)

    def _patch(self, name: str) -> None:
        options: Mapping[str, str] = {"implementation": name}
        if name == "epilogue" and self.architecture.epilogue:
            options = self.architecture.epilogue
        model = twin(self.variants["eager"])
        self.reports[name] = str(patch(model, **options))
        self.variants[name] = model

    @contextmanager
    def _attempt(self, name: str, cell: tuple[str, str] | None = None) -> Iterator[None]:
        """Whatever a variant raises is told, and costs that variant alone; in a cell, in that cell alone."""
        try:
            yield
        except Exception as error:
            say(f"{self.name}: {name} failed: {error}")
            where = self.absent if cell is None else self.failed[cell]
            where[name] = f"{type(error).__name__}: {' '.join(str(error).split()[:60])}"
            if cell is None:
                self.variants.pop(name, None)
            self.optimizer.zero_grad(set_to_none=True)
            self.release()

    def _drift(self) -> dict[str, dict[str, Any]]:
        inputs = self.inputs(SMALL)
        before = outputs(self.variants["eager"], inputs)
        before = {name: before[name] for name in before if name == "logits"}
        exact = exact_outputs(self.variants["eager"], inputs)
        found = {}
        usual, ops.SMALL = ops.SMALL, 0  # as on a large batch, by the kernels
        for name in list(self.variants):
            with self._attempt(name):
                (drift,) = drifts(before, outputs(self.variants[name], inputs), exact, None)
                found[name] = {**vars(drift), "exceeded": drift.exceeded}
        ops.SMALL = usual
        return found

    def inputs(self, size: str) -> dict[str, Tensor]:
        """A forward's: without labels, but for T5, which has its decoder's inputs from them."""
        return {key: value for key, value in self.batches[size].items() if key != "labels" or self.name == "t5"}

    def call(self, variant: str, size: str, mode: str) -> Callable[[], Any]:
        model, batch = self.variants[variant], self.batches[size]
        if mode == FORWARD:
            inputs = self.inputs(size)

            def forward() -> Any:
                with torch.no_grad():
                    return model(**inputs)

            return forward

        def step() -> None:
            model(**batch).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        return step

    def calls(self, size: str, mode: str) -> dict[str, Callable[[], Any]]:
        """What is timed in a cell, in the mode it runs in."""
        for model in self.variants.values():
            model.train(mode == TRAINING)
        names = [
            name
            for name in self.variants
            if ((size, mode) in COMPILED_CELLS or not name.startswith("compiled"))
            and (mode == FORWARD or name != "epilogue")  # it has no backward of its own
            and name not in self.failed[size, mode]
        ]
        return {name: self.call(name, size, mode) for name in names}

    def warm_up(self) -> None:
        """Compile, and let every library make its choices."""
        for size, mode in CELLS:
            for name, call in self.calls(size, mode).items():
                with self._attempt(name, (size, mode)):
                    say(f"{self.name}: first {mode}, {size}, {name}")
                    call()
        self.release()

    def release(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def cell(self, size: str, mode: str, seconds: float) -> dict[str, Any]:
        """One shape in one mode, within about so many seconds."""
        say(f"{self.name}: timing {mode}, {size}")
        failed = self.failed[size, mode]
        cell: dict[str, Any] = {"model": self.name, "size": size, "mode": mode, "absent": {**self.absent, **failed}}
        cell["shape"] = next(list(tensor.shape) for tensor in self.batches[size].values())
        calls = self.calls(size, mode)
        if "eager" not in calls:
            raise RuntimeError(f"eager failed: {failed['eager']}")
        calls = {"again": calls["eager"], **calls}
        if "compiled" in calls:
            calls = {"compiled_again": calls["compiled"], **calls}
        rounds, seed = rounds_on(self.device, with_launch=True), self.options.seed
        trial = rounds(calls, 3, seed)
        once = sum(statistics.median(own) for own in trial.values())
        count = max(5, min(enough(trial, 30, 1.0, 300), int(seconds / once)))
        samples = figures(rounds(calls, count, seed))
        pairs = {"eager": "again", "compiled": "compiled_again"}
        floors = {
            base: ratio(samples[base], samples[again], seed=seed) for base, again in pairs.items() if base in samples
        }
        cell["variants"] = {}
        for name, own in samples.items():
            row: dict[str, Any] = {"median_s": statistics.median(own), "samples_s": own}
            base = BASES.get(name, "eager")
            if name not in ("eager", *pairs.values()) and base in floors:
                row |= {"base": base, **compared(samples[base], own, floors[base], seed)}
            row["peak_bytes"] = peak(calls[name]) if self.device == "cuda" else None
            cell["variants"][name] = row
        self.release()
        return cell

    def profile(self) -> dict[str, list[dict[str, Any]]]:
        """The kernels that a large forward spends its time in, eager and by Triton: what is left to be won."""
        activity = torch.profiler.ProfilerActivity
        on_gpu = self.device == "cuda"
        wanted, time = ([activity.CUDA], "device") if on_gpu else ([activity.CPU], "cpu")
        found = {}
        calls = self.calls(LARGE, FORWARD)
        for name in ("eager", "triton"):
            if name not in calls:
                continue
            with torch.profiler.profile(activities=wanted, acc_events=True) as seen:
                calls[name]()
                if on_gpu:
                    torch.cuda.synchronize()
            rows = [
                {"kernel": event.key[:100], "calls": event.count, "us": getattr(event, f"self_{time}_time_total")}
                for event in seen.key_averages()
            ]
            found[name] = sorted(rows, key=lambda row: -row["us"])[:20]
        return found

    def about(self) -> dict[str, Any]:
        weights = sum(weight.numel() for weight in self.variants["eager"].parameters())
        return {
            **{"model": self.name, "architecture": self.architecture.model, "parameters": weights},
            **{"dtype": str(self.dtype).removeprefix("torch."), "reports": self.reports, "drift": self.drift},
            **{"attention": getattr(self.variants["eager"].config, "_attn_implementation", None)},
        }
