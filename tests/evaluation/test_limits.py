"""What a model has room for is told from the model, and a row that asks for more is refused by its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_tasks import SIZES, VOCABULARY, save, sentences, write_rows, write_tokenizer

from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.models import load_model
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.loading.subjects import load_rows, subject
from hf_gelu_patch.evaluation.tasks.base import Task
from hf_gelu_patch.evaluation.tasks.limits import Limits
from hf_gelu_patch.evaluation.tasks.making import make_task

COMMON = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 20, "pad_token_id": 0}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 2, "vocab_size": len(VOCABULARY)}


def build(kind: str, **options: Any) -> transformers.PreTrainedModel:
    """A model that counts positions in its own way."""
    torch.manual_seed(0)
    sizes = {**SIZES, **COMMON}
    if kind == "GPT2":
        sizes = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 20, "vocab_size": len(VOCABULARY)}
    elif kind == "Bart":
        sizes = {**COMMON, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48}
        sizes |= {"decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    elif kind == "OPT":
        sizes = {**COMMON, "hidden_size": 32, "num_attention_heads": 4, "ffn_dim": 48, "num_hidden_layers": 1}
        sizes |= {"word_embed_proj_dim": 32}
    elif kind == "DistilBert":
        sizes = {**COMMON, "dim": 32, "n_heads": 4, "hidden_dim": 48, "n_layers": 1}
    elif kind == "Llama":
        sizes |= {"num_key_value_heads": 2}
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **options})
    model: transformers.PreTrainedModel = getattr(transformers, f"{kind}Model")(config)
    return model.eval()


@torch.inference_mode()
@pytest.mark.parametrize("pad", [0, 1, 3])
@pytest.mark.parametrize(
    "kind",
    ["Roberta", "Camembert", "XLMRoberta", "Esm", "MPNet", "Data2VecText", "Bert", "Electra", "GPT2", "Bart", "OPT"],
)
def test_so_many_tokens_run_and_one_more_does_not(kind: str, pad: int) -> None:
    model = build(kind, pad_token_id=pad, **({"mask_token_id": 4} if kind == "Esm" else {}))
    most = Limits.of(model).positions or model.config.max_position_embeddings
    ids = torch.full((1, most + 1), 7)
    model(input_ids=ids[:, :most])
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=ids)


@pytest.mark.parametrize(
    ("kind", "options", "limits"),
    [
        ("Bert", {}, (45, 2, None)),
        ("Roberta", {"type_vocab_size": 1}, (45, 1, 19)),
        ("Electra", {"type_vocab_size": 3}, (45, 3, None)),
        ("DistilBert", {}, (45, None, None)),
        ("Llama", {}, (45, None, None)),
    ],
)
def test_tables_are_read_off_the_model(kind: str, options: dict[str, Any], limits: tuple[Any, ...]) -> None:
    found = Limits.of(build(kind, **options))
    assert (found.tokens, found.token_types, found.positions) == limits
    assert found.takes("token_type_ids") == (kind not in ("DistilBert", "Llama"))
    assert found.takes("input_ids")
    assert found.trouble({"input_ids": [0, 44], "token_type_ids": [0, 0]}) is None
    assert "token id 45, and the model embeds 45 (ids 0 to 44)" in str(found.trouble({"input_ids": [45, 3]}))
    if limits[1] is not None:
        row = {"input_ids": [3], "token_type_ids": [limits[1]]}
        assert f"token type {limits[1]}, and the model knows {limits[1]} (type_vocab_size)" in str(found.trouble(row))


def test_models_of_other_kinds_have_their_own_tables() -> None:
    text, vision = {**SIZES, "vocab_size": 45}, {**SIZES, "image_size": 8, "patch_size": 4}
    clip = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    assert Limits.of(clip).tokens == 45
    vit = transformers.ViTModel(transformers.ViTConfig(**vision))
    assert (Limits.of(vit).tokens, Limits.of(vit).takes("pixel_values")) == (None, True)
    assert not Limits.of(vit).takes("input_ids")

    class Wrapper(torch.nn.Module):
        def forward(self, *arguments: Any, **options: Any) -> Any:
            return clip(*arguments, **options)

    assert Limits.of(Wrapper()).takes("anything")


# ------------------------------------------------------------------------------------------------------------ in tasks


def task_of(place: Path, data: str, *, skip: bool = False, **options: Any) -> Task:
    one = subject(str(place), validation_file=data, **options)
    model, processor = load_model(one.model, one.task), load_processor(one.model, one.task)
    rows = load_rows(one, skip_bad_rows=skip)
    return make_task(one, model.config, processor, rows, limits=Limits.of(model), skip_bad_rows=skip)


def checkpoint(folder: Path, kind: str, model: transformers.PreTrainedModel, **changes: Any) -> Path:
    place = save(model, folder / kind)
    write_tokenizer(place)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    tokenizer.add_tokens(["new"])  # as someone does who forgets the model's embedding
    tokenizer.save_pretrained(place)
    settings = json.loads((place / "tokenizer_config.json").read_text())
    (place / "tokenizer_config.json").write_text(json.dumps({**settings, **changes}))
    return place


def models(folder: Path, task: str) -> Path:
    bert = transformers.BertConfig(**SIZES, vocab_size=45, max_position_embeddings=32, num_labels=2)
    kinds = {
        "text-classification": lambda: transformers.BertForSequenceClassification(bert),
        "masked-lm": lambda: transformers.BertForMaskedLM(bert),
        "feature-drift": lambda: transformers.BertModel(bert),
        "sentence-similarity": lambda: transformers.BertModel(bert),
        "seq2seq": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)),
        "causal-lm": lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=32, n_head=4, n_layer=2, n_positions=32, vocab_size=45)
        ),
    }
    return checkpoint(folder, task, kinds[task]())


ROWS = ["w1 w2", "w3 new", "w4", "new"]
COLUMNS = {"text": ROWS, "text1": ROWS, "text2": ROWS, "source": ROWS, "target": ["w1"] * 4, "score": range(4)}


@pytest.mark.parametrize(
    "task", ["text-classification", "masked-lm", "feature-drift", "sentence-similarity", "seq2seq", "causal-lm"]
)
def test_a_token_without_a_row_is_refused_by_its_row_or_left_out(task: str, tmp_path: Path) -> None:
    place = models(tmp_path, task)
    columns = {**COLUMNS, "label": [0, 1, 0, 1]}
    data = write_rows(tmp_path / "a.csv", list(columns), list(zip(*columns.values(), strict=True)))
    where = "the text of .*a.csv" if task == "causal-lm" else r".*a\.csv: row 2"
    with pytest.raises(EvaluationError, match=rf"{task}: {where} has the token id 45.*resize_token_embeddings"):
        task_of(place, data, task=task)
    if task != "causal-lm":
        found = task_of(place, data, task=task, skip=True)
        assert [row for row, _ in found.skipped] == [2, 4]
        assert [example["row"] for example in found.examples] == [0, 2]


@pytest.mark.parametrize("kind", ["Roberta", "Camembert", "XLMRoberta"])
def test_a_token_type_without_a_row_is_refused(kind: str, tmp_path: Path) -> None:
    """A pair's second text has the type 1, of which RoBERTa knows nothing."""
    config = build(kind, type_vocab_size=1, max_position_embeddings=32).config
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    place = checkpoint(tmp_path, kind, model, model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    data = write_rows(tmp_path / "a.csv", ["text", "text2", "label"], [("w1", "w2", 0), ("w3", "w4", 1)])
    with pytest.raises(EvaluationError, match=rf"{kind}: .*row 1 has the token type 1.*model_input_names"):
        task_of(place, data, second_column="text2")
    assert len(task_of(place, data).examples) == 2


def test_what_a_forward_does_not_take_is_not_given(tmp_path: Path) -> None:
    config = build("DistilBert").config
    place = checkpoint(
        tmp_path,
        "distilbert",
        transformers.DistilBertForSequenceClassification(config),
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    data = write_rows(tmp_path / "a.csv", ["text", "label"], [("w1 w2", 0), ("w3", 1)])
    assert "token_type_ids" in load_processor(str(place), "text-classification")("w1")
    assert set(task_of(place, data).batches(2)[0].inputs) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("task", ["text-classification", "masked-lm", "feature-drift", "causal-lm", "seq2seq"])
def test_data_of_which_no_word_is_known_are_refused(task: str, tmp_path: Path) -> None:
    place = models(tmp_path, task)
    columns = {name: [f"v{n}" for n in range(3)] for name in ("text", "source")}
    columns |= {"target": ["w1"] * 3, "label": ["0", "1", "0"]}
    data = write_rows(tmp_path / "a.csv", list(columns), list(zip(*columns.values(), strict=True)))
    with pytest.raises(
        EvaluationError, match=rf"every word of .*a\.csv is unknown to the tokenizer of {task} \(\[UNK\]\)"
    ):
        task_of(place, data, task=task)
    known = {**columns, "text": ["v1", "v2", "w3"], "source": ["v1", "v2", "w3"]}
    data = write_rows(tmp_path / "b.csv", list(known), list(zip(*known.values(), strict=True)))
    assert task_of(place, data, task=task).examples


@pytest.mark.parametrize("task", ["text-classification", "masked-lm", "feature-drift", "seq2seq"])
@pytest.mark.parametrize("text", ["", "   ", "\t"])
def test_data_without_a_word_are_refused(task: str, text: str, tmp_path: Path) -> None:
    """The tokenizer's own tokens would be classified."""
    place = models(tmp_path, task)
    rows = [(text, text, "w1", "0"), (text, text, "w2", "1")]
    header = ["text", "source", "target", "label"]
    data = write_rows(tmp_path / "a.csv", header, rows)
    with pytest.raises(EvaluationError, match=rf"{task}: .*a\.csv: (no row has a word|row 1 has no tokens)"):
        task_of(place, data, task=task)
    if task != "masked-lm":  # which has nothing to mask there
        data = write_rows(tmp_path / "b.csv", header, [*rows, ("w3", "w3", "w3", "0")])
        assert len(task_of(place, data, task=task).examples) == 3


def test_a_longer_text_is_cut_to_what_there_are_positions_for(tmp_path: Path) -> None:
    model = transformers.RobertaForSequenceClassification(build("Roberta", pad_token_id=0).config)
    place = checkpoint(tmp_path, "roberta", model, model_max_length=10**30)
    data = write_rows(tmp_path / "a.csv", ["text", "label"], [(" ".join(sentences(9)), 0), ("w1", 1)])
    found = task_of(place, data)
    assert len(found.examples[0]["input_ids"]) == 19
    with pytest.raises(EvaluationError, match="at most 19 tokens: --max_length 20"):
        task_of(place, data, max_length=20)
