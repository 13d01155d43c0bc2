"""A stand-in for the Hugging Face hub on this machine: the routes that huggingface_hub calls to upload and download."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_owner"
OWNER = "user"


@dataclass
class Repository:
    """What it held at each commit: paths to bytes."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.add({})

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.head]

    def add(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[sha] = dict(files)
        return sha


class StandIn(ThreadingHTTPServer):
    """The hub: `repositories` by their names, and `requests` as they came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.ranges: list[str] = []
        """The ranges of bytes that downloads of large files asked for; "" for all of it."""
        self.messages: list[str] = []
        self.refused_card: str | None = None
        self.down = False
        self.breaks = 0
        """How many of the next transfers of large files break off: in the middle, or at once where they go on."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running() -> Iterator[StandIn]:
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def in_lfs(path: str) -> bool:
    """As the hub's .gitattributes have it."""
    return path.endswith(".safetensors")


class _Refusal(Exception):
    def __init__(self, status: int, code: str, text: str) -> None:
        self.status, self.code, self.text = status, code, text


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the test's output."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if self._has_body() else b""
        try:
            if self.server.down:
                raise _Refusal(500, "", "We are working on it")
            for method, pattern, route in _ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in method:
                    route(self, **found.groupdict())
                    return
            raise _Refusal(404, "", f"the stand-in has no {self.command} {path}")
        except _Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.text}
            self.send(json.dumps({"error": refusal.text}).encode(), headers, refusal.status)

    def _has_body(self) -> bool:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return True
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        self.chunks = b"".join(parts)
        return False

    def send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    @property
    def is_owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def given(self) -> Any:
        return json.loads(self.body)

    def repository(self, name: str) -> Repository:
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self.is_owner):
            raise _Refusal(401, "RepoNotFound", "Repository not found")
        if found.gated and not self.is_owner:
            raise _Refusal(403, "GatedRepo", "Access is restricted")
        return found

    def revision(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repository = self.repository(name)
        sha = repository.head if revision == "main" else revision
        if sha not in repository.commits:
            raise _Refusal(404, "RevisionNotFound", "Invalid rev id")
        return sha, repository.commits[sha]

    def written(self, name: str) -> Repository:
        if not self.is_owner:
            raise _Refusal(401 if "Authorization" not in self.headers else 403, "", "You may not write here")
        return self.repository(name)


def _create(request: _Handler) -> None:
    asked = request.given()
    name = f"{asked.get('organization') or OWNER}/{asked['name']}"
    if not request.is_owner or not name.startswith(f"{OWNER}/"):
        raise _Refusal(401 if "Authorization" not in request.headers else 403, "", "You may not write here")
    there = name in request.server.repositories
    if not there:
        private = bool(asked.get("private") or asked.get("visibility") == "private")
        request.server.repositories[name] = Repository(private)
    request.json({"url": f"{request.server.address}/{name}", "id": name}, 409 if there else 200)


def _info(request: _Handler, name: str, revision: str = "main") -> None:
    sha, files = request.revision(name, revision)
    request.json({"id": name, "sha": sha, "siblings": [{"rfilename": path} for path in files]})


def _tree(request: _Handler, name: str, revision: str) -> None:
    _, files = request.revision(name, revision)
    request.json([_entry(path, content) for path, content in files.items()])


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_id(content)}
    if in_lfs(path):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


def git_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _validate(request: _Handler) -> None:
    refused = request.server.refused_card
    request.json({"errors": [{"message": refused}] if refused else [], "warnings": []}, 400 if refused else 200)


def _preupload(request: _Handler, name: str, revision: str) -> None:
    request.written(name)
    modes = [
        {"path": each["path"], "uploadMode": "lfs" if in_lfs(each["path"]) else "regular", "shouldIgnore": False}
        for each in request.given()["files"]
    ]
    request.json({"files": modes})


def _lfs_batch(request: _Handler, name: str) -> None:
    request.written(name)
    place = request.server.address
    objects = [
        {
            "oid": each["oid"],
            "size": each["size"],
            "actions": {
                "upload": {"href": f"{place}/objects/{each['oid']}"},
                "verify": {"href": f"{place}/verify"},
            },
        }
        for each in request.given()["objects"]
    ]
    request.json({"transfer": "basic", "objects": objects})


def _put(request: _Handler, oid: str) -> None:
    if request.server.breaks:
        request.server.breaks -= 1
        request.connection.shutdown(socket.SHUT_RDWR)
        request.close_connection = True
        return
    content = request.body or request.chunks
    assert hashlib.sha256(content).hexdigest() == oid
    request.server.objects[oid] = content
    request.json({})


def _verify(request: _Handler) -> None:
    asked = request.given()
    assert len(request.server.objects[asked["oid"]]) == asked["size"]
    request.json({})


def _commit(request: _Handler, name: str, revision: str) -> None:
    repository = request.written(name)
    files = dict(repository.files)
    for line in (request.body or request.chunks).splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "header":
            request.server.messages.append(value["summary"])
        elif item["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "lfsFile":
            files[value["path"]] = request.server.objects[value["oid"]]
        elif item["key"] == "deletedFile":
            del files[value["path"]]
    sha = repository.add(files)
    request.json({"success": True, "commitOid": sha, "commitUrl": f"{request.server.address}/{name}/commit/{sha}"})


def _resolve(request: _Handler, name: str, revision: str, path: str) -> None:
    sha, files = request.revision(name, revision)
    if path not in files:
        raise _Refusal(404, "EntryNotFound", "Entry not found")
    content = files[path]
    headers = {"X-Repo-Commit": sha, "ETag": f'"{git_id(content)}"'}
    if not in_lfs(path):
        request.send(content, headers)
        return
    digest = hashlib.sha256(content).hexdigest()
    request.server.objects[digest] = content
    headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
    elsewhere = f"http://localhost:{request.server.server_address[1]}/objects/{digest}"  # as the hub's CDN is
    request.send(b"", headers | {"Location": elsewhere}, 302)


def _object(request: _Handler, oid: str) -> None:
    content, headers, status = request.server.objects[oid], {"ETag": f'"{oid}"'}, 200
    asked = request.headers.get("Range") or ""
    if begins := re.fullmatch(r"bytes=(\d+)-", asked):
        headers["Content-Range"] = f"bytes {begins[1]}-{len(content) - 1}/{len(content)}"
        content, status = content[int(begins[1]) :], 206
    headers["Content-Length"] = str(len(content))
    if request.command == "GET":
        request.server.ranges.append(asked)
        if request.server.breaks:
            request.server.breaks -= 1
            content, request.close_connection = content[: len(content) // 2 if status == 200 else 0], True
    request.send(content, headers, status)


_NAME = r"(?P<name>[^/]+/[^/]+)"
_ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("POST",), "/api/repos/create", _create),
    (("POST",), "/api/validate-yaml", _validate),
    (("GET",), rf"/api/models/{_NAME}", _info),
    (("GET",), rf"/api/models/{_NAME}/revision/(?P<revision>[^/]+)", _info),
    (("GET",), rf"/api/models/{_NAME}/tree/(?P<revision>[^/]+)", _tree),
    (("POST",), rf"/api/models/{_NAME}/preupload/(?P<revision>[^/]+)", _preupload),
    (("POST",), rf"/api/models/{_NAME}/commit/(?P<revision>[^/]+)", _commit),
    (("POST",), rf"/{_NAME}\.git/info/lfs/objects/batch", _lfs_batch),
    (("PUT",), "/objects/(?P<oid>[0-9a-f]{64})", _put),
    (("GET", "HEAD"), "/objects/(?P<oid>[0-9a-f]{64})", _object),
    (("POST",), "/verify", _verify),
    (("GET", "HEAD"), rf"/{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _resolve),
]
