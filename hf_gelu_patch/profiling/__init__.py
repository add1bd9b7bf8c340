"""What a model's activations are given on real data, and what other functions would make of it.

grid (the axis in cells) → counts (what adds up of one site) → results (the figures) → watching (how the sites are
reached) → profile. table and page show the results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.utils.data import DataLoader

from hf_gelu_patch.errors import PatchError
from hf_gelu_patch.profiling.results import Moved, Profile, SiteProfile
from hf_gelu_patch.profiling.watching import watching
from hf_gelu_patch.selection import Selector
from hf_gelu_patch.sites import check_module
from hf_gelu_patch.verification.copies import copied
from hf_gelu_patch.verification.restoring import as_it_was, seeded
from hf_gelu_patch.verification.runs import called, cannot_run

__all__ = ["Moved", "Profile", "SiteProfile", "profile", "watching"]


def profile(
    model: nn.Module,
    batch: object,
    *,
    include: Selector = None,
    exclude: Selector = None,
    activations: Sequence[str] | None = None,
) -> Profile:
    """What each site of a model is given, in one pass over data: mean, spread and histogram of the pre-activations, how
    many lie in which region of the function, which units are never active, and how far every other function would move
    what the site gives. Nothing is patched; the model computes what it always does, in the mode it is in, without
    gradients, and is afterwards as it was.

    Of act(gate) · up it is the gate that is looked at, and the drift is that of the product. Padding is left out where
    ``attention_mask`` tells of it.

    Args:
        model: unpatched, and not compiled.
        batch: as for ``patch(verify=)``: keyword arguments as a mapping, positional ones as a tuple or list, or one
            tensor. Or several: a ``DataLoader``, or an iterator over such batches, which is run through once, one batch
            held at a time.
        include, exclude: which sites, as for ``patch``.
        activations: the functions to hold each site against, by name; None for all that are usual in hidden layers.

    Returns:
        The figures. Of several processes, each with batches of its own, ``Profile.together`` makes one, exactly.

    Raises:
        PatchError: ``model`` is not a module or is compiled; or it cannot run on a batch.
        NoSitesError, NothingMatchedError, UnknownNameError, AlreadyPatchedError: as ``patch`` raises them.
    """
    check_module(model)
    batches = batch if isinstance(batch, (Iterator, DataLoader)) else (batch,)
    with as_it_was(model), seeded(), torch.no_grad(), watching(model, include, exclude, activations) as watched:
        number = 0
        for number, one in enumerate(batches, start=1):
            watched.batch(one)
            try:
                called(model, copied(one))
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                raise PatchError(cannot_run(model, f"batch {number}", error)) from error
        if not number:
            raise PatchError("there is no batch to profile the model on.")
        return watched.profile()
