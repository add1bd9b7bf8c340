"""The activations of torch and transformers, a record each.

To add one: its float64 function and derivative in ``formulas``, a record here, and, where it is to be fused, a device
function in ``implementations.triton_kernels`` and ``cpp_kernels.cpp``. ``register_activation`` adds one from outside.
"""

from __future__ import annotations

import functools
import math
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_gelu_patch.activations import formulas
from hf_gelu_patch.activations.registry import Activation, Call, Compiled, Module, PostOp

__all__ = ["KNOWN"]

# Eager: what the modules of torch and transformers run.


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def gelu_clipped(x: Tensor, min: float, max: float) -> Tensor:
    return torch.clip(F.gelu(x), min, max)


def relu_squared(x: Tensor) -> Tensor:
    return torch.square(F.relu(x))


def laplace(x: Tensor, mu: float, sigma: float) -> Tensor:
    return 0.5 * (1.0 + torch.erf((x - mu).div(sigma * math.sqrt(2.0))))


def sqrt_softplus(x: Tensor) -> Tensor:
    return F.softplus(x).sqrt()


def linear(x: Tensor) -> Tensor:
    return x


def prelu(x: Tensor, weight: float) -> Tensor:
    return torch.where(x > 0, x, weight * x)


def xielu(x: Tensor, alpha_p: float, alpha_n: float, beta: float, eps: float) -> Tensor:
    negative = (torch.expm1(x.clamp(max=eps)) - x) * alpha_n + beta * x
    return torch.where(x > 0, alpha_p * x * x + beta * x, negative)


# In place, on a tensor that nobody else holds; in fewer passes, for an input that autograd does not follow.


def gelu_tanh_(y: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.gelu_(y, approximate="tanh")
    return result


def quick_gelu_(y: Tensor) -> Tensor:
    return y.mul_((1.702 * y).sigmoid_())


def quick_gelu_in_fewer_passes(x: Tensor) -> Tensor:
    return (1.702 * x).sigmoid_().mul_(x)


def gelu_clipped_(y: Tensor, min: float, max: float) -> Tensor:
    clipped: Tensor = torch.ops.aten.gelu_(y)
    return clipped.clamp_(min, max)


def gelu_clipped_in_fewer_passes(x: Tensor, min: float, max: float) -> Tensor:
    return F.gelu(x).clamp_(min, max)


def relu_squared_(y: Tensor) -> Tensor:
    return y.relu_().square_()


def relu_squared_in_fewer_passes(x: Tensor) -> Tensor:
    return F.relu(x).square_()


# Which activation a module or a call is, where its class or function computes more than one.


def _is_exact(approximate: object = "none") -> bool:
    return approximate == "none"


def _is_tanh(approximate: object = "none") -> bool:
    return approximate == "tanh"


def _holds_exact(module: Any) -> bool:
    return _is_exact(module.approximate)


def _holds_tanh(module: Any) -> bool:
    return _is_tanh(module.approximate)


def _runs_gelu(module: Any) -> bool:
    return module.act is F.gelu


def _runs_mish(module: Any) -> bool:
    return module.act is F.mish


def _runs_own(name: str, module: Any) -> bool:
    """Whether a module of transformers runs its class's method of this name, written out in Python."""
    act = module.act
    return isinstance(act, MethodType) and act.__func__ is getattr(type(module), name, None)


def _runs_gelu_with(approximate: str, module: Any) -> bool:
    """Whether a module of transformers runs torch's GELU, given this and nothing else."""
    act = module.act
    if not isinstance(act, functools.partial) or act.func is not F.gelu or act.args:
        return False
    return set(act.keywords) <= {"approximate"} and act.keywords.get("approximate", "none") == approximate


_TORCH = "torch.nn.modules.activation"
_TRANSFORMERS = "transformers.activations"
_KERNELS = "hf_gelu_patch.implementations.triton_kernels"

KNOWN = (
    Activation(
        "gelu",
        "x·Φ(x)",
        F.gelu,
        formulas.gelu,
        formulas.d_gelu,
        config_name="gelu",
        aliases=("gelu_python",),
        modules=(
            Module(f"{_TORCH}.GELU", when=_holds_exact),
            Module(f"{_TRANSFORMERS}.GELUActivation", when=_runs_gelu),
            Module(
                f"{_TRANSFORMERS}.GELUActivation",
                "gelu_python",
                5,
                when=functools.partial(_runs_own, "_gelu_python"),
            ),
            Module(f"{_TRANSFORMERS}.GELUTanh", when=functools.partial(_runs_gelu_with, "none")),
        ),
        calls=(Call(F.gelu, ("approximate",), when=_is_exact),),
        written_with=("erf",),
        in_place=torch.ops.aten.gelu_,
        kernel=f"{_KERNELS}:gelu",
        cpp=Compiled("gelu", least=65_536),
        post_op=PostOp("gelu", "none"),
    ),
    Activation(
        "gelu_tanh",
        "½x·(1 + tanh(√(2/π)·(x + 0.044715x³)))",
        gelu_tanh,
        formulas.gelu_tanh,
        formulas.d_gelu_tanh,
        config_name="gelu_pytorch_tanh",
        aliases=("gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh"),
        approximates="gelu",
        modules=(
            Module(f"{_TORCH}.GELU", when=_holds_tanh),
            Module(f"{_TRANSFORMERS}.GELUTanh", "gelu_pytorch_tanh", when=functools.partial(_runs_gelu_with, "tanh")),
            Module(
                f"{_TRANSFORMERS}.GELUTanh",
                "gelu_python_tanh",
                8,
                when=functools.partial(_runs_own, "_gelu_tanh_python"),
            ),
            Module(f"{_TRANSFORMERS}.NewGELUActivation", "gelu_new", 8),
            Module(f"{_TRANSFORMERS}.FastGELUActivation", "gelu_fast", 9),
            Module(f"{_TRANSFORMERS}.AccurateGELUActivation", "gelu_accurate", 8),
            Module("transformers.models.bloom.modeling_bloom.BloomGelu", "bloom_gelu", 9),
        ),
        calls=(Call(F.gelu, ("approximate",), when=_is_tanh),),
        in_place=gelu_tanh_,
        kernel=f"{_KERNELS}:gelu_tanh",
        cpp=Compiled("gelu_tanh", least=32_768),
        post_op=PostOp("gelu", "tanh"),
    ),
    Activation(
        "quick_gelu",
        "x·σ(1.702x)",
        quick_gelu,
        functools.partial(formulas.swish, beta=1.702),
        functools.partial(formulas.d_swish, beta=1.702),
        config_name="quick_gelu",
        approximates="gelu",
        modules=(Module(f"{_TRANSFORMERS}.QuickGELUActivation", aten_ops=3),),
        in_place=quick_gelu_,
        fewer_passes=quick_gelu_in_fewer_passes,
        fewest_ops=3,
        kernel=f"{_KERNELS}:quick_gelu",
        cpp=Compiled("quick_gelu", least=4_096),
    ),
    Activation(
        "gelu_clipped",
        "min(max(x·Φ(x), min), max)",
        gelu_clipped,
        formulas.gelu_clipped,
        formulas.d_gelu_clipped,
        config_name="gelu_10",
        parameters=(("min", -10.0), ("max", 10.0)),
        modules=(Module(f"{_TRANSFORMERS}.ClippedGELUActivation", aten_ops=2, constants=("min", "max")),),
        in_place=gelu_clipped_,
        fewer_passes=gelu_clipped_in_fewer_passes,
        fewest_ops=2,
        kernel=f"{_KERNELS}:gelu_clipped",
        cpp=Compiled("gelu_clipped", least=16_384),
    ),
    Activation(
        "silu",
        "x·σ(x)",
        F.silu,
        functools.partial(formulas.swish, beta=1.0),
        functools.partial(formulas.d_swish, beta=1.0),
        config_name="silu",
        aliases=("swish",),
        modules=(Module(f"{_TORCH}.SiLU"), Module(f"{_TRANSFORMERS}.SiLUActivation")),
        calls=(Call(F.silu, ("inplace",)),),
        written_with=("exp",),
        in_place=functools.partial(F.silu, inplace=True),
        kernel=f"{_KERNELS}:silu",
        cpp=Compiled("silu", least=65_536),
        post_op=PostOp("swish"),
    ),
    Activation(
        "relu",
        "max(x, 0)",
        F.relu,
        F.relu,
        formulas.step,
        config_name="relu",
        modules=(Module(f"{_TORCH}.ReLU"),),
        calls=(Call(F.relu, ("inplace",)), Call(torch.relu), Call(torch.relu_, in_place=True)),
        in_place=torch.relu_,
        kernel=f"{_KERNELS}:relu",
        cpp=Compiled("relu", least=65_536),
    ),
    Activation(
        "relu_squared",
        "max(x, 0)²",
        relu_squared,
        relu_squared,
        formulas.d_relu_squared,
        config_name="relu2",
        modules=(Module(f"{_TRANSFORMERS}.ReLUSquaredActivation", "relu2", 2),),
        in_place=relu_squared_,
        fewer_passes=relu_squared_in_fewer_passes,
        fewest_ops=2,
        kernel=f"{_KERNELS}:relu_squared",
        cpp=Compiled("relu_squared", least=16_384),
    ),
    Activation(
        "relu6",
        "min(max(x, 0), 6)",
        F.relu6,
        F.relu6,
        formulas.d_relu6,
        config_name="relu6",
        modules=(Module(f"{_TORCH}.ReLU6"),),
        calls=(Call(F.relu6, ("inplace",)),),
        in_place=functools.partial(F.relu6, inplace=True),
    ),
    Activation(
        "leaky_relu",
        "x if x > 0 else negative_slope·x",
        F.leaky_relu,
        F.leaky_relu,
        formulas.d_leaky_relu,
        config_name="leaky_relu",
        parameters=(("negative_slope", 0.01),),
        modules=(Module(f"{_TORCH}.LeakyReLU", constants=("negative_slope",)),),
        calls=(
            Call(F.leaky_relu, ("negative_slope", "inplace")),
            Call(F.leaky_relu_, ("negative_slope",), in_place=True),
        ),
        in_place=functools.partial(F.leaky_relu, inplace=True),
        post_op=PostOp("leaky_relu", constants=("negative_slope",)),
    ),
    Activation(
        "elu",
        "x if x > 0 else alpha·(eˣ − 1)",
        F.elu,
        F.elu,
        formulas.d_elu,
        parameters=(("alpha", 1.0),),
        modules=(Module(f"{_TORCH}.ELU", constants=("alpha",)),),
        calls=(Call(F.elu, ("alpha", "inplace")), Call(F.elu_, ("alpha",), in_place=True)),
        in_place=functools.partial(F.elu, inplace=True),
    ),
    Activation(
        "mish",
        "x·tanh(ln(1 + eˣ))",
        F.mish,
        formulas.mish,
        formulas.d_mish,
        config_name="mish",
        modules=(
            Module(f"{_TORCH}.Mish"),
            Module(f"{_TRANSFORMERS}.MishActivation", when=_runs_mish),
            Module(
                f"{_TRANSFORMERS}.MishActivation",
                "mish_python",
                3,
                when=functools.partial(_runs_own, "_mish_python"),
            ),
        ),
        calls=(Call(F.mish, ("inplace",)),),
        in_place=functools.partial(F.mish, inplace=True),
        kernel=f"{_KERNELS}:mish",
        cpp=Compiled("mish", least=4_096),
    ),
    Activation(
        "hardswish",
        "x·min(max(x + 3, 0), 6)/6",
        F.hardswish,
        F.hardswish,
        formulas.d_hardswish,
        config_name="hardswish",
        approximates="silu",
        modules=(Module(f"{_TORCH}.Hardswish"),),
        calls=(Call(F.hardswish, ("inplace",)),),
        in_place=functools.partial(F.hardswish, inplace=True),
        post_op=PostOp("hardswish"),
    ),
    Activation(
        "tanh",
        "tanh(x)",
        torch.tanh,
        torch.tanh,
        formulas.d_tanh,
        config_name="tanh",
        hidden=False,
        modules=(Module(f"{_TORCH}.Tanh"),),
        calls=(Call(F.tanh), Call(torch.tanh), Call(torch.tanh_, in_place=True)),
        in_place=torch.tanh_,
        post_op=PostOp("tanh"),
    ),
    Activation(
        "sigmoid",
        "σ(x) = 1/(1 + e⁻ˣ)",
        torch.sigmoid,
        torch.sigmoid,
        formulas.sigmoid_slope,
        config_name="sigmoid",
        hidden=False,
        modules=(Module(f"{_TORCH}.Sigmoid"),),
        calls=(
            Call(F.sigmoid),
            Call(torch.sigmoid),
            Call(torch.special.expit),
            Call(torch.sigmoid_, in_place=True),
        ),
        in_place=torch.sigmoid_,
        post_op=PostOp("sigmoid"),
    ),
    Activation(
        "laplace",
        "Φ((x − mu)/sigma)",
        laplace,
        formulas.laplace,
        formulas.d_laplace,
        config_name="laplace",
        hidden=False,
        parameters=(("mu", 0.707107), ("sigma", 0.282095)),
        positive=frozenset({"sigma"}),
        modules=(Module(f"{_TRANSFORMERS}.LaplaceActivation", aten_ops=5),),
        kernel=f"{_KERNELS}:laplace",
        cpp=Compiled("laplace"),
    ),
    Activation(
        "sqrt_softplus",
        "√ln(1 + eˣ)",
        sqrt_softplus,
        formulas.sqrt_softplus,
        formulas.d_sqrt_softplus,
        config_name="sqrtsoftplus",
        hidden=False,
        modules=(Module(f"{_TRANSFORMERS}.SqrtSoftplusActivation", "sqrtsoftplus", 2),),
        kernel=f"{_KERNELS}:sqrt_softplus",
    ),
    Activation(
        "linear",
        "x",
        linear,
        linear,
        torch.ones_like,
        config_name="linear",
        hidden=False,
        modules=(Module(f"{_TRANSFORMERS}.LinearActivation", aten_ops=0),),
    ),
    Activation(
        "prelu",
        "x if x > 0 else weight·x, the weight learned",
        prelu,
        prelu,
        formulas.d_prelu,
        config_name="prelu",
        learned=True,
        parameters=(("weight", 0.25),),
        modules=(Module(f"{_TORCH}.PReLU"),),
    ),
    Activation(
        "xielu",
        "alpha_p·x² + beta·x if x > 0 else alpha_n·(e^min(x, eps) − 1 − x) + beta·x, both alphas learned",
        xielu,
        xielu,
        formulas.d_xielu,
        config_name="xielu",
        learned=True,
        parameters=(("alpha_p", 0.8), ("alpha_n", 0.8), ("beta", 0.5), ("eps", -1e-6)),
        modules=(Module(f"{_TRANSFORMERS}.XIELUActivation", aten_ops=15),),
    ),
)
"""A record of each."""
