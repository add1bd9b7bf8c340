"""Patched models trained by two processes: each ends where one process does on all of their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import processes
import pytest
from distributed_worker import BF16, EXACT, LAYERS, MICRO_STEPS, RANKS, STEPS, Case, cases

pytestmark = pytest.mark.slow


def by_both(kind: str, folder: Path) -> list[dict[str, Any]]:
    """What each process says of each training."""
    done = processes.run("-m", "tests.distributed_worker", kind, folder, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    found = [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(RANKS)]
    raised = {name: one["raised"] for told in found for name, one in told.items() if "raised" in one}
    assert not raised, "\n".join(f"{name}: {error}" for name, error in raised.items())
    return found


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_train_as_one_does(kind: str, tmp_path: Path) -> None:
    for rank, found in enumerate(by_both(kind, tmp_path)):
        assert found.keys() == {case.name for model in LAYERS for case in cases(model)}
        for model in LAYERS:
            own = {precision: found[Case(model, "never", precision=precision).name] for precision in (EXACT, BF16)}
            for case in cases(model):
                told = found[case.name]
                taken = STEPS + case.saved
                if kind == "ddp":  # a parameter's hooks: once each backward; its gradient is sent once each step
                    assert told["fired"] == [MICRO_STEPS * taken], case
                    assert told["reduced"] == [taken], case
                else:
                    assert told["fired"] == [taken], case
                assert told["in tiles"] == (2 if case.patch in ("tiles", "both") else 0), case
                least = found[Case(model, "before", "recompute").name]["kept"]
                if case.patch != "plain" or (model in ("gpt2", "opt") and case.when != "never"):  # gelu_new: of 8 ops
                    assert told["kept"] < own[case.precision]["kept"], case
                if case.patch in ("tiles", "both"):
                    assert told["kept"] < least, case
                if case.checkpointing:
                    assert told["kept"] < least / 2, case
                assert told["unpatched"] == pytest.approx(0, abs=1e-6 if case.precision == EXACT else 1e-2), case
                if case.saved:
                    assert told["loaded"], case
                if kind == "ddp" or rank == 0:
                    assert told["error"] < (1e-12 if case.precision == EXACT else 2 * own[BF16]["error"]), case
