"""`export --push-to-hub` against a small hub of our own, by huggingface_hub's own client."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import pytest

REPOSITORY = "somebody/model"


class Hub(ThreadingHTTPServer):
    """Takes what the client sends: creation, LFS objects over plain HTTP, and a commit.

    `refuse` maps the end of a path to the status that it is answered with.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, dict] = {}
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.refuse: dict[str, int] = {}


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments) -> None:
        pass

    def _answer(self, status: int, document) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"] or 0))

    def do_POST(self) -> None:
        path, body, hub = urlparse(self.path).path, self._body(), self.server
        hub.tokens.add(self.headers["Authorization"])
        for end, status in hub.refuse.items():
            if path.endswith(end):
                return self._answer(status, {"error": "you may not do that"})
        if path == "/api/repos/create":
            asked = json.loads(body)
            hub.repositories[f"{asked['organization']}/{asked['name']}"] = asked
            return self._answer(200, {"url": f"{hub.url}/{REPOSITORY}", "id": REPOSITORY})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if path == f"/api/models/{REPOSITORY}/preupload/main":
            return self._answer(200, {"files": [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in json.loads(body)["files"]
            ]})  # fmt: skip
        if path == f"/{REPOSITORY}.git/info/lfs/objects/batch":
            return self._answer(200, {"transfer": "basic", "objects": [
                {**o, "actions": {"upload": {"href": f"{hub.url}/objects/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]})  # fmt: skip
        if path == f"/api/models/{REPOSITORY}/commit/main":
            return self._commit([json.loads(line) for line in body.splitlines()])
        return self._answer(404, {"error": path})

    def _commit(self, lines: list[dict]) -> None:
        for entry in (line["value"] for line in lines if line["key"] != "header"):
            self.server.files[entry["path"]] = (
                self.server.objects[entry["oid"]] if "oid" in entry
                else base64.b64decode(entry["content"])
            )  # fmt: skip
        url = f"{self.server.url}/{REPOSITORY}/commit/abc"
        self._answer(200, {"success": True, "commitUrl": url, "commitOid": "abc"})

    def do_PUT(self) -> None:
        data, oid = self._body(), self.path.rpartition("/")[2]
        assert hashlib.sha256(data).hexdigest() == oid
        self.server.objects[oid] = data
        self._answer(200, {})


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    disable_progress_bars()  # as --quiet does where the package is not imported yet
    yield server
    enable_progress_bars()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def push(capsys, text_model, tmp_path):
    import cli

    def call(*options, repository: str = REPOSITORY):
        capsys.readouterr()
        command = ["export", text_model, "-q", "-o", tmp_path / "out", "--push-to-hub", repository]
        code = cli.main([str(a) for a in (*command, "--max-shard-size", "40KB", *options)])
        return code, *capsys.readouterr()

    return call


def contents(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()} if directory.exists() else {}


@pytest.mark.parametrize("private", [False, True])
def test_what_arrives_is_what_was_written(hub, push, tmp_path, private):
    code, out, err = push("--json", *(["--private"] if private else []))
    assert (code, err) == (0, "")
    assert json.loads(out)["commit"] == f"{hub.url}/{REPOSITORY}/commit/abc"
    assert hub.files == contents(tmp_path / "out")
    assert len(hub.objects) > 2
    assert hub.repositories.keys() == {REPOSITORY}
    assert (hub.repositories[REPOSITORY].get("visibility") == "private") == private
    assert hub.tokens == {"Bearer hf_secret"}


@pytest.mark.parametrize(("where", "status"), [
    ("/repos/create", 403), ("/preupload/main", 401), ("/objects/batch", 403), ("/main", 400),
])  # fmt: skip
def test_refused(hub, push, tmp_path, where, status):
    """The export stays, and the message says so."""
    hub.refuse = {where: status}
    code, out, err = push()
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "the hub did not take it" in err
    assert f"{tmp_path / 'out'} is complete" in err
    assert {"config.json", "README.md", "prunecomp.json"} < contents(tmp_path / "out").keys()
    assert hub.files == {}


def test_no_network(push, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the port that discards
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    code, _, err = push()
    assert code == 1
    assert err.count("\n") == 1
    assert f"upload it with `hf upload {REPOSITORY} {tmp_path / 'out'}`" in err
    assert "config.json" in contents(tmp_path / "out")


def test_no_token(push, tmp_path, monkeypatch):
    """Known before anything is written."""
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    code, _, err = push()
    assert code == 2
    assert "there is no token; run `hf auth login` or set HF_TOKEN" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model", "a/b/c", "a/b@main", "", "/", "a b/c"])
def test_name_of_no_repository(push, tmp_path, name):
    code, _, err = push(repository=name)
    assert code == 2
    assert "give the repository as OWNER/NAME" in err
    assert not (tmp_path / "out").exists()


def test_interrupted(hub, push, tmp_path, monkeypatch):
    """What is said is true: here something is left behind."""
    from huggingface_hub import HfApi

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(HfApi, "upload_folder", interrupted)
    code, out, err = push()
    assert (code, out) == (130, "")
    assert err == (
        f"error: interrupted while uploading to {REPOSITORY}; {tmp_path / 'out'} is complete\n"
    )
    assert "config.json" in contents(tmp_path / "out")
