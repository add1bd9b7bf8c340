"""May this be shipped? One verdict a variant, in words, with the three figures behind it. The rule is here alone.

The first of these that holds decides:

1. The implementation is wrong: do not ship it.
2. The patch changes nothing in this model: there is nothing to ship.
3. More answers were lost than chance explains, or another metric is worse beyond chance: do not ship it.
4. A margin was declared, and a metric does not keep to it: do not ship it where its whole interval lies beyond, on the
   worse side; else it cannot be told, and more examples would.
5. Another function was swapped in, and nothing shows that it may be: there are no answers to judge it by; or none
   changed, but of so few examples that more than the margin of others may (3 in n; 1 % where no margin was declared);
   or some changed and no margin says how much worse they may be. It cannot be told.
6. It is slower: do not ship it. What is made to save memory (``recompute``, ``tiles``) may be shipped.
7. It is faster: ship it. No difference was detected: it may be shipped, and gains no time.

A patch that keeps the functions and is not wrong moves answers by rounding alone: it needs no margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hf_gelu_patch.evaluation.report.document import figure, noise, ratio, signed, small, words
from hf_gelu_patch.evaluation.report.results import Data

__all__ = ["WORDS", "Shipping", "listed", "shipping", "together"]

WORDS = {
    "ship": "✓ Ship it",
    "may": "≈ You may ship it",
    "unknown": "? Cannot tell",
    "nothing": "– Nothing to ship",
    "no": "✗ Do not ship it",
}
"""The verdicts, each with a sign that is read without colours."""

_UNCHANGED = ("answers unchanged", "scores unchanged")
_UNSEEN = 0.01  # the share of all others that may change where none of the examples did, if no margin was declared
_BLIND = 0.5  # noise, as a share: no patch of the demo's models gains more than that


@dataclass(frozen=True)
class Shipping:
    """What is to be done with one variant of one model.

    Attributes:
        name: the model and the variant.
        verdict: a key of ``WORDS``.
        reason: why, in words.
        figures: what the verdict rests on, each with its name: answers, drift, speed.
    """

    name: str
    verdict: str
    reason: str
    figures: tuple[tuple[str, str], ...]

    @property
    def words(self) -> str:
        return WORDS[self.verdict]

    @property
    def tone(self) -> str:
        """Whether that is "good" or "bad" news; "" where it is neither."""
        return {"ship": "good", "no": "bad"}.get(self.verdict, "")


def shipping(data: Data) -> list[Shipping]:
    """The verdict on each variant of each model, in their order."""
    lower = frozenset(data["lower_is_better"])
    found = []
    for model in data["models"]:
        for variant in model["variants"]:
            verdict, reason, metric = _decided(variant, lower)
            figures = (
                ("answers", _answers(variant["quality"], metric)),
                ("drift", _drift(variant["drift"])),
                ("speed", _speed(variant["speed"]["forward"])),
            )
            found.append(Shipping(f"{model['subject']['name']}, {variant['name']}", verdict, reason, figures))
    return found


def together(found: Sequence[Shipping]) -> list[tuple[str, list[Shipping]]]:
    """Those of one verdict together, as a list for a first look; nothing of one alone."""
    kinds = {words: [one for one in found if one.verdict == verdict] for verdict, words in WORDS.items()}
    return [(words, some) for words, some in kinds.items() if some] if len(found) > 1 else []


def listed(words: str, some: Sequence[Shipping]) -> str:
    """One line of that list."""
    return f"{words} ({len(some)}): {'; '.join(one.name for one in some)}"


# ------------------------------------------------------------------------------------------------------------- the rule


def _decided(variant: Data, lower: frozenset[str]) -> tuple[str, str, str | None]:
    """The verdict, why, and the metric that it rests on, where it is one."""
    if variant["wrong"] is not None:
        return "no", f"The implementation is wrong: {variant['wrong']}.", None
    sites = [site for site in variant["patch"]["sites"] if site["implementation"] is not None]
    tiled = [one for one in variant["patch"].get("tiled", ()) if one["tiles"] is not None]
    if not (sites or tiled) or variant["speed"]["forward"]["ratio"] is None:
        return "nothing", "The patch changes nothing in this model.", None
    same = all(site["equivalence"] in ("identical", "rounding") for site in sites)
    verdict, reason, metric = _by_answers(variant, lower, same)
    if verdict != "kept":
        return verdict, reason, metric
    speed = variant["speed"]["forward"]
    if speed["verdict"] == "faster":
        return "ship", f"{reason}, and it is {float(speed['ratio']['value']):.2f}× as fast.", metric
    if speed["verdict"] == "slower":
        slower = f"it is slower, {float(speed['ratio']['value']):.2f}× as fast"
        if variant["variant"].get("recompute") or variant["variant"].get("tiles") is not None:
            return "may", f"{reason}. It is made to save memory; {slower}.", metric
        return "no", f"{reason}, but {slower}.", metric
    blind = ": the noise is so large that it would hide one" if noise(speed["floor"]) > _BLIND else ""
    return "may", f"{reason}, but no gain in speed was detected{blind}.", metric


def _by_answers(variant: Data, lower: frozenset[str], same: bool) -> tuple[str, str, str | None]:
    """The same by answers alone; "kept" where these are no obstacle."""
    quality, said = variant["quality"], variant["answers"]
    if said == "answers worse":
        lost, gained, p = quality["right_to_wrong"], quality["wrong_to_right"], float(quality["p"])
        told = f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"
        return "no", f"Answers are worse beyond chance: {lost:,} right → wrong, {gained:,} wrong → right, {told}.", None
    harms = {name: _harm(one, name in lower) for name, one in quality["differences"].items()}
    if said.endswith(" worse"):
        metric = max(harms, key=lambda name: harms[name][0])
        worse = said.rpartition(", ")[2].removesuffix(" worse")
        return "no", f"Beyond chance, {worse} got worse.", metric
    if undefined := [name for name, (low, high) in harms.items() if math.isnan(low) or math.isnan(high)]:
        return "unknown", f"The difference in {words(undefined[0])} is not defined.", undefined[0]
    kept = (quality["equivalent"] or {}).items()
    if said not in _UNCHANGED and (beyond := [name for name, holds in kept if not holds]):
        return _beyond_margin(quality, harms, beyond)
    if said.startswith("equivalent"):
        return "kept", f"Answers are {said}", None
    if same:
        how = "Answers are unchanged" if said == "answers unchanged" else "Answers keep to what rounding moves"
        return "kept", "The functions are the same" if not quality["answers"] else how, None
    return _of_a_swap(quality, said, harms, lower)


def _of_a_swap(
    quality: Data, said: str, harms: dict[str, tuple[float, float]], lower: frozenset[str]
) -> tuple[str, str, str | None]:
    """The same of another function, whose answers nothing shows to be worse."""
    if said == "no answers to compare":
        return "unknown", "It is another function, and there are no answers to judge it by: name a --task.", None
    if said == "answers better":
        return "kept", "Answers are better beyond chance", None
    if said in _UNCHANGED:
        examples, most = quality["examples"], _UNSEEN if quality["margin"] is None else float(quality["margin"])
        if 3 / examples <= most:
            return "kept", f"{said.split()[0].capitalize()} are unchanged", None
        return (
            "unknown",
            f"There are too few examples: none of {examples:,} changed, but up to {min(1.0, 3 / examples):.1%} of "
            f"others may. {math.ceil(3 / most):,} would tell.",
            None,
        )
    if not harms:
        return "unknown", "Answers changed, and no metric tells what that is worth.", None
    metric = next(iter(harms))
    most = harms[metric][1]
    if most <= 0:  # too few examples, or changes that the metric does not see: an interval of no width
        reach = f"is {'better' if most < 0 else 'no worse'} here, which does not say how it is elsewhere"
    else:
        told = metric in lower or most < abs(float(quality["before"][metric]))  # it cannot lose more than all
        reach = f"may be worse by {f'up to {small(most)}' if math.isfinite(most) and told else 'any amount'}"
    remedy = "Declare with --margin how much worse it may be, or give more examples."
    changed = "Answers changed" if quality["answers"] else "Scores moved"
    return "unknown", f"{changed}, and {words(metric)} {reach}. {remedy}", metric


def _beyond_margin(quality: Data, harms: dict[str, tuple[float, float]], beyond: Sequence[str]) -> tuple[str, str, str]:
    """Of metrics whose intervals do not lie within the margin."""
    margins = {name: float(quality["margins"].get(name, quality["margin"])) for name in beyond}
    for name in beyond:
        if harms[name][0] > margins[name]:
            return "no", f"The whole interval of {words(name)} lies beyond the margin ±{margins[name]:.2g}.", name
    metric = max(beyond, key=lambda name: harms[name][1] / margins[name])
    return (
        "unknown",
        f"The interval of {words(metric)} reaches beyond the margin ±{margins[metric]:.2g}: more examples would tell.",
        metric,
    )


def _harm(difference: Data, lower_is_better: bool) -> tuple[float, float]:
    """How much worse a metric became at least, and at most."""
    low, high = float(difference["low"]), float(difference["high"])
    return (low, high) if lower_is_better else (-high, -low)


# -------------------------------------------------------------------------------------------------------------- figures


def _answers(quality: Data, metric: str | None) -> str:
    """One metric with its interval, and how many answers changed."""
    name = metric or next(iter(quality["differences"]), None)
    changed = f"{quality['flips']:,} of {quality['answers']:,} changed" if quality["answers"] else "none to compare"
    if name is None:
        return changed
    before, after, found = quality["before"][name], quality["after"][name], quality["differences"][name]
    interval = signed(found["value"])
    if any(float(found[end]) for end in ("low", "high")):
        interval += f", 95\u00a0%: {signed(found['low'])} to {signed(found['high'])}"
    return f"{words(name)} {figure(before)} → {figure(after)} ({interval}); {changed}"


def _drift(found: Data) -> str:
    """How far logits moved, beside the model's own error."""
    if not found["positions"]:
        return "none to compare"
    own = f"; the model's own error is {small(found['own']['max_abs'])}" if found["own"] else ""
    return f"{small(found['max_abs'])} at most, where outputs reach {float(found['scale']):.3g}{own}"


def _speed(found: Data) -> str:
    """How many times as fast, beside the noise."""
    floor = f"noise ±{noise(found['floor']):.1%}"
    return f"not timed, {floor}" if found["ratio"] is None else f"{ratio(found['ratio'])}, {floor}"
