"""Claims 5, 6 and 8: small models trained from scratch with several functions, functions swapped in afterwards, healed,
and looked into."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel

from hf_gelu_patch import patch, patched
from hf_gelu_patch.evaluation.reference import REFERENCES
from hf_gelu_patch.profiling import watching
from scripts.profiling.observing import observing
from scripts.studying.sizes import Sizes
from scripts.training.digits import VIT, digits
from scripts.training.loop import train
from scripts.training.moby_dick import GPT2, character_model
from scripts.training.recipe import Batch, Optimisation, Recipe, Trainee

__all__ = ["FUNCTIONS", "OWN", "RECIPES", "SMOOTHED", "held_out_digits", "small_vit", "trained"]

FUNCTIONS = ("gelu", "gelu_tanh", "silu", "quick_gelu", "relu")
OWN = {"vit": "gelu", "gpt2": "gelu_tanh"}
"""The function that each recipe has."""
SMOOTHED = 25
"""Steps over which a curve of losses is averaged."""
_HEALING_RATE = 0.25  # of the recipe's, once a function was swapped in
_HELD_OUT = 0.15  # of the text
_EVALUATED = 64  # windows or images together


@dataclass(frozen=True)
class Small:
    """A small model that is trained here.

    Attributes:
        recipe: how it is optimised.
        trainee: the model and its batches, by seed.
        held_out: the batches that it is measured on.
    """

    recipe: Recipe
    trainee: Callable[[int], Trainee]
    held_out: Callable[[], list[Batch]]


def small_vit(seed: int) -> Trainee:
    """The reference model's recipe."""
    assert VIT.trainee is not None
    return VIT.trainee(None, REFERENCES["vit"].root / "vit", seed)


def held_out_digits() -> list[Batch]:
    """The 360 images that the recipe does not train on."""
    _, _, images, labels = digits()
    processor = AutoImageProcessor.from_pretrained(REFERENCES["vit"].root / "vit")
    pixels, targets = processor(images, return_tensors="pt")["pixel_values"], torch.tensor(labels)
    parts = zip(pixels.split(_EVALUATED), targets.split(_EVALUATED), strict=True)
    return [{"pixel_values": some, "labels": right} for some, right in parts]


def _text() -> tuple[Any, str, str]:
    """The tokenizer, and the text that comes with the reference model, in two parts."""
    folder = REFERENCES["gpt2"].root / "gpt2"
    text = (folder / "moby_dick.txt").read_text(encoding="utf-8")
    cut = int(len(text) * (1 - _HELD_OUT))
    return AutoTokenizer.from_pretrained(folder), text[:cut], text[cut:]


def _small_gpt2(seed: int) -> Trainee:
    """The reference model's recipe, on less text."""
    tokenizer, text, _ = _text()
    return character_model(tokenizer, text, seed)


def _held_out_text() -> list[Batch]:
    tokenizer, _, text = _text()
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    length = REFERENCES["gpt2"].max_length
    assert length is not None
    blocks = tokens[: len(tokens) // length * length].view(-1, length)
    return [{"input_ids": some, "labels": some} for some in blocks.split(_EVALUATED)]


RECIPES = {
    "vit": Small(VIT, small_vit, held_out_digits),
    "gpt2": Small(GPT2, _small_gpt2, _held_out_text),
}


def trained(name: str, function: str, seed: int, sizes: Sizes) -> dict[str, Any]:
    """A small model trained with one function from the weights and batches of a seed: how it learned, how good it is on
    what was held out, and what its activations give there. Of the recipe's own function also: what each other function
    costs once it is swapped in, and once it was healed.

    Returns:
        ``losses``, smoothed, every 25 steps; ``held_out``: the loss in nats and the share of right answers;
        ``activations``, by layer; ``swapped`` and ``healed``: ``held_out`` by function. The own function, trained on
        for as long, stands among the healed ones.
    """
    small, steps = RECIPES[name], sizes.steps[name]
    torch.manual_seed(seed)
    trainee = small.trainee(seed)
    if function != OWN[name]:
        patch(trainee.model, implementation="eager", activation=function)
    losses: list[float] = []
    optimisation = small.recipe.optimisation
    assert optimisation is not None
    train(trainee, dataclasses.replace(optimisation, averaging=0.0), steps, None, losses.append)
    model, batches = _plain(trainee.model), small.held_out()[: sizes.held_out]
    found: dict[str, Any] = {
        "recipe": name,
        "function": function,
        "seed": seed,
        "steps": steps,
        "losses": _smooth(losses),
        "held_out": _held_out(model, batches),
        "activations": _activations(model, batches),
    }
    if function == OWN[name]:
        others = [other for other in FUNCTIONS if other != function]
        healing = max(1, round(steps * sizes.healing))
        found["swapped"] = {}
        for other in others:
            with patched(model, implementation="eager", activation=other):
                found["swapped"][other] = _held_out(model, batches)
        found["healed"] = {
            one or function: _healed(small, _swapped(model, one), seed, healing, optimisation, batches)
            for one in (None, *others)
        }
    return found


def _swapped(model: nn.Module, function: str | None) -> nn.Module:
    """A copy with a function swapped in; None: as it is."""
    model = copy.deepcopy(model)
    if function is not None:
        patch(model, implementation="eager", activation=function)
    return model


def _healed(
    small: Small, model: nn.Module, seed: int, steps: int, optimisation: Optimisation, batches: Sequence[Batch]
) -> dict[str, float]:
    """A model trained on, with other batches and at a lower rate."""
    torch.manual_seed(1000 + seed)
    other = dataclasses.replace(small.trainee(1000 + seed), model=model)
    gentle = dataclasses.replace(
        optimisation, averaging=0.0, warmup=1, learning_rate=_HEALING_RATE * optimisation.learning_rate
    )
    train(other, gentle, steps, None, lambda _: None)
    return _held_out(model, batches)


def _smooth(losses: Sequence[float]) -> list[float]:
    """The means of each 25 losses that follow each other."""
    parts = [losses[start : start + SMOOTHED] for start in range(0, len(losses), SMOOTHED)]
    return [math.fsum(part) / len(part) for part in parts]


def _held_out(model: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    """The mean of −log softmax(logits)[label] in nats, and the share of labels that are likeliest."""
    model.eval()
    losses, right = [], []
    with torch.inference_mode():
        for batch in batches:
            labels = batch["labels"]
            logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
            if logits.dim() == 3:  # the next character
                logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            losses.append(cross_entropy(logits.double(), labels, reduction="none"))
            right.append(logits.argmax(dim=-1) == labels)
    return {"loss": float(torch.cat(losses).mean()), "accuracy": float(torch.cat(right).double().mean())}


def _activations(model: nn.Module, batches: Sequence[Batch]) -> list[dict[str, float]]:
    """Of each layer: the mean of what the activation is given and of what it gives, the latter's standard deviation,
    and the share of units that are never active, on all of what was held out. A unit is never active where its function
    is given nothing but numbers for which it is all but 0, as ``profile`` has it."""
    given: list[Tensor] = []
    outputs: list[list[Tensor]] = []
    inputs = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
    with torch.inference_mode(), patched(model, implementation=observing(given.append, FUNCTIONS)):
        for batch in inputs:
            model(**batch)
            outputs.append([*given])
            given.clear()
    with torch.inference_mode(), watching(model) as watched:
        for batch in inputs:
            watched.batch(batch)
            model(**batch)
        sites = watched.profile().sites
    found = []
    for layer, site in enumerate(site for site in sites if site.counts.activation is not None):
        values = torch.cat([some[layer].flatten(0, -2) for some in outputs]).double()
        dead = site.never_active
        found.append(
            {
                "given": site.counts.mean,
                "mean": float(values.mean()),
                "std": float(values.std()),
                "dead": math.nan if dead is None else len(dead) / values.shape[-1],
                "shift": float(values.mean(dim=0).norm() / values.square().mean(dim=0).sum().sqrt()),
            }
        )
    return found


def _plain(model: nn.Module) -> PreTrainedModel:
    """The same model as its config now says, unpatched: one that is patched is neither patched nor profiled again."""
    assert isinstance(model, PreTrainedModel)
    found: PreTrainedModel = type(model)(copy.deepcopy(model.config))
    found.load_state_dict(model.state_dict())
    return found.eval()
