import hashlib
import json
import os
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.serving import serving

SCRIPT = Path(__file__).parents[2] / "data" / "download_data.py"
RECORDS = [
    {"question": "1+1?", "ground_truth_answer": "2"},
    {"question": "é\r\n", "ground_truth_answer": "3"},
]
VALID = json.dumps(RECORDS, ensure_ascii=False).encode()


class HubHandler(BaseHTTPRequestHandler):
    """Serves dataset files as the hub does: metadata in the headers of HEAD, content by GET."""

    def do_HEAD(self) -> None:
        self.respond(send_body=False)

    def do_GET(self) -> None:
        self.respond(send_body=True)

    def respond(self, send_body: bool) -> None:
        server = self.server
        server.requested.append((self.command, self.path))
        content = server.contents.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("X-Repo-Commit", "0123456789" * 4)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
            content = b""
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        body = content[: server.body_bytes] if send_body else content
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send_body and body and server.num_drops:
            server.num_drops -= 1
            self.wfile.write(body[:20])
            self.close_connection = True
        elif send_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keeps the test's output quiet."""


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.contents, server.requested, server.body_bytes, server.num_drops = {}, [], None, 0
    with serving(server):
        yield server


def run_script(folder: Path, *arguments: str, port: int = 9) -> subprocess.CompletedProcess:
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    environment = {key: value for key, value in os.environ.items() if key.lower() not in proxies}
    home = folder.parent / "hf_home"
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home),
    }
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    return path


def one_error_line(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 2, result.stderr
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert result.stdout == ""
    return line


def test_a_dataset_arrives_byte_for_byte(hub, folder):
    hub.contents["/datasets/Gen-Verse/MATH_train/resolve/main/train/MATH_train.json"] = VALID
    result = run_script(folder, "--dataset", "MATH_train", port=hub.server_port)
    assert result.returncode == 0, result.stderr
    assert "MATH_train.json: 2 records" in result.stderr
    assert os.listdir(folder) == ["MATH_train.json"]
    assert (folder / "MATH_train.json").read_bytes() == VALID
    # The hub's cache answers when the hub is gone, but not when the hub has withdrawn the file.
    hub.contents.clear()
    assert "404" in one_error_line(run_script(folder, "--dataset", "MATH_train", port=hub.server_port))
    (folder / "MATH_train.json").unlink()
    assert run_script(folder, "--dataset", "MATH_train", "--output_dir", "new/sub").returncode == 0
    assert (folder / "new" / "sub" / "MATH_train.json").read_bytes() == VALID


def test_a_dropped_connection_is_resumed_quietly(hub, folder):
    hub.contents["/datasets/Gen-Verse/MATH500/resolve/main/test/MATH500.json"] = VALID
    hub.num_drops = 1
    result = run_script(folder, "--dataset", "MATH500", port=hub.server_port)
    assert result.stderr == "MATH500.json: 2 records\n"
    assert (folder / "MATH500.json").read_bytes() == VALID


GSM8K = "/datasets/Gen-Verse/GSM8K/resolve/main/test/GSM8K.json"


@pytest.mark.parametrize(
    ("contents", "body_bytes", "complaint"),
    [
        ({}, None, "404"),
        ({GSM8K: VALID}, 20, "Consistency check failed"),
        ({GSM8K: VALID[:-9]}, None, "line 1 column"),
        ({GSM8K: b"<html>busy</html>"}, None, "line 1 column 1: expected a JSON list"),
        ({GSM8K: b'[{"question": "1+1?"}]'}, None, "record 0, field ground_truth_answer"),
    ],
    ids=["not-found", "cut-on-the-way", "cut-at-the-source", "no-json", "no-answer"],
)
def test_a_failed_download_is_one_line_and_leaves_the_old_file(hub, folder, contents, body_bytes, complaint):
    (folder / "GSM8K.json").write_text("old")
    hub.contents, hub.body_bytes = contents, body_bytes
    result = run_script(folder, "--dataset", "GSM8K", port=hub.server_port)
    assert complaint in one_error_line(result)
    assert ("HEAD", GSM8K) in hub.requested
    assert os.listdir(folder) == ["GSM8K.json"]
    assert (folder / "GSM8K.json").read_text() == "old"


def test_an_unreachable_hub_is_one_line_naming_the_address(folder):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        line = one_error_line(run_script(folder, "--dataset", "MBPP", port=port))
    assert f"http://127.0.0.1:{port}/datasets/Gen-Verse/MBPP/test/MBPP.json" in line
    assert "Connect" in line
    assert os.listdir(folder) == []


def test_an_output_folder_that_is_a_file_is_refused(hub, folder):
    hub.contents[GSM8K] = VALID
    (folder / "taken").write_text("old")
    result = run_script(folder, "--dataset", "GSM8K", "--output_dir", "taken", port=hub.server_port)
    assert "taken: expected a folder" in one_error_line(result)
    assert (folder / "taken").read_text() == "old"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: --dataset"),
        (["--dataset", "MATH"], "invalid choice: 'MATH'"),
        (["--dataset", "TinyMath"], "invalid choice: 'TinyMath'"),
        (["--dataset", "GSM8K", "--outdir", "x"], "unrecognized arguments: --outdir x"),
    ],
)
def test_usage_mistakes_are_one_line(folder, arguments, complaint):
    assert complaint in one_error_line(run_script(folder, *arguments))


def test_help_tells_purpose_defaults_and_an_example(folder):
    result = run_script(folder, "--help")
    assert result.returncode == 0
    for phrase in (
        "Download one of",
        "--output_dir",
        "(default: .)",
        "python download_data.py --dataset MATH_train",
    ):
        assert phrase in result.stdout
    assert "default: None" not in result.stdout
