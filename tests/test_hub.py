"""What a source.yaml pins on the Hub is what is read: that commit, whole, every byte, or nothing."""

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from huggingface_hub import scan_cache_dir
from support.hub import Fault, Hub, Repo

from stages.lib.params import Mistake
from stages.lib.sources.hub_rows import needed
from stages.lib.sources.network import explain

CARD = """---
configs:
- config_name: big
  data_files: big/*.jsonl
- config_name: small
  data_files:
  - split: train
    path: small/train-*
  - split: test
    path: [small/test.jsonl]
---
# Two configurations
"""
READ = """
import json, sys
from pathlib import Path
from stages.lib.sources import network
from stages.lib.sources.source import fetch_model
from stages.lib.data.texts import read_dataset
network.SILENCE = 1
if sys.argv[1] == "model":
    folder = fetch_model("pinned", ["*.json", "*.safetensors"])
    print(json.dumps({path.name: path.read_text() for path in sorted(folder.iterdir())}))
else:
    print(json.dumps([text.text for text in read_dataset("pinned")]))
"""


def model(version: str) -> Repo:
    files = {"config.json": f'{{"version": "{version}"}}', "model.safetensors": f"weights {version}", "x.bin": "no"}
    return Repo("model", "acme/thing", {name: content.encode() for name, content in files.items()})


def dataset(version: str) -> Repo:
    rows = {"small/train-0.jsonl": "one", "small/train-1.jsonl": "two", "small/test.jsonl": "three", "big/a.jsonl": "4"}
    files = {name: json.dumps({"text": f"{text} {version}"}).encode() + b"\n" for name, text in rows.items()}
    return Repo("dataset", "acme/thing", {"README.md": CARD.encode()} | files)


MODEL = {
    version: {"config.json": f'{{"version": "{version}"}}', "model.safetensors": f"weights {version}"}
    for version in "AB"
}
ROWS = {version: [f"{text} {version}" for text in ("one", "two", "three")] for version in "AB"}


class Project:
    """A folder whose model or dataset `pinned` is a commit of acme/thing, read in a process of its own."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.a, self.b = (model if kind == "model" else dataset)("A"), (model if kind == "model" else dataset)("B")
        self.read_as = MODEL if kind == "model" else ROWS
        self.source = folder / ("models/base" if kind == "model" else "data/raw") / "pinned/source.yaml"
        self.cache = folder / f"home/hub/{kind}s--acme--thing"
        self.source.parent.mkdir(parents=True)
        self.hub = Hub(self.a, self.b)

    def read(self, repo: Repo, online: bool = True, expect: int = 0, config: str = "small", **environment: str):
        """Read a commit; return what was read, or the message, which is one line."""
        config = f"config: {config}\n" if self.kind == "dataset" and config else ""
        self.source.write_text(f"repo: acme/thing\nrevision: {repo.commit}\n{config}")
        self.hub.asked.clear()
        ran = subprocess.run(
            [sys.executable, "-c", READ, self.kind],
            cwd=self.folder,
            env=os.environ
            | {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.folder / "home"), "PYTHONPATH": str(REPOSITORY)}
            | {"HF_HUB_OFFLINE": "0" if online else "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            | {"NO_PROXY": "", "no_proxy": ""}
            | environment,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == expect, ran.stderr
        if not expect:
            return json.loads(ran.stdout)
        assert "Traceback" not in ran.stderr and str(self.source.relative_to(self.folder)) in ran.stderr, ran.stderr
        assert len(ran.stderr.splitlines()) == 1, ran.stderr
        return ran.stderr.strip()

    def cached(self, repo: Repo, name: str) -> Path:
        return self.cache / "snapshots" / repo.commit / name


@pytest.fixture(params=["model", "dataset"])
def project(request, tmp_path):
    project = Project(request.param, tmp_path)
    with project.hub:
        yield project


@pytest.fixture
def models(tmp_path):
    project = Project("model", tmp_path)
    with project.hub:
        yield project


@pytest.fixture
def datasets(tmp_path):
    project = Project("dataset", tmp_path)
    with project.hub:
        yield project


def test_another_commit_is_never_read_instead(project):
    assert project.read(project.a) == project.read_as["A"]
    assert "HF_HUB_OFFLINE is set" in project.read(project.b, online=False, expect=1)
    project.hub.faults = [Fault("^/$", seconds=60)]  # the front page is slow
    assert project.read(project.b) == project.read_as["B"]
    assert project.read(project.b, online=False) == project.read_as["B"] and not project.hub.asked
    assert project.read(project.a) == project.read_as["A"] and not project.hub.asked


def test_a_folder_that_is_called_like_the_repository_is_not_read(project):
    folder = project.folder / "acme/thing"
    folder.mkdir(parents=True)
    for name, file in (project.a if project.kind == "model" else dataset("A")).files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(file.content)
    project.read(project.b, online=False, expect=1)
    assert project.read(project.b) == project.read_as["B"]


def test_a_flipped_bit_is_found_and_mended(project):
    assert project.read(project.a) == project.read_as["A"]
    for name in {"model": ["model.safetensors", "config.json"], "dataset": ["small/test.jsonl"]}[project.kind]:
        blob = project.cached(project.a, name).resolve()
        blob.write_bytes(bytes([blob.read_bytes()[0] ^ 1]) + blob.read_bytes()[1:])
    told = project.read(project.a, online=False, expect=1)
    assert f"{name} at {project.a.commit}: expected the hash" in told and project.a.files[name].hash in told
    assert project.read(project.a) == project.read_as["A"]


def test_a_bit_that_flips_on_the_way_is_refused(models):
    file = models.a.files["model.safetensors"]
    file.content = bytes([file.content[0] ^ 1]) + file.content[1:]
    assert "and again when fetched anew" in models.read(models.a, expect=1)


def test_a_snapshot_that_lacks_a_file_is_refused_without_a_network(project):
    name = "model.safetensors" if project.kind == "model" else "small/train-1.jsonl"
    project.read(project.a)
    project.cached(project.a, name).unlink()
    assert "lacks files of this commit; unset it" in project.read(project.a, online=False, expect=1)
    assert project.read(project.a) == project.read_as["A"]


def test_a_snapshot_that_nothing_proves_whole_is_refused_without_a_network(models):
    models.read(models.a)
    (models.cache / f"trees/{models.a.commit}.json").unlink()
    assert "no listing" in models.read(models.a, online=False, expect=1)
    assert models.read(models.a) == models.read_as["A"]


def test_a_broken_download_is_told_and_goes_on(models):
    models.hub.faults = [Fault("resolve/.*safetensors", sent_bytes=3)]
    assert "breaks off" in models.read(models.a, expect=1)
    assert "lacks files of this commit" in models.read(models.a, online=False, expect=1)
    models.hub.faults = []
    assert models.read(models.a) == models.read_as["A"]
    assert not [asked for asked in models.hub.asked if "config.json" in asked]


def test_what_lies_in_the_cache_and_is_not_of_the_commit_is_not_read(datasets):
    datasets.read(datasets.a)
    datasets.cached(datasets.a, "small/train-2.jsonl").write_text('{"text": "a stranger"}\n')
    assert datasets.read(datasets.a) == datasets.read_as["A"]


def test_of_a_dataset_only_the_files_of_its_configuration_are_fetched(datasets):
    datasets.read(datasets.a)
    assert not any("big" in asked for asked in datasets.hub.asked)
    told = datasets.read(datasets.a, config="middle", expect=1)
    assert told.endswith("config: middle: no such configuration; there are big, small")
    assert datasets.read(datasets.a, config="", expect=1).endswith("config: missing; there are big, small")


@pytest.mark.parametrize("elsewhere", ["https://example.org/a.jsonl", "hf://datasets/acme/other/a.jsonl", "../a.jsonl"])
def test_a_card_that_names_files_elsewhere_is_refused(elsewhere):
    with pytest.raises(Mistake, match="which lies elsewhere"):
        needed({"data_files": elsewhere}, "")


def test_a_dataset_that_is_made_by_a_script_is_refused(datasets):
    repo = Repo("dataset", "acme/thing", {"thing.py": b"raise SystemExit", "data.jsonl": b'{"text": "x"}'})
    datasets.hub.repos["dataset", "acme/thing", repo.commit] = repo
    assert "scripts are never run" in datasets.read(repo, config="", expect=1)


@pytest.mark.parametrize(
    ("config", "patterns"),
    [
        ({"data_files": "a.csv"}, ["a.csv", "a.csv/*"]),
        ({"data_files": ["./x/train-*.csv", "y/{a,b}.csv"]}, ["x/train-*", "y/*"]),
        ({"data_files": [{"split": "train", "path": ["x/**/a.csv"]}], "data_dir": "d"}, ["d/x/*"]),
        ({"data_dir": "d"}, ["d/*"]),
        ({"data_files": "**/train.csv"}, None),
        ({}, None),
    ],
)
def test_patterns_of_a_card_are_cut_where_they_stop_being_literal(config, patterns):
    assert needed(config, "") == patterns


def test_the_cache_is_still_one_that_the_hubs_client_understands(models):
    models.read(models.a)
    found = scan_cache_dir(models.folder / "home/hub")
    assert not found.warnings and [repo.repo_id for repo in found.repos] == ["acme/thing"]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    "fault",
    [
        Fault("/tree/", reset=True),
        Fault("/tree/", seconds=3),
        Fault("/tree/", status=503),
        Fault("/tree/", status=429, headers={"Retry-After": "1"}),
        Fault("safetensors", status=500),
        Fault("safetensors", reset=True),
    ],
)
def test_what_passes_is_tried_again(models, fault, times):
    models.hub.faults = [fault._replace(times=times)]
    assert models.read(models.a) == models.read_as["A"]
    answered = 1 if fault.path == "/tree/" else 2  # a file is asked for twice, the first time for its hash
    assert sum(bool(re.search(fault.path, asked)) for asked in models.hub.asked) == times + answered


def test_a_reset_download_goes_on_where_it_was(models):
    """The Hub's client keeps what it has in pieces of ten million bytes."""
    large = Repo("model", "acme/thing", {"config.json": b"{}", "model.safetensors": b"0123456789" * 2**21})
    models.hub.repos["model", "acme/thing", large.commit] = large
    models.hub.faults = [Fault("safetensors", sent_bytes=15_000_000, reset=True, times=2)]  # a HEAD is one
    models.read(large)
    assert [start for start in models.hub.starts if start] == [10 * 2**20]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("/tree/", reset=True), r"the Hugging Face Hub breaks off \(.*\); run again, and check the network$"),
        (Fault("/tree/", seconds=3), r"the Hugging Face Hub does not answer \(http://127.*\); check the network$"),
        (Fault("/tree/", status=503), r"the Hugging Face Hub fails \(HTTP 503\); run again later$"),
        (Fault("safetensors", status=500), r"the Hugging Face Hub fails \(HTTP 500\); run again later$"),
        (Fault("", status=429, headers={"Retry-After": "300"}), r"\(HTTP 429\): wait 300 seconds and run again; with"),
        (
            Fault("", status=429, headers={"RateLimit": '"api";r=0;t=60'}),
            r"\(HTTP 429\): wait 60 seconds and run again",
        ),
        (
            Fault("/tree/", status=404),
            r"/tree/[0-9a-f]{40} answers HTTP 404, as no Hugging Face Hub does; check HF_END",
        ),
        (
            Fault("/tree/", status=200, body=b"<html>Log in</html>"),
            r"answers as no Hugging Face Hub does; check HF_ENDPO",
        ),
        (
            Fault("/tree/", status=200, body=b'{"error": "no"}'),
            r"answers as no Hugging Face Hub does; check HF_ENDPOINT",
        ),
        (Fault("/tree/", status=200, body=b"{}"), r"answers as no Hugging Face Hub does; check HF_ENDPOINT"),
        (
            Fault("/tree/", status=403),
            r"the Hugging Face Hub refuses \(HTTP 403\); may the token read http.*acme/thing\?$",
        ),
    ],
)
def test_a_fault_that_stays_is_told_within_seconds_and_leaves_nothing_behind(models, fault, message):
    models.hub.faults = [fault]
    began = time.monotonic()
    assert re.search(message, models.read(models.a, expect=1))
    assert time.monotonic() - began < 12
    models.hub.faults = []
    assert models.read(models.a) == models.read_as["A"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            r"does not answer \(http://127.0.0.1:9: .*refused\); check the network$",
        ),
        (
            {"HF_ENDPOINT": "huggingface.co"},
            r"HF_ENDPOINT is 'huggingface.co'; expected an address such as https://hug",
        ),
        (
            {"HTTP_PROXY": "http://127.0.0.1:9"},
            r"does not answer through the proxy of HTTP_PROXY .*the network and the pr",
        ),
        ({"ALL_PROXY": "socks5://127.0.0.1:9"}, r"the proxy that is set cannot be used: Using SOCKS proxy, but"),
        ({"HTTP_PROXY": "nonsense://127.0.0.1:9"}, r"proxy"),
        (
            {"HF_TOKEN": "hf_wrong"},
            r"refuses this token, wrong or expired: run `hf auth login` again, or unset HF_TOKEN$",
        ),
        ({"HF_HUB_CACHE": "/proc/nowhere"}, r"files cannot be kept in /proc/nowhere.*: No such file or directory$"),
    ],
)
def test_a_setting_that_cannot_work_is_named(models, setting, message):
    assert re.search(message, models.read(models.a, expect=1, **setting))


def test_who_may_not_read_learns_why(models):
    models.hub.grants = {"hf_me": set()}
    files = {name: file.content for name, file in models.a.files.items()}
    gated, private = (Repo("model", "acme/thing", files, **{right: True}) for right in ("gated", "private"))
    absent = Repo("model", "acme/thing", {"other": b""})
    page = f"{models.hub.url}/acme/thing"
    assert models.read(absent, expect=1).endswith(f"no such revision; {page}/commits/main lists what there is")
    models.hub.repos = {("model", "acme/thing", gated.commit): gated}
    told = models.read(gated, expect=1)
    assert told.endswith(f"gated, and there is no token here: accept its licence at {page}, then run `hf auth login`")
    told = models.read(gated, expect=1, HF_TOKEN="hf_me")
    assert told.endswith(f"gated, and the account of this token may not read it: accept its licence at {page}")
    models.hub.repos = {("model", "acme/thing", private.commit): private}
    told = models.read(private, expect=1)
    nowhere = f"no such repository on the Hugging Face Hub ({page}), or"
    assert told.endswith(f"{nowhere} private: then run `hf auth login`")
    assert models.read(private, expect=1, HF_TOKEN="hf_me").endswith(
        f"{nowhere} the account of this token may not read it"
    )
    models.hub.grants["hf_me"].add("acme/thing")
    assert models.read(private, HF_TOKEN="hf_me") == models.read_as["A"]


def test_the_store_of_large_files_fails_in_a_line(models):
    files = {name: file.content for name, file in models.a.files.items()}
    xet = Repo("model", "acme/thing", files, xet=True)
    models.hub.repos = {("model", "acme/thing", xet.commit): xet}
    told = models.read(xet, expect=1)
    assert re.search(r"store of large files fails \(.*404.*\); run again, or set HF_HUB_DISABLE_XET=1$", told)
    assert models.read(xet, HF_HUB_DISABLE_XET="1") == models.read_as["A"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("IO: No space left on device (os error 28)")],
)
def test_a_full_disk_is_told(error):
    assert re.search("^no space left on the disk of .*; make some, or set HF_HOME", explain(error))


def test_of_a_model_only_what_is_loaded_is_fetched(models):
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.dumps({"weight_map": dict(zip("ab", shards))}).encode()
    needed = {"config.json": b"{}", "model.safetensors.index.json": index, **dict.fromkeys(shards, b"x")}
    more = [
        "original/params.json",
        "original/consolidated.safetensors",
        "onnx/model.onnx",
        "onnx/config.json",
        "README.md",
    ]
    more += [
        "pytorch_model.bin",
        "consolidated.safetensors",
        "checkpoint-8/model.safetensors",
        "adapter_model.safetensors",
    ]
    repo = Repo("model", "acme/thing", needed | dict.fromkeys(more, b"x"))
    models.hub.repos = {("model", "acme/thing", repo.commit): repo}
    assert models.read(repo).keys() == needed.keys()
    assert not [asked for asked in models.hub.asked if any(name in asked for name in more)]
    bare = Repo("model", "acme/thing", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    models.hub.repos = {("model", "acme/thing", bare.commit): bare}
    told = models.read(bare, expect=1)
    assert "expected model.safetensors or model.safetensors.index.json, found pytorch_model.bin; take a" in told
