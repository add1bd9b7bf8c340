"""A profile against numbers computed one by one, and the model as it was afterwards."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import FAMILIES
from profiled import check
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import hf_gelu_patch
from hf_gelu_patch import ACTIVATIONS, NoSitesError, NothingMatchedError, PatchError, UnknownNameError, patched
from hf_gelu_patch.profiling import Profile, profile, watching
from hf_gelu_patch.profiling.grid import regions

SIZES = (64, 128)
LOBES = ("gelu", "gelu_tanh", "quick_gelu", "gelu_clipped", "silu", "mish", "hardswish")


class Two(nn.Module):
    """A call written in the forward, a module that two places share, and one of its own that writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(*SIZES[::step]) for step in (1, -1, 1))
        self.act = nn.SiLU()
        self.chain = nn.Sequential(nn.Linear(SIZES[1], 8), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        x = F.gelu(self.second(x))
        return self.chain(self.act(self.third(x)))


def two() -> Two:
    torch.manual_seed(0)
    model = Two().eval()
    for weight in model.parameters():
        weight.data.mul_(9.0)
    return model


def batch(size: int = 50, seed: int = 1) -> Tensor:
    return torch.randn(size, SIZES[0], generator=torch.Generator().manual_seed(seed))


def inputs(model: Two, x: Tensor) -> list[Tensor]:
    """The pre-activations, one after the other."""
    with torch.no_grad():
        first = model.first(x)
        second = model.second(F.silu(first))
        third = model.third(F.gelu(second))
        return [first, third, second, model.chain[0](F.silu(third))]


def test_every_figure_is_that_of_the_numbers() -> None:
    model, x = two(), batch()
    found = profile(model, x)
    assert [one.site.path for one in found.sites] == ["act", "act", f"forward:{_line('F.gelu(self.second')}", "chain.1"]
    for one, numbers in zip(found.sites, inputs(model, x), strict=True):
        check(one, numbers)
    assert {one.counts.activation.name for one in found.sites if one.counts.activation} == {"silu", "relu", "gelu"}
    assert max(one.counts.cells[[0, -1]].sum() for one in found.sites) > 0, "none beyond the cells: not what is meant"
    assert any(one.never_active for one in found.sites)


def _line(text: str) -> int:
    from pathlib import Path

    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("t5-v1.0", "mistral")])
def test_the_model_says_the_same_and_is_as_it_was(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    with torch.no_grad():
        before = family.run(model)
        kept = [(module, type(module), dict(vars(module)), _hooks(module)) for module in model.modules()]
        with watching(model) as watched:
            during = family.run(model)
        seen = watched.profile()
        after = family.run(model)
    assert torch.equal(before, during)
    assert torch.equal(before, after)
    assert all(one.count for one in seen.sites)
    for module, cls, state, hooks in kept:
        assert type(module) is cls
        assert vars(module) == state
        assert _hooks(module) == hooks
    assert [one.count for one in profile(model, family.inputs()).sites] == [one.count for one in seen.sites]


def _hooks(module: nn.Module) -> int:
    return len(module._forward_pre_hooks) + len(module._forward_hooks) + len(module._forward_pre_hooks_with_kwargs)


def test_of_a_product_the_gate_counts_and_the_drift_is_that_of_the_product() -> None:
    family = FAMILIES["llama"]
    model = family.build()
    seen: dict[str, Tensor] = {}
    mlp = model.model.layers[1].mlp
    handles = [
        getattr(mlp, name).register_forward_hook(lambda _, __, y, name=name: seen.__setitem__(name, y))
        for name in ("gate_proj", "up_proj")
    ]
    with torch.no_grad():
        family.run(model)
    for handle in handles:
        handle.remove()
    found = profile(model, family.inputs())
    assert found.sites[1].to_dict()["times_up"]
    check(found.sites[1], seen["gate_proj"], seen["up_proj"])


def test_whatever_is_raised_the_model_is_as_it_was() -> None:
    model = two()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(PatchError, match=r"Two cannot run on batch 2 \(RuntimeError: mat1 and mat2"):
        profile(model, iter([batch(), torch.zeros(2, 3)]))
    assert [type(module) for module in model.modules()] == classes
    assert not any(map(_hooks, model.modules()))
    with pytest.raises(KeyError), watching(model):
        raise KeyError
    assert [type(module) for module in model.modules()] == classes
    assert not any(map(_hooks, model.modules()))


def test_batches_are_run_through_one_after_the_other() -> None:
    model, rows = two(), batch(64)
    held: list[int] = []

    def stream() -> Iterator[Tensor]:
        for start in range(0, 64, 16):
            held.append(start)
            yield rows[start : start + 16]

    whole, streamed = profile(model, rows), profile(model, stream())
    assert held == [0, 16, 32, 48]
    for one, other in zip(whole.sites, streamed.sites, strict=True):
        assert other.count == one.count
        assert other.histogram == one.histogram
        assert other.counts.mean == pytest.approx(one.counts.mean, rel=1e-12)
        assert other.counts.std == pytest.approx(one.counts.std, rel=1e-12)
    loaded = profile(model, DataLoader(rows, batch_size=16))  # type: ignore[arg-type]
    assert loaded.to_dict() == streamed.to_dict()


@pytest.mark.parametrize("family", ["own", "llama"])
def test_parts_together_are_the_whole_to_the_last_digit(family: str) -> None:
    if family == "own":
        model: nn.Module = two()
        batches: list[Any] = [batch(seed=seed) for seed in range(5)]
    else:
        model = FAMILIES[family].build()
        ids = FAMILIES[family].inputs()["input_ids"]
        batches = [{"input_ids": ids.roll(by, 0) * (by + 1) % 64} for by in range(5)]
    whole = profile(model, iter(batches)).to_dict()
    for cut in ([0, 2, 4], [1, 3]), ([4, 1], [3, 0, 2]):
        parts = [profile(model, iter([batches[number] for number in some])) for some in cut]
        assert Profile.together(pickle.loads(pickle.dumps(parts))).to_dict() == whole
    with pytest.raises(PatchError, match="different sites"):
        Profile.together([profile(model, batches[0]), profile(model, batches[0], activations=["relu"])])
    with pytest.raises(PatchError, match="no profiles"):
        Profile.together([])


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    act = nn.Sequential(nn.GELU())
    x = 1e6 + torch.randn(1000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    [found] = profile(act, iter([x[:300], x[300:]])).sites
    assert found.counts.mean == pytest.approx(float(x.mean()), rel=1e-15)
    assert found.counts.std == pytest.approx(float(x.std(correction=0)), rel=1e-9)


def test_numbers_that_are_not_finite_are_counted_apart() -> None:
    x = torch.tensor([[1.0, math.nan, -2.0], [math.inf, 0.5, -math.inf], [0.0, 3.0, -4.0]])
    [found] = profile(nn.Sequential(nn.GELU()), x).sites
    assert (found.count, found.counts.lost) == (6, 3)
    assert found.counts.mean == pytest.approx(-1.5 / 6)
    assert found.counts.greatest is not None
    assert found.counts.greatest.tolist() == [1.0, 3.0, -2.0]
    assert "3 numbers that are not finite were left out" in str(profile(nn.Sequential(nn.GELU()), x))


def test_padding_is_left_out_where_a_mask_tells() -> None:
    model = FAMILIES["bert"].build()
    ids = FAMILIES["bert"].inputs()["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    found = profile(model, {"input_ids": ids, "attention_mask": mask}, include="*intermediate*")
    assert {one.count for one in found.sites} == {(9 + 5) * 48}
    assert {one.count for one in profile(model, {"input_ids": ids}).sites if one.site.activation == "gelu"} == {18 * 48}
    seq2seq = FAMILIES["t5-v1.1"]
    model, given = seq2seq.build(), seq2seq.inputs()
    given["decoder_input_ids"] = given["input_ids"]  # as long as the encoder's
    found = profile(model, given | {"attention_mask": mask})
    assert [one.count for one in found.sites] == [14 * 48] * 2 + [18 * 48] * 2


class Convolving(nn.Module):
    """Channels before time; and a linear layer, whose units come last."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.activation = nn.Conv1d(3, 4, 3), nn.GELU()
        self.head = nn.Sequential(nn.Linear(8, 5), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.activation(self.convolution(x)))
        return y


def test_moments_of_a_sound_are_no_units() -> None:
    found = profile(Convolving().eval(), torch.ones(2, 3, 10)).to_dict()["sites"]
    assert {site["path"]: site["units"] for site in found} == {"activation": None, "head.1": 5}


def test_half_precision_and_its_bounds() -> None:
    model = FAMILIES["gpt2"].build(torch.bfloat16)
    seen: list[Tensor] = []
    handle = model.transformer.h[0].mlp.act.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    found = profile(model, FAMILIES["gpt2"].inputs()).sites[0]
    handle.remove()
    check(found, *seen)


@pytest.mark.parametrize("name", [name for name, one in ACTIVATIONS.items() if one.hidden and not one.learned])
def test_bounds_hold_where_they_say(name: str) -> None:
    activation = ACTIVATIONS[name]
    where = regions(activation, torch.finfo(torch.float32).eps)
    slope = activation.bind(activation.derivative)
    if where.flat is not None:
        assert bool((slope(torch.linspace(-40, where.flat, 9001, dtype=torch.float64)).abs() <= 0.0101).all())
    if where.lobe is not None:
        start = -16.0 if where.flat is None else where.flat
        assert bool((slope(torch.linspace(start + 0.01, where.lobe, 9001, dtype=torch.float64)) < 0).all())
        assert float(slope(torch.tensor(where.lobe + 0.02, dtype=torch.float64))) > 0
    if where.identity is not None:
        x = torch.linspace(where.identity, 40, 9001, dtype=torch.float64)
        assert bool(((activation.bind(activation.reference)(x) - x).abs() <= 6e-8 * x).all())
    assert (where.lobe is not None) == (name in LOBES)


def test_gelu_s_bounds_are_those_of_its_formula() -> None:
    where = regions(ACTIVATIONS["gelu"], torch.finfo(torch.float32).eps)
    assert where.flat == pytest.approx(-3.07, abs=1 / 128)
    assert where.lobe == pytest.approx(-0.7518, abs=1 / 128)
    assert regions(ACTIVATIONS["relu"], 1e-7) == type(where)(0.0, None, 0.0)


def test_what_cannot_be_profiled_is_refused() -> None:
    model = two()
    with pytest.raises(NothingMatchedError):
        profile(model, batch(), include="nothing")
    with pytest.raises(UnknownNameError, match="silu"):
        profile(model, batch(), activations=["silo"])
    with pytest.raises(NoSitesError, match="applies no activation"):
        profile(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(PatchError, match="no batch"):
        profile(model, iter([]))
    with pytest.raises(PatchError, match="got int"):
        profile(3, batch())  # type: ignore[arg-type]
    with patched(model, activation="relu"), pytest.raises(PatchError, match="patched already"):
        profile(model, batch())


@pytest.mark.slow
def test_a_compiled_model_is_refused() -> None:
    model = two()
    with pytest.raises(PatchError, match="is compiled"):
        profile(torch.compile(model), batch())  # type: ignore[arg-type]


def test_a_site_that_is_not_called_or_not_reached_says_so() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare, self.learned = nn.GELU(), nn.SiLU(), nn.PReLU()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu_(self.learned(self.used(x)))

    found = profile(Both(), batch())
    told = {one.site.path.partition(":")[0]: one for one in found.sites}
    assert (told["used"].count, told["spare"].count, told["learned"].count) == (3200, 0, 3200)
    assert told["learned"].moved == {}
    assert told["forward"].count == 0
    assert "writ" in told["forward"].site.reason or "in place" in told["forward"].site.reason
    text = str(found)
    assert "spare: not called" in text
    assert f"{told['forward'].site.path}: {told['forward'].site.reason}" in text


def test_a_copy_of_a_watched_model_is_not_watched_for_long() -> None:
    model = FAMILIES["llama"].build()
    with watching(model) as watched:
        twin = copy.deepcopy(model)
    before = [one.count for one in watched.profile().sites]
    with torch.no_grad():
        FAMILIES["llama"].run(twin)
    assert [one.count for one in watched.profile().sites] == before


def test_it_is_public() -> None:
    assert hf_gelu_patch.profile is profile
