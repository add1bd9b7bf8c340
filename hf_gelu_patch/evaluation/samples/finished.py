"""A finished run, whichever program it was of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.samples import lighteval_files, lm_eval_files, own_records
from hf_gelu_patch.evaluation.samples.documents import Samples

__all__ = ["read_run"]

_KINDS: Sequence[tuple[str, Callable[[Path], list[Path]], Callable[[Path], list[Samples]]]] = (
    ("samples of lm-evaluation-harness (samples_*.jsonl)", lm_eval_files.find, lm_eval_files.read),
    ("details of lighteval (details_*.parquet)", lighteval_files.find, lighteval_files.read),
    ("records of an evaluation of ours (records/MODEL/*.jsonl)", own_records.find, own_records.read),
)


def read_run(place: Path) -> list[Samples]:
    """What a run said of each task's documents.

    Args:
        place: the folder that it wrote to, or one file of samples.

    Raises:
        EvaluationError: there is nothing of the kind, or of several kinds; or it cannot be read.
    """
    if not place.exists():
        raise EvaluationError(f"there is no {place}: name the folder that a run wrote to.")
    there = [(name, read) for name, find, read in _KINDS if find(place)]
    if not there:
        kinds = ", ".join(name for name, _, _ in _KINDS)
        raise EvaluationError(
            f"{place} has no samples: name a folder, or a file, with {kinds}. lm_eval writes them with --log_samples, "
            "lighteval with --save-details."
        )
    if len(there) > 1:
        raise EvaluationError(f"{place} has {' and '.join(name for name, _ in there)}: name the folder of one of them.")
    [(_, read)] = there
    found = read(place)
    if not any(one.documents for one in found):
        raise EvaluationError(f"the samples in {place} are empty: the run that wrote them did not get that far.")
    return found
