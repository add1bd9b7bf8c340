"""What models compute against what is said of them: right models of the published families, and planted faults."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from conftest import FAMILIES as TINY
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_gelu_patch import AlreadyPatchedError, PatchError, audit, patch, patched
from hf_gelu_patch.auditing import FAMILIES, LEVELS, Audit, Family, Finding
from hf_gelu_patch.cli import main
from scripts.covering.classes import model_classes
from scripts.covering.shrinking import Shrinker

GUIDE = Path(__file__).parents[2] / "hf_gelu_patch" / "guides" / "auditing.md"
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}


def tiny_config(family: Family) -> Any:
    """A small config as the family was published, in the words of its class."""
    cls = CONFIG_MAPPING[family.model_type]
    if family.gated is not None:
        name = "gelu" if family.activation == "gelu_new" else family.activation
        config = cls(feed_forward_proj=f"gated-{name}" if family.gated else name)
    else:
        config = cls(**({} if family.entry is None else {family.entry: family.activation}))
    Shrinker().shrink(config)
    return config


def tiny(family: Family) -> transformers.PreTrainedModel:
    config = tiny_config(family)
    torch.manual_seed(0)
    return model_classes(type(config))[0](config)


def only(found: Audit, level: str) -> Finding:
    """The one finding that there is."""
    [finding] = found.findings
    assert finding.level == level, finding.sentence
    return finding


def swapped(model: nn.Module, finding: Finding) -> tuple[set[str], set[str]]:
    """The sites that a finding's call gives another function, and which."""
    report = eval(finding.mend, {"model": model, "patch": patch})
    changed = [one for one in report.changed if one.equivalence in ("approximate", "different")]
    return {one.path for one in changed}, {str(one.target) for one in changed}


def anew(model: Any) -> nn.Module:
    """The model that a reload of its config makes."""
    return type(model)(type(model.config).from_dict(model.config.to_dict()))


# ---------------------------------------------------------------------------------------------------- right as they are


RIGHT = (
    *("bert", "roberta", "distilbert", "albert", "modernbert", "xlnet", "esm", "gpt2", "gpt_neox", "llama", "mistral"),
    *("qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3", "falcon", "bloom", "mpt", "opt", "nemotron", "ctrl", "t5"),
    *("bart", "marian", "whisper", "vit", "swin", "resnet", "clip_text_model"),
)
"""A spread of the table. All of it held when it was written, in a minute."""


@pytest.mark.slow
@pytest.mark.parametrize("model_type", RIGHT)
def test_a_model_as_it_was_published_is_said_to_be_right(model_type: str, tmp_path: Path) -> None:
    for family in (one for one in FAMILIES if one.model_type == model_type):
        model = tiny(family)
        model.config.save_pretrained(tmp_path)
        found = audit(model, checkpoint=tmp_path)
        assert not found.findings, str(found)
        assert not any("cannot be built" in note for note in found.notes), str(found)
        judged = [site for site in found.sites if any(claim.source == "family" for claim in site.claims)]
        assert judged, str(found)


def test_there_are_thirty_right_families_and_every_row_has_a_source_and_names_an_activation() -> None:
    assert len(RIGHT) >= 30
    assert len({one.model_type for one in FAMILIES}) >= 30
    for family in FAMILIES:
        assert family.source
        assert family.activation in transformers.activations.ACT2FN
        assert family.model_type in CONFIG_MAPPING, family


# -------------------------------------------------------------------------------------------------------------- faults


def test_a_modernbert_with_silu_departs_from_its_family() -> None:
    config = transformers.ModernBertConfig(
        **SIZES, hidden_activation="silu", classifier_activation="relu", pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    model = transformers.ModernBertForMaskedLM(config)
    found = audit(model)
    finding = only(found, "departure")
    assert "2 sites (ModernBertMLP.act) compute silu, as the config says (hidden_activation: silu)" in finding.sentence
    assert any("answerdotai/ModernBERT-base" in line for line in finding.evidence)
    assert finding.mend == "patch(model, activation=\"gelu\", include='ModernBertMLP')"
    assert finding.evaluate.endswith("--activation gelu --include ModernBertMLP"), "the head's ReLU is left alone"
    assert swapped(model, finding) == ({"model.layers.0.mlp.act", "model.layers.1.mlp.act"}, {"gelu"})
    assert not audit(anew(model)).findings


def test_a_t5_with_gates_is_held_against_those_that_were_published_with_gates() -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 1, "vocab_size": 64}
    model = transformers.T5EncoderModel(transformers.T5Config(**sizes, feed_forward_proj="gated-relu"))
    finding = only(audit(model), "departure")
    assert "as the config says (dense_act_fn: relu); the family was published with gelu_new or silu" in finding.sentence
    assert not audit(transformers.T5EncoderModel(transformers.T5Config(**sizes))).findings, "T5 1.0 has ReLU"


def test_gemmas_gelu_that_means_tanh_is_a_misnomer(tmp_path: Path) -> None:
    model = TINY["gemma"].build()
    model.save_pretrained(tmp_path)
    assert not audit(model, checkpoint=tmp_path).findings
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_act": "gelu", "hidden_activation": None}))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    finding = only(audit(loaded), "misnomer")
    assert finding.sentence.startswith("config.json says hidden_act: gelu, and 2 sites (GemmaMLP.act_fn) compute")
    assert finding.mend == 'in config.json: "hidden_act": "gelu_pytorch_tanh"'
    assert not finding.evaluate
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"})
    )
    assert not audit(loaded).findings, "the second entry says it, and counts before the first"


class OlderGemmaConfig(transformers.GemmaConfig):
    """As transformers 4.57 has it, which takes the name at its word."""

    def __post_init__(self, **kwargs: Any) -> None:
        name = self.hidden_act
        super().__post_init__(**kwargs)
        self.hidden_act = name


class OlderGemma(transformers.GemmaModel):
    config_class = OlderGemmaConfig


def test_gemmas_gelu_that_is_taken_at_its_word_is_a_contradiction() -> None:
    config = OlderGemmaConfig(**SIZES, head_dim=8, num_key_value_heads=2, hidden_act="gelu")
    model = OlderGemma(config)
    finding = only(audit(model), "contradiction")
    assert "compute gelu, as the name says that the config has; in this family it means gelu_py" in finding.sentence
    assert finding.mend == 'patch(model, activation="gelu_pytorch_tanh")'
    assert swapped(model, finding) == (set(finding.sites), {"gelu_tanh"})
    assert not audit(anew(model)).findings


def test_gpt1s_gelu_that_means_tanh_is_a_misnomer_that_no_entry_can_mend() -> None:
    [family] = [one for one in FAMILIES if one.model_type == "openai-gpt"]
    config = transformers.OpenAIGPTConfig(n_embd=32, n_layer=2, n_head=4, vocab_size=64, afn=family.spelled)
    finding = only(audit(transformers.OpenAIGPTModel(config)), "misnomer")
    assert finding.computes == finding.meant == "gelu_tanh"
    assert finding.mend.startswith("nothing here")


@pytest.mark.parametrize(
    ("key", "change"), [("hidden_act", "del model.config.hidden_act"), ("act_fn", "del model.config.act_fn")]
)
def test_an_entry_that_the_class_does_not_read_is_a_contradiction(key: str, change: str) -> None:
    config = TINY["gpt2"].config()
    setattr(config, key, "silu")
    model = transformers.GPT2LMHeadModel(config)
    finding = only(audit(model), "contradiction")
    assert f"{key}: 'silu' in the config changes nothing in GPT2LMHeadModel: 2 sites (GPT2MLP.act)" in finding.sentence
    assert (finding.mend, finding.otherwise) == (change, 'patch(model, activation="silu")')
    exec(finding.mend, {"model": model})
    assert not audit(model).findings


def test_an_entry_changed_on_a_live_model_is_a_contradiction() -> None:
    model = TINY["bert"].build()
    model.config.hidden_act = "silu"
    finding = only(audit(model), "contradiction")
    assert "compute gelu; built anew from its config, as a reload does, the model computes silu" in finding.sentence
    assert len(finding.sites) == 2
    assert finding.mend == 'model.config.hidden_act = "gelu"'
    exec(finding.mend, {"model": model})
    assert not audit(model).findings


def test_a_module_changed_on_a_live_model_is_a_contradiction_at_that_site_alone() -> None:
    model = TINY["bloom"].build()
    model.transformer.h[1].mlp.gelu_impl = nn.GELU()
    found = audit(model)
    finding = only(found, "contradiction")
    assert finding.sites == ("transformer.h.1.mlp.gelu_impl",)
    assert finding.mend == 'patch(model, activation="gelu_tanh")'
    assert swapped(model, finding) == ({"transformer.h.1.mlp.gelu_impl"}, {"gelu_tanh"})


def test_an_entry_is_not_changed_for_one_of_the_sites_that_it_sets() -> None:
    model = TINY["llama"].build()
    model.model.layers[0].mlp.act_fn = nn.GELU()
    finding = only(audit(model), "contradiction")
    assert finding.sites == ("model.layers.0.mlp.act_fn",)
    assert finding.mend == 'patch(model, activation="silu")'
    assert finding.otherwise == ""  # hidden_act = "gelu" would be wrong of the other layers
    for layer in model.model.layers[1:]:
        layer.mlp.act_fn = nn.GELU()
    assert only(audit(model), "contradiction").otherwise == 'model.config.hidden_act = "gelu"'


def test_no_patch_is_named_for_an_activation_that_has_learned_parameters() -> None:
    model = TINY["llama"].build()
    model.model.layers[0].mlp.act_fn = nn.PReLU()
    finding = only(audit(model), "contradiction")
    assert finding.mend == "build the model anew: a patch leaves prelu alone, whose parameters were learned"
    assert (finding.otherwise, finding.evaluate) == ("", "")


def test_what_was_trained_is_not_to_be_patched_away() -> None:
    config = TINY["llama"].config()
    config.hidden_act = "gelu"
    model = transformers.LlamaForCausalLM(config)
    finding = only(audit(model, trained=model), "departure")
    assert finding.mend == "nothing here: the trained model computes the same"
    assert finding.otherwise == 'patch(model, activation="silu")'
    model.config.hidden_act = "relu"
    finding = only(audit(model, trained=model), "contradiction")
    assert finding.mend == 'model.config.hidden_act = "gelu"'
    assert finding.otherwise == 'patch(model, activation="relu")'


def test_what_is_served_is_held_against_what_was_trained() -> None:
    trained = TINY["bert"].build()
    config = TINY["bert"].config()
    config.hidden_act = "gelu_new"
    served = transformers.BertModel(config)
    assert [one.level for one in audit(served).findings] == ["departure"]
    found = audit(served, trained=trained)
    finding = only(found, "contradiction")
    assert "compute gelu_tanh; the trained model computes gelu there" in finding.sentence
    assert any("at most 0.000473 apart" in line for line in finding.evidence)
    assert swapped(served, finding) == (
        {f"encoder.layer.{i}.intermediate.intermediate_act_fn" for i in (0, 1)},
        {"gelu"},
    )
    assert not audit(trained, trained=trained).findings
    with pytest.raises(PatchError, match="no site in common"):
        audit(TINY["gpt2"].build(), trained=trained)


def test_models_within_another_are_held_against_their_own_configs_and_files(tmp_path: Path) -> None:
    inside = TINY["bert"].build()
    inside.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dual", "text": {**config, "hidden_act": "silu"}}))
    both = nn.ModuleDict({"first": TINY["vit"].build(), "second": inside})
    finding = only(audit(both, checkpoint=tmp_path), "contradiction")
    assert finding.sites == tuple(f"second.bert.encoder.layer.{i}.intermediate.intermediate_act_fn" for i in (0, 1))
    assert finding.otherwise == 'in config.json: "hidden_act": "gelu"'
    assert swapped(both, finding) == (set(finding.sites), {"silu"})


def test_a_part_is_judged_by_its_own_family_and_mended_alone() -> None:
    config = TINY["clip"].config()
    config.text_config.hidden_act, config.vision_config.hidden_act = "gelu", "relu"
    model = transformers.CLIPModel(config)
    finding = only(audit(model), "departure")
    assert finding.sites == tuple(f"vision_model.encoder.layers.{i}.mlp.activation_fn" for i in (0, 1))
    sites, _ = swapped(model, finding)
    assert sites == set(finding.sites)
    config.vision_config.hidden_act = "gelu"  # as all of OpenCLIP's are
    assert not audit(transformers.CLIPModel(config)).findings


# ---------------------------------------------------------------------------------------------------------------- GGUF


def write_t5(folder: Path, *, gated: bool) -> transformers.T5ForConditionalGeneration:
    """A T5 in a GGUF file with the keys and names of llama.cpp, and the model itself."""
    config = TINY["t5-v1.1" if gated else "t5-v1.0"].config()
    config.scale_decoder_outputs = not gated
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(config).eval()
    writer = gguf.GGUFWriter(folder / "model.gguf", "t5")
    writer.add_block_count(config.num_layers)
    writer.add_context_length(64)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_key_length(config.d_kv)
    writer.add_value_length(config.d_kv)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_relative_attn_buckets_count(config.relative_attention_num_buckets)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, config.num_layers)
    for name, weight in model.state_dict().items():
        stored = names.get_name(name.removesuffix(".weight"))
        if "embed_tokens" not in name and (gated or name != "lm_head.weight"):
            writer.add_tensor(f"{stored}.weight", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def loaded(folder: Path, **more: Any) -> transformers.T5ForConditionalGeneration:
    return transformers.T5ForConditionalGeneration.from_pretrained(folder, gguf_file="model.gguf", **more).eval()


def apart(one: nn.Module, other: nn.Module) -> float:
    with torch.no_grad():
        return float((TINY["t5-v1.1"].run(one) - TINY["t5-v1.1"].run(other)).abs().max())


def test_a_gguf_of_t5_11_loads_with_a_relu_and_is_mended(tmp_path: Path) -> None:
    trained = write_t5(tmp_path, gated=True)
    model = loaded(tmp_path)
    finding = only(audit(model, checkpoint=tmp_path / "model.gguf"), "contradiction")
    assert (
        "4 sites (T5DenseGatedActDense.act) compute relu; the GGUF file is of a model with gelu_new" in finding.sentence
    )
    assert any(
        "model.gguf says general.architecture: 't5' and comes with matrices of gates" in e for e in finding.evidence
    )
    assert finding.mend == 'patch(model, activation="gelu_new")'
    assert apart(model, trained) > 0.1
    assert swapped(model, finding) == (set(finding.sites), {"gelu_tanh"})
    assert apart(model, trained) < 1e-5
    # What is saved now is right, and one of its two entries still says what the loader has put there.
    again = only(audit(anew(model), checkpoint=tmp_path / "model.gguf"), "misnomer")
    assert again.mend == 'model.config.feed_forward_proj = "gated-gelu"'
    exec(again.mend, {"model": model})
    assert not audit(anew(model), checkpoint=tmp_path / "model.gguf").findings


def test_a_gguf_of_t5_10_loads_with_gates_that_it_has_no_weights_for(tmp_path: Path) -> None:
    trained = write_t5(tmp_path, gated=False)
    found = audit(loaded(tmp_path), checkpoint=tmp_path / "model.gguf")
    finding = only(found, "contradiction")
    assert "model.gguf holds the weights of layers without" in finding.sentence
    model = eval(finding.mend, {"T5ForConditionalGeneration": transformers.T5ForConditionalGeneration}).eval()
    assert not audit(model, checkpoint=tmp_path / "model.gguf").findings
    assert apart(model, trained) < 1e-5


# -------------------------------------------------------------------------------------------------- what cannot be said


def test_what_is_no_model_of_transformers_is_listed_and_not_judged() -> None:
    found = audit(nn.Sequential(nn.Linear(2, 2), nn.GELU()))
    assert [(site.path, site.activation.name) for site in found.sites if site.activation] == [("1", "gelu")]
    assert not found.findings
    assert found.notes == ("there is no model of transformers in it, and so no config to hold it against",)


def test_a_patched_model_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    model = TINY["bert"].build()
    with patched(model), pytest.raises(AlreadyPatchedError, match=r"unpatch\(model\) first"):
        audit(model)
    with pytest.raises(PatchError, match=r"name the folder that holds config\.json, or a GGUF file"):
        audit(model, checkpoint=tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(PatchError, match="it holds no JSON object"):
        audit(model, checkpoint=tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(PatchError, match=r"the GGUF file .* cannot be read"):
        audit(model, checkpoint=tmp_path / "broken.gguf")


def test_an_audit_changes_nothing() -> None:
    model = TINY["t5-v1.1"].build()
    before, modules = model.config.to_dict(), dict(model.named_modules())
    state = torch.random.get_rng_state()
    audit(model)
    assert model.config.to_dict() == before
    assert dict(model.named_modules()) == modules
    assert torch.equal(torch.random.get_rng_state(), state)


# ---------------------------------------------------------------------------------------------------- the command line


def test_the_command_prints_a_table_or_json_and_tells_by_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, gguf_folder = tmp_path / "bert", tmp_path / "gguf"
    gguf_folder.mkdir()
    TINY["bert"].build().save_pretrained(folder)
    write_t5(gguf_folder, gated=True)
    assert main(["audit", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("BertForSequenceClassification: 3 activation sites; nothing found\n")
    assert re.search(
        r"2 ×  BertIntermediate.intermediate_act_fn +gelu +hidden_act: gelu +hidden_act: gelu +gelu", printed
    )
    path = gguf_folder / "model.gguf"
    assert main(["audit", str(path)]) == 3
    printed = capsys.readouterr().out
    assert 'mend: patch(model, activation="gelu_new")' in printed
    assert f"evaluate --model_name_or_path {path} --validation_file DATA --activation gelu_new" in printed
    assert main(["audit", str(path), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert [one["level"] for one in found["findings"]] == ["contradiction"]
    assert [one["computes"] for one in found["sites"]] == ["relu"] * 4
    served = TINY["bert"].build().config
    served.hidden_act = "gelu_new"
    served.save_pretrained(tmp_path / "served")
    assert main(["audit", str(tmp_path / "served"), "--trained", str(folder)]) == 3
    assert "compute gelu_tanh; the trained model computes gelu there" in " ".join(capsys.readouterr().out.split())
    assert main(["audit", str(folder), "--trained", str(path)]) == 1
    assert "no site in common" in capsys.readouterr().err
    assert main(["audit", "./nowhere"]) == 1
    assert "no model folder" in capsys.readouterr().err


def test_an_adapter_that_comes_with_a_config_of_its_own_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = TINY["bert"].build()
    model.save_pretrained(base)
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(base), "peft_type": "LORA"})
    )
    assert main(["audit", str(adapter)]) == 0
    model.config.hidden_act = "gelu_new"
    model.config.save_pretrained(adapter)
    capsys.readouterr()
    assert main(["audit", str(base), "--adapter", str(adapter)]) == 3
    printed = " ".join(capsys.readouterr().out.split())
    assert "compute gelu; config.json says hidden_act: gelu_new." in printed
    assert 'mend: patch(model, activation="gelu_new")' in printed


# ----------------------------------------------------------------------------------------------------------- the guide


def rendered() -> str:
    """The families as the guide shows them."""
    lines = ["| family | models | function | set by | source |", "| --- | --- | --- | --- | --- |"]
    for one in FAMILIES:
        entry = "the code" if one.entry is None else f"`{one.entry}`"
        if one.gated is not None:
            entry += ", with gates" if one.gated else ", without gates"
        if one.spelled is not None:
            entry += f", published as `{one.spelled}`"
        lines.append(f"| `{one.model_type}` | {one.models} | `{one.activation}` | {entry} | {one.source} |")
    return "\n".join(lines)


def test_the_guide_shows_the_families_and_the_levels() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    assert rendered() in text
    for level, meaning in LEVELS.items():
        assert f"| {level} | {meaning} |" in text
    assert f"{len({one.model_type for one in FAMILIES})} families" in text
