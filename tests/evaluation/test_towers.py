"""Images and texts, through the command line, held to scikit-learn, torchmetrics and the model asked by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from evaluated import VARIANT, Evaluated, evaluated, refusal
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torchmetrics.retrieval import RetrievalHitRate
from trained import trained

from hf_gelu_patch import patched
from hf_gelu_patch.cli import main
from hf_gelu_patch.evaluation.loading.models import load_model
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.loading.subjects import load_rows, subject
from hf_gelu_patch.evaluation.run.comparison import Side
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.tasks.making import make_task
from hf_gelu_patch.evaluation.variants import Variant

pytestmark = pytest.mark.slow

SPECIAL = ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]
COLOURS = ["red", "green", "blue", "grey", "dark red", "dark green", "light blue"]
WORDS = ["this", "is", "a", "photo", "of", "dark", "light", *COLOURS[:4], *(f"w{number}" for number in range(20))]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
TEMPLATE = "a photo of {}"
FACTOR = 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("towers")


def write_processor(place: Path, kind: str, *, mask: bool) -> None:
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    given = ["input_ids", *(["attention_mask"] if mask else [])]
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=16, model_input_names=given, **names
    )
    images = getattr(transformers, f"{kind}ImageProcessor")(size={"height": 16, "width": 16}, do_center_crop=False)
    fast.save_pretrained(place)
    images.save_pretrained(place)
    config = json.loads((place / "preprocessor_config.json").read_text())
    (place / "preprocessor_config.json").write_text(json.dumps({**config, "processor_class": f"{kind}Processor"}))


def write_clip(place: Path, kind: str = "CLIP", *, mask: bool = True) -> Path:
    torch.manual_seed(0)
    tokens = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    text = {**SIZES, "vocab_size": len(SPECIAL + WORDS), "max_position_embeddings": 16, **tokens}
    vision = {**SIZES, "image_size": 16, "patch_size": 8}
    more = {"projection_dim": 16} if kind == "CLIP" else {}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision, **more)
    model = getattr(transformers, f"{kind}Model")(config)
    for weight in model.parameters():
        weight.data.mul_(4.0 if kind == "CLIP" else FACTOR) if weight.dim() > 1 else None
    model.save_pretrained(place)
    write_processor(place, kind, mask=mask)
    return place


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    return write_clip(folder / "clip")


@pytest.fixture(scope="module")
def siglip(folder: Path) -> Path:
    """Whose texts are filled up to the model's length, without a mask."""
    return write_clip(folder / "siglip", "Siglip", mask=False)


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (20, 24, 3)).astype(np.uint8))


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(model: Path, data: Path, task: str) -> tuple[Any, Task]:
    asked = {"hypothesis_template": TEMPLATE} if task.startswith("zero-shot") else {}
    one = subject(str(model), validation_file=str(data), task=task, **asked)
    found = load_model(one.model, one.task)
    return found, make_task(one, found.config, load_processor(one.model, one.task), load_rows(one))


def same(one: Evaluated, other: Evaluated) -> None:
    """Batches of one and of eight find the same, for both models."""
    assert (one.before, one.after) == (other.before, other.after)
    for name in one.outcomes:
        assert [o.answers for o in one.outcomes[name]] == [o.answers for o in other.outcomes[name]]


# ----------------------------------------------------------------------------------------------------------- zero-shot


@pytest.fixture(scope="module")
def colours(folder: Path) -> Path:
    """A folder of images for each class."""
    for number in range(14):
        place = folder / "colours" / COLOURS[number % 7].replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        picture(number).save(place / f"{number}.png")
    return folder / "colours"


@torch.inference_mode()
@pytest.mark.parametrize("which", ["clip", "siglip"])
def test_zero_shot_image_classification(
    which: str, colours: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = request.getfixturevalue(which)
    asked = ["--task", "zero-shot-image-classification", "--hypothesis_template", TEMPLATE]
    found = evaluated(place, colours, tmp_path / "8", *asked)
    same(found, evaluated(place, colours, tmp_path / "1", *asked, size=1))
    model = transformers.AutoModel.from_pretrained(place).eval()
    processor = transformers.AutoProcessor.from_pretrained(place)
    classes = sorted(colour.replace(" ", "_") for colour in COLOURS)
    prompts = [TEMPLATE.replace("{}", name.replace("_", " ")) for name in classes]
    logits, right = [], []
    for index, name in enumerate(classes):
        for path in sorted((colours / name).iterdir()):
            padding = "max_length" if which == "siglip" else True
            inputs = processor(text=prompts, images=Image.open(path), padding=padding, return_tensors="pt")
            logits.append(model(**inputs).logits_per_image[0].numpy())
            right.append(index)
    said = np.stack(logits).argmax(1)
    assert [outcome.answers[0] for outcome in found.outcomes["before"]] == said.tolist()
    own = {
        "accuracy": accuracy_score(right, said),
        "macro_f1": f1_score(right, said, average="macro", labels=range(7)),
        "top5_accuracy": top_k_accuracy_score(right, np.stack(logits), k=5, labels=range(7)),
    }
    assert found.before == pytest.approx(own, abs=1e-12)
    answers = [outcome.answers[0] for outcome in found.outcomes[VARIANT]]
    assert found.after["accuracy"] == pytest.approx(accuracy_score(right, answers), abs=1e-12)
    assert len({*said.tolist()}) > 1


def test_classes_that_are_texts(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(0).save(tmp_path / "0.png")
    rows: list[dict[str, Any]] = [{"image": "0.png", "label": name} for name in ("red", "blue", "red", "green")]
    asked = ["--task", "zero-shot-image-classification", "--hypothesis_template", TEMPLATE]
    _, task = loaded(clip, write(tmp_path / "data.jsonl", rows), "zero-shot-image-classification")
    assert [example["label"] for example in task.examples] == [2, 0, 2, 1]
    assert task.named("1") == "green"
    bad = write(tmp_path / "bad.jsonl", [*rows, {"image": "0.png", "label": None}])
    said = refusal(clip, bad, tmp_path / "out", capsys, *asked)
    assert "row 5 has no class in the column 'label': None" in said
    found = evaluated(clip, bad, tmp_path / "out", *asked, "--skip_bad_rows").found
    assert [row for row, _ in found["skipped"]] == [5]
    one = write(tmp_path / "one.jsonl", rows[:1])
    assert "has one class, 'red', and it takes two or more" in refusal(clip, one, tmp_path / "out", capsys, *asked)
    numbers = write(tmp_path / "numbers.jsonl", [{**row, "label": 1} for row in rows])
    assert "has no names of classes" in refusal(clip, numbers, tmp_path / "out", capsys, *asked)
    unknown = write(tmp_path / "unknown.jsonl", [{"image": "0.png", "label": name} for name in ("ab", "cd")])
    assert "makes the same of all classes" in refusal(clip, unknown, tmp_path / "out", capsys, *asked)
    data = tmp_path / "data.jsonl"
    said = refusal(clip, data, tmp_path / "out", capsys, *asked[:3], "a photo")
    assert "has no {} where the name of a class goes" in said
    said = refusal(clip, data, tmp_path / "out", capsys, "--task", "feature-drift", "--hypothesis_template", "{}")
    assert "feature-drift asks for no classes by sentences" in said


# ----------------------------------------------------------------------------------------------------------- retrieval


def written_pairs(folder: Path) -> Path:
    """Twelve rows of nine images: three images have two texts each; one text stands with two images."""
    folder.mkdir(exist_ok=True)
    for number in range(9):
        picture(number).save(folder / f"{number}.png")
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS, size=2 + number % 5)) for number in range(12)]
    texts[8] = texts[0]
    return write(folder / "data.jsonl", [{"image": f"{n % 9}.png", "text": text} for n, text in enumerate(texts)])


@torch.inference_mode()
def cosines(place: Path, data: Path, *, full: bool) -> tuple[np.ndarray[Any, Any], list[str], list[str], list[Any]]:
    """[image, text] by the model alone, one at a time; the images, the texts, and the rows."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    model = transformers.AutoModel.from_pretrained(place).eval()
    processor = transformers.AutoProcessor.from_pretrained(place)
    images, texts = (list(dict.fromkeys(row[name] for row in rows)) for name in ("image", "text"))
    embedded: list[list[torch.Tensor]] = [[], []]
    for name in images:
        inputs = processor(images=Image.open(data.parent / name), return_tensors="pt")
        embedded[0].append(model.get_image_features(**inputs).pooler_output[0])
    for text in texts:
        inputs = processor(text=[text], padding="max_length" if full else True, return_tensors="pt")
        embedded[1].append(model.get_text_features(**inputs).pooler_output[0])
    of_images, of_texts = (torch.nn.functional.normalize(torch.stack(some).double(), dim=-1) for some in embedded)
    return (of_images @ of_texts.T).numpy(), images, texts, rows


def recalls(similar: np.ndarray[Any, Any], images: list[str], texts: list[str], rows: list[Any]) -> dict[str, float]:
    """torchmetrics': of each image whether one of its texts is among the first, and the other way round."""
    right = np.zeros(similar.shape, dtype=bool)
    for row in rows:
        right[images.index(row["image"]), texts.index(row["text"])] = True
    found = {}
    for kind, scores, target in (("text", similar, right), ("image", similar.T, right.T)):
        queries = np.arange(len(scores))[:, None].repeat(scores.shape[1], 1)
        for most in (1, 5):
            metric = RetrievalHitRate(top_k=most)
            tensors = (torch.from_numpy(np.ascontiguousarray(one).ravel()) for one in (scores, target, queries))
            said, there, which = tensors
            found[f"{kind}_recall_at_{most}"] = float(metric(said, there, indexes=which))
    return found


@pytest.mark.parametrize("which", ["clip", "siglip"])
def test_image_text_retrieval(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place, data = request.getfixturevalue(which), written_pairs(tmp_path / "data")
    asked = ["--task", "image-text-retrieval"]
    found = evaluated(place, data, tmp_path / "8", *asked)
    same(found, evaluated(place, data, tmp_path / "1", *asked, size=1))
    similar, images, texts, rows = cosines(place, data, full=which == "siglip")
    assert found.before == pytest.approx(recalls(similar, images, texts, rows), abs=1e-6)
    for row, outcome in zip(rows, found.outcomes["before"], strict=True):
        of_image = similar[images.index(row["image"])]
        own = {one["text"] for one in rows if one["image"] == row["image"]}
        best = max(of_image[texts.index(text)] for text in own)
        others = [of_image[number] for number, text in enumerate(texts) if text not in own]
        assert outcome.details["text_rank"] == 1 + sum(other >= best for other in others)
        assert (outcome.answers[0] == outcome.targets[0]) == (outcome.details["text_rank"] == 1)
        if outcome.details["text_rank"] > 1:
            assert rows[int(outcome.answers[0])]["text"] == texts[int(of_image.argmax())]
    assert len({outcome.details["image_rank"] for outcome in found.outcomes["before"]}) > 2
    shares = [1 / sum(one["image"] == row["image"] for one in rows) for row in rows]
    after = found.outcomes[VARIANT]
    hits = [share * (outcome.details["text_rank"] <= 5) for share, outcome in zip(shares, after, strict=True)]
    assert found.after["text_recall_at_5"] == pytest.approx(sum(hits) / sum(shares), abs=1e-12)


@pytest.mark.parametrize(
    ("images", "texts", "said"),
    [
        ([0, 1], ["red", "red"], "all rows have the same text, as the model is given it: there is nothing to find"),
        ([0, 0], ["red", "blue"], "all rows have the same image"),
        ([0, 1], [["red"], ["blue", "green"]], "row 1 has a list in the column 'text': give each text a row of its"),
    ],
)
def test_pairs_among_which_there_is_nothing_to_find(
    images: list[int], texts: list[Any], said: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"image": f"{image}.png", "text": text} for image, text in zip(images, texts, strict=True)]
    for image in images:
        picture(image).save(tmp_path / f"{image}.png")
    data = write(tmp_path / "data.jsonl", rows)
    assert said in refusal(clip, data, tmp_path / "out", capsys, "--task", "image-text-retrieval")


@torch.inference_mode()
def test_a_model_is_ranked_anew_once_it_is_patched(clip: Path, tmp_path: Path) -> None:
    model, task = loaded(clip, written_pairs(tmp_path / "data"), "image-text-retrieval")
    batch = task.batches(12)[0]
    before = task.predict(model, batch).outcomes
    with patched(model, activation="relu"):
        inside = task.predict(model, batch).outcomes
    assert [one.details for one in before] != [one.details for one in inside]
    assert task.predict(model, batch).outcomes == before
    side = Side(model, Variant("activation=relu", activation="relu"))
    made = []
    for _ in range(2):  # where there is one model for all variants, each has its own once
        with side:
            assert task.predict(model, batch).outcomes == inside
            made.append(task._known[side][2])
    assert made[0] is made[1]


def test_what_is_alike_to_the_model_is_one_candidate_and_ties_count_against_it(clip: Path, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "0.png")
    picture(0).save(tmp_path / "again.png")
    picture(1).save(tmp_path / "1.png")
    texts = ["red w1", "red w1", "blue w2"]
    names = ["0.png", "again.png", "1.png"]
    rows = [{"image": name, "text": text} for name, text in zip(names, texts, strict=True)]
    model, task = loaded(clip, write(tmp_path / "data.jsonl", rows), "image-text-retrieval")
    assert [(example["image"], example["text"]) for example in task.examples] == [(0, 0), (0, 0), (2, 2)]
    for weight in model.parameters():  # every text and image is alike
        weight.data.fill_(0.01)
    with torch.inference_mode():
        outcomes = task.predict(model, task.batches(8)[0]).outcomes
    assert [outcome.details for outcome in outcomes] == [{"text_rank": 2, "image_rank": 2}] * 3
    assert task.metrics(outcomes)["text_recall_at_1"] == 0


def test_rows_that_cannot_be_used(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in written_pairs(tmp_path / "data").read_text().splitlines()]
    bad = write(tmp_path / "data" / "bad.jsonl", [*rows[:3], {**rows[3], "text": " "}, {**rows[4], "image": "no.png"}])
    asked = ["--task", "image-text-retrieval"]
    assert "row 4 has no words in the column 'text'" in refusal(clip, bad, tmp_path / "out", capsys, *asked)
    found = evaluated(clip, bad, tmp_path / "out", *asked, "--skip_bad_rows").found
    assert [row for row, _ in found["skipped"]] == [4, 5]
    assert "no.png" in found["skipped"][1][1]
    bare = tmp_path / "bare"
    transformers.AutoModel.from_pretrained(clip).save_pretrained(bare)
    transformers.AutoTokenizer.from_pretrained(clip).save_pretrained(bare)
    said = refusal(bare, tmp_path / "data" / "data.jsonl", tmp_path / "out", capsys, *asked)
    assert "has no image processor" in said or "has no processor" in said


@pytest.mark.parametrize("task", ["image-text-retrieval", "zero-shot-image-classification"])
def test_what_training_makes_small_has_a_gradient(task: str, clip: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in written_pairs(tmp_path / "data").read_text().splitlines()]
    labelled = write(
        tmp_path / "data" / "labels.jsonl", [{**row, "label": COLOURS[n % 4]} for n, row in enumerate(rows)]
    )
    model, made = loaded(clip, labelled, task)
    assert made.not_learnable() is None
    losses = trained(made, model, 6, rate=1e-3)
    assert losses[-1] < losses[0]


def test_what_the_commands_say_of_them(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    said = capsys.readouterr().out
    assert "image-text-retrieval: the text for an image" in said
    recalls = "text_recall_at_1, image_recall_at_1, text_recall_at_5, image_recall_at_5"
    assert f"columns: image, text\n  metrics: {recalls}\n" in said
    data = written_pairs(tmp_path / "data")
    asked = ["--model_name_or_path", str(clip), "--validation_file", str(data), "--task", "image-text-retrieval"]
    assert main(["evaluate", *asked, "--dry_run"]) == 0
    assert ": image-text-retrieval\n" in capsys.readouterr().out
