"""Methods that treat each token by itself, run in tiles: which those are, and that nothing but rounding changes."""

from __future__ import annotations

import copy
import linecache
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from conftest import _DECODER, _TOKENS, FAMILIES, Family, _ids
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from test_models import same_state, state
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from hf_gelu_patch import NothingPatchedWarning, PatchError, explain, find_sites, patch, patched, unpatch
from hf_gelu_patch.tiling import running
from hf_gelu_patch.tiling.judging import judge

_T = transformers
MORE = (
    Family("phi3", "silu", lambda: _T.Phi3Config(**_DECODER, **_TOKENS), "Phi3ForCausalLM", _ids, 2),
    Family("gpt-neox", "gelu", lambda: _T.GPTNeoXConfig(**_DECODER, **_TOKENS), "GPTNeoXForCausalLM", _ids, 2),
)
TILED = {**{name: FAMILIES[name] for name in FAMILIES if name != "opt"}, **{one.name: one for one in MORE}}
if not hasattr(_T.models.vit.modeling_vit, "ViTMLP"):
    del TILED["vit"]  # transformers 4.57 writes its feed-forward into the layer's forward
METHODS = {
    "bert": "BertLayer.feed_forward_chunk",
    "gpt2": "GPT2MLP.forward",
    "t5-v1.0": "T5LayerFF.forward",
    "t5-v1.1": "T5LayerFF.forward",
    "vit": "ViTMLP.forward",
    "llama": "LlamaMLP.forward",
    "mistral": "MistralMLP.forward",
    "gemma": "GemmaMLP.forward",
    "clip": "CLIPMLP.forward",
    "bloom": "BloomMLP.forward",
    "phi3": "Phi3MLP.forward",
    "gpt-neox": "GPTNeoXMLP.forward",
}


@pytest.fixture(params=TILED.values(), ids=TILED.keys())
def tiled_family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the tiles of which gradients are wanted, as they are computed."""
    seen: list[tuple[int, ...]] = []

    def noted(function: Callable[..., Tensor], x: Tensor, *more: Any, **how: Any) -> Any:
        seen.append(tuple(x.shape))
        return checkpoint(function, x, *more, **how)

    monkeypatch.setattr(running, "checkpoint", noted)
    return seen


def gradients(model: nn.Module, y: Tensor) -> dict[str, Tensor]:
    """Those of a fixed random weighted sum of an output."""
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(y)
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found = torch.autograd.grad((y * weights).sum(), list(named.values()), allow_unused=True)
    return {name: one for name, one in zip(named, found, strict=True) if one is not None}


def near(found: Tensor, own: Tensor, exact: Tensor) -> None:
    """Held against the model's own error."""
    scale = exact.abs().max().item()
    error, allowed = ((one.double() - exact).abs().max().item() for one in (found, own))
    assert error <= 2 * allowed + 8 * torch.finfo(found.dtype).eps * scale


# ---------------------------------------------------------------------------------------- the same as the model's own


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16 autocast"])
def test_outputs_and_gradients_are_as_near_to_float64_as_the_models_own(
    tiled_family: Family, autocast: bool, rows: list[tuple[int, ...]]
) -> None:
    model, family = tiled_family.build(), tiled_family
    twice = copy.deepcopy(model).double()
    torch.set_default_dtype(torch.float64)  # transformers 4.57 makes CLIP's mask of it
    try:
        exact = family.run(twice)
        exact_gradients = gradients(twice, exact)
    finally:
        torch.set_default_dtype(torch.float32)
    before = state(model)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        own = family.run(model)
        own_gradients = gradients(model, own)
        for tiles, recompute in ((2, False), (2, True), (None, True)):
            rows.clear()
            with patched(model, implementation="aten", tiles=tiles, recompute=recompute) as report:
                assert {f"{one.owner}.{one.method}" for one in report.in_tiles} == {METHODS[family.name]} or not tiles
                y = family.run(model)
                found = gradients(model, y)
                assert len(rows) == 2 * len(report.in_tiles)
                with torch.no_grad():
                    inferred = family.run(model)
            assert same_state(before, model)
            near(y, own, exact)
            near(inferred, own, exact)
            assert found.keys() == own_gradients.keys()
            for name, gradient in found.items():
                near(gradient, own_gradients[name], exact_gradients[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_losses_of_training_are_as_near_to_float64_as_the_models_own(name: str) -> None:
    def losses(dtype: torch.dtype = torch.float32, **how: Any) -> Tensor:
        model = FAMILIES[name].build(dtype)
        if how:
            patch(model, implementation="eager", **how)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        found = []
        for step in range(200):
            ids = torch.randint(3, 64, (2, 6), generator=torch.Generator().manual_seed(step % 4))
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.detach())
        return torch.stack(found)

    exact, own = losses(torch.float64), losses()
    assert torch.equal(losses(recompute=True), own)
    near(losses(recompute=True, tiles=3), own, exact)
    assert exact[-1] < exact[0] / 4


def mlp() -> nn.Module:
    torch.manual_seed(0)
    model = FAMILIES["llama"].build()
    return model.model.layers[0].mlp


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((2, 9, 32), [(1, 6, 32)] * 3),
        ((1, 7, 32), [(1, 3, 32), (1, 3, 32), (1, 1, 32)]),
        ((11, 32), [(4, 32), (4, 32), (3, 32)]),
        ((2, 1, 2, 32), [(1, 1, 2, 32)] * 2),
        ((4, 1, 32), []),  # one position of each sequence
        ((1, 1, 32), []),
        ((0, 5, 32), []),
        ((2, 0, 32), []),
        ((32,), []),
    ],
    ids=str,
)
def test_any_shape(shape: tuple[int, ...], sizes: list[tuple[int, ...]], rows: list[tuple[int, ...]]) -> None:
    module = mlp()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    own = module(x)
    (own_gradient,) = torch.autograd.grad(own.sum(), x)
    with patched(module, tiles=3):
        y = module(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        with torch.inference_mode():
            inferred = module(x)
    assert rows == sizes
    assert y.shape == own.shape == inferred.shape
    torch.testing.assert_close(y, own)
    torch.testing.assert_close(inferred, own.detach())
    torch.testing.assert_close(gradient, own_gradient)


@pytest.mark.parametrize("laid", ["transposed", "expanded", "sliced"])
def test_any_layout(laid: str, rows: list[tuple[int, ...]]) -> None:
    module = mlp()
    x = torch.randn(6, 4, 64)
    x = {"transposed": x[..., :32].transpose(0, 1), "expanded": x[:1, :, :32].expand(6, 4, 32), "sliced": x[..., ::2]}[
        laid
    ]
    own = module(x)
    with patched(module, tiles=2):
        torch.testing.assert_close(module(x), own)
    assert len(rows) == 2


def loss_of(model: nn.Module) -> Tensor:
    ids = _ids()["input_ids"]
    return model(input_ids=ids, labels=ids).loss


@pytest.fixture
def llama() -> nn.Module:
    return FAMILIES["llama"].build()


def test_a_kept_graph_and_a_second_derivative() -> None:
    module = mlp()
    x = torch.randn(2, 6, 32, dtype=torch.float64, requires_grad=True)
    module.double()

    def derived() -> list[Tensor]:
        y = module(x).square().sum()
        once = torch.autograd.grad(y, (x, module.up_proj.weight), retain_graph=True)
        again = torch.autograd.grad(y, (x, module.up_proj.weight), create_graph=True)
        torch.testing.assert_close(once, tuple(one.detach() for one in again))
        return [*again, *torch.autograd.grad(sum(one.square().sum() for one in again), (x, module.gate_proj.weight))]

    own = derived()
    with patched(module, implementation="eager", tiles=3):
        for found, expected in zip(derived(), own, strict=True):
            torch.testing.assert_close(found, expected)


def _functional(module: nn.Module, x: Tensor) -> Tensor:
    twice = {name: 2 * weight for name, weight in module.named_parameters()}
    return torch.func.functional_call(module, twice, (x,))


def _replaced(module: nn.Module, x: Tensor) -> Tensor:
    y = module(x)
    for linear in (module.gate_proj, module.up_proj, module.down_proj):  # as hooks of offloading do
        linear.weight = nn.Parameter(linear.weight.to("meta"))
    return y


def _undone(module: nn.Module, x: Tensor) -> Tensor:
    y = module(x)
    unpatch(module)
    return y


def _frozen(module: nn.Module, x: Tensor) -> Tensor:
    y = module(x)
    module.requires_grad_(False)
    return y


def _thawed(module: nn.Module, x: Tensor) -> Tensor:
    module.requires_grad_(False)
    y = module(x)
    module.requires_grad_()
    return y


@pytest.mark.parametrize("run", [_functional, _replaced, _undone, _frozen, _thawed], ids=lambda run: run.__name__)
@pytest.mark.parametrize("implementation", ["eager", "aten"])
def test_backward_takes_what_forward_took(run: Callable[..., Tensor], implementation: str) -> None:
    found = []
    for tiles in (None, 3):
        module, x = mlp(), torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
        weights = list(module.parameters())
        patch(module, activation="gelu_tanh", implementation=implementation, tiles=tiles)
        y = run(module, x)
        held = [(type(m), id(w), w.requires_grad) for m in module.modules() for w in m.parameters(recurse=False)]
        y.square().sum().backward()
        assert held == [
            (type(m), id(w), w.requires_grad) for m in module.modules() for w in m.parameters(recurse=False)
        ]
        found.append([torch.zeros(()) if one.grad is None else one.grad for one in (x, *weights)])
    torch.testing.assert_close(*found)


def test_what_is_written_to_before_backward_is_refused() -> None:
    module = mlp()
    for frozen in (False, True):
        module.requires_grad_(not frozen)
        given = torch.randn(2, 6, 32, requires_grad=True)
        for written in ("weight", "input"):
            x = given * 2.0
            with patched(module, tiles=2):
                y = module(x)
                with torch.no_grad():
                    (module.gate_proj.weight if written == "weight" else x).mul_(2.0)
                with pytest.raises(RuntimeError, match="modified"):
                    y.sum().backward()


def test_the_training_mode_may_change_before_backward() -> None:
    module = FAMILIES["gpt2"].build().transformer.h[0].mlp
    module.dropout.p = 0.5
    x = torch.randn(2, 6, 32, requires_grad=True)
    found = []
    with patched(module, tiles=2):
        for mode in (True, False):
            torch.manual_seed(3)
            y = module.train()(x)
            module.train(mode)
            found.append(torch.autograd.grad(y.square().sum(), (x, *module.parameters())))
    assert all(map(torch.equal, *found))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # transformers' own
def test_an_adapter_that_is_switched_before_backward_is_refused(llama: nn.Module) -> None:
    lora = get_peft_model(llama, LoraConfig(target_modules=["up_proj"], init_lora_weights=False))
    lora.get_input_embeddings().weight.requires_grad_()
    with patched(lora, tiles=2):
        with lora.disable_adapter():
            y = FAMILIES["llama"].run(lora)
        with pytest.raises(RuntimeError, match="an adapter was switched"):
            y.sum().backward()


def test_frozen_weights_have_no_gradients_and_the_others_have(llama: nn.Module, rows: list[tuple[int, ...]]) -> None:
    for name, weight in llama.named_parameters():
        weight.requires_grad_("layers.1.mlp.up_proj" in name)
    own = gradients(llama, FAMILIES["llama"].run(llama))
    with patched(llama, tiles=2):
        found = gradients(llama, FAMILIES["llama"].run(llama))
    assert list(found) == list(own) == ["model.layers.1.mlp.up_proj.weight"]
    torch.testing.assert_close(found, own)
    assert len(rows) == 2  # nothing is derived of what the other layer computes


def test_the_hooks_of_a_weights_gradient_fire_once_a_backward(llama: nn.Module) -> None:
    fired: list[str] = []
    for name, weight in llama.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda _, name=name: fired.append(name))
    with patched(llama, tiles=4):
        loss_of(llama).backward()
    assert sorted(fired) == sorted(name for name, _ in llama.named_parameters())


def test_dropout_is_drawn_again_as_it_was(rows: list[tuple[int, ...]]) -> None:
    model = FAMILIES["gpt2"].build().train()
    module = model.transformer.h[0].mlp
    module.dropout.p = 0.5
    x = torch.randn(2, 8, 32, dtype=torch.float64, requires_grad=True)
    module.double()
    with patched(module, tiles=4) as report:
        assert "dropout draws other numbers" in str(report)
        assert report.in_tiles[0].draws

        def seeded(x: Tensor) -> Tensor:
            torch.manual_seed(3)
            return module(x)

        assert torch.autograd.gradcheck(seeded, (x,), fast_mode=True)
        module.dropout.p = 0.0
        rows.clear()
        assert torch.equal(seeded(x), seeded(x))
        module.dropout.p = 0.25  # what the source's reading rests on is looked at anew
        assert torch.autograd.gradcheck(seeded, (x,), fast_mode=True)
    assert rows


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")  # transformers' own
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_within_gradient_checkpointing(use_reentrant: bool, rows: list[tuple[int, ...]], llama: nn.Module) -> None:
    llama.train()
    own = loss_of(llama)
    own.backward()
    expected = {name: weight.grad for name, weight in llama.named_parameters()}
    llama.zero_grad()
    llama.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    llama.enable_input_require_grads()
    with patched(llama, tiles=2):
        loss_of(llama).backward()
    assert rows
    for name, weight in llama.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name])


def test_transforms_and_forward_derivatives_go_the_plain_way(rows: list[tuple[int, ...]]) -> None:
    module, x = mlp(), torch.randn(2, 6, 32)
    weights = dict(module.named_parameters())

    def total(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, weights, (x,)).square().sum()

    own = torch.func.grad(total)(weights)
    with patched(module, tiles=2):
        found = torch.func.grad(total)(weights)
        _, tangent = torch.func.jvp(module, (x,), (x,))
        per_sample = torch.func.vmap(module)(x)
        functional = torch.func.functional_call(module, {"up_proj.weight": 2 * weights["up_proj.weight"]}, (x,))
    torch.testing.assert_close(found, own)
    torch.testing.assert_close(per_sample, module(x))
    torch.testing.assert_close(functional, 2 * module(x))
    assert tangent.shape == x.shape
    assert len(rows) == 2  # of functional_call alone


def test_what_disallows_hooks_of_saved_tensors_goes_the_plain_way(rows: list[tuple[int, ...]]) -> None:
    module = mlp()
    with patched(module, tiles=2), torch.autograd.graph.disable_saved_tensors_hooks("not here"):
        module(torch.randn(2, 6, 32)).sum().backward()
    assert not rows


def test_exported_and_traced_it_is_whole() -> None:
    module, x = mlp(), torch.randn(2, 6, 32)
    own = module(x)
    with patched(module, tiles=2):
        names = [str(node.target) for node in torch.export.export(module, (x,)).graph.nodes]
        torch.testing.assert_close(torch.jit.trace(module, (x,))(x), own)
    assert sum("linear" in name for name in names) == 3


@pytest.mark.slow
def test_compiled_without_graph_breaks() -> None:
    module, x = mlp(), torch.randn(2, 6, 32)
    own = module(x)
    with patched(module, tiles=2):
        torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="eager")(x), own)


def test_in_threads(llama: nn.Module) -> None:
    family = FAMILIES["llama"]
    own = gradients(llama, family.run(llama))
    with patched(llama, tiles=3), ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: gradients(llama, family.run(llama)), range(8)):
            torch.testing.assert_close(found, own)


# --------------------------------------------------------------------------------------- what others put on a model


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # transformers' own
def test_lora_before_and_after(rows: list[tuple[int, ...]]) -> None:
    config = LoraConfig(target_modules=["gate_proj", "up_proj", "down_proj"], lora_dropout=0.0, init_lora_weights=False)
    family = FAMILIES["llama"]

    def adapted(*, patch_first: bool) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
        model = family.build()
        if patch_first:
            patch(model, tiles=2)
        torch.manual_seed(0)
        wrapped = get_peft_model(model, config)
        if not patch_first:
            patch(wrapped, tiles=2)
        rows.clear()
        found = gradients(wrapped, family.run(wrapped))
        assert len(rows) == 4
        unpatch(wrapped)
        return wrapped, found, gradients(wrapped, family.run(wrapped))

    for first in (False, True):
        model, found, own = adapted(patch_first=first)
        assert any("lora_A" in name for name in found)
        torch.testing.assert_close(found, own)
    mlp = model.base_model.model.model.layers[0].mlp
    with patched(model, tiles=2), model.disable_adapter():
        rows.clear()
        family.run(model)  # of which nothing is derived: no weight requires a gradient
        torch.testing.assert_close(family.run(model), family.run(family.build()))
    assert judge(mlp, "forward").reason is None
    mlp.up_proj.merge()
    mlp.up_proj.enable_adapters(enabled=False)  # to run it would take the weights apart
    assert "unmerge" in str(judge(mlp, "forward").reason)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # transformers' own
def test_dora_is_left_alone_with_the_reason() -> None:
    config = LoraConfig(target_modules=["up_proj"], use_dora=True)
    module = get_peft_model(FAMILIES["llama"].build(), config).base_model.model.model.layers[0].mlp
    assert judge(module, "forward").reason is not None


class Doubling(ModelHook):
    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:  # noqa: ARG002
        return 2 * output


@pytest.mark.parametrize("on", ["linear", "activation", "method's module"])
def test_hooks_fire_as_often_as_untiled(on: str, rows: list[tuple[int, ...]]) -> None:
    module, x, calls = mlp(), torch.randn(2, 6, 32, requires_grad=True), []
    hooked = {"linear": module.up_proj, "activation": module.act_fn, "method's module": module}[on]
    with patched(module, tiles=2):
        own = module(x)
        assert len(rows) == 2
        handle = hooked.register_forward_hook(lambda *_: calls.append(1))
        torch.testing.assert_close(module(x), own)
        assert len(calls) == 1
        assert len(rows) == (4 if on == "method's module" else 2)
        handle.remove()
        module(x)
        assert len(rows) == (6 if on == "method's module" else 4)


@pytest.mark.parametrize("when", ["before", "after"])
def test_accelerates_hooks(when: str, rows: list[tuple[int, ...]]) -> None:
    module, x = mlp(), torch.randn(2, 6, 32, requires_grad=True)
    own = module(x)
    if when == "before":
        add_hook_to_module(module, Doubling())
    patch(module, tiles=2)
    if when == "after":
        add_hook_to_module(module, Doubling())
    torch.testing.assert_close(module(x), 2 * own)
    assert len(rows) == 2
    unpatch(module)
    torch.testing.assert_close(module(x), 2 * own)
    assert len(rows) == 2
    remove_hook_from_module(module)
    assert torch.equal(module(x), own)


def test_weights_that_are_not_plain_go_the_plain_way(rows: list[tuple[int, ...]]) -> None:
    module, x = mlp(), torch.randn(2, 6, 32, requires_grad=True)
    patch(module, tiles=2)
    parametrizations.weight_norm(module.up_proj)
    module(x).sum().backward()
    assert not rows


@pytest.mark.parametrize("level", ["layer", "linear"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_fully_sharded(one_process: Any, when: str, level: str, llama: nn.Module, rows: list[tuple[int, ...]]) -> None:
    from torch.distributed.fsdp import fully_shard

    loss_of(llama).backward()
    own = {name: weight.grad for name, weight in llama.named_parameters()}
    llama.zero_grad()
    if when == "before":
        patch(llama, tiles=2)
    for layer in llama.model.layers:
        fully_shard(layer if level == "layer" else layer.mlp.up_proj, mesh=one_process)
    fully_shard(llama, mesh=one_process)
    if when == "after":
        assert len(patch(llama, tiles=2, implementation="aten").in_tiles) == (2 if level == "layer" else 0)
    loss_of(llama).backward()
    assert len(rows) == (4 if level == "layer" else 0)  # what is put together for one layer has hooks of its own
    for name, weight in llama.named_parameters():
        torch.testing.assert_close(weight.grad.full_tensor(), own[name])


def test_a_forward_that_was_put_over_it_runs() -> None:
    module = mlp()
    module.forward = lambda x: 3 * x
    report = find_sites(module, tiles=2)
    assert not report.in_tiles
    assert "another forward is bound" in report.tiled[0].reason


# ------------------------------------------------------------------------------------------------- undone, and copied


def test_undone_it_is_what_it_was(tiled_family: Family) -> None:
    model = tiled_family.build()
    own, before = tiled_family.run(model), state(model)
    report = patch(model, implementation="eager", tiles=2)
    assert report.in_tiles
    assert not same_state(before, model) or not report.changed
    unpatch(model)
    assert same_state(before, model)
    assert torch.equal(tiled_family.run(model), own)


@pytest.mark.parametrize(
    "through", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copies_run_in_tiles_and_are_undone_alone(
    through: Callable[[nn.Module], nn.Module], rows: list[tuple[int, ...]], llama: nn.Module
) -> None:
    family = FAMILIES["llama"]
    own = family.run(llama)
    patch(llama, tiles=2)
    family.run(llama)
    made = through(llama)
    rows.clear()
    torch.testing.assert_close(family.run(made), own)
    assert len(rows) == 4
    unpatch(made)
    assert torch.equal(family.run(made), own)
    rows.clear()
    family.run(llama)
    assert len(rows) == 4


def test_it_is_explained(llama: nn.Module) -> None:
    with patched(llama, tiles="64MiB") as report:
        shown = explain(llama, color=False)
    assert "+@in_tiles(tiles='67108864B')\n def forward(self, x):" in shown
    assert "2 methods in tiles" in report.summary
    assert "2 × LlamaMLP.forward  tiles='67108864B', rounding" in str(report)
    assert report.to_dict()["tiled"][0]["bytes_per_token"] == 4 * (4 * 48 + 32)


def test_verified_with_gradients(llama: nn.Module) -> None:
    report = patch(llama, tiles=2, verify=_ids(), gradients=True)
    assert any("gradient of" in str(one) for one in report.drift)
    model = FAMILIES["gpt2"].build().train()
    before = state(model)
    with pytest.raises(PatchError, match=r"draws its dropout tile by tile.*model\.eval"):
        patch(model, tiles=2, verify=_ids())
    assert same_state(before, model)


# ------------------------------------------------------------------------------------------------------- how many


@pytest.mark.parametrize(
    ("tiles", "tokens", "expected"),
    [
        (4, 100, 4),
        (4, 3, 3),
        ("1MiB", 1024, 4),
        ("4 MiB", 1024, 1),
        ("0.5MiB", 1025, 9),
        ("auto", 4095, 1),
        (True, 8 * 2048, 8),
        ("auto", 1 << 20, 16),
    ],
)
def test_how_many(tiles: Any, tokens: int, expected: int) -> None:
    assert running.Amount.of(tiles).tiles(tokens, bytes_each=4096) == expected


@pytest.mark.parametrize("tiles", [0, 1, -2, False, "", "many", "4", "4 parsecs", "0MiB", 2.5, "-1MiB"])
def test_what_is_no_amount_is_refused(tiles: Any, llama: nn.Module) -> None:
    before = state(llama)
    with pytest.raises(PatchError, match="tiles="):
        patch(llama, tiles=tiles)
    assert same_state(before, llama)


def test_a_size_below_that_of_a_token_is_refused(llama: nn.Module) -> None:
    with pytest.raises(PatchError, match=r"one token takes 896 bytes in LlamaMLP\.forward.*MiB"):
        patch(llama, tiles="512B")


def test_a_size_bounds_what_a_tile_makes(rows: list[tuple[int, ...]]) -> None:
    module = mlp()
    with patched(module, tiles="2KiB"):  # two tokens of 896 bytes
        module(torch.randn(3, 4, 32))
    assert rows == [(1, 2, 32)] * 6


# --------------------------------------------------------------------------------------------------------- selection


def test_what_is_excluded_is_not_in_tiles(llama: nn.Module) -> None:
    report = find_sites(llama, exclude="*.0.mlp.*", tiles=2)
    assert [(one.path, one.tiles is not None) for one in report.tiled] == [
        ("model.layers.1.mlp", True),
        ("model.layers.0.mlp", False),
    ]
    assert "excluded by '*.0.mlp.*'" in str(report)


def test_tiles_alone_are_a_patch() -> None:
    module = mlp()
    x = torch.randn(2, 6, 32)
    own = module(x)
    with patched(module, implementation="eager", activation="silu", strict=True, tiles=2):
        torch.testing.assert_close(module(x), own)
    with pytest.warns(NothingPatchedWarning, match="2 × OPTDecoderLayer, not in tiles: excluded by"):
        patch(FAMILIES["opt"].build(), exclude="*", tiles=2)


def test_swapped_and_in_tiles(llama: nn.Module) -> None:
    family = FAMILIES["llama"]
    with patched(llama, activation="gelu_tanh"):
        own = family.run(llama)
    with patched(llama, activation="gelu_tanh", tiles=2):
        torch.testing.assert_close(family.run(llama), own)
    assert llama.config.hidden_act == "silu"


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_with_what_is_computed_again(name: str, rows: list[tuple[int, ...]]) -> None:
    family = FAMILIES[name]
    model = family.build()
    before, own = state(model), gradients(model, family.run(model))
    with patched(model, recompute=True, tiles=2, include="*.layer*") as report:
        torch.testing.assert_close(gradients(model, family.run(model)), own)
        assert len(rows) == 4
        assert any(site.recompute for site in report.changed)
    assert same_state(before, model)


# ----------------------------------------------------------------------------------------- what is told from sources


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.act = nn.Linear(8, 24), nn.Linear(24, 8), nn.GELU()
        self.norm, self.gain = nn.LayerNorm(8), nn.Parameter(torch.ones(8))
        self.table = nn.Parameter(torch.randn(8, 24))
        self.gated, self.rate, self.count = True, 0.1, 0


class Plain(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class Residual(Base):
    def forward(self, x: Tensor, scale: float = 2.0, *, shift: None = None) -> Tensor:  # noqa: ARG002
        y = self.norm(x.float()).to(x.dtype)
        y = self.helper(y) if self.gated else y
        if self.training:
            y = F.dropout(y, self.rate, self.training)
        variance = y.pow(2).mean(-1, keepdim=True)
        return x + self.gain * y * torch.rsqrt(variance + 1e-5) * scale

    def helper(self, y: Tensor) -> Tensor:
        first, second = self.up(y).chunk(2, dim=-1)
        both = torch.cat([F.silu(first) * second, second[..., ::2], first[..., :6]], dim=-1)
        return self.down(both) if both.shape[-1] == 24 else y * 2.0


class Chain(Base):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList([nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8)])

    def forward(self, x: Tensor) -> Tensor:
        for number, step in enumerate(self.steps):
            x = step(x) if number != 1 else F.relu(x)
        return torch.where(x > 0, x, x @ self.table @ self.table.t())


class Two(Base):
    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return residual + self.down(self.act(F.linear(x, self.table.T)))


@pytest.mark.parametrize("cls", [Plain, Residual, Chain, Two], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("tiles", [2, 5])
def test_what_treats_each_token_by_itself(cls: type[Base], tiles: int, rows: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    module = cls().eval()
    given = [torch.randn(3, 5, 8) for _ in range(2 if cls is Two else 1)]
    own = module(*given)
    with patched(module, tiles=tiles):
        torch.testing.assert_close(module(*given), own)
        assert len(rows) == tiles
        if cls is Residual:  # another argument than the one it was judged with
            module(*given, scale=3.0)
            assert len(rows) == tiles
            module.gated = False  # nothing is wide any more, and it is still right
            module(*given)


def refused(forward: Callable[..., Any], **parts: Any) -> nn.Module:
    cls = type("Other", (Base,), {"forward": forward, "__module__": __name__})
    module = cls()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def _attention(self: Any, x: Tensor) -> Tensor:
    return self.down(self.act(self.up(torch.softmax(x @ x.transpose(1, 2), dim=-1) @ x)))


def _cumulative(self: Any, x: Tensor) -> Tensor:
    return self.down(self.act(self.up(x)).cumsum(1))


def _shifted(self: Any, x: Tensor) -> Tensor:
    return self.down(self.act(self.up(torch.roll(x, 1, 1))))


def _counted(self: Any, x: Tensor) -> Tensor:
    self.count = self.count + 1
    return self.down(self.act(self.up(x)))


def _by_length(self: Any, x: Tensor) -> Tensor:
    return self.down(self.act(self.up(x))) / x.shape[1]


def _unpacked(self: Any, x: Tensor) -> Tensor:
    batch, length, width = x.shape
    return self.down(self.act(self.up(x))).view(batch, length, width)


def _over_tokens(self: Any, x: Tensor) -> Tensor:
    return self.down(self.act(self.up(x - x.mean(1, keepdim=True))))


def _over_all(self: Any, x: Tensor) -> Tensor:
    return self.down(self.act(self.up(x / x.abs().max())))


def _over_all_by_norm(self: Any, x: Tensor) -> Tensor:
    return self.down(self.act(self.up(x / x.norm(-1, keepdim=True))))  # p, and no dimension


def _by_values(self: Any, x: Tensor) -> Tensor:
    return self.down(self.act(self.up(x))) if x.sum() > 0 else x


def _first(self: Any, x: Tensor) -> Tensor:
    return self.down(self.act(self.up(x[:, :1])))


def _in_place(self: Any, x: Tensor) -> Tensor:
    y = self.act(self.up(x))
    y *= 2.0
    return self.down(y)


def _written(self: Any, x: Tensor) -> Tensor:
    return self.down(self.act(self.up(x)).mul_(2.0))


def _several(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = self.act(self.up(x))
    return self.down(y), y


def _halved(self: Any, x: Tensor) -> Tensor:
    first, second = self.act(self.up(x)).chunk(2, 1)
    return self.down(torch.cat([second, first], 1))


def _places(self: Any, x: Tensor) -> Tensor:
    return self.down(self.act(self.up(torch.where(x)[0])))


def _table(self: Any, x: Tensor) -> Tensor:
    return self.down(self.act(self.up(x) + self.other))


def _wide(self: Any, x: Tensor) -> Tensor:
    return self.act(self.up(x))


def _printed(self: Any, x: Tensor) -> Tensor:
    print(self.count)
    return self.down(self.act(self.up(x)))


def _other(self: Any, x: Tensor) -> Tensor:
    return self.down(self.act(self.up(self.other(x))))


@pytest.mark.parametrize(
    ("forward", "parts", "reason"),
    [
        (_attention, {}, "transpose"),
        (_cumulative, {}, "what cumsum does to each token by itself is not known"),
        (_shifted, {}, "roll"),
        (_counted, {}, "stores something outside of itself.*self.count"),
        (_by_length, {}, "looks at how many tokens there are"),
        (_unpacked, {}, "what is unpacked is not known"),
        (_over_tokens, {}, "mean is not along the last dimension"),
        (_over_all, {}, "what max does"),
        (_over_all_by_norm, {}, "norm is not along the last dimension"),
        (_by_values, {}, "sum"),
        (_first, {}, r"takes some of the tokens.*x\[:, :1\]"),
        (_in_place, {}, "writes over a tensor"),
        (_written, {}, "mul_ writes over a tensor"),
        (_several, {}, "something else than one tensor"),
        (_halved, {}, "chunk is not along the last dimension"),
        (_places, {}, "where looks for places"),
        (_wide, {}, "nothing in it is wider"),
        (_printed, {}, "what print does is not known"),
        (_table, {"other": nn.Parameter(torch.randn(5, 24))}, "several dimensions"),
        (_other, {"other": nn.BatchNorm1d(5)}, "BatchNorm1d.*not known"),
        (_other, {"other": nn.Conv1d(5, 5, 3, padding=1)}, "Conv1d.*not known"),
        (_other, {"other": nn.LayerNorm((5, 8))}, "more than the last dimension"),
        (_other, {"other": nn.ReLU(inplace=True)}, "writes over its input"),
        (_other, {"other": nn.Dropout(0.1, inplace=True)}, "writes over its input"),
        (_other, {"other": nn.Softmax(dim=1)}, "not known"),
        (_other, {"other": nn.PReLU(5)}, "not known"),
        (_other, {"other": nn.LSTM(8, 8)}, "not known"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or (next(iter(value), "") if isinstance(value, dict) else ""),
)
def test_what_does_not_is_left_alone_with_the_reason(
    forward: Callable[..., Any], parts: dict[str, nn.Module], reason: str
) -> None:
    report = find_sites(refused(forward, **parts), tiles=2)
    assert not report.in_tiles
    (left,) = report.tiled
    assert re.search(reason, left.reason), left.reason


def test_experts_and_attention_and_a_pooler_are_left_alone_with_the_reason() -> None:
    config = _T.MixtralConfig(**_DECODER, **_TOKENS, num_local_experts=2)
    model = _T.MixtralForCausalLM(config).eval()
    report = find_sites(model, tiles=2)
    if hasattr(_T.models.mixtral.modeling_mixtral, "MixtralExperts"):
        assert not report.in_tiles
        assert {one.owner for one in report.tiled} == {"MixtralExperts"}
        assert all(one.reason for one in report.tiled)
    else:  # each expert is a module of its own, which is given the tokens that are its own
        assert len(report.in_tiles) == 4
    left = [one for one in find_sites(FAMILIES["bert"].build(), tiles=2).tiled if one.tiles is None]
    assert [(one.owner, "takes some of the tokens" in one.reason) for one in left] == [("BertPooler", True)]


@st.composite
def elementwise(draw: st.DrawFn) -> str:
    """A straight line of operations between two linear layers."""
    steps = ["y = self.up(x)"]
    for _ in range(draw(st.integers(0, 5))):
        steps.append(
            draw(
                st.sampled_from(
                    [
                        "y = F.gelu(y)",
                        "y = y * torch.sigmoid(y)",
                        "a, b = y.chunk(2, dim=-1); y = torch.cat([b, a], dim=-1)",
                        "y = y - y.mean(dim=-1, keepdim=True)",
                        "y = torch.softmax(y, dim=-1)",
                        "y = y + self.up.bias",
                        "y = y if self.gated else -y",
                        "y = F.layer_norm(y, (24,))",
                    ]
                )
            )
        )
    return "\n    ".join(["def forward(self, x):", *steps, "return self.down(F.silu(y))"])


@settings(max_examples=12, deadline=None)
@given(elementwise(), st.integers(2, 7), st.integers(2, 9))
def test_any_straight_line(code: str, tiles: int, length: int) -> None:
    name = f"<written {hash(code)}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"torch": torch, "F": F, "__name__": __name__}
    exec(compile(code, name, "exec"), scope)
    torch.manual_seed(0)
    module = refused(scope["forward"])
    x = torch.randn(2, length, 8)
    own = module(x)
    with patched(module, implementation="eager", tiles=tiles) as report:
        assert report.in_tiles, report
        torch.testing.assert_close(module(x), own)
