"""Results as one web page that needs nothing else: no network, no scripts, pictures inside."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from html import escape

from hf_gelu_patch.evaluation.report.document import NOTES, Code, Picture, Section, Table, Text, sections, summary
from hf_gelu_patch.evaluation.report.results import Data

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; --line: #c8ccd0; --soft: #f3f5f7; --good: #046c4e; --bad: #b42318; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 90rem; overflow-wrap: break-word; }
body { font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2rem; }
p { max-width: 46rem; }
nav a { display: inline-block; margin-right: 1rem; }
.wide { margin: 1rem 0; overflow-x: auto; }
:focus-visible { outline: 2px solid; outline-offset: 2px; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
table:not(.stacked) { width: max-content; }
th, td { border: 1px solid var(--line); padding: 0.3rem 0.5rem; text-align: left; vertical-align: top; }
th, td { max-width: 28rem; }
thead th { background: var(--soft); }
tbody th { font-weight: 600; max-width: 14em; }
img { display: block; max-width: 100%; height: auto; background: #fff; }
pre { background: var(--soft); padding: 0.6rem; font-size: 0.8rem; white-space: pre-wrap; }
.note { font-size: 0.85rem; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
@media screen and (prefers-color-scheme: dark) {
  :root { --line: #454b52; --soft: #20252a; --good: #4cc38a; --bad: #ff8a7a; }
  img { filter: invert(0.93) hue-rotate(180deg); }
}
@media screen and (max-width: 60rem) {
  body { padding: 0.6rem; }
  img { max-width: none; }
  tbody th { max-width: 10em; }
  table.stacked, .stacked tr, .stacked td, .stacked tbody th { display: block; max-width: none; }
  .stacked tbody { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
  .stacked thead { display: none; }
  .stacked tr { border: 1px solid var(--line); }
  .stacked td, .stacked tbody th { border: 0; }
  .stacked tbody th { background: var(--soft); }
  .stacked td::before { content: attr(data-label) ": "; font-weight: 600; }
}
@media print {
  @page { margin: 12mm; }
  :root { color-scheme: light; font-size: 9pt; }
  body { max-width: none; padding: 0; }
  nav { display: none; }
  table { font-size: 0.8rem; line-height: 1.3; }
  table:not(.stacked) { width: auto; }
  th, td { padding: 0.15rem 0.3rem; }
  tbody th { max-width: 10em; }
  .wide { overflow: visible; }
  pre { padding: 0; }
  img { max-height: 22cm; object-fit: contain; object-position: left; }
  thead, tr, img { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""
_GOOD = ("faster", "answers unchanged", "answers better", "equivalent within")
_BAD = ("slower", "answers worse", "WRONG IMPLEMENTATION")


def page(data: Data, pictures: Mapping[str, bytes]) -> str:
    """The page as HTML; whatever is not our own text is escaped.

    Args:
        pictures: the plots by name, as PNG, at twice the size that they are shown at.
    """
    shown = sections(data, tuple(pictures))
    links = " ".join(f'<a href="#{_anchor(section)}">{escape(section.title)}</a>' for section in shown)
    names = ", ".join(model["subject"]["name"] for model in data["models"])
    title = escape(f"Evaluation: {names}")
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<h1>{title}</h1>",
        f"<p>hf_gelu_patch, {escape(data['created'])}</p>",
        f'<nav aria-label="Sections">{links}</nav>',
        _table(summary(data), "Summary", stacked=True),
        f'<p class="note">{escape(NOTES)}</p>',
    ]
    for section in shown:
        lines += _section(section, pictures)
    return "\n".join([*lines, "</main>", "</body>", "</html>", ""])


def _anchor(section: Section) -> str:
    return section.title.lower().replace(" ", "-")


def _section(section: Section, pictures: Mapping[str, bytes]) -> list[str]:
    lines = ["<section>", f'<h2 id="{_anchor(section)}">{escape(section.title)}</h2>']
    for block in section.blocks:
        if isinstance(block, Table):
            lines.append(_table(block, section.title))
        elif isinstance(block, Text):
            lines.append(f"<p>{escape(block.text)}</p>")
        elif isinstance(block, Code):
            lines.append(f"<pre>{escape(block.text)}</pre>")
        elif isinstance(block, Picture):
            picture = pictures[block.name]
            source = f"data:image/png;base64,{base64.b64encode(picture).decode('ascii')}"
            width = int.from_bytes(picture[16:20], "big") // 2
            image = f'<img src="{source}" width="{width}" alt="{escape(block.alt)}">'
            lines.append(_wide(image, f"{section.title}, picture"))
    return [*lines, "</section>"]


def _wide(content: str, label: str) -> str:
    """What may be wider than the page, in a box that scrolls, by the keyboard too."""
    return f'<div class="wide" role="group" aria-label="{escape(label)}" tabindex="0">{content}</div>'


def _table(table: Table, label: str, *, stacked: bool = False) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    rows = []
    for row in table.rows:
        cells = []
        for number, (heading, lines) in enumerate(zip(table.headings, row, strict=True)):
            text = "<br>".join(_marked(line) if heading == "verdict" else escape(line) for line in lines)
            if number < table.heads:
                cells.append(f'<th scope="row">{_breakable(text)}</th>')
            else:
                cells.append(f'<td data-label="{escape(heading)}">{text}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    kind = ' class="stacked"' if stacked else ""
    body = "\n".join(rows)
    return _wide(f"<table{kind}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>", label)


def _breakable(text: str) -> str:
    """A name of escaped text that may go on in another line where one of its parts ends."""
    return re.sub(r"([=,;/_.])(?=\D)", r"\1<wbr>", text)


def _marked(line: str) -> str:
    kind = "good" if line.startswith(_GOOD) else "bad" if line.startswith(_BAD) or line.endswith(" worse") else ""
    return f'<span class="{kind}">{escape(line)}</span>' if kind else escape(line)
