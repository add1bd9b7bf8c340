"""The command ``scale``: evaluations of more and more examples in two processes on a CPU, and one that is killed.

Each part is in the record as soon as it is there. What is in the record is not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from hf_gelu_patch.implementations.measured import processors
from scripts.benchmarking.scale import making, running
from scripts.benchmarking.timing import environment

RECORD = "scale.json"
PROCESSES = 2
VARIANTS = ("aten", "activation=relu_squared")
BATCH = 512

_OTHERWISE = frozenset(
    {"timings", "speed", "seconds", "activation_share", "amdahl", "peak_memory", "load_memory", "created", "file"}
    | {"settings", "environment"}
)
"""What no two runs have alike: times, whether it was gone on with, and where transformers' own files lie."""


def run(options: argparse.Namespace) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    place = options.output / RECORD
    found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {"runs": {}}
    about = environment("cpu")
    for name in ("command", "git"):  # the sources say what ran
        about.pop(name)
    found["environment"] = {**about, "processor": processors.cpu()}
    found |= {"processes": PROCESSES, "variants": list(VARIANTS), "batch": BATCH}
    options.work.mkdir(parents=True, exist_ok=True)
    model = making.write_model(options.work / "model")
    for count in options.examples:
        name, kills = str(count), options.kills if count == options.killed else 0
        one = found["runs"].setdefault(name, {})
        parts = {"through": _through, "resumed": _resumed, "killed": partial(_killed, kills=kills)}
        for part, measure in parts.items():
            if part in one or (part == "killed" and not kills):
                continue
            one[part] = measure(options.work, model, count)
            one["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
            place.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(said(count, one), flush=True)


def _arguments(work: Path, model: Path, count: int) -> list[str]:
    data = work / f"rows{count}.csv"
    if not data.is_file():
        making.write_rows(data, count)
    variants = [word for variant in VARIANTS for word in ("--variant", variant)]
    return [
        *("--model_name_or_path", str(model), "--validation_file", str(data), *variants),
        *("--per_device_eval_batch_size", str(BATCH), "--timing_seconds", "0.2"),
    ]


def _through(work: Path, model: Path, count: int) -> dict[str, Any]:
    """Run to the end, and make the reports anew."""
    folder, arguments = work / f"through{count}", _arguments(work, model, count)
    shutil.rmtree(folder, ignore_errors=True)
    whole = running.evaluated(arguments, folder, PROCESSES)
    began = time.monotonic()
    from hf_gelu_patch.evaluation.report.files import rebuild

    rebuild([folder], work / f"rebuilt{count}")
    return {
        **whole.to_json(),
        "stages": _report(folder)["models"][0]["seconds"],
        "reports made anew, seconds": round(time.monotonic() - began, 2),
        "bytes of records": sum(path.stat().st_size for path in folder.glob("records/*/*.jsonl")),
        "bytes of data": (work / f"rows{count}.csv").stat().st_size,
    }


def _resumed(work: Path, model: Path, count: int) -> dict[str, Any]:
    """The same once more, with all answers there."""
    folder = work / f"through{count}"
    again = running.evaluated([*_arguments(work, model, count), "--resume"], folder, PROCESSES)
    return {**again.to_json(), "stages": _report(folder)["models"][0]["seconds"]}


def _killed(work: Path, model: Path, count: int, kills: int) -> dict[str, Any]:
    """Kill all processes again and again, and let the last run end: its report beside that of a run to the end."""
    folder, arguments = work / f"killed{count}", _arguments(work, model, count)
    shutil.rmtree(folder, ignore_errors=True)
    total = count * (1 + len(VARIANTS))
    draw = random.Random(count)
    moments = sorted(draw.uniform(0.02, 0.95) for _ in range(kills))
    runs = [running.evaluated([*arguments, "--resume"], folder, PROCESSES, round(moment * total)) for moment in moments]
    runs.append(running.evaluated([*arguments, "--resume"], folder, PROCESSES))
    reports = [_untimed(_report(one)) for one in (work / f"through{count}", folder)]
    return {
        "runs": [one.to_json() for one in runs],
        "lines": sum(path.read_bytes().count(b"\n") for path in folder.glob("records/*/*.jsonl")),
        "rows": total,
        "same report": json.dumps(reports[0], sort_keys=True) == json.dumps(reports[1], sort_keys=True),
    }


def _report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return found


def _untimed(part: Any) -> Any:
    """A report without what no two runs have alike, at any depth."""
    if isinstance(part, dict):
        return {key: _untimed(value) for key, value in part.items() if key not in _OTHERWISE}
    return [_untimed(one) for one in part] if isinstance(part, list) else part


def said(count: int, one: Mapping[str, Any]) -> str:
    """A line about so many examples."""
    whole = one["through"]
    text = (
        f"{count:,} examples: {whole['seconds']:.0f} s, at most {whole['most of its own'] / 2**20:.0f} MiB of a "
        f"process's own; reports made anew: {whole['reports made anew, seconds']} s"
    )
    if "resumed" in one:
        text += f"; resumed with all answers there: {one['resumed']['seconds']:.0f} s"
    if "killed" in one:
        killed = one["killed"]
        same = "the same report" if killed["same report"] else "ANOTHER REPORT"
        text += f"; killed {len(killed['runs']) - 1} times: {same}, {killed['lines'] - killed['rows']} lines more"
    return text


def table(found: Mapping[str, Any]) -> str:
    """What the guide shows of a record."""
    lines = [
        "| examples | whole run | until all are loaded | of a process's own memory, at most | resumed with all answers "
        "there | reports made anew | records |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for count, one in sorted(found["runs"].items(), key=lambda each: int(each[0])):
        whole, again = one["through"], one.get("resumed")
        cells = (
            f"{int(count):,}",
            f"{whole['seconds']:.0f} s",
            f"{whole['stages']['load']:.0f} s",
            f"{whole['most of its own'] / 2**20:.0f} MiB",
            "" if again is None else f"{again['seconds']:.0f} s",
            f"{whole['reports made anew, seconds']:.0f} s",
            f"{whole['bytes of records'] / 2**20:.0f} MiB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def of_killed(found: Mapping[str, Any]) -> str:
    """What the guide says of the run that was killed."""
    [(count, one)] = [(int(count), one["killed"]) for count, one in found["runs"].items() if "killed" in one]
    moments = [f"{run['killed at lines'] / one['rows']:.0%}" for run in one["runs"] if run["killed at lines"]]
    twice = one["lines"] - one["rows"] - found["processes"]  # a line in each file is the fingerprint
    same = "the same" if one["same report"] else "another one"
    return (
        f"With {count:,} examples all processes were also killed {len(moments)} times, by SIGKILL, with "
        f"{', '.join(moments[:-1])} and {moments[-1]} of the answers there. The last run's report was {same}, timings "
        f"aside; {twice:,} of {one['rows']:,} answers had been written twice."
    )


def add(commands: Any) -> None:
    what = "what an evaluation of many examples takes in two processes, and what it loses when it is killed"
    command = commands.add_parser("scale", help=what, description=what, allow_abbrev=False)
    command.add_argument(
        "--examples", nargs="+", type=int, default=[10_000, 100_000, 1_000_000], metavar="N", help="(default: 10,000, "
        "100,000 and 1,000,000)",
    )  # fmt: skip
    command.add_argument(
        "--killed", type=int, default=1_000_000, metavar="N", help="which of these is also killed (default: 1,000,000)"
    )
    command.add_argument("--kills", type=int, default=5, metavar="N", help="how many times (default: 5)")
    command.add_argument(
        "--work", type=Path, default=Path("results/scale/work"), metavar="FOLDER", help="for data and results"
    )
    command.add_argument(
        "--output", type=Path, default=Path("results/scale"), metavar="FOLDER",
        help=f"for {RECORD} (default: results/scale)",
    )  # fmt: skip
    command.set_defaults(run=run)
