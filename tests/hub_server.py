"""A stand-in for the Hugging Face Hub on this machine, for tests of real downloads.

It answers the requests that ``huggingface_hub.snapshot_download`` sends: repository info, file
tree, and the files themselves. Clients are separate processes, because huggingface_hub reads its
environment only when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_API = re.compile(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/?]+)")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)")


class HubServer:
    """Serves folders as Hub repositories; a context manager.

    Attributes:
        url: where it listens; what HF_ENDPOINT must be.
        requests: the method and path of each request so far.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._folders: dict[str, Path] = {}
        self._tokens: dict[str, str] = {}
        self._broken: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo_id: str, folder: Path, *, token: str = "", broken: bool = False) -> None:
        """Serve the files of a folder under the name "owner/name".

        With a token, only to those who send it (a gated repository); broken, to nobody.
        """
        self._folders[repo_id] = folder
        if token:
            self._tokens[repo_id] = token
        if broken:
            self._broken.add(repo_id)

    def commit(self, repo_id: str) -> str:
        """The hash of the only commit, on the branch "main"; it follows from the files' bytes."""
        digest = hashlib.sha1()
        for path in self.files(repo_id):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def files(self, repo_id: str) -> list[Path]:
        return sorted(path for path in self._folders[repo_id].iterdir() if path.is_file())

    def answer(self, path: str, authorization: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a request's path and its Authorization header."""
        matched = _API.match(path) or _FILE.match(path)
        if matched is None or matched[1] not in self._folders:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        repo_id = matched[1]
        if repo_id in self._tokens and authorization != f"Bearer {self._tokens[repo_id]}":
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if repo_id in self._broken:
            return 500, {}, b"{}"
        commit = self.commit(repo_id)
        revision = matched[3] if matched.re is _API else matched[2]
        if revision not in ("main", commit):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        headers = {"X-Repo-Commit": commit}
        if matched.re is _FILE:
            for file in self.files(repo_id):
                if file.name == matched[3]:
                    body = file.read_bytes()
                    return 200, {**headers, "ETag": f'"{_blob_id(body)}"'}, body
            return 404, {**headers, "X-Error-Code": "EntryNotFound"}, b""
        bodies = {file.name: file.read_bytes() for file in self.files(repo_id)}
        if matched[2] == "tree":
            tree: object = [
                {"type": "file", "path": name, "size": len(body), "oid": _blob_id(body)}
                for name, body in bodies.items()
            ]
        else:
            siblings = [{"rfilename": name} for name in bodies]
            tree = {"id": repo_id, "sha": commit, "siblings": siblings, "private": False}
        return 200, {**headers, "Content-Type": "application/json"}, json.dumps(tree).encode()


def run_client(
    code: str, home: Path, endpoint: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python code as a user of the Hub at `endpoint` would.

    Args:
        code: the program; `faceedit` can be imported.
        home: what HF_HOME is for it; the cache lies there.
        endpoint: such as `HubServer.url`.
        arguments: what follows "-c" in its sys.argv.
        environment: more variables.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGG"))}
    kept.update(HF_HOME=str(home), HF_ENDPOINT=endpoint, PYTHONPATH=str(ROOT))
    # The stand-in speaks plain HTTP to this machine: no proxy, and no chunk storage service.
    kept.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", NO_PROXY="127.0.0.1")
    kept.update(HF_HUB_DISABLE_PROGRESS_BARS="1", no_proxy="127.0.0.1", **environment)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=kept,
        capture_output=True,
        text=True,
        timeout=120,
    )


def _blob_id(body: bytes) -> str:
    """The id that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def _handler_for(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            authorization = self.headers.get("Authorization", "")
            status, headers, body = hub.answer(self.path, authorization)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD

        def log_message(self, *arguments: object) -> None:
            """Say nothing; pytest's output is no access log."""

    return Handler
