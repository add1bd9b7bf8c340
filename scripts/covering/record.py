"""What is known of the models of other libraries: one JSON file, and what is shown of it.

``libraries.json`` has for each library the versions, the processor, the revision, and a row a model, without what is as
it is by default. ``libraries.md`` and a table of the guide are made from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hf_gelu_patch.evaluation.environment import environment
from hf_gelu_patch.evaluation.report import markdown
from hf_gelu_patch.implementations.measured.processors import cpu
from scripts.covering.coverage import IMPLEMENTATION, Coverage
from scripts.covering.libraries import LIBRARIES, library_of, version_of
from scripts.covering.table import table, totals

__all__ = ["keep", "page", "read_record", "rows_of", "summary", "written"]

Record = Mapping[str, Mapping[str, Any]]
"""By library."""

_FLOATS = ("drift", "own_error", "patched_error", "scale")


def keep(rows: Sequence[Coverage], path: Path) -> None:
    """Write the rows of some libraries into a record, and the page beside it. What it has of other libraries stays."""
    record = read_record(path) if path.exists() else {}
    new = {library: _part(library, rows) for library in {library_of(row.model_type) for row in rows}}
    found = {**record, **new}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(written(found), encoding="utf-8")
    path.with_suffix(".md").write_text(page(found), encoding="utf-8")


def read_record(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def _part(library: str, rows: Iterable[Coverage]) -> dict[str, Any]:
    """The rows of a library with all that they depend on, as plain data."""
    around = environment(processes=1, device="cpu", command=["covering"])
    own = sorted((row for row in rows if library_of(row.model_type) == library), key=lambda row: row.model_type)
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "revision": (around["git"] or {}).get("revision"),
        "processor": cpu(),
        "versions": {
            LIBRARIES[library]: version_of(library),
            **{name: around["versions"][name] for name in ("python", "torch", "transformers")},
        },
        "rows": [_compact(row) for row in own],
    }


def _compact(row: Coverage) -> dict[str, Any]:
    """A row without how long it took, three digits of each figure."""
    data = {name: value for name, value in row.to_dict().items() if name != "seconds"}
    return {name: _rounded(value) if name in _FLOATS else value for name, value in data.items()}


def _rounded(value: float | str) -> float | str:
    return value if isinstance(value, str) else float(f"{value:.3g}")


def written(record: Record) -> str:
    """The record as JSON, in the order of ``LIBRARIES``, a line a row."""

    def line(value: object) -> str:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)

    parts = []
    for library in (library for library in LIBRARIES if library in record):
        own = record[library]
        lines = [f"  {line(name)}: {line(value)}," for name, value in own.items() if name != "rows"]
        rows = ",\n".join(f"   {line(row)}" for row in own["rows"])
        parts.append("\n".join([f" {line(library)}: {{", *lines, '  "rows": [', rows, "  ]", " }"]))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def rows_of(record: Record) -> dict[str, list[Coverage]]:
    """The rows of each library."""
    return {library: [Coverage.from_dict(data) for data in own["rows"]] for library, own in record.items()}


def page(record: Record) -> str:
    """Everything in Markdown: the summary, and for each library its totals and a line a model."""
    parts = ["# Models of other libraries", summary(record)]
    for library, rows in rows_of(record).items():
        own = record[library]
        versions = ", ".join(f"{name} {version}" for name, version in own["versions"].items())
        at = f" at {own['revision'][:12]}" if own["revision"] else ""
        parts += [
            f"## {LIBRARIES[library]}",
            f"{own['date']}{at}: {versions}, {own['processor']}.",
            totals(rows, "models"),
            table(rows).rstrip(),
        ]
    return "\n\n".join(parts) + "\n"


def summary(record: Record) -> str:
    """A line for each library, and one for all of them."""
    found = rows_of(record)
    names = {library: LIBRARIES[library] for library in found}
    lines = [
        _line(f"{names[library]} {record[library]['versions'][names[library]]}", rows)
        for library, rows in found.items()
    ]
    lines.append(_line("all", [row for rows in found.values() for row in rows]))
    figures = [name for name in lines[0] if name != "library"]
    return markdown.table(list(lines[0]), [list(line.values()) for line in lines], right=figures)


def _line(name: str, rows: Iterable[Coverage]) -> dict[str, str]:
    tried = [row for row in rows if row.unavailable is None]

    def total(field: Callable[[Coverage], int]) -> int:
        return sum(map(field, tried))

    def largest(field: Callable[[Coverage], float | None]) -> str:
        return f"{max((value for row in tried if (value := field(row)) is not None), default=0.0):.1e}"

    return {
        "library": name,
        "models": f"{len(tried)}",
        "as promised": f"{sum(not row.problems for row in tried)}",
        "activations run": f"{total(lambda row: row.executions):,}",
        "gated, fused": f"{total(lambda row: row.gated_fused):,} of {total(lambda row: row.gated):,}",
        "behind a linear layer, fused": f"{total(lambda row: row.linear_fused):,} of {total(lambda row: row.linear):,}",
        "sites": f"{total(lambda row: sum(row.sites.values())):,}",
        f"patched by {IMPLEMENTATION}": f"{total(lambda row: row.changed):,}",
        "by auto": f"{total(lambda row: row.changed_by_auto):,}",
        "largest drift": largest(lambda row: row.drift),
        "error before": largest(lambda row: row.own_error),
        "error after": largest(lambda row: row.patched_error),
    }
