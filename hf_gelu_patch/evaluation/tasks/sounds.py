"""Sounds out of rows, and what a feature extractor makes of them."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from scipy.signal import resample_poly
from torch import Tensor

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.tasks.base import Task, file_places

__all__ = ["AT_A_TIME", "sound_sizes", "sounds_of", "stacked_sounds"]

AT_A_TIME = 64  # sounds that are looked at together
Samples = np.ndarray[Any, np.dtype[np.float32]]


def sounds_of(task: Task, data: datasets.Dataset, rows: Iterable[int], extractor: Any) -> dict[int, dict[str, Any]]:
    """The sounds of the rows as the feature extractor makes them, by row: ``features``, tensors by name, and ``size``,
    how many samples there are at its sampling rate.

    A sound is the path of a file that soundfile reads, from here or from the data file; or what datasets stores of an
    ``Audio``: its bytes or path, or its ``array`` with its ``sampling_rate``. Channels are averaged.

    Raises:
        EvaluationError: the column holds no sounds; or a row's cannot be used, and is not to be skipped.
    """
    column, rate = task.subject.input_column, getattr(extractor, "sampling_rate", None)
    if rate is None:
        raise EvaluationError(
            f"the feature extractor of {task.subject.name} is for no sounds: it has no sampling_rate."
        )
    stored = _undecoded(task, data)
    found = {}
    for row in rows:
        value = stored[row][column] or {}
        name = Path(value.get("path") or f"sound in row {row + 1}").name
        try:
            samples = _samples(value, task.subject.data, rate)
        except Exception as error:  # soundfile's, the system's
            task.leave_out(row, f"holds no sound that can be read ({name}: {first_line(error)})")
            continue
        if trouble := _trouble(samples, rate, extractor):
            task.leave_out(row, f"{trouble} ({name})")
            continue
        made = extractor(samples, sampling_rate=rate, return_tensors="pt")
        features = {key: value[0] for key, value in made.items() if task.limits.takes(key)}
        found[row] = {"row": row, "features": features, "size": len(samples), "shown": name}
    return found


def _undecoded(task: Task, data: datasets.Dataset) -> datasets.Dataset:
    """The column of sounds as it is stored: to decode it, datasets would need torchcodec."""
    column = task.subject.input_column
    stored = data.select_columns([column])
    feature = stored.features[column]
    if isinstance(feature, dict) and {"array", "sampling_rate"} <= feature.keys():
        return stored
    try:
        return stored.cast_column(column, datasets.Audio(decode=False))
    except Exception as error:  # pyarrow and datasets each have their own
        raise EvaluationError(
            f"{task.subject.data}: the column {column!r} does not hold sounds ({first_line(error)}). "
            "Name the one that does with --input_column."
        ) from error


def _samples(value: dict[str, Any], data: Path | str, rate: int) -> Samples:
    """[samples] of one channel at the sampling rate that is asked for, in float32."""
    if value.get("array") is not None:
        samples, own = np.asarray(value["array"], dtype=np.float64), int(value["sampling_rate"])
        if samples.ndim == 2:  # channels first, as torchcodec gives them
            samples = samples.mean(axis=0)
    else:
        import soundfile

        content, path = value.get("bytes"), Path(value.get("path") or "")
        if content is None:
            if value.get("path") is None:
                raise ValueError("there is none")
            content = next((one for one in file_places(path, data) if one.is_file()), path).read_bytes()
        samples, own = soundfile.read(io.BytesIO(content), dtype="float64", always_2d=True)
        samples = samples.mean(axis=1)
    if own <= 0:
        raise ValueError(f"its sampling rate is {own}")
    if own != rate and len(samples):
        shared = math.gcd(own, rate)
        samples = resample_poly(samples, rate // shared, own // shared)
    return np.asarray(samples, dtype=np.float32)


def _trouble(samples: Samples, rate: int, extractor: Any) -> str | None:
    """Why a model cannot take a sound, and the remedy; None if it can."""
    if not len(samples):
        return "holds a sound without samples"
    if not np.isfinite(samples).all():
        return "holds a sound with samples that are NaN or infinite"
    most = getattr(extractor, "n_samples", None)  # Whisper's, which cuts off what is longer
    if most is not None and len(samples) > most:
        return f"holds {len(samples) / rate:.1f} s of sound, and the model takes {most / rate:g} s: cut it in pieces"
    return None


def _is_padded(extractor: Any) -> bool:
    """Whether the model is told what of a batch is filling. Where it is not, sounds of one length alone go together: in
    some models, such as wav2vec2's with group norms, what is filled in moves all the rest."""
    return bool(getattr(extractor, "return_attention_mask", False))


def sound_sizes(extractor: Any, example: dict[str, Any]) -> tuple[Any, ...]:
    """What the sounds of one batch have in common."""
    if _is_padded(extractor):
        return ()
    return tuple((name, tuple(value.shape)) for name, value in sorted(example["features"].items()))


def stacked_sounds(task: Task, extractor: Any, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """What was made of their sounds, filled up to one length; numbers in the model's dtype."""
    features = [example["features"] for example in examples]
    if _is_padded(extractor):
        rows = [{name: value.numpy() for name, value in one.items()} for one in features]
        tensors = dict(extractor.pad(rows, padding=True, return_tensors="pt"))
    else:
        tensors = {name: torch.stack([one[name] for one in features]) for name in features[0]}
    dtype = task.config.dtype if isinstance(task.config.dtype, torch.dtype) else torch.float32
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
