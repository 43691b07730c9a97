"""A Hugging Face Hub that can be written to: repositories are created, and commits made of them whole."""

import base64
import hashlib
import json
import re
import time
from urllib.parse import unquote, urlsplit

from support.hub import LARGE, File, Handler, Hub, Repo

from stages.lib.params import parse_yaml

KEPT = ".gitattributes"  # which the Hub writes when it creates a repository


class WritableHub(Hub):
    """Serves within a `with` block.

    Attributes:
        writers: By token, the owners in whose name it may write.
        stored: Large files that were sent, by SHA-256; those of no commit are seen by nobody.
        sent: Bytes of large files, each time.
        commits: How many were made.
    """

    def __init__(self, *repos: Repo) -> None:
        super().__init__(*repos)
        self.RequestHandlerClass = WritableHandler
        self.writers: dict[str, set[str]] = {}
        self.stored: dict[str, bytes] = {}
        self.sent: list[int] = []
        self.commits = 0

    def let_write(self, token: str, owner: str) -> None:
        self.writers.setdefault(token, set()).add(owner)
        self.grants.setdefault(token, set())

    def current(self, name: str) -> Repo | None:
        """Return a model as it is now."""
        return next(
            (repo for (kind, other, _), repo in reversed(self.repos.items()) if (kind, other) == ("model", name)), None
        )

    def files(self, name: str) -> dict[str, bytes]:
        """Return what a model holds, without what the Hub put there."""
        repo = self.current(name)
        return {path: file.content for path, file in repo.files.items() if path != KEPT} if repo else {}

    def put(self, name: str, files: dict[str, bytes], private: bool) -> Repo:
        """Make a commit."""
        repo = Repo("model", name, files, private=private)
        self.repos.pop((repo.kind, name, repo.commit), None)  # a commit that comes again is the last one
        self.repos[repo.kind, name, repo.commit] = repo
        self.commits += 1
        return repo


class WritableHandler(Handler):
    server: WritableHub

    def do_GET(self) -> None:
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)", unquote(urlsplit(self.path).path))
        if not info:
            super().do_GET()
        elif self.begins() and (repo := self.visible(info[1])):
            card = self.server.files(repo.name).get("README.md", b"").decode()
            metadata = re.match(r"---\n(.*?)\n---\n", card, re.S)
            siblings = [describe(path, file) for path, file in repo.files.items()]
            answer = {"id": repo.name, "sha": repo.commit, "private": repo.private, "siblings": siblings}
            self.send_json(answer | ({"cardData": parse_yaml(metadata[1], "README.md")} if metadata else {}))

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.begins():
            return
        if path == "/api/repos/create":
            self.create(**json.loads(body))
        elif path == "/api/validate-yaml":
            content = json.loads(body)["content"]
            errors = [] if content.startswith("---\n") else [{"message": "no metadata"}]
            self.send_json({"errors": errors, "warnings": []}, 400 if errors else 200)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path):
            if (repo := self.visible(match[1])) and self.may_write(repo.name):
                self.preupload(repo, body) if match[2] == "preupload" else self.commit(repo, body)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = [self.place(wanted) for wanted in json.loads(body)["objects"]]
            self.send_json({"transfer": "basic", "objects": objects})
        else:
            self.send(404)

    def do_PUT(self) -> None:
        if not self.begins():
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.sent.append(len(body))
        assert hashlib.sha256(body).hexdigest() == self.path.rpartition("/")[2]
        self.server.stored[hashlib.sha256(body).hexdigest()] = body
        self.send(200)

    def begins(self) -> bool:
        """Note a request; answer it otherwise if something is to go wrong before it is handled."""
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        self.fault = self.server.take_fault(path)
        time.sleep(self.fault.seconds)
        if self.fault.status:
            self.send(self.fault.status, self.fault.body, {"Connection": "close"} | (self.fault.headers or {}))
        elif self.fault.reset and self.fault.sent_bytes is None:
            self.hang_up()
        else:
            return True
        self.close_connection = True  # there may be a body that was not read
        return False

    def visible(self, name: str) -> Repo | None:
        repo = self.server.current(name)
        return self.find("model", name, repo.commit if repo else "main")

    def may_write(self, name: str) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token in self.server.grants and name.partition("/")[0] in self.server.writers.get(token, ()):
            return True
        known = token in self.server.grants
        said = (
            f"You don't have the rights to write to {name}" if known else "Invalid credentials in Authorization header"
        )
        self.send(403 if known else 401, b"", {"X-Error-Message": said})
        return False

    def create(self, name: str, organization: str, visibility: str = "public", **_: str) -> None:
        full = f"{organization}/{name}"
        if not self.may_write(full):
            return
        if self.server.current(full):
            self.send(409, b"", {"X-Error-Message": "You already created this model repo"})
            return
        self.server.put(full, {KEPT: b"*.safetensors filter=lfs\n"}, visibility == "private")
        self.server.grants[self.headers["Authorization"].removeprefix("Bearer ")].add(full)
        self.send_json({"url": f"{self.server.url}/{full}", "name": full})

    def preupload(self, repo: Repo, body: bytes) -> None:
        found = {path: file.hash for path, file in repo.files.items()}
        files = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular"}
            | {"shouldIgnore": False, "oid": found.get(file["path"])}
            for file in json.loads(body)["files"]
        ]
        self.send_json({"files": files})

    def commit(self, repo: Repo, body: bytes) -> None:
        header, *operations = [json.loads(line) for line in body.splitlines()]
        if header["value"].get("parentCommit") not in (None, repo.commit):
            self.send(412, b"", {"X-Error-Message": "A commit has happened since. Please refresh and try again."})
            return
        files = {path: file.content for path, file in repo.files.items()}
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
            else:
                del files[value["path"]]
        made = self.server.put(repo.name, files, repo.private)
        self.send_json({"commitUrl": f"{self.server.url}/{repo.name}/commit/{made.commit}", "commitOid": made.commit})

    def place(self, wanted: dict) -> dict:
        """Say where a large file is to be sent, unless it is here."""
        upload = {"href": f"{self.server.url}/upload/{wanted['oid']}"}
        return wanted | ({} if wanted["oid"] in self.server.stored else {"actions": {"upload": upload}})

    def send_json(self, values: dict, status: int = 200) -> None:
        self.send(status, json.dumps(values).encode(), {"Content-Type": "application/json"})


def describe(path: str, file: File) -> dict:
    """Say of a file what the Hub says of it beside its repository."""
    said = {"rfilename": path, "size": file.entry["size"], "blobId": file.entry["oid"]}
    large = {"lfs": {"sha256": file.hash, "size": file.entry["size"], "pointerSize": 130}}
    return said | (large if "lfs" in file.entry else {})
