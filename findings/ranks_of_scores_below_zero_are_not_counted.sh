#!/bin/sh
# torchmetrics 1.9.0 takes a relevant document whose score is 0 or less for one that is not relevant, when it computes
# the reciprocal rank: the first of two documents, with the scores -0.1 and -0.5 (a cross-encoder's logits, or cosines),
# gives 0.0 instead of 1.0, and with 1 added to both scores, which leaves the order as it is, 1.0. Nothing warns. nDCG
# of the same scores is 1.0 both times.
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torchmetrics==1.9.0 torch==2.13.0 numpy==2.2.6
cd "$folder"
venv/bin/python - <<'CODE'
import warnings

import torch
import torchmetrics
from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_reciprocal_rank
from torchmetrics.retrieval import RetrievalMRR

print("torchmetrics", torchmetrics.__version__, "torch", torch.__version__)
warnings.simplefilter("error")
right = torch.tensor([True, False])
found = []
for shift in (0.0, 1.0):
    scores = torch.tensor([-0.1, -0.5]) + shift
    metric = RetrievalMRR()
    metric.update(scores, right, indexes=torch.tensor([0, 0]))
    ranks = float(retrieval_reciprocal_rank(scores, right)), float(metric.compute())
    gain = float(retrieval_normalized_dcg(scores, right))
    print(f"scores {scores.tolist()}: reciprocal rank {ranks[0]}, RetrievalMRR {ranks[1]}, nDCG {gain}")
    found.append((*ranks, gain))
assert found == [(0.0, 0.0, 1.0), (1.0, 1.0, 1.0)]
CODE
