"""What to compare, and how to measure: the options of an evaluation that are not about a model's data."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_gelu_patch.evaluation.options.declaring import GROUPS, above_zero, option, positive
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.variants import Variant

__all__ = ["Settings"]

_DATA, _PATCH, _, _MEASURING = GROUPS


@dataclass(frozen=True)
class Settings:
    """What to compare, and how to measure. The options say of themselves what they are, with what the command line
    calls them; beside them there are:

    Attributes:
        loading: how to load the model.
        min_rounds: how many rounds to time the forward at least; each of what is timed beside it takes a third.
        min_seconds: for how long to time each variant's forward at least.
        max_seconds: for how long to time them all together at most, though for three rounds in any case.
    """

    variants: tuple[Variant, ...] = option(
        (Variant("auto"),),
        "one way to patch: an implementation's name, and activation=, include= or exclude= with commas between them "
        "and ';' between patterns; may be repeated, and takes the place of the four options below",
        _PATCH,
        metavar="VARIANT",
        spelled="variant",
        repeated=True,
    )
    skip_bad_rows: bool = option(False, "leave out rows that cannot be used, and count them", _DATA)
    limit: int | None = option(
        None, "use the first N rows, or blocks of text (default: all)", _DATA, metavar="N", read=positive
    )
    batch_size: int | None = option(
        None,
        "examples in a batch (default: 32, or fewer where the logits would take more than 128 MB)",
        _MEASURING,
        metavar="N",
        read=positive,
        spelled="per_device_eval_batch_size",
    )
    min_seconds: float = option(
        10.0,
        "time each variant for so long at least, and for no more than twice as long on average (default: 10)",
        _MEASURING,
        metavar="S",
        read=above_zero,
        spelled="timing_seconds",
    )
    margin: float | None = option(
        None,
        "how far a metric may move and count as equivalent: 0.01 is one point of accuracy, 1 %% of a perplexity",
        _MEASURING,
        metavar="X",
        read=above_zero,
    )
    memory: bool = option(
        False,
        "measure on one batch what a training step keeps for backward, at each site and in all, and its peak",
        _MEASURING,
    )
    seed: int = option(0, "of everything drawn at random (default: 0)", _MEASURING, metavar="N", read=int)
    resume: bool = option(
        False,
        "go on with what a run that was killed recorded in the output folder, also with another number of processes; "
        "where the data were changed since, start anew and say so",
        _MEASURING,
    )
    loading: Loading = field(default_factory=Loading)
    min_rounds: int = 30
    max_seconds: float = 60.0
