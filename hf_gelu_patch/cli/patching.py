"""How to patch, as the commands that patch are told; and what they see to before they load anything."""

from __future__ import annotations

import os
from collections.abc import Iterable

from hf_gelu_patch.cli.command import Said
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.options.declaring import declared
from hf_gelu_patch.evaluation.variants import Variant, check_variants

__all__ = ["check_names", "named_variant", "named_variants", "prepare_libraries"]


def prepare_libraries(*, allow_download: bool) -> None:
    """The libraries' own settings, before they are imported."""
    if not allow_download:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def named_variant(said: Said) -> Variant:
    """What the options that stand for one variant say."""
    return Variant.of(**{name: said[name] for name in declared(Variant) if name in said})


def named_variants(said: Said) -> tuple[Variant, ...]:
    """Those of ``--variant``, or what the options that stand for one say.

    Raises:
        EvaluationError: both are there; a variant says nothing, or too much; or two have one name.
    """
    if "variant" not in said:
        return (named_variant(said),)
    if other := [name for name in declared(Variant) if name in said]:
        raise EvaluationError(
            f"--variant says how to patch, and so does --{other[0]}: write --variant {other[0]}=… instead."
        )
    variants = tuple(map(Variant.parse, said["variant"]))
    check_variants(variants)
    return variants


def check_names(variants: Iterable[Variant]) -> None:
    """Names of activations and implementations, and amounts of tiles, before anything is loaded.

    Raises:
        UnknownNameError: there is none of a name.
        PatchError: an amount makes no sense.
    """
    from hf_gelu_patch.activations import get_activation
    from hf_gelu_patch.implementations.registry import get_implementation
    from hf_gelu_patch.tiling.running import Amount

    for variant in variants:
        if variant.implementation != "auto":
            get_implementation(variant.implementation)
        if variant.activation is not None:
            get_activation(variant.activation)
        if variant.tiles is not None:
            Amount.of(variant.tiles)
