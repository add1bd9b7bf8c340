"""Sounds: speech recognition and classification through the command line, held to jiwer, scikit-learn and the models
asked by hand."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import jiwer
import numpy as np
import pytest
import soundfile
import torch
import transformers
from evaluated import VARIANT, Evaluated, evaluated, refusal
from scipy.signal import resample_poly
from sklearn.metrics import accuracy_score, f1_score
from tiny_classifier import saved
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from hf_gelu_patch.cli import main
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.models import load_model
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.loading.subjects import load_rows, subject
from hf_gelu_patch.evaluation.padding import check_padding
from hf_gelu_patch.evaluation.tasks.making import make_task

pytestmark = pytest.mark.slow

RATE = 16000
WORDS = ["alpha", "bravo", "charlie", "delta", "echo"]
SAID = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>", "<pad>", "[UNK]", *WORDS]
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnoprtuv"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
CONVOLUTIONS = {"conv_dim": (8, 8), "conv_stride": (20, 10), "conv_kernel": (40, 20), "num_feat_extract_layers": 2}
WAV2VEC2 = {**SIZES, **CONVOLUTIONS, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
MASKED = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def whisper(folder: Path) -> Path:
    """It hears 1 s, and says at most six words."""
    torch.manual_seed(1)
    place = folder / "whisper"
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(SAID)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftranscript|> <|notimestamps|> $A <|endoftext|>",
        special_tokens=[(word, SAID.index(word)) for word in SAID[:3]],
    )
    names = {"unk_token": "[UNK]", "pad_token": "<pad>", "eos_token": SAID[0], "bos_token": SAID[1]}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=[SAID[2]], **names
    ).save_pretrained(place)
    transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(place)
    config = transformers.WhisperConfig(
        vocab_size=len(SAID),
        num_mel_bins=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_source_positions=50,
        max_target_positions=16,
        eos_token_id=0,
        bos_token_id=1,
        decoder_start_token_id=1,
        pad_token_id=3,
        begin_suppress_tokens=None,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.max_new_tokens = 6
    return saved(model, place, 30.0)


def write_wav2vec2(place: Path, *, padded: bool) -> Path:
    """With layer norms and a mask, as the large ones have it; or with group norms, which take no mask."""
    torch.manual_seed(0)
    place.mkdir()
    (place / "letters.json").write_text(json.dumps({letter: number for number, letter in enumerate(LETTERS)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(place / "letters.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=padded)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(place)
    config = transformers.Wav2Vec2Config(**WAV2VEC2, **(MASKED if padded else {}), vocab_size=len(LETTERS))
    return saved(transformers.Wav2Vec2ForCTC(config), place, 3.0)


@pytest.fixture(scope="module")
def wav2vec2(folder: Path) -> Path:
    return write_wav2vec2(folder / "wav2vec2", padded=True)


@pytest.fixture(scope="module")
def unmasked(folder: Path) -> Path:
    return write_wav2vec2(folder / "unmasked", padded=False)


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Path:
    torch.manual_seed(0)
    place = folder / "classifier"
    names = {0: "no", 1: "yes", 2: "maybe"}
    config = transformers.Wav2Vec2Config(
        **WAV2VEC2, **MASKED, id2label=names, label2id={name: index for index, name in names.items()}
    )
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(place)
    return saved(transformers.Wav2Vec2ForSequenceClassification(config), place, 3.0)


def tone(number: int, rate: int = RATE) -> np.ndarray[Any, Any]:
    """0.15 to 0.4 s, no two neighbours of one length."""
    generator = np.random.default_rng(number)
    size = int(rate * (0.15 + 0.25 * ((5 * number) % 11) / 10))
    return 0.5 * np.sin(np.arange(size) * generator.uniform(0.01, 0.5)) + 0.05 * generator.normal(size=size)


def written(folder: Path, count: int = 11) -> Path:
    """wav and flac, two rates, one and two channels; some in a folder below; texts and labels beside them."""
    (folder / "below").mkdir(parents=True)
    generator, rows = np.random.default_rng(0), []
    for number in range(count):
        name, rate = f"{'below/' * (number % 2)}{number}.{'flac' if number % 3 else 'wav'}", (RATE, 22050)[number % 2]
        samples = tone(number, rate)
        soundfile.write(folder / name, samples[:, None].repeat(1 + number % 2, 1), rate)
        text = " ".join(generator.choice(WORDS, size=1 + number % 3))
        rows.append({"audio": name, "text": text, "label": ["yes", "no", "maybe"][number % 3]})
    return write(folder / "data.jsonl", rows)


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def heard(data: Path) -> list[np.ndarray[Any, Any]]:
    """The sounds of the rows, one channel at 16 kHz."""
    found = []
    for line in data.read_text().splitlines():
        samples, rate = soundfile.read(data.parent / json.loads(line)["audio"], always_2d=True)
        divisor = math.gcd(rate, RATE)
        found.append(resample_poly(samples.mean(1), RATE // divisor, rate // divisor).astype(np.float32))
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("sounds") / "data")


def same(one: Evaluated, other: Evaluated) -> None:
    """Batches of one and of eight find the same, for both models."""
    assert one.before == other.before
    for name in one.outcomes:
        assert [o.answers for o in one.outcomes[name]] == [o.answers for o in other.outcomes[name]]


def word_error_rates(found: Evaluated, name: str) -> dict[str, float]:
    """jiwer's own, over all records."""
    right = [str(outcome.targets[0]) for outcome in found.outcomes[name]]
    said = [str(outcome.answers[0]) for outcome in found.outcomes[name]]
    return {"wer": jiwer.wer(right, said), "cer": jiwer.cer(right, said)}


@torch.inference_mode()
def test_whisper(whisper: Path, data: Path, tmp_path: Path) -> None:
    found = evaluated(whisper, data, tmp_path / "8")
    assert found.found["subject"]["task"] == "automatic-speech-recognition"  # told from the architecture
    same(found, evaluated(whisper, data, tmp_path / "1", size=1))
    assert found.before == pytest.approx(word_error_rates(found, "before"), abs=1e-12)
    assert found.after == pytest.approx(word_error_rates(found, VARIANT), abs=1e-12)
    assert found.found["variants"][0]["quality"]["differences"].keys() == {"wer", "cer"}
    assert found.found["variants"][0]["speed"].keys() == {"forward", "end_to_end", "prefill", "decode"}

    model = transformers.WhisperForConditionalGeneration.from_pretrained(whisper).eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(whisper)
    tokenizer = transformers.AutoTokenizer.from_pretrained(whisper)
    texts = [json.loads(line)["text"] for line in data.read_text().splitlines()]
    assert len({outcome.answers for outcome in found.outcomes["before"]}) > 1
    for samples, text, outcome in zip(heard(data), texts, found.outcomes["before"], strict=True):
        features = extractor(samples, sampling_rate=RATE, return_tensors="pt").input_features
        [said] = tokenizer.batch_decode(model.generate(features), skip_special_tokens=True)
        labels = tokenizer(text, return_tensors="pt").input_ids[:, 1:]
        assert (outcome.answers, outcome.targets) == ((said,), (text,))
        assert outcome.loss == pytest.approx(float(model(features, labels=labels).loss) * labels.shape[1], rel=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("which", ["wav2vec2", "unmasked"])
def test_wav2vec2(which: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = request.getfixturevalue(which)
    found = evaluated(place, data, tmp_path / "8")
    same(found, evaluated(place, data, tmp_path / "1", size=1))
    assert found.before == pytest.approx(word_error_rates(found, "before"), abs=1e-12)
    assert found.after == pytest.approx(word_error_rates(found, VARIANT), abs=1e-12)
    model = transformers.Wav2Vec2ForCTC.from_pretrained(place).eval()
    processor = transformers.Wav2Vec2Processor.from_pretrained(place)
    assert len({outcome.answers for outcome in found.outcomes["before"]}) > 1
    for samples, outcome in zip(heard(data), found.outcomes["before"], strict=True):
        inputs = processor(samples, sampling_rate=RATE, return_tensors="pt")
        [said] = processor.batch_decode(model(**inputs).logits.argmax(-1))
        assert outcome.answers == (" ".join(said.split()),), said


@torch.inference_mode()
def test_classification(classifier: Path, data: Path, tmp_path: Path) -> None:
    found = evaluated(classifier, data, tmp_path / "8", "--task", "audio-classification")
    same(found, evaluated(classifier, data, tmp_path / "1", "--task", "audio-classification", size=1))
    for name, metrics in (("before", found.before), (VARIANT, found.after)):
        said = [outcome.answers[0] for outcome in found.outcomes[name]]
        right = [outcome.targets[0] for outcome in found.outcomes[name]]
        own = {
            "accuracy": accuracy_score(right, said),
            "macro_f1": f1_score(right, said, labels=[*{*right}], average="macro"),
        }
        assert metrics == pytest.approx(own, abs=1e-12)
    model = transformers.Wav2Vec2ForSequenceClassification.from_pretrained(classifier).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(classifier)
    for number, (samples, outcome) in enumerate(zip(heard(data), found.outcomes["before"], strict=True)):
        logits = model(**extractor(samples, sampling_rate=RATE, return_tensors="pt")).logits[0]
        assert outcome.answers == (int(logits.argmax()),)
        assert outcome.targets == ([1, 0, 2][number % 3],)


def as_datasets_has_it(columns: dict[str, list[Any]], *, decode: bool) -> datasets.Dataset:
    """Encoding would take torchcodec, as decoding does."""
    return datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio(decode=decode))


def stored(place: Path, how: str, data: Path) -> Path:
    """The same sounds as datasets stores them, which cannot decode them here; or as arrays in the rows."""
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    if how == "arrays":
        for row, samples in zip(rows, heard(data), strict=True):
            row["audio"] = {"array": samples.tolist(), "sampling_rate": RATE}
        return write(place.with_suffix(".jsonl"), rows)
    columns: dict[str, list[Any]] = {"text": [row["text"] for row in rows]}
    columns["audio"] = [{"path": row["audio"], "bytes": (data.parent / row["audio"]).read_bytes()} for row in rows]
    made = as_datasets_has_it(columns, decode=how == "decoded")
    if how == "parquet":
        made.to_parquet(place.with_suffix(".parquet"))
        return place.with_suffix(".parquet")
    made.save_to_disk(place)
    return place


@torch.inference_mode()
@pytest.mark.parametrize("how", ["decoded", "undecoded", "parquet", "arrays"])
def test_sounds_however_they_are_stored(how: str, wav2vec2: Path, data: Path, tmp_path: Path) -> None:
    tasks = []
    for place in (data, stored(tmp_path / "stored", how, data)):
        one = subject(str(wav2vec2), validation_file=str(place))
        config = transformers.AutoConfig.from_pretrained(wav2vec2)
        tasks.append(make_task(one, config, load_processor(one.model, one.task), load_rows(one)))
    for of_files, of_rows in zip(*(task.examples for task in tasks), strict=True):
        torch.testing.assert_close(of_files["features"], of_rows["features"], rtol=0, atol=1e-6)


def bad(folder: Path) -> Path:
    """Good rows, and one of each kind that cannot be used."""
    good = [json.loads(line) for line in written(folder).read_text().splitlines()[:2]]
    soundfile.write(folder / "empty.wav", np.zeros(0), RATE)
    soundfile.write(folder / "nan.wav", np.full(4000, np.nan), RATE, subtype="FLOAT")
    soundfile.write(folder / "long.wav", np.zeros(20000), RATE)
    soundfile.write(folder / "short.wav", np.ones(30), RATE)
    (folder / "text.wav").write_text("no sound")
    names = ["gone.wav", "text.wav", "empty.wav", "nan.wav", "long.wav", "short.wav"]
    rows = [*good, {**good[0], "text": "  "}, *({**good[0], "audio": name} for name in names)]
    return write(folder / "data.jsonl", rows)


BAD = [
    (3, "has no words in the column 'text'"),
    (4, "holds no sound that can be read (gone.wav"),
    (5, "holds no sound that can be read (text.wav"),
    (6, "holds a sound without samples (empty.wav)"),
    (7, "holds a sound with samples that are NaN or infinite (nan.wav)"),
]


@pytest.mark.parametrize(
    ("which", "last"),
    [
        ("whisper", [(8, "holds 1.2 s of sound, and the model takes 1 s: cut it in pieces (long.wav)")]),
        ("wav2vec2", [(9, "holds 30 samples, less than a frame of the model")]),
    ],
)
def test_rows_that_cannot_be_used(
    which: str,
    last: list[tuple[int, str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    place, data = request.getfixturevalue(which), bad(tmp_path / "bad")
    assert "row 3 has no words in the column 'text'. Mend the row" in refusal(place, data, tmp_path / "out", capsys)
    found = evaluated(place, data, tmp_path / "out", "--skip_bad_rows").found
    expected = [*BAD, *last]
    assert [row for row, _ in found["skipped"]] == [row for row, _ in expected]
    for (_, reason), (_, said) in zip(found["skipped"], expected, strict=True):
        assert said in reason


def test_columns_without_sounds(
    wav2vec2: Path, classifier: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    numbers = write(tmp_path / "numbers.jsonl", [{**row, "audio": 1.5} for row in rows])
    assert "the column 'audio' does not hold sounds" in refusal(wav2vec2, numbers, tmp_path / "out", capsys)
    lacking = write(tmp_path / "lacking.jsonl", [{"audio": row["audio"]} for row in rows])
    assert "has no column 'text'" in refusal(wav2vec2, lacking, tmp_path / "out", capsys)
    asked = refusal(classifier, data, tmp_path / "out", capsys, "--task", "automatic-speech-recognition")
    assert "no weights for" in asked or "has no processor" in asked or "cannot be loaded" in asked


def test_bytes_that_are_no_sound_are_named(wav2vec2: Path, tmp_path: Path) -> None:
    whole = io.BytesIO()
    soundfile.write(whole, tone(0), RATE, format="WAV")
    columns = {
        "text": ["alpha", "bravo"],
        "audio": [{"path": None, "bytes": one} for one in (whole.getvalue(), b"RIFF")],
    }
    as_datasets_has_it(columns, decode=False).save_to_disk(tmp_path / "data")
    one = subject(str(wav2vec2), validation_file=str(tmp_path / "data"))
    config = transformers.AutoConfig.from_pretrained(wav2vec2)
    with pytest.raises(EvaluationError, match=r"row 2 holds no sound that can be read \(sound in row 2"):
        make_task(one, config, load_processor(one.model, one.task), load_rows(one))


@torch.inference_mode()
def test_a_model_that_is_moved_by_padding_is_refused(unmasked: Path, data: Path, tmp_path: Path) -> None:
    """Group norms look at what is filled in, whatever mask is given."""
    place = tmp_path / "wrong"
    transformers.Wav2Vec2ForCTC.from_pretrained(unmasked).save_pretrained(place)
    processor = transformers.Wav2Vec2Processor.from_pretrained(unmasked)
    processor.feature_extractor.return_attention_mask = True
    processor.save_pretrained(place)
    one = subject(str(place), validation_file=str(data))
    model = load_model(one.model, one.task)
    task = make_task(one, model.config, load_processor(one.model, one.task), load_rows(one))
    with pytest.raises(EvaluationError, match=r"other logits for row .* Set return_attention_mask to false"):
        check_padding(task, model, task.batches(8))


def test_what_the_commands_say_of_them(wav2vec2: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    said = capsys.readouterr().out
    assert "automatic-speech-recognition: the text that is said in a sound" in said
    assert "models: AutoModelForSpeechSeq2Seq or AutoModelForCTC; columns: audio, text\n  metrics: wer, cer\n" in said
    asked = ["--model_name_or_path", str(wav2vec2), "--validation_file", str(data)]
    assert main(["evaluate", *asked, "--dry_run"]) == 0
    assert ": automatic-speech-recognition\n" in capsys.readouterr().out


@pytest.mark.parametrize(("which", "task"), [("classifier", "audio-classification"), ("whisper", None)])
def test_they_are_trained_and_written_with_all_that_reads_sounds(
    which: str, task: str | None, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    asked = ["--model_name_or_path", str(request.getfixturevalue(which)), "--train_file", str(data)]
    more = ["--output_dir", str(tmp_path / "out"), "--activation", "silu", "--max_train_steps", "2", "--limit", "4"]
    assert main(["finetune", *asked, "--validation_file", str(data), *more, *(["--task", task] if task else [])]) == 0
    [place] = [path.parent for path in (tmp_path / "out").rglob("model.safetensors")]
    if which == "whisper":
        assert transformers.AutoProcessor.from_pretrained(place).tokenizer.get_vocab()
    assert transformers.AutoFeatureExtractor.from_pretrained(place).sampling_rate == RATE


def test_ctc_is_not_trained(wav2vec2: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--model_name_or_path", str(wav2vec2), "--train_file", str(data), "--validation_file", str(data)]
    assert main(["finetune", *asked, "--output_dir", str(tmp_path / "out"), "--activation", "silu"]) == 1
    assert "is learned by CTC's loss, which is not built in here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "library"),
    [
        ("automatic-speech-recognition", "jiwer"),
        ("automatic-speech-recognition", "soundfile"),
        ("audio-classification", "soundfile"),
    ],
)
def test_without_its_library_a_task_says_so(
    task: str,
    library: str,
    wav2vec2: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    said = refusal(wav2vec2, data, tmp_path / "out", capsys, "--task", task)
    assert f"{task} needs {library}, not installed here: pip install 'hf-gelu-patch[speech]'" in said
    assert main(["tasks"]) == 0
    assert f"not here: {library} missing (pip install 'hf-gelu-patch[speech]')" in capsys.readouterr().out
