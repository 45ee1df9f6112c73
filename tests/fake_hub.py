"""A Hugging Face hub on this machine: what an upload needs, in memory."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE = 2**16  # bytes from which a file goes the way of large ones


@dataclass
class Repository:
    """Files by name, and whether only the owner sees them."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)


@dataclass
class Hub:
    """The server's content; ``refuse`` maps a part of an address to the status that it answers there."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)


@contextlib.contextmanager
def fake_hub() -> Iterator[Hub]:
    """Serve until the end of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.tokens.add(self.headers.get("Authorization"))
        for part, status in self.hub.refuse.items():
            if part in self.path:
                return self._answer({"error": "the fake hub says no"}, status)
        for pattern, answer in self._ways:
            if match := re.fullmatch(pattern, self.path.split("?")[0]):
                return answer(self, body, *match.groups())
        return self._answer({"error": f"no way {self.path}"}, 404)

    def _answer(self, content, status=200, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _whoami(self, body):
        known = self.headers.get("Authorization") is not None
        self._answer({"name": "me", "type": "user"} if known else {"error": "who?"}, 200 if known else 401)

    def _validate(self, body):
        self._answer({"errors": [], "warnings": []})

    def _create(self, body):
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repositories:
            return self._answer({"error": "it exists", "url": url}, 409)
        private = asked.get("private", asked.get("visibility") == "private")
        self.hub.repositories[name] = Repository(private)
        return self._answer({"url": url, "name": name, "id": name})

    def _info(self, body, name):
        found = self.hub.repositories.get(name)
        if found is None:
            return self._answer({"error": "none"}, 404, X_Error_Code="RepoNotFound")
        files = [{"rfilename": file} for file in found.files]
        return self._answer({"id": name, "private": found.private, "sha": "0" * 40, "siblings": files, "tags": []})

    def _preupload(self, body, name):
        files = [
            {"path": file["path"], "uploadMode": "lfs" if file["size"] >= LARGE else "regular", "shouldIgnore": False}
            for file in json.loads(body)["files"]
        ]
        self._answer({"files": files})

    def _batch(self, body, name):
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/blobs/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def _blob(self, body, oid):
        assert sha256(body).hexdigest() == oid
        self.hub.blobs[oid] = body
        self._answer({})

    def _commit(self, body, name):
        repository, names = self.hub.repositories[name], []
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] != "header":
                raise AssertionError(f"an upload only adds, got {line['key']}")
            if line["key"] != "header":
                names.append(value["path"])
        repository.commits.append(names)
        oid = f"{len(repository.commits):040d}"
        self._answer({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})

    def _resolve(self, body, name, path):
        content = self.hub.repositories[name].files.get(path)
        if content is None:
            return self._answer({"error": "none"}, 404, X_Error_Code="EntryNotFound")
        return self._answer(content, ETag=f'"{sha1(content).hexdigest()}"', X_Repo_Commit="0" * 40)

    _ways = (
        (r"/api/whoami-v2", _whoami),
        (r"/api/repos/create", _create),
        (r"/api/validate-yaml", _validate),
        (r"/api/models/([^/]+/[^/]+)(?:/revision/main)?", _info),
        (r"/api/models/([^/]+/[^/]+)/preupload/main", _preupload),
        (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _batch),
        (r"/blobs/(\w+)", _blob),
        (r"/api/models/([^/]+/[^/]+)/commit/main", _commit),
        (r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", _resolve),
    )
