"""What torch's operations make of tokens, and how wide that is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F

from hf_gelu_patch.formula_reader import is_elementwise, is_elementwise_method
from hf_gelu_patch.tiling.values import STEADY, TENSORS, NotTokenWiseError, Sizes, Steady, Tokens, Weight, described
from hf_gelu_patch.tiling.verdicts import PLAIN

__all__ = ["Operations"]

_ALIKE = {
    *("to", "float", "half", "bfloat16", "double", "type", "type_as", "contiguous", "clone", "detach", "masked_fill"),
}
"""Methods of a tensor that, beside the elementwise ones, give for each number one."""
_REDUCING = {"mean": 2, "sum": 2, "amax": 2, "amin": 2, "var": 0, "std": 0, "norm": 0}
"""Over a dimension that is to be named, and where among the positional arguments ``keepdim`` may stand (0: nowhere)."""


class Operations:
    """The operations of one method, and what they add up to.

    Attributes:
        numbers, widest, draws: as in ``Verdict``.
        given_width: of its input, as far as it is known.
    """

    def __init__(self) -> None:
        self.numbers = self.widest = self.given_width = 0
        self.draws = False

    def made(self, width: int | None) -> Tokens:
        """A new tensor of that many numbers a token."""
        self.numbers += width or 0
        self.widest = max(self.widest, width or 0)
        return Tokens(width)

    def pointwise(self, given: Iterable[Any], *, new: bool = True) -> Tokens | Weight:
        """What an elementwise operation gives for these arguments."""
        values = list(given)
        tokens = [value for value in values if isinstance(value, Tokens)]
        weights = [value for value in values if isinstance(value, Weight)]
        for value in values:
            if not isinstance(value, (*TENSORS, *PLAIN, Steady)):
                raise NotTokenWiseError(f"an elementwise operation is given {described(value)}")
        if not tokens:
            return max(weights, key=lambda weight: len(weight.shape))
        if any(len(weight.shape) > 1 for weight in weights):
            raise NotTokenWiseError("a weight of several dimensions meets the tokens elementwise")
        widths = [value.width for value in tokens] + [weight.shape[-1] for weight in weights if weight.shape]
        width = max((one for one in widths if one is not None), default=None)
        return self.made(width) if new else Tokens(width)

    def product(self, x: Any, weight: Any, bias: Any = None, *, out_in: bool) -> Tokens:
        """x · W (+ b); out_in: W has the shape (out, in)."""
        if not isinstance(x, Tokens) or not isinstance(weight, Weight) or len(weight.shape) != 2:
            raise NotTokenWiseError("a matrix product is of something else than the tokens and a weight (out, in)")
        if bias is not None and not (isinstance(bias, Weight) and len(bias.shape) == 1):
            raise NotTokenWiseError("a bias has several dimensions")
        out, into = weight.shape if out_in else weight.shape[::-1]
        if x.given:
            self.given_width = max(self.given_width, into)
        return self.made(out)

    # -- modules

    def normalised(self, x: Tokens, shape: object) -> Tokens:
        if not isinstance(shape, (tuple, list)) or len(shape) != 1:
            raise NotTokenWiseError("it normalises over more than the last dimension")
        (width,) = shape
        if x.given and isinstance(width, int):
            self.given_width = max(self.given_width, width)
        return self.made(width if isinstance(width, int) else x.width)

    def tensor_function(self, name: str, function: Any, given: list[Any], named: dict[str, Any]) -> Any:
        """What one of torch's functions, or a tensor's method (function None), gives."""
        x, *rest = given if given else (named.pop("input", None),)
        values = [x, *rest, *named.values()]
        if "out" in named or named.get("inplace", False) is not False or name.endswith("_"):
            raise NotTokenWiseError(f"{name} writes over a tensor")
        if name == "linear" and function is F.linear:
            bias = rest[1] if len(rest) > 1 else named.get("bias")
            return self.product(x, rest[0] if rest else named.get("weight"), bias, out_in=True)
        if name == "matmul" and len(rest) == 1:
            return self.product(x, rest[0], out_in=False)
        if name in ("t", "transpose") and isinstance(x, Weight) and len(x.shape) == 2:
            return Weight(x.shape[::-1])
        elementwise = is_elementwise_method(name) if function is None else is_elementwise(function)
        if elementwise or (function is None and name in _ALIKE):
            if name == "where" and len(values) != 3:
                raise NotTokenWiseError("where looks for places among all tokens")
            if any(value is True for value in rest):  # F.silu(x, True)
                raise NotTokenWiseError(f"{name} may write over a tensor")
            return self.pointwise(values, new=name not in _ALIKE)
        if not isinstance(x, Tokens) and name not in ("cat", "concat"):
            raise NotTokenWiseError(f"what {name} does is not known")
        if name == "dropout" and function is F.dropout:
            if any(value is True for value in rest[2:]):
                raise NotTokenWiseError("dropout writes over a tensor")
            self.draws = True
            return self.made(x.width)
        if name in ("layer_norm", "rms_norm") and function is not None:
            return self.normalised(x, rest[0] if rest else named.get("normalized_shape"))
        if name in ("size", "dim", "get_device", "is_floating_point", "element_size") and function is None:
            return self.size(rest, named) if name == "size" else STEADY
        return self.along_last(name, function, x, rest, named)

    @staticmethod
    def size(rest: list[Any], named: dict[str, Any]) -> Any:
        if not rest and not named:
            return Sizes()
        if [*rest, *named.values()] != [-1]:
            raise NotTokenWiseError("it looks at how many tokens there are")
        return STEADY

    def along_last(self, name: str, function: Any, x: Any, rest: list[Any], named: dict[str, Any]) -> Any:
        """What a function gives that works along a dimension, which has to be the last."""
        place = {"chunk": 1, "split": 1, "norm": 1, "normalize": 1}.get(name, 0)
        dim = named.get("dim", rest[place] if len(rest) > place else (-1 if function is F.glu else None))
        if isinstance(dim, (tuple, list)) and len(dim) == 1:
            (dim,) = dim
        known = name in {*_REDUCING, "softmax", "log_softmax", "chunk", "split", "cat", "concat", "normalize", "glu"}
        if not known:
            raise NotTokenWiseError(f"what {name} does to each token by itself is not known")
        if dim != -1:
            raise NotTokenWiseError(f"{name} is not along the last dimension, written as -1")
        if name in ("cat", "concat"):
            parts = x if isinstance(x, (list, tuple)) else ()
            if not parts or not all(isinstance(part, Tokens) for part in parts):
                raise NotTokenWiseError(f"{name} joins something else than tokens")
            widths = [part.width for part in parts]
            return self.made(None if None in widths else sum(widths))
        if name in ("chunk", "split"):
            return self.parted(name, x, rest[0] if rest else next(iter(named.values())))
        if name in _REDUCING:
            at = _REDUCING[name]
            if named.get("keepdim", rest[at - 1] if at and len(rest) >= at else False) is not True:
                raise NotTokenWiseError(f"{name} does not keep the last dimension")
            return self.made(1)
        return self.made(x.width // 2 if name == "glu" and x.width else x.width)

    @staticmethod
    def parted(name: str, x: Tokens, into: Any) -> tuple[Tokens, ...]:
        """The parts of the last dimension."""
        if isinstance(into, (tuple, list)) and all(isinstance(one, int) for one in into):
            return tuple(map(Tokens, into))
        if not isinstance(into, int) or isinstance(into, bool) or into < 1:
            raise NotTokenWiseError(f"into what {name} parts the tokens is not known")
        if x.width is None:
            if name == "split":
                raise NotTokenWiseError("into how many parts split parts the tokens is not known")
            return (Tokens(None),) * into
        size = math.ceil(x.width / into) if name == "chunk" else into
        return tuple(Tokens(min(size, x.width - start)) for start in range(0, x.width, size))
