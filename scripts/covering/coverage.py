"""What a patch reaches and moves in the tiny model of one type, or in a small model of another library.

``cover`` builds it, holds ``find_sites`` against the trace of a forward, patches, compares the outputs, undoes it and
compares again. So the trace judges the patcher.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch.errors import NothingPatchedWarning, shortened
from hf_gelu_patch.evaluation.json_values import as_json
from hf_gelu_patch.patching import patch, unpatch
from hf_gelu_patch.planning import find_sites
from hf_gelu_patch.report import Report
from hf_gelu_patch.sites import Site
from hf_gelu_patch.verification import exact_copy, largest_difference, output_tensors, scale_of
from scripts.covering.libraries import model_of
from scripts.covering.tiny import TinyModel, TinyModelError
from scripts.covering.tracing import Execution, trace

__all__ = ["LARGEST_DRIFT", "Coverage", "cover"]

LARGEST_DRIFT = 1e-5
"""How far an output of a patched float32 model may move, relative to its scale."""
_TIMES_THE_ERROR = 4.0
"""An output may move further where the patched model is as near to float64 as the model itself, but for this factor."""
_OTHER_NUMBERS = 0.25  # so far from its float64 copy, a model drew other random numbers
IMPLEMENTATION = "aten"
"""What models are patched with, besides ``auto``: it runs anywhere, and fuses all that can be."""
_SMALLEST_SCALE = 1e-6


@dataclass(frozen=True)
class Coverage:
    """What a patch does to the tiny model of one type.

    Attributes:
        model_type, model: the type, and the class of the model; for another library's, ``timm/test_vit``.
        parameters: how many weights it has.
        seconds: how long all of this took.
        executions: how many activations one forward executes; of these ``in_modules`` of the model, ``written`` as
            calls in a forward, and the rest in modules that are not part of it.
        functions: how many of each.
        sites: how many sites ``find_sites`` lists, of each kind.
        changed, changed_by_auto: how many of them a patch changes that is asked for ``IMPLEMENTATION``, and one that
            chooses by itself. All that is said of a patch is said of the former; both must keep the promises.
        gated: how many executions are gated, and ``gated_fused`` how many of them the patch computes so.
        linear, linear_fused: likewise behind a linear layer, of the executions that are not gated.
        missing: the executions that ``find_sites`` does not list: ``gelu at modeling_x.py:123 in encoder.layer.0``.
        not_fused: the gated executions that the patch does not compute so, by the same words.
        left: how many sites are left alone, by reason.
        drift: max |Δ| / max |y| of the output it is worst for; NaN and inf equal themselves, and no other number.
        own_error, patched_error: likewise, of the model before and after against its float64 copy; None where there is
            no such copy.
        scale: max |y| over all outputs.
        undo_identical: whether outputs have the same bits again after ``unpatch``.
        state_dict_unchanged: whether the keys were the same while it was patched, and are now.
        class_names_unchanged: whether every module keeps its class name while it is patched, and afterwards.
        second_round_identical: whether patching again gave the same report and bits, and undoing it too.
        unavailable: why there is no model of this type here; nothing was tried then.
        error: what was raised, and at which stage.
    """

    model_type: str
    model: str = ""
    parameters: int = 0
    seconds: float = 0.0
    executions: int = 0
    in_modules: int = 0
    written: int = 0
    functions: dict[str, int] = field(default_factory=dict)
    sites: dict[str, int] = field(default_factory=dict)
    changed: int = 0
    changed_by_auto: int = 0
    gated: int = 0
    gated_fused: int = 0
    linear: int = 0
    linear_fused: int = 0
    missing: tuple[str, ...] = ()
    not_fused: tuple[str, ...] = ()
    left: dict[str, int] = field(default_factory=dict)
    drift: float = 0.0
    own_error: float | None = None
    patched_error: float | None = None
    scale: float = 0.0
    undo_identical: bool = False
    state_dict_unchanged: bool = False
    class_names_unchanged: bool = False
    second_round_identical: bool = False
    unavailable: str | None = None
    error: str | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that must hold for every type and does not for this one."""
        if self.unavailable is not None:
            return ()
        if self.error is not None:
            return (self.error,)
        promises = {
            "the outputs are not the same after unpatch": self.undo_identical,
            "the keys of the state_dict changed": self.state_dict_unchanged,
            "class names changed": self.class_names_unchanged,
            "a second round is not like the first": self.second_round_identical,
            f"drift {self.drift:.1e}": self.drift <= LARGEST_DRIFT or self.as_near_to_float64,
            f"not listed: {shortened(self.missing)}": not self.missing,
        }
        return tuple(problem for problem, kept in promises.items() if not kept)

    @property
    def as_near_to_float64(self) -> bool:
        """Whether the patched model is as near to float64 as the model itself. Where that has a large error of its own,
        rounding moves it as far."""
        if self.own_error is None or self.patched_error is None:
            return False
        return self.patched_error <= _TIMES_THE_ERROR * self.own_error

    def to_dict(self) -> dict[str, Any]:
        """Everything that is not as it is by default, as plain data; a drift that is no number is spelt out, so that it
        is valid JSON."""
        plain: dict[str, Any] = as_json(asdict(self))
        default = as_json(asdict(Coverage(self.model_type)))
        return {name: value for name, value in plain.items() if name == "model_type" or value != default[name]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Coverage:
        """What ``to_dict`` gave."""
        tuples = {name: tuple(data[name]) for name in ("missing", "not_fused") if name in data}
        floats = {name: float(data[name]) for name in ("drift", "own_error", "patched_error") if data.get(name)}
        return cls(**{**data, **tuples, **floats})


def cover(model_type: str, *, thorough: bool = False) -> Coverage:
    """Build the tiny model of a type, trace it, patch it, compare, undo, compare again, twice. It raises nothing.

    Args:
        model_type: one of transformers, or a library's name and a model's, such as ``timm/test_vit``.
        thorough: also compare with a float64 copy, and patch once more with ``auto``.
    """
    began = time.perf_counter()
    examination = _Examination(model_type)
    try:
        examination.build()
        own, patched = examination.examine()
        if thorough and patched:
            examination.examine_errors(own, patched)
            examination.examine_auto(own)
    except TinyModelError as error:
        examination.found["unavailable"] = str(error)
    except Exception as error:  # whatever it is, it belongs to this type's row
        said = (str(error).strip() or "no message").splitlines()[0]
        examination.found["error"] = f"{examination.stage}: {type(error).__name__}: {said}"
    return Coverage(model_type, seconds=round(time.perf_counter() - began, 3), **examination.found)


class _Examination:
    """One type on its way through the stages; ``found`` are the fields of its row, as far as it came."""

    tiny: TinyModel

    def __init__(self, model_type: str) -> None:
        self.model_type = model_type
        self.found: dict[str, Any] = {}
        self.stage = "build"

    def build(self) -> None:
        self.tiny = model_of(self.model_type)

    def outputs(self, stage: str) -> dict[str, Tensor]:
        self.stage = stage
        return {name: tensor.detach().clone() for name, tensor in output_tensors(self.tiny.run()).items()}

    def patch(self, stage: str, implementation: str = IMPLEMENTATION) -> Report:
        self.stage = stage
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingPatchedWarning)
            return patch(self.tiny.model, implementation=implementation)

    def unpatch(self, stage: str, report: Report) -> None:
        self.stage = stage
        if report.changed:
            unpatch(self.tiny.model)

    def examine(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The outputs of the model, and of the patched model; none where there is nothing to patch."""
        model, found = self.tiny.model, self.found
        found["model"] = type(model).__name__
        found["parameters"] = sum(weight.numel() for weight in model.parameters())
        own = self.outputs("first run")
        if not _identical(own, self.outputs("second run")):
            raise RuntimeError("two runs of the unpatched model differ")
        found["scale"] = max((scale_of(tensor) for tensor in own.values()), default=0.0)
        keys, classes = list(model.state_dict()), _class_names(model)

        self.stage = "trace"
        executions = trace(self.tiny.run, model)
        found["executions"] = len(executions)
        found["in_modules"] = sum(execution.registered for execution in executions)
        found["written"] = sum(not execution.in_module for execution in executions)
        found["functions"] = dict(Counter(execution.function for execution in executions).most_common())
        self.stage = "find_sites"
        dry = find_sites(model, implementation=IMPLEMENTATION)
        found["sites"] = dict(Counter(site.kind for site in dry.sites))
        found["left"] = dict(Counter(site.reason for site in dry.unchanged).most_common())
        found["changed"] = len(dry.changed)
        found["missing"] = _missing(executions, dry.sites)
        found.update(_fused(executions, []))
        found["not_fused"] = _not_fused(executions, [])
        if not dry.sites:  # which patch refuses
            found.update(dict.fromkeys(_PROMISES, True))
            return own, {}

        report = self.patch("patch")
        patched = self.outputs("patched run")
        found["drift"] = _drift(own, patched)
        found["state_dict_unchanged"] = list(model.state_dict()) == keys
        found["class_names_unchanged"] = _class_names(model) == classes
        self.stage = "patched trace"
        after = trace(self.tiny.run, model)
        found.update(_fused(executions, after))
        found["not_fused"] = _not_fused(executions, after)
        self.unpatch("unpatch", report)
        found["undo_identical"] = _identical(own, self.outputs("run after unpatch"))
        found["state_dict_unchanged"] &= list(model.state_dict()) == keys
        found["class_names_unchanged"] &= _class_names(model) == classes

        again = self.patch("second patch")
        same = str(again) == str(report) and _identical(patched, self.outputs("second patched run"))
        self.unpatch("second unpatch", again)
        found["second_round_identical"] = same and _identical(own, self.outputs("run after the second unpatch"))
        return own, patched

    def examine_auto(self, own: dict[str, Tensor]) -> None:
        """The same promises of the patch that chooses by itself."""
        found = self.found
        report = self.patch("patch by auto", "auto")
        found["changed_by_auto"] = len(report.changed)
        found["drift"] = max(found["drift"], _drift(own, self.outputs("run patched by auto")))
        self.unpatch("unpatch of auto", report)
        found["undo_identical"] &= _identical(own, self.outputs("run after unpatch of auto"))

    def examine_errors(self, own: dict[str, Tensor], patched: dict[str, Tensor]) -> None:
        """How far the outputs are from those of a float64 copy, where that says the same at all."""
        self.stage = "float64"

        def outputs(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
            return output_tensors(replace(self.tiny, model=model, inputs=inputs).run())

        exact = exact_copy(self.tiny.model, self.tiny.inputs, outputs).output
        if exact is None or exact.keys() != own.keys():
            return
        before, after = _drift(exact, own), _drift(exact, patched)
        if before < _OTHER_NUMBERS:
            self.found.update(own_error=before, patched_error=after)


_PROMISES = ("undo_identical", "state_dict_unchanged", "class_names_unchanged", "second_round_identical")


def _class_names(model: nn.Module) -> dict[str, str]:
    return {path: type(module).__name__ for path, module in model.named_modules()}


def _missing(executions: Iterable[Execution], listed: Iterable[Site]) -> tuple[str, ...]:
    """The executions without a site: that of their module, or one whose lines they run, in a method of their owner or
    in a function that it calls."""
    modules: set[str] = set()
    lines: set[tuple[str, str, int]] = set()
    for site in listed:
        if site.written:
            lines.update((site.owner_path, site.file, line) for line in range(site.line, site.end_line + 1))
        else:
            modules.add(site.path)

    def has_site(one: Execution) -> bool:
        if one.registered:
            return one.module in modules
        return any((one.owner, *place) in lines for place in (*one.through, (one.file, one.line), *one.callers))

    return tuple(dict.fromkeys(_said_of(one) for one in executions if not has_site(one)))


def _said_of(one: Execution) -> str:
    return f"{one.function} at {Path(one.file).name}:{one.line} in {one.owner or 'the model itself'}"


def _fused(before: Iterable[Execution], after: Sequence[Execution]) -> dict[str, int]:
    """How many executions are gated, how many others stand behind a linear layer; and how many of either the patched
    model computes as one with it, the owners compared one by one."""
    gated = Counter(one.owner for one in before if one.gated)
    linear = Counter(one.owner for one in before if one.linear and not one.gated)
    return {
        "gated": gated.total(),
        "gated_fused": (gated & Counter(one.owner for one in after if one.fused == "gated")).total(),
        "linear": linear.total(),
        "linear_fused": (linear & Counter(one.owner for one in after if one.fused == "linear")).total(),
    }


def _not_fused(before: Iterable[Execution], after: Sequence[Execution]) -> tuple[str, ...]:
    """One gated execution of each line that has some which the patched model does not compute as one with the product,
    the owners compared one by one."""
    fused = Counter(one.owner for one in after if one.fused == "gated")
    lines: dict[tuple[str, int], str] = {}
    for one in before:
        if one.gated:
            fused[one.owner] -= 1
            if fused[one.owner] < 0:
                lines.setdefault((one.file, one.line), _said_of(one))
    return tuple(lines.values())


def _identical(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and torch.equal(_bytes(one[name]), _bytes(other[name]))
        for name in one
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)


def _drift(own: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> float:
    if own.keys() != new.keys():
        return float("inf")
    differences = (largest_difference(new[name], y) / max(scale_of(y), _SMALLEST_SCALE) for name, y in own.items())
    return max(differences, default=0.0)
