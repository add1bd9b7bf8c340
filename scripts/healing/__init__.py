"""What swaps cost a real model and what an epoch gives back, and LoRA with and without a patch: a record

``python -m scripts.healing`` makes it. ``tests/test_finetune.py`` holds the guide to it.
"""

from __future__ import annotations

from typing import Any

from hf_gelu_patch.evaluation.report.markdown import table

__all__ = ["curve", "healing"]

HEADINGS = ("model", "accuracy", "against GELU", "right → wrong", "wrong → right", "p")


def healing(record: dict[str, Any]) -> str:
    """The guide's table: MiniLM with GELU, and with each function swapped in, before and after an epoch."""
    own = record["healing"]["gelu"]
    rows = [["GELU, fine-tuned", share(own["stages"]["trained"]["accuracy"]), "", "", "", ""]]
    for name in ("silu", "relu"):
        found = record["healing"][name]
        for stage, said in (("patched", "swapped in, not trained"), ("trained", "healed for one epoch")):
            rows.append([f"{_TITLES[name]}, {said}", share(found["stages"][stage]["accuracy"]), *_change(found, stage)])
    return table(HEADINGS, rows, right=HEADINGS[1:])


_TITLES = {"silu": "SiLU", "relu": "ReLU"}


def share(value: float) -> str:
    return f"{100 * value:.2f} %"


def _change(found: dict[str, Any], stage: str) -> list[str]:
    change = found["changes"][stage]
    moved = change["differences"]["accuracy"]
    value, low, high = (f"{100 * float(moved[key]):+.2f}".replace("-", "−") for key in ("value", "low", "high"))
    p = float(change["p"])
    return [
        f"{value} ({low} to {high})",
        f"{change['right_to_wrong']:,}",
        f"{change['wrong_to_right']:,}",
        f"{p:.2g}" if p >= 1e-4 else "< 0.0001",
    ]


def curve(record: dict[str, Any]) -> str:
    """The sentences on LoRA."""
    plain, *others = (one["history"]["loss"] for one in record["lora"].values())
    names = list(record["lora"])[1:]
    said = f"Over {len(plain)} steps the loss fell from {plain[0]:.3f} to {plain[-1]:.3f} unpatched."
    for name, losses in zip(names, others, strict=True):
        apart = max(abs(one - other) / one for one, other in zip(plain, losses, strict=True))
        how = (
            "has the same losses to the last bit"
            if apart == 0
            else f"differs by at most {100 * apart:.1g} % at any step"
        )
        said += f" `{name}` {how}."
    return said
