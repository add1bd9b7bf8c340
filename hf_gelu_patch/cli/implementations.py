"""``hf-gelu-patch implementations``: how activations can be computed, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_gelu_patch.cli.command import Command, Said

if TYPE_CHECKING:
    import torch

    from hf_gelu_patch.implementations.registry import Implementation

__all__ = ["COMMAND"]


def _run(said: Said) -> int:
    del said
    import torch

    from hf_gelu_patch.implementations import measured
    from hf_gelu_patch.implementations.choice import AUTO
    from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"auto: at each site {' or '.join(AUTO)}, the first that computes the activation and gains something;")
    print("  where it was measured, what was never slower there than the model's own ops, or nothing (eager):")
    known = measured.tables(measured.FOLDER)
    here = [table for of in dict.fromkeys(("cpu", device.type)) if (table := measured.measured_on(torch.device(of)))]
    for line in [line for table in (*known, *(one for one in here if one.file is None)) for line in table.lines()]:
        print(f"    {line}")
    for name, one in IMPLEMENTATIONS.items():
        print("\n".join(_described(name, one, device)))
    return 0


def _described(name: str, one: Implementation, device: torch.device) -> list[str]:
    computes = [f"{len(one.functions)} activations"]
    computes += [f"{len(one.gated)} with the product of a gated layer"] if one.gated else []
    computes += [f"{len(one.linear)} after a linear layer"] if one.linear else []
    dtypes = "any dtype" if one.dtypes is None else ", ".join(sorted(str(d).rpartition(".")[2] for d in one.dtypes))
    devices = " or ".join(sorted(one.devices)) if one.devices else "any device"
    narrower = [
        f"  on {of} only {', '.join(found)}"
        for of, computed in one.only.items()
        if len(found := [name for name in one.functions if name in computed]) < len(one.functions)
    ]
    return [
        f"{name}: {', '.join(computes)}: {', '.join(one.functions)}",
        f"  runs on {devices}; {dtypes}{'' if one.backward else '; no backward'}",
        *narrower,
        f"  here ({device}): {_available(one, device)}",
    ]


def _available(one: Implementation, device: torch.device) -> str:
    import torch

    obstacles = {dtype: one.obstacle(device, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    lacking = {str(dtype).rpartition(".")[2]: why for dtype, why in obstacles.items() if why is not None}
    if len(lacking) == len(obstacles):
        return f"not available: {lacking['float32']}"
    return "; ".join(["available", *(f"not in {dtype}: {why}" for dtype, why in lacking.items())])


COMMAND = Command(
    "implementations",
    "how activations can be computed, and where",
    "List the implementations: what they compute, where they run, and whether they do here.",
    _run,
)
