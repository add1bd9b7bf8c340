"""What a command is, and the parser that is made of all of them."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_gelu_patch import __version__
from hf_gelu_patch.evaluation.options.declaring import GROUPS, Option

__all__ = ["Command", "Said", "parsed", "parser_of"]

Said = Mapping[str, Any]
"""What a command line said: values by the spelling of their options, without those that it does not mention."""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: what it is called by.
        help: what it is for, in the list of commands.
        description: the same in a sentence, above its own help.
        run: runs it, and gives the exit status.
        options: what it takes, by how it is spelled.
        epilog: examples, and what else stands below its help.
        resuming: of what a command line said, the options that go on with a run of it which was stopped; none where it
            can only begin anew.
    """

    name: str
    help: str
    description: str
    run: Callable[[Said], int]
    options: Mapping[str, Option] = field(default_factory=dict)
    epilog: str | None = None
    resuming: Callable[[Said], tuple[str, ...]] = lambda _: ()


def parser_of(commands: Iterable[Command]) -> argparse.ArgumentParser:
    """A parser that knows these commands. What it gives holds ``command``, and the options that were mentioned."""
    parser = argparse.ArgumentParser(
        prog="hf-gelu-patch", description="Patch the activations of Hugging Face models, and measure what that does."
    )
    parser.add_argument("--version", action="version", version=__version__)
    known = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in commands:
        one = known.add_parser(
            command.name,
            help=command.help,
            description=command.description,
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        one.set_defaults(command=command)
        for group in (None, *GROUPS):
            options = {name: option for name, option in command.options.items() if option.group == group}
            if options:
                _add(one if group is None else one.add_argument_group(group), options)
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """What a command line says. Where its command has no such option, the process exits with 2, as argparse does."""
    said, unknown = parser.parse_known_args(arguments)
    if unknown:
        command: Command = said.command
        name = unknown[0].partition("=")[0]
        spelled = [f"--{one}" for one, option in command.options.items() if not option.positional]
        near = difflib.get_close_matches(name, spelled, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        parser.exit(
            2,
            f"hf-gelu-patch {command.name}: error: unrecognized arguments: {' '.join(unknown)}.{hint} "
            f"'hf-gelu-patch {command.name} --help' has all options.\n",
        )
    return vars(said)


def _add(group: Any, options: Mapping[str, Option]) -> None:
    for name, option in options.items():
        how: dict[str, Any] = {"help": option.help if isinstance(option.help, str) else option.help()}
        if option.switch:
            how |= {"action": "store_true"}
        else:
            how |= {"type": option.read, "metavar": option.metavar, "choices": option.choices}
        if option.positional:
            group.add_argument(name, **how, **({"nargs": "+"} if option.repeated else {}))
        else:
            group.add_argument(f"--{name}", **how, **({"action": "append"} if option.repeated else {}))
