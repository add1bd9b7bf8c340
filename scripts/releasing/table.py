"""The record of a release, and the page that shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hf_gelu_patch.evaluation.report import markdown

__all__ = ["document", "record", "summary"]

Record = Mapping[str, Any]

_ABOUT = """\
Written by `scripts/release`. Each environment is empty, and gets the wheel and what it asks for: the oldest torch and
transformers that are allowed, or the newest that there is for that Python. Five tiny models (BERT, GPT-2, T5, ViT,
Llama) are patched there by `auto`, `aten` and `cpp`, and put back. The result says how far outputs moved at most,
relative to their scale. Undone, they are the same to the bit. Then the command line is asked for its help and for the
sites of a model. With the extra `evaluation` it evaluates two reference models on all of their data. Seconds are those
to install, downloads included, and to try. MB are those of the environment.
"""


def record(found: Record) -> str:
    """All of it as JSON, a line an environment."""
    head = json.dumps({name: value for name, value in found.items() if name != "environments"}, ensure_ascii=False)
    rows = [json.dumps(row, ensure_ascii=False) for row in found["environments"]]
    return f'{head[:-1]}, "environments": [\n' + ",\n".join(rows) + "\n]}\n"


def summary(row: Record) -> str:
    """One line on one environment."""
    if row["problems"]:
        return f"{len(row['problems'])} problems"
    return f"passed; {row['seconds']['install']} s to install, {row['seconds']['run']} s to try"


def _most_moved(row: Record) -> Any:
    """How far any patch moved the outputs of any model."""
    return max(one["moved"] for model in row["models"].values() for one in model.values() if "moved" in one)


def document(found: Record) -> str:
    """The whole page."""
    wheel, sdist = found["wheel"], found["sdist"]
    rows = []
    for row in found["environments"]:
        versions = row.get("versions", {})
        rows.append(
            [
                versions.get("Python", row["asked"]),
                versions.get("torch", ""),
                versions.get("transformers", ""),
                row["extra"] or "none",
                row["installer"],
                markdown.escaped("; ".join(row["problems"])) or f"passed; {_most_moved(row):.1e}",
                f"{row['seconds']['install']} + {row['seconds'].get('run', '–')}" if "seconds" in row else "",
                f"{row['megabytes']:,}" if "megabytes" in row else "",
            ]
        )
    header = ["Python", "torch", "transformers", "extra", "installed by", "result", "seconds", "MB"]
    passed = sum(not row["problems"] for row in found["environments"])
    size = (
        f"{wheel['name']} has {wheel['bytes']:,} bytes; {wheel['reference']:,} of them are the reference models with "
        f"their data. {sdist['name']} has {sdist['bytes']:,} bytes."
    )
    counted = f"{passed} of {len(found['environments'])} environments passed."
    return f"# The wheel in empty environments\n\n{_ABOUT}\n{size}\n{counted}\n\n{markdown.table(header, rows)}\n"
