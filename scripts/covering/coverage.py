"""Which activations a forward executes, and what a patch reaches of them: one row for each model type.

``trace`` watches one forward and lists every activation it executed. It knows nothing of the patcher's walk over
modules and sources, so that it can judge it: ``cover`` builds the tiny model of a type, holds ``find_sites`` against
the trace, patches, compares the outputs, undoes it and compares again.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import hf_gelu_patch
from hf_gelu_patch.activations import ACTIVATIONS, Resolved
from hf_gelu_patch.errors import NothingPatchedWarning
from hf_gelu_patch.evaluation.plain_data import as_json
from hf_gelu_patch.forwards.binding import is_patched, kept
from hf_gelu_patch.implementations.registry import Fused
from hf_gelu_patch.patching import patch, unpatch
from hf_gelu_patch.planning import find_sites
from hf_gelu_patch.recognition import resolve
from hf_gelu_patch.report import Report
from hf_gelu_patch.sites import Site
from hf_gelu_patch.verification import largest_difference, output_tensors, scale_of
from scripts.covering.tiny import TinyModel, TinyModelError, tiny_model

__all__ = ["LARGEST_DRIFT", "Coverage", "Execution", "cover", "table", "totals", "trace"]


@dataclass(frozen=True)
class Execution:
    """One activation that a forward executed.

    Counted is each call of an activation module (every type that ``recognition.resolve`` knows; the ops inside it are
    not counted again) and each call of a torch function that computes an entry of ``ACTIVATIONS``, in place or not:
    gelu, silu, relu, relu6, leaky_relu, elu, mish, hardswish, prelu, sigmoid, tanh. A product that writes an
    activation out, such as ``x * torch.sigmoid(1.702 * x)`` or ``0.5 * x * (1 + torch.erf(x / sqrt(2)))``, is one
    execution of what it computes (gelu, gelu_tanh, quick_gelu, silu or mish), told by its numbers. Not counted:
    softplus, softmax, glu, logsigmoid, hardsigmoid and the like, and what torch runs by itself (LSTM and GRU, its
    multi-head attention and transformer layers).

    Attributes:
        function: the activation's name; of a module that is patched, what it computed before.
        module: the path of the activation module; for a call written in a forward, and for a module that is not part
            of the model, the same as ``owner``.
        owner: the path of the module whose code applies it: the ``self`` of the method that holds the call; for an
            activation in a ``Sequential``, that.
        in_module: whether an activation module computed it, rather than a call written in a forward.
        registered: whether that module is part of the model; False for one that was built at call time, for one that
            belongs to the library (``from transformers.activations import gelu``), and for a call.
        file, line: where the owner's code says so. For a ``Sequential``, where that was called.
        through: file and line of each function between the owner's code and the op that is no method of the model's
            (``def gelu(x)`` in a modeling file), the innermost first.
        gated: the first thing done with its output is an elementwise product with another tensor of the same shape.
            Directly: ``act(x) * up``, not ``dropout(act(x)) * up``. A product of two activations is that of the left.
        linear: its input is the output of a linear layer with bias (``F.linear``, ``addmm``, transformers' Conv1D),
            directly, and nothing else reads that output; the model does not return it either.
        fused: ``gated``, ``linear`` or ``pointwise`` where this package's code computed it, else None.
    """

    function: str
    module: str
    owner: str
    in_module: bool
    registered: bool
    file: str
    line: int
    through: tuple[tuple[str, int], ...] = ()
    gated: bool = False
    linear: bool = False
    fused: str | None = None


def trace(run: Callable[[], object], model: nn.Module) -> list[Execution]:
    """Every activation that ``run()``, a forward of ``model``, executes, in order.

    While it runs, ``nn.Module.__call__`` tells which module is running, and a function mode sees the calls. Hooks would
    change what a patched model does, which goes around no module that has any. All tensors are kept until it ends.
    """
    tracer = _Tracer(model)
    plain = nn.Module.__call__

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output: Any = None
        tracer.enter(module, args)
        try:
            output = plain(module, *args, **kwargs)
        finally:
            tracer.leave(module, args, output)
        return output

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        with tracer:
            output = run()
    finally:
        nn.Module.__call__ = plain  # type: ignore[method-assign]
    return tracer.executions(output)


# Torch's functions by name, without the underscore of the in-place form.
_CALLS = {
    **{
        name: name
        for name in ("gelu", "silu", "relu", "relu6", "leaky_relu", "elu", "mish", "hardswish", "prelu", "sigmoid")
    },
    "tanh": "tanh",
    "special_expit": "sigmoid",
    "_addmm_activation": "relu",
}
# What is written out by hand around them.
_WRITTEN_OUT = {"sigmoid": ("silu", "quick_gelu", "gelu_tanh"), "tanh": ("gelu_tanh", "mish"), "erf": ("gelu",)}
# A tensor made by these from one tensor and numbers is a function of that tensor.
_ELEMENTWISE = {"mul", "multiply", "div", "true_divide", "add", "sub", "rsub", "pow", "square", "neg", "softplus"}
_PRODUCTS = {"mul", "multiply"}

# Where code stands: files that begin so.
_PACKAGE = os.path.join(os.path.dirname(os.path.abspath(hf_gelu_patch.__file__)), "")  # noqa: PTH100, PTH118, PTH120
_OWN = os.path.abspath(__file__)  # noqa: PTH100
_TORCH = os.path.join(os.path.dirname(torch.__file__), "")  # noqa: PTH118, PTH120
_MODULE_CALL = nn.Module._call_impl.__code__
_FUSIONS = {"gated": "gated", "linear_act": "linear"}  # the functions of replacements.py


@dataclass(frozen=True, eq=False)
class _Place:
    """Where an activation is applied. ``frame`` is the outermost one of this package, where its code computes it."""

    owner: str
    file: str
    line: int
    through: tuple[tuple[str, int], ...]
    fused: str | None
    frame: FrameType | None


@dataclass(eq=False)
class _Record:
    """An execution in the making. ``readers`` are those of its input, where a linear layer put that out."""

    function: str
    place: _Place
    module: nn.Module | None
    readers: Sequence[object] = ()
    written_out: bool = False
    gated: bool = False
    counted: bool = True


@dataclass(frozen=True, eq=False)
class _Form:
    """A tensor that is a function of ``root``, elementwise, and the activations called on the way."""

    root: Tensor
    calls: tuple[_Record, ...] = ()


_NEAR = 1e-3  # of the largest value
_PART = "part of an expression in the tensor alone"
_OTHER = "something else"


class _Tracer(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.overwritten: Tensor | None = None  # what a product in place was made of
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.alive: list[object] = []  # so that no id is given twice
        self.functions: dict[int, str | None] = {}
        self.running: list[nn.Module] = []
        self.inside = 0  # in an activation module, whose own ops and modules do not count: that and the modules in it
        self.current: _Record | None = None  # what that activation module computes
        self.records: list[_Record] = []
        self.fused: dict[int, _Record] = {}  # by the id of the frame that computes it
        self.unread: dict[int, _Record] = {}  # by the id of an output that nothing has read yet
        self.linear: dict[int, list[object]] = {}  # who reads the output of a linear layer
        self.forms: dict[int, _Form] = {}
        for module in model.modules():
            self.function_of(module)

    def executions(self, output: object) -> list[Execution]:
        for tensor in _tensors(output):
            self.linear.get(id(tensor), []).append(_OTHER)
        return [self.execution(record) for record in self.records if record.counted and record.function in ACTIVATIONS]

    def execution(self, record: _Record) -> Execution:
        place, module, readers = record.place, record.module, record.readers
        registered = id(module) in self.paths
        if record.written_out:
            linear = bool(readers) and all(reader in (record, _PART) for reader in readers)
        else:
            linear = list(readers) == [record]
        return Execution(
            function=record.function,
            module=self.paths[id(module)] if registered else place.owner,
            owner=place.owner,
            in_module=module is not None,
            registered=registered,
            file=place.file,
            line=place.line,
            through=place.through,
            gated=record.gated,
            linear=linear,
            fused=place.fused,
        )

    # Modules

    def function_of(self, module: nn.Module) -> str | None:
        """The activation that a module computes, or computed before it was patched; None for any other module."""
        if id(module) not in self.functions:
            self.alive.append(module)
            self.inside += 1  # it is run on a probe
            stand_in = kept(module)
            found = resolve(module if stand_in is None or stand_in.original is None else stand_in.original)
            self.inside -= 1
            self.functions[id(module)] = found.activation.name if isinstance(found, Resolved) else None
        return self.functions[id(module)]

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.running.append(module)
        if self.inside:
            self.inside += 1
            return
        function = self.function_of(module)
        if function is not None:
            place = self.place(self.running[:-1])
            place = replace(place, fused="pointwise" if is_patched(module) else None, frame=None)
            given = list(_tensors(args))
            self.current = self.record(function, place, module, given[:1])
            self.read(given, self.current)
            self.inside = 1
        elif type(module) is nn.Identity:
            self.read(list(_tensors(args)), _OTHER)

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        self.running.pop()
        if self.inside:
            self.inside -= 1
            if not self.inside and self.current is not None:
                self.put_out(self.current, list(_tensors(args)), list(_tensors(output)))
        elif _qualified_name(module) == "transformers.pytorch_utils.Conv1D":
            for tensor in _tensors(output):
                self.alive.append(tensor)
                self.linear[id(tensor)] = []

    # Calls

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "mul_" and not self.inside:  # x *= torch.sigmoid(x)
            self.overwritten = args[0].detach().clone()
        result = func(*args, **kwargs)
        if not self.inside:
            self.saw(name if name.startswith("__") else name.removesuffix("_"), args, kwargs, result)
        self.overwritten = None
        return result

    def saw(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """One call of a torch function, its ``name`` without the underscore of the in-place form."""
        given, made = list(_tensors((args, kwargs))), list(_tensors(result))
        if not given or (not made and name != "__setitem__"):
            return  # .shape, .dim()
        self.alive += [given, made]
        function = _activation(name, args, kwargs)
        if function is not None or name == "erf":
            place = self.place(self.running)
            record = self.record(function or name, place, None, given[:1])
            self.read(given, record)
            self.put_out(record, given, made)
            argument = self.form(given[0])
            if name in _WRITTEN_OUT and argument.root is not made[0]:
                self.forms[id(made[0])] = _Form(argument.root, (*argument.calls, record))
            return
        form = self.common_form(name, given, made)
        if name in _PRODUCTS and len(given) == 2 and self.product(given, made[0], form):
            return
        self.read(given, _OTHER if form is None else _PART)
        if form is not None:
            self.forms[id(made[0])] = form
        if (name == "linear" and _argument(args, kwargs, 2, "bias") is not None) or (
            name == "addmm" and given[0].dim() == 1
        ):
            self.linear[id(made[0])] = []

    def product(self, given: list[Tensor], made: Tensor, form: _Form | None) -> bool:
        """Whether the product of two tensors completes an activation that is written out; if not, one of its factors
        may be the gate of the other."""
        if form is not None and len(form.calls) == 1 and not form.calls[0].gated:
            (record,) = form.calls
            written = _written_out(record.function, form.root if self.overwritten is None else self.overwritten, made)
            if written is not None:
                self.read(given, _PART)
                record.function, record.written_out = written, True
                record.readers = self.linear.get(id(form.root), ())
                self.unread[id(made)] = record
                return True
        if given[0].shape == given[1].shape and given[0].dim() and given[0] is not given[1]:
            gate = self.unread.get(id(given[0])) or self.unread.get(id(given[1]))
            if gate is not None:
                gate.gated = True
        return False

    def form(self, tensor: Tensor) -> _Form:
        return self.forms.get(id(tensor), _Form(tensor))

    def common_form(self, name: str, given: list[Tensor], made: list[Tensor]) -> _Form | None:
        """The form of an elementwise function's result, if all that it was given are functions of the same tensor."""
        if name not in _ELEMENTWISE or len(made) != 1 or (made[0] is given[0] and self.overwritten is None):
            return None
        forms = [self.form(tensor) for tensor in given]
        if any(form.root is not forms[0].root for form in forms):
            return None
        return _Form(forms[0].root, tuple(dict.fromkeys(call for form in forms for call in form.calls)))

    def record(self, function: str, place: _Place, module: nn.Module | None, given: list[Tensor]) -> _Record:
        """A new record; where this package's code computes it, that of the call it is a part of."""
        if place.frame is not None and id(place.frame) in self.fused:
            return self.fused[id(place.frame)]
        readers = self.linear.get(id(given[0]), ()) if given else ()
        above = self.running[:-1] if module is not None else self.running
        counted = not above or type(above[-1]).__module__ != "torch.nn.modules.transformer"
        if place.frame is not None:
            names = place.frame.f_locals
            fused = names.get("act", names.get("self"))
            function = fused.activation if isinstance(fused, Fused) else function
        record = _Record(function, place, module, readers, counted=counted)
        if place.frame is not None:
            self.alive.append(place.frame)
            self.fused[id(place.frame)] = record
        self.records.append(record)
        return record

    def read(self, tensors: list[Tensor], reader: object) -> None:
        """These tensors are read by that."""
        for tensor in tensors:
            self.unread.pop(id(tensor), None)
            if id(tensor) in self.linear:
                self.linear[id(tensor)].append(reader)

    def put_out(self, record: _Record, given: list[Tensor], made: list[Tensor]) -> None:
        self.alive += [given, made]
        if made and given and made[0] is given[0]:  # in place: from here on it is another tensor
            record.readers = tuple(self.linear.pop(id(given[0]), ()))
        if made:
            self.unread[id(made[0])] = record

    # Frames

    def place(self, above: Sequence[nn.Module]) -> _Place:
        """Where the code stands that applies an activation: in a method of the last module of ``above``, or of another
        one of the model's."""
        frame: FrameType | None = sys._getframe(1)
        ours: list[FrameType] = []
        helpers: list[FrameType] = []
        owner: str | None = None
        while frame is not None:
            file = frame.f_code.co_filename
            if frame.f_code is _MODULE_CALL:
                break
            if file.startswith(_PACKAGE):
                ours.append(frame)
            elif not file.startswith((_OWN, _TORCH)):
                owner = self.paths.get(id(_self(frame)))
                if owner is not None:
                    break
                helpers.append(frame)
            frame = frame.f_back
        if owner is None:  # torch's own code, such as Sequential's, or that of a module which is not the model's
            owner = next((self.paths[id(module)] for module in reversed(above) if id(module) in self.paths), "")
            while frame is not None and frame.f_code.co_filename.startswith((_OWN, _TORCH, _PACKAGE)):
                frame = frame.f_back
        return _Place(
            owner=owner,
            file=frame.f_code.co_filename if frame is not None else "",
            line=frame.f_lineno if frame is not None else 0,
            through=tuple((one.f_code.co_filename, one.f_lineno) for one in helpers),
            fused=_fusion([one.f_code.co_name for one in ours]) if ours else None,
            frame=ours[-1] if ours else None,
        )


def _fusion(names: Sequence[str]) -> str:
    """What this package's functions of these names, each called by the next, compute as one: what the outermost is
    there for, unless it falls back on calling the activation by itself."""
    return _FUSIONS.get(names[-1], "pointwise") if "__call__" not in names else "pointwise"


def _self(frame: FrameType) -> object:
    """The ``self`` of the method that a frame runs, if it is one."""
    code = frame.f_code
    return frame.f_locals.get("self") if code.co_varnames[:1] == ("self",) else None


def _qualified_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _tensors(value: object) -> Iterator[Tensor]:
    """Every tensor in arguments, or in a result."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def _activation(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """The activation that a call of torch's function ``name`` computes, if any."""
    if name == "gelu":
        return "gelu_tanh" if _argument(args, kwargs, 1, "approximate") == "tanh" else "gelu"
    if name == "_addmm_activation":
        return "gelu_tanh" if kwargs.get("use_gelu") else "relu"
    return _CALLS.get(name)


def _written_out(called: str, x: Tensor, y: Tensor) -> str | None:
    """Which activation of x the product y is, where it was made by calling sigmoid, tanh or erf: the nearest, if near.
    A factor ½ may be still to come."""
    x, y = x.detach().double(), y.detach().double()
    error: dict[str, float] = {}
    for name in _WRITTEN_OUT.get(called, ()):
        expected = ACTIVATIONS[name].reference(x)
        if expected.shape == y.shape and y.numel():
            scale = expected.abs().max()
            error[name] = float(min((y - expected).abs().max() / scale, (y - 2 * expected).abs().max() / scale))
    nearest = min(error, key=lambda name: error[name], default=None)
    return nearest if nearest is not None and error[nearest] <= _NEAR else None


# What a patch reaches

LARGEST_DRIFT = 1e-5
"""How far an output of a patched float32 model may move, relative to its scale."""
_SMALLEST_SCALE = 1e-6


@dataclass(frozen=True)
class Coverage:
    """What a patch does to the tiny model of one type.

    Attributes:
        model_type, model: the type, and the class of the model.
        parameters: how many weights it has.
        seconds: how long all of this took.
        executions: how many activations one forward executes; of these ``in_modules`` of the model, ``written`` as
            calls in a forward, and the rest in modules that are not part of it.
        functions: how many of each.
        sites: how many sites ``find_sites`` lists, of each kind.
        gated: how many executions are gated, and ``gated_fused`` how many of them the patch computes so.
        linear, linear_fused: likewise behind a linear layer, of the executions that are not gated.
        missing: the executions that ``find_sites`` does not list: ``gelu at modeling_x.py:123 in encoder.layer.0``.
        left: how many sites are left alone, by reason.
        drift: max |Δ| / max |y| of the output it is worst for; NaN and inf equal themselves, and no other number.
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
    gated: int = 0
    gated_fused: int = 0
    linear: int = 0
    linear_fused: int = 0
    missing: tuple[str, ...] = ()
    left: dict[str, int] = field(default_factory=dict)
    drift: float = 0.0
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
            f"drift {self.drift:.1e}": self.drift <= LARGEST_DRIFT,
            f"not listed: {'; '.join(self.missing)}": not self.missing,
        }
        return tuple(problem for problem, kept in promises.items() if not kept)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data; a drift that is no number is spelt out, so that it is valid JSON."""
        plain: dict[str, Any] = as_json(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Coverage:
        """What ``to_dict`` gave."""
        return cls(**{**data, "missing": tuple(data["missing"]), "drift": float(data["drift"])})


def cover(model_type: str) -> Coverage:
    """Build the tiny model of a type, trace it, patch it, compare, undo, compare again, twice. It raises nothing."""
    began = time.perf_counter()
    examination = _Examination(model_type)
    try:
        examination.build()
        examination.examine()
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
        self.tiny = tiny_model(self.model_type)

    def outputs(self, stage: str) -> dict[str, Tensor]:
        self.stage = stage
        return {name: tensor.detach().clone() for name, tensor in output_tensors(self.tiny.run()).items()}

    def patch(self, stage: str) -> Report:
        self.stage = stage
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingPatchedWarning)
            return patch(self.tiny.model)

    def unpatch(self, stage: str, report: Report) -> None:
        self.stage = stage
        if report.changed:
            unpatch(self.tiny.model)

    def examine(self) -> None:
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
        dry = find_sites(model)
        found["sites"] = dict(Counter(site.kind for site in dry.sites))
        found["left"] = dict(Counter(site.reason for site in dry.unchanged).most_common())
        found["changed"] = len(dry.changed)
        found["missing"] = _missing(executions, dry.sites)
        found.update(_fused(executions, []))
        if not dry.sites:  # which patch refuses
            found.update(dict.fromkeys(_PROMISES, True))
            return

        report = self.patch("patch")
        patched = self.outputs("patched run")
        found["drift"] = _drift(own, patched)
        found["state_dict_unchanged"] = list(model.state_dict()) == keys
        found["class_names_unchanged"] = _class_names(model) == classes
        self.stage = "patched trace"
        found.update(_fused(executions, trace(self.tiny.run, model)))
        self.unpatch("unpatch", report)
        found["undo_identical"] = _identical(own, self.outputs("run after unpatch"))
        found["state_dict_unchanged"] &= list(model.state_dict()) == keys
        found["class_names_unchanged"] &= _class_names(model) == classes

        again = self.patch("second patch")
        same = str(again) == str(report) and _identical(patched, self.outputs("second patched run"))
        self.unpatch("second unpatch", again)
        found["second_round_identical"] = same and _identical(own, self.outputs("run after the second unpatch"))


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
        return any((one.owner, *place) in lines for place in (*one.through, (one.file, one.line)))

    return tuple(
        dict.fromkeys(
            f"{one.function} at {Path(one.file).name}:{one.line} in {one.owner or 'the model itself'}"
            for one in executions
            if not has_site(one)
        )
    )


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


def totals(rows: Sequence[Coverage]) -> str:
    """What the rows come to, in a few lines of Markdown."""
    tried = [row for row in rows if row.unavailable is None]
    failed = [row for row in tried if row.problems]
    counts = {
        name: sum(getattr(row, name) for row in tried)
        for name in ("executions", "in_modules", "written", "changed", "gated", "gated_fused", "linear", "linear_fused")
    }
    kinds: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for row in tried:
        kinds.update(row.sites)
        reasons.update(row.left)
    elsewhere = counts["executions"] - counts["in_modules"] - counts["written"]
    lines = [
        f"{len(tried):,} model types, {len(tried) - len(failed):,} as promised, {len(failed):,} not; "
        f"{len(rows) - len(tried):,} more cannot be built here.",
        f"One forward of each executes {counts['executions']:,} activations: {counts['in_modules']:,} in modules, "
        f"{counts['written']:,} written in a forward, {elsewhere:,} in modules that are not part of the model. "
        f"Not listed by find_sites: {sum(len(row.missing) for row in tried):,} places.",
        f"Sites: {sum(kinds.values()):,} ({', '.join(f'{count:,} {kind}' for kind, count in kinds.most_common())}), "
        f"{counts['changed']:,} changed.",
        f"Gated products: {counts['gated_fused']:,} of {counts['gated']:,} fused. "
        f"Behind a linear layer, not gated: {counts['linear_fused']:,} of {counts['linear']:,} fused.",
        f"Largest drift: {max((row.drift for row in tried), default=0.0):.1e} of the output's scale.",
    ]
    if reasons:
        lines += ["", "Left alone:", *(f"- {count:,} × {reason}" for reason, count in reasons.most_common())]
    if failed:
        lines += ["", "Not as promised:", *(f"- {row.model_type}: {'; '.join(row.problems)}" for row in failed)]
    return "\n".join(lines)


def table(rows: Iterable[Coverage]) -> str:
    """A line of Markdown for each row."""
    lines = [
        "| type | model | parameters | activations | sites | changed | gated | linear | drift | as promised |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        if row.unavailable is not None:
            lines.append(f"| {row.model_type} | {_cell(row.unavailable)} | | | | | | | | |")
            continue
        cells = (
            row.model_type,
            row.model,
            f"{row.parameters:,}",
            f"{row.executions:,}",
            f"{sum(row.sites.values()):,}",
            f"{row.changed:,}",
            f"{row.gated_fused:,} of {row.gated:,}" if row.gated else "",
            f"{row.linear_fused:,} of {row.linear:,}" if row.linear else "",
            f"{row.drift:.0e}" if row.drift else "0",
            _cell("; ".join(row.problems)) or "yes",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
