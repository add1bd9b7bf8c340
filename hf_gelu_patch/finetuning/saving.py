"""A trained model written as a checkpoint. Where transformers knows its functions it needs nothing of this package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gelu_patch import Report, find_sites
from hf_gelu_patch.activations import get_activation
from hf_gelu_patch.errors import PatchError
from hf_gelu_patch.evaluation.loading.models import skeleton
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.finetuning.checkpoints import RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["reloaded", "save", "save_adapters"]

_LAST = "config.json"  # without which there is no checkpoint


def save(folder: RunFolder, model: PreTrainedModel, processor: Any) -> None:
    """Write the model and its tokenizer or image processor. The patch stays on: the config says what it swapped."""

    def write(target: Path) -> None:
        model.save_pretrained(target)
        processor.save_pretrained(target)

    folder.write_folder(write, _LAST)


def save_adapters(folder: RunFolder, adapters: Any) -> None:
    """Write what LoRA trained to the folder ``adapter``, before it is added to the layers.

    Args:
        adapters: the model in peft's wrapper.
    """
    folder.write_folder(lambda target: adapters.save_pretrained(target / "adapter"), "")


def reloaded(folder: RunFolder, report: Report, loading: Loading) -> str:
    """What ``from_pretrained`` makes of the checkpoint without this package, in a sentence: its config is read, and a
    model built from it without memory, whose functions are compared with the trained ones.

    Args:
        folder: that ``save`` wrote to.
        report: of the patch.
        loading: how the model was loaded: whether code that comes with it may run.
    """
    built = skeleton(str(folder.path), Loading(trust_remote_code=loading.trust_remote_code))
    own = {site.path: site.activation for site in find_sites(built, implementation="eager").sites}
    trained = {site.path: site.target for site in report.changed if site.target is not None}
    other = [path for path, name in trained.items() if path not in own or not _same(own[path], name)]
    if not other:
        return "from_pretrained loads it, and it computes the same without hf_gelu_patch"
    [first, *_] = other
    target = trained[first]
    places = ", ".join(other[:3]) + (", …" if len(other) > 3 else "")
    return (
        f"from_pretrained loads it, and computes {own.get(first, 'something else')} in place of {target} at "
        f"{len(other)} of {len(trained)} sites ({places}): its config cannot name that. After loading, patch it "
        f"again with patch(model, activation={target!r}), and the same include and exclude"
    )


def _same(one: str, other: str) -> bool:
    try:
        return get_activation(one) == get_activation(other)
    except PatchError:  # one with parameters of its own
        return one == other
