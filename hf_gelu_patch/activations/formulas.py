"""Every activation and its derivative in float64, right in relative terms in both tails."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_SQRT_2_OVER_PI = math.sqrt(2.0 / math.pi)
_TANH_CUBIC = 0.044715


def cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-math.sqrt(0.5) * x)  # torch.special.ndtr loses its digits below −5


def density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def step(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def sigmoid_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def swish(x: Tensor, beta: float) -> Tensor:
    return x * torch.sigmoid(beta * x)


def d_swish(x: Tensor, beta: float) -> Tensor:
    return torch.sigmoid(beta * x) + beta * x * sigmoid_slope(beta * x)


def gelu(x: Tensor) -> Tensor:
    return x * cdf(x)


def d_gelu(x: Tensor) -> Tensor:
    return cdf(x) + x * density(x)


def tanh_argument(x: Tensor) -> Tensor:
    return 2.0 * _SQRT_2_OVER_PI * (x + _TANH_CUBIC * x**3)


def gelu_tanh(x: Tensor) -> Tensor:
    return x * torch.sigmoid(tanh_argument(x))  # ½(1 + tanh(u)) = σ(2u), without its cancellation for u < 0


def d_gelu_tanh(x: Tensor) -> Tensor:
    z = tanh_argument(x)
    slope = 2.0 * _SQRT_2_OVER_PI * (1.0 + 3.0 * _TANH_CUBIC * x * x)
    return torch.sigmoid(z) + x * sigmoid_slope(z) * slope


def gelu_clipped(x: Tensor, min: float, max: float) -> Tensor:
    return gelu(x).clamp(min, max)


def d_gelu_clipped(x: Tensor, min: float, max: float) -> Tensor:
    y = gelu(x)
    return d_gelu(x) * ((y >= min) & (y <= max)).to(x.dtype)


def mish(x: Tensor) -> Tensor:
    return x * torch.tanh(softplus(x))


def d_mish(x: Tensor) -> Tensor:
    t = torch.tanh(softplus(x))
    return t + x * (1.0 - t * t) * torch.sigmoid(x)


def d_relu_squared(x: Tensor) -> Tensor:
    return 2.0 * F.relu(x)


def d_hardswish(x: Tensor) -> Tensor:
    return torch.where(x <= -3, 0.0, torch.where(x >= 3, 1.0, (2.0 * x + 3.0) / 6.0))


def d_relu6(x: Tensor) -> Tensor:
    return ((x > 0) & (x < 6)).to(x.dtype)


def d_leaky_relu(x: Tensor, negative_slope: float) -> Tensor:
    return torch.where(x > 0, torch.ones_like(x), negative_slope)


def d_elu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, 1.0, alpha * torch.exp(x.clamp(max=0)))


def d_tanh(x: Tensor) -> Tensor:
    return 1.0 / torch.cosh(x.clamp(-300, 300)) ** 2


def laplace(x: Tensor, mu: float, sigma: float) -> Tensor:
    return cdf((x - mu) / sigma)


def d_laplace(x: Tensor, mu: float, sigma: float) -> Tensor:
    return density((x - mu) / sigma) / sigma


def sqrt_softplus(x: Tensor) -> Tensor:
    return torch.where(x < -40, torch.exp(0.5 * x), softplus(x).sqrt())


def d_sqrt_softplus(x: Tensor) -> Tensor:
    return torch.where(x < -40, 0.5 * torch.exp(0.5 * x), torch.sigmoid(x) / (2.0 * softplus(x).sqrt()))


def d_prelu(x: Tensor, weight: float) -> Tensor:
    return torch.where(x > 0, torch.ones_like(x), weight)


def d_xielu(x: Tensor, alpha_p: float, alpha_n: float, beta: float, eps: float) -> Tensor:
    inner = torch.where(x < eps, torch.exp(x.clamp(max=eps)), 0.0)
    return torch.where(x > 0, 2.0 * alpha_p * x + beta, (inner - 1.0) * alpha_n + beta)
