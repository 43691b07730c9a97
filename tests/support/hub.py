"""A Hugging Face Hub on this machine that serves repositories from memory, notes what is asked, and fails on demand.

Of the Hub's HTTP interface it has what fetching needs: listings, and files with their hash as ETag, in ranges too.
"""

import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".parquet")  # kept in LFS, so that their hash is SHA-256


class File:
    """A file's content and what a listing says of it."""

    def __init__(self, path: str, content: bytes) -> None:
        self.content = content
        sha256 = hashlib.sha256(content).hexdigest()
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.hash = sha256 if path.endswith(LARGE) else oid
        self.entry = {"type": "file", "path": path, "oid": oid, "size": len(content)}
        if path.endswith(LARGE):
            self.entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}


class Repo:
    """A model or dataset at one commit."""

    def __init__(self, kind: str, name: str, files: dict[str, bytes]) -> None:
        self.kind, self.name = kind, name
        self.files = {path: File(path, content) for path, content in files.items()}
        self.commit = hashlib.sha1("".join(sorted(p + f.hash for p, f in self.files.items())).encode()).hexdigest()


class Fault(NamedTuple):
    """What goes wrong with the requests in whose path a regular expression is found."""

    path: str
    seconds: float = 0  # until the answer
    status: int | None = None  # the answer
    sent_bytes: int | None = None  # of the body; then the connection is closed


class Hub(ThreadingHTTPServer):
    """Serves within a `with` block; `asked` is the log, `faults` may be changed at any time."""

    daemon_threads = True

    def __init__(self, *repos: Repo) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos = {(repo.kind, repo.name, repo.commit): repo for repo in repos}
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        self.faults: list[Fault] = []

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Clients may go away."""


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """The log is `Hub.asked`."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        self.fault = next((fault for fault in self.server.faults if re.search(fault.path, path)), Fault(""))
        time.sleep(self.fault.seconds)
        listing = re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)/tree/(\w+)", path)
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/(\w+)/(.+)", path)
        if self.fault.status:
            self.send(self.fault.status)
        elif listing and (repo := self.server.repos.get(listing.groups())):
            self.send(200, json.dumps([file.entry for file in repo.files.values()]).encode())
        elif file and (repo := self.server.repos.get(("dataset" if file[1] else "model", file[2], file[3]))):
            self.send_file(repo, file[4])
        else:
            self.send(404)

    do_HEAD = do_GET

    def send_file(self, repo: Repo, path: str) -> None:
        if path not in repo.files:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.commit})
            return
        file = repo.files[path]
        headers = {"ETag": f'"{file.hash}"', "X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        if start := int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or "00")[1]):
            end = len(file.content)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{end}"
        self.send(206 if start else 200, file.content[start:], headers)

    def send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: self.fault.sent_bytes])
            self.close_connection = self.fault.sent_bytes is not None
