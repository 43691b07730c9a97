"""A Hugging Face Hub on this machine that serves repositories from memory, notes what is asked, and fails on demand.

Of the Hub's HTTP interface it has what fetching needs: listings, and files with their hash as ETag, in ranges too.
"""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".parquet", ".gguf")  # kept in LFS, so that their hash is SHA-256


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
    """A model or dataset at one commit.

    Args:
        gated: Everybody sees what there is; who was granted access gets the files.
        private: Who was granted none does not learn that it exists.
        xet: Large files are in the other store, of which this Hub has no more than an address.
    """

    def __init__(self, kind: str, name: str, files: dict[str, bytes], gated=False, private=False, xet=False) -> None:
        self.kind, self.name, self.gated, self.private = kind, name, gated, private
        self.files = {path: File(path, content) for path, content in files.items()}
        for file in self.files.values() if xet else ():
            file.entry |= {"xetHash": "ab" * 32} if "lfs" in file.entry else {}
        self.commit = hashlib.sha1("".join(sorted(p + f.hash for p, f in self.files.items())).encode()).hexdigest()


class Fault(NamedTuple):
    """What goes wrong with the requests in whose path a regular expression is found."""

    path: str
    seconds: float = 0  # until the answer
    status: int | None = None  # the answer
    sent_bytes: int | None = None  # of the body; then the connection is closed
    reset: bool = False  # and not closed in order, but reset; without `sent_bytes` before any answer
    headers: dict[str, str] | None = None  # of an answer with a status
    body: bytes = b""  # likewise
    times: int = 10**9  # that it happens


class Hub(ThreadingHTTPServer):
    """Serves within a `with` block; `asked` is the log, `faults` may be changed at any time."""

    daemon_threads = True

    def __init__(self, *repos: Repo) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos = {(repo.kind, repo.name, repo.commit): repo for repo in repos}
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []
        self.starts: list[int] = []  # bytes from which files were asked for
        self.faults: list[Fault] = []
        self.grants: dict[str, set[str]] = {}  # by token, the repositories that it may read

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def take_fault(self, path: str) -> Fault:
        """Return what goes wrong with a request, and count it."""
        for number, fault in enumerate(self.faults):
            if fault.times and re.search(fault.path, path):
                self.faults[number] = fault._replace(times=fault.times - 1)
                return fault
        return Fault("")

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
        self.fault = self.server.take_fault(path)
        time.sleep(self.fault.seconds)
        listing = re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)/tree/(\w+)", path)
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/(\w+)/(.+)", path)
        if self.fault.status:
            self.send(self.fault.status, self.fault.body, self.fault.headers)
        elif self.fault.reset and self.fault.sent_bytes is None:
            self.hang_up()
        elif listing and (repo := self.find(*listing.groups())):
            self.send(200, json.dumps([file.entry for file in repo.files.values()]).encode())
        elif file and (repo := self.find("dataset" if file[1] else "model", file[2], file[3])):
            self.send_file(repo, file[4])
        elif "/xet-read-token/" in path:
            store = {"Cas-Url": self.server.url, "Access-Token": "t", "Token-Expiration": f"{time.time() + 3600:.0f}"}
            self.send(200, b"{}", {f"X-Xet-{name}": value for name, value in store.items()})
        elif not listing and not file:
            self.send(404)

    do_HEAD = do_GET

    def find(self, kind: str, name: str, commit: str) -> Repo | None:
        """Return a repository, or refuse it as the Hub does: who has no token does not learn whether it is private."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.granted = name in self.server.grants.get(token, ())
        commits = {repo.commit: repo for repo in self.server.repos.values() if (repo.kind, repo.name) == (kind, name)}
        hidden = not commits or (next(iter(commits.values())).private and not self.granted)
        if token and token not in self.server.grants:
            self.send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif hidden and not token:
            self.send(401, b"", {"X-Error-Message": "Invalid username or password."})
        elif hidden:
            self.send(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif commit not in commits:
            self.send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {commit}"})
        else:
            return commits[commit]
        return None

    def hang_up(self) -> None:
        """Reset the connection, as a crashed peer does."""
        self.wfile.flush()
        time.sleep(0.5)  # so that what was written arrives
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def send_file(self, repo: Repo, path: str) -> None:
        if repo.gated and not self.granted:
            self.send(403 if "Authorization" in self.headers else 401, b"", {"X-Error-Code": "GatedRepo"})
            return
        if path not in repo.files:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.commit})
            return
        file = repo.files[path]
        headers = {"ETag": f'"{file.hash}"', "X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        if start := int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or "00")[1]):
            end = len(file.content)
            self.server.starts.append(start)
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
            if self.fault.reset and self.fault.sent_bytes is not None:
                self.hang_up()
