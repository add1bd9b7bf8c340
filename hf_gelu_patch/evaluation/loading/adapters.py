"""A PEFT adapter put onto the model that it is for."""

from __future__ import annotations

import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.loading.checkpoints import adapter_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["brought_by", "check_peft", "with_adapter"]


def check_peft(adapter: str) -> None:
    """See that peft is here.

    Raises:
        EvaluationError: it is not.
    """
    if importlib.util.find_spec("peft") is None:
        raise EvaluationError(
            f"{adapter} is a PEFT adapter, and peft is not installed here: pip install 'hf-gelu-patch[lora]'"
        )


def brought_by(adapter: str) -> tuple[str, ...]:
    """The modules that an adapter brings whole, such as a classifier's head: their names."""
    return tuple(map(str, adapter_config(adapter).get("modules_to_save") or ()))


def with_adapter(model: PreTrainedModel, adapter: str, *, merged: bool, allow_download: bool = False) -> Any:
    """The model, its layers exchanged for those with the adapter; or the adapter added to the weights.

    Args:
        model: without an adapter; it is changed.
        adapter: its folder, or its id on the hub.
        merged: add it to the weights.
        allow_download: fetch what is not here.

    Raises:
        EvaluationError: peft is missing; the adapter is not for this model, or is no change of its layers.
    """
    check_peft(adapter)
    from peft import PeftConfig, PeftModel

    where: dict[str, Any] = {"local_files_only": not allow_download}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it asks transformers by names that these have renamed
            warnings.filterwarnings("error", "Found missing adapter keys")  # they would stay as they are drawn
            if PeftConfig.from_pretrained(adapter, **where).is_prompt_learning:
                raise EvaluationError(
                    f"{adapter} puts tokens before the input, and its model runs in peft's wrapper alone: here "
                    "adapters are evaluated that change layers (LoRA and its kin)."
                )
            wrapped = PeftModel.from_pretrained(model, adapter, **where)
            made = wrapped.merge_and_unload() if merged else wrapped.get_base_model()
    except EvaluationError:
        raise
    except Exception as error:  # peft's, safetensors' and torch's own kinds
        brought = ", ".join(brought_by(adapter))
        quantized = getattr(model, "is_quantized", False)
        remedy = "Name the model that it was trained for, and its --task."
        if quantized and brought:
            remedy = (
                f"It brings {brought} whole, which were quantized: leave them out, with a JSON file for --quantization "
                'in which {"modules_to_not_convert": […]} or {"llm_int8_skip_modules": […]} names them.'
            )
        raise EvaluationError(
            f"the adapter {adapter} cannot be put onto {type(model).__name__}: {first_line(error)}\n{remedy}"
        ) from error
    return made
