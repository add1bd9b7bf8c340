"""How far ``verify=`` and the evaluation's verdict can be trusted: faults planted in ten models, and right patches."""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from hf_gelu_patch.evaluation.report import markdown
from hf_gelu_patch.implementations.registry import get_implementation
from scripts.benchmarking.planted import right as right_patches
from scripts.benchmarking.planted.fault import Fault
from scripts.benchmarking.planted.faults import FAULTS
from scripts.benchmarking.planted.right import RIGHT, Right
from scripts.benchmarking.planted.specimens import SPECIMENS, Batch, Specimen
from scripts.benchmarking.timing import environment, say, versions_of

if TYPE_CHECKING:
    from hf_gelu_patch.evaluation.tasks.base import Task
    from hf_gelu_patch.evaluation.variants import Variant

Record = Mapping[str, Any]

_LEAST = 1e-3  # seconds that the evaluation times, which nobody looks at


@dataclass(frozen=True)
class Verdict:
    """What became of a patch.

    Attributes:
        caught: whether it was refused, or called wrong.
        said: why, the first words; of ``verify=`` where it was not, what moved most.
    """

    caught: bool
    said: str


def _told(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 160 else f"{text[:159]}…"


def _raised(error: Exception) -> Verdict:
    return Verdict(True, _told(f"{type(error).__name__}: {error}"))


# ------------------------------------------------------------------------------------------------------------ verify=


def verified(model: nn.Module, batch: Batch, **options: Any) -> Verdict:
    """What ``patch(model, verify=batch, ...)`` says. Where it says nothing, ``model`` is left patched."""
    from hf_gelu_patch import PatchError, VerificationError, patch

    try:
        report = patch(model, verify=batch, **options)
    except VerificationError as error:
        return Verdict(True, _told(str(error).partition("on the batch given, ")[2] or str(error)))
    except PatchError:  # nothing was run
        raise
    except Exception as error:  # whatever a fault makes torch raise
        return _raised(error)
    return Verdict(False, _told(str(max(report.drift, key=lambda drift: drift.largest / (drift.scale or 1.0)))))


def verify_fault(fault: Fault, specimen: Specimen) -> Verdict:
    """What ``verify=`` says of a fault planted in a model, by the batch that reaches it."""
    from hf_gelu_patch import patched

    model = specimen.build(fault.dtype).train(fault.training)
    batch = specimen.batch(model, fault.batch)
    with fault.planted(specimen.activation):
        options = {"implementation": fault.name, "include": sites_of(fault, model)}
        if fault.seasoned:
            with patched(model, **options):
                model(**batch)
            _train_a_step(model)
        return verified(model, batch, gradients=True, **options)


def sites_of(fault: Fault, model: nn.Module) -> tuple[str, ...] | None:
    """The patterns of the sites that a registered fault is planted at; None for all."""
    from hf_gelu_patch import find_sites

    if not fault.one_site:
        return None
    sites = find_sites(model, implementation=fault.name).changed
    return (sites[len(sites) // 2].path,)


def _train_a_step(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            step = torch.randn(weight.shape, generator=generator).to(weight)
            weight.add_(step * weight.abs().mean() * 0.01)


def verify_right(right: Right) -> Verdict:
    """What ``verify=`` says of a right patch."""
    setting = right.setting
    model = right.specimen.build(right.dtype).train(setting.training)
    batch = setting.given(right.specimen.batch(model, setting.batch))
    with setting.around():
        model = setting.prepare(model)
        options = {"implementation": right.implementation, "gradients": setting.gradients}
        return verified(model, batch, strict=True, **options)


# ----------------------------------------------------------------------------------------------------------- evaluate


def logits_task(specimen: Specimen, model: nn.Module, batch: Batch) -> Task:
    """A task of which each example is a row of the batch, and of which there are no right answers."""
    import datasets

    from hf_gelu_patch.evaluation.options.subject import Subject
    from hf_gelu_patch.evaluation.outcomes import Outcome
    from hf_gelu_patch.evaluation.tasks.base import Batch as Rows
    from hf_gelu_patch.evaluation.tasks.base import Prediction, Task
    from hf_gelu_patch.evaluation.tasks.limits import Limits

    tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}

    class Logits(Task):
        def encode(self, data: Any, limit: int | None) -> list[dict[str, Any]]:
            del limit
            return [{"shown": f"row {row}"} for row in range(len(data))]

        def collate(self, ids: tuple[int, ...], examples: Sequence[dict[str, Any]]) -> Rows:
            inputs = {key: value[list(ids)] for key, value in tensors.items()}
            positions = self.forward(model, Rows(ids, inputs, torch.empty(0), 0)).shape[1]
            return Rows(ids, inputs, torch.zeros(len(examples), positions, dtype=torch.long), len(examples))

        def forward(self, model: Any, batch: Rows) -> torch.Tensor:
            logits = model(**batch.inputs).logits
            return logits if logits.dim() == 3 else logits[:, None]

        def predict(self, model: Any, batch: Rows) -> Prediction:
            return Prediction(self.forward(model, batch), (Outcome((), (), 0.0, 0),) * len(batch.ids))

    subject = Subject(specimen.name, specimen.name, specimen.name, "logits", "", None, None)
    rows = datasets.Dataset.from_dict({"row": list(range(len(next(iter(tensors.values())))))})
    return Logits(subject, model.config, None, rows, limits=Limits())


def evaluated(specimen: Specimen, dtype: torch.dtype, batch: str, variants: Sequence[Variant]) -> dict[str, Verdict]:
    """Which variants of a model the evaluation calls a "wrong implementation", by name. Where one of them makes it
    fail, the halves are evaluated apart, until it is known which."""
    from accelerate import Accelerator

    from hf_gelu_patch.evaluation.options.settings import Settings
    from hf_gelu_patch.evaluation.run import evaluate

    model = specimen.build(dtype)
    task = logits_task(specimen, model, specimen.batch(model, batch))
    settings = Settings(tuple(variants), min_rounds=1, min_seconds=_LEAST, max_seconds=_LEAST)
    try:
        wrong = evaluate(model, task, settings, Accelerator(cpu=True)).wrong
    except Exception as error:
        if len(variants) == 1:
            return {variants[0].name: _raised(error)}
        middle = len(variants) // 2
        halves = (variants[:middle], variants[middle:])
        return {name: said for half in halves for name, said in evaluated(specimen, dtype, batch, half).items()}
    return {one.name: Verdict(one.name in wrong, _told(wrong.get(one.name, ""))) for one in variants}


def evaluate_faults(specimen: Specimen, faults: Sequence[Fault]) -> dict[str, Verdict]:
    """The evaluation's verdict on each fault planted in a model, by name. It runs in evaluation mode, without a cache,
    on rows of the same batches."""
    from hf_gelu_patch.evaluation.variants import Variant

    found: dict[str, Verdict] = {}
    groups: dict[tuple[torch.dtype, str], list[Fault]] = {}
    for fault in faults:
        groups.setdefault((fault.dtype, "long" if fault.batch == "long" else "usual"), []).append(fault)
    for (dtype, batch), group in groups.items():
        model = specimen.build(dtype)
        with ExitStack() as stack:
            for fault in group:
                stack.enter_context(fault.planted(specimen.activation))
            variants = [Variant(fault.name, fault.name, include=sites_of(fault, model)) for fault in group]
            found |= evaluated(specimen, dtype, batch, variants)
    return found


def evaluate_rights(rights: Iterable[Right]) -> dict[str, Verdict]:
    """The evaluation's verdict on those right patches that are of a model as it stands, by name."""
    from hf_gelu_patch.evaluation.variants import Variant

    groups: dict[tuple[Specimen, torch.dtype], list[Variant]] = {}
    for right in rights:
        if right.setting is right_patches.PLAIN:
            variants = groups.setdefault((right.specimen, right.dtype), [])
            variants.append(Variant(right.name, right.implementation))
    return {
        name: verdict
        for (specimen, dtype), variants in groups.items()
        for name, verdict in evaluated(specimen, dtype, "usual", variants).items()
    }


# ------------------------------------------------------------------------------------------------------------- record


def faults_found(specimen: Specimen, faults: Sequence[Fault]) -> Iterable[dict[str, Any]]:
    """An entry for each fault planted in a model."""
    by_evaluate = evaluate_faults(specimen, faults)
    for fault in faults:
        yield {
            "fault": fault.name,
            "model": specimen.name,
            "verify": asdict(verify_fault(fault, specimen)),
            "evaluate": asdict(by_evaluate[fault.name]),
        }


def rights_found(rights: Sequence[Right]) -> list[dict[str, Any]]:
    """An entry for each right patch; "evaluate" is None where the evaluation has no such setting."""
    with right_patches.implementations():
        by_evaluate = evaluate_rights(rights)
        return [
            {
                "patch": right.name,
                "verify": asdict(verify_right(right)),
                "evaluate": asdict(by_evaluate[right.name]) if right.name in by_evaluate else None,
            }
            for right in rights
        ]


def about(fault: Fault) -> dict[str, Any]:
    """What the record says of a fault."""
    return {
        "kind": fault.kind,
        "held_out": fault.held_out,
        "dtype": str(fault.dtype).removeprefix("torch."),
        "batch": fault.batch,
        "training": fault.training,
        "unseen": fault.unseen,
    }


def runnable(right: Right) -> bool:
    """Whether it can run here: on a CPU, Triton's kernels need TRITON_INTERPRET=1."""
    if right.implementation != "triton":
        return True
    return get_implementation("triton").obstacle(torch.device("cpu"), right.dtype) is None


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    start = time.process_time()
    planted: list[dict[str, Any]] = []
    right: list[dict[str, Any]] = []
    for name in options.models:
        specimen = SPECIMENS[name]
        faults = [f for f in FAULTS if name in f.models and not (f.held_out and options.without_held_out)]
        planted += faults_found(specimen, faults)
        right += rights_found([one for one in RIGHT if one.specimen is specimen and runnable(one)])
        say(f"{name}: {told(planted, right)}, {time.process_time() - start:.0f} s of CPU time")
    record = {
        "environment": environment("cpu"),
        "cpu_seconds": round(time.process_time() - start),
        "faults": {fault.name: about(fault) for fault in FAULTS},
        "planted": planted,
        "right": right,
    }
    print(report(record))
    if options.output:
        options.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        options.output.with_suffix(".md").write_text(report(record), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------- report


def ways_of(entry: Record) -> list[str]:
    """By which ways it is caught."""
    return [way for way in ("verify", "evaluate") if entry[way] and entry[way]["caught"]]


def caught(entries: Iterable[Record]) -> Counter[str]:
    """How many there are ("all"), and how many are caught "by verify", "by evaluate", "by both", "by neither"."""
    counts: Counter[str] = Counter()
    for entry in entries:
        ways = ways_of(entry)
        counts["all"] += 1
        counts.update(f"by {way}" for way in ways)
        counts[("by neither", "by one", "by both")[len(ways)]] += 1
    return counts


def told(planted: Sequence[Record], right: Sequence[Record]) -> str:
    """The headline."""
    counts, alarms = caught(planted), caught(right)
    return (
        f"{counts['all'] - counts['by neither']} of {counts['all']} planted faults caught, {counts['by verify']} by "
        f"verify=, {counts['by evaluate']} by evaluate; {alarms['all'] - alarms['by neither']} false alarms in "
        f"{alarms['all']} right patches"
    )


def report(record: Record) -> str:
    """Markdown: what was caught, by kind and fault by fault; and each that was not, with the reason."""
    faults, planted, right = record["faults"], record["planted"], record["right"]
    of: dict[str, list[Record]] = {}
    kinds: dict[str, list[Record]] = {}
    for entry in planted:
        of.setdefault(entry["fault"], []).append(entry)
        kinds.setdefault(faults[entry["fault"]]["kind"], []).append(entry)
    kinds |= {"all of them": planted, "held out": [one for one in planted if faults[one["fault"]]["held_out"]]}
    models = dict.fromkeys(entry["model"] for entry in planted)
    missed = [entry for entry in planted if not ways_of(entry)]
    alarms = [entry for entry in right if ways_of(entry)]
    return "\n".join(
        [
            _INTRODUCTION,
            f"{versions_of(record['environment'])}; one thread, {record['cpu_seconds']} s of CPU time.",
            "",
            f"{len(of)} faults in {len(models)} models ({', '.join(models)}): {told(planted, right)}.",
            "",
            markdown.table(
                ("kind", "planted", *_WAYS), [(kind, *_figures(entries)) for kind, entries in kinds.items()]
            ),
            "",
            "## Fault by fault",
            "",
            "In how many models a fault is planted, and in how many it is caught. Held out (h): no bar was set by it.",
            "",
            markdown.table(
                ("fault", "kind", "model in", "planted", *_WAYS),
                [(*_described(name, faults[name]), *_figures(entries)) for name, entries in of.items()],
            ),
            "",
            "## Not caught",
            "",
            markdown.table(
                ("fault", "model", "what moved most", "why"),
                [(e["fault"], e["model"], _cell(e["verify"]["said"]), faults[e["fault"]]["unseen"]) for e in missed],
            ),
            "",
            "## False alarms",
            "",
            *(f"- {entry['patch']}: {entry[way]['said']} ({way})" for entry in alarms for way in ways_of(entry)),
            *(["None."] if not alarms else []),
            "",
        ]
    )


_WAYS = ("by verify", "by evaluate", "by both", "by neither")


def _figures(entries: Sequence[Record]) -> list[str]:
    counts = caught(entries)
    return [str(counts[column]) for column in ("all", *_WAYS)]


def _described(name: str, fault: Record) -> tuple[str, str, str]:
    model = [fault["dtype"], *(["training"] if fault["training"] else [])]
    model += [fault["batch"]] if fault["batch"] != "usual" else []
    return f"{name} (h)" if fault["held_out"] else name, fault["kind"], ", ".join(model)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_INTRODUCTION = """\
# Faults planted, and right patches

Written by
`TRITON_INTERPRET=1 python -m scripts.benchmarking planted --output scripts/benchmarking/planted/planted.json`.

Each fault is an implementation that is registered as one of one's own, claims to compute what the model has, and does
not. It is planted at all sites of a tiny model, and asked for by name. "By verify":
`patch(model, verify=batch, gradients=True)` refuses it. "By evaluate": the evaluation calls it a wrong implementation.

A batch shows what it reaches. These hold several examples and an odd number of tokens; each activation is given some
thousand numbers, up to 12 and beyond. What goes wrong in bf16 only is looked for in a bf16 model; in training, in
training mode; of a single token, with a cache; of large tensors, with a long batch.
"""


def add(commands: Any) -> None:
    command = commands.add_parser(
        "planted", help="how far verify= and the evaluation's verdict can be trusted", allow_abbrev=False
    )
    command.add_argument(
        "--models", nargs="+", default=list(SPECIMENS), choices=list(SPECIMENS), metavar="NAME", help="(default: all)"
    )
    command.add_argument("--without_held_out", action="store_true", help="leave out what is kept for judging")
    command.add_argument("--output", type=Path, metavar="FILE", help="JSON with every verdict; the tables beside it")
    command.set_defaults(run=run)
