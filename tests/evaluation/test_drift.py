"""Drift against formulas of their own, on tiny models of real classes, and what is planted in them."""

from __future__ import annotations

import copy
import itertools
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import FAMILIES, Family
from scipy.special import log_softmax
from torch import Tensor, nn

from hf_gelu_patch import IMPLEMENTATIONS, Implementation, find_sites, patch, register_implementation, unpatch
from hf_gelu_patch.evaluation.drift.layers import layer_drift
from hf_gelu_patch.evaluation.drift.logits import LogitDrift, against_exact, batch_drift, total_drift
from hf_gelu_patch.evaluation.speed.share import activation_share, amdahl
from hf_gelu_patch.verification import Exact, exact_copy

pytestmark = pytest.mark.slow


def run(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """[examples, positions, classes]."""
    with torch.no_grad():
        output = model(**batch)
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits if logits.dim() == 3 else logits[:, None]


def variant(model: nn.Module, **options: Any) -> nn.Module:
    patched = copy.deepcopy(model)
    patch(patched, **options)
    return patched


def exact_drift(
    model: nn.Module,
    variants: dict[str, nn.Module],
    batch: Any,
    forward: Callable[[Any, Any], Tensor],
    *,
    counts: Tensor | None = None,
    exact: Exact[Tensor] | None = None,
) -> dict[str, LogitDrift]:
    """Of each model against a float64 copy of the first, which is called "before"."""
    exact = exact_copy(model, batch, forward) if exact is None else exact
    if exact.output is None:
        return {}
    with torch.no_grad():
        models = {**variants, "before": model}
        return {name: against_exact(forward(one, batch), exact.output, counts) for name, one in models.items()}


def logits(*shape: int, scale: float = 3.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def divergence(before: Tensor, after: Tensor) -> np.ndarray[Any, Any]:
    """KL at each position, in as many digits as numpy has."""
    p, q = (log_softmax(x.numpy().astype(np.longdouble), axis=-1) for x in (before, after))
    return (np.exp(p) * (p - q)).sum(-1).astype(np.float64)


# -------------------------------------------------------------------------------------------------------------- logits


@pytest.mark.parametrize("change", [1e-6, 1e-3, 0.03, 0.3, 5.0])
@pytest.mark.parametrize("classes", [2, 1000])
def test_logit_drift_is_the_formulas(change: float, classes: int) -> None:
    before = logits(5, 7, classes)
    after = before + change * logits(5, 7, classes, scale=1.0, seed=1)
    found = total_drift(batch_drift(before, after))
    delta = (after - before).abs()
    kl = divergence(before, after)
    assert found.max_abs == pytest.approx(float(delta.max()), rel=1e-9)
    assert found.mean_abs == pytest.approx(float(delta.mean()), rel=1e-9)
    assert found.scale == pytest.approx(float(before.abs().max()))
    assert found.kl_mean == pytest.approx(kl.mean(), rel=2e-3, abs=1e-15)
    assert found.kl_max == pytest.approx(kl.max(), rel=2e-3, abs=1e-15)
    assert found.top1_agreement == float((before.argmax(-1) == after.argmax(-1)).double().mean())
    assert found.positions == 35
    assert (found.own, found.exact) == (None, None)


@pytest.mark.parametrize("change", [0.0, 1e-6, 0.3, math.inf])
def test_features_have_no_softmax(change: float) -> None:
    before = logits(3, 4, 6)
    after = before + change
    with_it, without = batch_drift(before, after), batch_drift(before, after, softmax=False)
    for row, other in zip(with_it, without, strict=True):
        assert other == {name: value for name, value in row.items() if name not in ("kl_sum", "kl_max", "agree")}
    found = total_drift(without)
    assert (found.kl_mean, found.kl_max, found.top1_agreement) == (None, None, None)
    assert found.max_abs == total_drift(with_it).max_abs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_of_less_precision(dtype: torch.dtype) -> None:
    before = logits(3, 4, 500).to(dtype)
    after = (before.double() + 0.02 * logits(3, 4, 500, scale=1.0, seed=1)).to(dtype)
    found = total_drift(batch_drift(before, after))
    kl = divergence(before.double(), after.double())
    assert found.max_abs == pytest.approx(float((after.double() - before.double()).abs().max()), rel=1e-5)
    assert found.kl_mean == pytest.approx(kl.mean(), rel=5e-3)
    assert found.kl_max == pytest.approx(kl.max(), rel=5e-3)


def test_each_example_has_its_own_and_padding_does_not_count() -> None:
    before, after = logits(3, 4, 6).float(), logits(3, 4, 6, seed=1).float()
    counts = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    rows = batch_drift(before, after, counts)
    assert [row["positions"] for row in rows] == [2, 0, 4]
    assert [row["elements"] for row in rows] == [12, 0, 24]
    for row, old, new, count in zip(rows, before, after, counts, strict=True):
        delta = (new[count].double() - old[count].double()).abs()
        kl = divergence(old[count].double(), new[count].double())
        assert row["sum_abs"] == pytest.approx(float(delta.sum()), rel=1e-6)
        assert row["max_abs"] == pytest.approx(float(delta.max()) if len(delta) else 0.0, rel=1e-6)
        assert row["kl_sum"] == pytest.approx(kl.sum(), rel=1e-5)
        assert row["kl_max"] == pytest.approx(kl.max(initial=0), rel=1e-5)
    assert json.loads(json.dumps(rows)) == rows
    together = total_drift(rows)
    flat = total_drift(batch_drift(before[counts][None], after[counts][None]))
    assert together.positions == flat.positions == 6
    for name in ("max_abs", "mean_abs", "scale", "kl_mean", "kl_max", "top1_agreement"):
        assert getattr(together, name) == pytest.approx(getattr(flat, name), rel=1e-12)


def test_identical_logits_have_no_drift() -> None:
    before = logits(2, 3, 5).float()
    for after in (before, before.clone()):
        found = total_drift(batch_drift(before, after))
        assert found == LogitDrift(0.0, 0.0, float(before.abs().max()), 0.0, 0.0, 1.0, 6)


def test_logits_that_are_not_finite() -> None:
    before = logits(1, 3, 5).float()
    before[0, 0, :3] = torch.tensor([-50.0, 2.0, -math.inf])  # a word that is never said, before and after
    after = before.clone()
    after[0, 1, 0] += 0.5
    found = batch_drift(before, after)[0]
    assert found["max_abs"] == pytest.approx(0.5, abs=1e-6)
    assert found["kl_sum"] == pytest.approx(divergence(before[0, 1], after[0, 1]), rel=1e-4)
    assert found["scale"] == 50
    after[0, 2, 4] = math.nan
    found = batch_drift(before, after)[0]
    assert (found["max_abs"], found["sum_abs"], found["kl_max"]) == (math.inf, math.inf, math.inf)
    assert math.isfinite(found["scale"])


@pytest.mark.parametrize("mask", [torch.finfo(torch.float32).min, -1e4, 1e30, -math.inf, math.nan])
def test_no_mask_sets_the_scale(mask: float) -> None:
    before = logits(3, 4, 60).float()
    hidden = torch.rand(before.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    small = before + 1e-6 * logits(3, 4, 60, seed=1).float()
    large = before + 1e-2 * logits(3, 4, 60, seed=1).float()
    found = [total_drift(batch_drift(before.masked_fill(hidden, mask), x.masked_fill(hidden, mask)))
             for x in (small, large)]  # fmt: skip
    assert found[0].scale == found[1].scale < 20
    assert found[0].relative < 1e-5
    assert 1e-3 < found[1].relative < 0.1


def test_the_least_number_is_another_in_float64() -> None:
    class Least(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 40)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return y.masked_fill(torch.arange(40) % 2 == 0, torch.finfo(y.dtype).min)

    torch.manual_seed(0)
    model, x = Least(), torch.randn(3, 5, 8)
    found = exact_drift(model, {"twin": model}, x, lambda model, x: model(x))
    assert 0 < found["before"].max_abs == found["twin"].max_abs < 1e-5
    assert found["before"].scale < 10


def test_shapes_that_differ_and_nothing_at_all() -> None:
    with pytest.raises(ValueError, match="before and after alike"):
        batch_drift(logits(2, 3, 4), logits(2, 3, 5))
    with pytest.raises(ValueError, match="examples, positions, classes"):
        batch_drift(logits(2, 3), logits(2, 3))
    nothing = total_drift(batch_drift(logits(2, 3, 4), logits(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)))
    assert nothing.positions == 0
    assert math.isnan(nothing.kl_mean)
    assert total_drift([]).positions == 0


def test_large_logits_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = logits(4, 7, 50), logits(4, 7, 50, seed=1)
    counts = torch.ones(4, 7, dtype=torch.bool)
    counts[:, -1] = (
        False  # fetched one by one; without the last position, in views of each example; copied, in one view
    )
    whole = batch_drift(before, after, counts)
    monkeypatch.setattr("hf_gelu_patch.evaluation.drift.logits._AT_A_TIME", 220)  # four positions
    cut = before[:, :-1], after[:, :-1]
    assert not cut[0].is_contiguous()
    for found in (batch_drift(before, after, counts), batch_drift(*cut), batch_drift(*(x.clone() for x in cut))):
        assert found == [pytest.approx(row, rel=1e-12) for row in whole]


# -------------------------------------------------------------------------------------------------------------- layers

LAYERS = {
    "bert": ["bert.encoder.layer.0", "bert.encoder.layer.1"],
    "gpt2": ["transformer.h.0", "transformer.h.1"],
    "t5-v1.1": ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"],
    "llama": ["model.layers.0", "model.layers.1"],
}


@pytest.mark.parametrize("name", LAYERS)
def test_drift_by_layer(name: str) -> None:
    family = FAMILIES[name]
    model, batch = family.build(), family.inputs()
    found = layer_drift(
        model,
        {"same": variant(model, implementation="aten"), "relu": variant(model, activation="relu")},
        batch,
        run,
    )
    assert found.keys() == {"same", "relu"}
    for layers in found.values():
        assert [layer.path for layer in layers] == [*LAYERS[name], "logits"]
    exact = run(copy.deepcopy(model).double(), batch)
    plain, swapped = run(model, batch), run(variant(model, activation="relu"), batch)

    def rms(x: Tensor) -> float:
        return float(x.double().square().mean().sqrt())

    last = found["relu"][-1]
    assert last.change == pytest.approx(rms(swapped - plain) / rms(plain), rel=1e-6)
    assert last.own == pytest.approx(rms(plain - exact) / rms(exact), rel=1e-6)
    assert last.exact == pytest.approx(rms(swapped - exact) / rms(exact), rel=1e-6)
    for layer, same in zip(found["relu"], found["same"], strict=True):
        assert layer.change > 1e-3
        assert same.change < 1e-5
        assert layer.own is not None
        assert 0 < layer.own < 1e-5
        assert layer.own == same.own
        assert layer.exact == pytest.approx(layer.change, rel=1e-2)


def test_an_identical_patch_moves_no_layer() -> None:
    model = FAMILIES["llama"].build()
    found = layer_drift(
        model, {"aten": variant(model, implementation="aten"), "itself": model}, FAMILIES["llama"].inputs(), run
    )
    for layers in found.values():
        assert [layer.change for layer in layers] == [0.0, 0.0, 0.0]
        assert [layer.exact for layer in layers] == [layer.own for layer in layers]


def test_drift_begins_at_the_layer_that_was_patched() -> None:
    model = FAMILIES["gpt2"].build()
    swapped = variant(model, activation="relu", include="transformer.h.1.*")
    changes = [layer.change for layer in layer_drift(model, {"x": swapped}, FAMILIES["gpt2"].inputs(), run)["x"]]
    assert changes[0] == 0.0
    assert changes[1] > 0
    assert changes[2] > 0


def test_a_layer_that_is_called_several_times_is_told_apart() -> None:
    config = transformers.AlbertConfig(
        vocab_size=64,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
    )
    torch.manual_seed(0)
    model = transformers.AlbertForMaskedLM(config).eval()
    found = layer_drift(model, {"relu": variant(model, activation="relu")}, FAMILIES["bert"].inputs(), run)["relu"]
    assert len(found) == 4
    assert [layer.path.rpartition("[")[2] for layer in found[:3]] == ["0]", "1]", "2]"]
    assert found[0].change < found[1].change < found[2].change


class Adding(nn.Module):
    """Writes over its input, which is the output of the layer before."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.linear(x))


def test_a_layer_may_write_over_the_output_of_the_one_before() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"layers": nn.ModuleList([Adding(), Adding()])})

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        x = x.clone()
        for layer in model["layers"]:  # type: ignore[index]
            x = layer(x)
        return x[:, None]

    found = layer_drift(model, {"itself": model}, torch.ones(2, 4), forward)["itself"]
    assert [(layer.path, layer.change) for layer in found] == [("layers.0", 0.0), ("layers.1", 0.0), ("logits", 0.0)]
    assert all(layer.own is not None and layer.own < 1e-6 for layer in found)


def test_lists_of_bare_modules_are_no_layers() -> None:
    """A hook on a linear layer would keep the activation behind it from being fused with it."""

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        for part in model:  # type: ignore[attr-defined]
            x = part(x)
        return x[:, None]

    model = nn.ModuleList([nn.Linear(4, 4), nn.GELU()])
    found = layer_drift(model, {"itself": model}, torch.ones(2, 4), forward)["itself"]
    assert [layer.path for layer in found] == ["logits"]


def test_hooks_are_taken_off_again() -> None:
    model, batch = FAMILIES["llama"].build(), FAMILIES["llama"].inputs()

    def broken(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        run(model, batch)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        layer_drift(model, {}, batch, broken)
    layer_drift(model, {"itself": model}, batch, run)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_hooks_keep_no_patch_from_fusing() -> None:
    fused = []

    def product(gate: Tensor, up: Tensor) -> Tensor:
        fused.append(gate.shape)
        return nn.functional.silu(gate) * up

    register_implementation(Implementation("counted", {"silu": nn.functional.silu}, gated={"silu": product}))
    try:
        model = FAMILIES["llama"].build()
        counted = variant(model, implementation="counted")
    finally:
        del IMPLEMENTATIONS["counted"]
    found = layer_drift(model, {"counted": counted}, FAMILIES["llama"].inputs(), run)["counted"]
    assert len(fused) == 4  # two layers, against the unpatched model and against float64
    assert [layer.change for layer in found] == [0.0, 0.0, 0.0]


# ------------------------------------------------------------------------------------------------------------- float64


def test_logits_against_float64() -> None:
    family = FAMILIES["gpt2"]
    model, batch = family.build(), family.inputs()
    variants = {"same": variant(model, implementation="aten"), "relu": variant(model, activation="relu")}
    found = exact_drift(model, variants, batch, run)
    assert found.keys() == {"before", "same", "relu"}
    exact = family.exact(model)
    assert found["before"].max_abs == pytest.approx(float((run(model, batch) - exact).abs().max()), rel=1e-6)
    assert 0 < found["before"].max_abs < 1e-4
    assert found["same"].max_abs < 10 * found["before"].max_abs
    assert found["relu"].max_abs > 1e-2
    counts = torch.zeros(2, 9, dtype=torch.bool)
    counts[0, :4] = True
    some = exact_drift(model, variants, batch, run, counts=counts)
    assert some["before"].positions == 4
    assert replace(total_drift([]), own=found["before"]).own == found["before"]


def test_one_copy_serves_both(monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES["bert"]
    model, batch = family.build(), family.inputs()
    exact = exact_copy(model, batch, run)
    assert exact.reason == ""
    assert exact.model is not None
    assert next(exact.model.parameters()).dtype == torch.float64
    assert next(model.parameters()).dtype == torch.float32
    variants = {"relu": variant(model, activation="relu")}
    layers, drift = layer_drift(model, variants, batch, run), exact_drift(model, variants, batch, run)
    monkeypatch.setattr("hf_gelu_patch.evaluation.drift.layers.exact_copy", None)  # not to be made once more
    monkeypatch.setattr(sys.modules[__name__], "exact_copy", None)
    assert layer_drift(model, variants, batch, run, exact=exact) == layers
    assert exact_drift(model, variants, batch, run, exact=exact) == drift


def test_without_memory_there_is_no_copy_and_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    family = FAMILIES["bert"]
    model, batch = family.build(), family.inputs()
    monkeypatch.setattr("hf_gelu_patch.verification.copies.free_memory", lambda _: 1000)
    exact = exact_copy(model, batch, run)
    assert (exact.model, exact.output) == (None, None)
    assert "GiB" in exact.reason
    assert exact_drift(model, {}, batch, run) == {}
    [*_, last] = layer_drift(model, {"relu": variant(model, activation="relu")}, batch, run)["relu"]
    assert last.change > 0
    assert (last.own, last.exact) == (None, None)


def test_a_model_that_cannot_run_in_float64() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.GELU()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            if x.dtype == torch.float64:
                raise TypeError("float32 only\nand nothing else")
            return self.act(self.linear(x))

    def plain(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch)[:, None]

    model, batch = Half(), torch.ones(2, 4)
    assert exact_copy(model, batch, plain).reason == "the model does not run in float64: TypeError: float32 only"
    [last] = layer_drift(model, {"relu": variant(model, activation="relu")}, batch, plain)["relu"]
    assert (last.path, last.own) == ("logits", None)


def test_every_float_of_a_batch_is_doubled() -> None:
    @dataclass(frozen=True)
    class Batch:
        ids: tuple[int, ...]
        inputs: dict[str, Tensor]
        others: list[Tensor]

    seen = []

    def forward(model: nn.Module, batch: Batch) -> Tensor:
        seen.append((batch.ids, batch.inputs["x"].dtype, batch.others[0].dtype))
        return model(batch.inputs["x"])[:, None]

    batch = Batch((1, 2), {"x": torch.ones(2, 4)}, [torch.ones(2, dtype=torch.long)])
    exact = exact_copy(nn.Linear(4, 4), batch, forward)
    assert exact.model is not None
    assert seen == [((1, 2), torch.float64, torch.int64)]


# --------------------------------------------------------------------------------------------------------------- share


class Step(nn.Module):
    """Takes 3 s by the clock of the test, and what its activation takes."""

    def __init__(self, act: nn.Module, clock: list[float]) -> None:
        super().__init__()
        self.act = act
        self.linear = nn.Linear(2, 2)
        self.clock = clock

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        self.clock[0] += 3
        return self.act(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> Step:
        return Step(copy.deepcopy(self.act, memo), self.clock)


def test_the_share_is_what_the_sites_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GELU that takes 1 s of 7: the module's own, not the plainest form of its function."""
    clock = [0.0]
    calls = itertools.count()

    gelu = nn.functional.gelu

    def slow(x: Tensor, approximate: str) -> Tensor:
        clock[0] += 1 if next(calls) >= 3 else 100  # the first round warms up
        return gelu(x, approximate=approximate)

    def share(model: nn.Module) -> float:
        return activation_share(model, [torch.ones(2, 2)] * 3, lambda model, x: model(x), clock=lambda: clock[0])

    monkeypatch.setattr(nn.functional, "gelu", slow)  # which is what the module's forward calls
    model = nn.Sequential(Step(nn.GELU(), clock), Step(nn.Identity(), clock))
    assert share(model) == pytest.approx(1 / 7)
    patch(model, activation="relu")
    assert share(model) == pytest.approx(1 / 7)  # of the model unpatched
    unpatch(model)  # raises if that had taken the patch off
    assert share(nn.Sequential(Step(nn.Identity(), clock))) == 0.0


@pytest.mark.parametrize("family", [FAMILIES[name] for name in ("bert", "llama", "t5-v1.1")], ids=lambda f: f.name)
def test_every_family_has_a_share_and_stays_as_it_was(family: Family) -> None:
    model, batch = family.build(), family.inputs()
    before = run(model, batch)
    share = activation_share(model, [batch], run)
    assert 0 < share < 0.6
    assert find_sites(model).sites
    assert torch.equal(run(model, batch), before)
    assert set(IMPLEMENTATIONS) == {"eager", "aten", "cpp", "epilogue", "triton", "triton_rounded"}


def test_what_is_timed_computes_what_the_model_computes() -> None:
    """The timed copy's outputs are the model's, bit for bit, at each kind of site."""
    for name in ("gpt2", "llama", "bloom", "t5-v1.1", "opt"):
        family = FAMILIES[name]
        outputs: list[Tensor] = []

        def keep(model: nn.Module, batch: dict[str, Tensor], outputs: list[Tensor] = outputs) -> None:
            outputs.append(run(model, batch))

        model = family.build()
        activation_share(model, [family.inputs()], keep)
        assert all(torch.equal(output, run(model, family.inputs())) for output in outputs), name


def test_amdahls_bound() -> None:
    assert amdahl(0.0) == 1.0
    assert amdahl(0.2) == pytest.approx(1.25)
    assert amdahl(1.0) == math.inf
