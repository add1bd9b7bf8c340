#!/usr/bin/env python
"""``hf-gelu-patch evaluate`` as a script, for launchers that take one. It becomes that command: run as a script, Python
would look for libraries in this folder first, and find this file for the library ``evaluate``."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

command = Path(sysconfig.get_path("scripts")) / "hf-gelu-patch"
if not command.is_file():
    sys.exit("hf_gelu_patch is not installed here: run scripts/setup, or pip install 'hf-gelu-patch[evaluation]'")
os.execv(sys.executable, [sys.executable, str(command), "evaluate", *sys.argv[1:]])
