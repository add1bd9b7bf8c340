"""``patch(model, recompute=True)``: the gradients are the model's own, and less is kept for them."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import FAMILIES, of_implementation
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hf_gelu_patch import (
    GradientRefusedError,
    Implementation,
    PatchError,
    VerificationError,
    find_sites,
    patch,
    patched,
    unpatch,
)
from hf_gelu_patch.activations import ACTIVATIONS
from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS, Least
from hf_gelu_patch.recomputing import held
from hf_gelu_patch.recomputing import kept as kept_of
from hf_gelu_patch.recomputing.functions import several_ops
from hf_gelu_patch.recomputing.graph import drop
from hf_gelu_patch.recomputing.hooks import Recompute


def kept(output: object, model: nn.Module) -> int:
    """Bytes that backward keeps, each storage once, weights left out."""
    weights = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    found = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held(output)}
    return sum(size for place, size in found.items() if place not in weights)


def gradients(run: Callable[[], Tensor], model: nn.Module) -> list[Tensor]:
    """Of a weighted sum of what comes out, with respect to every parameter that has one."""
    torch.manual_seed(3)
    output = run()
    weights = torch.linspace(-1.0, 1.0, output.numel(), dtype=torch.float64).view(output.shape).to(output.dtype)
    wanted = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad((output * weights).sum(), wanted, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, wanted, strict=True)]


def hooks_of(model: nn.Module) -> list[Recompute]:
    return [hook for m in model.modules() for hook in m._forward_hooks.values() if isinstance(hook, Recompute)]


def off(found: list[Tensor], exact: list[Tensor]) -> float:
    """How far gradients are from others, relative to the largest of each."""
    return max(
        float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in zip(found, exact, strict=True)
    )


def _phi3() -> transformers.PreTrainedModel:
    config = transformers.Phi3Config(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, num_hidden_layers=2,
        vocab_size=64, pad_token_id=2, bos_token_id=0, eos_token_id=1, max_position_embeddings=32,
        original_max_position_embeddings=32,
    )  # fmt: skip
    return transformers.Phi3ForCausalLM(config)


def _mixtral() -> transformers.PreTrainedModel:
    config = transformers.MixtralConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, num_hidden_layers=2,
        vocab_size=64, num_local_experts=4, bos_token_id=0, eos_token_id=1, pad_token_id=2, head_dim=8,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config)


class Sequence(nn.Module):
    """As timm builds its models: a chain of layers, 2-D in."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, 48), nn.GELU(), nn.Dropout(0.2), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


IDS = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(1))
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
    **{
        name: (FAMILIES[name].build, FAMILIES[name].run)
        for name in ("gpt2", "bert", "t5-v1.1", "llama", "vit", "gemma", "clip", "opt", "bloom")
    },
    "phi3": (_phi3, lambda model: model(input_ids=IDS)[0]),
    "mixtral": (_mixtral, lambda model: model(input_ids=IDS)[0]),
    "sequential": (Sequence, lambda model: model(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)))),
}
NOTHING = {"opt"}  # ReLU: backward takes the result itself


def made(name: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    build, run = MODELS[name]
    torch.manual_seed(0)
    return build(), run


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["plain", "dropout", "autocast"])
def test_gradients_are_those_of_the_model_itself_and_less_is_kept(name: str, mode: str) -> None:
    model, forward = made(name)
    model.train(mode != "plain")

    def run(model: nn.Module) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
            return forward(model).float()

    torch.manual_seed(3)
    before = kept(run(model), model)
    own = gradients(lambda: run(model), model)
    with patched(model, implementation="eager" if name not in NOTHING else "aten", recompute=True) as report:
        torch.manual_seed(3)
        after = kept(run(model), model)
        found = gradients(lambda: run(model), model)
    assert all(site.recompute for site in report.changed)
    if name in NOTHING:
        assert after == before
    else:
        assert after < before
    if all(site.equivalence == "identical" for site in report.changed):
        assert all(torch.equal(a, b) for a, b in zip(found, own, strict=True))
    else:
        assert name == "bloom"  # whose own function has a backward of its own
        assert off(found, own) < (0.1 if mode == "autocast" else 1e-5)
    assert not hooks_of(model)


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
@pytest.mark.parametrize(
    "implementation", [of_implementation(one) for one in ("aten", "cpp", "epilogue", "triton", "triton_rounded")]
)
def test_each_implementation_keeps_less_and_computes_the_same(name: str, implementation: str) -> None:
    model, run = made(name)
    with patched(model, implementation=implementation, exclude="BertPooler" if name == "bert" else None):
        before, own = kept(run(model), model), gradients(lambda: run(model), model)
    with patched(model, implementation=implementation, recompute=True):
        after, found = kept(run(model), model), gradients(lambda: run(model), model)
    assert after < before
    assert off(found, [g.double() for g in own]) < 1e-6


# ------------------------------------------------------------------------------------------------- small modules


class Gated(nn.Module):
    """As Llama's: all in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


class Wide(nn.Module):
    """As BERT's: the activation's result is what the module gives."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.dense, self.act = nn.Linear(8, 12), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.dense(x))


class Quick(nn.Module):
    """As transformers writes it: several ops."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Across(nn.Module):
    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.wide, self.between, self.narrow = Wide(act or nn.GELU()), nn.Identity(), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.between(self.wide(x)))


SMALL: dict[str, Callable[[], nn.Module]] = {
    "gated": Gated,
    "across": Across,
    "several ops": lambda: Across(transformers.activations.QuickGELUActivation()),
}


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(SMALL[request.param](), SMALL[request.param]())


def rows(*shape: int) -> Tensor:
    return torch.randn(*(shape or (3, 5)), 8, generator=torch.Generator().manual_seed(5)).requires_grad_()


def dropped(model: nn.Module, x: Tensor, implementation: str = "eager") -> int:
    """How many bytes fewer are kept than by the model itself."""
    with torch.no_grad():
        model(x)
    before = kept(model(x), model)
    with patched(model, implementation=implementation, recompute=True):
        return before - kept(model(x), model)


def test_a_site_keeps_its_inputs_alone() -> None:
    size = 3 * 5 * 12 * 4
    assert dropped(Gated(), rows()) == 2 * size  # act(gate), the product
    assert dropped(Gated(), rows(), "aten") == 2 * size  # which writes the product over act(gate)
    assert dropped(Across(), rows()) == size  # the result
    quick = Across(transformers.activations.QuickGELUActivation())
    assert dropped(quick, rows()) == 2 * size + 8  # σ(1.702·x), the result, and the number


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 3, 5), (0,)])
def test_any_number_of_dimensions(small: nn.Module, shape: tuple[int, ...]) -> None:
    x = rows(*shape)
    own = gradients(lambda: small(x), small)
    with patched(small, implementation="eager", recompute=True):
        found = gradients(lambda: small(x), small)
    assert all(map(torch.equal, found, own))


def test_a_graph_is_gone_through_twice_and_differentiated_twice(small: nn.Module) -> None:
    x = rows()
    weights = [x, *small.parameters()]

    def twice() -> list[Tensor]:
        output = small(x)
        first = torch.autograd.grad(output.square().sum(), weights, create_graph=True)
        again = torch.autograd.grad(output.square().sum(), weights, retain_graph=True)
        assert off([g.detach() for g in first], [g.double() for g in again]) < 1e-6
        return [*again, *torch.autograd.grad(sum(g.square().sum() for g in first), weights, allow_unused=True)]

    own = [torch.zeros(()) if g is None else g for g in twice()]
    with patched(small, implementation="eager", recompute=True):
        found = [torch.zeros(()) if g is None else g for g in twice()]
    assert off(found, [g.double() for g in own]) < 1e-5


def test_torch_func_goes_through_the_models_own_ops(small: nn.Module) -> None:
    x = rows().detach()

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(small, weights, (x,)).square().sum()

    weights = {name: p.detach() for name, p in small.named_parameters()}
    own = torch.func.grad(loss)(weights)
    with patched(small, implementation="eager", recompute=True):
        found = torch.func.grad(loss)(weights)
    assert all(torch.equal(found[name], own[name]) for name in weights)


def test_gradients_in_batches(small: nn.Module) -> None:
    x = rows()
    batch = torch.eye(8).unsqueeze(1).unsqueeze(1).expand(8, 3, 5, 8)

    def batched() -> tuple[Tensor, ...]:
        return torch.autograd.grad(small(x), list(small.parameters()), batch, is_grads_batched=True)

    own = batched()
    with patched(small, implementation="eager", recompute=True):
        found = batched()
    assert off(list(found), [g.double() for g in own]) < 1e-5


@pytest.mark.parametrize("trained", ["narrow", "wide", "none"])
def test_partly_frozen(trained: str) -> None:
    model, x = Across(), rows()
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith(trained))
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    own = torch.autograd.grad(model(x).square().sum(), wanted)
    with patched(model, implementation="eager", recompute=True):
        found = torch.autograd.grad(model(x).square().sum(), wanted)
    assert all(map(torch.equal, found, own))


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_a_checkpoint_nothing_changes(small: nn.Module, reentrant: bool) -> None:
    x = rows()

    def found() -> list[Tensor]:
        small.zero_grad()
        y = x
        for layer in small:
            y = checkpoint(layer, y, use_reentrant=reentrant)
        y.square().sum().backward()
        return [p.grad for p in small.parameters() if p.grad is not None]

    own = [g.clone() for g in found()]
    with patched(small, implementation="eager", recompute=True):
        assert all(map(torch.equal, found(), own))


@pytest.mark.parametrize("around", ["both", "wide", "narrow"])
@pytest.mark.parametrize("activation", [nn.GELU, transformers.activations.QuickGELUActivation])
def test_a_checkpoint_inside_keeps_its_own(around: str, activation: type[nn.Module]) -> None:
    class Inside(Across):
        def forward(self, x: Tensor) -> Tensor:
            if around == "both":
                return checkpoint(lambda x: self.narrow(self.wide(x)), x, use_reentrant=False)
            if around == "narrow":
                return checkpoint(self.narrow, self.wide(x), use_reentrant=False)
            return self.narrow(checkpoint(self.wide, x, use_reentrant=False))

    model, x = Inside(activation()), rows()
    own = gradients(lambda: model(x), model)
    with patched(model, implementation="eager", recompute=True):
        assert all(map(torch.equal, gradients(lambda: model(x), model), own))


def test_who_puts_saved_tensors_away_gets_them_all(small: nn.Module) -> None:
    x, seen = rows(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
        own = gradients(lambda: small(x), small)
    count = len(seen)
    with (
        patched(small, implementation="eager", recompute=True),
        torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t),
    ):
        found = gradients(lambda: small(x), small)
    assert len(seen) > count
    assert all(map(torch.equal, found, own))


@pytest.mark.parametrize("tiles", [None, 2])
@pytest.mark.parametrize("backward", [False, True])
def test_nothing_refers_to_itself(small: nn.Module, tiles: int | None, backward: bool) -> None:
    with patched(small, implementation="eager", recompute=True, tiles=tiles):
        small(rows()).sum().backward()
        gc.collect()
        gc.disable()
        try:
            before, x = _tensors_there(), rows()
            output = small(x)
            if backward:
                output.sum().backward()
            del output
            assert _tensors_there() - before == {id(x)}
        finally:
            gc.enable()


def _tensors_there() -> set[int]:
    return {id(one) for one in gc.get_objects() if isinstance(one, Tensor)}


# ------------------------------------------------------------------------------------------- what is written over


def test_an_input_that_was_written_over_is_refused(small: nn.Module) -> None:
    inner = small[0].gate if isinstance(small[0], Gated) else small[0].wide.dense
    with patched(small, implementation="eager", recompute=True):
        given: list[Tensor] = []
        handle = inner.register_forward_hook(lambda _, __, y: given.append(y))
        output = small(rows())
        handle.remove()
        with torch.no_grad():
            given[0].add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


class Written(nn.Module):
    """Writes over an activation's result so that autograd does not see it."""

    def forward(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            y[..., 0] = 0.0
        return y


def test_a_result_that_was_written_over_before_it_was_kept_stays(small: nn.Module) -> None:
    if isinstance(small[0], Gated):
        pytest.skip("nothing stands between")
    for layer in small:
        layer.between = Written()
    x = rows()
    own = gradients(lambda: small(x), small)
    with patched(small, implementation="eager", recompute=True):
        assert all(map(torch.equal, gradients(lambda: small(x), small), own))


def test_a_result_that_is_written_over_afterwards_is_the_original_again() -> None:
    model, x = Across(), rows()
    own = gradients(lambda: model(x), model)
    with patched(model, implementation="eager", recompute=True):
        given: list[Tensor] = []
        model.between.register_forward_hook(lambda _, __, y: given.append(y))

        def run() -> Tensor:
            output = model(x)
            with torch.no_grad():
                given[-1].zero_()
            return output

        assert all(map(torch.equal, gradients(run, model), own))


# -------------------------------------------------------------------------------------------- what stands between


class Fast(nn.Module):
    """Dropout as a GPU computes it."""

    def forward(self, y: Tensor) -> Tensor:
        return torch.ops.aten.native_dropout(y, 0.3, True)[0]


class Scaled(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return (0.5 * y.double()).flatten(0, 1).unsqueeze(0).float()


BETWEEN = {"dropout": lambda: nn.Dropout(0.3), "a GPU's dropout": Fast, "casts and views": Scaled}


@pytest.mark.parametrize("between", BETWEEN)
def test_what_stands_between_is_repeated(between: str) -> None:
    model, x = Across(), rows()
    model.between = BETWEEN[between]()
    before, own = kept(model(x), model), gradients(lambda: model(x), model)
    with patched(model, implementation="eager", recompute=True):
        after, found = kept(model(x), model), gradients(lambda: model(x), model)
    assert after == before - 3 * 5 * 12 * 4
    assert all(map(torch.equal, found, own))


@pytest.mark.parametrize("between", [nn.Dropout(0.3), Fast(), Scaled()], ids=BETWEEN)
@pytest.mark.parametrize("implementation", [of_implementation(one) for one in ("eager", "aten", "cpp", "triton")])
@pytest.mark.parametrize("activation", [nn.GELU, Quick, nn.SiLU])
def test_a_result_that_was_written_over_before_it_was_copied_stays(
    between: nn.Module, implementation: str, activation: type[nn.Module]
) -> None:
    model, x = Across(activation()), rows()
    model.between = nn.Sequential(Written(), between)
    own = gradients(lambda: model(x), model)
    with patched(model, implementation=implementation, recompute=True):
        assert off(gradients(lambda: model(x), model), [g.double() for g in own]) < 1e-5


def test_an_operation_with_an_input_of_its_own_is_not_repeated() -> None:
    class Shifted(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return y.roll(1, -1)

    model, x = Across(), rows()
    model.between = Shifted()
    own, before = gradients(lambda: model(x), model), kept(model(x), model)
    with patched(model, implementation="eager", recompute=True):
        assert kept(model(x), model) == before
        assert all(map(torch.equal, gradients(lambda: model(x), model), own))


# --------------------------------------------------------------------------------------------- hooks, and undoing


def test_undoing_leaves_no_hook(small: nn.Module) -> None:
    states = [dict(vars(m)) for m in small.modules()]
    handle = small.register_forward_hook(lambda *_: None)
    report = patch(small, implementation="eager", recompute=True)
    assert report.recompute
    assert hooks_of(small)
    handle.remove()
    unpatch(small)
    assert [dict(vars(m)) for m in small.modules()] == states
    assert not any(m._forward_hooks or m._forward_hooks_with_kwargs for m in small.modules())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_drops_as_well_and_is_undone_by_itself(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, x = made("bert")[0], IDS
    patch(model, implementation="eager", recompute=True)
    twin = copied(model)
    assert kept(twin(x)[0], twin) == kept(model(x)[0], model)
    unpatch(twin)
    assert not hooks_of(twin)
    assert hooks_of(model)
    assert kept(twin(x)[0], twin) > kept(model(x)[0], model)


def test_a_patch_that_fails_leaves_no_hook() -> None:
    model = Across()
    with pytest.raises(VerificationError):
        patch(model, activation="relu", recompute=True, verify=rows())
    assert not hooks_of(model)


def test_without_gradients_nothing_is_done(small: nn.Module) -> None:
    with torch.no_grad():
        own = small(rows())
    with patched(small, implementation="eager", recompute=True), torch.no_grad():
        assert torch.equal(small(rows()), own)


def test_the_report_says_what_is_kept_and_where_nothing_is_gained() -> None:
    told = {site.activation: site.recompute for site in find_sites(made("opt")[0], recompute=True).sites}
    assert set(told) == {"relu"}
    assert "gains nothing" in told["relu"]
    report = find_sites(made("llama")[0], recompute=True)
    assert all("gate and up are kept" in site.recompute for site in report.sites)
    assert "recompute: gate and up are kept" in str(report)
    assert all(not site.recompute for site in find_sites(made("llama")[0]).sites)
    pooler = [site for site in find_sites(made("bert")[0], recompute=True).sites if site.owner == "BertPooler"]
    assert all("gains nothing" in site.recompute for site in pooler)


def test_a_saved_plan_recomputes_again(tmp_path: Any) -> None:
    model, run = made("bert")
    patch(model, recompute=True).save(tmp_path / "plan.json")
    less = kept(run(model), model)
    unpatch(model)
    patch(model, plan=tmp_path / "plan.json")
    assert kept(run(model), model) == less
    unpatch(model)
    with pytest.raises(PatchError, match="recompute="):
        patch(model, plan=tmp_path / "plan.json", recompute=True)


def test_what_has_no_backward_is_refused_as_ever() -> None:
    implementation = Implementation("without", {"gelu": F.gelu}, backward=False)
    model = Across()
    with patched(model, implementation=implementation, recompute=True):
        with pytest.raises(GradientRefusedError):
            model(rows())
        with torch.no_grad():
            model(rows())


def test_lora_on_frozen_weights() -> None:
    import peft

    model, run = made("llama")
    config = peft.LoraConfig(r=2, target_modules=["gate_proj", "up_proj", "down_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora = peft.get_peft_model(model, config)
    before, own = kept(run(lora), lora), gradients(lambda: run(lora), lora)
    with patched(lora, implementation="eager", recompute=True):
        after, found = kept(run(lora), lora), gradients(lambda: run(lora), lora)
    assert after < before
    assert all(map(torch.equal, found, own))


@pytest.mark.parametrize("first", [True, False])
def test_beside_accelerates_hooks(first: bool) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    model, x = Across(), rows()
    before, own = kept(model(x), model), gradients(lambda: model(x), model)
    for step in ("patch", "hook") if first else ("hook", "patch"):
        if step == "patch":
            patch(model, implementation="eager", recompute=True)
        else:
            for module in (model, model.wide, model.narrow):
                add_hook_to_module(module, ModelHook())
    assert kept(model(x), model) < before
    assert all(map(torch.equal, gradients(lambda: model(x), model), own))
    for module in (model, model.wide, model.narrow):
        remove_hook_from_module(module)
    unpatch(model)
    assert not hooks_of(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
def test_compiled_it_leaves_all_to_inductor(name: str) -> None:
    model, run = made(name)
    own = gradients(lambda: run(model), model)
    with patched(model, implementation="eager", recompute=True):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        found = gradients(lambda: run(compiled), model)
    torch._dynamo.reset()
    assert off(found, [g.double() for g in own]) < 1e-5


# --------------------------------------------------------------------------------------------------- the functions


def test_what_autocast_does_inside_is_done_again() -> None:
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))

    def swish(x: Tensor) -> Tensor:
        return x * F.linear(x, weight).sigmoid()

    x, narrow = rows(), nn.Linear(8, 2)
    found = []
    for function in (swish, partial(several_ops, swish)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = function(x)
            output = narrow(y)
        if function is not swish:
            drop([output], [x])
        found.append(torch.autograd.grad(output.float().sum(), [x, narrow.weight]))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("training", [None, 16, 10_000])
def test_where_few_numbers_are_computed_by_the_models_own_ops_no_more_is_kept(training: int | None) -> None:
    record = ACTIVATIONS["quick_gelu"]
    fused = IMPLEMENTATIONS["aten"].build(record, _own_quick_gelu, Least(0, training))
    assert fused is not None
    made = kept_of(fused).fused
    x, linear = rows(), nn.Linear(8, 8)
    few = training is None or x.numel() < training
    assert made.gated is not None
    assert made.linear is not None
    for y, own in (
        (made(x), _own_quick_gelu(x) if few else record.eager(x)),
        (made.gated(x, x), (_own_quick_gelu(x) if few else record.eager(x)) * x),
        (made.linear(linear, x), (_own_quick_gelu if few else record.eager)(linear(x))),
    ):
        assert torch.equal(y, own)
        assert len({t.data_ptr() for t in held(y)} - {t.data_ptr() for t in (*linear.parameters(), x)}) <= 1


def _own_quick_gelu(x: Tensor) -> Tensor:
    return x / (1.0 + torch.exp(-1.702 * x))


def test_of_a_function_whose_backward_takes_the_result_nothing_is_dropped() -> None:
    fused = IMPLEMENTATIONS["eager"].build(ACTIVATIONS["tanh"])
    assert fused is not None
    made = kept_of(fused)
    assert made.of_activation == "result"
    x, narrow = rows(), nn.Linear(8, 2)
    own = torch.autograd.grad(narrow(x.tanh()).sum(), [x, narrow.weight])
    output = narrow(made.fused(x))
    before = kept(output, narrow)
    drop([output], [x])
    assert kept(output, narrow) == before
    assert all(map(torch.equal, torch.autograd.grad(output.sum(), [x, narrow.weight]), own))
