"""What a patch does to a model's outputs on a batch: the drift of each, beside the model's own rounding error.

values (what of an output can be compared), copies (of a batch; of a model, in float64), restoring (a model as it was),
runs (a model on a batch), bars (how far numbers may move). ``Verification`` is all of them together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from hf_gelu_patch.errors import VerificationError, shortened
from hf_gelu_patch.verification.bars import (
    Drift,
    Scale,
    drifts,
    half_the_digits,
    largest_difference,
    relative,
    scale_of,
)
from hf_gelu_patch.verification.copies import Exact, exact_copy, in_double, redraw
from hf_gelu_patch.verification.restoring import fingerprints
from hf_gelu_patch.verification.runs import cannot_run, run
from hf_gelu_patch.verification.values import GRADIENT, Found, finite, output_tensors

__all__ = [
    "Drift",
    "Exact",
    "Scale",
    "Verification",
    "drifts",
    "exact_copy",
    "exact_outputs",
    "half_the_digits",
    "in_double",
    "largest_difference",
    "output_tensors",
    "outputs",
    "relative",
    "run",
    "scale_of",
]


def outputs(model: nn.Module, batch: object) -> dict[str, Tensor]:
    """Name → a copy of each tensor of numbers in what a model says of a batch, as ``Verification`` compares them."""
    return run(model, batch).tensors


def exact_outputs(model: nn.Module, batch: object) -> dict[str, Tensor] | None:
    """``outputs`` of a float64 copy of a model; None where there is no memory for one, where weights are offloaded or
    quantized, or where it cannot run in float64."""
    found = exact_copy(model, batch, run).output
    return None if found is None else found.tensors


_DRAWS = 3
_UNLIKE = 8.0  # times as far from float64 as rounding takes it: that is something else than rounding
_FINE = 1e-6  # ε of arithmetic fine enough for a few of its roundings, much enlarged, to make most of an error


@dataclass(frozen=True)
class Verification:
    """What a model computed on a batch before it was patched.

    Attributes:
        batch: a mapping of keyword arguments, a tuple or list of positional ones, or the one argument.
        gradients: whether gradients are compared too.
        weights: their fingerprints, as ``fingerprints`` gives them.
        before: what the model computed.
        exact: what a float64 copy of it did; None where there is none.
        exact_model: that copy, where the roundings of the model may have to be drawn again.
        epsilon: of the coarsest arithmetic inside it.
    """

    batch: object
    gradients: bool
    weights: Mapping[str, int]
    before: Found
    exact: Found | None
    exact_model: nn.Module | None
    epsilon: float

    @classmethod
    def of(cls, model: nn.Module, batch: object, *, gradients: bool = False) -> Verification:
        """Run a model that is not patched yet.

        Raises:
            VerificationError: it cannot run on the batch; it changes its weights; or nothing that it says can be
                compared.
        """
        weights = fingerprints(model)
        try:
            before = run(model, batch, gradients=gradients)
        except (VerificationError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise VerificationError(cannot_run(model, "the batch given as verify=", error)) from error
        _check_weights(model, weights)
        _check_that_something_is_said(model, before, gradients=gradients)
        exact = exact_copy(model, batch, partial(run, gradients=gradients))
        epsilon = _coarsest(model)
        made = cls(batch, gradients, weights, before, exact.output, exact.model, epsilon)
        if made.far_from_exact and not made._is_rounding(model):
            return replace(made, exact=None, exact_model=None)
        return made if epsilon <= _FINE else replace(made, exact_model=None)

    def _is_rounding(self, model: nn.Module) -> bool:
        """Whether the model is as far from itself where its roundings fall otherwise as it is from its float64 copy. If
        not, the copy has drawn other random numbers, or has taken another way through the code."""
        assert self.exact_model is not None
        try:
            (drawn,) = self._draws(model, self.exact_model, 1)
        except Exception:  # not every model can be made anew from its copy in float64
            return True
        own = {one.output: one for one in self._drift(self.before.tensors, None, True, [])}
        again = {one.output: one.largest for one in self._drift(drawn, None, True, [])}
        return all(
            one.error_before is None or one.error_before <= max(_UNLIKE * again[name], self._far * one.scale)
            for name, one in own.items()
        )

    @property
    def _far(self) -> float:
        return half_the_digits(self.epsilon)

    @property
    def far_from_exact(self) -> bool:
        """Whether the model is so far from its float64 copy that the two may have drawn other random numbers."""
        own = self._drift(self.before.tensors, None, True, [])
        return any(one.error_before is not None and one.error_before > self._far * one.scale for one in own)

    def check_repeats(self, model: nn.Module, margin: float | None) -> None:
        """Run the model again, unpatched.

        Raises:
            VerificationError: it says something else than before.
        """
        again = run(model, self.batch, gradients=self.gradients).tensors
        own = drifts(self.before.tensors, again, None, margin, epsilon=self.epsilon)
        if exceeded := [one for one in own if one.exceeded]:
            raise VerificationError(
                f"{type(model).__name__} says something else each time it is run on the batch given, unpatched too: "
                f"{shortened(exceeded)}. Seed the generators that it keeps itself, and let no run change its weights; "
                "or leave out verify=."
            )

    def drift(self, model: nn.Module, *, margin: float | None, same: bool) -> tuple[Drift, ...]:
        """How far the patched model is from that; arguments as for ``drifts``.

        The model's own error is one draw of how its roundings fall, and may be a lucky one. Where the patched model's
        is a little too large beside it, ``_DRAWS`` more are made.

        Raises:
            VerificationError: it changes its weights.
        """
        after = run(model, self.batch, gradients=self.gradients).tensors
        _check_weights(model, self.weights, " once patched")
        found = self._drift(after, margin, same, [])
        exceeded = [one for one in found if one.exceeded]
        if self.exact_model is None or not exceeded or not all(one.doubtful for one in exceeded):
            return found
        try:
            draws = self._draws(model, self.exact_model, _DRAWS)
        except Exception:  # not every model can be made anew from its copy in float64
            return found
        return self._drift(after, margin, same, draws)

    def _draws(self, model: nn.Module, copied: nn.Module, count: int) -> list[Mapping[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        draws: list[Mapping[str, Tensor]] = []
        for _ in range(count):
            redraw(copied, model, self.epsilon, generator)
            draws.append(run(copied, self.batch, gradients=self.gradients).tensors)
        return draws

    def _drift(
        self, after: Mapping[str, Tensor], margin: float | None, same: bool, draws: list[Mapping[str, Tensor]]
    ) -> tuple[Drift, ...]:
        exact = {} if self.exact is None else self.exact.tensors
        found: tuple[Drift, ...] = ()
        for gradients in (False, True):
            before_, after_, exact_, *draws_ = (
                {name: tensor for name, tensor in tensors.items() if name.startswith(GRADIENT) == gradients}
                for tensors in (self.before.tensors, after, exact, *draws)
            )
            found += drifts(before_, after_, exact_, margin, same=same, epsilon=self.epsilon, draws=draws_)
        return found


def _says_something(tensor: Tensor) -> bool:
    """Whether a change could show: in zeros it does not, nor in what is not finite."""
    if not tensor.is_floating_point():
        return bool(tensor.numel())
    return bool((finite(tensor) & (tensor != 0)).any())


def _check_that_something_is_said(model: nn.Module, found: Found, *, gradients: bool) -> None:
    """Raises VerificationError."""
    said = [name for name, tensor in found.tensors.items() if _says_something(tensor)]
    if not said:
        seen = shortened(found.unseen or tuple(found.tensors)) or "nothing"
        raise VerificationError(
            f"{type(model).__name__} gives no numbers on the batch that could be compared before and after ({seen})"
            ". Verify a part of it, or a model around it, that returns tensors of numbers which are finite and not all "
            "0; or leave out verify=."
        )
    if gradients and not any(name.startswith(GRADIENT) for name in said):
        raise VerificationError(
            f"no gradient to compare: on the batch, those of {type(model).__name__} are all 0 or not finite. Give it a "
            "batch on which they are not (labels that are not all -100, for one), or leave out gradients=True."
        )


def _check_weights(model: nn.Module, before: Mapping[str, int], when: str = "") -> None:
    """Raises VerificationError."""
    now = fingerprints(model)
    changed = [name for name, mark in before.items() if now.get(name, mark) != mark]
    if changed:
        raise VerificationError(
            f"{type(model).__name__} changes its weights when it is run on the batch given{when}: "
            f"{shortened(changed)}. They are not put back. Verify it in a mode in which they stay, or leave out "
            "verify=."
        )


def _coarsest(model: nn.Module) -> float:
    """The largest ε of a model's weights, and of autocast where it is on."""
    weights = [*model.parameters(), *model.buffers()]
    dtypes = {weight.dtype for weight in weights if weight.is_floating_point() and weight.dtype.itemsize > 1}
    for device in {weight.device.type for weight in weights} - {"meta"}:
        if torch.is_autocast_enabled(device):
            dtypes.add(torch.get_autocast_dtype(device))
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
