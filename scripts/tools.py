#!/usr/bin/env python
"""What other tools and a patch do to each other: each tool that is installed, on tiny models, patched before and after.

    python scripts/tools.py                              # with the tools of this environment
    python scripts/tools.py --python ~/tools/bin/python  # with those of another
    python scripts/tools.py --only copy.deepcopy pickle  # these alone: the others keep what was found before

Each tool runs in a process of its own. What is found is in scripts/tools.json, and as a table in scripts/tools.md. Exit
status 1 if anything is not as it would be on a model that was never patched, and nothing says so.
"""

# ruff: noqa: E402 (what is set first has to be set before the imports that read it)

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

# Nothing but the package that holds the tools is looked for in this folder: its evaluate.py and kernels.py are not the
# libraries of those names, for which transformers asks.
SCRIPTS = Path(__file__).resolve().parent
sys.path[:] = [str(SCRIPTS.parent), *(path for path in sys.path if Path(path or ".").resolve() != SCRIPTS)]
sys.path.append(str(SCRIPTS))
import toolbox  # noqa: F401

sys.path.remove(str(SCRIPTS))

_SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "RAY_DEDUP_LOGS": "0"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--python", help="the interpreter of another environment, the one with the tools")
    parser.add_argument("--only", nargs="+", metavar="TOOL", help="these alone; the others keep what was found")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one tool")
    parser.add_argument("--output", type=Path, default=SCRIPTS / "tools.json", help="the table goes beside it, as .md")
    options = parser.parse_args(arguments)
    if options.python is not None:
        others = [*(["--only", *options.only] if options.only else []), "--timeout", str(options.timeout)]
        command = [options.python, str(SCRIPTS / "tools.py"), *others, "--output", str(options.output.resolve())]
        os.execve(options.python, command, {**os.environ, **_SETTINGS})
    os.environ.update(_SETTINGS)
    from toolbox import table
    from toolbox.catalogue import TOOLS

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
    from toolbox.subjects import SUBJECTS

    from hf_gelu_patch.implementations import aten

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
    from toolbox.catalogue import TOOLS
    from toolbox.judging import examined

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
