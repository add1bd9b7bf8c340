#!/bin/sh
# datasets 5.2.0: ImageFolder gives the rows of the metadata files alone, once there is one below the folder. An image
# that it does not name is left out, and so is a whole class whose folder has no metadata file. Nothing is raised or
# logged; the labels of the folders are gone too. Without any metadata file all images are there, with their labels.
# Fails if any of that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    datasets==5.2.0 pillow numpy==2.2.6
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'CODE'
import logging
import warnings
from pathlib import Path

import datasets
from PIL import Image

print("datasets", datasets.__version__)
datasets.disable_progress_bars()
told = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: told.append(record.getMessage())
logging.getLogger("datasets").addHandler(handler)
warnings.simplefilter("error")
warnings.simplefilter("ignore", ResourceWarning)  # metadata.csv stays open until it is garbage


def made(name, metadata):
    for number, place in enumerate(["cat/a", "cat/b", "dog/c", "dog/d"]):
        path = Path(name, f"{place}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(path)
    for place, rows in metadata.items():
        Path(name, place, "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
    found = datasets.load_dataset("imagefolder", data_dir=name, split="train", cache_dir=f"{name}-cache")
    print(f"{len(found)} of 4 images, columns {found.column_names}, with metadata in {sorted(metadata) or 'no folder'}")
    return found


assert made("none", {}).to_dict()["label"] == [0, 0, 1, 1]
some = made("some", {".": ["cat/a.png,one", "dog/c.png,two"]})
assert some.column_names == ["image", "text"] and len(some) == 2
one = made("one", {"cat": ["a.png,one", "b.png,two"]})
assert one.column_names == ["image", "text"] and len(one) == 2
assert not told, told
CODE
