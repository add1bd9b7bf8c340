"""``hf-gelu-patch sites``: what a patch would do to a model, site by site, without its weights."""

from __future__ import annotations

from dataclasses import MISSING, dataclass

from hf_gelu_patch.cli.command import Command, Said
from hf_gelu_patch.cli.loading import named_loading
from hf_gelu_patch.cli.patching import check_names, named_variant, prepare_libraries
from hf_gelu_patch.evaluation.loading.checkpoints import locate_config
from hf_gelu_patch.evaluation.options.declaring import declared, made, option
from hf_gelu_patch.evaluation.options.loading import Loading
from hf_gelu_patch.evaluation.options.subject import Subject
from hf_gelu_patch.evaluation.variants import Variant

__all__ = ["COMMAND"]

_LOADING = ("trust_remote_code", "revision", "subfolder", "gguf_file")
"""The options of loading that say which config is meant."""


def _listed(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@dataclass(frozen=True)
class Sites:
    """What the command takes, beside how to patch."""

    model_name_or_path: str = option(
        MISSING, "a reference model, a checkpoint folder, a hub id", metavar="MODEL", positional=True
    )
    diff: bool = option(False, "print each forward that a patch would rewrite, as a diff")
    beside: tuple[str, ...] = option(
        (), "also print what other tools would change: liger, kernels, or both", metavar="TOOLS", read=_listed
    )


def _run(said: Said) -> int:
    options, variant = made(Sites, said), named_variant(said)
    allow_download = bool(said.get("allow_download"))
    prepare_libraries(allow_download=allow_download)
    loading = named_loading(said)
    place = locate_config(options.model_name_or_path, loading, allow_download=allow_download)
    check_names([variant])
    from hf_gelu_patch import explain, find_sites, patched
    from hf_gelu_patch.beside import check_tools
    from hf_gelu_patch.evaluation.loading.models import skeleton

    check_tools(options.beside)
    model = skeleton(place, loading)
    report = find_sites(model, **variant.options, beside=options.beside)
    print(report)
    if options.diff and (report.changed or report.in_tiles):
        with patched(model, **variant.options):
            print(explain(model))
    return 0


_EXAMPLES = """\
examples:
  hf-gelu-patch sites gpt2 --diff
  hf-gelu-patch sites ./my-model --beside liger,kernels
  hf-gelu-patch sites ./my-model --activation silu --include 'transformer.h.0.*'
"""

COMMAND = Command(
    "sites",
    "what a patch would do to a model, site by site, without loading its weights",
    "Print every activation site of a model, what a patch would do there, and every reason to leave one alone. The "
    "weights are not loaded.",
    _run,
    declared(Sites) | declared(Loading, *_LOADING) | declared(Subject, "allow_download") | declared(Variant),
    _EXAMPLES,
)
