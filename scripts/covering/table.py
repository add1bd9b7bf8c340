"""The rows of all types: what they come to, and a table of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from hf_gelu_patch.evaluation.report import markdown
from scripts.covering.coverage import Coverage


def totals(rows: Sequence[Coverage], called: str = "model types") -> str:
    """What the rows come to, in a few lines of Markdown; ``called`` is what there is one of a row."""
    tried = [row for row in rows if row.unavailable is None]
    failed = [row for row in tried if row.problems]
    counts = {
        name: sum(getattr(row, name) for row in tried)
        for name in ("executions", "in_modules", "written", "changed", "gated", "gated_fused", "linear", "linear_fused")
    }
    kinds: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    gates: Counter[str] = Counter()
    for row in tried:
        kinds.update(row.sites)
        reasons.update(row.left)
        gates.update({one.partition(" in ")[0] for one in row.not_fused})
    elsewhere = counts["executions"] - counts["in_modules"] - counts["written"]
    lines = [
        f"{len(tried):,} {called}, {len(tried) - len(failed):,} as promised, {len(failed):,} not; "
        f"{len(rows) - len(tried):,} more cannot be built here.",
        f"One forward of each executes {counts['executions']:,} activations: {counts['in_modules']:,} in modules, "
        f"{counts['written']:,} written in a forward, {elsewhere:,} in modules that are not part of the model. "
        f"Not listed by find_sites: {sum(len(row.missing) for row in tried):,} places.",
        f"Sites: {sum(kinds.values()):,} ({', '.join(f'{count:,} {kind}' for kind, count in kinds.most_common())}), "
        f"{counts['changed']:,} changed.",
        f"Gated products: {counts['gated_fused']:,} of {counts['gated']:,} fused. "
        f"Behind a linear layer, not gated: {counts['linear_fused']:,} of {counts['linear']:,} fused.",
        f"Largest drift: {max((row.drift for row in tried), default=0.0):.1e} of the output's scale.",
    ]
    if reasons:
        lines += ["", "Left alone:", *(f"- {count:,} × {reason}" for reason, count in reasons.most_common())]
    if gates:
        lines += ["", "Gated, not fused, and in how many models:"]
        lines += [f"- {count:,} × {one}" for one, count in gates.most_common()]
    if failed:
        lines += ["", "Not as promised:", *(f"- {row.model_type}: {'; '.join(row.problems)}" for row in failed)]
    return "\n".join(lines)


def table(rows: Iterable[Coverage]) -> str:
    """A line of Markdown for each row."""
    figures = ("parameters", "activations", "sites", "changed", "gated", "linear", "drift")
    headings = ("type", "model", *figures, "as promised")
    return markdown.table(headings, map(_cells, rows), right=figures) + "\n"


def _cells(row: Coverage) -> tuple[str, ...]:
    if row.unavailable is not None:
        return (row.model_type, _cell(row.unavailable), *[""] * 8)
    return (
        row.model_type,
        row.model,
        f"{row.parameters:,}",
        f"{row.executions:,}",
        f"{sum(row.sites.values()):,}",
        f"{row.changed:,}",
        f"{row.gated_fused:,} of {row.gated:,}" if row.gated else "",
        f"{row.linear_fused:,} of {row.linear:,}" if row.linear else "",
        f"{row.drift:.0e}" if row.drift else "0",
        _cell("; ".join(row.problems)) or "yes",
    )


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
