"""Tokenizers, image processors and feature extractors loaded."""

from __future__ import annotations

import itertools
from typing import Any

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.hub import stored_file
from hf_gelu_patch.evaluation.loading.checkpoints import Checkpoint, checkpoint
from hf_gelu_patch.evaluation.loading.models import quieten
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.tasks.registry import task_info
from hf_gelu_patch.evaluation.tasks.vocabulary import check_vocabulary

_CALLED = {
    "AutoTokenizer": "tokenizer",
    "AutoImageProcessor": "image processor",
    "AutoFeatureExtractor": "feature extractor",
}


def load_processor(place: str, task: str, loading: Loading | None = None, *, allow_download: bool = False) -> Any:
    """The checkpoint's tokenizer, image processor, feature extractor of sounds, or a processor that has two of them;
    whichever it has, where the task could do with several. That of an adapter comes before its model's; a GGUF file's
    before that of its folder.

    Raises:
        EvaluationError: it has none that can be loaded.
    """
    import transformers

    quieten()
    loading = loading or Loading()
    kinds = task_info(task).processors
    failed: list[Exception] = []
    parts = checkpoint(place, loading, allow_download=allow_download)
    places = _places(parts)
    for kind, (where, options) in itertools.product(kinds, places):
        try:
            found = getattr(transformers, kind).from_pretrained(
                where, trust_remote_code=loading.trust_remote_code, local_files_only=not allow_download, **options
            )
        except Exception as error:  # each has its own kinds, and so have the libraries beneath
            failed.append(error)
        else:
            if hasattr(found, "get_vocab"):
                check_vocabulary(found, place)
            return found
    folder = parts.place if parts.gguf_file is not None else place
    remedy = f"Save the model's own there: {kinds[-1]}.from_pretrained(original).save_pretrained({folder!r})."
    if parts.gguf_file is not None:
        remedy = f"If the GGUF file is damaged, fetch it again. If it lacks one: {remedy[0].lower()}{remedy[1:]}"
    if "trust_remote_code" in str(failed[0]):
        remedy = "It comes with Python code of its own: read that code, and add --trust_remote_code to run it."
    names = " or ".join(what for kind in kinds if (what := _CALLED.get(kind)) is not None) or "processor"
    raise EvaluationError(f"{place} has no {names} that can be loaded: {first_line(failed[0])}\n{remedy}") from failed[
        0
    ]


def _places(found: Checkpoint) -> list[tuple[str, dict[str, Any]]]:
    """Where a tokenizer may be, and what ``from_pretrained`` is told beside that, the likeliest first."""
    options = dict(found.options)
    places = [(found.place, options)]
    if options.pop("gguf_file", None):
        places = [(found.place, found.options), (found.place, options)]
    if found.adapter is not None and any(stored_file(found.adapter, name) for name in _TOKENIZERS):
        places.insert(0, (found.adapter, {}))
    return places


_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")
