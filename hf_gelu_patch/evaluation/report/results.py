"""What evaluations found, as plain data: made of results, written, read back, and put together from several runs.

Whatever is shown (a table, a plot, a page) is made of these data alone, so that it can be made again from the file.
Numbers that are not finite, which JSON does not have, are written by their names ("nan", "inf", "-inf"), and
``float`` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.json_values import as_json

if TYPE_CHECKING:
    from hf_gelu_patch.evaluation.options.settings import Settings
    from hf_gelu_patch.evaluation.run.result import Result, VariantResult
    from hf_gelu_patch.evaluation.speed.summary import Speed

__all__ = ["JSON_NAME", "PARTS", "Data", "merge", "plain", "read"]

JSON_NAME = "evaluation.json"
SCHEMA = 1
"""Of the JSON; it grows when what was written before cannot be read any more."""

PARTS = ("forward", "end_to_end", "prefill", "decode")
"""What is timed."""

Data = dict[str, Any]
"""``{"schema", "created", "settings", "environment", "models": [...]}``, as ``plain`` makes it."""

_SAME = ("weights", "config", "rows", "data", "order", "dtype", "attn_implementation")
"""What two runs of one model have to have in common for their variants to stand side by side."""


def plain(results: Sequence[Result], settings: Settings, surroundings: Mapping[str, Any]) -> Data:
    """Everything that was found out, raw samples included."""
    from hf_gelu_patch.evaluation.metrics.registry import lower_is_better

    found: Data = as_json(
        {
            "schema": SCHEMA,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "settings": asdict(settings),
            "environment": dict(surroundings),
            "lower_is_better": sorted({*lower_is_better(), *_others_of_which_less_is_better(results)}),
            "models": [_model(result) for result in results],
        }
    )
    return found


def _others_of_which_less_is_better(results: Sequence[Result]) -> set[str]:
    return {name for result in results for one in result.variants for name in one.quality.lower_is_better}


def _model(result: Result) -> Data:
    from hf_gelu_patch.evaluation.speed.share import amdahl

    return {
        **{key: value for key, value in vars(result).items() if key not in ("subject", "variants", "described")},
        "subject": {**asdict(result.subject), "data": str(result.subject.data)},
        "described": {str(example): text for example, text in result.described.items()},
        "amdahl": amdahl(result.activation_share),
        "timings": _timings(result),
        "variants": [_variant(one) for one in result.variants],
    }


def _timings(result: Result) -> list[Data]:
    """The raw samples of each part; those of the unpatched model ("before", "again") once for all variants."""
    found: dict[str, Data] = {}
    for one in result.variants:
        for part, speed in _parts(one.speed).items():
            timed = {"part": part, "unit": speed.unit, "units": speed.timings.units, "seconds": {}}
            samples = found.setdefault(part, timed)["seconds"]
            for name, seconds in speed.timings.seconds.items():
                samples[one.variant.name if name == "after" else name] = seconds
    return list(found.values())


def _variant(one: VariantResult) -> Data:
    from hf_gelu_patch.evaluation.quality import judge

    quality = one.quality
    return {
        "name": one.variant.name,
        "variant": asdict(one.variant),
        "patch": {"summary": one.patch.summary, "text": str(one.patch), **one.patch.to_dict()},
        "quality": {**asdict(quality), "margins": quality.margins},
        "answers": judge(quality),
        "drift": asdict(one.drift),
        "layers": [asdict(layer) for layer in one.layers],
        "speed": {part: _speed(speed) for part, speed in _parts(one.speed).items()},
        "peak_memory": one.speed.peak_memory,
        "wrong": one.wrong,
        **({"tasks": [told.plain() for told in one.tasks]} if one.tasks else {}),
    }


def _parts(speed: Speed) -> dict[str, Speed]:
    parts = dict(zip(PARTS, (speed, speed.end_to_end, speed.prefill, speed.decode), strict=True))
    return {name: part for name, part in parts.items() if part is not None}


def _speed(speed: Speed) -> Data:
    return {
        "unit": speed.unit,
        "before": speed.before,
        "after": speed.after,
        "ratio": None if speed.ratio is None else asdict(speed.ratio),
        "floor": asdict(speed.floor),
        "verdict": speed.verdict,
        "percentiles": speed.percentiles,
    }


# ------------------------------------------------------------------------------------------------------ several runs


def read(place: Path) -> Data:
    """What an evaluation wrote.

    Args:
        place: its folder, or the JSON itself.

    Raises:
        EvaluationError: there is nothing of the kind there, or it cannot be read.
    """
    path = place / JSON_NAME if place.is_dir() else place
    if not path.is_file():
        raise EvaluationError(f"there are no results in {place}: name a folder that holds {JSON_NAME}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"{path} cannot be read: {error}. Evaluate again with --resume to write it anew."
        ) from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        said = "is no evaluation's" if schema is None else f"was written in form {schema}, and this reads form {SCHEMA}"
        raise EvaluationError(
            f"{path} {said}. Name what 'hf-gelu-patch evaluate' wrote, or evaluate again with --resume."
        )
    data: Data = found
    return data


def merge(runs: Sequence[tuple[str, Data]]) -> Data:
    """Several runs as one. Where a model, its data and what its answers depend on are the same, variants stand side by
    side, a later one in the place of an earlier one of its name; models that are not the same are told apart by their
    runs' names.

    Args:
        runs: by name, in the order of their time; one alone is given back as it is.
    """
    (_, first), *others = runs
    if not others:
        return first
    models: list[tuple[str, Data]] = []
    for run, data in runs:
        for model in data["models"]:
            at = next((n for n, (_, known) in enumerate(models) if _alike(known, model)), None)
            if at is None:
                models.append((run, model))
            else:
                models[at] = (models[at][0], _together(models[at][1], model))
    names = [model["subject"]["name"] for _, model in models]
    named = [
        model
        if names.count(model["subject"]["name"]) == 1
        else {**model, "subject": {**model["subject"], "name": f"{model['subject']['name']} ({run})"}}
        for run, model in models
    ]
    return {
        "schema": SCHEMA,
        "created": max(data["created"] for _, data in runs),
        "settings": {run: data["settings"] for run, data in runs},
        "environment": {run: data["environment"] for run, data in runs},
        "lower_is_better": first["lower_is_better"],
        "models": named,
    }


def _alike(one: Data, other: Data) -> bool:
    prints = one["fingerprint"], other["fingerprint"]
    return one["subject"]["name"] == other["subject"]["name"] and all(
        prints[0].get(k) == prints[1].get(k) for k in _SAME
    )


def _together(one: Data, other: Data) -> Data:
    """The later run's variants after the earlier one's; what is said of the unpatched model alone is the later one's,
    but each variant keeps what it was held against, in ``speed`` and in the raw samples."""
    names = {variant["name"] for variant in other["variants"]}
    kept = [variant for variant in one["variants"] if variant["name"] not in names]
    return {
        **other,
        "described": {**one["described"], **other["described"]},
        "named": {**one["named"], **other["named"]},
        "variants": [*kept, *other["variants"]],
        "timings": [*one["timings"], *other["timings"]],
    }
