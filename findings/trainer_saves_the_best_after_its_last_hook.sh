#!/bin/sh
# transformers 5.24.0: with save_strategy="best" the Trainer decides to save after the last hook that callbacks get. Each
# of them finds should_save False, in on_step_end and in on_evaluate, and the next one is on_save, when all is written. So
# a callback that has to do something to the model before each save (merge adapters, take a patch off) is too late. With
# save_strategy="steps" on_step_end finds should_save True.
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    transformers==5.24.0 torch==2.13.0 accelerate==1.15.0 numpy==2.2.6
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'CODE'
from pathlib import Path

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

print("transformers", transformers.__version__, "torch", torch.__version__)
transformers.logging.set_verbosity_error()


def told(strategy):
    seen = []

    class Hooks(TrainerCallback):
        def on_event(self, event, control):
            seen.append((event, control.should_save, Path(strategy, "checkpoint-1/model.safetensors").is_file()))

        def on_step_end(self, args, state, control, **_):
            self.on_event("on_step_end", control)

        def on_log(self, args, state, control, **_):
            self.on_event("on_log", control)

        def on_evaluate(self, args, state, control, **_):
            self.on_event("on_evaluate", control)

        def on_save(self, args, state, control, **_):
            self.on_event("on_save", control)

    rows = [{"input_ids": row, "labels": row} for row in torch.arange(16).reshape(2, 8)]
    arguments = TrainingArguments(
        strategy, max_steps=1, report_to="none", disable_tqdm=True, use_cpu=True, logging_steps=1, save_steps=1,
        eval_strategy="steps", eval_steps=1, metric_for_best_model="loss", save_strategy=strategy,
    )
    ids = {"vocab_size": 32, "bos_token_id": 0, "eos_token_id": 1}
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=1, n_positions=16, **ids))
    Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[Hooks()]).train()
    return seen[: [event for event, *_ in seen].index("on_save") + 1]


for strategy in ("steps", "best"):
    *before, (event, _, written) = told(strategy)
    print(f"{strategy}: before the save {[(name, f'should_save {save}') for name, save, _ in before]}")
    assert event == "on_save" and written
    assert [name for name, *_ in before][0] == "on_step_end" and not any(there for *_, there in before)
    assert {save for _, save, _ in before} == {strategy == "steps"}
CODE
