"""Evaluations in processes that can be killed: forked, one after the other, from one that has imported everything."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import socket
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tiny_classifier import WORDS

from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.run.result import Result
from hf_gelu_patch.implementations.measured import processors

processors.cpu = lambda: "CPU of the tests"  # unmeasured, as in the tests' own process

RESULT = "result.json"
PRELOADED = (
    "evaluation_worker",
    "accelerate",
    "hf_gelu_patch.evaluation.tasks.classification",
    "scipy.stats",
    "transformers.models.bert.modeling_bert",
)
"""What each process would import by itself, in a second."""


def write_rows(path: Path, count: int) -> Path:
    """So many texts of 1 to 19 words, and labels."""
    generator = random.Random(count)
    lines = [
        f"{' '.join(generator.choices(WORDS[2:], k=generator.randint(1, 19)))},{generator.choice(['no', 'yes'])}"
        for _ in range(count)
    ]
    path.write_text("\n".join(["text,label", *lines, ""]))
    return path


def untimed(result: Result) -> dict[str, Any]:
    """All of a result that does not depend on the clock, nor on which process it was, as plain data."""
    found = {
        "unpatched": result.unpatched,
        "described": result.described,
        "batch_size": result.batch_size,
        "records": result.records,
        "variants": [
            {
                "variant": vars(one.variant),
                "quality": dataclasses.asdict(one.quality),
                "drift": dataclasses.asdict(one.drift),
                "layers": [vars(layer) for layer in one.layers],
                "patch": one.patch.to_dict(),
                "wrong": one.wrong,
            }
            for one in result.variants
        ],
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def work(
    model: str, data: str, folder: str, settings: Settings, rank: int, world: int, port: int, machines: bool
) -> None:
    """One process of an evaluation; each writes what came out into a file of its own."""
    if world > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK="0" if machines else str(rank),
            WORLD_SIZE=str(world),
            LOCAL_WORLD_SIZE="1" if machines else str(world),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    import torch
    from accelerate import Accelerator

    from hf_gelu_patch.evaluation.loading.subjects import subject
    from hf_gelu_patch.evaluation.run import evaluate_subject

    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == world
    found = evaluate_subject(subject(model, validation_file=data), settings, accelerator, folder=Path(folder))
    (Path(folder) / f"{rank}.{RESULT}").write_text(json.dumps(untimed(found)))
    accelerator.end_training()


def start(model: Path, data: Path, folders: Path | Sequence[Path], settings: Settings, world: int) -> list[BaseProcess]:
    """The processes of an evaluation, started; each on a machine of its own where each has a folder of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes: list[BaseProcess] = []
    for rank in range(world):
        machines = not isinstance(folders, Path)
        folder = folders[rank] if machines else folders
        arguments = (str(model), str(data), str(folder), settings, rank, world, port, machines)
        process = context.Process(target=work, args=arguments, daemon=True)
        process.start()
        processes.append(process)
    return processes


def kill_when(processes: Sequence[BaseProcess], folder: Path, lines: int) -> bool:
    """Kill them all once there are so many lines in the records; whether they were still running by then."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and all(process.is_alive() for process in processes):
        if written(folder) >= lines:
            break
        time.sleep(0.0005)
    alive = all(process.is_alive() for process in processes)
    for process in processes:
        process.kill()
    for process in processes:
        process.join(30)
    return alive


def written(folder: Path) -> int:
    """Lines in the records, whole ones, without the first of each file."""
    counts = [path.read_bytes().count(b"\n") for path in folder.rglob("*.jsonl")]
    return sum(counts) - len(counts)


def finish(processes: Sequence[BaseProcess], folders: Path | Sequence[Path]) -> dict[str, Any]:
    """What came out, which has to be the same in all of them."""
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    places = [folders] * len(processes) if isinstance(folders, Path) else folders
    found = [json.loads((folder / f"{rank}.{RESULT}").read_text()) for rank, folder in enumerate(places)]
    assert all(one == found[0] for one in found)
    first: dict[str, Any] = found[0]
    return first
