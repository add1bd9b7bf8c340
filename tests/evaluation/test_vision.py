"""Objects, regions and hidden patches of images through the command line, held to pycocotools, scikit-learn,
torchmetrics and the models asked by hand."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from evaluated import VARIANT, Evaluated, evaluated, refusal
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import jaccard_score
from tiny_classifier import saved
from torchmetrics.classification import MulticlassJaccardIndex
from trained import trained

from hf_gelu_patch.cli import main
from hf_gelu_patch.evaluation.loading.models import load_model
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.loading.subjects import load_rows, subject
from hf_gelu_patch.evaluation.metrics.registry import measured, rows_of, statistics_of
from hf_gelu_patch.evaluation.statistics import intervals
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.tasks.making import make_task

pytestmark = pytest.mark.slow

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
NAMES = {0: "cat", 1: "dog", 2: "cow"}
LABELS: dict[str, Any] = {"id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()}}
IMAGES = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vision")


def picture(number: int) -> Image.Image:
    """20 to 40 pixels a side, three shapes in turn."""
    generator = np.random.default_rng(number)
    height, width = ((24, 32), (32, 24), (40, 40))[number % 3]
    return Image.fromarray(generator.integers(0, 255, (height, width, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def pictures(folder: Path) -> Path:
    (folder / "data").mkdir()
    for number in range(IMAGES):
        picture(number).save(folder / "data" / f"{number}.png")
    return folder / "data"


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(model: Path, data: Path, **asked: Any) -> tuple[Any, Any, Task]:
    one = subject(str(model), validation_file=str(data), **asked)
    found = load_model(one.model, one.task)
    processor = load_processor(one.model, one.task)
    return found, processor, make_task(one, found.config, processor, load_rows(one))


def same(one: Evaluated, other: Evaluated, within: float = 1e-6) -> None:
    """Batches of one and of eight find the same, for both models."""
    assert one.before == pytest.approx(other.before, abs=within)
    assert one.after == pytest.approx(other.after, abs=within)
    assert one.found["described"].keys() >= other.found["described"].keys()


# ------------------------------------------------------------------------------------------------------------- objects


@pytest.fixture(scope="module")
def yolos(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.YolosConfig(
        **SIZES, **LABELS, image_size=[32, 40], patch_size=8, num_detection_tokens=12, use_mid_position_embeddings=False
    )
    processor = transformers.YolosImageProcessor(size={"shortest_edge": 32, "longest_edge": 48})
    processor.save_pretrained(folder / "yolos")
    return saved(transformers.YolosForObjectDetection(config), folder / "yolos", 6.0)


@pytest.fixture(scope="module")
def detr(folder: Path) -> Path:
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"], layer_type="basic"
    )
    config = transformers.DetrConfig(
        **LABELS,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_queries=12,
        activation_function="gelu",
    )
    processor = transformers.DetrImageProcessor(size={"shortest_edge": 32, "longest_edge": 48})
    processor.save_pretrained(folder / "detr")
    return saved(transformers.DetrForObjectDetection(config), folder / "detr", 2.0)


@torch.inference_mode()
def found_by(place: Path, image: Image.Image) -> dict[str, Any]:
    """What the model alone finds in one image."""
    model = transformers.AutoModelForObjectDetection.from_pretrained(place).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(place)
    output = model(**processor(image, return_tensors="pt"))
    [one] = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(image.height, image.width)])
    return {name: value.tolist() for name, value in one.items()}


def objects(place: Path, number: int) -> list[dict[str, Any]]:
    """Some of the boxes that the model finds, moved a little; none in the fourth image, and a crowd in the sixth."""
    image, generator = picture(number), np.random.default_rng(number)
    said = found_by(place, image)
    chosen = [] if number == 3 else generator.choice(len(said["scores"]), size=5, replace=False)
    found = []
    for which in chosen:
        left, top, right, bottom = (
            float(min(max(value, 0), most))
            for value, most in zip(said["boxes"][which], (image.width, image.height) * 2, strict=True)
        )
        moved = generator.normal(size=2)
        box = [max(0, left + moved[0]), max(0, top + moved[1]), max(1, right - left), max(1, bottom - top)]
        label = said["labels"][which] if which % 3 else int(generator.integers(3))
        found.append({"bbox": box, "category": NAMES[label], "iscrowd": int(number == 5 and which == chosen[0])})
    return found


def written_objects(path: Path, place: Path, pictures: Path) -> Path:
    return write(path, [{"image": str(pictures / f"{n}.png"), "objects": objects(place, n)} for n in range(IMAGES)])


def coco(data: Path, outcomes: Sequence[Any]) -> dict[str, float]:
    """pycocotools' own figures, of the rows of the data and of the records."""
    ids = {name: index for index, name in NAMES.items()}
    right, said = [], []
    for number, (line, outcome) in enumerate(zip(data.read_text().splitlines(), outcomes, strict=True)):
        for one in json.loads(line)["objects"]:
            box = one["bbox"]
            more = {"area": box[2] * box[3], "iscrowd": one["iscrowd"], "id": len(right) + 1}
            right.append({"image_id": number, "category_id": ids[one["category"]], "bbox": box, **more})
        details = outcome.details
        for box, score, label in zip(details["boxes"], details["scores"], details["labels"], strict=True):
            said.append({"image_id": number, "category_id": label, "bbox": box, "score": score})
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": number} for number in range(len(outcomes))],
            "categories": [{"id": index} for index in NAMES],
            "annotations": right,
        }
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(said), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {"map": run.stats[0], "map_50": run.stats[1]}


@pytest.mark.parametrize("which", ["yolos", "detr"])
def test_object_detection(which: str, pictures: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = request.getfixturevalue(which)
    data = written_objects(tmp_path / "data.jsonl", place, pictures)
    found = evaluated(place, data, tmp_path / "8")
    assert found.found["subject"]["task"] == "object-detection"
    same(found, evaluated(place, data, tmp_path / "1", size=1))
    assert found.before == pytest.approx(coco(data, found.outcomes["before"]), abs=1e-9)
    assert found.after == pytest.approx(coco(data, found.outcomes[VARIANT]), abs=1e-9)
    assert 0.05 < found.before["map"] < found.before["map_50"] < 1
    for number, outcome in enumerate(found.outcomes["before"]):
        own = found_by(place, picture(number))
        order = np.argsort(-np.array(own["scores"]), kind="stable")
        np.testing.assert_allclose(outcome.details["scores"], np.array(own["scores"])[order], rtol=1e-4, atol=1e-6)
        corners = np.array(own["boxes"])[order]
        corners[:, 2:] -= corners[:, :2]
        np.testing.assert_allclose(sorted(outcome.details["boxes"]), sorted(corners.tolist()), atol=1e-3)
    assert found.outcomes["before"][3].targets == ("nothing",)
    intervals = found.found["variants"][0]["quality"]["differences"]
    assert all(float(one["low"]) <= float(one["value"]) <= float(one["high"]) for one in intervals.values())
    assert any(float(one["high"]) > float(one["low"]) for one in intervals.values())


def random_boxes(images: int, each: int, labels: int, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Found boxes, some of them near right ones; and crowds. Scores have two decimals, so that images share some; in an
    image each is another, for it is by chance which of equal ones comes first."""
    generator = np.random.default_rng(seed)
    said, right = [], []
    for _ in range(images):
        boxes = np.concatenate([generator.uniform(0, 80, (each, 2)), generator.uniform(2, 20, (each, 2))], axis=1)
        kinds = generator.integers(0, labels, each)
        near = generator.random(each) < 0.5
        there = boxes[near] + generator.normal(size=(int(near.sum()), 4))
        there[:, 2:] = np.maximum(there[:, 2:], 1)
        crowds = (generator.random(len(there)) < 0.1).astype(int).tolist()
        right.append({"boxes": there.tolist(), "labels": kinds[near].tolist(), "crowds": crowds})
        scores = (generator.choice(100, size=each, replace=False) / 100).tolist()
        said.append({"boxes": boxes.tolist(), "labels": kinds.tolist(), "scores": scores})
    return {"predictions": said, "references": right}


def drawn(columns: dict[str, list[dict[str, Any]]], which: Sequence[int]) -> dict[str, Any]:
    return {"boxes": {name: [values[one] for one in which] for name, values in columns.items()}}


def pycocotools_map(columns: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    from hf_gelu_patch.evaluation.metrics.objects import _coco

    labels = sorted({label for some in columns.values() for one in some for label in one["labels"]})
    with redirect_stdout(io.StringIO()):
        run = COCOeval(_coco(columns["references"], labels), _coco(columns["predictions"], labels), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {"map": run.stats[0], "map_50": run.stats[1]}


def test_precision_is_pycocotools_own_of_the_whole_and_of_every_resample() -> None:
    columns = random_boxes(12, 8, 3)
    rows = rows_of({"boxes": columns})
    assert measured(rows) == pytest.approx(pycocotools_map(columns), abs=1e-12)
    generator = np.random.default_rng(1)
    for _ in range(5):
        which = generator.integers(0, 12, 12)
        weights = np.bincount(which, minlength=12).astype(np.float64)[None]
        whole = {name: [values[one] for one in sorted(which)] for name, values in columns.items()}
        found = {name: float(value[0]) for name, value in statistics_of(weights, rows).items()}
        assert found == pytest.approx(pycocotools_map(whole), abs=1e-12)


def test_precision_without_objects_boxes_or_either() -> None:
    one = {"boxes": [[1.0, 1.0, 5.0, 5.0]], "labels": [0]}
    none: dict[str, Any] = {"boxes": [], "labels": []}
    right = {"map": 1.0, "map_50": 1.0}
    scored = {**one, "scores": [0.5]}
    nothing = {**none, "scores": []}
    for said, there, expected in (
        ([scored, nothing], [one, none], right),
        ([nothing, scored], [one, none], {"map": 0.0, "map_50": 0.0}),
        ([nothing, nothing], [one, none], {"map": 0.0, "map_50": 0.0}),
    ):
        assert measured(rows_of({"boxes": {"predictions": said, "references": there}})) == pytest.approx(
            expected, abs=1e-12
        )
    found = measured(rows_of({"boxes": {"predictions": [scored], "references": [none]}}))
    assert all(np.isnan(value) for value in found.values())


def test_the_interval_of_precision_is_that_of_resampled_images() -> None:
    before, after = random_boxes(12, 8, 3), random_boxes(12, 8, 3)
    after["predictions"] = random_boxes(12, 8, 3, seed=2)["predictions"]
    rows = rows_of({"boxes": before}), rows_of({"boxes": after})
    found = intervals(statistics_of, *rows, 12, seed=0)
    assert found["map"].value == pytest.approx(
        pycocotools_map(after)["map"] - pycocotools_map(before)["map"], abs=1e-12
    )
    assert found["map"].low < found["map"].value < found["map"].high


SAID: list[tuple[str, Any, str]] = [
    ("none", None, "holds no objects in the column 'objects': it has to have bbox and category: None"),
    ("three numbers", [{"bbox": [1, 2, 3], "category": "cat"}], "a box is x, y, width and height"),
    ("no width", [{"bbox": [1, 2, 0, 3], "category": "cat"}], "the last two above 0; got [1"),
    ("corners", [{"bbox": [12, 12, 30, 22], "category": "cat"}], "reaches beyond its image of 32 × 24 pixels"),
    ("unknown", [{"bbox": [1, 2, 3, 4], "category": "bird"}], "'bird'"),
    ("fractions", [{"bbox": [0.1, 0.2, 0.5, 1], "category": "cat"}], "have to be multiplied by its 32 × 24 pixels"),
]


def test_rows_without_objects_that_can_be_used(
    yolos: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"image": str(pictures / "0.png"), "objects": [{"bbox": [1, 2, 10, 10], "category": "cat"}]}
    rows = [good, *({**good, "objects": value} for _, value, _ in SAID), {**good, "image": "gone.png"}]
    data = write(tmp_path / "bad.jsonl", rows)
    assert "row 2 holds no objects" in refusal(yolos, data, tmp_path / "out", capsys)
    found = evaluated(yolos, data, tmp_path / "out", "--skip_bad_rows", "--labels", "names").found
    assert [row for row, _ in found["skipped"]] == [2, 3, 4, 5, 6, 7, 8]
    said = [*(said for _, _, said in SAID), "holds no image that can be read (gone.png"]
    for (_, reason), expected in zip(found["skipped"], said, strict=True):
        assert expected in reason
    empty = write(tmp_path / "empty.jsonl", [{**good, "objects": []}])
    assert "no row has an object to be found" in refusal(yolos, empty, tmp_path / "out", capsys)


@pytest.mark.parametrize("how", ["columns", "rows", "text"])
def test_objects_however_they_are_stored(how: str, yolos: Path, pictures: Path, tmp_path: Path) -> None:
    boxes, kinds = [[1.0, 2.0, 10.0, 10.0], [3.0, 4.0, 5.0, 6.0]], [2, 0]
    image = str(pictures / "0.png")
    names, numbers = datasets.ClassLabel(names=list(NAMES.values())), datasets.List(datasets.Value("float32"))
    if how == "columns":
        inside: Any = {
            "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
            "category": datasets.List(names),
        }
        value: Any = {"bbox": boxes, "category": kinds}
    elif how == "rows":
        inside = datasets.List({"bbox": numbers, "category": names})
        value = [{"bbox": box, "category": kind} for box, kind in zip(boxes, kinds, strict=True)]
    else:
        inside, value = datasets.Value("string"), json.dumps({"bbox": boxes, "category": ["cow", "cat"]})
    features = datasets.Features({"image": datasets.Image(), "objects": inside})
    made = datasets.Dataset.from_dict({"image": [image], "objects": [value]}, features=features)
    made.save_to_disk(tmp_path / "data")
    _, _, task = loaded(yolos, tmp_path / "data")
    [example] = task.examples
    assert example["objects"] == {"boxes": boxes, "labels": kinds, "crowds": [0, 0]}


# ------------------------------------------------------------------------------------------------------------- regions


@pytest.fixture(scope="module")
def segformer(folder: Path) -> Path:
    return write_segformer(folder / "segformer", reduced=False)


def write_segformer(place: Path, *, reduced: bool) -> Path:
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        **LABELS,
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
    )
    processor = transformers.SegformerImageProcessor(size={"height": 32, "width": 32}, do_reduce_labels=reduced)
    processor.save_pretrained(place)
    return saved(transformers.SegformerForSemanticSegmentation(config), place, 4.0)


def mask(number: int, *, reduced: bool = False) -> np.ndarray[Any, Any]:
    """Labels by squares, some of it unlabelled."""
    image, generator = picture(number), np.random.default_rng(100 + number)
    small = generator.choice([0, 1, 2, 255], size=(image.height // 8, image.width // 8), p=[0.4, 0.3, 0.2, 0.1])
    small[0, 0] = 1
    if reduced:
        small = np.where(small == 255, 0, small + 1)
    return np.kron(small, np.ones((8, 8))).astype(np.uint8)


def written_masks(folder: Path, pictures: Path, *, reduced: bool = False) -> Path:
    folder.mkdir()
    for number in range(IMAGES):
        Image.fromarray(mask(number, reduced=reduced)).save(folder / f"mask{number}.png")
    rows = [{"image": str(pictures / f"{n}.png"), "mask": f"mask{n}.png"} for n in range(IMAGES)]
    return write(folder / "data.jsonl", rows)


@torch.inference_mode()
@pytest.mark.parametrize("reduced", [False, True])
def test_semantic_segmentation(reduced: bool, pictures: Path, tmp_path: Path) -> None:
    place = write_segformer(tmp_path / "segformer", reduced=reduced)
    data = written_masks(tmp_path / "masks", pictures, reduced=reduced)
    found = evaluated(place, data, tmp_path / "8")
    assert found.found["subject"]["task"] == "semantic-segmentation"
    if not reduced:
        same(found, evaluated(place, data, tmp_path / "1", size=1))
    model = transformers.SegformerForSemanticSegmentation.from_pretrained(place).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(place)
    index = MulticlassJaccardIndex(3, average="macro", ignore_index=255)
    every_said, every_right = [], []
    for number, outcome in enumerate(found.outcomes["before"]):
        image, right = picture(number), mask(number).astype(np.int64)
        output = model(**processor(image, return_tensors="pt"))
        [said] = processor.post_process_semantic_segmentation(output, target_sizes=[(image.height, image.width)])
        index.update(said[None], torch.from_numpy(right)[None])
        counts = right != 255
        every_said.append(said.numpy()[counts])
        every_right.append(right[counts])
        assert outcome.score == pytest.approx(float((every_said[-1] == every_right[-1]).mean()), abs=1e-12)
    said, right = np.concatenate(every_said), np.concatenate(every_right)
    own = {"mean_iou": jaccard_score(right, said, average="macro"), "pixel_accuracy": float((said == right).mean())}
    assert found.before == pytest.approx(own, abs=1e-9)
    assert float(index.compute()) == pytest.approx(own["mean_iou"], abs=1e-6)
    recounted = {name: np.zeros(3) for name in ("hits", "said", "right")}
    for outcome in found.outcomes[VARIANT]:
        for name, total in recounted.items():
            total[outcome.details["labels"]] += outcome.details[name]
    union = recounted["said"] + recounted["right"] - recounted["hits"]
    assert found.after["mean_iou"] == pytest.approx(float((recounted["hits"] / union).mean()), abs=1e-12)
    assert len({outcome.score for outcome in found.outcomes["before"]}) > 2


def test_masks_that_cannot_be_used(
    segformer: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = written_masks(tmp_path / "masks", pictures)
    right = mask(0)
    beyond, wrong, none, colours = right.copy(), mask(1), np.full_like(right, 255), np.stack([right] * 3, -1)
    beyond[0, 0] = 9
    made: list[np.ndarray[Any, Any]] = [beyond, wrong, none, colours]
    for number, one in enumerate(made):
        Image.fromarray(one).save(tmp_path / "masks" / f"bad{number}.png")
    good = json.loads(data.read_text().splitlines()[0])
    names = [*(f"bad{number}.png" for number in range(4)), "gone.png"]
    bad = write(tmp_path / "masks" / "bad.jsonl", [good, *({**good, "mask": name} for name in names)])
    assert "row 2 has the label 9 in its mask (bad0.png), and the model has 3" in refusal(
        segformer, bad, tmp_path / "out", capsys
    )
    found = evaluated(segformer, bad, tmp_path / "out", "--skip_bad_rows").found
    expected = {
        2: "has the label 9",
        3: "holds an image of 32 × 24 and a mask of 24 × 32",
        4: "has no labelled pixel",
        5: "it has the mode RGB",
        6: "holds no mask that can be read (gone.png",
    }
    assert [row for row, _ in found["skipped"]] == [*expected]
    for row, reason in found["skipped"]:
        assert expected[row] in reason
    metric = refusal(segformer, bad, tmp_path / "out", capsys, "--skip_bad_rows", "--metric", __file__)
    assert "has no answers that another metric could take" in metric


# ------------------------------------------------------------------------------------------------------ hidden patches


@pytest.fixture(scope="module")
def simmim(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SIZES, image_size=16, patch_size=4, encoder_stride=4)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "simmim")
    return saved(transformers.ViTForMaskedImageModeling(config), folder / "simmim", 4.0)


@pytest.fixture(scope="module")
def swin(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2, encoder_stride=4
    )
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "swin")
    return saved(transformers.SwinForMaskedImageModeling(config), folder / "swin", 4.0)


@torch.inference_mode()
@pytest.mark.parametrize("which", ["simmim", "swin"])
def test_masked_image_modeling(which: str, pictures: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = request.getfixturevalue(which)
    data = write(tmp_path / "data.jsonl", [{"image": str(pictures / f"{n}.png")} for n in range(IMAGES)])
    found = evaluated(place, data, tmp_path / "8")
    assert found.found["subject"]["task"] == "masked-image-modeling"
    same(found, evaluated(place, data, tmp_path / "1", size=1))
    model, processor, task = loaded(place, data)
    errors = []
    for number, outcome in enumerate(found.outcomes["before"]):
        batch = task.alone(number)
        hidden = batch.inputs["bool_masked_pos"]
        assert int(hidden.sum()) == round(0.6 * hidden.numel())
        pixels = processor(picture(number), return_tensors="pt").pixel_values
        errors.append(float(model(pixel_values=pixels, bool_masked_pos=hidden).loss))  # transformers' own
        assert outcome.score == pytest.approx(errors[-1], rel=1e-5)
    assert found.before == {"reconstruction_error": pytest.approx(np.mean(errors), rel=1e-5)}
    assert found.after == {
        "reconstruction_error": pytest.approx(np.mean([o.score for o in found.outcomes[VARIANT]]), rel=1e-9)
    }
    assert len({tuple(task.alone(number).inputs["bool_masked_pos"].ravel().tolist()) for number in range(4)}) == 4


def test_squares_are_hidden_where_there_is_room() -> None:
    from hf_gelu_patch.evaluation.tasks.reconstruction import _hidden

    found = _hidden(14, 14, 16, 0)
    assert (found.reshape(7, 2, 7, 2) == found[::2, ::2][:, None, :, None]).all()
    assert found.sum() == 4 * round(0.6 * 49)
    assert (_hidden(14, 14, 16, 0) == found).all()
    assert (_hidden(14, 14, 16, 1) != found).any()


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize(
    ("which", "column"), [("yolos", "objects"), ("segformer", "mask"), ("simmim", None)], ids=lambda one: str(one)
)
def test_what_training_makes_small_has_a_gradient(
    which: str, column: str | None, pictures: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue(which)
    rows: dict[str | None, Callable[[], Path]] = {
        "objects": lambda: written_objects(tmp_path / "data.jsonl", place, pictures),
        "mask": lambda: written_masks(tmp_path / "masks", pictures),
        None: lambda: write(tmp_path / "data.jsonl", [{"image": str(pictures / "0.png")}] * 3),
    }
    large, _, task = loaded(place, rows[column]())
    assert task.not_learnable() is None
    torch.manual_seed(0)
    model = type(large)(large.config).eval()  # with weights as training begins with
    losses = trained(task, model, 4, rate=1e-2)
    assert losses[-1] < losses[0]


def test_what_the_commands_say_of_them(yolos: Path, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["tasks"]) == 0
    said = capsys.readouterr().out
    assert "object-detection: the objects in an image" in said
    assert "columns: image, objects\n  metrics: map, map_50\n" in said
    data = written_objects(tmp_path / "data.jsonl", yolos, pictures)
    asked = ["--model_name_or_path", str(yolos), "--validation_file", str(data)]
    assert main(["evaluate", *asked, "--dry_run"]) == 0
    assert ": object-detection\n" in capsys.readouterr().out


def test_without_its_library_object_detection_says_so(
    yolos: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = write(tmp_path / "data.jsonl", [{"image": str(pictures / "0.png"), "objects": []}])
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    said = refusal(yolos, data, tmp_path / "out", capsys)
    assert "object-detection needs pycocotools, not installed here: pip install 'hf-gelu-patch[detection]'" in said
