"""``hf-gelu-patch evaluate``: quality, changed answers and speed of models before and after a patch."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_gelu_patch.cli.command import Command, Said
from hf_gelu_patch.cli.harness import HarnessRun, check_others
from hf_gelu_patch.cli.loading import named_loading
from hf_gelu_patch.cli.patching import check_names, named_variants, prepare_libraries
from hf_gelu_patch.cli.processes import Processes
from hf_gelu_patch.cli.progress import as_a_line, progress
from hf_gelu_patch.cli.report import written
from hf_gelu_patch.evaluation.errors import EvaluationError, LeftOutWarning
from hf_gelu_patch.evaluation.loading.subjects import look_up, subject
from hf_gelu_patch.evaluation.options.declaring import declared, made, option
from hf_gelu_patch.evaluation.options.harness import Harness, asked_tasks
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.reference import REFERENCES
from hf_gelu_patch.evaluation.variants import Variant

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hf_gelu_patch.evaluation.run.result import Result

__all__ = ["COMMAND"]

_WRONG = 3


@dataclass(frozen=True)
class Evaluate:
    """What the command takes, beside what the other classes of options declare."""

    config: Path | None = option(
        None, "options from a YAML file; the command line's own come first", metavar="FILE", read=Path
    )
    dry_run: bool = option(
        False, "say what would be loaded, patched, measured and written; load no weights, write nothing"
    )
    models: tuple[str, ...] = option(
        tuple(REFERENCES),
        f"a reference model ({', '.join(REFERENCES)}), a checkpoint folder, or an id on the hub; may be repeated "
        "(default: the reference models)",
        "models and data",
        metavar="MODEL",
        spelled="model_name_or_path",
        repeated=True,
    )
    output_dir: Path = option(
        Path("results"), "for results (default: results)", "measuring", metavar="FOLDER", read=Path
    )


def _run(said: Said) -> int:
    start = time.perf_counter()
    options, processes = made(Evaluate, said), made(Processes, said)
    prepare_libraries(allow_download=bool(said.get("allow_download")))
    processes.check()
    settings = made(Settings, said, variants=named_variants(said), loading=named_loading(said))
    settings = replace(settings, max_seconds=_most_seconds(settings))
    harness = _harness(said, options, settings)
    subjects = [] if harness is not None else _subjects(said, options, settings)
    if options.dry_run:
        from hf_gelu_patch.evaluation.records import folder_name

        if harness is not None:
            return _dry_run(harness.subjects(), settings, options, harness.record_folders())
        return _dry_run(subjects, settings, options, [f"records/{folder_name(one.name)}/" for one in subjects])
    try:
        from hf_gelu_patch.evaluation import run  # noqa: F401
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"evaluating needs {error.name}, which is not installed: pip install 'hf-gelu-patch[evaluation]'"
        ) from error
    accelerator = processes.accelerator(settings.loading.device, split=settings.loading.tp_plan is not None)
    wrong: list[str] = []
    try:
        if harness is not None:
            results = harness.evaluate(accelerator, options.output_dir)
        else:
            results = _evaluated(subjects, settings, accelerator, options.output_dir)
        wrong = [f"{one.subject.name}, {name}: {why}" for one in results for name, why in one.wrong.items()]
        if accelerator.is_main_process:
            paths = _reported(results, settings, accelerator, options.output_dir)
            print(f"\n{time.perf_counter() - start:.0f} s; {written(paths)}")
            for line in wrong:
                print(f"hf-gelu-patch: wrong implementation: {line}", file=sys.stderr)
        accelerator.wait_for_everyone()  # the launcher stops all of them when the first one fails
    finally:
        accelerator.end_training()
        _leave_the_others()
    return _WRONG if wrong else 0


def _harness(said: Said, options: Evaluate, settings: Settings) -> HarnessRun | None:
    """What is asked of lm-evaluation-harness; None where it is not."""
    names = asked_tasks(said.get("task"))
    if names is None:
        check_others(said)
        return None
    if not options.dry_run:
        from hf_gelu_patch.evaluation.report.files import writable

        writable(options.output_dir)
    check_names(settings.variants)
    return HarnessRun.of(said, options.models, names, settings)


def _leave_the_others() -> None:
    """End what transformers began between processes that share a model's layers."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _most_seconds(settings: Settings) -> float:
    """Twice what all variants take at least, the unpatched model's two runs among them."""
    return 2 * settings.min_seconds * (2 + len(settings.variants))


def _subjects(said: Said, options: Evaluate, settings: Settings) -> list[Subject]:
    """What was named, complete, and all of it there. What is the user's own is looked for first, which takes no time;
    then come names of activations, which take importing torch; then the reference models, which may have to be
    unpacked."""
    asked = {name: said[name] for name in declared(Subject) if name in said}
    look_up(asked)
    own = {name: subject(name, settings.loading, **asked) for name in options.models if name not in REFERENCES}
    if not options.dry_run:
        from hf_gelu_patch.evaluation.report.files import writable

        writable(options.output_dir)
    check_names(settings.variants)
    return _told_apart([own.get(name) or subject(name, settings.loading, **asked) for name in options.models])


def _told_apart(subjects: Sequence[Subject]) -> list[Subject]:
    """Folders of one name are called by their paths."""
    names = Counter(one.name for one in subjects)
    found = [replace(one, name=one.model) if names[one.name] > 1 else one for one in subjects]
    name, count = Counter(one.name for one in found).most_common(1)[0]
    if count > 1:
        raise EvaluationError(f"the model {name} is named {count} times: once is enough.")
    return found


def _evaluated(subjects: Sequence[Subject], settings: Settings, accelerator: Accelerator, folder: Path) -> list[Result]:
    from hf_gelu_patch.evaluation.records import RestartedWarning
    from hf_gelu_patch.evaluation.run import STAGES, evaluate_subject

    with (
        as_a_line(LeftOutWarning, RestartedWarning),
        progress(accelerator.is_main_process, len(subjects), STAGES) as tell,
    ):
        return [evaluate_subject(one, settings, accelerator, tell(one.name), folder=folder) for one in subjects]


def _reported(results: Sequence[Result], settings: Settings, accelerator: Accelerator, folder: Path) -> list[Path]:
    """Show the results, and write the reports."""
    from rich.console import Console

    from hf_gelu_patch.evaluation.environment import environment
    from hf_gelu_patch.evaluation.report.files import save
    from hf_gelu_patch.evaluation.report.results import plain
    from hf_gelu_patch.evaluation.report.terminal import print_results

    command = ["hf-gelu-patch", *sys.argv[1:]]
    surroundings = environment(processes=accelerator.num_processes, device=results[0].device, command=command)
    data = plain(results, settings, surroundings)
    print_results(data, Console())
    return save(data, folder)


def _dry_run(subjects: Sequence[Subject], settings: Settings, options: Evaluate, folders: Sequence[str]) -> int:
    from hf_gelu_patch import find_sites
    from hf_gelu_patch.evaluation.loading.models import skeleton
    from hf_gelu_patch.evaluation.report.formats import names

    for one in subjects:
        columns = ", ".join(one.columns)
        print(f"{one.name}: {one.task}")
        said = settings.loading.said.items()
        asked = " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in said)
        print(f"  model: {one.model}{f' ({asked})' if asked else ''}")
        print(f"  data: {one.data}{f' ({columns})' if columns else ''}")
        model = skeleton(one.model, settings.loading)
        for variant in settings.variants:
            found = find_sites(model, **variant.options)
            print(f"  {variant.name}: {found.summary}")
            print("".join(f"  {line}\n" for line in found.lines()), end="")
    some = "all" if settings.limit is None else f"the first {settings.limit}"
    print(f"measured: quality and drift on {some} examples; layers on one batch; speed, each variant for")
    print(f"  {settings.min_seconds:g} s or more, all together for {settings.max_seconds:g} s at most")
    files = [*names(), *folders]
    print(f"written to {options.output_dir}: {', '.join(files)}")
    return 0


def _resuming(said: Said) -> tuple[str, ...]:
    whole = said.get("dry_run") or asked_tasks(said.get("task")) is not None  # lm-evaluation-harness records nothing
    return () if whole else ("--resume",)


_EXAMPLES = f"""\
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
  hf-gelu-patch evaluate --model_name_or_path ./my-model --task lm_eval:arc_easy,hellaswag --activation relu
      tasks of lm-evaluation-harness (pip install 'hf-gelu-patch[lm-eval]'); your own with --include_path FOLDER
  hf-gelu-patch evaluate --model_name_or_path gpt2 --resume
      go on after a run that was killed
  torchrun --standalone --nproc_per_node 2 -m hf_gelu_patch evaluate --num_processes 2
      two processes, on CPU too; the same quality figures

Options may be spelled with dashes as well: --output-dir. The exit status is 0; 1 where something that was named cannot
be used; 2 for options that make no sense; 3 where the results are there and a variant's implementation is wrong.
"""

COMMAND = Command(
    "evaluate",
    "quality, changed answers and speed of models before and after a patch",
    "Measure models before and after a patch: quality on the same examples, answers that changed, and speed against "
    "the noise of the machine.",
    _run,
    declared(Evaluate)
    | declared(Subject)
    | declared(Harness)
    | declared(Loading)
    | declared(Settings)
    | declared(Variant)
    | declared(Processes),
    _EXAMPLES,
    _resuming,
)
