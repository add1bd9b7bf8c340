"""Every task in short, by name."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.tasks.own_file import own_file, own_module


@dataclass(frozen=True)
class TaskInfo:
    """A task in short.

    Attributes:
        summary: what it is, in one line.
        auto_class: the class in transformers that loads its models.
        input_column: the column that holds what the model is given, unless another is named.
        second_column: the one that holds a second text; None where there is none by default.
        target_column: the one that holds the right answer; None where the input is its own, or there is none.
        metrics: what is measured, besides loss and drift; of a classifier, those for its kind of head.
    """

    summary: str
    auto_class: str
    input_column: str | None
    second_column: str | None
    target_column: str | None
    metrics: tuple[str, ...]


_OF_HEADS = ("accuracy", "macro_f1", "subset_accuracy", "micro_f1", "spearman", "pearson", "mse")

TASKS: dict[str, TaskInfo] = {
    "text-classification": TaskInfo(
        "a label for a text, or for a pair of texts (--second_column); or several, or a number, as the head has it",
        "AutoModelForSequenceClassification",
        "text",
        None,
        "label",
        _OF_HEADS,
    ),
    "sentence-similarity": TaskInfo(
        "cosine of the mean-pooled last hidden states of two texts, against a score",
        "AutoModel",
        "text1",
        "text2",
        "score",
        ("spearman", "pearson"),
    ),
    "masked-lm": TaskInfo(
        "15 % of a text's tokens, drawn once by a seed, to be told from the rest",
        "AutoModelForMaskedLM",
        "text",
        None,
        None,
        ("perplexity", "token_accuracy"),
    ),
    "causal-lm": TaskInfo(
        "each token of running text from those before it, in blocks or a sliding window (--stride)",
        "AutoModelForCausalLM",
        "text",
        None,
        None,
        ("perplexity", "token_accuracy", "bits_per_byte"),
    ),
    "seq2seq": TaskInfo(
        "a text from another: generated greedily, and its loss token by token",
        "AutoModelForSeq2SeqLM",
        "source",
        None,
        "target",
        ("exact_match", "edit_error_rate", "loss"),
    ),
    "image-classification": TaskInfo(
        "a label for an image; or several, or a number, as the head has it",
        "AutoModelForImageClassification",
        "image",
        None,
        "label",
        ("top5_accuracy", *_OF_HEADS),
    ),
    "feature-drift": TaskInfo(
        "how far the last hidden states of a text (or an image) move; no right answers",
        "AutoModel",
        "text",
        None,
        None,
        (),
    ),
}
"""Every task by name. A file of one's own, ``path/to/file.py``, is one more: ``own_task``."""

_CALLED_ELSEWHERE = {
    "sentiment-analysis": "text-classification",
    "sequence-classification": "text-classification",
    "natural-language-inference": "text-classification",
    "semantic-textual-similarity": "sentence-similarity",
    "fill-mask": "masked-lm",
    "text-generation": "causal-lm",
    "language-modeling": "causal-lm",
    "text2text-generation": "seq2seq",
    "seq2seq-lm": "seq2seq",
    "summarization": "seq2seq",
    "translation": "seq2seq",
    "feature-extraction": "feature-drift",
}
"""What transformers' pipelines and the hub call the same tasks."""

ARCHITECTURES = {
    "ForSequenceClassification": "text-classification",
    "ForImageClassification": "image-classification",
    "ForConditionalGeneration": "seq2seq",
    "ForMaskedLM": "masked-lm",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
}


def task_info(task: str) -> TaskInfo:
    """A task in short, one of ``TASKS`` or one of one's own.

    Raises:
        EvaluationError: there is no such task, or no such file.
    """
    if own_file(task):
        path = Path(task).expanduser()
        if not path.is_file():
            raise EvaluationError(f"there is no file {task} that could hold a task. Tasks: {', '.join(TASKS)}.")
        return TaskInfo(path.stem, getattr(own_module(path), "AUTO_CLASS", "AutoModel"), None, None, None, ())
    if task not in TASKS:
        raise EvaluationError(
            f"unknown task {task!r}.{_near_task(task)} Tasks: {', '.join(TASKS)}, or a Python file of your own."
        )
    return TASKS[task]


def _near_task(name: str) -> str:
    """The task that does what is asked for under another name, or whose name is mistyped: each word of it has to be
    near, for token-classification is no text-classification."""
    words = re.split(r"[-_ ]", name.lower())
    if (same := _CALLED_ELSEWHERE.get("-".join(words))) is not None:
        return f" It is called {same!r} here."
    for task in TASKS:
        own = task.split("-")
        if len(own) == len(words) and all(map(difflib.get_close_matches, words, ([word] for word in own))):
            return f" Did you mean {task!r}?"
    return ""
