"""What an evaluation found out."""

from __future__ import annotations

from dataclasses import dataclass

from hf_gelu_patch import Report
from hf_gelu_patch.evaluation.drift.layers import LayerDrift
from hf_gelu_patch.evaluation.drift.logits import LogitDrift
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.quality import Quality
from hf_gelu_patch.evaluation.records import Fingerprint
from hf_gelu_patch.evaluation.samples.comparing import TaskComparison
from hf_gelu_patch.evaluation.speed.summary import Speed
from hf_gelu_patch.evaluation.variants import Variant

__all__ = ["Result", "VariantResult"]


@dataclass(frozen=True)
class VariantResult:
    """Everything that was found out about one variant.

    Attributes:
        variant: how it was patched.
        patch: what was patched, and why the rest was not.
        quality: before and after.
        drift: of the logits (of a task without logits, of what stands for them), over all examples; ``own`` and
            ``exact`` on one batch.
        layers: the drift of each layer's output on that batch, last that of the logits or what stands for them.
        speed: before and after.
        wrong: why its implementation is wrong, in words; None where nothing says so. It is where there are numbers
            that are not finite where the unpatched model's are, or where the sites claim to compute the same function
            and the logits moved further than ``patch(verify=)`` lets them: by more than √ε of what they usually are,
            or, on one batch, further from float64 than the unpatched model's own error allows.
        tasks: of a task of lm-evaluation-harness, that task's comparisons, or those of all tasks of a group.
    """

    variant: Variant
    patch: Report
    quality: Quality
    drift: LogitDrift
    layers: tuple[LayerDrift, ...]
    speed: Speed
    wrong: str | None
    tasks: tuple[TaskComparison, ...] = ()


@dataclass(frozen=True)
class Result:
    """Everything that was found out about one model.

    Attributes:
        subject: the model and its data.
        variants: each against the unpatched model.
        unpatched: that model's metrics by name.
        activation_share: the share of its forward's time that activations take.
        peak_memory: the most memory there was in use in its forward, as ``speed.peak_memory`` tells it.
        load_memory: while it was loaded, likewise; None also where it came loaded.
        described: a short text of each example whose answer is in some ``quality.flipped``.
        named: what people call the answers there, by what ``quality.flipped`` has: labels and tokens by their texts.
        exact_reason: why there was no float64 copy to compare with; "" where there was one.
        in_turn: why the one model was patched and unpatched in turn; "" where each variant was a twin that shared its
            weights.
        model_class, parameters, dtype, device, attn_implementation: the model as it ran.
        batch_size: examples in a batch.
        seconds: how long each of ``STAGES`` took, and "compile", which no other figure includes: 0.0 where nothing was
            compiled.
        skipped: each row of the data that was left out, counted from 1, and why.
        records: the folder with what each model said of each example, relative to the one for results; None where
            nothing was recorded.
        fingerprint: all that the answers depend on: the weights, config and data by their hashes, dtype, versions, ….
    """

    subject: Subject
    variants: tuple[VariantResult, ...]
    unpatched: dict[str, float]
    activation_share: float
    peak_memory: int | None
    described: dict[int, str]
    named: dict[str, str]
    exact_reason: str
    in_turn: str
    model_class: str
    parameters: int
    dtype: str
    device: str
    attn_implementation: str | None
    batch_size: int
    seconds: dict[str, float]
    skipped: tuple[tuple[int, str], ...]
    records: str | None
    fingerprint: Fingerprint
    load_memory: int | None = None

    @property
    def wrong(self) -> dict[str, str]:
        """The variants whose implementation is wrong, and why."""
        return {one.variant.name: one.wrong for one in self.variants if one.wrong is not None}
