"""Makes the pickles of this folder, with a version of the package from before its modules had their present homes.

Run it in a checkout of the commit 7e06156, whose package is then the one that is imported:

    TRITON_INTERPRET=1 PYTHONPATH=CHECKOUT:TESTS python TESTS/old_layout/make.py

Beside each pickle it writes what the object computed, which is what a test asks of it.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import transformers
from old_layout import models

import hf_gelu_patch
from hf_gelu_patch import find_sites, patch, unpatch

HERE = Path(__file__).parent
BERT = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 16, "num_hidden_layers": 1}
LLAMA = {**BERT, "num_key_value_heads": 1, "head_dim": 4}
SHORT = {"max_position_embeddings": 8}


def save(name: str, value: object, result: object = None) -> None:
    torch.save({"value": value, "result": result}, HERE / f"{name}.pt")


def transformer(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    t = transformers
    if name == "bert":
        return t.BertModel(t.BertConfig(**BERT, **SHORT)).eval()
    if name == "gpt2":
        return t.GPT2Model(t.GPT2Config(n_embd=8, n_head=2, n_layer=1, n_positions=8, vocab_size=16)).eval()
    if name == "t5":
        sizes = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_heads": 2, "num_layers": 1, "vocab_size": 16}
        return t.T5EncoderModel(t.T5Config(**sizes, feed_forward_proj="gated-gelu")).eval()
    return t.LlamaModel(t.LlamaConfig(**LLAMA, **SHORT)).eval()


def output(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 9)[None])[0]


def patched(model: torch.nn.Module, **options: object) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", hf_gelu_patch.NothingPatchedWarning)
        patch(model, **options)
    return model


def of_transformers() -> None:
    for name in ("bert", "gpt2", "t5", "llama"):
        model = patched(transformer(name), implementation="aten")
        save(name, model, output(model))
    model = transformer("bert")
    batch = {"input_ids": torch.arange(3, 9)[None]}
    report = patch(model, activation="relu_squared", include="encoder.*", verify=batch, margin=9.0)
    save("bert_swapped", model, output(model))
    save("reports", [report, report.sites, find_sites(transformer("bert"))])
    unpatch(model)
    save("bert_unpatched", model, output(model))


def of_our_own() -> None:
    hf_gelu_patch.register_implementation(
        hf_gelu_patch.Implementation("forward_only", {"gelu": torch.nn.functional.gelu}, backward=False)
    )
    for implementation in ("aten", "triton", "triton_rounded", "forward_only"):
        model = patched(models.own(), implementation=implementation)
        with torch.no_grad():
            save(f"own_{implementation}", model, model(models.inputs()))
            if implementation == "aten":
                save("own_part", model[0], model[0](models.inputs()))
    save("own_epilogue", patched(models.own().to("meta"), implementation="epilogue"))
    swapped = {}
    for implementation in ("aten", "eager", "triton"):
        for name in hf_gelu_patch.IMPLEMENTATIONS[implementation].functions:
            parts = torch.nn.ModuleList([torch.nn.GELU(), torch.nn.SiLU()])
            swapped[f"{name} by {implementation}"] = patched(parts, activation=name, implementation=implementation)
    results = {name: [part(models.inputs()) for part in parts] for name, parts in swapped.items()}
    save("every_function", swapped, results)


def main() -> None:
    assert (Path(hf_gelu_patch.__file__).parent / "binding.py").exists(), "this is not the old layout"
    of_transformers()
    of_our_own()
    names = [name for name in dir(hf_gelu_patch) if name.endswith(("Error", "Warning")) and name != "UnknownNameError"]
    save("errors", [getattr(hf_gelu_patch, name)("said") for name in names])


if __name__ == "__main__":
    main()
