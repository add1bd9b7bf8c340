"""Results as one web page that needs nothing else: no network, no scripts, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape

from hf_gelu_patch.evaluation.document import NOTES, Code, Picture, Section, Table, Text, sections, summary
from hf_gelu_patch.evaluation.results import Data

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; --line: #c8ccd0; --soft: #f3f5f7; --good: #046c4e; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --line: #454b52; --soft: #20252a; --good: #4cc38a; --bad: #ff8a7a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { border: 1px solid var(--line); padding: 0.3rem 0.5rem; text-align: left; vertical-align: top; }
thead th { background: var(--soft); }
tbody th { font-weight: 600; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; background: #fff; }
pre { background: var(--soft); padding: 0.6rem; overflow-x: auto; font-size: 0.8rem; }
.note { font-size: 0.85rem; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
@media (max-width: 40rem) {
  body { padding: 0.6rem; }
  table.stacked, .stacked tbody, .stacked tr, .stacked td, .stacked tbody th { display: block; width: 100%; }
  .stacked thead { display: none; }
  .stacked tr { margin-bottom: 1rem; border: 1px solid var(--line); }
  .stacked td, .stacked tbody th { border: 0; }
  .stacked td::before { content: attr(data-label) ": "; font-weight: 600; }
}
@media print {
  body { max-width: none; font-size: 9pt; }
  .wide, pre { overflow: visible; white-space: pre-wrap; }
  tr, img { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""
_GOOD = ("faster", "answers unchanged", "answers better", "equivalent within")
_BAD = ("slower", "answers worse", "WRONG IMPLEMENTATION")


def page(data: Data, pictures: Mapping[str, bytes]) -> str:
    """The page as HTML; whatever is not our own text is escaped.

    Args:
        pictures: the plots by name, as PNG.
    """
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
        _table(summary(data), stacked=True),
        f'<p class="note">{escape(NOTES)}</p>',
    ]
    for section in sections(data, tuple(pictures)):
        lines += _section(section, pictures)
    return "\n".join([*lines, "</main>", "</body>", "</html>", ""])


def _section(section: Section, pictures: Mapping[str, bytes]) -> list[str]:
    lines = ["<section>", f"<h2>{escape(section.title)}</h2>"]
    for block in section.blocks:
        if isinstance(block, Table):
            lines.append(_table(block))
        elif isinstance(block, Text):
            lines.append(f"<p>{escape(block.text)}</p>")
        elif isinstance(block, Code):
            lines.append(f"<pre>{escape(block.text)}</pre>")
        elif isinstance(block, Picture):
            encoded = base64.b64encode(pictures[block.name]).decode("ascii")
            lines.append(f'<p><img src="data:image/png;base64,{encoded}" alt="{escape(block.alt)}"></p>')
    return [*lines, "</section>"]


def _table(table: Table, *, stacked: bool = False) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    rows = []
    for row in table.rows:
        cells = []
        for number, (heading, lines) in enumerate(zip(table.headings, row, strict=True)):
            text = "<br>".join(_marked(line) if heading == "verdict" else escape(line) for line in lines)
            if number < table.heads:
                cells.append(f'<th scope="row">{text}</th>')
            else:
                cells.append(f'<td data-label="{escape(heading)}">{text}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    kind = ' class="stacked"' if stacked else ""
    body = "\n".join(rows)
    return f'<div class="wide"><table{kind}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _marked(line: str) -> str:
    kind = "good" if line.startswith(_GOOD) else "bad" if line.startswith(_BAD) or line.endswith(" worse") else ""
    return f'<span class="{kind}">{escape(line)}</span>' if kind else escape(line)
