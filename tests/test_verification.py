"""patch(verify=): what is compared, by which bar, and what it leaves alone."""

from __future__ import annotations

import inspect
import itertools
import math
import random
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import transformers
from accelerate import Accelerator
from conftest import FAMILIES
from torch import Tensor, nn

from hf_gelu_patch import IMPLEMENTATIONS, Implementation, PatchError, VerificationError, patch, register_implementation
from hf_gelu_patch.patching import patched
from hf_gelu_patch.verification import drifts, run, scale_of

GPT2, LLAMA = FAMILIES["gpt2"], FAMILIES["llama"]
IDS = GPT2.inputs()["input_ids"]


class Head(nn.Module):
    """A model that says of its logits what ``how`` makes of them."""

    def __init__(self, how: Callable[[Tensor], object], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inner, self.how = GPT2.build(dtype), how

    def forward(self, input_ids: Tensor) -> object:
        return self.how(self.inner(input_ids, use_cache=False).logits)


class _WrongBackward(torch.autograd.Function):
    """gelu_tanh, and the gradient of another function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.gelu(x, approximate="tanh")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(1.702 * x)
        return grad * s * (1 + 1.702 * x * (1 - s))  # quick_gelu's


def _one_element(x: Tensor) -> Tensor:
    y = torch.nn.functional.gelu(x, approximate="tanh").clone()
    y.view(-1)[77] += 0.5
    return y


def _last_row(x: Tensor) -> Tensor:
    y = torch.nn.functional.gelu(x, approximate="tanh").clone()
    y[:, -1] *= 1.02
    return y


FAULTS = {
    "exact": torch.nn.functional.gelu,
    "scaled": lambda x: torch.nn.functional.gelu(x, approximate="tanh") * 1.0005,
    "shifted": lambda x: torch.nn.functional.gelu(x, approximate="tanh") + 1e-4,
    "one element": _one_element,
    "last row": _last_row,
    "wrong backward": _WrongBackward.apply,
}


@pytest.fixture(autouse=True)
def _planted() -> Iterator[None]:
    for name, function in FAULTS.items():
        register_implementation(Implementation(name, {"gelu_tanh": function}))
    yield
    for name in FAULTS:
        del IMPLEMENTATIONS[name]


def refused(model: nn.Module, batch: object = IDS, **options: Any) -> str:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(VerificationError) as error:
        patch(model, verify=batch, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(hasattr(module, "original") for module in model.modules())
    return str(error.value)


# --------------------------------------------------------------------------------------------------------------- masks

MASKS = [torch.finfo(torch.float32).min, -1e4, -1e9, 1e30, -math.inf, math.nan]


def masking(value: float, where: str) -> Callable[[Tensor], Tensor]:
    def masked(logits: Tensor) -> Tensor:
        hidden = torch.zeros(logits.shape, dtype=torch.bool)
        hidden[..., {"some": slice(0, 64, 4), "most": slice(1, 64), "rows": slice(0, 64)}[where]] = True
        if where == "rows":
            hidden[1:] = False
        return logits.masked_fill(hidden, value)

    return masked


@pytest.mark.parametrize("value", MASKS)
@pytest.mark.parametrize("where", ["some", "most", "rows"])
def test_no_mask_hides_a_change(value: float, where: str) -> None:
    report = patch(Head(masking(value, where)), verify=IDS)
    (drift,) = report.drift
    assert drift.scale < 100
    assert drift.error_before is not None
    assert drift.error_before < 1e-4
    for fault in ("exact", "scaled"):
        assert "output: max |Δ|" in refused(Head(masking(value, where)), implementation=fault)
    assert "margin 0.00035" in refused(Head(masking(value, where)), activation="relu")
    assert "margin 0.01" in refused(Head(masking(value, where)), activation="relu", margin=0.01)


@pytest.mark.parametrize("value", [-1e4, 3e4, -300.0])
def test_what_is_added_to_hide_logits_does_not_hide_their_change(value: float) -> None:
    def added(logits: Tensor) -> Tensor:
        return logits + value * (torch.arange(64) % 3 > 0)

    assert patch(Head(added), verify=IDS).drift
    refused(Head(added), implementation="exact")
    refused(Head(added), activation="relu")
    assert patch(Head(lambda logits: logits + value), verify=IDS).drift
    refused(Head(lambda logits: logits + value), activation="relu")


GROUPS: dict[str, Callable[[Tensor], Tensor]] = {
    "a mask for each column": lambda x: torch.where(torch.arange(64) < 20, -1e4 * (1 + torch.arange(64)), x),
    "masks of any size": lambda x: torch.where(torch.arange(64) < 20, -(10.0 ** (4 + torch.arange(64) / 10)), x),
    "masks added up": lambda x: sum((-1e4 * (torch.arange(64) < end) for end in (20, 30, 40)), start=x),
    "times beside": lambda x: torch.cat([x, 1e9 + 1e6 * torch.arange(x.numel()).view(x.shape)], dim=-1),
    "coordinates beside": lambda x: torch.cat([x, 4e3 + torch.arange(x.numel()).view(x.shape).sqrt()], dim=-1),
}


@pytest.mark.parametrize("how", GROUPS.values(), ids=GROUPS.keys())
def test_no_larger_numbers_hide_a_change_of_smaller_ones(how: Callable[[Tensor], Tensor]) -> None:
    assert patch(Head(how), verify=IDS).drift
    for fault in ("exact", "scaled"):
        assert "output: max |Δ|" in refused(Head(how), implementation=fault)
    assert "margin 0.00035" in refused(Head(how), activation="relu")


def test_rounding_of_larger_numbers_is_no_alarm_in_smaller_ones() -> None:
    """What is nothing but rounding of the others differs by more than twice, and says nothing."""
    exact = torch.cat([normal(40, 250), torch.zeros(40, 50)], dim=-1)
    for seed in range(6):
        before, after = noisy(exact, torch.float32, 2 * seed), noisy(exact, torch.float32, 2 * seed + 1, times=1.5)
        after[:, 250:] *= 3
        assert not compared(before, after, exact), seed


def compared(before: Tensor, after: Tensor, exact: Tensor | None = None, **options: Any) -> bool:
    """Whether that is refused."""
    reference = None if exact is None else {"y": exact}
    (drift,) = drifts({"y": before}, {"y": after}, reference, options.pop("margin", None), **options)
    return drift.exceeded


def noisy(exact: Tensor, dtype: torch.dtype, seed: int, times: float = 1.0) -> Tensor:
    """As a model of a dtype computes it: an error of some ε of what numbers usually are, and their own rounding."""
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    usual = exact[exact.abs() < 1e3]
    size = usual.abs().max() if usual.numel() else exact.abs().max()
    return (exact + times * torch.finfo(dtype).eps * size * noise).to(dtype)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


SHAPES = {
    "normal": normal(40, 250),
    "one number": torch.tensor([3.7], dtype=torch.float64),
    "three": torch.tensor([0.001, 1.0, 1.2], dtype=torch.float64),
    "a loss": torch.tensor(0.3, dtype=torch.float64),
    "constant": torch.full((8, 9), 5.0, dtype=torch.float64),
    "offset": 1e4 + normal(40, 250),
    "far offset": normal(40, 250) - 3e6,
    "small": 1e-6 * normal(40, 250),
    "sparse": torch.where(normal(40, 250) > 1.5, normal(40, 250), 0.0),
    "a few large": torch.where(torch.arange(250) == 7, 3000.0, normal(40, 250)),
    "binary": normal(6, 2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("exact", SHAPES.values(), ids=SHAPES.keys())
def test_rounding_is_no_alarm(exact: Tensor, dtype: torch.dtype) -> None:
    if exact.abs().max() > 6e4 and dtype == torch.float16:
        pytest.skip("beyond the largest number")
    for seed in range(12):
        before, after = noisy(exact, dtype, 2 * seed), noisy(exact, dtype, 2 * seed + 1)
        assert not compared(before, after, exact), seed
        assert not compared(before, after), seed
        assert compared(before, after, margin=0.0) == (not torch.equal(before, after))


def test_rounding_of_probabilities_is_no_alarm() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        exact = 6 * normal(40, 250)
        before, after = (noisy(exact, dtype, seed).double().softmax(-1).to(dtype) for seed in (0, 1))
        assert not compared(before, after, exact.softmax(-1))
        assert compared(before, after.roll(1, 0), exact.softmax(-1))


@pytest.mark.parametrize("name", ["normal", "offset", "small", "a few large", "sparse"])
def test_one_wrong_number_and_a_little_of_all(name: str) -> None:
    exact = SHAPES[name]
    before, after = noisy(exact, torch.float32, 0), noisy(exact, torch.float32, 1)
    size = float(scale_of(normal(40, 250))) * (1e-6 if name == "small" else 1.0)
    one = after.clone()
    one[3, 9] += 0.1 * size
    assert compared(before, one, exact)
    assert compared(before, one)
    assert compared(before, after + 0.005 * size, exact)
    if name != "offset":
        assert compared(before, after * (1 + 1e-4), exact)
    row = noisy(exact, torch.bfloat16, 1)
    row[3] += noisy(normal(250), torch.bfloat16, 2) * 0.1 * size
    assert compared(noisy(exact, torch.bfloat16, 0), row, exact) == (name != "offset")  # which bfloat16 cannot show


def test_numbers_that_are_none_and_those_that_are_too_large() -> None:
    y = normal(4, 8).float()
    for value in (math.nan, math.inf, -math.inf):
        odd = y.clone()
        odd[0, 0] = value
        assert not compared(odd, odd.clone(), y.double())
        assert compared(y, odd, y.double())
        assert compared(odd, y, y.double())
        assert compared(y, odd, margin=10.0)
    zeros = torch.zeros(3, 4)
    assert not compared(zeros, zeros, zeros.double())
    assert not compared(zeros, -zeros)
    assert compared(zeros, zeros + 1e-3, zeros.double())
    assert not compared(torch.zeros(0), torch.zeros(0))
    assert compared(y, y[:2])
    near = torch.tensor([65504.0, 3.0, 65504.0, -7.0]).half()
    over = torch.tensor([math.inf, 3.0, 65504.0, -7.0]).half()
    assert not compared(near, over)
    assert not compared(over, near)
    assert compared(near, torch.tensor([65504.0, math.inf, 65504.0, -7.0]).half())
    whole = torch.arange(-50.0, 50.0).view(10, 10)
    assert not compared(whole, whole.clone(), whole.double())
    assert compared(whole, whole.roll(1, 0), whole.double())
    steep = noisy(1e30 * normal(40, 250), torch.float32, 0)
    assert not compared(steep, steep * (1 + 1e-6))
    assert compared(steep, steep * 1.01)


# ----------------------------------------------------------------------------------------------------- what is compared


class Box:
    def __init__(self, logits: Tensor) -> None:
        self.logits, self.note = logits, "mine"


class Slots:
    __slots__ = ("logits",)

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@dataclass
class Data:
    deep: dict[str, list[Box]]


Pair = namedtuple("Pair", ["first", "second"])

KINDS: dict[str, Callable[[Tensor], object]] = {
    "ids": lambda x: x.argmax(-1),
    "booleans": lambda x: x > 0,
    "complex": torch.fft.rfft,
    "numpy": lambda x: x.detach().numpy(),
    "numpy integers": lambda x: {"ids": x.detach().numpy().argmax(-1)},
    "numpy number": lambda x: x.detach().numpy().sum(),
    "a data frame": lambda x: pandas.DataFrame(x[0].detach().numpy()),
    "a column": lambda x: {"score": pandas.Series(x[0, 0].detach().numpy())},
    "Python numbers": lambda x: x[0].tolist(),
    "a Python number": lambda x: float(x.sum()),
    "ragged lists": lambda x: [x[0, 0].tolist(), x[0, 1, :5].tolist()],
    "an object": Box,
    "slots": Slots,
    "deep": lambda x: Data({"a": [Box(x)]}),
    "named tuple": lambda x: Pair(None, Box(x)),
    "categorical": lambda x: torch.distributions.Categorical(logits=x),
    "normal": lambda x: torch.distributions.Independent(torch.distributions.Normal(x, 1.0), 1),
    "mixture": lambda x: torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=x), torch.distributions.Normal(x, 1.0)
    ),
    "sparse": lambda x: x.to_sparse(),
    "output": lambda x: transformers.modeling_outputs.CausalLMOutput(logits=x),
}


@pytest.mark.parametrize("how", KINDS.values(), ids=KINDS.keys())
def test_numbers_are_compared_however_they_are_wrapped(how: Callable[[Tensor], object]) -> None:
    report = patch(Head(how), verify=IDS)
    assert report.drift
    refused(Head(how), activation="relu")


@pytest.mark.parametrize(
    ("how", "named"),
    [
        (lambda _: "some text", "output: str"),
        (lambda _: None, "nothing"),
        (lambda x: Box(x[:0]), "note: str"),
        (lambda x: x * math.nan, "output"),
        (lambda x: x * 0, "not all 0"),
        (lambda _: iter([1]), "list_iterator"),
        (lambda x: x.to("meta"), "meta device"),
    ],
)
def test_nothing_to_compare_is_not_verified(how: Callable[[Tensor], object], named: str) -> None:
    said = refused(Head(how))
    assert named in said
    assert "leave out verify=" in said


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu], ids=str)
def test_numbers_of_eight_bits(dtype: torch.dtype, gradients: bool) -> None:
    def how(logits: Tensor) -> Tensor:
        return logits.abs().to(dtype)

    with patched(Head(how), verify=IDS, gradients=gradients, margin=0.2) as report:
        assert report.drift[0].output == "output"
        assert len(report.drift) > 1 or not gradients
    if not gradients and dtype != torch.float8_e8m0fnu:  # that has no digits
        assert "output" in refused(Head(lambda logits: (logits.abs() + 1).log().to(dtype)), activation="relu")


@pytest.mark.parametrize(("dtype", "other"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("float32", "float64")])
def test_another_dtype_is_told(dtype: str, other: str) -> None:
    """Of an activation that is the last thing a model does, that of its output."""
    cast = Implementation("cast", {"gelu_tanh": lambda x: FAULTS["scaled"](x).to(getattr(torch, other))})
    model = nn.Sequential(nn.Linear(6, 8), transformers.activations.NewGELUActivation()).to(getattr(torch, dtype))
    said = refused(model, torch.randn(5, 6, dtype=getattr(torch, dtype)), implementation=cast)
    assert f"output: {other} [5, 8] instead of {dtype} [5, 8]" in said


def test_a_message_names_the_first_of_many() -> None:
    said = refused(Head(lambda logits: tuple(str(row) for row in logits.flatten()[:40])))
    assert "output.4" not in said.replace("4: str; and 35 more", "")
    assert "; and 35 more)" in said


@pytest.mark.parametrize(
    "batch",
    ["a text", [IDS, IDS, IDS], {"words": IDS}, {1: IDS}, {}, IDS.numpy(), IDS + 10**6, IDS.to("meta")],
    ids=lambda batch: f"{type(batch).__name__}",
)
def test_a_batch_that_the_model_cannot_take(batch: object) -> None:
    said = refused(Head(lambda logits: logits), batch)
    assert "Head cannot run on the batch given as verify= (" in said
    assert "mapping of keyword arguments, a tuple or list of positional ones, or one tensor" in said


class Features(nn.Module):
    """A model that takes one mapping, and writes to it, as those of sentence-transformers do."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inner = GPT2.build(dtype)

    def forward(self, input: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        logits = self.inner(input["input_ids"], use_cache=False).logits.float()
        input.update(logits=logits)
        return input


class Couple(nn.Module):
    """A model that takes one pair."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = GPT2.build()

    def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return tuple(self.inner(one, use_cache=False).logits for one in pair)


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (Features, {"input_ids": IDS}),
        (Features, transformers.BatchEncoding({"input_ids": IDS})),
        (Features, {"input": {"input_ids": IDS}}),
        (Features, ({"input_ids": IDS},)),
        (lambda: nn.DataParallel(Features()), {"input_ids": IDS}),
        (lambda: Features(torch.bfloat16), {"input_ids": IDS}),
        (Couple, ((IDS, IDS),)),
        (Couple, {"pair": [IDS, IDS]}),
    ],
)
def test_a_batch_is_whatever_the_model_takes(model: Callable[[], nn.Module], batch: Any) -> None:
    with patched(model(), verify=batch, memory=batch) as report:
        errors = {one.output: one.error_before for one in report.drift}
    assert errors.keys() & {"logits", "0"}
    assert all(errors[name] is not None for name in ("logits", "0", "1") if name in errors)


def by_numpy() -> Callable[[Tensor], Tensor]:
    generator = np.random.default_rng(1)
    return lambda logits: logits + float(generator.normal())


def by_torch() -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    return lambda logits: logits + torch.rand(logits.shape, generator=generator)


def by_counting() -> Callable[[Tensor], Tensor]:
    runs = itertools.count()
    return lambda logits: logits + next(runs)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("kind", [by_numpy, by_torch, by_counting])
def test_a_model_that_says_something_else_each_time_is_told_so(
    kind: Callable[[], Callable[[Tensor], Tensor]], gradients: bool
) -> None:
    said = refused(Head(kind()), gradients=gradients)
    assert "Head says something else each time it is run on the batch given, unpatched too: output: max |Δ|" in said
    assert "unpatched too" not in refused(Head(lambda logits: logits), implementation="scaled", gradients=gradients)


def test_noise_that_the_float64_copy_draws_anew_hides_no_fault() -> None:
    for seed in range(8):
        generator = random.Random(seed)

        def how(logits: Tensor, generator: random.Random = generator) -> Tensor:
            return logits * (1 + generator.uniform(-0.1, 0.1))

        assert "unpatched too" in refused(Head(how), implementation="scaled")
        with patched(Head(how), verify=IDS, margin=0.5):
            pass


def by_dtype(logits: Tensor) -> Tensor:
    return logits * (1.0 if logits.dtype == torch.float32 else 1.05)


def depth(logits: Tensor) -> Tensor:  # as DropPath draws it: other numbers in float64
    return logits * (1.0 + 0.05 * torch.floor(0.7 + torch.rand((*logits.shape[:2], 1), dtype=logits.dtype)))


def jitter(logits: Tensor) -> Tensor:  # as a router does
    return logits * torch.empty_like(logits).uniform_(0.95, 1.05)


@pytest.mark.parametrize("how", [by_dtype, depth, jitter])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_float64_copy_that_computes_something_else_hides_no_fault(
    how: Callable[[Tensor], Tensor], gradients: bool
) -> None:
    said = refused(Head(how), implementation="one element", gradients=gradients)
    assert "unpatched too" not in said
    assert "against float64" not in said
    with patched(Head(how), implementation="aten", verify=IDS, gradients=gradients) as report:
        assert all(one.error_before is None for one in report.drift)


def test_a_model_that_multiplies_its_rounding_is_held_against_float64_all_the_same() -> None:
    with patched(Head(lambda logits: 1e4 * (logits - logits.bfloat16().float())), verify=IDS) as report:
        assert all(one.error_before is not None for one in report.drift)


def test_two_outputs_of_one_name_are_compared_both() -> None:
    for how in (
        lambda logits: {"layer": [logits], "layer.0": torch.ones(1)},
        lambda logits: {0: logits, "0": torch.ones(1)},
        lambda logits: [{"a": {"b": logits}, "a.b": torch.ones(1)}],
    ):
        assert "max |Δ|" in refused(Head(how), implementation="scaled")
        with patched(Head(how), implementation="aten", verify=IDS) as report:
            assert len({one.output for one in report.drift}) == 2


def test_what_was_not_compared_is_in_the_report() -> None:
    report = patch(Head(Box), verify=IDS)
    assert report.unverified == ("note: str",)
    assert "not verified: note: str" in str(report)
    assert [drift.output for drift in report.drift] == ["logits"]
    assert report.to_dict()["unverified"] == ["note: str"]


def test_ids_may_change_where_they_do_by_rounding_or_as_declared() -> None:
    ids = torch.arange(100)
    off = torch.where(ids < 3, 0, ids)
    assert not compared(ids, ids.clone())
    assert compared(ids, off)
    assert not compared(ids, off, exact=torch.where(ids < 2, 7, ids))
    assert compared(ids, off, exact=torch.where(ids < 2, 7, ids), same=False)
    assert not compared(ids, off, margin=0.03)
    one = torch.where(ids == 7, 0, ids)
    for size, epsilon, expected in [(100, 2**-8, False), (8, 2**-11, False), (7, 2**-8, True), (100, 2**-23, True)]:
        few = slice(7, 7 + size) if size < 100 else slice(None)
        assert compared(ids[few], one[few], exact=ids[few], epsilon=epsilon) == expected
    assert compared(ids, torch.where(ids < 3, 0, ids), exact=ids, epsilon=2**-8)
    assert compared(ids, one, exact=ids, epsilon=2**-8, same=False)
    assert "2.00% of its elements changed (margin 0.00%)" in str(drifts({"y": ids}, {"y": off}, None, None)[0])


# ------------------------------------------------------------------------------------------------------- left as it was


class Counting(nn.Module):
    """A model that keeps something from one forward to the next, in every way there is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(8, 8), transformers.activations.NewGELUActivation()
        self.norm = nn.BatchNorm1d(8)
        self.seen, self.past, self.table = 0, [], {"calls": torch.zeros(1)}
        self.scale = torch.ones(8)
        self.draw = torch.Generator().manual_seed(3)
        self.numbers, self.python = np.random.default_rng(3), random.Random(3)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.past.append(x.mean())
        self.table["calls"] += 1
        self.scale.mul_(1.5)
        self.late = self.seen
        noise = torch.rand(8, generator=self.draw, dtype=torch.float64).to(x) + self.numbers.random() + random.random()
        noise = noise + self.python.random() + np.random.rand() + torch.rand(1, dtype=torch.float64).to(x)
        x.mul_(2)
        return self.norm(self.act(self.linear(x * self.scale.to(x)))) + noise * self.seen * len(self.past)


@pytest.mark.parametrize("options", [{}, {"activation": "relu"}, {"implementation": "wrong backward"}])
@pytest.mark.parametrize("gradients", [False, True])
def test_model_batch_and_random_numbers_are_as_they_were(options: dict[str, Any], gradients: bool) -> None:
    torch.manual_seed(0)
    model = Counting().train()
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    grads = [weight.grad for weight in model.parameters()]
    x = torch.randn(4, 8)
    given = x.clone()
    own = vars(model).keys()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    streams = model.draw.get_state(), model.numbers.bit_generator.state, model.python.getstate()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        assert patch(model, verify=x, gradients=gradients, **options).drift
        fails = False
    except VerificationError:
        fails = True
    assert fails == (options != {} and ("activation" in options or gradients))
    assert torch.equal(x, given)
    assert vars(model).keys() - {"forward"} <= own | {"_hf_gelu_patch"}
    assert (model.seen, model.past, float(model.table["calls"])) == (0, [], 0.0)
    assert torch.equal(model.scale, torch.ones(8))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    assert torch.equal(model.draw.get_state(), streams[0])
    assert (model.numbers.bit_generator.state, model.python.getstate()) == streams[1:]
    assert model.training
    for weight, grad in zip(model.parameters(), grads, strict=True):
        assert weight.grad is grad
        assert bool((grad == 1).all())


class Late(Counting):
    """A model that makes layers and weights in its first forward, exchanges one, and has a layer in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = nn.Linear(8, 8)
        self.hidden = [nn.BatchNorm1d(8, dtype=torch.float32)]

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "more"):
            self.more, self.weight = nn.Linear(8, 8), nn.Parameter(torch.rand(8))
            self.linear.register_buffer("steps", torch.zeros(1))
        self.tied.weight = self.linear.weight
        self.hidden[0](x.float())
        return super().forward(x) + self.weight * self.more(x)


@pytest.mark.parametrize("options", [{}, {"activation": "relu"}])
def test_layers_and_weights_that_a_run_makes_are_taken_away(options: dict[str, Any]) -> None:
    model = Late().train()
    names, tied, hidden = [*model.state_dict()], model.tied.weight, model.hidden[0]
    try:
        assert patch(model, verify=torch.randn(4, 8), **options).drift
        assert not options
    except VerificationError:
        assert options
    assert [*model.state_dict()] == names
    assert model.tied.weight is tied
    assert int(hidden.num_batches_tracked) == 0
    assert not hidden.running_mean.any()


def test_as_it_was_where_the_model_raises() -> None:
    class Raising(Counting):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            self.eval()
            self.linear.requires_grad_(False)
            raise ValueError("no more")

    model = Raising().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    numbers = torch.get_rng_state()
    with pytest.raises(ValueError, match="no more"):
        patch(model, verify=torch.randn(4, 8, generator=torch.Generator()))
    assert model.training
    assert model.norm.training
    assert model.linear.weight.requires_grad
    assert model.seen == 0
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.parametrize("kind", ["dynamic", "static", "encoder-decoder", "lists"])
def test_caches_are_copied(kind: str) -> None:
    family = FAMILIES["t5-v1.1"] if kind == "encoder-decoder" else GPT2
    model = family.build()
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # before 5.24
    with torch.no_grad():
        if kind == "encoder-decoder":
            said = model(**family.inputs())
            cache = said[name]
            batch = {"encoder_outputs": (said.encoder_last_hidden_state,), "decoder_input_ids": IDS[:, :1]}
        else:
            static = transformers.StaticCache(config=model.config, max_cache_len=20) if kind == "static" else None
            cache = model(IDS, **{name: static}, use_cache=True)[name]
            batch = {"input_ids": IDS[:, :1]}
    length = int(cache.get_seq_length())
    batch[name] = cache
    report = patch(model, verify=batch)
    assert int(cache.get_seq_length()) == length
    assert next(drift for drift in report.drift if drift.output == "logits").error_before is not None
    assert any(name in drift.output for drift in report.drift)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_power_iterations_are_undone(norm: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Linear(8, 16)), transformers.activations.NewGELUActivation(), nn.Linear(16, 4))
    state = {name: value.clone() for name, value in model.train().state_dict().items()}
    patch(model, verify=torch.randn(4, 8))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_random_numbers_of_numpy_are_drawn_alike() -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.Wav2Vec2Config(
        **small,
        vocab_size=32,
        conv_dim=(16, 16),
        conv_stride=(4, 4),
        conv_kernel=(8, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        mask_time_prob=0.5,
        mask_time_length=2,
        hidden_act="gelu_new",
    )
    torch.manual_seed(0)
    report = patch(transformers.Wav2Vec2Model(config).train(), verify=torch.randn(2, 2000))
    assert report.drift[0].largest < 1e-4


class Writing(nn.Module):
    """A model that changes its weights as it runs."""

    def __init__(self, how: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.inner, self.how = GPT2.build(), how

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.inner(input_ids, use_cache=False).logits
        self.how(self.inner.transformer.wpe.weight)
        return logits


@pytest.mark.parametrize(
    "how",
    [
        lambda weight: weight.detach().mul_(1 - 1e-6),
        lambda weight: weight.data.mul_(2),
        lambda weight: weight.data[3, :1].add_(1e-6),
        lambda weight: weight.data.copy_(weight.flip(0)),
        lambda weight: weight.data.copy_(weight.flip(1)),
        lambda weight: weight.data.neg_(),
        lambda weight: weight.data[:, :2].neg_(),
    ],
)
def test_a_model_that_changes_its_weights_is_refused(how: Callable[[Tensor], object]) -> None:
    with pytest.raises(VerificationError, match=r"changes its weights .*inner\.transformer\.wpe\.weight"):
        patch(Writing(how), verify=IDS)
    assert patch(Writing(lambda weight: weight.data.mul_(1)), verify=IDS).drift


def test_an_implementation_that_changes_weights_is_refused() -> None:
    model = GPT2.build()

    def nudging(x: Tensor) -> Tensor:
        model.transformer.wpe.weight.data[0, 0] += 1e-6
        return torch.nn.functional.gelu(x, approximate="tanh")

    with pytest.raises(VerificationError, match=r"changes its weights .*once patched: transformer\.wpe\.weight"):
        patch(model, implementation=Implementation("nudging", {"gelu_tanh": nudging}), verify=IDS)
    assert "not patched" not in str(patch(model).summary)


# ------------------------------------------------------------------------------------------------------ mixed precision


class Float32Head(nn.Module):
    """A model of half precision with a head in float32, to which it casts what it hands over."""

    def __init__(self, cast: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.cast = GPT2.build().transformer.to(torch.bfloat16), cast
        self.head = nn.Linear(self.body.config.n_embd, 16)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.cast(self.body(input_ids, use_cache=False).last_hidden_state))


@pytest.mark.parametrize("cast", [Tensor.float, lambda x: x.to(torch.float32), lambda x: x.type(dtype=torch.float32)])
def test_a_model_that_casts_is_held_against_float64_too(cast: Callable[[Tensor], Tensor]) -> None:
    (drift,) = patch(Float32Head(cast), verify=IDS).drift
    assert drift.error_before is not None
    wrong = Implementation("wrong", {"gelu_tanh": lambda x: 1.1 * torch.nn.functional.gelu(x, approximate="tanh")})
    assert "error against float64" in refused(Float32Head(cast), implementation=wrong)


@pytest.mark.parametrize("family", ["gpt2", "t5-v1.1", "bloom", "gemma"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_that_is_handed_out_as_float32(family: str, dtype: torch.dtype) -> None:
    one = FAMILIES[family]
    batch = {**one.inputs(), "use_cache": False}
    batch["labels"] = batch.get("decoder_input_ids", batch["input_ids"])
    loss = next(d for d in patch(one.build(dtype), verify=batch).drift if d.output == "loss")
    assert loss.error_before is not None
    if family == "gpt2":
        raised = Head(lambda x: x.float(), dtype)
        assert patch(raised, verify=IDS).drift[0].largest > 1e-4
        refused(Head(lambda x: x.float(), dtype), activation="relu")


@pytest.mark.parametrize("around", ["autocast", "accelerate"])
def test_autocast_is_judged_by_what_it_computes_in(around: str) -> None:
    def made() -> nn.Module:
        model = GPT2.build()
        return Accelerator(cpu=True, mixed_precision="bf16").prepare(model) if around == "accelerate" else model

    batch = {"input_ids": IDS, "use_cache": False}
    with torch.autocast("cpu", torch.bfloat16, enabled=around == "autocast"):
        (drift,) = patch(made(), verify=batch).drift
        assert drift.largest > 1e-3
        assert drift.error_before is not None
        assert drift.error_before > 1e-3
        refused(made(), batch, activation="relu")
        assert torch.is_autocast_enabled("cpu") == (around == "autocast")


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe", "Olmoe"])
def test_experts_are_held_against_float64(family: str) -> None:
    """transformers multiplies them in groups, for which there is no float64."""
    config = getattr(transformers, f"{family}Config")(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        pad_token_id=2,
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    before = model.config.to_dict()
    report = patch(model, verify={"input_ids": IDS, "use_cache": False})
    assert [drift.error_before is not None for drift in report.drift] == [True] * len(report.drift)
    assert model.config.to_dict() == before


# ------------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_wrong_backward_is_caught(dtype: torch.dtype) -> None:
    for batch in (IDS, {"input_ids": IDS, "labels": IDS}):
        assert patch(GPT2.build(dtype), verify=batch, implementation="wrong backward").drift  # the forward is right
        said = refused(GPT2.build(dtype), batch, implementation="wrong backward", gradients=True)
        assert "gradient of transformer." in said
        assert ("more. Leave sites out" in said) or dtype != torch.float32  # five of them are named


def test_a_wrong_backward_is_caught_in_the_gradients_of_inputs() -> None:
    embedded = torch.randn(2, 5, 32, requires_grad=True)
    frozen = GPT2.build().requires_grad_(False)
    said = refused(frozen, {"inputs_embeds": embedded}, implementation="wrong backward", gradients=True)
    assert "gradient of the input inputs_embeds" in said
    assert embedded.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "vit"])
def test_right_gradients_pass(family: str, dtype: torch.dtype) -> None:
    one = FAMILIES[family]
    model = one.build(dtype)
    with torch.no_grad():
        batch = {key: x.to(dtype) if x.is_floating_point() else x for key, x in one.inputs().items()}
        report = patch(model, verify=batch, gradients=True)
    names = {drift.output for drift in report.drift}
    assert {f"gradient of {name}" for name, _ in model.named_parameters()} & names
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_gradients_in_training_and_with_checkpoints(reentrant: bool | None) -> None:
    def made() -> nn.Module:
        model = GPT2.build().train()
        if reentrant is not None:
            name = "activation_checkpointing_enable"  # since transformers 5.2
            enable = getattr(model, name, None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        return model

    batch = {"input_ids": IDS, "labels": IDS}
    model = made()
    assert any(d.output.startswith("gradient") for d in patch(model, verify=batch, gradients=True).drift)
    assert all(weight.grad is None for weight in model.parameters())
    assert "gradient of" in refused(made(), batch, implementation="wrong backward", gradients=True)


def test_gradients_that_there_are_not() -> None:
    assert "requires_grad_(True)" in refused(GPT2.build().requires_grad_(False), gradients=True)
    assert "depends on" in refused(Head(lambda x: x.detach()), gradients=True)
    assert "depends on" in refused(Head(lambda x: x.argmax(-1)), gradients=True)
    with torch.inference_mode():
        assert "inference_mode" in refused(GPT2.build(), gradients=True)
    with pytest.raises(PatchError, match="verify="):
        patch(GPT2.build(), gradients=True)
    with patched(GPT2.build(), verify=IDS, gradients=True) as report:
        assert any(drift.output.startswith("gradient") for drift in report.drift)


@pytest.mark.parametrize(
    "loss", [lambda x: x.mean() * math.nan, lambda x: torch.relu(x.mean() - 1e6), lambda x: x.mean() * 0]
)
def test_gradients_that_say_nothing_are_not_verified(loss: Callable[[Tensor], Tensor]) -> None:
    def how(logits: Tensor) -> dict[str, Tensor]:
        return {"loss": loss(logits), "logits": logits}

    assert patch(Head(how), verify=IDS).drift
    said = refused(Head(how), gradients=True, implementation="wrong backward")
    assert "all 0 or not finite" in said
    assert "leave out gradients=True" in said


def test_labels_that_are_all_ignored_are_told() -> None:
    batch = {"input_ids": IDS, "labels": torch.full_like(IDS, -100)}
    assert "labels that are not all -100" in refused(GPT2.build(), batch, gradients=True)


# --------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("fault", ["exact", "scaled", "shifted", "one element", "last row"])
def test_small_faults_are_caught(fault: str) -> None:
    refused(GPT2.build(), {"input_ids": IDS, "use_cache": False}, implementation=fault)


def test_runs_are_alike() -> None:
    model = Counting().train()
    first, second = run(model, torch.ones(2, 8)), run(model, torch.ones(2, 8))
    assert torch.equal(first.tensors["output"], second.tensors["output"])
