"""Results on the screen."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hf_gelu_patch.evaluation.report.document import NOTES, conditions, left_out, patched, summary, tone
from hf_gelu_patch.evaluation.report.results import Data
from hf_gelu_patch.evaluation.report.shipping import listed, shipping, together

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_results"]

_STYLES = {"good": "green", "bad": "red", "": ""}


def print_results(data: Data, console: Console) -> None:
    """What is to be done with each variant, the summary, below it the rows that its figures leave out, the memory, and
    what each patch did. Colours are rich's matter: none where there is no terminal, or where NO_COLOR is set."""
    from rich.table import Table as Grid
    from rich.text import Text as Words

    # Piped, there is no width to be had: wide enough for every cell on its own line.
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 180
    _print_shipping(data, console)
    table = summary(data)
    grid = Grid(*table.headings, show_lines=True)
    for row in table.rows:
        cells = [Words("\n".join(lines)) for lines in row[:-1]]
        told = [Words(line, style=_STYLES[tone(line)]) for line in row[-1]]
        grid.add_row(*cells, Words("\n").join(told))
    console.print(grid)
    console.print(NOTES, markup=False, highlight=False)
    console.print()
    below = [*left_out(data), *conditions(data)]
    for text in [*(block.text for block in below), *(block.text for block in patched(data))]:
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_shipping(data: Data, console: Console) -> None:
    from rich.text import Text as Words

    found = shipping(data)
    for kind in together(found):
        console.print(listed(*kind), markup=False, highlight=False, soft_wrap=True)
    for one in found:
        said = Words(f"{one.words}.", style=_STYLES[one.tone])
        console.print(Words(f"{one.name}: ") + said + Words(f" {one.reason}"), soft_wrap=True)
        for name, value in one.figures:
            console.print(f"  {name}: {value}", markup=False, highlight=False, soft_wrap=True)
    console.print()
