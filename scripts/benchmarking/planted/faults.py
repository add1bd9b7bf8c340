"""The faults, and the models that each is planted in."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from scripts.benchmarking.planted.fault import Fault
from scripts.benchmarking.planted.making import (
    after_the_first_call,
    backward,
    backward_of,
    bias_behind_the_activation,
    bias_twice,
    by_table,
    changed,
    coefficient,
    cut_off,
    detached,
    draws_random_numbers,
    edges_repeated,
    every_second_call,
    few_digits,
    first_result,
    forms_of,
    in_flat,
    in_half,
    in_rows,
    instead,
    interleaved,
    last_tile,
    layer,
    minus_zero,
    misread,
    of_the_result,
    off,
    one_in_many,
    overflowing,
    overwrites_its_input,
    overwrites_the_layers_input,
    product,
    product_backward,
    quick_gelu,
    rounded,
    rounded_weights,
    shape,
    shared_buffer,
    shifted_taps,
    stale_weights,
    tanh_gelu,
    tiles_begin_late,
    transposed,
    when,
    without_bias,
    without_last_inputs,
    without_second_term,
    written,
    written_over,
    wrong_in,
)
from scripts.benchmarking.planted.specimens import SPECIMENS


def _models(**wanted: str) -> tuple[str, ...]:
    return tuple(
        name for name, one in SPECIMENS.items() if all(getattr(one, key) == value for key, value in wanted.items())
    )


ALL = tuple(SPECIMENS)
EXACT, TANH, SILU = _models(activation="gelu"), _models(activation="gelu_tanh"), _models(activation="silu")
SMOOTH = EXACT + TANH + SILU
GATED, LINEAR = _models(kind="gated"), _models(kind="linear")
IN_DOUBLE = tuple(name for name, one in SPECIMENS.items() if torch.float64 not in one.refuses)
DECODERS = tuple(name for name, one in SPECIMENS.items() if one.decoder)
DENSE = tuple(name for name in ALL if name != "mixtral")
"""Mixtral's experts are given two rows for each token, and multiply any dtype."""
STRICT = tuple(name for name in DENSE if name != "t5")
"""T5 converts what its last layer is given."""
BY_EXAMPLE = tuple(name for name in DENSE if name != "opt")
"""OPT flattens its batch too."""
BY_EXAMPLE_GATED = tuple(name for name in BY_EXAMPLE if name in GATED)

_FUNCTION, _PLACE, _RANGE, _ROUNDING = "wrong function", "wrong in places", "wrong in a range", "too much rounding"
_GATE, _LAYER, _GRADIENT = "wrong product", "wrong linear layer", "wrong gradient"
_WHEN, _STATE = "wrong at times", "keeps or overwrites"

FAULTS: tuple[Fault, ...] = (
    # Wrong function.
    Fault("ReLU", _FUNCTION, instead(F.relu), SMOOTH),
    Fault("SiLU for GELU", _FUNCTION, instead(F.silu), EXACT + TANH),
    Fault("GELU for SiLU", _FUNCTION, instead(F.gelu), SILU),
    Fault("GELU for ReLU", _FUNCTION, instead(F.gelu), ("opt",)),
    Fault("quick_gelu for GELU", _FUNCTION, instead(quick_gelu), EXACT + TANH),
    Fault("the tanh form for exact GELU", _FUNCTION, instead(tanh_gelu), EXACT),
    Fault("exact GELU for the tanh form", _FUNCTION, instead(F.gelu), TANH),
    Fault("hardswish for SiLU", _FUNCTION, instead(F.hardswish), SILU),
    Fault("leaky ReLU for ReLU", _FUNCTION, instead(F.leaky_relu), ("opt",)),
    Fault("ReLU6 for ReLU", _FUNCTION, instead(F.relu6), ("opt",)),
    Fault("squared ReLU for ReLU", _FUNCTION, instead(lambda x: F.relu(x).square()), ("opt",)),
    Fault("Mish", _FUNCTION, instead(F.mish), ALL),
    Fault("the sigmoid alone", _FUNCTION, instead(torch.sigmoid), ALL),
    Fault("no activation", _FUNCTION, instead(lambda x: x * 1), ALL),
    Fault("applied twice", _FUNCTION, lambda right: forms_of(lambda x: right(right(x))), SMOOTH),
    Fault("too large by 1 %", _FUNCTION, changed(lambda x, y: y * 1.01), ALL),
    Fault("too large by 0.1 %", _FUNCTION, changed(lambda x, y: y * 1.001), ALL),
    Fault("too large by 0.01", _FUNCTION, changed(lambda x, y: y + 0.01), ALL),
    Fault("opposite sign", _FUNCTION, changed(lambda x, y: -y), ALL),
    Fault(
        "1/√2 to four digits",
        _FUNCTION,
        instead(few_digits),
        EXACT,
        unseen="as little as what fp32 rounds in that model",
    ),
    Fault("0.044 for 0.044715", _FUNCTION, instead(coefficient(0.044)), TANH),
    Fault("0.8 for √(2/π)", _FUNCTION, instead(coefficient(0.044715, 0.8)), TANH),
    Fault("1.7 for 1 in the sigmoid", _FUNCTION, instead(lambda x: x * torch.sigmoid(1.7 * x)), SILU),
    Fault("a table of 64 points", _FUNCTION, changed(by_table), SMOOTH),
    # Wrong in places.
    Fault("one element in 10,000 is off by 0.1", _PLACE, in_flat(written(one_in_many, off(0.1))), ALL),
    Fault("one element in 10,000 is 1", _PLACE, in_flat(written(one_in_many, 1.0)), ALL),
    Fault("one element in 10,000 is NaN", _PLACE, in_flat(written(one_in_many, math.nan)), ALL),
    Fault("the last tile is zero", _PLACE, in_flat(written(last_tile, 0.0)), ALL),
    Fault("the last tile is off by 2 %", _PLACE, in_flat(written(last_tile, lambda part: part * 1.02)), ALL),
    Fault("each tile's first element is the one before it", _PLACE, in_flat(tiles_begin_late), ALL),
    Fault("a row is zero", _PLACE, in_rows(lambda rows: rows[3].zero_()), ALL),
    Fault("a row is another's", _PLACE, in_rows(lambda rows: rows[4].copy_(rows[3].clone())), ALL),
    Fault("each row's last element is zero", _PLACE, in_rows(lambda rows: rows[:, -1].zero_()), ALL),
    Fault(
        "each row's last element is that before it",
        _PLACE,
        in_rows(lambda rows: rows[:, -1].copy_(rows[:, -2].clone())),
        ALL,
    ),
    Fault("read transposed", _PLACE, transposed, ALL),
    Fault("strides not looked at", _PLACE, misread, ("phi3", "mixtral")),
    Fault("all examples are the first", _PLACE, changed(lambda x, y: y[:1].expand_as(y).clone()), BY_EXAMPLE),
    # Wrong in a range.
    Fault("0 beyond x = 6", _RANGE, changed(lambda x, y: y.masked_fill(x > 6, 0.0)), ALL),
    Fault("6 beyond x = 6", _RANGE, changed(lambda x, y: y.clamp(max=6.0)), ALL),
    Fault("−0.1 below x = −6", _RANGE, changed(lambda x, y: y.masked_fill(x < -6, -0.1)), ALL),
    Fault("x clamped to ±3", _RANGE, lambda right: forms_of(lambda x: right(x.clamp(-3, 3))), ALL),
    Fault("0 below x = −3", _RANGE, changed(lambda x, y: y.masked_fill(x < -3, 0.0)), SMOOTH),
    Fault("x beyond x = 3", _RANGE, changed(lambda x, y: torch.where(x > 3, x, y)), SMOOTH),
    Fault("clipped at ±8", _RANGE, changed(lambda x, y: y.clamp(-8, 8)), ALL),
    Fault("NaN beyond x = 8", _RANGE, changed(lambda x, y: y.masked_fill(x > 8, math.nan)), ALL),
    Fault("NaN below x = −8", _RANGE, changed(lambda x, y: y.masked_fill(x < -8, math.nan)), ALL),
    Fault("∞ beyond x = 8", _RANGE, changed(lambda x, y: y.masked_fill(x > 8, math.inf)), ALL),
    Fault(
        "wrong by 5 % between −1 and 0",
        _RANGE,
        changed(lambda x, y: torch.where((x > -1) & (x < 0), 1.05 * y, y)),
        SMOOTH,
    ),
    Fault("−0 for 0", _RANGE, changed(minus_zero), ("opt",), unseen="no number changes: −0 = 0"),
    # Too much rounding.
    Fault("rounded to bf16 in an fp32 model", _ROUNDING, rounded(torch.bfloat16), ALL),
    Fault("rounded to fp16 in an fp32 model", _ROUNDING, rounded(torch.float16), ALL),
    Fault(
        "x rounded to bf16 in an fp32 model",
        _ROUNDING,
        lambda right: forms_of(lambda x: right(x.bfloat16().to(x.dtype))),
        ALL,
    ),
    Fault("rounded to fp32 in an fp64 model", _ROUNDING, rounded(torch.float32), IN_DOUBLE, dtype=torch.float64),
    Fault(
        "cut off, not rounded, in a bf16 model",
        _ROUNDING,
        cut_off,
        ("bert", "gpt2"),
        dtype=torch.bfloat16,
        unseen="a unit in the last place, where rounding to it takes half of one",
    ),
    # Wrong product.
    Fault("gate and up swapped", _GATE, product(lambda act, gate, up: act(up) * gate), GATED),
    Fault("up left out", _GATE, product(lambda act, gate, up: act(gate) + up * 0), GATED),
    Fault("up activated too", _GATE, product(lambda act, gate, up: act(gate) * act(up)), GATED),
    Fault("the product activated", _GATE, product(lambda act, gate, up: act(gate * up)), GATED),
    Fault("a sum, not a product", _GATE, product(lambda act, gate, up: act(gate) + up), GATED),
    Fault("up + 1, as gpt-oss has it", _GATE, product(lambda act, gate, up: act(gate) * (up + 1)), GATED),
    Fault(
        "gate at most 7, as gpt-oss has it", _GATE, product(lambda act, gate, up: act(gate.clamp(max=7.0)) * up), GATED
    ),
    Fault("up is its neighbour", _GATE, product(lambda act, gate, up: act(gate) * up.roll(1, -1)), GATED),
    Fault("halves read interleaved", _GATE, product(interleaved), GATED),
    Fault(
        "up of the first example for all", _GATE, product(lambda act, gate, up: act(gate) * up[:1]), BY_EXAMPLE_GATED
    ),
    Fault("gate not activated", _GATE, product(lambda act, gate, up: gate * up), GATED),
    # Wrong linear layer.
    Fault("bias dropped", _LAYER, layer(without_bias), LINEAR),
    Fault("bias added twice", _LAYER, layer(bias_twice), LINEAR),
    Fault("bias behind the activation", _LAYER, bias_behind_the_activation, LINEAR),
    Fault("weights rounded to bf16 in an fp32 model", _LAYER, layer(rounded_weights), LINEAR),
    Fault("multiplied in bf16 in an fp32 model", _LAYER, layer(in_half), LINEAR),
    Fault("the last input left out", _LAYER, layer(without_last_inputs(0.0)), LINEAR),
    Fault("the last quarter of the inputs left out", _LAYER, layer(without_last_inputs(0.25)), LINEAR),
    Fault("a convolution's edges repeated", _LAYER, layer(edges_repeated), ("whisper",)),
    Fault("a convolution's taps reversed", _LAYER, layer(shifted_taps), ("whisper",)),
    Fault("the first layer's weights at all of that shape", _LAYER, stale_weights(shape), LINEAR),
    Fault("stale weights, after a training step", _LAYER, stale_weights(id), LINEAR, seasoned=True),
    Fault(
        "stale weights, before any",
        _LAYER,
        stale_weights(id),
        LINEAR,
        unseen="until the weights change, the copy is right: verify again after a step",
    ),
    # Wrong gradient.
    Fault("half of the gradient", _GRADIENT, backward(lambda x, dy, dx: dx * 0.5), ALL),
    Fault("the gradient too large by 1 %", _GRADIENT, backward(lambda x, dy, dx: dx * 1.01), ALL),
    Fault("the gradient's sign", _GRADIENT, backward(lambda x, dy, dx: -dx), ALL),
    Fault("ReLU's gradient", _GRADIENT, backward_of(F.relu), SMOOTH),
    Fault("the gradient of the tanh form for exact GELU", _GRADIENT, backward_of(tanh_gelu), EXACT),
    Fault("the gradient of exact GELU for the tanh form", _GRADIENT, backward_of(F.gelu), TANH),
    Fault("quick_gelu's gradient", _GRADIENT, backward_of(quick_gelu), EXACT + TANH),
    Fault("no gradient for x < 0", _GRADIENT, backward(lambda x, dy, dx: dx * (x > 0)), SMOOTH),
    Fault("grad_y handed on", _GRADIENT, backward(lambda x, dy, dx: dy), ALL),
    Fault("the gradient's second term left out", _GRADIENT, without_second_term, SMOOTH),
    Fault("the gradient taken at y", _GRADIENT, of_the_result, SMOOTH),
    Fault(
        "the gradient rounded to bf16 in an fp32 model",
        _GRADIENT,
        backward(lambda x, dy, dx: dx.bfloat16().to(dx.dtype)),
        ALL,
    ),
    Fault("no gradient", _GRADIENT, backward(lambda x, dy, dx: dx * 0), ALL),
    Fault("detached", _GRADIENT, lambda right: forms_of(lambda x: right(x.detach())), ALL),
    Fault(
        "one of the gradient's elements in 10,000 is off",
        _GRADIENT,
        backward(lambda x, dy, dx: written_over(dx, written(one_in_many, lambda part: part + dx.abs().mean()), -1)),
        ALL,
    ),
    Fault(
        "the gradient's last tile is zero",
        _GRADIENT,
        backward(lambda x, dy, dx: written_over(dx, written(last_tile, 0.0), -1)),
        ALL,
    ),
    Fault("no gradient beyond x = 6", _GRADIENT, backward(lambda x, dy, dx: dx * (x < 6)), ALL),
    Fault(
        "the gradient is NaN below x = −8", _GRADIENT, backward(lambda x, dy, dx: dx.masked_fill(x < -8, math.nan)), ALL
    ),
    Fault(
        "the first example's gradient for all",
        _GRADIENT,
        backward(lambda x, dy, dx: dx[:1].expand_as(dx).clone()),
        BY_EXAMPLE,
    ),
    Fault("up's gradient left out", _GRADIENT, product_backward(lambda gate, up, dy, dg, du: (dg, du * 0)), GATED),
    Fault("gate's gradient left out", _GRADIENT, product_backward(lambda gate, up, dy, dg, du: (dg * 0, du)), GATED),
    Fault(
        "gate's and up's gradients swapped", _GRADIENT, product_backward(lambda gate, up, dy, dg, du: (du, dg)), GATED
    ),
    Fault(
        "up's gradient by gate, not act(gate)",
        _GRADIENT,
        product_backward(lambda gate, up, dy, dg, du: (dg, dy * gate)),
        GATED,
    ),
    Fault("gate's gradient without up", _GRADIENT, product_backward(lambda gate, up, dy, dg, du: (dg / up, du)), GATED),
    Fault("the bias's gradient left out", _GRADIENT, layer(detached("bias")), LINEAR),
    Fault("the weight's gradient left out", _GRADIENT, layer(detached("weight")), LINEAR),
    Fault("the layer's input's gradient left out", _GRADIENT, layer(lambda linear, x: linear(x.detach())), LINEAR),
    # Wrong at times.
    Fault("ReLU, in bf16 only", _WHEN, wrong_in(torch.bfloat16, F.relu), SMOOTH, dtype=torch.bfloat16),
    Fault(
        "too large by 5 %, in bf16 only",
        _WHEN,
        when(lambda x: x.dtype == torch.bfloat16),
        ALL,
        dtype=torch.bfloat16,
        unseen="little beside what bf16 rounds in that model",
    ),
    Fault("quick_gelu, in fp16 only", _WHEN, wrong_in(torch.float16, quick_gelu), EXACT + TANH, dtype=torch.float16),
    Fault("e^x overflows in fp16", _WHEN, changed(overflowing), SILU, dtype=torch.float16),
    Fault(
        "too large, in float64 only",
        _WHEN,
        when(lambda x: x.dtype == torch.float64, 1.001),
        IN_DOUBLE,
        dtype=torch.float64,
    ),
    Fault(
        "half of the gradient, in bf16 only",
        _WHEN,
        backward(lambda x, dy, dx: dx * (0.5 if x.dtype == torch.bfloat16 else 1.0)),
        ALL,
        dtype=torch.bfloat16,
    ),
    Fault("too large, of tensors with gaps only", _WHEN, when(lambda x: not x.is_contiguous()), ("phi3", "mixtral")),
    Fault(
        "too large, with an odd number of rows only", _WHEN, when(lambda x: x.numel() // x.shape[-1] % 2 == 1), DENSE
    ),
    Fault("too large, with several examples only", _WHEN, when(lambda x: x.dim() == 3 and len(x) > 1), BY_EXAMPLE),
    Fault("too large, with a gradient only", _WHEN, when(lambda x: x.requires_grad and torch.is_grad_enabled()), ALL),
    Fault("too large, without a gradient only", _WHEN, when(lambda x: not torch.is_grad_enabled()), ALL),
    Fault("dropout's numbers drawn", _WHEN, draws_random_numbers, ("bert", "gpt2", "t5", "whisper"), training=True),
    Fault("too large, in training mode with a gradient", _WHEN, when(lambda x: x.requires_grad), ALL, training=True),
    Fault(
        "too large, of a single token only",
        _WHEN,
        when(lambda x: x.numel() // x.shape[-1] <= 2 * 3),
        DECODERS,
        batch="cached",
    ),
    Fault(
        "nothing beyond 65,536 elements",
        _WHEN,
        in_flat(written(lambda flat: flat[65_536:], 0.0)),
        DECODERS,
        batch="long",
    ),
    Fault("every second call is off by 5 %", _WHEN, every_second_call, ALL),
    Fault("off by 5 % from the second call on", _WHEN, after_the_first_call, ALL),
    Fault("ReLU, at one site only", _WHEN, instead(F.relu), SMOOTH, one_site=True),
    Fault("too large by 1 %, at one site only", _WHEN, changed(lambda x, y: y * 1.01), ALL, one_site=True),
    Fault("fp32 given back in a bf16 model", _WHEN, changed(lambda x, y: y.float()), STRICT, dtype=torch.bfloat16),
    Fault("another shape given back", _WHEN, changed(lambda x, y: y.flatten(0, -2)[None]), BY_EXAMPLE),
    # Keeps or overwrites.
    Fault("one buffer for all results", _STATE, shared_buffer, ALL),
    Fault("the first result again and again", _STATE, first_result, ALL),
    Fault("x overwritten", _STATE, overwrites_its_input, SMOOTH),
    Fault("the layer's input overwritten", _STATE, overwrites_the_layers_input, ("bert",)),
)
