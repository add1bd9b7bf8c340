"""Claims 2 and 3: what the other form of GELU does to whole models that were trained with one of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hf_gelu_patch import patched
from hf_gelu_patch.evaluation.drift.logits import LogitDrift
from hf_gelu_patch.evaluation.loading.models import load_model
from hf_gelu_patch.evaluation.loading.subjects import subject
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.reference import REFERENCES
from hf_gelu_patch.evaluation.run import evaluate_subject, load
from hf_gelu_patch.evaluation.variants import Variant
from hf_gelu_patch.planning import find_sites
from scripts.studying.sizes import Sizes

__all__ = ["OTHER", "loaded_with_the_other", "with_the_other"]

OTHER = {"bert": "gelu_tanh", "vit": "gelu_tanh", "gpt2": "gelu", "t5": "gelu"}
"""The form that each reference model was not trained with."""
_SPELLED = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
"""As a config has it."""
_KEYS = {"bert": "hidden_act", "vit": "hidden_act", "gpt2": "activation_function", "t5": "dense_act_fn"}
_SHARE = 4  # of the examples, in 16 bits, which a CPU may have to emulate
_SECONDS = 0.2  # of timing, which nobody looks at


def with_the_other(name: str, dtype: str, sizes: Sizes) -> dict[str, Any]:
    """A reference model in one dtype, with its own form and with the other: quality, changed answers, and drift beside
    the model's own rounding error, which is its drift from float64."""
    limit = sizes.limit[name]
    settings = Settings(
        variants=(Variant("other", implementation="eager", activation=OTHER[name]),),
        limit=limit if limit is None or dtype == "float32" else max(1, limit // _SHARE),
        min_seconds=_SECONDS,
        max_seconds=_SECONDS,
        min_rounds=3,
        loading=Loading(dtype=dtype),
    )
    found = evaluate_subject(subject(name), settings, Accelerator(cpu=True))
    [variant] = found.variants
    quality, drift = variant.quality, variant.drift
    return {
        "model": name,
        "dtype": dtype,
        "sites": len(variant.patch.changed),
        "examples": quality.examples,
        "answers": quality.answers,
        "flips": quality.flips,
        "p": quality.p,
        "before": quality.before,
        "differences": {metric: asdict(one) for metric, one in quality.differences.items()},
        "drift": _kept(drift),
        "own": None if drift.own is None else _kept(drift.own),
    }


def _kept(drift: LogitDrift) -> dict[str, Any]:
    return {name: getattr(drift, name) for name in ("relative", "max_abs", "kl_mean", "kl_max", "top1_agreement")}


def loaded_with_the_other(name: str, sizes: Sizes) -> dict[str, Any]:
    """A checkpoint whose config names the other form: whether all its weights load, and how far the model then is from
    a swap in the model that was loaded as it is. The names ``gelu_new`` and ``gelu_pytorch_tanh`` round differently."""
    model, task, _ = load(subject(name), Settings(limit=sizes.limit[name]), Accelerator(cpu=True))
    batch = next(iter(task.batches(task.batch_size())))
    cls: Any = type(model)
    path = str(REFERENCES[name].model_path())
    config = type(model.config).from_pretrained(path)
    setattr(config, _KEYS[name], _SPELLED[OTHER[name]])  # T5 reads "gated-gelu" as the tanh form
    other: PreTrainedModel
    other, loading = cls.from_pretrained(path, config=config, output_loading_info=True)
    other.eval()
    own = load_model(path, REFERENCES[name].task)
    with torch.inference_mode():
        loaded = task.forward(other, batch)
        with patched(own, implementation="eager", activation=OTHER[name]):
            swapped = task.forward(own, batch)
    return {
        "model": name,
        "weights": sum(weight.numel() for weight in other.parameters()),
        "missing": len(loading["missing_keys"]),
        "unexpected": len(loading["unexpected_keys"]),
        "computes": sorted({site.activation for site in find_sites(other).sites if "gelu" in site.activation}),
        "apart": float((loaded - swapped).abs().max() / swapped.abs().max()),
    }
