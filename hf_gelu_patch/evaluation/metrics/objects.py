"""Mean average precision of boxes, as COCO defines it (Lin et al. 2014), with pycocotools' own matching.

Which box goes with which object is settled image by image, so it is found once. What is resampled are images: from then
on each sample is the same list of boxes in the order of their scores, with other weights.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np

from hf_gelu_patch.evaluation.metrics.registry import Answers, Array, Metric, register_answers, register_metric
from hf_gelu_patch.evaluation.metrics.sums import ratio

MOST_BOXES = 100
"""In an image: COCO looks at no more of them, those of the highest scores."""

_OVERLAPS = 10  # 0.5, 0.55, …, 0.95
_RECALLS = np.linspace(0.0, 1.0, 101)
_IN_MEMORY = 2**21  # numbers in each of a few arrays
_FOUND = np.dtype([("label", "i4"), ("score", "f8"), ("hits", "u2"), ("ignored", "u2")])


def _box_rows(predictions: Array, references: Array) -> dict[str, Array]:
    """Of each image the boxes that were found, with a bit for each overlap at which they are hits, or count neither
    way; and the labels of the objects that are there to be found."""
    from pycocotools.cocoeval import COCOeval

    labels = sorted({label for one in (*predictions, *references) for label in one["labels"]})
    found: list[list[Array]] = [[] for _ in predictions]
    objects: list[list[int]] = [[] for _ in predictions]
    with redirect_stdout(io.StringIO()):  # it prints how far it is
        run = COCOeval(_coco(references, labels), _coco(predictions, labels), "bbox")
        run.params.areaRng, run.params.areaRngLbl, run.params.maxDets = [[0, 1e10]], ["all"], [MOST_BOXES]
        run.evaluate()
    bits = 2 ** np.arange(_OVERLAPS, dtype=np.int64)[:, None]
    for one in run.evalImgs:
        if one is None:  # neither found nor there
            continue
        boxes = np.zeros(len(one["dtScores"]), dtype=_FOUND)
        ignored = np.asarray(one["dtIgnore"], dtype=bool)
        boxes["label"], boxes["score"] = one["category_id"], one["dtScores"]
        boxes["hits"] = (bits * ((np.asarray(one["dtMatches"]) > 0) & ~ignored)).sum(axis=0)
        boxes["ignored"] = (bits * ignored).sum(axis=0)
        found[one["image_id"]].append(boxes)
        objects[one["image_id"]] += [one["category_id"]] * int((np.asarray(one["gtIgnore"]) == 0).sum())
    empty = np.zeros(0, dtype=_FOUND)
    return {
        "found": _entries(np.concatenate([empty, *some]) for some in found),
        "objects": _entries(np.array(some, dtype=np.int64) for some in objects),
    }


def _coco(images: Iterable[Mapping[str, Any]], labels: Sequence[int]) -> Any:
    """Boxes, found or right, as pycocotools takes them. Its ids of boxes have to begin at 1: a match with 0 is none."""
    from pycocotools.coco import COCO

    boxes: list[dict[str, Any]] = []
    images = list(images)
    for number, image in enumerate(images):
        crowds = image.get("crowds") or [0] * len(image["labels"])
        scores = image.get("scores") or [0.0] * len(image["labels"])
        for box, label, crowd, score in zip(image["boxes"], image["labels"], crowds, scores, strict=True):
            one = {"image_id": number, "category_id": label, "bbox": box, "area": box[2] * box[3]}
            boxes.append({**one, "iscrowd": crowd, "score": score, "id": len(boxes) + 1})
    found = COCO()
    found.dataset = {
        "images": [{"id": number} for number in range(len(images))],
        "categories": [{"id": label} for label in labels],
        "annotations": boxes,
    }
    found.createIndex()
    return found


def _entries(arrays: Iterable[Array]) -> Array:
    """An array of arrays, whatever their lengths."""
    arrays = list(arrays)
    found = np.empty(len(arrays), dtype=object)
    found[:] = arrays
    return found


register_answers(Answers("boxes", {"predictions": "string", "references": "string"}, _box_rows, apart=True))


def _mean_precision(weights: Array, rows: Mapping[str, Array], overlaps: Sequence[int]) -> Array:
    """The mean over labels with objects, and over overlaps, of the average precision: of the highest precision at a
    recall of r or more, its mean over r = 0, 0.01, …, 1."""
    if not len(rows["found"]):
        return np.full(len(weights), np.nan)
    found, image = _flat(rows["found"])
    objects, of_objects = _flat(rows["objects"])
    order = np.argsort(-found["score"], kind="mergesort") if len(found) else np.zeros(0, dtype=np.int64)
    found, image = found[order], image[order]
    total, labels = np.zeros(len(weights)), np.zeros(len(weights))
    for label in np.unique(objects):
        own = found["label"] == label
        right = weights[:, of_objects[objects == label]].sum(axis=1)
        there = right > 0
        total[there] += _precision(weights[there], found[own], image[own], right[there], overlaps)
        labels += there
    return ratio(total, labels)


def _flat(entries: Array) -> tuple[Array, Array]:
    """What stands in all images, and in which."""
    sizes = np.array([len(one) for one in entries], dtype=np.int64)
    return np.concatenate([*entries]), np.repeat(np.arange(len(entries)), sizes)


def _precision(weights: Array, found: Array, image: Array, right: Array, overlaps: Sequence[int]) -> Array:
    """The average precision for one label, its mean over overlaps, in each sample.

    Precision is highest, and recall rises, at hits alone: nothing else is looked at but how many boxes stand before
    each. What comes after the last hit does not count.

    Args:
        found, image: boxes in the order of their scores, and where they are.
        right: how many objects there are in each sample.
    """
    hits = [np.flatnonzero(found["hits"] >> overlap & 1) for overlap in overlaps]
    end = max((int(places[-1]) + 1 for places in hits if len(places)), default=0)
    total = np.zeros(len(weights))
    step = max(1, _IN_MEMORY // max(1, end))
    for start in range(0, len(weights), step):
        part = slice(start, start + step)
        many = weights[part][:, image[:end]]
        before = many.cumsum(axis=1)
        for overlap, places in zip(overlaps, hits, strict=True):
            if not len(places):
                continue
            said = before[:, places]
            if (ignored := found["ignored"][:end] >> overlap & 1).any():
                said = said - (many * ignored).cumsum(axis=1)[:, places]
            held = many[:, places].cumsum(axis=1)
            precision = held / (said + np.spacing(1))
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            reached = np.searchsorted(_RECALLS, held / right[part, None], side="right")
            total[part] += (np.diff(reached, axis=1, prepend=0) * precision).sum(axis=1)
    return total / (len(_RECALLS) * len(overlaps))


def _map(weights: Array, rows: Mapping[str, Array]) -> Array:
    return _mean_precision(weights, rows, range(_OVERLAPS))


def _map_50(weights: Array, rows: Mapping[str, Array]) -> Array:
    return _mean_precision(weights, rows, [0])


register_metric(Metric("map", ("boxes",), _map))
register_metric(Metric("map_50", ("boxes",), _map_50))
