#!/usr/bin/env python
"""``hf-gelu-patch finetune`` as a script, for launchers that take one. It becomes that command, as ``evaluate.py``
does."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

command = Path(sysconfig.get_path("scripts")) / "hf-gelu-patch"
if not command.is_file():
    sys.exit("hf_gelu_patch is not installed here: run scripts/setup, or pip install 'hf-gelu-patch[evaluation]'")
os.execv(sys.executable, [sys.executable, str(command), "finetune", *sys.argv[1:]])
