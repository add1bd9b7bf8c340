"""Where a measurement was taken: versions, hardware, and the state of the checkout."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["environment"]


def environment(*, processes: int, device: str, command: Sequence[str]) -> dict[str, Any]:
    """Versions, hardware, a GPU's driver and clocks at this moment, threads, processes, and the git revision where
    this is a checkout.

    Args:
        command: the program and its arguments, of which the program's folder is left out.
    """
    import torch

    names = ("hf-gelu-patch", "torch", "transformers", "accelerate", "datasets", "evaluate", "tokenizers", "numpy")
    versions = {}
    for name in (*names, "triton"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    cuda = device.startswith("cuda")
    return {
        "command": [Path(command[0]).name, *command[1:]],
        "versions": {"python": platform.python_version(), **versions, "torch": torch.__version__},  # which build of it
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": device,
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "nvidia_smi": _nvidia_smi() if cuda else None,
        "git": _git(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _nvidia_smi() -> list[str] | None:
    """Each GPU's name, driver, clocks and limit of power, where there is something to ask."""
    if (program := shutil.which("nvidia-smi")) is None:
        return None
    asked = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,temperature.gpu,power.limit"
    done = subprocess.run([program, f"--query-gpu={asked}", "--format=csv"], capture_output=True, text=True)
    return (done.stdout or done.stderr).splitlines()


def _git() -> dict[str, Any] | None:
    """The revision of the checkout this file is in, and whether it was changed since."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        revision, status = (
            subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=True).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"revision": revision.strip(), "changed": bool(status.strip())}
