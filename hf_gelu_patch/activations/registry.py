"""One record for each activation, and the registry of them.

A record says what the function is, how torch and transformers compute it, and what there is to compute it faster.
Recognition, the implementations, the kernels and configs take what they need from it, and look it up when they are
asked: an activation that was added is there from then on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from torch import Tensor

from hf_gelu_patch.errors import PatchError, UnknownNameError

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Call",
    "Compiled",
    "Derived",
    "Module",
    "PostOp",
    "get_activation",
    "of_records",
    "register_activation",
]

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Module:
    """A class of modules that compute an activation.

    Attributes:
        cls: its qualified name, so that its library is not imported for it: ``"torch.nn.modules.activation.ELU"``.
        spelling: how transformers spells this way of computing it, ``"gelu_new"``; None for the activation's label.
        aten_ops: how many aten ops that takes.
        constants: the activation's constants that a module holds, each in the attribute of that name.
        when: whether a module of the class computes this activation and no other; None: it always does.
    """

    cls: str
    spelling: str | None = None
    aten_ops: int = 1
    constants: tuple[str, ...] = ()
    when: Callable[[Any], bool] | None = None


@dataclass(frozen=True)
class Call:
    """A function of torch that computes an activation of its first argument.

    Attributes:
        function: the function.
        arguments: the names of its further arguments, in their order: constants of the activation, ``inplace``, and
            what ``when`` asks for.
        in_place: whether it writes over its input however it is called.
        when: whether a call with these further arguments computes this activation and no other; None: it always does.
    """

    function: Function
    arguments: tuple[str, ...] = ()
    in_place: bool = False
    when: Callable[..., bool] | None = None


@dataclass(frozen=True)
class Compiled:
    """The device function of the compiled CPU kernels.

    Attributes:
        function: its name in ``implementations/cpp_kernels.cpp``.
        least: of how many elements on the kernel is called. To start it takes Python some microseconds more than to
            call torch's own op, which smaller tensors do not make up for.
    """

    function: str
    least: int = 0


@dataclass(frozen=True)
class PostOp:
    """An activation as oneDNN applies it to a product as that is stored, in the words of torch's private ops for it.

    Attributes:
        attr: oneDNN's name of it, as torch spells it.
        algorithm: which form of it.
        constants: the activation's constants that are numbers of it.
    """

    attr: str
    algorithm: str = ""
    constants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Activation:
    """One elementwise function R → R, with all that this package knows of it.

    Attributes:
        name: the name used everywhere in this package.
        formula: the function in words of mathematics, Φ and φ being the normal distribution's cdf and density and
            σ the logistic function.
        eager: what transformers' own module for ``config_name`` computes, for a tensor of any shape and float
            dtype; parameters are keyword arguments. A function of a module, so that a patched model can be pickled;
            so are the others below.
        reference: the function in float64, right in relative terms in both tails; float64 in, float64 out.
        derivative: the derivative of ``reference``, likewise.
        config_name: the spelling written to a config, a key of ``transformers.activations.ACT2FN``; None if it has
            none.
        aliases: further spellings that mean this function.
        approximates: the name of the activation this one was published as an approximation of.
        hidden: whether this is a hidden-layer activation. The others (gates, poolers, router scores, the identity)
            are swapped for another function only where ``include`` names them.
        learned: whether it has learned parameters, which makes it nobody's substitute.
        parameters: its constants, by name.
        positive: those constants that have to be greater than zero.
        modules: the classes of torch and transformers that compute it.
        calls: the functions of torch that compute it.
        written_with: names of functions that stand in the formula where a model writes it out, ``"erf"``. Of a forward
            that mentions none of these, and no activation by name, the formulas are not read.
        in_place: writes it over its input and returns that: the bits of ``eager``. The ``aten`` implementation
            computes the activations that have one.
        fewer_passes: the bits of ``eager`` in fewer passes over memory, for an input that autograd does not follow;
            None where ``eager`` has no superfluous one.
        fewest_ops: how many aten ops the ``aten`` implementation takes.
        kernel: the device function of the Triton kernels, ``"package.module:function"``; None if it has none.
            ``implementations.triton_kernels`` says what it takes and gives.
        cpp: the device function of the compiled CPU kernels; None if it has none.
        post_op: what oneDNN can apply to a product as it is stored; None if it has none.
    """

    name: str
    formula: str
    eager: Function
    reference: Function
    derivative: Function
    config_name: str | None = None
    aliases: tuple[str, ...] = ()
    approximates: str | None = None
    hidden: bool = True
    learned: bool = False
    parameters: tuple[tuple[str, float], ...] = ()
    positive: frozenset[str] = frozenset()
    modules: tuple[Module, ...] = ()
    calls: tuple[Call, ...] = ()
    written_with: tuple[str, ...] = ()
    in_place: Function | None = None
    fewer_passes: Function | None = None
    fewest_ops: int = 1
    kernel: str | None = None
    cpp: Compiled | None = None
    post_op: PostOp | None = None

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every name that means this function."""
        return tuple(dict.fromkeys(name for name in (self.name, self.config_name, *self.aliases) if name is not None))

    @property
    def label(self) -> str:
        """The name, with those constants that are not the usual ones: ``leaky_relu(negative_slope=0.2)``."""
        usual = dict(ACTIVATIONS[self.name].parameters) if self.name in ACTIVATIONS else {}
        shown = [f"{key}={value:g}" for key, value in self.parameters if usual.get(key) != value]
        return f"{self.name}({', '.join(shown)})" if shown else self.name

    def bind(self, function: Function) -> Callable[[Tensor], Tensor]:
        """``function`` with this activation's constants filled in."""
        return functools.partial(function, **dict(self.parameters)) if self.parameters else function

    def with_parameters(self, **parameters: float) -> Activation:
        """The same function with other constants."""
        return replace(self, parameters=tuple((key, float(value)) for key, value in parameters.items()))


ACTIVATIONS: dict[str, Activation] = {}
"""Every activation by name."""


def register_activation(activation: Activation) -> None:
    """Add an activation. It is recognised, computed by ``eager`` and listed from then on; by ``aten`` and ``triton``
    where its record has what they need.

    Add it before its models are first looked at: how a class applies activations is read once.

    Raises:
        PatchError: the name, or another spelling of it, is taken.
    """
    taken = {spelling: other.name for other in ACTIVATIONS.values() for spelling in other.spellings}
    for spelling in activation.spellings:
        if spelling in taken:
            raise PatchError(
                f"the activation name {spelling!r} is taken by {taken[spelling]}: register {activation.name} with "
                "another name, config_name or aliases."
            )
    ACTIVATIONS[activation.name] = activation


def get_activation(name: str) -> Activation:
    """The activation that ``name``, or a transformers spelling such as ``"gelu_new"``, means.

    Raises:
        UnknownNameError: no activation is spelt so; the message lists the valid names.
    """
    spelled = _by_spelling()
    if name not in spelled:
        raise UnknownNameError("activation", name, spelled)
    return spelled[name]


T = TypeVar("T")


def of_records(build: Callable[[tuple[Activation, ...]], T]) -> Callable[[], T]:
    """What ``build`` makes of all the records: made once, and again when an activation was added or taken away."""
    made: list[tuple[tuple[Activation, ...], T]] = []

    @functools.wraps(build)
    def current() -> T:
        records = tuple(ACTIVATIONS.values())
        if not made or made[0][0] != records:
            made[:] = [(records, build(records))]
        return made[0][1]

    return current


@of_records
def _by_spelling(records: tuple[Activation, ...]) -> dict[str, Activation]:
    return {spelling: record for record in records for spelling in record.spellings}


class Derived(Mapping[str, T], Generic[T]):
    """What ``make`` gives for each activation's record, by the activation's name; without those that it gives None
    for. An activation that is added later is in it too."""

    def __init__(self, make: Callable[[Activation], T | None]) -> None:
        self._make = make

    def __getitem__(self, name: str) -> T:
        made = self._make(ACTIVATIONS[name])
        if made is None:
            raise KeyError(name)
        return made

    def __iter__(self) -> Iterator[str]:
        return (name for name, record in ACTIVATIONS.items() if self._make(record) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)
