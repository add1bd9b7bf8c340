"""How a model is loaded: from which of its files, in which precision, and onto what."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.options.declaring import GROUPS, option

__all__ = ["Loading"]

_DATA = GROUPS[0]
_AMOUNT = re.compile(r"\d+(\.\d+)?\s*(|[KMGT]i?B)", re.IGNORECASE)


def _amounts(text: str) -> dict[int | str, str]:
    """``0=10GiB,cpu=4GiB``: how much may go where, as accelerate takes it."""
    found: dict[int | str, str] = {}
    for part in text.split(","):
        where, equals, much = (word.strip() for word in part.partition("="))
        if not equals or not where or not _AMOUNT.fullmatch(much):
            raise argparse.ArgumentTypeError(f"{text!r}: write WHERE=AMOUNT with commas between, as 0=10GiB,cpu=4GiB")
        found[int(where) if where.isdecimal() else where] = f"{much}B" if much.isdecimal() else much
    return found


@dataclass(frozen=True)
class Loading:
    """How a model is loaded. The options say of themselves what they are; ``max_memory`` is by the number of a GPU, or
    "cpu"."""

    trust_remote_code: bool = option(False, "run code that comes with the model", _DATA)
    dtype: str = option(
        "auto",
        "of the weights (default: the checkpoint's)",
        _DATA,
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    attn_implementation: str | None = option(
        None, "eager, sdpa, … (default: transformers' choice)", _DATA, metavar="NAME"
    )
    revision: str | None = option(None, "of a model on the hub: a branch, a tag, a commit", _DATA, metavar="NAME")
    subfolder: str | None = option(None, "of the model's folder or repository that holds it", _DATA, metavar="NAME")
    gguf_file: str | None = option(
        None, "a GGUF file in the model's folder or repository; its weights are dequantized", _DATA, metavar="FILE"
    )
    adapter: str | None = option(
        None, "a PEFT adapter for the model: its folder, or its id on the hub", _DATA, metavar="ADAPTER"
    )
    merge_adapter: bool = option(False, "add the adapter to the weights, rather than run it beside them", _DATA)
    quantization: str | None = option(
        None,
        "quantize the weights: bitsandbytes-8bit, bitsandbytes-4bit, torchao-int8wo, …, or a JSON file with a "
        "quantization_config of transformers",
        _DATA,
        metavar="NAME",
    )
    device: str | None = option(
        None, "cpu, cuda, cuda:1, mps (default: a GPU, if there is one that accelerate takes)", _DATA, metavar="DEVICE"
    )
    device_map: str | None = option(
        None,
        "spread the model over GPUs, memory and disk: auto, balanced, balanced_low_0, sequential, or a JSON file that "
        "says which module goes where",
        _DATA,
        metavar="MAP",
    )
    max_memory: dict[int | str, str] | None = option(
        None, "what --device_map may use at most, as 0=10GiB,cpu=4GiB", _DATA, metavar="AMOUNTS", read=_amounts
    )
    offload_folder: str | None = option(
        None, "for weights that --device_map puts on the disk, and no safetensors file holds", _DATA, metavar="FOLDER"
    )
    tp_plan: str | None = option(
        None, "auto: split the layers among the processes that torchrun started", _DATA, choices=("auto",)
    )
    torch_compile: bool = option(False, "compile the model and each variant, with torch.compile", _DATA)

    @property
    def said(self) -> dict[str, Any]:
        """What was asked for, as plain data: what is not usual, and may change what a model says."""
        unlike = {known.name for known in fields(self) if getattr(self, known.name) != known.default}
        return {name: value for name, value in asdict(self).items() if name in unlike - {"offload_folder"}}

    def check(self) -> None:
        """See that the options go together; nothing is imported for that.

        Raises:
            EvaluationError: they do not, or something that one of them names is not there.
        """
        for name, needs in (("max_memory", "device_map"), ("offload_folder", "device_map")):
            if getattr(self, name) is not None and getattr(self, needs) is None:
                raise EvaluationError(f"--{name} has no meaning without --{needs}: add --{needs} auto, or drop it.")
        for one, other, why in (
            ("device_map", "device", "says where each part goes"),
            ("device_map", "torch_compile", "moves weights between calls, which no compiled forward does"),
            (
                "quantization",
                "torch_compile",
                "leaves one model, patched anew for each batch, to be compiled each time",
            ),
            ("quantization", "gguf_file", "is there in the file already"),
            ("tp_plan", "device_map", "gives each process a part of each layer"),
            ("tp_plan", "device", "gives each process a device of its own"),
            ("tp_plan", "quantization", "splits weights that are plain numbers"),
            ("tp_plan", "adapter", "splits a model without adapters"),
            ("tp_plan", "torch_compile", "has processes talk to each other in each layer"),
        ):
            if getattr(self, one) and getattr(self, other):
                raise EvaluationError(f"--{one} and --{other} exclude each other, for --{one} {why}: drop one of them.")
        if self.tp_plan is not None and "WORLD_SIZE" not in os.environ:
            raise EvaluationError(
                "--tp_plan auto splits layers among several processes, and there is one: start them with torchrun "
                "--standalone --nproc_per_node 2 -m hf_gelu_patch evaluate …, or drop it."
            )
