"""Where what is made once and used again is kept: the reference models' weights, the compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/hf_gelu_patch``, or ``~/.cache/hf_gelu_patch`` where that is not set to an absolute path."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "hf_gelu_patch"
