"""The metadata of a model card: what the hub shows beside a model."""

from __future__ import annotations

from pathlib import Path

from hf_gelu_patch.evaluation.report.results import Data

__all__ = ["model_card"]


def model_card(data: Data) -> str:
    """A model card's metadata (https://huggingface.co/docs/hub/model-cards#evaluation-results): every metric of each
    model, unpatched and patched, to go into the README.md of its repository on the hub."""
    import yaml
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    entries = []
    for model in data["models"]:
        subject = model["subject"]
        metrics = {"unpatched": model["unpatched"]}
        metrics |= {variant["name"]: variant["quality"]["after"] for variant in model["variants"]}
        of_data = Path(subject["data"]).name
        left = {"rows_left_out": len(model["skipped"])} if model["skipped"] else {}
        results = [
            EvalResult(
                task_type=Path(subject["task"]).stem,
                dataset_type=of_data,
                dataset_name=of_data,
                dataset_split=subject["split"],
                metric_type=metric,
                metric_name=f"{metric.replace('_', ' ')} ({variant})",
                metric_value=float(value),
                metric_args={"variant": variant} | left,
            )
            for variant, values in metrics.items()
            for metric, value in values.items()
        ]
        entries += eval_results_to_model_index(subject["name"], results) if results else []
    return f"---\n{yaml.safe_dump({'model-index': entries}, sort_keys=False, allow_unicode=True)}---\n"
