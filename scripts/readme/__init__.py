"""What the README shows of a demo: its record, its picture, its table, and where it ran.

``python -m scripts.readme results`` takes them from the folder that ``scripts/demo`` wrote. ``tests/test_readme.py``
holds the README to the record.
"""

from __future__ import annotations

from typing import Any

from hf_gelu_patch.evaluation.reference import REFERENCES
from hf_gelu_patch.evaluation.report.document import summary, words

__all__ = ["place", "table"]


def table(data: dict[str, Any]) -> str:
    """The rows of the README's table: a reference model each, with quality, changed answers, speed and verdict. A model
    that the record lacks has the quality of its card alone."""
    cells = {
        head[0]: ((head[0],), quality, answers[:1], speed[1:], verdict[:1])
        for head, _, quality, answers, _, speed, verdict in summary(data).rows
    }
    for name, reference in REFERENCES.items():
        quality = tuple(f"{words(metric)} {value:.4f} → {value:.4f}" for metric, value in reference.quality.items())
        cells.setdefault(name, ((name,), quality, ("–",), ("not measured",), ("–",)))
    return "\n".join("| " + " | ".join("<br>".join(lines) for lines in cells[name]) + " |" for name in REFERENCES)


def place(data: dict[str, Any]) -> str:
    """The sentence on where the demo ran."""
    about = data["environment"]
    versions = {name: version.partition("+")[0] for name, version in about["versions"].items()}
    threads = "one thread" if about["threads"] == 1 else f"{about['threads']} threads"
    return (
        f"Measured by `scripts/demo`: {about['cpu']}, {about['cores']} cores shared with other work, {threads}, "
        f"torch {versions['torch']}, transformers {versions['transformers']}, Python {versions['python']}."
    )
