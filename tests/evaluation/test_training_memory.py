"""What a training step keeps for backward, in an evaluation: before and after each patch, in one process and in two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator
from evaluation_worker import finish, start, untimed

from hf_gelu_patch import patch
from hf_gelu_patch.evaluation.errors import EvaluationError
from hf_gelu_patch.evaluation.loading.models import load_model
from hf_gelu_patch.evaluation.loading.processors import load_processor
from hf_gelu_patch.evaluation.loading.subjects import load_rows, subject
from hf_gelu_patch.evaluation.options.settings import Settings
from hf_gelu_patch.evaluation.report.document import Table, sections
from hf_gelu_patch.evaluation.report.markdown import markdown
from hf_gelu_patch.evaluation.report.page import page
from hf_gelu_patch.evaluation.report.results import plain
from hf_gelu_patch.evaluation.run import evaluate, evaluate_subject
from hf_gelu_patch.evaluation.tasks.making import make_task
from hf_gelu_patch.evaluation.variants import Variant
from hf_gelu_patch.memory import measure

pytestmark = pytest.mark.slow

QUICK = Settings(
    variants=(Variant.parse("aten"), Variant.parse("aten,include=*.0.*")),
    min_rounds=3,
    min_seconds=0.01,
    max_seconds=0.1,
    batch_size=2,
    memory=True,
)


def test_it_is_in_every_report(checkpoint: Path, data: Path) -> None:
    one = subject(str(checkpoint), validation_file=str(data))
    result = evaluate_subject(one, QUICK, Accelerator(cpu=True))
    model = load_model(one.model, one.task)
    task = make_task(one, model.config, load_processor(one.model, one.task), load_rows(one), limit=None)
    batches = task.batches(2)
    whole, part = (variant.patch.memory for variant in result.variants)
    assert whole is not None
    assert part is not None
    batch = batches[len(batches) // 2]
    before = measure(model, batch.inputs)
    patch(model, implementation="aten")
    assert (whole.before, whole.after) == (before, measure(model, batch.inputs))
    assert whole.after.saved < part.after.saved < part.before.saved == before.saved
    found = plain([result], QUICK, {})
    [section] = [section for section in sections(found) if section.title == "Memory of a training step"]
    [table] = [block for block in section.blocks if isinstance(block, Table)]
    kept = f"{before.saved / 2**20:,.2f} MiB", f"{whole.after.saved / 2**20:,.2f} MiB"
    assert [cell[0] for cell in table.rows[0][2:5]] == ["all that is kept for backward", *kept]
    for text in (markdown(found), page(found, {})):
        assert "Memory of a training step" in text
        assert all(size in text for size in kept)
        assert f"memory: {whole.lines()[0]}" in text


def test_what_has_no_gradients_is_refused_with_the_remedy(checkpoint: Path, data: Path) -> None:
    one = subject(str(checkpoint), validation_file=str(data))
    model = load_model(one.model, one.task).requires_grad_(False)
    task = make_task(one, model.config, load_processor(one.model, one.task), load_rows(one), limit=None)
    with pytest.raises(EvaluationError, match=r"BertFor\w+ keeps cannot be measured .*leave out --memory"):
        evaluate(model, task, QUICK, Accelerator(cpu=True))
    result = evaluate(model, task, replace(QUICK, memory=False), Accelerator(cpu=True))
    assert result.variants[0].patch.memory is None


def test_two_processes_have_the_figures_of_one(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    found = finish(start(checkpoint, data, tmp_path, QUICK, 2), tmp_path)
    alone = untimed(evaluate_subject(subject(str(checkpoint), validation_file=str(data)), QUICK, Accelerator(cpu=True)))
    memories = [variant["patch"]["memory"] for variant in found["variants"]]
    assert None not in memories
    assert memories == [variant["patch"]["memory"] for variant in alone["variants"]]
