"""What is raised where something that was named for fine-tuning cannot be used."""

from __future__ import annotations

from hf_gelu_patch.evaluation.errors import EvaluationError


class FinetuningError(EvaluationError):
    """Something that was named for fine-tuning cannot be used; the message names the remedy. No file of the user's was
    changed."""
