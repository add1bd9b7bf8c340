"""What a table of measurements is filed under: a GPU by its name, a CPU by who made it and what it can do."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import torch

__all__ = ["cpu", "processor"]

_MAKERS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}
_FEATURES = {"_is_avx512_bf16_supported": "bf16", "_is_amx_tile_supported": "AMX"}
"""Questions of ``torch.cpu`` → what a yes adds to the name. Products in bf16 are much faster with these."""


def processor(device: torch.device) -> str | None:
    """``NVIDIA H200`` or ``AMD CPU with AVX2``; None of a device that is neither a GPU of CUDA nor a CPU."""
    if device.type == "cpu":
        return cpu()
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    name: str = torch.cuda.get_device_name(device)
    return name


@functools.cache
def cpu() -> str:
    """This machine's CPU: its maker, the vector instructions that torch uses, and those for bf16."""
    features = [torch.backends.cpu.get_cpu_capability()]
    for question, feature in _FEATURES.items():
        if (supported := getattr(torch.cpu, question, None)) is not None and supported():  # torch's own, and private
            features.append(feature)
    return f"{_maker()} CPU with {', '.join(features)}"


def _maker() -> str:
    """Who made it, from what the system tells; where it tells nothing, the kind of machine, as ``arm64``."""
    told = os.environ.get("PROCESSOR_IDENTIFIER", "")  # Windows sets it
    info = Path("/proc/cpuinfo")
    if info.is_file():
        told += info.read_text(encoding="utf-8", errors="replace")
    return next((name for word, name in _MAKERS.items() if word in told), platform.machine() or "unknown")
