"""What a model has room for.

It is looked up before anything is run, so that a row that asks for more is refused by its number. If the model ran on
such a row, it would fail somewhere inside, and on a GPU it could not say where.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["Limits"]

_INPUTS = {"input_ids", "pixel_values", "input_values", "input_features"}


@dataclass(frozen=True)
class Limits:
    """What a model takes; None where there is no limit, or none is known.

    Attributes:
        tokens: rows of its token embedding.
        token_types: rows of its embedding of token types.
        positions: tokens in a text, where its positions do not begin at 0; None for as many as its config says.
        arguments: what its forward names.
    """

    tokens: int | None = None
    token_types: int | None = None
    positions: int | None = None
    arguments: frozenset[str] | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Limits:
        tables = {path: part for path, part in model.named_modules() if isinstance(part, nn.Embedding)}
        return cls(_tokens(model), _token_types(tables), _positions(tables), _arguments(model))

    def takes(self, argument: str) -> bool:
        """Whether the forward has a use for it."""
        return self.arguments is None or argument in self.arguments

    def trouble(self, row: Mapping[str, Sequence[int]]) -> str | None:
        """Why the model cannot take what a tokenizer made of a text, and the remedy; None if it can."""
        largest = max(row["input_ids"], default=0)
        if self.tokens is not None and largest >= self.tokens:
            return (
                f"has the token id {largest}, and the model embeds {self.tokens} (ids 0 to {self.tokens - 1}): take "
                "its own tokenizer, or train it after model.resize_token_embeddings(len(tokenizer))"
            )
        kind = max(row.get("token_type_ids", ()), default=0)
        if self.token_types is not None and kind >= self.token_types:
            return (
                f"has the token type {kind}, and the model knows {self.token_types} (type_vocab_size): take its own "
                "tokenizer, or take token_type_ids out of this one's model_input_names"
            )
        return None


def _tokens(model: nn.Module) -> int | None:
    for part in (model, getattr(model, "text_model", None)):  # of two towers, the one that reads
        try:
            table = part.get_input_embeddings()  # type: ignore[union-attr, operator]
        except (AttributeError, NotImplementedError):
            continue
        if isinstance(table, nn.Embedding):
            return table.num_embeddings
    return None


def _token_types(tables: Mapping[str, nn.Embedding]) -> int | None:
    rows = [table.num_embeddings for path, table in tables.items() if path.endswith("token_type_embeddings")]
    return min(rows, default=None)


def _positions(tables: Mapping[str, nn.Embedding]) -> int | None:
    """RoBERTa and its kin count positions from the one behind the padding's: their first rows are never a token's."""
    left = [
        table.num_embeddings - table.padding_idx - 1
        for path, table in tables.items()
        if "position" in path.rpartition(".")[2] and table.padding_idx is not None
    ]
    return min(left, default=None)


def _arguments(model: nn.Module) -> frozenset[str] | None:
    """None for a wrapper, which hands on whatever it is given."""
    named: Any = inspect.signature(model.forward).parameters
    return frozenset(named) if _INPUTS & set(named) else None
