"""How much of the study is made: all of it, or as much as shows that it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "Sizes"]


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        name: what it is called in the record.
        seeds: how many times each small model is trained, from other weights and batches.
        steps: training steps, by recipe.
        healing: the share of these that a model gets after a function was swapped in.
        held_out: batches of 64 that a small model is measured on; None for all.
        limit: rows or blocks that a reference model is measured on, by model and dtype; None for all.
        dtypes: of the reference models.
        families: model types whose blocks are counted one by one.
        all_types: whether the blocks of all of transformers' types are counted too.
        second_order: steps of L-BFGS.
        numbers: elements that are timed.
        rounds: of timing.
    """

    name: str
    seeds: int
    steps: Mapping[str, int]
    healing: float
    held_out: int | None
    limit: Mapping[str, int | None]
    dtypes: tuple[str, ...]
    families: tuple[str, ...]
    all_types: bool
    second_order: int
    numbers: int
    rounds: int


FULL = Sizes(
    name="full",
    seeds=5,
    steps={"vit": 600, "gpt2": 600},
    healing=0.2,
    held_out=None,
    limit={"bert": 600, "gpt2": 400, "t5": 600, "vit": None},
    dtypes=("float32", "bfloat16", "float16"),
    families=("bert", "gpt2", "t5", "mt5", "vit", "llama", "mistral"),
    all_types=True,
    second_order=120,
    numbers=3 * 2**20,
    rounds=60,
)
QUICK = Sizes(
    name="quick",
    seeds=2,
    steps={"vit": 3, "gpt2": 3},
    healing=0.34,
    held_out=1,
    limit={"bert": 4, "gpt2": 4, "t5": 4, "vit": 32},
    dtypes=("float32", "bfloat16"),
    families=("bert", "llama"),
    all_types=False,
    second_order=2,
    numbers=2**16,
    rounds=12,
)
