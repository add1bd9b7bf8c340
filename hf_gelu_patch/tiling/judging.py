"""Whether a method treats each token by itself, told from its source.

The source is followed without running any of it, on the module as it is. Row i of a result may come from row i of the
input alone, from weights, and from what is the same for all tokens. What is not known to be so ends the reading, with
the reason. Every attribute that was looked at is kept as a fact: a verdict holds for as long as its facts do.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Mapping, Sequence
from types import FunctionType, MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_gelu_patch.activations import Resolved
from hf_gelu_patch.errors import first_line
from hf_gelu_patch.formula_reader import is_of_numbers
from hf_gelu_patch.forwards.carried import is_bound_otherwise
from hf_gelu_patch.forwards.class_binding import is_patched, rewritings, written_attribute
from hf_gelu_patch.forwards.names import MISSING
from hf_gelu_patch.implementations.tensors import ORDINARY
from hf_gelu_patch.recognition import resolve
from hf_gelu_patch.sources import faithful_source_of, is_model_code, undecorated
from hf_gelu_patch.tiling.frames import MOST_ROUNDS, Frame
from hf_gelu_patch.tiling.operations import Operations
from hf_gelu_patch.tiling.values import (
    STEADY,
    TENSORS,
    Method,
    Module,
    NotTokenWiseError,
    Object,
    Sizes,
    Steady,
    TensorMethod,
    Tokens,
    Weight,
    described,
    tried,
)
from hf_gelu_patch.tiling.verdicts import FUNCTIONS, PLAIN, Fact, Verdict, registers, snapshot, state_of

__all__ = ["Reader", "judge"]


def judge(module: nn.Module, method: str, *, at_rest: bool = False) -> Verdict:
    """What the source of a module's method says of how it treats tokens.

    Args:
        module: patched or not: a rewritten method computes what its class's own does.
        method: its name.
        at_rest: between two calls, when FSDP2 has the weights in pieces that it puts together for a call.
    """
    reader = Reader(at_rest=at_rest)
    try:
        return reader.verdict(module, method)
    except NotTokenWiseError as error:
        return Verdict(str(error), tuple(reader.facts.values()))
    except Exception as error:  # of code that does what nobody thought of: it is left alone
        return Verdict(f"its source cannot be followed ({first_line(error)})", tuple(reader.facts.values()))


_LINEAR, _DROPOUT, _SAME = nn.Linear, nn.Dropout, nn.Identity
_NORMS = (nn.LayerNorm, nn.RMSNorm)
_BUILTINS = (bool, int, float, str, len, range, list, tuple, dict, enumerate, zip, abs, min, max, sum, sorted)
_ASKING = (torch.is_grad_enabled, torch.is_autocast_enabled, torch.get_default_dtype, torch.is_inference_mode_enabled)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Reader:
    """Follows one method and all that it calls."""

    def __init__(self, *, at_rest: bool) -> None:
        self.at_rest = at_rest
        self.facts: dict[tuple[tuple[str, ...], str], Fact] = {}
        self.depth = 0
        self.operations = Operations()

    def verdict(self, module: nn.Module, method: str) -> Verdict:
        root = Module(module, ())
        self.visit(root)
        if is_bound_otherwise(module, method):
            raise NotTokenWiseError(f"another {method} is bound on it")
        function = written_attribute(type(module), method)
        if not isinstance(function, FunctionType):
            raise NotTokenWiseError(f"{method} is no plain method")
        if undecorated(function, method)[0] is not function:
            raise NotTokenWiseError(f"{method} is decorated")
        parameters = list(inspect.signature(function, follow_wrapped=False).parameters.values())[1:]
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        needed = [p for p in positional if p.default is p.empty]
        named = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        if not needed or any(p.default is p.empty for p in named):
            raise NotTokenWiseError("it takes no tensor by its place" if not needed else "it needs keyword arguments")
        defaults = tuple(p.default for p in positional[len(needed) :])
        if not all(isinstance(value, PLAIN) for value in (*defaults, *(p.default for p in named))):
            raise NotTokenWiseError("one of its arguments has a default that is no plain value")
        result = self.call(function, [root, *(Tokens(None, given=True) for _ in needed)], {})
        if not isinstance(result, Tokens):
            raise NotTokenWiseError("it gives something else than one tensor of the tokens")
        return Verdict(
            None,
            tuple(self.facts.values()),
            len(needed),
            defaults,
            tuple((p.name, p.default) for p in named),
            self.operations.numbers,
            self.operations.widest,
            max(self.operations.given_width, result.width or 0),
            self.operations.draws,
        )

    # -- facts

    def visit(self, at: Module) -> None:
        """Go through a module."""
        value = state_of(at.module, inner=bool(at.path))
        self.facts[at.path, ""] = Fact(at.path, "", value)
        if not at.path:
            return
        name = ".".join(at.path)
        if value[1]:  # type: ignore[index]
            raise NotTokenWiseError(f"{name} has hooks, or is compiled: what runs there would run once a tile")
        if type(at.module).__call__ is not nn.Module.__call__:
            raise NotTokenWiseError(f"{name} is called in a way of its own")

    def note(self, path: tuple[str, ...], name: str, value: object) -> None:
        self.facts[path, name] = Fact(path, name, snapshot(value))

    # -- tensors
    def run(self, at: Module, given: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """What calling a module gives."""
        module, name = at.module, ".".join(at.path)
        self.visit(at)
        cls = type(module)
        (x,) = given if len(given) == 1 and not named else (None,)
        if cls is _LINEAR or (cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"):
            self._plain(at)
            weight = module._parameters.get("weight")
            if not isinstance(weight, Tensor) or weight.dim() != 2:
                raise NotTokenWiseError(f"{name} holds no matrix")
            return self.operations.product(x, Weight(tuple(weight.shape)), out_in=cls is _LINEAR)
        if cls is _DROPOUT and isinstance(x, Tokens):
            self.note(at.path, "inplace", module.inplace)
            self.note(at.path, "p", module.p)
            if module.inplace:
                raise NotTokenWiseError(f"{name} writes over its input")
            if module.p == 0:
                return x
            self.operations.draws = True
            return self.operations.made(x.width)
        if cls is _SAME and isinstance(x, TENSORS):
            return x
        if cls in _NORMS and isinstance(x, Tokens):
            self._plain(at)
            shape = module.normalized_shape
            self.note(at.path, "normalized_shape", shape)
            return self.operations.normalised(x, shape)
        if cls is nn.Sequential and x is not None:
            for key, step in module._modules.items():
                if step is not None:
                    x = self.run(Module(step, (*at.path, key)), [x], {})
            return x
        if isinstance(x, Tokens) and self.is_activation(at):
            return self.operations.made(x.width)
        if not is_model_code(cls.__module__):
            raise NotTokenWiseError(
                f"{cls.__module__}.{cls.__qualname__} ({name}) is not known to treat each token by itself"
            )
        if is_bound_otherwise(module, "forward"):
            raise NotTokenWiseError(f"another forward is bound on {name}")
        forward = written_attribute(cls, "forward")
        if not isinstance(forward, FunctionType):
            raise NotTokenWiseError(f"{name} has no plain forward")
        return self.call(forward, [at, *given], named)

    def is_activation(self, at: Module) -> bool:
        """Whether a module is an activation, patched or not, of which no weight stands for one feature."""
        if is_patched(at.module):
            return not rewritings(at.module)
        found = resolve(at.module)
        if not isinstance(found, Resolved) or found.activation.learned:
            return False
        if found.in_place:
            raise NotTokenWiseError(f"{'.'.join(at.path)} writes over its input")
        for key, value in vars(at.module).items():
            if isinstance(value, (*PLAIN, *FUNCTIONS)) and key not in _OF_EVERY_MODULE:
                self.note(at.path, key, value)
        return True

    def is_plain(self, weight: Tensor) -> bool:
        """Whether a weight is a plain tensor when the method is called."""
        sharded = type(weight).__module__.startswith("torch.distributed.tensor")
        return type(weight) in ORDINARY or (self.at_rest and sharded)

    def _plain(self, at: Module) -> None:
        if not all(self.is_plain(weight) for weight in at.module._parameters.values() if weight is not None):
            raise NotTokenWiseError(f"the weights of {'.'.join(at.path)} are no plain tensors")

    def attribute(self, at: Module, name: str, default: Any = MISSING) -> Any:
        """An attribute of a module, as Python looks it up."""
        module = at.module
        if name == "training":
            return STEADY
        on_class = written_attribute(type(module), name)
        if isinstance(on_class, property):
            if not isinstance(on_class.fget, FunctionType) or not is_model_code(on_class.fget.__module__):
                raise NotTokenWiseError(f"what the property {name} gives is not known")
            return self.call(on_class.fget, [at], {})
        if name in vars(module):
            return self.held(vars(module)[name], at.path, name)
        if on_class is not MISSING:
            if isinstance(on_class, FunctionType):
                return Method(at, on_class)
            if isinstance(on_class, staticmethod):
                return on_class.__func__
            if isinstance(on_class, PLAIN):
                return on_class
            raise NotTokenWiseError(f"what {name} of a {type(module).__name__} is cannot be told")
        for register in registers(module):
            if name not in register:
                continue
            value = register[name]
            if value is None:
                self.note(at.path, name, None)
                return None
            if isinstance(value, nn.Module):
                return Module(value, (*at.path, name))
            if not self.is_plain(value):
                raise NotTokenWiseError(f"{'.'.join((*at.path, name))} is no plain tensor")
            self.note(at.path, name, value)
            return Weight(tuple(value.shape))
        if default is MISSING:
            raise NotTokenWiseError(f"a {type(module).__name__} has no {name}")
        self.note(at.path, name, MISSING)
        return default

    def held(self, value: Any, path: tuple[str, ...], name: str) -> Any:
        """What a module, or an object of it, holds."""
        if isinstance(value, (*PLAIN, *FUNCTIONS)):
            self.note(path, name, value)
            return value
        if isinstance(value, (list, tuple, set, frozenset)):
            self.note(path, name, value)
            return frozenset(value) if isinstance(value, (set, frozenset)) else tuple(value)
        if isinstance(value, dict):
            self.note(path, name, value)
            return MappingProxyType(dict(value))
        if isinstance(value, (nn.Module, Tensor)):
            raise NotTokenWiseError(f"{'.'.join((*path, name))} is held where no module registers it")
        return Object(value, path, name)

    # -- calls

    def call(self, function: FunctionType, given: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """What a function of the model's code gives."""
        source = faithful_source_of(function)
        name = function.__qualname__
        if source is None:
            raise NotTokenWiseError(f"the source of {name} is not available, or is not what runs")
        decorators = [ast.unparse(one) for one in source.tree.decorator_list]
        if not isinstance(source.tree, ast.FunctionDef) or decorators not in ([], ["property"], ["staticmethod"]):
            raise NotTokenWiseError(f"{name} is decorated, or a coroutine")
        try:
            bound = inspect.signature(function, follow_wrapped=False).bind(*given, **named)
        except TypeError as error:
            raise NotTokenWiseError(f"{name} is not called so: {error}") from error
        bound.apply_defaults()
        self.depth += 1
        if self.depth > MOST_ROUNDS:
            raise NotTokenWiseError(f"{name} calls itself")
        result = Frame(self, function, dict(bound.arguments)).result(source.tree.body)
        self.depth -= 1
        return result

    def applied(self, function: Any, given: list[Any], named: dict[str, Any]) -> Any:
        """What a call gives, whatever is called."""
        if isinstance(function, Module):
            return self.run(function, given, named)
        if isinstance(function, Method):
            return self.call(function.function, [function.owner, *given], named)
        if isinstance(function, functools.partial):
            return self.applied(function.func, [*function.args, *given], {**function.keywords, **named})
        if isinstance(function, TensorMethod):
            return self.operations.tensor_function(function.name, None, [function.tensor, *given], named)
        if function in (enumerate, zip, list, tuple, reversed):  # of containers, their modules
            given = [self.children(one) if isinstance(one, Module) else one for one in given]
            if not any(isinstance(one, (*TENSORS, Sizes, Object, Steady)) for one in given):
                return list(tried(function, given, named))
        values = [
            part for one in (*given, *named.values()) for part in (one if isinstance(one, (list, tuple)) else [one])
        ]
        if not any(isinstance(value, (*TENSORS, Sizes, Module, Object)) for value in values):
            return self.of_plain(function, given, named)
        if function in (isinstance, getattr, hasattr):
            return self.asked(function, given)
        if function is len and isinstance(given[0], Module):
            return len(self.children(given[0]))
        if isinstance(function, FunctionType) and is_model_code(function.__module__ or ""):
            return self.call(function, given, named)
        name = getattr(function, "__name__", "")
        if isinstance(name, str) and self.is_torchs(function):
            return self.operations.tensor_function(name, function, given, named)
        raise NotTokenWiseError(f"what {described(function)} does with the tokens is not known")

    @staticmethod
    def is_torchs(function: Any) -> bool:
        name = getattr(function, "__name__", "")
        return any(getattr(scope, name, None) is function for scope in (torch, F, torch.special)) or function is abs

    def of_plain(self, function: Any, given: list[Any], named: dict[str, Any]) -> Any:
        """What a function gives that is given no tensor."""
        values = [*given, *named.values()]
        if function in _ASKING:
            return STEADY
        bound = getattr(function, "__self__", None)
        container = isinstance(bound, (dict, MappingProxyType, tuple, list)) and not isinstance(bound, type)
        if not container and function is not isinstance and function not in _BUILTINS and not is_of_numbers(function):
            if isinstance(function, FunctionType) and is_model_code(function.__module__ or ""):
                return self.call(function, given, named)
            raise NotTokenWiseError(f"what {described(function)} does is not known")
        if any(value is STEADY for value in values):
            return STEADY
        return tried(function, given, named)

    def asked(self, function: Any, given: list[Any]) -> Any:
        """``isinstance``, ``getattr`` and ``hasattr`` of a tensor, a module or what it holds."""
        value, *rest = given
        if function is isinstance:
            if isinstance(value, Module):
                return isinstance(value.module, rest[0])
            if isinstance(value, Object):
                self.note(value.path, value.name, value.value)  # its type
                return isinstance(value.value, rest[0])
            as_tensor, as_weight = (isinstance(one, rest[0]) for one in (torch.empty(0), nn.Parameter(torch.empty(0))))
            return as_tensor if as_tensor == as_weight else STEADY
        if not isinstance(value, (Module, Object)) or not isinstance(rest[0], str):
            raise NotTokenWiseError(f"what {function.__name__} says of the tokens is not known")
        default = rest[1] if function is getattr and len(rest) > 1 else MISSING
        if function is hasattr:
            if not isinstance(value, Module):
                raise NotTokenWiseError("what hasattr says of an object is not known")
            absent = object()
            return self.attribute(value, rest[0], absent) is not absent
        if isinstance(value, Object):
            return self.of_object(value, rest[0], default)
        return self.attribute(value, rest[0], default)

    def of_object(self, at: Object, name: str, default: Any = MISSING) -> Any:
        held = getattr(at.value, "__dict__", {}).get(name, MISSING)
        dotted = f"{at.name}.{name}"
        if held is not MISSING:
            return self.held(held, at.path, dotted)
        if default is MISSING or hasattr(type(at.value), name):
            raise NotTokenWiseError(f"what {dotted} is cannot be told")
        self.note(at.path, dotted, MISSING)
        return default

    def children(self, at: Module) -> list[Module]:
        """The modules of a container."""
        if type(at.module) not in (nn.ModuleList, nn.Sequential, nn.ModuleDict):
            raise NotTokenWiseError(f"a {type(at.module).__name__} is taken for a container")
        self.visit(at)
        return [Module(one, (*at.path, key)) for key, one in at.module._modules.items() if one is not None]
