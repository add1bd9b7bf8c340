"""One model, the data to evaluate it on, and what was asked for."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from hf_gelu_patch.evaluation.options.declaring import GROUPS, finite, option, positive
from hf_gelu_patch.evaluation.tasks.labels import READINGS
from hf_gelu_patch.evaluation.tasks.registry import TASKS, usual_columns

__all__ = ["Subject"]

_DATA = GROUPS[0]


@dataclass(frozen=True)
class Subject:
    """One model, and the data to evaluate it on. Its options say of themselves what may be asked for, and what they
    are where nothing is said; here they are complete, as ``loading.subjects.subject`` makes them.

    Attributes:
        name: what it is called in results.
        title: the name for people.
        model: a checkpoint folder, or an id on the hub.
        task: a key of ``TASKS``, or the path of a Python file (``own_task``).
        data: a file or folder, or (a str) an id on the hub, as ``load_data`` takes it.
        input_column: None where a task of one's own knows.
        target_column: None where the input is its own answer.
        max_length: None for the model's own limit, at most 512.
        second_column: None where there is none.
        metric: besides the task's own, by the path of its script or its name on the hub.
        stride: how far a window moves on. None: for causal-lm blocks that do not overlap, for question-answering
            windows that share 128 tokens.
        source_prefix: for seq2seq and its kin, what each source begins with; None for nothing.
        labels: one of ``labels.READINGS``; None to tell it from the data.
        threshold: for a classifier's head that gives a number, the answer is 1 above it and else 0, and measured as
            such too; for one of several labels, the logit above which a label holds. None for no such answer, and for
            0, a probability of ½.
    """

    name: str
    title: str
    model: str
    task: str = option(
        MISSING,
        lambda: (
            f"{', '.join(TASKS)} or a Python file; evaluate alone takes lm_eval:NAME[,NAME] too (default: as the "
            "model's config tells)"
        ),
        _DATA,
        metavar="TASK",
    )
    data: Path | str = option(
        MISSING,
        "csv, tsv, json, jsonl, parquet, arrow or txt, a folder of images or of a saved dataset, or an id on the hub "
        "(default: the model's)",
        _DATA,
        metavar="DATA",
        spelled="validation_file",
    )
    input_column: str | None = option(
        MISSING,
        lambda: f"what the model is given (default: {usual_columns('input_column')})",
        _DATA,
        metavar="NAME",
    )
    target_column: str | None = option(
        MISSING, lambda: f"the right answer (default: {usual_columns('target_column')})", _DATA, metavar="NAME"
    )
    max_length: int | None = option(
        None, "tokens in an example (default: the model's, at most 512)", _DATA, metavar="N", read=positive
    )
    second_column: str | None = option(
        None, lambda: f"a second text (default: {usual_columns('second_column')})", _DATA, metavar="NAME"
    )
    split: str | None = option(
        None, "of the data, where they have several (default: validation, else test)", _DATA, metavar="NAME"
    )
    config_name: str | None = option(None, "of data on the hub, where they have several", _DATA, metavar="NAME")
    metric: str | None = option(
        None, "another metric beside the task's own: a script, or a name on the hub", _DATA, metavar="METRIC"
    )
    stride: int | None = option(
        None,
        "running text, or a long context, by a window that moves on by N tokens (default: in blocks; so that two share "
        "128 tokens)",
        _DATA,
        metavar="N",
        read=positive,
    )
    source_prefix: str | None = option(
        None, "what each source begins with, as T5 wants it: 'summarize: '", _DATA, metavar="TEXT"
    )
    labels: str | None = option(
        None,
        "how labels are written in the data (default: told from them; needed where both would do)",
        _DATA,
        choices=READINGS,
    )
    threshold: float | None = option(
        None,
        "of a head that gives a number: above it the answer is 1, else 0; of one that gives several labels: the logit "
        "above which a label holds (default: none, and 0)",
        _DATA,
        metavar="X",
        read=finite,
    )
    hypothesis_template: str | None = option(
        None,
        "the sentence that a class is named in, with {} for its name (default: 'This is a photo of {}.')",
        _DATA,
        metavar="TEXT",
    )
    allow_download: bool = option(False, "fetch models, data and metrics from the hub that are not here", _DATA)

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that the data have to have."""
        return tuple(filter(None, (self.input_column, self.second_column, self.target_column)))
