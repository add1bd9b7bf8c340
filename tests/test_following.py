"""Calls that are followed into the function that they call: what it computes is fused there, for the caller alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from test_forwards import build, checked, inputs, methods
from test_forwards import write as write
from torch import nn

from hf_gelu_patch import explain, find_sites, patch, patched, unpatch

Write = Callable[..., ModuleType]

HELPERS = """
def product(gate, up):
    return F.silu(gate) * up

def inner(x, *, gate=None):
    if gate is not None:
        x = x * F.silu(gate)
    return x

def outer(x, gate):
    return inner(x, gate=gate) + 1

def doubled(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return 2 * function(*args, **kwargs)
    return wrapper

@doubled
def decorated(gate, up):
    return F.silu(gate) * up

def of_module(self, x):
    return self.act(self.fc(x)) * self.fc2(x)

def deep(gate, up):
    return deeper(gate, up)

def deeper(gate, up):
    return deepest(gate, up)

def deepest(gate, up):
    return product(gate, up)

def again(gate, up, depth=1):
    return F.silu(gate) * up if not depth else again(gate, up, depth - 1)

def handed(function, gate, up):
    return function(gate, up)

def scan(xs, gate):
    total = sum(product(gate, x) for x in xs)
    return total
"""


def forward(text: str) -> str:
    return methods(f"def forward(self, x):\n    {text}\n")


PRODUCT = "return gated(patched_silu, gate, up)"
FOLLOWED = {  # what the forward does: what stands there afterwards, and in the functions that it calls
    "a plain function": (
        "return product(self.fc(x), self.fc2(x))",
        ["return patched_product(product)(self.fc(x), self.fc2(x))", PRODUCT],
    ),
    "twice": (
        "return product(x, self.fc(x)) + product(self.fc2(x), x)",
        ["return patched_product(product)(x, self.fc(x)) + patched_product(product)(self.fc2(x), x)", PRODUCT],
    ),
    "in a comprehension": (
        "return torch.stack([product(one, x[0]) for one in self.fc(x)])",
        ["return torch.stack([patched_product(product)(one, x[0]) for one in self.fc(x)])", PRODUCT],
    ),
    "a function that calls it": (
        "return outer(self.fc(x), x)",
        [
            "return patched_outer(outer)(self.fc(x), x)",
            "return patched_inner(inner)(x, gate=gate) + 1",
            "x = gated_last(patched_silu, x, gate)",
        ],
    ),
    "decorated": (
        "return decorated(self.fc(x), x)",
        ["return patched_decorated(decorated)(self.fc(x), x)", PRODUCT],
    ),
    "it takes the module": (
        "return of_module(self, x)",
        [
            "return patched_of_module(of_module)(self, x)",
            "return gated(patched_silu(self.act), self.fc(x), self.fc2(x))",
        ],
    ),
    "a generator in it": (
        "return scan([x, 2 * x], self.fc(x))",
        [
            "return patched_scan(scan)([x, 2 * x], self.fc(x))",
            "total = sum(patched_product(product)(gate, x) for x in xs)",
            PRODUCT,
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), FOLLOWED.values(), ids=FOLLOWED)
def test_a_function_that_a_forward_calls_is_fused_there(body: str, expected: list[str], write: Write) -> None:
    found = checked(build(write(HELPERS + forward(body))))
    assert found.added() == expected
    (site,) = [site for site in found.report.sites if site.line]
    assert (site.kind, site.fused, site.equivalence) == ("gated", True, "identical")


LEFT = {  # what the forward does with a function that is not followed
    "it is handed on": "return handed(product, self.fc(x), x)",
    "it is called and handed on": "return handed(product, self.fc(x), x) + product(x, x)",
    "under another name": "f = product\n    return f(self.fc(x), x)",
    "by another module": "return of_module(self.other, x)",
    "too deep": "return deep(self.fc(x), x)",
    "it calls itself": "return again(self.fc(x), x)",
    "as an argument's default": "return (lambda f=product: f(self.fc(x), x))()",
    "from a dictionary": "return {'product': product}['product'](self.fc(x), x)",
    "by a property": "return self.once",
}  # fmt: skip


@pytest.mark.parametrize("body", LEFT.values(), ids=LEFT)
def test_what_is_reached_in_any_other_way_is_left_alone_with_a_reason(body: str, write: Write) -> None:
    extra = """
    @property
    def once(self):
        return F.silu(self.fc.weight) * self.fc2.weight
"""
    module = write(HELPERS + methods(f"def forward(self, x):\n    {body}\n") + (extra if "once" in body else ""))
    torch.manual_seed(0)
    model = module.M()
    other = copy.deepcopy(model)
    other.act = nn.GELU()
    object.__setattr__(model, "other", other)  # no part of it
    found = checked(model)
    (site,) = [site for site in found.report.sites if site.line]
    assert (site.fused, found.diff) == (False, "")
    begins = "nothing can take its place" if site.written else "silu is one aten op already, and cannot be fused"
    before, _, why = site.reason.partition(": ")
    assert before == begins
    assert why == "it is a property" if "once" in body else why.endswith(", and not only plain calls lead there")


ABOVE = {  # a class and what one derived from it does with its method: what is rewritten
    "super": (
        "def forward(self, x):\n    return super().forward(x) + 1",
        ["return patched_forward(super().forward)(x) + 1"],
    ),
    "super of two": (
        "def forward(self, x):\n    return super(Sub, self).forward(x) + 1",
        ["return patched_forward(super(Sub, self).forward)(x) + 1"],
    ),
    "by the class's name": (
        "def forward(self, x):\n    return Base.forward(self, x) + 1",
        ["return patched_forward(Base.forward)(self, x) + 1"],
    ),
    "from another method": (
        "def forward(self, x):\n    return self.more(x)\n\ndef more(self, x):\n    return super().forward(x)",
        ["return patched_forward(super().forward)(x)"],
    ),
    "of another module": ("def forward(self, x):\n    return Base.forward(self.twin, x) + 1", []),
    "handed on": ("def forward(self, x):\n    f = super().forward\n    return f(x) + 1", []),
}  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), ABOVE.values(), ids=ABOVE)
def test_a_method_above_is_fused_where_it_is_called(body: str, expected: list[str], write: Write) -> None:
    base = forward("return self.act(self.fc(x)) * self.fc2(x)")
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    base = base.replace("class M(", "class Base(")
    module = write(f"{base}\nclass Sub(Base):\n{indented}\nM = Sub\n")
    model = build(module)
    object.__setattr__(model, "twin", copy.deepcopy(model))
    before = vars(module.Base).copy()
    found = checked(model)
    line = "return gated(patched_silu(self.act), self.fc(x), self.fc2(x))"
    assert found.added() == ([*expected, line] if expected else [])
    assert vars(module.Base) == before
    assert found.site.fused == bool(expected)
    assert found.site.kind == "gated"
    past = "super() reaches it, past anything that is bound on the module"
    assert expected or found.site.reason == f"silu is one aten op already, and cannot be fused: {past}"


def test_what_an_object_does_that_a_module_calls_is_listed(write: Write) -> None:
    processor = """
class Processor:
    def __call__(self, module, x):
        return F.silu(module.fc(x)) * x
"""
    model = build(write(processor + forward("return self.processor(self, x)") + "    processor = None\n"))
    model.processor = type(model).__init__.__globals__["Processor"]()
    found = checked(model)
    assert (found.site.owner, found.site.activation, found.site.kind) == ("M", "silu", "gated")
    assert found.site.reason.startswith("nothing can take its place: it stands in Processor.__call__, ")


def test_a_static_method(write: Write) -> None:
    source = (
        forward("return self.product(self.fc(x), x)")
        + "\n    @staticmethod\n    def product(gate, up):\n        return F.silu(gate) * up\n"
    )
    found = checked(build(write(source)))
    assert found.added() == ["return patched_product(self.product)(self.fc(x), x)", PRODUCT]


def test_a_function_of_another_module_of_the_same_package(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write(HELPERS)
    module = write("other = None\n" + forward("return other.product(self.fc(x), x)"))
    for one, name in ((other, "together.other"), (module, "together.module")):
        monkeypatch.setattr(one, "__name__", name)
        monkeypatch.setitem(__import__("sys").modules, name, one)
    module.other = other
    for function in (other.product, module.M.forward):
        function.__module__ = "together.other" if function is other.product else "together.module"
    found = checked(build(module))
    assert found.added() == ["return patched_product(other.product)(self.fc(x), x)", PRODUCT]


def test_what_takes_the_functions_place_later_is_called(write: Write) -> None:
    module = write(HELPERS + forward("return product(self.fc(x), x)"))
    model = build(module)
    own = module.product
    with torch.no_grad(), patched(model, implementation="aten"):
        before = model(inputs())
        module.product = lambda gate, up: gate - up
        assert torch.equal(model(inputs()), model.fc(inputs()) - inputs())
        module.product = own
        assert torch.equal(model(inputs()), before)
    assert module.product is own


def test_another_module_that_calls_the_function_is_left_as_it_is(write: Write) -> None:
    module = write(HELPERS + forward("return product(self.fc(x), x)"))
    one, other = build(module), build(module)
    patch(one, implementation="aten")
    assert "patched" not in str(type(other).forward.__code__.co_freevars)
    assert not any("patched" in name for name in module.product.__code__.co_names)
    assert torch.equal(one(inputs()), other(inputs()))
    assert find_sites(other, implementation="aten").changed
    unpatch(one)


def test_a_patched_model_is_pickled_and_copied(write: Write) -> None:
    module = write(HELPERS + forward("return outer(self.fc(x), x)"))
    model = build(module)
    patch(model, implementation="aten")
    with torch.no_grad():
        expected = model(inputs())
        for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert torch.equal(twin(inputs()), expected)
            assert explain(twin) == explain(model)
            unpatch(twin)
            assert type(twin) is module.M


@pytest.mark.parametrize("followed", ["product(self.fc(x), x)", "outer(x, self.fc(x)) - 1", "self.own(self.fc(x)) * x"])
def test_another_function_takes_the_place_of_the_one_there_also_where_that_is_recorded(
    followed: str, write: Write
) -> None:
    own = "def own(self, x):\n    return F.silu(x)\n\n"
    module = write(HELPERS + methods(f"{own}def forward(self, x):\n    return {followed}\n"))
    model = build(module)
    with torch.no_grad(), patched(model, activation="gelu", implementation="aten", exclude="SiLU"):
        expected = torch.nn.functional.gelu(model.fc(inputs())) * inputs()
        assert torch.allclose(model(inputs()), expected, atol=1e-6)
        assert torch.allclose(torch.jit.trace(model, inputs())(inputs()), expected, atol=1e-6)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(inputs()), expected, atol=1e-6)
    torch.compiler.reset()


@pytest.mark.parametrize("called", ["super().own(x)", "super(Sub, self).own(x)", "Base.own(self, x)"])
def test_another_function_takes_the_place_of_the_one_above_also_where_that_is_compiled(
    called: str, write: Write
) -> None:
    base = methods("def own(self, x):\n    return F.silu(self.fc(x))\n").replace("class M(", "class Base(")
    more = f"def own(self, x):\n        return {called} * x\n\n    def forward(self, x):\n        return self.own(x)"
    model = build(write(f"{base}\nclass Sub(Base):\n    {more}\nM = Sub\n"))
    with torch.no_grad(), patched(model, activation="gelu", implementation="aten", exclude="SiLU"):
        expected = torch.nn.functional.gelu(model.fc(inputs())) * inputs()
        assert torch.allclose(model(inputs()), expected, atol=1e-6)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(inputs()), expected, atol=1e-6)
        exported = torch.export.export(model, (inputs(),), strict=True).module()
        assert torch.allclose(exported(inputs()), expected, atol=1e-6)
    torch.compiler.reset()


def test_the_whole_is_compiled(write: Write) -> None:
    model = build(write(HELPERS + forward("return outer(self.fc(x), x)")))
    with torch.no_grad():
        expected = model(inputs())
        with patched(model, implementation="aten"):
            compiled = torch.compile(model, fullgraph=True, backend="eager")
            assert torch.equal(compiled(inputs()), expected)
    torch.compiler.reset()


MODELS = {"mamba": 2, "vits": 0}  # by the type: products whose factors lie otherwise in memory, which none are fused


@pytest.mark.newest  # an older transformers writes some of them otherwise
@pytest.mark.parametrize(("model_type", "apart"), MODELS.items())
def test_models_of_transformers(model_type: str, apart: int) -> None:
    from scripts.covering.coverage import cover

    row = cover(model_type)
    assert not row.problems
    assert row.gated >= 2
    assert row.gated_fused == row.gated - apart


# Layers of other libraries, where these are installed


def fusion(model: nn.Module, x: torch.Tensor) -> list[tuple[str, bool]]:
    """What is fused in a layer, which gives the same bits before, while and after it is patched."""
    with torch.no_grad():
        before = model(x)
        with patched(model, implementation="aten") as report:
            assert torch.equal(model(x), before)
        assert torch.equal(model(x), before)
    return [(site.kind, site.fused) for site in report.sites if site.line]


def test_layers_of_diffusers() -> None:
    attention = pytest.importorskip("diffusers.models.attention")
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    assert fusion(attention.FeedForward(4, activation_fn="geglu"), inputs()) == [("gated", True)]
    assert ("linear", True) in fusion(embeddings.TimestepEmbedding(4, 8), inputs())


def test_layers_of_torchtune() -> None:
    feed_forward = pytest.importorskip("torchtune.modules.feed_forward", exc_type=ImportError).FeedForward
    layers = {"gate_proj": nn.Linear(4, 8), "down_proj": nn.Linear(8, 4)}
    assert fusion(feed_forward(**layers, up_proj=nn.Linear(4, 8)), inputs()) == [("gated", True)]
    assert fusion(feed_forward(**layers), inputs()) == [("linear", True)]


def test_layers_of_timm() -> None:
    timm = pytest.importorskip("timm")
    block = timm.create_model("mambaout_femto", pretrained=False).stages[0].blocks[0].eval()
    assert fusion(block, torch.randn(1, 4, 4, block.norm.normalized_shape[0])) == [("gated", True)]
