"""timm's image models: of each of its families a small one of each kind of name, such as ``eva02`` and ``vit``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from functools import partial

import timm

from scripts.covering.libraries import Ways
from scripts.covering.libraries.images import SIZES, image, smallest


def names() -> Sequence[str]:
    return smallest(
        ((module, re.sub(r"[\d_].*", "", name.removeprefix("test_"))), name)
        for module in timm.list_modules()
        for name in timm.list_models(module=module)
    )


def build(name: str) -> Ways:
    """A small image and two layers, where a model takes its depth; else as little as it takes."""
    config = timm.get_pretrained_cfg(name)
    channels, _, own = (3, 0, SIZES[-1]) if config is None else config.input_size
    for more, size in itertools.product(({"depth": 2}, {}, None), dict.fromkeys((*SIZES, own))):
        settings = {} if more is None else {"img_size": size, **more}
        yield partial(timm.create_model, name, **settings), lambda model, size=size: image(model, channels, size, size)
