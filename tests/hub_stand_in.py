"""A stand-in for the Hugging Face hub on loopback: models are pushed and loaded, data sets loaded."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote

import huggingface_hub.constants
import pytest
import yaml

TOKEN = "hf_secretsecretsecret"
ZEROS = "0" * 40
PAGE = 3
LICENCES = {"mit", "apache-2.0", "unknown"}


class StandIn(ThreadingHTTPServer):
    """Accepts one token. A repository is {"private": bool, "commits": int, "files": {name: bytes}}.

    That of a data set is "datasets/OWNER/NAME". "OWNER/NAME@BRANCH" has the files of another branch than
    main. "commit": what main or the branch is, 40 zeros where it is not there. Lists of files come in
    pages of three.

    Downloads: all are answered with `status` where it is set. A repository that is `gated` needs the
    token. The first `breaks` bodies end after `cut` bytes. Where it `lies`, the last byte is not that of
    the file that the ETag is of. `others`: files at paths of their own. `ranges`: a header of each GET.
    """

    def __init__(self, token: str, writes: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.token, self.writes = token, writes
        self.repositories: dict[str, dict[str, Any]] = {}
        self.uploads: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.status = 0
        self.breaks, self.cut = 0, 0
        self.lies = False
        self.others: dict[str, bytes] = {}
        self.ranges: list[str | None] = []

    def at(self, name: str, revision: str) -> dict[str, Any] | None:
        """A repository at a branch or commit."""
        for key, repository in self.repositories.items():
            known, _, branch = key.partition("@")
            if known == name and revision in (branch or "main", repository.get("commit", ZEROS)):
                return repository
        return None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def do_PUT(self) -> None:
        self.server.uploads[self.path.rpartition("/")[2]] = self.body()
        self.answer(200)

    def do_POST(self) -> None:
        body, hub = self.body(), self.server
        hub.asked.append(self.path)
        if self.path == "/api/validate-yaml":
            header = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            wrong = (
                [] if header["license"] in LICENCES else [{"message": '"license" must be known'}]
            )
            return self.answer(400 if wrong else 200, {"errors": wrong, "warnings": []})
        if self.headers["Authorization"] != f"Bearer {hub.token}":
            refusal = {"X_Error_Message": "Invalid credentials in Authorization header"}
            return self.answer(401, {"error": "unauthorized"}, **refusal)
        if not hub.writes:
            return self.answer(403, {"error": "forbidden"}, X_Error_Message="no write access")
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            status = 409 if name in hub.repositories else 200
            private = wanted.get("visibility") == "private"
            hub.repositories.setdefault(name, {"private": private, "commits": 0, "files": {}})
            return self.answer(status, {"url": f"{hub.url}/{name}"})
        if match := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": modes})
        if self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{hub.url}/upload/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            repository = hub.repositories[match[1]]
            repository["commits"] += 1
            for line in body.decode().splitlines():
                change = json.loads(line)
                value = change["value"]
                if change["key"] == "file":
                    repository["files"][value["path"]] = base64.b64decode(value["content"])
                if change["key"] == "lfsFile":
                    uploaded = hub.uploads[value["oid"]]
                    assert hashlib.sha256(uploaded).hexdigest() == value["oid"]
                    repository["files"][value["path"]] = uploaded
            return self.answer(
                200, {"commitUrl": f"{hub.url}/{match[1]}/commit/0", "commitOid": "0" * 40}
            )
        return self.answer(404, {"error": self.path})

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/")
        if repository := self.server.repositories.get(name):
            about = {"id": name, "private": repository["private"], "sha": "0" * 40}
            return self.answer(200, about)
        if self.server.status:
            return self.answer(self.server.status, {"error": "as told"})
        if (content := self.server.others.get(self.path)) is not None:
            return self.give(content)
        path, _, query = self.path.partition("?")
        about = r"/api/(datasets/[^/]+/[^/]+)/(revision|tree)/([^/]+)"
        one = r"/((?:datasets/)?[^/]+/[^/]+)/(resolve)/([^/]+)/(.+)"
        if match := re.fullmatch(about, path) or re.fullmatch(one, path):
            name, what, revision = match.group(1, 2, 3)
            repository = self.server.at(name, unquote(revision))
            if name not in self.server.repositories:
                return self.answer(401, {"error": "not found"}, X_Error_Code="RepoNotFound")
            if repository is None:
                return self.answer(404, {"error": "none"}, X_Error_Code="RevisionNotFound")
            if what == "revision":
                return self.answer(200, {"id": name, "sha": repository.get("commit", ZEROS)})
            if what == "tree":
                return self.list(
                    path, repository["files"], int(parse_qs(query).get("page", "0")[0])
                )
            token = self.headers["Authorization"] == f"Bearer {self.server.token}"
            if repository.get("gated") and not token:
                return self.answer(403, {"error": "gated"}, X_Error_Code="GatedRepo")
            commit = repository.get("commit", ZEROS)
            if (content := repository["files"].get(unquote(match[4]))) is not None:
                return self.give(content, commit)
            missing = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": commit}
            return self.answer(404, {"error": self.path}, **missing)
        return self.answer(404, {"error": self.path}, X_Error_Code="EntryNotFound")

    def list(self, path: str, files: dict[str, bytes], page: int) -> None:
        """Files and folders, as the hub lists them, large files with their SHA-256."""
        folders = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
        rows: list[dict[str, Any]] = [
            {"type": "directory", "path": folder, "oid": ZEROS, "size": 0} for folder in folders
        ]
        for name, content in files.items():
            sha256 = hashlib.sha256(content).hexdigest()
            row = {"type": "file", "path": name, "size": len(content), "oid": sha256}
            if name.endswith(".parquet"):
                row |= {
                    "oid": ZEROS,
                    "lfs": {"oid": sha256, "size": len(content), "pointerSize": 130},
                }
            rows.append(row)
        rest = rows[PAGE * (page + 1) :]
        link = {"Link": f'<{self.server.url}{path}?page={page + 1}>; rel="next"'} if rest else {}
        self.answer(200, rows[PAGE * page : PAGE * (page + 1)], **link)

    def give(self, content: bytes, commit: str = ZEROS) -> None:
        """A file, from the byte that is asked for, with its SHA-256 as the ETag."""
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": commit}
        if self.server.lies:
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked, status = self.headers["Range"], 200
        if asked:
            start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content = content[start:]
        if self.command == "GET":
            self.server.ranges.append(asked)
            if self.server.breaks:
                self.server.breaks -= 1
                headers["Content_Length"] = str(len(content))
                content = content[: self.server.cut]
                self.close_connection = True
        self.answer(status, content, **headers)

    do_HEAD = do_GET


def point(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let the hub's client ask this address. It reads HF_ENDPOINT only once, when it is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextmanager
def running(token: str, writes: bool = True) -> Iterator[StandIn]:
    with StandIn(token, writes) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


@contextmanager
def hub_of_client(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A hub for the client, which then stores in `cache`. Nobody is logged in."""
    with running(TOKEN) as server:
        point(monkeypatch, server.url)
        for constant, value in {
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, constant, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server
