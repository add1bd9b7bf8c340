"""Images out of rows, and what an image processor makes of them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from torch import Tensor

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.tasks.base import Task, file_places

if TYPE_CHECKING:
    from PIL.Image import Image


AT_A_TIME = 64  # images that are processed together


def pixels_of(
    task: Task, data: datasets.Dataset, rows: Iterable[int], processor: Any = None, *, together: int = AT_A_TIME
) -> dict[int, dict[str, Any]]:
    """The images of the rows as an image processor makes them, by row: ``pixels``, tensors by name, and ``size``, the
    image's own height and width.

    Args:
        processor: None for the task's own.
        together: how many the processor is given at a time. One that fills images up to a size in common is given each
            by itself.
    """
    column = task.subject.input_column
    stored = stored_images(task, data, column, "--input_column")
    found: dict[int, dict[str, Any]] = {}
    held: dict[int, tuple[Image, str]] = {}

    def process() -> None:
        for row, pixels in _processed(task, task.processor if processor is None else processor, held).items():
            image, name = held[row]
            found[row] = {"row": row, "pixels": pixels, "size": (image.height, image.width), "shown": name}
        held.clear()

    for row in rows:
        value = stored[row][column] or {}
        name = value.get("path") or f"image in row {row + 1}"
        try:
            held[row] = (_image(value, task.subject.data), name)
        except Exception as error:  # pillow has many
            task.leave_out(row, f"holds no image that can be read ({name}: {first_line(error)})")
        if len(held) == together:
            process()
    process()
    return found


def stored_images(task: Task, data: datasets.Dataset, column: str | None, option: str) -> datasets.Dataset:
    """A column of images as it is stored, in bytes or by a path.

    Args:
        option: the one that names the column.

    Raises:
        EvaluationError: it holds no images.
    """
    try:
        return data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # pyarrow and datasets each have their own
        raise EvaluationError(
            f"{task.subject.data}: the column {column!r} does not hold images ({first_line(error)}). "
            f"Name the one that does with {option}."
        ) from error


def _processed(task: Task, processor: Any, held: Mapping[int, tuple[Image, str]]) -> dict[int, dict[str, Tensor]]:
    """What an image processor makes of some images, by row: of all together, or of each by itself where they come out
    at sizes of their own, or one is more than it can take."""

    def made(images: Sequence[Image]) -> list[dict[str, Tensor]]:
        tensors = {
            name: value
            for name, value in processor(images, return_tensors="pt").items()
            if isinstance(value, Tensor) and len(value) == len(images) and task.limits.takes(name)
        }
        return [{name: value[number] for name, value in tensors.items()} for number in range(len(images))]

    images = [image for image, _ in held.values()]
    try:
        return dict(zip(held, made(images), strict=True)) if images else {}
    except Exception:  # each image processor has its own
        found = {}
        for row, (image, name) in held.items():
            try:
                [found[row]] = made([image])
            except Exception as error:
                size = f"{image.width} × {image.height}"
                task.leave_out(
                    row, f"holds an image that the image processor cannot take ({name}, {size}: {first_line(error)})"
                )
        return found


def image_bytes(value: dict[str, Any], data: Path | str) -> bytes:
    """An image's file. A path is from here or from the data file.

    Raises:
        ValueError, OSError: there is none.
    """
    content, path = value.get("bytes"), Path(value.get("path") or "")
    if content is None:
        if value.get("path") is None:
            raise ValueError("there is none")
        content = next((one for one in file_places(path, data) if one.is_file()), path).read_bytes()
    return bytes(content)


def _image(value: dict[str, Any], data: Path | str) -> Image:
    """The picture, in RGB and the right way up."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(image_bytes(value, data))) as image:
        turned: Image.Image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
            turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))  # Pillow would cut off at 255
        elif image.mode in ("I", "F"):
            raise ValueError(f"its mode {image.mode} has no range that is known: save it with 8 or 16 bits a channel")
        return turned.convert("RGB")


def stacked_pixels(task: Task, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """What was made of their images, numbers in the model's dtype."""
    dtype = task.config.dtype if isinstance(task.config.dtype, torch.dtype) else torch.float32
    tensors = {name: torch.stack([e["pixels"][name] for e in examples]) for name in examples[0]["pixels"]}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}


def pixel_sizes(example: dict[str, Any]) -> tuple[Any, ...]:
    """Of what was made of an image: those of one batch have to be alike."""
    return tuple((name, tuple(value.shape)) for name, value in sorted(example.get("pixels", {}).items()))
