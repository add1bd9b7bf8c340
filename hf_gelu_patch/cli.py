"""The command line, ``hf-gelu-patch``. What is heavy is imported once the arguments are known to make sense."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gelu_patch import __version__
from hf_gelu_patch.errors import PatchError
from hf_gelu_patch.evaluation.data.places import data_file
from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.loading.checkpoints import locate
from hf_gelu_patch.evaluation.loading.subjects import subject
from hf_gelu_patch.evaluation.metrics.plugged import find_metric
from hf_gelu_patch.evaluation.reference import REFERENCES, ReferenceUnavailableError
from hf_gelu_patch.evaluation.report.formats import FORMATS
from hf_gelu_patch.evaluation.subject import Subject
from hf_gelu_patch.evaluation.tasks.labels import READINGS
from hf_gelu_patch.evaluation.tasks.registry import TASKS, task_info
from hf_gelu_patch.evaluation.variants import Variant, check_variants

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hf_gelu_patch.evaluation.run import Progress, Result

__all__ = ["main"]

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_EVALUATE_EXAMPLES = f"""\
examples:
  hf-gelu-patch evaluate
      the reference models ({", ".join(REFERENCES)}) on their own data
  hf-gelu-patch evaluate --model_name_or_path gpt2 --activation silu
      one of them with another function
  hf-gelu-patch evaluate --variant aten --variant activation=silu --variant "activation=gelu_tanh,include=*.h.0.*"
      several at once, each against the unpatched model; --variant eager is that model against itself
  hf-gelu-patch evaluate --model_name_or_path ./my-model --task text-classification --validation_file test.csv
      a model and data of your own
  hf-gelu-patch evaluate --config night.yaml --limit 100
      options from a file (variant: [aten, activation=silu]); those of the command line come first
  hf-gelu-patch evaluate --model_name_or_path gpt2 --dry_run
      what would be loaded, patched, measured and written
  hf-gelu-patch evaluate --model_name_or_path gpt2 --resume
      go on after a run that was killed
  torchrun --standalone --nproc_per_node 2 scripts/evaluate.py --num_processes 2
      two processes, on CPU too; the same quality figures

Options may be spelled with dashes as well: --output-dir. The exit status is 0; 1 where something that was named cannot
be used; 2 for options that make no sense; 3 where the results are there and a variant's implementation is wrong.
"""
_REPORT_EXAMPLES = """\
examples:
  hf-gelu-patch report results
      the table, the plots and the page once more
  hf-gelu-patch report monday tuesday --output_dir both
      two runs in one report
"""
_PATCHING = ("variant", "implementation", "activation", "include", "exclude")
_WRONG = 3
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
        The exit status: 0; or 1 where what was named cannot be used, 2 for arguments that make no sense (as argparse
        exits with by itself), and 3 where a variant's implementation is wrong.
    """
    given = _normalised(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    try:
        options = parser.parse_args(given)
        if getattr(options, "config", None) is not None:
            options = parser.parse_args(_with_config(options, given))
        status: int = options.command(options)
    except (EvaluationError, PatchError, ReferenceUnavailableError) as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        print("hf-gelu-patch: interrupted", file=sys.stderr)
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


def _with_config(options: argparse.Namespace, given: Sequence[str]) -> list[str]:
    """The arguments, and those that the config file names and they do not. How to patch is one matter: where the
    command line says anything about it, the file's word does not count.

    Raises:
        EvaluationError: the file cannot be read, or names what is no option.
    """
    import yaml

    path = options.config
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EvaluationError(f"the config {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise EvaluationError(f"the config {path} names no options: write one a line, as in 'limit: 100'.")
    valid = [name for name in vars(options) if name not in ("command", "config")]
    found = {str(key).replace("-", "_"): value for key, value in config.items()}
    if unknown := [key for key in found if key not in valid]:
        raise EvaluationError(f"the config {path} has no option {', '.join(unknown)}. Valid: {', '.join(valid)}.")
    said = {word[2:].partition("=")[0] for word in given if word.startswith("--")}
    if said & {*_PATCHING}:
        said |= {*_PATCHING}
    added = []
    for key, value in found.items():
        if key in said or value is None or value is False:
            continue
        if value is True:
            added.append(f"--{key}")
            continue
        values = value if isinstance(value, list) else [value]
        if len(values) > 1 and not _repeats(key):
            raise EvaluationError(f"the config {path} gives {key} {len(values)} values: it takes one.")
        for one in values:
            if isinstance(one, dict) and key == "variant":
                one = ",".join(f"{name}={_joined(pattern)}" for name, pattern in one.items())
            if isinstance(one, dict | list):
                raise EvaluationError(f"the config {path} gives {key} {one!r}: it takes a text or a number.")
            added.append(f"--{key}={one}")
    return [given[0], *added, *given[1:]]


def _joined(patterns: Any) -> str:
    return ";".join(map(str, patterns)) if isinstance(patterns, list) else str(patterns)


def _repeats(key: str) -> bool:
    return key in ("model_name_or_path", "variant", "include", "exclude")


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
    evaluate.add_argument(
        "--config", type=Path, metavar="FILE", help="options from a YAML file; the command line's own come first"
    )
    evaluate.add_argument(
        "--dry_run",
        action="store_true",
        help="say what would be loaded, patched, measured and written; load no weights, write nothing",
    )
    what = evaluate.add_argument_group("models and data")
    what.add_argument(
        "--model_name_or_path",
        action="append",
        metavar="MODEL",
        help=f"a reference model ({', '.join(REFERENCES)}), a checkpoint folder, or an id on the hub; may be repeated "
        "(default: the reference models)",
    )
    what.add_argument(
        "--task", metavar="TASK", help=f"{', '.join(TASKS)}, or a Python file (default: as the model's config tells)"
    )
    what.add_argument(
        "--validation_file",
        metavar="DATA",
        help="csv, json, jsonl, parquet, arrow or txt, a folder of images or of a saved dataset, or an id on the hub "
        "(default: the model's)",
    )
    what.add_argument(
        "--split",
        metavar="NAME",
        help="of the data, where they have several (default: validation, else test)",
    )
    what.add_argument("--config_name", metavar="NAME", help="of data on the hub, where they have several")
    what.add_argument(
        "--input_column",
        metavar="NAME",
        help="what the model is given (default: text, image or source; text1 for similarity)",
    )
    what.add_argument("--second_column", metavar="NAME", help="a second text (default: text2, for similarity)")
    what.add_argument("--target_column", metavar="NAME", help="the right answer (default: label, target or score)")
    what.add_argument(
        "--metric", metavar="METRIC", help="another metric beside the task's own: a script, or a name on the hub"
    )
    what.add_argument(
        "--labels",
        choices=READINGS,
        help="how labels are written in the data (default: told from them; needed where both would do)",
    )
    what.add_argument(
        "--threshold",
        type=_finite,
        metavar="X",
        help="of a head that gives a number: above it the answer is 1, else 0; of one that gives several labels: the "
        "logit above which a label holds (default: none, and 0)",
    )
    what.add_argument("--skip_bad_rows", action="store_true", help="leave out rows that cannot be used, and count them")
    what.add_argument(
        "--limit", type=_positive, metavar="N", help="use the first N rows, or blocks of text (default: all)"
    )
    what.add_argument(
        "--max_length", type=_positive, metavar="N", help="tokens in an example (default: the model's, at most 512)"
    )
    what.add_argument(
        "--stride",
        type=_positive,
        metavar="N",
        help="running text by a window that moves on by N tokens (default: in blocks)",
    )
    _add_loading(what)
    what.add_argument("--dtype", choices=_DTYPES, default="auto", help="of the weights (default: the checkpoint's)")
    what.add_argument("--attn_implementation", metavar="NAME", help="eager, sdpa, … (default: transformers' choice)")
    patching = evaluate.add_argument_group("patch")
    patching.add_argument(
        "--variant",
        action="append",
        metavar="VARIANT",
        help="one way to patch: an implementation's name, and activation=, include= or exclude= with commas between "
        "them and ';' between patterns; may be repeated, and takes the place of the four options below",
    )
    _add_patching(patching)
    how = evaluate.add_argument_group("measuring")
    how.add_argument(
        "--per_device_eval_batch_size",
        type=_positive,
        metavar="N",
        help="examples in a batch (default: 32, fewer for large vocabularies)",
    )
    how.add_argument(
        "--timing_seconds",
        type=_above_zero,
        default=10.0,
        metavar="S",
        help="time each variant for so long at least, and for no more than twice as long on average (default: 10)",
    )
    how.add_argument(
        "--margin",
        type=_above_zero,
        metavar="X",
        help="how far a metric may move and count as equivalent: 0.01 is one point of accuracy, 1 %% of a perplexity",
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
    how.add_argument(
        "--resume",
        action="store_true",
        help="go on with what a run that was killed recorded there, also with another number of processes; where the "
        "data were changed since, start anew and say so",
    )

    report = commands.add_parser(
        "report",
        help="the reports of an evaluation once more, or of several together",
        description="Build table, plots and page again from what evaluations wrote, and merge several into one.",
        epilog=f"{_REPORT_EXAMPLES}\nfiles:\n" + "".join(f"  {one.file:<17} {one.holds}\n" for one in FORMATS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    report.set_defaults(command=_report)
    report.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="a folder of results")
    report.add_argument(
        "--output_dir", type=Path, metavar="FOLDER", help="for the reports (default: the folder, where it is one)"
    )

    tasks = commands.add_parser("tasks", help="what models can be asked", description="List the tasks.")
    tasks.set_defaults(command=_tasks)
    implementations = commands.add_parser(
        "implementations",
        help="how activations can be computed, and where",
        description="List the implementations: what they compute, where they run, and whether they do here.",
    )
    implementations.set_defaults(command=_implementations)

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
        metavar="NAME",
        help="auto, aten, triton, epilogue or eager (default: auto: aten, where it gains something; on a GPU triton, "
        "where it was measured faster)",
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


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text}: it takes a finite number")
    return number


def _above_zero(text: str) -> float:
    number = _finite(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text}: it takes a number above 0")
    return number


def _variant(options: argparse.Namespace) -> Variant:
    """What the options that stand for one variant say."""
    return Variant.of(options.implementation or "auto", options.activation, options.include, options.exclude)


def _variants(options: argparse.Namespace) -> tuple[Variant, ...]:
    if not options.variant:
        return (_variant(options),)
    if other := [name for name in _PATCHING[1:] if getattr(options, name)]:
        raise EvaluationError(
            f"--variant says how to patch, and so does --{other[0]}: write --variant {other[0]}=… instead."
        )
    variants = tuple(map(Variant.parse, options.variant))
    check_variants(variants)
    return variants


def _check_names(variants: Sequence[Variant]) -> None:
    """Names of activations and implementations, before anything is loaded."""
    from hf_gelu_patch.activations import get_activation
    from hf_gelu_patch.implementations.registry import get_implementation

    for variant in variants:
        if variant.implementation != "auto":
            get_implementation(variant.implementation)
        if variant.activation is not None:
            get_activation(variant.activation)


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
    variants = _variants(options)
    # What is the user's own is looked for first, which takes no time; then come the names, which take importing torch;
    # then the reference models, which may have to be unpacked.
    if options.validation_file is not None:
        data_file(options.validation_file, allow_download=options.allow_download)
    if options.task is not None:
        task_info(options.task)
    if options.metric is not None:
        find_metric(options.metric, allow_download=options.allow_download)
    named = options.model_name_or_path or list(REFERENCES)
    own = {name: _subject(name, options) for name in named if name not in REFERENCES}
    from hf_gelu_patch.evaluation.environment import environment
    from hf_gelu_patch.evaluation.report import files
    from hf_gelu_patch.evaluation.report.results import plain
    from hf_gelu_patch.evaluation.report.terminal import print_results

    if not options.dry_run:
        files.writable(options.output_dir)
    _check_names(variants)
    subjects = _told_apart([own.get(name) or _subject(name, options) for name in named])
    if options.dry_run:
        return _dry_run(subjects, variants, options)
    try:
        from hf_gelu_patch.evaluation.records import RestartedWarning
        from hf_gelu_patch.evaluation.run import STAGES, Settings, evaluate_subject
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"evaluating needs {error.name}, which is not installed: pip install 'hf-gelu-patch[evaluation]'"
        ) from error
    settings = Settings(
        variants=variants,
        margin=options.margin,
        resume=options.resume,
        skip_bad_rows=options.skip_bad_rows,
        limit=options.limit,
        batch_size=options.per_device_eval_batch_size,
        seed=options.seed,
        dtype=options.dtype,
        attn_implementation=options.attn_implementation,
        trust_remote_code=options.trust_remote_code,
        min_seconds=options.timing_seconds,
        max_seconds=_most_seconds(options, variants),
    )
    accelerator = _accelerator(started, options.num_threads)
    wrong: list[str] = []
    try:
        with (
            _as_a_line(RestartedWarning),
            _progress(accelerator.is_main_process, len(subjects), STAGES) as progress,
        ):
            results = [
                evaluate_subject(one, settings, accelerator, progress(one.name), folder=options.output_dir)
                for one in subjects
            ]
        wrong = _wrong(results)
        if accelerator.is_main_process:
            from rich.console import Console

            surroundings = environment(
                processes=accelerator.num_processes, device=str(accelerator.device), command=sys.argv
            )
            data = plain(results, settings, surroundings)
            print_results(data, Console())
            paths = files.save(data, options.output_dir)
            print(f"\n{time.perf_counter() - start:.0f} s; {_written(paths)}")
            for line in wrong:
                print(f"hf-gelu-patch: wrong implementation: {line}", file=sys.stderr)
        accelerator.wait_for_everyone()  # the launcher stops all of them when the first one fails
    finally:
        accelerator.end_training()
    return _WRONG if wrong else 0


def _wrong(results: Sequence[Result]) -> list[str]:
    return [f"{one.subject.name}, {name}: {why}" for one in results for name, why in one.wrong.items()]


def _most_seconds(options: argparse.Namespace, variants: Sequence[Variant]) -> float:
    """Twice what all of them take at least, the unpatched model's two runs among them."""
    seconds: float = 2 * options.timing_seconds * (2 + len(variants))
    return seconds


def _subject(name: str, options: argparse.Namespace) -> Subject:
    return subject(
        name,
        task=options.task,
        validation_file=options.validation_file,
        input_column=options.input_column,
        second_column=options.second_column,
        target_column=options.target_column,
        max_length=options.max_length,
        split=options.split,
        config_name=options.config_name,
        metric=options.metric,
        stride=options.stride,
        labels=options.labels,
        threshold=options.threshold,
        allow_download=options.allow_download,
    )


def _told_apart(subjects: Sequence[Subject]) -> list[Subject]:
    """Folders of one name are called by their paths."""
    names = Counter(one.name for one in subjects)
    found = [replace(one, name=one.model) if names[one.name] > 1 else one for one in subjects]
    name, count = Counter(one.name for one in found).most_common(1)[0]
    if count > 1:
        raise EvaluationError(f"the model {name} is named {count} times: once is enough.")
    return found


def _dry_run(subjects: Sequence[Subject], variants: Sequence[Variant], options: argparse.Namespace) -> int:
    from hf_gelu_patch import find_sites
    from hf_gelu_patch.evaluation.loading.models import skeleton
    from hf_gelu_patch.evaluation.records import folder_name
    from hf_gelu_patch.evaluation.report.formats import names

    for one in subjects:
        columns = ", ".join(one.columns)
        print(f"{one.name}: {one.task}")
        print(f"  model: {one.model}")
        print(f"  data: {one.data}{f' ({columns})' if columns else ''}")
        model = skeleton(one.model, trust_remote_code=options.trust_remote_code)
        for variant in variants:
            found = find_sites(model, **variant.options)
            print(f"  {variant.name}: {found.summary}")
            print("".join(f"  {line}\n" for line in found.lines()), end="")
    some = "all" if options.limit is None else f"the first {options.limit}"
    print(f"measured: quality and drift on {some} examples; layers on one batch; speed, each variant for")
    print(f"  {options.timing_seconds:g} s or more, all together for {_most_seconds(options, variants):g} s at most")
    written = [*names(), *(f"records/{folder_name(one.name)}/" for one in subjects)]
    print(f"written to {options.output_dir}: {', '.join(written)}")
    return 0


def _launched_for() -> int | None:
    """How many processes ``accelerate launch`` was asked for, on its command line or in its config; None where it is
    not what started this one. Asked for several on a CPU, it starts one and does not say so."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or "WORLD_SIZE" in os.environ:
        return None
    import psutil
    import yaml
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
    """The processes, which on a CPU have to be told so: otherwise each would take itself for the only one. They wait
    for the main one as long as it times, for which the usual ten minutes may not do."""
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    torch.set_num_threads(threads)
    patience = InitProcessGroupKwargs(timeout=timedelta(days=1))
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[patience])
    if accelerator.num_processes != started:
        raise EvaluationError(_mismatch(accelerator.num_processes, started))
    return accelerator


@contextmanager
def _as_a_line(category: type[Warning]) -> Iterator[None]:
    """Show warnings of one kind as all else that is said here, without the line of code that gave them."""
    usual = warnings.showwarning

    def show(message: Warning | str, kind: type[Warning], *where: Any) -> None:
        if issubclass(kind, category):
            print(f"hf-gelu-patch: {message}", file=sys.stderr, flush=True)
        else:
            usual(message, kind, *where)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


@contextmanager
def _progress(main: bool, models: int, stages: Sequence[str]) -> Iterator[Callable[[str], Progress]]:
    """What makes, for each model in turn, what is told of its progress: a bar on a terminal, a line for each stage
    where there is none, and nothing on any process but the main one.

    The bar is drawn only when it is told something, never in a thread of its own that would run beside what is timed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

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


# ---------------------------------------------------------------------------------------------------------- listings


def _report(options: argparse.Namespace) -> int:
    from hf_gelu_patch.evaluation.report import files

    if options.output_dir is None and len(options.results) > 1:
        raise EvaluationError("several runs make a report of their own: name a folder for it with --output_dir.")
    [first, *_] = options.results
    folder = options.output_dir or (first if first.is_dir() else first.parent)
    print(_written(files.rebuild(options.results, folder)))
    return 0


def _written(paths: Sequence[Path]) -> str:
    """Which files there are; and what would give pictures too, where there are none."""
    told = f"written to {paths[0].parent}: {', '.join(path.name for path in paths)}"
    if any(path.suffix == ".png" for path in paths):
        return told
    return f"{told} (for plots: pip install 'hf-gelu-patch[evaluation]', which brings matplotlib)"


def _tasks(options: argparse.Namespace) -> int:
    del options
    for name, task in TASKS.items():
        columns = ", ".join(filter(None, (task.input_column, task.second_column, task.target_column)))
        print(f"{name}: {task.summary}")
        print(f"  models: {task.auto_class}; columns: {columns}")
        print(f"  metrics: {', '.join(task.metrics) or 'none, only drift and speed'}")
    print("path/to/file.py: a task of your own; see hf_gelu_patch.evaluation.tasks.own_file.own_task")
    missing = [
        name for name in ("accelerate", "datasets", "evaluate", "rich") if importlib.util.find_spec(name) is None
    ]
    if missing:
        print(f"\nnot available here: {', '.join(missing)} missing (pip install 'hf-gelu-patch[evaluation]')")
    return 0


def _implementations(options: argparse.Namespace) -> int:
    del options
    import torch

    from hf_gelu_patch.implementations import measured
    from hf_gelu_patch.implementations.choice import AUTO
    from hf_gelu_patch.implementations.registry import IMPLEMENTATIONS

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"auto: at each site {' or '.join(AUTO)}, the first that computes the activation and gains something;")
    print("  on CUDA first triton, where it won what was measured on the card:")
    known, here = measured.tables(measured.FOLDER), measured.measured_on(device)
    shown = [*known, here] if here is not None and here.file is None else known
    for line in [line for table in shown for line in table.lines()] or ["unmeasured"]:
        print(f"    {line}")
    for name, one in IMPLEMENTATIONS.items():
        computes = [f"{len(one.functions)} activations"]
        computes += [f"{len(one.gated)} with the product of a gated layer"] if one.gated else []
        computes += [f"{len(one.linear)} after a linear layer"] if one.linear else []
        dtypes = "any dtype" if one.dtypes is None else ", ".join(sorted(str(d).rpartition(".")[2] for d in one.dtypes))
        obstacle = one.obstacle(device, torch.float32)
        print(f"{name}: {', '.join(computes)}: {', '.join(one.functions)}")
        print(f"  runs on {' or '.join(sorted(one.devices)) if one.devices else 'any device'}; {dtypes}", end="")
        print("" if one.backward else "; no backward")
        print(f"  here ({device}): {'available' if obstacle is None else f'not available: {obstacle}'}")
    return 0


# ------------------------------------------------------------------------------------------------------------- sites


def _sites(options: argparse.Namespace) -> int:
    _prepare_libraries(options)
    place = locate(options.model_name_or_path, allow_download=options.allow_download)
    variant = _variant(options)
    _check_names([variant])
    from hf_gelu_patch import explain, find_sites, patched
    from hf_gelu_patch.evaluation.loading.models import skeleton

    model = skeleton(place, trust_remote_code=options.trust_remote_code)
    report = find_sites(model, **variant.options)
    print(report)
    if options.diff and report.changed:
        with patched(model, **variant.options):
            print(explain(model))
    return 0


if __name__ == "__main__":
    sys.exit(main())
