"""What a GPU should show, by card, and what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.benchmarking.gpu.record import Found, Line
from scripts.benchmarking.memory.subjects import MLP

MAIN = 2**26
"""Elements, at which the kernels have their goals, in bf16."""
CARDS = ("H100", "H200")

Measure = Callable[[Found], float | None]


@dataclass(frozen=True)
class Goal:
    """Something to be reached.

    Attributes:
        name: what it is of.
        least: how much of it, by card; a card that is not named has no such goal.
        measure: what was found; None where nothing was.
    """

    name: str
    least: Mapping[str, float]
    measure: Measure


def both(least: float) -> dict[str, float]:
    return dict.fromkeys(CARDS, least)


def share(cell: Line, name: str) -> float | None:
    """Of a copy's bandwidth."""
    row = cell["candidates"].get(name)
    return row and row["share_of_copy"]


def times(cell: Line, name: str, over: str) -> float | None:
    """How many times as fast ``name`` is as ``over``, from the medians."""
    rows = cell["candidates"]
    return rows[over]["median_s"] / rows[name]["median_s"] if name in rows and over in rows else None


def speedup(cell: Line, name: str) -> float | None:
    """Of a model, over what it is compared with."""
    row = cell["variants"].get(name, {})
    return row["ratio"]["value"] if "ratio" in row else None


def _least(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return min(known) if known else None


def _kernels(form: str, of: Callable[[Line], float | None], activation: str | None = None) -> Measure:
    """The least of what ``of`` says of the main cells of a form."""
    return lambda found: _least(
        of(cell)
        for (name, its_form, dtype, elements), cell in found.kernels.items()
        if (its_form, dtype, elements) == (form, "bfloat16", MAIN) and activation in (None, name)
    )


def _model(model: str, mode: str) -> Measure:
    """The best of what one can patch it with."""

    def measure(found: Found) -> float | None:
        cell = found.models.get((model, "large", mode, False))
        known = [speedup(cell, name) for name in ("auto", "triton", "epilogue")] if cell else []
        return max((value for value in known if value is not None), default=None)

    return measure


def _models(names: Sequence[str], *, compiled: bool, size: str | None = None) -> Measure:
    """The least of all cells."""
    return lambda found: _least(
        speedup(cell, name)
        for cell in found.models.values()
        for name in names
        if cell["compiled"] == compiled and size in (None, cell["size"])
    )


def _memory(model: str, name: str, over: str) -> Measure:
    """How many times the peak of training by ``name`` that by ``over`` is."""

    def measure(found: Found) -> float | None:
        rows = found.training[model]["variants"] if model in found.training else {}
        peaks = [rows.get(one, {}).get("peak_bytes") for one in (over, name)]
        return peaks[0] / peaks[1] if all(peaks) else None

    return measure


def _share(cell: Line) -> float | None:
    return share(cell, "triton")


def _over(other: str) -> Callable[[Line], float | None]:
    return lambda cell: times(cell, "triton", other)


GOALS = (
    *(
        Goal(
            f"kernels, {form.replace('_', ' ')}: share of a copy's bandwidth, the least",
            {"H100": 0.95, "H200": 0.92},
            _kernels(form, _share),
        )
        for form in ("forward", "backward", "gated_forward", "gated_backward")
    ),
    # Where memory is slower, F.gelu waits for it too.
    Goal("exact GELU over F.gelu, forward", {"H200": 1.2}, _kernels("forward", _over("aten"), "gelu")),
    Goal("exact GELU over F.gelu, backward", {"H200": 1.2}, _kernels("backward", _over("aten"), "gelu")),
    Goal("gelu_new over eager", both(6.0), _kernels("forward", _over("eager"), "gelu_tanh")),
    Goal("gated forward over eager", both(1.5), _kernels("gated_forward", _over("eager"))),
    Goal("gated backward over eager", both(1.5), _kernels("gated_backward", _over("eager"))),
    Goal("GPT-2, 32 × 512, forward", both(1.30), _model("gpt2", "forward")),
    Goal("GPT-2, 32 × 512, training step", both(1.25), _model("gpt2", "training step")),
    Goal("T5 v1.1, 32 × 512, forward", both(1.20), _model("t5", "forward")),
    Goal("BERT, 32 × 512, forward", both(1.05), _model("bert", "forward")),
    Goal("ViT, 32 × 512, forward", both(1.05), _model("vit", "forward")),
    Goal("Llama, 32 × 512, training step", both(1.03), _model("llama", "training step")),
    Goal(
        "Llama, 32 × 512, training step: Liger-Kernel's peak over ours",
        both(1.075),
        _memory("llama", "triton_recompute", "liger"),
    ),
    Goal(
        "Llama's MLP, 32,768 tokens, in tiles: eager's peak over ours",
        both(2.86),
        _memory(MLP, "tiles", "eager"),
    ),
    Goal("1 × 128, auto, the least of all", both(0.98), _models(("auto",), compiled=False, size="small")),
    Goal("1 × 128, triton, the least of all", both(0.98), _models(("triton",), compiled=False, size="small")),
    Goal("compiled, patched over not, the least of all", both(0.99), _models(("compiled_triton",), compiled=True)),
)


def card_of(found: Found) -> str | None:
    """The card that has goals on which this was measured, at full size; None for any other."""
    if found.card is None or found.settings is None or found.settings["tiny"]:
        return None
    return next((card for card in CARDS if card in found.card["name"]), None)


def outcomes(found: Found) -> list[dict[str, Any]]:
    """Each goal with "measured" (None: nothing was) and "outcome": met, missed, not measured, or no goal of the card.
    What was tried out on a CPU, or tiny, meets and misses none."""
    card, told = card_of(found), []
    for goal in GOALS:
        measured = goal.measure(found) if card else None
        if card and card not in goal.least:
            outcome = "no goal here"
        elif measured is None:
            outcome = "not measured"
        else:
            outcome = "met" if measured >= goal.least[card or ""] else "missed"
        told.append({"goal": goal.name, "least": goal.least, "measured": measured, "outcome": outcome})
    return told
