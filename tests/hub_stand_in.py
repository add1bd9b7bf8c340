"""A stand-in for the hub on this machine: serves folders under the hub's own addresses, over HTTP."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/[^/]+(?:/(.*))?)?")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    models: Mapping[str, Path]
    datasets: Mapping[str, Path]

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: pytest shows what a test prints."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = unquote(urlsplit(self.path).path)
        if match := _API.fullmatch(path):
            kind, repository, what, below = match.groups()
            folder = (self.models if kind == "models" else self.datasets).get(repository)
            if folder is None:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return
            recursive = what != "tree" or "recursive=true" in urlsplit(self.path).query.lower()
            entries = [
                self._entry(folder, file) for file in _paths(folder / (below or ""), folder, recursive=recursive)
            ]
            if what == "paths-info":
                asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
                entries = [entry for entry in entries if entry["path"] in asked]
            whole = {
                "id": repository,
                "sha": COMMIT,
                "private": False,
                "tags": [],
                "siblings": [{"rfilename": entry["path"]} for entry in entries if entry["type"] == "file"],
            }
            self._send(200, json.dumps(whole if what in (None, "revision") else entries).encode(), {})
        elif match := _FILE.fullmatch(path):
            dataset, repository, name = match.groups()
            folder = (self.datasets if dataset else self.models).get(repository)
            file = None if folder is None else folder / name
            if file is None or not file.is_file():
                code = "RepoNotFound" if folder is None else "EntryNotFound"
                self._send(404, b"", {"X-Error-Code": code, "X-Repo-Commit": COMMIT})
                return
            content = file.read_bytes()
            tag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._send(200, content, {"ETag": tag, "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(content))})
        else:
            self._send(404, b"", {})

    @staticmethod
    def _entry(folder: Path, file: str) -> dict[str, Any]:
        if (folder / file).is_dir():
            return {"type": "directory", "path": file, "size": 0, "oid": COMMIT}
        content = (folder / file).read_bytes()
        return {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _paths(below: Path, folder: Path, *, recursive: bool) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in (below.rglob("*") if recursive else below.glob("*")))


@contextmanager
def serve(models: Mapping[str, Path] | None = None, datasets: Mapping[str, Path] | None = None) -> Iterator[str]:
    """The stand-in's address, for ``HF_ENDPOINT``; what it serves, by ``owner/name``."""
    handler = type("Handler", (_Handler,), {"models": models or {}, "datasets": datasets or {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
