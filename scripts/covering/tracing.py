"""Which activations a forward executes: ``trace`` watches one, and knows nothing of the patcher's walk over modules and
sources."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import hf_gelu_patch
from hf_gelu_patch.activations import ACTIVATIONS, Resolved
from hf_gelu_patch.forwards.class_binding import is_patched, original_of
from hf_gelu_patch.implementations.registry import Fused
from hf_gelu_patch.recognition import resolve

__all__ = ["Execution", "trace"]


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
        callers: file and line of each method of the same owner around that one, in which it was called: a patch that
            follows calls has the site there.
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
    callers: tuple[tuple[str, int], ...] = ()
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
_FUSIONS = {"gated": "gated", "gated_last": "gated", "linear_act": "linear"}  # the functions of replacements.py


@dataclass(frozen=True, eq=False)
class _Place:
    """Where an activation is applied. ``frame`` is the outermost one of this package, where its code computes it."""

    owner: str
    file: str
    line: int
    through: tuple[tuple[str, int], ...]
    callers: tuple[tuple[str, int], ...]
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
            callers=place.callers,
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
            found = resolve(original_of(module) or module)
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
        callers: list[FrameType] = []
        while frame is not None:
            file = frame.f_code.co_filename
            if frame.f_code is _MODULE_CALL:
                break
            if file.startswith(_PACKAGE):
                ours.append(frame)
            elif not file.startswith((_OWN, _TORCH)):
                owner = self.paths.get(id(_self(frame)))
                if owner is not None:
                    callers = [*_methods_around(frame)]
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
            callers=tuple((one.f_code.co_filename, one.f_lineno) for one in callers),
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


def _methods_around(frame: FrameType) -> Iterator[FrameType]:
    """The methods that a method's call came through, as far as they have the same ``self``, in one call of that."""
    outer = frame.f_back
    while outer is not None and outer.f_code is not _MODULE_CALL:
        if _self(outer) is _self(frame):
            yield outer
        outer = outer.f_back


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
