"""Python commands in processes of their own, forked from one that has imported torch and transformers already.

A new Python takes seconds to import them, and the tests start more than a hundred. Arguments, environment, folder and
output are the command's own, as they are in a new process. What is about start-up itself needs a new process: what is
imported, and variables that a library reads when it is imported (``HF_HOME``, ``OMP_NUM_THREADS``).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

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
    asked = {
        "arguments": [str(word) for word in arguments],
        "cwd": str(cwd or Path.cwd()),
        "env": environment,
        "outputs": [str(stdout), str(stderr)],
    }
    server = _server(environment.get(_INTERPRET) == "1")
    server.write(json.dumps({**asked, "timeout": timeout}) + "\n")
    server.flush()
    code, late = json.loads(server.readline())
    if late:
        raise subprocess.TimeoutExpired(asked["arguments"], timeout)
    status: int = code
    return status


@functools.cache
def _server(interpreted: bool) -> IO[str]:
    """Triton's own functions are interpreted or compiled from its import on, so there is a server for either.

    pytest's workers share them: the first that asks starts one, and it ends when the last one has.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    place = Path(tempfile.gettempdir(), f"hf_gelu_patch-tests-{run[:16]}-{interpreted:d}")
    connection = socket.socket(socket.AF_UNIX)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            connection.connect(str(place))
        except OSError:
            _start(place, interpreted)
            connection.connect(str(place))
    file = connection.makefile("rw", encoding="utf-8")
    atexit.register(connection.close)
    atexit.register(file.close)
    return file


def _start(place: Path, interpreted: bool) -> None:
    environment = {key: value for key, value in os.environ.items() if key != _INTERPRET}
    if interpreted:
        environment[_INTERPRET] = "1"
    subprocess.run([sys.executable, __file__, str(place)], env=environment, stdin=subprocess.DEVNULL, check=True)


def _serve(place: Path) -> None:
    """Fork once for each line, and answer with the exit status, and whether that took too long."""
    for name in _IMPORTED:
        with contextlib.suppress(ImportError):  # datasets asks for more than the oldest transformers come with
            importlib.import_module(name)
    place.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(place))
    listening.listen()
    if os.fork():
        os._exit(0)  # it can be connected to
    for number in (1, 2):  # nobody who reads what pytest says is to wait for this process
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no child is waited for here
    clients: dict[socket.socket, IO[str]] = {}
    while found := select.select([listening, *clients], [], [], None if clients else 5)[0]:
        for one in found:
            if one is listening:
                client, _ = listening.accept()
                clients[client] = client.makefile("rw", encoding="utf-8")
            elif line := clients[one].readline():
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    _answer(json.loads(line), clients[one], [listening, *clients])
            else:
                clients.pop(one).close()
                one.close()
    place.unlink()
    place.with_suffix(".lock").unlink(missing_ok=True)


def _answer(asked: dict[str, Any], client: IO[str], sockets: list[socket.socket]) -> None:
    timeout: float = asked.pop("timeout")
    process = os.fork()
    if process == 0:
        for one in sockets:
            os.close(one.fileno())
        _become(**asked)
    late = False

    def kill(*_: object) -> None:
        nonlocal late
        late = True
        os.kill(process, signal.SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    signal.setitimer(signal.ITIMER_REAL, 0)
    with contextlib.suppress(BrokenPipeError):  # nobody waits any more
        client.write(json.dumps([code, late]) + "\n")
        client.flush()
    os._exit(0)


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
    _serve(Path(sys.argv[1]))
