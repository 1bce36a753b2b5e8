"""The hub's own client against a small server that speaks the hub's protocol."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

import nullius
from nullius.errors import SubjectError
from nullius.models.fetch import fetch
from nullius.models.sources import Source

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves repositories {name: {file: bytes}}; asked: paths so far. What it announces as sha256 can be made wrong."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories, self.asked, self.lies = {}, [], False

    def stop(self):
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def reply(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        path, _, _ = self.path.partition("?")
        self.server.asked.append(path)
        if path == "/api/models":
            return self.reply(200, b"[]")
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        if name == "lab/closed":
            return self.reply(403, X_Error_Code="GatedRepo")
        files = self.server.repositories.get(name)
        if files is None:
            return self.reply(404, X_Error_Code="RepoNotFound")
        about = [
            {"rfilename": key, "path": key, "type": "file", "oid": self.tag(value), **self.facts(key, value)}
            for key, value in files.items()
        ]
        if api and "tree" in parts:
            return self.reply(200, json.dumps(about).encode(), Content_Type="application/json")
        if api:
            return self.reply(200, json.dumps({"id": name, "sha": REVISION, "siblings": about}).encode(), Content_Type="application/json")
        content = files.get(parts[-1])
        if content is None:
            return self.reply(404, X_Error_Code="EntryNotFound")
        return self.reply(200, content, ETag=f'"{self.tag(content)}"', X_Repo_Commit=REVISION)

    do_HEAD = do_GET

    def tag(self, content):
        return hashlib.sha1(content).hexdigest()

    def facts(self, key, content):
        if not key.endswith(".safetensors"):
            return {"size": len(content)}
        digest = hashlib.sha256(b"lie" if self.server.lies else content).hexdigest()
        return {"size": len(content), "lfs": {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": 100}}


@pytest.fixture
def hub(toy, tmp_path, monkeypatch):
    toy.hf.save_pretrained(tmp_path / "toy")
    toy.tokenizer.save_pretrained(tmp_path / "toy")
    (tmp_path / "toy" / "README.md").write_text("---\nlicense: mit\n---\n")
    server = Hub()
    files = {path.name: path.read_bytes() for path in (tmp_path / "toy").iterdir()}
    server.repositories = {
        "lab/toy": {**files, "onnx/config.json": b"{}", "consolidated.safetensors": b"another format"},
        "lab/pickled": {"config.json": files["config.json"], "pytorch_model.bin": b"x"},
        "lab/ggufs": {"toy.Q4_0.gguf": b"x"},
        "lab/data": {"README.md": b"nothing"},
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)  # the client reads these from the environment at import
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("NULLIUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.stop()


def refused(name, match):
    with pytest.raises(SubjectError, match=match) as caught:
        nullius.load(name)
    assert "\n" not in str(caught.value)


def test_a_repository_is_fetched_once_and_then_needs_no_hub(hub, toy):
    first = nullius.load("lab/toy")
    assert first.name == "lab/toy"
    assert first.provenance.source == f"hub lab/toy at {REVISION[:12]}"
    assert first.provenance.licence == "mit"
    assert all(map(lambda a, b: a.equal(b), first.hf.state_dict().values(), toy.hf.state_dict().values()))
    assert not [path for path in hub.asked if "onnx" in path or "consolidated" in path]
    hub.asked.clear()
    assert nullius.load("lab/toy").weights_sha256 == first.weights_sha256
    assert hub.asked == []
    hub.stop()
    assert nullius.load("lab/toy").weights_sha256 == first.weights_sha256
    refused("lab/other", r"cannot fetch 'lab/other': the hub does not answer \(ConnectError\), and nothing of it is cached")


def test_an_interrupted_download_is_not_taken_for_whole(hub, tmp_path):
    content = hub.repositories["lab/toy"].pop("model.safetensors")
    refused("lab/toy", r"'lab/toy' on the hub holds no weights \(\*\.safetensors\)")
    hub.repositories["lab/toy"]["model.safetensors"] = content
    nullius.load("lab/toy")
    next((tmp_path / "hf").rglob("model.safetensors")).unlink()  # as after a download killed before its last file
    assert nullius.load("lab/toy").name == "lab/toy"


def test_refusals(hub, tmp_path):
    refused("lab/pickled", "has only pickled weights, which can run code when loaded")
    refused("lab/ggufs", "'lab/ggufs' on the hub holds GGUF files: download one of them and give its path")
    refused("lab/none", r"the hub has no model 'lab/none' \(or it is private\)")
    refused("lab/closed", "only to users who accepted its terms there")
    refused("lab/a--b", "no name of a hub model")
    hub.lies = True
    refused("lab/toy", "does not have the sha256 that the hub announced; deleted")
    assert not any(path.exists() for path in (tmp_path / "hf").rglob("model.safetensors"))


def test_a_named_subject_comes_from_the_hub_where_it_answers(hub, toy):
    source = Source(
        name="toy", title="Toy", hub="lab/toy", licence="none", parameters=toy.parameters, languages="", chat=False, file="toy.gguf",
        bytes=1, sha256="", quantisation="8-bit roundings", packages=("no-such-package==1",), pattern="*",
    )  # fmt: skip
    folder = fetch(source)
    assert source.provenance == {"source": f"hub lab/toy at {REVISION[:12]}", "licence": "none", "quantisation": ""}
    assert nullius.load(folder).weights_sha256 == nullius.load("lab/toy").weights_sha256
