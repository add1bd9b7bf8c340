"""Results as Markdown; and the one way in which tables are written in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hf_gelu_patch.evaluation.report.document import NOTES, Code, Picture, Table, Text, sections, summary
from hf_gelu_patch.evaluation.report.results import Data
from hf_gelu_patch.evaluation.report.shipping import listed, shipping, together

__all__ = ["escaped", "markdown", "table"]


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> str:
    """A Markdown table.

    Args:
        headings: of the columns.
        rows: a cell for each heading, as Markdown: what may hold a ``|`` goes through ``escaped`` first.
        right: the headings whose columns are aligned to the right.

    Raises:
        ValueError: a row has more or fewer cells than there are headings.
    """
    right = set(right)
    lines = [headings, ["---:" if heading in right else "---" for heading in headings], *rows]
    if odd := [line for line in lines if len(line) != len(headings)]:
        raise ValueError(f"the table has {len(headings)} columns ({', '.join(headings)}), and a row {len(odd[0])}.")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """A line as Markdown shows it: what would be a column, a tag, emphasis or a line of its own is a character."""
    for character in "\\|<>*_`[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def markdown(data: Data, pictures: Sequence[str] = ()) -> str:
    """What is to be done with each variant, the summary and all sections.

    Args:
        pictures: the names of the plots that lie beside it.
    """
    parts = ["# Evaluation", *_shipping(data), _table(summary(data)), escaped(NOTES)]
    for section in sections(data, pictures):
        parts += [f"## {section.title}", *map(_block, section.blocks)]
    return "\n\n".join(parts) + "\n"


def _shipping(data: Data) -> list[str]:
    found = shipping(data)
    lines = [f"- {escaped(listed(*kind))}" for kind in together(found)]
    parts = ["\n".join(lines)] if lines else []
    for one in found:
        figures = "\n".join(f"- {name}: {escaped(value)}" for name, value in one.figures)
        parts.append(f"**{escaped(one.name)}: {one.words}.** {escaped(one.reason)}\n\n{figures}")
    return parts


def _block(block: Table | Text | Code | Picture) -> str:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Text):
        return escaped(block.text)
    if isinstance(block, Picture):
        return f"![{escaped(block.alt)}]({block.name}.png)"
    fence = "```"
    while fence in block.text:
        fence += "`"
    return f"{fence}{block.language}\n{block.text}\n{fence}"


def _table(block: Table) -> str:
    rows = [["<br>".join(map(escaped, lines)) for lines in row] for row in block.rows]
    return table([escaped(heading) for heading in block.headings], rows)
