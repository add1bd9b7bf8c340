#!/bin/sh
# liger-kernel 0.8.5 with transformers 5.24.0: its table of supported model types, by which
# Trainer(use_liger_kernel=True) goes, names seven whose function ends in an ImportError, whatever model it is given. They
# import output classes that liger-kernel defines only where transformers has classes of certain names, and transformers
# 5.24 has other names. Nothing tells before: its metadata ask for no transformers, and importing it raises nothing.
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    liger-kernel==0.8.5 torch==2.13.0 triton==3.7.1 transformers==5.24.0 numpy==2.2.6
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'CODE'
from importlib.metadata import requires, version

from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

print(*(f"{name} {version(name)}" for name in ("liger-kernel", "torch", "transformers")))
assert not [line for line in requires("liger-kernel") if line.startswith("transformers") and "extra" not in line]
failed = {}
for kind, function in MODEL_TYPE_TO_APPLY_LIGER_FN.items():
    try:
        function()
    except ImportError as error:
        failed[kind] = str(error).partition(" from ")[0]
print(len(MODEL_TYPE_TO_APPLY_LIGER_FN), "types;", *(f"\n  {kind}: {why}" for kind, why in failed.items()))
assert sorted(failed) == [
    "glm4v_moe", "qwen2_5_vl", "qwen2_5_vl_text", "qwen2_vl", "qwen2_vl_text", "qwen3_vl", "qwen3_vl_text"
]
CODE
