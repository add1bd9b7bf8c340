"""``hf-gelu-patch profile``: what a model's activations are given on real data, and what others would make of it."""

from __future__ import annotations

import json
import time
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from hf_gelu_patch.cli.command import Command, Said
from hf_gelu_patch.cli.loading import named_loading
from hf_gelu_patch.cli.patching import check_names, prepare_libraries
from hf_gelu_patch.cli.processes import Processes
from hf_gelu_patch.cli.progress import progress
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.subjects import look_up, subject
from hf_gelu_patch.evaluation.options.declaring import GROUPS, declared, made, option
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.variants import Variant

__all__ = ["COMMAND"]

_LOADING = tuple(known.name for known in fields(Loading) if known.name not in ("torch_compile", "tp_plan"))
"""The options of loading: what is looked at runs in Python, in each process by itself."""


@dataclass(frozen=True)
class Profiling:
    """What the command takes, beside a model's data and how it is loaded."""

    model: str = option(
        MISSING,
        "a reference model, a checkpoint folder, a hub id",
        metavar="MODEL",
        spelled="model_name_or_path",
        positional=True,
    )
    config: Path | None = option(
        None, "options from a YAML file; the command line's own come first", metavar="FILE", read=Path
    )
    include: tuple[str, ...] | None = option(
        None, "look at such sites alone; may be repeated", GROUPS[1], metavar="PATTERN", repeated=True
    )
    exclude: tuple[str, ...] | None = option(
        None, "leave such sites out; may be repeated", GROUPS[1], metavar="PATTERN", repeated=True
    )
    activations: tuple[str, ...] | None = option(
        None,
        "a function to hold each site against; may be repeated (default: all that are usual in hidden layers)",
        GROUPS[1],
        metavar="NAME",
        spelled="activation",
        repeated=True,
    )
    output_dir: Path = option(
        Path("results"), "for profile.json and profile.html (default: results)", GROUPS[3], metavar="FOLDER", read=Path
    )


def _run(said: Said) -> int:
    start = time.perf_counter()
    options, processes, settings = (
        made(Profiling, said),
        made(Processes, said),
        made(Settings, said, variants=(), loading=named_loading(said)),
    )
    prepare_libraries(allow_download=bool(said.get("allow_download")))
    processes.check()
    asked = {name: said[name] for name in declared(Subject) if name in said}
    look_up(asked)
    one = subject(options.model, settings.loading, **asked)
    check_names(Variant(name, activation=name) for name in options.activations or ())
    try:
        from hf_gelu_patch.evaluation.report.files import writable, write
        from hf_gelu_patch.evaluation.run.profiling import STAGES, profiled
        from hf_gelu_patch.profiling.page import page
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"profiling needs {error.name}, which is not installed: pip install 'hf-gelu-patch[evaluation]'"
        ) from error
    writable(options.output_dir)
    accelerator = processes.accelerator(settings.loading.device)
    try:
        with progress(accelerator.is_main_process, 1, STAGES) as tell:
            found, data = profiled(
                one,
                settings,
                accelerator,
                tell(one.name),
                include=options.include,
                exclude=options.exclude,
                activations=options.activations,
            )
        if accelerator.is_main_process:
            print(found)
            if data["rows_left_out"]:
                print(f"Rows left out (--skip_bad_rows): {data['rows_left_out']:,}.")
            write(options.output_dir / "profile.json", f"{json.dumps(data, indent=1, allow_nan=False)}\n".encode())
            write(options.output_dir / "profile.html", page(data).encode())
            print(f"\n{time.perf_counter() - start:.0f} s; written to {options.output_dir}: profile.json, profile.html")
        accelerator.wait_for_everyone()
    finally:
        accelerator.end_training()
    return 0


_EXAMPLES = """\
examples:
  hf-gelu-patch profile bert
      a reference model on its own data
  hf-gelu-patch profile ./my-model --task text-classification --validation_file test.csv --limit 1000
      a model and data of your own
  hf-gelu-patch profile ./my-model --validation_file test.csv --include 'encoder.layer.0.*' --activation silu
      some sites, held against one function
  torchrun --standalone --nproc_per_node 2 -m hf_gelu_patch profile bert --num_processes 2
      two processes: the same figures
"""

COMMAND = Command(
    "profile",
    "what a model's activations are given on real data, and what other functions would do there",
    "Run a model once over data and tell of each activation site: mean, spread and histogram of what it is given, how "
    "much of it lies in which region of the function, which units are never active, and how far other functions would "
    "move what the site gives. Nothing is patched.",
    _run,
    declared(Profiling)
    | declared(Subject)
    | declared(Loading, *_LOADING)
    | {name: one for name, one in declared(Settings).items() if one.group == GROUPS[0]}
    | declared(Settings, "batch_size")
    | declared(Processes),
    _EXAMPLES,
)
