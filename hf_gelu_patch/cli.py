"""The command line, ``hf-gelu-patch``. What is heavy is imported once the arguments are known to make sense."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gelu_patch import __version__
from hf_gelu_patch.errors import PatchError
from hf_gelu_patch.evaluation import report
from hf_gelu_patch.evaluation.loading import TASKS, EvaluationError, Subject, data_file, locate, subject
from hf_gelu_patch.evaluation.reference import REFERENCES, ReferenceUnavailableError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hf_gelu_patch.evaluation.run import Progress

__all__ = ["main"]

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_EVALUATE_EXAMPLES = f"""\
examples:
  hf-gelu-patch evaluate
      the reference models ({", ".join(REFERENCES)}) on their own data
  hf-gelu-patch evaluate --model_name_or_path gpt2 --activation silu
      one of them with another function
  hf-gelu-patch evaluate --model_name_or_path ./my-model --task text-classification --validation_file test.csv
      a model and data of your own
  torchrun --standalone --nproc_per_node 2 scripts/evaluate.py --num_processes 2
      two processes, on CPU too; the same quality figures

Options may be spelled with dashes as well: --output-dir.
"""
_SITES_EXAMPLES = """\
examples:
  hf-gelu-patch sites gpt2 --diff
  hf-gelu-patch sites ./my-model --activation silu --include 'transformer.h.0.*'
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: those of the process if None.

    Returns:
        The exit status: 0, or 1 where what was named cannot be used, and 2 for arguments that make no sense (as
        argparse exits with by itself).
    """
    given = _normalised(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        status: int = options.command(options)
    except (EvaluationError, PatchError, ReferenceUnavailableError) as error:
        rank = os.environ.get("RANK", "0")
        where = f" (process {rank})" if rank != "0" else ""
        print(f"hf-gelu-patch: error{where}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hf-gelu-patch: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _normalised(arguments: Sequence[str]) -> list[str]:
    """``--output-dir`` as ``--output_dir``; what stands behind a ``=`` stays as it is."""
    spelled = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        spelled.append(name + equals + value)
    return spelled


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-gelu-patch", description="Patch the activations of Hugging Face models, and measure what that does."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    evaluate = commands.add_parser(
        "evaluate",
        help="quality, changed answers and speed of models before and after a patch",
        description="Measure models before and after a patch: quality on the same examples, answers that changed, "
        "and speed against the noise of the machine.",
        epilog=_EVALUATE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    evaluate.set_defaults(command=_evaluate)
    what = evaluate.add_argument_group("models and data")
    what.add_argument(
        "--model_name_or_path",
        action="append",
        metavar="MODEL",
        help=f"a reference model ({', '.join(REFERENCES)}), a checkpoint folder, or an id on the hub; may be repeated "
        "(default: the reference models)",
    )
    what.add_argument("--task", metavar="TASK", help=f"{', '.join(TASKS)} (default: as the model's config tells)")
    what.add_argument(
        "--validation_file", metavar="FILE", help="csv, json, jsonl, parquet or txt (default: the model's)"
    )
    what.add_argument("--input_column", metavar="NAME", help="what the model is given (default: text, image or source)")
    what.add_argument("--target_column", metavar="NAME", help="the right answer (default: label or target)")
    what.add_argument(
        "--limit", type=_positive, metavar="N", help="use the first N rows, or blocks of text (default: all)"
    )
    what.add_argument(
        "--max_length", type=_positive, metavar="N", help="tokens in an example (default: the model's, at most 512)"
    )
    _add_loading(what)
    what.add_argument("--dtype", choices=_DTYPES, default="auto", help="of the weights (default: the checkpoint's)")
    what.add_argument("--attn_implementation", metavar="NAME", help="eager, sdpa, … (default: transformers' choice)")
    _add_patching(evaluate.add_argument_group("patch"))
    how = evaluate.add_argument_group("measuring")
    how.add_argument(
        "--per_device_eval_batch_size",
        type=_positive,
        metavar="N",
        help="examples in a batch (default: 32, fewer for large vocabularies)",
    )
    how.add_argument(
        "--timing_seconds",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="time each variant for so long at least, and all together for six times that at most (default: 10)",
    )
    how.add_argument("--seed", type=int, default=0, metavar="N", help="of everything drawn at random (default: 0)")
    how.add_argument(
        "--num_threads",
        type=_positive,
        default=1,
        metavar="N",
        help="CPU threads of each process (default: 1: on shared cores a second one often costs time, and rounding "
        "depends on the number)",
    )
    how.add_argument(
        "--num_processes",
        type=_positive,
        metavar="N",
        help="abort unless so many processes were started, which torchrun or accelerate launch does",
    )
    how.add_argument(
        "--output_dir", type=Path, default=Path("results"), metavar="FOLDER", help="for results (default: results)"
    )

    sites = commands.add_parser(
        "sites",
        help="what a patch would do to a model, site by site, without loading its weights",
        description="Print every activation site of a model, what a patch would do there, and every reason to leave "
        "one alone. The weights are not loaded.",
        epilog=_SITES_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    sites.set_defaults(command=_sites)
    sites.add_argument("model_name_or_path", metavar="MODEL", help="a reference model, a checkpoint folder, a hub id")
    sites.add_argument("--diff", action="store_true", help="print each forward that a patch would rewrite, as a diff")
    _add_loading(sites)
    _add_patching(sites)
    return parser


def _add_loading(group: Any) -> None:
    group.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    group.add_argument("--allow_download", action="store_true", help="fetch models from the hub that are not here")


def _add_patching(group: Any) -> None:
    group.add_argument(
        "--implementation",
        default="auto",
        metavar="NAME",
        help="auto, aten, triton, epilogue or eager (default: auto: aten, where it gains something)",
    )
    group.add_argument("--activation", metavar="NAME", help="another function to swap in (default: keep each)")
    group.add_argument("--include", action="append", metavar="PATTERN", help="patch only such sites; may be repeated")
    group.add_argument("--exclude", action="append", metavar="PATTERN", help="leave such sites alone; may be repeated")


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few: it takes 1 or more")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} seconds: it takes more than none")
    return number


def _check_names(options: argparse.Namespace) -> None:
    """Names of activations and implementations, before anything is loaded."""
    from hf_gelu_patch.activations import get_activation
    from hf_gelu_patch.implementations import get_implementation

    if options.implementation != "auto":
        get_implementation(options.implementation)
    if options.activation is not None:
        get_activation(options.activation)


def _prepare_libraries(options: argparse.Namespace) -> None:
    """The libraries' own settings, before they are imported."""
    if not options.allow_download:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


# ---------------------------------------------------------------------------------------------------------- evaluate


def _evaluate(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    _prepare_libraries(options)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    wanted = options.num_processes or _launched_for()
    if wanted not in (None, started):
        raise EvaluationError(_mismatch(started, wanted))
    report.writable(options.output_dir)
    # What is the user's own is looked for first, which takes no time; then come the names, which take importing torch;
    # then the reference models, which may have to be unpacked.
    if options.validation_file is not None:
        data_file(options.validation_file)
    named = options.model_name_or_path or REFERENCES
    own = {name: _subject(name, options) for name in named if name not in REFERENCES}
    _check_names(options)
    subjects = [own.get(name) or _subject(name, options) for name in named]
    try:
        from hf_gelu_patch.evaluation.run import Settings, evaluate_subject
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"evaluating needs {error.name}, which is not installed: pip install 'hf-gelu-patch[evaluation]'"
        ) from error
    settings = Settings(
        implementation=options.implementation,
        activation=options.activation,
        include=tuple(options.include) if options.include else None,
        exclude=tuple(options.exclude) if options.exclude else None,
        limit=options.limit,
        batch_size=options.per_device_eval_batch_size,
        seed=options.seed,
        dtype=options.dtype,
        attn_implementation=options.attn_implementation,
        trust_remote_code=options.trust_remote_code,
        min_seconds=options.timing_seconds,
        max_seconds=6 * options.timing_seconds,
    )
    accelerator = _accelerator(started, options.num_threads)
    try:
        with _progress(accelerator.is_main_process, len(subjects)) as progress:
            results = [evaluate_subject(one, settings, accelerator, progress(one.name)) for one in subjects]
        if accelerator.is_main_process:
            from rich.console import Console

            surroundings = report.environment(
                processes=accelerator.num_processes, device=str(accelerator.device), command=sys.argv
            )
            console = Console()
            report.print_results(results, console)
            paths = report.save(results, settings, surroundings, options.output_dir)
            print(f"\n{time.perf_counter() - start:.0f} s; written to {' and '.join(map(str, paths))}")
    finally:
        accelerator.end_training()
    return 0


def _subject(name: str, options: argparse.Namespace) -> Subject:
    return subject(
        name,
        task=options.task,
        validation_file=options.validation_file,
        input_column=options.input_column,
        target_column=options.target_column,
        max_length=options.max_length,
        allow_download=options.allow_download,
    )


def _launched_for() -> int | None:
    """How many processes ``accelerate launch`` was asked for, on its command line or in its config; None where it is
    not what started this one. Asked for several on a CPU, it starts one and does not say so."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or "WORLD_SIZE" in os.environ:
        return None
    import psutil  # type: ignore[import-untyped]
    import yaml  # type: ignore[import-untyped]
    from accelerate.commands.config import default_config_file

    launcher = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    launcher.add_argument("--num_processes", "--num-processes", type=int)
    launcher.add_argument("--config_file", "--config-file", default=default_config_file)
    given = psutil.Process(os.getppid()).cmdline()
    script = next((number for number, word in enumerate(given) if word.endswith("evaluate.py")), len(given))
    asked, _ = launcher.parse_known_args(given[:script])
    if asked.num_processes is None and Path(asked.config_file).is_file():
        config = yaml.safe_load(Path(asked.config_file).read_text(encoding="utf-8")) or {}
        return int(config.get("num_processes", 1))
    return int(asked.num_processes or 1)


def _mismatch(started: int, wanted: int) -> str:
    return (
        f"{started} {'process was' if started == 1 else 'processes were'} started, and {wanted} asked for. "
        f"Start them with: torchrun --standalone --nproc_per_node {wanted} scripts/evaluate.py "
        f"--num_processes {wanted} …"
    )


def _accelerator(started: int, threads: int) -> Accelerator:
    """The processes, which on a CPU have to be told so: otherwise each would take itself for the only one."""
    import torch
    from accelerate import Accelerator

    torch.set_num_threads(threads)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    if accelerator.num_processes != started:
        raise EvaluationError(_mismatch(accelerator.num_processes, started))
    return accelerator


@contextmanager
def _progress(main: bool, models: int) -> Iterator[Callable[[str], Progress]]:
    """What makes, for each model in turn, what is told of its progress: a bar on a terminal, a line for each stage
    where there is none, and nothing on any process but the main one.

    The bar is drawn only when it is told something, never in a thread of its own that would run beside what is timed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    stages = ("load", "quality", "speed")
    console = Console(stderr=True)
    if not main or not console.is_terminal:
        numbers = itertools.count(1)

        def lines(name: str) -> Callable[[str, float], None]:
            told: set[str] = set()
            head = f"[{next(numbers)}/{models}] {name}"

            def tell(stage: str, share: float) -> None:
                del share
                if main and stage not in told:
                    told.add(stage)
                    print(f"{head}: {stage}", file=sys.stderr, flush=True)

            return tell

        yield lines
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as bars:

        def bar(name: str) -> Callable[[str, float], None]:
            task = bars.add_task(name, total=len(stages))
            drawn = 0.0

            def tell(stage: str, share: float) -> None:
                nonlocal drawn
                bars.update(task, description=f"{name}: {stage}", completed=stages.index(stage) + share)
                if share in (0.0, 1.0) or time.monotonic() - drawn > 0.1:
                    drawn = time.monotonic()
                    bars.refresh()

            return tell

        yield bar


# ------------------------------------------------------------------------------------------------------------- sites


def _sites(options: argparse.Namespace) -> int:
    _prepare_libraries(options)
    place = locate(options.model_name_or_path, allow_download=options.allow_download)
    _check_names(options)
    from hf_gelu_patch import explain, find_sites, patched
    from hf_gelu_patch.evaluation.loading import skeleton

    model = skeleton(place, trust_remote_code=options.trust_remote_code)
    wanted = {
        "implementation": options.implementation,
        "activation": options.activation,
        "include": options.include,
        "exclude": options.exclude,
    }
    report = find_sites(model, **wanted)
    print(report)
    if options.diff and report.changed:
        with patched(model, **wanted):
            print(explain(model))
    return 0


if __name__ == "__main__":
    sys.exit(main())
