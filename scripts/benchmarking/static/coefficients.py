"""The coefficients of ``normal_tail.MILLS``, and how far off they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

FITS = {"bfloat16": (6, 3.0, 2e-3), "float16": (7, 2.5, 1e-3), "float32": (10, 2.25, 0.1)}
"""Storage dtype → (coefficients, the first being ½; shift; the floor of the weight)."""
END = 14.2


def _ratio(t: np.ndarray) -> np.ndarray:
    from scipy.special import erfcx

    return 0.5 * erfcx(t / math.sqrt(2.0))


def fitted(dtype: str, iterations: int = 1500) -> tuple[float, list[float]]:
    """(largest weighted error, coefficients) of R(t) = e^(t²/2)·Φ(−t) as a polynomial in t/(shift + t) on [0, 14.2].

    Minimax by Lawson's iteration: least squares, each point's weight then multiplied by its error. The error that
    counts is relative, the more so the larger e^(−t²/2) is: max(e^(−t²/2), floor)/R(t).
    """
    count, shift, floor = FITS[dtype]
    nodes = np.arange(4000)
    t = END / 2 * (1 - np.cos(np.pi * (nodes + 0.5) / len(nodes)))
    base = np.maximum(np.exp(-t * t / 2), floor) / _ratio(t)
    basis = np.stack([(t / (shift + t)) ** k for k in range(1, count)], axis=1)
    scale = np.abs(basis).max(axis=0)
    basis, target, weights = basis / scale, _ratio(t) - 0.5, np.ones(len(t))
    best = (math.inf, np.zeros(count - 1))
    for _ in range(iterations):
        rows = np.sqrt(weights) * base
        found, *_ = np.linalg.lstsq(basis * rows[:, None], target * rows, rcond=None)
        error = np.abs(basis @ found - target) * base
        if error.max() < best[0]:
            best = float(error.max()), found / scale
        weights *= error / error.max() + 1e-12
        weights /= weights.mean()
    return best[0], [0.5, *(float(f"{np.float32(value):.9g}") for value in best[1])]


def polynomial(dtype: str, coefficients: list[float], t: np.ndarray) -> np.ndarray:
    """R(t) by these coefficients, in float64."""
    shift = FITS[dtype][1]
    value = np.zeros_like(t)
    for c in reversed([float(np.float32(c)) for c in coefficients]):
        value = value * (t / (shift + t)) + c
    return value


def bounds(dtype: str, coefficients: list[float]) -> dict[str, float]:
    """How far off the polynomial is in exact arithmetic: Φ(−t) absolutely, R(t) relatively."""
    t = np.linspace(0.0, END, 200_001)
    error = polynomial(dtype, coefficients, t) - _ratio(t)
    return {
        "tail_absolute": float(np.abs(error * np.exp(-t * t / 2)).max()),
        "ratio_relative": float(np.abs(error / _ratio(t)).max()),
    }


def fit() -> dict[str, Any]:
    from hf_gelu_patch.implementations import normal_tail

    found = {}
    for dtype in FITS:
        error, coefficients = fitted(dtype)
        shift, kept = normal_tail.MILLS[dtype]
        found[dtype] = {
            "weighted_error": error,
            "shift": shift,
            "coefficients": coefficients,
            "kept": list(kept),
            **bounds(dtype, list(kept)),
        }
    return found


def to_paste(found: dict[str, Any]) -> str:
    """What ``fit`` found, as it stands in normal_tail.py, and how far off each is."""
    lines = ["MILLS = {"]
    for dtype, row in found.items():
        lines += [
            f"    # weighted error {row['weighted_error']:.2e}; of Φ(−t) at most {row['tail_absolute']:.2e}, "
            f"of R(t) {row['ratio_relative']:.2e} of it",
            f'    "{dtype}": ({row["shift"]}, ({", ".join(f"{c:.9g}" for c in row["coefficients"])})),',
        ]
    same = all(row["coefficients"] == row["kept"] for row in found.values())
    return "\n".join([*lines, "}", f"# {'the same as' if same else 'NOT the same as'} normal_tail.MILLS", ""])
