#!/bin/sh
# lm-evaluation-harness (lm_eval) 0.4.13: --log_samples writes a numpy array in a sample as Python prints it, inside a JSON
# string. So of the metric brier_score, whose value for a document is the right answer and the probability of each choice,
# the file holds "[0.35237608 0.22644217 …]": text that is no list in JSON or in Python, of 8 digits at most, and beyond
# 1000 choices of the first and last three, with "..." for all others. The score in the results cannot be had again from
# these values. Nothing is raised or warned of. filtered_resps keeps the log-likelihoods whole (as text, one by one), and
# their softmax gives the score.
# Seen with 1200 choices: "[0.00073534 0.00097814 0.00108202 ... 0.00127352 0.00084532 0.00052442]".
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    lm_eval==0.4.13 datasets==5.2.0 evaluate==0.4.6 numpy==2.2.6
cd "$folder"
for choices in 4 1200; do
    for number in 0 1 2; do
        echo "{\"number\": $number}"
    done > "of_$choices.jsonl"
    cat > "of_$choices.yaml" <<TASK
task: of_$choices
dataset_path: json
dataset_kwargs: {data_files: {test: of_$choices.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "The number {{number}} is"
doc_to_choice: "{{range($choices) | map('string') | list}}"
doc_to_target: number
metric_list: [{metric: acc}, {metric: brier_score}]
TASK
done
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 venv/bin/lm_eval run \
    --model dummy --tasks of_4,of_1200 --include_path . --log_samples --output_path out > out.txt 2>&1 || {
    cat out.txt
    exit 1
}
venv/bin/python - <<'CODE'
import ast
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np

print("lm_eval", version("lm_eval"), "numpy", np.__version__)
assert "array" not in Path("out.txt").read_text()
(results,) = Path("out").rglob("results_*.json")
for choices in (4, 1200):
    told = json.loads(results.read_text())["results"][f"of_{choices}"]["brier_score,none"]
    (file,) = Path("out").rglob(f"samples_of_{choices}_*.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    assert [one["brier_score"][0] for one in samples] == [0, 1, 2]
    texts = [one["brier_score"][1] for one in samples]
    print(f"{choices} choices: {texts[0]}")
    for text in texts:
        assert isinstance(text, str)
        for read in (json.loads, ast.literal_eval):
            try:
                read(text)
            except (ValueError, SyntaxError):
                continue
            raise AssertionError(f"{read} reads {text}")

    def score(probabilities):
        return np.square(np.array(probabilities) - np.eye(choices)[[0, 1, 2]]).sum(axis=1).mean()

    words = [text.strip("[]").split() for text in texts]
    if choices == 1200:
        assert all(len(one) == 7 and one[3] == "..." for one in words)
    else:
        rounded = score([[float(word) for word in one] for one in words])
        print(f"results {told!r}, from what is logged {float(rounded)!r}")
        assert 1e-12 < abs(rounded - told) < 1e-6
    logs = np.array([[float(said) for said, _ in one["filtered_resps"]] for one in samples])
    whole = score(np.exp(logs) / np.exp(logs).sum(axis=1, keepdims=True))
    assert abs(whole - told) < 1e-12
CODE
