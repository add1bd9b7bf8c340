"""Which quantization of transformers a name means."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line

__all__ = ["QUANTIZATIONS", "check_quantization", "quantization_config"]


def _bitsandbytes(**options: Any) -> Callable[[], Any]:
    def make() -> Any:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**options)  # type: ignore[no-untyped-call]

    return make


def _torchao(name: str) -> Callable[[], Any]:
    def make() -> Any:
        import torchao.quantization
        from transformers import TorchAoConfig

        return TorchAoConfig(getattr(torchao.quantization, name)())

    return make


QUANTIZATIONS: dict[str, Callable[[], Any]] = {
    "bitsandbytes-8bit": _bitsandbytes(load_in_8bit=True),
    "bitsandbytes-4bit": _bitsandbytes(load_in_4bit=True),
    "bitsandbytes-4bit-nf4": _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "torchao-int8wo": _torchao("Int8WeightOnlyConfig"),
    "torchao-int8dq": _torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao-int4wo": _torchao("Int4WeightOnlyConfig"),
    "torchao-float8wo": _torchao("Float8WeightOnlyConfig"),
    "torchao-float8dq": _torchao("Float8DynamicActivationFloat8WeightConfig"),
}
"""Library and scheme → its config in transformers, with the library's defaults."""


def check_quantization(name: str) -> None:
    """See that there is such a quantization, and the library for it; nothing is imported.

    Raises:
        EvaluationError: there is not.
    """
    if name not in QUANTIZATIONS and not name.endswith(".json"):
        raise EvaluationError(
            f"there is no quantization {name!r}: {', '.join(QUANTIZATIONS)}, or a JSON file with what a config.json "
            "has as its quantization_config."
        )
    if name.endswith(".json"):
        _read(name)
        return
    library = name.partition("-")[0]
    if importlib.util.find_spec(library) is None:
        raise EvaluationError(f"--quantization {name} needs {library}, not installed here: pip install {library}")


def quantization_config(name: str) -> Any:
    """The config that ``from_pretrained`` takes.

    Raises:
        EvaluationError: there is no such quantization, or its library is missing or refuses.
    """
    check_quantization(name)
    try:
        if name in QUANTIZATIONS:
            return QUANTIZATIONS[name]()
        from transformers.quantizers.auto import AutoQuantizationConfig

        return AutoQuantizationConfig.from_dict(_read(name))
    except Exception as error:  # each library has its own
        raise EvaluationError(
            f"--quantization {name} cannot be made: {first_line(error)}\nInstall the library that it needs, or take "
            f"another one: {', '.join(QUANTIZATIONS)}."
        ) from error


def _read(name: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(name).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"the quantization {name} cannot be read: {first_line(error)}") from error
    if not isinstance(found, dict) or "quant_method" not in found:
        raise EvaluationError(f'the quantization {name} names no "quant_method", as a quantization_config does.')
    return found
