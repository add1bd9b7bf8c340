"""The table of tools.md, and what its rows say."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from typing import Any

from hf_gelu_patch.evaluation.report import markdown

Found = Mapping[str, Any]
"""What was found of one tool: see ``judging.examined``."""

_FIRST, _LAST = "patch, tool", "tool, patch"


_INTRODUCTION = """\
Each tool is tried on tiny models with random weights, in both orders: patched first, or the tool first. In each round
the weights are then changed, the patch is undone, and the tool is taken off where it can be, before the undoing or
after it. All of it is done with the model's own function (`aten`) and with another one. What is seen on the way is held
against the same steps on a model that was never patched, or that has the other function from the start:

- **patch, tool** and **tool, patch**: outputs, or whatever the tool finds, before and after the weights change. Same
  bits, or the largest movement relative to the output's scale, where the patch declares rounding.
- **undone**: outputs, classes, the `__dict__` of each module and the config are, to the bit, those of a model that was
  never patched. A refusal says what is in the way, and leaves the patch as it is.
- **freed**: `del` alone sets all weights free, without the garbage collector.

Another model of the same class, in the same process, keeps its bits in every round.
"""


def environment() -> dict[str, str]:
    """The versions that all tools have in common."""
    packages = ("torch", "transformers")
    return {"Python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def _models(found: Found) -> list[Found]:
    """Those that the tool runs on."""
    return [model for model in found.get("models", ()) if "verdicts" in model]


def _verdicts(found: Found, order: str = "") -> Iterator[Found]:
    for model in _models(found):
        yield from (verdict for verdict in model["verdicts"] if verdict["steps"].startswith(order))


def _kept(found: Found) -> Iterator[tuple[str, str, list[str]]]:
    """(model, order, weights that only a patched model keeps alive)."""
    for model in _models(found):
        own = {*model["alive"]["never patched"]}
        for order in (_FIRST, _LAST):
            if kept := sorted({*model["alive"][order]} - own):
                yield model["subject"], order, kept


def faults(found: Found) -> list[str]:
    """Everything of one tool that is not as it must be: for each model, order and aspect the first, and how many."""
    told = [found["error"]] if "error" in found else []
    for model in found.get("models", ()):
        if "unusable" in model:
            told.append(f"{model['subject']}: does not run without a patch: {model['unusable']}")
    for one in _verdicts(found):
        for aspect, (first, *others) in one["faults"].items():
            more = f" (and {len(others)} more)" if others else ""
            told.append(f"{one['subject']}: {one['steps']} [{one['patch']}]: {aspect}: {first}{more}")
    return told + [f"{model}: {order}: alive after del: {len(kept)}, {kept[0]}" for model, order, kept in _kept(found)]


def missing(found: Found) -> bool:
    """Whether its package is not installed."""
    return "error" not in found and found["version"] is None


def summary(found: Found) -> str:
    """One line on one tool."""
    if missing(found):
        return f"not run: {found['package']} is not installed"
    verdicts = [*_verdicts(found)]
    refused = sum(bool(one["refused"]) for one in verdicts)
    alone = sum(bool(one["left_alone"]) for one in verdicts)
    rounds = f"{len(verdicts)} rounds on {len(_models(found))} models"
    return f"{rounds}: {len(faults(found))} faults; {refused} refused, {alone} left alone"


def _subjects(found: Mapping[str, Any]) -> dict[str, str]:
    """The models, and how a patch reaches their activations."""
    return {model["subject"]: model["reached"] for one in found["tools"].values() for model in _models(one)}


def totals(found: Mapping[str, Any]) -> str:
    """The headline."""
    run = [one for one in found["tools"].values() if not missing(one)]
    rounds = [verdict for one in run for verdict in _verdicts(one)]
    refused = sum(bool(one["refused"]) for one in rounds)
    right = sum(not faults(one) for one in run)
    return (
        f"{len(run)} tools, {right} as without a patch; {len(rounds)} rounds on {len(_subjects(found))} models, "
        f"{refused} of them refused with what is in the way."
    )


def record(found: Mapping[str, Any]) -> str:
    """All of it as JSON, a line a tool."""
    tools = [f"{json.dumps(name)}: {json.dumps(one, ensure_ascii=False)}" for name, one in found["tools"].items()]
    return "\n".join(
        ['{"environment": ' + json.dumps(found["environment"]) + ', "tools": {', ",\n".join(tools), "}}", ""]
    )


def document(found: Mapping[str, Any]) -> str:
    """The whole page."""
    about = ", ".join(f"{name} {version}" for name, version in found["environment"].items())
    tools = {name: one for name, one in found["tools"].items() if not missing(one)}
    absent = [f"{name} ({one['package']})" for name, one in found["tools"].items() if missing(one)]
    lines = [
        "# A patch among other tools",
        "",
        f"Written by `python -m scripts.benchmarking.tools`, on a CPU: {about}.",
        "",
        totals(found),
        "",
        _INTRODUCTION,
        *_table(
            ["model", "how a patch reaches its activations"],
            [list(one) for one in _subjects(found).items()],
        ),
        *_table(
            ["tool", "version", "models", _FIRST, _LAST, "undone", "freed"],
            [_row(name, one) for name, one in tools.items()],
        ),
    ]
    if absent:
        lines += [f"Not run, because it is not installed: {'; '.join(absent)}.", ""]
    lines += _listed("Notes", {name: [one["note"]] for name, one in tools.items() if one.get("note")})
    lines += _listed("Refused", {name: _told(one, "refused") for name, one in tools.items()})
    lines += _listed("Left alone", {name: _told(one, "left_alone") for name, one in tools.items()})
    lines += _listed("Not as without a patch", {name: faults(one) for name, one in tools.items()})
    return "\n".join(lines).rstrip() + "\n"


def _row(name: str, found: Found) -> list[str]:
    if "error" in found:
        return [name, "", "", f"**{found['error']}**", "", "", ""]
    models = ", ".join(model["subject"] for model in _models(found))
    return [
        name,
        f"{found['package']} {found['version']}",
        models,
        _as_intended(found, _FIRST),
        _as_intended(found, _LAST),
        _undone(found),
        _freed(found),
    ]


def _as_intended(found: Found, order: str) -> str:
    """The cell of one order."""
    verdicts = [*_verdicts(found, order)]
    wrong = [name for name in ("outputs", "weights", "others") if any(name in one["faults"] for one in verdicts)]
    if wrong:
        return f"**wrong: {', '.join(wrong)}**"
    told = "left alone; " if any(one["left_alone"] for one in verdicts) else ""
    moved = max((one["drift"] for one in verdicts), default=0.0)
    return told + (f"{moved:.1g}" if moved else "same bits")


def _undone(found: Found) -> str:
    verdicts = [*_verdicts(found)]
    if any("undone" in one["faults"] for one in verdicts):
        return "**not undone**"
    refused = [one["steps"] for one in verdicts if one["refused"]]
    return "to the bit" + ("; refused while it is on" if refused else "")


def _freed(found: Found) -> str:
    if any(_kept(found)):
        return "**no**"
    return "no, nor without a patch" if any(one["alive"]["never patched"] for one in _models(found)) else "yes"


def _told(found: Found, what: str) -> list[str]:
    return list(dict.fromkeys(text for one in _verdicts(found) for text in one[what]))


def _listed(title: str, told: Mapping[str, list[str]]) -> list[str]:
    entries = [f"- {name}: {text}" for name, texts in told.items() for text in texts]
    return [f"## {title}", "", *entries, ""] if entries else []


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [markdown.table(head, [[cell.replace("|", "&#124;") for cell in row] for row in rows]), ""]
