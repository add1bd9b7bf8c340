"""An earlier checkout of the package beside this one, in one process: so that both are timed in the same rounds."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = "hf_gelu_patch"


class EarlierError(Exception):
    """There is no package in the folder."""


class Earlier:
    """The package in a folder.

    Its modules are in ``sys.modules`` only while its ``patch`` runs. What it imports later, inside a function, would be
    this checkout's; on a CPU it imports nothing later.
    """

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            EarlierError: ``folder`` does not hold it.
        """
        if not (folder / _PACKAGE / "__init__.py").is_file():
            raise EarlierError(f"there is no {_PACKAGE} in {folder}: name the root of a checkout, as of 'git worktree'")
        self.folder = folder.resolve()
        self._modules: dict[str, ModuleType] = {}

    def patch(self, model: Any) -> Any:
        """Patch a model as that checkout does by itself; its report."""
        with self._there():
            patch: Callable[[Any], Any] = importlib.import_module(_PACKAGE).patch
            return patch(model)

    @contextmanager
    def _there(self) -> Iterator[None]:
        own = _take_out()
        sys.modules.update(self._modules)
        sys.path.insert(0, str(self.folder))
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path.remove(str(self.folder))
            self._modules = _take_out()
            sys.modules.update(own)


def _take_out() -> dict[str, ModuleType]:
    """The package's modules, which are not in ``sys.modules`` then."""
    names = [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]
    return {name: sys.modules.pop(name) for name in names}
