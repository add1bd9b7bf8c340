"""The command line, ``hf-gelu-patch``: each command is a module here, with a record that says what it takes.

What is heavy is imported once the arguments are known to make sense.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

from hf_gelu_patch.cli import audit, compare, evaluate, finetune, implementations, profile, report, sites, tasks
from hf_gelu_patch.cli.command import parsed, parser_of
from hf_gelu_patch.cli.config_file import with_config
from hf_gelu_patch.cli.interruption import INTERRUPTED, how_to_go_on, told_when_terminated
from hf_gelu_patch.errors import PatchError
from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.reference import ReferenceUnavailableError

__all__ = ["main"]

_COMMANDS = (
    evaluate.COMMAND,
    compare.COMMAND,
    finetune.COMMAND,
    profile.COMMAND,
    report.COMMAND,
    tasks.COMMAND,
    implementations.COMMAND,
    sites.COMMAND,
    audit.COMMAND,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: those of the process if None.

    Returns:
        The exit status: 0; or 1 where what was named cannot be used, 2 for arguments that make no sense (as argparse
        exits with by itself), 3 where a variant's implementation is wrong or an audit finds a contradiction, and 130
        where it was interrupted.
    """
    given = _normalised(sys.argv[1:] if arguments is None else arguments)
    parser = parser_of(_COMMANDS)
    going_on = ""
    try:
        said = parsed(parser, given)
        command = said["command"]
        if (path := said.get("config")) is not None:
            said = parsed(parser, with_config(path, command.options, given))
        going_on = how_to_go_on(given, command.resuming(said))
        with told_when_terminated(f"{INTERRUPTED}{going_on}" if going_on else ""):
            status: int = command.run(said)
    except (EvaluationError, PatchError, ReferenceUnavailableError) as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        print(f"{INTERRUPTED}{going_on}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # nobody thought of it: whoever mends it needs the traceback, whoever reads it does not
        with tempfile.NamedTemporaryFile("w", prefix="hf-gelu-patch-", suffix=".txt", delete=False) as file:
            file.writelines(traceback.format_exception(error))
        return _failed(
            f"{type(error).__name__}: {first_line(error)}\nThis was not foreseen. Please report it with its traceback, "
            f"which is in {file.name}."
        )
    return status


def _failed(said: str) -> int:
    """Say why, and from which process; the exit status."""
    rank = os.environ.get("RANK", "0")
    where = f" (process {rank})" if rank != "0" else ""
    print(f"hf-gelu-patch: error{where}: {said}", file=sys.stderr)
    return 1


def _normalised(arguments: Sequence[str]) -> list[str]:
    """``--output-dir`` as ``--output_dir``; what stands behind a ``=`` stays as it is."""
    spelled = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        spelled.append(name + equals + value)
    return spelled
