"""May this be shipped? Each branch of the rule, on a result that was measured and then changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from hf_gelu_patch.evaluation.report.markdown import escaped, markdown
from hf_gelu_patch.evaluation.report.page import page
from hf_gelu_patch.evaluation.report.results import Data
from hf_gelu_patch.evaluation.report.shipping import WORDS, listed, shipping, together
from hf_gelu_patch.evaluation.report.terminal import print_results

DEMO = Path(__file__).parents[2] / ".github" / "demo.json"
CHANGED = "answers changed, none the worse as far as can be told"


@pytest.fixture
def gpt2() -> Data:
    """Patched with the same function, 1.35 times as fast."""
    data = named("gpt2")
    timed(variant_of(data), "faster", 1.35)
    return data


def named(*names: str) -> Data:
    data: Data = json.loads(DEMO.read_text(encoding="utf-8"))
    return {**data, "models": [model for model in data["models"] if model["subject"]["name"] in names]}


def variant_of(data: Data) -> Data:
    found: Data = data["models"][0]["variants"][0]
    return found


def swap(variant: Data) -> None:
    """It is another function."""
    for site in variant["patch"]["sites"]:
        site["equivalence"] = "different"


def answers(variant: Data, said: str, flips: int = 0, **more: object) -> None:
    variant["answers"] = said
    variant["quality"].update(flips=flips, **more)


def moved(variant: Data, low: float, high: float, metric: str = "token_accuracy") -> None:
    """A metric's interval, alone of all."""
    variant["quality"]["differences"] = {metric: {"value": (low + high) / 2, "low": low, "high": high}}


def margin(variant: Data, most: float, *, kept: bool, metric: str = "token_accuracy") -> None:
    variant["quality"].update(margin=most, margins={metric: most}, equivalent={metric: kept})


def timed(variant: Data, verdict: str, value: float) -> None:
    speed = variant["speed"]["forward"]
    speed.update(verdict=verdict, ratio={"value": value, "low": value - 0.01, "high": value + 0.01})


def wrong(variant: Data) -> None:
    variant["wrong"] = "it gives numbers that are not finite"
    answers(variant, "answers worse", 9, right_to_wrong=9, p=0.001)


def nothing(variant: Data) -> None:
    for site in variant["patch"]["sites"]:
        site.update(implementation=None, equivalence=None)
    variant["speed"]["forward"].update(ratio=None, after=None, verdict="nothing patched")


def eager(variant: Data) -> None:
    nothing(variant)
    timed(variant, "no difference detected", 1.0)


def worse(variant: Data) -> None:
    answers(variant, "answers worse", 45, right_to_wrong=30, wrong_to_right=10, p=0.002)


def perplexity(variant: Data) -> None:
    answers(variant, "answers unchanged, perplexity worse")
    moved(variant, 0.1, 0.2, "perplexity")


def undefined(variant: Data) -> None:
    answers(variant, CHANGED, 5)
    moved(variant, float("nan"), float("nan"), "perplexity")


def beyond(variant: Data) -> None:
    answers(variant, CHANGED, 5)
    moved(variant, -0.03, -0.02)
    margin(variant, 0.01, kept=False)


def beyond_perplexity(variant: Data) -> None:
    answers(variant, CHANGED, 5)
    moved(variant, 0.02, 0.03, "perplexity")
    margin(variant, 0.01, kept=False, metric="perplexity")


def perhaps_beyond(variant: Data) -> None:
    answers(variant, CHANGED, 5)
    moved(variant, -0.03, 0.005)
    margin(variant, 0.01, kept=False)


def within(variant: Data) -> None:
    swap(variant)
    answers(variant, "equivalent within ±0.01", 5)
    moved(variant, -0.003, 0.005)
    margin(variant, 0.01, kept=True)


def better(variant: Data) -> None:
    swap(variant)
    answers(variant, "answers better", 45, right_to_wrong=10, wrong_to_right=30, p=0.002)


def rounded(variant: Data) -> None:
    answers(variant, CHANGED, 2)


def no_answers(variant: Data) -> None:
    swap(variant)
    answers(variant, "no answers to compare", answers=0)


def no_answers_of_the_same(variant: Data) -> None:
    answers(variant, "no answers to compare", answers=0)


def few(variant: Data) -> None:
    swap(variant)
    answers(variant, "answers unchanged", examples=20)


def few_for_the_margin(variant: Data) -> None:
    swap(variant)
    answers(variant, "answers unchanged", examples=931)
    margin(variant, 0.001, kept=True)


def enough(variant: Data) -> None:
    swap(variant)
    answers(variant, "answers unchanged", examples=931)


def no_margin(variant: Data) -> None:
    swap(variant)
    answers(variant, CHANGED, 5)
    moved(variant, -0.004, 0.002)


def no_width(variant: Data) -> None:
    no_margin(variant)
    moved(variant, 0.0, 0.0)


def wide(variant: Data) -> None:
    no_margin(variant)
    moved(variant, -5.7, 6.7)


def no_metric(variant: Data) -> None:
    swap(variant)
    answers(variant, CHANGED, 5, differences={})


def slower(variant: Data) -> None:
    timed(variant, "slower", 0.8)


def slower_for_memory(variant: Data) -> None:
    slower(variant)
    variant["variant"]["tiles"] = 4


def no_difference(variant: Data) -> None:
    timed(variant, "no difference detected", 1.01)


def no_difference_that_could_be_seen(variant: Data) -> None:
    no_difference(variant)
    variant["speed"]["forward"]["floor"].update(value=1.0, low=0.8, high=1.6)


def as_measured(variant: Data) -> None:
    del variant


BRANCHES: list[tuple[Callable[[Data], None], str, str]] = [
    (as_measured, "ship", "Answers are unchanged, and it is 1.35× as fast."),
    (wrong, "no", "The implementation is wrong: it gives numbers that are not finite."),
    (nothing, "nothing", "The patch changes nothing in this model."),
    (eager, "nothing", "The patch changes nothing in this model."),
    (worse, "no", "Answers are worse beyond chance: 30 right → wrong, 10 wrong → right, p = 0.002."),
    (perplexity, "no", "Beyond chance, perplexity got worse."),
    (undefined, "unknown", "The difference in perplexity is not defined."),
    (beyond, "no", "The whole interval of token accuracy lies beyond the margin ±0.01."),
    (beyond_perplexity, "no", "The whole interval of perplexity lies beyond the margin ±0.01."),
    (
        perhaps_beyond,
        "unknown",
        "The interval of token accuracy reaches beyond the margin ±0.01: more examples would tell.",
    ),
    (within, "ship", "Answers are equivalent within ±0.01, and it is 1.35× as fast."),
    (better, "ship", "Answers are better beyond chance, and it is 1.35× as fast."),
    (rounded, "ship", "Answers keep to what rounding moves, and it is 1.35× as fast."),
    (no_answers, "unknown", "It is another function, and there are no answers to judge it by: name a --task."),
    (no_answers_of_the_same, "ship", "The functions are the same, and it is 1.35× as fast."),
    (
        few,
        "unknown",
        "There are too few examples: none of 20 changed, but up to 15.0% of others may. 300 would tell.",
    ),
    (
        few_for_the_margin,
        "unknown",
        "There are too few examples: none of 931 changed, but up to 0.3% of others may. 3,000 would tell.",
    ),
    (enough, "ship", "Answers are unchanged, and it is 1.35× as fast."),
    (
        no_margin,
        "unknown",
        "Answers changed, and token accuracy may be worse by up to 0.004. "
        "Declare with --margin how much worse it may be, or give more examples.",
    ),
    (
        no_width,
        "unknown",
        "Answers changed, and token accuracy is no worse here, which does not say how it is elsewhere. "
        "Declare with --margin how much worse it may be, or give more examples.",
    ),
    (
        wide,
        "unknown",
        "Answers changed, and token accuracy may be worse by any amount. "
        "Declare with --margin how much worse it may be, or give more examples.",
    ),
    (no_metric, "unknown", "Answers changed, and no metric tells what that is worth."),
    (slower, "no", "Answers are unchanged, but it is slower, 0.80× as fast."),
    (slower_for_memory, "may", "Answers are unchanged. It is made to save memory; it is slower, 0.80× as fast."),
    (no_difference, "may", "Answers are unchanged, but no gain in speed was detected."),
    (
        no_difference_that_could_be_seen,
        "may",
        "Answers are unchanged, but no gain in speed was detected: the noise is so large that it would hide one.",
    ),
]


@pytest.mark.parametrize(("change", "verdict", "reason"), BRANCHES, ids=lambda one: getattr(one, "__name__", ""))
def test_each_branch_of_the_rule(change: Callable[[Data], None], verdict: str, reason: str, gpt2: Data) -> None:
    change(variant_of(gpt2))
    [found] = shipping(gpt2)
    assert (found.name, found.verdict, found.reason) == ("gpt2, auto", verdict, reason)
    assert found.words == WORDS[verdict]
    assert [name for name, _ in found.figures] == ["answers", "drift", "speed"]
    assert together([found]) == []


def test_every_verdict_is_reached() -> None:
    assert {verdict for _, verdict, _ in BRANCHES} == WORDS.keys()


def test_the_figures_are_those_of_the_result(gpt2: Data) -> None:
    variant = variant_of(gpt2)
    [found] = shipping(gpt2)
    figures = dict(found.figures)
    speed, drift = variant["speed"]["forward"]["ratio"], variant["drift"]
    assert f"{speed['value']:.3f}× ({speed['low']:.3f} to {speed['high']:.3f}), noise ±" in figures["speed"]
    assert figures["drift"] == (
        f"{drift['max_abs']:.2g} at most, where outputs reach {drift['scale']:.3g}; "
        f"the model's own error is {drift['own']['max_abs']:.2g}"
    )
    assert "perplexity 4.6437 → 4.6437 (" in figures["answers"]
    assert figures["answers"].endswith("; 0 of 58,653 changed")
    no_margin(variant)
    assert "(−0.0010, 95\u00a0%: −0.0040 to +0.0020); 5 of" in dict(shipping(gpt2)[0].figures)["answers"]
    nothing(variant)
    no_answers(variant)
    variant["quality"]["differences"] = {}
    variant["drift"]["positions"] = 0
    figures = dict(shipping(gpt2)[0].figures)
    assert figures["answers"] == figures["drift"] == "none to compare"
    assert figures["speed"].startswith("not timed, noise ±")


def test_the_first_lines_are_the_same_everywhere(tmp_path: Path) -> None:
    data = named("gpt2", "bert", "t5")
    nothing(data["models"][0]["variants"][0])
    no_margin(data["models"][1]["variants"][0])
    wrong(data["models"][2]["variants"][0])
    data["models"][2]["subject"]["name"] = "t5<b>"
    found = shipping(data)
    assert [one.verdict for one in found] == ["nothing", "unknown", "no"]
    lines = [listed(*kind) for kind in together(found)]
    assert lines == [
        "? Cannot tell (1): gpt2, auto",
        "– Nothing to ship (1): bert, auto",
        "✗ Do not ship it (1): t5<b>, auto",
    ]
    written = markdown(data)
    begin = written.index(f"**{escaped(found[0].name)}")
    assert written[:begin].count("\n- ") == 3
    for line in lines:
        assert f"- {escaped(line)}\n" in written[:begin]
    path = tmp_path / "screen"
    with path.open("w", encoding="utf-8") as file:
        print_results(data, Console(file=file, width=180))
    shown = path.read_text(encoding="utf-8")
    assert shown.startswith("\n".join(lines))
    html = page(data, {})
    first = html[html.index("<h1>") : html.index("<nav")]
    assert "t5&lt;b&gt;,<wbr> auto" in first
    for one in found:
        assert f"**{escaped(one.name)}: {one.words}.** {escaped(one.reason)}" in written
        assert f"{one.name}: {one.words}. {one.reason}\n" in shown
        assert f">{one.words}</p>" in first
        for name, value in one.figures:
            assert f"\n- {name}: {escaped(value)}\n" in written
            assert f"\n  {name}: {value}\n" in shown
            assert f"<dt>{name}</dt><dd>{value.replace(chr(39), '&#39;')}</dd>" in first
    assert "Declare with <code>--margin</code> how much" in first
    for number in (1, 2, 3):
        assert f'href="#variant-{number}"' in first
        assert f'id="variant-{number}"' in first


def test_many_models_have_a_short_title() -> None:
    data = named("gpt2")
    many = {**data, "models": [copy.deepcopy(data["models"][0]) for _ in range(20)]}
    for number, model in enumerate(many["models"]):
        model["subject"]["name"] = f"model-{number}"
    html = page(many, {})
    assert "<h1>Evaluation of 20 models</h1>" in html
    assert html.count('<article class="ship"') == 20
    assert "<h1>Evaluation: gpt2</h1>" in page(data, {})
