"""The variants of the kernels that ``triton_launch`` lists, beside a copy: which one a GPU likes best, and
what is left of its time without arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from scripts.benchmarking.gpu.schedule import Work
from scripts.benchmarking.kernels import candidates, cells
from scripts.benchmarking.timing import figures, rounds_on

ACTIVATION, CONTROL = "gelu", "relu"
"""Exact GELU has the most arithmetic, and ReLU next to none: what is left of the time then is memory's."""
_ROUNDS = 50

Launch = Callable[[str, Any], None]


def launch_of(form: str, inputs: tuple[Tensor, ...], grad_y: Tensor) -> tuple[Launch, list[Tensor]]:
    """What launches a form's kernel, by activation and variant, and the tensors it writes to."""
    from hf_gelu_patch.implementations import triton_launch as own

    gate, up = inputs if len(inputs) == 2 else (inputs[0], inputs[0])
    y, grad_gate, grad_up = (torch.empty_like(gate) for _ in range(3))
    forms: dict[str, tuple[list[Tensor], list[Tensor]]] = {
        "forward": ([gate], [y]),
        "backward": ([gate, grad_y], [grad_gate]),
        "gated_forward": ([gate, up], [y]),
        "gated_backward": ([gate, up, grad_y], [grad_gate, grad_up]),
    }
    read, written = forms[form]
    given = (*read, *written)
    return lambda name, variant: own.launch(form, given, name, (), variant=variant), written


def right(launch: Launch, written: list[Tensor], variants: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The variants that write the bits that the chosen one writes; of the others, why not: they fail, or write
    others."""
    launch(ACTIVATION, None)
    expected = [tensor.clone() for tensor in written]
    kept, absent = {}, {}
    for name, variant in variants.items():
        for tensor in written:
            tensor.fill_(torch.nan)
        try:
            launch(ACTIVATION, variant)
            launch(CONTROL, variant)
            launch(ACTIVATION, variant)
        except Exception as error:
            absent[name] = f"{type(error).__name__}: {error}"
        else:
            if all(torch.equal(own, truth) for own, truth in zip(written, expected, strict=True)):
                kept[name] = variant
            else:
                absent[name] = "its results are not those of the variant that is chosen"
    return kept, absent


def measure(work: Work) -> None:
    """Each form at the main size in bf16, all variants in the same rounds."""
    options = work.options
    if options.device == "cpu" and not candidates.INTERPRETED:
        work.write("absent", what="variants", why="Triton's kernels run on a CPU only with TRITON_INTERPRET=1")
        return
    from hf_gelu_patch.implementations.triton_launch import VARIANTS

    elements = 2**12 if options.tiny else 2**26
    rounds = rounds_on(options.device)
    for form in candidates.MOVED:
        if work.left <= 0:
            work.leave_out(form)
            continue
        with work.attempt(form):
            inputs, grad_y = cells.arguments(form, torch.bfloat16, elements, options)
            launch, written = launch_of(form, inputs, grad_y)
            asked = {name: variant for name, variant in VARIANTS.items() if form in variant.forms}
            kept, absent = right(launch, written, dict(list(asked.items())[:2]) if options.tiny else asked)
            for name, why in absent.items():
                work.fail(f"{form}, {name}", why)
            target = torch.empty_like(grad_y)
            calls: dict[str, Callable[[], Any]] = {"copy": lambda target=target, grad_y=grad_y: target.copy_(grad_y)}
            for name, variant in kept.items():
                for activation in (ACTIVATION, CONTROL):
                    calls[f"{activation}, {name}"] = lambda launch=launch, activation=activation, variant=variant: (
                        launch(activation, variant)
                    )
            rounds(calls, 3, options.seed)
            samples = figures(rounds(calls, 3 if options.tiny else _ROUNDS, options.seed))
            moved = {"bytes": candidates.MOVED[form] * 2 * elements, "copied": 2 * 2 * elements}
            named = {"form": form, "dtype": "bfloat16", "elements": elements, "variants": list(kept)}
            work.cell(form, "variants", **named, **moved, absent=absent, samples_s=samples)
