"""What is computed: every activation once, with its formula, float64 reference, derivative and spellings.

An activation is a mathematical function, however many classes and config spellings mean it. Which one a live module
computes is for ``recognition`` to tell.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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


def module_of(activation: Activation, like: nn.Module) -> nn.Module:
    """A new module that computes an activation without learned parameters, as the field has it: one of torch's in the
    place of one of torch's, which others save and load by the class's name."""
    torchs = next((cls for cls in _TORCH_MODULES if cls.__name__.lower() == activation.name), None)
    if torchs is not None and (activation.config_name is None or type(like) in _TORCH_MODULES):
        made: nn.Module = torchs()
        return made
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


# What was found at a place in a model


@dataclass(frozen=True)
class Resolved:
    """A place whose function is known.

    Attributes:
        activation: the function.
        spelling: how transformers spells this way of computing it (``"gelu_new"``).
        aten_ops: how many aten ops that takes.
        formula: those ops, where they are others than the activation's ``eager``, and are known.
        in_place: whether it writes over its input.
    """

    activation: Activation
    spelling: str
    aten_ops: int
    formula: Callable[[Tensor], Tensor] | None = None
    in_place: bool = False

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
