"""torchvision's models: of each of its files a small one of each kind of name; of detectors and the like, each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision import models

from scripts.covering.libraries import Ways
from scripts.covering.libraries.images import SIZES, image, smallest

_FRAMES = 16
_FEW = {"rpn_pre_nms_top_n_test": 16, "rpn_post_nms_top_n_test": 16}
# What is set to the size of an image, and what else is told. A model that does not know one of them refuses all.
_SETTINGS: tuple[tuple[tuple[str, ...], dict[str, int]], ...] = (
    (("image_size",), {}),
    (("min_size", "max_size"), _FEW),
    (("min_size", "max_size"), {}),
    ((), {}),
)
_WHOLE = ("detection", "segmentation", "optical_flow", "video")  # packages whose models are all tried


def names() -> Sequence[str]:
    return smallest(
        (name if module.split(".")[-2] in _WHOLE else (module, re.sub(r"[\d_].*", "", name)), name)
        for name in models.list_models(exclude=["quantized_*"])
        for module in [models.get_model_builder(name).__module__]
    )


def build(name: str) -> Ways:
    module = models.get_model_builder(name).__module__.split(".")
    for size, (sized, more) in itertools.product(SIZES, _SETTINGS):
        settings = {"weights": None, **dict.fromkeys(sized, size), **more}
        if module[-2] in ("detection", "segmentation"):
            settings["weights_backbone"] = None
        yield partial(models.get_model, name, **settings), partial(_inputs, module[-2], size)


def _inputs(kind: str, size: int, model: nn.Module) -> dict[str, Any]:
    if kind == "detection":
        return {"images": [torch.rand(3, size, size)]}
    if kind == "optical_flow":
        return {name: torch.rand(1, 3, size, size) for name in ("image1", "image2")}
    if kind == "video":
        return image(model, 3, _FRAMES, size, size)
    return image(model, 3, size, size)
