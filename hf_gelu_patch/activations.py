"""What is computed: every activation once, with its formula, float64 reference, derivative and spellings.

An activation is a mathematical function, however many classes and config spellings mean it. ``resolve`` reads the
function off a live module, from its exact type and the arguments it holds, and confirms it by running the module
on a probe: never from a config or from the name of an attribute.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_gelu_patch.errors import UnknownNameError

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Resolved",
    "Unresolved",
    "get_activation",
    "max_difference",
    "module_of",
    "resolve",
]

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Activation:
    """One elementwise function R → R.

    Attributes:
        name: the name used everywhere in this package.
        formula: the function in words of mathematics, Φ and φ being the normal distribution's cdf and density and
            σ the logistic function.
        eager: what transformers' own module for ``config_name`` computes, for a tensor of any shape and float
            dtype; parameters are keyword arguments.
        reference: the function in float64, right in relative terms in both tails; float64 in, float64 out.
        derivative: the derivative of ``reference``, likewise.
        config_name: the spelling written to a config, a key of ``transformers.activations.ACT2FN``; None if it has
            none.
        aliases: further spellings that mean this function.
        approximates: the name of the activation this one was published as an approximation of.
        hidden: whether this is a hidden-layer activation. The others (gates, poolers, router scores, the identity)
            are swapped for another function only where ``include`` names them.
        learned: whether it has learned parameters, which makes it nobody's substitute.
        parameters: its constants, by name.
    """

    name: str
    formula: str
    eager: Function
    reference: Function
    derivative: Function
    config_name: str | None = None
    aliases: tuple[str, ...] = ()
    approximates: str | None = None
    hidden: bool = True
    learned: bool = False
    parameters: tuple[tuple[str, float], ...] = ()

    @property
    def label(self) -> str:
        """The name, with those constants that are not the usual ones: ``leaky_relu(negative_slope=0.2)``."""
        usual = dict(ACTIVATIONS[self.name].parameters) if self.name in ACTIVATIONS else {}
        shown = [f"{key}={value:g}" for key, value in self.parameters if usual.get(key) != value]
        return f"{self.name}({', '.join(shown)})" if shown else self.name

    def bind(self, function: Function) -> Callable[[Tensor], Tensor]:
        """``function`` with this activation's constants filled in."""
        return functools.partial(function, **dict(self.parameters)) if self.parameters else function

    def with_parameters(self, **parameters: float) -> Activation:
        """The same function with other constants."""
        return replace(self, parameters=tuple((key, float(value)) for key, value in parameters.items()))


# Eager: what the modules of torch and transformers run. Module-level functions, so that a patched model pickles.


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _gelu_clipped(x: Tensor, min: float, max: float) -> Tensor:
    return torch.clip(F.gelu(x), min, max)


def _relu_squared(x: Tensor) -> Tensor:
    return torch.square(F.relu(x))


def _laplace(x: Tensor, mu: float, sigma: float) -> Tensor:
    return 0.5 * (1.0 + torch.erf((x - mu).div(sigma * math.sqrt(2.0))))


def _sqrt_softplus(x: Tensor) -> Tensor:
    return F.softplus(x).sqrt()


def _linear(x: Tensor) -> Tensor:
    return x


def _prelu(x: Tensor, weight: float) -> Tensor:
    return torch.where(x > 0, x, weight * x)


def _xielu(x: Tensor, alpha_p: float, alpha_n: float, beta: float, eps: float) -> Tensor:
    negative = (torch.expm1(x.clamp(max=eps)) - x) * alpha_n + beta * x
    return torch.where(x > 0, alpha_p * x * x + beta * x, negative)


# References and derivatives, float64.

_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)
_TANH_CUBIC = 0.044715


def _cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-math.sqrt(0.5) * x)  # torch.special.ndtr loses its digits below −5


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def _step(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def _sigmoid_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _swish(x: Tensor, beta: float) -> Tensor:
    return x * torch.sigmoid(beta * x)


def _d_swish(x: Tensor, beta: float) -> Tensor:
    return torch.sigmoid(beta * x) + beta * x * _sigmoid_slope(beta * x)


def _ref_gelu(x: Tensor) -> Tensor:
    return x * _cdf(x)


def _d_gelu(x: Tensor) -> Tensor:
    return _cdf(x) + x * _density(x)


def _tanh_argument(x: Tensor) -> Tensor:
    return 2.0 * _SQRT_2_OVER_PI * (x + _TANH_CUBIC * x**3)


def _ref_gelu_tanh(x: Tensor) -> Tensor:
    return x * torch.sigmoid(_tanh_argument(x))  # ½(1 + tanh(u)) = σ(2u), without its cancellation for u < 0


def _d_gelu_tanh(x: Tensor) -> Tensor:
    z = _tanh_argument(x)
    slope = 2.0 * _SQRT_2_OVER_PI * (1.0 + 3.0 * _TANH_CUBIC * x * x)
    return torch.sigmoid(z) + x * _sigmoid_slope(z) * slope


def _ref_gelu_clipped(x: Tensor, min: float, max: float) -> Tensor:
    return _ref_gelu(x).clamp(min, max)


def _d_gelu_clipped(x: Tensor, min: float, max: float) -> Tensor:
    y = _ref_gelu(x)
    return _d_gelu(x) * ((y >= min) & (y <= max)).to(x.dtype)


def _ref_mish(x: Tensor) -> Tensor:
    return x * torch.tanh(_softplus(x))


def _d_mish(x: Tensor) -> Tensor:
    t = torch.tanh(_softplus(x))
    return t + x * (1.0 - t * t) * torch.sigmoid(x)


def _d_hardswish(x: Tensor) -> Tensor:
    return torch.where(x <= -3, 0.0, torch.where(x >= 3, 1.0, (2.0 * x + 3.0) / 6.0))


def _d_relu6(x: Tensor) -> Tensor:
    return ((x > 0) & (x < 6)).to(x.dtype)


def _d_leaky_relu(x: Tensor, negative_slope: float) -> Tensor:
    return torch.where(x > 0, torch.ones_like(x), negative_slope)


def _d_elu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, 1.0, alpha * torch.exp(x.clamp(max=0)))


def _d_tanh(x: Tensor) -> Tensor:
    return 1.0 / torch.cosh(x.clamp(-300, 300)) ** 2


def _ref_laplace(x: Tensor, mu: float, sigma: float) -> Tensor:
    return _cdf((x - mu) / sigma)


def _d_laplace(x: Tensor, mu: float, sigma: float) -> Tensor:
    return _density((x - mu) / sigma) / sigma


def _ref_sqrt_softplus(x: Tensor) -> Tensor:
    return torch.where(x < -40, torch.exp(0.5 * x), _softplus(x).sqrt())


def _d_sqrt_softplus(x: Tensor) -> Tensor:
    return torch.where(x < -40, 0.5 * torch.exp(0.5 * x), torch.sigmoid(x) / (2.0 * _softplus(x).sqrt()))


def _d_prelu(x: Tensor, weight: float) -> Tensor:
    return torch.where(x > 0, torch.ones_like(x), weight)


def _d_xielu(x: Tensor, alpha_p: float, alpha_n: float, beta: float, eps: float) -> Tensor:
    inner = torch.where(x < eps, torch.exp(x.clamp(max=eps)), 0.0)
    return torch.where(x > 0, 2.0 * alpha_p * x + beta, (inner - 1.0) * alpha_n + beta)


_RECORDS = (
    Activation("gelu", "x·Φ(x)", F.gelu, _ref_gelu, _d_gelu, config_name="gelu", aliases=("gelu_python",)),
    Activation(
        "gelu_tanh",
        "½x·(1 + tanh(√(2/π)·(x + 0.044715x³)))",
        _gelu_tanh,
        _ref_gelu_tanh,
        _d_gelu_tanh,
        config_name="gelu_pytorch_tanh",
        aliases=("gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh"),
        approximates="gelu",
    ),
    Activation(
        "quick_gelu",
        "x·σ(1.702x)",
        _quick_gelu,
        functools.partial(_swish, beta=1.702),
        functools.partial(_d_swish, beta=1.702),
        config_name="quick_gelu",
        approximates="gelu",
    ),
    Activation(
        "gelu_clipped",
        "min(max(x·Φ(x), min), max)",
        _gelu_clipped,
        _ref_gelu_clipped,
        _d_gelu_clipped,
        config_name="gelu_10",
        parameters=(("min", -10.0), ("max", 10.0)),
    ),
    Activation(
        "silu",
        "x·σ(x)",
        F.silu,
        functools.partial(_swish, beta=1.0),
        functools.partial(_d_swish, beta=1.0),
        config_name="silu",
        aliases=("swish",),
    ),
    Activation("relu", "max(x, 0)", F.relu, F.relu, _step, config_name="relu"),
    Activation(
        "relu_squared",
        "max(x, 0)²",
        _relu_squared,
        _relu_squared,
        lambda x: 2.0 * F.relu(x),
        config_name="relu2",
    ),
    Activation("relu6", "min(max(x, 0), 6)", F.relu6, F.relu6, _d_relu6, config_name="relu6"),
    Activation(
        "leaky_relu",
        "x if x > 0 else negative_slope·x",
        F.leaky_relu,
        F.leaky_relu,
        _d_leaky_relu,
        config_name="leaky_relu",
        parameters=(("negative_slope", 0.01),),
    ),
    Activation("elu", "x if x > 0 else alpha·(eˣ − 1)", F.elu, F.elu, _d_elu, parameters=(("alpha", 1.0),)),
    Activation("mish", "x·tanh(ln(1 + eˣ))", F.mish, _ref_mish, _d_mish, config_name="mish"),
    Activation(
        "hardswish",
        "x·min(max(x + 3, 0), 6)/6",
        F.hardswish,
        F.hardswish,
        _d_hardswish,
        config_name="hardswish",
        approximates="silu",
    ),
    Activation("tanh", "tanh(x)", torch.tanh, torch.tanh, _d_tanh, config_name="tanh", hidden=False),
    Activation(
        "sigmoid",
        "σ(x) = 1/(1 + e⁻ˣ)",
        torch.sigmoid,
        torch.sigmoid,
        _sigmoid_slope,
        config_name="sigmoid",
        hidden=False,
    ),
    Activation(
        "laplace",
        "Φ((x − mu)/sigma)",
        _laplace,
        _ref_laplace,
        _d_laplace,
        config_name="laplace",
        hidden=False,
        parameters=(("mu", 0.707107), ("sigma", 0.282095)),
    ),
    Activation(
        "sqrt_softplus",
        "√ln(1 + eˣ)",
        _sqrt_softplus,
        _ref_sqrt_softplus,
        _d_sqrt_softplus,
        config_name="sqrtsoftplus",
        hidden=False,
    ),
    Activation("linear", "x", _linear, _linear, torch.ones_like, config_name="linear", hidden=False),
    Activation(
        "prelu",
        "x if x > 0 else weight·x, the weight learned",
        _prelu,
        _prelu,
        _d_prelu,
        config_name="prelu",
        learned=True,
        parameters=(("weight", 0.25),),
    ),
    Activation(
        "xielu",
        "alpha_p·x² + beta·x if x > 0 else alpha_n·(e^min(x, eps) − 1 − x) + beta·x, both alphas learned",
        _xielu,
        _xielu,
        _d_xielu,
        config_name="xielu",
        learned=True,
        parameters=(("alpha_p", 0.8), ("alpha_n", 0.8), ("beta", 0.5), ("eps", -1e-6)),
    ),
)

ACTIVATIONS: Mapping[str, Activation] = {record.name: record for record in _RECORDS}
"""Every activation by name."""

_BY_SPELLING: dict[str, Activation] = {
    spelling: record
    for record in _RECORDS
    for spelling in (record.name, record.config_name, *record.aliases)
    if spelling is not None
}


_TORCH_MODULES: list[Any] = [getattr(nn.modules.activation, name) for name in nn.modules.activation.__all__]


def module_of(activation: Activation) -> nn.Module:
    """A new module that computes an activation without learned parameters, as the field has it."""
    if activation.config_name is None:
        found: nn.Module = next(cls() for cls in _TORCH_MODULES if cls.__name__.lower() == activation.name)
        return found
    from transformers.activations import ACT2FN

    module: nn.Module = ACT2FN[activation.config_name]
    return module


def get_activation(name: str) -> Activation:
    """The activation that ``name``, or a transformers spelling such as ``"gelu_new"``, means.

    Raises:
        UnknownNameError: no activation is spelt so; the message lists the valid names.
    """
    if name not in _BY_SPELLING:
        raise UnknownNameError("activation", name, _BY_SPELLING)
    return _BY_SPELLING[name]


@functools.lru_cache(maxsize=256)
def max_difference(a: Activation, b: Activation) -> float:
    """max |a(x) − b(x)| over the real line in float64; inf where the two grow apart.

    Found on a grid of step 1e-4 over [−20, 20], beyond which every activation is its asymptote.
    """
    x = torch.linspace(-20.0, 20.0, 400_001, dtype=torch.float64, device="cpu")
    far = torch.tensor([-1e6, -1e3, 1e3, 1e6], dtype=torch.float64, device="cpu")

    def difference(points: Tensor) -> float:
        return float((a.bind(a.reference)(points) - b.bind(b.reference)(points)).abs().max())

    with torch.no_grad():
        near = difference(x)
        return near if difference(far) <= near * (1 + 1e-6) + 1e-12 else math.inf


# From a live module to its activation


@dataclass(frozen=True)
class Resolved:
    """A module whose function is known: the activation, how transformers spells this way of computing it
    (``"gelu_new"``), and how many aten ops its forward runs."""

    activation: Activation
    spelling: str
    aten_ops: int

    @property
    def as_eager(self) -> bool:
        """Whether it runs the very ops of the activation's ``eager``."""
        name = self.spelling.partition("(")[0]
        return name in (self.activation.name, self.activation.config_name)


@dataclass(frozen=True)
class Unresolved:
    """What is, or looks like, an activation, and why it has to stay as it is: its function cannot be told, mostly."""

    reason: str
    spelling: str = "unknown"


def _plain(name: str, aten_ops: int = 1, spelling: str | None = None) -> Callable[[Any], Resolved | None]:
    def read(_: Any) -> Resolved:
        return Resolved(ACTIVATIONS[name], spelling or name, aten_ops)

    return read


_GELUS = {"none": "gelu", "tanh": "gelu_tanh"}


def _read_torch_gelu(module: nn.GELU) -> Resolved | None:
    name = _GELUS.get(module.approximate)
    return Resolved(ACTIVATIONS[name], name, 1) if name else None


def _is_bound_method(function: object, module: nn.Module, name: str) -> bool:
    return isinstance(function, MethodType) and function.__func__ is getattr(type(module), name, None)


def _read_gelu_activation(module: Any) -> Resolved | None:
    if module.act is F.gelu:
        return Resolved(ACTIVATIONS["gelu"], "gelu", 1)
    if _is_bound_method(module.act, module, "_gelu_python"):
        return Resolved(ACTIVATIONS["gelu"], "gelu_python", 5)
    return None


def _read_gelu_tanh(module: Any) -> Resolved | None:
    act = module.act
    if isinstance(act, functools.partial) and act.func is F.gelu and not act.args:
        approximate = act.keywords.get("approximate", "none")
        if set(act.keywords) <= {"approximate"} and approximate in ("none", "tanh"):
            name = "gelu_tanh" if approximate == "tanh" else "gelu"
            return Resolved(ACTIVATIONS[name], "gelu_pytorch_tanh" if approximate == "tanh" else name, 1)
    if _is_bound_method(act, module, "_gelu_tanh_python"):
        return Resolved(ACTIVATIONS["gelu_tanh"], "gelu_python_tanh", 8)
    return None


def _read_clipped_gelu(module: Any) -> Resolved:
    activation = ACTIVATIONS["gelu_clipped"].with_parameters(min=module.min, max=module.max)
    return Resolved(activation, activation.label, 2)


def _read_leaky_relu(module: nn.LeakyReLU) -> Resolved:
    activation = ACTIVATIONS["leaky_relu"].with_parameters(negative_slope=module.negative_slope)
    return Resolved(activation, activation.label, 1)


def _read_elu(module: nn.ELU) -> Resolved:
    activation = ACTIVATIONS["elu"].with_parameters(alpha=module.alpha)
    return Resolved(activation, activation.label, 1)


def _read_mish_activation(module: Any) -> Resolved | None:
    if module.act is F.mish:
        return Resolved(ACTIVATIONS["mish"], "mish", 1)
    if _is_bound_method(module.act, module, "_mish_python"):
        return Resolved(ACTIVATIONS["mish"], "mish_python", 3)
    return None


# By qualified name, so that transformers is not imported for its types.
_TYPES: dict[str, Callable[[Any], Resolved | None]] = {
    "torch.nn.modules.activation.GELU": _read_torch_gelu,
    "torch.nn.modules.activation.SiLU": _plain("silu"),
    "torch.nn.modules.activation.ReLU": _plain("relu"),
    "torch.nn.modules.activation.ReLU6": _plain("relu6"),
    "torch.nn.modules.activation.LeakyReLU": _read_leaky_relu,
    "torch.nn.modules.activation.ELU": _read_elu,
    "torch.nn.modules.activation.Mish": _plain("mish"),
    "torch.nn.modules.activation.Hardswish": _plain("hardswish"),
    "torch.nn.modules.activation.Tanh": _plain("tanh"),
    "torch.nn.modules.activation.Sigmoid": _plain("sigmoid"),
    "torch.nn.modules.activation.PReLU": _plain("prelu"),
    "transformers.activations.GELUActivation": _read_gelu_activation,
    "transformers.activations.GELUTanh": _read_gelu_tanh,
    "transformers.activations.NewGELUActivation": _plain("gelu_tanh", 8, "gelu_new"),
    "transformers.activations.FastGELUActivation": _plain("gelu_tanh", 9, "gelu_fast"),
    "transformers.activations.AccurateGELUActivation": _plain("gelu_tanh", 8, "gelu_accurate"),
    "transformers.activations.QuickGELUActivation": _plain("quick_gelu", 3),
    "transformers.activations.ClippedGELUActivation": _read_clipped_gelu,
    "transformers.activations.SiLUActivation": _plain("silu"),
    "transformers.activations.MishActivation": _read_mish_activation,
    "transformers.activations.ReLUSquaredActivation": _plain("relu_squared", 2, "relu2"),
    "transformers.activations.LaplaceActivation": _plain("laplace", 5),
    "transformers.activations.SqrtSoftplusActivation": _plain("sqrt_softplus", 2, "sqrtsoftplus"),
    "transformers.activations.LinearActivation": _plain("linear", 0),
    "transformers.activations.XIELUActivation": _plain("xielu", 15),
    "transformers.models.bloom.modeling_bloom.BloomGelu": _plain("gelu_tanh", 9, "bloom_gelu"),
}

_LOOKS_LIKE_ACTIVATION = re.compile(
    r"(?i)gelu|silu|swish|relu|elu$|mish$|glu$|snake|softplus|sigmoid|tanh|^act|activation$"
)
_PROBE_TOLERANCE = 1e-4  # the two closest activations, gelu and gelu_tanh, are 4.7e-4 apart


def resolve(module: nn.Module) -> Resolved | Unresolved | None:
    """The activation a live module computes, from its exact type and the arguments it holds.

    The answer is confirmed by running the module's own forward on a float32 probe against the float64 reference,
    so that a class whose forward was replaced is not taken for what its name says.

    Returns:
        ``Resolved``; ``Unresolved`` with a reason for what looks like an activation but cannot be told; None for
        any other module.
    """
    cls = type(module)
    read = _TYPES.get(f"{cls.__module__}.{cls.__qualname__}")
    if read is None:
        if not _LOOKS_LIKE_ACTIVATION.search(cls.__name__) or next(module.children(), None) is not None:
            return None
        known = next((base for base in cls.__mro__[1:] if f"{base.__module__}.{base.__qualname__}" in _TYPES), None)
        if known is not None:
            return Unresolved(f"{cls.__qualname__} is a subclass of {known.__name__} and may compute something else")
        return Unresolved(f"what {cls.__module__}.{cls.__qualname__} computes is not known")
    # accelerate binds a forward too, and keeps the class's own beneath it; taking its hook off binds that one.
    bound = vars(module).get("forward")
    if bound is not None and "_hf_hook" not in vars(module) and not _is_bound_method(bound, module, "forward"):
        return Unresolved(f"another forward is bound on this {cls.__name__}")
    found = read(module)
    if found is None:
        return Unresolved(f"this {cls.__name__} holds a function that is not known: {getattr(module, 'act', None)!r}")
    if found.activation.learned:
        return found
    refuted = _refute(cls.forward, found, module)
    return Unresolved(f"{cls.__name__} should compute {found.activation.label}, {refuted}") if refuted else found


_REFUTED: dict[tuple[Function, Resolved], str | None] = {}


def _refute(forward: Function, found: Resolved, module: nn.Module) -> str | None:
    """The probe's objection, asked once for each forward and what its module's arguments make of it."""
    key = (forward, found)
    if key not in _REFUTED:
        _REFUTED[key] = _probe(functools.partial(forward, module), found.activation)
    return _REFUTED[key]


def _probe(function: Function, activation: Activation) -> str | None:
    """None where ``function`` computes ``activation`` on a float32 probe, else an objection."""
    x, expected = _probed(activation)
    try:
        with torch.no_grad():
            y = function(x.clone())
        worst = float(((y.double() - expected).abs() / expected.abs().clamp(min=1.0)).max())
    except Exception as error:  # whatever a replaced forward raises, the site is left alone
        return f"but its forward fails on a probe: {type(error).__name__}: {error}"
    return None if worst <= _PROBE_TOLERANCE else f"but is off by {worst:.1e} on a probe: its forward was replaced"


@functools.lru_cache(maxsize=256)
def _probed(activation: Activation) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-8.0, 8.0, 129, dtype=torch.float32, device="cpu")
    return x, activation.bind(activation.reference)(x.double())


def recognise(function: Function, aten_ops: int) -> Resolved | None:
    """The activation that an unnamed function of one tensor computes, told by its values alone, near zero and far from
    it; None if no activation without learned parameters has them."""
    near = torch.linspace(-8.0, 8.0, 129, dtype=torch.float64, device="cpu")
    far = torch.tensor([10.0, 15.0, 20.0, 30.0, 50.0, 100.0, 1e3, 1e4], dtype=torch.float64, device="cpu")
    x = torch.cat([-far, near, far])
    try:
        with torch.no_grad():
            y = function(x.clone())
        for activation in _RECORDS:
            if activation.learned or activation.name == "linear":
                continue
            expected = activation.bind(activation.reference)(x)
            if bool(((y - expected).abs() <= _FORMULA_TOLERANCE * expected.abs().clamp(min=1.0)).all()):
                return Resolved(activation, f"{activation.name} written out", aten_ops)
    except Exception:  # what a formula of the model's code raises, it is no activation then
        return None
    return None


_FORMULA_TOLERANCE = 1e-6  # constants are written with ten digits or more: 0.7978845608


# From a call written in a forward to its activation: torch's functions, and how their arguments are read.


def _call(name: str, *parameters: str, inplace: bool = False) -> tuple[str, tuple[str, ...], bool]:
    return name, parameters, inplace


_FUNCTIONS: dict[Function, tuple[str, tuple[str, ...], bool]] = {
    F.gelu: _call("gelu", "approximate"),
    F.silu: _call("silu", "inplace"),
    F.relu: _call("relu", "inplace"),
    torch.relu: _call("relu"),
    F.relu6: _call("relu6", "inplace"),
    F.leaky_relu: _call("leaky_relu", "negative_slope", "inplace"),
    F.elu: _call("elu", "alpha", "inplace"),
    F.mish: _call("mish", "inplace"),
    F.hardswish: _call("hardswish", "inplace"),
    F.tanh: _call("tanh"),
    torch.tanh: _call("tanh"),
    F.sigmoid: _call("sigmoid"),
    torch.sigmoid: _call("sigmoid"),
    torch.special.expit: _call("sigmoid"),
    torch.relu_: _call("relu", inplace=True),
    torch.tanh_: _call("tanh", inplace=True),
    torch.sigmoid_: _call("sigmoid", inplace=True),
    F.elu_: _call("elu", "alpha", inplace=True),
    F.leaky_relu_: _call("leaky_relu", "negative_slope", inplace=True),
}
METHODS: Mapping[str, Function] = {
    name: getattr(torch, name) for name in ("sigmoid", "tanh", "relu", "sigmoid_", "tanh_", "relu_")
}
"""The tensor methods that are activations, as the functions they are."""


def is_function(value: object) -> bool:
    """Whether ``value`` is one of torch's activation functions."""
    try:
        return value in _FUNCTIONS
    except TypeError:  # not hashable
        return False


IN_PLACE = "it works in place, and what stands behind it may count on that"


def resolve_call(
    function: Function, arguments: tuple[object, ...], keywords: Mapping[str, object]
) -> Resolved | Unresolved:
    """The activation that ``function(x, *arguments, **keywords)`` computes, ``function`` being one of torch's
    activation functions."""
    name, parameters, inplace = _FUNCTIONS[function]
    given = dict(zip(parameters, arguments, strict=False)) | dict(keywords)
    if len(arguments) > len(parameters) or not given.keys() <= set(parameters):
        return Unresolved(f"{name} is called with arguments that are not known")
    if given.pop("inplace", False) or inplace:
        return Unresolved(IN_PLACE, name)
    if name == "gelu":
        approximate = given.get("approximate", "none")
        if approximate not in ("none", "tanh"):
            return Unresolved(f"gelu is called with approximate={approximate!r}")
        return Resolved(ACTIVATIONS["gelu" if approximate == "none" else "gelu_tanh"], _GELUS[approximate], 1)
    if not all(isinstance(value, (int, float)) for value in given.values()):
        return Unresolved(f"{name} is called with arguments that are no numbers")
    activation = ACTIVATIONS[name].with_parameters(**{**dict(ACTIVATIONS[name].parameters), **given})  # type: ignore[arg-type]
    return Resolved(activation, activation.label, 1)
