"""Results in words: sections of tables and texts, for whatever shows them. Nothing is computed here."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_gelu_patch.evaluation.report.results import Data
from hf_gelu_patch.evaluation.speed.verdict import CONFIDENCE, Ratio, reach

__all__ = [
    "NOTES",
    "PICTURES",
    "TASK_HEADINGS",
    "Code",
    "Picture",
    "Section",
    "Table",
    "Text",
    "conditions",
    "left_out",
    "patched",
    "sections",
    "summary",
    "task_rows",
    "tone",
    "verdicts",
]

_LISTED = 10  # changed answers of each variant, and rows left out
_GOOD = ("faster", "answers unchanged", "scores unchanged", "answers better", "equivalent within")
_BAD = ("slower", "WRONG IMPLEMENTATION")
_NAMES = {"forward": "forward", "end_to_end": "end to end", "prefill": "prefill", "decode": "decode"}

NOTES = (
    "Before → after the patch, on the same examples; of a difference its 95 % interval, from the paired bootstrap over "
    "examples. Where none of n examples changed it is ±0, though up to 3 in n others may. Right → wrong and wrong → "
    "right are held against each other by the exact McNemar test (p). Drift is "
    "that of the logits (of features, where a task looks at these), over all examples; own is the unpatched model's "
    "error against a float64 copy of itself, on one batch. Speed is that of the forward pass, the median over rounds "
    f"in which each variant ran the same batch, with the {CONFIDENCE:.0%} bootstrap interval of the ratio; the noise "
    "is what the unpatched model shows against itself in the same rounds; what activations allow at most follows from "
    "the share of the time that they take."
)


PICTURES = {
    "quality": "How far each metric moved, with its interval",
    "speed": "How many times as fast each variant is, with its interval and the noise",
    "drift": "How far each layer's output moved, relative to its size",
}
"""The plots there may be, and what each shows. Each is written as a PNG of its name."""


@dataclass(frozen=True)
class Table:
    """Cells of one or more lines each; the first ``heads`` columns say what a row is about."""

    headings: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], ...], ...]
    heads: int = 1


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Code:
    """Lines as they stand."""

    text: str
    language: str = "text"


@dataclass(frozen=True)
class Picture:
    """One of the plots, by the name of its file, and what it shows in words."""

    name: str
    alt: str


@dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple[Table | Text | Code | Picture, ...]


def summary(data: Data) -> Table:
    """A row a model and variant."""
    rows = []
    for model in data["models"]:
        left = [f"rows left out: {len(model['skipped']):,}"] if model["skipped"] else []
        head = (model["subject"]["name"], f"{model['parameters'] / 1e6:.2f} M parameters", *left)
        for variant in model["variants"]:
            cells = (_quality(variant), _answers(variant["quality"]), _drift(variant["drift"]), _speed(model, variant))
            rows.append((head, _name(variant), *cells, verdicts(variant)))
    headings = ("model", "variant", "quality", "answers changed", "drift", "speed", "verdict")
    return Table(headings, tuple(rows), heads=2)


def sections(data: Data, pictures: Sequence[str] = ()) -> list[Section]:
    """Everything but the summary.

    Args:
        pictures: the names of the plots that there are: "quality", "speed", "drift".
    """
    found = [
        Section("Quality", (*_pictured(data, pictures, "quality"), *_differences(data))),
        Section("Tasks of lm-evaluation-harness", _tasks(data)),
        Section("Speed", (*_pictured(data, pictures, "speed"), *_speeds(data))),
        Section("Memory of a training step", _memory(data)),
        Section("Drift by layer", (*_pictured(data, pictures, "drift"), *_layers(data))),
        Section("Changed answers", _flips(data)),
        Section("What was patched", patched(data)),
        Section("Rows left out", left_out(data)),
        Section("Settings and environment", (_surroundings(data),)),
    ]
    return [section for section in found if section.blocks]


# ------------------------------------------------------------------------------------------------------------- figures


def figure(value: float | str) -> str:
    """Four decimals, two of large numbers."""
    number = float(value)
    return f"{number:.4f}" if not abs(number) >= 100 else f"{number:,.2f}"


def signed(value: float | str) -> str:
    """Four decimals, or two digits of what these would show as 0."""
    number = float(value)
    if number == 0:
        return "±0"
    return (f"{number:+.2g}" if abs(number) < 5e-5 else f"{number:+.4f}").replace("-", "−")


def small(value: float | str | None) -> str:
    """Two digits, whatever the size."""
    return "–" if value is None else f"{float(value):.2g}"


def _rate(value: float | str) -> str:
    return f"{float(value):,.0f}" if float(value) >= 100 else f"{float(value):.3g}"


def _seconds(value: float | str) -> str:
    number = float(value)
    return f"{number:.3g} s" if number >= 1 else f"{number * 1e3:.3g} ms"


def noise(floor: Mapping[str, float | str]) -> float:
    """How far the interval of the unpatched model against itself reaches, as a share."""
    found = Ratio(*(float(floor[key]) for key in ("value", "low", "high")))
    return math.inf if found.low <= 0 else math.expm1(reach(found))


def words(name: str) -> str:
    return name.replace("_", " ")


# --------------------------------------------------------------------------------------------------------------- cells


def _name(variant: Data) -> tuple[str, ...]:
    return tuple(variant["name"].split(","))


def _quality(variant: Data) -> tuple[str, ...]:
    found = variant["quality"]
    return tuple(
        f"{words(name)} {figure(value)} → {figure(found['after'][name])}" for name, value in found["before"].items()
    )


def _answers(found: Data) -> tuple[str, ...]:
    lines = [f"{found['flips']:,} of {found['answers']:,}"] if found["answers"] else ["none to compare"]
    if found["right_to_wrong"] or found["wrong_to_right"]:
        p = float(found["p"])
        lines += [
            f"{found['right_to_wrong']:,} right → wrong",
            f"{found['wrong_to_right']:,} wrong → right",
            f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001",
        ]
    return tuple(lines)


def _drift(found: Data) -> tuple[str, ...]:
    if not found["positions"]:
        return ("none to compare",)
    if float(found["max_abs"]) == 0:
        lines = ["0"]
    else:
        lines = [f"max |Δ| {small(found['max_abs'])} (of {float(found['scale']):.3g})"]
        if found["kl_mean"] is not None:
            agreement = float(found["top1_agreement"])
            lines += [
                f"mean KL {small(found['kl_mean'])}",
                f"top-1 agreement {agreement:.4%}" if agreement < 1 else "top-1 agreement 100 %",
            ]
    return (*lines, f"own: {small(found['own']['max_abs'])}") if found["own"] else tuple(lines)


def _speed(model: Data, variant: Data) -> tuple[str, ...]:
    found = variant["speed"]["forward"]
    floor = f"noise ±{noise(found['floor']):.1%}"
    if found["ratio"] is None:
        return f"{_rate(found['before'])} {found['unit']}/s", floor
    return (
        f"{_rate(found['before'])} → {_rate(found['after'])} {found['unit']}/s",
        ratio(found["ratio"]),
        floor,
        f"activations allow {float(model['amdahl']):.2f}×",
    )


def ratio(found: Mapping[str, float | str]) -> str:
    return f"{float(found['value']):.3f}× ({float(found['low']):.3f} to {float(found['high']):.3f})"


def verdicts(variant: Data) -> tuple[str, ...]:
    """What became of a variant, in words."""
    if variant["wrong"] is not None:
        return f"WRONG IMPLEMENTATION: {variant['wrong']}", variant["answers"]
    speed = variant["speed"]["forward"]["verdict"]
    if speed == "nothing patched":
        return (_nothing(variant["patch"]),)
    return speed, variant["answers"]


def tone(verdict: str) -> str:
    """Whether a verdict is "good" or "bad" news; "" where it is neither."""
    if verdict.startswith(_GOOD):
        return "good"
    return "bad" if verdict.startswith(_BAD) or verdict.endswith(" worse") else ""


def _nothing(patch: Data) -> str:
    """Why a patch changed nothing."""
    reasons = Counter(site["reason"] for site in patch["sites"])
    said = ", ".join(f"{count} × {reason}" for reason, count in reasons.items())
    one_op = all(reason.endswith("one aten op already") for reason in reasons)
    return f"{'nothing to gain here' if one_op else 'nothing patched'}: {said}"


# ------------------------------------------------------------------------------------------------------------ sections


def _pictured(data: Data, pictures: Sequence[str], name: str) -> tuple[Picture, ...]:
    if name not in pictures:
        return ()
    told = []
    for model, variant in _pairs(data):
        if name == "quality":
            shown = [
                f"{words(key)} {signed(value['value'])}" for key, value in variant["quality"]["differences"].items()
            ]
        elif name == "speed":
            timed = variant["speed"]["forward"]["ratio"]
            shown = [] if timed is None else [ratio(timed)]
        else:
            shown = [f"{layer['path']} {small(layer['change'])}" for layer in variant["layers"][-1:]]
        if shown:
            told.append(f"{model['subject']['name']}, {variant['name']}: {', '.join(shown)}")
    return (Picture(name, f"{PICTURES[name]}. {'; '.join(told)}."),)


def _pairs(data: Data) -> list[tuple[Data, Data]]:
    return [(model, variant) for model in data["models"] for variant in model["variants"]]


def _row(model: Data, variant: Data, *cells: str | tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """A row about one variant; a text is a cell of one line."""
    all_cells = (model["subject"]["name"], variant["name"], *cells)
    return tuple((cell,) if isinstance(cell, str) else cell for cell in all_cells)


def _differences(data: Data) -> tuple[Table | Text, ...]:
    rows = []
    for model, variant in _pairs(data):
        found = variant["quality"]
        for name, difference in found["differences"].items():
            equivalent = "" if found["equivalent"] is None else "yes" if found["equivalent"][name] else "no"
            cells = (
                words(name),
                figure(found["before"][name]),
                figure(found["after"][name]),
                signed(difference["value"]),
                f"{signed(difference['low'])} to {signed(difference['high'])}",
                equivalent,
            )
            rows.append(_row(model, variant, *cells))
    margins = {variant["quality"]["margin"] for _, variant in _pairs(data)}
    within = " or ".join(f"±{float(margin):g}" for margin in margins if margin is not None)
    headings = ("model", "variant", "metric", "before", "after", "difference", "95 % interval")
    if not rows:
        return ()
    if not within:
        return (Table(headings, tuple(row[:-1] for row in rows), heads=2),)
    return (Table((*headings, f"within {within}"), tuple(rows), heads=2),)


TASK_HEADINGS = (
    *("task", "metric", "documents", "before", "after", "difference", "95 % interval"),
    *("right → wrong", "wrong → right", "p", "in words"),
)


def task_rows(task: Data) -> list[tuple[str, ...]]:
    """A row for each metric of a task that was compared document by document, under ``TASK_HEADINGS``.

    Args:
        task: a ``TaskComparison`` as plain data.
    """
    rows: list[tuple[str, ...]] = []
    for one in task["scores"]:
        difference = one["difference"]
        counted = ("", "", "")
        if one["p"] is not None:
            counted = (f"{one['lost']:,}", f"{one['gained']:,}", small(one["p"]))
        rows.append(
            (
                task["title"],
                one["metric"],
                f"{one['documents']:,}",
                figure(one["before"]),
                figure(one["after"]),
                signed(difference["value"]),
                f"{signed(difference['low'])} to {signed(difference['high'])}",
                *counted,
                task["conclusions"][one["metric"]],
            )
        )
    return rows


def _tasks(data: Data) -> tuple[Table | Text, ...]:
    """Nothing where none of its tasks was asked."""
    rows = [
        _row(model, variant, *cells)
        for model, variant in _pairs(data)
        for task in variant.get("tasks", ())
        for cells in task_rows(task)
    ]
    if not rows:
        return ()
    said = [
        f"{variant['name']}, {task['title']}: no score of {metric}: {why}."
        for _, variant in _pairs(data)
        for task in variant.get("tasks", ())
        for metric, why in task["left_out"].items()
    ]
    note = (
        "Each metric of each task, on the same documents with the same prompts and seeds. Drift, layers and speed of "
        "these tasks are of batches that the unpatched model was given: forwards of likelihoods, prompts of "
        "generations. Of a group, the squares of what its tasks' intervals reach add up."
    )
    return (Text(note), Table(("model", "variant", *TASK_HEADINGS), tuple(rows), heads=2), *map(Text, said))


def _speeds(data: Data) -> tuple[Table | Text, ...]:
    rows = []
    for model, variant in _pairs(data):
        for part, found in variant["speed"].items():
            after = found["percentiles"].get("after", {})
            spread = [
                f"{name} {_seconds(value)}{f' → {_seconds(after[name])}' if name in after else ''}"
                for name, value in found["percentiles"]["before"].items()
            ]
            to = "" if found["after"] is None else f" → {_rate(found['after'])}"
            cells = (
                _NAMES[part],
                f"{_rate(found['before'])}{to} {found['unit']}/s",
                "" if found["ratio"] is None else ratio(found["ratio"]),
                f"±{noise(found['floor']):.1%}",
                tuple(spread),
                found["verdict"],
            )
            rows.append(_row(model, variant, *cells))
    headings = ("model", "variant", "what", "throughput", "ratio", "noise", "time a batch", "verdict")
    said = []
    for model in data["models"]:
        share, most = float(model["activation_share"]), float(model["amdahl"])
        said.append(
            f"{model['subject']['name']}: activations take {share:.1%} of the forward, so that nothing done to them "
            f"can make it more than {most:.2f}× as fast."
        )
    return (Table(headings, tuple(rows), heads=2), *map(Text, said), *conditions(data))


def conditions(data: Data) -> tuple[Text, ...]:
    """Of each model the most memory there was in use, whether one served for all variants, and how long compiling
    took."""
    found = []
    for model in data["models"]:
        sizes = {"loading": model.get("load_memory"), "unpatched": model["peak_memory"]}
        sizes |= {variant["name"]: variant["peak_memory"] for variant in model["variants"]}
        peaks = ", ".join(f"{name} {int(size) / 2**20:,.0f} MiB" for name, size in sizes.items() if size is not None)
        said = [f"peak memory: {peaks}"] if peaks else []
        if model.get("in_turn"):
            said.append(f"one model, patched and unpatched in turn, for {model['in_turn']}")
        if compiling := float(model["seconds"].get("compile", 0.0)):
            said.append(f"compiled with torch.compile, in {compiling:.0f} s that no speed includes")
        if said:
            found.append(Text(f"{model['subject']['name']}: {'; '.join(said)}."))
    return tuple(found)


def _memory(data: Data) -> tuple[Table | Text, ...]:
    """Nothing where it was not measured."""
    rows = []
    for model, variant in _pairs(data):
        found = variant["patch"].get("memory")
        if found is None:
            continue
        kept = Counter((one["what"], one["before"], one["after"]) for one in found["kept"])
        sizes = [("all that is kept for backward", 1, found["before"]["saved"], found["after"]["saved"])]
        sizes.append(("peak", 1, found["before"]["peak"], found["after"]["peak"]))
        sizes += [(what, count, before, after) for (what, before, after), count in kept.items()]
        for what, count, before, after in sizes:
            change = "" if not before or after is None else f"{after / before - 1:+.1%}".replace("-", "−")
            cells = (f"{count} × {what}" if count > 1 else what, _mebibytes(before), _mebibytes(after), change)
            rows.append(_row(model, variant, *cells))
    if not rows:
        return ()
    note = Text(
        "Forward and backward on one batch, in evaluation mode, without the weights and the batch. A method keeps what "
        "it allocates and is still there when the forward is over."
    )
    return (note, Table(("model", "variant", "what", "before", "after", "change"), tuple(rows), heads=2))


def _mebibytes(count: int | None) -> str:
    return "not called" if count is None else f"{count / 2**20:,.2f} MiB"


def _layers(data: Data) -> tuple[Table | Text, ...]:
    rows, same = [], []
    for model, variant in _pairs(data):
        layers = variant["layers"]
        if any(float(layer["change"]) for layer in layers):
            for layer in layers:
                cells = (layer["path"], small(layer["change"]), small(layer["own"]), small(layer["exact"]))
                rows.append(_row(model, variant, *cells))
        elif layers:
            same.append(f"{model['subject']['name']} ({variant['name']})")
    said = [
        Text(f"{model['subject']['name']}: nothing to hold it against: {model['exact_reason']}.")
        for model in data["models"]
        if model["exact_reason"]
    ]
    if same:
        said.append(Text(f"The same to the last bit, in every layer: {', '.join(same)}."))
    if not rows:
        return tuple(said)
    note = Text(
        "The root of the mean squared difference of a layer's output, relative to the output's own, on one batch."
    )
    headings = (
        "model",
        "variant",
        "layer",
        "against unpatched",
        "unpatched against float64",
        "patched against float64",
    )
    return (note, Table(headings, tuple(rows), heads=2), *said)


def _flips(data: Data) -> tuple[Table | Text, ...]:
    rows, more = [], []
    for model, variant in _pairs(data):
        found = variant["quality"]
        for flip in found["flipped"][:_LISTED]:
            shown = [model["named"].get(flip[key], flip[key]) for key in ("before", "after", "target")]
            text = model["described"].get(str(flip["example"]), "")
            rows.append(_row(model, variant, str(flip["example"]), *shown, text))
        if found["flips"] > _LISTED:
            more.append(f"{model['subject']['name']} ({variant['name']}): {found['flips'] - _LISTED:,} more")
    if not rows:
        return ()
    headings = ("model", "variant", "example", "before", "after", "right", "beginning")
    kept = Text(f"{'; '.join(more)}. All of them are in the records.") if more else None
    return (Table(headings, tuple(rows), heads=2), *([kept] if kept else []))


def patched(data: Data) -> tuple[Code, ...]:
    """What each patch did, site by site."""
    return tuple(
        Code(f"{model['subject']['name']}, {variant['name']}: {variant['patch']['text']}")
        for model, variant in _pairs(data)
    )


def left_out(data: Data) -> tuple[Text, ...]:
    """Of each model whose figures are not of all rows: how many are not among them, and the first ones with why."""
    found = []
    for model in data["models"]:
        rows = model["skipped"]
        if rows:
            shown = "; ".join(f"row {row} {reason}" for row, reason in rows[:_LISTED])
            more = f"; and {len(rows) - _LISTED:,} more" if len(rows) > _LISTED else ""
            found.append(Text(f"{model['subject']['name']}: {len(rows):,} left out: {shown}{more}."))
    return tuple(found)


def _surroundings(data: Data) -> Code:
    shown = {"created": data["created"], "settings": data["settings"], "environment": data["environment"]}
    return Code(json.dumps(shown, indent=2, ensure_ascii=False), "json")
