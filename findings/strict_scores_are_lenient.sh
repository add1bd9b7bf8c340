#!/bin/sh
# seqeval 1.2.2: mode="strict" makes classification_report strict, and leaves f1_score, precision_score and recall_score
# lenient, though the docstring of each promises strict scores with it: they heed it only where scheme= is given as well.
# So the same arguments give two F1 scores of the same tags. scheme=IOB2 without mode is ignored by all four. Nothing is
# raised and nothing is warned of. Only both together are strict everywhere.
# Seen where two of five entities begin with I- instead of B-: "{'mode': 'strict'}: f1_score 1.0, report 0.75".
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    seqeval==1.2.2 scikit-learn==1.7.2 numpy==2.2.6
cd "$folder"
venv/bin/python - <<'CODE'
import warnings
from importlib.metadata import version

from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from seqeval.scheme import IOB2

print("seqeval", version("seqeval"))
warnings.simplefilter("error")
right = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "I-LOC"], ["B-PER", "O", "B-LOC"]]
said = [["B-PER", "I-PER", "O", "I-LOC"], ["O", "B-LOC", "I-LOC"], ["B-PER", "O", "I-LOC"]]


def scores(**options):
    """Precision, recall and F1 of all entities, by their own functions and in the report."""
    apart = [round(float(score(right, said, **options)), 9) for score in (precision_score, recall_score, f1_score)]
    report = classification_report(right, said, output_dict=True, **options)["micro avg"]
    print(f"{options}: f1_score {apart[2]:.2g}, report {report['f1-score']:.2g}")
    return apart, [round(float(report[name]), 9) for name in ("precision", "recall", "f1-score")]


lenient, strict = [1.0, 1.0, 1.0], [1.0, 0.6, 0.75]
for options, apart, report in (
    ({}, lenient, lenient),
    ({"mode": "strict"}, lenient, strict),
    ({"scheme": IOB2}, lenient, lenient),
    ({"mode": "strict", "scheme": IOB2}, strict, strict),
):
    assert scores(**options) == (apart, report), options
CODE
