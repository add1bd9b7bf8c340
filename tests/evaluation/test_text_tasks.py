"""Tasks of texts through the command line: each metric recomputed from the records with the field's own library."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import seqeval.metrics
import torch
import transformers
from evaluated import VARIANT, evaluated, refusal
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error, ndcg_score
from text_models import WORDS, save, texts, write_bert, write_lines, write_tokenizer
from tokenizers import Regex, Tokenizer, pre_tokenizers
from torchmetrics.functional.retrieval import retrieval_reciprocal_rank
from torchmetrics.functional.text.squad import squad

from hf_gelu_patch.cli import main
from hf_gelu_patch.evaluation.errors import LeftOutWarning
from hf_gelu_patch.evaluation.loading.models import load_model
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.loading.subjects import load_rows, subject
from hf_gelu_patch.evaluation.outcomes import Outcome
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.tasks.making import make_task
from hf_gelu_patch.evaluation.variants import BEFORE

pytestmark = pytest.mark.slow


def task_of(model: Path, data: Path, **options: Any) -> tuple[Any, Task]:
    one = subject(str(model), validation_file=str(data), **options)
    loaded, processor = load_model(one.model, one.task), load_processor(one.model, one.task)
    return loaded, make_task(one, loaded.config, processor, load_rows(one))


TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def tagged(count: int = 30) -> list[dict[str, Any]]:
    draw = random.Random(7)
    rows = [{"tokens": text.split()} for text in texts(count)]
    return [{**row, "tags": draw.choices(TAGS, k=len(row["tokens"]))} for row in rows]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("models") / "tagger", "BertForTokenClassification", TAGS)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("models") / "reader", "BertForQuestionAnswering")


def test_entities(tagger: Path, tmp_path: Path) -> None:
    rows = tagged()
    data = write_lines(tmp_path / "a.jsonl", rows)
    found = [evaluated(tagger, data, tmp_path / str(size), size=size) for size in (1, 8)]
    assert found[0].outcomes[BEFORE] == found[1].outcomes[BEFORE] or found[0].before == found[1].before
    for run, side, figures in ((found[1], BEFORE, found[1].before), (found[1], VARIANT, found[1].after)):
        said = [[TAGS[answer] for answer in outcome.answers] for outcome in run.outcomes[side]]
        right = [[TAGS[target] for target in outcome.targets] for outcome in run.outcomes[side]]
        assert right == [row["tags"] for row in rows]
        assert figures["entity_f1"] == pytest.approx(seqeval.metrics.f1_score(right, said), abs=1e-12)
        assert figures["entity_precision"] == pytest.approx(seqeval.metrics.precision_score(right, said), abs=1e-12)
        assert figures["entity_recall"] == pytest.approx(seqeval.metrics.recall_score(right, said), abs=1e-12)
        assert figures["tag_accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(right, said), abs=1e-12)
        assert 0 < figures["entity_f1"] < 1


def test_tags_are_read_from_lists_texts_and_classes(tagger: Path, tmp_path: Path) -> None:
    rows = tagged(6)
    lines = write_lines(tmp_path / "a.jsonl", rows)
    conll = [{"words": " ".join(row["tokens"]), "ner_tags": " ".join(row["tags"])} for row in rows]
    text = tmp_path / "a.csv"
    text.write_text("words,ner_tags\n" + "".join(f"{row['words']},{row['ner_tags']}\n" for row in conll))
    classes = ["B-LOC", "I-LOC", "B-PER", "I-PER", "O"]  # in another order than the model's
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "ner_tags": datasets.List(datasets.ClassLabel(names=classes)),
        }
    )
    numbers = [{"tokens": row["tokens"], "ner_tags": [classes.index(tag) for tag in row["tags"]]} for row in rows]
    datasets.Dataset.from_list(numbers, features=features).save_to_disk(tmp_path / "saved")
    ids = [{"tokens": row["tokens"], "tags": [TAGS.index(tag) for tag in row["tags"]]} for row in rows]
    wanted = [[TAGS.index(tag) for tag in row["tags"]] for row in rows]
    for data in (lines, text, tmp_path / "saved", write_lines(tmp_path / "ids.jsonl", ids)):
        _, task = task_of(tagger, data)
        assert [[target for target in one["targets"] if target >= 0] for one in task.examples] == wanted


def test_a_word_is_told_by_its_first_token_and_the_end_of_a_long_text_by_none(tmp_path: Path) -> None:
    """A tokenizer that cuts words into characters; where the model's names are none, the data's are taken."""
    model = write_bert(tmp_path / "model", "BertForTokenClassification", num_labels=3)
    write_tokenizer(model, "abc")
    backend = Tokenizer.from_file(str(model / "tokenizer.json"))
    pieces = pre_tokenizers.Split(Regex("."), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pieces])
    backend.save(str(model / "tokenizer.json"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    classes = datasets.List(datasets.ClassLabel(names=["O", "B-A", "I-A"]))
    rows = [{"tokens": ["ab", "c"], "tags": [1, 2]}, {"tokens": ["a" * 6] * 8, "tags": [0] * 8}]
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "tags": classes})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "data")
    with pytest.warns(LeftOutWarning, match=r"3 words in 1 rows, first in row 2, are not asked: .*first 32 tokens"):
        loaded, task = task_of(model, tmp_path / "data")
    assert task.examples[0]["targets"] == [-100, 1, -100, 2, -100]
    with torch.inference_mode():
        [outcome] = task.predict(loaded, task.alone(0)).outcomes
        logits = loaded(**tokenizer(["ab", "c"], is_split_into_words=True, return_tensors="pt")).logits[0]
    assert outcome.answers == (int(logits[1].argmax()), int(logits[3].argmax()))
    [kind] = task.columns([outcome], task.examples[:1])
    assert kind == "entities"
    assert task.pairs([outcome], task.examples[:1])[1] == [["B-A", "I-A"]]


def test_tags_that_are_no_entities_are_counted_word_by_word(tmp_path: Path) -> None:
    model = write_bert(tmp_path / "model", "BertForTokenClassification", ["NOUN", "VERB"])
    draw = random.Random(2)
    rows = [
        {"tokens": text.split(), "pos_tags": draw.choices(["NOUN", "VERB"], k=len(text.split()))} for text in texts(9)
    ]
    run = evaluated(model, write_lines(tmp_path / "a.jsonl", rows), tmp_path / "results")
    assert run.before.keys() == {"tag_accuracy"}
    said, right = (
        [tag for one in run.outcomes[BEFORE] for tag in getattr(one, side)] for side in ("answers", "targets")
    )
    assert run.before["tag_accuracy"] == pytest.approx(accuracy_score(right, said))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["w1", "w2"], "tags": ["O"]}, "row 3 has 2 words and 1 tags in the column 'tags'"),
        ({"tokens": [], "tags": []}, "row 3 has no words in the column 'tokens': the list is empty"),
        ({"tokens": ["w1"], "tags": ["B-DOG"]}, "row 3 has the label 'B-DOG', which the model does not know"),
        ({"tokens": ["w1"], "tags": None}, "row 3 has no list of tags in the column 'tags'"),
        ({"tokens": None, "tags": ["O"]}, "row 3 has no words in the column 'tokens'"),
    ],
)
def test_rows_without_tags_are_named_or_left_out(
    row: dict[str, Any], said: str, tagger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_lines(tmp_path / "a.jsonl", [*tagged(2), row, *tagged(2)])
    assert said in refusal(tagger, data, tmp_path / "results", capsys)
    one = subject(str(tagger), validation_file=str(data))
    config, processor = transformers.AutoConfig.from_pretrained(tagger), load_processor(one.model, one.task)
    task = make_task(one, config, processor, load_rows(one, skip_bad_rows=True), skip_bad_rows=True)
    assert [number for number, _ in task.skipped] == [3]
    assert [example["row"] for example in task.examples] == [0, 1, 3, 4]


def test_data_without_its_columns_and_without_the_library(
    tagger: Path, reader: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_lines(tmp_path / "a.jsonl", [{"text": "w1"}])
    assert "no column 'tokens' and no column 'tags'; it has: text" in refusal(
        tagger, data, tmp_path / "results", capsys
    )
    assert "no column 'question' and no column 'context'" in refusal(reader, data, tmp_path / "results", capsys)
    monkeypatch.setitem(sys.modules, "seqeval", None)
    said = refusal(tagger, data, tmp_path / "results", capsys)
    assert "token-classification needs seqeval, not installed here: pip install 'hf-gelu-patch[text]'" in said
    assert main(["tasks"]) == 0
    assert "not here: seqeval missing (pip install 'hf-gelu-patch[text]')" in capsys.readouterr().out


def answered(count: int = 24) -> list[dict[str, Any]]:
    """Contexts of which some are longer than the model; of every fourth question no answer is right."""
    draw, rows = random.Random(5), []
    for number, question in enumerate(texts(count, 6)):
        words = draw.choices(WORDS, k=5 + (11 * number) % 60)
        context = " ".join(words)
        starts = draw.sample(range(len(words)), 2)
        answers = [" ".join(words[start : start + 1 + number % 3]) for start in starts]
        places = [len(" ".join(words[:start])) + (start > 0) for start in starts]
        kept = 0 if number % 4 == 3 else 2
        rows.append(
            {
                "question": question,
                "context": context,
                "answers": {"text": answers[:kept], "answer_start": places[:kept]},
            }
        )
    return rows


def test_answers_out_of_a_context(reader: Path, tmp_path: Path) -> None:
    rows = answered()
    model, task = task_of(reader, write_lines(tmp_path / "a.jsonl", rows))
    for number in range(0, len(rows), 3):  # so that some are right
        with torch.inference_mode():
            said = task.predict(model, task.alone(number)).outcomes[0].details["text"]
        rows[number]["answers"]["text"] = ["w0 w0", f"The {said}!"]
    data = write_lines(tmp_path / "b.jsonl", rows)
    found = [evaluated(reader, data, tmp_path / str(size), size=size) for size in (1, 8)]
    assert found[0].outcomes == found[1].outcomes
    for side, figures in ((BEFORE, found[1].before), (VARIANT, found[1].after)):
        outcomes = found[1].outcomes[side]
        assert [outcome.details["references"] for outcome in outcomes] == [row["answers"]["text"] for row in rows]
        said = [{"prediction_text": one.details["text"], "id": str(i)} for i, one in enumerate(outcomes)]
        right = [
            {"answers": {"text": row["answers"]["text"] or [""], "answer_start": [0]}, "id": str(i)}
            for i, row in enumerate(rows)
        ]
        theirs = squad(said, right)
        assert figures["exact_match"] == pytest.approx(float(theirs["exact_match"]) / 100, abs=1e-6)
        assert figures["answer_f1"] == pytest.approx(float(theirs["f1"]) / 100, abs=1e-6)
        assert 0 < figures["answer_f1"] < 1
    assert 0 < found[1].before["exact_match"] < 1


@torch.inference_mode()
def best_span(model: Any, tokenizer: Any, row: dict[str, Any], none: bool) -> str:
    """The answer by trying all spans of all windows, which transformers' tokenizer cuts."""
    room = 32 - 3 - len(row["question"].split())
    encoded = tokenizer(
        row["question"],
        row["context"],
        truncation="only_second",
        max_length=32,
        stride=room // 2,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    found, nothing = [], []
    for number, ids in enumerate(encoded["input_ids"]):
        kinds = encoded["token_type_ids"][number]
        output = model(torch.tensor([ids]), token_type_ids=torch.tensor([kinds]))
        begins, ends = output.start_logits[0].double(), output.end_logits[0].double()
        nothing.append(float(begins[0] + ends[0]))
        places = [place for place, of in enumerate(encoded.sequence_ids(number)) if of == 1]
        for i in places:
            for j in places:
                if i <= j < i + 30:
                    spans = encoded["offset_mapping"][number]
                    found.append((float(begins[i] + ends[j]), row["context"][spans[i][0] : spans[j][1]]))
    best = max(found)
    return "" if none and min(nothing) > best[0] else best[1]


def test_the_best_span_of_all_windows_is_found(reader: Path, tmp_path: Path) -> None:
    short = [{"question": "w1", "context": word, "answers": {"text": [], "answer_start": []}} for word in WORDS[:12]]
    rows = [*answered(12), *short]
    model, task = task_of(reader, write_lines(tmp_path / "a.jsonl", rows))
    model.qa_outputs.weight.data.neg_()  # so that at times none is likelier
    assert max(len(example["windows"]) for example in task.examples) > 3
    assert sorted({len(window) for one in task.examples for window in one["windows"]})[-1] == 32
    tokenizer = transformers.AutoTokenizer.from_pretrained(reader)
    for none in (True, False):
        task.may_be_none, found = none, []  # type: ignore[attr-defined]
        for example, row in enumerate(rows):
            with torch.inference_mode():
                [outcome] = task.predict(model, task.alone(example)).outcomes
            assert outcome.details["text"] == best_span(model, tokenizer, row, none), row
            found.append(outcome.details["text"])
        assert ("" in found) is none


def test_answers_are_read_as_texts_lists_and_squads_objects(reader: Path, tmp_path: Path) -> None:
    row = {"question": "w1 w2", "context": "w3 w4 w3 w5"}
    forms = {
        "text": "w3",
        "texts": ["w3", "w4"],
        "squad": {"text": ["w3", "w4"], "answer_start": [6, 3]},
        "objects": [{"text": "w3", "answer_start": 6}],
        "json": '{"text": ["w3"], "answer_start": [6]}',
        "none": [],
    }
    for name, answers in forms.items():
        _, task = task_of(reader, write_lines(tmp_path / f"{name}.jsonl", [{**row, "answer": answers}]))
        [example] = task.examples
        assert example["references"] == (
            ["w3", "w4"] if name in ("texts", "squad") else ["w3"] if name != "none" else []
        )
        start = 6 if name in ("squad", "objects", "json") else 0
        assert example["learned"] == ((None, 0) if name == "none" else (start, start + 2))
        [window] = example["windows"]
        assert window.places(*example["learned"]) == ((0, 0) if name == "none" else (4 + start // 3,) * 2)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answers": None}, "row 2 has no answers in the column 'answers'"),
        ({"answers": {"text": [""], "answer_start": [0]}}, "row 2 has an empty text for an answer"),
        ({"context": "", "answers": {"text": ["w1"], "answer_start": [0]}}, "row 2 has no tokens in the context"),
        ({"question": " ".join(WORDS)}, "row 2 has a question of 40 tokens, which leaves 0 of 32 for its context"),
    ],
)
def test_rows_without_answers_are_named(
    row: dict[str, Any], said: str, reader: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = answered(3)
    data = write_lines(tmp_path / "a.jsonl", [usual[0], {**usual[1], **row}, usual[2]])
    assert said in refusal(reader, data, tmp_path / "results", capsys)


def test_what_taggers_and_readers_learn_is_what_transformers_trains(tagger: Path, reader: Path, tmp_path: Path) -> None:
    model, task = task_of(tagger, write_lines(tmp_path / "tags.jsonl", tagged(6)))
    [batch] = task.batches(6)
    loss, count = task.loss(model, batch)
    assert count == sum(len(row["tags"]) for row in tagged(6))
    assert loss.item() / count == pytest.approx(model(**batch.inputs, labels=batch.targets).loss.item(), rel=1e-5)

    short = [row for row in answered(24) if len(row["context"].split()) < 20 and row["answers"]["text"]][:3]
    model, task = task_of(reader, write_lines(tmp_path / "answers.jsonl", short))
    assert task.not_learnable() is None
    for number, row in enumerate(short):
        batch = task.alone(number)
        loss, count = task.loss(model, batch)
        [window] = task.examples[number]["windows"]
        output = model(**batch.inputs)
        start = row["answers"]["answer_start"][0]
        first = 2 + len(row["question"].split()) + len(row["context"][:start].split())
        last = first + len(row["answers"]["text"][0].split()) - 1
        there = batch.targets[0] != -100
        wanted = 0.0
        for logits, place in ((output.start_logits[0], first), (output.end_logits[0], last)):
            wanted -= (logits[place] - logits[there].logsumexp(0)).item() / 2
        assert (count, len(window)) == (1, len(there))
        assert loss.item() == pytest.approx(wanted, rel=1e-5)


def ranked_rows(count: int = 20) -> list[dict[str, Any]]:
    """Queries with two to eleven documents each; some are relevant to a degree."""
    draw, rows = random.Random(9), []
    for number, query in enumerate(texts(count, 5)):
        documents = [" ".join(draw.choices(WORDS, k=draw.randint(1, 20))) for _ in range(2 + number % 10)]
        relevance = [draw.choice([0, 0, 1, 2]) for _ in documents]
        relevance[draw.randrange(len(documents))] = 3
        rows.append({"query": query, "documents": documents, "relevance": relevance})
    return rows


def held_to_the_libraries(outcomes: Sequence[Outcome], figures: dict[str, float]) -> None:
    scores, right = ([one.details[name] for one in outcomes] for name in ("scores", "relevance"))
    pairs = list(zip(right, scores, strict=True))
    gains = [ndcg_score([relevance], [said], k=10) for relevance, said in pairs]
    above = [torch.tensor(said) - min(said) + 1 for said in scores]  # torchmetrics counts no document up to 0
    ranks = [
        float(retrieval_reciprocal_rank(said, torch.tensor(relevance) > 0, top_k=10))
        for relevance, said in zip(right, above, strict=True)
    ]
    assert figures["ndcg_at_10"] == pytest.approx(np.mean(gains), abs=1e-12)
    assert figures["mrr_at_10"] == pytest.approx(np.mean(ranks), abs=1e-6)
    assert 0 < figures["ndcg_at_10"] < 1


@pytest.mark.parametrize("outputs", [1, 2])
def test_reranking(outputs: int, tmp_path: Path) -> None:
    rows = ranked_rows()
    model = write_bert(tmp_path / "model", "BertForSequenceClassification", num_labels=outputs)
    data = write_lines(tmp_path / "a.jsonl", rows)
    asked = ("--task", "reranking")
    found = [evaluated(model, data, tmp_path / str(size), *asked, size=size) for size in (1, 8)]
    assert found[0].before == pytest.approx(found[1].before, abs=1e-12)
    for side, figures in ((BEFORE, found[1].before), (VARIANT, found[1].after)):
        outcomes = found[1].outcomes[side]
        assert [one.details["relevance"] for one in outcomes] == [row["relevance"] for row in rows]
        held_to_the_libraries(outcomes, figures)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.inference_mode():
        for row, outcome in zip(rows[:4], found[1].outcomes[BEFORE], strict=False):
            pairs = [tokenizer(row["query"], text, truncation=True, return_tensors="pt") for text in row["documents"]]
            logits = torch.cat([loaded(**pair).logits for pair in pairs])
            wanted = logits[:, 0] if outputs == 1 else logits[:, 1] - logits[:, 0]
            assert outcome.details["scores"] == pytest.approx(wanted.tolist(), abs=1e-4)
            order = torch.tensor(outcome.details["scores"]).argsort(descending=True) + 1
            assert outcome.answers == (" ".join(map(str, order.tolist()[:10])),)
    quality = found[1].found["variants"][0]["quality"]
    assert quality["flips"] == sum(a.answers != b.answers for a, b in zip(*found[1].outcomes.values(), strict=True)) > 0


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("models") / "embedder", "BertModel")


@torch.inference_mode()
def embeddings(model: Path, given: Sequence[str]) -> torch.Tensor:
    """The mean of the last hidden states, of each text by itself; of length 1."""
    tokenizer, loaded = transformers.AutoTokenizer.from_pretrained(model), transformers.AutoModel.from_pretrained(model)
    states = [loaded.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in given]
    return torch.nn.functional.normalize(torch.stack(states).double(), dim=-1)


def test_retrieval_among_a_rows_own_documents(embedder: Path, tmp_path: Path) -> None:
    rows = ranked_rows(12)
    data = write_lines(tmp_path / "a.jsonl", rows)
    run = evaluated(embedder, data, tmp_path / "results", "--task", "retrieval", size=5)
    for side, figures in ((BEFORE, run.before), (VARIANT, run.after)):
        held_to_the_libraries(run.outcomes[side], figures)
    for row, outcome in zip(rows, run.outcomes[BEFORE], strict=True):
        query, *documents = embeddings(embedder, [row["query"], *row["documents"]])
        assert outcome.details["scores"] == pytest.approx([float(query @ one) for one in documents], abs=1e-5)


def test_retrieval_among_the_documents_of_all_rows(embedder: Path, tmp_path: Path) -> None:
    queries, documents = texts(25, 5), texts(25, 9, seed=8)
    documents[7] = documents[3]  # stands in two rows
    queries[9] = queries[4]  # has two right answers
    rows = [{"query": query, "document": text} for query, text in zip(queries, documents, strict=True)]
    data = write_lines(tmp_path / "a.jsonl", rows)
    asked = ("--task", "retrieval")
    found = [evaluated(embedder, data, tmp_path / str(size), *asked, size=size) for size in (1, 8)]
    assert found[0].before == pytest.approx(found[1].before, abs=1e-12)
    held_to_the_libraries(found[1].outcomes[BEFORE], found[1].before)
    corpus = list(dict.fromkeys(documents))
    assert len(corpus) < 25
    scores = embeddings(embedder, queries) @ embeddings(embedder, corpus).T
    right = [
        [float(text in {d for q, d in zip(queries, documents, strict=True) if q == query}) for text in corpus]
        for query in queries
    ]
    assert sum(right[4]) == 2
    assert found[1].before["ndcg_at_10"] == pytest.approx(ndcg_score(right, scores, k=10), abs=1e-9)
    [first, *_] = found[1].outcomes[BEFORE]
    assert first.answers[0].split()[0] == str(documents.index(corpus[int(scores[0].argmax())]) + 1)


def test_documents_in_two_columns_are_the_relevant_ones_and_the_others(embedder: Path, tmp_path: Path) -> None:
    rows = [
        {"query": "w1", "positive": ["w2"], "negative": ["w3", "w4"]},
        {"query": "w5", "positive": ["w6", "w7"], "negative": []},
    ]
    _, task = task_of(embedder, write_lines(tmp_path / "a.jsonl", rows), task="retrieval")
    assert [example["relevance"] for example in task.examples] == [[1.0, 0.0, 0.0], [1.0, 1.0]]
    one_each = [{"query": "w1", "positive": "w2", "negative": other} for other in ("w3", "w4")]
    _, task = task_of(embedder, write_lines(tmp_path / "a.jsonl", one_each), task="retrieval")
    assert [example["relevance"] for example in task.examples] == [[1.0, 0.0], [1.0, 0.0]]
    text = tmp_path / "a.csv"
    text.write_text('query,documents,relevance\nw1,"[""w2"", ""w3""]","[0, 2]"\n')
    _, task = task_of(embedder, text, task="retrieval")
    assert [example["relevance"] for example in task.examples] == [[0.0, 2.0]]
    assert "with sentence-transformers" in (task.not_learnable() or "")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"documents": ["w1"], "relevance": [1]}, "row 2 has 1 document: to put in order takes two"),
        ({"documents": ["w1", " "]}, "row 2 has an empty text among its documents"),
        ({"query": " "}, "row 2 has an empty query in the column 'query'"),
        ({"relevance": [0, 0]}, "row 2 has no relevant document"),
        ({"relevance": [1]}, "row 2 has 2 documents, and says of 1 how relevant they are"),
        ({"relevance": [1, -1]}, "row 2 has a document that is less than not relevant: -1"),
        ({"relevance": None}, "row 2 does not say in numbers how relevant its documents are"),
        ({"documents": None}, "row 2 has no list of documents in the column 'documents'"),
    ],
)
def test_rows_without_relevant_documents_are_named(
    row: dict[str, Any], said: str, embedder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = {"query": "w1", "documents": ["w2", "w3"], "relevance": [0, 1]}
    data = write_lines(tmp_path / "a.jsonl", [usual, {**usual, **row}, usual])
    assert said in refusal(embedder, data, tmp_path / "results", capsys, "--task", "retrieval")


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 with a gated gelu_new, which writes the forty words."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2, "vocab_size": 45}
    config = transformers.T5Config(
        **sizes, feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=3, decoder_start_token_id=0
    )
    return save(transformers.T5ForConditionalGeneration(config), tmp_path_factory.mktemp("models") / "writer")


def rewritten(count: int = 16) -> tuple[list[str], list[list[str]]]:
    """Sources, and one to three references of each, half of whose words are the few that the model likes to write."""
    draw = random.Random(11)
    return texts(count, 9), [
        [" ".join(draw.choices(WORDS[:40], k=4 + number % 5)) for _ in range(1 + number % 3)] for number in range(count)
    ]


def with_what_it_writes(writer: Path, sources: Sequence[str], references: list[list[str]]) -> list[list[str]]:
    """Every second reference begins with what the model writes, so that figures are not zero."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(writer)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(writer).eval()
    found = []
    for number, (source, right) in enumerate(zip(sources, references, strict=True)):
        inputs = {key: value for key, value in tokenizer(source, return_tensors="pt").items() if "type" not in key}
        said = tokenizer.decode(model.generate(**inputs, max_new_tokens=9)[0], skip_special_tokens=True).split()
        found.append([" ".join([*said[:5], *right[0].split()[:3]]), *right[1:]] if number % 2 else right)
    return found


def test_summaries(writer: Path, tmp_path: Path) -> None:
    sources, references = rewritten()
    references = with_what_it_writes(writer, sources, references)
    rows = [{"document": source, "highlights": right} for source, right in zip(sources, references, strict=True)]
    data = write_lines(tmp_path / "a.jsonl", rows)
    asked = ("--task", "summarization")
    found = [evaluated(writer, data, tmp_path / str(size), *asked, size=size) for size in (1, 8)]
    assert found[0].before == pytest.approx(found[1].before, rel=1e-5)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for side, figures in ((BEFORE, found[1].before), (VARIANT, found[1].after)):
        outcomes = found[1].outcomes[side]
        right = [list(one.details.get("references", one.targets)) for one in outcomes]
        assert right == references
        theirs = [scorer.score_multi(one, said.answers[0]) for one, said in zip(right, outcomes, strict=True)]
        for name in ("rouge1", "rouge2", "rougeL"):
            assert figures[name] == pytest.approx(np.mean([one[name].fmeasure for one in theirs]), abs=1e-12)
        assert figures["loss"] == pytest.approx(sum(o.loss for o in outcomes) / sum(o.tokens for o in outcomes))
    assert 0 < found[1].before["rouge2"] < found[1].before["rouge1"] < 1


def test_translations_are_sacrebleus_to_the_last_digit(writer: Path, tmp_path: Path) -> None:
    sources, references = rewritten()
    references = with_what_it_writes(writer, sources, references)
    rows = [{"translation": {"en": source, "de": right}} for source, right in zip(sources, references, strict=True)]
    data = write_lines(tmp_path / "a.jsonl", rows)
    columns = ("--input_column", "translation.en", "--target_column", "translation.de")
    run = evaluated(writer, data, tmp_path / "results", "--task", "translation", *columns)
    streams = [[one[n] if n < len(one) else None for one in references] for n in range(3)]
    for side, figures in ((BEFORE, run.before), (VARIANT, run.after)):
        said = [str(one.answers[0]) for one in run.outcomes[side]]
        assert figures["bleu"] == BLEU().corpus_score(said, streams).score / 100
        assert figures["chrf"] == CHRF().corpus_score(said, streams).score / 100
    assert 0 < run.before["bleu"] < run.before["chrf"] < 1
    difference = run.found["variants"][0]["quality"]["differences"]["bleu"]
    assert difference["low"] < difference["value"] < difference["high"]


def test_a_source_begins_with_its_prefix(writer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_lines(tmp_path / "a.jsonl", [{"article": "w1 w2", "summary": "w3"}])
    _, task = task_of(writer, data, task="summarization", source_prefix="w39 ")
    assert task.examples[0]["input_ids"] == [2, 44, 6, 7, 3]
    assert task.describe(0) == "w1 w2"
    said = refusal(writer, data, tmp_path / "results", capsys, "--task", "masked-lm", "--source_prefix", "w1")
    assert "masked-lm puts nothing before its texts, as is done by seq2seq, summarization and translation" in said


@pytest.mark.parametrize(
    ("right", "said"),
    [
        ([], "row 2 has no reference in the column 'target'"),
        (["w1", " "], "row 2 has an empty reference in the column 'target'"),
        (None, "row 2 of the column 'target' is no text, and no list of texts: None"),
    ],
)
def test_texts_without_references_are_named(
    right: Any, said: str, writer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"source": "w1", "target": one} for one in (["w2"], right, ["w3"])]
    assert said in refusal(
        writer, write_lines(tmp_path / "a.jsonl", rows), tmp_path / "results", capsys, "--task", "translation"
    )


def test_references_of_which_rouge_finds_no_word_are_told(writer: Path, tmp_path: Path) -> None:
    rows = [{"article": "w1", "summary": one} for one in (["w2"], ["你好 世界", "привет"], ["世界", "W2"], ["世界"])]
    data = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.warns(LeftOutWarning, match=r"2 rows, the first of them row 2, have no Latin letter or digit"):
        task_of(writer, data, task="summarization")
    scorer = RougeScorer(["rouge1"])
    assert [scorer.score_multi(row["summary"], "世界 привет w2")["rouge1"].fmeasure > 0 for row in rows] == [
        True,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("task", ["summarization", "translation"])
def test_without_its_library_a_task_says_so(
    task: str, writer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = {"summarization": "rouge_score", "translation": "sacrebleu"}[task]
    data = write_lines(tmp_path / "a.jsonl", [{"source": "w1", "target": "w2"}])
    monkeypatch.setitem(sys.modules, library, None)
    said = refusal(writer, data, tmp_path / "results", capsys, "--task", task)
    assert f"{task} needs {library}, not installed here: pip install 'hf-gelu-patch[text]'" in said


def test_pairs_several_labels_and_numbers(tmp_path: Path) -> None:
    """What a head says decides: the same command for a pair's label, for several labels and for a number."""
    draw, kind = random.Random(4), "BertForSequenceClassification"
    names = ["entailment", "neutral", "contradiction"]
    first, second = texts(30, 6), texts(30, 5, seed=6)
    pairs = [{"premise": a, "hypothesis": b, "label": draw.choice(names)} for a, b in zip(first, second, strict=True)]
    model = write_bert(tmp_path / "pairs", kind, names)
    data = write_lines(tmp_path / "1.jsonl", pairs)
    run = evaluated(model, data, tmp_path / "1", "--task", "natural-language-inference")
    said, right = ([getattr(one, side)[0] for one in run.outcomes[BEFORE]] for side in ("answers", "targets"))
    assert [names[target] for target in right] == [row["label"] for row in pairs]
    assert run.before["accuracy"] == pytest.approx(accuracy_score(right, said))
    assert run.before["macro_f1"] == pytest.approx(f1_score(right, said, average="macro"))

    several = [{"text": text, "label": [name for name in names if draw.random() < 0.4]} for text in first]
    model = write_bert(tmp_path / "several", kind, names, problem_type="multi_label_classification")
    run = evaluated(model, write_lines(tmp_path / "2.jsonl", several), tmp_path / "2")
    said, right = (
        np.array([[int(bit) for bit in getattr(one, side)[0]] for one in run.outcomes[VARIANT]])
        for side in ("answers", "targets")
    )
    assert right.tolist() == [[int(name in row["label"]) for name in names] for row in several]
    assert run.after["subset_accuracy"] == pytest.approx(accuracy_score(right, said))
    assert run.after["micro_f1"] == pytest.approx(f1_score(right, said, average="micro"))
    assert run.after["macro_f1"] == pytest.approx(f1_score(right, said, average="macro"))

    numbers = [{"text": text, "label": round(draw.uniform(0, 5), 1)} for text in first]
    model = write_bert(tmp_path / "number", kind, num_labels=1)
    run = evaluated(model, write_lines(tmp_path / "3.jsonl", numbers), tmp_path / "3")
    scores = [one.score or 0.0 for one in run.outcomes[BEFORE]]
    right = [row["label"] for row in numbers]
    assert run.before["pearson"] == pytest.approx(pearsonr(scores, right).statistic, abs=1e-9)
    assert run.before["spearman"] == pytest.approx(spearmanr(scores, right).statistic, abs=1e-9)
    assert run.before["mse"] == pytest.approx(mean_squared_error(right, scores))


def test_two_processes_search_one_corpus(embedder: Path, tmp_path: Path) -> None:
    """Each embeds all documents, and finds them for its own queries."""
    rows = [{"query": a, "document": b} for a, b in zip(texts(25, 5), texts(25, 9, seed=8), strict=True)]
    data = write_lines(tmp_path / "a.jsonl", rows)
    alone = evaluated(embedder, data, tmp_path / "alone", "--task", "retrieval", size=4)
    words = ["--model_name_or_path", embedder, "--validation_file", data, "--task", "retrieval", "--variant", VARIANT]
    launch = [Path(sys.executable).parent / "torchrun", "--standalone", "--nproc_per_node", 2, "-m", "hf_gelu_patch"]
    settings = ["--per_device_eval_batch_size", 4, "--timing_seconds", 0.01, "--num_processes", 2]
    done = subprocess.run(
        [*map(str, [*launch, "evaluate", *words, *settings])],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    [model] = json.loads((tmp_path / "results" / "evaluation.json").read_text(encoding="utf-8"))["models"]
    assert model["variants"][0]["quality"] == alone.found["variants"][0]["quality"]
    assert len(list((tmp_path / "results" / model["records"]).glob("*.jsonl"))) == 2


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("token-classification", "BertForTokenClassification"),
        ("question-answering", "BertForQuestionAnswering"),
    ],
)
def test_the_head_tells_the_task(task: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_bert(tmp_path / "model", kind)
    data = write_lines(tmp_path / "a.jsonl", [{"text": "w1"}])
    assert main(["evaluate", "--dry_run", "--model_name_or_path", str(model), "--validation_file", str(data)]) == 0
    assert f": {task}\n" in capsys.readouterr().out
