"""What other tools and a patch do to each other: each tool that is installed, on tiny models, patched before and after.

    python -m scripts.benchmarking.tools                              # with the tools of this environment
    python -m scripts.benchmarking.tools --python ~/tools/bin/python  # with those of another
    python -m scripts.benchmarking.tools --only copy.deepcopy pickle  # these alone: the others keep what was found

Each tool runs in a process of its own. What is found is in tools.json beside this, and as a table in tools.md. Exit
status 1 if anything is not as it would be on a model that was never patched, and nothing says so.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_RECORD = Path(__file__).with_name("tools.json")
_SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "RAY_DEDUP_LOGS": "0"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarking.tools",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--python", help="the interpreter of another environment, the one with the tools")
    parser.add_argument("--only", nargs="+", metavar="TOOL", help="these alone; the others keep what was found")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one tool")
    parser.add_argument("--output", type=Path, default=_RECORD, help="the table goes beside it, as .md")
    options = parser.parse_args(arguments)
    if options.python is not None:
        others = [*(["--only", *options.only] if options.only else []), "--timeout", str(options.timeout)]
        others += ["--output", str(options.output.resolve())]
        command = [options.python, "-m", "scripts.benchmarking.tools", *others]
        os.execve(options.python, command, {**os.environ, **_SETTINGS})
    os.environ.update(_SETTINGS)
    from scripts.benchmarking.tools import table
    from scripts.benchmarking.tools.catalogue import TOOLS

    names = options.only or [*TOOLS]
    if unknown := {*names} - {*TOOLS}:
        parser.error(f"no tool {', '.join(sorted(unknown))}; there are: {', '.join(TOOLS)}")
    _prepare()
    found: dict[str, Any] = {"environment": table.environment(), "tools": {}}
    if options.only and options.output.exists():  # what else is there stays
        found["tools"] = json.loads(options.output.read_text(encoding="utf-8"))["tools"]
    for number, name in enumerate(names, start=1):
        found["tools"][name] = one = in_its_own_process(name, options.timeout)
        print(f"{number} of {len(names)}  {name}: {table.summary(one)}", flush=True)
        for fault in table.faults(one):
            print(f"    {fault}", flush=True)
        options.output.write_text(table.record(found), encoding="utf-8")
    options.output.with_suffix(".md").write_text(table.document(found), encoding="utf-8")
    print(table.totals(found))
    return 1 if any(table.faults(one) for one in found["tools"].values()) else 0


def _prepare() -> None:
    """Import what every tool needs, once: the processes are forked from here."""
    import torch
    import transformers

    from hf_gelu_patch.implementations import aten
    from scripts.benchmarking.tools.subjects import SUBJECTS

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    aten.LARGE = 0  # so that what is written in place only where it is large is so here
    for subject in SUBJECTS.values():
        subject.build()
    gc.freeze()  # what there is now is no garbage of any tool's


def in_its_own_process(name: str, timeout: float) -> Mapping[str, Any]:
    """All that is found of one tool; what went wrong where it crashes or takes too long."""
    context = multiprocessing.get_context("fork")
    connection, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, theirs))
    process.start()
    theirs.close()
    try:
        if not connection.poll(timeout):
            return {"error": f"not done after {timeout:g} s"}
        found: Mapping[str, Any] = connection.recv()
    except EOFError:
        process.join()
        return {"error": f"crashed: exit status {process.exitcode}"}
    finally:
        if process.pid is not None and process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)  # and what the tool has started
        process.join()
    return found


def _work(name: str, connection: Connection) -> None:
    from scripts.benchmarking.tools.catalogue import TOOLS
    from scripts.benchmarking.tools.judging import examined

    os.setsid()
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as silence:
        os.chdir(folder)
        os.dup2(silence.fileno(), 1)
        os.dup2(silence.fileno(), 2)
        try:
            found = examined(TOOLS[name])
        except Exception as error:  # of this project: what a tool raises is a finding
            found = {"error": f"{type(error).__name__}: {error}"}
        connection.send(found)
        connection.close()
        signal.pause()  # to be killed, with whatever threads and processes the tool has started


if __name__ == "__main__":
    sys.exit(main())
