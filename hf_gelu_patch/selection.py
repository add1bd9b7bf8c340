"""Which sites a user asks for: the patterns of ``include`` and ``exclude``."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from hf_gelu_patch.activations import Resolved, Unresolved
from hf_gelu_patch.errors import NothingMatchedError, PatchError
from hf_gelu_patch.sites import Site

__all__ = ["Selection", "Selector"]

Selector = str | type[nn.Module] | Iterable[str | type[nn.Module]] | None
"""Which sites: glob patterns on a site's path, the class name of its owner or its module, or its activation; or
classes of either. One, or several of which any may match."""


class Selection:
    """include and exclude, and which of their patterns have matched something."""

    def __init__(self, include: Selector, exclude: Selector) -> None:
        self.include = self._listed("include", include)
        self.exclude = self._listed("exclude", exclude) or ()
        self._used: set[str | type[nn.Module]] = set()

    @staticmethod
    def _listed(argument: str, selector: Selector) -> tuple[str | type[nn.Module], ...] | None:
        if selector is None:
            return None
        if isinstance(selector, (str, type)) or not isinstance(selector, Iterable):
            selector = (selector,)
        listed = tuple(selector)
        for pattern in listed:
            if not isinstance(pattern, str) and not (isinstance(pattern, type) and issubclass(pattern, nn.Module)):
                raise PatchError(f"{argument} takes glob patterns and module classes; got {pattern!r}.")
        return listed

    def why_not(
        self, site: Site, module: nn.Module | None, owner: nn.Module, current: Resolved | Unresolved
    ) -> str | None:
        """Why a site is not selected, or None where it is."""
        names = [site.path, site.module, site.activation, site.owner]
        if isinstance(current, Resolved):
            names.append(current.activation.name)
        objects = (module, owner)

        def matching(patterns: tuple[str | type[nn.Module], ...]) -> list[str | type[nn.Module]]:
            return [
                pattern
                for pattern in patterns
                if (
                    any(fnmatchcase(name, pattern) for name in names)
                    if isinstance(pattern, str)
                    else any(isinstance(one, pattern) for one in objects)
                )
            ]

        included = None if self.include is None else matching(self.include)
        excluded = matching(self.exclude)
        self._used.update(included or (), excluded)
        if excluded:
            return f"excluded by {_named(excluded[0])}"
        return "not included" if included == [] else None

    def check_used(self, paths: Iterable[str]) -> None:
        """Raise NothingMatchedError for a pattern that matched no site."""
        for pattern in (*(self.include or ()), *self.exclude):
            if pattern not in self._used:
                shown = list(paths)
                raise NothingMatchedError(
                    f"{_named(pattern)} matches no site. A pattern is compared, as a glob, with a site's path, the "
                    f"class names of its owner and its module, and its activation ('encoder.*' is all below encoder). "
                    f"Sites: {', '.join(shown[:6]) or 'none'}{', …' if len(shown) > 6 else ''}."
                )


def _named(pattern: str | type[nn.Module]) -> str:
    return repr(pattern) if isinstance(pattern, str) else pattern.__name__
