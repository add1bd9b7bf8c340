#!/usr/bin/env python
"""What a patch reaches, and what it moves, in a tiny random model of every type that transformers knows.

    python scripts/coverage.py --output coverage.jsonl --table coverage.md
    python scripts/coverage.py gpt2 llama --output two.jsonl --no-resume

One line of JSON a type, written as soon as it is known: a run that was cut short goes on where it stopped. A type
that crashes or hangs costs its own row only. Exit status 1 if anything that must hold does not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

# Python looks in a script's own folder first, where evaluate.py and this file would pass for libraries.
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tqdm.auto import tqdm  # noqa: E402

from hf_gelu_patch.evaluation.coverage import Coverage, cover, table, totals  # noqa: E402
from hf_gelu_patch.evaluation.tiny import model_types  # noqa: E402

_TYPES_PER_PROCESS = 100  # each leaves its modules imported


@dataclass
class _Worker:
    """A process that covers one type after the other, and the one it is at."""

    process: BaseProcess
    connection: Connection
    served: int = 0
    model_type: str | None = None
    deadline: float = 0.0

    @classmethod
    def start(cls) -> _Worker:
        context = multiprocessing.get_context("spawn")
        connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return cls(process, connection)

    def give(self, model_type: str, seconds: float) -> None:
        self.connection.send(model_type)
        self.model_type, self.deadline = model_type, time.monotonic() + seconds
        self.served += 1

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def _serve(connection: Connection) -> None:
    import torch
    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    while True:
        try:
            model_type = connection.recv()
        except EOFError:
            return
        connection.send(cover(model_type).to_dict())


def cover_all(types: Iterable[str], *, processes: int, timeout: float) -> Iterator[Coverage]:
    """A row for each type, as they are done."""
    waiting = deque(types)
    workers: list[_Worker] = []
    try:
        while waiting or workers:
            while waiting and len(workers) < processes:
                workers.append(_Worker.start())
                workers[-1].give(waiting.popleft(), timeout)
            soonest = min(worker.deadline for worker in workers)
            ready = wait([worker.connection for worker in workers], max(0.0, soonest - time.monotonic()))
            for worker in [*workers]:
                assert worker.model_type is not None
                row = None
                if worker.connection in ready:
                    try:
                        row = Coverage.from_dict(worker.connection.recv())
                    except (EOFError, OSError):
                        worker.process.join()
                        row = Coverage(worker.model_type, error=f"crashed: exit status {worker.process.exitcode}")
                elif time.monotonic() > worker.deadline:
                    row = Coverage(worker.model_type, error=f"not done after {timeout:g} s")
                if row is None:
                    continue
                yield row
                healthy = worker.process.is_alive() and worker.connection in ready
                if healthy and waiting and worker.served < _TYPES_PER_PROCESS:
                    worker.give(waiting.popleft(), timeout)
                else:
                    workers.remove(worker)
                    worker.stop()
    finally:
        for worker in workers:
            worker.stop()


def read(path: Path) -> dict[str, Coverage]:
    """The rows of an earlier run; a line cut short is left out."""
    rows: dict[str, Coverage] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = Coverage.from_dict(json.loads(line))
        except json.JSONDecodeError:
            continue
        rows[row.model_type] = row
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("types", nargs="*", metavar="TYPE", help="model types such as bert; none means all")
    parser.add_argument("--output", type=Path, default=Path("coverage.jsonl"), help="the rows, one line each")
    parser.add_argument("--table", type=Path, help="Markdown file for the totals and the table")
    parser.add_argument("--processes", type=int, default=1, help="how many run side by side")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds for one type")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="skip the types that the output has; --no-resume writes it anew",
    )
    options = parser.parse_args(arguments)
    known = model_types()
    if unknown := sorted({*options.types} - {*known}):
        parser.error(f"no model type {', '.join(unknown)}; there are {len(known)}, such as {', '.join(known[:3])}")
    if options.processes < 1:
        parser.error("--processes takes 1 or more")
    types = options.types or known
    rows = read(options.output) if options.resume else {}
    todo = [one for one in dict.fromkeys(types) if one not in rows]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with (
        options.output.open("a" if options.resume else "w", encoding="utf-8") as file,
        tqdm(total=len(todo), unit="type", disable=None) as bar,
    ):
        if rows and not options.output.read_text(encoding="utf-8").endswith("\n"):
            file.write("\n")  # after a line that was cut short
        for done, row in enumerate(cover_all(todo, processes=options.processes, timeout=options.timeout), start=1):
            rows[row.model_type] = row
            file.write(json.dumps(row.to_dict(), allow_nan=False) + "\n")
            file.flush()
            bar.update()
            for problem in row.problems:
                tqdm.write(f"{row.model_type}: {problem}", file=sys.stderr)
            if bar.disable and (done % 50 == 0 or done == len(todo)):
                print(f"{done} of {len(todo)}", file=sys.stderr, flush=True)
    asked = sorted((rows[one] for one in types), key=lambda row: row.model_type)
    summary = totals(asked)
    print(summary)
    if options.table is not None:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(f"{summary}\n\n{table(asked)}", encoding="utf-8")
    return 1 if any(row.problems for row in asked) else 0


if __name__ == "__main__":
    sys.exit(main())
