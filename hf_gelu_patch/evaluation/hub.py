"""The hub: whether it can be reached, and what of it lies in the caches here."""

from __future__ import annotations

import os
import re
import socket
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from hf_gelu_patch.evaluation.errors import EvaluationError, first_line

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""What a model or a metric on the hub is called."""


def ask_hub() -> None:
    """Whether the hub can be reached at all, within two seconds: its own client goes on trying for half a minute.

    Raises:
        EvaluationError: it cannot.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise EvaluationError(
            "HF_HUB_OFFLINE is set, so that nothing can be fetched: unset it, or leave out --allow_download."
        )
    address = urlsplit(constants.ENDPOINT)
    if urllib.request.getproxies().get(address.scheme) and not urllib.request.proxy_bypass(address.hostname or ""):
        return  # whoever stands between has to be asked by the client
    failure: list[Exception] = [TimeoutError("no answer")]

    def ask() -> None:
        port = address.port or {"http": 80}.get(address.scheme, 443)
        try:
            socket.create_connection((address.hostname or "", port), timeout=1.5).close()
            failure.clear()
        except OSError as error:
            failure[:] = [error]

    thread = threading.Thread(target=ask, daemon=True)  # looking a name up knows no limit of time
    thread.start()
    thread.join(1.5)
    if failure:
        raise EvaluationError(
            f"the hub cannot be reached at {constants.ENDPOINT} ({first_line(failure[0])}): check the connection (or "
            "HF_ENDPOINT), or leave out --allow_download to use what is in the cache."
        )


def data_caches(name: str) -> tuple[Path, Path]:
    """Where data from the hub lie once they were loaded, and once they were only fetched."""
    from huggingface_hub import constants

    prepared = Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME) / "datasets"))
    fetched = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "snapshots"
    return prepared.expanduser() / name.replace("/", "___"), fetched


def stored_file(place: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a checkpoint, in its folder or in the hub's cache; None where it isn't there."""
    if Path(place).is_dir():
        path = Path(place) / name
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(place, name, revision=revision)
    return Path(cached) if isinstance(cached, str) else None
