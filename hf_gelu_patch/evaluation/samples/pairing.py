"""The same documents found in two runs, and why some were not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hf_gelu_patch.evaluation.samples.documents import Document, Samples

__all__ = ["Paired", "Unpaired", "pair"]

_CHANGED = "is another document in the second run"


@dataclass(frozen=True)
class Unpaired:
    """A document that is in one run alone, or cannot be told which it is: its number, and why."""

    number: str
    why: str


@dataclass(frozen=True)
class Paired:
    """The same documents of two runs, in the order of the first.

    Attributes:
        before, after: what each run said of them.
        unpaired: those left out.
        prompts_differ: of how many pairs the model was asked something else: other few-shot examples, or a chat
            template. The document is the same.
    """

    before: tuple[Document, ...]
    after: tuple[Document, ...]
    unpaired: tuple[Unpaired, ...]
    prompts_differ: int


def pair(before: Samples, after: Samples) -> Paired:
    """Pair documents by number, if their content is the same or nobody knows it; what is left by content, as where one
    run has the data in another order. What stands twice in a run is left out."""
    unpaired: list[Unpaired] = []
    mine, theirs = (_once(run.documents, side, unpaired) for run, side in ((before, "first"), (after, "second")))
    found: dict[str, Document] = {}
    for number, document in mine.items():
        other = theirs.get(number)
        if other is not None and (not document.content or not other.content or document.content == other.content):
            found[number] = other
    taken = {other.number for other in found.values()}
    moved = _by_content([one for number, one in theirs.items() if number not in taken])
    alone = _by_content([one for number, one in mine.items() if number not in found])
    for content, document in alone.items():
        if content in moved:
            found[document.number] = moved.pop(content)
    taken = {other.number for other in found.values()}
    twice = {one.number for one in unpaired}
    for number in mine:
        if number not in found and number not in twice:
            changed = number in theirs and number not in taken
            unpaired.append(Unpaired(number, _CHANGED if changed else "is missing in the second run"))
    for number in theirs:
        if number not in taken and number not in mine and number not in twice:
            unpaired.append(Unpaired(number, "is missing in the first run"))
    pairs = [(document, found[number]) for number, document in mine.items() if number in found]
    return Paired(
        tuple(one for one, _ in pairs),
        tuple(other for _, other in pairs),
        tuple(unpaired),
        sum(bool(one.prompt and other.prompt and one.prompt != other.prompt) for one, other in pairs),
    )


def _once(documents: Sequence[Document], side: str, unpaired: list[Unpaired]) -> dict[str, Document]:
    """Documents by their number; those that a run has several times are noted, and left out."""
    counts = Counter(document.number for document in documents)
    unpaired += [
        Unpaired(number, f"stands {count} times in the {side} run") for number, count in counts.items() if count > 1
    ]
    return {document.number: document for document in documents if counts[document.number] == 1}


def _by_content(documents: Sequence[Document]) -> dict[str, Document]:
    """Documents by their content, without those that are not told apart by it."""
    counts = Counter(document.content for document in documents)
    return {document.content: document for document in documents if document.content and counts[document.content] == 1}
