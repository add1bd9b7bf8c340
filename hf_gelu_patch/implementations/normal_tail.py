"""The tail of the normal distribution, as the kernels of exact GELU compute it.

Φ(−t) = e^(−t²/2)·R(t), R being Mills' ratio over √(2π). With v = t/(shift + t), R(t) ≈ ½ + c₁v + c₂v² + … on
[0, 14.2], beyond which Φ(−t) is 0 in fp32. No large number is taken from another: the negative tail keeps its relative
accuracy, which ½(1 + erf) loses from −5.5 on.
"""

from __future__ import annotations

__all__ = ["END", "MILLS"]

END = 14.2
"""Φ(−t) is 0 in float32 from here on."""

MILLS = {
    "bfloat16": (3.0, (0.5, -1.19682312, 1.05279338, -0.281972051, -0.183749735, 0.110825978)),
    "float16": (2.5, (0.5, -0.997361481, 0.565350831, 0.0473395623, -0.0882209316, -0.0837912187, 0.0569261797)),
    "float32": (
        2.25,
        (
            0.5,
            -0.897620618,
            0.368029505,
            0.118453458,
            -0.0392432436,
            -0.0692401677,
            0.0410422906,
            -0.0929614902,
            0.107476361,
            -0.0359432176,
        ),
    ),
}
"""(shift, coefficients) for each dtype a result is stored in.

``python -m scripts.benchmarking.static fit`` finds them.
"""
