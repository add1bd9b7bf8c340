#!/bin/sh
# lm-evaluation-harness (lm_eval) 0.4.13: lm_eval.evaluate(lm, task_dict) takes tasks that are loaded, so that several
# models can be asked the same. With few-shot examples they are not: each task keeps one generator that draws the examples
# of one document after another and is never put back. The second model goes on where the first one stopped and is shown
# other prompts, without a word. Both results give the same settings and the same number of few-shot examples.
# Nor is the generator seeded by evaluate, so that random.seed before it changes nothing. task.set_fewshot_seed(seed)
# before each model mends it. simple_evaluate calls that itself, but with it too a document's examples depend on the
# documents before it: asked alone with samples={task: [5]}, the sixth is shown others than in the whole.
# Seen of 8 documents: "evaluate, second model: 0 prompts as for the first; with set_fewshot_seed before each: 8".
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    lm_eval==0.4.13 datasets==5.2.0 evaluate==0.4.6 numpy==2.2.6
cd "$folder"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 venv/bin/python - <<'CODE'
import json
import random
from importlib.metadata import version

import lm_eval
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

print("lm_eval", version("lm_eval"))


def write(name, numbers):
    with open(name, "w") as file:
        file.writelines(json.dumps({"number": number, "even": number % 2}) + "\n" for number in numbers)


write("train.jsonl", range(1000, 1400))
write("test.jsonl", range(8))
task = {
    "task": "parity",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "train.jsonl", "test": "test.jsonl"}},
    "output_type": "multiple_choice",
    "training_split": "train",
    "fewshot_split": "train",
    "test_split": "test",
    "num_fewshot": 3,
    "doc_to_text": "{{number}} is",
    "doc_to_choice": ["even", "odd"],
    "doc_to_target": "even",
    "metric_list": [{"metric": "acc"}],
}


class Always(LM):
    """Prefers one answer, and keeps the prompts that it was given."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.prompts = answer, []

    def loglikelihood(self, requests):
        for one in requests:
            if one.idx == 0:
                self.prompts.append(one.args[0])
        return [(0.0 if one.args[1].strip() == self.answer else -1.0, False) for one in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        raise NotImplementedError


def same(one, other):
    assert [prompt.split("\n\n")[-1] for prompt in one] == [prompt.split("\n\n")[-1] for prompt in other]
    assert all(prompt.count("\n\n") == 3 for prompt in (*one, *other))
    return sum(a == b for a, b in zip(one, other, strict=True))


def asked(tasks, answer, *, seed=None, random_seed=None):
    if seed is not None:
        for one in tasks["tasks"].values():
            one.set_fewshot_seed(seed)
    if random_seed is not None:
        random.seed(random_seed)
    model = Always(answer)
    results = lm_eval.evaluate(lm=model, task_dict=tasks, bootstrap_iters=0)
    return model.prompts, results


tasks = TaskManager().load([task])
first, first_results = asked(tasks, "even")
second, second_results = asked(tasks, "odd")
other = same(first, second)
assert first_results["n-shot"] == second_results["n-shot"] == {"parity": 3}
assert first_results["configs"] == second_results["configs"]
mended = same(asked(tasks, "even", seed=1234)[0], asked(tasks, "odd", seed=1234)[0])
print(f"evaluate, second model: {other} prompts as for the first; with set_fewshot_seed before each: {mended}")
assert (other, mended) == (0, 8)

seeded = [asked(TaskManager().load([task]), "even", random_seed=0)[0] for _ in range(2)]
print(f"evaluate, tasks loaded anew and random.seed(0) before each: {same(*seeded)}")
assert same(*seeded) == 0

models = [Always("even") for _ in range(3)]
chosen = (None, None, {"parity": [5]})
for model, samples in zip(models, chosen, strict=True):
    lm_eval.simple_evaluate(model, tasks=[task], samples=samples, bootstrap_iters=0)
whole, again, alone = (model.prompts for model in models)
print(f"simple_evaluate: second run {same(whole, again)} as in the first, document 5 alone {same(whole[5:6], alone)}")
assert same(whole, again) == 8
assert same(whole[5:6], alone) == 0
CODE
