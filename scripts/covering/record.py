"""What is known of the models of other libraries: one JSON file, and what is shown of it.

``libraries.json`` has the versions, the processor, and a row a model, without what is as it is by default.
``libraries.md`` and a table of the guide are made from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from hf_gelu_patch.evaluation.environment import environment
from hf_gelu_patch.evaluation.report import markdown
from hf_gelu_patch.implementations.measured.processors import cpu
from scripts.covering.coverage import IMPLEMENTATION, Coverage
from scripts.covering.libraries import LIBRARIES, library_of, version_of
from scripts.covering.table import table, totals

__all__ = ["page", "recorded", "rows_of", "summary", "written"]

_FLOATS = ("drift", "own_error", "patched_error", "scale")


def recorded(rows: Sequence[Coverage]) -> dict[str, Any]:
    """The rows of some libraries with all that they depend on, as plain data."""
    around = environment(processes=1, device="cpu", command=["covering"])
    libraries = {library_of(row.model_type) for row in rows}
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "git": around["git"],
        "processor": cpu(),
        "versions": {
            **{name: around["versions"][name] for name in ("python", "torch")},
            **{LIBRARIES[library]: version_of(library) for library in sorted({*libraries, "transformers"})},
        },
        "rows": [_compact(row) for row in sorted(rows, key=lambda row: row.model_type)],
    }


def _compact(row: Coverage) -> dict[str, Any]:
    """A row without how long it took, three digits of each figure."""
    data = {name: value for name, value in row.to_dict().items() if name != "seconds"}
    return {name: _rounded(value) if name in _FLOATS else value for name, value in data.items()}


def _rounded(value: float | str) -> float | str:
    return value if isinstance(value, str) else float(f"{value:.3g}")


def written(record: Mapping[str, Any]) -> str:
    """The record as JSON, a line a row."""
    *others, (_, rows) = record.items()
    head = json.dumps(dict(others), indent=1, allow_nan=False).removesuffix("\n}")
    lines = ",\n".join(f"  {json.dumps(row, allow_nan=False, ensure_ascii=False)}" for row in rows)
    return f'{head},\n "rows": [\n{lines}\n ]\n}}\n'


def rows_of(record: Mapping[str, Any]) -> dict[str, list[Coverage]]:
    """The rows of each library, in the order of ``LIBRARIES``."""
    rows = [Coverage.from_dict(data) for data in record["rows"]]
    found = {library: [row for row in rows if library_of(row.model_type) == library] for library in LIBRARIES}
    return {library: own for library, own in found.items() if own}


def page(record: Mapping[str, Any]) -> str:
    """Everything in Markdown: the summary, and for each library its totals and a line a model."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    parts = [
        "# Models of other libraries",
        f"Made on {record['date']} at {record['git']['revision'][:12]} with {versions}, on an {record['processor']}.",
        summary(record),
    ]
    for library, rows in rows_of(record).items():
        parts += [f"## {LIBRARIES[library]}", totals(rows, "models"), table(rows).rstrip()]
    return "\n\n".join(parts) + "\n"


def summary(record: Mapping[str, Any]) -> str:
    """A line for each library, and one for all of them."""
    found = rows_of(record)
    lines = [
        _line(f"{LIBRARIES[library]} {record['versions'][LIBRARIES[library]]}", rows) for library, rows in found.items()
    ]
    lines.append(_line("all", [row for rows in found.values() for row in rows]))
    names = [name for name in lines[0] if name != "library"]
    return markdown.table(list(lines[0]), [list(line.values()) for line in lines], right=names)


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
