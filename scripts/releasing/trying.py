"""Five tiny models, patched and put back, by the package that is installed: run in an environment of its own.

``python -I trying.py FOLDER`` knows nothing of the repository. It writes ``FOLDER/tried.json`` and, as ``FOLDER/gpt2``,
a checkpoint for the command line. In the record, ``models`` says for each model and implementation how many sites were
patched and how far the outputs moved, relative to their scale; ``problems`` is empty where everything held.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

import hf_gelu_patch

MOST = 1e-5
"""How far outputs may move, relative to their scale: float32 and five layers at most."""

_SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_IDS = torch.arange(48).reshape(2, 24) % 60


def _built() -> dict[str, tuple[torch.nn.Module, dict[str, torch.Tensor]]]:
    """Each model with an input: exact GELU, its tanh form, T5's gated form, exact GELU on images, gated SiLU."""
    made = {
        "bert": transformers.BertForSequenceClassification(transformers.BertConfig(**_SIZE, vocab_size=64)),
        "gpt2": transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32, bos_token_id=0, eos_token_id=0
            )
        ),
        "t5": transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=64, feed_forward_proj="gated-gelu"
            )
        ),
        "vit": transformers.ViTForImageClassification(transformers.ViTConfig(**_SIZE, image_size=16, patch_size=4)),
        "llama": transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**_SIZE, vocab_size=64, num_key_value_heads=2, max_position_embeddings=32)
        ),
    }
    inputs = {name: {"input_ids": _IDS} for name in made}
    inputs["t5"]["decoder_input_ids"] = _IDS[:, :8]
    inputs["vit"] = {"pixel_values": torch.randn(2, 3, 16, 16)}
    return {name: (model.eval(), inputs[name]) for name, model in made.items()}


def _tried(model: torch.nn.Module, inputs: dict[str, torch.Tensor], **options: Any) -> tuple[dict[str, Any], list[str]]:
    """What a patch did to a model and what it left behind, and what of that must not be."""

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return model(**inputs).logits

    before, objects = logits(), dict(model.named_modules())
    report = hf_gelu_patch.patch(model, **options)
    moved = float((logits() - before).abs().max() / before.abs().max())
    if report.changed:
        hf_gelu_patch.unpatch(model)
    after = dict(model.named_modules())
    problems = []
    if not moved <= MOST:  # nor where it is nan
        problems.append(f"outputs moved by {moved:.1e} of their scale, more than {MOST:.0e}")
    if not torch.equal(logits(), before):
        problems.append("undone, outputs are not those of before to the bit")
    if objects.keys() != after.keys() or any(objects[name] is not after[name] for name in objects):
        problems.append("undone, modules are not those of before")
    if options and not report.changed:
        problems.append(f"nothing was patched: {report}")
    return {"sites": len(report.sites), "patched": len(report.changed), "moved": moved}, problems


def _everything(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", hf_gelu_patch.NothingPatchedWarning)  # auto, on a processor that was measured
    packages = ("hf-gelu-patch", "torch", "transformers")
    found: dict[str, Any] = {
        "versions": {name: importlib.metadata.version(name) for name in packages}
        | {"Python": platform.python_version()},
        "models": {},
        "problems": [],
    }
    if not Path(hf_gelu_patch.__file__).is_relative_to(sys.prefix):
        found["problems"].append(f"{hf_gelu_patch.__file__} was imported, and not what is installed in {sys.prefix}")
    if hf_gelu_patch.__version__ != found["versions"]["hf-gelu-patch"]:
        found["problems"].append(f"it says that it is {hf_gelu_patch.__version__}")
    for name, (model, inputs) in _built().items():
        found["models"][name] = {}
        for implementation in (None, "aten", "cpp"):
            options = {} if implementation is None else {"implementation": implementation}
            try:
                one, problems = _tried(model, inputs, **options)
            except hf_gelu_patch.ImplementationUnavailableError as error:
                one, problems = {"unavailable": str(error).splitlines()[0]}, []
            found["models"][name][implementation or "auto"] = one
            found["problems"] += [f"{name}, {implementation or 'auto'}: {problem}" for problem in problems]
        if name == "gpt2":
            model.save_pretrained(folder / name)
    return found


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "tried.json").write_text(json.dumps(_everything(place)), encoding="utf-8")
