"""Results for people and for programs: a table on the screen, the same in Markdown, and everything as JSON."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_gelu_patch.evaluation.loading import EvaluationError
from hf_gelu_patch.evaluation.speed import CONFIDENCE

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from hf_gelu_patch import Report
    from hf_gelu_patch.evaluation.quality import Quality
    from hf_gelu_patch.evaluation.run import Result, Settings
    from hf_gelu_patch.evaluation.speed import Speed

__all__ = ["JSON_NAME", "MARKDOWN_NAME", "environment", "markdown", "print_results", "save", "to_dict", "writable"]

JSON_NAME, MARKDOWN_NAME = "evaluation.json", "evaluation.md"

_HEADINGS = ("model", "quality", "answers changed", "max |Δlogit|", "speed", "verdict")
_NOTES = (
    "Before → after the patch, on the same examples. Right → wrong and wrong → right are held against each other by "
    "the exact McNemar test (p). Speed is that of the forward pass, the median over rounds in which each variant ran "
    f"the same batch, with the {CONFIDENCE:.0%} bootstrap interval of the ratio; the noise is what the unpatched model "
    "shows against itself in the same rounds."
)


@dataclass(frozen=True)
class _Row:
    """A result in words; a cell may have several lines."""

    model: list[str]
    quality: list[str]
    answers: list[str]
    logits: list[str]
    speed: list[str]
    verdict: list[str]

    @property
    def cells(self) -> tuple[list[str], ...]:
        return self.model, self.quality, self.answers, self.logits, self.speed, self.verdict


def _row(result: Result) -> _Row:
    return _Row(
        model=[result.subject.name, f"{result.parameters / 1e6:.2f} M parameters"],
        quality=[
            f"{name.replace('_', ' ')} {_figure(value)} → {_figure(result.quality.after[name])}"
            for name, value in result.quality.before.items()
        ],
        answers=_answers(result.quality),
        logits=[_change(result.quality)],
        speed=_speed(result.speed),
        verdict=_verdict(result),
    )


def _figure(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.2f}"


def _answers(quality: Quality) -> list[str]:
    lines = [f"{quality.flips:,} of {quality.answers:,}"]
    if quality.right_to_wrong or quality.wrong_to_right:
        lines += [
            f"{quality.right_to_wrong:,} right → wrong",
            f"{quality.wrong_to_right:,} wrong → right",
            f"p = {quality.mcnemar_p:.2g}" if quality.mcnemar_p >= 1e-4 else "p < 0.0001",
        ]
    return lines


def _change(quality: Quality) -> str:
    if quality.max_abs_logit_change == 0:
        return "0"
    return f"{quality.max_abs_logit_change:.2g} (of {quality.max_abs_logit:.3g})"


def _speed(speed: Speed) -> list[str]:
    noise = math.exp(max(abs(math.log(speed.floor.low)), abs(math.log(speed.floor.high)))) - 1
    if speed.after is None or speed.ratio is None:
        return [f"{_rate(speed.before)} {speed.unit}/s", f"noise ±{noise:.1%}"]
    return [
        f"{_rate(speed.before)} → {_rate(speed.after)} {speed.unit}/s",
        f"{speed.ratio.value:.3f}× ({speed.ratio.low:.3f} to {speed.ratio.high:.3f})",
        f"noise ±{noise:.1%}",
    ]


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _verdict(result: Result) -> list[str]:
    if not result.patch.changed:
        return [_nothing(result.patch)]
    from hf_gelu_patch.evaluation.quality import judge

    return [result.speed.verdict, judge(result.quality)]


def _nothing(patch: Report) -> str:
    """Why a patch changed nothing."""
    reasons = Counter(site.reason for site in patch.unchanged)
    said = ", ".join(f"{count} × {reason}" for reason, count in reasons.items())
    one_op = all(reason.endswith("one aten op already") for reason in reasons)
    return f"{'nothing to gain here' if one_op else 'nothing patched'}: {said}"


def print_results(results: Sequence[Result], console: Console) -> None:
    """The table, and below it what each patch did."""
    from rich.table import Table
    from rich.text import Text

    # Piped, there is no width to be had: wide enough for every cell on its own line.
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    table: Table = Table(*_HEADINGS, show_lines=True)
    styles = {"faster": "green", "slower": "red", "answers unchanged": "green", "answers worse": "red"}
    for result in results:
        row = _row(result)
        verdict = Text("\n").join(Text(line, style=styles.get(line, "")) for line in row.verdict)
        table.add_row(*(Text("\n".join(cell)) for cell in row.cells[:-1]), verdict)
    console.print(table)
    console.print(_NOTES, markup=False, highlight=False)
    console.print()
    for result in results:
        console.print(f"{result.subject.name}: {result.patch}", markup=False, highlight=False, soft_wrap=True)


def markdown(results: Sequence[Result], settings: Settings, surroundings: dict[str, Any]) -> str:
    """The same table, the patch reports and the environment."""

    def cell(lines: Sequence[str]) -> str:
        return "<br>".join(line.replace("|", "\\|") for line in lines)

    lines = ["# Evaluation", "", f"| {' | '.join(cell([heading]) for heading in _HEADINGS)} |"]
    lines += ["| " + " | ".join("---" for _ in _HEADINGS) + " |"]
    lines += [f"| {' | '.join(cell(lines) for lines in _row(result).cells)} |" for result in results]
    lines += ["", _NOTES.replace("|", "\\|"), "", "## What was patched", "", "```text"]
    lines += [f"{result.subject.name}: {result.patch}" for result in results]
    lines += ["```", "", "## Settings and environment", "", "```json"]
    lines += [json.dumps({"settings": asdict(settings), "environment": surroundings}, indent=2, ensure_ascii=False)]
    return "\n".join([*lines, "```", ""])


def to_dict(results: Sequence[Result], settings: Settings, surroundings: dict[str, Any]) -> dict[str, Any]:
    """Everything, raw samples included, as plain data that is valid JSON: what is not finite becomes None."""
    models = []
    for result in results:
        data = {**vars(result), "patch": None}
        data = {key: asdict(value) if hasattr(value, "__dataclass_fields__") else value for key, value in data.items()}
        data["patch"] = {"summary": result.patch.summary, **result.patch.to_dict()}
        data["subject"]["data"] = str(result.subject.data)
        data["row"] = dict(zip(_HEADINGS, _row(result).cells, strict=True))
        models.append(data)
    plain = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "settings": asdict(settings),
        "environment": surroundings,
        "models": models,
    }
    finite: dict[str, Any] = _finite(plain)
    return finite


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def environment(*, processes: int, device: str, command: Sequence[str]) -> dict[str, Any]:
    """Versions, hardware, threads, processes, and the git revision where this is a checkout.

    Args:
        command: the program and its arguments, of which the program's folder is left out.
    """
    import torch

    names = ("hf-gelu-patch", "torch", "transformers", "accelerate", "datasets", "evaluate", "tokenizers", "numpy")
    versions = {}
    for name in (*names, "triton"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    cuda = device.startswith("cuda")
    return {
        "command": [Path(command[0]).name, *command[1:]],
        "versions": {"python": platform.python_version(), **versions, "torch": torch.__version__},  # which build of it
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": device,
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "git": _git(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git() -> dict[str, Any] | None:
    """The revision of the checkout this file is in, and whether it was changed since."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        revision, status = (
            subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=True).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"revision": revision.strip(), "changed": bool(status.strip())}


def writable(folder: Path) -> None:
    """Make the folder for results, and see that files can be written to it.

    Raises:
        EvaluationError: they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EvaluationError(
            f"results cannot be written to {folder}: {error.strerror or error}. Name another folder with --output_dir."
        ) from error


def save(
    results: Sequence[Result], settings: Settings, surroundings: dict[str, Any], folder: Path
) -> tuple[Path, Path]:
    """Write JSON and Markdown, each at once: whoever reads sees the old file or the whole new one.

    Raises:
        EvaluationError: they cannot be written.
    """
    data = json.dumps(to_dict(results, settings, surroundings), indent=1, ensure_ascii=False, allow_nan=False)
    paths = folder / JSON_NAME, folder / MARKDOWN_NAME
    writable(folder)
    for path, text in zip(paths, (data + "\n", markdown(results, settings, surroundings)), strict=True):
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise EvaluationError(f"{path} cannot be written: {error.strerror or error}.") from error
        finally:
            temporary.unlink(missing_ok=True)
    return paths
