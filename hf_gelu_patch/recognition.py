"""From a live module, or a call written in a forward, to the activation it computes.

Asked in this order: torch's and transformers' own classes by their exact type and the arguments they hold, confirmed by
running them on a probe; any other by what its own forward computes, read as a formula and told by its values; and last,
what is only called like an activation, which stays as it is, with the reason. No name of a class, of an attribute or in
a config says what is computed. Nothing but torch's and transformers' own code is run.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from hf_gelu_patch.activations import ACTIVATIONS, Activation, Call, Module, Resolved, Unresolved, of_records
from hf_gelu_patch.formula_reader import INPUT, Formula, NotAFormulaError, formula_of, formula_of_module
from hf_gelu_patch.others import bound

__all__ = [
    "is_function",
    "looks_like_activation",
    "methods",
    "names",
    "recognise",
    "resolve",
    "resolve_call",
    "resolve_function",
    "written_with",
]

Function = Callable[..., Tensor]

# Modules of torch and transformers, by their exact type


@of_records
def _classes(records: tuple[Activation, ...]) -> dict[str, list[tuple[Activation, Module]]]:
    """By a class's qualified name, the activations that its modules may compute."""
    found: dict[str, list[tuple[Activation, Module]]] = {}
    for record in records:
        for module in record.modules:
            found.setdefault(module.cls, []).append((record, module))
    return found


def _read(module: Any, candidates: Sequence[tuple[Activation, Module]]) -> Resolved | None:
    """What a module computes by its class and the arguments it holds; None where it holds others than known."""
    for record, known in candidates:
        if known.when is None or known.when(module):
            held = {name: getattr(module, name) for name in known.constants}
            activation = record.with_parameters(**{**dict(record.parameters), **held}) if held else record
            return Resolved(activation, known.spelling or activation.label, known.aten_ops)
    return None


_PROBE_TOLERANCE = 1e-4  # the two closest activations, gelu and gelu_tanh, are 4.7e-4 apart


def resolve(module: nn.Module) -> Resolved | Unresolved | None:
    """The activation that a live module computes as a whole.

    A class of torch's or transformers' is known by its exact type and the arguments it holds. The answer is confirmed
    by running its forward on a float32 probe against the float64 reference. Any other class, and one of those whose
    forward or function was replaced, is judged by its own forward: a formula of one input, by its values.

    Returns:
        ``Resolved``; ``Unresolved``, with the reason, for one of those classes that holds or carries something else;
        None for any other module.
    """
    cls = type(module)
    candidates = _classes().get(f"{cls.__module__}.{cls.__qualname__}")
    if candidates is not None and _has_own_forward(cls) and not _is_bound_otherwise(module):
        found = _read(module, candidates)
        if found is not None and (found.activation.learned or _is_confirmed(cls.forward, found, module)):
            formula = None if found.as_eager else _formula_or_none(module)
            return replace(found, formula=formula, in_place=bool(getattr(module, "inplace", False)))
    judged = _judged(module)
    if not isinstance(judged, str):
        return judged
    return None if candidates is None else _unknown(cls, judged)


def _unknown(cls: type[nn.Module], why: str) -> Unresolved:
    return Unresolved(f"what {cls.__module__}.{cls.__qualname__} computes is not known: {why}")


_LOOKS_LIKE_ACTIVATION = re.compile(
    r"(?i)gelu|silu|swish|relu|elu$|mish$|glu$|snake|softplus|sigmoid|tanh|^act|activation$"
)


def looks_like_activation(module: nn.Module) -> Unresolved | None:
    """The last resort: what is called like an activation, with the reason why its function is not known."""
    cls = type(module)
    if module._modules or not _LOOKS_LIKE_ACTIVATION.search(cls.__name__):
        return None
    judged = _judged(module)
    return _unknown(cls, judged) if isinstance(judged, str) else None


def _judged(module: nn.Module) -> Resolved | Unresolved | str:
    """What a module's own forward computes; why that is not known."""
    if _is_bound_otherwise(module):
        return f"{bound('forward', vars(module)['forward'])} on it"
    try:
        formula = formula_of_module(module)
    except NotAFormulaError as error:
        return str(error)
    return recognise(formula) or "its values are those of no known activation"


def _formula_or_none(module: nn.Module) -> Formula | None:
    try:
        return formula_of_module(module)
    except NotAFormulaError:
        return None


def _is_bound_method(function: object, module: nn.Module, name: str) -> bool:
    return isinstance(function, MethodType) and function.__func__ is getattr(type(module), name, None)


def _is_bound_otherwise(module: nn.Module) -> bool:
    """Whether a module carries another forward than its class's. accelerate binds one too, and keeps the class's own
    beneath it; taking its hook off binds that one."""
    bound = vars(module).get("forward")
    return bound is not None and "_hf_hook" not in vars(module) and not _is_bound_method(bound, module, "forward")


def _has_own_forward(cls: type[nn.Module]) -> bool:
    """Whether a class of torch's or transformers' still has the forward that it was written with."""
    forward = inspect.getattr_static(cls, "forward")
    written_with = getattr(forward, "__qualname__", "").endswith(".forward")
    return isinstance(forward, FunctionType) and written_with and forward.__module__ == cls.__module__


_CONFIRMED: dict[tuple[Function, Resolved], bool] = {}


def _is_confirmed(forward: Function, found: Resolved, module: nn.Module) -> bool:
    """Whether a forward computes what was read off its module, on a float32 probe; asked once for each of both."""
    key = (forward, found)
    if key not in _CONFIRMED:
        x = torch.linspace(-8.0, 8.0, 129, dtype=torch.float32, device="cpu")
        expected = found.activation.bind(found.activation.reference)(x.double())
        try:
            with torch.no_grad():
                error = (forward(module, x.clone()).double() - expected).abs() / expected.abs().clamp(min=1.0)
            _CONFIRMED[key] = bool(error.max() <= _PROBE_TOLERANCE)
        except Exception:  # whatever another version of the library raises, it is judged by its source then
            _CONFIRMED[key] = False
    return _CONFIRMED[key]


# Formulas, by their values

_NEAR = 20.0  # beyond it every activation is its asymptote
_FORMULA_TOLERANCE = 1e-6  # constants are written with ten digits or more: 0.7978845608


def recognise(formula: Formula) -> Resolved | Unresolved | None:
    """The activation without learned parameters that a formula computes; None if there is none.

    One call of torch's own is taken at its word. Anything else is told by its values in float64: on a dense grid,
    around each number in the formula, out to the largest and down to the smallest numbers of float32, at ±∞ and NaN.
    It has to give back the dtype it is given.
    """
    return _recogniser()(formula)


@of_records
def _recogniser(_: tuple[Activation, ...]) -> Callable[[Formula], Resolved | Unresolved | None]:
    """``recognise``, which remembers its answers for as long as the activations are these."""
    return functools.lru_cache(maxsize=4096)(_recognise)


def _recognise(formula: Formula) -> Resolved | Unresolved | None:
    if len(formula.steps) == 1 and formula.result.number == 1:
        (step,) = formula.steps
        function = _methods_functions().get(step.function, step.function)
        if is_function(function) and step.arguments[:1] == (INPUT,):
            return resolve_call(function, step.arguments[1:], dict(step.keywords))
    try:
        with torch.device("cpu"), torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            return _told_by_values(formula)
    except (RuntimeError, TypeError, ValueError, AttributeError, ArithmeticError):  # operations that do not fit
        return None


def _told_by_values(formula: Formula) -> Resolved | Unresolved | None:
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.linspace(-4.0, 4.0, 9, dtype=torch.float32).to(dtype)
        if (y := formula(x)).dtype != dtype or y.shape != x.shape:
            return None
    around = torch.tensor(sorted(formula.numbers) or [0.0], dtype=torch.float64)
    own = torch.cat([sign * around + step for sign in (-1, 1) for step in (-1e-4, 0.0, 1e-4)])
    grid, special = _grid(), torch.tensor([-torch.inf, torch.inf, torch.nan], dtype=torch.float64)
    given = torch.cat([grid, own, special])
    x = given.clone()
    y = formula(x)
    for activation in ACTIVATIONS.values():
        if activation.learned or activation.name == "linear":
            continue
        if not _close(y[: len(grid) : 97], _on_grid(activation)[::97], grid[::97]):
            continue
        function = activation.bind(activation.reference)
        if (
            _close(y[: len(grid)], _on_grid(activation), grid)
            and _close(y[len(grid) : -3], function(own), own)
            and _same_at_the_ends(y[-3:], function(special))
        ):
            spelling = f"{activation.name} written out"
            return Resolved(activation, spelling, len(formula.steps), formula, in_place=x._version > 0)
    return None


@functools.cache
def _grid() -> Tensor:
    """Where formulas are compared: densely within ±20, and from the least float32 to the largest."""
    near = torch.linspace(-_NEAR, _NEAR, 20_001, dtype=torch.float64)
    far = torch.logspace(-45, 38.5, 400, dtype=torch.float64)
    edges = torch.tensor([65504.0, torch.finfo(torch.bfloat16).max, torch.finfo(torch.float32).max]).double()
    return torch.cat([near, far, -far, edges, -edges])


@functools.lru_cache(maxsize=64)
def _on_grid(activation: Activation) -> Tensor:
    return activation.bind(activation.reference)(_grid())


def _close(y: Tensor, expected: Tensor, x: Tensor) -> bool:
    """Whether two functions agree at x: relative to their values, or near zero, to x itself."""
    scale = expected.abs().maximum(x.abs().clamp(max=1.0))
    return bool(((y - expected).abs() <= _FORMULA_TOLERANCE * scale).all())


def _same_at_the_ends(y: Tensor, expected: Tensor) -> bool:
    """Whether two functions agree at −∞, ∞ and NaN. At an infinity NaN will do for either: torch's own differ there by
    the processor's vector unit."""
    ends, wanted = y[:2], expected[:2]
    alike = ends.isnan() | wanted.isnan() | (ends == wanted) | ((ends - wanted).abs() <= _FORMULA_TOLERANCE)
    return bool(alike.all()) and bool(y[2].isnan()) >= bool(expected[2].isnan())


# Calls written in a forward: torch's functions, how their arguments are read, and the model's own functions


@of_records
def _functions(records: tuple[Activation, ...]) -> dict[Function, list[tuple[Activation, Call]]]:
    """By a function of torch, the activations that its calls may compute."""
    found: dict[Function, list[tuple[Activation, Call]]] = {}
    for record in records:
        for call in record.calls:
            found.setdefault(call.function, []).append((record, call))
    return found


@of_records
def methods(_: tuple[Activation, ...]) -> Mapping[str, Function]:
    """The tensor methods that are activations, as the functions of torch they are."""
    named = {function.__name__: function for function in _functions()}
    return {name: one for name, one in named.items() if hasattr(Tensor, name) and getattr(torch, name, None) is one}


@of_records
def _methods_functions(_: tuple[Activation, ...]) -> Mapping[Any, Function]:
    return {getattr(Tensor, name): function for name, function in methods().items()}


@of_records
def names(records: tuple[Activation, ...]) -> frozenset[str]:
    """The names by which code that applies an activation is told from other code: those of torch's functions, methods
    and classes, and of the functions in a formula."""
    functions = {function.__name__.removeprefix("special_") for function in _functions()}
    classes = {module.cls for record in records if not record.learned for module in record.modules}
    short = {cls.rpartition(".")[2] for cls in classes if not cls.startswith("transformers.")}
    return frozenset(functions | short | written_with())


@of_records
def written_with(records: tuple[Activation, ...]) -> frozenset[str]:
    """The names of functions that an activation is written out with, and hardly anything else is."""
    return frozenset(name for record in records for name in record.written_with)


def is_function(value: object) -> bool:
    """Whether ``value`` is one of torch's activation functions."""
    try:
        return value in _functions()
    except TypeError:  # not hashable
        return False


def resolve_call(
    function: Function, arguments: tuple[object, ...], keywords: Mapping[str, object]
) -> Resolved | Unresolved:
    """The activation that ``function(x, *arguments, **keywords)`` computes, ``function`` being one of torch's
    activation functions, or one of the model's own code that ``resolve_function`` knows."""
    if not is_function(function):
        unknown = f"what {getattr(function, '__name__', function)} computes with these arguments is not known"
        return resolve_function(function, arguments, keywords) or Unresolved(unknown)
    candidates = _functions()[function]
    record, call = candidates[0]
    given = dict(zip(call.arguments, arguments, strict=False)) | dict(keywords)
    if len(arguments) > len(call.arguments) or not given.keys() <= set(call.arguments):
        return Unresolved(f"{record.name} is called with arguments that are not known")
    in_place = bool(given.pop("inplace", False)) or call.in_place
    meant = next((record for record, call in candidates if call.when is None or call.when(**given)), None)
    if meant is None:
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
        return Unresolved(f"{record.name} is called with {shown}")
    usual = dict(meant.parameters)
    constants = {name: value for name, value in given.items() if name in usual}
    if not all(isinstance(value, (int, float)) for value in constants.values()):
        return Unresolved(f"{meant.name} is called with arguments that are no numbers")
    activation = meant.with_parameters(**{**usual, **constants})  # type: ignore[arg-type]
    return Resolved(activation, activation.label, 1, in_place=in_place)


def resolve_function(
    function: Function, arguments: tuple[object, ...] = (), keywords: Mapping[str, object] | None = None
) -> Resolved | Unresolved | None:
    """The activation that ``function(x, *arguments, **keywords)`` computes, ``function`` being of the model's own code;
    None if it is not known."""
    try:
        return recognise(formula_of(function, arguments, keywords))
    except NotAFormulaError:
        return None
