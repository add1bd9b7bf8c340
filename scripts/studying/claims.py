"""What the pieces come to: a verdict on each claim, in one sentence, with the numbers it rests on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit

from scripts.studying.models import OTHER
from scripts.studying.second_order import SMOOTHNESS
from scripts.studying.training import FUNCTIONS, OWN, RECIPES, SMOOTHED

__all__ = [
    "NAMES",
    "STAGES",
    "VERDICTS",
    "Claim",
    "Paired",
    "effects",
    "family_blocks",
    "first_difference",
    "fitted_losses",
    "judged",
    "paired",
    "per_block",
    "reached",
    "smooth_and_not",
    "target",
    "trained",
    "updates",
]

Found = Mapping[str, Any]
"""``study.json``."""

VERDICTS = HOLDS, LIMITS, FALSE, OPEN = "holds", "holds with limits", "false", "not decidable here"
NAMES = {"gelu": "GELU", "gelu_tanh": "tanh form", "gelu_new": "tanh form, eight ops", "silu": "SiLU"}
NAMES |= {"quick_gelu": "quick GELU", "relu": "ReLU", "bert": "MiniLM", "gpt2": "GPT-2", "t5": "T5", "vit": "ViT"}
STAGES = {"swapped": "swapped in", "healed": "healed", "scratch": "from scratch"}
"""When a small model came to its function, as ``effects`` takes it, and in words."""
_POWER = 0.8
_TARGET = 0.6  # of the way through a training: the loss there is the one to be reached
_NOT_THE_OWN = 1e-5  # of the largest output: what two spellings of one form may differ by


@dataclass(frozen=True)
class Claim:
    """A claim, and what became of it.

    Attributes:
        number: as the study counts them.
        said: what the article says.
        verdict: "holds", "holds with limits", "false" or "not decidable here".
        sentence: why.
        numbers: what it rests on: what, how much with its interval, and from which pieces.
        figures: the names of the figures that show it.
    """

    number: int
    said: str
    verdict: str
    sentence: str
    numbers: tuple[tuple[str, str], ...]
    figures: tuple[str, ...]

    @property
    def command(self) -> str:
        return "python -m scripts.studying results/study"


@dataclass(frozen=True)
class Paired:
    """A mean difference between runs of the same seeds, with its 95 % interval by Student's t, and the smallest
    difference that so many runs find four times out of five."""

    mean: float
    low: float
    high: float
    visible: float

    def __str__(self) -> str:
        return f"{_signed(self.mean)} ({_signed(self.low)} to {_signed(self.high)})"

    @property
    def seen(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0


def paired(differences: Sequence[float]) -> Paired:
    """Of two differences or more."""
    size, mean = len(differences), statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(size)
    reach = float(stdtrit(size - 1, 0.975)) * error
    return Paired(mean, mean - reach, mean + reach, reach + float(stdtrit(size - 1, _POWER)) * error)


def judged(found: Found) -> tuple[Claim, ...]:
    """Every claim, in order."""
    return tuple(judge(found) for judge in (_first, _second, _third, _fourth, _fifth, _sixth, _seventh, _eighth))


def _part(found: Found, name: str) -> Any:
    return found["parts"][name]["found"]


# ------------------------------------------------------------------------------------------------------- the functions


def _first(found: Found) -> Claim:
    one = _part(found, "underflow")
    rows = []
    for dtype, parts in one["dtypes"].items():
        for part, ends in parts.items():
            rows.append(
                (
                    f"{part}, {dtype}: 0 from this x on, downwards",
                    f"{ends['rounded']:.2f} if it were rounded once; torch: {ends['gelu']:.2f}, tanh form "
                    f"{ends['gelu_tanh']:.2f}",
                )
            )
    single = one["dtypes"]["float32"]
    return Claim(
        1,
        "GELU's gradient is nonzero everywhere.",
        FALSE,
        f"GELU(x) = x·Φ(x) is smooth, but its gradient is 0 at x = {one['zero_of_derivative']:.4f}, where GELU has its "
        f"minimum of {one['minimum']:.4f}. In float32 torch's gradient on a CPU is 0 below "
        f"{single['gradient']['gelu']:.2f}, long before the true one is too small "
        f"({single['gradient']['rounded']:.2f}).",
        (("the gradient is 0 at", f"x = {one['zero_of_derivative']:.10f}"), *rows),
        ("functions",),
    )


def _second(found: Found) -> Claim:
    one, rows = _part(found, "distances"), []
    for dtype, signs in one["dtypes"].items():
        rows.append((f"{dtype}: told apart, of numbers from a normal distribution", f"{signs['normal']:.1%}"))
        for sign in ("negative", "positive"):
            rows.append(
                (f"{dtype}, {sign} x: largest distance, in units in the last place", f"{signs[sign]['units']:.1f}")
            )
    half = _half(found)
    below, above, neither = [], [], []
    for name in OTHER:
        ratio = _part(found, f"moved-{name}")["ratios"][half]
        side = below if ratio["high"] < 1 else above if ratio["low"] > 1 else neither
        side.append(f"{NAMES[name]} ({ratio['value']:.2g}×)")
        rows.append(
            (
                f"{NAMES[name]}: KL of the other form, beside that of {half}'s rounding",
                f"{ratio['value']:.2g}× ({ratio['low']:.2g} to {ratio['high']:.2g})",
            )
        )
    for name in OTHER:
        for dtype in found["sizes"]["dtypes"]:
            other = _part(found, f"other-form-{name}-{dtype}")
            rows.append(
                (
                    f"{NAMES[name]}, {dtype}: answers changed; p of as many gains and losses if both were chance",
                    f"{other['flips']:,} of {other['answers']:,}; {other['p']:.2g}",
                )
            )
    single = [_part(found, f"other-form-{name}-float32") for name in OTHER]
    changed = max(other["flips"] / other["answers"] for other in single)
    differ = one["dtypes"]["float16"]["normal"]
    return Claim(
        2,
        "The tanh form matches within about 10⁻³, and the drift is below the noise floor of fp16 inference.",
        HOLDS if len(below) == len(OTHER) else LIMITS if below else FALSE if above else OPEN,
        f"It is within {one['largest']:.2e} everywhere; but of normally distributed x, {differ:.0%} of fp16 results "
        f"differ, and those of negative x by up to {one['dtypes']['float16']['negative']['units']:,.0f} units in the "
        f"last place. By its mean KL from float64, the other form moves {_listed(below)} less than {half}'s rounding "
        f"does, and {_listed(above)} more{f'; {_listed(neither)} cannot be told' if neither else ''}. "
        f"Of the float32 answers of one model, at most {changed:.2%} change.",
        (("largest distance, over all x", f"{one['largest']:.3e} at x = ±{one['at']:.3f}"), *rows),
        ("distances", "models"),
    )


def _listed(names: Sequence[str]) -> str:
    *first, last = names or ["no model"]
    return f"{', '.join(first)} and {last}" if first else last


def _half(found: Found) -> str:
    """The 16-bit dtype that the other form is set beside: fp16 where it was measured."""
    return "float16" if "float16" in found["sizes"]["dtypes"] else "bfloat16"


def first_difference(found: Found, name: str) -> tuple[str, Any, float]:
    """A reference model's first metric, its difference with the other form in float32, and what it was before."""
    measured = _part(found, f"other-form-{name}-float32")
    metric, difference = next(iter(measured["differences"].items()))
    return metric, difference, float(measured["before"][metric])


def _third(found: Found) -> Claim:
    rows, seen = [], []
    whole, worst = True, 0.0
    for name in OTHER:
        one = _part(found, f"loaded-{name}")
        metric, difference, before = first_difference(found, name)
        whole = whole and not (one["missing"] or one["unexpected"])
        worst = max(worst, one["apart"])
        if difference["low"] > 0 or difference["high"] < 0:
            seen.append(NAMES[name])
        rows.append(
            (
                f"{NAMES[name]}: {one['missing']} weights missing, {one['unexpected']} left over; "
                f"{metric.replace('_', ' ')}",
                f"{before:.4g}; change {_signed(difference['value'])} ({_signed(difference['low'])} to "
                f"{_signed(difference['high'])})",
            )
        )
    moved = (
        f"the first metric moves by more than chance in {', '.join(seen)}"
        if seen
        else "no first metric moves by more than chance"
    )
    return Claim(
        3,
        "Checkpoints that were trained with one form load and run with the other.",
        (HOLDS if not seen else LIMITS) if whole and worst < _NOT_THE_OWN else FALSE,
        f"All weights of {len(OTHER)} checkpoints load, since neither form has any; {moved}.",
        tuple(rows),
        ("loaded",),
    )


def family_blocks(found: Found, family: str) -> Mapping[str, Any]:
    """The blocks of a model type, by the class of their layers."""
    blocks: Mapping[str, Any] = _part(found, f"blocks-{family}")["blocks"]
    return blocks


def per_block(found: Found) -> dict[str, int]:
    """How many model types have so many in each block; those whose blocks differ last."""
    counts: Mapping[str, int] = _part(found, "blocks-of-all")["per block"]
    ordered = sorted((int(count), types) for count, types in counts.items() if count.isdigit())
    told = {f"{count} in a block": types for count, types in ordered}
    return told | {"blocks that differ": counts["several"]} if "several" in counts else told


def _fourth(found: Found) -> Claim:
    rows = []
    families: dict[bool, list[str]] = {True: [], False: []}
    for family in found["sizes"]["families"]:
        kinds = family_blocks(found, family)
        families[all(list(kept["per block"]) == ["1"] for kept in kinds.values())].append(family)
        for block, kept in kinds.items():
            rows.append((f"{family}: {block}", " and ".join(kept["activations"]) or "none"))
    exactly = not families[False]
    told = ""
    if found["sizes"]["all_types"]:
        every = _part(found, "blocks-of-all")
        ones, types = every["per block"].get("1", 0), every["types"]
        exactly = exactly and ones == types
        told = f"; over all of transformers, where a stage of several layers counts as one block, in {ones} of {types}"
        told += " model types"
        rows += [(f"model types with {what}", f"{types:,}") for what, types in per_block(found).items()]
    return Claim(
        4,
        "A block has exactly one elementwise nonlinearity.",
        HOLDS if exactly else LIMITS,
        f"So it is in {', '.join(families[True]) or 'no family'}"
        f"{f', not in {_listed(families[False])}' if families[False] else ''}{told}. T5 1.0 has ReLU, mT5 and T5 1.1 "
        "the gated tanh form. Where × stands, a second linear layer's output is multiplied in: not linear "
        "either, and no function of one number. PaLM's SwiGLU is such a product too; transformers has no PaLM.",
        tuple(rows),
        ("blocks",),
    )


# ------------------------------------------------------------------------------------------------------- the trainings


def trained(found: Found, recipe: str, function: str) -> list[Any]:
    """Its runs, by seed."""
    return [_part(found, f"trained-{recipe}-{function}-{seed}") for seed in range(found["sizes"]["seeds"])]


def effects(found: Found, recipe: str, stage: str) -> dict[str, Paired]:
    """What each function does to the loss on what was held out, in nats, beside the recipe's own function.

    Args:
        stage: "scratch": trained with it; "swapped": into a model that was trained with the own one; "healed": and
            trained on for as long as the own one.
    """
    own = trained(found, recipe, OWN[recipe])
    moved: dict[str, Paired] = {}
    for function in FUNCTIONS:
        if function == OWN[recipe]:
            continue
        if stage == "scratch":
            pairs = zip(trained(found, recipe, function), own, strict=True)
            losses = [float(one["held_out"]["loss"]) - float(other["held_out"]["loss"]) for one, other in pairs]
        elif stage == "swapped":
            losses = [float(one["swapped"][function]["loss"]) - float(one["held_out"]["loss"]) for one in own]
        else:
            losses = [float(one["healed"][function]["loss"]) - float(one["healed"][OWN[recipe]]["loss"]) for one in own]
        moved[function] = paired(losses)
    return moved


def _fifth(found: Found) -> Claim:
    rows = []
    for recipe in RECIPES:
        for stage, told in STAGES.items():
            for function, effect in effects(found, recipe, stage).items():
                what = f"{NAMES[recipe]}, {NAMES[function]} {told}: loss, nats"
                rows.append((what, f"{effect}; would have seen {effect.visible:.2g}"))
    silu = {stage: [effects(found, recipe, stage)["silu"] for recipe in RECIPES] for stage in STAGES}
    seeds = [
        statistics.stdev(run["held_out"]["loss"] for run in trained(found, recipe, OWN[recipe])) for recipe in RECIPES
    ]
    apart = [NAMES[recipe] for recipe, one in zip(RECIPES, silu["scratch"], strict=True) if one.seen]
    beside = [*zip(silu["scratch"], seeds, strict=True)]
    far = all(one.seen and abs(one.mean) > spread for one, spread in beside)
    close = all(max(-one.low, one.high) <= spread for one, spread in beside)
    swapped, healed, scratch = (
        _listed([f"{NAMES[recipe]} {one}" for recipe, one in zip(RECIPES, silu[stage], strict=True)])
        for stage in STAGES
    )
    told = _listed([f"{spread:.2g}" for spread in seeds])
    apart_told = f"are told apart in {_listed(apart)}" if apart else "are not told apart"
    return Claim(
        5,
        "GELU and SiLU are practically interchangeable.",
        FALSE
        if far
        else LIMITS
        if any(one.seen for some in silu.values() for one in some)
        else HOLDS
        if close
        else OPEN,
        f"Trained from scratch, {found['sizes']['seeds']} seeds each, they {apart_told}. SiLU's loss beside GELU's, in "
        f"nats: {scratch}, where the standard deviation between seeds is {told}. Swapped into a trained model SiLU "
        f"costs {swapped}; after healing, {healed}.",
        tuple(rows),
        ("interchange",),
    )


def _sixth(found: Found) -> Claim:
    rows: list[tuple[str, str]] = []
    dead: dict[str, list[Paired]] = {"relu": [], "own": []}
    larger = True
    for recipe in RECIPES:
        own = OWN[recipe]
        means = {
            function: [_mean(run, "mean") for run in trained(found, recipe, function)] for function in (own, "relu")
        }
        shifts = {
            function: [_mean(run, "shift") for run in trained(found, recipe, function)] for function in (own, "relu")
        }
        difference = paired([a - b for a, b in zip(means["relu"], means[own], strict=True)])
        shift = paired([a - b for a, b in zip(shifts["relu"], shifts[own], strict=True)])
        larger = larger and difference.low > 0 and shift.low > 0
        rows.append((f"{NAMES[recipe]}: mean output, ReLU − {NAMES[own]}", str(difference)))
        rows.append((f"{NAMES[recipe]}: share of the output's size that is its mean, ReLU − {NAMES[own]}", str(shift)))
        for key, function in (("relu", "relu"), ("own", own)):
            share = paired([_mean(run, "dead") for run in trained(found, recipe, function)])
            dead[key].append(share)
            told = f"{share.mean:.2%} ({max(0.0, share.low):.2%} to {share.high:.2%})"
            rows.append((f"{NAMES[recipe]}: units never active, {NAMES[function]}", told))
    shares = {key: _listed([f"{share.mean:.1%}" for share in some]) for key, some in dead.items()}
    none = not any(share.mean for share in dead["own"])
    every, any_ = (of(share.low > 0 for share in dead["relu"]) for of in (all, any))
    return Claim(
        6,
        "ReLU's outputs have a positive mean that shifts the next layer, GELU's negative lobe pulls it toward zero; "
        "ReLU has dead units and GELU none.",
        (HOLDS if every and none else LIMITS) if larger or (any_ and none) else FALSE,
        f"ReLU's mean output, and the share of its outputs' size that is their mean, are "
        f"{'larger' if larger else 'not larger beyond chance'} than GELU's in {_listed([NAMES[r] for r in RECIPES])}. "
        f"{shares['relu']} of its units are never active on what "
        f"was held out, and {shares['own']} of GELU's.",
        tuple(rows),
        ("signs",),
    )


def _mean(run: Any, what: str) -> float:
    return statistics.fmean(float(layer[what]) for layer in run["activations"])


# ------------------------------------------------------------------------------------------------------- what it costs


def _seventh(found: Found) -> Claim:
    cpu, gpu = _part(found, "cost-on-this-cpu"), _part(found, "cost-on-a-gpu")
    counted = _part(found, "instructions")
    rows = [
        (
            f"{NAMES[name]}, as fast as exact GELU on this CPU",
            f"{float(one['value']):.2f}× ({float(one['low']):.2f} to {float(one['high']):.2f}), {one['verdict']}",
        )
        for name, one in cpu["ratios"].items()
    ]
    rows += [
        (f"{NAMES[name]} on an {gpu['card']}, bf16: of a copy's bandwidth", f"{share:.0%}")
        for name, share in gpu["shares"].items()
    ]
    rows += [
        (f"{NAMES[name]}, fused, {counted['target']}, {counted['dtype']}: instructions an element", f"{count:.1f}")
        for name, count in counted["instructions"].items()
    ]
    silu, tanh = cpu["ratios"]["silu"], cpu["ratios"]["gelu_tanh"]
    return Claim(
        7,
        "SiLU is marginally cheaper; modern kernels compute the exact form directly; the tanh form is just for speed.",
        LIMITS if silu["verdict"] != "slower" else FALSE,
        f"On a CPU ({cpu['processor']}) torch's SiLU takes {1 / float(silu['value']):.2f} of exact GELU's time and its "
        f"tanh form {1 / float(tanh['value']):.2f}: here the approximation is {_compared(tanh['verdict'])}; on an "
        f"{gpu['card']} SiLU is {gpu['times']['silu']:.2f}× and the tanh form {gpu['times']['gelu_tanh']:.2f}× as "
        f"fast, as single operations; with one fused kernel each, all reach {gpu['fused']:.0%} of a copy's bandwidth "
        "or more.",
        tuple(rows),
        ("costs",),
    )


def _compared(verdict: str) -> str:
    return {"slower": "the slow one", "faster": "the fast one"}.get(verdict, "no faster and no slower")


# ------------------------------------------------------------------------------------------------------ how they learn


def reached(losses: Sequence[float], goal: float) -> float:
    """At which place of its list a curve first falls to a loss, between its points by a straight line; the length of
    the list where it never does."""
    before = math.inf
    for number, loss in enumerate(losses, start=1):
        if loss <= goal:
            return number - (0.0 if math.isinf(before) else (goal - loss) / (before - loss))
        before = loss
    return float(len(losses))


def updates(place: float, every: int) -> float:
    """How often the weights had been updated, on average, when the losses at a place of a curve were measured: each
    place, from 1 on, is the mean of so many losses, and each of those was measured before an update."""
    return every * (place - 0.5) - 0.5


def fitted_losses(found: Found, function: str) -> list[list[float]]:
    """The curves of L-BFGS, by seed."""
    seeds = range(found["sizes"]["seeds"])
    return [_part(found, f"second-order-{function}-{seed}")["losses"] for seed in seeds]


def smooth_and_not(recipe: str) -> tuple[str, ...]:
    """The functions whose learning is compared: the recipe's own first."""
    return tuple(dict.fromkeys((OWN[recipe], *SMOOTHNESS)))


def target(curves: Sequence[Sequence[float]]) -> float:
    """The loss that is to be reached: that of these curves at 60 % of their length, on average."""
    return statistics.fmean(curve[int(_TARGET * len(curve))] for curve in curves)


def _eighth(found: Found) -> Claim:
    compared: dict[str, tuple[int, dict[str, list[Sequence[float]]]]] = {
        f"{NAMES[recipe]}, AdamW": (
            SMOOTHED,
            {
                function: [run["losses"] for run in trained(found, recipe, function)]
                for function in smooth_and_not(recipe)
            },
        )
        for recipe in RECIPES
    }
    compared["ViT, L-BFGS"] = 1, {function: [*fitted_losses(found, function)] for function in SMOOTHNESS}
    rows, fewer, more = [], 0, 0
    for name, (every, curves) in compared.items():
        own, *_ = curves
        goal = target(curves[own])
        steps = {
            function: [max(1.0, updates(reached(curve, goal), every)) for curve in some]
            for function, some in curves.items()
        }
        for function in curves:
            if function != "relu":
                pairs = zip(steps[function], steps["relu"], strict=True)
                effect = paired([math.log(one / other) for one, other in pairs])
                fewer += effect.high < 0
                more += effect.low > 0
                short = sum(min(curve) > goal for curve in (*curves[function], *curves["relu"]))
                told = f"; {short} runs never got there, and count as if they had at their end" if short else ""
                rows.append((f"{name}: steps of {NAMES[function]}, beside ReLU's", _percent(effect) + told))
    return Claim(
        8,
        "Smoothness helps optimisers.",
        HOLDS if fewer == len(rows) else LIMITS if fewer else FALSE if more == len(rows) else OPEN,
        f"To reach the same loss, GELU and SiLU took fewer steps than ReLU in {fewer} of {len(rows)} comparisons, and "
        f"more in {more}, beyond chance. These are small models with the rates of recipes that have GELU.",
        tuple(rows),
        ("learning",),
    )


def _percent(effect: Paired) -> str:
    mean, low, high = (f"{math.expm1(one):+.0%}".replace("-", "−") for one in (effect.mean, effect.low, effect.high))
    return f"{mean} ({low} to {high}); would have seen {math.expm1(effect.visible):.0%}"


def _signed(value: float) -> str:
    """With as many digits as a difference of losses is worth."""
    return f"{value:+.2g}".replace("-", "−")
