#!/usr/bin/env python
"""``hf-gelu-patch evaluate`` as a script, for torchrun and accelerate launch, which take one."""

from __future__ import annotations

import sys
from pathlib import Path

# Python looks in a script's own folder first, where this file would pass for the library of its name.
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

from hf_gelu_patch.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
