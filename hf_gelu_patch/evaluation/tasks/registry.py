"""Every task in short, by name: one record a task. Its class, which needs torch, is imported when it is used."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.metrics.registry import check_answers, metric_names
from hf_gelu_patch.evaluation.tasks.user_file import own_file, own_module

if TYPE_CHECKING:
    from hf_gelu_patch.evaluation.tasks.base import Task

__all__ = ["TASKS", "TaskInfo", "check_options", "register_task", "task_info", "usual_columns"]

TOKENIZER = ("AutoTokenizer",)
IMAGE_PROCESSOR = ("AutoImageProcessor",)
SOUND_READER = ("AutoFeatureExtractor",)
WITH_TOKENIZER = ("AutoProcessor",)
IMAGES = frozenset({"pixel_values"})
SOUNDS = frozenset({"input_values", "input_features"})
EITHER = ("AutoProcessor", "AutoImageProcessor", "AutoTokenizer")


@dataclass(frozen=True)
class TaskInfo:
    """A task in short.

    Attributes:
        name: a key of ``TASKS``.
        summary: what it is, in one line.
        task: its class, a ``Task``; or where that is, as "module:Class", to import it only when it is used.
        auto_class: the class in transformers that loads its models.
        other_classes: the class that loads those whose architecture ends in another way, by that ending.
        inputs: what its models may be given first, by the names of their arguments.
        answers: the kinds of answers that it may have (keys of ``metrics.ANSWERS``), which its metrics follow from: of
            a classifier, one for each kind of head; none where there are no right answers.
        input_column: the column that holds what the model is given, unless another is named.
        second_column: the one that holds a second text; None where there is none by default.
        target_column: the one that holds the right answer; None where the input is its own, or there is none.
        also: other names that a column may have in the data, by the name it has here.
        optional: those of its columns that data may do without.
        options: those of ``OPTIONS`` that it has a use for.
        processors: the classes in transformers that load what it reads data with; the first that a checkpoint has.
        architectures: what the classes of its models end in, by which a checkpoint's config names it.
        aliases: what transformers' pipelines and the hub call the same task.
        embeds: whether it embeds texts, as sentence-transformers does.
        libraries: modules that its metrics or its data take, beside those of ``evaluation``.
        extra: the extra of this package that installs them.
    """

    name: str
    summary: str
    task: str | type[Task]
    auto_class: str = "AutoModel"
    answers: tuple[str, ...] = ()
    input_column: str | None = "text"
    second_column: str | None = None
    target_column: str | None = None
    also: Mapping[str, Sequence[str]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    options: frozenset[str] = frozenset()
    processors: tuple[str, ...] = TOKENIZER
    architectures: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    embeds: bool = False
    extra: str | None = None
    other_classes: tuple[tuple[str, str], ...] = ()
    inputs: frozenset[str] = frozenset({"input_ids", "pixel_values"})

    def class_for(self, architecture: str) -> str:
        """The class in transformers that loads a checkpoint whose config names this architecture."""
        return next((name for end, name in self.other_classes if architecture.endswith(end)), self.auto_class)

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that data have to have, unless others are named."""
        return tuple(filter(None, (self.input_column, self.second_column, self.target_column)))

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured, besides drift; of a classifier, those for its kind of head."""
        return metric_names(self.answers)

    @property
    def missing(self) -> tuple[str, ...]:
        """Those of its libraries that are not installed."""
        return tuple(name for name in self.libraries if importlib.util.find_spec(name) is None)

    def check_libraries(self) -> None:
        """See that its libraries are installed.

        Raises:
            EvaluationError: one is not; the message says how to install it.
        """
        if self.missing:
            raise EvaluationError(
                f"{self.name} needs {' and '.join(self.missing)}, not installed here: pip install "
                f"'hf-gelu-patch[{self.extra}]'."
            )

    def load(self) -> type[Task]:
        """The task's class."""
        if not isinstance(self.task, str):
            return self.task
        module, _, name = self.task.partition(":")
        found: type[Task] = getattr(importlib.import_module(module), name)
        return found


OPTIONS = {
    "second_column": "reads no second text",
    "stride": "has no sliding window, as there is for {}",
    "source_prefix": "puts nothing before its texts, as is done by {}",
    "labels": "is no classification",
    "threshold": "is no classification",
    "hypothesis_template": "asks for no classes by sentences, as is done by {}",
}
"""The options that not all tasks have a use for, and what is said of a task that has none; {} are those that have."""

TASKS: dict[str, TaskInfo] = {}
"""Every task by name. A file of one's own, ``path/to/file.py``, is one more: ``own_task``."""


def register_task(info: TaskInfo) -> None:
    """Add a task, to be asked for by its name. The command line, the list of tasks and the reports then have it.

    Raises:
        EvaluationError: the name is taken, or is that of a Python file; or there is no such kind of answer.
    """
    if info.name in TASKS:
        raise EvaluationError(f"the task name {info.name!r} is taken: register it under another.")
    if own_file(info.name):
        raise EvaluationError(f"the task name {info.name!r} is a Python file's: register it under another.")
    check_answers(info.answers)
    TASKS[info.name] = info


def task_info(task: str) -> TaskInfo:
    """A task in short, one of ``TASKS`` or one of one's own.

    Raises:
        EvaluationError: there is no such task, or no such file.
    """
    if own_file(task):
        path = Path(task).expanduser()
        if not path.is_file():
            raise EvaluationError(f"there is no file {task} that could hold a task. Tasks: {', '.join(TASKS)}.")
        auto_class = getattr(own_module(path), "AUTO_CLASS", "AutoModel")
        return TaskInfo(task, path.stem, f"{_HERE}.user_task:OwnTask", auto_class, input_column=None, processors=EITHER)
    if task.startswith("lm_eval:"):
        raise EvaluationError(
            f"{task} is asked by 'hf-gelu-patch evaluate' alone: name another task here, such as causal-lm with texts "
            "of your own."
        )
    if task not in TASKS:
        raise EvaluationError(
            f"unknown task {task!r}.{_near_task(task)} Tasks: {', '.join(TASKS)}, or a Python file of your own."
        )
    return TASKS[task]


def check_options(task: str, asked: Iterable[str]) -> None:
    """See that what was asked for means something to a task.

    Args:
        task: its name.
        asked: the options that were given.

    Raises:
        EvaluationError: the task has no use for one of them.
    """
    own = task_info(task).options
    for option in [name for name in OPTIONS if name in asked and name not in own]:
        *most, last = [name for name, info in TASKS.items() if option in info.options]
        others = f"{', '.join(most)} and {last}" if most else last
        raise EvaluationError(f"{task} {OPTIONS[option].format(others)}: drop --{option}.")


def usual_columns(which: str) -> str:
    """The columns that tasks take where none is named, in words: "text for causal-lm; source for seq2seq".

    Args:
        which: "input_column", "second_column" or "target_column".
    """
    tasks: dict[str, list[str]] = {}
    for name, info in TASKS.items():
        if (column := getattr(info, which)) is not None:
            tasks.setdefault(column, []).append(name)
    return "; ".join(f"{column} for {', '.join(names)}" for column, names in tasks.items())


def _near_task(name: str) -> str:
    """The task that does what is asked for under another name, or whose name is mistyped: each word of it has to be
    near, for token-classification is no text-classification."""
    words = re.split(r"[-_ ]", name.lower())
    for task, info in TASKS.items():
        if "-".join(words) in info.aliases:
            return f" It is called {task!r} here."
    for task in TASKS:
        own = task.split("-")
        if len(own) == len(words) and all(map(difflib.get_close_matches, words, ([word] for word in own))):
            return f" Did you mean {task!r}?"
    return ""


# ----------------------------------------------------------------------------------------------- tasks that come along

_HERE = "hf_gelu_patch.evaluation.tasks"
_OF_HEADS = ("label", "label set", "number")

for _info in (
    TaskInfo(
        "text-classification",
        "a label for a text, or for a pair of texts (--second_column); or several, or a number, as the head has it",
        f"{_HERE}.classification:TextClassification",
        "AutoModelForSequenceClassification",
        _OF_HEADS,
        target_column="label",
        options=frozenset({"second_column", "labels", "threshold"}),
        architectures=("ForSequenceClassification",),
        aliases=("sentiment-analysis", "sequence-classification"),
    ),
    TaskInfo(
        "natural-language-inference",
        "a label for a pair of texts: whether the first entails the second; scored as text-classification",
        f"{_HERE}.classification:TextClassification",
        "AutoModelForSequenceClassification",
        _OF_HEADS,
        input_column="premise",
        second_column="hypothesis",
        target_column="label",
        also={"premise": ("sentence1",), "hypothesis": ("sentence2",), "label": ("gold_label",)},
        options=frozenset({"second_column", "labels", "threshold"}),
        aliases=("nli", "textual-entailment"),
    ),
    TaskInfo(
        "token-classification",
        "a label for each word of a text: entities (tags as B-PER), or other tags",
        f"{_HERE}.token_classification:TokenClassification",
        "AutoModelForTokenClassification",
        ("entities", "tags"),
        input_column="tokens",
        target_column="tags",
        also={"tokens": ("words",), "tags": ("ner_tags", "pos_tags", "labels")},
        options=frozenset({"labels"}),
        architectures=("ForTokenClassification",),
        aliases=("ner", "named-entity-recognition", "pos-tagging"),
        libraries=("seqeval",),
        extra="text",
    ),
    TaskInfo(
        "question-answering",
        "the part of a text that answers a question, or none; long texts in windows (--stride)",
        f"{_HERE}.question_answering:QuestionAnswering",
        "AutoModelForQuestionAnswering",
        ("span",),
        input_column="question",
        second_column="context",
        target_column="answers",
        also={"answers": ("answer",)},
        options=frozenset({"second_column", "stride"}),
        architectures=("ForQuestionAnswering",),
        aliases=("extractive-question-answering", "squad"),
    ),
    TaskInfo(
        "sentence-similarity",
        "cosine of the mean-pooled last hidden states of two texts, against a score",
        f"{_HERE}.pairs:SentenceSimilarity",
        embeds=True,
        answers=("score",),
        input_column="text1",
        second_column="text2",
        target_column="score",
        options=frozenset({"second_column"}),
        aliases=("semantic-textual-similarity",),
    ),
    TaskInfo(
        "reranking",
        "documents put in order by a model that reads each together with the query",
        f"{_HERE}.ranking:Reranking",
        "AutoModelForSequenceClassification",
        ("ranking",),
        input_column="query",
        second_column="documents",
        target_column="relevance",
        also={"documents": ("positive",), "relevance": ("negative",)},
        options=frozenset({"second_column"}),
        aliases=("text-ranking", "cross-encoder"),
    ),
    TaskInfo(
        "retrieval",
        "documents put in order by the cosine of their embedding and the query's; a row's own, or those of all rows",
        f"{_HERE}.ranking:Retrieval",
        embeds=True,
        answers=("ranking",),
        input_column="query",
        second_column="documents",
        target_column="relevance",
        also={"documents": ("positive", "document"), "relevance": ("negative",)},
        optional=frozenset({"relevance"}),
        options=frozenset({"second_column"}),
        aliases=("information-retrieval", "semantic-search"),
    ),
    TaskInfo(
        "masked-lm",
        "15 % of a text's tokens, drawn once by a seed, to be told from the rest",
        f"{_HERE}.masked:MaskedLM",
        "AutoModelForMaskedLM",
        ("tokens",),
        architectures=("ForMaskedLM",),
        aliases=("fill-mask",),
    ),
    TaskInfo(
        "causal-lm",
        "each token of running text from those before it, in blocks or a sliding window (--stride)",
        f"{_HERE}.causal:CausalLM",
        "AutoModelForCausalLM",
        ("text",),
        options=frozenset({"stride"}),
        architectures=("ForCausalLM", "LMHeadModel"),
        aliases=("text-generation", "language-modeling"),
    ),
    TaskInfo(
        "seq2seq",
        "a text from another: generated greedily, and its loss token by token",
        f"{_HERE}.seq2seq:Seq2Seq",
        "AutoModelForSeq2SeqLM",
        ("sequence",),
        input_column="source",
        target_column="target",
        options=frozenset({"source_prefix"}),
        architectures=("ForConditionalGeneration",),
        aliases=("text2text-generation", "seq2seq-lm"),
    ),
    TaskInfo(
        "summarization",
        "the summary of a text, generated greedily; one or several references",
        f"{_HERE}.seq2seq:Summarization",
        "AutoModelForSeq2SeqLM",
        ("summary",),
        input_column="article",
        target_column="summary",
        also={
            "article": ("document", "dialogue", "text", "source"),
            "summary": ("highlights", "abstract", "target"),
        },
        options=frozenset({"source_prefix"}),
        libraries=("rouge_score",),
        extra="text",
    ),
    TaskInfo(
        "translation",
        "a text in another language, generated greedily; one or several references",
        f"{_HERE}.seq2seq:Translation",
        "AutoModelForSeq2SeqLM",
        ("translation",),
        input_column="source",
        target_column="target",
        also={"source": ("src",), "target": ("tgt", "reference", "references")},
        options=frozenset({"source_prefix"}),
        libraries=("sacrebleu",),
        extra="text",
    ),
    TaskInfo(
        "image-classification",
        "a label for an image; or several, or a number, as the head has it",
        f"{_HERE}.classification:ImageClassification",
        "AutoModelForImageClassification",
        ("ranked label", *_OF_HEADS),
        input_column="image",
        target_column="label",
        options=frozenset({"labels", "threshold"}),
        processors=IMAGE_PROCESSOR,
        architectures=("ForImageClassification",),
    ),
    TaskInfo(
        "feature-drift",
        "how far the last hidden states of a text (or an image) move; no right answers",
        f"{_HERE}.features:FeatureDrift",
        processors=EITHER,
        aliases=("feature-extraction",),
    ),
    TaskInfo(
        "automatic-speech-recognition",
        "the text that is said in a sound: generated greedily, or read off the frames of a CTC model",
        f"{_HERE}.speech:SpeechRecognition",
        "AutoModelForSpeechSeq2Seq",
        ("transcript",),
        input_column="audio",
        target_column="text",
        processors=WITH_TOKENIZER,
        architectures=(
            "ForCTC",
            "ForSpeechToText",
            "WhisperForConditionalGeneration",
            "Speech2TextForConditionalGeneration",
            "MoonshineForConditionalGeneration",
        ),
        aliases=("speech-recognition", "asr"),
        libraries=("jiwer", "soundfile"),
        extra="speech",
        other_classes=(("ForCTC", "AutoModelForCTC"),),
        inputs=SOUNDS,
    ),
    TaskInfo(
        "audio-classification",
        "a label for a sound; or several, or a number, as the head has it",
        f"{_HERE}.classification:AudioClassification",
        "AutoModelForAudioClassification",
        ("ranked label", *_OF_HEADS),
        input_column="audio",
        target_column="label",
        options=frozenset({"labels", "threshold"}),
        processors=SOUND_READER,
        architectures=("ForAudioClassification",),
        libraries=("soundfile",),
        extra="speech",
        inputs=SOUNDS,
    ),
    TaskInfo(
        "object-detection",
        "the objects in an image: a box and a label for each",
        f"{_HERE}.detection:ObjectDetection",
        "AutoModelForObjectDetection",
        ("boxes",),
        input_column="image",
        target_column="objects",
        options=frozenset({"labels"}),
        processors=IMAGE_PROCESSOR,
        architectures=("ForObjectDetection",),
        libraries=("pycocotools",),
        extra="detection",
        inputs=IMAGES,
    ),
    TaskInfo(
        "semantic-segmentation",
        "a label for each pixel of an image",
        f"{_HERE}.segmentation:SemanticSegmentation",
        "AutoModelForSemanticSegmentation",
        ("regions",),
        input_column="image",
        target_column="mask",
        processors=IMAGE_PROCESSOR,
        architectures=("ForSemanticSegmentation",),
        aliases=("image-segmentation",),
        inputs=IMAGES,
    ),
    TaskInfo(
        "zero-shot-image-classification",
        "the class of an image, each named in a sentence (--hypothesis_template)",
        f"{_HERE}.zero_shot:ZeroShotImageClassification",
        "AutoModelForZeroShotImageClassification",
        ("ranked label", "label"),
        input_column="image",
        target_column="label",
        options=frozenset({"hypothesis_template"}),
        processors=WITH_TOKENIZER,
        inputs=IMAGES,
    ),
    TaskInfo(
        "image-text-retrieval",
        "the text for an image, and the image for a text, among all of the data",
        f"{_HERE}.retrieval:ImageTextRetrieval",
        answers=("ranks",),
        input_column="image",
        target_column="text",
        processors=WITH_TOKENIZER,
        inputs=IMAGES,
    ),
    TaskInfo(
        "masked-image-modeling",
        "60 % of an image, drawn once by a seed, to be told from the rest",
        f"{_HERE}.reconstruction:MaskedImageModeling",
        "AutoModelForMaskedImageModeling",
        ("reconstruction",),
        input_column="image",
        processors=IMAGE_PROCESSOR,
        architectures=("ForMaskedImageModeling",),
        inputs=IMAGES,
    ),
):
    register_task(_info)
