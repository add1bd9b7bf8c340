"""Python commands in processes of their own, forked from one that has imported torch and transformers already.

A new Python takes seconds to import them, and the tests start more than a hundred. Arguments, environment, folder and
output are the command's own, as they are in a new process. What is about start-up itself needs a new process: what is
imported, and variables that a library reads when it is imported (``HF_HOME``, ``OMP_NUM_THREADS``).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_INTERPRET = "TRITON_INTERPRET"
# None of the package's own: what it reads from the environment at import is the command's.
_IMPORTED = (
    "accelerate",
    "datasets",
    "evaluate",
    "rich.progress",
    "sklearn.metrics",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2",
)


def run(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run([sys.executable, *arguments], capture_output=True, text=True)``, without the wait."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        code = call(*arguments, stdout=outputs[0], stderr=outputs[1], cwd=cwd, env=env, timeout=timeout)
        return subprocess.CompletedProcess(arguments, code, *(path.read_text(encoding="utf-8") for path in outputs))


def call(
    *arguments: object,
    stdout: Path,
    stderr: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> int:
    """The exit status of ``python *arguments``, the number of a signal negated; its output goes into files."""
    environment = dict(os.environ if env is None else env)
    server = _server(environment.get(_INTERPRET) == "1")
    assert server.stdin is not None
    assert server.stdout is not None
    asked = {
        "arguments": [str(word) for word in arguments],
        "cwd": str(cwd or Path.cwd()),
        "env": environment,
        "outputs": [str(stdout), str(stderr)],
    }
    server.stdin.write(json.dumps(asked) + "\n")
    server.stdin.flush()
    process = int(server.stdout.readline())
    late = not select.select([server.stdout], [], [], timeout)[0]
    if late:
        os.kill(process, signal.SIGKILL)
    code = int(server.stdout.readline())
    if late:
        raise subprocess.TimeoutExpired(asked["arguments"], timeout)
    return code


@functools.cache
def _server(interpreted: bool) -> subprocess.Popen[str]:
    """Triton's own functions are interpreted or compiled from its import on, so there is a server for either."""
    environment = {key: value for key, value in os.environ.items() if key != _INTERPRET}
    if interpreted:
        environment[_INTERPRET] = "1"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    server = subprocess.Popen([sys.executable, __file__], env=environment, text=True, bufsize=1, **pipes)
    atexit.register(server.kill)
    return server


def _serve() -> None:
    """Fork once for each line, and print the process and its exit status."""
    for name in _IMPORTED:
        with contextlib.suppress(ImportError):  # datasets asks for more than the oldest transformers come with
            importlib.import_module(name)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            _become(**json.loads(line))
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def _become(arguments: list[str], cwd: str, env: dict[str, str], outputs: list[str]) -> None:
    for number, place in enumerate([os.devnull, *outputs]):
        os.dup2(os.open(place, os.O_RDWR | os.O_CREAT), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    code: Any = 0
    try:
        _execute(*arguments)
    except SystemExit as stopped:
        code = stopped.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code or 0)


def _execute(first: str, *rest: str) -> None:
    """What Python does with its arguments."""
    sys.argv = [first, *rest]
    sys.orig_argv = [sys.executable, first, *rest]
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path[0] = ""
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif first == "-m":
        sys.argv = list(rest)
        sys.path[0] = str(Path.cwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    _serve()
