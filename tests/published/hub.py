"""A model hub on this machine: what huggingface_hub asks for when it downloads a repository."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.serving import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves the files of `folder` as the model `repository`, and remembers which were downloaded."""

    def __init__(self, repository: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repository, self.folder = repository, folder
        self.downloaded: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, is_get: bool) -> tuple[bytes, dict[str, str]] | None:
        """What lies under a path of the hub, and its headers."""
        files = {file.name: file for file in sorted(self.folder.iterdir()) if file.is_file()}
        about, content = f"/api/models/{self.repository}", f"/{self.repository}/resolve/"
        if path.startswith(f"{about}/tree/"):
            return _json(
                [
                    {"type": "file", "path": name, "oid": _tag(file), "size": file.stat().st_size}
                    for name, file in files.items()
                ]
            )
        if path.startswith(about):
            return _json({"id": self.repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
        _, _, name = path.removeprefix(content).partition("/")
        if not path.startswith(content) or name not in files:
            return None
        if is_get:
            self.downloaded.append(name)
        return files[name].read_bytes(), {"X-Repo-Commit": COMMIT, "ETag": f'"{_tag(files[name])}"'}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._answer(is_get=False)

    def do_GET(self) -> None:
        self._answer(is_get=True)

    def _answer(self, is_get: bool) -> None:
        found = self.server.answer(unquote(urlsplit(self.path).path), is_get)
        body, headers = (b"{}", {"X-Error-Code": "EntryNotFound"}) if found is None else found
        self.send_response(404 if found is None else 200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if is_get:
            self.wfile.write(body)


@contextmanager
def local_hub(repository: str, folder: Path) -> Iterator[Hub]:
    """A hub of one model, as long as the block lasts."""
    with serving(Hub(repository, folder)) as hub:
        yield hub


def _json(content: Any) -> tuple[bytes, dict[str, str]]:
    return json.dumps(content).encode(), {"Content-Type": "application/json"}


def _tag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
