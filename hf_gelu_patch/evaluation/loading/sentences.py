"""What follows the transformer in a sentence-transformers model: pooling, dense layers, normalising."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.loading.checkpoints import Checkpoint, read_config, sentence_modules

if TYPE_CHECKING:
    from torch import nn

__all__ = ["sentence_head", "sentence_length"]


def sentence_head(found: Checkpoint, *, allow_download: bool = False) -> nn.Sequential | None:
    """The modules behind the transformer, each of which takes and gives a mapping, as sentence-transformers has them.

    Args:
        found: the transformer, in the folder of the whole model or in one below it.
        allow_download: fetch what is not here.

    Returns:
        None where they come to the mean over tokens, which a cosine does not see normalised; and where there are none.

    Raises:
        EvaluationError: they cannot be had: the library is missing, or what comes first is no transformer; or texts
            are changed before they are read.
    """
    whole = _whole(found)
    modules = sentence_modules(whole)
    if not modules:
        return None
    kinds = [one["type"].rpartition(".")[2] for one in modules]
    if kinds[0] != "Transformer":
        raise EvaluationError(
            f"{whole.place} is a sentence-transformers model that begins with {kinds[0]}: texts are embedded here by "
            "one that begins with Transformer. Name the folder of its model, and --task feature-drift."
        )
    _check_texts(whole)
    if all(kind == "Normalize" or (kind == "Pooling" and _is_mean(whole, one["path"])) for kind, one in _rest(modules)):
        return None
    if importlib.util.find_spec("sentence_transformers") is None:
        raise EvaluationError(
            f"{whole.place} embeds texts by {', '.join(kinds[1:])}, and not by the mean alone, which takes "
            "sentence-transformers, not installed here: pip install 'hf-gelu-patch[sentence-transformers]'"
        )
    from torch import nn

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells of its own names that have changed
        from sentence_transformers import SentenceTransformer

        try:
            made = SentenceTransformer(
                whole.place, device="cpu", local_files_only=not allow_download, revision=whole.revision
            )
        except Exception as error:  # its own, and those of each module
            raise EvaluationError(
                f"the modules of {whole.place} cannot be loaded ({first_line(error)}): fetch the checkpoint again."
            ) from error
    return nn.Sequential(*list(made.children())[1:])


def sentence_length(found: Checkpoint) -> int | None:
    """How many tokens of a text a sentence-transformers model reads; None where its tokenizer says so, or the
    transformer has no more positions."""
    whole = _whole(found)
    if not sentence_modules(whole):
        return None
    for place in (found, whole):
        length = _json(place, "sentence_bert_config.json").get("max_seq_length")
        if isinstance(length, int):
            positions = read_config(found).get("max_position_embeddings")
            return None if isinstance(positions, int) and length > positions else length
    return None


def _rest(modules: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(one["type"].rpartition(".")[2], one) for one in modules[1:]]


def _whole(found: Checkpoint) -> Checkpoint:
    """The checkpoint that lists the modules: the transformer's own, or the one that holds it."""
    if found.file("modules.json") is not None:
        return found
    if Path(found.place).is_dir():
        above = Checkpoint(str(Path(found.place).parent))
        inner = Path(found.place).name
    else:
        outer, _, inner = found.subfolder.rpartition("/")
        above = Checkpoint(found.place, outer, found.revision)
    modules = sentence_modules(above)
    return above if modules and modules[0]["path"] == inner else found


def _is_mean(whole: Checkpoint, path: str) -> bool:
    """Whether a module for pooling takes the mean over tokens, by either way in which its config says so."""
    config = _json(whole, f"{path}/config.json")
    if "pooling_mode" in config:
        return bool(config["pooling_mode"] == "mean")
    modes = {name for name, value in config.items() if name.startswith("pooling_mode_") and value}
    return modes <= {"pooling_mode_mean_tokens"}


def _check_texts(whole: Checkpoint) -> None:
    """See that texts are read as they stand in the data."""
    config = _json(whole, "config_sentence_transformers.json")
    prompt = (config.get("prompts") or {}).get(config.get("default_prompt_name") or "", "")
    if prompt:
        raise EvaluationError(
            f"{whole.place} puts the prompt {prompt!r} before each text: put it into the data, and set "
            "default_prompt_name to null in its config_sentence_transformers.json."
        )
    if _json(whole, "sentence_bert_config.json").get("do_lower_case"):
        raise EvaluationError(
            f"{whole.place} makes texts lower case before its tokenizer reads them: have them so in the data, and set "
            "do_lower_case to false in its sentence_bert_config.json."
        )


def _json(found: Checkpoint, name: str) -> dict[str, Any]:
    """A file of it as plain data; empty where there is none."""
    path = found.file(name)
    try:
        read = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"the {name} of {found.place} cannot be read ({first_line(error)}): fetch the checkpoint again."
        ) from error
    return read if isinstance(read, dict) else {}
