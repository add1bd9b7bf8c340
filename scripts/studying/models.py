"""Claims 2 and 3: what the other form of GELU does to whole models that were trained with one of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from scipy.stats import bootstrap
from transformers import PreTrainedModel

from hf_gelu_patch import patched
from hf_gelu_patch.evaluation.drift.logits import batch_drift
from hf_gelu_patch.evaluation.loading.models import load_model
from hf_gelu_patch.evaluation.loading.subjects import subject
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.reference import REFERENCES
from hf_gelu_patch.evaluation.run import evaluate_subject, load
from hf_gelu_patch.evaluation.tasks.logits import IGNORED
from hf_gelu_patch.evaluation.variants import Variant
from hf_gelu_patch.planning import find_sites
from scripts.studying.sizes import Sizes

__all__ = ["OTHER", "loaded_with_the_other", "moved", "with_the_other"]

OTHER = {"bert": "gelu_tanh", "vit": "gelu_tanh", "gpt2": "gelu", "t5": "gelu"}
"""The form that each reference model was not trained with."""
_SPELLED = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
"""As a config has it."""
_KEYS = {"bert": "hidden_act", "vit": "hidden_act", "gpt2": "activation_function", "t5": "dense_act_fn"}
_SHARE = 4  # of the examples, in 16 bits, which a CPU may have to emulate
_SECONDS = 0.2  # of timing, which nobody looks at
_RESAMPLES = 9999


def with_the_other(name: str, dtype: str, sizes: Sizes) -> dict[str, Any]:
    """A reference model in one dtype, with its own form and with the other: quality and changed answers."""
    settings = Settings(
        variants=(Variant("other", implementation="eager", activation=OTHER[name]),),
        limit=sizes.limit[name] if dtype == "float32" else _share(name, sizes),
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
        "top1_agreement": drift.top1_agreement,
    }


def moved(name: str, sizes: Sizes) -> dict[str, Any]:
    """How far the other form moves a reference model, and how far rounding does, on the same examples.

    Both are KL(p ‖ q) = Σ p·log(p / q), p being the softmax of the logits of a float64 copy with the model's own form.
    q is that of the copy with the other form, or of the model in each dtype of the study with its own form.

    Returns:
        ``examples``; ``kl``: means over positions, in nats, of "other" and of each dtype; ``ratios``, by dtype: how
        many times as far the other form moves the model as rounding, with the 95 % interval of the bootstrap over
        examples (bias-corrected and accelerated, Efron 1987).
    """
    exact, task, _ = load(subject(name), Settings(limit=_share(name, sizes)), Accelerator(cpu=True))
    exact.double()
    place, kind = str(REFERENCES[name].model_path()), REFERENCES[name].task
    models = {dtype: load_model(place, kind, Loading(dtype=dtype)) for dtype in sizes.dtypes}
    found: defaultdict[str, list[float]] = defaultdict(list)
    positions = 0
    for batch in task.batches(task.batch_size()):
        counts = batch.targets != IGNORED
        positions += int(counts.sum())
        with torch.inference_mode():
            reference = task.forward(exact, batch)
            outputs = {dtype: task.forward(model, batch).double() for dtype, model in models.items()}
            with patched(exact, implementation="eager", activation=OTHER[name]):
                outputs["other"] = task.forward(exact, batch)
        for what, output in outputs.items():
            found[what] += [row["kl_sum"] for row in batch_drift(reference, output, counts)]
    return {
        "examples": len(found["other"]),
        "kl": {what: sum(some) / positions for what, some in found.items()},
        "ratios": {dtype: _ratio(found["other"], found[dtype]) for dtype in sizes.dtypes},
    }


def _ratio(some: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Of their sums: examples are drawn in pairs, and the interval is that of the logarithm."""

    def logarithm(first: Any, second: Any, axis: int = -1) -> Any:
        return np.log(first.sum(axis=axis)) - np.log(second.sum(axis=axis))

    pairs = np.asarray(some), np.asarray(others)
    drawn = bootstrap(pairs, logarithm, paired=True, n_resamples=_RESAMPLES, rng=np.random.default_rng(0))
    interval = drawn.confidence_interval
    return {
        "value": float(np.exp(logarithm(*pairs))),
        "low": float(np.exp(interval.low)),
        "high": float(np.exp(interval.high)),
    }


def _share(name: str, sizes: Sizes) -> int | None:
    limit = sizes.limit[name]
    return None if limit is None else max(2, limit // _SHARE)


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
