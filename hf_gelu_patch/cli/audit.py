"""``hf-gelu-patch audit``: what a model's activations compute, against what is said of them."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass
from pathlib import Path

from hf_gelu_patch.cli.command import Command, Said
from hf_gelu_patch.cli.loading import named_loading
from hf_gelu_patch.cli.patching import prepare_libraries
from hf_gelu_patch.evaluation.loading.checkpoints import Checkpoint, checkpoint, locate_config
from hf_gelu_patch.evaluation.options.declaring import declared, made, option
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.options.subject import Subject

__all__ = ["COMMAND"]

_LOADING = ("trust_remote_code", "revision", "subfolder", "gguf_file", "adapter")
"""The options of loading that say which files are meant."""


@dataclass(frozen=True)
class Auditing:
    """What the command takes, beside which files are meant."""

    model: str = option(
        MISSING,
        "a reference model, a checkpoint folder, a GGUF file, a hub id",
        metavar="MODEL",
        spelled="model_name_or_path",
        positional=True,
    )
    trained: str | None = option(
        None, "the model as it was trained, where MODEL is what is served: named likewise", metavar="MODEL"
    )
    json: bool = option(False, "print everything as JSON")


def _run(said: Said) -> int:
    options = made(Auditing, said)
    allow_download = bool(said.get("allow_download"))
    prepare_libraries(allow_download=allow_download)
    loading = named_loading(said)
    place = locate_config(options.model, loading, allow_download=allow_download)
    other = None
    if options.trained is not None:
        other = locate_config(options.trained, allow_download=allow_download)
    from hf_gelu_patch import audit
    from hf_gelu_patch.evaluation.loading.models import skeleton

    found = audit(
        skeleton(place, loading),
        checkpoint=_files(checkpoint(place, loading, allow_download=allow_download)),
        trained=None if other is None else skeleton(other),
        name=options.model,
    )
    print(json.dumps(found.to_dict(), indent=1, ensure_ascii=False) if options.json else found)
    return 3 if found.of_level("contradiction") else 0


def _files(found: Checkpoint) -> list[Path]:
    """The files that may say something of a model's activations; an adapter that comes with a config of its own says
    what the model was that it was trained on."""
    adapter = None if found.adapter is None else Checkpoint(found.adapter).file("config.json")
    return [path for path in (found.file(found.gguf_file or "config.json"), adapter) if path is not None]


_EXAMPLES = """\
examples:
  hf-gelu-patch audit ./my-model
  hf-gelu-patch audit flan-t5-small.Q8_0.gguf
      a GGUF file as transformers loads it
  hf-gelu-patch audit ./served --trained ./trained --json
      two checkpoints, site by site

The exit status is 0; 1 where something that was named cannot be used, 2 for arguments that make no sense, and 3 where
there is a contradiction.
"""

COMMAND = Command(
    "audit",
    "what a model's activations compute, against what its config, its checkpoint and its family say",
    "Hold what each activation site of a model computes against what the config, the checkpoint's own files and the "
    "published definition of its family say. The weights are not loaded.",
    _run,
    declared(Auditing) | declared(Loading, *_LOADING) | declared(Subject, "allow_download"),
    _EXAMPLES,
)
