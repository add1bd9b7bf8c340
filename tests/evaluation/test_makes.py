"""Models of any size and make: the same figures as the plain one, where the arithmetic is the same."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import peft
import pytest
import torch
import transformers
from accelerate import Accelerator
from evaluation_worker import finish, start, untimed
from tiny_classifier import WORDS, saved, write_checkpoint, write_words

from hf_gelu_patch import find_sites, patched
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.models import load_model, skeleton
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.loading.subjects import subject
from hf_gelu_patch.evaluation.makes import weights_of
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.report.markdown import markdown
from hf_gelu_patch.evaluation.report.results import plain
from hf_gelu_patch.evaluation.run import evaluate_subject
from hf_gelu_patch.evaluation.run.result import Result
from hf_gelu_patch.evaluation.variants import Variant

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")]

VARIANTS = ("aten", "activation=relu", "eager")


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, wide enough for blocks of 64 weights, and its tokenizer."""
    folder = tmp_path_factory.mktemp("llama") / "llama"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=64,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        **dict.fromkeys(("bos_token_id", "eos_token_id"), 0),
    )
    write_words(folder)
    return saved(transformers.LlamaForCausalLM(config), folder, 8.0)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(random.Random(0).choices(WORDS[2:], k=300)))
    return path


Evaluate = Callable[..., Result]


@pytest.fixture(scope="module")
def evaluated(accelerator: Accelerator) -> Evaluate:
    def run(model: Path, data: Path, *variants: str, **options: Any) -> Result:
        asked = {name: options.pop(name) for name in ("max_length", "task", "second_column") if name in options}
        how = Loading(**options)
        how.check()
        settings = Settings(
            tuple(map(Variant.parse, variants or VARIANTS)),
            loading=how,
            batch_size=8,
            min_rounds=3,
            min_seconds=0.01,
            max_seconds=0.1,
        )
        one = subject(str(model), how, validation_file=str(data), **asked)
        return evaluate_subject(one, settings, accelerator)

    return run


@pytest.fixture(scope="module")
def plainly(evaluated: Evaluate, checkpoint: Path, data: Path) -> Result:
    return evaluated(checkpoint, data)


@pytest.fixture(scope="module")
def llama_plainly(evaluated: Evaluate, llama: Path, text: Path) -> Result:
    return evaluated(llama, text, max_length=32)


def found_out(result: Result, *, layers: bool = True) -> dict[str, Any]:
    """What does not depend on the clock; without layers also not on whether there are hooks, or a float64 copy."""
    found = untimed(result)
    for variant in found["variants"]:
        if not layers:
            variant["layers"] = [layer["change"] for layer in variant["layers"]]
            del variant["patch"]  # a linear layer with a hook is not fused
            variant["drift"] |= {"own": None, "exact": None}
    return found


def copied(folder: Path, to: Path, *left_out: str) -> Path:
    """A checkpoint without its weights."""
    to.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors" and file.name not in left_out:
            (to / file.name).write_bytes(file.read_bytes())
    return to


# -------------------------------------------------------------------------------------------------- files of one model


def test_shards_are_the_plain_model_to_the_bit(
    evaluated: Evaluate, plainly: Result, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    place = copied(checkpoint, tmp_path / "tiny")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint)
    model.save_pretrained(place, max_shard_size="10KB")
    assert len(list(place.glob("*.safetensors"))) > 3
    found = evaluated(place, data)
    assert found_out(found) == found_out(plainly)
    assert found.fingerprint["weights"] == plainly.fingerprint["weights"]


def test_pickled_weights_are_the_plain_model_to_the_bit(
    evaluated: Evaluate, plainly: Result, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    place = copied(checkpoint, tmp_path / "tiny")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint)
    torch.save(model.state_dict(), place / "pytorch_model.bin")
    assert found_out(evaluated(place, data)) == found_out(plainly)


def test_a_folder_within_the_folder(evaluated: Evaluate, plainly: Result, data: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny" / "inner")
    found = evaluated(tmp_path / "tiny", data, subfolder="inner")
    assert found_out(found) == found_out(plainly)
    with pytest.raises(EvaluationError, match="--revision is for a model on the hub"):
        evaluated(tmp_path / "tiny", data, subfolder="inner", revision="main")


def write_gguf(model: transformers.LlamaForCausalLM, path: Path) -> transformers.LlamaForCausalLM:
    """A Llama as llama.cpp writes it, its matrices in 8 bits; and the model of the numbers that these stand for."""
    config, state = model.config, model.state_dict()
    heads, own = config.num_attention_heads, {}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // heads)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in state.items():
        matrix = weight.numpy()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp turns pairs of neighbours
            rows, columns = matrix.shape
            matrix = matrix.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        kind = gguf.GGMLQuantizationType.Q8_0 if matrix.ndim > 1 else gguf.GGMLQuantizationType.F32
        stored = gguf.quants.quantize(matrix, kind)
        writer.add_tensor(f"{names.get_name(name.removesuffix('.weight'))}.weight", stored, raw_dtype=kind)
        read = gguf.quants.dequantize(stored, kind)
        if "q_proj" in name or "k_proj" in name:
            read = read.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        own[name] = torch.from_numpy(read.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    dequantized = transformers.LlamaForCausalLM(config)
    dequantized.load_state_dict(own)
    return dequantized


def test_a_gguf_file_is_the_model_of_its_numbers(evaluated: Evaluate, llama: Path, text: Path, tmp_path: Path) -> None:
    own, place = copied(llama, tmp_path / "plain"), copied(llama, tmp_path / "gguf", "config.json")
    write_gguf(transformers.LlamaForCausalLM.from_pretrained(llama), place / "model.gguf").save_pretrained(own)
    expected = found_out(evaluated(own, text, max_length=32))
    for found in (
        evaluated(place, text, max_length=32, gguf_file="model.gguf"),
        evaluated(place / "model.gguf", text, max_length=32),
    ):
        assert found.subject.task == "causal-lm"
        assert found_out(found) == expected
    assert len(find_sites(skeleton(str(place / "model.gguf"))).sites) == 2
    with pytest.raises(EvaluationError, match=r"no config\.json\. Name one of its GGUF files with --gguf_file: model"):
        subject(str(place), validation_file=str(text))
    (place / "model.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(EvaluationError, match=r"GGUF file .*model\.gguf cannot be read"):
        subject(str(place / "model.gguf"), validation_file=str(text))
    lonely = tmp_path / "model.gguf"
    lonely.write_bytes(b"GGUF and nothing else")
    with pytest.raises(EvaluationError, match=rf"damaged, fetch it again\. .*save_pretrained\('{tmp_path}'\)"):
        load_processor(str(lonely), "causal-lm")


# ---------------------------------------------------------------------------------------------------------- its parts


PARTS = ("bert.embeddings", "bert.encoder.layer.0", "bert.encoder.layer.1", "bert.pooler", "classifier")


@pytest.mark.parametrize("where", ["cpu", "auto", "disk"])
def test_parts_in_memory_or_on_the_disk_make_no_difference(
    where: str, evaluated: Evaluate, plainly: Result, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "map.json"
    file.write_text(json.dumps(dict(zip(PARTS, ["cpu", "disk"] * 3, strict=False)) if where == "disk" else {"": "cpu"}))
    found = evaluated(checkpoint, data, device_map="auto" if where == "auto" else str(file))
    assert found_out(found, layers=where != "disk") == found_out(plainly, layers=where != "disk")
    assert found.fingerprint["weights"] == plainly.fingerprint["weights"]
    assert found.fingerprint["loading"] != plainly.fingerprint["loading"] == {}
    assert (plainly.in_turn, plainly.exact_reason) == ("", "")
    if where == "disk":
        assert "moved by hooks" in found.in_turn
        assert found.exact_reason == "weights are offloaded"
        assert found.activation_share > 0
        text = markdown(plain([found], Settings(), {}))
        assert "one model, patched and unpatched in turn, for its weights are moved by hooks" in text
        assert "peak memory: loading " in text


def test_pickled_weights_are_written_to_the_folder_for_offloading(
    evaluated: Evaluate, plainly: Result, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    place = copied(checkpoint, tmp_path / "tiny")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint)
    torch.save(model.state_dict(), place / "pytorch_model.bin")
    limits = {"cpu": "20KB"}
    with pytest.raises(EvaluationError, match="Say where to write them with --offload_folder"):
        evaluated(place, data, device_map="auto", max_memory=limits)
    found = evaluated(place, data, device_map="auto", max_memory=limits, offload_folder=str(tmp_path / "offloaded"))
    assert list((tmp_path / "offloaded").iterdir())
    assert found_out(found, layers=False) == found_out(plainly, layers=False)


def test_the_state_of_an_offloaded_model_is_read_tensor_by_tensor(checkpoint: Path, tmp_path: Path) -> None:
    own = load_model(str(checkpoint), "text-classification")
    (tmp_path / "map.json").write_text('{"": "disk"}')
    offloaded = load_model(str(checkpoint), "text-classification", Loading(device_map=str(tmp_path / "map.json")))
    assert {weight.device.type for weight in offloaded.parameters()} == {"meta"}
    read = dict(weights_of(offloaded))
    assert read.keys() == own.state_dict().keys()
    assert all(torch.equal(read[name], weight) for name, weight in own.state_dict().items())


# ---------------------------------------------------------------------------------------------------------- quantized


@pytest.mark.parametrize("name", ["bitsandbytes-8bit", "bitsandbytes-4bit", "torchao-int8wo"])
def test_a_quantized_model(name: str, evaluated: Evaluate, llama_plainly: Result, llama: Path, text: Path) -> None:
    library = pytest.importorskip(name.partition("-")[0])
    found = evaluated(llama, text, max_length=32, quantization=name)
    assert found.in_turn == "its weights are quantized"
    assert found.exact_reason.startswith("weights are quantized")
    assert not found.wrong
    same, swapped, _ = found.variants
    assert same.quality.flips == 0
    assert swapped.quality.after != swapped.quality.before
    assert found.unpatched["perplexity"] == pytest.approx(llama_plainly.unpatched["perplexity"], rel=0.5)
    assert found.unpatched != llama_plainly.unpatched

    # the figures are those of what transformers makes by itself
    if name.startswith("torchao"):
        config = transformers.TorchAoConfig(library.quantization.Int8WeightOnlyConfig())
    else:
        config = transformers.BitsAndBytesConfig(**{f"load_in_{name.rpartition('-')[2]}": True})
    model = transformers.AutoModelForCausalLM.from_pretrained(llama, quantization_config=config).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    ids = tokenizer(text.read_text(), return_tensors="pt")["input_ids"][0]
    blocks = ids[: len(ids) // 32 * 32].view(-1, 32)

    def loss() -> float:
        with torch.inference_mode():
            logits = torch.cat([model(blocks[n : n + 8]).logits for n in range(0, len(blocks), 8)])[:, :-1]
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten()))

    before = loss()
    with patched(model, activation="relu"):
        after = loss()
    assert found.unpatched["perplexity"] == pytest.approx(torch.tensor(before).exp().item(), rel=1e-5)
    assert swapped.quality.after["perplexity"] == pytest.approx(torch.tensor(after).exp().item(), rel=1e-5)


# ----------------------------------------------------------------------------------------------------------- adapters


@pytest.fixture(scope="module")
def adapter(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    made = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(llama), config)
    made.save_pretrained(folder := tmp_path_factory.mktemp("adapter"))
    return folder


def test_an_adapter_beside_the_weights_and_merged(
    evaluated: Evaluate, llama_plainly: Result, llama: Path, adapter: Path, text: Path, tmp_path: Path
) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(llama)
    by_hand = copied(llama, tmp_path / "merged")
    peft.PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(by_hand)
    merged = evaluated(llama, text, max_length=32, adapter=str(adapter), merge_adapter=True)
    assert found_out(merged) == found_out(evaluated(by_hand, text, max_length=32))
    beside = evaluated(llama, text, max_length=32, adapter=str(adapter))
    assert beside.in_turn == beside.exact_reason == ""
    assert beside.unpatched["perplexity"] != llama_plainly.unpatched["perplexity"]
    for one, other in zip(beside.variants, merged.variants, strict=True):
        assert one.quality.after == pytest.approx(other.quality.after, rel=1e-5)
        assert one.drift.max_abs == pytest.approx(other.drift.max_abs, rel=1e-2, abs=1e-4)
    assert found_out(evaluated(adapter, text, max_length=32)) == found_out(beside)  # its config names the model


def test_an_adapter_brings_a_classifiers_head(
    evaluated: Evaluate, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    encoder = transformers.AutoModel.from_pretrained(checkpoint)
    encoder.save_pretrained(base := copied(checkpoint, tmp_path / "base", "config.json"))
    own = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint)
    made = peft.get_peft_model(own, peft.LoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS"))
    made.save_pretrained(tmp_path / "adapter")
    with pytest.raises(EvaluationError, match="has no weights for 2 of the parameters that are needed"):
        load_model(str(base), "text-classification")
    config = json.loads((base / "config.json").read_text())
    config |= {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    (base / "config.json").write_text(json.dumps(config))
    found = evaluated(base, data, "aten", adapter=str(tmp_path / "adapter"))
    assert found.unpatched == evaluated(checkpoint, data, "aten").unpatched  # LoRA's matrices B are 0


# -------------------------------------------------------------------------------------------- models of several parts


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    generator = random.Random(0)
    lines = [
        ",".join([*(" ".join(generator.choices(WORDS[2:], k=generator.randint(1, 9))) for _ in "12"), f"{number}"])
        for number in range(12)
    ]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(["text1,text2,score", *lines, ""]))
    return path


def sentence_transformer(checkpoint: Path, folder: Path, pooling: str, *more: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        first = Transformer(str(checkpoint))
        made = SentenceTransformer(modules=[first, Pooling(32, pooling_mode=pooling), *more], device="cpu")
        made.save(str(folder))
    return made


def test_all_modules_of_a_sentence_transformer_are_run(
    evaluated: Evaluate, checkpoint: Path, pairs: Path, tmp_path: Path
) -> None:
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    torch.manual_seed(0)
    dense = Dense(32, 16, activation_function=torch.nn.GELU())
    made = sentence_transformer(checkpoint, tmp_path / "cls", "cls", dense, Normalize())
    found = evaluated(tmp_path / "cls", pairs, "activation=relu", task="sentence-similarity")
    rows = [line.split(",") for line in pairs.read_text().split("\n")[1:-1]]
    texts, scores = [row[:2] for row in rows], [float(row[2]) for row in rows]

    def pearson() -> float:
        one, two = (torch.from_numpy(made.encode([text[side] for text in texts])).double() for side in (0, 1))
        cosines = torch.cosine_similarity(one, two)
        return float(torch.corrcoef(torch.stack([cosines, torch.tensor(scores).double()]))[0, 1])

    assert found.unpatched["pearson"] == pytest.approx(pearson(), abs=1e-5)
    [swapped] = found.variants
    assert [site.path for site in swapped.patch.changed][-1] == "sentence_head.1.activation_function"
    with patched(made, activation="relu"):
        assert swapped.quality.after["pearson"] == pytest.approx(pearson(), abs=1e-5)

    # the mean over tokens is taken without the library, whose Normalize a cosine does not see
    made = sentence_transformer(checkpoint, tmp_path / "mean", "mean", Normalize())
    found = evaluated(tmp_path / "mean", pairs, "aten", task="sentence-similarity")
    assert found.unpatched["pearson"] == pytest.approx(pearson(), abs=1e-5)
    assert not hasattr(load_model(str(tmp_path / "mean"), "sentence-similarity"), "sentence_head")
    config = tmp_path / "mean" / "config_sentence_transformers.json"
    told = json.loads(config.read_text()) | {"prompts": {"query": "q: "}, "default_prompt_name": "query"}
    config.write_text(json.dumps(told))
    with pytest.raises(EvaluationError, match="puts the prompt 'q: ' before each text: put it into the data"):
        evaluated(tmp_path / "mean", pairs, "aten", task="sentence-similarity")


def test_the_text_part_of_a_model_that_reads_images(
    evaluated: Evaluate, llama: Path, text: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    own = transformers.AutoModelForCausalLM.from_pretrained(llama)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 8, "patch_size": 4, **vision},
        text_config=own.config,
        image_token_index=63,
    )
    both = transformers.LlavaForConditionalGeneration(config)
    both.model.language_model.load_state_dict(own.model.state_dict())
    both.lm_head.load_state_dict(own.lm_head.state_dict())
    both.save_pretrained(place := copied(llama, tmp_path / "llava", "config.json"))
    found = evaluated(place, text, "activation=relu", max_length=32)
    assert (found.subject.task, found.model_class) == ("causal-lm", "LlavaForConditionalGeneration")
    expected = evaluated(llama, text, "activation=relu", max_length=32)
    assert found.unpatched == expected.unpatched
    assert found.variants[0].quality.after == expected.variants[0].quality.after


def test_documents_are_embedded_anew_when_the_patch_is_on(
    evaluated: Evaluate, checkpoint: Path, pairs: Path, tmp_path: Path
) -> None:
    """Of one model that serves for several variants in turn."""
    lines = pairs.read_text().replace("text1,text2,score", "query,positive,score").split("\n")
    rows = tmp_path / "rows.csv"
    rows.write_text("\n".join(line.rpartition(",")[0] for line in lines))
    (tmp_path / "map.json").write_text('{"": "disk"}')
    options = {"task": "retrieval", "second_column": "positive"}
    plain_ = evaluated(checkpoint, rows, "activation=relu", **options)
    found = evaluated(checkpoint, rows, "activation=relu", device_map=str(tmp_path / "map.json"), **options)
    assert found.in_turn
    assert found_out(found, layers=False) == found_out(plain_, layers=False)
    assert plain_.variants[0].quality.after != plain_.variants[0].quality.before


# ------------------------------------------------------------------------------------------------- several, or compiled


def test_two_processes_each_with_weights_on_the_disk(
    plainly: Result, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "map.json").write_text(json.dumps(dict(zip(PARTS, ["cpu", "disk"] * 3, strict=False))))
    settings = Settings(
        tuple(map(Variant.parse, VARIANTS)),
        loading=Loading(device_map=str(tmp_path / "map.json")),
        batch_size=8,
        min_rounds=3,
        min_seconds=0.01,
        max_seconds=0.1,
    )
    found = finish(start(checkpoint, data, tmp_path, settings, 2), tmp_path)
    for variant, expected in zip(found["variants"], found_out(plainly)["variants"], strict=True):
        assert variant["quality"] == expected["quality"]
        assert variant["drift"]["max_abs"] == expected["drift"]["max_abs"]
    assert found["unpatched"] == plainly.unpatched


def test_layers_split_between_two_processes(evaluated: Evaluate, llama: Path, text: Path, tmp_path: Path) -> None:
    """With as many processes as that, each forward takes both: the first leads, in generation too."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "hf_gelu_patch", "evaluate", "--num_processes", "2", "--tp_plan", "auto"]
    command += ["--model_name_or_path", str(llama), "--validation_file", str(text), "--max_length", "32"]
    command += ["--variant", "aten", "--variant", "activation=relu", "--timing_seconds", "0.05"]
    command += ["--per_device_eval_batch_size", "8", "--output_dir", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    [found] = json.loads((tmp_path / "results" / "evaluation.json").read_text())["models"]
    expected = evaluated(llama, text, "aten", "activation=relu", max_length=32)
    assert found["exact_reason"] == "weights are split among processes"
    assert found["unpatched"] == pytest.approx(expected.unpatched, rel=1e-5)
    for variant, other in zip(found["variants"], expected.variants, strict=True):
        assert variant["quality"]["after"] == pytest.approx(other.quality.after, rel=1e-5)
        assert variant["drift"]["max_abs"] == pytest.approx(other.drift.max_abs, rel=1e-2, abs=1e-4)
        assert variant["speed"].keys() >= {"forward", "prefill", "decode"}


def test_both_sides_are_compiled(evaluated: Evaluate, checkpoint: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "w1 w2 w3,no\nw4 w5 w6,yes\n" * 4)
    found = evaluated(checkpoint, rows, "activation=relu", torch_compile=True)
    plain_ = evaluated(checkpoint, rows, "activation=relu")
    assert found.seconds["compile"] > plain_.seconds["compile"] == 0
    assert found.in_turn == found.exact_reason == ""
    assert found.unpatched == plain_.unpatched
    [one], [other] = found.variants, plain_.variants
    assert one.drift.max_abs == pytest.approx(other.drift.max_abs, rel=1e-3)
    assert one.drift.own is not None
    assert other.drift.own is not None
    assert one.drift.own.mean_abs != other.drift.own.mean_abs  # it rounds in other places
    assert [layer.path for layer in one.layers] == [layer.path for layer in other.layers]
    assert "compiled with torch.compile, in" in markdown(plain([found], Settings(), {}))


# ------------------------------------------------------------------------------------------------ what cannot be done


@pytest.mark.parametrize(
    ("loading", "said"),
    [
        ({"quantization": "bitsandbytes-3bit"}, "no quantization 'bitsandbytes-3bit': bitsandbytes-8bit"),
        ({"quantization": "nowhere.json"}, r"nowhere\.json cannot be read"),
        ({"device_map": "nowhere.json"}, r"nowhere\.json cannot be read"),
        ({"device_map": "everywhere"}, "--device_map everywhere is none of auto, balanced"),
        ({"device": "gpu"}, "--device gpu is no device: write cpu, cuda"),
        ({"device": "cuda:77"}, "--device cuda:77: there is no such device here. There are: .*cpu"),
        ({"subfolder": "nowhere"}, r"has no folder nowhere \(--subfolder\)\. Its folders: none"),
        ({"adapter": "./nowhere"}, r"no adapter \./nowhere"),
        ({"merge_adapter": True}, "--merge_adapter has nothing to merge"),
        ({"gguf_file": "nothing.gguf"}, r"is no checkpoint: it has no nothing\.gguf"),
        ({"max_memory": {"cpu": "1GB"}}, "--max_memory has no meaning without --device_map"),
        ({"device_map": "auto", "device": "cpu"}, "--device_map and --device exclude each other"),
        ({"tp_plan": "auto"}, "start them with torchrun"),
    ],
)
def test_what_was_asked_for_is_not_there(
    loading: dict[str, Any], said: str, evaluated: Evaluate, checkpoint: Path, data: Path
) -> None:
    with pytest.raises(EvaluationError, match=said):
        evaluated(checkpoint, data, **loading)


def test_a_map_that_names_no_module(evaluated: Evaluate, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"bert": "cpu", "head": "cpu"}')
    with pytest.raises(
        EvaluationError, match=r"names head, and .* has no such module\. It has: bert, bert\.embeddings"
    ):
        evaluated(checkpoint, data, device_map=str(tmp_path / "map.json"))
    for place, said in (
        ("77", "names 77, and there is no such device here"),
        ('"gpu"', "names 'gpu', which is no dev"),
    ):
        (tmp_path / "map.json").write_text(f'{{"bert": {place}, "classifier": "disk"}}')
        with pytest.raises(EvaluationError, match=said):
            evaluated(checkpoint, data, device_map=str(tmp_path / "map.json"))
    (tmp_path / "map.json").write_text('["bert"]')
    with pytest.raises(EvaluationError, match="has to say where each module goes"):
        evaluated(checkpoint, data, device_map=str(tmp_path / "map.json"))


def test_an_adapter_without_its_model_or_for_another(
    evaluated: Evaluate, llama: Path, adapter: Path, text: Path, checkpoint: Path, tmp_path: Path
) -> None:
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    for file in adapter.iterdir():
        (lonely / file.name).write_bytes(file.read_bytes())
    config = json.loads((adapter / "adapter_config.json").read_text())
    (lonely / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "./gone"}))
    with pytest.raises(EvaluationError, match=rf"adapter for \./gone, which is not there.*\n.*--adapter {lonely}"):
        evaluated(lonely, text)
    assert evaluated(llama, text, "aten", max_length=32, adapter=str(lonely)).variants
    (lonely / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["c_fc"]}))
    with pytest.raises(EvaluationError, match="cannot be put onto LlamaForCausalLM: Target modules"):
        evaluated(llama, text, "aten", max_length=32, adapter=str(lonely))
    with pytest.raises(EvaluationError, match="is no PEFT adapter: it has no adapter_config"):
        evaluated(llama, text, adapter=str(checkpoint))


def test_what_does_not_fit_is_told_before_it_is_read(
    evaluated: Evaluate, llama: Path, text: Path, tmp_path: Path
) -> None:
    place = copied(llama, tmp_path / "large")
    with (place / "model.safetensors").open("wb") as file:
        os.truncate(file.fileno(), 2**43)  # which takes no room on the disk
    with pytest.raises(
        EvaluationError, match=r"its weights take 8192\.0 GiB, and .* are free on cpu.*--device_map auto"
    ):
        evaluated(place, text)


def test_a_loading_is_told_as_it_was_asked_for() -> None:
    assert Loading().said == {}
    assert replace(Loading(), dtype="bfloat16", offload_folder="x").said == {"dtype": "bfloat16"}
