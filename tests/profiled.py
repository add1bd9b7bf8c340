"""A site's profile held against the very numbers that the site was given."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from hf_gelu_patch import ACTIVATIONS
from hf_gelu_patch.profiling import SiteProfile
from hf_gelu_patch.profiling.grid import regions


def check(found: SiteProfile, x: Tensor, up: Tensor | None = None) -> None:
    """Every figure of a site against what it is of these pre-activations, in float64."""
    epsilon = torch.finfo(x.dtype).eps
    wide = x.double()
    up = torch.ones_like(wide) if up is None else up.double()
    counts = found.counts
    assert counts.activation is not None
    assert found.count == x.numel()
    assert counts.mean == pytest.approx(float(wide.mean()), rel=1e-12, abs=1e-15)
    assert counts.std == pytest.approx(float(wide.std(correction=0)), rel=1e-12)
    assert (counts.least, float(counts.greatest.max())) == (float(x.min()), float(x.max()))  # type: ignore[union-attr]
    edges = [-math.inf, *(bar / 4 for bar in range(-32, 33)), math.inf]
    bars = [int(((wide >= low) & (wide < high)).sum()) for low, high in itertools.pairwise(edges)]
    assert found.histogram == bars
    plain, where = found.to_dict(), regions(counts.activation, epsilon)
    assert plain["negative"] == int((wide < 0).sum()) / x.numel()
    units = x.reshape(-1, x.shape[-1]).amax(dim=0)
    if where.flat is not None:
        assert found.flat == int((wide < where.flat).sum()) / x.numel()
        assert found.never_active == (units < where.flat).nonzero()[:, 0].tolist()
    if where.lobe is not None and where.flat is not None:
        assert found.lobe == int(((wide >= where.flat) & (wide < where.lobe)).sum()) / x.numel()
    if where.identity is not None:
        assert found.identity == int((wide >= where.identity).sum()) / x.numel()
    own = counts.activation.bind(counts.activation.reference)(wide) * up
    assert found.moved.keys() == {name for name, one in ACTIVATIONS.items() if one.hidden and not one.learned} - {
        counts.activation.name
    }
    for name, moved in found.moved.items():
        other = ACTIVATIONS[name]
        d = own - other.bind(other.reference)(wide) * up
        rms = float(d.square().mean().sqrt())
        assert abs(moved.mean - float(d.abs().mean())) <= moved.mean_off + 1e-12
        assert abs(moved.rms - rms) <= moved.rms_off + 1e-12
        assert moved.rms == pytest.approx(rms, rel=0.02, abs=1e-9)
        assert moved.relative == pytest.approx(rms / float(own.square().mean().sqrt()), rel=0.02, abs=1e-9)
        assert moved.rms_off <= 0.02 * moved.rms + 5e-3
