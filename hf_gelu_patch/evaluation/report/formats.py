"""The files that a report consists of, one record each; the plots come beside them.

A new format is a record here. The command line's help, its dry run and what ``files.save`` writes follow from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hf_gelu_patch.evaluation.report.results import JSON_NAME, Data

__all__ = ["FORMATS", "Format", "names"]

Pictures = Mapping[str, bytes]
"""The plots as PNG, by name; empty without matplotlib."""


@dataclass(frozen=True)
class Format:
    """One file of a report.

    Attributes:
        file: its name.
        holds: what it is for, in a few words.
        write: makes its text of the results and the plots. It imports what it needs, since the list is read for help.
    """

    file: str
    holds: str
    write: Callable[[Data, Pictures], str]


def _json(data: Data, _: Pictures) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _markdown(data: Data, pictures: Pictures) -> str:
    from hf_gelu_patch.evaluation.report.markdown import markdown

    return markdown(data, tuple(pictures))


def _page(data: Data, pictures: Pictures) -> str:
    from hf_gelu_patch.evaluation.report.page import page

    return page(data, pictures)


def _card(data: Data, _: Pictures) -> str:
    from hf_gelu_patch.evaluation.report.card import model_card

    return model_card(data)


FORMATS = (
    Format(JSON_NAME, "all results, the raw samples included", _json),
    Format("evaluation.md", "tables and texts in Markdown", _markdown),
    Format("evaluation.html", "the same as one web page, with the plots inside", _page),
    Format("model-card.md", "each metric, for the card of a model on the hub", _card),
)


def names() -> tuple[str, ...]:
    """Every file that a report may have."""
    from hf_gelu_patch.evaluation.report.document import PICTURES

    return (*(one.file for one in FORMATS), *(f"{picture}.png" for picture in PICTURES))
