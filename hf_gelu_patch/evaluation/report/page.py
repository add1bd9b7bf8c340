"""Results as one web page that needs nothing else: no network, no scripts, pictures inside."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from hf_gelu_patch.evaluation.report.document import NOTES, sections, summary, tone
from hf_gelu_patch.evaluation.report.results import Data
from hf_gelu_patch.evaluation.report.shipping import shipping, together

__all__ = ["page", "templates_in"]

_NAMED = 3  # models in the title


def page(data: Data, pictures: Mapping[str, bytes]) -> str:
    """The page as HTML; whatever is not the template's own text is escaped.

    Args:
        pictures: the plots by name, as PNG, at twice the size that they are shown at.
    """
    names = [model["subject"]["name"] for model in data["models"]]
    found = shipping(data)
    return _template().render(
        title=f"Evaluation: {', '.join(names)}" if len(names) <= _NAMED else f"Evaluation of {len(names)} models",
        created=data["created"],
        shipping=found,
        together=together(found),
        summary=summary(data),
        notes=NOTES,
        sections=sections(data, tuple(pictures)),
        pictures={name: _embedded(png) for name, png in pictures.items()},
    )


def templates_in(folder: Path) -> Environment:
    """The templates of pages in a folder: what they are given is escaped, and a name that is not given is an error."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template() -> Template:
    templates = templates_in(Path(__file__).parent / "templates")
    templates.filters |= {"anchor": _anchor, "breakable": _breakable, "kind": _kind, "tone": tone, "whole": _whole}
    return templates.get_template("page.html.jinja")


def _embedded(png: bytes) -> dict[str, Any]:
    """A picture's address, which holds it, and the width that it is shown at."""
    width = int.from_bytes(png[16:20], "big")  # as its header has it
    return {"source": f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}", "width": width // 2}


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _kind(block: object) -> str:
    return type(block).__name__


def _breakable(text: str) -> Markup:
    """A name that may go on in another line where one of its parts ends."""
    return Markup("<wbr>").join(re.split(r"(?<=[=,;/_.])(?=\D)", text))


def _whole(text: str) -> Markup:
    """A text in which no option is broken."""
    return Markup(re.sub(r"--\w+", r"<code>\g<0></code>", str(Markup.escape(text))))
