"""Metrics of the user's own, or from the hub: any ``evaluate.Metric``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line
from hf_gelu_patch.evaluation.hub import HUB_ID, ask_hub

if TYPE_CHECKING:
    import evaluate


def find_metric(name: str, *, allow_download: bool) -> str:
    """The path of a metric's script, or its name on the hub, where it is cached or may be fetched.

    Raises:
        EvaluationError: it is neither.
    """
    path = Path(name).expanduser()
    if path.suffix == ".py" or path.is_dir():
        script = path if path.suffix == ".py" else path / f"{path.resolve().name}.py"
        if not script.is_file():
            raise EvaluationError(
                f"there is no metric's script {script}: name the file, or a folder that is called so."
            )
        return str(script.resolve())
    if path.exists() or not HUB_ID.fullmatch(name):
        raise EvaluationError(f"{name} is no metric's script (.py), and no name on the hub.")
    if not allow_download:
        from huggingface_hub import constants

        modules = Path(os.environ.get("HF_MODULES_CACHE", Path(constants.HF_HOME) / "modules")) / "evaluate_modules"
        stored = [f"evaluate-{kind}--{name}" for kind in ("metric", "comparison", "measurement")]
        stored = [name.replace("/", "--")] if "/" in name else stored
        if not any((modules.expanduser() / "metrics" / folder).is_dir() for folder in stored):
            raise EvaluationError(
                f"the metric {name!r} is no script here, and is not in the hub's cache. Name a script with "
                "--metric path/to/metric.py, or add --allow_download to fetch it."
            )
    else:
        ask_hub()
    return name


def load_metric(name: str, *, allow_download: bool = False) -> evaluate.EvaluationModule:
    """Another metric, by the path of its script or folder, or its name on the hub.

    Raises:
        EvaluationError: it isn't there, or cannot be loaded.
    """
    found = find_metric(name, allow_download=allow_download)
    import evaluate

    offline = evaluate.config.HF_EVALUATE_OFFLINE
    evaluate.config.HF_EVALUATE_OFFLINE = offline or not allow_download
    try:
        return evaluate.load(found, keep_in_memory=True)
    except Exception as error:  # it is someone else's code, fetched or not
        missing = f" Install {error.name}." if isinstance(error, ModuleNotFoundError) else ""
        raise EvaluationError(f"the metric {name} cannot be loaded: {first_line(error)}{missing}") from error
    finally:
        evaluate.config.HF_EVALUATE_OFFLINE = offline
