"""A hub on this machine that takes uploads: what huggingface_hub asks for when it makes a repository and commits."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event
from typing import Any
from urllib.parse import urlsplit

from tests.serving import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".parquet")


class UploadHub(ThreadingHTTPServer):
    """Keeps what was committed to each repository.

    Attributes:
        repositories: (kind, name) -> file name -> content.
        private: repositories that were asked to be.
        tokens: of the requests.
        silence: no request is answered until it is set.
        refusals: part of a path -> the status and message that requests to it are answered with.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[tuple[str, str], dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.tokens: set[str | None] = set()
        self.messages: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.silence = Event()
        self.silence.set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """What a request is answered with."""
        self.silence.wait()
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            return {"files": [_mode(file["path"]) for file in json.loads(body)["files"]]}
        if path.endswith("/info/lfs/objects/batch"):
            return {"objects": [self._place(one) for one in json.loads(body)["objects"]]}
        if path.startswith("/objects/"):
            self.objects[path.rpartition("/")[2]] = body
            return {}
        assert "/commit/" in path, path
        return self._commit(path, [json.loads(line) for line in body.splitlines()])

    def _create(self, asked: dict[str, Any]) -> dict[str, Any]:
        kind, name = asked.get("type") or "model", f"{asked['organization']}/{asked['name']}"
        self.repositories.setdefault((kind, name), {})
        if asked.get("private") or asked.get("visibility") == "private":
            self.private.add(name)
        return {"url": f"{self.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"}

    def _place(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {**asked, "actions": {"upload": {"href": f"{self.endpoint}/objects/{asked['oid']}"}}}

    def _commit(self, path: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        _, _, kinds, owner, name, *_ = path.split("/")
        files = self.repositories[kinds.removesuffix("s"), f"{owner}/{name}"]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.objects[value["oid"]]
        return {"commitUrl": f"{self.endpoint}/{owner}/{name}/commit/{COMMIT}", "commitOid": COMMIT}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: UploadHub

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not path.startswith("/objects/"):
            self.server.tokens.add(self.headers.get("Authorization"))
        for part, (status, message) in self.server.refusals.items():
            if part in path:
                self._reply(status, {"error": message}, {"X-Error-Message": message})
                return
        self._reply(200, self.server.answer(path, body), {})

    do_PUT = do_POST

    def do_GET(self) -> None:
        """What older releases ask of a repository: whether it is there, and its kind of storage."""
        _, _, kinds, owner, name, *_ = urlsplit(self.path).path.split("/")
        if (kinds.removesuffix("s"), f"{owner}/{name}") in self.server.repositories:
            self._reply(200, {"id": f"{owner}/{name}", "xetEnabled": False}, {})
        else:
            self._reply(404, {"error": "none"}, {"X-Error-Code": "RepoNotFound"})

    def _reply(self, status: int, content: dict[str, Any], headers: dict[str, str]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def upload_hub() -> Iterator[UploadHub]:
    """A hub, as long as the block lasts."""
    with serving(UploadHub()) as hub:
        yield hub


def _mode(path: str) -> dict[str, Any]:
    return {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
