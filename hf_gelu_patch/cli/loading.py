"""How to load a model, as the commands that load one are told."""

from __future__ import annotations

from hf_gelu_patch.cli.command import Said
from hf_gelu_patch.evaluation.loading.placing import check_device_map
from hf_gelu_patch.evaluation.loading.quantizing import check_quantization
from hf_gelu_patch.evaluation.options.declaring import made
from hf_gelu_patch.evaluation.options.loading import Loading

__all__ = ["named_loading"]


def named_loading(said: Said) -> Loading:
    """What was said of it, with all there that it names.

    Raises:
        EvaluationError: options exclude each other, or name what is not there.
    """
    loading = made(Loading, said)
    loading.check()
    check_device_map(loading)
    if loading.quantization is not None:
        check_quantization(loading.quantization)
    return loading
